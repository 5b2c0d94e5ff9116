//! HTTP/2: h2 frames both sides; each stream is a request, decided and recorded like one of HTTP/1.

mod message;
mod stream;

use std::{
    future::{Future as _, poll_fn},
    sync::{Arc, atomic::Ordering},
    task::{self, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use h2::Reason;
use interceptor_core::{
    decoder::Peer,
    limits,
    protocol::http::{Context, Shared},
};
use tokio::{sync::Mutex, time::Instant};

use super::{Ended, Session};
use crate::{leg::Leg, memory::Holding, patience::Patience};

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
    memory: Arc<Holding>,
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
    /// The agent holds too much memory.
    Memory,
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
            memory: self.memory.clone(),
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
