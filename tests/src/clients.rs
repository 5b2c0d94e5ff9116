//! Unmodified clients, run directly or as an agent. They are told nothing of interceptor.

use std::{ffi::OsStr, process::Command};

use anyhow::Result;

use crate::{cluster::Database, daemon::Daemon, paths};

/// How a client gets to its server.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// As if there were no interceptor: what an agent has to see in either case.
    Direct,
    /// As an agent of this name.
    Guarded(&'a Daemon, &'a str),
}

impl Way<'_> {
    /// `program`, to be started that way.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Direct => Command::new(program),
            Self::Guarded(daemon, agent) => daemon.run_as(agent, program),
        }
    }

    /// `psql` in `database`, quiet and unaligned, with `arguments`.
    #[must_use]
    pub fn psql(self, database: &Database<'_>, arguments: &[&str]) -> Command {
        let mut command = self.command("psql");
        command
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .args(arguments);
        database.enter(&mut command);
        command
    }

    /// A script of `tests/clients`, by its extension under Python or Node, with `arguments`.
    ///
    /// # Errors
    /// Where the clients have not been set up.
    pub fn script(
        self,
        database: &Database<'_>,
        script: &str,
        arguments: &[&str],
    ) -> Result<Command> {
        let path = paths::client(script);
        let mut command = if script.ends_with(".js") {
            let mut command = self.command("node");
            command.env("NODE_PATH", paths::node_modules()?);
            command
        } else {
            self.command(paths::python()?)
        };
        command.arg(path).args(arguments);
        database.enter(&mut command);
        Ok(command)
    }
}
