//! `interceptor policy test`: how a policy's own cases go.

use std::{process::ExitCode, sync::Arc};

use interceptor_core::policy::{Outcome as CaseOutcome, Problem};
use serde_json::json;

use super::{
    super::{
        Context, Outcome,
        display::{Style, count, inert, paint, print},
        failed::code,
    },
    Arguments, invalid, problem,
};
use crate::policies;

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
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
