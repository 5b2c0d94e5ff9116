//! Every developer and CI command: `cargo xtask --help`.
//!
//! No shell scripts: what is done here is done the same way on every machine, with progress, and
//! can be run twice.
#![forbid(unsafe_code)]

use std::{ffi::OsString, net::SocketAddr, process::ExitCode};

use clap::{Parser, Subcommand};

mod build;
mod check;
mod progress;
mod relay;
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

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup => setup::setup(),
        Task::Build { release } => build::build(release).map(drop),
        Task::Check => check::check(),
        Task::Test { filters } => test::test(&filters),
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
