//! What the daemon answers when a session asks: each question against what is known of the session.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use interceptor_core::{
    decoder::Resolved,
    operation::radius::BlastRadius,
    origin::Origin,
    record::{ApprovalId, Event, SessionId},
    ruling::Verdict,
};
use tokio::sync::oneshot;

use super::{
    super::{
        intake::{self, Left},
        message::{Answer, Ask, Question, Secret, ToProxy, Towards},
        sessions::Opening,
    },
    Asked, CONGESTED_BYTES, Keeper, ToIt,
};
use crate::{
    approval::{Outcome, Request, Withdrawal},
    clock,
    credentials::Secrets as _,
    sync::lock,
    tls::{Leaf, Wanted},
};

/// How long a session waits for the disk before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an operation would touch, when that is known.
pub(super) type Estimated = oneshot::Receiver<BlastRadius>;

/// How long that may take: longer than the proxy tries.
const ESTIMATED_WITHIN: Duration = Duration::from_secs(30);

impl Keeper {
    /// Asks people, and tells the session what they say.
    pub(super) async fn ask(
        &self,
        ask: Ask,
        (mut withdrawal, estimate): (oneshot::Receiver<Withdrawal>, Option<Estimated>),
        line: &ToIt,
    ) {
        let asked = ask.approval;
        let refuse = |reason: &str| {
            let outcome = Outcome::Refused {
                cause: interceptor_core::ruling::Cause::Unavailable,
                reason: reason.into(),
            };
            self.asked().remove(&asked);
            let _ = line.send(&ToProxy::Outcome(asked, outcome), Vec::new());
        };
        // What people are asked about is on record before the question is.
        let settled = self.settled().await;
        let (Ok(()), Some(session)) = (settled, self.sessions.find(ask.session)) else {
            return refuse("the journal takes no records");
        };
        let Verdict::Hold(terms) = &ask.decision.verdict else {
            return self.misbehaved("it asks about what isn't held");
        };
        let origin = Arc::new(Origin {
            names: ask.names,
            ..(*session.origin).clone()
        });
        let request = Request {
            session: ask.session,
            number: ask.number,
            digest: ask.operation.digest(&origin),
            context: self.means.authority.keyed(ask.context),
            shape: ask.shape,
            surroundings: self.means.kernel.surroundings(&session.origin.process),
            origin,
            terms: terms.clone(),
            operation: ask.operation,
            decision: Arc::new(ask.decision),
        };
        let approvals = &self.means.approvals;
        let mut pending = approvals.request(asked, request, clock::now());
        let id = pending.id();
        if id != asked {
            let _ = line.send(&ToProxy::Called(asked, id), Vec::new());
        }
        if let Some(estimate) = estimate {
            // Not a part of this: whoever doesn't wait for the answer may be asked about for long.
            let approvals = approvals.clone();
            tokio::spawn(async move {
                if let Ok(Ok(radius)) = tokio::time::timeout(ESTIMATED_WITHIN, estimate).await {
                    approvals.estimated(id, radius);
                }
            });
        }
        let outcome = tokio::select! {
            biased;
            outcome = pending.outcome() => outcome,
            why = &mut withdrawal => match why {
                Ok(why) if pending.withdraw(why) => return,
                // It was answered this moment.
                Ok(why) => {
                    if pending.outcome().await == Outcome::Approved {
                        approvals.unused(id, pending.request(), why);
                    }
                    return;
                }
                // The process is gone: dropping it says so.
                Err(_) => return,
            },
        };
        let mut open = self.asked();
        // Whatever was said meanwhile is in the channel, or comes behind this.
        if let Ok(why) = withdrawal.try_recv() {
            if outcome == Outcome::Approved {
                approvals.unused(id, pending.request(), why);
            }
            return;
        }
        if outcome == Outcome::Approved {
            let request = pending.request().clone();
            open.insert(asked, Asked::Approved(id, request));
        } else {
            open.remove(&asked);
        }
        let _ = line.send(&ToProxy::Outcome(asked, outcome), Vec::new());
    }

    /// Takes what is found out about an operation that people are about to be asked about, if its rule wants that.
    pub(super) fn estimate(&self, ask: &Ask) -> Option<Estimated> {
        let Verdict::Hold(terms) = &ask.decision.verdict else {
            return None;
        };
        terms.blast_radius?;
        let (sender, estimated) = oneshot::channel();
        let mut estimates = lock(&self.estimates);
        estimates.retain(|_, waiting| !waiting.is_closed());
        estimates.insert(ask.approval, sender);
        Some(estimated)
    }

    pub(super) fn withdraw(&self, asked: ApprovalId, why: Withdrawal) {
        match self.asked().remove(&asked) {
            // Who isn't there any more has answered.
            Some(Asked::Waits(waits)) => drop(waits.send(why)),
            Some(Asked::Approved(id, request)) => self.means.approvals.unused(id, &request, why),
            None => {}
        }
    }

    pub(super) async fn answer(&self, question: Question) -> (Answer, Vec<OwnedFd>) {
        let answered = match question {
            Question::Durable(position) => self.durable(position).await,
            Question::Room => self.room().await,
            Question::Resumed => {
                self.means.journal.resumed().await;
                // What it says is set when somebody looks.
                let _ = self.settled().await;
                Ok(Answer::Done)
            }
            Question::Socket(session, towards) => return self.socket(session, towards).await,
            Question::Secret(number) => self.secret(number).await,
            Question::Learn(session, names) => self.learn(session, &names.into()),
            Question::Asker {
                network,
                from,
                token,
            } => self.asker(network, from, token),
            Question::Leaf(wanted) => self.leaf(&wanted),
        };
        (answered.unwrap_or_else(Answer::No), Vec::new())
    }

    async fn durable(&self, position: u64) -> Result<Answer, String> {
        let journal = &self.means.journal;
        while !self.intake.has_taken(position) {
            match self.settled().await {
                Ok(()) if self.intake.has_taken(position) => {}
                Ok(()) => return Err("it isn't there".to_owned()),
                Err(Left::Stopped(stopped)) => return Err(stopped.0.to_string()),
                Err(Left::Busy | Left::Misbehaved(_)) => return Err("it can't be read".to_owned()),
            }
        }
        let durable = journal.durable(journal.last_seq()).await;
        durable
            .map(|()| Answer::Done)
            .map_err(|stopped| stopped.0.to_string())
    }

    async fn room(&self) -> Result<Answer, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = self.intake.drain(&self.sessions);
            if let Err(Left::Stopped(stopped)) = left {
                return Err(stopped.0.to_string());
            }
            if self.intake.backlog() < CONGESTED_BYTES {
                return Ok(Answer::Done);
            }
            if Instant::now() > until {
                return Err("the disk takes nothing".to_owned());
            }
            tokio::time::sleep(intake::BUSY).await;
        }
    }

    async fn socket(&self, session: SessionId, towards: Towards) -> (Answer, Vec<OwnedFd>) {
        let opened = match self.sessions.find(session) {
            Some(session) => match towards {
                Towards::Stream(to) => session.network.stream(to).await,
                Towards::Datagrams(to) => session.network.datagrams(to).await,
                Towards::Engine => match &session.engine {
                    Some(engine) => engine.connect().await,
                    None => Err(io::Error::other("its session is with no container engine")),
                },
            },
            None => Err(io::Error::other("its session isn't open")),
        };
        match opened {
            Ok(socket) => (Answer::Socket, vec![socket]),
            Err(error) => (Answer::No(error.to_string()), Vec::new()),
        }
    }

    async fn secret(&self, number: usize) -> Result<Answer, String> {
        let read = self.means.vault.read(number).await;
        let (secret, placeholder) = read.map_err(|error| error.to_string())?;
        let packed = |secret: &interceptor_core::login::Secret| Secret(secret.expose().to_vec());
        Ok(Answer::Secret(
            packed(&secret),
            placeholder.as_ref().map(packed),
        ))
    }

    fn learn(&self, session: SessionId, resolved: &Resolved) -> Result<Answer, String> {
        let session = self.sessions.find(session).ok_or("it isn't open")?;
        let names = &self.means.names;
        // In another network this host's servers are somebody else.
        let is_trusted = if session.network.is_host() {
            let server = session.origin.destination.address();
            server.is_some_and(|server| names.is_trusted(server))
        } else {
            names.is_configured()
        };
        if is_trusted {
            names.learn(&session.agent, resolved);
            self.means.reach.learned();
        }
        Ok(Answer::Believed(is_trusted))
    }

    /// Opens the session of what was asked at `token`, or says what there is to say to who asked.
    fn asker(
        &self,
        network: u64,
        from: SocketAddr,
        token: std::net::IpAddr,
    ) -> Result<Answer, String> {
        let kernel = &self.means.kernel;
        let refuse = |agent: &str, why: &str| {
            if !self.refused.is_one_of_many() {
                let facts = [("reason", why.to_owned()), ("client", from.to_string())];
                let event = Event::notice("query_refused", facts);
                let journal = &self.means.journal;
                let _ = journal.append(None, &Arc::from(agent), clock::now(), [event]);
            }
        };
        let found = kernel
            .asked(token)
            .and_then(|asked| Some((asked, kernel.agent(asked.agent)?)));
        let Some((asked, agent)) = found else {
            refuse(
                "",
                "it came to an address that stands for no server of an agent",
            );
            return Err(String::new());
        };
        let Some(sender) = kernel.sender(network, asked.agent, from) else {
            refuse(
                &agent.name,
                "it doesn't come from a socket of the agent, or not any more",
            );
            return Err(String::new());
        };
        let Some(network) = self.network_of(network) else {
            refuse(&agent.name, "its network namespace isn't served any more");
            return Err(String::new());
        };
        let mut process = kernel.describe_process(sender.pid);
        process.uid = sender.uid;
        process.network_namespace = (!network.is_host()).then(|| network.cookie());
        let name = agent.name.clone();
        let line = self.line_of(network.cookie());
        let opening = Opening {
            agent: (asked.agent, agent),
            process,
            destination: interceptor_core::origin::Destination::Ip(asked.server),
            engine: None,
            network,
            tally: None,
            line,
        };
        match self.sessions.begin(opening) {
            Ok((id, session)) => Ok(Answer::Asker(Box::new(self.handed(id, &session)))),
            Err(why) => {
                refuse(&name, why);
                Err(why.to_owned())
            }
        }
    }

    fn leaf(&self, wanted: &Wanted) -> Result<Answer, String> {
        let signed = self.means.authority.sign(wanted);
        let Leaf {
            certificate,
            not_after,
        } = signed.map_err(|error| error.to_string())?;
        Ok(Answer::Leaf(
            certificate.to_vec(),
            not_after.unix_timestamp(),
        ))
    }
}
