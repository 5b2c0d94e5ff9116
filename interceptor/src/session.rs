//! The one byte loop: the only place that touches both sockets and executes a decoder's steps.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use interceptor_core::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    limits,
    login::Login,
    operation::{Operation, Protocol},
    origin::Origin,
    protocol::{
        opaque::Opaque,
        postgres::{self, Postgres},
    },
    record::{
        DecisionRecord, Event, OperationRecord, SessionEnd, SessionId, SessionStart, Timestamp,
    },
    ruling::{Cause, Hold, Judge, Judgement, Refusal, Ruling, Verdict},
    sniff::{self, Sniffed},
};
use tokio::{
    io::AsyncReadExt,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use crate::{
    approval::{Approvals, Outcome, Pending, Request},
    cancellations::{Cancellable, Cancellations},
    clock::now,
    credentials::{Credentials, Wanted},
    journal::Journal,
    policies::Policies,
    upstream,
};

/// How long a client may take to say enough for its protocol to be known; after that it is opaque.
const SNIFF_PATIENCE: Duration = Duration::from_secs(5);

/// What sessions ask of the rest of the daemon.
pub struct Services {
    /// Where everything is recorded.
    pub journal: Journal,
    /// The policy in force.
    pub policies: Arc<Policies>,
    /// Where people are asked.
    pub approvals: Approvals,
    /// Who can be cancelled while people are asked.
    pub cancellations: Cancellations,
    /// What agents are logged in with.
    pub credentials: Credentials,
    /// What PostgreSQL sessions share.
    pub postgres: Arc<postgres::Shared>,
    /// How long to wait for an upstream to answer a connect.
    pub dial_patience: Duration,
}

/// One intercepted connection.
pub struct Session {
    services: Arc<Services>,
    id: SessionId,
    origin: Arc<Origin>,
    agent: Arc<str>,
    judge: Judge,
    cancellable: Option<Cancellable>,
    operations: u64,
    received: [u64; 2],
    /// When the bytes or the answer that are being worked on arrived: the clock is read once a turn.
    now: Timestamp,
    /// The journal can't take records any more: nothing may go on.
    stopped: bool,
}

/// A held operation and the question that people were asked about it.
struct Held {
    hold: Hold,
    pending: Pending,
}

/// What waits to be written to one peer.
#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

/// Why the loop ends.
struct Ended(String);

impl Session {
    /// A session for a connection of `origin`.
    #[must_use]
    pub fn new(services: Arc<Services>, id: SessionId, origin: Arc<Origin>) -> Self {
        let agent = Arc::from(&*origin.agent.name);
        let judge = Judge::new(&services.policies.current(), origin.clone());
        Self {
            services,
            id,
            origin,
            agent,
            judge,
            cancellable: None,
            operations: 0,
            received: [0; 2],
            now: now(),
            stopped: false,
        }
    }

    /// Serves `client` until either side is done.
    pub async fn run(mut self, client: TcpStream) {
        let _ = client.set_nodelay(true);
        upstream::spare(&client);
        let address = client.peer_addr().unwrap_or(self.origin.destination.0);
        let start = SessionStart {
            origin: self.origin.clone(),
            client: address,
        };
        self.record(Event::SessionStart(start)).await;
        let Ended(reason) = self.serve(client).await;
        self.now = now();
        let [bytes_from_client, bytes_from_upstream] = self.received;
        let end = SessionEnd {
            reason: reason.into(),
            operations: self.operations,
            bytes_from_client,
            bytes_from_upstream,
        };
        let end = Event::SessionEnd(end);
        if self.append([end.clone()]).await.is_none() {
            // It ended because nothing can be recorded: that is on record as soon as something can.
            self.services.journal.resumed().await;
            self.append([end]).await;
        }
    }

    async fn serve(&mut self, mut client: TcpStream) -> Ended {
        let dialled = if self.stopped {
            Err(Failure::Unrecorded)
        } else {
            upstream::dial(self.origin.destination, self.services.dial_patience)
                .await
                .map_err(|error| Failure::Unreachable(error.to_string()))
        };
        let mut first = BytesMut::with_capacity(limits::READ_BYTES / 8);
        let mut decoder = match self.identify(&mut client, &mut first).await {
            Ok(decoder) => decoder,
            Err(ended) => return ended,
        };
        self.now = now();
        decoder.receive(Peer::Client, &mut first, self.now);
        match dialled {
            Ok(mut upstream) => {
                self.exchange(&mut *decoder, &mut client, &mut upstream)
                    .await
            }
            Err(failure) => {
                self.without_upstream(&mut *decoder, &mut client, &failure)
                    .await
            }
        }
    }

    /// Answers the client until it asks for something of the server, then says why it can't have it.
    ///
    /// Not at once: an error in the place of the answer to an SSLRequest is one that libpq doesn't show.
    async fn without_upstream(
        &mut self,
        decoder: &mut dyn Decoder,
        client: &mut TcpStream,
        failure: &Failure,
    ) -> Ended {
        let (mut from_client, mut to_client) = client.split();
        let (mut buffer, mut answers) = (BytesMut::new(), Queue::default());
        let patience = tokio::time::sleep(SNIFF_PATIENCE);
        tokio::pin!(patience);
        let mut told = false;
        let end = loop {
            match decoder.poll() {
                Step::Send(Peer::Client, bytes) => answers.push(bytes),
                Step::Record(event) => self.record(event).await,
                Step::Close(closing) => break describe(&closing),
                _ if told => break failure.to_string(),
                Step::Wait => {
                    answers.drain(&mut to_client).await;
                    tokio::select! {
                        read = from_client.read_buf(&mut buffer) => {
                            if let Ok(count @ 1..) = read {
                                self.now = now();
                                self.count(Peer::Client, count);
                                decoder.receive(Peer::Client, &mut buffer, self.now);
                                continue;
                            }
                        }
                        () = &mut patience => {}
                    }
                    told = true;
                    decoder.fail(failure);
                }
                // Without a server nothing gets so far.
                Step::Cancellable(_) | Step::Cancel(_) => {}
                Step::Propose(_) | Step::Login { .. } | Step::Send(Peer::Upstream, _) => {
                    told = true;
                    decoder.fail(failure);
                }
            }
        };
        if answers.chunks.is_empty() {
            reset(client);
        } else {
            answers.drain(&mut to_client).await;
        }
        Ended(end)
    }

    /// Reads until the protocol is known.
    async fn identify(
        &mut self,
        client: &mut TcpStream,
        first: &mut BytesMut,
    ) -> Result<Box<dyn Decoder>, Ended> {
        let patience = tokio::time::sleep(SNIFF_PATIENCE);
        tokio::pin!(patience);
        let protocol = loop {
            match sniff::from_client(first) {
                Sniffed::Protocol(protocol) => break protocol,
                Sniffed::Unsure => {}
            }
            tokio::select! {
                read = client.read_buf(first) => match read {
                    Ok(0) if first.is_empty() => return Err(Ended("the client said nothing".to_owned())),
                    Ok(0) => break Protocol::Opaque,
                    Ok(count) => self.count(Peer::Client, count),
                    Err(error) => return Err(Ended(format!("client: {error}"))),
                },
                // A server that speaks first, or a client that never says enough.
                () = &mut patience => break Protocol::Opaque,
            }
        };
        Ok(match protocol {
            Protocol::Postgres => Box::new(
                Postgres::new(self.services.postgres.clone())
                    .towards(self.origin.destination.to_string()),
            ),
            Protocol::Opaque => Box::new(Opaque::default()),
        })
    }

    /// Carries bytes and rulings until the decoder or a peer ends it.
    async fn exchange(
        &mut self,
        decoder: &mut dyn Decoder,
        client: &mut TcpStream,
        upstream: &mut TcpStream,
    ) -> Ended {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_upstream, mut to_upstream) = upstream.split();
        let (mut client_buffer, mut upstream_buffer) = (BytesMut::new(), BytesMut::new());
        let (mut client_queue, mut upstream_queue) = (Queue::default(), Queue::default());
        let mut held: Option<Held> = None;
        loop {
            let recorded = client_queue.chunks.len();
            let closing = loop {
                match decoder.poll() {
                    Step::Wait => break None,
                    Step::Send(Peer::Client, bytes) => client_queue.push(bytes),
                    Step::Send(Peer::Upstream, bytes) => upstream_queue.push(bytes),
                    Step::Record(event) => self.record(event).await,
                    Step::Login { user, database } => {
                        match self.credential(&user, &database).await {
                            Ok(login) => decoder.login(login),
                            Err(failure) => decoder.fail(&failure),
                        }
                    }
                    Step::Cancellable(key) => {
                        let cancellations = &self.services.cancellations;
                        self.cancellable =
                            Some(cancellations.register(self.origin.destination, key));
                    }
                    Step::Cancel(key) => self
                        .services
                        .cancellations
                        .cancel(self.origin.destination, key),
                    Step::Close(closing) => break Some(closing),
                    Step::Propose(operation) => match self.decide(operation).await {
                        Decided::Now(ruling) => decoder.rule(ruling, self.now),
                        Decided::Later(question) => held = Some(*question),
                    },
                }
                if self.stopped {
                    client_queue.truncate(recorded);
                    let ended = farewell(decoder, &Failure::Unrecorded, &mut client_queue);
                    if client_queue.chunks.is_empty() {
                        reset(to_client.as_ref());
                    }
                    client_queue.drain(&mut to_client).await;
                    return ended;
                }
            };
            if let Some(closing) = closing {
                // Withdraws the question that is still open.
                drop(held);
                upstream_queue.drain(&mut to_upstream).await;
                client_queue.drain(&mut to_client).await;
                return Ended(describe(&closing));
            }
            if let Err(error) = upstream_queue.write(&to_upstream) {
                return Ended(format!("upstream: {error}"));
            }
            if let Err(error) = client_queue.write(&to_client) {
                return Ended(format!("client: {error}"));
            }
            let waiting = Waiting {
                client: &client_queue,
                upstream: &upstream_queue,
                wants_client: decoder.wants(Peer::Client) && !upstream_queue.is_full(),
                wants_upstream: decoder.wants(Peer::Upstream) && !client_queue.is_full(),
            };
            let turn = poll_fn(|context| {
                let sockets = Sockets {
                    from_client: (&mut from_client, &mut client_buffer),
                    from_upstream: (&mut from_upstream, &mut upstream_buffer),
                };
                waiting.poll(sockets, context)
            });
            let turn = match &mut held {
                None => turn.await,
                Some(question) => tokio::select! {
                    biased;
                    turn = turn => turn,
                    outcome = question.pending.outcome() => {
                        self.now = now();
                        if let Some(question) = held.take() {
                            decoder.rule(question.ruled(outcome), self.now);
                        }
                        continue;
                    }
                    () = cancelled(self.cancellable.as_ref()) => {
                        self.now = now();
                        if let Some(question) = held.take_if(|held| held.pending.withdraw(CANCELLED)) {
                            decoder.rule(question.cancelled(), self.now);
                        }
                        continue;
                    }
                },
            };
            self.now = now();
            for (peer, read, buffer) in [
                (Peer::Upstream, turn.upstream, &mut upstream_buffer),
                (Peer::Client, turn.client, &mut client_buffer),
            ] {
                match read {
                    None => {}
                    Some(Ok(count @ 1..)) => {
                        self.count(peer, count);
                        decoder.receive(peer, buffer, self.now);
                    }
                    Some(Ok(0) | Err(_)) => decoder.finish(peer),
                }
            }
        }
    }

    /// What to log in as `user` with, in the agent's place.
    async fn credential(&mut self, user: &str, database: &str) -> Result<Option<Login>, Failure> {
        let wanted = Wanted {
            user,
            database,
            ..Wanted::default()
        };
        let credentials = &self.services.credentials;
        let found = credentials.login(self.origin.destination, wanted).await;
        self.now = now();
        match found {
            Ok(login) => Ok(login),
            Err(error) => {
                let credential = error.credential;
                tracing::error!(session = %self.id, %error, "an agent can't be logged in");
                let notice = Event::notice(
                    "postgres_login",
                    [
                        ("credential", credential.to_string()),
                        ("user", user.to_owned()),
                        ("database", database.to_owned()),
                        ("error", error.to_string()),
                    ],
                );
                self.record(notice).await;
                Err(Failure::NoSecret(format!(
                    "credential {credential}, which logs in here, can't be used now"
                )))
            }
        }
    }

    /// Has `operation` judged, and the ruling recorded before it takes effect.
    async fn decide(&mut self, operation: Operation) -> Decided {
        self.operations += 1;
        let number = self.operations;
        if !self.services.policies.is_current(self.judge.policy()) {
            let policy = self.services.policies.current();
            self.judge = Judge::new(&policy, self.origin.clone());
        }
        let now = self.now;
        let judgement = self.judge.judge(&operation, now);
        let decision = match &judgement {
            Judgement::Permit(permit) => permit.decision().clone(),
            Judgement::Hold(hold) => hold.decision().clone(),
            Judgement::Refuse(decision, _) => decision.clone(),
        };
        let asked = matches!(judgement, Judgement::Hold(_)).then(|| operation.clone());
        let strict = decision.strict;
        let decided = DecisionRecord {
            number,
            decision: decision.clone(),
        };
        let seq = self
            .append([
                Event::Operation(OperationRecord { number, operation }),
                Event::Decision(decided),
            ])
            .await;
        match (strict, seq) {
            (_, None) => return Decided::Now(Ruling::Refuse(unavailable(&decision.rule))),
            (true, Some(seq)) => {
                if self.services.journal.durable(seq).await.is_err() {
                    self.stopped = true;
                    return Decided::Now(Ruling::Refuse(unavailable(&decision.rule)));
                }
                self.now = crate::clock::now();
            }
            _ => {}
        }
        match (judgement, asked) {
            (Judgement::Permit(permit), _) => Decided::Now(Ruling::Permit(permit)),
            (Judgement::Refuse(_, refusal), _) => Decided::Now(Ruling::Refuse(refusal)),
            (Judgement::Hold(hold), operation) => {
                let Some(operation) = operation else {
                    return Decided::Now(Ruling::Refuse(unavailable(&decision.rule)));
                };
                let digest = operation.digest(&self.origin);
                let Verdict::Hold(terms) = &decision.verdict else {
                    return Decided::Now(Ruling::Refuse(unavailable(&decision.rule)));
                };
                let request = Request {
                    session: self.id,
                    number,
                    origin: self.origin.clone(),
                    operation,
                    digest,
                    terms: terms.clone(),
                    decision,
                };
                let pending = self.services.approvals.request(request, now);
                Decided::Later(Box::new(Held { hold, pending }))
            }
        }
    }

    async fn record(&mut self, event: Event) {
        self.append([event]).await;
    }

    /// Puts `events` into the journal. Without a journal nothing goes on.
    async fn append<const N: usize>(&mut self, events: [Event; N]) -> Option<u64> {
        let journal = &self.services.journal;
        let appended = match journal.room().await {
            Ok(()) => journal.append(Some(self.id), &self.agent, self.now, events),
            Err(stopped) => Err(stopped),
        };
        match appended {
            Ok(seq) => Some(seq),
            Err(error) => {
                if !self.stopped {
                    tracing::error!(session = %self.id, %error, "the session ends: it can't be recorded");
                }
                self.stopped = true;
                None
            }
        }
    }

    fn count(&mut self, from: Peer, bytes: usize) {
        let [client, upstream] = &mut self.received;
        *match from {
            Peer::Client => client,
            Peer::Upstream => upstream,
        } += bytes as u64;
    }
}

/// How an operation was decided.
enum Decided {
    Now(Ruling),
    Later(Box<Held>),
}

fn unavailable(rule: &Arc<str>) -> Refusal {
    Refusal {
        cause: Cause::Unavailable,
        rule: rule.clone(),
        reason: "the journal takes no records".into(),
        approval: None,
    }
}

async fn cancelled(session: Option<&Cancellable>) {
    match session {
        Some(session) => session.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Why a question was withdrawn when a cancel request came.
const CANCELLED: &str = "the agent cancelled it";

impl Held {
    /// The ruling after the question was withdrawn.
    fn cancelled(self) -> Ruling {
        let reason = CANCELLED.into();
        Ruling::Refuse(
            self.hold
                .refuse(Cause::Cancelled, reason, self.pending.id()),
        )
    }

    /// The ruling that people's answer makes of it.
    fn ruled(self, outcome: Outcome) -> Ruling {
        match outcome {
            Outcome::Approved => Ruling::Permit(self.hold.approve()),
            Outcome::Refused { cause, reason } => {
                Ruling::Refuse(self.hold.refuse(cause, reason, self.pending.id()))
            }
        }
    }
}

/// What the loop waits for.
struct Waiting<'a> {
    client: &'a Queue,
    upstream: &'a Queue,
    wants_client: bool,
    wants_upstream: bool,
}

/// Where it reads from, and to.
struct Sockets<'a, 'socket> {
    from_client: (&'a mut ReadHalf<'socket>, &'a mut BytesMut),
    from_upstream: (&'a mut ReadHalf<'socket>, &'a mut BytesMut),
}

/// What came of waiting: bytes from one side, from both, or room to write on.
struct Turn {
    client: Option<io::Result<usize>>,
    upstream: Option<io::Result<usize>>,
}

impl Waiting<'_> {
    /// Both sides get their turn: neither can keep the other from being read.
    fn poll(&self, sockets: Sockets<'_, '_>, context: &mut Context<'_>) -> Poll<Turn> {
        let mut writable = false;
        for (queue, socket) in [
            (self.client, &*sockets.from_client.0),
            (self.upstream, &*sockets.from_upstream.0),
        ] {
            // An error shows in the write that follows.
            writable |=
                !queue.chunks.is_empty() && socket.as_ref().poll_write_ready(context).is_ready();
        }
        let mut read = |wanted, (from, buffer)| match wanted {
            true => match poll_read(from, buffer, context) {
                Poll::Ready(read) => Some(read),
                Poll::Pending => None,
            },
            false => None,
        };
        let turn = Turn {
            upstream: read(self.wants_upstream, sockets.from_upstream),
            client: read(self.wants_client, sockets.from_client),
        };
        if writable || turn.client.is_some() || turn.upstream.is_some() {
            Poll::Ready(turn)
        } else {
            Poll::Pending
        }
    }
}

/// Reads what is there into `buffer`, which is empty and keeps its room between calls.
fn poll_read(
    from: &mut ReadHalf<'_>,
    buffer: &mut BytesMut,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    /// Room for the first read of a connection, in bytes: most statements and results are smaller.
    const FIRST: usize = 8 << 10;
    if buffer.capacity() < FIRST {
        buffer.reserve(FIRST);
    }
    let count = ready!(pin!(from.read_buf(buffer)).poll(context))?;
    if count == buffer.capacity() {
        // It was full: the next one may be as well.
        buffer.reserve(limits::READ_BYTES);
    }
    Poll::Ready(Ok(count))
}

/// Has `decoder` end the session, and queues what it says to the client about it.
fn farewell(decoder: &mut dyn Decoder, failure: &Failure, answers: &mut Queue) -> Ended {
    decoder.fail(failure);
    loop {
        match decoder.poll() {
            Step::Send(Peer::Client, bytes) => answers.push(bytes),
            Step::Wait | Step::Close(_) => return Ended(failure.to_string()),
            _ => {}
        }
    }
}

fn describe(closing: &Closing) -> String {
    match closing {
        Closing::Finished => "finished".to_owned(),
        Closing::Malformed(reason) => format!("malformed: {reason}"),
        Closing::Refused(reason) => format!("refused: {reason}"),
    }
}

/// Has the client see a reset rather than an orderly end.
fn reset(client: &TcpStream) {
    let _ = client.set_zero_linger();
}

// === impl Queue ===

impl Queue {
    fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.chunks.push_back(bytes);
    }

    /// Keeps the oldest `chunks` only.
    fn truncate(&mut self, chunks: usize) {
        for dropped in self.chunks.drain(chunks.min(self.chunks.len())..) {
            self.bytes -= dropped.len();
        }
    }

    const fn is_full(&self) -> bool {
        self.bytes >= limits::QUEUED_BYTES_MAX
    }

    /// Writes as much as the socket takes now.
    fn write(&mut self, to: &WriteHalf<'_>) -> io::Result<()> {
        /// Chunks handed to one system call; more rarely wait.
        const BATCH: usize = 16;
        while !self.chunks.is_empty() {
            let written = if let [one] = self.chunks.make_contiguous() {
                to.try_write(one)
            } else {
                let mut slices = [io::IoSlice::new(&[]); BATCH];
                for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                    *slice = io::IoSlice::new(chunk);
                }
                to.try_write_vectored(
                    slices
                        .get(..self.chunks.len().min(BATCH))
                        .unwrap_or_default(),
                )
            };
            match written {
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count.min(self.bytes);
        while let Some(chunk) = self.chunks.front_mut() {
            if count < chunk.len() {
                chunk.advance(count);
                return;
            }
            count -= chunk.len();
            self.chunks.pop_front();
        }
    }

    /// Writes all of it, for a farewell that may not wait for ever.
    async fn drain(&mut self, to: &mut WriteHalf<'_>) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let all = async {
            while !self.chunks.is_empty() {
                to.writable().await?;
                self.write(to)?;
            }
            Ok::<_, io::Error>(())
        };
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }
}
