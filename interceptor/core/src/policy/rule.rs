//! A rule, compiled: what it matches, and what it says.

use std::{
    collections::HashMap,
    net::IpAddr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use regex::bytes::Regex;

use super::{
    decision::HoldTerms,
    dns::{Distinct, DnsMatch},
    http::HttpMatch,
};
use crate::{
    glob::Glob,
    mask::{
        ColumnMask, PatternMask,
        body::{KeyMask, PathMask},
    },
    operation::{
        Effects, Operation, Protocol, Resource, ResourceKind, Touch, attribute, http::Rewrite,
    },
    origin::{Agent, Origin},
    record::Timestamp,
};

/// A compiled rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) id: Arc<str>,
    pub(super) scope: ScopeMatch,
    pub(super) names: Option<Vec<Glob>>,
    pub(super) actions: Option<Vec<Glob>>,
    pub(super) classes: Option<Effects>,
    pub(super) resources: Option<Vec<ResourceMatch>>,
    pub(super) touch: Option<Touch>,
    pub(super) attributes: Vec<(String, Glob)>,
    pub(super) content: Option<Regex>,
    pub(super) http: Option<HttpMatch>,
    pub(super) dns: Option<DnsMatch>,
    pub(super) time: Option<Time>,
    pub(super) rate: Option<Rate>,
    pub(super) says: Says,
    pub(super) reason: Arc<str>,
    pub(super) columns: Vec<ColumnMask>,
    pub(super) patterns: Vec<PatternMask>,
    pub(super) web: WebMasks,
    pub(super) rewrite: Option<Arc<Rewrite>>,
    pub(super) enforced: bool,
    pub(super) strict: Option<bool>,
}

/// The masks of a rule on what HTTP carries.
#[derive(Debug, Default)]
pub(super) struct WebMasks {
    pub(super) paths: Vec<PathMask>,
    pub(super) keys: Vec<KeyMask>,
    pub(super) headers: Vec<KeyMask>,
    pub(super) strict: bool,
}

impl WebMasks {
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.keys.is_empty() && self.headers.is_empty()
    }
}

/// A rule about TLS: asked before anything is known of what is inside.
#[derive(Debug)]
pub(super) struct TlsRule {
    pub(super) id: Arc<str>,
    pub(super) scope: ScopeMatch,
    pub(super) names: Option<Vec<Glob>>,
    pub(super) treatment: Treatment,
    pub(super) reason: Arc<str>,
}

/// What becomes of a TLS connection, least restrictive first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    /// It goes through as it is; who answers is verified and recorded.
    Passthrough,
    /// It is ended here, and what is inside is decided.
    Intercept,
    /// It is refused.
    Deny,
}

/// What a rule says, least restrictive first.
#[derive(Debug, Clone)]
pub(super) enum Says {
    Allow,
    Hold(HoldTerms),
    Deny,
}

/// What is the same for all operations of a session.
#[derive(Debug, Default)]
pub(super) struct ScopeMatch {
    pub(super) agents: Option<Vec<Glob>>,
    pub(super) labels: Vec<(String, Glob)>,
    pub(super) addresses: Option<Vec<Network>>,
    pub(super) ports: Option<Vec<RangeInclusive<u16>>>,
    /// Paths of UNIX sockets.
    pub(super) sockets: Option<Vec<Glob>>,
    pub(super) protocol: Option<Protocol>,
}

/// An address with the length of its prefix in bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    pub(super) address: IpAddr,
    pub(super) prefix_bits: u8,
}

/// A pattern for resources of one kind.
#[derive(Debug)]
pub(super) struct ResourceMatch {
    pub(super) kind: ResourceKind,
    pub(super) namespace: Glob,
    pub(super) name: Glob,
}

/// Days and hours, in UTC.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    /// Bit 0 is Monday.
    pub(super) days: u8,
    /// Minutes since midnight: from, and up to but not at. `from > to` goes past midnight.
    pub(super) minutes: (u16, u16),
}

/// Operations of one agent that are let by before a rule matches.
#[derive(Debug)]
pub(super) struct Rate {
    pub(super) over: u32,
    pub(super) per: Duration,
    pub(super) seen: Mutex<HashMap<Box<str>, (u64, u32)>>,
}

impl Says {
    pub(super) const fn weight(&self) -> u8 {
        match self {
            Self::Allow => 0,
            // 1 is to allow with changes.
            Self::Hold(_) => 2,
            Self::Deny => 3,
        }
    }
}

impl ScopeMatch {
    /// Whether `agent` is one of those meant.
    pub(super) fn is_for(&self, agent: &Agent) -> bool {
        self.agents
            .as_ref()
            .is_none_or(|globs| globs.iter().any(|glob| glob.matches(&agent.name)))
            && self.labels.iter().all(|(name, glob)| {
                agent
                    .labels
                    .get(&**name)
                    .is_some_and(|value| glob.matches(value))
            })
    }

    /// Whether sessions of `origin` can be concerned at all.
    pub(super) fn matches(&self, origin: &Origin) -> bool {
        let Origin {
            agent, destination, ..
        } = origin;
        self.is_for(agent)
            && self.addresses.as_ref().is_none_or(|networks| {
                destination
                    .ip()
                    .is_some_and(|ip| networks.iter().any(|network| network.contains(ip)))
            })
            && self.ports.as_ref().is_none_or(|ranges| {
                destination
                    .port()
                    .is_some_and(|port| ranges.iter().any(|range| range.contains(&port)))
            })
            && self.sockets.as_ref().is_none_or(|globs| {
                destination
                    .socket()
                    .is_some_and(|path| globs.iter().any(|glob| glob.matches(path)))
            })
    }
}

impl Network {
    pub(super) fn contains(self, address: IpAddr) -> bool {
        let bits = u32::from(self.prefix_bits);
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                bits == 0 || (u32::from(network) ^ u32::from(address)) >> (32 - bits) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                bits == 0 || (u128::from(network) ^ u128::from(address)) >> (128 - bits) == 0
            }
            _ => false,
        }
    }
}

impl ResourceMatch {
    /// Whether `resource` is one of those meant. A table named without its schema may be in any: a
    /// restrictive rule takes it for its own, a permissive one only where every schema is meant.
    fn matches(&self, resource: &Resource, permissive: bool) -> bool {
        if self.kind != resource.kind || !self.name.matches(&resource.name) {
            return false;
        }
        match &resource.namespace {
            Some(namespace) => self.namespace.matches(namespace),
            None => self.namespace.is_any() || !permissive,
        }
    }
}

impl Time {
    fn contains(self, now: Timestamp) -> bool {
        let seconds = now.0 / 1_000_000_000;
        let minute = (seconds / 60 % 1_440) as u16;
        // The epoch was a Thursday.
        let day = (seconds / 86_400 + 3) % 7;
        let (from, to) = self.minutes;
        let within = if from <= to {
            (from..to).contains(&minute)
        } else {
            minute >= from || minute < to
        };
        self.days >> day & 1 == 1 && within
    }
}

impl Rate {
    /// Counts one operation of `agent`; whether that is one too many.
    fn exceeded(&self, agent: &str, now: Timestamp) -> bool {
        let window = now.0
            / u64::try_from(self.per.as_nanos())
                .unwrap_or(u64::MAX)
                .max(1);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(agent.into()).or_insert((window, 0));
        if entry.0 != window {
            *entry = (window, 0);
        }
        entry.1 = entry.1.saturating_add(1);
        entry.1 > self.over
    }
}

impl Rule {
    /// How restrictive it is. Of two that hold the one whose people are harder to convince counts, so that no rule
    /// that stands before another takes its security key or its quorum away.
    pub(super) fn weight(&self) -> (u8, bool, u32) {
        match &self.says {
            Says::Allow if self.rewrite.is_some() => (1, false, 0),
            says @ Says::Hold(terms) => (says.weight(), terms.security_key, terms.quorum),
            says => (says.weight(), false, 0),
        }
    }

    /// Whether the same description may be decided otherwise another time.
    pub(super) fn depends_on_more_than_the_description(&self) -> bool {
        self.content.is_some()
            || self.time.is_some()
            || self.rate.is_some()
            || self.distinct().is_some()
            || self
                .http
                .as_ref()
                .is_some_and(HttpMatch::looks_beyond_description)
    }

    fn distinct(&self) -> Option<&Distinct> {
        self.dns.as_ref()?.distinct.as_ref()
    }

    /// Whether `operation` is one of those meant. A restrictive rule matches when any part of it is; a
    /// permissive one only when it covers all of it.
    pub(super) fn matches(&self, operation: &Operation, origin: &Origin, now: Timestamp) -> bool {
        self.matches_head(operation, origin)
            && self.content_matches(operation)
            && self.time.is_none_or(|time| time.contains(now))
            && self.counts_match(operation, origin, now)
    }

    /// Counts an operation that matches otherwise; whether it is one too many by every count.
    fn counts_match(&self, operation: &Operation, origin: &Origin, now: Timestamp) -> bool {
        let agent = &*origin.agent.name;
        let rate = self.rate.as_ref().map(|rate| rate.exceeded(agent, now));
        let distinct = self
            .distinct()
            .map(|distinct| distinct.exceeded(agent, operation, now));
        rate != Some(false) && distinct != Some(false)
    }

    /// Whether what is known of `operation` before its content is what is meant.
    fn matches_head(&self, operation: &Operation, origin: &Origin) -> bool {
        let description = &operation.description;
        let permissive = matches!(self.says, Says::Allow);
        if self
            .scope
            .protocol
            .is_some_and(|protocol| protocol != operation.protocol)
        {
            return false;
        }
        if let Some(globs) = &self.actions {
            let meant = |action: &str| {
                globs
                    .iter()
                    .any(|glob| glob.matches(&action.to_ascii_uppercase()))
            };
            let mut actions = description.actions.iter();
            if !(if permissive {
                !description.actions.is_empty() && actions.all(|a| meant(a))
            } else {
                actions.any(|a| meant(a))
            }) {
                return false;
            }
        }
        if let Some(classes) = self.classes {
            let covered = if permissive {
                classes.contains(description.effects)
            } else {
                classes.intersects(description.effects)
            };
            if !covered {
                return false;
            }
        }
        if permissive && !self.means_beyond_data(&description.actions, description.effects) {
            return false;
        }
        if !self.resources_match(&description.resources, permissive) {
            return false;
        }
        if !self.names_match(operation, origin, permissive) {
            return false;
        }
        let attributes = &description.attributes;
        if !self.attributes.iter().all(|(name, glob)| {
            attributes
                .get(&**name)
                .is_some_and(|value| glob.matches(value))
        }) {
            return false;
        }
        let says_what = self.classes.is_some() || self.actions.is_some();
        self.http
            .as_ref()
            .is_none_or(|http| http.matches_head(operation))
            && self
                .dns
                .as_ref()
                .is_none_or(|dns| dns.matches(operation, permissive, says_what))
    }

    /// Whether what it says can depend on an HTTP request's body.
    pub(super) fn looks_at_content(&self) -> bool {
        self.content.is_some() || self.http.as_ref().is_some_and(HttpMatch::looks_at_body)
    }

    /// Whether it could match `operation` once its content is there.
    pub(super) fn matches_but_for_content(
        &self,
        operation: &Operation,
        origin: &Origin,
        now: Timestamp,
    ) -> bool {
        self.matches_head(operation, origin) && self.time.is_none_or(|time| time.contains(now))
    }

    fn content_matches(&self, operation: &Operation) -> bool {
        self.content
            .as_ref()
            .is_none_or(|regex| regex.is_match(&operation.content))
            && match (&self.http, &operation.http) {
                (Some(http), Some(request)) => {
                    http.matches_body(request, matches!(self.says, Says::Allow))
                }
                (Some(_), None) => false,
                (None, _) => true,
            }
    }

    /// Whether a destination that has these names is one of those meant.
    pub(super) fn is_for_names(&self, names: &[Box<str>]) -> bool {
        self.names.as_ref().is_none_or(|globs| {
            names
                .iter()
                .any(|name| globs.iter().any(|glob| glob.matches(name)))
        })
    }

    /// Whether the destination is one of those named. What the operation itself claims (a Host that isn't
    /// the name of the connection) can only make a rule stricter: it counts for a restriction, and
    /// against a permission that doesn't cover it too.
    fn names_match(&self, operation: &Operation, origin: &Origin, permissive: bool) -> bool {
        let Some(globs) = &self.names else {
            return true;
        };
        let meant = |name: &str| globs.iter().any(|glob| glob.matches(name));
        let proved = origin.names.iter().any(|name| meant(name));
        let claimed = operation.description.attributes.get(attribute::HTTP_HOST);
        if permissive {
            proved && claimed.is_none_or(|name| meant(name))
        } else {
            proved || claimed.is_some_and(|name| meant(name))
        }
    }

    /// A rule that allows by action, resource or touch alone means data and definitions: what runs
    /// unknown code, or acts on the server, it allows only where it says so by class, or by an action
    /// that is nothing else (`DO`, `ALTER SYSTEM`).
    fn means_beyond_data(&self, actions: &[Box<str>], effects: Effects) -> bool {
        const BEYOND: Effects = Effects::EXECUTE
            .union(Effects::ADMIN)
            .union(Effects::TRANSFER)
            .union(Effects::UNCLASSIFIED);
        const DATA: [&str; 8] = [
            "SELECT",
            "INSERT",
            "UPDATE",
            "DELETE",
            "MERGE",
            "SELECT INTO",
            "CREATE TABLE AS",
            "COPY TO",
        ];
        if !effects.intersects(BEYOND) || self.classes.is_some() {
            return true;
        }
        match &self.actions {
            Some(globs) if !globs.iter().any(Glob::is_any) => {
                !actions.iter().any(|action| DATA.contains(&&**action))
            }
            _ => self.resources.is_none() && self.touch.is_none(),
        }
    }

    fn resources_match(&self, resources: &[Resource], permissive: bool) -> bool {
        let touched = |resource: &Resource| self.touch.is_none_or(|touch| resource.touch == touch);
        let Some(patterns) = &self.resources else {
            return match self.touch {
                None => true,
                Some(_) if permissive => resources.iter().all(touched),
                Some(_) => resources.iter().any(touched),
            };
        };
        let meant = |resource: &Resource| {
            patterns
                .iter()
                .any(|pattern| pattern.matches(resource, permissive))
        };
        if permissive {
            // Built-in functions and settings that change nothing come with every statement.
            let counts = |resource: &&Resource| match resource.kind {
                ResourceKind::Function => false,
                ResourceKind::Setting | ResourceKind::Channel => resource.touch == Touch::Write,
                _ => true,
            };
            let mut any = false;
            resources.iter().filter(counts).all(|resource| {
                any = true;
                meant(resource) && touched(resource)
            }) && any
        } else {
            resources
                .iter()
                .any(|resource| meant(resource) && touched(resource))
        }
    }
}
