//! `interceptor policy replay`: what a policy would have said of the past.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode, sync::Arc};

use super::{
    super::{
        Context, Outcome,
        display::{Style, count, inert, paint, print, table, time},
        failed::{Failed, code},
    },
    invalid,
    past::{Since, Source},
};
use crate::{
    past::{self, Counted, Kind, Replayed, Said},
    policies,
};

/// Say what a policy would have decided otherwise of the recorded past
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each operation on record is decided again, at its time. Examples:
  interceptor policy replay --since 7d new.yaml
  interceptor policy replay --agent reporter --limit 0 -o json new.yaml
  interceptor policy replay --state /path/to/copy --fail-on-change /etc/interceptor/policies.d"
)]
pub(in super::super) struct Arguments {
    /// A policy file, or a folder of them
    path: PathBuf,
    #[command(flatten)]
    since: Since,
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// List at most this many operations, the latest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Exit with status 1 where something would have been decided otherwise
    #[arg(long)]
    fail_on_change: bool,
    #[command(flatten)]
    source: Source,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let policy = match policies::parse(&arguments.path) {
        Ok(policy) => Arc::new(policy),
        Err(error) => return invalid(context, &error),
    };
    let reader = arguments.source.reader(context)?;
    let asked = arguments.since.asked(arguments.agent.as_ref());
    let replayed = past::replay(&reader, policy, &asked, arguments.limit);
    let replayed = replayed.map_err(Failed::because)?;
    if context.is_json() {
        context.print_json(&replayed)?;
    } else {
        print(&text(&replayed, context.color))?;
    }
    Ok(match arguments.fail_on_change && replayed.changed > 0 {
        true => ExitCode::from(code::FAILED),
        false => ExitCode::SUCCESS,
    })
}

fn text(replayed: &Replayed, color: bool) -> String {
    let mut out = String::new();
    let (Some(first), Some(last)) = (replayed.first, replayed.last) else {
        return "no operation is on record\n".to_owned();
    };
    let changed = match replayed.changed {
        0 => paint(Style::Good, "none would have been decided otherwise", color),
        changed => paint(
            Style::Wait,
            &format!("{changed} would have been decided otherwise"),
            color,
        ),
    };
    // Writing to a string can't fail.
    _ = writeln!(
        out,
        "{} from {} to {}: {changed}",
        count(replayed.decided, "operation"),
        time(first),
        time(last),
    );
    if !replayed.ways.is_empty() {
        let rows: Vec<Vec<String>> = replayed
            .ways
            .iter()
            .map(|Counted { way, operations }| {
                vec![
                    operations.to_string(),
                    said(&way.from),
                    said(&way.to),
                    different(way.difference).to_owned(),
                ]
            })
            .collect();
        let headings = &["OPERATIONS", "WAS", "WOULD BE", "DIFFERENT IS"];
        _ = write!(out, "\n{}", table(headings, &rows, color));
    }
    if !replayed.operations.is_empty() {
        let rows: Vec<Vec<String>> = replayed
            .operations
            .iter()
            .map(|changed| {
                vec![
                    time(changed.time),
                    changed.session.to_string(),
                    changed.number.to_string(),
                    changed.agent.to_string(),
                    said(&changed.way.from),
                    said(&changed.way.to),
                    format!("{} {}", changed.action, changed.resources.join(", ")),
                ]
            })
            .collect();
        let headings = &["TIME", "SESSION", "OP", "AGENT", "WAS", "WOULD BE", "WHAT"];
        _ = write!(out, "\n{}", table(headings, &rows, color));
        let shown = replayed.operations.len() as u64;
        if replayed.changed > shown {
            let more = count(replayed.changed - shown, "more operation");
            _ = writeln!(out, "and {more} before these (--limit)");
        }
    }
    let undecided: u64 = replayed.undecided.values().sum();
    if undecided > 0 {
        let them = count(undecided, "operation");
        _ = writeln!(out, "\nwhat would have become of {them} can't be told:");
    }
    for (why, operations) in &replayed.undecided {
        _ = writeln!(out, "  {operations}: {}", inert(why));
    }
    out
}

fn said(said: &Said) -> String {
    let observed = if said.observed { " (observed)" } else { "" };
    format!("{}{observed} by {}", said.answer, said.rule)
}

const fn different(kind: Kind) -> &'static str {
    match kind {
        Kind::Answer => "what becomes of it",
        Kind::Terms => "who is asked, or how",
        Kind::Masks => "what is masked",
        Kind::Rule => "only the rule",
    }
}

#[cfg(test)]
mod tests {
    use interceptor_core::{
        policy::Answer,
        record::{SessionId, Timestamp},
    };

    use super::*;
    use crate::past::{Changed, Way};

    #[test]
    fn what_would_be_otherwise_is_told_and_nothing_in_it_is_alive() {
        let way = Way {
            difference: Kind::Answer,
            from: Said {
                answer: Answer::Allow,
                observed: false,
                rule: "reads".into(),
            },
            to: Said {
                answer: Answer::Deny,
                observed: true,
                rule: "default".into(),
            },
        };
        let mut replayed = Replayed {
            decided: 12,
            changed: 3,
            first: Some(Timestamp(0)),
            last: Some(Timestamp(60_000_000_000)),
            ways: vec![Counted {
                way: way.clone(),
                operations: 3,
            }],
            ..Replayed::default()
        };
        replayed.operations.push_back(Changed {
            session: SessionId(255),
            number: 7,
            time: Timestamp(60_000_000_000),
            agent: "ci".into(),
            action: "SELECT".to_owned(),
            resources: vec!["a\u{1b}[2J".to_owned()],
            way,
        });
        replayed.undecided.insert("its body is gone".to_owned(), 2);
        assert_eq!(
            text(&replayed, false),
            "12 operations from 1970-01-01 00:00:00Z to 1970-01-01 00:01:00Z: 3 would have been decided otherwise\n\
             \n\
             OPERATIONS  WAS             WOULD BE                    DIFFERENT IS\n\
             3           allow by reads  deny (observed) by default  what becomes of it\n\
             \n\
             TIME                  SESSION           OP  AGENT  WAS             WOULD BE                    WHAT\n\
             1970-01-01 00:01:00Z  00000000000000ff  7   ci     allow by reads  deny (observed) by default  SELECT a\\u{1b}[2J\n\
             and 2 more operations before these (--limit)\n\
             \n\
             what would have become of 2 operations can't be told:\n  \
             2: its body is gone\n"
        );
        assert_eq!(
            text(&Replayed::default(), false),
            "no operation is on record\n"
        );
    }
}
