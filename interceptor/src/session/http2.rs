//! HTTP/2: h2 frames both sides; each stream is a request, decided and recorded like one of HTTP/1.

use std::{
    future::{Future as _, poll_fn},
    sync::{Arc, atomic::Ordering},
    task::{self, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{HeaderMap, Request, Response, StatusCode, header, request};
use interceptor_core::{
    decoder::Peer,
    limits,
    mask::{
        MaskPlan,
        body::{BodyMasker, MASKED_AT_ONCE, Unmaskable},
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
use tokio::{sync::Mutex, time::Instant};

use super::{Decided, Ended, STILL_HELD_EVERY, Session};
use crate::{leg::Leg, patience::Patience};

/// Streams that an agent may have open at once on one connection.
const STREAMS_MAX: u32 = 128;

/// Bytes that may be under way on one stream, and on one connection, in one direction.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Largest frame that is read, in bytes.
const FRAME_BYTES_MAX: u32 = 32 << 10;

/// Bytes that wait on one stream for a peer that has a window open and doesn't read: with [`STREAMS_MAX`]
/// that is 8 MiB a connection.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Requests that a client may take back, while they are most of its requests, before it is sent away: each
/// costs a decision, a record and the server's work (CVE-2023-44487, CVE-2025-8671).
const TAKEN_BACK_MAX: u64 = 200;

/// Streams that a client may leave stalled before it is sent away. Stalled streams hold the connection's
/// window, so that others stall behind them: given up a few at a time, they would last for hours.
const STALLED_MAX: u64 = 4;

/// Streams that are served at once: those that may be open, and those that were just taken back.
const SERVED_MAX: usize = 2 * STREAMS_MAX as usize;

/// How long a client that was sent away may take to go.
const FAREWELL: Duration = Duration::from_secs(5);

/// What the streams of one connection share.
struct Connection<'a> {
    session: Mutex<&'a mut Session>,
    shared: Arc<Shared>,
    context: Context,
    patience: Patience,
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
    /// The request's body didn't come in time.
    Late,
    /// A side takes nothing of what is there for it.
    Stalled(Peer),
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// It was answered, in one way or another.
    Answered,
    /// The client took it back, or broke it.
    TakenBack,
    /// The client took nothing of the answer for too long.
    Stalled,
    /// Nothing can be recorded: the connection has to end.
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
        let patience = self.services.patience;
        let to_upstream = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(limits::HTTP_HEAD_BYTES_MAX as u32)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .handshake::<_, Bytes>(upstream);
        let (send_request, upstream) =
            match tokio::time::timeout(patience.handshake, to_upstream).await {
                Ok(Ok(ready)) => ready,
                Ok(Err(error)) => return Ended(format!("upstream: {error}")),
                Err(_) => {
                    return Ended(format!(
                        "upstream: no HTTP/2 within {:?}",
                        patience.handshake
                    ));
                }
            };
        let from_client = h2::server::Builder::new()
            .max_concurrent_streams(STREAMS_MAX)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(limits::HTTP_HEAD_BYTES_MAX as u32)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .handshake::<_, Bytes>(client);
        let mut client = match tokio::time::timeout(patience.handshake, from_client).await {
            Ok(Ok(ready)) => ready,
            Ok(Err(error)) => return Ended(format!("client: {error}")),
            Err(_) => return Ended(format!("client: no HTTP/2 within {:?}", patience.handshake)),
        };
        let connection = Connection {
            session: Mutex::new(self),
            shared,
            context,
            patience,
        };
        let mut streams = FuturesUnordered::new();
        let mut upstream = Some(upstream);
        let mut tally = Tally::default();
        // Why the client was sent away.
        let mut farewell: Option<String> = None;
        // Since there is no request, or since the farewell.
        let quiet = tokio::time::sleep(patience.idle);
        tokio::pin!(quiet);
        loop {
            let before = tally;
            let turn = poll_fn(|context| {
                // In the order that a request goes, then in the order that its answer comes: all that has come
                // together is worked on before either side is written to again, and once.
                for _ in 0..2 {
                    loop {
                        let accepted = if streams.len() < SERVED_MAX {
                            client.poll_accept(context)
                        } else {
                            let closed = client.poll_closed(context);
                            closed.map(|closed| closed.err().map(Err))
                        };
                        match accepted {
                            Poll::Ready(Some(Ok((request, respond)))) => {
                                let send_request = send_request.clone();
                                streams.push(connection.stream(request, respond, send_request));
                            }
                            Poll::Ready(Some(Err(error))) => {
                                return Poll::Ready(Turn::Over(Some(error)));
                            }
                            Poll::Ready(None) => return Poll::Ready(Turn::Over(None)),
                            Poll::Pending => break,
                        }
                    }
                    tally.serve(&mut streams, context);
                    if let Some(open) = &mut upstream
                        && let Poll::Ready(ended) = open.poll_unpin(context)
                    {
                        return Poll::Ready(Turn::UpstreamEnded(ended));
                    }
                    tally.serve(&mut streams, context);
                    if tally != before {
                        return Poll::Ready(Turn::Served);
                    }
                }
                quiet.as_mut().poll(context).map(|()| Turn::Quiet)
            });
            match turn.await {
                Turn::Over(error) => {
                    let over = || match error {
                        Some(error) => format!("client: {error}"),
                        None => "finished".to_owned(),
                    };
                    return Ended(farewell.unwrap_or_else(over));
                }
                Turn::Served if farewell.is_some() => {
                    quiet.as_mut().reset(Instant::now() + FAREWELL);
                }
                Turn::Served => {
                    if tally.unrecorded {
                        farewell = Some("the journal takes no records".to_owned());
                        client.abrupt_shutdown(Reason::INTERNAL_ERROR);
                    } else if let Some(why) = tally.is_abuse(&patience) {
                        let reason = Reason::ENHANCE_YOUR_CALM;
                        let noted = connection.refused(reason.description(), &why);
                        tokio::pin!(noted);
                        // The streams go on: one of them may be at the record.
                        let noted = poll_fn(|context| {
                            tally.serve(&mut streams, context);
                            noted.as_mut().poll(context)
                        });
                        let _ = noted.await;
                        farewell = Some(format!("client: {why}"));
                        client.abrupt_shutdown(reason);
                    }
                    let patience = match farewell {
                        Some(_) => FAREWELL,
                        None => patience.idle,
                    };
                    quiet.as_mut().reset(Instant::now() + patience);
                }
                Turn::UpstreamEnded(ended) => {
                    // Of a connection that can't be written to, streams that run hear when it is dropped.
                    upstream = None;
                    if let Err(error) = ended {
                        tracing::debug!(%error, "an upstream connection ended");
                    }
                    // New ones belong on another connection.
                    if farewell.is_none() {
                        farewell = Some("finished".to_owned());
                        client.graceful_shutdown();
                        quiet.as_mut().reset(Instant::now() + FAREWELL);
                    }
                }
                Turn::Quiet if !streams.is_empty() => {
                    quiet.as_mut().reset(Instant::now() + patience.idle);
                }
                Turn::Quiet => {
                    if let Some(why) = farewell {
                        return Ended(why);
                    }
                    farewell = Some(format!("client: no request for {:?}", patience.idle));
                    client.graceful_shutdown();
                    quiet.as_mut().reset(Instant::now() + FAREWELL);
                }
            }
        }
    }
}

/// What came of waiting for either side.
enum Turn {
    /// The client's connection is over.
    Over(Option<h2::Error>),
    /// Streams are over.
    Served,
    /// The connection to the destination is over.
    UpstreamEnded(Result<(), h2::Error>),
    /// Nothing was asked for in a long time.
    Quiet,
}

/// What became of the streams of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    answered: u64,
    taken_back: u64,
    stalled: u64,
    unrecorded: bool,
}

impl Tally {
    /// Works on the streams, and counts those that are over.
    fn serve(
        &mut self,
        streams: &mut FuturesUnordered<impl Future<Output = Served>>,
        context: &mut task::Context<'_>,
    ) {
        while let Poll::Ready(Some(served)) = streams.poll_next_unpin(context) {
            match served {
                Served::Answered => self.answered += 1,
                Served::TakenBack => self.taken_back += 1,
                Served::Stalled => self.stalled += 1,
                Served::Unrecorded => self.unrecorded = true,
            }
        }
    }

    /// Why the client has to be sent away.
    fn is_abuse(&self, patience: &Patience) -> Option<String> {
        let Self {
            answered,
            taken_back,
            ..
        } = self;
        if *taken_back >= TAKEN_BACK_MAX && taken_back > answered {
            let asked = taken_back + answered;
            return Some(format!(
                "it took back or broke {taken_back} of its {asked} requests"
            ));
        }
        (self.stalled >= STALLED_MAX).then(|| format!("it took nothing for {:?}", patience.stalled))
    }
}

impl Connection<'_> {
    /// Serves one stream.
    async fn stream(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        send_request: SendRequest<Bytes>,
    ) -> Served {
        let form = Form::of(&request);
        let exchange = self.exchange(request, &mut respond, send_request, form);
        let mut broken = match exchange.await {
            Ok(()) => return Served::Answered,
            Err(broken) => broken,
        };
        let noted = match &broken {
            Broken::Late => self.refused("408", "it wasn't whole in time").await,
            Broken::Stalled(peer) => self.stalled(*peer).await,
            _ => Ok(()),
        };
        if let Err(unrecorded) = noted {
            broken = unrecorded;
        }
        match broken {
            Broken::Client(reason) => {
                respond.send_reset(reason);
                return Served::TakenBack;
            }
            Broken::Reset(reason) => respond.send_reset(reason),
            Broken::Stalled(Peer::Client) => {
                respond.send_reset(Reason::CANCEL);
                return Served::Stalled;
            }
            Broken::Stalled(Peer::Upstream) => {
                let problem = Problem::upstream("it takes nothing of the request's body");
                let _ = say(&mut respond, &problem, form);
            }
            Broken::Upstream(reason) => {
                let _ = say(&mut respond, &Problem::upstream(&reason), form);
            }
            Broken::TooLarge => {
                let problem = Problem::too_large(self.shared.message_bytes_max);
                let _ = say(&mut respond, &problem, form);
            }
            Broken::Late => {
                let problem = Problem::malformed(408, "it wasn't whole in time");
                let _ = say(&mut respond, &problem, form);
            }
            Broken::Unrecorded => {
                if say(&mut respond, &Problem::unrecorded(), form).is_err() {
                    respond.send_reset(Reason::INTERNAL_ERROR);
                }
                return Served::Unrecorded;
            }
        }
        Served::Answered
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
                self.refused(&malformed.status.to_string(), &malformed.reason)
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
                    let ends = trailers.is_none();
                    self.send(Peer::Upstream, &mut to_upstream, body, ends)
                        .await?;
                    if let Some(trailers) = trailers {
                        to_upstream
                            .send_trailers(trailers)
                            .map_err(|error| Broken::Upstream(error.to_string()))?;
                    }
                }
                Some(_) => {}
                None => {
                    let to = (Peer::Upstream, &mut to_upstream);
                    self.stream_body(&mut from_client, to, &mut sent, None)
                        .await?;
                    return self.end(sent, ResponseStatus::Continues).await;
                }
            }
            Ok(())
        };
        let receiving = async {
            let response = tokio::select! {
                response = final_response(response) => response?,
                // Nobody wants it any more: the server is told by what is dropped.
                reset = poll_fn(|context| respond.poll_reset(context)) => {
                    self.end(received, ResponseStatus::Interrupted).await?;
                    return Err(Broken::Client(reset.unwrap_or(Reason::CANCEL)));
                }
            };
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
                let to = (Peer::Client, &mut to_client);
                self.stream_body(&mut from_upstream, to, &mut received, masker)
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
                    if let Err(
                        broken @ (Broken::Client(_) | Broken::Unrecorded | Broken::Stalled(_)),
                    ) = sent
                    {
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
        let whole = self.gather_slowly(from);
        tokio::time::timeout(self.patience.request, whole)
            .await
            .unwrap_or(Err(Broken::Late))
    }

    async fn gather_slowly(
        &self,
        from: &mut RecvStream,
    ) -> Result<(Bytes, Option<HeaderMap>), Broken> {
        let mut body = BytesMut::new();
        while let Some(data) = from.data().await {
            let data = data.map_err(|error| client_error(&error))?;
            let _ = from.flow_control().release_capacity(data.len());
            body.extend_from_slice(&data);
            if body.len() > self.shared.message_bytes_max {
                self.refused("413", "the body is too large to be decided")
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
        (peer, to): (Peer, &mut SendStream<Bytes>),
        recorder: &mut Recorder,
        mut masker: Option<&mut BodyMasker>,
    ) -> Result<(), Broken> {
        let broken = |error: h2::Error, by: Peer| {
            let reason = error.reason().unwrap_or(Reason::CANCEL);
            match by {
                Peer::Client => Broken::Client(reason),
                Peer::Upstream => Broken::Reset(reason),
            }
        };
        let sender = match peer {
            Peer::Client => Peer::Upstream,
            Peer::Upstream => Peer::Client,
        };
        loop {
            let data = tokio::select! {
                data = from.data() => data,
                // It need not send anything for its reader to have had enough.
                reset = poll_fn(|context| to.poll_reset(context)) => match reset {
                    Ok(reason) => return Err(broken(reason.into(), peer)),
                    Err(error) => return Err(broken(error, peer)),
                },
            };
            let Some(data) = data else {
                break;
            };
            let data = data.map_err(|error| broken(error, sender))?;
            let length = data.len();
            match &mut masker {
                None => {
                    if !data.is_empty() {
                        recorder.content(data.clone());
                    }
                    self.send(peer, to, data, false).await?;
                }
                Some(masker) => {
                    let mut out = BytesMut::new();
                    let mut parts = data.chunks(masker.bytes_at_once()).peekable();
                    while let Some(part) = parts.next() {
                        self.masked(masker.push(part, &mut out)).await?;
                        if out.len() < MASKED_AT_ONCE && parts.peek().is_some() || out.is_empty() {
                            continue;
                        }
                        let out = out.split().freeze();
                        recorder.content(out.clone());
                        self.send(peer, to, out, false).await?;
                    }
                }
            }
            let _ = from.flow_control().release_capacity(length);
            if let Some(event) = recorder.part(crate::clock::now()) {
                self.record(event).await?;
            }
        }
        let trailers = from
            .trailers()
            .await
            .map_err(|error| broken(error, sender))?;
        if let Some(masker) = masker {
            let mut out = BytesMut::new();
            self.masked(masker.finish(&mut out)).await?;
            let out = out.freeze();
            if !out.is_empty() {
                recorder.content(out.clone());
            }
            self.send(peer, to, out, false).await?;
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

    /// Sends `data` to `peer` as it has room for it.
    async fn send(
        &self,
        peer: Peer,
        to: &mut SendStream<Bytes>,
        mut data: Bytes,
        ends: bool,
    ) -> Result<(), Broken> {
        let gone = |reason: Option<Reason>| {
            let reason = reason.unwrap_or(Reason::CANCEL);
            match peer {
                Peer::Client => Broken::Client(reason),
                Peer::Upstream => Broken::Reset(reason),
            }
        };
        if data.is_empty() {
            if ends {
                to.send_data(data, true)
                    .map_err(|error| gone(error.reason()))?;
            }
            return Ok(());
        }
        while !data.is_empty() {
            to.reserve_capacity(data.len());
            let capacity = poll_fn(|context| to.poll_capacity(context));
            let room = match tokio::time::timeout(self.patience.stalled, capacity).await {
                Ok(Some(Ok(room))) => room,
                Ok(Some(Err(error))) => return Err(gone(error.reason())),
                Ok(None) => return Err(gone(None)),
                Err(_) => return Err(Broken::Stalled(peer)),
            };
            let piece = data.split_to(room.min(data.len()));
            to.send_data(piece, ends && data.is_empty())
                .map_err(|error| gone(error.reason()))?;
        }
        Ok(())
    }

    /// Puts on record that something was refused.
    async fn refused(&self, status: &str, reason: &str) -> Result<(), Broken> {
        let detail = [("status", status.to_owned()), ("reason", reason.to_owned())];
        self.record(Event::notice("http_refused", detail)).await
    }

    /// Puts on record that a stream was given up.
    async fn stalled(&self, peer: Peer) -> Result<(), Broken> {
        let reason = format!(
            "the {} took nothing for {:?}",
            match peer {
                Peer::Client => "client",
                Peer::Upstream => "server",
            },
            self.patience.stalled
        );
        self.record(Event::notice("http_stalled", [("reason", reason)]))
            .await
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

/// The response behind those that only say that it takes a while.
async fn final_response(mut response: ResponseFuture) -> Result<Response<RecvStream>, Broken> {
    for _ in 0..limits::HTTP_INTERIM_MAX {
        let interim = poll_fn(|context| response.poll_informational(context));
        if !matches!(interim.await, Some(Ok(_))) {
            return response.await.map_err(|error| match error.reason() {
                Some(reason) if error.is_reset() => Broken::Reset(reason),
                _ => Broken::Upstream(error.to_string()),
            });
        }
    }
    Err(Broken::Upstream(format!(
        "more than {} interim responses",
        limits::HTTP_INTERIM_MAX
    )))
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
