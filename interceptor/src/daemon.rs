//! The daemon put together: kernel, journal, policies, approvals, listeners, control API.

mod log;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use interceptor_core::{
    origin::Agent,
    policy::PolicyError,
    record::{Event, SessionId, Timestamp},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    accept::Acceptor,
    approval::{Approvals, KeyError, Reviewers, SecurityKeys, Voter},
    books::Books,
    clock,
    config::{Config, OldSockets},
    confine::Places,
    console::{Console, sources},
    control::{
        self, AgentConnects, ConsoleDesk, ConsoleStatus, ControlSocket, Deed, Done, Failure,
        FailureKind, Host, JournalStatus, Links, NewDeed, NewTag, OldSocketCounts, Person,
        PolicyFile, PolicyStatus, PolicyText, Role, SocketError, Status, TagTarget, Tagged,
        Trouble, Way,
    },
    cores::Cores,
    credentials::Vault,
    dns::Names,
    engines::Engines,
    follow, guard,
    journal::{Journal, JournalError, Stopped},
    kernel::{Fate, Finding, Found, Kernel, KernelError, Tag, TagKind, UnixAccess, Unrouted},
    namespaces::{ARM_EVERY, Door, Doors, Namespaces, Network},
    policies::{Change, Policies},
    proxy::{Means, Proxy, ProxyError},
    reach::Reach,
    refusals,
    retention::Retainer,
    ship::Ships,
    stream::Streams,
    tls::{Authority, AuthorityError},
    witness::Witnesses,
};

/// How often launched agents of which nothing runs any more are looked for.
const CLEAR_EVERY: Duration = Duration::from_secs(5);

/// How often names and servers are looked through that nobody needs any more.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Why the daemon doesn't start or doesn't go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The policy is missing or broken.
    #[error("the policy can't be used:\n{0}")]
    Policy(#[from] PolicyError),
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The process that carries sessions, or a file that the configuration names for it.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The console, or a file that the configuration names for it.
    #[error("the console: {0}")]
    Console(std::io::Error),
    /// The file of security keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The journal takes no records.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] SocketError),
    /// Nobody can be served.
    #[error("can't listen on 127.0.0.1, where agents are met: {0}")]
    Listen(String),
    /// Sessions can't be encrypted as they are to be.
    #[error("the session log can't be encrypted: {0}")]
    Encryption(String),
    /// The operating system.
    #[error("{what}: {error}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The operating system's answer.
        error: std::io::Error,
    },
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> ServeError {
    move |error| ServeError::Io { what, error }
}

/// The daemon, as the control API sees it.
struct Daemon {
    config: Config,
    /// What is kept for the console, if there is one.
    desk: Option<ConsoleDesk>,
    started: Timestamp,
    kernel: Arc<Kernel>,
    journal: Journal,
    policies: Arc<Policies>,
    approvals: Approvals,
    names: Arc<Names>,
    reach: Arc<Reach>,
    books: Arc<Books>,
    authority: String,
    proxy: Proxy,
    engines: Engines,
    witnesses: Witnesses,
    ships: Arc<Ships>,
    streams: Streams,
    retainer: Arc<Retainer>,
    /// Since it runs.
    namespaces: OnceLock<Namespaces>,
    /// Likewise.
    pages: OnceLock<Console>,
}

/// Serves until SIGTERM or SIGINT. Then the hooks stay, so that agents stay refused until the next
/// start, unless `remove_hooks` says to take everything away.
///
/// # Errors
/// Where it can't start. What is wrong later is logged, recorded and shown by `status`.
pub fn serve(config: Config, remove_hooks: bool) -> Result<(), ServeError> {
    raise_descriptor_limit(config.limits.connections.get().into());
    let cores = Cores::divided();
    cores.for_the_rest().keep();
    // Answers people and accepts; the data plane has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(io("starting the runtime"))?;
    let _guard = runtime.enter();
    // The policy first: it is what people get wrong, and nothing has been touched yet.
    let policies = Arc::new(Policies::open(&config.policies)?);
    // Before it is opened: the checkpoint that stands there is of what nobody adds to any more.
    let ships = Ships::new(&config.journal.ship, &config.state, &config.tls.roots)
        .map_err(io("reading what TLS is to believe"))?;
    let retainer = Retainer::new(config.journal.retention.clone(), &config.state);
    let journal = Journal::open_with(&config.state, &log::options(&config, &retainer)?)?;
    let authority = Authority::open(&config.state, &config.tls.ca.name, config.tls.ca.days)?;
    let mut streams = Streams::new(&config.journal.stream, &config.state, &config.tls.roots)
        .map_err(io("reading what TLS is to believe"))?;
    let (recovered, past, told) = log::take_up(&journal, &mut streams, &retainer)?;
    let control = ControlSocket::bind(&config.control)?;
    // Moves this process into its own cgroup: every socket opened from here on is the daemon's.
    let kernel = Arc::new(Kernel::open(config.instance.as_str())?);
    let vault = Vault::new(config.credentials.clone());
    for problem in vault.problems() {
        tracing::warn!("agents can't be logged in with {problem}");
    }
    let break_glass = config.approvals.break_glass.clone();
    let site = config.console.as_ref().map(|console| console.site.clone());
    let keys = Arc::new(SecurityKeys::open(&config.state, site)?);
    let reviewers = Reviewers::new(config.reviewers.clone(), break_glass).signing_with(keys);
    let approvals = Approvals::new(journal.clone(), reviewers, clock::now);
    approvals.recover(recovered, clock::now());
    let names = Arc::new(Names::new(!config.dns.servers.is_empty()));
    let reach = Reach::new(kernel.clone(), policies.clone(), names.clone());
    let reach = Arc::new(reach);
    let books = Books::open(kernel.clone(), journal.clone(), &past);
    let books = Arc::new(books);
    let authority_pem = authority.pem().to_owned();
    let proxy = runtime.block_on(Proxy::start(Means {
        config: config.clone(),
        kernel: kernel.clone(),
        journal: journal.clone(),
        policies: policies.clone(),
        approvals: approvals.clone(),
        vault,
        names: names.clone(),
        reach: reach.clone(),
        authority,
        threads: cores.for_data().count(),
    }))?;
    let engines = Engines::new(
        config.instance.as_str(),
        kernel.clone(),
        journal.clone(),
        proxy.clone(),
        runtime.handle().clone(),
    );
    let desk = config.console.as_ref().map(|console| ConsoleDesk {
        url: console.site.origin.clone(),
        links: Links::default(),
        secrets: sources(&config.notify).cloned().collect(),
        told,
    });
    let witnesses = Witnesses::new(&config.journal, &config.tls.roots)
        .map_err(io("reading what TLS is to believe"))?;
    let daemon = Arc::new(Daemon {
        desk,
        config,
        started: clock::now(),
        kernel,
        journal,
        policies,
        approvals,
        names,
        reach,
        books,
        authority: authority_pem,
        proxy,
        engines,
        witnesses,
        ships: Arc::new(ships),
        streams,
        retainer: Arc::new(retainer),
        namespaces: OnceLock::new(),
        pages: OnceLock::new(),
    });
    let result = runtime.block_on(daemon.clone().run(control));
    daemon.engines.stop();
    daemon.approvals.stop();
    daemon.proxy.stop();
    if remove_hooks {
        daemon.engines.clear(|_| false);
        daemon.kernel.remove_all()?;
    }
    daemon.books.close_all();
    daemon.record(
        "daemon_stopped",
        [(
            "hooks",
            if remove_hooks { "removed" } else { "kept" }.to_owned(),
        )],
    );
    daemon.journal.close();
    runtime.block_on(async {
        let state = &daemon.config.state;
        let (ships, streams) = (daemon.ships.last(), daemon.streams.last(&daemon.journal));
        tokio::join!(daemon.witnesses.last(state), ships, streams);
    });
    result
}

/// Has as many descriptors as the hard limit allows: two a connection, and some for the rest.
fn raise_descriptor_limit(connections: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const OTHERS: u64 = 256;
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let enough = connections * 2 + OTHERS;
    if hard < enough {
        tracing::warn!(
            "this process may have {hard} descriptors, and {connections} connections (`limits.connections`) take {enough}: raise the limit (LimitNOFILE= in a systemd unit) or lower that of connections"
        );
    }
}

impl Daemon {
    async fn run(self: Arc<Self>, control: ControlSocket) -> Result<(), ServeError> {
        let acceptor = Arc::new(Acceptor::new(
            self.kernel.clone(),
            self.journal.clone(),
            self.books.clone(),
            self.proxy.clone(),
            self.config.console.as_ref().map(|console| console.listen),
        ));
        let own = Network::Host {
            cookie: self.kernel.own_netns(),
        };
        let (mut doors, mut open) = (Doors::default(), Vec::new());
        let shut = doors.open(&self.kernel, self.config.listen, |door| open.push(door));
        for shut in &shut {
            // A host without IPv6 has no agents that use it either: their connects are refused.
            tracing::warn!("{shut}");
        }
        let ports = doors.ports();
        let ([proxy_v4, _], [dns_v4, _]) = (ports.proxy, ports.dns);
        if proxy_v4 == 0 || dns_v4 == 0 {
            let why: Vec<String> = shut.iter().map(ToString::to_string).collect();
            return Err(ServeError::Listen(why.join(", ")));
        }
        self.refresh_reach();
        self.kernel
            .arm(self.kernel.own_netns(), ports, Unrouted::now())?;
        self.record(
            "daemon_started",
            [("version", env!("CARGO_PKG_VERSION").to_owned())],
        );
        let (config, journal) = (&self.config, &self.journal);
        let every = config.journal.witness_every;
        self.witnesses.start(journal, &config.state, every);
        self.ships.start(journal);
        self.streams.start(journal);
        let ships = self.ships.clone();
        self.retainer
            .start(journal, move |segment| ships.waits_for(segment));
        for door in open {
            match door {
                Door::Proxy(listener) => {
                    let (acceptor, network) = (acceptor.clone(), own.clone());
                    tokio::spawn(async move { acceptor.accept(listener, network).await });
                }
                Door::Dns(socket) => self.proxy.answer_at(&socket, &own),
            }
        }
        let namespaces = Namespaces::start(
            self.kernel.clone(),
            acceptor,
            self.proxy.clone(),
            self.journal.clone(),
            self.config.listen,
        )
        .map_err(io("serving other network namespaces"))?;
        let alarm = namespaces.alarm();
        let _ = self.namespaces.set(namespaces);
        let daemon = self.clone();
        tokio::spawn(async move {
            let mut timer = tokio::time::interval(ARM_EVERY);
            loop {
                timer.tick().await;
                let own = daemon.kernel.own_netns();
                if let Err(error) = daemon.kernel.arm(own, ports, Unrouted::now()) {
                    tracing::error!(%error, "agents' connects will be refused");
                }
            }
        });
        tokio::spawn(self.clone().clear_ended());
        tokio::spawn(self.books.clone().keep());
        tokio::spawn(self.clone().forget_names());
        let daemon = self.clone();
        let again = move |tag: &Tag| {
            let agent = ((*tag.agent).clone(), tag.kind);
            daemon.forget(tag.number);
            daemon.tag_running(&tag.cgroup, agent, None, tag.unix.clone())
        };
        tokio::spawn(follow::follow(
            self.kernel.clone(),
            self.journal.clone(),
            move |tag| again(tag).map(|_| ()),
        ));
        if let Some(events) = self.kernel.take_events() {
            let journal = self.journal.clone();
            let (kernel, reach) = (self.kernel.clone(), self.reach.clone());
            tokio::spawn(refusals::follow(kernel, reach, journal, events, alarm));
        }
        let (journal, tags) = (self.journal.clone(), self.config.tags.clone());
        let unfinished = self.kernel.finish_tagging(guard::handling(&tags, None));
        guard::record(&journal, unfinished);
        tokio::spawn(guard::look_after(self.kernel.clone(), journal, tags));
        let daemon = self.clone();
        let watcher = self
            .policies
            .watch(move |change| daemon.policy_changed(&change));
        if let Err(error) = &watcher {
            tracing::error!(%error, "the policy folder can't be watched; send SIGHUP after a change");
        }
        // What changed between the start and the watch nobody tells of.
        let missed = self.policies.reload();
        self.policy_changed(&missed);
        let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
        let host: Arc<dyn Host> = self.clone();
        let (lines, consoles) = mpsc::unbounded_channel();
        let pages = self.config.console.as_ref();
        let pages = pages.map(|console| Console::start(&self.config, console, lines));
        if let Some(pages) = pages.transpose().map_err(ServeError::Console)? {
            let _ = self.pages.set(pages);
        }
        let api = tokio::spawn(control::serve(control, host, consoles, async {
            let _ = stopping.await;
        }));
        if let Some(console) = &self.config.console {
            tracing::info!(url = &*console.site.origin, "the console is there");
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(control = %self.config.control.display(), state = %self.config.state.display(), "ready");
        self.wait_for_the_end().await?;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.kernel.disarm(self.kernel.own_netns());
        if let Some(namespaces) = self.namespaces.get() {
            namespaces.stop();
        }
        if let Some(pages) = self.pages.get() {
            pages.stop();
        }
        let _ = stop.send(());
        let _ = api.await;
        drop(watcher);
        Ok(())
    }

    /// Removes launched agents whose `interceptor run` was killed before it could do so itself.
    async fn clear_ended(self: Arc<Self>) {
        let mut timer = tokio::time::interval(CLEAR_EVERY);
        let mut before: Vec<(u64, String)> = Vec::new();
        loop {
            timer.tick().await;
            let (daemon, suspects) = (self.clone(), before);
            let cleared = tokio::task::spawn_blocking(move || {
                let ended = daemon.kernel.ended();
                // Twice in a row: what was seen once may be on its way into its cgroup.
                for (number, agent) in ended.iter().filter(|ended| suspects.contains(ended)) {
                    let event = Event::notice(
                        "tag_removed",
                        [
                            ("by", "interceptor".to_owned()),
                            ("detail", "nothing of it runs any more".to_owned()),
                        ],
                    );
                    let journal = &daemon.journal;
                    let _ = journal.append(None, &Arc::from(&**agent), clock::now(), [event]);
                    match daemon.kernel.untag(agent) {
                        Ok(_) => daemon.forget(*number),
                        Err(error) => {
                            tracing::warn!(agent, %error, "an agent that has ended can't be removed");
                        }
                    }
                }
                ended
            });
            before = cleared.await.unwrap_or_default();
        }
    }

    /// Forgets servers that nobody asks any more, and names that have ended.
    async fn forget_names(self: Arc<Self>) {
        let mut timer = tokio::time::interval(FORGET_EVERY);
        loop {
            timer.tick().await;
            let daemon = self.clone();
            let _ = tokio::task::spawn_blocking(move || {
                daemon.kernel.sweep_tokens();
                let agents = daemon.kernel.tags();
                let is_alive = |name: &str| agents.iter().any(|tag| &*tag.agent.name == name);
                daemon.names.sweep(is_alive);
                daemon.refresh_reach();
            })
            .await;
        }
    }

    /// Makes a cgroup in which something may run an agent.
    fn tag_running(
        &self,
        cgroup: &Path,
        agent: (Agent, TagKind),
        old: Option<OldSockets>,
        unix: UnixAccess,
    ) -> Result<(Tag, OldSocketCounts), KernelError> {
        if let Some(namespaces) = self.namespaces.get() {
            // First, so that nothing of it is refused meanwhile.
            namespaces.serve_in(&self.kernel.resolve(cgroup)?, &agent.0.name);
        }
        let handling = guard::handling(&self.config.tags, old);
        let (made, strays) = self.kernel.tag_running(cgroup, agent, handling, unix)?;
        self.refresh_reach();
        self.books.begin(&made);
        let mut counts = OldSocketCounts::default();
        for stray in &strays {
            match stray.fate {
                Fate::Cut => counts.cut += 1,
                Fate::Allowed => counts.allowed += 1,
                Fate::Kept => counts.kept += 1,
                Fate::Uncut { .. } => counts.uncut += 1,
            }
        }
        let name: Arc<str> = Arc::from(&*made.agent.name);
        let findings = strays.into_iter().map(|stray| Finding {
            agent: name.clone(),
            what: Found::Stray(stray),
        });
        guard::record(&self.journal, findings);
        Ok((made, counts))
    }

    /// Until SIGTERM or SIGINT; SIGHUP reloads the policy.
    async fn wait_for_the_end(&self) -> Result<(), ServeError> {
        let handler = |kind| signal(kind).map_err(io("handling signals"));
        let (mut terminate, mut interrupt, mut hang_up) = (
            handler(SignalKind::terminate())?,
            handler(SignalKind::interrupt())?,
            handler(SignalKind::hangup())?,
        );
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hang_up.recv() => {
                    let change = self.policies.reload();
                    self.policy_changed(&change);
                }
            }
        }
    }

    /// Lets go of what there is for an agent that isn't one any more, by its number.
    fn forget(&self, number: u64) {
        self.engines.close(number);
        self.books.close(number);
    }

    /// Has the kernel let by what the rules say now, of agents as they are now.
    fn refresh_reach(&self) {
        if let Err(error) = self.reach.refresh() {
            tracing::error!(%error, "not all that rules with `udp` and `inbound` allow passes");
        }
    }

    fn policy_changed(&self, change: &Change) {
        match change {
            Change::Unchanged => {}
            Change::Loaded { hash } => {
                self.refresh_reach();
                self.proxy.policy_changed();
                tracing::info!(hash, "a new policy is in force");
                self.record("policy_loaded", [("policy", hash.clone())]);
            }
            Change::Broken { error } => {
                tracing::error!(
                    "the policy files are broken, the policy before stays in force:\n{error}"
                );
                self.record("policy_broken", [("error", error.clone())]);
            }
        }
    }

    fn record<const N: usize>(&self, name: &str, detail: [(&str, String); N]) {
        let event = Event::notice(name, detail);
        let _ = self
            .journal
            .append(None, &Arc::from(""), clock::now(), [event]);
    }

    /// Records who did what to an agent, before it is done.
    fn record_deed(
        &self,
        name: &str,
        agent: &str,
        by: &Person,
        detail: &str,
    ) -> Result<(), Failure> {
        let event = Event::notice(
            name,
            [("by", by.to_string()), ("detail", detail.to_owned())],
        );
        self.journal
            .append(None, &Arc::from(agent), clock::now(), [event])?;
        Ok(())
    }
}

fn counted(connects: u64) -> String {
    match connects {
        1 => "1 connect".to_owned(),
        more => format!("{more} connects"),
    }
}

fn tagged(kernel: &Kernel, tag: Tag) -> Tagged {
    Tagged {
        agent: tag.agent.name.clone(),
        labels: tag.agent.labels.clone(),
        frozen: kernel.is_frozen(&tag),
        away: false,
        old_sockets: OldSocketCounts {
            allowed: kernel.old_sockets_open(&tag),
            ..OldSocketCounts::default()
        },
        cautions: Vec::new(),
        stand_ins: Vec::new(),
        cgroup: tag.cgroup,
        kind: tag.kind,
    }
}

impl Host for Daemon {
    fn authority(&self) -> String {
        self.authority.clone()
    }

    fn status(&self) -> Result<Status, Failure> {
        let policies = &self.policies;
        let state = policies.state();
        let policy = policies.current();
        let stopped = self.journal.stopped().or_else(|| self.proxy.stopped());
        let mut troubles = Vec::new();
        let mut trouble = |what: String, remedy: &str| {
            troubles.push(Trouble {
                what,
                remedy: remedy.to_owned(),
            })
        };
        if let Some(broken) = &state.broken {
            trouble(
                format!("the policy files are broken: {broken}"),
                "mend them; the policy before stays in force",
            );
        }
        if let Some(stopped) = &stopped {
            trouble(
                stopped.to_string(),
                "make room on the disk of the state folder, or mend it; nothing passes until then",
            );
        }
        if !policy.is_enforced() {
            trouble(
                "the policy only observes: nothing is denied, held or masked".to_owned(),
                "remove `enforce: false` when you trust it",
            );
        }
        let connects: Vec<AgentConnects> = self
            .books
            .accounts()
            .into_iter()
            .map(AgentConnects::from)
            .collect();
        for agent in &connects {
            if agent.unaccounted > 0 {
                trouble(
                    format!(
                        "{} of agent `{}` not accounted for: redirected, and nothing of what became of it is on record",
                        counted(agent.unaccounted),
                        agent.account.agent
                    ),
                    "look for what the daemon's log says of them; nothing passes that can't be recorded",
                );
            }
        }
        if self.proxy.status().is_none() {
            trouble(
                "the process that carries sessions doesn't run: connections wait".to_owned(),
                "it is started again by itself; the daemon's log says why it ended",
            );
        }
        if self.pages.get().is_some_and(|pages| pages.pid().is_none()) {
            trouble(
                "the console's process doesn't run".to_owned(),
                "it is started again by itself; the daemon's log says why it ended",
            );
        }
        for (what, remedy) in self.witnesses.troubles() {
            trouble(what, remedy);
        }
        let copies = self.ships.troubles().into_iter();
        for (what, remedy) in copies.chain(self.streams.troubles()) {
            trouble(what, remedy);
        }
        for (what, remedy) in self.kernel.troubles() {
            trouble(what, &remedy);
        }
        if let Some((what, remedy)) = self.retainer.trouble() {
            trouble(what, remedy);
        }
        let retained = self.retainer.standing();
        let counters = serde_json::to_value(self.kernel.counters()).unwrap_or_default();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.config.instance.to_string(),
            pid: std::process::id(),
            proxy: self.proxy.status(),
            console: self.desk.as_ref().map(|desk| ConsoleStatus {
                url: desk.url.clone(),
                pid: self.pages.get().and_then(Console::pid),
            }),
            started: self.started,
            agents: self.kernel.tags().len() as u64,
            sessions: self.proxy.sessions().count() as u64,
            approvals: self.approvals.pending() as u64,
            policy: PolicyStatus {
                hash: policy.hash().to_string(),
                path: policies.path().to_owned(),
                rules: policy.rule_count() as u64,
                loaded: state.loaded,
                broken: state.broken,
            },
            journal: JournalStatus {
                path: self.config.state.clone(),
                last_seq: self.journal.last_seq(),
                stopped: stopped.map(|stopped| stopped.to_string()),
                copies: self.ships.status(),
                streams: self.streams.status(&self.journal),
                bytes: retained.bytes,
                bytes_max: self.retainer.bytes_max(),
                held: retained.held,
                encrypted: self.journal.encrypts(),
                erased: retained.erased,
            },
            kernel: serde_json::from_value(counters).unwrap_or_default(),
            connects,
            troubles,
        })
    }

    fn places(&self) -> Places {
        self.config.places()
    }

    fn agents(&self) -> Result<Vec<Tagged>, Failure> {
        // What has just ended is neither otherwise, until the next look.
        self.kernel.set_aside();
        let tags = self.kernel.tags().into_iter();
        let away = self.kernel.away().into_iter().map(|tag| Tagged {
            away: true,
            ..tagged(&self.kernel, tag)
        });
        Ok(tags
            .map(|tag| tagged(&self.kernel, tag))
            .chain(away)
            .collect())
    }

    fn tag(&self, tag: NewTag, by: &Person) -> Result<Tagged, Failure> {
        let agent = Agent {
            name: tag.agent,
            labels: tag.labels,
        };
        let unix = guard::unix_access(&self.config.tags, tag.unix_sockets, tag.allow_sockets);
        let mut what = format!("{:?}", tag.target);
        let hooked = (tag.target != TagTarget::New).then_some(&unix);
        match guard::unguarded(&self.config.tags, hooked, tag.open_sockets)? {
            Some(open) => what = format!("{what}, {open}"),
            None => what.extend(hooked.map(|unix| format!(", {unix}"))),
        }
        if let Some(confined) = &tag.confined {
            what = format!("{what}, {confined}");
        }
        if !tag.engines.is_empty() {
            if tag.target != TagTarget::New {
                let what = "only what `interceptor run` launches is shown sockets in the place of container engines'";
                return Err(Failure::new(FailureKind::Invalid, what));
            }
            let engines: Vec<_> = tag
                .engines
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            what = format!("{what}, with {} through the daemon", engines.join(", "));
        }
        self.record_deed("tag_added", &agent.name, by, &what)?;
        let kind = match &tag.target {
            TagTarget::Unit(_) | TagTarget::Container(_) => TagKind::Followed,
            TagTarget::Cgroup(_) | TagTarget::Pid(_) => TagKind::Existing,
            TagTarget::New => TagKind::Launched,
        };
        let cgroup = match tag.target {
            TagTarget::New => {
                let made = self.kernel.tag_new(agent)?;
                self.refresh_reach();
                self.books.begin(&made);
                let stand_ins = self.engines.open(&made, &tag.engines).map_err(|error| {
                    let failure = Failure::new(FailureKind::Invalid, error);
                    match self.untag(&made.agent.name, by) {
                        Ok(_) => failure,
                        Err(left) => failure.with_remedy(&format!(
                            "its cgroup stays, too ({left}); try `interceptor tag remove {}`",
                            made.agent.name
                        )),
                    }
                })?;
                return Ok(Tagged {
                    stand_ins,
                    ..tagged(&self.kernel, made)
                });
            }
            TagTarget::Cgroup(path) => path,
            TagTarget::Unit(name) => self.kernel.cgroup_of_unit(&name)?,
            TagTarget::Container(id) => self.kernel.cgroup_of_container(&id)?,
            TagTarget::Pid(pid) => self.kernel.cgroup_of(pid).ok_or_else(|| {
                Failure::new(FailureKind::Missing, format!("there is no process {pid}"))
            })?,
        };
        let (made, counts) = self.tag_running(&cgroup, (agent, kind), tag.old_sockets, unix)?;
        let cautions = guard::cautions(&made);
        let mut answer = tagged(&self.kernel, made);
        answer.old_sockets = counts;
        answer.cautions = cautions;
        Ok(answer)
    }

    fn untag(&self, agent: &str, by: &Person) -> Result<Tagged, Failure> {
        self.record_deed("tag_removed", agent, by, "")?;
        let untagged = self.kernel.untag(agent)?;
        self.forget(untagged.number);
        Ok(tagged(&self.kernel, untagged))
    }

    fn act(&self, deed: NewDeed, by: &Person) -> Result<Done, Failure> {
        let name = match deed.deed {
            Deed::Freeze => "agent_frozen",
            Deed::Thaw => "agent_thawed",
            Deed::Cut => "agent_cut",
        };
        self.record_deed(name, &deed.agent, by, "")?;
        let (tag, connections) = match deed.deed {
            Deed::Freeze => (self.kernel.freeze(&deed.agent)?, 0),
            Deed::Thaw => (self.kernel.thaw(&deed.agent)?, 0),
            Deed::Cut => {
                let cut = self.kernel.cut(&deed.agent);
                // What waits for people or a server ends too, whatever the kernel could do.
                let tags = self.kernel.tags().into_iter();
                for tag in tags.filter(|tag| tag.agent.name == deed.agent) {
                    self.proxy.sever(tag.number);
                }
                cut?
            }
        };
        Ok(Done {
            agent: tagged(&self.kernel, tag),
            connections: connections as u64,
        })
    }

    fn role(&self, voter: &Voter, way: Way) -> Option<Role> {
        let at_the_socket = matches!(way, Way::Socket | Way::Link);
        if way == Way::Token || (at_the_socket && voter.uid == Some(0)) {
            // A token's scope is its own, and root may change the configuration.
            return Some(Role::Administrator);
        }
        let Some(roles) = &self.config.roles else {
            return at_the_socket.then_some(Role::Administrator);
        };
        let reviewers = self.approvals.reviewers();
        let named = [
            (Role::Administrator, &roles.administrator),
            (Role::Operator, &roles.operator),
            (Role::Reviewer, &roles.reviewer),
            (Role::Viewer, &roles.viewer),
        ];
        let found = named
            .into_iter()
            .find(|(_, groups)| reviewers.is_in(voter, groups));
        found.map(|(role, _)| role)
    }

    fn console(&self) -> Option<&ConsoleDesk> {
        self.desk.as_ref()
    }

    fn policy(&self) -> Result<PolicyText, Failure> {
        let files = self.policies.files().into_iter();
        Ok(PolicyText {
            status: self.status()?.policy,
            enforced: self.policies.current().is_enforced(),
            files: files
                .map(|(path, text)| PolicyFile { path, text })
                .collect(),
            hits: self.proxy.sessions().hits(),
        })
    }

    fn note(&self, name: &str, detail: &[(&str, &str)]) -> Result<(), Failure> {
        let detail = detail
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let event = Event::notice(name, detail);
        self.journal
            .append(None, &Arc::from(""), clock::now(), [event])?;
        Ok(())
    }

    fn agent_of(&self, pid: u32) -> Result<Option<Box<str>>, Failure> {
        if self.kernel.cgroup_of(pid).is_none() {
            return Err(Failure::new(
                FailureKind::Missing,
                format!("process {pid} is gone"),
            ));
        }
        Ok(self.kernel.agent_of(pid).map(|tag| tag.agent.name.clone()))
    }

    fn reload(&self, by: &Person) -> Result<PolicyStatus, Failure> {
        self.record_deed("policy_reload", "", by, "")?;
        let change = self.policies.reload();
        self.policy_changed(&change);
        match change {
            Change::Loaded { .. } | Change::Unchanged => Ok(self.status()?.policy),
            Change::Broken { error } => Err(Failure::new(FailureKind::Invalid, error)
                .with_remedy("mend the files; the policy before stays in force")),
        }
    }

    fn approvals(&self) -> &Approvals {
        &self.approvals
    }

    fn journal(&self) -> &Journal {
        &self.journal
    }

    fn retainer(&self) -> &Retainer {
        &self.retainer
    }

    fn is_open(&self, session: SessionId) -> bool {
        self.proxy.sessions().is_open(session)
    }
}
