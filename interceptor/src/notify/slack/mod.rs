//! Slack: a message that asks, changed in place when it is decided, and clicks by Socket Mode, so that nothing has to
//! be reachable from outside.

mod api;
mod blocks;
mod board;
mod clicks;
mod socket;

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use self::{
    api::{Api, CallError},
    blocks::{Rendered, asking, telling},
    board::{Board, Message},
    clicks::Clicks,
    socket::Listener,
};
use super::{
    address::ServiceUrl,
    config::{NotifierConfig, SlackConfig},
    facts::Facts,
    limits::Timing,
    net::Net,
    notice::{Event, Posted},
    queue::{Failure, Job, Told},
    secrets::Secrets,
    worker::Sink,
};
use crate::sync::lock;

pub(super) use self::clicks::Answers;

/// Tells a channel of Slack.
pub(super) struct Slack {
    notifier: Box<str>,
    config: SlackConfig,
    /// The end of what it never asked is to be told as well.
    hears_ends: bool,
    api: Api,
    board: Arc<Mutex<Board>>,
    net: Net,
}

impl Slack {
    pub(super) fn new<'a>(
        notifier: &NotifierConfig,
        config: &SlackConfig,
        net: Net,
        secrets: Secrets,
        posted: impl Iterator<Item = &'a Posted>,
    ) -> Self {
        let mut board = Board::default();
        for posted in posted {
            if let Some(message) = Message::restored(posted) {
                board.put(posted.approval, message);
            }
        }
        Self {
            notifier: notifier.name.clone(),
            config: config.clone(),
            hears_ends: notifier.filter.on.contains(&Event::Ended),
            api: Api::new(config.api.clone(), net.clone(), secrets),
            board: Arc::new(Mutex::new(board)),
            net,
        }
    }

    /// What listens for clicks, where the configuration has the token for it.
    pub(super) fn listener(
        &self,
        answers: Arc<Answers>,
        timing: Timing,
        console: Option<ServiceUrl>,
    ) -> Option<Listener> {
        let app_token = self.config.app_token.clone()?;
        let clicks = Clicks {
            notifier: self.notifier.clone(),
            config: self.config.clone(),
            api: self.api.clone(),
            board: self.board.clone(),
            answers,
            console,
            patience: timing.answer,
        };
        Some(Listener::new(
            app_token,
            self.api.clone(),
            self.net.clone(),
            timing,
            clicks,
        ))
    }

    /// Posts a message, as an answer in a thread where one is given; which it is.
    async fn post(
        &self,
        rendered: &Rendered,
        thread: Option<&Message>,
    ) -> Result<Message, Failure> {
        let mut body = json!({
            "channel": self.config.channel,
            "text": rendered.text,
            "blocks": rendered.blocks,
            "unfurl_links": false,
            "unfurl_media": false,
            "parse": "none",
            "link_names": false,
            "mrkdwn": false,
        });
        if let (Some(thread), Some(body)) = (thread, body.as_object_mut()) {
            body.insert("channel".into(), (&*thread.channel).into());
            body.insert("thread_ts".into(), (&*thread.ts).into());
            // A thread alone rings nobody.
            body.insert("reply_broadcast".into(), true.into());
        }
        let answer = self.call("chat.postMessage", &body).await?;
        Message::of(&answer).ok_or_else(|| Failure::down("Slack doesn't say which message it made"))
    }

    /// Changes `message`; whether it is there.
    async fn update(&self, message: &Message, rendered: &Rendered) -> Result<bool, Failure> {
        let body = json!({
            "channel": message.channel,
            "ts": message.ts,
            "text": rendered.text,
            "blocks": rendered.blocks,
            "parse": "none",
            "link_names": false,
        });
        let done = self
            .api
            .call("chat.update", &self.config.bot_token, &body)
            .await;
        match done {
            Ok(_) => Ok(true),
            Err(CallError::Refused(code)) if api::is_gone(&code) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn call(&self, method: &str, body: &Value) -> Result<Value, Failure> {
        let called = self.api.call(method, &self.config.bot_token, body).await;
        called.map_err(Failure::from)
    }

    async fn ask(&self, facts: &Facts, before: Option<Message>) -> Result<Told, Failure> {
        let rendered = asking(facts, self.config.app_token.is_some());
        if let Some(before) = before
            && self.update(&before, &rendered).await?
        {
            if facts.event == Event::Escalated {
                self.post(&telling(facts), Some(&before)).await?;
            }
            return Ok(before.told());
        }
        let mut message = self.post(&rendered, None).await?;
        message.digest = facts.digest;
        let told = message.told();
        lock(&self.board).put(facts.approval, message);
        Ok(told)
    }

    /// Tells of an end. Break-glass and what is taken back ring, for nobody looks at what they know already.
    async fn tell(&self, facts: &Facts, before: Option<Message>) -> Result<Told, Failure> {
        let rendered = telling(facts);
        let is_end = facts.event != Event::Revoked;
        if let Some(before) = before {
            lock(&self.board).end(facts.approval);
            let is_there = !is_end || self.update(&before, &rendered).await?;
            if is_there {
                if facts.event != Event::Ended {
                    self.post(&rendered, Some(&before)).await?;
                }
                return Ok(before.told());
            }
        } else if facts.event == Event::Ended && !self.hears_ends {
            return Ok(Told {
                nothing: true,
                ..Told::default()
            });
        }
        let mut message = self.post(&rendered, None).await?;
        message.digest = facts.digest;
        message.ended = true;
        let told = message.told();
        lock(&self.board).put(facts.approval, message);
        Ok(told)
    }
}

impl Sink for Slack {
    async fn deliver(&mut self, job: &Job) -> Result<Told, Failure> {
        let facts = &job.facts;
        let before = lock(&self.board).get(facts.approval).cloned();
        if facts.event.asks() {
            self.ask(facts, before).await
        } else {
            self.tell(facts, before).await
        }
    }
}

/// For tests of what all messages have in common.
#[cfg(test)]
pub(super) fn asking_blocks(facts: &Facts, buttons: bool) -> Vec<Value> {
    asking(facts, buttons).blocks
}

/// The same of those that ask nothing.
#[cfg(test)]
pub(super) fn telling_blocks(facts: &Facts) -> Vec<Value> {
    telling(facts).blocks
}
