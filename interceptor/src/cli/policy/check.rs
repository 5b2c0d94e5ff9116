//! `interceptor policy check`: whether a policy is valid.

use std::process::ExitCode;

use serde_json::json;

use super::{
    super::{
        Context, Outcome,
        display::{Style, count, inert, paint, print},
    },
    Arguments, invalid,
};
use crate::policies;

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
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
