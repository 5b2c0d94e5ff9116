//! Looking after agents while they run: sockets that no hook sees, processes that leave, hooks that are
//! taken away.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use interceptor_core::origin::Agent;
use serde::{Deserialize, Serialize};

use super::{
    Kernel, KernelError, Tag, TagKind, counts, freezer, hooks,
    intact::Pinned,
    io_error,
    leaving::{Departure, Members},
    lineage::{Happened, Lineage, mount_tracefs},
    process,
    sockets::{self, Handling, Known, Stray},
    unix::{UnixAccess, UnixSockets},
};
use crate::sync::lock;

/// What happens when a process leaves its agent's cgroup. It is told of in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnEscape {
    /// Nothing.
    #[default]
    Report,
    /// It is put back, and the agent is frozen.
    Freeze,
    /// It is killed.
    Kill,
}

/// Something that was found out about an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The agent's name; empty for what concerns all.
    pub agent: Arc<str>,
    /// What it is.
    pub what: Found,
}

/// What can be found out about an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It has a socket that no hook sees.
    Stray(Stray),
    /// A process of its is out of its cgroup.
    Left(Departure, Response),
    /// So many forks and moves went by too quickly to be looked at.
    EventsLost(u64),
    /// Its hooks, or the maps of all, aren't as they were attached.
    HooksChanged {
        /// What is wrong.
        wrong: Vec<String>,
        /// What was done.
        response: Response,
    },
}

/// What was done about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// It was told of.
    Reported,
    /// The process was killed.
    Killed,
    /// The agent was frozen, and what was amiss was put right.
    Frozen,
    /// What should have been done could not be.
    Failed(String),
}

/// What the daemon remembers of an agent between two looks.
#[derive(Debug, Default)]
pub(super) struct Watched {
    sockets: Known,
    members: Members,
}

/// What the daemon remembers of all agents.
#[derive(Debug)]
pub(super) struct Watch {
    agents: HashMap<u64, Watched>,
    pinned: Pinned,
    /// What was wrong with the maps, and has been told of.
    maps_wrong: Vec<String>,
    /// Agents whose hooks somebody has changed, and who haven't been thawed since.
    tampered: BTreeSet<u64>,
    /// `None` where the kernel doesn't tell.
    lineage: Option<Lineage>,
}

impl Watch {
    /// Begins to look after the agents of `instance`.
    pub(super) fn begin(instance: &str) -> Self {
        let lineage = mount_tracefs().and_then(|()| Lineage::open(instance));
        if let Err(error) = &lineage {
            tracing::warn!(%error, "the kernel doesn't tell who is moved out of a cgroup: what leaves and ends within half a second isn't noticed; mount tracefs at /sys/kernel/tracing");
        }
        Self {
            agents: HashMap::new(),
            pinned: Pinned::default(),
            maps_wrong: Vec::new(),
            tampered: BTreeSet::new(),
            lineage: lineage.ok(),
        }
    }
}

impl Kernel {
    /// Tags a cgroup in which something may run, as one of `kind`: it stands still while its hooks are attached and the
    /// sockets that it has are dealt with. One that comes back goes on meanwhile: an engine that is making a container
    /// takes it for paused where it stands still, and gives up.
    ///
    /// # Errors
    /// As [`Kernel::tag`], and where the cgroup can't be frozen.
    pub fn tag_running(
        &self,
        cgroup: &Path,
        (agent, kind): (Agent, TagKind),
        handling: Handling,
        unix: UnixAccess,
    ) -> Result<(Tag, Vec<Stray>), KernelError> {
        // First: what holds this process must not be frozen.
        let cgroup = self.taggable(cgroup)?;
        // Nobody looks after it before it is known what may stay.
        let mut watch = lock(&self.watch);
        let comes_back = lock(&self.tags)
            .away()
            .any(|away| away.agent.name == agent.name && away.cgroup == cgroup);
        let pause = (!comes_back)
            .then(|| freezer::Pause::begin(&cgroup, &self.notes_folder()))
            .transpose()?;
        let tag = self.tag(&cgroup, agent, kind, unix)?;
        let strays = self.deal_with_old(&mut watch, &tag, handling)?;
        drop(pause);
        Ok((tag, strays))
    }

    fn deal_with_old(
        &self,
        watch: &mut Watch,
        tag: &Tag,
        handling: Handling,
    ) -> Result<Vec<Stray>, KernelError> {
        let mut sockets = Known::default();
        let handling = handling_of(tag, handling);
        let strays = sockets.deal_with_old(&tag.cgroup, handling);
        if handling.allows_old {
            lock(&self.tags).keep_allowed(tag.number, sockets.allowed().collect())?;
        }
        let mut watched = Watched {
            sockets,
            members: Members::default(),
        };
        // Who is there now can be told from who comes.
        let _ = watched.members.departed(
            tag.number,
            &tag.cgroup,
            &self.cgroup2,
            &Happened::default(),
            watch.lineage.as_mut(),
        );
        watch.agents.insert(tag.number, watched);
        Ok(strays)
    }

    /// Goes on with what an earlier daemon was doing when it was killed in the middle of a tag: its hooks may
    /// be there already, the sockets from before have not been dealt with, and the agent stands still.
    ///
    /// To be called once, before anybody is tagged.
    pub fn finish_tagging(&self, handling: Handling) -> Vec<Finding> {
        let folder = self.notes_folder();
        let Some(cgroup) = freezer::abandoned(&folder) else {
            return Vec::new();
        };
        let _pause = freezer::take_up(cgroup.clone(), &folder);
        let tag = self.tags().into_iter().find(|tag| tag.cgroup == cgroup);
        let Some(tag) = tag else { return Vec::new() };
        match self.deal_with_old(&mut lock(&self.watch), &tag, handling) {
            Ok(strays) => findings(&tag, strays.into_iter().map(Found::Stray)).collect(),
            Err(error) => {
                tracing::error!(%error, "the sockets of an agent from before its tag can't be kept in mind");
                Vec::new()
            }
        }
    }

    /// Looks at all agents, does what there is to do, and says what it was.
    pub fn look_after(&self, handling: Handling, on_escape: OnEscape) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut watch = lock(&self.watch);
        let tags = self.tags();
        let is_tagged = |number: &u64| tags.iter().any(|tag| tag.number == *number);
        watch.agents.retain(|number, _| is_tagged(number));
        watch.tampered.retain(is_tagged);
        found.extend(self.look_after_maps(&mut watch));
        let happened = watch.lineage.as_mut().map(Lineage::happened);
        let happened = happened.unwrap_or_default();
        if happened.lost > 0 {
            found.push(Finding {
                agent: Arc::from(""),
                what: Found::EventsLost(happened.lost),
            });
        }
        for tag in &tags {
            let handling = handling_of(tag, handling);
            if let Some(what) = self.look_after_hooks(&mut watch, tag, handling) {
                found.extend(findings(tag, what));
            }
            let Watch {
                agents, lineage, ..
            } = &mut *watch;
            let watched = agents.entry(tag.number).or_insert_with(|| Watched {
                sockets: Known::allowing(tag.allowed.iter().copied()),
                members: Members::default(),
            });
            let departed = watched.members.departed(
                tag.number,
                &tag.cgroup,
                &self.cgroup2,
                &happened,
                lineage.as_mut(),
            );
            let left = departed.into_iter().map(|departure| {
                let response = respond(tag, &departure, on_escape);
                Found::Left(departure, response)
            });
            found.extend(findings(tag, left.collect::<Vec<_>>()));
            let strays = watched.sockets.deal_with_new(&tag.cgroup, handling);
            found.extend(findings(tag, strays.into_iter().map(Found::Stray)));
        }
        found
    }

    /// Without their pins the next daemon would make new maps, and the hooks write to the old ones.
    fn look_after_maps(&self, watch: &mut Watch) -> Option<Finding> {
        let wrong = watch.pinned.maps(&self.pins, hooks::MAPS);
        if wrong == watch.maps_wrong {
            return None;
        }
        watch.maps_wrong.clone_from(&wrong);
        (!wrong.is_empty()).then(|| Finding {
            agent: Arc::from(""),
            what: Found::HooksChanged {
                wrong,
                response: Response::Reported,
            },
        })
    }

    /// Hooks that aren't what they were are attached anew; what was opened without them is cut. The agent
    /// stands still until somebody has looked into it: an agent can't do this, its accomplice could.
    fn look_after_hooks(
        &self,
        watch: &mut Watch,
        tag: &Tag,
        handling: Handling,
    ) -> Option<Vec<Found>> {
        let links = self.pins.join(format!("agent-{}", tag.number));
        let mut wrong = watch.pinned.links(&links, hooks::names(), tag.cgroup_id);
        let counters = counts::pin_name(tag.number);
        wrong.extend(watch.pinned.maps(&self.pins, [&*counters]));
        // A cgroup that ends takes its hooks with it, and a tag that is removed its pins.
        if wrong.is_empty() || !self.is_tagged(tag) {
            return None;
        }
        watch.tampered.insert(tag.number);
        let mended = freezer::freeze(&tag.cgroup).and_then(|()| {
            watch.pinned.forget(&links);
            watch.pinned.forget(&self.pins.join(counters));
            lock(&self.tags).attach_again(tag)
        });
        let response = match mended {
            Ok(()) => Response::Frozen,
            Err(error) => Response::Failed(error.to_string()),
        };
        let mut found = vec![Found::HooksChanged { wrong, response }];
        let allowed = watch
            .agents
            .get(&tag.number)
            .map(|watched| watched.sockets.allowed().collect::<Vec<_>>());
        let mut sockets = Known::allowing(allowed.unwrap_or_default());
        let handling = Handling {
            allows_old: false,
            ..handling
        };
        let strays = sockets.deal_with_old(&tag.cgroup, handling);
        found.extend(strays.into_iter().map(Found::Stray));
        watch.agents.entry(tag.number).or_default().sockets = sockets;
        Some(found)
    }

    /// Stops all processes of an agent.
    ///
    /// # Errors
    /// Where there is no such agent, or the kernel refuses.
    pub fn freeze(&self, name: &str) -> Result<Tag, KernelError> {
        let tag = lock(&self.tags).named(name)?;
        freezer::freeze(&tag.cgroup)?;
        Ok(tag)
    }

    /// Lets the processes of an agent go on.
    ///
    /// # Errors
    /// Where there is no such agent, or the kernel refuses.
    pub fn thaw(&self, name: &str) -> Result<Tag, KernelError> {
        let tag = lock(&self.tags).named(name)?;
        freezer::thaw(&tag.cgroup)?;
        lock(&self.watch).tampered.remove(&tag.number);
        Ok(tag)
    }

    /// Ends all connections of an agent; how many.
    ///
    /// # Errors
    /// Where there is no such agent, or the kernel refuses.
    pub fn cut(&self, name: &str) -> Result<(Tag, usize), KernelError> {
        let tag = lock(&self.tags).named(name)?;
        let count = sockets::destroy_all(&tag.cgroup)
            .map_err(io_error("ending the connections of", &tag.cgroup))?;
        Ok((tag, count))
    }

    /// Whether an agent's processes stand still.
    #[must_use]
    pub fn is_frozen(&self, tag: &Tag) -> bool {
        freezer::is_frozen(&tag.cgroup)
    }

    /// How many sockets from before its tag an agent may still use.
    #[must_use]
    pub fn old_sockets_open(&self, tag: &Tag) -> u64 {
        let watch = lock(&self.watch);
        watch
            .agents
            .get(&tag.number)
            .map_or(0, |watched| watched.sockets.allowed().count() as u64)
    }

    /// What is not as it should be about agents and their hooks, each with a remedy.
    #[must_use]
    pub fn troubles(&self) -> Vec<(String, String)> {
        let tags = self.tags();
        let watch = lock(&self.watch);
        let mut troubles = Vec::new();
        if let Some(error) = &self.births_unknown {
            troubles.push((
                format!("the kernel doesn't tell which cgroup a socket was born in ({error}): sockets that others hand to an agent aren't noticed"),
                "use a kernel with CONFIG_INET_DIAG, CONFIG_INET_TCP_DIAG and CONFIG_INET_UDP_DIAG".to_owned(),
            ));
        }
        if !watch.maps_wrong.is_empty() {
            troubles.push((
                format!("the maps of the hooks have been tampered with: {}", watch.maps_wrong.join(", ")),
                "find out who did it; then stop the daemon with `serve --remove-hooks`, start it and tag again".to_owned(),
            ));
        }
        for tag in &tags {
            let name = &tag.agent.name;
            if watch.tampered.contains(&tag.number) {
                troubles.push((
                    format!("somebody changed the hooks of agent `{name}`; they are attached again, and it is frozen"),
                    format!("find out who did it; then `interceptor agents thaw {name}`"),
                ));
            }
            let uncut = watch
                .agents
                .get(&tag.number)
                .map_or(0, |watched| watched.sockets.uncut());
            if uncut > 0 {
                troubles.push((
                    format!("agent `{name}` holds open sockets that no hook sees and that can't be cut ({uncut})"),
                    "restart what holds them, or configure `tags: {uncuttable: kill}`; the log names them".to_owned(),
                ));
            }
        }
        troubles
    }

    /// Whether `tag` still is one, on the cgroup that it was made for.
    fn is_tagged(&self, tag: &Tag) -> bool {
        self.tags().iter().any(|other| other.number == tag.number)
    }

    /// Where notes are kept that outlive this process but not the boot.
    fn notes_folder(&self) -> PathBuf {
        Path::new("/run").join(&self.instance)
    }
}

/// The same for one agent: what hooks don't refuse to it needn't be kept from it otherwise.
fn handling_of(tag: &Tag, handling: Handling) -> Handling {
    let refuses_unix =
        tag.unix.sockets == UnixSockets::Refuse && super::unix::unguarded().is_none();
    Handling {
        refuses_unix,
        ..handling
    }
}

fn findings(tag: &Tag, found: impl IntoIterator<Item = Found>) -> impl Iterator<Item = Finding> {
    let agent: Arc<str> = Arc::from(&*tag.agent.name);
    found.into_iter().map(move |what| Finding {
        agent: agent.clone(),
        what,
    })
}

fn respond(tag: &Tag, departure: &Departure, on_escape: OnEscape) -> Response {
    let Some(started) = departure.started else {
        return Response::Reported;
    };
    let done = match on_escape {
        OnEscape::Report => return Response::Reported,
        OnEscape::Kill => process::kill(departure.pid, started)
            .map(|()| Response::Killed)
            .map_err(|error| error.to_string()),
        OnEscape::Freeze => {
            let procs = departure.from.join("cgroup.procs");
            let back = std::fs::write(&procs, departure.pid.to_string());
            back.map_err(io_error("putting the process back", &procs))
                .and(freezer::freeze(&tag.cgroup))
                .map(|()| Response::Frozen)
                .map_err(|error| error.to_string())
        }
    };
    done.unwrap_or_else(Response::Failed)
}
