//! `interceptor policy observed`: what rules would have done that only observe.

use std::{fmt::Write as _, process::ExitCode};

use interceptor_core::policy::Would;

use super::{
    super::{
        Context, Outcome,
        display::{Style, count, inert, paint, print, table, time},
        failed::Failed,
    },
    past::{Since, Source},
};
use crate::past::{
    self, Observed,
    observed::{Example, ObservedRule},
};

/// Say what would have been denied, held or masked by what only observes (`enforce: false`)
#[derive(Debug, clap::Args)]
#[command(after_help = "Look here before enforcement is switched on. Examples:
  interceptor policy observed
  interceptor policy observed --since 7d --agent reporter
  interceptor policy observed -o json")]
pub(in super::super) struct Arguments {
    #[command(flatten)]
    since: Since,
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    #[command(flatten)]
    source: Source,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let reader = arguments.source.reader(context)?;
    let asked = arguments.since.asked(arguments.agent.as_ref());
    let observed = past::observed(&reader, &asked).map_err(Failed::because)?;
    if context.is_json() {
        return context.print_json(&observed);
    }
    print(&text(&observed, context.color))?;
    Ok(ExitCode::SUCCESS)
}

fn text(observed: &Observed, color: bool) -> String {
    let Observed {
        operations,
        stopped,
        rules,
    } = observed;
    let stopped = match stopped {
        0 => paint(Style::Good, "none would have been stopped", color),
        stopped => paint(
            Style::Wait,
            &format!("{stopped} would have been stopped"),
            color,
        ),
    };
    let mut out = format!(
        "{}: {stopped} by what only observes\n",
        count(*operations, "operation")
    );
    if rules.is_empty() {
        return out;
    }
    let rows: Vec<Vec<String>> = rules.iter().map(row).collect();
    let headings = &[
        "WOULD",
        "RULE",
        "OPERATIONS",
        "AGENTS",
        "LAST",
        "FOR EXAMPLE",
    ];
    // Writing to a string can't fail.
    _ = write!(out, "\n{}", table(headings, &rows, color));
    if rules.iter().any(|rule| rule.would == Would::Mask) {
        out.push_str("Of masks it is counted whose results would have gone through them, whatever there was in those.\n");
    }
    for rule in rules {
        let Example {
            session,
            number,
            content,
            ..
        } = &rule.example;
        let content = content.split_whitespace().collect::<Vec<_>>().join(" ");
        _ = writeln!(
            out,
            "\n{} {}: `interceptor policy explain --session {session} --operation {number}`\n  {}",
            rule.would.name(),
            inert(&rule.rule),
            inert(&content)
        );
    }
    out
}

fn row(rule: &ObservedRule) -> Vec<String> {
    let agents = rule.agents.iter();
    let agents: Vec<_> = agents
        .map(|(agent, operations)| format!("{agent} ({operations})"))
        .collect();
    let Example {
        action, resources, ..
    } = &rule.example;
    vec![
        rule.would.name().to_owned(),
        rule.rule.to_string(),
        rule.operations.to_string(),
        agents.join(", "),
        time(rule.last),
        format!("{action} {}", resources.join(", ")),
    ]
}
