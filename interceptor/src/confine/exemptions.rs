//! What somebody leaves to an agent on purpose: flags of `run`, which the journal records.

use std::{ffi::OsString, path::PathBuf};

use caps::Capability;
use clap::ValueEnum;

/// What is left to a launched agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "What the command keeps (recorded)")]
pub struct Exemptions {
    /// Leave this to it; may be repeated
    #[arg(long, value_enum, value_name = "WHAT")]
    pub allow: Vec<Allowance>,
    /// Let it reach this Unix socket, or those in this folder; a container engine's through interceptor, which
    /// decides and records each request; may be repeated
    #[arg(long = "allow-socket", value_name = "PATH", value_parser = absolute)]
    pub sockets: Vec<PathBuf>,
    /// The same with nothing in between: a container engine gives whoever reaches it this host; may be repeated
    #[arg(long = "allow-socket-unseen", value_name = "PATH", value_parser = absolute)]
    pub unseen: Vec<PathBuf>,
    /// Let it see this device, or those in this folder; may be repeated
    #[arg(long = "allow-device", value_name = "PATH", value_parser = absolute)]
    pub devices: Vec<PathBuf>,
    /// Leave it this capability, such as `sys_nice`; may be repeated
    #[arg(long = "allow-capability", value_name = "NAME", value_parser = capability)]
    pub capabilities: Vec<Capability>,
    /// Leave this descriptor open for it, besides 0, 1 and 2; may be repeated
    #[arg(long = "keep-fd", value_name = "N")]
    pub descriptors: Vec<u32>,
}

/// A guard that can be left off as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Allowance {
    /// Setuid programs and file capabilities take effect (sudo, su); what `run` took stays taken
    Setuid,
    /// Namespaces and mounts within them: browsers' sandboxes, rootless containers, bubblewrap
    Namespaces,
    /// The system calls of `io_uring`, which seccomp doesn't see into; the hooks do
    IoUring,
    /// Unix sockets of others, /run included: containers, D-Bus, agents of SSH, display
    Sockets,
    /// All devices of the host, disks included
    Devices,
    /// Changing crontabs, at jobs and systemd units, which run outside
    Schedules,
}

impl Exemptions {
    /// Whether a guard is left off.
    #[must_use]
    pub fn allows(&self, what: Allowance) -> bool {
        self.allow.contains(&what)
    }

    /// The same as arguments again; no two sets have the same.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: OsString| {
            let mut argument = OsString::from(flag);
            argument.push("=");
            argument.push(value);
            arguments.push(argument);
        };
        for allowance in &self.allow {
            if let Some(value) = allowance.to_possible_value() {
                add("--allow", value.get_name().into());
            }
        }
        for path in &self.sockets {
            add("--allow-socket", path.into());
        }
        for path in &self.unseen {
            add("--allow-socket-unseen", path.into());
        }
        for path in &self.devices {
            add("--allow-device", path.into());
        }
        for capability in &self.capabilities {
            add("--allow-capability", capability.to_string().into());
        }
        for descriptor in &self.descriptors {
            add("--keep-fd", descriptor.to_string().into());
        }
        arguments
    }
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| error.to_string())
}

fn capability(name: &str) -> Result<Capability, String> {
    caps::to_canonical(name)
        .parse()
        .map_err(|_| "there is no such capability; see capabilities(7)".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        exemptions: Exemptions,
    }

    #[test]
    fn arguments_say_the_same_again() {
        let given = [
            "run",
            "--allow=io-uring",
            "--allow=setuid",
            "--allow-socket=/run/docker.sock",
            "--allow-socket-unseen=/run/podman",
            "--allow-device=/dev/dri",
            "--allow-capability=sys_nice",
            "--keep-fd=7",
        ];
        let exemptions = Line::parse_from(given).exemptions;
        assert!(exemptions.allows(Allowance::IoUring) && !exemptions.allows(Allowance::Sockets));
        let mut again = vec![OsString::from("run")];
        again.extend(exemptions.arguments());
        assert_eq!(Line::parse_from(again).exemptions, exemptions);
    }

    #[test]
    fn what_is_no_capability_is_refused() {
        assert!(Line::try_parse_from(["run", "--allow-capability", "all"]).is_err());
    }
}
