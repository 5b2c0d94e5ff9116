//! `approvals watch` at a terminal: one key opens what waits, one answers it. Pure: keys and changes in, effects out.

use std::collections::BTreeMap;

use interceptor_core::record::{ApprovalId, Choice, Timestamp};

use super::{
    super::display::{Style, inert, paint},
    shown::{change_text, standing},
};
use crate::approval::{Change, State, Summary};

/// What the terminal and the daemon are asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Print this.
    Print(String),
    /// Sound the bell.
    Bell,
    /// Print all of a question.
    Open(ApprovalId),
    /// Answer it.
    Vote(ApprovalId, Choice, String),
    /// It is over.
    Quit,
}

/// Somebody at a terminal who answers questions.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// What waits, by the time it was asked.
    open: BTreeMap<(Timestamp, ApprovalId), Summary>,
    /// Which of them the keys are for.
    current: Option<(Timestamp, ApprovalId)>,
    /// The one that was read, and may be answered.
    opened: Option<ApprovalId>,
    /// An answer whose reason is being typed.
    typing: Option<(Choice, String)>,
    color: bool,
}

/// Longest reason that is taken, in bytes, as by the daemon.
const REASON_BYTES_MAX: usize = 1_000;

const HELP: &str = "Enter opens a question, y approves and n denies what is open (a reason is asked for), Tab goes to the next, q ends\n";

const BACKSPACE: [char; 2] = ['\u{8}', '\u{7f}'];
const CTRL_C: char = '\u{3}';
const CTRL_D: char = '\u{4}';
const ESCAPE: char = '\u{1b}';

impl Desk {
    pub(super) fn new(color: bool) -> Self {
        Self {
            color,
            ..Self::default()
        }
    }

    /// What to print first.
    pub(super) fn greeting() -> Effect {
        Effect::Print(HELP.to_owned())
    }

    /// The line below everything else: what the keys are for now.
    pub(super) fn prompt(&self) -> String {
        let id = self.current.map(|(_, id)| id);
        if let (Some((choice, reason)), Some(id)) = (&self.typing, id) {
            let verb = verb(*choice);
            return format!("{verb} {id}, because (Enter sends, Esc goes back): {reason}");
        }
        let count = self.open.len();
        match self.current.and_then(|key| self.open.get(&key)) {
            None => paint(Style::Dim, "nothing waits", self.color),
            Some(summary) => {
                let keys = if self.opened == Some(summary.id) {
                    "y/n"
                } else {
                    "Enter"
                };
                let what = format!(
                    "{} of {}, {} [{keys}]",
                    inert(&summary.action),
                    inert(&summary.agent),
                    inert(&summary.rule)
                );
                let waits = paint(Style::Wait, &format!("{count} open"), self.color);
                format!("{waits} · {} · {what} ", summary.id)
            }
        }
    }

    /// Something happened to a question.
    pub(super) fn change(&mut self, change: &Change, now: Timestamp) -> Vec<Effect> {
        let mut effects = vec![Effect::Print(change_text(change, now, self.color))];
        match change {
            Change::Requested(summary) | Change::Resumed(summary) | Change::Escalated(summary) => {
                self.put(summary);
                effects.push(Effect::Bell);
            }
            Change::Estimated(summary) | Change::Voted(summary) | Change::Left(summary) => {
                self.put(summary);
            }
            Change::Ended(summary) => {
                let key = (summary.requested, summary.id);
                self.open.remove(&key);
                if self.current == Some(key) {
                    self.typing = None;
                    self.next();
                }
            }
            Change::Admitted(_) | Change::Revoked(_) | Change::Missed { .. } => {}
        }
        effects
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: char, now: Timestamp) -> Vec<Effect> {
        if self.typing.is_some() {
            return self.typed(key);
        }
        let current = self.current.and_then(|key| self.open.get(&key));
        match (key, current) {
            ('q' | CTRL_C | CTRL_D, _) => vec![Effect::Quit],
            ('?' | 'h', _) => vec![Effect::Print(HELP.to_owned())],
            ('\t', _) => {
                self.next();
                let summary = self.current.and_then(|key| self.open.get(&key));
                summary.map_or_else(Vec::new, |summary| {
                    let line = format!("{}: {}\n", summary.id, standing(summary, now));
                    vec![Effect::Print(line)]
                })
            }
            ('\r' | '\n' | 'o' | ' ', Some(summary)) => {
                self.opened = Some(summary.id);
                vec![Effect::Open(summary.id)]
            }
            ('y' | 'n', Some(summary)) if self.opened != Some(summary.id) => {
                let line = format!("{} hasn't been opened: Enter shows it\n", summary.id);
                vec![Effect::Print(line)]
            }
            ('y', Some(_)) => self.ask_why(Choice::Approve),
            ('n', Some(_)) => self.ask_why(Choice::Deny),
            _ => Vec::new(),
        }
    }

    fn ask_why(&mut self, choice: Choice) -> Vec<Effect> {
        self.typing = Some((choice, String::new()));
        Vec::new()
    }

    /// A key of a reason.
    fn typed(&mut self, key: char) -> Vec<Effect> {
        let summary = self.current.and_then(|key| self.open.get(&key));
        let (Some((choice, reason)), Some(summary)) = (&mut self.typing, summary) else {
            self.typing = None;
            return Vec::new();
        };
        match key {
            '\r' | '\n' => {
                let is_missing = summary.reason_required && reason.trim().is_empty();
                if *choice == Choice::Approve && is_missing {
                    return vec![Effect::Print(
                        "its rule wants a reason for a yes\n".to_owned(),
                    )];
                }
                let vote = Effect::Vote(summary.id, *choice, std::mem::take(reason));
                self.typing = None;
                return vec![vote];
            }
            ESCAPE | CTRL_C | CTRL_D => self.typing = None,
            key if BACKSPACE.contains(&key) => drop(reason.pop()),
            key if !key.is_control() && reason.len() + key.len_utf8() <= REASON_BYTES_MAX => {
                reason.push(key);
            }
            _ => {}
        }
        Vec::new()
    }

    fn put(&mut self, summary: &Summary) {
        let key = (summary.requested, summary.id);
        if summary.state == State::Pending {
            self.open.insert(key, summary.clone());
        }
        if self.current.is_none() {
            self.next();
        }
    }

    /// Goes to the next question behind the current one, or to the first.
    fn next(&mut self) {
        let behind = self
            .current
            .and_then(|current| self.open.keys().find(|key| **key > current));
        self.current = behind.or_else(|| self.open.keys().next()).copied();
        self.opened = None;
    }
}

fn verb(choice: Choice) -> &'static str {
    match choice {
        Choice::Approve => "approve",
        Choice::Deny => "deny",
        Choice::Retract => "retract",
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::detail, *};

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000_000);

    fn summary(id: u64) -> Box<Summary> {
        Box::new(Summary {
            id: ApprovalId(id),
            requested: Timestamp(id),
            ..detail("DROP TABLE t").summary
        })
    }

    fn desk_with(ids: &[u64]) -> Desk {
        let mut desk = Desk::new(false);
        for id in ids {
            let effects = desk.change(&Change::Requested(summary(*id)), NOW);
            assert_eq!(effects.last(), Some(&Effect::Bell));
        }
        desk
    }

    fn keys(desk: &mut Desk, keys: &str) -> Vec<Effect> {
        keys.chars().flat_map(|key| desk.key(key, NOW)).collect()
    }

    #[test]
    fn one_key_opens_and_one_answers() {
        let mut desk = desk_with(&[1, 2]);
        assert_eq!(keys(&mut desk, "\r"), [Effect::Open(ApprovalId(1))]);
        assert_eq!(keys(&mut desk, "y"), []);
        assert!(
            desk.prompt()
                .starts_with("approve 0000000000000001, because")
        );
        let vote =
            |id, choice, reason: &str| Effect::Vote(ApprovalId(id), choice, reason.to_owned());
        assert_eq!(
            keys(&mut desk, "looks fein\u{7f}\u{7f}ne\r"),
            [vote(1, Choice::Approve, "looks fene")]
        );
        let mut ended = summary(1);
        ended.state = State::Approved;
        desk.change(&Change::Ended(ended), NOW);
        assert_eq!(
            keys(&mut desk, "on\r"),
            [Effect::Open(ApprovalId(2)), vote(2, Choice::Deny, "")]
        );
    }

    #[test]
    fn nothing_is_answered_unread_or_by_what_was_meant_for_another() {
        let mut desk = desk_with(&[1, 2]);
        let effects = keys(&mut desk, "y");
        assert!(
            matches!(&effects[..], [Effect::Print(text)] if text.contains("hasn't been opened"))
        );
        // The question that was open is answered by somebody else while a reason is being typed.
        keys(&mut desk, "\ryfor the fir");
        let mut ended = summary(1);
        ended.state = State::Approved;
        desk.change(&Change::Ended(ended), NOW);
        let effects = keys(&mut desk, "st\r");
        assert_eq!(
            effects,
            [Effect::Open(ApprovalId(2))],
            "Enter opens the next"
        );
        // Tab leaves what is open.
        let mut desk = desk_with(&[1, 2]);
        keys(&mut desk, "\r\t");
        let effects = keys(&mut desk, "y");
        assert!(matches!(&effects[..], [Effect::Print(text)] if text.contains("0000000000000002")));
    }

    #[test]
    fn a_reason_can_be_thought_over_and_is_asked_for_where_it_is_required() {
        let mut desk = Desk::new(false);
        let mut strict = summary(1);
        strict.reason_required = true;
        desk.change(&Change::Requested(strict), NOW);
        keys(&mut desk, "\ry");
        let effects = keys(&mut desk, " \r");
        assert!(matches!(&effects[..], [Effect::Print(text)] if text.contains("wants a reason")));
        assert_eq!(keys(&mut desk, "\u{1b}"), []);
        assert!(desk.prompt().contains("[y/n]"), "{}", desk.prompt());
        assert_eq!(keys(&mut desk, "q"), [Effect::Quit]);
    }
}
