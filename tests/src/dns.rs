//! A throw-away DNS server in the outside world.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Result;

use crate::{
    keeper::{Farewell, Keeper},
    netns::Outside,
    run, scratch,
};

/// A running dnsmasq on port 53 of an [`Outside`], stopped when dropped.
///
/// It knows `web.test` with the world's addresses, `alias.test` and `far.test` that lead there, a long
/// `txt.test`, and `svc.test` with an HTTPS record that has keys for Encrypted ClientHello.
#[derive(Debug)]
pub struct Dns {
    folder: PathBuf,
    servers: [String; 2],
    _keeper: Keeper,
}

/// An HTTPS record of `web.test` with ALPN h2 and an `ech` parameter, as RFC 9460 writes it.
const HTTPS_WITH_ECH: &str = concat!(
    "0001",                 // priority
    "03776562047465737400", // web.test
    "0001",
    "0003",
    "026832", // alpn: h2
    "0005",
    "0008",
    "deadbeefdeadbeef", // ech
);

impl Dns {
    /// Starts it.
    ///
    /// # Errors
    /// Where dnsmasq isn't installed or doesn't start; with its log.
    pub fn start(outside: &Outside) -> Result<Self> {
        let folder = scratch::folder("dns")?;
        let servers = [outside.address_v4(), outside.address_v6()];
        for (file, server) in ["v4", "v6"].into_iter().zip(&servers) {
            fs::write(
                folder.join(file),
                format!("nameserver {server}\noptions timeout:3\n"),
            )?;
        }
        let log = folder.join("log");
        let mut command = outside.command("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--user=root",
            ])
            .args(["--conf-file=/dev/null", "--pid-file=", "--local=/test/"])
            .args(["--log-queries", "--cache-size=0", "--local-ttl=60"])
            .arg(format!("--log-facility={}", log.display()));
        let [v4, v6] = &servers;
        command.arg(format!("--host-record=web.test,{v4},{v6}"));
        let child =
            command
                .args(["--cname=alias.test,web.test", "--cname=far.test,alias.test"])
                // Longer than a datagram may be without EDNS.
                .args((0..40).map(|part| {
                    format!("--txt-record=long.test,{}", format!("{part:02}").repeat(40))
                }))
                .arg("--txt-record=txt.test,hello")
                .arg(format!("--dns-rr=svc.test,65,{HTTPS_WITH_ECH}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?;
        let dns = Self {
            _keeper: Keeper::of_process(child.id(), Farewell::Terminate, &folder)?,
            folder,
            servers,
        };
        run::wait_for("dnsmasq to answer", Duration::from_secs(10), || {
            let [server, _] = &dns.servers;
            let mut dig = Command::new("dig");
            dig.args([
                "+short",
                "+time=1",
                "+tries=1",
                &format!("@{server}"),
                "web.test",
            ]);
            Ok((run::outcome(&mut dig)?.stdout.trim() == server).then_some(()))
        })?;
        Ok(dns)
    }

    /// Its addresses, IPv4 and IPv6.
    #[must_use]
    pub const fn servers(&self) -> &[String; 2] {
        &self.servers
    }

    /// How many questions for `name` have reached it.
    #[must_use]
    pub fn asked(&self, name: &str) -> usize {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let asked = format!("] {name} from ");
        log.to_ascii_lowercase()
            .lines()
            .filter(|line| line.contains("query[") && line.contains(&asked))
            .count()
    }

    /// The names that it was asked for.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines()
            .filter_map(|line| {
                let (_, asked) = line.split_once("query[")?;
                let (_, name) = asked.split_once("] ")?;
                Some(name.split(' ').next()?.to_ascii_lowercase())
            })
            .collect()
    }

    /// Has `command` find this server, by its IPv4 or IPv6 address, where programs look for theirs.
    #[must_use]
    pub fn resolving(&self, v6: bool, command: &Command) -> Command {
        let file = self.folder.join(if v6 { "v6" } else { "v4" });
        let mut inside = Command::new("unshare");
        inside
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"")
            .arg(file)
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            inside.env(name, value.unwrap_or(OsStr::new("")));
        }
        inside
    }

    /// A folder for a test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
