//! `interceptor policy`: try a policy before it is in force, and see what one does. A file a subcommand.

mod cases;
mod check;
mod explain;
mod observed;
mod past;
mod reload;
mod replay;
mod suggest;

use std::{path::PathBuf, process::ExitCode};

use interceptor_core::policy::{PolicyError, Problem};
use serde_json::json;

use super::{
    Context, Outcome,
    display::{Style, count, inert, paint, print},
    failed::code,
};

/// Try a policy before it is in force, see what it does, or load the files in force again
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Exit status 4 where the policy is not valid or fails its cases. Examples:
  interceptor policy check policies/postgres.yaml
  interceptor policy test /etc/interceptor/policies.d
  interceptor policy explain --session 8d3f00a1b2c4e5f6 --operation 3
  interceptor policy explain policies/postgres.yaml --statement 'DROP TABLE customers' --agent reporter
  interceptor policy replay --since 7d new.yaml
  interceptor policy suggest --agent reporter --output reporter.yaml
  interceptor policy observed --since 7d
  interceptor policy reload"
)]
pub(super) enum Command {
    /// Check that a policy is valid and passes its own cases
    Check(Arguments),
    /// Run a policy's own cases and say how each went
    Test(Arguments),
    Explain(Box<explain::Arguments>),
    Replay(replay::Arguments),
    Suggest(suggest::Arguments),
    Observed(observed::Arguments),
    /// Have the daemon read its policy files now
    Reload,
}

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A policy file (its cases are in it, or beside it in NAME.test.yaml), or a folder of them
    path: PathBuf,
}

pub(super) fn run(context: &Context, command: &Command) -> Outcome {
    match command {
        Command::Check(arguments) => check::run(context, arguments),
        Command::Test(arguments) => cases::run(context, arguments),
        Command::Explain(arguments) => explain::run(context, arguments),
        Command::Replay(arguments) => replay::run(context, arguments),
        Command::Suggest(arguments) => suggest::run(context, arguments),
        Command::Observed(arguments) => observed::run(context, arguments),
        Command::Reload => reload::run(context),
    }
}

/// What is wrong is what was asked for: it goes to stdout, a line each, `file:line:column: what`.
fn invalid(context: &Context, error: &PolicyError) -> Outcome {
    if context.is_json() {
        context.print_json(&json!({
            "valid": false,
            "problems": error.0.iter().map(problem).collect::<Vec<_>>(),
        }))?;
    } else {
        let mut out = String::new();
        for problem in &error.0 {
            out.push_str(&format!("{}\n", inert(&problem.to_string())));
        }
        out.push_str(&format!(
            "{}: {}\n",
            paint(Style::Bad, "NOT VALID", context.color),
            count(error.0.len() as u64, "problem")
        ));
        print(&out)?;
    }
    Ok(ExitCode::from(code::POLICY))
}

fn problem(problem: &Problem) -> serde_json::Value {
    json!({
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "what": problem.what,
    })
}
