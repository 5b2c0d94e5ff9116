//! What a click means. By itself nothing: whoever may write in a workspace may click. Where the configuration says who
//! a member is, it becomes an [`Intent`], which the daemon holds to the rules for that person; else it is answered with
//! the way to the console, where people sign in.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use interceptor_core::{
    operation::Digest,
    record::{ApprovalId, Choice},
};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    super::{
        address::ServiceUrl,
        config::SlackConfig,
        link,
        notice::Intent,
        text::{line, slack},
    },
    api::Api,
    board::Board,
};
use crate::sync::lock;

/// Bytes of an answer to a click.
const ANSWER_ROOM: usize = 1_000;

/// Intents on their way, and who waits for what becomes of them.
pub(in super::super) struct Answers {
    intents: mpsc::Sender<Intent>,
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Result<String, String>>>>,
}

impl Answers {
    pub(in super::super) fn new(intents: mpsc::Sender<Intent>) -> Self {
        Self {
            intents,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
        }
    }

    pub(in super::super) fn answer(&self, id: u64, said: Result<String, String>) {
        if let Some(waiting) = lock(&self.waiting).remove(&id) {
            // Who asked may have given up.
            _ = waiting.send(said);
        }
    }

    /// Hands over `intent` and waits for what becomes of it; none where nobody says so in time.
    async fn ask(&self, mut intent: Intent, patience: Duration) -> Option<Result<String, String>> {
        intent.id = self.next.fetch_add(1, Ordering::Relaxed);
        let id = intent.id;
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(id, sender);
        let said = match self.intents.try_send(intent) {
            Ok(()) => timeout(patience, receiver).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        lock(&self.waiting).remove(&id);
        said
    }
}

/// What clicks are answered with.
pub(super) struct Clicks {
    pub(super) notifier: Box<str>,
    pub(super) config: SlackConfig,
    pub(super) api: Api,
    pub(super) board: Arc<Mutex<Board>>,
    pub(super) answers: Arc<Answers>,
    pub(super) console: Option<ServiceUrl>,
    pub(super) patience: Duration,
}

/// A click on one of our buttons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Click {
    user: Box<str>,
    channel: Box<str>,
    choice: Choice,
    approval: ApprovalId,
    digest: Digest,
}

impl Click {
    /// The click that `payload` tells of; none where it is one on a link, or not ours.
    pub(super) fn of(payload: &Value) -> Option<Self> {
        let text = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str);
        if text("/type")? != "block_actions" {
            return None;
        }
        let choice = match text("/actions/0/action_id")? {
            "approve" => Choice::Approve,
            "deny" => Choice::Deny,
            _ => return None,
        };
        let (approval, digest) = text("/actions/0/value")?.split_once(' ')?;
        let digest = Digest::deserialize(Value::from(digest)).ok()?;
        let channel = text("/container/channel_id").or_else(|| text("/channel/id"))?;
        Some(Self {
            user: text("/user/id")?.into(),
            channel: channel.into(),
            choice,
            approval: approval.parse().ok()?,
            digest,
        })
    }
}

impl Clicks {
    /// Says to whoever clicked, and to nobody else, what became of it.
    pub(super) async fn handle(&self, click: Click) {
        let answer = self.answer(&click).await;
        self.say(&click, &answer).await;
    }

    /// Sends them to the console: too many click at once.
    pub(super) async fn busy(&self, click: Click) {
        let answer = format!("Too many answer at once. {}", self.whereto(click.approval));
        self.say(&click, &answer).await;
    }

    async fn say(&self, click: &Click, answer: &str) {
        let body = json!({
            "channel": click.channel,
            "user": click.user,
            "text": line(answer, ANSWER_ROOM, slack),
            "parse": "none",
            "link_names": false,
            "mrkdwn": false,
        });
        let said = self
            .api
            .call("chat.postEphemeral", &self.config.bot_token, &body)
            .await;
        if let Err(error) = said {
            let why = super::Failure::from(error).why;
            tracing::warn!(notifier = %self.notifier, %why, "a click can't be answered");
        }
    }

    async fn answer(&self, click: &Click) -> String {
        let whereto = self.whereto(click.approval);
        let message = lock(&self.board).get(click.approval).cloned();
        let channel = message
            .as_ref()
            .map_or(&self.config.channel, |message| &message.channel);
        if click.channel != *channel {
            return format!("This isn't the message that asked. {whereto}");
        }
        let Some(person) = self.config.people.get(&click.user) else {
            return format!(
                "Your click doesn't decide: nobody has said which reviewer you are. {whereto}"
            );
        };
        // Of an earlier process's message nothing may be known; the daemon compares the digest in any case.
        if let Some(message) = message {
            if message.digest != Some(click.digest) {
                return format!("This isn't what waits for approval. {whereto}");
            }
            if message.ended {
                return format!("It is over already. {whereto}");
            }
        }
        let intent = Intent {
            id: 0,
            notifier: self.notifier.clone(),
            person: person.clone(),
            approval: click.approval,
            digest: click.digest,
            choice: click.choice,
        };
        match self.answers.ask(intent, self.patience).await {
            Some(Ok(done)) => done,
            Some(Err(why)) => format!("It doesn't count: {why}. {whereto}"),
            None => format!("Whether it counts isn't known yet. {whereto}"),
        }
    }

    fn whereto(&self, approval: ApprovalId) -> String {
        match link(self.console.as_ref(), approval) {
            Some(link) => format!("Decide at {link}"),
            None => format!("Decide with `interceptor approvals show {approval}`."),
        }
    }
}
