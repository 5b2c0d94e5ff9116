//! The ways from a client to the server that are compared.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use interceptor_tests::{daemon::Daemon, run, scratch};

use super::{
    peers::Peer,
    site::{self, Door, Ports, Site},
};
use crate::bench::proxy::Proxy;

pub(super) const POLICY: &str = include_str!("policy.yaml");

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// No proxy.
    Direct,
    /// The relay of `xtask` that looks at nothing; for what passes through only.
    Relay,
    /// A proxy that clients are pointed at.
    Peer(Peer),
    /// interceptor, which clients aren't told of.
    Interceptor,
}

/// One way, ready to be measured.
#[derive(Debug)]
pub(super) struct Target {
    /// Which.
    pub(super) way: Way,
    ports: Ports,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Nothing,
    Proxy(Proxy),
    Daemon(Box<Daemon>),
}

impl Way {
    /// Its name in the table.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Peer(peer) => peer.name(),
            Self::Interceptor => "interceptor",
        }
    }
}

impl Target {
    /// Sets `way` up in front of `site`, with what was built in `built`.
    ///
    /// # Errors
    /// Where it doesn't start.
    pub(super) fn start(way: Way, site: &Site, built: &Path) -> Result<Self> {
        let (running, ports) = match way {
            Way::Direct => (Running::Nothing, site.ports),
            Way::Relay => {
                let ports = Ports::free()?;
                let port = ports.of(Door::Through);
                let mut command = Command::new(built.join("xtask"));
                command
                    .arg("relay")
                    .args(["--listen", &format!("127.0.0.1:{port}")])
                    .args([
                        "--upstream",
                        &format!("127.0.0.1:{}", site.ports.of(Door::Through)),
                    ]);
                let proxy = Proxy::start("relay", port, &mut command, &scratch::folder("relay")?)?;
                (Running::Proxy(proxy), ports)
            }
            Way::Peer(peer) => {
                let (proxy, ports) = peer.start(site)?;
                (Running::Proxy(proxy), ports)
            }
            Way::Interceptor => {
                let through = site.ports.of(Door::Through).to_string();
                let daemon = Daemon::of(
                    built.join("interceptor"),
                    &POLICY.replace("THROUGH", &through),
                    |_| format!("tls: {{roots: [{}]}}\n", site.authority.display()),
                )?;
                (Running::Daemon(Box::new(daemon)), site.ports)
            }
        };
        Ok(Self {
            way,
            ports,
            running,
        })
    }

    /// The processes that are in the way.
    pub(super) fn pids(&self) -> Vec<u32> {
        match &self.running {
            Running::Nothing => Vec::new(),
            Running::Proxy(proxy) => vec![proxy.pid()],
            Running::Daemon(daemon) => daemon.pids(),
        }
    }

    /// The port that a client is given.
    pub(super) const fn port(&self, door: Door) -> u16 {
        self.ports.of(door)
    }

    /// `program`, to be started as a client of this one.
    pub(super) fn client(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.running {
            Running::Daemon(daemon) => daemon.run_as("bench", program),
            Running::Nothing | Running::Proxy(_) => Command::new(program),
        }
    }

    /// The authority that a client should see at `door`: interceptor's own where it intercepts.
    pub(super) fn authority(&self, door: Door, site: &Site) -> PathBuf {
        match &self.running {
            Running::Daemon(daemon) if door != Door::Through => daemon.state().join("ca/ca.pem"),
            _ => site.authority.clone(),
        }
    }

    /// What `path` answers with, and makes sure that it came this way: behind interceptor without the secret,
    /// else with it.
    ///
    /// # Errors
    /// Where it doesn't answer or isn't what it should be.
    pub(super) fn fetch(&self, path: &str, door: Door, site: &Site) -> Result<String> {
        let name = self.way.name();
        let mut curl = self.client("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "10",
            "--cacert",
        ])
        .arg(self.authority(door, site))
        .arg(format!("https://localhost:{}{path}", self.port(door)));
        let answer = run::output(&mut curl).with_context(|| format!("{name} doesn't answer"))?;
        if path == site::ANSWER {
            let masked = self.way == Way::Interceptor && door != Door::Through;
            if answer.contains(site::SECRET) == masked {
                bail!("{name} doesn't give what it should:\n{answer}");
            }
        }
        Ok(answer)
    }
}
