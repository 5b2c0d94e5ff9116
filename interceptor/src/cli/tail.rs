//! `interceptor sessions tail`: what happens, as it happens.

use std::process::ExitCode;

use interceptor_core::record::SessionId;
use serde_json::Value;

use super::{
    Context, Outcome,
    client::Reading,
    display::{inert, message, print},
    failed::Failed,
    timeline::Timeline,
};
use crate::control::{ErrorBody, with_query};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only this session
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Rows of each response to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let path = with_query(
        "/v1/tail",
        &[
            ("session", arguments.session.map(|id| id.to_string())),
            ("agent", arguments.agent.clone()),
        ],
    );
    let timeline = Timeline::new(arguments.rows, context.color);
    // Several sessions are interleaved: each change of session is said.
    let mut current = None;
    context.client.lines(&path, |line| {
        // Records that came too fast are no end: the next ones still come.
        if let Ok(missed) = serde_json::from_slice::<ErrorBody>(line) {
            message(&format!("{}; {}", missed.error, missed.remedy));
            return Ok(Reading::On);
        }
        if context.is_json() {
            print(&format!("{}\n", String::from_utf8_lossy(line)))?;
            return Ok(Reading::On);
        }
        let line: Value = serde_json::from_slice(line).map_err(Failed::because)?;
        let session = line
            .get("session")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let mut out = String::new();
        if session != current {
            let agent = line
                .get("agent")
                .and_then(Value::as_str)
                .unwrap_or_default();
            out = format!(
                "-- {} {}\n",
                inert(session.as_deref().unwrap_or("daemon")),
                inert(agent)
            );
            current = session;
        }
        out.push_str(&timeline.line(&line));
        print(&out)?;
        Ok(Reading::On)
    })?;
    Ok(ExitCode::SUCCESS)
}
