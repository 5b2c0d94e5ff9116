//! Which message in Slack asks for which approval.

use std::collections::{BTreeMap, VecDeque};

use interceptor_core::{operation::Digest, record::ApprovalId};
use serde_json::Value;

use super::super::{limits::POSTED_MAX, notice::Posted, queue::Told};

/// Messages, the oldest forgotten first.
#[derive(Debug, Default)]
pub(super) struct Board {
    messages: BTreeMap<ApprovalId, Message>,
    order: VecDeque<ApprovalId>,
}

impl Board {
    pub(super) fn get(&self, approval: ApprovalId) -> Option<&Message> {
        self.messages.get(&approval)
    }

    pub(super) fn put(&mut self, approval: ApprovalId, message: Message) {
        if self.messages.insert(approval, message).is_none() {
            self.order.push_back(approval);
        }
        if self.order.len() > POSTED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.messages.remove(&oldest);
        }
    }

    pub(super) fn end(&mut self, approval: ApprovalId) {
        if let Some(message) = self.messages.get_mut(&approval) {
            message.ended = true;
        }
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) channel: Box<str>,
    /// Its time, which is its name.
    pub(super) ts: Box<str>,
    /// The digest that its buttons carry.
    pub(super) digest: Option<Digest>,
    /// What it asks for is over.
    pub(super) ended: bool,
}

impl Message {
    /// The message that Slack says it made.
    pub(super) fn of(answer: &Value) -> Option<Self> {
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        Self::named(text("channel")?, text("ts")?)
    }

    /// A message of an earlier process.
    pub(super) fn restored(posted: &Posted) -> Option<Self> {
        let (channel, ts) = posted.reference.split_once('/')?;
        let digest = Some(posted.digest);
        Self::named(channel, ts).map(|message| Self { digest, ..message })
    }

    fn named(channel: &str, ts: &str) -> Option<Self> {
        let fits = |text: &str| (1..=64).contains(&text.len());
        let is_channel = channel.chars().all(|c| c.is_ascii_alphanumeric());
        let is_time = ts.chars().all(|c| c.is_ascii_digit() || c == '.');
        (fits(channel) && fits(ts) && is_channel && is_time).then(|| Self {
            channel: channel.into(),
            ts: ts.into(),
            digest: None,
            ended: false,
        })
    }

    pub(super) fn told(&self) -> Told {
        let reference = format!("{}/{}", self.channel, self.ts);
        Told {
            reference: Some(reference.into()),
            ..Told::default()
        }
    }
}
