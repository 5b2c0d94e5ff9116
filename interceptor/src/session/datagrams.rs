//! DNS over UDP: the questions that one socket of an agent sends to one server.
//!
//! The decoder reads messages behind their lengths, as they go over TCP. Here each datagram gets its
//! length on the way in, and loses it on the way out, so that a question is decided in one way.

use std::{io, net::SocketAddr, os::fd::AsRawFd as _, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::Abortable;
use interceptor_core::{
    decoder::{Decoder, Failure, Peer, Step},
    protocol::dns::Dns,
    record::Event,
};
use nix::sys::socket::{MsgFlags, recv};
use tokio::{io::Interest, net::UdpSocket, sync::mpsc, time::Instant};

use super::{
    Ended, Session,
    decide::{Decided, Held},
    describe,
};
use crate::{approval::Withdrawal, clock::now, proxy::Place};

/// How long a server may take to answer. Clients ask again after some seconds, most of them from another
/// socket.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// How long one may take where there is another one to ask.
const TURN_PATIENCE: Duration = Duration::from_secs(3);

/// How long people may take. Then the client has given up, and asks again, or doesn't.
const HELD_PATIENCE: Duration = Duration::from_secs(30);

/// How long a socket is remembered that has all its answers.
const LINGER: Duration = Duration::from_secs(2);

/// Largest datagram of UDP over IPv6, in bytes.
const DATAGRAM_BYTES_MAX: usize = 65_527;

/// Sends an answer.
type Answer = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The agent's side of a session of datagrams.
pub(crate) struct Datagrams {
    /// Where the agent's socket is.
    pub(crate) client: SocketAddr,
    /// What it sends.
    pub(crate) incoming: mpsc::Receiver<Bytes>,
    /// Sends it an answer, as from the server that it asked.
    pub(crate) answer: Answer,
}

impl Session {
    /// Serves what a socket of the agent asks a server until it has its answers.
    pub(crate) fn run_datagrams(
        self,
        datagrams: Datagrams,
        place: Place,
    ) -> impl Future<Output = ()> + Send {
        let memory = self.memory.clone();
        memory.of(self.run_datagrams_counted(datagrams, place))
    }

    async fn run_datagrams_counted(mut self, datagrams: Datagrams, place: Place) {
        let start = self.start(Some(datagrams.client));
        self.begin(Event::DatagramsStart(start)).await;
        let ended = Abortable::new(self.questions(datagrams), place.severed).await;
        self.end(ended.unwrap_or_else(|_| Ended::severed())).await;
        drop(place.kept);
    }

    async fn questions(&mut self, mut datagrams: Datagrams) -> Ended {
        let mut decoder = Dns::default();
        // Whatever fails is said in answer to a question.
        let Some(first) = datagrams.incoming.recv().await else {
            return Ended("finished".to_owned());
        };
        self.count(Peer::Client, first.len());
        decoder.receive(Peer::Client, &mut framed(&first), self.now);
        // Only addresses are asked by datagrams.
        let Some(meant) = self.origin.destination.address() else {
            return Ended("refused: no DNS server has a UNIX socket".to_owned());
        };
        let (server, network) = self.dns_server(meant);
        // A socket of our own for one of the agent's, so that answers to one are never taken for the other's.
        let upstream = match network.datagrams(server).await {
            Ok(upstream) => Some(upstream),
            Err(error) => {
                decoder.fail(&Failure::Unreachable(format!("{server}: {error}")));
                None
            }
        };
        let mut unanswered: u64 = 1;
        let answer_patience = if self.services.servers.has_others() {
            TURN_PATIENCE
        } else {
            ANSWER_PATIENCE
        };
        let mut until = Instant::now() + answer_patience;
        let mut held: Option<Held> = None;
        loop {
            loop {
                match decoder.poll() {
                    Step::Wait => break,
                    Step::Send(Peer::Client, framed) => {
                        unanswered = unanswered.saturating_sub(1);
                        (datagrams.answer)(framed.get(2..).unwrap_or_default());
                    }
                    Step::Send(Peer::Upstream, framed) => {
                        if let Some(upstream) = &upstream
                            && let Err(error) =
                                upstream.send(framed.get(2..).unwrap_or_default()).await
                        {
                            self.services.servers.failed(server);
                            decoder.fail(&Failure::Unreachable(format!("{server}: {error}")));
                        }
                    }
                    Step::Record(event) => self.record(event).await,
                    Step::Resolved(resolved) => self.learn_addresses(&resolved).await,
                    Step::Propose(operation) => {
                        match self.decide(operation, decoder.beginning()).await {
                            Decided::Now(ruling) => decoder.rule(ruling, self.now),
                            Decided::Later(question) => {
                                until = Instant::now() + HELD_PATIENCE;
                                held = Some(*question);
                            }
                        }
                    }
                    Step::Close(closing) => return Ended(describe(&closing)),
                    // What other protocols ask for.
                    _ => {}
                }
                if self.stopped {
                    decoder.fail(&Failure::Unrecorded);
                }
            }
            let is_held = held.is_some();
            if !is_held {
                let patience = if unanswered == 0 {
                    LINGER
                } else {
                    answer_patience
                };
                until = Instant::now() + patience;
            }
            let outcome = async {
                match &mut held {
                    Some(question) => question.pending.outcome().await,
                    None => std::future::pending().await,
                }
            };
            let answered = async {
                match &upstream {
                    Some(upstream) => receive(upstream).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                outcome = outcome => {
                    self.now = now();
                    if let Some(question) = held.take() {
                        decoder.rule(question.ruled(outcome), self.now);
                    }
                }
                answer = answered => {
                    self.now = now();
                    match answer {
                        Ok(mut answer) => {
                            self.count(Peer::Upstream, answer.len());
                            decoder.receive(Peer::Upstream, &mut answer, self.now);
                        }
                        Err(error) => {
                            self.services.servers.failed(server);
                            decoder.fail(&Failure::Unreachable(format!("{server}: {error}")));
                        }
                    }
                }
                question = datagrams.incoming.recv(), if !is_held => {
                    self.now = now();
                    let Some(question) = question else {
                        return Ended("finished".to_owned());
                    };
                    self.count(Peer::Client, question.len());
                    unanswered += 1;
                    decoder.receive(Peer::Client, &mut framed(&question), self.now);
                    if self.memory.is_too_much() {
                        decoder.fail(&Failure::Memory);
                    }
                }
                () = tokio::time::sleep_until(until) => {
                    self.now = now();
                    match held.take() {
                        Some(mut question) => {
                            if question.pending.withdraw(Withdrawal::GaveUp) {
                                decoder.rule(question.cancelled(), self.now);
                            } else {
                                // It was answered this moment.
                                held = Some(question);
                            }
                        }
                        None if unanswered == 0 => return Ended("finished".to_owned()),
                        None => {
                            self.services.servers.failed(server);
                            let why = format!("{server} doesn't answer within {answer_patience:?}");
                            decoder.fail(&Failure::Unreachable(why));
                        }
                    }
                }
            }
        }
    }

    /// Remembers what the agent is about to be told, where who says so is trusted.
    pub(super) async fn learn_addresses(&mut self, resolved: &interceptor_core::decoder::Resolved) {
        if self.services.desk.learn(self.id, resolved).await {
            return;
        }
        let facts = [
            ("name", resolved.name.to_string()),
            ("server", self.origin.destination.to_string()),
        ];
        self.record(Event::notice("dns_untrusted", facts)).await;
    }
}

/// A datagram behind its length.
fn framed(datagram: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(datagram.len() + 2);
    frame.put_u16(u16::try_from(datagram.len()).unwrap_or(u16::MAX));
    frame.put_slice(datagram);
    frame
}

/// Reads a datagram, behind its length; or that nobody is there, where the server's host says so.
async fn receive(socket: &UdpSocket) -> io::Result<BytesMut> {
    let read = || {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        Ok(framed(buffer.get(..length).unwrap_or_default()))
    };
    socket
        .async_io(Interest::READABLE | Interest::ERROR, read)
        .await
}
