//! Rules on what isn't redirected: where to, or who from, and at which ports.

use std::sync::Arc;

use super::{Compiler, says_more};
use crate::policy::{
    direct::{DirectRule, EVERYWHERE, Meeting},
    file::{DirectSpec, RuleSpec},
    rule::{Network, ScopeMatch},
};

/// Ranges of ports that one rule may have: the kernel has room for as many.
const RANGES_MAX: usize = 8;

impl Compiler {
    /// A rule with `udp` or `inbound`.
    pub(super) fn direct_rule(&mut self, file: &str, id: Arc<str>, spec: &RuleSpec) {
        let (meeting, says) = match (&spec.udp, &spec.inbound) {
            (Some(says), _) => (Meeting::Datagrams, says),
            (None, Some(says)) => (Meeting::Inbound, says),
            (None, None) => return,
        };
        let place = says.referenced;
        let matches = &spec.r#match;
        if says_more(spec) {
            let what = "a rule with `udp` or `inbound` is for the kernel, which knows packets only: it matches `agent`, `labels`, `destination` and (with `inbound`) `source`, and has no `action` or `mask`";
            self.problem(file, place, what);
        }
        self.has_no_socket(
            file,
            matches,
            "the kernel knows packets only, and UNIX sockets have none",
        );
        let destination = matches.destination.as_ref();
        let address = destination.and_then(|spec| spec.address.as_ref());
        let names = self.names(file, matches);
        let networks = match meeting {
            Meeting::Datagrams => {
                if let Some(source) = &matches.source {
                    let what = "datagrams that an agent sends come from the agent; a rule with `inbound` has a `source`";
                    self.problem(file, source.referenced, what);
                }
                if address.is_none() && names.is_none() {
                    let what = "say where to: `destination: {address: 192.0.2.0/24, port: 123}`, or `name` in place of `address`";
                    self.problem(file, place, what);
                }
                if address.is_some() && names.is_some() {
                    let what = "a rule with `udp` goes by `address` or by `name`, not by both";
                    self.problem(file, place, what);
                }
                address
            }
            Meeting::Inbound => {
                if address.is_some() || names.is_some() {
                    let what = "what comes in has come to the agent: say from where (`source: {address: 192.0.2.0/24}`) and to which of its ports (`destination: {port: 3000}`)";
                    self.problem(file, place, what);
                }
                let source = matches.source.as_ref();
                source.and_then(|source| source.value.address.as_ref())
            }
        };
        let networks = match networks {
            Some(spec) => {
                let networks = self.networks(file, spec).into_iter();
                networks.map(Network::canonical).collect()
            }
            None => EVERYWHERE.to_vec(),
        };
        let ports = match destination.and_then(|spec| spec.port.as_ref()) {
            Some(spec) => self.ports(file, spec),
            None => {
                let what = "say at which ports: `destination: {port: 123}`, `[123, 27000-27100]` or `1-65535`";
                self.problem(file, place, what);
                Vec::new()
            }
        };
        if ports.len() > RANGES_MAX {
            let what = format!("more than {RANGES_MAX} ranges of ports; make two rules of it");
            self.problem(file, place, what);
        }
        let scope = ScopeMatch {
            addresses: None,
            ports: None,
            ..self.scope(file, matches)
        };
        self.direct.push(DirectRule {
            id,
            scope,
            meeting,
            networks,
            names,
            ports,
            allows: says.value == DirectSpec::Allow,
        });
    }
}
