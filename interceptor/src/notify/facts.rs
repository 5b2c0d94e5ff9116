//! A notice as all notifiers share it: words for people, every field bounded. Nothing is escaped yet, for that
//! depends on where it goes; see `text.rs`.

use std::borrow::Cow;

use aws_lc_rs::digest;
use interceptor_core::{
    operation::{Digest, words::Words},
    record::{ApprovalId, Timestamp},
};

use super::{
    limits::CONTENT_BYTES_MAX,
    notice::{Event, Notice, Subject},
    text::{Escape, block, cut},
    words::{asked, command, joined, kept, outcome, resources},
};
use crate::{
    approval::{Content, Standing, State, Summary},
    rfc3339::short,
    words::words,
};

/// Names that templates may use.
pub(super) const VARIABLES: [&str; 33] = [
    "action",
    "agent",
    "approval",
    "by",
    "command",
    "content",
    "delivery",
    "destination",
    "digest",
    "does",
    "effects",
    "event",
    "groups",
    "host",
    "labels",
    "link",
    "outcome",
    "process",
    "protocol",
    "quorum",
    "reason",
    "requested",
    "resources",
    "rule",
    "session",
    "severity",
    "state",
    "summary",
    "time",
    "trigger",
    "until",
    "warnings",
    "whereto",
];

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) event: Event,
    pub(super) time: Timestamp,
    pub(super) approval: ApprovalId,
    /// None of what only stands.
    pub(super) digest: Option<Digest>,
    /// Where it is decided.
    pub(super) link: Option<String>,
    /// The host that this is.
    pub(super) host: Box<str>,
    pub(super) agent: String,
    pub(super) labels: String,
    pub(super) destination: String,
    pub(super) protocol: &'static str,
    pub(super) action: String,
    /// What it does in words, where its content is at hand.
    pub(super) does: String,
    /// What must not be overlooked in that.
    pub(super) warnings: String,
    pub(super) effects: String,
    pub(super) resources: String,
    pub(super) process: String,
    pub(super) command: String,
    pub(super) rule: String,
    pub(super) reason: String,
    /// Who is asked.
    pub(super) asked: String,
    /// For filters: all groups that are.
    pub(super) groups: Vec<Box<str>>,
    pub(super) quorum: u32,
    pub(super) session: String,
    pub(super) requested: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    /// One word.
    pub(super) state: &'static str,
    /// A few more, with who and why.
    pub(super) outcome: String,
    /// Who decided.
    pub(super) by: String,
    pub(super) content: Option<Body>,
    /// A yes can't be given by a button: it needs a reason or a security key, or there is more to it than is shown.
    pub(super) needs_console: bool,
}

/// The content of an operation, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    text: String,
    /// It is hexadecimal of bytes that are no text.
    hex: bool,
    /// Bytes of the operation that aren't in `text`.
    more: usize,
    /// Bound values and the like.
    values: usize,
}

impl Facts {
    /// What `notice` says on `host`, decided at `link`.
    pub(super) fn new(notice: &Notice, link: Option<String>, host: &str) -> Self {
        match &notice.subject {
            Subject::Request {
                summary,
                content,
                values,
            } => {
                let words = content
                    .as_ref()
                    .map(|content| words(summary, Some(content)));
                let body = content.as_ref().map(|content| Body::new(content, *values));
                Self::of_request(notice, summary, (body, words), (link, host))
            }
            Subject::Standing(standing) => Self::of_standing(notice, standing, (link, host)),
        }
    }

    fn of_request(
        notice: &Notice,
        summary: &Summary,
        (content, words): (Option<Body>, Option<Words>),
        (link, host): (Option<String>, &str),
    ) -> Self {
        let process = &summary.process;
        let (state, by, outcome) = outcome(summary);
        let is_more_than_a_click = summary.reason_required || summary.security_key;
        let needs_console = is_more_than_a_click || content.as_ref().is_none_or(Body::is_part);
        Self {
            event: notice.event,
            time: notice.time,
            approval: summary.id,
            digest: Some(summary.digest),
            link,
            host: host.into(),
            agent: kept(&summary.agent),
            labels: kept(&joined(
                summary
                    .labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}")),
            )),
            destination: kept(&summary.destination.to_string()),
            protocol: summary.protocol.name(),
            action: kept(&summary.action),
            does: words
                .as_ref()
                .map_or_else(String::new, |words| kept(&words.text())),
            warnings: words.map_or_else(String::new, |words| {
                let all: Vec<_> = words.warnings().iter().map(|one| one.text()).collect();
                all.join(" ")
            }),
            effects: joined(summary.effects.names()),
            resources: kept(&resources(summary)),
            process: kept(&format!(
                "{} (pid {}, uid {})",
                process.executable.as_deref().unwrap_or("unknown"),
                process.pid,
                process.uid
            )),
            command: kept(&command(&process.arguments)),
            rule: kept(&summary.rule),
            reason: kept(&summary.reason),
            asked: kept(&asked(summary)),
            groups: summary.groups.clone(),
            quorum: summary.quorum,
            session: summary.session.to_string(),
            requested: Some(summary.requested),
            until: (summary.state == State::Pending).then_some(summary.until),
            state,
            outcome: kept(&outcome),
            by: kept(&by),
            content,
            needs_console,
        }
    }

    fn of_standing(
        notice: &Notice,
        standing: &Standing,
        (link, host): (Option<String>, &str),
    ) -> Self {
        Self {
            event: notice.event,
            time: notice.time,
            approval: standing.id,
            digest: None,
            link,
            host: host.into(),
            agent: kept(&standing.agent),
            labels: String::new(),
            destination: kept(&standing.destination),
            protocol: "",
            action: kept(&standing.action),
            does: String::new(),
            warnings: String::new(),
            effects: String::new(),
            resources: String::new(),
            process: String::new(),
            command: String::new(),
            rule: kept(&standing.rule),
            reason: String::new(),
            asked: String::new(),
            groups: Vec::new(),
            quorum: 0,
            session: String::new(),
            requested: None,
            until: None,
            state: "revoked",
            outcome: "revoked: nothing more goes by it".to_owned(),
            by: kept(&joined(standing.by.iter())),
            content: None,
            needs_console: true,
        }
    }

    /// The id of its delivery by `notifier`. It depends on nothing else, so that who is told again after the daemon
    /// started anew knows it.
    pub(super) fn delivery(&self, notifier: &str) -> Box<str> {
        let mut hash = digest::Context::new(&digest::SHA256);
        let digest = self.digest.map(|digest| digest.0).unwrap_or_default();
        let approval = self.approval.to_string();
        let parts: [&[u8]; 5] = [
            self.host.as_bytes(),
            notifier.as_bytes(),
            approval.as_bytes(),
            self.event.name().as_bytes(),
            &digest,
        ];
        // One request may be escalated several times, each time to more groups.
        let groups = self.groups.iter().map(|group| group.as_bytes());
        let groups = groups.take_while(|_| self.event == Event::Escalated);
        for part in parts.into_iter().chain(groups) {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hash = hash.finish();
        let id = hash.as_ref().get(..16).unwrap_or_default();
        format!("msg_{}", hex::encode(id)).into()
    }

    /// What happened, in a sentence that begins a message. Not escaped.
    pub(super) fn headline(&self) -> String {
        let what = format!("{} -> {}: {}", self.agent, self.destination, self.action);
        match self.event {
            Event::Requested => format!("Approval asked for: {what}"),
            Event::Escalated => format!("Still waits for approval, more are asked: {what}"),
            Event::Overridden => format!("BREAK-GLASS by {}: {what}", self.by),
            Event::Revoked => format!("Revoked: {what}"),
            Event::Ended => {
                let word = match self.state {
                    "approved" => "Approved",
                    "withdrawn" => "Withdrawn",
                    _ => "Refused",
                };
                format!("{word}: {what}")
            }
        }
    }

    /// Names and values for people, without those that are empty. Not escaped.
    pub(super) fn rows(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        let agent = if self.labels.is_empty() {
            Cow::Borrowed(&*self.agent)
        } else {
            format!("{} ({})", self.agent, self.labels).into()
        };
        let destination = if self.protocol.is_empty() {
            Cow::Borrowed(&*self.destination)
        } else {
            format!("{} ({})", self.destination, self.protocol).into()
        };
        let rule = if self.reason.is_empty() {
            Cow::Borrowed(&*self.rule)
        } else {
            format!("{}: {}", self.rule, self.reason).into()
        };
        let until = self.until.map(short).unwrap_or_default();
        let rows = [
            ("Outcome", Cow::Borrowed(&*self.outcome)),
            ("Agent", agent),
            ("Action", (&*self.action).into()),
            ("Does", (&*self.does).into()),
            ("Beware", (&*self.warnings).into()),
            ("Destination", destination),
            ("Touches", (&*self.resources).into()),
            ("Effects", (&*self.effects).into()),
            ("Process", (&*self.process).into()),
            ("Command", (&*self.command).into()),
            ("Held by", rule),
            ("Asked", (&*self.asked).into()),
            ("Until", until.into()),
            ("Host", (&*self.host).into()),
            ("Approval", self.approval.to_string().into()),
        ];
        rows.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect()
    }

    /// Where to decide, for people.
    pub(super) fn whereto(&self) -> String {
        match &self.link {
            Some(link) => link.clone(),
            None => format!(
                "`interceptor approvals show {}` on {}",
                self.approval, self.host
            ),
        }
    }

    /// The value of a variable of templates; see [`VARIABLES`]. Inert.
    pub(super) fn variable(&self, name: &str, delivery: &str) -> Option<String> {
        let time = |time: Option<Timestamp>| time.map(short).unwrap_or_default();
        let text = match name {
            "action" => Cow::Borrowed(&*self.action),
            "agent" => (&*self.agent).into(),
            "approval" => self.approval.to_string().into(),
            "by" => (&*self.by).into(),
            "command" => (&*self.command).into(),
            "content" => return Some(self.content_text(CONTENT_BYTES_MAX, super::text::plain)),
            "delivery" => delivery.into(),
            "destination" => (&*self.destination).into(),
            "digest" => self
                .digest
                .map(|digest| digest.to_string())
                .unwrap_or_default()
                .into(),
            "does" => (&*self.does).into(),
            "effects" => (&*self.effects).into(),
            "event" => self.event.name().into(),
            "groups" => joined(self.groups.iter()).into(),
            "host" => (&*self.host).into(),
            "labels" => (&*self.labels).into(),
            "link" => self.link.clone().unwrap_or_default().into(),
            "outcome" => (&*self.outcome).into(),
            "process" => (&*self.process).into(),
            "protocol" => self.protocol.into(),
            "quorum" => self.quorum.to_string().into(),
            "reason" => (&*self.reason).into(),
            "requested" => time(self.requested).into(),
            "resources" => (&*self.resources).into(),
            "rule" => (&*self.rule).into(),
            "session" => (&*self.session).into(),
            "severity" => match self.event {
                Event::Overridden => "critical",
                Event::Escalated => "error",
                _ => "warning",
            }
            .into(),
            "state" => self.state.into(),
            // Jira takes 255 characters.
            "summary" => return Some(super::text::line(&self.headline(), 250, super::text::plain)),
            "time" => short(self.time).into(),
            // PagerDuty's words: whether somebody is to be called, or needn't be any more.
            "trigger" => match self.event {
                Event::Ended => "resolve",
                _ => "trigger",
            }
            .into(),
            "until" => time(self.until).into(),
            "warnings" => (&*self.warnings).into(),
            "whereto" => self.whereto().into(),
            _ => return None,
        };
        Some(super::text::line(
            &text,
            CONTENT_BYTES_MAX,
            super::text::plain,
        ))
    }

    /// The content within `room` bytes and a line that says what isn't there; empty where there is none.
    pub(super) fn content_text(&self, room: usize, escape: Escape) -> String {
        let Some(body) = &self.content else {
            return String::new();
        };
        let shown = block(&body.text, room, escape);
        let kept = if body.hex { shown.more / 2 } else { shown.more };
        let mut text = shown.text;
        let more = body.more + kept;
        if more > 0 {
            text.push_str(&format!("\n… {more} more bytes, open the link"));
        }
        match body.values {
            0 => {}
            1 => text.push_str("\n(with 1 bound value, open the link)"),
            values => text.push_str(&format!("\n(with {values} bound values, open the link)")),
        }
        text
    }

    /// Whether [`Self::content_text`] in `room` leaves out anything.
    pub(super) fn is_cut(&self, room: usize, escape: Escape) -> bool {
        let body = self.content.as_ref();
        body.is_none_or(|body| body.is_part() || block(&body.text, room, escape).more > 0)
    }

    /// Whether who asks, what for or where to doesn't fit into `room`.
    pub(super) fn is_long(&self, room: usize, escape: Escape) -> bool {
        let parts = [&self.agent, &self.action, &self.destination];
        parts
            .into_iter()
            .any(|part| block(part, room, escape).more > 0)
    }

    /// What the content is called.
    pub(super) fn content_title(&self) -> &'static str {
        match &self.content {
            Some(Body { hex: true, .. }) => "Content, in hexadecimal",
            _ => "Content",
        }
    }
}

impl Body {
    fn new(content: &Content, values: usize) -> Self {
        let (text, hex) = match content {
            Content::Text(text) => (text, false),
            Content::Hex(text) => (text, true),
        };
        let kept = cut(text, CONTENT_BYTES_MAX);
        let more = text.len() - kept.len();
        Self {
            text: kept.to_owned(),
            hex,
            more: if hex { more / 2 } else { more },
            values,
        }
    }

    /// Whether there is more to it than is kept, or it isn't readable.
    const fn is_part(&self) -> bool {
        self.more > 0 || self.values > 0 || self.hex
    }
}
