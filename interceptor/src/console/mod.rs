//! The console: pages for people, in a process of its own.
//!
//! It reads what browsers and identity providers send, so it runs as the proxy does: as a user of its own, without a
//! file, a capability or a system call beyond its work (`sandbox.rs`). All it has is a listening socket, and a line to
//! the daemon (`daemon.rs`) over which it asks in the names of those who are signed in (`people/`); what they may is
//! decided, and recorded, by the daemon (`control/`). Pages are rendered here (`pages/`), whole and without scripts;
//! `assets/console.js` has them change as things happen.

mod assets;
mod child;
mod config;
mod daemon;
mod live;
mod pages;
mod people;
mod server;
mod setup;
mod telling;
pub(crate) mod text;

pub(crate) use self::config::is_at;
pub use self::config::{ConsoleConfig, Roles};
#[cfg(test)]
pub(crate) use self::daemon::Daemon;
pub(crate) use self::{child::Console, telling::sources};

use std::{
    io,
    net::TcpListener,
    os::{fd::AsFd as _, unix::net::UnixStream},
};

use self::setup::Setup;
use crate::sandbox::{self, Which};

/// The command that its process is started by; nobody types it.
pub(crate) const COMMAND: &str = "console-server";

/// The console's process: its standard input is the line to the daemon, its standard output the listening socket.
///
/// # Errors
/// Where the daemon didn't start it, or it can't be confined or served.
pub(crate) fn run() -> Result<(), String> {
    let socket = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    let line = socket(io::stdin().as_fd()).map_err(|error| error.to_string())?;
    let listener = socket(io::stdout().as_fd()).map_err(|error| error.to_string())?;
    if nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(
        &line,
    ))
    .is_err()
    {
        return Err(
            "this command is the daemon's: `interceptor serve` starts it where the configuration has a `console`"
                .to_owned(),
        );
    }
    let mut line = UnixStream::from(line);
    let setup = Setup::receive(&mut line).map_err(|error| error.to_string())?;
    let filter = tracing_subscriber::EnvFilter::try_new(&setup.log);
    tracing_subscriber::fmt()
        .with_env_filter(filter.map_err(|error| error.to_string())?)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
    // Before anything is confined: it takes a system call that isn't needed later.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("console")
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| error.to_string())?;
    let prepared = server::Prepared::new(setup, line, TcpListener::from(listener))
        .map_err(|error| error.to_string())?;
    for weaker in sandbox::enter(Which::Console, prepared.user())
        .map_err(|error| format!("it can't be confined: {error}"))?
    {
        tracing::warn!("{weaker}");
    }
    runtime
        .block_on(prepared.serve())
        .map_err(|error| error.to_string())
}
