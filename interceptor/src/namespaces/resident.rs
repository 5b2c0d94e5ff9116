//! A thread that is in another network namespace than the daemon, and serves the agents there.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use tokio::{runtime, task::AbortHandle};

use super::{
    ARM_EVERY,
    doors::{Door, Doors},
    network::{Network, Request, answer},
};
use crate::{
    accept::Acceptor,
    config::Listen,
    kernel::{self, Kernel, Namespace, Unrouted},
    proxy::Proxy,
};

/// Bytes of such a thread's stack: it only opens sockets.
const STACK_BYTES: usize = 256 << 10;

/// What serving a namespace takes.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) kernel: Arc<Kernel>,
    pub(super) acceptor: Arc<Acceptor>,
    pub(super) proxy: Proxy,
    pub(super) listen: Listen,
    pub(super) runtime: runtime::Handle,
}

/// A namespace that is being served.
#[derive(Debug)]
pub(super) struct Resident {
    requests: mpsc::Sender<Request>,
    thread: thread::JoinHandle<Result<(), String>>,
}

impl Resident {
    /// Has a thread go into `namespace` and serve there; `served` is told its cookie when it does.
    ///
    /// # Errors
    /// Where there can't be one more thread.
    pub(super) fn start(
        means: Means,
        namespace: Namespace,
        served: impl FnOnce(u64) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (requests, incoming) = mpsc::channel();
        let own = requests.clone();
        let thread = thread::Builder::new()
            .name("namespace".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let mut inside = Inside::enter(means, namespace, own)?;
                inside.renew()?;
                served(inside.network.cookie());
                inside.serve(&incoming);
                Ok(())
            })?;
        Ok(Self { requests, thread })
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Has it begin to leave.
    pub(super) fn dismiss(&self) {
        // It may be gone.
        let _ = self.requests.send(Request::Leave);
    }

    /// Has it leave; nothing keeps the namespace when this returns, but what of its sessions is left.
    ///
    /// # Errors
    /// Why it had ended by itself.
    pub(super) fn end(self) -> Result<(), String> {
        self.dismiss();
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| Err("the thread that served it panicked".to_owned()))
    }
}

/// What is open in the namespace that this thread is in. Closed when dropped.
struct Inside {
    means: Means,
    network: Network,
    doors: Doors,
    tasks: Vec<AbortHandle>,
}

impl Inside {
    fn enter(
        means: Means,
        namespace: Namespace,
        own: mpsc::Sender<Request>,
    ) -> Result<Self, String> {
        namespace
            .enter()
            .map_err(|error| format!("it can't be entered: {error}"))?;
        let cookie = kernel::cookie_here().map_err(|error| error.to_string())?;
        Ok(Self {
            means,
            network: Network::other(cookie, own),
            doors: Doors::default(),
            tasks: Vec::new(),
        })
    }

    /// Opens what isn't open yet, and has the hooks send agents there for some seconds more.
    fn renew(&mut self) -> Result<(), String> {
        // In a new namespace it is down, and connects would fail where they are redirected to. Nothing else
        // can be reached by it than what listens within the namespace.
        kernel::raise_loopback()
            .map_err(|error| format!("its loopback device can't be brought up: {error}"))?;
        let Self {
            means,
            network,
            doors,
            tasks,
        } = self;
        let runtime = means.runtime.enter();
        let shut = doors.open(&means.kernel, means.listen, |door| match door {
            Door::Proxy(listener) => {
                let (network, acceptor) = (network.clone(), means.acceptor.clone());
                let accepting = async move { acceptor.accept(listener, network).await };
                tasks.push(means.runtime.spawn(accepting).abort_handle());
            }
            Door::Dns(socket) => means.proxy.answer_at(&socket, network),
        });
        drop(runtime);
        let ports = doors.ports();
        if ports.proxy == [0; 2] {
            let shut: Vec<String> = shut.iter().map(ToString::to_string).collect();
            return Err(shut.join(", "));
        }
        if ports.dns[1] != 0 {
            // It goes with the loopback device, when somebody takes that down. Without it agents can't ask
            // over IPv6, no more.
            let _ = means.kernel.route_tokens();
        }
        means
            .kernel
            .arm(network.cookie(), ports, Unrouted::now())
            .map_err(|error| error.to_string())
    }

    /// Does what it is asked for until it is to leave.
    fn serve(&mut self, requests: &mpsc::Receiver<Request>) {
        let mut due = Instant::now() + ARM_EVERY;
        loop {
            match requests.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(request) => {
                    if !answer(request) {
                        return;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= due {
                if let Err(error) = self.renew() {
                    tracing::error!(namespace = self.network.cookie(), %error, "agents' connects will be refused in a network namespace");
                }
                due = Instant::now() + ARM_EVERY;
            }
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.means.proxy.left(self.network.cookie());
        self.means.kernel.disarm(self.network.cookie());
    }
}
