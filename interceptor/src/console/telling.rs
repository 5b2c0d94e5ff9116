//! Has notifiers tell what happens, on record; and what people click in a chat become votes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use interceptor_core::login::Secret;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    daemon::{Daemon, Refused},
    people::Passwords,
    setup::Telling,
};
use crate::{
    approval::{Change, Detail, State, Summary, Voter},
    clock,
    control::{Ballot, Identity, Note, Role, Way},
    notify::{
        Delivery, Event, Intent, Means, Notice, NotifierConfig, Notifiers, Outcome, Posted,
        Secrets, ServiceUrl, StartError, Timing, system_resolver,
    },
    secret::Source,
    sync::lock,
};

/// Notices, intents and reports that may wait.
const QUEUED: usize = 1_024;

/// Pause before the daemon is asked again what happens.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest line of the daemon's, in bytes.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Notifiers at work.
pub(super) struct Teller {
    notifiers: Arc<Notifiers>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Teller {
    /// Starts them, where there are any; `origin` is the console's address.
    ///
    /// # Errors
    /// Where they can't start, or the daemon can't be asked.
    pub(super) async fn start(
        telling: Telling,
        origin: &str,
        daemon: Daemon,
        people: Arc<Passwords>,
    ) -> Result<Option<Self>, String> {
        if telling.notifiers.is_empty() {
            return Ok(None);
        }
        let (told, posted) = earlier(&daemon).await.map_err(|refused| refused.error)?;
        let sources: Vec<Source> = sources(&telling.notifiers).cloned().collect();
        let means = Means {
            console_url: ServiceUrl::parse(origin).ok(),
            host: telling.host.into(),
            roots: telling.roots,
            resolve: system_resolver(),
            secrets: asked_for(daemon.clone(), sources),
            clock: Arc::new(clock::now),
            timing: Timing::default(),
            posted,
            told,
        };
        let (tell, events) = mpsc::channel(QUEUED);
        let (intend, intents) = mpsc::channel(QUEUED);
        let (report, deliveries) = mpsc::channel(QUEUED);
        let notifiers = Notifiers::start(telling.notifiers, means, events, intend, report)
            .map_err(|error: StartError| error.to_string())?;
        let notifiers = Arc::new(notifiers);
        let tasks = vec![
            tokio::spawn(follow(daemon.clone(), tell)),
            tokio::spawn(record(daemon.clone(), deliveries)),
            tokio::spawn(vote(daemon, people, notifiers.clone(), intents)),
        ];
        Ok(Some(Self {
            notifiers,
            tasks: Mutex::new(tasks),
        }))
    }

    /// The notifiers.
    pub(super) fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

/// Where the secrets of `notifiers` stand, in an order that both processes know.
pub(crate) fn sources(notifiers: &[NotifierConfig]) -> impl Iterator<Item = &Source> {
    notifiers.iter().flat_map(NotifierConfig::secrets)
}

/// Secrets as the daemon reads them, each time: this process can't.
fn asked_for(daemon: Daemon, sources: Vec<Source>) -> Secrets {
    Arc::new(move |source| {
        let place = sources.iter().position(|known| *known == source);
        let daemon = daemon.clone();
        Box::pin(async move {
            let place = place.ok_or_else(|| format!("{source} is none of the configuration's"))?;
            let path = format!("/console/secrets/{place}");
            let answer: String = daemon
                .own(&path, &())
                .await
                .map_err(|refused| refused.error)?;
            let bytes = STANDARD.decode(answer).map_err(|error| error.to_string())?;
            Ok(Secret::new(bytes))
        })
    })
}

/// The console itself, which sees what everybody sees.
fn itself() -> Identity {
    Identity {
        voter: Voter {
            name: "interceptor".into(),
            uid: None,
            groups: [].into(),
        },
        way: Way::Token,
        at_most: Some(Role::Viewer),
    }
}

/// What an earlier process has told, and its messages that can still be changed.
async fn earlier(daemon: &Daemon) -> Result<(Vec<Box<str>>, Vec<Posted>), Refused> {
    let notes: Vec<Note> = daemon.own("/console/told", &()).await?;
    let all: Vec<Summary> = daemon.get(&itself(), "/v1/approvals?ended=true").await?;
    let posted = notes.iter().filter_map(|note| {
        let fact = |name: &str| note.detail.get(name);
        let id = fact("approval")?.parse().ok()?;
        Some(Posted {
            notifier: fact("notifier")?.clone(),
            approval: id,
            digest: all.iter().find(|summary| summary.id == id)?.digest,
            reference: fact("reference")?.clone(),
        })
    });
    let posted = posted.collect();
    let told = notes
        .iter()
        .filter_map(|note| note.detail.get("delivery").cloned());
    Ok((told.collect(), posted))
}

/// Tells what happens, from what waits now on, for as long as the daemon is there.
async fn follow(daemon: Daemon, tell: mpsc::Sender<Notice>) {
    loop {
        if let Err(refused) = listen(&daemon, &tell).await {
            tracing::warn!(error = refused.error, "nobody is told of approvals for now");
        }
        if tell.is_closed() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn listen(daemon: &Daemon, tell: &mpsc::Sender<Notice>) -> Result<(), Refused> {
    let identity = itself();
    // Watching begins before the list is made, so that nothing falls between the two.
    let response = daemon
        .send(
            Some(&identity),
            Method::GET,
            "/v1/approvals/watch",
            Bytes::new(),
        )
        .await?;
    // What ended lately as well: a process that has just started may have missed it. Nobody is told twice.
    let all: Vec<Summary> = daemon.get(&identity, "/v1/approvals?ended=true").await?;
    for summary in all
        .into_iter()
        .filter(|summary| summary.state != State::Pending)
    {
        let change = Change::Ended(Box::new(summary));
        if let Some(notice) = Notice::of(&change, None, clock::now()) {
            let _ = tell.send(notice).await;
        }
    }
    let mut body = response.into_body();
    let mut held = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        held.extend_from_slice(&data);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            let Ok(change) = serde_json::from_slice::<Change>(&line) else {
                continue;
            };
            if matches!(change, Change::Missed { .. }) {
                return Ok(());
            }
            let mut detail: Option<Detail> = None;
            if let Change::Requested(summary) | Change::Escalated(summary) = &change {
                let path = format!("/v1/approvals/{}", summary.id);
                detail = daemon.get(&identity, &path).await.ok();
            }
            if let Some(notice) = Notice::of(&change, detail.as_ref(), clock::now())
                && tell.send(notice).await.is_err()
            {
                return Ok(());
            }
        }
        if held.len() > LINE_BYTES_MAX {
            break;
        }
    }
    Ok(())
}

/// Has on record who was told of what.
async fn record(daemon: Daemon, mut deliveries: mpsc::Receiver<Delivery>) {
    while let Some(delivery) = deliveries.recv().await {
        let (name, why, reference) = match &delivery.outcome {
            Outcome::Delivered { reference, note } => ("notified", note.clone(), reference.clone()),
            Outcome::Dead { why } => ("notification_failed", Some(why.clone()), None),
            Outcome::Withdrawn { why } => ("notification_withdrawn", Some(why.clone()), None),
            Outcome::Failed { why, again_in_s } => {
                tracing::warn!(
                    notifier = &*delivery.notifier,
                    why = &**why,
                    again_in_s,
                    "a notifier fails"
                );
                continue;
            }
        };
        let event: Event = delivery.event;
        let mut detail: Vec<(Box<str>, Box<str>)> = vec![
            ("approval".into(), delivery.approval.to_string().into()),
            ("notifier".into(), delivery.notifier.clone()),
            ("what".into(), event.name().into()),
            ("delivery".into(), delivery.id.clone()),
            ("attempt".into(), delivery.attempt.to_string().into()),
        ];
        detail.extend(why.map(|why| ("why".into(), why)));
        detail.extend(reference.map(|reference| ("reference".into(), reference)));
        let note = Note {
            name: name.into(),
            detail: detail.into_iter().collect(),
        };
        if let Err(refused) = daemon.own::<()>("/console/notes", &note).await {
            tracing::error!(error = refused.error, "who was told isn't on record");
        }
    }
}

/// Casts votes that people click in a chat. Whether they may is the daemon's to say, as for anybody.
async fn vote(
    daemon: Daemon,
    people: Arc<Passwords>,
    notifiers: Arc<Notifiers>,
    mut intents: mpsc::Receiver<Intent>,
) {
    while let Some(intent) = intents.recv().await {
        let (id, choice) = (intent.id, intent.choice);
        let said = match cast(&daemon, &people, intent).await {
            Ok(summary) => Ok(match summary.state {
                State::Pending => format!(
                    "your answer counts; {} of {} agree",
                    summary.votes.len(),
                    summary.quorum
                ),
                _ => format!(
                    "{}d",
                    serde_json::to_value(choice)
                        .ok()
                        .as_ref()
                        .and_then(Value::as_str)
                        .unwrap_or("answere")
                ),
            }),
            Err(refused) => Err(refused.error),
        };
        notifiers.answer(id, said);
    }
}

async fn cast(daemon: &Daemon, people: &Passwords, intent: Intent) -> Result<Summary, Refused> {
    let identity = Identity {
        voter: Voter {
            groups: people.groups(&intent.person),
            name: intent.person,
            uid: None,
        },
        way: Way::Chat,
        at_most: Some(Role::Reviewer),
    };
    let path = format!("/v1/approvals/{}", intent.approval);
    let detail: Detail = daemon.get(&identity, &path).await?;
    if detail.summary.digest != intent.digest {
        return Err(Refused::new(
            axum::http::StatusCode::CONFLICT,
            "this isn't what you were shown; nothing was done",
            "",
        ));
    }
    let ballot = Ballot {
        choice: intent.choice,
        reason: format!("by {}", intent.notifier),
        window: None,
        signed: None,
    };
    daemon
        .post(&identity, &format!("{path}/votes"), &ballot)
        .await
}
