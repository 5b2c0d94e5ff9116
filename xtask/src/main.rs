//! Every developer and CI command: `cargo xtask --help`.
//!
//! No shell scripts: what is done here is done the same way on every machine, with progress, and
//! can be run twice.
#![forbid(unsafe_code)]

use std::{ffi::OsString, net::SocketAddr, process::ExitCode};

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod check;
mod connect;
mod demo;
mod fuzz;
mod load;
mod progress;
mod relay;
mod screenshots;
mod setup;
mod shell;
mod test;

/// Every developer and CI command of interceptor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what building and testing need (Debian 12, as root); skips what is there
    Setup,
    /// Build the program
    Build {
        /// With optimisations, as it is shipped
        #[arg(long)]
        release: bool,
    },
    /// Formatting, lints, the walls between modules, dependencies
    Check,
    /// Set up, then run everything that CI runs
    Test {
        /// Only tests whose name contains one of these
        filters: Vec<OsString>,
    },
    /// Show the main job on a throw-away PostgreSQL; or run CMD under the same policy
    Demo {
        /// A command and its arguments, after `--`
        #[arg(last = true)]
        cmd: Vec<OsString>,
    },
    /// Take pictures of the console's pages: light, dark and on a phone
    Screenshots {
        /// Where they go
        #[arg(default_value = "target/screenshots")]
        folder: std::path::PathBuf,
    },
    /// Write docs/export-schema.json anew, out of docs/openapi.json
    Schema,
    /// Measure against peers
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Feed hostile input to what reads it (cargo-fuzz, nightly toolchain)
    Fuzz {
        /// One target; all of them in turn where none is given
        target: Option<String>,
        /// Seconds a target
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Ask a server over TLS, and say as JSON how long it took
    #[command(hide = true)]
    Load(load::Arguments),
    /// Connect to a server again and again, and say as JSON how long that took
    #[command(hide = true)]
    Connect(connect::Arguments),
    /// Accept connections on a free port of loopback, which is printed, and hold them
    #[command(hide = true)]
    Hold,
    /// Copy bytes between two TCP sockets and do nothing else (the ceiling of every benchmark)
    #[command(hide = true)]
    Relay {
        /// Where clients connect to
        #[arg(long)]
        listen: SocketAddr,
        /// Where their bytes go
        #[arg(long)]
        upstream: SocketAddr,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// pgbench directly, through a do-nothing relay, through pgbouncer and through interceptor
    Postgres {
        #[command(flatten)]
        amount: bench::Amount,
    },
    /// wrk, h2load and a client of our own over TLS: directly, through nginx, haproxy, envoy, mitmproxy
    /// and interceptor
    Http {
        #[command(flatten)]
        amount: bench::Amount,
        /// Only what has this in its title; can be given more than once
        #[arg(long)]
        only: Vec<String>,
    },
    /// Approvals: from a held request to those who watch, and from their vote to the server
    Approvals {
        #[command(flatten)]
        amount: bench::Amount,
    },
    /// The session log: durable records a second against the disk alone and SQLite, verify, export, list, growth
    Journal {
        #[command(flatten)]
        amount: bench::Amount,
        /// Up to ten million records, which takes minutes and 3 GB
        #[arg(long)]
        full: bool,
    },
    /// connect() alone: without hooks, untagged beside them, redirected, and within an agent
    Connect {
        #[command(flatten)]
        amount: bench::Amount,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup => setup::setup(),
        Task::Build { release } => build::build(release).map(drop),
        Task::Screenshots { folder } => screenshots::take(&folder),
        Task::Check => check::check(),
        Task::Schema => schema(),
        Task::Test { filters } => test::test(&filters),
        Task::Demo { cmd } if cmd.is_empty() => demo::show(),
        Task::Demo { cmd } => match demo::guard(&cmd) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Task::Bench {
            what: Bench::Postgres { amount },
        } => bench::postgres::bench(amount),
        Task::Bench {
            what: Bench::Http { amount, only },
        } => bench::http::bench(amount, &only),
        Task::Bench {
            what: Bench::Approvals { amount },
        } => bench::approvals::bench(amount),
        Task::Bench {
            what: Bench::Journal { amount, full },
        } => bench::journal::bench(amount, full),
        Task::Bench {
            what: Bench::Connect { amount },
        } => bench::connect::bench(amount),
        Task::Fuzz { target, seconds } => fuzz::fuzz(target.as_deref(), seconds),
        Task::Load(arguments) => load::load(&arguments),
        Task::Connect(arguments) => connect::connect(&arguments),
        Task::Hold => connect::hold(),
        Task::Relay { listen, upstream } => relay::relay(listen, upstream),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", progress::red("error:"));
            ExitCode::FAILURE
        }
    }
}

/// Publishes what a line of an export is.
fn schema() -> anyhow::Result<()> {
    let path = interceptor_tests::schema::path();
    std::fs::write(&path, interceptor_tests::schema::derived()?)?;
    progress::note(&format!("{} is written", path.display()));
    Ok(())
}
