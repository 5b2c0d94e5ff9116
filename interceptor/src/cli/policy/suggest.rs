//! `interceptor policy suggest`: rules out of what an agent did.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;

use super::{
    super::{
        Context, Outcome,
        display::{count, message, print},
        failed::Failed,
    },
    past::{Since, Source},
};
use crate::past;

/// Suggest the tightest rules that would have allowed what an agent did, to be looked through
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What was denied or held is left out and listed. Examples:
  interceptor policy suggest --agent reporter
  interceptor policy suggest --agent reporter --since 7d --output reporter.yaml   # with its cases in reporter.test.yaml
  interceptor policy test reporter.yaml"
)]
pub(in super::super) struct Arguments {
    /// The agent
    #[arg(long, value_name = "NAME")]
    agent: String,
    #[command(flatten)]
    since: Since,
    /// Write the rules to this file, which isn't there yet, and their cases beside it (NAME.test.yaml)
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let reader = arguments.source.reader(context)?;
    let asked = arguments.since.asked(None);
    let suggestion = past::suggest(&reader, &arguments.agent, &asked).map_err(Failed::because)?;
    let Some(suggestion) = suggestion else {
        let what = format!("no operation of agent `{}` is on record", arguments.agent);
        return Err(Failed::because(what)
            .with_remedy("`interceptor sessions list` shows which agents there were"));
    };
    if let Some(path) = &arguments.output {
        write(path, &suggestion.rules)?;
        write(&path.with_extension("test.yaml"), &suggestion.cases)?;
        message(&format!(
            "{} and {} from {} are in {}; {} left out",
            count(suggestion.rule_count as u64, "rule"),
            count(suggestion.case_count as u64, "case"),
            count(suggestion.operations, "operation"),
            path.display(),
            count(suggestion.left_out, "operation"),
        ));
    }
    if context.is_json() {
        return context.print_json(&json!({
            "agent": arguments.agent,
            "operations": suggestion.operations,
            "left_out": suggestion.left_out,
            "rules": suggestion.rule_count,
            "cases": suggestion.case_count,
            "policy": suggestion.rules,
            "tests": suggestion.cases,
        }));
    }
    if arguments.output.is_none() {
        // One file with both in it is as good, and printable ASCII whatever the agent did.
        print(&format!("{}{}", suggestion.rules, suggestion.cases))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file that isn't there: who has looked one through doesn't want it gone.
fn write(path: &Path, text: &str) -> Result<(), Failed> {
    let failed = |error: io::Error| {
        let failed = Failed::because(format!("{} can't be written: {error}", path.display()));
        match error.kind() {
            io::ErrorKind::AlreadyExists => {
                failed.with_remedy("give another name, or move it away")
            }
            _ => failed,
        }
    };
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(failed)
}
