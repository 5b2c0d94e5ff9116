//! The process that carries sessions: started by the daemon, confined, and of no use to anybody else.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use futures_util::future::{AbortHandle, AbortRegistration};
use interceptor_core::{
    origin::Destination,
    policy::Policy,
    protocol::{http, postgres},
    record::SessionId,
};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use tokio::{runtime, task};

use super::{
    desk::Desk,
    line::Line,
    message::{Begin, Handed, ToDaemon, ToProxy},
    network::Network,
    records::{Feed, Records},
    share::Shares,
};
use crate::{
    cancellations::Cancellations,
    config::Config,
    cores::Cores,
    credentials::Credentials,
    dns::{self, Forwarder, Servers},
    policies::InForce,
    rows::Rows,
    sandbox,
    session::{Services, Session},
    socket::Socket,
    sync::lock,
    tls::Tls,
};

/// How long an upstream may take to answer a connect.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the process until the daemon is gone.
///
/// # Errors
/// Why it can't, for people; the daemon has been told as well.
pub(crate) fn run() -> Result<(), String> {
    let line = io::stdin().as_fd().try_clone_to_owned();
    let line = line.map_err(|error| error.to_string())?;
    if getsockopt(&line, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return Err(
            "this command is the daemon's: `interceptor serve` starts it where it is needed"
                .to_owned(),
        );
    }
    let begun = first(&line).and_then(|(begin, passed)| prepare(begin, passed));
    let (shared, lines) = match begun {
        Ok(begun) => begun,
        Err(why) => {
            tell(&line, &ToDaemon::Failed(why.clone()));
            return Err(why);
        }
    };
    let shared = Arc::new(shared);
    let cores = Cores::divided();
    let mut threads = Vec::new();
    let places = cores.for_data();
    for ((index, line), core) in [line].into_iter().chain(lines).enumerate().zip(places) {
        let shared = shared.clone();
        let thread = thread::Builder::new()
            .name(format!("data-{index}"))
            .spawn(move || {
                core.keep();
                let ended = carry(shared, line, index == 0);
                // Without one of its threads it is no use; the daemon starts another.
                if let Err(error) = ended {
                    tracing::error!(%error, "a thread that carries sessions ended");
                }
                std::process::exit(1);
            });
        threads.push(thread.map_err(|error| error.to_string())?);
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// A runtime for this thread alone.
fn alone() -> io::Result<runtime::Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

/// What the daemon says first.
fn first(line: &OwnedFd) -> Result<(Begin, Vec<OwnedFd>), String> {
    let received = alone().and_then(|runtime| {
        let _entered = runtime.enter();
        let line = Line::<ToDaemon, ToProxy>::new(line.try_clone()?)?;
        runtime.block_on(line.receive())
    });
    match received.map_err(|error| error.to_string())? {
        Some((ToProxy::Begin(begin), passed)) => Ok((*begin, passed)),
        Some(_) => Err("the daemon says something else first".to_owned()),
        None => Err("the daemon is gone".to_owned()),
    }
}

fn tell(line: &OwnedFd, message: &ToDaemon) {
    let _ = alone().and_then(|runtime| {
        let _entered = runtime.enter();
        Line::<ToDaemon, ToProxy>::new(line.try_clone()?)?.send(message, Vec::new())
    });
}

/// What all threads share.
struct Shared {
    begin: Begin,
    config: Config,
    policies: Arc<InForce>,
    feed: Arc<Feed>,
    tls: Arc<Tls>,
    cancellations: Cancellations,
    servers: Arc<Servers>,
    shares: Shares,
    postgres: Arc<postgres::Shared>,
    /// The command lines of processes that connect.
    arguments: Rows<Box<str>>,
    /// What the kernel lacks to confine this process.
    weaker: Vec<String>,
}

/// Reads what only root may read, then gives up being root.
fn prepare(begin: Begin, passed: Vec<OwnedFd>) -> Result<(Shared, Vec<OwnedFd>), String> {
    let (text, path) = &begin.config;
    let config = Config::parse(text, path).map_err(|error| error.to_string())?;
    let filter = tracing_subscriber::EnvFilter::try_new(config.log.as_str());
    tracing_subscriber::fmt()
        .with_env_filter(filter.map_err(|error| error.to_string())?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let policy = Policy::parse(&begin.policy).map_err(|error| error.to_string())?;
    let authority = begin.authority.clone().into();
    let tls = Tls::open(authority, &config.tls, config.patience.handshake)
        .map_err(|error| error.to_string())?;
    let mut passed = passed.into_iter();
    let (Some(feed), Some(bell)) = (passed.next(), passed.next()) else {
        return Err("the daemon passes no feed".to_owned());
    };
    let feed = Feed::new(File::from(feed), File::from(bell)).map_err(|error| error.to_string())?;
    let weaker = sandbox::enter(sandbox::Which::Proxy, begin.user)
        .map_err(|error| format!("it can't be confined: {error}"))?;
    for weaker in &weaker {
        tracing::warn!("{weaker}");
    }
    let shared = Shared {
        policies: Arc::new(InForce::new(Arc::new(policy))),
        feed: Arc::new(feed),
        tls: Arc::new(tls),
        cancellations: Cancellations::default(),
        servers: Arc::new(Servers::new(config.dns.servers.clone())),
        shares: Shares::new(config.limits),
        postgres: Arc::new(postgres::Shared::new(config.limits.message_bytes)),
        arguments: Rows::default(),
        config,
        begin,
        weaker,
    };
    Ok((shared, passed.collect()))
}

/// One thread: its sessions never move, and the two sockets of each are woken on one core.
fn carry(shared: Arc<Shared>, line: OwnedFd, is_first: bool) -> io::Result<()> {
    alone()?.block_on(async move {
        let desk = Arc::new(Desk::new(Line::new(line)?));
        let carrier = Arc::new(Carrier {
            services: Arc::new(services(&shared, desk.clone())),
            shared: shared.clone(),
            desk: desk.clone(),
            forwarder: Forwarder::default(),
            severable: Mutex::default(),
            asked: Mutex::default(),
        });
        let flushing = desk.clone();
        tokio::spawn(async move {
            let _ = flushing.flush().await;
        });
        if is_first {
            desk.tell(&ToDaemon::Ready(shared.weaker.clone()));
        }
        while let Some((message, sockets)) = desk.hear().await? {
            carrier.take(message, sockets)?;
        }
        Ok(())
    })
}

fn services(shared: &Shared, desk: Arc<Desk>) -> Services {
    let config = &shared.config;
    let credentials = Credentials::new(config.credentials.clone(), desk.clone());
    Services {
        journal: Records::new(shared.feed.clone(), desk.clone()),
        policies: shared.policies.clone(),
        cancellations: shared.cancellations.clone(),
        http: Arc::new(http::Shared {
            has_credentials: credentials.are_for_http(),
            message_bytes_max: config.limits.message_bytes,
            recorded_bytes_max: config.limits.recorded_bytes,
        }),
        credentials,
        postgres: shared.postgres.clone(),
        servers: shared.servers.clone(),
        tls: shared.tls.clone(),
        network: shared.begin.network,
        desk,
        dial_patience: DIAL_PATIENCE,
        patience: config.patience,
    }
}

/// The agent's side of a session to `destination`.
fn open(socket: OwnedFd, destination: &Destination) -> io::Result<Socket> {
    match destination {
        Destination::Ip(_) => {
            let stream = std::net::TcpStream::from(socket);
            stream.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(stream).map(Socket::Tcp)
        }
        Destination::Unix(_) => {
            let stream = std::os::unix::net::UnixStream::from(socket);
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream).map(Socket::Unix)
        }
    }
}

/// A thread's sessions.
pub(crate) struct Carrier {
    shared: Arc<Shared>,
    services: Arc<Services>,
    desk: Arc<Desk>,
    forwarder: Forwarder,
    /// What ends them.
    severable: Mutex<BTreeMap<SessionId, AbortHandle>>,
    /// What serves questions, by the cookie of its network namespace.
    asked: Mutex<HashMap<u64, Vec<task::AbortHandle>>>,
}

/// A session's place among the open ones.
pub(crate) struct Place {
    /// Tells that somebody severs it.
    pub(crate) severed: AbortRegistration,
    /// It has its place for as long as it keeps this.
    pub(crate) kept: Kept,
}

/// What a session is counted and found by.
pub(crate) struct Kept {
    carrier: Arc<Carrier>,
    session: SessionId,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.carrier.severable().remove(&self.session);
        self.carrier.desk.tell(&ToDaemon::Ended(self.session));
    }
}

impl Carrier {
    fn severable(&self) -> MutexGuard<'_, BTreeMap<SessionId, AbortHandle>> {
        lock(&self.severable)
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<u64, Vec<task::AbortHandle>>> {
        lock(&self.asked)
    }

    /// Does what the daemon says.
    fn take(self: &Arc<Self>, message: ToProxy, sockets: Vec<OwnedFd>) -> io::Result<()> {
        let socket = sockets.into_iter().next();
        match (message, socket) {
            (ToProxy::Connection(handed), Some(socket)) => {
                let opened = open(socket, &handed.origin.destination);
                let (session, place) = self.session(*handed);
                match opened {
                    Ok(socket) => drop(tokio::spawn(session.run(socket, place))),
                    // The daemon has on record that it was handed over, and says that it came to nothing.
                    Err(error) => tracing::error!(%error, "a connection can't be served"),
                }
            }
            (ToProxy::Questions(network), Some(socket)) => {
                let socket = dns::Socket::new(socket.into())?;
                let carrier = self.clone();
                let serving = tokio::spawn(async move {
                    let forwarder = &carrier.forwarder;
                    forwarder.serve(&carrier, socket, network.cookie).await;
                });
                let mut asked = self.asked();
                let of_network = asked.entry(network.cookie).or_default();
                of_network.push(serving.abort_handle());
            }
            (ToProxy::Left(cookie), _) => {
                for serving in self.asked().remove(&cookie).unwrap_or_default() {
                    serving.abort();
                }
            }
            (ToProxy::Policy(files), _) => {
                // The daemon has tried it.
                let policy = Policy::parse(&files).map_err(io::Error::other)?;
                let hash = policy.hash();
                let policies = &self.shared.policies;
                if hash != policies.current().hash() {
                    policies.replace(Arc::new(policy));
                }
                self.desk.in_force(hash);
            }
            (ToProxy::Sever(session), _) => {
                if let Some(session) = self.severable().get(&session) {
                    session.abort();
                }
            }
            // Those that are heard elsewhere, and what comes without what it is about.
            _ => return Err(io::Error::other("the daemon says what can't be")),
        }
        Ok(())
    }

    /// The session of who asks a DNS server, or what to say to it.
    pub(crate) async fn asker(
        &self,
        network: u64,
        from: std::net::SocketAddr,
        token: std::net::IpAddr,
    ) -> Result<Handed, String> {
        self.desk.asker(network, from, token).await
    }

    /// A session that the daemon hands over.
    pub(crate) fn session(self: &Arc<Self>, handed: Handed) -> (Session, Place) {
        let Handed {
            session: id,
            origin,
            names,
            network,
        } = handed;
        let mut origin = Arc::unwrap_or_clone(origin);
        origin.names = names;
        let process = &mut origin.process;
        process.network_namespace = (!network.is_host).then_some(network.cookie);
        let arguments = std::mem::take(&mut process.arguments);
        process.arguments = self.shared.arguments.shared(process.pid, arguments);
        let origin = Arc::new(origin);
        let (handle, severed) = AbortHandle::new_pair();
        self.severable().insert(id, handle);
        let kept = Kept {
            carrier: self.clone(),
            session: id,
        };
        let network = Network::new(network, id, self.desk.clone());
        let share = self.shared.shares.of(&Arc::from(&*origin.agent.name));
        let session = Session::new(self.services.clone(), id, origin, (network, share));
        (session, Place { severed, kept })
    }
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Carrier").finish_non_exhaustive()
    }
}
