//! `interceptor policy`: check policies and run their own cases.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Subcommand;
use interceptor_core::policy::Outcome as CaseOutcome;

use super::{
    Context, Outcome, display,
    failed::{Failed, code},
};
use crate::policies;

/// Check policies, and run their own test cases
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say whether a policy can be used, and if not, what is wrong and where
    Check {
        /// A policy file, or a folder of them
        path: PathBuf,
    },
    /// Run a policy's own test cases
    Test {
        /// A policy file (its cases are in it, or beside it in NAME.test.yaml), or a folder of them
        path: PathBuf,
    },
}

pub(super) fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Check { path } => {
            let policy = policies::load(&path).map_err(invalid)?;
            if context.is_json() {
                return context.print_json(&serde_json::json!({
                    "valid": true, "rules": policy.rule_count(), "cases": policy.cases().len(), "hash": policy.hash().to_string(),
                }));
            }
            let (rules, cases) = (policy.rule_count(), policy.cases().len());
            display::print(&format!(
                "{}: fine, {rules} rules, {cases} test cases passed\n",
                path.display()
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Test { path } => {
            let policy = policies::parse(&path).map_err(invalid)?;
            let mut failures = 0;
            for (name, outcome) in policies::test(&Arc::new(policy)) {
                let line = match outcome {
                    CaseOutcome::Passed => format!("passed  {}\n", display::inert(&name)),
                    CaseOutcome::Failed(problem) => {
                        failures += 1;
                        format!("FAILED  {}\n", display::inert(&problem.to_string()))
                    }
                };
                display::print(&line)?;
            }
            if failures > 0 {
                return Err(Failed::with_code(
                    code::POLICY,
                    format!("{failures} test cases failed"),
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn invalid(error: interceptor_core::policy::PolicyError) -> Failed {
    Failed::with_code(code::POLICY, error)
}
