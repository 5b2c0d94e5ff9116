//! What each agent may take of the proxy: none takes so much that there is nothing left for the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::Semaphore;

use super::volume::Volume;
use crate::{config::Limits, memory::Memory, radius, sync::lock};

/// All agents' shares.
#[derive(Debug)]
pub(super) struct Shares {
    limits: Limits,
    agents: Mutex<HashMap<Arc<str>, Weak<Share>>>,
}

/// One agent's share, of all of its sessions.
#[derive(Debug)]
pub(crate) struct Share {
    /// How much goes on record.
    pub(crate) volume: Volume,
    /// How much memory they hold.
    pub(crate) memory: Arc<Memory>,
    /// Of how many held operations it is found out at once what they would touch.
    pub(crate) estimates: Semaphore,
}

impl Shares {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            agents: Mutex::default(),
        }
    }

    /// The share of `agent`.
    pub(super) fn of(&self, agent: &Arc<str>) -> Arc<Share> {
        let mut agents = lock(&self.agents);
        if let Some(share) = agents.get(agent).and_then(Weak::upgrade) {
            return share;
        }
        agents.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            volume: Volume::new(self.limits.recorded_per_agent),
            memory: Arc::new(Memory::new(self.limits.memory_per_agent.get())),
            estimates: Semaphore::new(radius::AT_ONCE),
        });
        agents.insert(agent.clone(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_one_agent_share_and_others_don_t() {
        let shares = Shares::new(Limits::default());
        let [one, same, other] = ["one", "one", "other"].map(|agent| shares.of(&Arc::from(agent)));
        assert!(Arc::ptr_eq(&one, &same));
        assert!(!Arc::ptr_eq(&one, &other));
    }
}
