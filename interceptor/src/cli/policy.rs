//! `interceptor policy`: try a policy before it is in force.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use interceptor_core::policy::{Outcome as CaseOutcome, PolicyError, Problem};
use serde_json::json;

use super::{
    Context, Outcome,
    display::{Style, count, inert, paint, print},
    failed::code,
};
use crate::{control::PolicyStatus, policies};

/// Try a policy before it is in force, or load the files in force again
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Exit status 4 where the policy is not valid or fails its cases. Examples:
  interceptor policy check policies/postgres.yaml
  interceptor policy test /etc/interceptor/policies.d
  interceptor policy reload"
)]
pub(super) enum Command {
    /// Check that a policy is valid and passes its own cases
    Check(Arguments),
    /// Run a policy's own cases and say how each went
    Test(Arguments),
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
        Command::Check(arguments) => check(context, arguments),
        Command::Test(arguments) => test(context, arguments),
        Command::Reload => reload(context),
    }
}

fn check(context: &Context, arguments: &Arguments) -> Outcome {
    let policy = match policies::load(&arguments.path) {
        Ok(policy) => policy,
        Err(error) => return invalid(context, &error),
    };
    if context.is_json() {
        return context.print_json(&json!({
            "valid": true,
            "rules": policy.rule_count(),
            "cases": policy.cases().len(),
            "enforced": policy.is_enforced(),
            "hash": policy.hash().to_string(),
            "problems": [],
        }));
    }
    let observes = if policy.is_enforced() {
        ""
    } else {
        "; it only observes (`enforce: false`)"
    };
    print(&format!(
        "{}: {}: {}, {} passed{observes}\n",
        paint(Style::Good, "valid", context.color),
        inert(&arguments.path.to_string_lossy()),
        count(policy.rule_count() as u64, "rule"),
        count(policy.cases().len() as u64, "case"),
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn test(context: &Context, arguments: &Arguments) -> Outcome {
    let policy = match policies::parse(&arguments.path) {
        Ok(policy) => Arc::new(policy),
        Err(error) => return invalid(context, &error),
    };
    let cases = policies::test(&policy);
    let failed: Vec<&Problem> = cases
        .iter()
        .filter_map(|(_, outcome)| match outcome {
            CaseOutcome::Passed => None,
            CaseOutcome::Failed(problem) => Some(problem),
        })
        .collect();
    if context.is_json() {
        let cases: Vec<_> = cases
            .iter()
            .map(|(name, outcome)| json!({"case": name, "passed": *outcome == CaseOutcome::Passed}))
            .collect();
        context.print_json(&json!({
            "valid": failed.is_empty(),
            "cases": cases,
            "problems": failed.iter().map(|failed| problem(failed)).collect::<Vec<_>>(),
        }))?;
    } else {
        print(&results(&cases, failed.len(), context.color))?;
    }
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(code::POLICY)
    })
}

fn results(cases: &[(String, CaseOutcome)], failed: usize, color: bool) -> String {
    let mut out = String::new();
    for (name, outcome) in cases {
        let (word, style, what) = match outcome {
            CaseOutcome::Passed => ("passed", Style::Good, name.clone()),
            CaseOutcome::Failed(problem) => ("FAILED", Style::Bad, problem.to_string()),
        };
        out.push_str(&format!(
            "{}  {}\n",
            paint(style, word, color),
            inert(&what)
        ));
    }
    out.push_str(&match (cases.len(), failed) {
        (0, _) => {
            "no cases: put some beside the rules, so that a change that breaks one is found\n"
                .to_owned()
        }
        (all, 0) => format!("{} passed\n", count(all as u64, "case")),
        (all, failed) => format!("{failed} of {} failed\n", count(all as u64, "case")),
    });
    out
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

fn reload(context: &Context) -> Outcome {
    let policy: PolicyStatus = context.client.post("/v1/policy/reload", &json!({}))?;
    if context.is_json() {
        return context.print_json(&policy);
    }
    super::display::message(&format!(
        "in force: {} from {}, {}",
        count(policy.rules, "rule"),
        policy.path.display(),
        policy.hash
    ));
    Ok(ExitCode::SUCCESS)
}
