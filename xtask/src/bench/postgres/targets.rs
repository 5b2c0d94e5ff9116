//! The ways from pgbench to PostgreSQL that are compared.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use interceptor_tests::{
    cluster::{self, Database},
    daemon::Daemon,
    scratch,
};
use nix::unistd::{User, chown};

use crate::bench::proxy::Proxy;

const PGBENCH: &str = "/usr/lib/postgresql/15/bin/pgbench";

/// One way, ready to be measured.
#[derive(Debug)]
pub(super) enum Target {
    /// No proxy.
    Direct,
    /// A proxy that pgbench is pointed at.
    Proxy {
        /// Its name in the table.
        name: &'static str,
        /// Where it listens.
        port: u16,
        /// It, running.
        proxy: Proxy,
    },
    /// interceptor, which pgbench isn't told of.
    Interceptor(Box<Daemon>),
}

impl Target {
    /// The relay of `xtask` that looks at nothing.
    ///
    /// # Errors
    /// Where it doesn't start.
    pub(super) fn relay(xtask: &Path, database: &Database<'_>) -> Result<Self> {
        let port = cluster::free_port()?;
        let mut command = Command::new(xtask);
        command
            .arg("relay")
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--upstream", &format!("127.0.0.1:{}", database.port())]);
        Self::proxy("relay", port, &mut command, &scratch::folder("relay")?)
    }

    /// pgbouncer with session pooling, doing as little as it can. Its reset query stays the default:
    /// once a session, and without it pgbench's prepared statements collide with the last run's.
    ///
    /// # Errors
    /// Where it isn't installed or doesn't start.
    pub(super) fn pgbouncer(database: &Database<'_>) -> Result<Self> {
        let port = cluster::free_port()?;
        let folder = scratch::folder("pgbouncer")?;
        let user = User::from_name("postgres")?.context("there is no user `postgres`")?;
        let users = folder.join("users");
        fs::write(&users, "\"agent\" \"\"\n")?;
        let configuration = folder.join("pgbouncer.ini");
        fs::write(
            &configuration,
            format!(
                "[databases]\n* = host=127.0.0.1 port={}\n\
                 [pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = trust\nauth_file = {}\n\
                 pool_mode = session\n\
                 max_client_conn = 200\ndefault_pool_size = 100\n\
                 log_connections = 0\nlog_disconnections = 0\n",
                database.port(),
                users.display()
            ),
        )?;
        chown(&folder, Some(user.uid), Some(user.gid))?;
        let mut command = Command::new("/usr/sbin/pgbouncer");
        command
            .arg("--quiet")
            .arg(&configuration)
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw());
        Self::proxy("pgbouncer", port, &mut command, &folder)
    }

    fn proxy(name: &'static str, port: u16, command: &mut Command, folder: &Path) -> Result<Self> {
        Ok(Self::Proxy {
            name,
            port,
            proxy: Proxy::start(name, port, command, folder)?,
        })
    }

    /// interceptor as built at `program`, under `policy`.
    ///
    /// # Errors
    /// Where it doesn't start.
    pub(super) fn interceptor(program: PathBuf, policy: &str) -> Result<Self> {
        Ok(Self::Interceptor(Box::new(Daemon::of(
            program,
            policy,
            |_| String::new(),
        )?)))
    }

    /// Its name in the table.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxy { name, .. } => name,
            Self::Interceptor(_) => "interceptor",
        }
    }

    /// The processes that are in the way.
    pub(super) fn pids(&self) -> Vec<u32> {
        match self {
            Self::Direct => Vec::new(),
            Self::Proxy { proxy, .. } => vec![proxy.pid()],
            Self::Interceptor(daemon) => daemon.pids(),
        }
    }

    /// pgbench against `database` this way.
    pub(super) fn pgbench(&self, database: &Database<'_>) -> Command {
        let mut command = match self {
            Self::Interceptor(daemon) => daemon.run_as("bench", PGBENCH),
            Self::Direct | Self::Proxy { .. } => Command::new(PGBENCH),
        };
        database.enter(&mut command);
        if let Self::Proxy { port, .. } = self {
            command.env("PGPORT", port.to_string());
        }
        command
    }
}
