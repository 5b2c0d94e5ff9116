//! A throw-away PostgreSQL 15.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{User, chown};

use crate::{
    keeper::{Farewell, Keeper},
    run, scratch,
};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// What every database of a test starts from.
const FIXTURE: &str = include_str!("../fixtures.sql");

/// Who may come in how: one role for each way of authentication, everybody else by trust.
const HBA: &str = "\
local all all trust
host  all scram_user    all scram-sha-256
host  all md5_user      all md5
host  all password_user all password
host  all all all trust
host  replication all all trust
";

/// A running server, stopped and removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    port: u16,
    keeper: Keeper,
}

/// A database of its own in a [`Cluster`].
#[derive(Debug, Clone)]
pub struct Database<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Cluster {
    /// Starts a server on a free port of the loopback addresses, with pgAudit loaded (silent until a
    /// database asks for it), the roles `agent` (superuser), `scram_user`, `md5_user` and
    /// `password_user` (password `secret`), and a template database `fixture`.
    ///
    /// # Errors
    /// Where this isn't root, PostgreSQL isn't installed or doesn't start; with its log.
    pub fn start() -> Result<Self> {
        let cluster = Self::bare(&[("shared_preload_libraries", "pgaudit")])?;
        cluster.sql(
            "postgres",
            "CREATE ROLE agent SUPERUSER LOGIN;
             CREATE ROLE scram_user LOGIN PASSWORD 'secret';
             SET password_encryption = md5;
             CREATE ROLE md5_user LOGIN PASSWORD 'secret';
             CREATE ROLE password_user LOGIN PASSWORD 'secret';",
        )?;
        cluster.sql("postgres", "CREATE DATABASE fixture")?;
        cluster.sql("fixture", FIXTURE)?;
        Ok(cluster)
    }

    /// Starts a server with `settings` on top of the harness's own and nothing in it.
    ///
    /// # Errors
    /// Where this isn't root, PostgreSQL isn't installed or doesn't start; with its log.
    pub fn bare(settings: &[(&str, &str)]) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("this needs root: run it again with sudo");
        }
        if !Path::new(BIN).join("postgres").exists() {
            bail!("PostgreSQL 15 is not in {BIN}; `cargo xtask setup` installs it");
        }
        let folder = scratch::folder("postgres")?;
        let started = Self::start_in(&folder, settings);
        if started.is_err() {
            // The error is what matters; a folder in /tmp that can't be removed is not.
            let _ = fs::remove_dir_all(&folder);
        }
        started
    }

    /// The port of 127.0.0.1 and ::1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its UNIX socket, which no interception covers: the way of the harness.
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// Runs `sql` in `database` behind everybody's back and gives its rows, unaligned.
    ///
    /// # Errors
    /// The server's error.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(["--set", "ON_ERROR_STOP=1", "--username", "postgres"])
            .arg("--host")
            .arg(&self.folder)
            .args(["--port", &self.port.to_string()])
            .args(["--dbname", database, "--command", sql]);
        Ok(run::output(&mut psql)?.trim_end().to_owned())
    }

    /// A new database with the fixture's tables.
    ///
    /// # Errors
    /// The server's error.
    pub fn database(&self) -> Result<Database<'_>> {
        let name = scratch::name("t").replace('-', "_");
        self.sql(
            "postgres",
            &format!("CREATE DATABASE {name} TEMPLATE fixture"),
        )?;
        Ok(Database {
            cluster: self,
            name,
        })
    }

    /// The server's log so far.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.folder.join("log")).context("no server log")
    }

    fn start_in(folder: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let user = User::from_name("postgres")?
            .context("there is no user `postgres`; the package postgresql-15 makes one")?;
        let as_postgres = |program: &str| {
            let mut command = Command::new(Path::new(BIN).join(program));
            command
                .uid(user.uid.as_raw())
                .gid(user.gid.as_raw())
                .current_dir(folder);
            command
        };
        chown(folder, Some(user.uid), Some(user.gid))?;
        let data = folder.join("data");
        run::output(
            as_postgres("initdb")
                .args(["--no-sync", "--auth=trust", "--username=postgres"])
                .args(["--encoding=UTF8", "--locale=C.UTF-8", "--pgdata"])
                .arg(&data),
        )
        .context("initdb failed")?;
        fs::write(data.join("pg_hba.conf"), HBA)?;

        let port = free_port()?;
        let log = fs::File::create(folder.join("log"))?;
        let mut postgres = as_postgres("postgres");
        postgres
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string()])
            .args(["-k".as_ref(), folder.as_os_str()])
            .args(["-c", "listen_addresses=127.0.0.1,::1"])
            .args(["-c", "fsync=off", "-c", "full_page_writes=off"])
            .args(["-c", "max_connections=200", "-c", "wal_level=logical"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the keeper to see to, after the daemon has let go.
            .process_group(0);
        for (name, value) in settings {
            postgres.args(["-c", &format!("{name}={value}")]);
        }
        let mut server = postgres.spawn().context("PostgreSQL doesn't start")?;
        let mut cluster = Self {
            folder: folder.to_owned(),
            port,
            keeper: Keeper::of_process(server.id(), Farewell::Quit, folder)?,
        };
        run::wait_for("PostgreSQL", Duration::from_secs(20), || {
            if server.try_wait()?.is_some() {
                bail!("PostgreSQL ended at once:\n{}", cluster.log()?);
            }
            Ok(cluster.sql("postgres", "SELECT 1").ok())
        })?;
        cluster.keeper.reap(server);
        Ok(cluster)
    }
}

/// A TCP port that was free on the loopback address a moment ago.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl Database<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster's port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.cluster.port()
    }

    /// Runs `sql` in it behind everybody's back and gives its rows, unaligned.
    ///
    /// # Errors
    /// The server's error.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.cluster.sql(&self.name, sql)
    }

    /// Points libpq and its like, started by `command`, at this database over TCP.
    pub fn enter<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", "agent")
            .env("PGDATABASE", &self.name)
    }
}
