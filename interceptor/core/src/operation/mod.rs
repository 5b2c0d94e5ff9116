//! What is being attempted: the unit that is decided.

pub mod dns;
pub mod http;
pub mod radius;
pub mod recalled;
pub mod words;

use std::{collections::BTreeMap, fmt, sync::Arc};

use aws_lc_rs::digest;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::origin::Origin;

/// A protocol that interceptor decodes, or [`Protocol::Opaque`] for what it doesn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// PostgreSQL's frontend/backend protocol, versions 3.0 and 3.2.
    Postgres,
    /// Bytes that no decoder claims; decided as such, never waved through.
    Opaque,
    /// TLS that isn't looked into.
    Tls,
    /// HTTP/1.1 and HTTP/2, what they carry included.
    Http,
    /// DNS, over UDP and TCP.
    Dns,
}

impl Protocol {
    /// Every protocol, in the order in which they are listed to people.
    pub const ALL: [Self; 5] = [
        Self::Postgres,
        Self::Http,
        Self::Dns,
        Self::Tls,
        Self::Opaque,
    ];

    /// The name used in policies and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Opaque => "opaque",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Dns => "dns",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names of attributes that are known outside of the protocols that give them.
pub mod attribute {
    /// The host that an HTTP request is for, lower case, without a port: what the request claims.
    pub const HTTP_HOST: &str = "http.host";
    /// The path of an HTTP request, as every server understands it.
    pub const HTTP_PATH: &str = "http.path";
    /// Why an HTTP request isn't for the server that its connection was made to.
    pub const HTTP_FRONTING: &str = "http.fronting";
    /// Whether an HTTP/2 request has a body: `none`, or `follows`. The head of one of HTTP/1 says so.
    pub const HTTP_BODY: &str = "http.body";
    /// The name by which a client asks for the server of a TLS connection; empty where it gives none.
    pub const TLS_SERVER_NAME: &str = "tls.server_name";
    /// The name that a DNS message asks for, lower case, without the last dot.
    pub const DNS_NAME: &str = "dns.name";
    /// The type of record that it asks for.
    pub const DNS_TYPE: &str = "dns.type";
    /// The class that it asks in; nearly always `IN`.
    pub const DNS_CLASS: &str = "dns.class";
    /// The part of the name that somebody has registered: `example.co.uk` of `www.example.co.uk`.
    pub const DNS_DOMAIN: &str = "dns.domain";
    /// How long the name is, in bytes.
    pub const DNS_NAME_BYTES: &str = "dns.name_bytes";
    /// How long its longest label is, in bytes.
    pub const DNS_LABEL_BYTES: &str = "dns.label_bytes";
    /// How many labels it has.
    pub const DNS_LABELS: &str = "dns.labels";
    /// Shannon's entropy of what stands before the registered part, in bits a character, with two decimals.
    pub const DNS_ENTROPY: &str = "dns.entropy";
    /// Extensions that the message uses (EDNS options), by name, with commas between them.
    pub const DNS_OPTIONS: &str = "dns.options";
}

bitflags::bitflags! {
    /// What an operation does, all of its parts taken together (`class` in rules).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Effects: u16 {
        /// Data is read.
        const READ = 1;
        /// Data is inserted, changed or removed.
        const WRITE = 1 << 1;
        /// Definitions are created, changed or removed.
        const SCHEMA = 1 << 2;
        /// Roles, privileges, settings or the server itself are changed.
        const ADMIN = 1 << 3;
        /// Code whose effects can't be known from here is run.
        const EXECUTE = 1 << 4;
        /// Data leaves in bulk, to a file, a program or a copy stream.
        const EXPORT = 1 << 5;
        /// Data moves between systems: files, programs, foreign servers.
        const TRANSFER = 1 << 6;
        /// It could not be understood.
        const UNCLASSIFIED = 1 << 7;
    }
}

impl Effects {
    /// Name of each single effect, as rules and records spell it.
    pub const NAMES: [(Self, &'static str); 8] = [
        (Self::READ, "read"),
        (Self::WRITE, "write"),
        (Self::SCHEMA, "schema"),
        (Self::ADMIN, "admin"),
        (Self::EXECUTE, "execute"),
        (Self::EXPORT, "export"),
        (Self::TRANSFER, "transfer"),
        (Self::UNCLASSIFIED, "unclassified"),
    ];

    /// The single effect of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(effect, _)| *effect)
    }

    /// The names of the effects in this set, in their fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter(move |(effect, _)| self.contains(*effect))
            .map(|(_, name)| name)
    }
}

impl Serialize for Effects {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_seq(self.names())
        } else {
            self.bits().serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Effects {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            let mut effects = Self::empty();
            for name in Vec::<String>::deserialize(deserializer)? {
                effects |= Self::named(&name)
                    .ok_or_else(|| D::Error::custom(format!("`{name}` is not an effect")))?;
            }
            Ok(effects)
        } else {
            let bits = u16::deserialize(deserializer)?;
            Self::from_bits(bits).ok_or_else(|| D::Error::custom("unknown effect bits"))
        }
    }
}

/// How an operation touches a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Touch {
    /// It is looked at.
    Read,
    /// It is created, changed, removed or run.
    Write,
}

/// What kind of thing a [`Resource`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceKind {
    /// A table, view, materialised view, sequence or foreign table.
    Table,
    /// A function, procedure or operator that is called.
    Function,
    /// A schema, type, extension, publication, … that is defined or removed.
    Object,
    /// A database.
    Database,
    /// A role or user.
    Role,
    /// A configuration setting.
    Setting,
    /// A file on the server.
    File,
    /// A program started on the server.
    Program,
    /// A notification channel.
    Channel,
    /// What an HTTP request is for: host and path.
    Url,
    /// A name in the DNS.
    Name,
}

/// One thing that an operation touches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// Its namespace (the schema of a table), where the operation names one.
    pub namespace: Option<Box<str>>,
    /// Its name, case-folded as the protocol folds it.
    pub name: Box<str>,
    /// How it is touched.
    pub touch: Touch,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What an operation does, apart from its literal content: the same for every operation of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Description {
    /// The protocol's own names for what is done, one a part, in order, without repeats.
    pub actions: Box<[Box<str>]>,
    /// All effects of all parts.
    pub effects: Effects,
    /// All resources of all parts, sorted, without repeats.
    pub resources: Box<[Resource]>,
    /// Further facts that rules may ask for, by name.
    pub attributes: BTreeMap<Box<str>, Box<str>>,
}

impl Description {
    /// The actions as one phrase: `SELECT`, `INSERT; DROP TABLE`.
    #[must_use]
    pub fn action(&self) -> String {
        self.actions.join("; ")
    }

    /// Both descriptions as one: the union of all that either does.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let mut actions = self.actions.to_vec();
        actions.extend(
            other
                .actions
                .iter()
                .filter(|action| !self.actions.contains(action))
                .cloned(),
        );
        let mut resources = self.resources.to_vec();
        resources.extend(other.resources.iter().cloned());
        resources.sort();
        resources.dedup();
        let mut attributes = self.attributes.clone();
        attributes.extend(
            other
                .attributes
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        Self {
            actions: actions.into(),
            effects: self.effects | other.effects,
            resources: resources.into(),
            attributes,
        }
    }
}

/// How a bound value is written on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParameterFormat {
    /// The type's text form.
    Text,
    /// The type's binary form.
    Binary,
}

/// One value bound to an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// How `value` is written.
    pub format: ParameterFormat,
    /// The type's OID where the protocol gives one, else 0.
    pub type_oid: u32,
    /// The value's bytes; `None` is NULL.
    pub value: Option<Bytes>,
}

/// SHA-256 that binds an approval to exactly one operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let mut bytes = [0; 32];
            text.strip_prefix("sha256:")
                .and_then(|hexadecimal| hex::decode_to_slice(hexadecimal, &mut bytes).ok())
                .ok_or_else(|| {
                    D::Error::custom("a digest is `sha256:` and 64 hexadecimal digits")
                })?;
            Ok(Self(bytes))
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// One attempt, in full: what a reviewer sees and what the digest covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The protocol it is written in.
    pub protocol: Protocol,
    /// What it does.
    pub description: Arc<Description>,
    /// Its content exactly as it will be sent (the statement's text for SQL), not necessarily UTF-8.
    pub content: Bytes,
    /// The values bound to it, in order.
    pub parameters: Arc<[Parameter]>,
    /// Further wire facts that change what it does (row limit, result formats, …), by name.
    pub options: Vec<(Box<str>, Box<str>)>,
    /// The request in parts, of an operation in HTTP: for rules only, `content` is what is recorded.
    #[serde(skip)]
    pub http: Option<Arc<http::HttpRequest>>,
}

impl Operation {
    /// The digest over agent, destination and network namespace, protocol, actions, content, parameters and
    /// options.
    ///
    /// Every part is preceded by its length, so no two operations share one encoding.
    #[must_use]
    pub fn digest(&self, origin: &Origin) -> Digest {
        let mut parts = self.parts(b"interceptor operation v1", origin, &self.content);
        parts.add(&(self.parameters.len() as u64).to_be_bytes());
        for parameter in &*self.parameters {
            parts.add(&[parameter.format as u8, u8::from(parameter.value.is_some())]);
            parts.add(&parameter.type_oid.to_be_bytes());
            parts.add(parameter.value.as_deref().unwrap_or_default());
        }
        parts.options(&self.options)
    }

    /// As [`Self::digest`], of all operations that are this one but for their values: with `shape`, which has none,
    /// in place of content and parameters.
    #[must_use]
    pub fn digest_of_shape(&self, origin: &Origin, shape: &[u8]) -> Digest {
        self.parts(b"interceptor shape v1", origin, shape)
            .options(&self.options)
    }

    fn parts(&self, kind: &[u8], origin: &Origin, content: &[u8]) -> Parts {
        let mut parts = Parts(digest::Context::new(&digest::SHA256));
        parts.add(kind);
        parts.add(origin.agent.name.as_bytes());
        match origin.process.network_namespace {
            None => parts.add(origin.destination.to_string().as_bytes()),
            // The same address is another host there.
            Some(cookie) => parts.add(format!("{} in {cookie}", origin.destination).as_bytes()),
        }
        parts.add(self.protocol.name().as_bytes());
        parts.add(self.description.action().as_bytes());
        parts.add(content);
        parts
    }
}

/// A digest in the making.
struct Parts(digest::Context);

impl Parts {
    fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    fn options(mut self, options: &[(Box<str>, Box<str>)]) -> Digest {
        for (name, value) in options {
            self.add(name.as_bytes());
            self.add(value.as_bytes());
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        Digest(bytes)
    }
}
