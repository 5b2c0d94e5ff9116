//! The outside world of a test: a network namespace with documentation addresses, joined by veth.

use std::{
    ffi::OsStr,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context as _, Result};

use crate::{keeper::Keeper, run};

/// A namespace that holds 192.0.2.x and 2001:db8::x, removed when dropped.
///
/// The host's side of the veth carries the neighbouring address of the same /31 and /127, so no
/// other documentation address is routed and nothing can get out.
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
        static COUNTER: AtomicU8 = AtomicU8::new(0);
        // Test processes rarely run side by side; a pair of addresses each keeps those apart that do.
        let slot =
            (std::process::id() % 16) * 8 + u32::from(COUNTER.fetch_add(1, Ordering::Relaxed) % 8);
        let number = u8::try_from(slot).context("more than 128 namespaces")? * 2;
        let name = format!("itx{number}");
        let veth = format!("itv{number}");
        // What an earlier run left behind when the machine stopped under it.
        let _ = ip(&["netns", "delete", &name]);
        let outside = Self {
            _keeper: Keeper::of_command(
                "ip netns delete \"$1\"; ip link delete \"$2\"",
                [OsStr::new(&name), OsStr::new(&veth)],
            )?,
            name,
            number,
        };
        let (host, server) = (number, number + 1);
        let name = outside.name.as_str();
        ip(&["netns", "add", name])?;
        ip(&[
            "link", "add", &veth, "type", "veth", "peer", "name", "out0", "netns", name,
        ])?;
        ip(&[
            "address",
            "add",
            &format!("192.0.2.{host}/31"),
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
            &format!("192.0.2.{server}/31"),
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
        format!("192.0.2.{}", self.number + 1)
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

fn ip(arguments: &[&str]) -> Result<()> {
    run::output(Command::new("ip").args(arguments))
        .map(drop)
        .context("the outside world can't be made")
}
