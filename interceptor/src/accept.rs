//! From an accepted socket to a session with its origin.
//!
//! A connection without the kernel's note of where it was going is refused: nothing here ever guesses
//! a destination from the socket's own addresses.

use std::{
    collections::HashMap,
    net::TcpStream as StdTcpStream,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use interceptor_core::{
    origin::{Destination, Origin},
    record::{Event, SessionId},
};
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    clock::now,
    config::Limits,
    cores::Cores,
    kernel::Kernel,
    session::{Services, Session},
};

/// Accepts redirected connections and hands each to one of the data plane's threads.
pub struct Acceptor {
    kernel: Arc<Kernel>,
    services: Arc<Services>,
    workers: Vec<mpsc::UnboundedSender<Intercepted>>,
    open: Arc<AtomicUsize>,
    /// Open connections of each agent that has some, by its number.
    by_agent: Mutex<HashMap<u64, Weak<AtomicUsize>>>,
    limits: Limits,
}

/// An accepted connection and where it belongs.
struct Intercepted {
    stream: StdTcpStream,
    session: Session,
    _open: Open,
}

/// Counts an open connection for as long as it lives: among all, and among its agent's.
#[derive(Debug)]
struct Open([Arc<AtomicUsize>; 2]);

impl Open {
    /// Counts one more; its place among all, and among its agent's.
    fn count(counters: [Arc<AtomicUsize>; 2]) -> (Self, [usize; 2]) {
        let places = counters
            .each_ref()
            .map(|counter| counter.fetch_add(1, Ordering::Relaxed) + 1);
        (Self(counters), places)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for counter in &self.0 {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Acceptor {
    /// An acceptor whose sessions run on as many threads as `cores` has for them, each with a scheduler of
    /// its own: a session never moves between cores and its two sockets are woken on one.
    ///
    /// # Errors
    /// Where a thread can't be started.
    pub fn start(
        kernel: Arc<Kernel>,
        services: Arc<Services>,
        cores: &Cores,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let mut workers = Vec::new();
        for (index, core) in cores.for_data().enumerate() {
            let (sender, receiver) = mpsc::unbounded_channel();
            std::thread::Builder::new()
                .name(format!("data-{index}"))
                .spawn(move || {
                    core.keep();
                    work(receiver);
                })?;
            workers.push(sender);
        }
        Ok(Self {
            kernel,
            services,
            workers,
            open: Arc::default(),
            by_agent: Mutex::default(),
            limits,
        })
    }

    /// Connections that are being served.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Accepts from `listener` until it fails for good.
    pub async fn accept(&self, listener: TcpListener) {
        let mut turn = 0;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    turn += 1;
                    self.intercept(stream, turn);
                }
                Err(error) => {
                    // Out of descriptors or memory: give sessions time to end. Connects are refused
                    // by the kernel once the backlog is full, so nothing passes meanwhile.
                    tracing::error!(%error, "can't accept connections");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The counter of an agent's open connections.
    fn counter_of(&self, agent: u64) -> Arc<AtomicUsize> {
        let mut counters = self.by_agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = counters.get(&agent).and_then(Weak::upgrade) {
            return counter;
        }
        counters.retain(|_, counter| counter.strong_count() > 0);
        let counter = Arc::default();
        counters.insert(agent, Arc::downgrade(&counter));
        counter
    }

    fn intercept(&self, stream: tokio::net::TcpStream, turn: usize) {
        let refuse = |why: &str, agent: &Arc<str>| {
            let _ = stream.set_zero_linger();
            tracing::warn!(why, "a connection is refused");
            let event = Event::notice("connection_refused", [("reason", why.to_owned())]);
            let _ = self.services.journal.append(None, agent, now(), [event]);
        };
        let nobody: Arc<str> = Arc::from("");
        let note = match self.kernel.note(stream.as_fd()) {
            Ok(Some(note)) => note,
            Ok(None) => return refuse("it carries no note of its true destination", &nobody),
            Err(error) => {
                return refuse(
                    &format!("its true destination can't be read: {error}"),
                    &nobody,
                );
            }
        };
        let Some(agent) = self.kernel.agent(note.agent) else {
            return refuse("its agent is not known", &nobody);
        };
        let name: Arc<str> = Arc::from(&*agent.name);
        let (open, [of_all, of_agent]) =
            Open::count([self.open.clone(), self.counter_of(note.agent)]);
        if of_all > self.limits.connections.get() as usize {
            return refuse(
                "too many connections are open (`limits.connections` in the configuration)",
                &name,
            );
        }
        if of_agent > self.limits.connections_per_agent.get() as usize {
            return refuse(
                "the agent has too many connections open (`limits.connections_per_agent` in the configuration)",
                &name,
            );
        }
        let mut process = self.kernel.describe_process(note.pid);
        process.uid = note.uid;
        let origin = Arc::new(Origin {
            agent,
            process,
            destination: Destination(note.destination),
            names: Vec::new(),
        });
        let session = Session::new(self.services.clone(), SessionId(random_id()), origin);
        let Ok(stream) = stream.into_std() else {
            return;
        };
        let worker = self.workers.get(turn % self.workers.len().max(1));
        if let Some(worker) = worker {
            let _ = worker.send(Intercepted {
                stream,
                session,
                _open: open,
            });
        }
    }
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

/// One thread of the data plane.
fn work(mut connections: mpsc::UnboundedReceiver<Intercepted>) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a data plane thread can't start");
            return;
        }
    };
    runtime.block_on(async move {
        while let Some(Intercepted {
            stream,
            session,
            _open,
        }) = connections.recv().await
        {
            tokio::spawn(async move {
                match tokio::net::TcpStream::from_std(stream) {
                    Ok(stream) => session.run(stream).await,
                    Err(error) => tracing::error!(%error, "a connection can't be served"),
                }
                drop(_open);
            });
        }
    });
}
