//! The daemon put together: kernel, journal, policies, approvals, listeners, control API.

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use interceptor_core::{
    origin::Agent,
    policy::PolicyError,
    protocol::{http, postgres},
    record::{Event, Timestamp},
};
use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    accept::Acceptor,
    approval::{Approvals, Reviewers, Unfinished},
    cancellations::Cancellations,
    clock,
    config::Config,
    console::{
        self, ControlSocket, Failure, FailureKind, Host, JournalStatus, NewTag, Person,
        PolicyStatus, SocketError, Status, TagTarget, Tagged, Trouble,
    },
    cores::Cores,
    credentials::Credentials,
    journal::{Journal, JournalError, Stopped},
    kernel::{Kernel, KernelError, Tag, TagKind, Unrouted},
    policies::{Change, Policies},
    refusals,
    session::Services,
    tls::{Tls, TlsError},
};

/// How often the kernel side is told that the daemon lives; it believes it for three seconds.
const ARM_EVERY: Duration = Duration::from_secs(1);

/// How often launched agents of which nothing runs any more are looked for.
const CLEAR_EVERY: Duration = Duration::from_secs(5);

/// How long an upstream may take to answer a connect.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);

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
    /// TLS: the certificate authority, or a file that the configuration names.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The journal takes no records.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] SocketError),
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
    started: Timestamp,
    kernel: Arc<Kernel>,
    services: Arc<Services>,
    acceptor: Arc<Acceptor>,
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
    let journal = Journal::open(&config.state)?;
    let tls = Arc::new(Tls::open(
        &config.state,
        &config.tls,
        config.patience.handshake,
    )?);
    withdraw_unfinished(&journal)?;
    let control = ControlSocket::bind(&config.control)?;
    // Moves this process into its own cgroup: every socket opened from here on is the daemon's.
    let kernel = Arc::new(Kernel::open(config.instance.as_str())?);
    let credentials = Credentials::new(config.credentials.clone());
    for problem in credentials.problems() {
        tracing::warn!("agents can't be logged in with {problem}");
    }
    let has_credentials = credentials.are_for_http();
    let approvals = Approvals::new(
        journal.clone(),
        Reviewers::new(config.reviewers.clone()),
        clock::now,
        crate::accept::random_id,
    );
    let services = Arc::new(Services {
        journal,
        policies,
        approvals,
        cancellations: Cancellations::default(),
        credentials,
        postgres: Arc::new(postgres::Shared::new(config.limits.message_bytes)),
        http: Arc::new(http::Shared {
            has_credentials,
            message_bytes_max: config.limits.message_bytes,
            recorded_bytes_max: config.limits.recorded_bytes,
        }),
        tls,
        dial_patience: DIAL_PATIENCE,
        patience: config.patience,
    });
    let acceptor = Acceptor::start(kernel.clone(), services.clone(), &cores, config.limits)
        .map_err(io("starting threads"))?;
    let daemon = Arc::new(Daemon {
        config,
        started: clock::now(),
        kernel,
        services,
        acceptor: Arc::new(acceptor),
    });
    let result = runtime.block_on(daemon.clone().run(control));
    daemon.services.approvals.stop();
    if remove_hooks {
        daemon.kernel.remove_all()?;
    }
    daemon.record(
        "daemon_stopped",
        [(
            "hooks",
            if remove_hooks { "removed" } else { "kept" }.to_owned(),
        )],
    );
    daemon.services.journal.close();
    result
}

/// Says of requests that an earlier daemon held when it ended that they are over.
fn withdraw_unfinished(journal: &Journal) -> Result<(), ServeError> {
    let mut unfinished = Unfinished::default();
    journal.reader()?.each(|record| {
        unfinished.observe(&record);
        true
    })?;
    for (session, agent, event) in unfinished.withdrawals() {
        journal.append(session, &agent, clock::now(), [event])?;
    }
    Ok(())
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
        let listen = self.config.listen;
        let v4 = self::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, listen.ipv4_port)))
            .map_err(io("listening on 127.0.0.1"))?;
        // A host without IPv6 has no agents that use it either: their connects are refused.
        let v6 = self::listen(SocketAddr::from((Ipv6Addr::LOCALHOST, listen.ipv6_port))).ok();
        let port =
            |listener: &TcpListener| listener.local_addr().map_or(0, |address| address.port());
        let ports = (port(&v4), v6.as_ref().map_or(0, port));
        self.kernel.arm(ports.0, ports.1, Unrouted::now())?;
        self.record(
            "daemon_started",
            [("version", env!("CARGO_PKG_VERSION").to_owned())],
        );
        for listener in [Some(v4), v6].into_iter().flatten() {
            let acceptor = self.acceptor.clone();
            tokio::spawn(async move { acceptor.accept(listener).await });
        }
        let daemon = self.clone();
        tokio::spawn(async move {
            let mut timer = tokio::time::interval(ARM_EVERY);
            loop {
                timer.tick().await;
                if let Err(error) = daemon.kernel.arm(ports.0, ports.1, Unrouted::now()) {
                    tracing::error!(%error, "agents' connects will be refused");
                }
            }
        });
        tokio::spawn(self.clone().clear_ended());
        if let Some(events) = self.kernel.take_events() {
            let journal = self.services.journal.clone();
            tokio::spawn(refusals::follow(self.kernel.clone(), journal, events));
        }
        let daemon = self.clone();
        let watcher = self
            .services
            .policies
            .watch(move |change| daemon.policy_changed(&change));
        if let Err(error) = &watcher {
            tracing::error!(%error, "the policy folder can't be watched; send SIGHUP after a change");
        }
        let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
        let host: Arc<dyn Host> = self.clone();
        let api = tokio::spawn(console::serve(control, host, async {
            let _ = stopping.await;
        }));
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(control = %self.config.control.display(), state = %self.config.state.display(), "ready");
        self.wait_for_the_end().await?;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.kernel.disarm();
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
                for (_, agent) in ended.iter().filter(|ended| suspects.contains(ended)) {
                    let event = Event::notice(
                        "tag_removed",
                        [
                            ("by", "interceptor".to_owned()),
                            ("detail", "nothing of it runs any more".to_owned()),
                        ],
                    );
                    let journal = &daemon.services.journal;
                    let _ = journal.append(None, &Arc::from(&**agent), clock::now(), [event]);
                    if let Err(error) = daemon.kernel.untag(agent) {
                        tracing::warn!(agent, %error, "an agent that has ended can't be removed");
                    }
                }
                ended
            });
            before = cleared.await.unwrap_or_default();
        }
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
                    let change = self.services.policies.reload();
                    self.policy_changed(&change);
                }
            }
        }
    }

    fn policy_changed(&self, change: &Change) {
        match change {
            Change::Unchanged => {}
            Change::Loaded { hash } => {
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
            .services
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
        let by = format!("{} (uid {})", by.name(), by.uid());
        let event = Event::notice(name, [("by", by), ("detail", detail.to_owned())]);
        self.services
            .journal
            .append(None, &Arc::from(agent), clock::now(), [event])?;
        Ok(())
    }
}

/// A listener on `address`; for port 0 on one that the kernel gives to nobody who doesn't ask for it.
///
/// A `listen()` without a `bind()` gets a port of the range for outgoing connections, and no hook sees
/// it. Were ours of that range, who is quick could take it over when the daemon dies, and would be sent
/// other agents' connections for as long as it counts as alive.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    const TRIES: usize = 64;
    let unasked = unasked_ports(&fs::read_to_string(LOCAL_PORT_RANGE).unwrap_or_default());
    if address.port() == 0 && !unasked.is_empty() {
        for _ in 0..TRIES {
            let offset = crate::accept::random_id() % unasked.len() as u64;
            let port = unasked.start + u16::try_from(offset).unwrap_or(0);
            match bind(SocketAddr::new(address.ip(), port)) {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                bound => return bound,
            }
        }
    }
    bind(address)
}

/// The ports that outgoing connections get, as `first last`.
const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Ports outside `range`, as the kernel writes it: above it, where hardly any service has its own, or else
/// below it.
fn unasked_ports(range: &str) -> Range<u16> {
    /// As many as two listeners surely find a free one among.
    const ENOUGH: usize = 256;
    /// Below stand most services.
    const FIRST: u16 = 20_000;
    let mut ends = range.split_whitespace().map(str::parse);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return 0..0;
    };
    let above = u16::saturating_add(last, 1)..u16::MAX;
    if above.len() >= ENOUGH {
        above
    } else {
        FIRST..first
    }
}

/// A listener that can be opened again at once after a restart.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()
    } else {
        tokio::net::TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    // Agents are on this host: what a host chooses for its network (BBR, say, which paces by timers) only
    // costs here. Connections have it from their listener; those to servers keep the host's choice.
    let _ = setsockopt(&socket, TcpCongestion, &OsString::from("reno"));
    socket.bind(address)?;
    socket.listen(4_096)
}

fn tagged(tag: Tag) -> Tagged {
    Tagged {
        agent: tag.agent.name.clone(),
        labels: tag.agent.labels.clone(),
        cgroup: tag.cgroup,
        kind: tag.kind,
    }
}

impl Host for Daemon {
    fn authority(&self) -> String {
        self.services.tls.authority_pem().to_owned()
    }

    fn status(&self) -> Result<Status, Failure> {
        let policies = &self.services.policies;
        let state = policies.state();
        let policy = policies.current();
        let stopped = self.services.journal.stopped();
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
        let counters = serde_json::to_value(self.kernel.counters()).unwrap_or_default();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.config.instance.to_string(),
            pid: std::process::id(),
            started: self.started,
            agents: self.kernel.tags().len() as u64,
            sessions: self.acceptor.open() as u64,
            approvals: self.services.approvals.pending() as u64,
            policy: PolicyStatus {
                hash: policy.hash().to_string(),
                path: policies.path().to_owned(),
                rules: policy.rule_count() as u64,
                loaded: state.loaded,
                broken: state.broken,
            },
            journal: JournalStatus {
                path: self.config.state.clone(),
                last_seq: self.services.journal.last_seq(),
                stopped: stopped.map(|stopped| stopped.to_string()),
            },
            kernel: serde_json::from_value(counters).unwrap_or_default(),
            troubles,
        })
    }

    fn agents(&self) -> Result<Vec<Tagged>, Failure> {
        Ok(self.kernel.tags().into_iter().map(tagged).collect())
    }

    fn tag(&self, tag: NewTag, by: &Person) -> Result<Tagged, Failure> {
        let agent = Agent {
            name: tag.agent,
            labels: tag.labels,
        };
        self.record_deed("tag_added", &agent.name, by, &format!("{:?}", tag.target))?;
        let made = match tag.target {
            TagTarget::New => self.kernel.tag_new(agent)?,
            TagTarget::Cgroup(path) => self.kernel.tag(&path, agent, TagKind::Existing)?,
            TagTarget::Pid(pid) => {
                let cgroup = self.kernel.cgroup_of(pid).ok_or_else(|| {
                    Failure::new(FailureKind::Missing, format!("there is no process {pid}"))
                })?;
                self.kernel.tag(&cgroup, agent, TagKind::Existing)?
            }
        };
        Ok(tagged(made))
    }

    fn untag(&self, agent: &str, by: &Person) -> Result<Tagged, Failure> {
        self.record_deed("tag_removed", agent, by, "")?;
        Ok(tagged(self.kernel.untag(agent)?))
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
        let change = self.services.policies.reload();
        self.policy_changed(&change);
        match change {
            Change::Loaded { .. } | Change::Unchanged => Ok(self.status()?.policy),
            Change::Broken { error } => Err(Failure::new(FailureKind::Invalid, error)
                .with_remedy("mend the files; the policy before stays in force")),
        }
    }

    fn approvals(&self) -> &Approvals {
        &self.services.approvals
    }

    fn journal(&self) -> &Journal {
        &self.services.journal
    }
}

#[cfg(test)]
mod tests {
    use super::unasked_ports;

    #[test]
    fn the_listener_takes_no_port_that_is_given_to_who_asks_for_none() {
        let table = [
            ("32768\t60999\n", 61_000..65_535),
            ("1024 65000", 65_001..65_535),
            ("32768 65535", 20_000..32_768),
            ("1024 65535", 0..0),
            ("", 0..0),
        ];
        for (range, expected) in table {
            let ports = unasked_ports(range);
            assert!(
                ports == expected || (ports.is_empty() && expected.is_empty()),
                "{range}"
            );
        }
    }
}
