//! The server's side: answers are read, masked and passed on; or the connection becomes another.

use bytes::{Bytes, BytesMut};

use super::{
    super::{
        answer,
        describe::{self, Beyond},
        framing::{Body, Framing},
        head::{self, Malformed, ResponseHead},
        refuse::Problem,
        websocket::WebSocket,
    },
    Agreed, Exchange, Http1, Response, Stage, Tunnel, keeps_alive, take,
};
use crate::{
    decoder::{Closing, Peer, Step},
    limits,
    mask::body::{MASKED_AT_ONCE, Unmaskable},
    record::{Event, ResponseStatus},
};

impl Http1 {
    pub(super) fn read_upstream(&mut self) -> Result<bool, Malformed> {
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
                    if !taken.said.is_empty() && masker.is_none() {
                        if !exchange.masks.headers.is_empty() {
                            self.unmaskable("it has fields behind its body");
                            return Ok(true);
                        }
                        exchange.received.said(&taken.said);
                    }
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
            Stage::Agreed(_) => Ok(self.read_preface()),
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
        if exchange.is_taken_over(&head, framing) {
            self.taken_over(&head)?;
            return Ok(true);
        }
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

    /// The engine goes on with a stream, and what the agent says next is for that.
    fn taken_over(&mut self, head: &ResponseHead) -> Result<(), Malformed> {
        let Stage::Running(mut exchange) = std::mem::replace(&mut self.stage, Stage::Closed) else {
            return Ok(());
        };
        let outgoing = answer::head(&exchange.masks, &head.fields, None);
        let recorded = describe::recorded(&ResponseHead::read(&outgoing)?.fields);
        exchange.received.head(recorded);
        self.send(Peer::Client, outgoing);
        self.stage = Stage::Tunnel(Box::new(Tunnel {
            sent: exchange.sent,
            received: exchange.received,
            status: head.status,
            passed_on: [false; 2],
        }));
        Ok(())
    }

    /// The response is over.
    pub(super) fn answered(&mut self) {
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
    pub(super) fn unmaskable(&mut self, why: &str) {
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
        let agreed = head.fields.get("upgrade");
        let asked = exchange.described.upgrade.as_ref().filter(|asked| {
            asked.to != Beyond::AnswerInHttp2
                && agreed.is_some_and(|agreed| agreed.eq_ignore_ascii_case(asked.name.as_bytes()))
        });
        let to = match asked {
            Some(asked)
                if head.fields.get("sec-websocket-extensions").is_none()
                    && exchange.request.is_done() =>
            {
                asked.to
            }
            _ => {
                self.stage = Stage::Running(exchange);
                return Err(Malformed::new(
                    "a change of protocols, or an extension of one, that nobody asked for",
                ));
            }
        };
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
        let tunnel = |sent, received| Tunnel {
            sent,
            received,
            status: 101,
            passed_on: [false; 2],
        };
        self.stage = match to {
            Beyond::WebSocket => {
                let limit = self.shared.recorded_bytes_max;
                let masks = masks.body.clone();
                let websocket = WebSocket::new(self.operations, limit, masks, received);
                Stage::WebSocket(Box::new(websocket))
            }
            Beyond::Http2 => Stage::Agreed(Box::new(Agreed {
                is_masked: !masks.body.is_empty(),
                tunnel: tunnel(sent, received),
            })),
            Beyond::Unknown | Beyond::AnswerInHttp2 => {
                Stage::Tunnel(Box::new(tunnel(sent, received)))
            }
        };
        Ok(())
    }

    /// Tells who asks whom in HTTP/2: the agent, whose requests are decided one by one, or the server, whose requests
    /// are no operations of the agent's and pass as bytes. Until one of them has begun as who asks does, nothing passes:
    /// the other may speak first, for it says its settings. Whether anything is known now that wasn't.
    pub(super) fn read_preface(&mut self) -> bool {
        const PREFACE: &[u8] = b"PRI *";
        let Stage::Agreed(agreed) = &mut self.stage else {
            return false;
        };
        if self.client.starts_with(PREFACE) {
            for event in agreed.tunnel.end(self.now) {
                self.steps.push_back(Step::Record(event));
            }
            self.stage = Stage::Closed;
            self.steps.push_back(Step::Http2 {
                client: std::mem::take(&mut self.client),
                upstream: std::mem::take(&mut self.upstream),
            });
            return true;
        }
        if self.upstream.starts_with(PREFACE) {
            if agreed.is_masked {
                let reason =
                    "what a server asks its client can't be masked, and masks are in force here"
                        .to_owned();
                let notice = Event::notice("http_unmaskable", [("reason", reason.clone())]);
                self.record(Some(notice));
                self.close(Closing::Refused(reason));
            } else if let Stage::Agreed(agreed) = std::mem::replace(&mut self.stage, Stage::Closed)
            {
                self.stage = Stage::Tunnel(Box::new(agreed.tunnel));
            }
            return true;
        }
        let may_begin = |said: &[u8]| PREFACE.starts_with(said);
        if !may_begin(&self.client) && !may_begin(&self.upstream) {
            let reason = "neither side begins HTTP/2, to which the connection was upgraded";
            self.close(Closing::Malformed(reason.to_owned()));
            return true;
        }
        false
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
}

impl Exchange {
    /// Whether the answer is the stream that was asked for: of one of Docker's types, and with no end but the
    /// connection's. Behind such an answer nobody reads a request. Where masks are in force it is an answer like any
    /// other, and the agent isn't heard.
    fn is_taken_over(&self, head: &ResponseHead, framing: Framing) -> bool {
        let kind = head.fields.get("content-type").unwrap_or_default();
        self.described.takes_over
            && head.status == 200
            && framing == Framing::UntilClose
            && kind.starts_with(b"application/vnd.docker.")
            && self.request.is_done()
            && self.masks.body.is_empty()
    }
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
