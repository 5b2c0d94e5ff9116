//! What is said over the control socket, as types for both sides.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr};

use interceptor_core::{
    operation::{Effects, Protocol},
    record::{Choice, SessionId, Timestamp, Window},
};
use serde::{Deserialize, Serialize};

use super::person::{Identity, Person, Role};
use crate::{
    approval::{SecurityKey, Signed},
    books::Account,
    config::OldSockets,
    confine::StandIn,
    journal::SessionSummary,
    kernel::{SocketName, TagKind, UnixSockets},
    ship::CopyStatus,
    stream::StreamStatus,
};

/// The certificate that clients have to trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityCertificate {
    /// As PEM.
    pub pem: String,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its instance name.
    pub instance: String,
    /// Its process id.
    pub pid: u32,
    /// The process that carries sessions, if one runs.
    #[serde(default)]
    pub proxy: Option<ProxyStatus>,
    /// The console, if there is one.
    #[serde(default)]
    pub console: Option<ConsoleStatus>,
    /// When it started.
    #[serde(with = "crate::rfc3339")]
    pub started: Timestamp,
    /// How many agents are tagged.
    pub agents: u64,
    /// How many sessions are open.
    pub sessions: u64,
    /// How many operations wait for approval.
    pub approvals: u64,
    /// The policy.
    pub policy: PolicyStatus,
    /// The journal.
    pub journal: JournalStatus,
    /// The kernel's counters, by name.
    pub kernel: BTreeMap<String, u64>,
    /// What became of each agent's connects, by the agents' names.
    #[serde(default)]
    pub connects: Vec<AgentConnects>,
    /// What is not as it should be, a broken policy and a stopped journal included; with any of them
    /// the daemon is degraded.
    pub troubles: Vec<Trouble>,
}

/// The process that reads what agents and servers send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Its process id.
    pub pid: u32,
    /// The user that it is, by number.
    pub user: u32,
    /// What the kernel lacks to confine it, for people.
    pub weaker: Vec<String>,
}

/// The process that serves the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleStatus {
    /// Its address, as browsers know it.
    pub url: Box<str>,
    /// Its process id, while it runs.
    pub pid: Option<u32>,
}

/// What became of an agent's connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentConnects {
    /// Its books.
    #[serde(flatten)]
    pub account: Account,
    /// How many of its connects nothing accounts for.
    pub unaccounted: u64,
}

impl From<Account> for AgentConnects {
    fn from(account: Account) -> Self {
        // What is being recorded at this moment isn't missing.
        let unaccounted = account.unsettled + account.unrecorded;
        Self {
            account,
            unaccounted,
        }
    }
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its hash.
    pub hash: String,
    /// Where it was read from.
    pub path: PathBuf,
    /// How many rules it has.
    pub rules: u64,
    /// When it was loaded.
    #[serde(with = "crate::rfc3339")]
    pub loaded: Timestamp,
    /// Why the files as they are now can't be loaded; the policy above stays in force meanwhile.
    pub broken: Option<String>,
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Its folder.
    pub path: PathBuf,
    /// Number of the last record.
    pub last_seq: u64,
    /// Why it takes no records, where that is so.
    pub stopped: Option<String>,
    /// How far its copies are, by the configuration's order.
    #[serde(default)]
    pub copies: Vec<CopyStatus>,
    /// How far those are who are told of records as they happen, likewise.
    #[serde(default)]
    pub streams: Vec<StreamStatus>,
    /// Bytes that its folder takes.
    #[serde(default)]
    pub bytes: u64,
    /// The most that it may take, where that is configured: the oldest segments make room.
    #[serde(default)]
    pub bytes_max: Option<u64>,
    /// Sessions under legal hold, which are kept whatever their age.
    #[serde(default)]
    pub held: u64,
    /// Whether what is recorded now is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// Sessions that were erased.
    #[serde(default)]
    pub erased: u64,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// An agent: `GET /v1/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tagged {
    /// Its name.
    pub agent: Box<str>,
    /// Its labels.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Its cgroup, as a path in the file system.
    pub cgroup: PathBuf,
    /// Where the cgroup comes from.
    pub kind: TagKind,
    /// Whether its processes stand still.
    #[serde(default)]
    pub frozen: bool,
    /// Whether it is a container or a unit that doesn't run just now: when it does, it is an agent again.
    #[serde(default)]
    pub away: bool,
    /// Its sockets from before the tag.
    #[serde(default)]
    pub old_sockets: OldSocketCounts,
    /// What a tag doesn't keep it from, for people; told where it is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cautions: Vec<String>,
    /// What stands in for container engines' sockets; told where it is made, to the launcher.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stand_ins: Vec<StandIn>,
}

/// An agent's sockets from before its tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldSocketCounts {
    /// How many the tag cut; told where it is made.
    pub cut: u64,
    /// How many are allowed and still open.
    pub allowed: u64,
    /// How many stay connected to UNIX sockets of others; told where the tag is made.
    #[serde(default)]
    pub kept: u64,
    /// How many could not be cut; told where the tag is made.
    pub uncut: u64,
}

/// What is done to an agent: `POST /v1/agents/deeds`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDeed {
    /// Its name.
    #[serde(deserialize_with = "deserialize_agent_name")]
    pub agent: Box<str>,
    /// What is done.
    pub deed: Deed,
}

/// What can be done to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// Its processes are stopped.
    Freeze,
    /// They go on.
    Thaw,
    /// Its connections are ended.
    Cut,
}

/// What came of a deed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The agent as it is now.
    pub agent: Tagged,
    /// How many connections were ended.
    pub connections: u64,
}

/// A new agent: `POST /v1/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTag {
    /// Its name.
    #[serde(deserialize_with = "deserialize_agent_name")]
    pub agent: Box<str>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// What is tagged.
    pub target: TagTarget,
    /// How a launched command is confined, in the words of its launcher; for the record.
    #[serde(default)]
    pub confined: Option<Box<str>>,
    /// What happens to its sockets from before the tag, where the configuration isn't to say.
    #[serde(default)]
    pub old_sockets: Option<OldSockets>,
    /// What happens where it asks for a UNIX socket that is neither its own nor allowed, likewise.
    #[serde(default)]
    pub unix_sockets: Option<UnixSockets>,
    /// It is to reach the UNIX sockets of others, so that nothing has to guard them.
    #[serde(default)]
    pub open_sockets: bool,
    /// UNIX sockets that it may reach, besides those that all may.
    #[serde(default)]
    pub allow_sockets: Vec<SocketName>,
    /// Sockets of container engines that a launched command reaches through the daemon.
    #[serde(default)]
    pub engines: Vec<PathBuf>,
}

/// What is tagged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TagTarget {
    /// An existing cgroup: a path in the file system or below the cgroup v2 mount point.
    Cgroup(PathBuf),
    /// The cgroup of this process.
    Pid(u32),
    /// The cgroup of this systemd unit; a name without a kind is a service's.
    Unit(Box<str>),
    /// The cgroup of the container with this id, or with the one that begins so.
    Container(Box<str>),
    /// A cgroup made for a command that is about to be launched.
    New,
}

/// A session: `GET /v1/sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The agent's name.
    pub agent: Box<str>,
    /// The agent's labels.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Where it went.
    pub destination: String,
    /// Process id of who connected.
    pub pid: u32,
    /// Its executable.
    pub executable: Option<Box<str>>,
    /// When it began.
    #[serde(with = "crate::rfc3339")]
    pub started: Timestamp,
    /// When it ended; null while it lives, or where the daemon was killed.
    #[serde(with = "crate::rfc3339::option")]
    pub ended: Option<Timestamp>,
    /// Why it ended.
    pub reason: Option<Box<str>>,
    /// Operations attempted; null until it has ended.
    pub operations: Option<u64>,
    /// Operations denied.
    pub denied: u64,
    /// Operations held for approval.
    pub held: u64,
    /// What its destination is called, by who was believed.
    pub names: Vec<Box<str>>,
    /// The protocols of its operations.
    pub protocols: Vec<Protocol>,
    /// All effects of its operations.
    pub effects: Effects,
    /// Rules that decided.
    pub rules: Vec<Box<str>>,
    /// People who voted.
    pub reviewers: Vec<Box<str>>,
}

impl From<SessionSummary> for Session {
    fn from(summary: SessionSummary) -> Self {
        Self {
            id: summary.session,
            agent: (&*summary.agent).into(),
            labels: summary.labels,
            destination: summary.destination,
            pid: summary.pid,
            executable: summary.executable,
            started: summary.started,
            ended: summary.ended,
            reason: summary.reason,
            operations: summary.ended.map(|_| summary.operations),
            denied: summary.done.denied,
            held: summary.done.held,
            names: summary.done.names.known.into_iter().collect(),
            protocols: summary.done.protocols.into_iter().collect(),
            effects: summary.done.effects,
            rules: summary.done.rules.known.into_iter().collect(),
            reviewers: summary.done.reviewers.known.into_iter().collect(),
        }
    }
}

/// A vote: `POST /v1/approvals/{id}/votes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ballot {
    /// Yes, no, or not yes any more.
    pub choice: Choice,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// What a yes is for beyond the one operation.
    #[serde(default)]
    pub window: Option<Window>,
    /// What the reviewer's security key signed, where the rule asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signed>,
}

/// Why somebody does something: `POST /v1/approvals/{id}/override` and `POST /v1/approvals/{id}/revocation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// In their words.
    #[serde(default)]
    pub reason: String,
}

/// Whoever asks: `GET /v1/me`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Me {
    /// Their name.
    pub name: Box<str>,
    /// The groups that they are in.
    pub groups: Box<[Box<str>]>,
    /// What they may.
    pub role: Role,
}

impl From<&Person> for Me {
    fn from(person: &Person) -> Self {
        Self {
            name: person.name().into(),
            groups: person.voter().groups.clone(),
            role: person.role(),
        }
    }
}

/// The policy in force, as it is written: `GET /v1/policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// Which, since when, and whether its files are sound.
    pub status: PolicyStatus,
    /// Whether it is enforced, or observes.
    pub enforced: bool,
    /// The files that make it.
    pub files: Vec<PolicyFile>,
    /// How many operations each rule has decided since the daemon started, `default` included.
    pub hits: BTreeMap<Box<str>, u64>,
}

/// A file of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFile {
    /// Its path.
    pub path: String,
    /// All of it.
    pub text: String,
}

/// Which part of the past: the query of `GET /v1/policy/observed`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedQuery {
    /// Nothing before, in RFC 3339.
    #[serde(default, with = "crate::rfc3339::option")]
    pub since: Option<Timestamp>,
    /// Only this agent, by name.
    pub agent: Option<String>,
}

/// A security key to be registered: `POST /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// The key.
    pub key: SecurityKey,
    /// Where there is one already: what that one signed of [`SecurityKey::text`].
    #[serde(default)]
    pub vouched: Option<Signed>,
}

/// Which security key: the query of `DELETE /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyQuery {
    /// Its credential's id, in base64url.
    pub credential: String,
}

/// A link that signs in: `POST /v1/console/links`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleLink {
    /// To open in a browser, once, within two minutes.
    pub url: String,
}

/// Somebody whom the console knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignIn {
    /// Who.
    pub identity: Identity,
    /// Their address.
    pub from: String,
}

/// A link's code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCode {
    /// What stands behind the `#`.
    pub code: String,
}

/// Something that the console has on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What happened.
    pub name: Box<str>,
    /// The facts.
    pub detail: BTreeMap<Box<str>, Box<str>>,
}

/// Which records: the query of `GET /v1/export` and `GET /v1/tail`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    /// Only this session.
    pub session: Option<SessionId>,
    /// Only this agent, by name.
    pub agent: Option<String>,
    /// Nothing before, in RFC 3339.
    #[serde(default, with = "crate::rfc3339::option")]
    pub since: Option<Timestamp>,
    /// Nothing after, in RFC 3339.
    #[serde(default, with = "crate::rfc3339::option")]
    pub until: Option<Timestamp>,
    /// Of exports: sessions that began earlier have their start before their first line.
    #[serde(default)]
    pub context: bool,
    /// Of exports: responses have the bytes that are on record as well.
    #[serde(default)]
    pub wire: bool,
}

/// Whose evidence: the query of `GET /v1/evidence`. Whole sessions are proved, so times are those of their starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvidenceQuery {
    /// Only this session.
    pub session: Option<SessionId>,
    /// Only sessions of this agent, by name.
    pub agent: Option<Box<str>>,
    /// Only sessions that began then or later, in RFC 3339.
    #[serde(default, with = "crate::rfc3339::option")]
    pub since: Option<Timestamp>,
    /// Only sessions that began then or earlier, in RFC 3339.
    #[serde(default, with = "crate::rfc3339::option")]
    pub until: Option<Timestamp>,
}

/// The answer of `POST /v1/exports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportManifest {
    /// A signed note.
    pub manifest: String,
}

/// The body of every answer that isn't a success, and the last line of a stream that broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: String,
    /// What to do about it; empty where the error says it all.
    pub remedy: String,
}

/// Longest name of an agent or label, in bytes: names become parts of paths and columns of tables.
const NAME_BYTES_MAX: usize = 64;

/// `name`, if it can name an agent.
///
/// # Errors
/// Where it can't; the message says what can.
pub fn agent_name(name: &str) -> Result<Box<str>, String> {
    if is_name(name) {
        Ok(name.into())
    } else {
        Err(format!(
            "`{}` can't name an agent: up to {NAME_BYTES_MAX} letters, digits and . _ - can, \
             starting with a letter or digit",
            name.escape_debug()
        ))
    }
}

/// A label on the command line, `team=billing`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: Box<str>,
    /// Its value.
    pub value: Box<str>,
}

impl Label {
    /// A label of these two parts.
    ///
    /// # Errors
    /// Where they can't make one; the message says what can.
    pub fn new(name: &str, value: &str) -> Result<Self, String> {
        if !is_name(name) {
            return Err(format!(
                "`{}` can't name a label: up to {NAME_BYTES_MAX} letters, digits and . _ - can, \
                 starting with a letter or digit",
                name.escape_debug()
            ));
        }
        if value.len() > 4 * NAME_BYTES_MAX || value.contains(char::is_control) {
            return Err(format!(
                "the value of label `{name}` is longer than {} bytes or holds control characters",
                4 * NAME_BYTES_MAX
            ));
        }
        Ok(Self {
            name: name.into(),
            value: value.into(),
        })
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            format!(
                "`{}` is not a label: `team=billing` is",
                text.escape_debug()
            )
        })?;
        Self::new(name, value)
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn deserialize_agent_name<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Box<str>, D::Error> {
    agent_name(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tame() {
        for name in ["a", "claude-code_2.1", "7"] {
            assert!(agent_name(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "a b",
            "-x",
            "../x",
            "a/b",
            "ä",
            "a\u{202e}b",
            &"a".repeat(65),
        ] {
            assert!(agent_name(name).is_err(), "{name}");
        }
        assert_eq!("team=a=b".parse::<Label>().unwrap().value.as_ref(), "a=b");
        assert_eq!(
            "team".parse::<Label>().unwrap_err(),
            "`team` is not a label: `team=billing` is"
        );
        assert!("team=a\u{1b}[2J".parse::<Label>().is_err());
    }
}
