//! Operations that one rule is for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bytes::Bytes;

use super::{super::rule::counts, CASES_MAX};
use crate::{
    operation::{Effects, Operation, Protocol, Resource, ResourceKind, Touch, attribute},
    origin::{Destination, Origin},
};

/// Where operations go, as rules name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A host that was proved to have these names.
    Names(Vec<Box<str>>, Option<u16>),
    Address(IpAddr, u16),
    Socket(Arc<str>),
}

/// What operations of one rule have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    place: Place,
    pub(super) protocol: Protocol,
    /// What is done; none where it is one of several that have nothing else to tell them apart.
    pub(super) actions: Vec<Box<str>>,
    /// Bits of [`Effects`].
    effects: u16,
    pub(super) attributes: BTreeMap<Box<str>, Box<str>>,
    pub(super) kind: Kind,
}

/// How a rule tells its operations from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// By its action: it is about nothing.
    Action,
    /// By what it touches, all of it in one way.
    Touching(Touch),
    /// By what it touches, in both ways: this.
    Mixed(Vec<Resource>),
    /// By its path.
    Path,
    /// By its path, which has characters in it that mean something in a rule's.
    OddPath(Box<str>),
    /// By the name that it asks for, in these types.
    Question,
    /// By its text.
    Exact,
    /// Only by where it goes.
    Place,
}

/// What was seen of operations of one rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    pub(super) operations: u64,
    pub(super) actions: BTreeSet<Box<str>>,
    pub(super) resources: BTreeSet<Resource>,
    pub(super) paths: BTreeSet<String>,
    /// Names with the types of records that were asked for.
    pub(super) names: BTreeMap<String, BTreeSet<Box<str>>>,
    pub(super) extensions: BTreeSet<String>,
    pub(super) texts: BTreeSet<Bytes>,
    /// Some of them, for cases.
    pub(super) samples: Vec<(Arc<Origin>, Operation)>,
}

/// Effects of which rules can't say enough by what is touched.
const BEYOND: Effects = Effects::EXECUTE
    .union(Effects::ADMIN)
    .union(Effects::TRANSFER)
    .union(Effects::UNCLASSIFIED);

/// What begins and ends transactions, and needs nothing more said.
const TRANSACTIONS: [&str; 9] = [
    "BEGIN",
    "START TRANSACTION",
    "COMMIT",
    "END",
    "ROLLBACK",
    "SAVEPOINT",
    "RELEASE",
    "ROLLBACK TO",
    "CANCEL",
];

impl Key {
    pub(super) fn of(origin: &Origin, operation: &Operation) -> Self {
        let description = &operation.description;
        let protocol = operation.protocol;
        let mut key = Self {
            place: Place::of(origin, operation),
            protocol,
            actions: description.actions.to_vec(),
            effects: description.effects.bits(),
            attributes: BTreeMap::new(),
            kind: Kind::Place,
        };
        let attributes = &description.attributes;
        let mut keep = |names: &[&str]| {
            let kept = names
                .iter()
                .filter_map(|name| attributes.get_key_value(*name));
            key.attributes
                .extend(kept.map(|(name, value)| (name.clone(), value.clone())));
        };
        match protocol {
            Protocol::Postgres => {
                keep(&["where", "locking"]);
                key.kind = of_statement(operation);
                if key.kind == Kind::Action {
                    key.actions.clear();
                }
            }
            Protocol::Http => {
                keep(&["http.scheme", "http.upgrade", attribute::HTTP_FRONTING]);
                if !matches!(key.place, Place::Names(..)) {
                    keep(&[attribute::HTTP_HOST]);
                }
                key.kind = match attributes.get(attribute::HTTP_PATH) {
                    Some(path) if path.contains(['*', '{', '}']) => Kind::OddPath(path.clone()),
                    Some(_) => Kind::Path,
                    None => Kind::Place,
                };
            }
            Protocol::Dns => {
                keep(&[attribute::DNS_CLASS]);
                let is_question = (Effects::READ | Effects::EXPORT).contains(description.effects);
                key.kind = match is_question {
                    true => Kind::Question,
                    false => Kind::Exact,
                };
                if is_question {
                    key.actions.clear();
                }
            }
            // By what the client calls the server.
            Protocol::Tls => keep(&[attribute::TLS_SERVER_NAME]),
            Protocol::Opaque => {}
        }
        key
    }

    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn effects(&self) -> Effects {
        Effects::from_bits_truncate(self.effects)
    }

    pub(super) const fn is_exact(&self) -> bool {
        matches!(self.kind, Kind::Exact)
    }
}

fn of_statement(operation: &Operation) -> Kind {
    let description = &operation.description;
    let mut touched: Vec<Resource> = description
        .resources
        .iter()
        .filter(counts)
        .cloned()
        .collect();
    if description.effects.intersects(BEYOND) {
        return Kind::Exact;
    }
    let is_transaction = |action: &str| TRANSACTIONS.contains(&action);
    match touched.first().map(|resource| resource.touch) {
        Some(touch) if touched.iter().all(|resource| resource.touch == touch) => {
            Kind::Touching(touch)
        }
        Some(_) => {
            touched.sort();
            Kind::Mixed(touched)
        }
        None => {
            let actions = &description.actions;
            match !actions.is_empty() && actions.iter().all(|action| is_transaction(action)) {
                true => Kind::Action,
                false => Kind::Exact,
            }
        }
    }
}

impl Place {
    fn of(origin: &Origin, operation: &Operation) -> Self {
        let claimed = operation.description.attributes.get(attribute::HTTP_HOST);
        match &origin.destination {
            Destination::Unix(path) => Self::Socket(path.clone()),
            Destination::Ip(address) if origin.names.is_empty() => {
                Self::Address(address.ip(), address.port())
            }
            Destination::Ip(address) => {
                let mut names = origin.names.clone();
                names.extend(claimed.cloned());
                names.sort();
                names.dedup();
                Self::Names(names, Some(address.port()))
            }
        }
    }
}

impl Contents {
    pub(super) fn take(&mut self, origin: &Arc<Origin>, operation: &Operation) {
        let description = &operation.description;
        let attributes = &description.attributes;
        self.operations += 1;
        self.actions.extend(description.actions.iter().cloned());
        let kept = description.resources.iter().filter(counts);
        self.resources.extend(kept.cloned());
        if let Some(path) = attributes.get(attribute::HTTP_PATH) {
            self.paths.insert(path.to_string());
        }
        if operation.protocol == Protocol::Dns {
            let names = description.resources.iter();
            for name in names.filter(|resource| resource.kind == ResourceKind::Name) {
                let types = self.names.entry(name.name.to_string()).or_default();
                types.extend(description.actions.iter().cloned());
            }
            let used = attributes.get(attribute::DNS_OPTIONS);
            let used = used.into_iter().flat_map(|used| used.split(','));
            self.extensions.extend(used.map(str::to_owned));
        }
        self.texts.insert(operation.content.clone());
        if self.samples.len() < CASES_MAX {
            self.samples.push((origin.clone(), operation.clone()));
        }
    }
}
