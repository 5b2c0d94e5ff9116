//! The forwarder: which socket of which agent asks which server, and a session for each.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use interceptor_core::{
    decoder::{Decoder as _, Failure, Peer, Step},
    protocol::dns::Dns,
};
use tokio::sync::mpsc;

use super::socket::{Arrived, Socket};
use crate::{clock::now, proxy::Carrier, session::Datagrams, sync::lock};

/// Datagrams of one socket that wait to be looked at; more are lost, as datagrams may be.
const WAITING_MAX: usize = 64;

/// Largest datagram that is taken, in bytes: of UDP there is no larger one.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Sessions at which those that have ended are forgotten.
const FORGET_AT: usize = 256;

/// Forwards what agents ask over UDP.
#[derive(Debug, Default)]
pub(crate) struct Forwarder {
    sessions: Mutex<HashMap<Asking, mpsc::Sender<Bytes>>>,
}

/// The network namespace and the socket that asks, and the token of the server that it asks.
type Asking = (u64, SocketAddr, IpAddr);

impl Forwarder {
    /// Takes datagrams from `socket`, which is in the network namespace `network`, for as long as it is polled.
    pub(crate) async fn serve(&self, carrier: &Arc<Carrier>, socket: Socket, network: u64) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match socket.receive(&mut buffer).await {
                Ok(arrived) => {
                    let question = buffer.get(..arrived.length).unwrap_or_default();
                    let question = Bytes::copy_from_slice(question);
                    self.take(carrier, &socket, network, &arrived, question);
                }
                Err(error) => {
                    // One datagram's own; what lasts would come again and again.
                    tracing::debug!(%error, "a query can't be read");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn take(
        &self,
        carrier: &Arc<Carrier>,
        socket: &Arc<Socket>,
        network: u64,
        arrived: &Arrived,
        question: Bytes,
    ) {
        let asking = (network, arrived.from, arrived.token);
        let mut sessions = self.sessions();
        let question = match sessions
            .get(&asking)
            .map(|session| session.try_send(question.clone()))
        {
            Some(Ok(()) | Err(mpsc::error::TrySendError::Full(_))) => return,
            // It has just ended.
            Some(Err(mpsc::error::TrySendError::Closed(question))) => question,
            None => question,
        };
        if sessions.len() >= FORGET_AT && sessions.len() == sessions.capacity() {
            sessions.retain(|_, session| !session.is_closed());
        }
        let (questions, incoming) = mpsc::channel(WAITING_MAX);
        let _ = questions.try_send(question.clone());
        sessions.insert(asking, questions);
        let (carrier, socket) = (carrier.clone(), socket.clone());
        tokio::spawn(begin(carrier, socket, asking, (question, incoming)));
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Asking, mpsc::Sender<Bytes>>> {
        lock(&self.sessions)
    }
}

/// Carries the session of who asks, with its first question, if there is to be one.
async fn begin(
    carrier: Arc<Carrier>,
    socket: Arc<Socket>,
    (network, from, token): Asking,
    (question, incoming): (Bytes, mpsc::Receiver<Bytes>),
) {
    let handed = match carrier.asker(network, from, token).await {
        Ok(handed) => handed,
        Err(why) => {
            if !why.is_empty()
                && let Some(answer) = unavailable(&question, &why)
            {
                let _ = socket.answer(from, token, &answer);
            }
            return;
        }
    };
    let datagrams = Datagrams {
        client: from,
        incoming,
        answer: Box::new(move |answer| {
            // Who isn't there any more, or has no room, asks again.
            let _ = socket.answer(from, token, answer);
        }),
    };
    let (session, place) = carrier.session(handed);
    session.run_datagrams(datagrams, place).await;
}
/// The answer to `question` that says why there is none.
fn unavailable(question: &[u8], why: &str) -> Option<Bytes> {
    let mut framed = BytesMut::with_capacity(question.len() + 2);
    framed.put_u16(u16::try_from(question.len()).ok()?);
    framed.put_slice(question);
    let mut decoder = Dns::default();
    decoder.receive(Peer::Client, &mut framed, now());
    decoder.fail(&Failure::Unreachable(why.to_owned()));
    loop {
        match decoder.poll() {
            Step::Send(Peer::Client, answer) => return Some(answer.slice(2.min(answer.len())..)),
            Step::Wait | Step::Close(_) => return None,
            _ => {}
        }
    }
}
