//! HTTP/1: one exchange after the other on a connection, each decided before its first byte goes on.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{
    Shared, answer,
    change::Changes,
    describe::{self, Asked, Context, Described},
    edit::{self, Edit},
    framing::{Body, Framing, Piece, is_token},
    head::{self, Malformed, RequestHead, ResponseHead},
    recorder::Recorder,
    refuse::Problem,
    websocket::{Broken, WebSocket},
};
use crate::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    limits,
    login::Authorization,
    mask::{
        MaskPlan,
        body::{BodyMasker, MASKED_AT_ONCE, Unmaskable},
    },
    operation::{attribute, http},
    record::{Event, ResponseStatus, Speaker, Timestamp},
    ruling::{Cause, Permit, Refusal, Ruling},
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
    /// Both sides agreed on WebSocket.
    WebSocket(Box<WebSocket>),
    /// Over.
    Closed,
}

/// What a head says. Of a head like the one before it is the same: clients that poll send little else.
#[derive(Debug, Clone)]
struct Understood {
    head: RequestHead,
    framing: Framing,
    described: Described,
    recorded: Bytes,
}

impl Understood {
    fn read(raw: &Bytes, context: &Context) -> Result<Self, Malformed> {
        let head = RequestHead::read(raw)?;
        let framing = Framing::of_request(&head.fields, head.minor)?;
        let asked = Asked {
            method: raw.get(head.method.clone()).unwrap_or_default(),
            target: raw.get(head.target.clone()).unwrap_or_default(),
            authority: None,
            version: if head.minor == 0 { "1.0" } else { "1.1" },
            fields: &head.fields,
        };
        let described = describe::describe(&asked, context)?;
        Ok(Self {
            recorded: describe::recorded(&head.fields),
            framing,
            described,
            head,
        })
    }
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

/// What a part of a body is, once it is taken off a buffer.
struct Taken {
    bytes: Bytes,
    contents: Vec<Range<usize>>,
}

/// Whether these are the first bytes of a request; `None` while that can't be told.
#[must_use]
pub fn is_request(first: &[u8]) -> Option<bool> {
    /// The longest method that is registered has 17 characters.
    const METHOD_MAX: usize = 24;
    let length = first.iter().take_while(|byte| is_token(**byte)).count();
    if length == first.len() && length <= METHOD_MAX {
        return None;
    }
    if length == 0 || length > METHOD_MAX || first.get(length) != Some(&b' ') {
        return Some(false);
    }
    // A target begins with one of these; what goes on otherwise is some other protocol of words.
    match first.get(length + 1) {
        None => None,
        Some(b'/' | b'*') => Some(true),
        Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'[' => {
            // An absolute URI or an authority: HTTP where the line ends with its version.
            let line = first.split(|byte| *byte == b'\n').next().unwrap_or(first);
            if line.len() == first.len() && first.len() < 2_048 {
                return None;
            }
            Some(line.ends_with(b" HTTP/1.1\r") || line.ends_with(b" HTTP/1.0\r"))
        }
        Some(_) => Some(false),
    }
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
                let status = ResponseStatus::Complete(tunnel.status.to_string().into());
                for recorder in [&mut tunnel.sent, &mut tunnel.received] {
                    for event in recorder.end(status.clone(), self.now) {
                        self.steps.extend(event.map(Step::Record));
                    }
                }
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
        if !answered && !matches!(self.stage, Stage::Tunnel(_) | Stage::WebSocket(_)) {
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

    // === The client's side ===

    fn read_client(&mut self) -> Result<bool, Malformed> {
        match &mut self.stage {
            Stage::Idle => self.read_request(),
            Stage::Gathering(_) => self.gather(),
            Stage::Running(exchange) => {
                let Some(taken) = take(&mut exchange.request, &mut self.client, usize::MAX)? else {
                    return Ok(false);
                };
                for content in taken.contents {
                    exchange.sent.content(taken.bytes.slice(content));
                }
                let event = if exchange.request.is_done() {
                    let status = ResponseStatus::Continues;
                    exchange.sent.end(status, self.now)
                } else {
                    [exchange.sent.part(self.now), None]
                };
                self.send(Peer::Upstream, taken.bytes);
                for event in event {
                    self.record(event);
                }
                Ok(true)
            }
            Stage::Discarding { body, keep_alive } => {
                let keep_alive = *keep_alive;
                let taken = take(body, &mut self.client, usize::MAX)?.is_some();
                if body.is_done() {
                    if keep_alive {
                        self.stage = Stage::Idle;
                    } else {
                        self.close(Closing::Finished);
                    }
                    return Ok(true);
                }
                if body.content_bytes > self.shared.message_bytes_max as u64 {
                    self.close(Closing::Refused("the rest of a refused request".to_owned()));
                }
                Ok(taken)
            }
            Stage::Tunnel(tunnel) => {
                if self.client.is_empty() {
                    return Ok(false);
                }
                let bytes = self.client.split().freeze();
                tunnel.sent.content(bytes.clone());
                let event = tunnel.sent.part(self.now);
                self.send(Peer::Upstream, bytes);
                self.record(event);
                Ok(true)
            }
            Stage::WebSocket(_) => Ok(self.read_message(Peer::Client)),
            Stage::Proposed(_) | Stage::Authorizing(_) | Stage::Closed => Ok(false),
        }
    }

    /// Reads a part of a message of WebSocket; whether there was any.
    fn read_message(&mut self, from: Peer) -> bool {
        let Stage::WebSocket(websocket) = &mut self.stage else {
            return false;
        };
        let buffer = match from {
            Peer::Client => &mut self.client,
            Peer::Upstream => &mut self.upstream,
        };
        match websocket.read(from, buffer, self.now) {
            Ok(None) => false,
            Ok(Some(steps)) => {
                self.steps.extend(steps);
                true
            }
            Err(broken) => {
                let farewell = websocket.farewell(&broken);
                let (name, reason, closing) = match broken {
                    Broken::Malformed(Malformed { reason, .. }) => {
                        let whose = match from {
                            Peer::Client => "client",
                            Peer::Upstream => "upstream",
                        };
                        let closing = Closing::Malformed(format!("{whose}: {reason}"));
                        ("http_refused", reason, closing)
                    }
                    Broken::Unmaskable(Unmaskable(why)) => {
                        let closing = Closing::Refused(format!("a message can't be masked: {why}"));
                        ("http_unmaskable", why, closing)
                    }
                };
                self.record(Some(Event::notice(name, [("reason", reason)])));
                self.steps
                    .extend(farewell.map(|farewell| Step::Send(Peer::Client, farewell)));
                self.close(closing);
                true
            }
        }
    }

    fn read_request(&mut self) -> Result<bool, Malformed> {
        let Some(end) = head::end(&self.client, self.searched[0])? else {
            self.searched[0] = self.client.len();
            return Ok(false);
        };
        self.searched[0] = 0;
        let raw = self.client.split_to(end).freeze();
        let Understood {
            head,
            framing,
            described,
            recorded,
        } = match &self.last {
            Some(last) if *last.head.fields.raw() == raw => last.clone(),
            _ => {
                let understood = Understood::read(&raw, &self.context)?;
                self.last = Some(understood.clone());
                understood
            }
        };
        let expects = head.fields.get("expect");
        if expects.is_some_and(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
            return Err(Malformed::with(417, "an Expect other than `100-continue`"));
        }
        if described.upgrade.is_some() && framing != Framing::None {
            return Err(Malformed::new("an Upgrade of a request with a body"));
        }
        let pending = Pending {
            expects_continue: expects.is_some() && head.minor == 1,
            body: Body::new(framing),
            framed: BytesMut::new(),
            content: BytesMut::new(),
            needed: false,
            head,
            recorded,
            described,
            framing,
        };
        let awaited = match framing {
            Framing::None => false,
            Framing::Length(length) => {
                length <= limits::HTTP_BODY_AWAITED_MAX && !pending.expects_continue
            }
            Framing::Chunked | Framing::UntilClose => false,
        };
        if awaited {
            self.stage = Stage::Gathering(Box::new(pending));
        } else {
            self.propose(Box::new(pending));
        }
        Ok(true)
    }

    fn gather(&mut self) -> Result<bool, Malformed> {
        let Stage::Gathering(pending) = &mut self.stage else {
            return Ok(false);
        };
        let taken = take(&mut pending.body, &mut self.client, usize::MAX)?;
        let read = taken.is_some();
        if let Some(taken) = taken {
            for content in taken.contents {
                pending
                    .content
                    .extend_from_slice(taken.bytes.get(content).unwrap_or_default());
            }
            pending.framed.extend_from_slice(&taken.bytes);
        }
        if pending.framed.len() > self.shared.message_bytes_max {
            let problem = Problem::too_large(self.shared.message_bytes_max);
            self.record(Some(Event::notice(
                "http_refused",
                [
                    ("status", problem.status().to_string()),
                    ("reason", "the body is too large to be decided".to_owned()),
                ],
            )));
            self.send(Peer::Client, problem.response(true, false));
            self.close(Closing::Refused(
                "a body too large to be decided".to_owned(),
            ));
            return Ok(true);
        }
        if pending.body.is_done()
            && let Stage::Gathering(pending) = std::mem::replace(&mut self.stage, Stage::Idle)
        {
            self.propose(pending);
            return Ok(true);
        }
        Ok(read)
    }

    fn propose(&mut self, pending: Box<Pending>) {
        let body = match pending.framing {
            Framing::None => http::Body::None,
            _ if pending.body.is_done() => {
                http::Body::Whole(Bytes::copy_from_slice(&pending.content))
            }
            Framing::Length(length) => http::Body::Coming(Some(length)),
            Framing::Chunked | Framing::UntilClose => http::Body::Coming(None),
        };
        let head = pending.recorded.clone();
        let content = match &body {
            http::Body::Whole(body) => [&*head, body].concat().into(),
            http::Body::None | http::Body::Coming(_) => head,
        };
        let fields = pending.head.fields.clone();
        let operation = describe::operation(&pending.described, fields, body, content);
        self.stage = Stage::Proposed(pending);
        self.steps.push_back(Step::Propose(operation));
    }

    /// Asks for the credential that a request takes, where there may be one.
    fn credit(&mut self, pending: Pending, permit: Permit) {
        let attribute = |name| pending.described.description.attributes.get(name).cloned();
        // Behind another host's back it is given to nobody.
        let is_fronted = attribute(attribute::HTTP_FRONTING).is_some();
        match attribute(attribute::HTTP_PATH) {
            Some(path) if self.shared.has_credentials && !is_fronted => {
                let host = attribute(attribute::HTTP_HOST);
                self.stage = Stage::Authorizing(Box::new((pending, permit)));
                self.steps.push_back(Step::Authorize { host, path });
            }
            _ => self.permitted(pending, &permit, None),
        }
    }

    fn permitted(
        &mut self,
        pending: Pending,
        permit: &Permit,
        authorization: Option<&Authorization>,
    ) {
        let number = self.operations;
        let request = http::HttpRequest {
            fields: pending.head.fields.clone(),
            query: pending.described.query.clone(),
            body: http::Body::None,
        };
        let rewrite = permit.rewrite().map(|rewrite| &**rewrite);
        let changes = match Changes::new(&request, rewrite, authorization) {
            Ok(changes) => changes.masked_by(&permit.masks().body),
            Err(mismatch) => {
                let credential = authorization.map_or(0, |found| found.credential);
                self.record(Some(mismatch.event(number, credential)));
                let problem = mismatch.problem(credential);
                return self.answer_instead(Box::new(pending), &problem);
            }
        };
        for event in changes.events(number, authorization) {
            self.record(Some(event));
        }
        let Pending {
            head,
            described,
            body,
            framed,
            needed,
            expects_continue,
            ..
        } = pending;
        let limit = self.shared.recorded_bytes_max;
        let raw = head.fields.raw().clone();
        let keep_alive = keeps_alive(head.minor, &head.fields);
        let outgoing = outgoing(&head, &described, needed && expects_continue, &changes);
        self.send(Peer::Upstream, outgoing);
        self.send(Peer::Upstream, framed.freeze());
        self.stage = Stage::Running(Box::new(Exchange {
            method: raw.slice(head.method),
            minor: head.minor,
            masks: permit.masks().clone(),
            described,
            keep_alive,
            request: body,
            sent: Recorder::new(number, Speaker::Client, self.now, limit),
            response: Response::Head,
            received: Recorder::new(number, Speaker::Upstream, self.now, limit),
            interim: 0,
        }));
    }

    fn refused(&mut self, pending: Box<Pending>, refusal: &Refusal) {
        self.answer_instead(pending, &Problem::refused(refusal));
    }

    /// Answers a request that doesn't go on.
    fn answer_instead(&mut self, pending: Box<Pending>, problem: &Problem) {
        let raw = pending.head.fields.raw();
        let with_body = raw.get(pending.head.method.clone()) != Some(b"HEAD");
        let mut record = Recorder::new(self.operations, Speaker::Upstream, self.now, u64::MAX);
        record.content(problem.body());
        let keep_alive = keeps_alive(pending.head.minor, &pending.head.fields)
            // Who waits for a 100 doesn't send the body, or does: nobody can say where the next request begins.
            && (pending.body.is_done() || !pending.expects_continue);
        self.send(Peer::Client, problem.response(with_body, keep_alive));
        for event in record.end(ResponseStatus::Refused, self.now) {
            self.record(event);
        }
        if pending.body.is_done() && keep_alive {
            self.stage = Stage::Idle;
        } else if pending.body.is_done() || pending.expects_continue {
            self.close(Closing::Finished);
        } else {
            self.stage = Stage::Discarding {
                body: pending.body,
                keep_alive,
            };
        }
    }

    // === The server's side ===

    fn read_upstream(&mut self) -> Result<bool, Malformed> {
        match &mut self.stage {
            Stage::Running(exchange) => match &mut exchange.response {
                Response::Head => self.read_response(),
                Response::Body {
                    body, masker, head, ..
                } => {
                    let at_once = masker
                        .as_ref()
                        .map_or(usize::MAX, |masker| masker.bytes_at_once());
                    let Some(mut taken) = take(body, &mut self.upstream, at_once)? else {
                        return Ok(false);
                    };
                    let passed = match masker {
                        None => {
                            for content in taken.contents {
                                exchange.received.content(taken.bytes.slice(content));
                            }
                            taken.bytes
                        }
                        Some(masker) => {
                            let mut out = BytesMut::new();
                            loop {
                                let parts = std::mem::take(&mut taken.contents).into_iter();
                                let masked = parts
                                    .map(|part| taken.bytes.slice(part))
                                    .try_for_each(|part| masker.push(&part, &mut out));
                                if let Err(Unmaskable(why)) = masked {
                                    self.unmaskable(&why);
                                    return Ok(true);
                                }
                                if out.len() >= MASKED_AT_ONCE {
                                    break;
                                }
                                match take(body, &mut self.upstream, at_once)? {
                                    Some(next) => taken = next,
                                    None => break,
                                }
                            }
                            exchange.received.content(out.clone().freeze());
                            let first = if out.is_empty() { None } else { head.take() };
                            self.steps
                                .extend(first.map(|head| Step::Send(Peer::Client, head)));
                            chunk(&out, exchange.minor == 1)
                        }
                    };
                    let done = body.is_done();
                    let event = exchange.received.part(self.now);
                    self.send(Peer::Client, passed);
                    self.record(event);
                    if done {
                        self.answered();
                    }
                    Ok(true)
                }
                Response::Done => Ok(false),
            },
            Stage::Tunnel(tunnel) => {
                if self.upstream.is_empty() {
                    return Ok(false);
                }
                let bytes = self.upstream.split().freeze();
                tunnel.received.content(bytes.clone());
                let event = tunnel.received.part(self.now);
                self.send(Peer::Client, bytes);
                self.record(event);
                Ok(true)
            }
            Stage::WebSocket(_) => Ok(self.read_message(Peer::Upstream)),
            Stage::Closed => Ok(false),
            _ if self.upstream.is_empty() => Ok(false),
            // A server that gives up an idle connection may say so first.
            _ if self.upstream.starts_with(b"HTTP/1.1 408 ") => {
                self.close(Closing::Finished);
                Ok(true)
            }
            _ => Err(Malformed::new("a response that nobody asked for")),
        }
    }

    fn read_response(&mut self) -> Result<bool, Malformed> {
        let Some(end) = head::end(&self.upstream, self.searched[1])? else {
            self.searched[1] = self.upstream.len();
            return Ok(false);
        };
        self.searched[1] = 0;
        let raw = self.upstream.split_to(end).freeze();
        let head = ResponseHead::read(&raw)?;
        let Stage::Running(exchange) = &mut self.stage else {
            return Ok(false);
        };
        if head.status == 101 {
            self.switched(&head, raw)?;
            return Ok(true);
        }
        if head.status < 200 {
            exchange.interim += 1;
            if exchange.interim > limits::HTTP_INTERIM_MAX {
                return Err(Malformed::new(format!(
                    "more than {} interim responses",
                    limits::HTTP_INTERIM_MAX
                )));
            }
            // Its fields are masked like those of any other.
            let outgoing = answer::head(&exchange.masks, &head.fields, None);
            self.send(Peer::Client, outgoing);
            return Ok(true);
        }
        if exchange.method[..] == *b"CONNECT" && head.status < 300 {
            exchange.received.head(describe::recorded(&head.fields));
            self.send(Peer::Client, raw);
            self.connected(head.status);
            return Ok(true);
        }
        let framing =
            Framing::of_response(&head.fields, head.minor, head.status, &exchange.method)?;
        exchange.keep_alive &= keeps_alive(head.minor, &head.fields);
        let body = Body::new(framing);
        let done = body.is_done();
        let masks = exchange.masks.clone();
        let masker = match framing {
            Framing::None => Ok(None),
            _ => answer::masker(&masks, &head.fields, head.status),
        };
        let masker = match masker {
            Ok(masker) => masker.map(Box::new),
            Err(Unmaskable(why)) => {
                self.unmaskable(&why);
                return Ok(true);
            }
        };
        let anew: Option<&[u8]> = masker.as_ref().map(|_| match exchange.minor {
            1 => &b"Transfer-Encoding: chunked\r\n"[..],
            _ => {
                exchange.keep_alive = false;
                b"Connection: close\r\n"
            }
        });
        let outgoing = answer::head(&masks, &head.fields, anew);
        let recorded = if outgoing == raw {
            describe::recorded(&head.fields)
        } else {
            describe::recorded(&ResponseHead::read(&outgoing)?.fields)
        };
        exchange.received.head(recorded);
        // Who waits for events waits for the head first.
        let is_stream = head
            .fields
            .get("content-type")
            .is_some_and(|kind| kind.starts_with(b"text/event-stream"));
        let waits = masker.is_some() && !is_stream;
        exchange.response = Response::Body {
            body,
            status: head.status,
            masker,
            head: waits.then(|| outgoing.clone()),
        };
        if !waits {
            self.send(Peer::Client, outgoing);
        }
        if done {
            self.answered();
        }
        Ok(true)
    }

    /// The response is over.
    fn answered(&mut self) {
        let Stage::Running(mut exchange) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return;
        };
        let response = std::mem::replace(&mut exchange.response, Response::Done);
        let Response::Body {
            status,
            masker,
            head,
            body,
        } = response
        else {
            self.stage = Stage::Running(exchange);
            return;
        };
        if let Some(mut masker) = masker {
            let mut out = BytesMut::new();
            if let Err(Unmaskable(why)) = masker.finish(&mut out) {
                exchange.response = Response::Body {
                    body,
                    status,
                    masker: None,
                    head,
                };
                self.stage = Stage::Running(exchange);
                return self.unmaskable(&why);
            }
            exchange.received.content(out.clone().freeze());
            exchange.received.masked(masker.masked().iter().cloned());
            let chunked = exchange.minor == 1;
            self.steps
                .extend(head.map(|head| Step::Send(Peer::Client, head)));
            self.send(Peer::Client, chunk(&out, chunked));
            if chunked {
                self.send(Peer::Client, Bytes::from_static(b"0\r\n\r\n"));
            }
        }
        let status = ResponseStatus::Complete(status.to_string().into());
        for event in exchange.received.end(status, self.now) {
            self.record(event);
        }
        if !exchange.request.is_done() {
            // The server has had enough of a request that goes on: what follows it can't be told apart.
            for event in exchange.sent.end(ResponseStatus::Interrupted, self.now) {
                self.record(event);
            }
            self.close(Closing::Finished);
        } else if !exchange.keep_alive {
            self.close(Closing::Finished);
        }
    }

    /// A rule has to mask the response, and can't: none of it goes on, or, where some has, no more.
    fn unmaskable(&mut self, why: &str) {
        self.record(Some(Event::notice(
            "http_unmaskable",
            [("reason", why.to_owned())],
        )));
        if let Stage::Running(exchange) = &mut self.stage
            && matches!(
                exchange.response,
                Response::Head | Response::Body { head: Some(_), .. }
            )
        {
            let problem = Problem::unmaskable(why);
            let with_body = exchange.method[..] != *b"HEAD";
            exchange.received.content(problem.body());
            let sent = exchange.sent.end(ResponseStatus::Continues, self.now);
            let received = exchange.received.end(ResponseStatus::Refused, self.now);
            self.send(Peer::Client, problem.response(with_body, false));
            for event in sent.into_iter().chain(received) {
                self.record(event);
            }
            self.stage = Stage::Idle;
        }
        self.close(Closing::Refused(format!(
            "the response can't be masked: {why}"
        )));
    }

    /// The server agrees to go on with another protocol.
    fn switched(&mut self, head: &ResponseHead, raw: Bytes) -> Result<(), Malformed> {
        let Stage::Running(mut exchange) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return Ok(());
        };
        let asked = exchange.described.upgrade.as_deref();
        let agreed = head.fields.get("upgrade");
        let is_asked = asked.is_some_and(|asked| {
            agreed.is_some_and(|agreed| agreed.eq_ignore_ascii_case(asked.as_bytes()))
        });
        if !is_asked || head.fields.get("sec-websocket-extensions").is_some() {
            self.stage = Stage::Running(exchange);
            return Err(Malformed::new(
                "a change of protocols, or an extension of one, that nobody asked for",
            ));
        }
        let is_websocket = asked == Some("websocket");
        let outgoing = answer::head(&exchange.masks, &head.fields, None);
        let recorded = match outgoing == raw {
            true => describe::recorded(&head.fields),
            false => describe::recorded(&ResponseHead::read(&outgoing)?.fields),
        };
        exchange.received.head(recorded);
        self.send(Peer::Client, outgoing);
        let Exchange {
            masks,
            sent,
            received,
            ..
        } = *exchange;
        self.stage = if is_websocket {
            let limit = self.shared.recorded_bytes_max;
            let masks = masks.body.clone();
            let websocket = WebSocket::new(self.operations, limit, masks, received);
            Stage::WebSocket(Box::new(websocket))
        } else {
            Stage::Tunnel(Box::new(Tunnel {
                sent,
                received,
                status: 101,
                passed_on: [false; 2],
            }))
        };
        Ok(())
    }

    /// The server has made the connection that CONNECT asks for.
    fn connected(&mut self, status: u16) {
        if let Stage::Running(mut exchange) = std::mem::replace(&mut self.stage, Stage::Closed) {
            let status = ResponseStatus::Complete(status.to_string().into());
            for event in exchange.received.end(status, self.now) {
                self.record(event);
            }
            self.steps.push_back(Step::Tunnel {
                client: std::mem::take(&mut self.client),
                upstream: std::mem::take(&mut self.upstream),
            });
        }
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

    fn upstream_gone(&mut self) {
        let problem = Problem::upstream("it closed the connection while the request was decided");
        self.send(Peer::Client, problem.response(true, false));
        self.close(Closing::Finished);
    }
}

impl Pending {
    /// Whether what it leads to would go past the masks: behind an upgrade only WebSocket is looked into.
    fn is_unmaskable(&self, permit: &Permit) -> Option<Refusal> {
        let leaves = self
            .described
            .upgrade
            .as_deref()
            .is_some_and(|upgrade| !matches!(upgrade, "h2c" | "websocket"));
        (leaves && !permit.masks().body.is_empty()).then(|| Refusal {
            cause: Cause::Denied,
            rule: permit.decision().rule.clone(),
            reason: "what is sent behind an upgrade can't be masked, and masks are in force here; use plain requests".into(),
            approval: None,
        })
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
        };
        let answer = match &self.stage {
            Stage::Idle | Stage::Gathering(_) | Stage::Proposed(_) | Stage::Authorizing(_) => true,
            Stage::Running(exchange) => matches!(exchange.response, Response::Head),
            Stage::Discarding { .. } | Stage::Tunnel(_) | Stage::WebSocket(_) | Stage::Closed => {
                false
            }
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
            Failure::Unreachable(_) | Failure::NoSecret(_) => {
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
        !matches!(self.stage, Stage::Tunnel(_) | Stage::WebSocket(_))
    }

    fn stalled(&mut self, why: &str) {
        let detail = [("reason", why.to_owned())];
        self.record(Some(Event::notice("http_stalled", detail)));
        self.close(Closing::Refused(why.to_owned()));
    }

    fn still_held(&mut self) {
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
    let (mut taken, mut contents) = (0, Vec::new());
    let end = buffer.len().min(at_once);
    while let Some(piece) = body.next(buffer.get(taken..end).unwrap_or_default())? {
        match piece {
            Piece::Content(count) => {
                contents.push(taken..taken + count);
                taken += count;
            }
            Piece::Framing(count) => taken += count,
        }
    }
    Ok((taken > 0).then(|| Taken {
        bytes: buffer.split_to(taken).freeze(),
        contents,
    }))
}

/// Whether the connection goes on behind a message (RFC 9112, section 9.3).
fn keeps_alive(minor: u8, fields: &http::Fields) -> bool {
    if fields.lists("connection", "close") {
        return false;
    }
    minor == 1 || fields.lists("connection", "keep-alive")
}

/// The head as it goes on: byte for byte, but for what can't be kept up.
fn outgoing(
    head: &RequestHead,
    described: &Described,
    answered_continue: bool,
    changes: &Changes<'_>,
) -> Bytes {
    let dropped = |name: &[u8]| {
        // WebSocket's compression would hide the messages.
        name.eq_ignore_ascii_case(b"sec-websocket-extensions")
            // What goes on in HTTP/2 on this connection would be out of sight.
            || described.upgrade.as_deref() == Some("h2c")
                && (name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"http2-settings"))
            // We have said it already.
            || answered_continue && name.eq_ignore_ascii_case(b"expect")
            || changes.replace(name)
    };
    let mut more = Vec::new();
    for (name, value, _) in changes.added() {
        more.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    let target = head.fields.raw().get(head.target.clone());
    let target = changes.target(target.unwrap_or_default());
    let target = target.as_deref().map(|target| (&head.target, target));
    let edit = |name: &[u8], _: &[u8]| {
        if dropped(name) {
            Edit::Drop
        } else {
            Edit::Keep
        }
    };
    edit::head_for(&head.fields, target, edit, &more)
}

/// A chunk of a body that is framed anew; nothing is no chunk, for that would be the last.
fn chunk(content: &[u8], chunked: bool) -> Bytes {
    if !chunked || content.is_empty() {
        return Bytes::copy_from_slice(content);
    }
    let mut out = format!("{:x}\r\n", content.len()).into_bytes();
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
    out.into()
}
