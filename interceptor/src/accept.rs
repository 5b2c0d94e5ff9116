//! From an accepted socket to a session of the proxy's.
//!
//! A connection without the kernel's note of where it was going is refused: nothing here ever guesses
//! a destination from the socket's own addresses. Nor is anything read from it.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use interceptor_core::{origin::Destination, record::Event};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    books::{Books, Tally},
    clock::now,
    console,
    journal::Journal,
    kernel::Kernel,
    namespaces::Network,
    proxy::{Opening, Proxy},
};

/// Accepts redirected connections and hands them to the proxy.
pub(crate) struct Acceptor {
    kernel: Arc<Kernel>,
    journal: Journal,
    books: Arc<Books>,
    proxy: Proxy,
    /// Where the console listens, if there is one.
    console: Option<SocketAddr>,
}

/// How long a connection waits for a proxy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause where the proxy that it was to be handed to has just ended.
const SHORTLY: Duration = Duration::from_millis(5);

/// Pause where no connection can be accepted.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

impl Acceptor {
    pub(crate) const fn new(
        kernel: Arc<Kernel>,
        journal: Journal,
        books: Arc<Books>,
        proxy: Proxy,
        console: Option<SocketAddr>,
    ) -> Self {
        Self {
            kernel,
            journal,
            books,
            proxy,
            console,
        }
    }

    /// Accepts from `listener`, which is in `network`, for as long as it is polled.
    pub(crate) async fn accept(&self, listener: TcpListener, network: Network) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.intercept(stream, &network).await,
                Err(error) => {
                    // Out of descriptors or memory: give sessions time to end. Connects are refused
                    // by the kernel once the backlog is full, so nothing passes meanwhile.
                    tracing::error!(%error, "can't accept connections");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn intercept(&self, stream: TcpStream, network: &Network) {
        let refuse = |why: &str, agent: &str, tally: Option<&Tally>| {
            let _ = stream.set_zero_linger();
            tracing::warn!(why, "a connection is refused");
            let event = Event::notice("connection_refused", [("reason", why.to_owned())]);
            let recorded = self.journal.append(None, &Arc::from(agent), now(), [event]);
            if let (Ok(_), Some(tally)) = (recorded, tally) {
                tally.turned_away();
            }
        };
        let note = match self.kernel.note(stream.as_fd()) {
            Ok(Some(note)) => note,
            Ok(None) => return refuse("it carries no note of its true destination", "", None),
            Err(error) => {
                let why = format!("its true destination can't be read: {error}");
                return refuse(&why, "", None);
            }
        };
        let Some(agent) = self.kernel.agent(note.agent) else {
            return refuse("its agent is not known", "", None);
        };
        let name = agent.name.clone();
        let tally = self.books.tally(note.agent);
        let is_ours = |console| console::is_at(console, note.destination, network.is_host());
        if self.console.is_some_and(is_ours) {
            let why = "it is to the console, where people answer agents' questions: no agent may go there, whatever the rules";
            return refuse(why, &name, Some(&tally));
        }
        let mut process = self.kernel.describe_process(note.pid);
        process.uid = note.uid;
        process.network_namespace = (!network.is_host()).then(|| network.cookie());
        let opening = |line| Opening {
            agent: (note.agent, agent.clone()),
            process: process.clone(),
            destination: Destination::Ip(note.destination),
            engine: None,
            network: network.clone(),
            tally: Some(tally.clone()),
            line,
        };
        if let Err(why) = hand_over(&self.proxy, stream.as_fd(), opening).await {
            refuse(&why, &name, Some(&tally));
        }
    }
}

/// Has the proxy carry the session that `opening` says, once for each try, of the line that it is given.
///
/// # Errors
/// Why it can't be, for people.
pub(crate) async fn hand_over(
    proxy: &Proxy,
    socket: BorrowedFd<'_>,
    opening: impl Fn(usize) -> Opening,
) -> Result<(), Cow<'static, str>> {
    let handed = tokio::time::timeout(PATIENCE, async {
        loop {
            // While another proxy comes up this one waits, and those behind it in the kernel.
            proxy.ready().await;
            let (id, session) = proxy.sessions().begin(opening(proxy.next_line()))?;
            match proxy.hand_over((id, &session), socket) {
                // It has just ended.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    tokio::time::sleep(SHORTLY).await;
                }
                Err(error) => return Err(format!("it can't be served: {error}").into()),
                Ok(()) => return Ok(()),
            }
        }
    });
    let late = || Err("the process that carries sessions doesn't come up".into());
    handed.await.unwrap_or_else(|_| late())
}

/// A number that names evidence: random, so that it doesn't repeat after a restart.
#[must_use]
pub fn random_id() -> u64 {
    let mut bytes = [0; 8];
    // It only fails where the operating system has no randomness at all; then time has to do.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return now().0;
    }
    u64::from_be_bytes(bytes)
}
