//! `interceptor doctor`: what keeps agents in on this host.

use std::{fmt::Write as _, process::ExitCode};

use super::{
    Context, Outcome,
    display::{Style, inert, paint, print},
    failed::code,
};
use crate::{
    control::Status,
    doctor::{self, Guard, State},
};

/// Look at everything that keeps agents in on this host, with a remedy where it isn't whole
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It loads the kernel programs and attaches them to a cgroup of their own, which is gone \
                  afterwards. With or without a running daemon; as root, or it says what it can't see. \
                  Exit status 3 where anything is not in force."
)]
pub(super) struct Arguments {}

pub(super) fn run(context: &Context, _: &Arguments) -> Outcome {
    let status: Result<Status, String> = context
        .client
        .get("/v1/status")
        .map_err(|failed| failed.to_string());
    let mut config = context.config.clone();
    if let Ok(status) = &status
        && let Ok(instance) = status.instance.parse()
    {
        config.instance = instance;
    }
    let guards = doctor::examine(&config, status.as_ref().map_err(String::as_str));
    if context.is_json() {
        context.print_json(&guards)?;
    } else {
        print(&text(&guards, context.color))?;
    }
    let is_whole = guards.iter().all(|guard| guard.state == State::InForce);
    Ok(if is_whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(code::DEGRADED)
    })
}

fn text(guards: &[Guard], color: bool) -> String {
    /// As long as the longest state.
    const STATE: usize = 8;
    let width = guards
        .iter()
        .map(|guard| inert(&guard.guard).chars().count())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    let mut group = "";
    for guard in guards {
        if guard.group != group {
            let blank = if group.is_empty() { "" } else { "\n" };
            group = &guard.group;
            // Writing to a string can't fail.
            _ = writeln!(out, "{blank}{}", paint(Style::Bold, &inert(group), color));
        }
        let (state, style) = match guard.state {
            State::InForce => ("in force", Style::Good),
            State::Weaker => ("weaker", Style::Wait),
            State::Missing => ("MISSING", Style::Bad),
            State::Unseen => ("unseen", Style::Dim),
        };
        _ = writeln!(
            out,
            "  {}  {:width$}  {}",
            paint(style, &format!("{state:STATE$}"), color),
            inert(&guard.guard),
            inert(&guard.rests_on),
        );
        if !guard.remedy.is_empty() {
            _ = writeln!(
                out,
                "  {:STATE$}  {:width$}  remedy: {}",
                "",
                "",
                inert(&guard.remedy)
            );
        }
    }
    let count = |state| guards.iter().filter(|guard| guard.state == state).count();
    let unseen = match count(State::Unseen) {
        0 => String::new(),
        unseen => format!(", {unseen} unseen"),
    };
    _ = writeln!(
        out,
        "\n{} in force, {} weaker, {} missing{unseen}",
        count(State::InForce),
        count(State::Weaker),
        count(State::Missing),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guard_has_a_line_and_a_remedy_where_it_needs_one() {
        let guard = |group: &str, guard: &str, state, remedy: &str| Guard {
            group: group.to_owned(),
            guard: guard.to_owned(),
            state,
            rests_on: "the kernel".to_owned(),
            remedy: remedy.to_owned(),
        };
        let guards = [
            guard("host", "kernel", State::InForce, ""),
            guard("agents", "a\u{1b}[2J", State::Missing, "look"),
        ];
        assert_eq!(
            text(&guards, false),
            "host\n  in force  kernel      the kernel\n\nagents\n  \
             MISSING   a\\u{1b}[2J  the kernel\n                        remedy: look\n\n\
             1 in force, 0 weaker, 1 missing\n"
        );
    }
}
