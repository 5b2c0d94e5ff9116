//! HTTP/1: one exchange after the other on a connection, each decided before its first byte goes on.

mod request;
mod response;

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};

use self::request::Understood;
pub use self::request::is_request;
use super::{
    Shared,
    describe::{Context, Described},
    framing::{Body, Framing, Piece},
    head::{Malformed, RequestHead},
    recorder::Recorder,
    refuse::Problem,
    websocket::WebSocket,
};
use crate::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    limits,
    login::Authorization,
    mask::{MaskPlan, body::BodyMasker},
    operation::http,
    record::{ApprovalId, Event, ResponseStatus, Timestamp},
    ruling::{Permit, Ruling},
};

/// The state machine of one connection.
#[derive(Debug)]
pub struct Http1 {
    shared: Arc<Shared>,
    context: Context,
    client: BytesMut,
    upstream: BytesMut,
    /// Bytes of a head that were searched for its end already, of either side.
    searched: [usize; 2],
    stage: Stage,
    last: Option<Understood>,
    steps: VecDeque<Step>,
    /// Operations proposed and ruled on so far.
    operations: u64,
    client_finished: bool,
    upstream_finished: bool,
    now: Timestamp,
}

/// Where a connection is.
#[derive(Debug)]
enum Stage {
    /// A request may begin.
    Idle,
    /// The body of a request is being collected, for the decision needs it.
    Gathering(Box<Pending>),
    /// A decision is being made.
    Proposed(Box<Pending>),
    /// It is allowed, and the credential that it takes is looked for.
    Authorizing(Box<(Pending, Permit)>),
    /// It was released.
    Running(Box<Exchange>),
    /// What is left of a refused request is read and dropped.
    Discarding { body: Body, keep_alive: bool },
    /// Both sides agreed on something else; its bytes go through as they come.
    Tunnel(Box<Tunnel>),
    /// Both sides agreed on HTTP/2, and it is to be seen who asks whom.
    Agreed(Box<Agreed>),
    /// Both sides agreed on WebSocket.
    WebSocket(Box<WebSocket>),
    /// Over.
    Closed,
}

/// A request that hasn't been released.
#[derive(Debug)]
struct Pending {
    head: RequestHead,
    /// The head as it is recorded.
    recorded: Bytes,
    described: Described,
    framing: Framing,
    body: Body,
    /// The body as it came, framing included, and without it.
    framed: BytesMut,
    content: BytesMut,
    /// What was said beside the content.
    said: Vec<u8>,
    /// A rule needs the whole body: there is no going on without it.
    needed: bool,
    expects_continue: bool,
}

/// A request that was released, and its response.
#[derive(Debug)]
struct Exchange {
    method: Bytes,
    minor: u8,
    masks: Arc<MaskPlan>,
    described: Described,
    keep_alive: bool,
    request: Body,
    sent: Recorder,
    response: Response,
    received: Recorder,
    /// Responses so far that only said that it takes a while.
    interim: usize,
}

#[derive(Debug)]
enum Response {
    Head,
    Body {
        body: Body,
        status: u16,
        /// What masks the body, which is then framed anew.
        masker: Option<Box<BodyMasker>>,
        /// The head of a response that is masked, until some of its body could be: what can't be masked
        /// is better told by a status than by a body that is cut.
        head: Option<Bytes>,
    },
    Done,
}

/// A connection that HTTP has left.
#[derive(Debug)]
struct Tunnel {
    sent: Recorder,
    received: Recorder,
    status: u16,
    passed_on: [bool; 2],
}

impl Tunnel {
    /// The last of its record.
    fn end(&mut self, now: Timestamp) -> impl Iterator<Item = Event> + use<> {
        let status = ResponseStatus::Complete(self.status.to_string().into());
        let ended =
            [&mut self.sent, &mut self.received].map(|recorder| recorder.end(status.clone(), now));
        ended.into_iter().flatten().flatten()
    }
}

/// A connection that HTTP/1 has left for HTTP/2.
#[derive(Debug)]
struct Agreed {
    /// Masks are in force.
    is_masked: bool,
    tunnel: Tunnel,
}

/// What a part of a body is, once it is taken off a buffer.
struct Taken {
    bytes: Bytes,
    contents: Vec<Range<usize>>,
    /// What is said beside the content.
    said: Vec<u8>,
}

impl Http1 {
    /// A connection of which `context` is known.
    #[must_use]
    pub fn new(shared: Arc<Shared>, context: Context) -> Self {
        Self {
            shared,
            context,
            client: BytesMut::new(),
            upstream: BytesMut::new(),
            searched: [0; 2],
            stage: Stage::Idle,
            last: None,
            steps: VecDeque::new(),
            operations: 0,
            client_finished: false,
            upstream_finished: false,
            now: Timestamp(0),
        }
    }

    fn send(&mut self, to: Peer, bytes: Bytes) {
        if !bytes.is_empty() {
            self.steps.push_back(Step::Send(to, bytes));
        }
    }

    fn record(&mut self, event: Option<Event>) {
        self.steps.extend(event.map(Step::Record));
    }

    fn close(&mut self, closing: Closing) {
        let status = ResponseStatus::Interrupted;
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Closed => return,
            Stage::Running(mut exchange) => {
                for event in exchange.sent.end(status.clone(), self.now) {
                    self.record(event);
                }
                for event in exchange.received.end(status, self.now) {
                    self.record(event);
                }
            }
            Stage::Tunnel(mut tunnel) => {
                self.steps.extend(tunnel.end(self.now).map(Step::Record));
            }
            Stage::Agreed(mut agreed) => {
                let events = agreed.tunnel.end(self.now);
                self.steps.extend(events.map(Step::Record));
            }
            Stage::WebSocket(mut websocket) => {
                let events = websocket.end(self.now);
                self.steps.extend(events.into_iter().map(Step::Record));
            }
            _ => {}
        }
        self.steps.push_back(Step::Close(closing));
    }

    /// The client sent what has no one meaning: it is told, and what follows can't be told apart.
    fn violated(&mut self, malformed: &Malformed) {
        let answered = matches!(&self.stage, Stage::Running(exchange) if !matches!(exchange.response, Response::Head));
        let reason = malformed.reason.clone();
        self.record(Some(Event::notice(
            "http_refused",
            [
                ("status", malformed.status.to_string()),
                ("reason", reason.clone()),
            ],
        )));
        if !answered && !self.has_left() {
            let problem = Problem::malformed(malformed.status, &reason);
            self.send(Peer::Client, problem.response(true, false));
        }
        self.close(Closing::Malformed(format!("client: {reason}")));
    }

    /// The server sent what has no one meaning.
    fn upstream_violated(&mut self, reason: &str) {
        if let Stage::Running(exchange) = &self.stage
            && matches!(exchange.response, Response::Head)
        {
            let problem = Problem::upstream(reason);
            let body = exchange.method[..] != *b"HEAD";
            self.send(Peer::Client, problem.response(body, false));
        }
        self.close(Closing::Malformed(format!("upstream: {reason}")));
    }

    /// A side that sends nothing more, once all that it sent is taken.
    fn finish_if_drained(&mut self) {
        match &mut self.stage {
            Stage::Closed => {}
            Stage::Tunnel(tunnel) => {
                let ended = [self.client_finished, self.upstream_finished];
                for (passed_on, (ended, to)) in tunnel
                    .passed_on
                    .iter_mut()
                    .zip(ended.into_iter().zip([Peer::Upstream, Peer::Client]))
                {
                    if ended && !*passed_on {
                        *passed_on = true;
                        self.steps.push_back(Step::Finish(to));
                    }
                }
                if ended == [true, true] {
                    self.close(Closing::Finished);
                }
            }
            Stage::WebSocket(websocket) => {
                let ended = [self.client_finished, self.upstream_finished];
                let over = websocket.finished(ended);
                self.steps.extend(over.into_iter().map(Step::Finish));
                if ended == [true, true] {
                    self.close(Closing::Finished);
                }
            }
            Stage::Running(exchange) if self.upstream_finished => match &exchange.response {
                Response::Head => {
                    self.upstream_violated("it closed the connection without an answer");
                }
                Response::Body { body, .. } if body.ends_with_connection() => {
                    self.answered();
                    self.close(Closing::Finished);
                }
                Response::Body { .. } => {
                    self.close(Closing::Malformed(
                        "upstream: closed in the middle of a response".to_owned(),
                    ));
                }
                Response::Done => self.close(Closing::Finished),
            },
            // Half of a request is none; who has sent all of one may still want the answer.
            Stage::Running(exchange) if self.client_finished && !exchange.request.is_done() => {
                self.close(Closing::Malformed(
                    "client: closed in the middle of a request".to_owned(),
                ));
            }
            Stage::Running(_) if self.client_finished => {}
            Stage::Proposed(_) if self.upstream_finished && !self.client_finished => {
                // It may come back by the time there is a decision: the connection can't.
                self.upstream_gone();
            }
            _ if self.client_finished || self.upstream_finished => {
                self.close(Closing::Finished);
            }
            _ => {}
        }
    }

    /// Whether the connection is one of another protocol.
    const fn has_left(&self) -> bool {
        matches!(
            self.stage,
            Stage::Agreed(_) | Stage::Tunnel(_) | Stage::WebSocket(_)
        )
    }

    fn upstream_gone(&mut self) {
        let problem = Problem::upstream("it closed the connection while the request was decided");
        self.send(Peer::Client, problem.response(true, false));
        self.close(Closing::Finished);
    }
}

impl Decoder for Http1 {
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

    fn finish(&mut self, from: Peer) {
        match from {
            Peer::Client => self.client_finished = true,
            Peer::Upstream => self.upstream_finished = true,
        }
    }

    fn fail(&mut self, failure: &Failure) {
        let problem = match failure {
            Failure::Unreachable(reason) | Failure::NoSecret(reason) => Problem::upstream(reason),
            Failure::Unrecorded => Problem::unrecorded(),
            Failure::Memory => Problem::memory(failure),
        };
        let answer = match &self.stage {
            Stage::Idle | Stage::Gathering(_) | Stage::Proposed(_) | Stage::Authorizing(_) => true,
            Stage::Running(exchange) => matches!(exchange.response, Response::Head),
            Stage::Discarding { .. }
            | Stage::Agreed(_)
            | Stage::Tunnel(_)
            | Stage::WebSocket(_)
            | Stage::Closed => false,
        };
        if matches!(failure, Failure::Unrecorded) {
            self.steps.clear();
            self.stage = Stage::Closed;
        }
        if answer {
            self.send(Peer::Client, problem.response(true, false));
        }
        match failure {
            Failure::Unrecorded => self
                .steps
                .push_back(Step::Close(Closing::Refused(failure.to_string()))),
            Failure::Unreachable(_) | Failure::NoSecret(_) | Failure::Memory => {
                self.close(Closing::Refused(failure.to_string()))
            }
        }
    }

    fn rule(&mut self, ruling: Ruling, now: Timestamp) {
        self.now = now;
        let Stage::Proposed(mut pending) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return;
        };
        match ruling {
            Ruling::Permit(permit) => {
                self.operations += 1;
                match pending.is_unmaskable(&permit) {
                    Some(refusal) => self.refused(pending, &refusal),
                    None => self.credit(*pending, permit),
                }
            }
            Ruling::Refuse(refusal) => {
                self.operations += 1;
                self.refused(pending, &refusal);
            }
            Ruling::Gather => {
                pending.needed = true;
                if pending.expects_continue {
                    self.send(Peer::Client, Bytes::from_static(CONTINUE));
                }
                self.stage = Stage::Gathering(pending);
            }
        }
    }

    fn authorize(&mut self, authorization: Option<Authorization>) {
        if let Stage::Authorizing(waiting) = std::mem::replace(&mut self.stage, Stage::Idle) {
            let (pending, permit) = *waiting;
            self.permitted(pending, &permit, authorization.as_ref());
        }
    }

    fn is_waiting_for_client(&self) -> bool {
        match &self.stage {
            Stage::Idle => !self.client.is_empty(),
            Stage::Gathering(_) | Stage::Discarding { .. } => true,
            _ => false,
        }
    }

    fn expire(&mut self) {
        if matches!(self.stage, Stage::Discarding { .. }) {
            // It has its answer.
            return self.close(Closing::Refused("the rest of a refused request".to_owned()));
        }
        self.violated(&Malformed::with(408, "it wasn't whole in time"));
    }

    fn gives_up_stalled(&self) -> bool {
        !self.has_left()
    }

    fn stalled(&mut self, why: &str) {
        let detail = [("reason", why.to_owned())];
        self.record(Some(Event::notice("http_stalled", detail)));
        self.close(Closing::Refused(why.to_owned()));
    }

    fn still_held(&mut self, _: ApprovalId) {
        if let Stage::Proposed(pending) = &self.stage
            && pending.head.minor == 1
        {
            self.send(Peer::Client, Bytes::from_static(CONTINUE));
        }
    }

    fn poll(&mut self) -> Step {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return step;
            }
            if matches!(self.stage, Stage::Closed) {
                return Step::Wait;
            }
            let upstream = self.read_upstream();
            if let Err(malformed) = &upstream {
                self.upstream_violated(&malformed.reason);
                continue;
            }
            let client = self.read_client();
            if let Err(malformed) = &client {
                self.violated(malformed);
                continue;
            }
            if self.steps.is_empty() && matches!((upstream, client), (Ok(false), Ok(false))) {
                self.finish_if_drained();
                if self.steps.is_empty() {
                    return Step::Wait;
                }
            }
        }
    }

    fn wants(&self, from: Peer) -> bool {
        match from {
            Peer::Client => {
                // While a request is decided, one more is all that is read ahead.
                self.client.len() <= limits::HTTP_HEAD_BYTES_MAX && !self.client_finished
            }
            Peer::Upstream => {
                self.upstream.len() <= limits::HTTP_HEAD_BYTES_MAX && !self.upstream_finished
            }
        }
    }
}

/// Keeps a client's patience: it is to be skipped wherever it comes (RFC 9110, section 15.2).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Takes as much of `body` off `buffer` as is there, `at_once` bytes at the most.
fn take(
    body: &mut Body,
    buffer: &mut BytesMut,
    at_once: usize,
) -> Result<Option<Taken>, Malformed> {
    let (mut taken, mut contents, mut said) = (0, Vec::new(), Vec::new());
    let end = buffer.len().min(at_once);
    while let Some(piece) = body.next(buffer.get(taken..end).unwrap_or_default())? {
        match piece {
            Piece::Content(count) => {
                contents.push(taken..taken + count);
                taken += count;
            }
            Piece::Framing(count) => taken += count,
            Piece::Said(count) => {
                let bytes = buffer.get(taken..taken + count).unwrap_or_default();
                said.extend_from_slice(bytes);
                taken += count;
            }
        }
    }
    Ok((taken > 0).then(|| Taken {
        bytes: buffer.split_to(taken).freeze(),
        contents,
        said,
    }))
}

/// Whether the connection goes on behind a message (RFC 9112, section 9.3).
fn keeps_alive(minor: u8, fields: &http::Fields) -> bool {
    if fields.lists("connection", "close") {
        return false;
    }
    minor == 1 || fields.lists("connection", "keep-alive")
}
