//! What the hooks count: of each agent, and of all.
//!
//! Each agent's programs count into a map of their own; what the proxy's side takes is counted by agent in
//! one map. Both are pinned, so the death of a daemon loses no count.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use aya::maps::{
    HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues,
};
use interceptor_abi::{self as abi, counter};
use serde::{Deserialize, Serialize};

use super::{Kernel, KernelError, Plain};
use crate::sync::lock;

/// What became of an agent's connects since it was tagged, as the kernel counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connects {
    /// Redirected to the proxy.
    pub redirected: u64,
    /// To a process of the same agent.
    pub direct: u64,
    /// Refused, for whichever reason.
    pub refused: u64,
    /// Of those redirected: those whose SYN was about to leave.
    pub begun: u64,
    /// Of those begun: ended before the proxy's side had them.
    pub given_up: u64,
    /// Of those begun: the proxy's side refuses them, because their note was lost.
    pub lost: u64,
    /// Of those begun: the proxy's side has them, or had them.
    pub taken: u64,
    /// Of those begun: on their way to the proxy's side.
    pub waiting: u64,
}

impl Connects {
    /// Connections that were begun and of which nothing is known. Where counting goes on meanwhile, more
    /// than there are.
    #[must_use]
    pub const fn unsettled(&self) -> u64 {
        let settled = self.given_up + self.lost + self.taken + self.waiting;
        self.begun.saturating_sub(settled)
    }
}

/// The maps that are counted in.
pub(super) struct Counts {
    /// Of what belongs to no agent.
    own: PerCpuArray<MapData, u64>,
    handovers: Mutex<Handovers>,
    /// By the agents' numbers: more than one where somebody took the first one's pin away.
    agents: Mutex<BTreeMap<u64, Vec<Counters>>>,
    /// What agents had counted that are none any more.
    past: Mutex<[u64; counter::COUNT as usize]>,
}

struct Counters {
    id: u32,
    map: PerCpuArray<MapData, u64>,
}

type Handovers = PerCpuHashMap<MapData, u64, Plain<abi::Handover>>;

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counts")
    }
}

// SAFETY: two integers without padding (its size is asserted), so every bit pattern is a value.
unsafe impl aya::Pod for Plain<abi::Handover> {}

/// Where the counters of agent number `agent` are pinned.
pub(super) fn pin(pins: &Path, agent: u64) -> PathBuf {
    pins.join(pin_name(agent))
}

/// The name of that.
pub(super) fn pin_name(agent: u64) -> String {
    if agent == 0 {
        "STATS".to_owned()
    } else {
        format!("stats-{agent}")
    }
}

fn bad(what: &str) -> impl FnOnce(MapError) -> KernelError + '_ {
    move |error| KernelError::Bpf {
        what: what.to_owned(),
        error: error.to_string(),
    }
}

impl Counts {
    pub(super) fn new(own: Map, handovers: Map) -> Result<Self, KernelError> {
        Ok(Self {
            own: own.try_into().map_err(bad("the map STATS"))?,
            handovers: Mutex::new(handovers.try_into().map_err(bad("the map HANDOVERS"))?),
            agents: Mutex::default(),
            past: Mutex::new([0; counter::COUNT as usize]),
        })
    }

    /// Before the hooks of agent number `agent` are loaded: a map that isn't the one that it has counted in
    /// so far doesn't stay pinned.
    pub(super) fn prepare(&self, pins: &Path, agent: u64) -> Result<(), KernelError> {
        let pin = pin(pins, agent);
        let known = lock(&self.agents)
            .get(&agent)
            .and_then(|maps| maps.last().map(|map| map.id));
        if let Some(known) = known
            && id(&pin) != Some(known)
        {
            // It may be gone.
            let _ = std::fs::remove_file(&pin);
        }
        let mut handovers = lock(&self.handovers);
        if handovers.get(&agent, 0).is_ok() {
            return Ok(());
        }
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| KernelError::Bpf {
            what: what.to_owned(),
            error: error.to_string(),
        })?;
        let nothing = vec![Plain(abi::Handover::default()); cpus];
        let nothing = PerCpuValues::try_from(nothing).map_err(|error| KernelError::Bpf {
            what: "counting an agent's connections".to_owned(),
            error: error.to_string(),
        })?;
        handovers
            .insert(agent, nothing, 0)
            .map_err(bad("counting an agent's connections"))
    }

    /// Agent number `agent` counts in what is pinned for it.
    pub(super) fn begin(&self, pins: &Path, agent: u64) -> Result<(), KernelError> {
        let map =
            MapData::from_pin(pin(pins, agent)).map_err(bad("reading an agent's counters"))?;
        let id = map.info().map_err(bad("reading an agent's counters"))?.id();
        let mut agents = lock(&self.agents);
        let maps = agents.entry(agent).or_default();
        if maps.iter().any(|map| map.id == id) {
            return Ok(());
        }
        let map = PerCpuArray::try_from(Map::PerCpuArray(map))
            .map_err(bad("reading an agent's counters"))?;
        maps.push(Counters { id, map });
        Ok(())
    }

    /// Forgets the counts of an agent that is none any more; they stay in the sums.
    fn forget(&self, agent: u64) {
        let _ = lock(&self.handovers).remove(&agent);
        let Some(maps) = lock(&self.agents).remove(&agent) else {
            return;
        };
        let mut past = lock(&self.past);
        for (index, sum) in (0..).zip(past.iter_mut()) {
            *sum += maps.iter().map(|map| read(&map.map, index)).sum::<u64>();
        }
    }

    /// Removes what the daemon before has left of agents that are none any more.
    pub(super) fn keep_only(&self, is_tagged: impl Fn(u64) -> bool) {
        let mut handovers = lock(&self.handovers);
        let known: Vec<u64> = handovers.keys().flatten().collect();
        for agent in known.into_iter().filter(|agent| !is_tagged(*agent)) {
            let _ = handovers.remove(&agent);
        }
    }

    /// One counter, of all agents that there are or were.
    pub(super) fn of_all(&self, index: u32) -> u64 {
        let agents = lock(&self.agents);
        let now: u64 = agents
            .values()
            .flatten()
            .map(|map| read(&map.map, index))
            .sum();
        let past = lock(&self.past).get(index as usize).copied().unwrap_or(0);
        read(&self.own, index) + now + past
    }

    fn of(&self, agent: u64, index: u32) -> u64 {
        let agents = lock(&self.agents);
        let maps = agents.get(&agent).into_iter().flatten();
        maps.map(|map| read(&map.map, index)).sum()
    }

    fn handover(&self, agent: u64) -> abi::Handover {
        let handovers = lock(&self.handovers);
        let Ok(values) = handovers.get(&agent, 0) else {
            return abi::Handover::default();
        };
        values
            .iter()
            .fold(abi::Handover::default(), |sum, Plain(value)| {
                abi::Handover {
                    taken: sum.taken + value.taken,
                    lost: sum.lost + value.lost,
                }
            })
    }
}

impl Kernel {
    /// What became of the connects of agent number `agent`. What ends while this is read may be counted as
    /// unsettled, and nothing as settled twice.
    #[must_use]
    pub fn connects(&self, agent: u64) -> Connects {
        let counts = &self.counts;
        // From the end of a connection's way to its beginning.
        let handover = counts.handover(agent);
        let given_up = counts.of(agent, counter::GIVEN_UP);
        let unpublished = counts.of(agent, counter::UNPUBLISHED);
        let mut connects = Connects {
            taken: handover.taken,
            lost: handover.lost + unpublished,
            given_up,
            ..Connects::default()
        };
        if counts.of(agent, counter::BEGUN) > connects.taken + connects.lost + given_up {
            connects.waiting = self.flows_of(agent).len() as u64;
        }
        connects.begun = counts.of(agent, counter::BEGUN);
        connects.redirected = counts.of(agent, counter::REDIRECTED);
        connects.direct = counts.of(agent, counter::DIRECT);
        connects.refused = REFUSED.iter().map(|index| counts.of(agent, *index)).sum();
        connects
    }

    /// Has connections of an agent that is none any more wait no longer: the proxy refuses what it has no
    /// note of. How many there were.
    pub fn give_up(&self, agent: u64) -> u64 {
        let waiting = self.flows_of(agent);
        let mut flows = lock(&self.flows);
        let given_up = waiting.iter().filter(|flow| flows.remove(flow).is_ok());
        given_up.count() as u64
    }

    /// Forgets what an agent that is none any more had counted.
    pub fn forget_counts(&self, agent: u64) {
        self.counts.forget(agent);
    }

    fn flows_of(&self, agent: u64) -> Vec<Plain<abi::Flow>> {
        let flows: &BpfHashMap<_, _, Plain<abi::Note>> = &lock(&self.flows);
        flows
            .iter()
            .flatten()
            .filter(|(_, Plain(note))| note.agent == agent)
            .map(|(flow, _)| flow)
            .collect()
    }
}

/// Counters of refused connects. Some of what they count isn't a connect: a `bind`, a datagram.
const REFUSED: [u32; 5] = [
    counter::REFUSED_UNARMED,
    counter::REFUSED_STORAGE,
    counter::REFUSED_LISTENER,
    counter::REFUSED_DEVICE,
    counter::REFUSED_ABSENT,
];

fn read(map: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    map.get(&index, 0).map_or(0, |values| values.iter().sum())
}

fn id(pin: &Path) -> Option<u32> {
    Some(MapData::from_pin(pin).ok()?.info().ok()?.id())
}
