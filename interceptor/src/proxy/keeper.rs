//! The daemon's side: keeps the proxy running, hands sessions to it, answers what it asks.

mod answers;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use interceptor_core::{
    operation::radius::BlastRadius,
    record::{ApprovalId, Event, SessionId},
    ruling::PolicyHash,
};
use nix::sys::signal::{Signal, kill};
use tokio::{runtime, sync::oneshot, sync::watch, task::JoinSet};

use super::{
    intake::{self, Intake, Left},
    line::Line,
    message::{Begin, Handed, NetworkId, ToDaemon, ToProxy},
    process::Process,
    sessions::{Session, Sessions},
};
use crate::{
    approval::{Approvals, Request, Withdrawal},
    clock,
    config::Config,
    control::ProxyStatus,
    credentials::Vault,
    dns::Names,
    journal::{Journal, Stopped},
    kernel::Kernel,
    namespaces::Network,
    policies::Policies,
    reach::Reach,
    refusals::Flood,
    sandbox,
    sync::lock,
    tls::Authority,
};

/// A line to the proxy.
type ToIt = Line<ToProxy, ToDaemon>;

/// How long a new proxy may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// How long it is waited for a new policy to be in force.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(2);

/// Shortest pause before one that ended is replaced; twice as long each time that it ends soon.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long one has to have run to have done well.
const WELL: Duration = Duration::from_secs(10);

/// Bytes that may wait in the feed before sessions wait as well: more than a disk of ordinary speed leaves
/// behind.
pub(super) const CONGESTED_BYTES: u64 = 32 << 20;

/// Questions of a line that are answered at once: more than all sessions have.
const ANSWERS_MAX: usize = 32_768;

/// What the daemon lends the proxy.
pub(crate) struct Means {
    pub(crate) config: Config,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) journal: Journal,
    pub(crate) policies: Arc<Policies>,
    pub(crate) approvals: Approvals,
    pub(crate) vault: Vault,
    pub(crate) names: Arc<Names>,
    pub(crate) reach: Arc<Reach>,
    pub(crate) authority: Authority,
    /// Threads that carry sessions.
    pub(crate) threads: usize,
}

/// The proxy, as the rest of the daemon sees it.
#[derive(Clone)]
pub(crate) struct Proxy(Arc<Keeper>);

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The operating system.
    #[error("the process that carries sessions can't be started: {0}")]
    Io(#[from] io::Error),
    /// It says so itself.
    #[error("{0}")]
    Failed(String),
    /// It says nothing.
    #[error("the process that carries sessions isn't ready within {} s", READY_WITHIN.as_secs())]
    Late,
}

struct Keeper {
    means: Means,
    sessions: Sessions,
    intake: Intake,
    /// Wakes what takes records in.
    bell: io::PipeWriter,
    user: u32,
    runtime: runtime::Handle,
    /// The lines to the process that runs.
    lines: watch::Sender<Lines>,
    turn: AtomicUsize,
    asked: Mutex<HashMap<ApprovalId, Asked>>,
    /// What is told what an operation would touch that people are asked about.
    estimates: Mutex<HashMap<ApprovalId, oneshot::Sender<BlastRadius>>>,
    /// Sockets that questions come in at: whoever comes next gets them as well.
    doors: Mutex<Vec<(Network, OwnedFd)>>,
    refused: Flood,
    stopping: AtomicBool,
    /// The process that runs did what it never does.
    misbehaves: AtomicBool,
    /// The disk has no room for records that wait.
    without_room: AtomicBool,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    process: Mutex<Option<nix::unistd::Pid>>,
    /// What the kernel lacks to confine it.
    weaker: Mutex<Vec<String>>,
    /// One tells it of a policy at a time.
    telling: Mutex<()>,
    /// The policy that it goes by.
    in_force: (Mutex<Option<PolicyHash>>, Condvar),
}

/// None while no process runs.
type Lines = Option<Arc<[Arc<ToIt>]>>;

/// A question that people have been asked for a session.
enum Asked {
    /// They haven't answered. Takes why nobody waits any more.
    Waits(oneshot::Sender<Withdrawal>),
    /// They have agreed, under this id, and the session knows it.
    Approved(ApprovalId, Arc<Request>),
}

impl Proxy {
    /// Starts the process, and keeps it running until [`Self::stop`].
    ///
    /// # Errors
    /// Where it doesn't come up the first time.
    pub(crate) async fn start(means: Means) -> Result<Self, ProxyError> {
        let user = sandbox::user(sandbox::Which::Proxy, &means.config)?;
        let outlet = means
            .journal
            .feed()
            .ok_or_else(|| io::Error::other("the journal is fed already"))?;
        let (heard, bell) = io::pipe()?;
        let keeper = Arc::new(Keeper {
            sessions: Sessions::new(means.config.limits),
            intake: Intake::new(means.journal.clone(), outlet),
            bell,
            user,
            runtime: runtime::Handle::current(),
            lines: watch::Sender::new(None),
            turn: AtomicUsize::new(0),
            asked: Mutex::default(),
            estimates: Mutex::default(),
            doors: Mutex::default(),
            refused: Flood::default(),
            stopping: AtomicBool::new(false),
            misbehaves: AtomicBool::new(false),
            without_room: AtomicBool::new(false),
            threads: Mutex::default(),
            process: Mutex::new(None),
            weaker: Mutex::default(),
            telling: Mutex::default(),
            in_force: (Mutex::new(None), Condvar::new()),
            means,
        });
        let (first, ready) = oneshot::channel();
        let spawn = |name: &str, job: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(job)
        };
        // The process ends with the thread that starts it: that one lives as long as the daemon.
        let (taking, keeping) = (keeper.clone(), keeper.clone());
        let threads = vec![
            spawn("intake", Box::new(move || taking.take_in(heard)))?,
            spawn("proxy", Box::new(move || keeping.keep(first)))?,
        ];
        *lock(&keeper.threads) = threads;
        let proxy = Self(keeper);
        match ready.await {
            Ok(Ok(())) => Ok(proxy),
            Ok(Err(error)) => {
                proxy.stop();
                Err(error)
            }
            Err(_) => Err(io::Error::other("its thread ended").into()),
        }
    }

    /// Waits until there is a process that takes sessions.
    pub(crate) async fn ready(&self) {
        let mut lines = self.0.lines.subscribe();
        // Whoever sends is alive as long as this is.
        let _ = lines.wait_for(Option::is_some).await;
    }

    /// The line that the next session goes by.
    pub(crate) fn next_line(&self) -> usize {
        self.0.turn.fetch_add(1, Ordering::Relaxed) % self.0.means.threads.max(1)
    }

    /// The sessions that are open.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// Has the proxy carry a session, whose socket is `socket`.
    ///
    /// # Errors
    /// Where it can't be handed over. Then it isn't open any more.
    pub(crate) fn hand_over(
        &self,
        (id, session): (SessionId, &Session),
        socket: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let handed = self.0.handed(id, session);
        let message = ToProxy::Connection(Box::new(handed));
        let socket = socket.try_clone_to_owned();
        let sent = socket.and_then(|socket| self.0.send(session.line, &message, vec![socket]));
        if sent.is_err() {
            self.0.sessions.end(id);
        }
        sent
    }

    /// Has the proxy answer what agents in `network` ask at `socket`.
    pub(crate) fn answer_at(&self, socket: &std::net::UdpSocket, network: &Network) {
        let net = of(network);
        let kept = socket.as_fd().try_clone_to_owned().and_then(|socket| {
            let sent = socket.try_clone()?;
            self.0.doors().push((network.clone(), socket));
            Ok(sent)
        });
        let sent = kept.and_then(|socket| {
            let line = self.0.line_of(net.cookie);
            self.0.send(line, &ToProxy::Questions(net), vec![socket])
        });
        if let Err(error) = sent {
            tracing::debug!(%error, "the proxy will hear of a socket for questions when it is there");
        }
    }

    /// Nobody asks any more in the network namespace `cookie`.
    pub(crate) fn left(&self, cookie: u64) {
        self.0
            .doors()
            .retain(|(network, _)| network.cookie() != cookie);
        // One that is gone has nothing to be told.
        let _ = self
            .0
            .send(self.0.line_of(cookie), &ToProxy::Left(cookie), Vec::new());
    }

    /// A new policy is in force: waits until it is in the proxy as well, which takes milliseconds.
    pub(crate) fn policy_changed(&self) {
        let policies = &self.0.means.policies;
        if let Err(error) = self.0.send_policy() {
            tracing::debug!(%error, "the proxy will hear of the policy when it is there");
            return;
        }
        let expected = policies.current().hash();
        let (in_force, changed) = &self.0.in_force;
        let is_behind = |hash: &mut Option<PolicyHash>| *hash != Some(expected);
        let waited = changed.wait_timeout_while(lock(in_force), IN_FORCE_WITHIN, is_behind);
        let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        if timeout.timed_out() {
            tracing::warn!("the process that carries sessions takes long to take the new policy");
        }
    }

    /// Ends all sessions of an agent, by its number.
    pub(crate) fn sever(&self, agent: u64) {
        for (session, line) in self.0.sessions.of_agent(agent) {
            let _ = self.0.send(line, &ToProxy::Sever(session), Vec::new());
        }
    }

    /// Why no records are taken, where that is because none can wait.
    pub(crate) fn stopped(&self) -> Option<Stopped> {
        let without_room = self.0.without_room.load(Ordering::Relaxed);
        without_room.then(|| {
            let state = self.0.means.config.state.display();
            Stopped(format!("{state}: No space left on the device for records that wait").into())
        })
    }

    /// How the process is, if one runs.
    pub(crate) fn status(&self) -> Option<ProxyStatus> {
        self.0.lines.borrow().as_ref()?;
        let pid = self.0.process().as_ref().copied()?;
        Some(ProxyStatus {
            pid: u32::try_from(pid.as_raw()).ok()?,
            user: self.0.user,
            weaker: lock(&self.0.weaker).clone(),
        })
    }

    /// Ends the process, and has on record what it left.
    pub(crate) fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.end_process();
        let _ = io::Write::write(&mut &self.0.bell, &[0]);
        for thread in std::mem::take(&mut *lock(&self.0.threads)) {
            let _ = thread.join();
        }
    }
}

/// A network as the proxy is told of it.
fn of(network: &Network) -> NetworkId {
    NetworkId {
        cookie: network.cookie(),
        is_host: network.is_host(),
    }
}

impl Keeper {
    fn asked(&self) -> MutexGuard<'_, HashMap<ApprovalId, Asked>> {
        lock(&self.asked)
    }

    fn doors(&self) -> MutexGuard<'_, Vec<(Network, OwnedFd)>> {
        lock(&self.doors)
    }

    fn process(&self) -> MutexGuard<'_, Option<nix::unistd::Pid>> {
        lock(&self.process)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The network namespace `cookie`, if agents are served there.
    fn network_of(&self, cookie: u64) -> Option<Network> {
        let doors = self.doors();
        let mut networks = doors.iter().map(|(network, _)| network);
        networks.find(|network| network.cookie() == cookie).cloned()
    }

    /// The line by which everything of DNS goes in the network namespace `cookie`.
    fn line_of(&self, cookie: u64) -> usize {
        usize::try_from(cookie).unwrap_or(0) % self.means.threads.max(1)
    }

    fn handed(&self, session: SessionId, of_it: &Session) -> Handed {
        let Session {
            origin, network, ..
        } = of_it;
        let names = &self.means.names;
        Handed {
            session,
            origin: origin.clone(),
            names: match origin.destination.ip() {
                Some(ip) => names.known(&origin.agent.name, ip),
                None => Vec::new(),
            },
            network: of(network),
        }
    }

    fn send(&self, line: usize, message: &ToProxy, sockets: Vec<OwnedFd>) -> io::Result<()> {
        let lines = self.lines.borrow().clone();
        let line = lines.as_ref().and_then(|lines| lines.get(line));
        line.ok_or(io::ErrorKind::BrokenPipe)?
            .send(message, sockets)
    }

    /// Tells the process what the policy is now.
    fn send_policy(&self) -> io::Result<()> {
        // Of two at once the one that read last has to be heard last.
        let _turn = lock(&self.telling);
        let message = ToProxy::Policy(self.means.policies.files());
        self.send(0, &message, Vec::new())
    }

    fn end_process(&self) {
        if let Some(pid) = *self.process() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Takes records in for as long as the daemon runs.
    fn take_in(&self, mut bell: io::PipeReader) {
        loop {
            match self.intake.drain(&self.sessions) {
                Ok(_) => {
                    if self.is_stopping() {
                        return;
                    }
                    if !self.intake.sleep() {
                        let mut rung = [0; 64];
                        let _ = io::Read::read(&mut bell, &mut rung);
                    }
                    thread::sleep(intake::GATHER);
                }
                Err(Left::Busy) => thread::sleep(intake::BUSY),
                Err(Left::Stopped(_)) if self.is_stopping() => return,
                Err(Left::Stopped(_)) => thread::sleep(intake::STOPPED),
                Err(Left::Misbehaved(what)) => {
                    self.misbehaved(&what);
                    thread::sleep(intake::STOPPED);
                }
            }
        }
    }

    /// The process did what it never does: it can't be trusted any more. What it wrote before that is taken.
    fn misbehaved(&self, what: &str) {
        if self.misbehaves.swap(true, Ordering::Relaxed) {
            return self.end_process();
        }
        tracing::error!(
            what,
            "the process that carries sessions does what it never does: it is ended"
        );
        let event = Event::notice("proxy_misbehaved", [("what", what.to_owned())]);
        self.record(event);
        self.end_process();
    }

    fn record(&self, event: Event) {
        let nobody: Arc<str> = Arc::from("");
        let _ = self
            .means
            .journal
            .append(None, &nobody, clock::now(), [event]);
    }

    /// Starts the process, and another one when it ends, until the daemon stops.
    fn keep(self: &Arc<Self>, first: oneshot::Sender<Result<(), ProxyError>>) {
        let mut first = Some(first);
        let mut pause = PAUSE;
        loop {
            let since = Instant::now();
            let run = self.run(|| {
                if let Some(first) = first.take() {
                    let _ = first.send(Ok(()));
                }
            });
            self.lines.send_replace(None);
            self.without_room.store(false, Ordering::Relaxed);
            *self.process() = None;
            let how = match &run {
                Ok(how) => how.clone(),
                Err(error) => error.to_string(),
            };
            self.close_sessions(&how);
            if let (Some(first), Err(error)) = (first.take(), run) {
                let _ = first.send(Err(error));
                return;
            }
            if self.is_stopping() {
                return;
            }
            tracing::error!(
                how,
                "the process that carries sessions ended; another one is started"
            );
            self.record(Event::notice("proxy_ended", [("how", how)]));
            if since.elapsed() > WELL {
                pause = PAUSE;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Runs one process until it ends; how it ended.
    fn run(self: &Arc<Self>, is_ready: impl FnOnce()) -> Result<String, ProxyError> {
        self.misbehaves.store(false, Ordering::Relaxed);
        let (mut process, ends) = Process::start(self.means.threads)?;
        *self.process() = Some(process.pid());
        if self.is_stopping() {
            self.end_process();
        }
        let entered = self.runtime.enter();
        let lines: io::Result<Vec<Arc<ToIt>>> = ends
            .own
            .into_iter()
            .map(|end| Ok(Arc::new(ToIt::new(end)?)))
            .collect();
        drop(entered);
        let lines: Arc<[Arc<ToIt>]> = lines?.into();
        let Some(main) = lines.first() else {
            return Err(io::Error::other("no line").into());
        };
        let mut passed = vec![
            OwnedFd::from(self.intake.file()?),
            OwnedFd::from(self.bell.try_clone()?),
        ];
        passed.extend(ends.others);
        main.send(&ToProxy::Begin(Box::new(self.begin())), passed)?;
        let hearing = self.runtime.block_on(async {
            let mut hearing = JoinSet::new();
            for (index, line) in lines.iter().enumerate() {
                let flushed = line.clone();
                hearing.spawn(async move {
                    let _ = flushed.flush().await;
                });
                if index > 0 {
                    hearing.spawn(self.clone().hear(line.clone()));
                }
            }
            match tokio::time::timeout(READY_WITHIN, main.receive()).await {
                Ok(Ok(Some((ToDaemon::Ready(weaker), _)))) => {
                    *lock(&self.weaker) = weaker;
                    Ok(hearing)
                }
                Ok(Ok(Some((ToDaemon::Failed(why), _)))) => Err(ProxyError::Failed(why)),
                Ok(Ok(Some(_))) => Err(io::Error::other("it says something else first").into()),
                Ok(Ok(None)) => Err(io::Error::other("it ended at once").into()),
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(ProxyError::Late),
            }
        });
        let mut hearing = hearing?;
        hearing.spawn_on(self.clone().hear(main.clone()), &self.runtime);
        self.lines.send_replace(Some(lines.clone()));
        // What changed while it came up.
        let _ = self.send_policy();
        for (network, socket) in &*self.doors() {
            let network = of(network);
            if let (Ok(socket), Some(line)) =
                (socket.try_clone(), lines.get(self.line_of(network.cookie)))
            {
                let _ = line.send(&ToProxy::Questions(network), vec![socket]);
            }
        }
        is_ready();
        process.wait()?;
        // What it said last has been said; nobody waits for an answer.
        drop(hearing);
        // Nobody may end it any more.
        *self.process() = None;
        Ok(process.bury()?)
    }

    fn begin(&self) -> Begin {
        let config = &self.means.config;
        Begin {
            config: config.source.clone(),
            policy: self.means.policies.files(),
            authority: self.means.authority.der().to_vec(),
            network: NetworkId {
                cookie: self.means.kernel.own_netns(),
                is_host: true,
            },
            user: self.user,
            lines: self.means.threads.saturating_sub(1),
        }
    }

    /// Has on record that the sessions that the process carried are over, when all that it wrote is.
    fn close_sessions(&self, how: &str) {
        loop {
            match self.intake.drain(&self.sessions) {
                Ok(_) => break,
                Err(Left::Busy) => thread::sleep(intake::BUSY),
                Err(Left::Stopped(_)) if self.is_stopping() => break,
                Err(Left::Stopped(_)) => thread::sleep(intake::STOPPED),
                Err(Left::Misbehaved(what)) => {
                    self.misbehaved(&what);
                    // Nobody writes there any more, and what is in order was taken.
                    self.intake.forget();
                }
            }
        }
        let reason = if self.is_stopping() {
            "the daemon stopped".to_owned()
        } else {
            format!("the process that carried it ended: {how}")
        };
        // Of what was approved nobody can tell whether it was used.
        for (_, asked) in self.asked().drain() {
            if let Asked::Approved(id, _) = asked {
                self.means.approvals.used(id);
            }
        }
        for (id, mut session) in self.sessions.end_all() {
            let Some((event, tally)) = session.last_words(&reason) else {
                continue;
            };
            let journal = &self.means.journal;
            let recorded = journal.append(Some(id), &session.agent, clock::now(), [event]);
            if let (Ok(_), Some(tally)) = (recorded, tally) {
                tally.turned_away();
            }
        }
    }

    /// Hears what the process says on a line, for as long as it says something sensible.
    async fn hear(self: Arc<Self>, line: Arc<ToIt>) {
        // Dropped with the line: nobody would hear the answers.
        let (mut answering, mut asking) = (JoinSet::new(), JoinSet::new());
        loop {
            // Sessions ask one thing at a time: who asks for more waits.
            while answering.len() >= ANSWERS_MAX && answering.join_next().await.is_some() {}
            let (message, _) = match line.receive().await {
                Ok(Some(message)) => message,
                // Without one of its threads it is no use.
                Ok(None) => return self.end_process(),
                Err(error) => return self.misbehaved(&error.to_string()),
            };
            while answering.try_join_next().is_some() {}
            let (keeper, back) = (self.clone(), line.clone());
            match message {
                ToDaemon::Ready(_) | ToDaemon::Failed(_) => {
                    return self.misbehaved("it says again that it is ready");
                }
                ToDaemon::Ended(session) => {
                    answering.spawn(async move { keeper.ended(session).await });
                }
                ToDaemon::Ask(ask) => {
                    let (withdrawn, withdrawal) = oneshot::channel();
                    let asked = Asked::Waits(withdrawn);
                    self.asked().insert(ask.approval, asked);
                    let estimate = self.estimate(&ask);
                    while asking.try_join_next().is_some() {}
                    asking.spawn(
                        async move { keeper.ask(*ask, (withdrawal, estimate), &back).await },
                    );
                }
                ToDaemon::Estimated(asked, radius) => {
                    let estimated = lock(&self.estimates).remove(&asked);
                    // Its question may be over.
                    let _ = estimated.map(|estimated| estimated.send(*radius));
                }
                ToDaemon::Withdraw(approval, why) => self.withdraw(approval, why),
                ToDaemon::NoRoom(is_full) => self.without_room.store(is_full, Ordering::Relaxed),
                ToDaemon::InForce(hash) => {
                    *lock(&self.in_force.0) = Some(hash);
                    self.in_force.1.notify_all();
                }
                ToDaemon::Call(call, question) => {
                    answering.spawn(async move {
                        let (answer, sockets) = keeper.answer(question).await;
                        let _ = back.send(&ToProxy::Answer(call, answer), sockets);
                    });
                }
            }
        }
    }

    /// Waits until what the process has written by now is in the journal.
    async fn settled(&self) -> Result<(), Left> {
        loop {
            match self.intake.drain(&self.sessions) {
                Ok(_) => return Ok(()),
                Err(Left::Busy) => tokio::time::sleep(intake::BUSY).await,
                Err(left) => return Err(left),
            }
        }
    }

    async fn ended(&self, session: SessionId) {
        while let Err(left) = self.settled().await {
            if let Left::Misbehaved(what) = left {
                return self.misbehaved(&what);
            }
            tokio::time::sleep(intake::STOPPED).await;
        }
        self.sessions.end(session);
        self.asked().retain(|_, asked| match asked {
            Asked::Approved(id, request) if request.session == session => {
                self.means.approvals.used(*id);
                false
            }
            Asked::Waits(_) | Asked::Approved(..) => true,
        });
    }
}
