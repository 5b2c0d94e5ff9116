//! The proxy's side of a line: what sessions ask the daemon.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use interceptor_core::{
    decoder::Resolved,
    login,
    operation::radius::BlastRadius,
    record::{ApprovalId, SessionId},
    ruling::{Cause, PolicyHash},
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::{
    line::Line,
    message::{Answer, Ask, Call, Handed, Question, ToDaemon, ToProxy, Towards},
};
use crate::{
    approval::{Outcome, Withdrawal},
    credentials::{Secrets, Unread},
    sync::lock,
    tls::{AuthorityError, Leaf, Signs, Wanted},
};

/// What a thread's sessions ask the daemon by.
#[derive(Debug)]
pub(crate) struct Desk {
    line: Line<ToDaemon, ToProxy>,
    next: AtomicU64,
    calls: Mutex<HashMap<Call, oneshot::Sender<Answered>>>,
    held: Mutex<HashMap<ApprovalId, Asked>>,
}

type Answered = (Answer, Vec<OwnedFd>);

/// A question that people have been asked.
#[derive(Debug)]
struct Asked {
    answer: oneshot::Sender<Outcome>,
    /// What it is called: another than it was asked as, where the operation had been asked about before.
    called: Arc<AtomicU64>,
}

/// What is said where the daemon isn't there any more. Then this process isn't for long.
const GONE: &str = "the daemon is gone";

impl Desk {
    /// Asks by `line`.
    pub(super) fn new(line: Line<ToDaemon, ToProxy>) -> Self {
        Self {
            line,
            next: AtomicU64::new(0),
            calls: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// Sends what had to wait, for as long as it is polled.
    pub(super) async fn flush(&self) -> io::Result<()> {
        self.line.flush().await
    }

    /// Hears what isn't the answer to anything; `None` where the daemon is gone.
    pub(super) async fn hear(&self) -> io::Result<Option<(ToProxy, Vec<OwnedFd>)>> {
        loop {
            match self.line.receive().await? {
                Some((ToProxy::Answer(call, answer), sockets)) => {
                    if let Some(asked) = lock(&self.calls).remove(&call) {
                        // Who asked may have ended.
                        let _ = asked.send((answer, sockets));
                    }
                }
                Some((ToProxy::Outcome(approval, outcome), _)) => {
                    let asked = lock(&self.held).remove(&approval);
                    if let Some(asked) = asked {
                        let _ = asked.answer.send(outcome);
                    }
                }
                Some((ToProxy::Called(asked, id), _)) => {
                    if let Some(asked) = lock(&self.held).get(&asked) {
                        asked.called.store(id.0, Ordering::Relaxed);
                    }
                }
                other => return Ok(other),
            }
        }
    }

    /// Says something that nobody answers.
    pub(super) fn tell(&self, message: &ToDaemon) {
        // Where nobody hears it this process is about to end.
        let _ = self.line.send(message, Vec::new());
    }

    /// Says that the policy of this hash is in force.
    pub(super) fn in_force(&self, hash: PolicyHash) {
        self.tell(&ToDaemon::InForce(hash));
    }

    async fn call(&self, question: Question) -> Result<Answered, String> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let (asked, answered) = oneshot::channel();
        lock(&self.calls).insert(call, asked);
        let message = ToDaemon::Call(call, question);
        if let Err(error) = self.line.send(&message, Vec::new()) {
            lock(&self.calls).remove(&call);
            return Err(error.to_string());
        }
        match answered.await {
            Ok((Answer::No(why), _)) => Err(why),
            Ok(answered) => Ok(answered),
            Err(_) => Err(GONE.to_owned()),
        }
    }

    /// Waits until everything in the feed before `position` is on disk.
    pub(super) async fn durable(&self, position: u64) -> Result<(), String> {
        self.call(Question::Durable(position)).await.map(drop)
    }

    /// Waits until there is room for more records.
    pub(super) async fn room(&self) -> Result<(), String> {
        self.call(Question::Room).await.map(drop)
    }

    /// Waits until the journal takes records again.
    pub(super) async fn resumed(&self) -> Result<(), String> {
        self.call(Question::Resumed).await.map(drop)
    }

    /// A socket in the network of `session`.
    pub(super) async fn socket(&self, session: SessionId, towards: Towards) -> io::Result<OwnedFd> {
        let answered = self.call(Question::Socket(session, towards)).await;
        let (_, sockets) = answered.map_err(io::Error::other)?;
        let mut sockets = sockets.into_iter();
        sockets.next().ok_or_else(|| io::Error::other(GONE))
    }

    /// Has it remembered what the agent of `session` is about to be told; whether who says so is believed. Then
    /// rules by name have effect.
    pub(crate) async fn learn(&self, session: SessionId, resolved: &Resolved) -> bool {
        let learned = self.call(Question::Learn(session, resolved.into())).await;
        matches!(learned, Ok((Answer::Believed(true), _)))
    }

    /// The session of what came from `from` to `token` in the network namespace `network`, or what to say to it.
    pub(super) async fn asker(
        &self,
        network: u64,
        from: SocketAddr,
        token: IpAddr,
    ) -> Result<Handed, String> {
        let question = Question::Asker {
            network,
            from,
            token,
        };
        match self.call(question).await?.0 {
            Answer::Asker(handed) => Ok(*handed),
            _ => Err(String::new()),
        }
    }

    /// Has people asked about a held operation.
    pub(crate) fn ask(self: &Arc<Self>, ask: Ask) -> Held {
        let asked = ask.approval;
        let called = Arc::new(AtomicU64::new(asked.0));
        let (answer, outcome) = oneshot::channel();
        let question = Asked {
            answer,
            called: called.clone(),
        };
        lock(&self.held).insert(asked, question);
        self.tell(&ToDaemon::Ask(Box::new(ask)));
        Held {
            desk: self.clone(),
            asked,
            called,
            outcome: Some(outcome),
            early: None,
        }
    }
}

/// Tells people what a held operation would touch.
#[derive(Debug)]
pub(crate) struct Estimator {
    desk: Arc<Desk>,
    asked: ApprovalId,
}

impl Estimator {
    /// It is this.
    pub(crate) fn is(self, radius: BlastRadius) {
        let told = ToDaemon::Estimated(self.asked, Box::new(radius));
        self.desk.tell(&told);
    }
}

/// A held operation that people have been asked about. Its [`outcome`](Self::outcome) comes once.
#[derive(Debug)]
pub(crate) struct Held {
    desk: Arc<Desk>,
    asked: ApprovalId,
    called: Arc<AtomicU64>,
    outcome: Option<oneshot::Receiver<Outcome>>,
    /// What came while it was being withdrawn.
    early: Option<Outcome>,
}

impl Held {
    /// What became of it. May be polled, dropped and called again until it answers; a second answer is always a
    /// refusal, because an approval is used once.
    pub(crate) async fn outcome(&mut self) -> Outcome {
        if let Some(outcome) = self.early.take() {
            return outcome;
        }
        let refused = |reason: &str| Outcome::Refused {
            cause: Cause::Unavailable,
            reason: reason.into(),
        };
        let Some(outcome) = &mut self.outcome else {
            return refused("the approval has been used");
        };
        let answer = outcome.await;
        self.outcome = None;
        answer.unwrap_or_else(|_| refused(GONE))
    }

    /// Doesn't wait any more, unless it has been answered; whether it hasn't.
    pub(crate) fn withdraw(&mut self, why: Withdrawal) -> bool {
        let Some(outcome) = &mut self.outcome else {
            return false;
        };
        match outcome.try_recv() {
            Ok(outcome) => {
                self.early = Some(outcome);
                self.outcome = None;
                false
            }
            Err(_) => {
                self.outcome = None;
                self.take_back(why);
                true
            }
        }
    }

    /// What tells people what it would touch, when that is known.
    pub(crate) fn estimator(&self) -> Estimator {
        Estimator {
            desk: self.desk.clone(),
            asked: self.asked,
        }
    }

    /// What it is called.
    pub(crate) fn id(&self) -> ApprovalId {
        ApprovalId(self.called.load(Ordering::Relaxed))
    }

    fn take_back(&self, why: Withdrawal) {
        lock(&self.desk.held).remove(&self.asked);
        self.desk.tell(&ToDaemon::Withdraw(self.asked, why));
    }
}

impl Drop for Held {
    /// Whoever asked is gone.
    fn drop(&mut self) {
        if self.outcome.is_some() || self.early.is_some() {
            self.take_back(Withdrawal::HungUp);
        }
    }
}

impl Secrets for Arc<Desk> {
    async fn read(&self, number: usize) -> Result<(login::Secret, Option<login::Secret>), Unread> {
        let unread = |why: String| Unread {
            what: "",
            error: why.into(),
        };
        match self.call(Question::Secret(number)).await.map_err(unread)? {
            (Answer::Secret(mut secret, placeholder), _) => {
                let open = |secret: &mut Vec<u8>| login::Secret::new(std::mem::take(secret));
                Ok((
                    open(&mut secret.0),
                    placeholder.map(|mut placeholder| open(&mut placeholder.0)),
                ))
            }
            _ => Err(unread(GONE.to_owned())),
        }
    }
}

impl Signs for Desk {
    async fn sign(&self, wanted: Wanted) -> Result<Leaf, AuthorityError> {
        let unsigned = AuthorityError::Library;
        match self.call(Question::Leaf(wanted)).await.map_err(unsigned)?.0 {
            Answer::Leaf(certificate, not_after) => Ok(Leaf {
                certificate: CertificateDer::from(certificate),
                not_after: OffsetDateTime::from_unix_timestamp(not_after)
                    .map_err(|error| unsigned(error.to_string()))?,
            }),
            _ => Err(unsigned(GONE.to_owned())),
        }
    }
}
