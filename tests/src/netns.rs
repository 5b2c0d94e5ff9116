//! The outside world of a test: a network namespace with documentation addresses, joined by veth.

use std::{ffi::OsStr, process::Command};

use anyhow::{Context as _, Result};

use crate::{keeper::Keeper, run};

/// A namespace that holds 203.0.113.x and 2001:db8::x, removed when dropped.
///
/// The host's side of the veth carries the neighbouring address of the same /31 and /127, so no
/// other documentation address is routed and nothing can get out. They are of TEST-NET-3: a test
/// machine's own network may be TEST-NET-1.
#[derive(Debug)]
pub struct Outside {
    name: String,
    number: u8,
    _keeper: Keeper,
}

impl Outside {
    /// Makes a namespace.
    ///
    /// # Errors
    /// Where this isn't root or `iproute2` is missing.
    pub fn new() -> Result<Self> {
        // Whoever makes the namespace of a number has its addresses; others try the next. The first and
        // the last would have those of the network itself and of its broadcasts.
        const NUMBERS: u32 = 126;
        let start = std::process::id();
        let slot = (start..start + NUMBERS)
            .map(|number| 1 + number % NUMBERS)
            .find(|slot| ip(&["netns", "add", &format!("itx{}", slot * 2)]).is_ok())
            .context("no namespace can be made, or 126 are there already")?;
        let number = u8::try_from(slot * 2)?;
        let (name, veth) = (format!("itx{number}"), format!("itv{number}"));
        let outside = Self {
            _keeper: Keeper::of_command(
                "ip link delete \"$2\"; ip netns delete \"$1\"",
                [OsStr::new(&name), OsStr::new(&veth)],
            )?,
            name,
            number,
        };
        let (host, server) = (number, number + 1);
        let name = outside.name.as_str();
        ip(&[
            "link", "add", &veth, "type", "veth", "peer", "name", "out0", "netns", name,
        ])?;
        ip(&[
            "address",
            "add",
            &format!("203.0.113.{host}/31"),
            "dev",
            &veth,
        ])?;
        ip(&[
            "address",
            "add",
            &format!("2001:db8::{host:x}/127"),
            "dev",
            &veth,
            "nodad",
        ])?;
        ip(&["link", "set", &veth, "up"])?;
        let inside = |arguments: &[&str]| ip(&[&["-netns", name], arguments].concat());
        inside(&[
            "address",
            "add",
            &format!("203.0.113.{server}/31"),
            "dev",
            "out0",
        ])?;
        inside(&[
            "address",
            "add",
            &format!("2001:db8::{server:x}/127"),
            "dev",
            "out0",
            "nodad",
        ])?;
        inside(&["link", "set", "lo", "up"])?;
        inside(&["link", "set", "out0", "up"])?;
        Ok(outside)
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn address_v4(&self) -> String {
        format!("203.0.113.{}", self.number + 1)
    }

    /// The host's IPv4 address, as it is reached from inside.
    #[must_use]
    pub fn host_v4(&self) -> String {
        format!("203.0.113.{}", self.number)
    }

    /// The host's device that leads there.
    #[must_use]
    pub fn device(&self) -> String {
        format!("itv{}", self.number)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn address_v6(&self) -> String {
        format!("2001:db8::{:x}", self.number + 1)
    }

    /// `program`, to be started inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }
}

/// A namespace for agents, joined by veth to an [`Outside`] alone, and removed when dropped.
#[derive(Debug)]
pub struct Inside {
    name: String,
    keeper: Option<Keeper>,
}

impl Inside {
    /// Makes one in which a device has the addresses `own`, and whose neighbour in `outside` has
    /// `neighbours`; each with the length of its prefix.
    ///
    /// # Errors
    /// As of [`Outside::new`].
    pub fn joined_to(outside: &Outside, own: &[&str], neighbours: &[&str]) -> Result<Self> {
        let inside = Self::alone()?;
        let name = inside.name.as_str();
        // It goes with the namespace at its other end.
        let device = format!("in{}", inside.suffix());
        ip(&[
            "-netns",
            name,
            "link",
            "add",
            "up0",
            "type",
            "veth",
            "peer",
            "name",
            &device,
            "netns",
            &outside.name,
        ])?;
        for (namespace, device, addresses) in
            [(name, "up0", own), (&outside.name, &device, neighbours)]
        {
            for address in addresses {
                let mut add = vec!["-netns", namespace, "address", "add", address];
                add.extend(["dev", device]);
                add.extend(address.contains(':').then_some("nodad"));
                ip(&add)?;
            }
            ip(&["-netns", namespace, "link", "set", device, "up"])?;
        }
        Ok(inside)
    }

    /// Makes one from which nothing leads anywhere, with its loopback device down.
    ///
    /// # Errors
    /// As of [`Outside::new`].
    pub fn alone() -> Result<Self> {
        let name = crate::scratch::name("itn");
        let keeper = Keeper::of_command("ip netns delete \"$1\"", [OsStr::new(&name)])?;
        ip(&["netns", "add", &name])?;
        Ok(Self {
            name,
            keeper: Some(keeper),
        })
    }

    /// Whether `outside`, which it was joined to, still has its neighbour: they end together.
    #[must_use]
    pub fn is_reached_from(&self, outside: &Outside) -> bool {
        let device = format!("in{}", self.suffix());
        ip(&["-netns", &outside.name, "link", "show", &device]).is_ok()
    }

    /// `ip` with `arguments`, inside.
    ///
    /// # Errors
    /// Where it fails.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-netns", &self.name], arguments].concat())
    }

    /// Takes its name away: it ends when nobody is in it any more.
    pub fn forget(&mut self) {
        self.keeper = None;
    }

    /// The arguments of `nsenter` that lead into it.
    #[must_use]
    pub fn entry(&self) -> String {
        format!("--net=/run/netns/{}", self.name)
    }

    /// As much of its name as there is room for in a device's.
    fn suffix(&self) -> &str {
        let start = self.name.len().saturating_sub(9);
        self.name.get(start..).unwrap_or_default()
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run::output(Command::new("ip").args(arguments))
        .map(drop)
        .context("the outside world can't be made")
}
