//! Whom agents may meet without us in between, kept in the kernel as policies, agents and names change.

use std::{net::IpAddr, sync::Arc};

use interceptor_core::{
    origin::Agent,
    policy::{Meeting, Policy, Reach as Allowed},
};

use crate::{
    dns::Names,
    kernel::{Kernel, KernelError, Peer, Refusal},
    policies::Policies,
};

/// What has to agree: the rules, the names, and what the kernel lets by.
pub struct Reach {
    kernel: Arc<Kernel>,
    policies: Arc<Policies>,
    names: Arc<Names>,
}

impl Reach {
    /// Nothing is written to the kernel before [`Reach::refresh`].
    #[must_use]
    pub const fn new(kernel: Arc<Kernel>, policies: Arc<Policies>, names: Arc<Names>) -> Self {
        Self {
            kernel,
            policies,
            names,
        }
    }

    /// Has the kernel let by what the rules say now.
    ///
    /// # Errors
    /// Where there is no room for all of it. What isn't written is refused.
    pub fn refresh(&self) -> Result<(), KernelError> {
        let policy = self.policies.current();
        let by_name = policy.reaches_by_name();
        let mut peers = Vec::new();
        for tag in self.kernel.tags() {
            let known = if by_name {
                self.names.all(&tag.agent.name)
            } else {
                Vec::new()
            };
            let allowed = policy.reach(&tag.agent, &known).into_iter();
            peers.extend(allowed.map(|allowed| peer(tag.number, allowed)));
        }
        self.kernel.set_peers(&peers)
    }

    /// An agent is about to be told addresses of a name: what rules let by for it has to be there before.
    pub fn learned(&self) {
        if self.policies.current().reaches_by_name()
            && let Err(error) = self.refresh()
        {
            tracing::error!(%error, "a rule with `udp` by name has no effect");
        }
    }

    /// The rule behind something that the kernel let by or refused.
    #[must_use]
    pub fn rule(&self, agent: &Agent, refusal: &Refusal) -> Option<Arc<str>> {
        let meeting = match refusal.name {
            "datagrams_allowed" | "udp_refused" => Meeting::Datagrams,
            "inbound_allowed" | "inbound_refused" => Meeting::Inbound,
            _ => return None,
        };
        let peer = refusal.destination?;
        let address: IpAddr = peer.ip();
        let names = self.names.known(&agent.name, address);
        let policy: Arc<Policy> = self.policies.current();
        policy
            .meeting_rule(agent, meeting, (address, peer.port()), &names)
            .cloned()
    }
}

/// What is allowed, as the kernel has it. Of more ranges than it has room for those behind are refused.
fn peer(agent: u64, mut allowed: Allowed) -> Peer {
    if allowed.ports.len() > Peer::RANGES_MAX {
        tracing::warn!(
            network = %format!("{}/{}", allowed.network.0, allowed.network.1),
            "rules with `udp` or `inbound` make more than {} ranges of ports here; those behind are refused",
            Peer::RANGES_MAX
        );
        allowed.ports.truncate(Peer::RANGES_MAX);
    }
    Peer {
        agent,
        meeting: allowed.meeting,
        network: allowed.network,
        ports: allowed.ports,
    }
}
