//! The network namespaces that agents are in: served while one is there, let go of when the last has left.
//!
//! 127.0.0.1 is another host in each, so the daemon listens in each and dials from there. A namespace isn't
//! known before somebody is in it: until it is served the hooks refuse what connects there, and their
//! saying so is what has it served at once. Containers get theirs with a cgroup of their own, while they are made:
//! where one appears below an agent, it is looked into until they are, and nothing of it is refused.

mod doors;
mod network;
mod resident;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use interceptor_core::record::Event;
use tokio::task::AbortHandle;

pub(crate) use self::doors::{Door, Doors};
pub use self::network::Network;
pub(crate) use self::network::datagrams;
use self::resident::{Means, Resident};
use crate::{
    accept::Acceptor,
    clock,
    config::Listen,
    journal::Journal,
    kernel::{self, Arrivals, Kernel, Namespace, Sighting, Tag},
    proxy::Proxy,
    sync::lock,
};

/// How often the kernel side is told that the daemon lives; it believes it for three seconds.
pub(crate) const ARM_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked where agents are.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often cgroups that have just been made are looked into, and for how long: engines take a tenth of a second
/// from the cgroup to the first instruction of what runs in it, and may take more.
const LOOK_AT_YOUNG_EVERY: Duration = Duration::from_millis(5);
const YOUNG_FOR: Duration = Duration::from_secs(3);

/// How much longer than a look into them took the next one waits at the least: a fifth of one core, however many run
/// there.
const LOOK_AT_YOUNG_SHARE: u32 = 4;

/// Cgroups that are looked into so often at once: who makes more is looked at like anybody.
const YOUNG_MAX: usize = 64;

/// Shortest time between two looks at all agents that refusals ask for.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Looks in a row that find nobody, after which a namespace is let go of. One may miss who is just being
/// forked.
const LOOKS_WITHOUT: u8 = 2;

/// Namespaces that are served at once: the hooks' table of listeners holds 1,024.
const NAMESPACES_MAX: usize = 1_000;

/// Those of one agent, so that one can't use up all.
const NAMESPACES_PER_AGENT_MAX: usize = 400;

/// How long who tags an agent waits until it is served wherever it is.
const SERVED_WITHIN: Duration = Duration::from_secs(2);

/// Processes that wait to be looked at because they were refused. Where there are more, their turn comes with
/// the next look.
const REFUSED_MAX: usize = 1_024;

/// What the search is told and hasn't heard yet; who tells more waits.
const WAKES_MAX: usize = 16;

/// Serves agents in other network namespaces for as long as it exists.
#[derive(Debug)]
pub(crate) struct Namespaces {
    wake: mpsc::SyncSender<Wake>,
    refused: Arc<Refused>,
    telling: AbortHandle,
    searching: Mutex<Option<thread::JoinHandle<()>>>,
}

/// Processes that were refused where nobody listens, each once: one that tries a thousand times a second
/// doesn't have others wait.
#[derive(Debug, Default)]
struct Refused(Mutex<BTreeSet<u32>>);

/// Why the search is to look.
#[derive(Debug)]
enum Wake {
    /// Somebody was refused where nobody listens.
    Refused,
    /// These cgroups were made below agents.
    Arrived(Vec<PathBuf>),
    /// This cgroup is about to be an agent of that name; the sender is dropped when it is served.
    Tagging(PathBuf, Arc<str>, mpsc::SyncSender<()>),
    /// The daemon ends.
    Stop,
}

impl Namespaces {
    /// Begins to look where agents are, in threads of its own; what comes in is served by this runtime.
    ///
    /// # Errors
    /// Where there can't be one more thread.
    pub(crate) fn start(
        kernel: Arc<Kernel>,
        acceptor: Arc<Acceptor>,
        proxy: Proxy,
        journal: Journal,
        listen: Listen,
    ) -> std::io::Result<Self> {
        let own = Namespace::here()?.inode;
        let (wake, wakes) = mpsc::sync_channel(WAKES_MAX);
        let arrivals = Arc::new(Arrivals::new()?);
        let telling = tokio::spawn(tell_of(arrivals.clone(), wake.clone()));
        let refused = Arc::<Refused>::default();
        let mut search = Search {
            means: Means {
                kernel,
                acceptor,
                proxy,
                listen,
                runtime: tokio::runtime::Handle::current(),
            },
            journal,
            own,
            refused: refused.clone(),
            arrivals,
            young: Vec::new(),
            young_due: Instant::now(),
            served: HashMap::new(),
            told: BTreeSet::new(),
            looked: Instant::now(),
        };
        let searching = thread::Builder::new()
            .name("namespaces".to_owned())
            .spawn(move || search.run(&wakes))?;
        Ok(Self {
            wake,
            refused,
            telling: telling.abort_handle(),
            searching: Mutex::new(Some(searching)),
        })
    }

    /// What tells that a connect of a process was refused where nobody listens.
    pub(crate) fn alarm(&self) -> impl Fn(u32) + Send + Sync + 'static {
        let (wake, refused) = (self.wake.clone(), self.refused.clone());
        move |pid| {
            if refused.is_first(pid) {
                // Who has so much to hear looks in any case.
                let _ = wake.try_send(Wake::Refused);
            }
        }
    }

    /// Serves whatever is in `cgroup`, which is about to be agent `name`, and waits until it is served.
    pub(crate) fn serve_in(&self, cgroup: &Path, name: &str) {
        let (done, wait) = mpsc::sync_channel(0);
        let wake = Wake::Tagging(cgroup.to_owned(), Arc::from(name), done);
        if self.wake.send(wake).is_ok() {
            // Nothing is ever sent: it ends when nobody could any more.
            let _ = wait.recv_timeout(SERVED_WITHIN);
        }
    }

    /// Lets go of all namespaces.
    pub(crate) fn stop(&self) {
        self.telling.abort();
        let _ = self.wake.send(Wake::Stop);
        let mut searching = lock(&self.searching);
        if let Some(searching) = searching.take() {
            let _ = searching.join();
        }
    }
}

/// Wakes the search where a cgroup is made below an agent.
async fn tell_of(arrivals: Arc<Arrivals>, wake: mpsc::SyncSender<Wake>) {
    loop {
        match arrivals.next().await {
            // Who has so much to hear looks in any case.
            Ok(made) => drop(wake.try_send(Wake::Arrived(made))),
            Err(error) => {
                tracing::error!(%error, "new cgroups of agents are found a second later");
                return;
            }
        }
    }
}

impl Refused {
    /// Notes one more; whether none waited.
    fn is_first(&self, pid: u32) -> bool {
        let mut waiting = lock(&self.0);
        let is_first = waiting.is_empty();
        if waiting.len() < REFUSED_MAX {
            waiting.insert(pid);
        }
        is_first
    }

    fn take(&self) -> BTreeSet<u32> {
        std::mem::take(&mut lock(&self.0))
    }
}

/// Whether `cgroup`, which is about to be an agent, was made just now, as that of a container that starts again.
fn is_young(cgroup: &Path) -> bool {
    let made = fs::metadata(cgroup).and_then(|folder| folder.modified());
    made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age < YOUNG_FOR))
}

/// A cgroup that was made just now.
#[derive(Debug, Clone)]
struct Young {
    cgroup: PathBuf,
    /// The agent that it is about to be: until it is one, the list of agents can't be had.
    agent: Option<Arc<str>>,
    until: Instant,
}

/// A namespace that is being served, for an agent.
struct Served {
    resident: Resident,
    agent: Arc<str>,
    /// Looks in a row that found nobody in it.
    missed: u8,
}

/// Who looks where agents are.
struct Search {
    means: Means,
    journal: Journal,
    /// The daemon's own namespace.
    own: u64,
    refused: Arc<Refused>,
    arrivals: Arc<Arrivals>,
    /// Cgroups of agents and below them that were made just now.
    young: Vec<Young>,
    /// When they are looked into next.
    young_due: Instant,
    /// By the namespaces' numbers, which no others have while these are served.
    served: HashMap<u64, Served>,
    /// Those that can't be served, which has been told of.
    told: BTreeSet<u64>,
    looked: Instant,
}

impl Search {
    fn run(&mut self, wakes: &mpsc::Receiver<Wake>) {
        self.look();
        loop {
            let due = (self.looked + LOOK_EVERY).saturating_duration_since(Instant::now());
            let due = match &*self.young {
                [] => due,
                _ => due.min(self.young_due.saturating_duration_since(Instant::now())),
            };
            let mut next = match wakes.recv_timeout(due) {
                Ok(wake) => Some(wake),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            while let Some(wake) = next {
                match wake {
                    Wake::Refused => {}
                    Wake::Arrived(made) => self.arrived(made, None),
                    Wake::Tagging(cgroup, agent, done) => {
                        self.watch(&cgroup);
                        let seen = kernel::namespaces_in(&cgroup);
                        self.serve(&agent, &seen, Some(&done));
                        if is_young(&cgroup) {
                            self.arrived(vec![cgroup], Some(&agent));
                        }
                    }
                    Wake::Stop => return self.stop(),
                }
                next = wakes.try_recv().ok();
            }
            self.look_at_young();
            let mut has_gone = false;
            for pid in self.refused.take() {
                has_gone |= !self.look_at(pid);
            }
            let since = self.looked.elapsed();
            if since >= LOOK_EVERY || (has_gone && since >= LOOK_AGAIN_AFTER) {
                self.look();
            }
        }
        self.stop();
    }

    /// Serves wherever process `pid` is; `false` where it is nowhere any more, or no agent's.
    fn look_at(&mut self, pid: u32) -> bool {
        let seen = kernel::namespaces_of(pid);
        if seen.is_empty() {
            return false;
        }
        if seen.keys().all(|inode| self.is_served(*inode)) {
            return true;
        }
        let Some(tag) = self.means.kernel.agent_of(pid) else {
            return false;
        };
        self.serve(&Arc::from(&*tag.agent.name), &seen, None);
        true
    }

    fn arrived(&mut self, made: Vec<PathBuf>, agent: Option<&Arc<str>>) {
        let until = Instant::now() + YOUNG_FOR;
        for cgroup in made {
            // What is made within it is looked into with it, until the next look has it watched.
            if self.young.len() < YOUNG_MAX {
                let agent = agent.cloned();
                self.young.push(Young {
                    cgroup,
                    agent,
                    until,
                });
            }
        }
    }

    /// Serves wherever somebody is in the cgroups that were made just now.
    fn look_at_young(&mut self) {
        let now = Instant::now();
        if self.young.is_empty() || now < self.young_due {
            return;
        }
        self.young
            .retain(|young| young.until > now && young.cgroup.exists());
        let mut tags = None;
        for Young { cgroup, agent, .. } in self.young.clone() {
            let seen = kernel::namespaces_in(&cgroup);
            if seen.keys().all(|inode| self.is_served(*inode)) {
                continue;
            }
            let agent = agent.or_else(|| {
                let tags = tags.get_or_insert_with(|| self.means.kernel.tags());
                let tag = tags.iter().find(|tag| cgroup.starts_with(&tag.cgroup))?;
                Some(Arc::from(&*tag.agent.name))
            });
            if let Some(agent) = agent {
                self.serve(&agent, &seen, None);
            }
        }
        let pause = LOOK_AT_YOUNG_EVERY.max(now.elapsed() * LOOK_AT_YOUNG_SHARE);
        self.young_due = Instant::now() + pause;
    }

    /// Has it told what is made below the cgroup of an agent.
    fn watch(&self, cgroup: &Path) {
        for folder in kernel::with_below(cgroup) {
            // Who is gone needs none, and what can't be watched is found by the look of each second.
            if let Err(error) = self.arrivals.watch(&folder) {
                tracing::debug!(%error, folder = %folder.display(), "not watched");
            }
        }
    }

    /// Serves wherever agents are, and lets go of where none is.
    fn look(&mut self) {
        self.looked = Instant::now();
        let mut everywhere = BTreeSet::new();
        for Tag { agent, cgroup, .. } in self.means.kernel.tags() {
            self.watch(&cgroup);
            let seen = kernel::namespaces_in(&cgroup);
            everywhere.extend(seen.keys().copied());
            self.drop_ended(&seen);
            self.serve(&Arc::from(&*agent.name), &seen, None);
        }
        self.told.retain(|inode| everywhere.contains(inode));
        let mut left = Vec::new();
        for (inode, served) in &mut self.served {
            served.missed = if everywhere.contains(inode) {
                0
            } else {
                served.missed + 1
            };
            if served.missed >= LOOKS_WITHOUT {
                left.push(*inode);
            }
        }
        for inode in left {
            if let Some(served) = self.served.remove(&inode) {
                let _ = served.resident.end();
                let detail = [("namespace", format!("net:[{inode}]"))];
                self.record(&served.agent, "namespace_released", detail);
            }
        }
    }

    fn is_served(&self, inode: u64) -> bool {
        inode == self.own || self.served.contains_key(&inode)
    }

    /// Takes away those that ended by themselves, to be tried again.
    fn drop_ended(&mut self, seen: &BTreeMap<u64, Sighting>) {
        for inode in seen.keys() {
            let has_ended = |served: &mut Served| served.resident.has_ended();
            if self.served.get_mut(inode).is_some_and(has_ended)
                && let Some(served) = self.served.remove(inode)
            {
                let why = served.resident.end().err().unwrap_or_default();
                self.tell(&served.agent, *inode, why);
            }
        }
    }

    /// Serves what isn't served yet of where `agent` is seen.
    fn serve(
        &mut self,
        agent: &Arc<str>,
        seen: &BTreeMap<u64, Sighting>,
        done: Option<&mpsc::SyncSender<()>>,
    ) {
        for (inode, sighting) in seen {
            if self.is_served(*inode) {
                continue;
            }
            if let Some(most) = self.limit(agent) {
                let why = format!("{most} are served already");
                self.tell(agent, *inode, why);
                continue;
            }
            // Who was seen there may have gone, and the number be another's by now.
            let Ok(namespace) = Namespace::of(sighting) else {
                continue;
            };
            if self.is_served(namespace.inode) {
                continue;
            }
            let inode = namespace.inode;
            let (journal, name, pid) = (self.journal.clone(), agent.clone(), sighting.pid);
            let done = done.cloned();
            let served = move |cookie: u64| {
                drop(done);
                let detail = [
                    ("namespace", format!("net:[{inode}]")),
                    ("cookie", cookie.to_string()),
                    ("pid", pid.to_string()),
                ];
                let event = Event::notice("namespace_served", detail);
                let _ = journal.append(None, &name, clock::now(), [event]);
            };
            match Resident::start(self.means.clone(), namespace, served) {
                Ok(resident) => {
                    let served = Served {
                        resident,
                        agent: agent.clone(),
                        missed: 0,
                    };
                    self.served.insert(inode, served);
                }
                Err(error) => self.tell(agent, inode, error.to_string()),
            }
        }
    }

    /// How many namespaces are served, where `agent` can't have one more.
    fn limit(&self, agent: &Arc<str>) -> Option<usize> {
        let of_agent = self.served.values().filter(|served| served.agent == *agent);
        let of_agent = of_agent.count();
        if of_agent >= NAMESPACES_PER_AGENT_MAX {
            return Some(of_agent);
        }
        (self.served.len() >= NAMESPACES_MAX).then_some(self.served.len())
    }

    /// Has it on record, once, that a namespace can't be served: what is in it stays refused.
    fn tell(&mut self, agent: &Arc<str>, inode: u64, why: String) {
        if self.told.insert(inode) {
            tracing::error!(
                agent = &**agent,
                inode,
                why,
                "a network namespace can't be served"
            );
            let detail = [("namespace", format!("net:[{inode}]")), ("reason", why)];
            self.record(agent, "namespace_refused", detail);
        }
    }

    fn record<const N: usize>(&self, agent: &Arc<str>, name: &str, detail: [(&str, String); N]) {
        let event = Event::notice(name, detail);
        let _ = self.journal.append(None, agent, clock::now(), [event]);
    }

    fn stop(&mut self) {
        for served in self.served.values() {
            served.resident.dismiss();
        }
        for (_, served) in self.served.drain() {
            let _ = served.resident.end();
        }
    }
}
