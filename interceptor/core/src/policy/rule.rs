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

/// A condition of a rule that an operation doesn't meet; of what there are several of, with its place among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmet {
    Agent,
    Label(usize),
    Address,
    Port,
    Socket,
    Protocol,
    Action,
    Class,
    /// It isn't about data, and a rule that allows doesn't say that it means such.
    Beyond,
    Resources,
    Name,
    Attribute(usize),
    /// It asks for something of HTTP, and this is none.
    NoRequest,
    Path,
    Query(usize),
    Header(usize),
    ContentType,
    LargerThan,
    /// It asks for something of the DNS, and this isn't asked of it.
    NoQuestion,
    /// It is more than a question, and a rule that allows doesn't say that it means such.
    MoreThanQuestion,
    Type,
    Extension,
    Question,
    LongerThan,
    LabelLongerThan,
    Entropy,
    Content,
    Json,
    Time,
    Rate,
    Distinct,
}

/// Whether looking at a rule counts as an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counting {
    Count,
    Look,
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
        self.unmet_by(agent).is_none()
    }

    /// Whether sessions of `origin` can be concerned at all.
    pub(super) fn matches(&self, origin: &Origin) -> bool {
        self.unmet(origin).is_none()
    }

    fn unmet_by(&self, agent: &Agent) -> Option<Unmet> {
        let is_meant = self
            .agents
            .as_ref()
            .is_none_or(|globs| globs.iter().any(|glob| glob.matches(&agent.name)));
        if !is_meant {
            return Some(Unmet::Agent);
        }
        let is_other = |(name, glob): &(String, Glob)| {
            let value = agent.labels.get(&**name);
            !value.is_some_and(|value| glob.matches(value))
        };
        self.labels.iter().position(is_other).map(Unmet::Label)
    }

    /// The first of these conditions that sessions of `origin` don't meet.
    pub(super) fn unmet(&self, origin: &Origin) -> Option<Unmet> {
        let Origin {
            agent, destination, ..
        } = origin;
        if let Some(unmet) = self.unmet_by(agent) {
            return Some(unmet);
        }
        let is_there = self.addresses.as_ref().is_none_or(|networks| {
            destination
                .ip()
                .is_some_and(|ip| networks.iter().any(|network| network.contains(ip)))
        });
        if !is_there {
            return Some(Unmet::Address);
        }
        let is_port = self.ports.as_ref().is_none_or(|ranges| {
            destination
                .port()
                .is_some_and(|port| ranges.iter().any(|range| range.contains(&port)))
        });
        if !is_port {
            return Some(Unmet::Port);
        }
        let is_socket = self.sockets.as_ref().is_none_or(|globs| {
            destination
                .socket()
                .is_some_and(|path| globs.iter().any(|glob| glob.matches(path)))
        });
        (!is_socket).then_some(Unmet::Socket)
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
    fn window(&self, now: Timestamp) -> u64 {
        let per = u64::try_from(self.per.as_nanos()).unwrap_or(u64::MAX);
        now.0 / per.max(1)
    }

    /// Operations of `agent` that count at `now`.
    pub(super) fn count(&self, agent: &str, now: Timestamp) -> u32 {
        let window = self.window(now);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get(agent) {
            Some((of, count)) if *of == window => *count,
            _ => 0,
        }
    }

    /// Whether one more operation of `agent` would be one too many.
    fn would_exceed(&self, agent: &str, now: Timestamp) -> bool {
        self.count(agent, now).saturating_add(1) > self.over
    }

    /// Counts one operation of `agent`; whether that is one too many.
    fn exceeded(&self, agent: &str, now: Timestamp) -> bool {
        let window = self.window(now);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(agent.into()).or_insert((window, 0));
        if entry.0 != window {
            *entry = (window, 0);
        }
        entry.1 = entry.1.saturating_add(1);
        entry.1 > self.over
    }
}

/// How restrictive a rule is: what it says, and where it holds whether it asks for a security key, and its quorum.
pub(super) type Weight = (u8, bool, u32);

impl Rule {
    /// How restrictive it is. Of two that hold the one whose people are harder to convince counts, so that no rule
    /// that stands before another takes its security key or its quorum away.
    pub(super) fn weight(&self) -> Weight {
        match &self.says {
            Says::Allow if self.rewrite.is_some() => (1, false, 0),
            says @ Says::Hold(terms) => (says.weight(), terms.security_key, terms.quorum),
            says => (says.weight(), false, 0),
        }
    }

    /// Whether it masks anything.
    pub(super) fn masks(&self) -> bool {
        !self.columns.is_empty() || !self.patterns.is_empty() || !self.web.is_empty()
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

    pub(super) fn distinct(&self) -> Option<&Distinct> {
        self.dns.as_ref()?.distinct.as_ref()
    }

    /// Forgets what it has counted.
    pub(super) fn forget(&self) {
        if let Some(rate) = &self.rate {
            let mut seen = rate.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.clear();
        }
        if let Some(distinct) = self.distinct() {
            distinct.forget();
        }
    }

    /// Whether it counts what matches it, so that the same operation may be decided otherwise the next time.
    pub(super) fn counts(&self) -> bool {
        self.rate.is_some() || self.distinct().is_some()
    }

    /// Whether `operation` is one of those meant. A restrictive rule matches when any part of it is; a
    /// permissive one only when it covers all of it.
    pub(super) fn matches(
        &self,
        operation: &Operation,
        origin: &Origin,
        now: Timestamp,
        counting: Counting,
    ) -> bool {
        self.unmet(operation, origin, now, counting).is_none()
    }

    /// The first of its conditions that `operation` doesn't meet, but for those of its scope.
    pub(super) fn unmet(
        &self,
        operation: &Operation,
        origin: &Origin,
        now: Timestamp,
        counting: Counting,
    ) -> Option<Unmet> {
        let unmet = self
            .unmet_head(operation, origin)
            .or_else(|| self.unmet_content(operation));
        if unmet.is_some() {
            return unmet;
        }
        if !self.time.is_none_or(|time| time.contains(now)) {
            return Some(Unmet::Time);
        }
        self.unmet_counts(operation, origin, now, counting)
    }

    /// Counts an operation that matches otherwise, or looks at the counts; it matches where it is one too many by
    /// every one.
    fn unmet_counts(
        &self,
        operation: &Operation,
        origin: &Origin,
        now: Timestamp,
        counting: Counting,
    ) -> Option<Unmet> {
        let agent = &*origin.agent.name;
        let rate = self.rate.as_ref().map(|rate| match counting {
            Counting::Count => rate.exceeded(agent, now),
            Counting::Look => rate.would_exceed(agent, now),
        });
        let distinct = self.distinct().map(|distinct| match counting {
            Counting::Count => distinct.exceeded(agent, operation, now),
            Counting::Look => distinct.would_exceed(agent, operation, now),
        });
        match (rate, distinct) {
            (Some(false), _) => Some(Unmet::Rate),
            (_, Some(false)) => Some(Unmet::Distinct),
            _ => None,
        }
    }

    /// The first condition on what is known of `operation` before its content that it doesn't meet.
    fn unmet_head(&self, operation: &Operation, origin: &Origin) -> Option<Unmet> {
        let description = &operation.description;
        let permissive = matches!(self.says, Says::Allow);
        if self
            .scope
            .protocol
            .is_some_and(|protocol| protocol != operation.protocol)
        {
            return Some(Unmet::Protocol);
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
                return Some(Unmet::Action);
            }
        }
        if let Some(classes) = self.classes {
            let covered = if permissive {
                classes.contains(description.effects)
            } else {
                classes.intersects(description.effects)
            };
            if !covered {
                return Some(Unmet::Class);
            }
        }
        if permissive && !self.means_beyond_data(&description.actions, description.effects) {
            return Some(Unmet::Beyond);
        }
        if !self.resources_match(&description.resources, permissive) {
            return Some(Unmet::Resources);
        }
        if !self.names_match(operation, origin, permissive) {
            return Some(Unmet::Name);
        }
        let attributes = &description.attributes;
        let is_other = |(name, glob): &(String, Glob)| {
            let value = attributes.get(&**name);
            !value.is_some_and(|value| glob.matches(value))
        };
        if let Some(place) = self.attributes.iter().position(is_other) {
            return Some(Unmet::Attribute(place));
        }
        let says_what = self.classes.is_some() || self.actions.is_some();
        let http = self.http.as_ref();
        http.and_then(|http| http.unmet_head(operation))
            .or_else(|| {
                let dns = self.dns.as_ref()?;
                dns.unmet(operation, permissive, says_what)
            })
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
        self.unmet_head(operation, origin).is_none()
            && self.time.is_none_or(|time| time.contains(now))
    }

    fn unmet_content(&self, operation: &Operation) -> Option<Unmet> {
        let is_meant = self
            .content
            .as_ref()
            .is_none_or(|regex| regex.is_match(&operation.content));
        if !is_meant {
            return Some(Unmet::Content);
        }
        match (&self.http, &operation.http) {
            (Some(http), Some(request)) => {
                let is_meant = http.matches_body(request, matches!(self.says, Says::Allow));
                (!is_meant).then_some(Unmet::Json)
            }
            (Some(_), None) => Some(Unmet::NoRequest),
            (None, _) => None,
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

    /// Whether a rule that allows doesn't because of `resource`.
    pub(super) fn is_kept_from(&self, resource: &Resource) -> bool {
        let is_touched = self.touch.is_none_or(|touch| resource.touch == touch);
        match &self.resources {
            None => !is_touched,
            Some(patterns) => {
                let is_meant = patterns
                    .iter()
                    .any(|pattern| pattern.matches(resource, true));
                counts(&resource) && !(is_meant && is_touched)
            }
        }
    }
}

/// Whether a rule that allows has to cover `resource`: built-in functions and settings that change nothing come with
/// every statement.
pub(super) fn counts(resource: &&Resource) -> bool {
    match resource.kind {
        ResourceKind::Function => false,
        ResourceKind::Setting | ResourceKind::Channel => resource.touch == Touch::Write,
        _ => true,
    }
}

impl TlsRule {
    /// The first of its conditions that a connection of `origin` to what the client calls `name` doesn't meet.
    pub(super) fn unmet(&self, origin: &Origin, name: Option<&str>) -> Option<Unmet> {
        let unmet = self.scope.unmet(origin);
        if unmet.is_some() {
            return unmet;
        }
        let is_meant = self.names.as_ref().is_none_or(|globs| {
            name.is_some_and(|name| globs.iter().any(|glob| glob.matches(name)))
        });
        (!is_meant).then_some(Unmet::Name)
    }
}
