//! `interceptor policy reload`: the files in force, read again.

use std::process::ExitCode;

use serde_json::json;

use super::super::{
    Context, Outcome,
    display::{count, message},
};
use crate::control::PolicyStatus;

pub(super) fn run(context: &Context) -> Outcome {
    let policy: PolicyStatus = context.client.post("/v1/policy/reload", &json!({}))?;
    if context.is_json() {
        return context.print_json(&policy);
    }
    message(&format!(
        "in force: {} from {}, {}",
        count(policy.rules, "rule"),
        policy.path.display(),
        policy.hash
    ));
    Ok(ExitCode::SUCCESS)
}
