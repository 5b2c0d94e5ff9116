//! One stream: a request is described, decided and released, its answer masked; both go on record.

use std::{future::poll_fn, sync::Arc};

use bytes::{Bytes, BytesMut};
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{HeaderMap, Request, Response, StatusCode, header, request};
use interceptor_core::{
    decoder::{Failure, Peer},
    limits,
    mask::{
        MaskPlan,
        body::{BodyMasker, KeyMask, MASKED_AT_ONCE, Unmaskable},
    },
    operation::{
        attribute,
        http::{Body, Fields, HttpRequest},
    },
    protocol::http::{
        Malformed, answer,
        change::Changes,
        describe::{self, Asked, Described},
        recorder::Recorder,
        refuse::Problem,
    },
    record::{Event, ResponseStatus, Speaker},
    ruling::{Permit, Ruling},
};

use super::{
    super::{Decided, STILL_HELD_EVERY},
    Broken, Connection, Served,
    message::{Form, apply, fields, lines, mask_fields, response_fields, say},
};

/// A request that may go.
struct Released {
    number: u64,
    masks: Arc<MaskPlan>,
    parts: request::Parts,
    /// Its body, where it was waited for.
    body: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Connection<'_> {
    /// Serves one stream.
    pub(super) async fn stream(
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
            Broken::Memory => self.refused("503", &Failure::Memory.to_string()).await,
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
            Broken::Memory => {
                let _ = say(&mut respond, &Problem::memory(&Failure::Memory), form);
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
        self.room()?;
        let (mut parts, mut from_client) = request.into_parts();
        let fields = fields(&parts);
        let described = match self.describe(&parts, &fields) {
            Ok(mut described) => {
                let body = match from_client.is_end_stream() {
                    true => "none",
                    false => "follows",
                };
                let attributes = &mut Arc::make_mut(&mut described.description).attributes;
                attributes.insert(attribute::HTTP_BODY.into(), body.into());
                described
            }
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
                Some((body, None)) if body.is_empty() => (Body::None, head.clone()),
                Some((body, trailers)) => {
                    // Who looks for something finds it in the trailers as well.
                    let said = trailers.as_ref().map(lines).unwrap_or_default();
                    let content = [&*head, body, &*said].concat().into();
                    let body = match body.is_empty() {
                        true => Body::None,
                        false => Body::Whole(body.clone()),
                    };
                    (body, content)
                }
                None => (Body::Coming(length), head.clone()),
            };
            let operation = describe::operation(&described, fields.clone(), body, content);
            let mut session = self.session.lock().await;
            session.now = crate::clock::now();
            let decided = session.decide(operation, Bytes::new()).await;
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
                    self.stream_body(&mut from_client, to, &mut sent, None, &[])
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
            mask_fields(&masks.headers, &mut parts.headers);
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
                self.stream_body(
                    &mut from_upstream,
                    to,
                    &mut received,
                    masker,
                    &masks.headers,
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

    /// Whether the agent may hold more.
    fn room(&self) -> Result<(), Broken> {
        match self.memory.is_too_much() {
            true => Err(Broken::Memory),
            false => Ok(()),
        }
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
            self.room()?;
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
        header_masks: &[KeyMask],
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
            Some(mut trailers) => {
                mask_fields(header_masks, &mut trailers);
                recorder.said(&lines(&trailers));
                to.send_trailers(trailers)
            }
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
    pub(super) async fn refused(&self, status: &str, reason: &str) -> Result<(), Broken> {
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
