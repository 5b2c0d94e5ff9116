//! HTTP/2: h2 frames both sides; each stream is a request, decided and recorded like one of HTTP/1.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::{self, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use h2::{Reason, RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Request, Response, StatusCode, header, request};
use interceptor_core::{
    limits,
    mask::{
        MaskPlan,
        body::{BodyMasker, Unmaskable},
    },
    operation::{
        attribute,
        http::{Body, Fields, HttpRequest},
    },
    protocol::http::{
        Context, Malformed, Shared, answer,
        change::Changes,
        describe::{self, Asked, Described},
        recorder::Recorder,
        refuse::Problem,
    },
    record::{Event, ResponseStatus, Speaker},
    ruling::{Permit, Ruling},
};
use tokio::sync::Mutex;

use super::{Decided, Ended, STILL_HELD_EVERY, Session};
use crate::leg::Leg;

/// Streams that an agent may have open at once on one connection.
const STREAMS_MAX: u32 = 128;

/// Bytes that may be under way on one stream, and on one connection, in one direction.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Largest frame that is read, in bytes.
const FRAME_BYTES_MAX: u32 = 32 << 10;

/// How long the destination may take to agree to HTTP/2.
const PREFACE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a client may leave a stream's window closed before the stream is given up, which bounds what
/// stalled streams hold.
const STALLED_PATIENCE: Duration = Duration::from_secs(120);

/// What the streams of one connection share.
struct Connection<'a> {
    session: Mutex<&'a mut Session>,
    shared: Arc<Shared>,
    context: Context,
}

/// A request that may go.
struct Released {
    number: u64,
    masks: Arc<MaskPlan>,
    parts: request::Parts,
    /// Its body, where it was waited for.
    body: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

/// Why a stream ends before its time.
enum Broken {
    /// The client did something wrong, or is gone.
    Client(Reason),
    /// The server did; nothing of its answer has been sent.
    Upstream(String),
    /// The server broke off its answer.
    Reset(Reason),
    /// The request's body is larger than what is held back for a decision.
    TooLarge,
    /// It can't be recorded.
    Unrecorded,
}

impl Session {
    /// Serves the streams of one connection until either side is done.
    pub(super) async fn http2(&mut self, mut client: Leg, mut upstream: Leg) -> Ended {
        let counts = [client.count_received(), upstream.count_received()];
        let ended = self.streams(client, upstream).await;
        for (total, count) in self.received.iter_mut().zip(counts) {
            *total += count.load(Ordering::Relaxed);
        }
        ended
    }

    async fn streams(&mut self, client: Leg, upstream: Leg) -> Ended {
        let context = self.http_context();
        let shared = self.services.http.clone();
        let to_upstream = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(limits::HTTP_HEAD_BYTES_MAX as u32)
            .handshake::<_, Bytes>(upstream);
        let (send_request, mut upstream) =
            match tokio::time::timeout(PREFACE_PATIENCE, to_upstream).await {
                Ok(Ok(ready)) => ready,
                Ok(Err(error)) => return Ended(format!("upstream: {error}")),
                Err(_) => return Ended("upstream: no HTTP/2 within 10 s".to_owned()),
            };
        let from_client = h2::server::Builder::new()
            .max_concurrent_streams(STREAMS_MAX)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(limits::HTTP_HEAD_BYTES_MAX as u32)
            .max_send_buffer_size(STREAM_WINDOW_BYTES as usize)
            .handshake::<_, Bytes>(client);
        let mut client = match tokio::time::timeout(PREFACE_PATIENCE, from_client).await {
            Ok(Ok(ready)) => ready,
            Ok(Err(error)) => return Ended(format!("client: {error}")),
            Err(_) => return Ended("client: no HTTP/2 within 10 s".to_owned()),
        };
        let connection = Connection {
            session: Mutex::new(self),
            shared,
            context,
        };
        let mut streams = FuturesUnordered::new();
        let mut upstream_open = true;
        let mut closing = false;
        loop {
            let turn = poll_fn(|context| {
                // In the order that a request goes, then in the order that its answer comes: all that has come
                // together is worked on before either side is written to again, and once.
                for _ in 0..2 {
                    while let Poll::Ready(accepted) = client.poll_accept(context) {
                        let over = match accepted {
                            Some(Ok((request, respond))) => {
                                let send_request = send_request.clone();
                                streams.push(connection.stream(request, respond, send_request));
                                continue;
                            }
                            Some(Err(error)) => format!("client: {error}"),
                            None => "finished".to_owned(),
                        };
                        return Poll::Ready(Turn::Over(Ended(over)));
                    }
                    let mut unrecorded = finished(&mut streams, context);
                    if upstream_open && let Poll::Ready(ended) = upstream.poll_unpin(context) {
                        return Poll::Ready(Turn::UpstreamEnded(ended));
                    }
                    unrecorded |= finished(&mut streams, context);
                    if unrecorded {
                        return Poll::Ready(Turn::Unrecorded);
                    }
                }
                Poll::Pending
            });
            match turn.await {
                Turn::Over(ended) => return ended,
                Turn::Unrecorded => {
                    if !closing {
                        closing = true;
                        client.abrupt_shutdown(Reason::INTERNAL_ERROR);
                    }
                }
                Turn::UpstreamEnded(ended) => {
                    upstream_open = false;
                    if let Err(error) = ended {
                        tracing::debug!(%error, "an upstream connection ended");
                    }
                    // Streams that run are told by their own; new ones belong on another connection.
                    client.graceful_shutdown();
                }
            }
        }
    }
}

/// What came of waiting for either side.
enum Turn {
    /// The client's connection is over.
    Over(Ended),
    /// A stream can't be recorded.
    Unrecorded,
    /// The connection to the destination is over.
    UpstreamEnded(Result<(), h2::Error>),
}

/// Works on the streams; whether one that is over couldn't be recorded.
fn finished(
    streams: &mut FuturesUnordered<impl Future<Output = bool>>,
    context: &mut task::Context<'_>,
) -> bool {
    let mut unrecorded = false;
    while let Poll::Ready(Some(ended)) = streams.poll_next_unpin(context) {
        unrecorded |= ended;
    }
    unrecorded
}

impl Connection<'_> {
    /// Serves one stream; whether the connection has to end because nothing can be recorded.
    async fn stream(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        send_request: SendRequest<Bytes>,
    ) -> bool {
        let form = Form::of(&request);
        let exchange = self.exchange(request, &mut respond, send_request, form);
        match exchange.await {
            Ok(()) => false,
            Err(Broken::Client(reason) | Broken::Reset(reason)) => {
                respond.send_reset(reason);
                false
            }
            Err(Broken::Upstream(reason)) => {
                let _ = say(&mut respond, &Problem::upstream(&reason), form);
                false
            }
            Err(Broken::TooLarge) => {
                let problem = Problem::too_large(self.shared.message_bytes_max);
                let _ = say(&mut respond, &problem, form);
                false
            }
            Err(Broken::Unrecorded) => {
                if say(&mut respond, &Problem::unrecorded(), form).is_err() {
                    respond.send_reset(Reason::INTERNAL_ERROR);
                }
                true
            }
        }
    }

    async fn exchange(
        &self,
        request: Request<RecvStream>,
        respond: &mut SendResponse<Bytes>,
        send_request: SendRequest<Bytes>,
        form: Form,
    ) -> Result<(), Broken> {
        let (mut parts, mut from_client) = request.into_parts();
        let fields = fields(&parts);
        let described = match self.describe(&parts, &fields) {
            Ok(described) => described,
            Err(malformed) => {
                self.record(Event::notice(
                    "http_refused",
                    [
                        ("status", malformed.status.to_string()),
                        ("reason", malformed.reason.clone()),
                    ],
                ))
                .await?;
                let problem = Problem::malformed(malformed.status, &malformed.reason);
                say(respond, &problem, form)?;
                return Ok(());
            }
        };
        let length = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let mut whole = None;
        if from_client.is_end_stream() {
            whole = Some((Bytes::new(), None));
        } else if length.is_some_and(|length| length <= limits::HTTP_BODY_AWAITED_MAX) {
            whole = Some(self.gather(&mut from_client).await?);
        }
        let head = describe::recorded(&fields);
        let (number, masks) = loop {
            let (body, content) = match &whole {
                Some((body, _)) if body.is_empty() => (Body::None, head.clone()),
                Some((body, _)) => (Body::Whole(body.clone()), [&*head, body].concat().into()),
                None => (Body::Coming(length), head.clone()),
            };
            let operation = describe::operation(&described, fields.clone(), body, content);
            let mut session = self.session.lock().await;
            session.now = crate::clock::now();
            let decided = session.decide(operation).await;
            let number = session.operations;
            if session.stopped {
                return Err(Broken::Unrecorded);
            }
            drop(session);
            let ruling = match decided {
                Decided::Now(ruling) => ruling,
                Decided::Later(mut held) => loop {
                    tokio::select! {
                        outcome = held.pending.outcome() => break held.ruled(outcome),
                        // Whoever hangs up while people are asked withdraws the question.
                        reset = poll_fn(|context| respond.poll_reset(context)) => {
                            return Err(Broken::Client(reset.unwrap_or(Reason::CANCEL)));
                        }
                        () = tokio::time::sleep(STILL_HELD_EVERY) => {
                            let mut processing = Response::new(());
                            *processing.status_mut() = StatusCode::PROCESSING;
                            // Who is gone by now shows in the reset.
                            let _ = respond.send_informational(processing);
                        }
                    }
                },
            };
            match ruling {
                Ruling::Permit(permit) => {
                    let changed = self
                        .change(&mut parts, &described, &fields, &permit, number)
                        .await?;
                    if let Err(problem) = changed {
                        let mut recorder = self.recorder(number, Speaker::Upstream);
                        recorder.content(problem.body());
                        say(respond, &problem, form)?;
                        return self.end(recorder, ResponseStatus::Refused).await;
                    }
                    break (number, permit.masks().clone());
                }
                Ruling::Gather => whole = Some(self.gather(&mut from_client).await?),
                Ruling::Refuse(refusal) => {
                    let problem = Problem::refused(&refusal);
                    let mut recorder = self.recorder(number, Speaker::Upstream);
                    recorder.content(problem.body());
                    say(respond, &problem, form)?;
                    return self.end(recorder, ResponseStatus::Refused).await;
                }
            }
        };
        // WebSocket's compression and the like don't exist here: nothing has to be left out.
        parts.version = http::Version::HTTP_2;
        let trailers = whole.as_mut().and_then(|(_, trailers)| trailers.take());
        let body = whole.map(|(body, _)| body);
        let released = Released {
            number,
            masks,
            parts,
            body,
            trailers,
        };
        self.run(released, from_client, respond, send_request, form)
            .await
    }

    /// Sends what was released, and its answer back.
    async fn run(
        &self,
        released: Released,
        mut from_client: RecvStream,
        respond: &mut SendResponse<Bytes>,
        send_request: SendRequest<Bytes>,
        form: Form,
    ) -> Result<(), Broken> {
        let Released {
            number,
            masks,
            parts,
            body,
            trailers,
        } = released;
        let upstream = |error: h2::Error| Broken::Upstream(error.to_string());
        let mut send_request = send_request.ready().await.map_err(upstream)?;
        let ends = body.as_ref().is_some_and(Bytes::is_empty) && trailers.is_none();
        let (response, mut to_upstream) = send_request
            .send_request(Request::from_parts(parts, ()), ends)
            .map_err(upstream)?;
        let mut sent = self.recorder(number, Speaker::Client);
        let mut received = self.recorder(number, Speaker::Upstream);
        let sending = async {
            match body {
                Some(body) if !ends => {
                    send(&mut to_upstream, body, trailers.is_none()).await?;
                    if let Some(trailers) = trailers {
                        to_upstream
                            .send_trailers(trailers)
                            .map_err(|error| Broken::Upstream(error.to_string()))?;
                    }
                }
                Some(_) => {}
                None => {
                    self.stream_body(
                        &mut from_client,
                        &mut to_upstream,
                        &mut sent,
                        None,
                        Broken::Client,
                    )
                    .await?;
                    return self.end(sent, ResponseStatus::Continues).await;
                }
            }
            Ok(())
        };
        let receiving = async {
            let response = response.await.map_err(|error| match error.reason() {
                Some(reason) if error.is_reset() => Broken::Reset(reason),
                _ => Broken::Upstream(error.to_string()),
            })?;
            let (mut parts, mut from_upstream) = response.into_parts();
            let status = parts.status;
            let ends = from_upstream.is_end_stream();
            let fields = response_fields(status, &parts.headers);
            let masker = if ends {
                Ok(None)
            } else {
                answer::masker(&masks, &fields, status.as_u16())
            };
            let mut masker = match masker {
                Ok(masker) => masker,
                Err(Unmaskable(why)) => {
                    return self.unmaskable(received, respond, &why, form).await;
                }
            };
            if masker.is_some() {
                let stale: Vec<_> = parts
                    .headers
                    .keys()
                    .filter(|name| answer::is_of_the_body(name.as_str().as_bytes()))
                    .cloned()
                    .collect();
                for name in stale {
                    parts.headers.remove(name);
                }
            }
            for (name, value) in &mut parts.headers {
                let masked = answer::masked_value(
                    &masks.headers,
                    name.as_str().as_bytes(),
                    value.as_bytes(),
                );
                if let Some(masked) = masked {
                    *value = header::HeaderValue::from_bytes(&masked)
                        .unwrap_or(header::HeaderValue::from_static("[redacted]"));
                }
            }
            received.head(describe::recorded(&response_fields(status, &parts.headers)));
            let mut out = Response::new(());
            *out.status_mut() = status;
            *out.headers_mut() = parts.headers;
            let mut to_client = respond
                .send_response(out, ends)
                .map_err(|_| Broken::Client(Reason::CANCEL))?;
            let streamed = if ends {
                Ok(())
            } else {
                let masker = masker.as_mut();
                self.stream_body(
                    &mut from_upstream,
                    &mut to_client,
                    &mut received,
                    masker,
                    Broken::Reset,
                )
                .await
            };
            if let Some(masker) = &masker {
                received.masked(masker.masked().iter().cloned());
            }
            let status = match &streamed {
                Ok(()) => ResponseStatus::Complete(status.as_u16().to_string().into()),
                Err(_) => ResponseStatus::Interrupted,
            };
            self.end(received, status).await?;
            streamed
        };
        tokio::pin!(sending, receiving);
        let mut is_sent = false;
        loop {
            tokio::select! {
                biased;
                sent = &mut sending, if !is_sent => {
                    is_sent = true;
                    // An answer may be on its way that says why the rest isn't wanted.
                    if let Err(broken @ (Broken::Client(_) | Broken::Unrecorded)) = sent {
                        return Err(broken);
                    }
                }
                received = &mut receiving => return received,
            }
        }
    }

    fn describe(&self, parts: &request::Parts, fields: &Fields) -> Result<Described, Malformed> {
        if parts.method == http::Method::CONNECT {
            return Err(Malformed {
                status: 501,
                reason: "CONNECT over HTTP/2, behind which nothing is looked into; use HTTP/1.1"
                    .to_owned(),
            });
        }
        let target = parts
            .uri
            .path_and_query()
            .map(|target| target.as_str())
            .or_else(|| parts.uri.authority().map(|authority| authority.as_str()))
            .unwrap_or("*");
        let authority = parts
            .uri
            .authority()
            .map(|authority| authority.as_str().as_bytes());
        if authority.is_none() && !parts.headers.contains_key(header::HOST) {
            return Err(Malformed {
                status: 400,
                reason: "neither :authority nor Host".to_owned(),
            });
        }
        describe::describe(
            &Asked {
                method: parts.method.as_str().as_bytes(),
                target: target.as_bytes(),
                authority,
                version: "2",
                fields,
            },
            &self.context,
        )
    }

    /// Changes a request as a rule wants it, and gives it the credential that it takes; or says why it
    /// can't go.
    async fn change(
        &self,
        parts: &mut request::Parts,
        described: &Described,
        fields: &Fields,
        permit: &Permit,
        number: u64,
    ) -> Result<Result<(), Problem>, Broken> {
        let rewrite = permit.rewrite().map(|rewrite| &**rewrite);
        let attributes = &described.description.attributes;
        let path = attributes
            .get(attribute::HTTP_PATH)
            // Behind another host's back it is given to nobody.
            .filter(|_| !attributes.contains_key(attribute::HTTP_FRONTING));
        let authorization = match path {
            Some(path) if self.shared.has_credentials => {
                let mut session = self.session.lock().await;
                let host = attributes.get(attribute::HTTP_HOST);
                let found = session.authorization(host.map(|host| &**host), path).await;
                if session.stopped {
                    return Err(Broken::Unrecorded);
                }
                match found {
                    Ok(authorization) => authorization,
                    Err(failure) => return Ok(Err(Problem::upstream(&failure.to_string()))),
                }
            }
            _ => None,
        };
        let request = HttpRequest {
            fields: fields.clone(),
            query: described.query.clone(),
            body: Body::None,
        };
        let changes = match Changes::new(&request, rewrite, authorization.as_ref()) {
            Ok(changes) => changes.masked_by(&permit.masks().body),
            Err(mismatch) => {
                let credential = authorization.map_or(0, |found| found.credential);
                self.record(mismatch.event(number, credential)).await?;
                return Ok(Err(mismatch.problem(credential)));
            }
        };
        if changes.is_empty() {
            return Ok(Ok(()));
        }
        for event in changes.events(number, authorization.as_ref()) {
            self.record(event).await?;
        }
        Ok(apply(&changes, parts)
            .ok_or_else(|| Problem::upstream("what interceptor adds to the request can't be sent")))
    }

    /// Collects a body of which all is needed.
    async fn gather(&self, from: &mut RecvStream) -> Result<(Bytes, Option<HeaderMap>), Broken> {
        let mut body = BytesMut::new();
        while let Some(data) = from.data().await {
            let data = data.map_err(|error| client_error(&error))?;
            let _ = from.flow_control().release_capacity(data.len());
            body.extend_from_slice(&data);
            if body.len() > self.shared.message_bytes_max {
                self.record(Event::notice(
                    "http_refused",
                    [
                        ("status", "413".to_owned()),
                        ("reason", "the body is too large to be decided".to_owned()),
                    ],
                ))
                .await?;
                return Err(Broken::TooLarge);
            }
        }
        let trailers = from
            .trailers()
            .await
            .map_err(|error| client_error(&error))?;
        Ok((body.freeze(), trailers))
    }

    /// Carries a body as it comes, no faster than it is taken.
    async fn stream_body(
        &self,
        from: &mut RecvStream,
        to: &mut SendStream<Bytes>,
        recorder: &mut Recorder,
        mut masker: Option<&mut BodyMasker>,
        broken: impl Fn(Reason) -> Broken,
    ) -> Result<(), Broken> {
        while let Some(data) = from.data().await {
            let data = data.map_err(|error| broken(error.reason().unwrap_or(Reason::CANCEL)))?;
            let length = data.len();
            let data = match &mut masker {
                None => data,
                Some(masker) => {
                    let mut out = BytesMut::new();
                    self.masked(masker.push(&data, &mut out)).await?;
                    out.freeze()
                }
            };
            if !data.is_empty() {
                recorder.content(data.clone());
            }
            send(to, data, false).await?;
            let _ = from.flow_control().release_capacity(length);
            if let Some(event) = recorder.part(crate::clock::now()) {
                self.record(event).await?;
            }
        }
        let trailers = from
            .trailers()
            .await
            .map_err(|error| broken(error.reason().unwrap_or(Reason::CANCEL)))?;
        if let Some(masker) = masker {
            let mut out = BytesMut::new();
            self.masked(masker.finish(&mut out)).await?;
            let out = out.freeze();
            if !out.is_empty() {
                recorder.content(out.clone());
            }
            send(to, out, false).await?;
        }
        let ended = match trailers {
            Some(trailers) => to.send_trailers(trailers),
            None => to.send_data(Bytes::new(), true),
        };
        // Who is gone by now has had all of it.
        let _ = ended;
        Ok(())
    }

    /// A rule has to mask the response, and can't.
    async fn unmaskable(
        &self,
        mut recorder: Recorder,
        respond: &mut SendResponse<Bytes>,
        why: &str,
        form: Form,
    ) -> Result<(), Broken> {
        let notice = Event::notice("http_unmaskable", [("reason", why.to_owned())]);
        self.record(notice).await?;
        let problem = Problem::unmaskable(why);
        recorder.content(problem.body());
        say(respond, &problem, form)?;
        self.end(recorder, ResponseStatus::Refused).await
    }

    /// What came of masking a part of a body; where it can't be, the stream is broken off.
    async fn masked(&self, masked: Result<(), Unmaskable>) -> Result<(), Broken> {
        let Err(Unmaskable(why)) = masked else {
            return Ok(());
        };
        let notice = Event::notice("http_unmaskable", [("reason", why)]);
        self.record(notice).await?;
        Err(Broken::Reset(Reason::INTERNAL_ERROR))
    }

    fn recorder(&self, number: u64, of: Speaker) -> Recorder {
        let limit = self.shared.recorded_bytes_max;
        Recorder::new(number, of, crate::clock::now(), limit)
    }

    async fn record(&self, event: Event) -> Result<(), Broken> {
        let mut session = self.session.lock().await;
        session.now = crate::clock::now();
        session.record(event).await;
        if session.stopped {
            return Err(Broken::Unrecorded);
        }
        Ok(())
    }

    async fn end(&self, mut recorder: Recorder, status: ResponseStatus) -> Result<(), Broken> {
        for event in recorder
            .end(status, crate::clock::now())
            .into_iter()
            .flatten()
        {
            self.record(event).await?;
        }
        Ok(())
    }
}

/// Makes `changes`; `None` where one can't be sent, which no configuration that was loaded leads to.
fn apply(changes: &Changes<'_>, parts: &mut request::Parts) -> Option<()> {
    let headers = &mut parts.headers;
    let replaced: Vec<_> = headers
        .keys()
        .filter(|name| changes.replace(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in replaced {
        headers.remove(name);
    }
    for (name, value, is_secret) in changes.added() {
        let name = header::HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = header::HeaderValue::from_bytes(value).ok()?;
        // Kept out of the table that compression looks back at (RFC 7541, section 7.1.3).
        value.set_sensitive(is_secret);
        headers.insert(name, value);
    }
    let target = parts.uri.path_and_query().map_or("", |path| path.as_str());
    if let Some(target) = changes.target(target.as_bytes()) {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(http::uri::PathAndQuery::from_maybe_shared(target).ok()?);
        parts.uri = http::Uri::from_parts(uri).ok()?;
    }
    Some(())
}

fn client_error(error: &h2::Error) -> Broken {
    Broken::Client(error.reason().unwrap_or(Reason::CANCEL))
}

/// Sends `data` as the other side has room for it.
async fn send(to: &mut SendStream<Bytes>, mut data: Bytes, ends: bool) -> Result<(), Broken> {
    if data.is_empty() {
        if ends {
            to.send_data(data, true)
                .map_err(|_| Broken::Client(Reason::CANCEL))?;
        }
        return Ok(());
    }
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let capacity = poll_fn(|context| to.poll_capacity(context));
        let room = match tokio::time::timeout(STALLED_PATIENCE, capacity).await {
            Ok(Some(Ok(room))) => room,
            Ok(Some(Err(error))) => {
                return Err(Broken::Reset(error.reason().unwrap_or(Reason::CANCEL)));
            }
            Ok(None) | Err(_) => return Err(Broken::Reset(Reason::CANCEL)),
        };
        let piece = data.split_to(room.min(data.len()));
        to.send_data(piece, ends && data.is_empty())
            .map_err(|error| Broken::Reset(error.reason().unwrap_or(Reason::CANCEL)))?;
    }
    Ok(())
}

/// The form that an answer in the server's place has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// To HEAD: no body.
    Head,
    /// Problem details.
    Body,
    /// A call of gRPC: its status in place of a body.
    Grpc,
}

impl Form {
    fn of(request: &Request<RecvStream>) -> Self {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
            Self::Grpc
        } else if request.method() == http::Method::HEAD {
            Self::Head
        } else {
            Self::Body
        }
    }
}

/// Answers in the server's place.
fn say(respond: &mut SendResponse<Bytes>, problem: &Problem, form: Form) -> Result<(), Broken> {
    let gone = |_| Broken::Client(Reason::CANCEL);
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    if form == Form::Grpc {
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/grpc"),
        );
        headers.insert("grpc-status", problem.grpc_status().into());
        let message = header::HeaderValue::from_bytes(&problem.grpc_message());
        headers.extend(
            message
                .ok()
                .map(|message| (header::HeaderName::from_static("grpc-message"), message)),
        );
        // No more than a head: what gRPC calls Trailers-Only.
        return respond
            .send_response(response, true)
            .map(drop)
            .map_err(gone);
    }
    let body = problem.body();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    *response.status_mut() =
        StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let with_body = form == Form::Body;
    let mut stream = respond.send_response(response, !with_body).map_err(gone)?;
    if with_body {
        stream.send_data(body, true).map_err(gone)?;
    }
    Ok(())
}

/// The head of a request as text, for the record and for rules.
fn fields(parts: &request::Parts) -> Fields {
    let authority = parts
        .uri
        .authority()
        .map_or("", |authority| authority.as_str());
    let target = parts
        .uri
        .path_and_query()
        .map_or(authority, |target| target.as_str());
    let mut first = format!("{} {target} HTTP/2\r\n", parts.method).into_bytes();
    if !authority.is_empty() {
        first.extend_from_slice(format!(":authority: {authority}\r\n").as_bytes());
    }
    text(first, &parts.headers)
}

fn response_fields(status: StatusCode, headers: &HeaderMap) -> Fields {
    text(
        format!("HTTP/2 {}\r\n", status.as_u16()).into_bytes(),
        headers,
    )
}

fn text(mut out: Vec<u8>, headers: &HeaderMap) -> Fields {
    let mut places = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let start = out.len();
        out.extend_from_slice(name.as_str().as_bytes());
        let name = start..out.len();
        out.extend_from_slice(b": ");
        let start = out.len();
        out.extend_from_slice(value.as_bytes());
        places.push((name, start..out.len()));
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Fields::new(out.into(), places)
}
