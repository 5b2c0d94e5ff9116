//! The daemon, its files and its clock.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use super::{Group, Guard, NEEDS_ROOT, agents};
use crate::{clock, config::Config, control::Status};

#[derive(Debug, Clone)]
pub(super) struct Found {
    /// What the daemon says is wrong, each with a remedy; or why none answers.
    troubles: Result<Vec<(String, String)>, String>,
    has_agents: bool,
    /// What the kernel lacks to confine the process that carries sessions, where one runs.
    proxy: Option<Vec<String>>,
    state: PathBuf,
    /// Bytes that are free where the journal is.
    free_bytes: Option<u64>,
    /// Seconds since 1970.
    now: u64,
    key: Option<File>,
    control: Option<File>,
}

/// Who may use a file.
#[derive(Debug, Clone, Copy)]
struct File {
    uid: u32,
    mode: u32,
}

/// The journal's disk has to have as much.
const FREE_BYTES: u64 = 1 << 30;

/// 2026-01-01: this program is no older.
const BUILT: u64 = 1_767_225_600;

pub(super) fn find(
    config: &Config,
    status: Result<&Status, &str>,
    agents: &agents::Found,
) -> Found {
    let state = status.map_or_else(
        |_| config.state.clone(),
        |status| status.journal.path.clone(),
    );
    // The folder is made at the first start: until then what will hold it tells.
    let there = state.ancestors().find(|path| path.exists());
    let free_bytes = there.and_then(|path| {
        let disk = nix::sys::statvfs::statvfs(path).ok()?;
        Some(disk.blocks_available() * disk.fragment_size())
    });
    let file = |path: PathBuf| {
        let meta = fs::metadata(path).ok()?;
        Some(File {
            uid: meta.uid(),
            mode: meta.mode() & 0o777,
        })
    };
    Found {
        troubles: status
            .map(|status| {
                let troubles = status.troubles.iter();
                troubles
                    .map(|trouble| (trouble.what.clone(), trouble.remedy.clone()))
                    .collect()
            })
            .map_err(str::to_owned),
        has_agents: agents.has_agents(),
        proxy: status
            .ok()
            .and_then(|status| Some(status.proxy.as_ref()?.weaker.clone())),
        key: file(state.join("ca").join("ca.key")),
        control: file(config.control.clone()),
        state,
        free_bytes,
        now: clock::now().0 / 1_000_000_000,
    }
}

pub(super) fn guards(found: &Found) -> Vec<Guard> {
    let mut group = Group::new("daemon");
    match &found.troubles {
        Ok(troubles) if troubles.is_empty() => {
            group.in_force("daemon", "it answers, and nothing troubles it")
        }
        Ok(troubles) => {
            for (what, remedy) in troubles {
                group.weaker("daemon", what.clone(), remedy);
            }
        }
        Err(_) if !found.has_agents => {
            group.in_force("daemon", "it doesn't run, and nobody is tagged")
        }
        Err(why) => group.missing(
            "daemon",
            format!("{why}; until it runs, agents are refused whatever they connect to"),
            "interceptor serve",
        ),
    }
    const PARSER: &str = "who reads what agents send";
    match found.proxy.as_deref() {
        Some([]) => group.in_force(
            PARSER,
            "a process of a user of its own, without capabilities, files and most system calls",
        ),
        Some(weaker) => {
            for what in weaker {
                group.weaker(PARSER, what.clone(), "use Linux 6.12 or later");
            }
        }
        // What the daemon says of it is above.
        None => {}
    }
    let state = found.state.display();
    match found.free_bytes {
        Some(bytes) if bytes < FREE_BYTES => group.weaker(
            "room for the journal",
            format!(
                "{} MiB are free at {state}; what can't be recorded isn't let pass",
                bytes >> 20
            ),
            "make room",
        ),
        Some(bytes) => group.in_force(
            "room for the journal",
            format!("{} GiB are free at {state}", bytes >> 30),
        ),
        None => group.unseen(
            "room for the journal",
            format!("{state} can't be looked at"),
            NEEDS_ROOT,
        ),
    }
    if found.now < BUILT {
        group.weaker(
            "clock",
            "it is before this program was built: certificates and records get wrong times",
            "set it, and keep it by NTP",
        );
    } else {
        group.in_force("clock", "plausible");
    }
    match found.key {
        Some(File { uid: 0, mode }) if mode & 0o077 == 0 => {
            group.in_force("the certificate authority's key", format!("root's alone (mode {mode:04o})"));
        }
        Some(File { uid, mode }) => group.weaker(
            "the certificate authority's key",
            format!("user {uid}'s, mode {mode:04o}: who reads it can pass for any server"),
            "chown root and chmod 0600 ca/ca.key in the state folder, or remove the folder ca to have a new one made",
        ),
        None if found.troubles.is_ok() => group.unseen(
            "the certificate authority's key",
            format!("{state}/ca/ca.key can't be looked at"),
            NEEDS_ROOT,
        ),
        None => group.in_force("the certificate authority's key", "made at the first start"),
    }
    match found.control {
        Some(File { mode, .. }) if mode & 0o007 == 0 => group.in_force(
            "control socket",
            format!("mode {mode:04o}; agents are refused by their cgroup as well"),
        ),
        Some(File { mode, .. }) => group.weaker(
            "control socket",
            format!("mode {mode:04o}: everybody may connect"),
            "restart the daemon, which sets it anew",
        ),
        None => group.in_force("control socket", "not there"),
    }
    group.guards
}

#[cfg(test)]
mod tests {
    use super::{
        super::{State, states},
        *,
    };

    fn good() -> Found {
        Found {
            troubles: Ok(Vec::new()),
            has_agents: true,
            proxy: Some(Vec::new()),
            state: "/s".into(),
            free_bytes: Some(5 << 30),
            now: BUILT + 1,
            key: Some(File {
                uid: 0,
                mode: 0o600,
            }),
            control: Some(File {
                uid: 0,
                mode: 0o660,
            }),
        }
    }

    #[test]
    fn files_that_others_can_use_are_told_of() {
        assert!(
            guards(&good())
                .iter()
                .all(|guard| guard.state == State::InForce)
        );
        let judged = guards(&Found {
            free_bytes: Some(1 << 20),
            now: 0,
            key: Some(File {
                uid: 0,
                mode: 0o640,
            }),
            control: Some(File {
                uid: 0,
                mode: 0o666,
            }),
            ..good()
        });
        let weaker = states(&judged)
            .into_iter()
            .filter(|(_, state)| *state == State::Weaker);
        assert_eq!(weaker.count(), 4);
    }

    #[test]
    fn a_daemon_is_missing_only_where_there_are_agents() {
        let down = Found {
            troubles: Err("nobody listens".to_owned()),
            ..good()
        };
        assert_eq!(
            guards(&down).first().map(|guard| guard.state),
            Some(State::Missing)
        );
        let idle = Found {
            has_agents: false,
            ..down
        };
        assert_eq!(
            guards(&idle).first().map(|guard| guard.state),
            Some(State::InForce)
        );
        let troubled = Found {
            troubles: Ok(vec![("broken".to_owned(), "mend it".to_owned())]),
            ..good()
        };
        assert_eq!(
            guards(&troubled).first().map(|guard| guard.state),
            Some(State::Weaker)
        );
    }
}
