//! PostgreSQL's frontend/backend protocol.
//!
//! Source: the PostgreSQL documentation, chapter "Frontend/Backend Protocol", versions 3.0 and 3.2.
//!
//! The way a byte takes: [`startup`] answers SSLRequest and GSSENCRequest, decides start-up packets
//! that change more than they seem to; [`login`] authenticates, in the agent's place where there is a
//! credential for it, and relays else; [`frontend`] reads what the client
//! sends, and turns Query, Execute and FunctionCall into operations; [`backend`] reads what the server
//! answers, against the [`pipeline`] of what it owes, masks and records it. [`names`] knows what
//! prepared statements, portals and cursors stand for; [`refuse`] makes the server fail in the place
//! of a refused operation, so that its state is the true one.

mod answer;
mod backend;
pub mod catalog;
pub mod describe;
mod extended;
mod failure;
mod frontend;
pub mod highlight;
mod login;
pub mod mask;
mod names;
mod pipeline;
mod questions;
pub mod radius;
mod refuse;
mod release;
mod rows;
pub mod shape;
mod startup;
#[cfg(test)]
mod tests;
pub mod transcript;
pub mod wire;
pub mod words;

pub use self::startup::{Parameters, is_startup};

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};

use self::{
    answer::Answer,
    catalog::{Catalog, CatalogBuilder},
    describe::{Describer, Encoding, Lexing},
    frontend::Proposal,
    login::{Attempt, Identity, Relay},
    names::Names,
    pipeline::Pipeline,
    rows::Shapes,
    wire::Malformed,
};
use crate::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    login::Login,
    operation::Operation,
    record::{ApprovalId, Timestamp},
    ruling::{Permit, Ruling},
};

/// What all PostgreSQL sessions of a daemon share.
#[derive(Debug)]
pub struct Shared {
    /// Describes statements.
    pub describer: Describer,
    /// Largest message that is taken from either side, in bytes.
    pub message_bytes_max: usize,
    /// Counts operations that may have changed what tables and views there are.
    pub schema_epoch: AtomicU64,
}

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the StartupMessage.
    Startup,
    /// The client asked for TLS, and so did we: the server's answer is due.
    Encryption,
    /// Whether to log in in the client's place is asked, or that is being done.
    Login,
    /// Between StartupMessage, or AuthenticationOk of a login of ours, and the first ReadyForQuery.
    Authentication,
    /// Queries flow.
    Ready,
    /// A CancelRequest was sent; the server will close.
    Cancelling,
    /// Over.
    Closed,
}

/// What CopyData from the client means now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// Nothing: the server would ignore it.
    None,
    /// Rows for COPY FROM STDIN.
    In,
    /// Replication, both ways.
    Both,
}

/// The state machine of one session.
#[derive(Debug)]
pub struct Postgres {
    shared: Arc<Shared>,
    phase: Phase,
    replication: bool,
    /// The server's host and port, as the configuration would name them.
    destination: Option<String>,
    identity: Identity,
    /// The parameters of the StartupMessage.
    beginning: Bytes,
    attempt: Option<Box<Attempt>>,
    relay: Relay,
    /// Bytes from the client. Those before `accepted` may be sent; those after haven't been looked at.
    client: BytesMut,
    accepted: usize,
    client_finished: bool,
    /// Bytes from the server. Those before `passed` may be sent; those after haven't been looked at.
    upstream: BytesMut,
    passed: usize,
    upstream_finished: bool,
    steps: VecDeque<Step>,
    proposal: Option<Proposal>,
    /// A ruling that can't take effect before the server has answered a question of ours.
    deferred: Option<(u64, Proposal, Permit)>,
    operations: u64,
    lexing: Lexing,
    names: Names,
    pipeline: Pipeline,
    /// The client may not be read on before everything is answered.
    barrier: bool,
    /// Extended-protocol messages were sent since the last Sync.
    segment_open: bool,
    /// The server discards everything up to the next Sync, and so do we.
    skipping: bool,
    copy: Copy,
    /// Transaction status of the last ReadyForQuery: I, T or E.
    status: u8,
    answer: Option<Answer>,
    /// Answers that are over, but whose bytes are not split off yet.
    answered: Vec<Answer>,
    copied_in: frontend::CopiedIn,
    shapes: Shapes,
    /// The masks of the operation that was answered last, for what the server sends unasked.
    last_plan: Option<Arc<crate::mask::MaskPlan>>,
    catalog: Option<Arc<Catalog>>,
    catalog_epoch: u64,
    catalog_rows: Option<CatalogBuilder>,
    now: Timestamp,
}

impl Shared {
    /// Shared state for messages of up to `message_bytes_max`.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            describer: Describer::default(),
            message_bytes_max,
            schema_epoch: AtomicU64::new(0),
        }
    }
}

impl Postgres {
    /// A decoder for a new connection.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            phase: Phase::Startup,
            replication: false,
            destination: None,
            identity: Identity::default(),
            beginning: Bytes::new(),
            attempt: None,
            relay: Relay::default(),
            client: BytesMut::new(),
            accepted: 0,
            client_finished: false,
            upstream: BytesMut::new(),
            passed: 0,
            upstream_finished: false,
            steps: VecDeque::new(),
            proposal: None,
            deferred: None,
            operations: 0,
            lexing: Lexing {
                standard_conforming_strings: true,
                encoding: Encoding::Utf8,
            },
            names: Names::new(),
            pipeline: Pipeline::default(),
            barrier: false,
            segment_open: false,
            skipping: false,
            copy: Copy::None,
            status: b'I',
            answer: None,
            answered: Vec::new(),
            copied_in: frontend::CopiedIn::default(),
            shapes: Shapes::default(),
            last_plan: None,
            catalog: None,
            catalog_epoch: 0,
            catalog_rows: None,
            now: Timestamp(0),
        }
    }

    /// The same for a server that the configuration would name `destination` (`host:port`), for the
    /// errors that say what to configure.
    #[must_use]
    pub fn towards(mut self, destination: String) -> Self {
        self.destination = Some(destination);
        self
    }

    fn send(&mut self, to: Peer, bytes: Bytes) {
        if !bytes.is_empty() {
            self.steps.push_back(Step::Send(to, bytes));
        }
    }

    fn propose(&mut self, operation: Operation, proposal: Proposal) {
        self.operations += 1;
        self.proposal = Some(proposal);
        self.steps.push_back(Step::Propose(operation));
    }

    fn close(&mut self, closing: Closing) {
        if self.phase == Phase::Closed {
            return;
        }
        self.interrupt();
        self.phase = Phase::Closed;
        self.proposal = None;
        self.deferred = None;
        self.attempt = None;
        self.steps.push_back(Step::Close(closing));
    }

    /// The client broke the protocol: tell it, and end the session.
    fn violated(&mut self, malformed: &Malformed) {
        if self.phase == Phase::Closed {
            return;
        }
        self.send_accepted();
        let hint =
            "The connection is closed: what comes after this message can't be told apart safely.";
        let error = refuse::error(
            "FATAL",
            refuse::PROTOCOL_VIOLATION,
            &format!("interceptor: {malformed}"),
            "",
            hint,
        );
        self.send(Peer::Client, error);
        self.close(Closing::Malformed(format!("client: {malformed}")));
    }

    /// The server broke the protocol, or its answers can't be matched to what was asked.
    fn upstream_violated(&mut self, malformed: &Malformed) {
        if self.phase == Phase::Closed {
            return;
        }
        self.send_passed();
        let message = format!("interceptor: the server's answer can't be understood: {malformed}");
        let error = refuse::error("FATAL", refuse::PROTOCOL_VIOLATION, &message, "", "");
        self.send(Peer::Client, error);
        self.close(Closing::Malformed(format!("upstream: {malformed}")));
    }

    /// An operation that changes more than data is over: what tables and views there are may differ.
    fn schema_may_have_changed(&self) {
        self.shared.schema_epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether what is known of the server's tables may be out of date.
    fn catalog_is_stale(&self) -> bool {
        self.catalog.is_none()
            || self.catalog_epoch != self.shared.schema_epoch.load(Ordering::Relaxed)
    }

    /// A short farewell for bytes that can't come any more.
    fn finish_if_drained(&mut self) {
        if self.phase == Phase::Closed {
            return;
        }
        if self.upstream_finished {
            if !self.upstream.is_empty() {
                let error = refuse::error(
                    "FATAL",
                    refuse::CONNECTION_FAILURE,
                    "interceptor: the server closed the connection in the middle of a message",
                    "",
                    "",
                );
                self.send(Peer::Client, error);
                self.close(Closing::Malformed(
                    "upstream: closed in the middle of a message".into(),
                ));
            } else if matches!(self.phase, Phase::Startup | Phase::Encryption) {
                self.fail(&Failure::Unreachable(
                    "it closed the connection before the client said anything".to_owned(),
                ));
            } else if self.phase == Phase::Login {
                self.fail(&Failure::Unreachable(
                    "it closed the connection during the login".to_owned(),
                ));
            } else {
                self.close(Closing::Finished);
            }
        } else if self.client_finished && (self.proposal.is_some() || self.pipeline.is_empty()) {
            // Whoever hangs up while people are asked withdraws the question.
            self.close(Closing::Finished);
        }
    }
}

impl Decoder for Postgres {
    fn receive(&mut self, from: Peer, bytes: &mut BytesMut, now: Timestamp) {
        self.now = now;
        let buffer = match from {
            Peer::Client => &mut self.client,
            Peer::Upstream => &mut self.upstream,
        };
        if buffer.is_empty() {
            std::mem::swap(buffer, bytes);
        } else {
            buffer.extend_from_slice(bytes);
        }
        bytes.clear();
    }

    fn beginning(&self) -> Bytes {
        self.beginning.clone()
    }

    fn finish(&mut self, from: Peer) {
        match from {
            Peer::Client => self.client_finished = true,
            Peer::Upstream => self.upstream_finished = true,
        }
    }

    fn fail(&mut self, failure: &Failure) {
        if self.phase == Phase::Closed {
            return;
        }
        let closing = Closing::Refused(failure.to_string());
        match failure {
            // In the place of the answer to an SSLRequest libpq shows no error: it is told of it later.
            Failure::Unreachable(_) | Failure::Unrecorded | Failure::Memory
                if self.phase == Phase::Encryption =>
            {
                self.phase = Phase::Startup;
                self.send(Peer::Client, Bytes::from_static(b"N"));
            }
            Failure::Unreachable(reason) => {
                let error = refuse::error(
                    "FATAL",
                    refuse::CANNOT_CONNECT,
                    &format!("interceptor: the server can't be reached: {reason}"),
                    "",
                    "Check that it is running and listens on this address.",
                );
                self.send(Peer::Client, error);
                self.close(closing);
            }
            Failure::NoSecret(reason) => {
                let error = refuse::error(
                    "FATAL",
                    refuse::INVALID_AUTHORIZATION,
                    &format!("interceptor: {reason}"),
                    "",
                    "The operator of this host finds the cause in interceptor's log and journal.",
                );
                self.send(Peer::Client, error);
                self.close(closing);
            }
            Failure::Memory => {
                let error = refuse::error(
                    "FATAL",
                    refuse::OUT_OF_MEMORY,
                    &format!("interceptor: {failure}"),
                    "What was asked last may not have been carried out.",
                    "Wait for other connections' results or close them; send less at once.",
                );
                self.send(Peer::Client, error);
                self.close(closing);
            }
            Failure::Unrecorded => {
                let error = refuse::error(
                    "FATAL",
                    refuse::IO_ERROR,
                    "interceptor: what this session does can't be recorded, so it ends here",
                    "What was asked last may or may not have been carried out; its result was kept back.",
                    "Try again later. The operator of this host sees the cause with `interceptor status`.",
                );
                self.steps.clear();
                self.phase = Phase::Closed;
                self.attempt = None;
                self.send(Peer::Client, error);
                self.steps.push_back(Step::Close(closing));
            }
        }
    }

    fn secured(&mut self) {
        self.relay.is_secure = true;
        self.phase = Phase::Startup;
    }

    fn rule(&mut self, ruling: Ruling, now: Timestamp) {
        self.now = now;
        let Some(proposal) = self.proposal.take() else {
            return;
        };
        match ruling {
            Ruling::Permit(permit) => self.permitted(self.operations, proposal, permit),
            Ruling::Refuse(refusal) => self.refused(self.operations, proposal, refusal),
            // Operations are proposed whole.
            Ruling::Gather => {
                self.proposal = Some(proposal);
                self.fail(&Failure::Unreachable("it can't be decided".to_owned()));
            }
        }
    }

    fn still_held(&mut self, approval: ApprovalId) {
        // Clients take notices between any two messages, though not all of them before they are logged in.
        if self.phase == Phase::Ready {
            self.send(Peer::Client, refuse::still_held(approval));
        }
    }

    fn login(&mut self, login: Option<Login>) {
        self.answer_login_question(login);
    }

    fn poll(&mut self) -> Step {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return step;
            }
            if self.phase == Phase::Closed {
                return Step::Wait;
            }
            self.read_upstream();
            self.read_client();
            if self.steps.is_empty() {
                self.send_accepted();
            }
            if self.steps.is_empty() {
                self.finish_if_drained();
            }
            if self.steps.is_empty() {
                return Step::Wait;
            }
        }
    }

    fn wants(&self, from: Peer) -> bool {
        match from {
            // Reading goes on while an operation is held: that is how a hang-up is noticed.
            Peer::Client => {
                self.client.len() <= self.shared.message_bytes_max && !self.client_finished
            }
            Peer::Upstream => {
                self.upstream.len() <= self.shared.message_bytes_max && !self.upstream_finished
            }
        }
    }
}
