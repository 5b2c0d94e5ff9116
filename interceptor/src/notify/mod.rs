//! Telling people where they already are: webhooks, Slack, Microsoft Teams, mail.
//!
//! [`Notifiers`] takes what happens to approvals and tells it to those whom the configuration names. Each notifier has a
//! queue and a task of its own, so that one that is down delays nobody, and what can't be told is kept and shown. It
//! runs in a process that has sockets and nothing else: secrets, roots, the time and, if need be, a resolver are given
//! to it ([`Means`]).
//!
//! What must not happen here: that something an agent wrote does anything to who reads it (`text.rs`), that a secret
//! gets into output, errors or records (`secrets.rs`, `address.rs`), or that somebody decides by a chat who couldn't
//! decide in the console: a click becomes an [`Intent`], and the daemon holds it to its own rules.

mod address;
mod config;
mod email;
mod facts;
mod limits;
mod net;
mod notice;
mod queue;
mod secrets;
mod slack;
mod status;
mod teams;
mod template;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod webhook;
mod words;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use interceptor_core::record::{ApprovalId, Timestamp};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{sync::mpsc, time::Instant};

pub use self::{
    address::ServiceUrl,
    config::{
        EmailConfig, Filter, Kind, NotifierConfig, Security, SlackConfig, TeamsConfig,
        WebhookConfig, list,
    },
    limits::Timing,
    net::{Resolve, system_resolver},
    notice::{Delivery, Event, Intent, Notice, Outcome, Posted, Subject},
    secrets::{Secrets, Text, given, read_each_time},
    status::{DeadLetter, NotifierState, NotifierStatus, RedeliverError},
    template::Template,
    worker::Clock,
};
use self::{
    email::Email,
    facts::Facts,
    limits::POSTED_MAX,
    net::{Aborted, Net},
    queue::{Queue, Terms},
    slack::{Answers, Slack},
    teams::Teams,
    webhook::Webhook,
    worker::{Shared, work},
};
use crate::{inert::inert, sync::lock};

/// What notifiers work with, besides sockets.
#[derive(Clone)]
pub struct Means {
    /// Where the console is; without it messages name the command line.
    pub console_url: Option<ServiceUrl>,
    /// What this host is called.
    pub host: Box<str>,
    /// Who may vouch for servers: see [`system_roots`].
    pub roots: Vec<CertificateDer<'static>>,
    /// How names are looked up.
    pub resolve: Resolve,
    /// Where secrets come from.
    pub secrets: Secrets,
    /// Wall-clock time.
    pub clock: Clock,
    /// How long things may take.
    pub timing: Timing,
    /// Messages of an earlier process that can still be changed: references of deliveries, from the record.
    pub posted: Vec<Posted>,
    /// Ids of deliveries that an earlier process made, from the record: who starts anew can give all notices again
    /// whose fate isn't known, and nobody is told twice.
    pub told: Vec<Box<str>>,
}

/// The system's roots and those in the PEM files `more`, for [`Means::roots`]. Reads files, so it is for before a
/// process is confined.
///
/// # Errors
/// Where one of `more` can't be read, or is no certificate.
pub fn system_roots(more: &[std::path::PathBuf]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut roots = rustls_native_certs::load_native_certs().certs;
    for path in more {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
        for certificate in certificates {
            roots.push(certificate.map_err(|error| wrong(&error))?);
        }
    }
    Ok(roots)
}

/// Notifiers at work; they end when it is dropped.
pub struct Notifiers {
    all: Vec<Notifier>,
    answers: Arc<Answers>,
    clock: Clock,
    _tasks: Vec<Aborted>,
}

/// One of them.
#[derive(Clone)]
struct Notifier {
    config: Arc<NotifierConfig>,
    shared: Arc<Shared>,
    /// How Slack's socket does.
    socket: Option<Arc<Mutex<String>>>,
}

impl Notifiers {
    /// Starts telling what comes by `events` to those whom `configs` name. What people want by a chat goes to
    /// `intents`, and what became of each attempt to `deliveries`. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Where TLS can't be set up with the roots that there are.
    pub fn start(
        configs: Vec<NotifierConfig>,
        means: Means,
        events: mpsc::Receiver<Notice>,
        intents: mpsc::Sender<Intent>,
        deliveries: mpsc::Sender<Delivery>,
    ) -> Result<Self, StartError> {
        let net = Net::new(&means.roots, means.resolve.clone(), means.timing)
            .map_err(|error| StartError(error.to_string()))?;
        let answers = Arc::new(Answers::new(intents));
        let told: Arc<BTreeSet<Box<str>>> = Arc::new(means.told.into_iter().collect());
        let mut all = Vec::new();
        let mut tasks = Vec::new();
        for config in configs {
            let config = Arc::new(config);
            let terms = Terms {
                retry_for: config.retry_for,
                first_pause: means.timing.first_pause,
                longest_pause: means.timing.longest_pause,
                for_people: !matches!(config.kind, Kind::Webhook(_)),
            };
            let shared = Arc::new(Shared {
                queue: Mutex::new(Queue::new(&config.name, terms, told.clone())),
                wake: tokio::sync::Notify::new(),
            });
            let mut socket = None;
            let (timing, clock, secrets) =
                (means.timing, means.clock.clone(), means.secrets.clone());
            let (worker, reports) = (shared.clone(), deliveries.clone());
            let work = match &config.kind {
                Kind::Webhook(webhook) => {
                    let sink =
                        Webhook::new((**webhook).clone(), net.clone(), secrets, clock.clone());
                    tokio::spawn(work(worker, sink, timing, clock, reports))
                }
                Kind::Teams(teams) => {
                    let sink = Teams::new(teams.clone(), net.clone(), secrets);
                    tokio::spawn(work(worker, sink, timing, clock, reports))
                }
                Kind::Email(email) => {
                    let sink = Email::new((**email).clone(), net.clone(), &means.roots, secrets)
                        .map_err(StartError)?;
                    tokio::spawn(work(worker, sink, timing, clock, reports))
                }
                Kind::Slack(slack) => {
                    let posted = means
                        .posted
                        .iter()
                        .filter(|posted| posted.notifier == config.name);
                    let sink = Slack::new(&config, slack, net.clone(), secrets, posted);
                    if let Some(listener) =
                        sink.listener(answers.clone(), timing, means.console_url.clone())
                    {
                        socket = Some(listener.state());
                        tasks.push(Aborted(tokio::spawn(listener.run())));
                    }
                    tokio::spawn(work(worker, sink, timing, clock, reports))
                }
            };
            tasks.push(Aborted(work));
            all.push(Notifier {
                config,
                shared,
                socket,
            });
        }
        let dispatch = dispatch(
            all.clone(),
            means.console_url,
            means.host,
            means.clock.clone(),
            events,
        );
        tasks.push(Aborted(tokio::spawn(dispatch)));
        Ok(Self {
            all,
            answers,
            clock: means.clock,
            _tasks: tasks,
        })
    }

    /// How each does, in the order of the configuration.
    #[must_use]
    pub fn status(&self) -> Vec<NotifierStatus> {
        let status = |notifier: &Notifier| {
            let socket = notifier.socket.as_ref().map(|state| lock(state).clone());
            lock(&notifier.shared.queue).status(notifier.config.kind_name(), socket)
        };
        self.all.iter().map(status).collect()
    }

    /// Tries the dead letter `id` again, from the beginning.
    ///
    /// # Errors
    /// Where there is none of that id.
    pub fn redeliver(&self, id: &str) -> Result<(), RedeliverError> {
        let now = (Instant::now(), (self.clock)());
        for notifier in &self.all {
            let done = lock(&notifier.shared.queue).redeliver(id, now);
            if done.is_ok() {
                notifier.shared.wake.notify_one();
                return Ok(());
            }
        }
        Err(RedeliverError::Unknown(inert(id).into()))
    }

    /// Says what became of the intent `id`, to whom it came from: what was done, or why not. One that is not answered
    /// in time is told to look in the console.
    pub fn answer(&self, id: u64, said: Result<String, String>) {
        self.answers.answer(id, said);
    }
}

/// Why notifiers can't start.
#[derive(Debug, thiserror::Error)]
#[error("nobody can be notified: {0}")]
pub struct StartError(String);

/// Hands each notice to those who hear it. Never waits for one of them.
async fn dispatch(
    all: Vec<Notifier>,
    console_url: Option<ServiceUrl>,
    host: Box<str>,
    clock: Clock,
    mut events: mpsc::Receiver<Notice>,
) {
    let mut asked = Asked::default();
    while let Some(notice) = events.recv().await {
        let link = link(console_url.as_ref(), notice.approval());
        let facts = Arc::new(Facts::new(&notice, link, &host));
        let groups = asked.note(&facts);
        let has_ended = matches!(facts.event, Event::Ended | Event::Overridden);
        for notifier in &all {
            let hears = notifier.config.filter.hears(&facts, groups.as_deref());
            // A message in Slack whose question has ended is changed, whether or not the end is to be heard of.
            let changes = matches!(notifier.config.kind, Kind::Slack(_))
                && facts.event == Event::Ended
                && notifier.config.filter.concerns(&facts, groups.as_deref());
            let mut queue = lock(&notifier.shared.queue);
            if has_ended {
                queue.end(facts.approval);
            }
            if hears || changes {
                queue.push(facts.clone(), (Instant::now(), clock()));
            }
            drop(queue);
            notifier.shared.wake.notify_one();
        }
    }
}

/// Where `approval` is decided. No token is in there: who opens it has to sign in.
fn link(console: Option<&ServiceUrl>, approval: ApprovalId) -> Option<String> {
    let link = console?.join(&format!("approvals/{approval}"))?;
    Some(link.expose())
}

/// Which groups approvals were asked of, for what is told later and doesn't say.
#[derive(Default)]
struct Asked {
    by_time: BTreeMap<(Timestamp, ApprovalId), Arc<[Box<str>]>>,
    times: BTreeMap<ApprovalId, Timestamp>,
}

impl Asked {
    /// The groups that what `facts` tells of was asked of, where that is known.
    fn note(&mut self, facts: &Facts) -> Option<Arc<[Box<str>]>> {
        let Self { by_time, times } = self;
        if facts.event == Event::Revoked {
            let time = times.get(&facts.approval)?;
            return by_time.get(&(*time, facts.approval)).cloned();
        }
        let groups: Arc<[Box<str>]> = facts.groups.as_slice().into();
        let time = *times.entry(facts.approval).or_insert(facts.time);
        by_time.insert((time, facts.approval), groups.clone());
        if by_time.len() > POSTED_MAX
            && let Some(((_, oldest), _)) = by_time.pop_first()
        {
            times.remove(&oldest);
        }
        Some(groups)
    }
}
