//! `interceptor serve`: the daemon.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;

use super::{
    Context, Outcome,
    failed::{Failed, code},
};
use crate::{
    config::Instance,
    daemon::{self, ServeError},
};

/// Run the daemon
///
/// Loads the kernel hooks, adopts the agents that an earlier daemon tagged, and serves until SIGTERM or
/// Ctrl-C. SIGHUP reloads the policy, as does any change in its folder.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  interceptor serve\n  \
    interceptor serve --policies policies/starter.yaml --state /tmp/state --control /tmp/control.sock --instance trial --remove-hooks")]
pub(super) struct Arguments {
    /// A policy file, or a folder of them [default: /etc/interceptor/policies.d]
    #[arg(long, value_name = "PATH")]
    policies: Option<PathBuf>,
    /// The folder of the journal [default: /var/lib/interceptor]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Name of this daemon's hooks and cgroups, to tell it from others on this host [default: interceptor]
    #[arg(long, value_name = "NAME")]
    instance: Option<Instance>,
    /// Take hooks, pins and cgroups away at a clean stop. Without it they stay, and agents are refused
    /// until the next start
    #[arg(long)]
    remove_hooks: bool,
}

pub(super) fn run(context: &Context, arguments: Arguments) -> Outcome {
    let mut config = context.config.clone();
    if let Some(policies) = arguments.policies {
        config.policies = policies;
    }
    if let Some(state) = arguments.state {
        config.state = state;
    }
    if let Some(instance) = arguments.instance {
        config.instance = instance;
    }
    let filter =
        tracing_subscriber::EnvFilter::try_new(config.log.as_str()).map_err(Failed::because)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // Left to itself it writes escapes into files, too.
        .with_ansi(context.may_color && io::stderr().is_terminal())
        .init();
    match daemon::serve(config, arguments.remove_hooks) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(ServeError::Policy(error)) => Err(Failed::with_code(
            code::POLICY,
            format!("the policy can't be used:\n{error}"),
        )
        .with_remedy("`interceptor policy check PATH` shows the same without starting the daemon")),
        Err(error) => Err(Failed::because(error)),
    }
}
