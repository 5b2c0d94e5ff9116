//! The client's side: requests are read, proposed, and go on or are answered instead.

use bytes::{Bytes, BytesMut};

use super::{
    super::{
        change::Changes,
        describe::{self, Asked, Beyond, Context, Described, Upgrade},
        edit::{self, Edit},
        framing::{Body, Framing, is_token},
        head::{self, Malformed, RequestHead},
        recorder::Recorder,
        refuse::Problem,
        websocket::Broken,
    },
    Exchange, Http1, Pending, Response, Stage, keeps_alive, take,
};
use crate::{
    decoder::{Closing, Peer, Step},
    limits,
    login::Authorization,
    mask::body::Unmaskable,
    operation::{attribute, http},
    record::{Event, ResponseStatus, Speaker},
    ruling::{Cause, Permit, Refusal},
};

/// What a head says. Of a head like the one before it is the same: clients that poll send little else.
#[derive(Debug, Clone)]
pub(super) struct Understood {
    pub(super) head: RequestHead,
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
    pub(super) fn read_client(&mut self) -> Result<bool, Malformed> {
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
                exchange.sent.said(&taken.said);
                let event = if exchange.request.is_done() {
                    let status = ResponseStatus::Continues;
                    exchange.sent.end(status, self.now)
                } else {
                    [exchange.sent.part(self.now), None, None]
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
            Stage::Agreed(_) => Ok(self.read_preface()),
            Stage::WebSocket(_) => Ok(self.read_message(Peer::Client)),
            Stage::Proposed(_) | Stage::Authorizing(_) | Stage::Closed => Ok(false),
        }
    }

    /// Reads a part of a message of WebSocket; whether there was any.
    pub(super) fn read_message(&mut self, from: Peer) -> bool {
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
        if let Some(upgrade) = &described.upgrade
            && !may_have(upgrade, framing, expects.is_some())
        {
            return Err(Malformed::new(
                "an Upgrade of a request with such a body: of 64 KiB at the most, of which the length is said, \
                 and for another protocol than WebSocket or HTTP/2",
            ));
        }
        let pending = Pending {
            expects_continue: expects.is_some() && head.minor == 1,
            body: Body::new(framing),
            framed: BytesMut::new(),
            content: BytesMut::new(),
            said: Vec::new(),
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
            pending.said.extend_from_slice(&taken.said);
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
            // Behind it what is said beside it: who looks for something finds it there as well.
            http::Body::Whole(body) => [&*head, body, &*pending.said].concat().into(),
            http::Body::None | http::Body::Coming(_) => head,
        };
        let fields = pending.head.fields.clone();
        let operation = describe::operation(&pending.described, fields, body, content);
        self.stage = Stage::Proposed(pending);
        self.steps.push_back(Step::Propose(operation));
    }

    /// Asks for the credential that a request takes, where there may be one.
    pub(super) fn credit(&mut self, pending: Pending, permit: Permit) {
        let attribute = |name| pending.described.description.attributes.get(name).cloned();
        // Behind another host's back it is given to nobody.
        let is_fronted = attribute(attribute::HTTP_FRONTING).is_some();
        // A target with a host of its own is for a proxy, which would hand it on to whoever that is.
        let raw = pending.head.fields.raw();
        let target = raw.get(pending.head.target.clone()).unwrap_or_default();
        let is_own = target.starts_with(b"/") && !is_fronted;
        match attribute(attribute::HTTP_PATH) {
            Some(path) if self.shared.has_credentials && is_own => {
                let host = attribute(attribute::HTTP_HOST);
                self.stage = Stage::Authorizing(Box::new((pending, permit)));
                self.steps.push_back(Step::Authorize { host, path });
            }
            _ => self.permitted(pending, &permit, None),
        }
    }

    pub(super) fn permitted(
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

    pub(super) fn refused(&mut self, pending: Box<Pending>, refusal: &Refusal) {
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
}

impl Pending {
    /// Whether what it leads to would go past the masks: behind an upgrade only WebSocket and the agent's own
    /// requests in HTTP/2 are looked into.
    pub(super) fn is_unmaskable(&self, permit: &Permit) -> Option<Refusal> {
        let upgrade = self.described.upgrade.as_ref();
        let leaves = upgrade.is_some_and(|upgrade| upgrade.to == Beyond::Unknown);
        (leaves && !permit.masks().body.is_empty()).then(|| Refusal {
            cause: Cause::Denied,
            rule: permit.decision().rule.clone(),
            reason: "what is sent behind an upgrade can't be masked, and masks are in force here; use plain requests".into(),
            approval: None,
        })
    }
}

/// Whether a request for `upgrade` may have a body that ends so.
///
/// The next protocol begins behind the body (RFC 9110, section 7.8), and a server that begins it before would take the
/// body for something else. That is nothing that the decision on bytes doesn't cover, as long as all of the body was
/// there for it: Docker's `exec` says in one whether it wants a terminal.
fn may_have(upgrade: &Upgrade, framing: Framing, expects_continue: bool) -> bool {
    match framing {
        Framing::None => true,
        Framing::Length(length) => {
            upgrade.to == Beyond::Unknown
                && length <= limits::HTTP_BODY_AWAITED_MAX
                && !expects_continue
        }
        Framing::Chunked | Framing::UntilClose => false,
    }
}

/// The head as it goes on: byte for byte, but for what can't be kept up.
fn outgoing(
    head: &RequestHead,
    described: &Described,
    answered_continue: bool,
    changes: &Changes<'_>,
) -> Bytes {
    let upgrade = described.upgrade.as_ref();
    let declined = upgrade.is_some_and(|upgrade| upgrade.to == Beyond::AnswerInHttp2);
    let dropped = |name: &[u8]| {
        // WebSocket's compression would hide the messages.
        name.eq_ignore_ascii_case(b"sec-websocket-extensions")
            // Nobody could tell the answer to this request from those to the next.
            || declined
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
