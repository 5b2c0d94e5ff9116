//! The configuration file: strict, typed, optional.
//!
//! What isn't in the file has a default; what the command line says goes before both. Reading it
//! never guesses: an unknown name or a value out of range is an error with its line and column.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroU64},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest;
use interceptor_core::limits;
use serde::{Deserialize, Serialize};

use crate::{
    confine::Places,
    console::{ConsoleConfig, Roles},
    credentials::{Credential, Servers},
    journal::{Encryption, MasterKey},
    kernel::{OnEscape, SocketName, UnixSockets},
    notify::NotifierConfig,
    patience::Patience,
    retention::Retention,
    secret::Source,
    ship::Ship,
    stream::Stream,
    tls::certificate_path,
    witness::Witness,
};

/// Where the configuration is read from unless said otherwise.
pub const PATH: &str = "/etc/interceptor/interceptor.yaml";

/// Where the control API listens unless said otherwise.
pub const CONTROL: &str = "/run/interceptor/control.sock";

/// Where the journal lives unless said otherwise.
pub const STATE: &str = "/var/lib/interceptor";

/// Where files are in memory.
pub const MEMORY: &str = "/dev/shm";

/// Where the policies are read from unless said otherwise.
pub const POLICIES: &str = "/etc/interceptor/policies.d";

/// Everything that can be configured; a value that exists is valid.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The folder of the journal; one daemon at a time.
    pub state: PathBuf,
    /// A policy file, or a folder of them.
    pub policies: PathBuf,
    /// The Unix socket of the control API.
    pub control: PathBuf,
    /// Tells daemons on one host apart: it names their pins and cgroups.
    pub instance: Instance,
    /// Where redirected connections are accepted.
    pub listen: Listen,
    /// Bounds that may be moved.
    pub limits: Limits,
    /// How long peers may take.
    pub patience: Patience,
    /// DNS: whom to ask what agents ask.
    pub dns: DnsConfig,
    /// What is done about agents' ways past the hooks.
    pub tags: Tags,
    /// TLS: whom to believe, and what to present.
    pub tls: TlsConfig,
    /// The people behind the groups that `hold` rules name: user names or numeric user ids.
    pub reviewers: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
    /// What is special about approvals on this host.
    pub approvals: ApprovalsConfig,
    /// What people may, by their groups. Without it whoever may use the control socket may everything.
    #[serde(deserialize_with = "given")]
    pub roles: Option<Roles>,
    /// Pages for people, if there are any.
    #[serde(deserialize_with = "given")]
    pub console: Option<ConsoleConfig>,
    /// Who is told of approvals besides, and how.
    #[serde(deserialize_with = "crate::notify::list")]
    pub notify: Vec<NotifierConfig>,
    /// What is done with the session log.
    pub journal: JournalConfig,
    /// What to log in to servers with, in agents' place; the first that matches is taken.
    pub credentials: Vec<Credential>,
    /// What the daemon tells on stderr: a level, or `tracing` directives.
    pub log: LogFilter,
    /// The process that reads what agents and servers send.
    pub proxy: ProxyConfig,
    /// What it was read from: text and file.
    #[serde(skip)]
    pub source: (String, PathBuf),
}

/// What is special about approvals on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalsConfig {
    /// Groups, as under `reviewers`, whose members may let a held operation through alone, in an emergency; nobody
    /// may where none is named.
    pub break_glass: Vec<Box<str>>,
}

/// What is done with the session log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JournalConfig {
    /// Who keeps its checkpoints out of this host's reach.
    pub witnesses: Vec<Witness>,
    /// How long after one checkpoint the next goes to them.
    #[serde(deserialize_with = "crate::patience::duration")]
    pub witness_every: Duration,
    /// Where its segments are copied to as they are closed.
    pub ship: Vec<Ship>,
    /// Who is told of records as they happen.
    pub stream: Vec<Stream>,
    /// How long it is kept; without it everything stays.
    pub retention: Retention,
    /// What its sessions are encrypted with; without it they are in clear.
    #[serde(deserialize_with = "given")]
    pub encryption: Option<EncryptionConfig>,
}

/// What the session log's sessions are encrypted with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncryptionConfig {
    /// Where the key stands that opens all of them; without it one is made in the state folder.
    #[serde(deserialize_with = "given")]
    pub key: Option<Source>,
    /// Where the one stands that it takes the place of.
    #[serde(deserialize_with = "given")]
    pub previous_key: Option<Source>,
}

impl EncryptionConfig {
    /// The key that stands there now, if it is to stand anywhere.
    ///
    /// # Errors
    /// Where it can't be read, or is none; for people.
    pub fn master(&self) -> Result<Option<MasterKey>, String> {
        self.key.as_ref().map(master_key).transpose()
    }

    /// What it is done with.
    ///
    /// # Errors
    /// Where a key can't be read, or is none; for people.
    pub fn read(&self) -> Result<Encryption, String> {
        let before = self.previous_key.as_ref().map(master_key).transpose()?;
        match (self.master()?, before) {
            (Some(key), before) => Ok(Encryption::With { key, before }),
            (None, None) => Ok(Encryption::Beside),
            (None, Some(_)) => Err(
                "`previous_key` has to have a `key` that takes its place, in `journal: {encryption: …}`"
                    .to_owned(),
            ),
        }
    }
}

/// The key that stands in `source`.
///
/// # Errors
/// Where it can't be read, or is none; for people.
pub(crate) fn master_key(source: &Source) -> Result<MasterKey, String> {
    let secret = source.read().map_err(|error| error.to_string())?;
    MasterKey::parse(secret.expose()).map_err(|what| format!("{source} {what}"))
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            witnesses: Vec::new(),
            witness_every: Duration::from_secs(60),
            ship: Vec::new(),
            stream: Vec::new(),
            retention: Retention::default(),
            encryption: None,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: STATE.into(),
            policies: POLICIES.into(),
            control: CONTROL.into(),
            instance: Instance::default(),
            listen: Listen::default(),
            limits: Limits::default(),
            patience: Patience::default(),
            dns: DnsConfig::default(),
            tags: Tags::default(),
            tls: TlsConfig::default(),
            reviewers: BTreeMap::new(),
            approvals: ApprovalsConfig::default(),
            roles: None,
            console: None,
            notify: Vec::new(),
            journal: JournalConfig::default(),
            credentials: Vec::new(),
            log: LogFilter::default(),
            proxy: ProxyConfig::default(),
            source: Default::default(),
        }
    }
}

impl Config {
    /// Reads `explicit` where one is given, else [`PATH`] where it exists, else the defaults.
    ///
    /// # Errors
    /// When the explicit file is missing, or either can't be read or isn't valid.
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        let path = explicit.unwrap_or(Path::new(PATH));
        match fs::read_to_string(path) {
            Ok(text) => {
                let config = Self::parse(&text, path)?;
                let source = (text, path.to_owned());
                Ok(Self { source, ..config })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && explicit.is_none() => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The daemon's own files: those that no agent sees, those that none changes.
    #[must_use]
    pub fn places(&self) -> Places {
        let credentials = self.credentials.iter().flat_map(Credential::secrets);
        let secrets = credentials.chain(self.notify.iter().flat_map(NotifierConfig::secrets));
        let witnesses = self.journal.witnesses.iter();
        let secrets = secrets.chain(witnesses.filter_map(Witness::secret));
        let (ship, stream) = (&self.journal.ship, &self.journal.stream);
        let secrets = secrets.chain(ship.iter().flat_map(Ship::secrets));
        let secrets = secrets.chain(stream.iter().flat_map(Stream::secrets));
        let encryption = self.journal.encryption.iter();
        let keys = encryption.flat_map(|one| one.key.iter().chain(&one.previous_key));
        let secrets = secrets.chain(keys);
        let keys = self.tls.client_certificates.iter();
        let console = self.console.as_ref();
        let mut hidden = vec![Path::new("/run").join(self.instance.as_str())];
        hidden.extend([&self.state, &self.control, &self.waiting()].map(absolute));
        hidden.extend(secrets.filter_map(Source::file).map(absolute));
        hidden.extend(keys.map(|certificate| absolute(&certificate.key)));
        hidden.extend(stream.iter().filter_map(Stream::key).map(absolute));
        // A copy says what the journal says.
        hidden.extend(ship.iter().filter_map(Ship::folder).map(absolute));
        hidden.extend(
            console
                .iter()
                .flat_map(|console| console.secrets())
                .map(absolute),
        );
        Places {
            hidden,
            shown: vec![certificate_path(&absolute(&self.state))],
            read_only: vec![absolute(&self.policies)],
        }
    }

    /// Where records wait in memory to be written, if those of sessions are encrypted.
    #[must_use]
    pub fn waiting(&self) -> PathBuf {
        let state = absolute(&self.state);
        let own = digest::digest(&digest::SHA256, state.as_os_str().as_bytes());
        let own = hex::encode(own.as_ref().get(..8).unwrap_or_default());
        Path::new(MEMORY).join(format!("interceptor-{}-{own}", self.instance.as_str()))
    }

    /// The configuration that `text`, read from `path`, says.
    ///
    /// # Errors
    /// When it isn't valid YAML of this shape.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        // A file of comments only is an empty document, not a mapping.
        if text
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
        {
            return Ok(Self::default());
        }
        let config: Self =
            serde_saphyr::from_str(text).map_err(|error| ConfigError::invalid(path, &error))?;
        let people = |console: &ConsoleConfig| !console.users.is_empty() || console.oidc.is_some();
        if config.console.is_none() && !config.notify.is_empty() {
            return Err(ConfigError::Invalid {
                path: path.to_owned(),
                line: 1,
                column: 1,
                message:
                    "`notify` is the console's work, and its links lead there: add `console: {}`"
                        .to_owned(),
            });
        }
        if config.roles.is_none() && config.console.as_ref().is_some_and(people) {
            return Err(ConfigError::Invalid {
                path: path.to_owned(),
                line: 1,
                column: 1,
                message: "`console` has people, and nobody who signs in could do anything: name groups under `roles`, `roles: {administrator: [admins], reviewer: [dba]}`".to_owned(),
            });
        }
        Ok(config)
    }
}

/// A section that is there: one with nothing in it is an error rather than none.
fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Whom to ask what agents ask.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsConfig {
    /// The servers that are asked in place of those that agents mean; of several the first, and the next
    /// where one fails. Without any each agent's own are asked, and only what this host's resolver says
    /// counts for rules on names.
    #[serde(deserialize_with = "servers")]
    pub servers: Vec<SocketAddr>,
}

/// Addresses with or without a port; DNS' own is 53.
fn servers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    const PORT: u16 = 53;
    let server = |text: &String| {
        let address = text.parse::<IpAddr>().map(|address| (address, PORT).into());
        address.or_else(|_| text.parse()).map_err(|_| {
            serde::de::Error::custom(format!(
                "`{}` is no server; `192.0.2.53`, `2001:db8::53` and `192.0.2.53:5353` are",
                text.escape_debug()
            ))
        })
    };
    Vec::<String>::deserialize(deserializer)?
        .iter()
        .map(server)
        .collect()
}

/// As it is from any folder.
fn absolute(path: &PathBuf) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.clone())
}

/// Where redirected connections are accepted, in every network namespace that needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Port on 127.0.0.1; 0 is one that is free.
    pub ipv4_port: u16,
    /// Port on ::1; 0 is one that is free.
    pub ipv6_port: u16,
}

/// What is done about agents' ways past the hooks: sockets that no hook sees, processes that leave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tags {
    /// Sockets from before the tag.
    pub old_sockets: OldSockets,
    /// Sockets that should be cut and can't be.
    pub uncuttable: Uncuttable,
    /// Processes that leave their agent's cgroup.
    pub on_escape: OnEscape,
    /// UNIX sockets that agents ask for and that are neither their own nor allowed.
    pub unix_sockets: UnixSockets,
    /// What this host's kernel has no guard for.
    pub unguarded: Unguarded,
    /// UNIX sockets that all agents may reach.
    pub allow_sockets: Vec<SocketName>,
}

/// What happens to sockets from before the tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum OldSockets {
    /// They are cut.
    #[default]
    Cut,
    /// They may be used until they are closed; each is recorded.
    Allow,
}

/// What happens where the kernel is too old for a guard of an agent that is to be tagged or launched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unguarded {
    /// It is tagged all the same, and who asks is told what stays open.
    #[default]
    Report,
    /// It isn't tagged.
    Refuse,
}

/// What happens where a socket should be cut and can't be. It is told of in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Uncuttable {
    /// Nothing.
    #[default]
    Report,
    /// Who holds it is killed.
    Kill,
}

/// The process that reads what agents and servers send.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// The user that it is, by name: one that nothing else is. Without it, one without a name.
    pub user: Option<Box<str>>,
}

/// TLS: whom to believe, and what to present.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The local certificate authority, as it is made at first start.
    pub ca: CaConfig,
    /// PEM files of authorities, or of self-signed servers, that are believed besides the system's.
    pub roots: Vec<PathBuf>,
    /// PEM files of revocation lists.
    pub revoked: Vec<PathBuf>,
    /// Certificates for servers that ask for one.
    pub client_certificates: Vec<ClientCertificate>,
}

/// The local certificate authority, as it is made at first start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaConfig {
    /// Its common name.
    pub name: String,
    /// How long it is valid, in days.
    #[serde(deserialize_with = "ca_days")]
    pub days: u32,
}

impl Default for CaConfig {
    fn default() -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        Self {
            name: format!("interceptor CA of {}", host.to_string_lossy()),
            days: 3_650,
        }
    }
}

fn ca_days<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    const DAYS_MAX: u32 = 36_500;
    let days = u32::deserialize(deserializer)?;
    if (1..=DAYS_MAX).contains(&days) {
        Ok(days)
    } else {
        Err(serde::de::Error::custom(format!(
            "`days` is {days}: it has to be between 1 and {DAYS_MAX}"
        )))
    }
}

/// A certificate for servers that ask for one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// The servers it is for.
    pub destination: Servers,
    /// PEM file of the certificate and what is between it and its authority.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
}

/// Bounds that may be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest message that is decoded, in bytes; one that is larger ends its session.
    #[serde(deserialize_with = "message_bytes")]
    pub message_bytes: usize,
    /// Bytes of one HTTP body that go on record; of a longer one the digest does too.
    pub recorded_bytes: u64,
    /// Connections that are served at once, of all agents; more are reset.
    pub connections: NonZeroU32,
    /// Connections of one agent that are served at once, so that none can take all.
    pub connections_per_agent: NonZeroU32,
    /// Bytes a second that one agent may put on record; one that moves more is slowed down to it.
    pub recorded_per_agent: NonZeroU64,
    /// Bytes that the sessions of one agent may hold in memory together; above it, sessions that hold much end.
    pub memory_per_agent: NonZeroU64,
}

/// Bytes a second of one agent on record: some three parts of what a good disk takes, so that there is one left
/// for the others.
const RECORDED_PER_AGENT: NonZeroU64 = NonZeroU64::MIN.saturating_add((128 << 20) - 1);

/// Bytes of memory for the sessions of one agent: some ten of the largest messages, and the buffers of as many
/// connections as it may have, some 60 KiB each.
const MEMORY_PER_AGENT: NonZeroU64 = NonZeroU64::MIN.saturating_add((1 << 30) - 1);

/// Connections served at once. Each costs two descriptors and some 20 KiB.
const CONNECTIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(8_191);

/// Connections of one agent served at once: more than its pools and workers open, less than all.
const CONNECTIONS_PER_AGENT: NonZeroU32 = NonZeroU32::MIN.saturating_add(4_095);

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: limits::MESSAGE_BYTES_MAX,
            recorded_bytes: limits::HTTP_RECORDED_BYTES_MAX,
            connections: CONNECTIONS,
            connections_per_agent: CONNECTIONS_PER_AGENT,
            recorded_per_agent: RECORDED_PER_AGENT,
            memory_per_agent: MEMORY_PER_AGENT,
        }
    }
}

/// Smallest configurable message bound: a start-up packet and a few statements fit.
const MESSAGE_BYTES_MIN: usize = 64 << 10;

/// Largest configurable message bound: PostgreSQL's own.
const MESSAGE_BYTES_CEILING: usize = 1 << 30;

fn message_bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let bytes = u64::deserialize(deserializer)?;
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| (MESSAGE_BYTES_MIN..=MESSAGE_BYTES_CEILING).contains(bytes))
        .ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`message_bytes` is {bytes}: it has to be between {MESSAGE_BYTES_MIN} (64 KiB) \
                 and {MESSAGE_BYTES_CEILING} (1 GiB)"
            ))
        })
}

/// The name that tells daemons on one host apart. It becomes part of file and cgroup names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Instance(Box<str>);

impl Instance {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self("interceptor".into())
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Instance {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let fits = (1..=48).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !name.starts_with('-');
        if fits {
            Ok(Self(name.into()))
        } else {
            Err(format!(
                "`{}` can't name an instance: up to 48 letters, digits, - and _ can, not starting with -",
                name.escape_debug()
            ))
        }
    }
}

impl std::str::FromStr for Instance {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        name.to_owned().try_into()
    }
}

/// What is logged: a level (`info`) or directives (`info,interceptor::session=debug`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(Box<str>);

impl LogFilter {
    /// The directives.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".into())
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(directives: String) -> Result<Self, Self::Error> {
        match tracing_subscriber::EnvFilter::builder().parse(&directives) {
            Ok(_) => Ok(Self(directives.into())),
            Err(error) => Err(format!(
                "`{}` is not a log filter ({error}): use error, warn, info, debug or trace",
                directives.escape_debug()
            )),
        }
    }
}

impl std::str::FromStr for LogFilter {
    type Err = String;

    fn from_str(directives: &str) -> Result<Self, Self::Err> {
        directives.to_owned().try_into()
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error(
        "the configuration `{}` can't be read: {source}; check --config, or leave it out to use the defaults",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file isn't valid.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1; 0 where there is no place.
        line: u64,
        /// Column, from 1; 0 where there is no place.
        column: u64,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl ConfigError {
    fn invalid(path: &Path, error: &serde_saphyr::Error) -> Self {
        let error = error.without_snippet();
        let (line, column) = error
            .location()
            .map_or((0, 0), |place| (place.line(), place.column()));
        let message = match error {
            serde_saphyr::Error::SerdeUnknownField {
                field, expected, ..
            } => unknown_field(field, expected),
            serde_saphyr::Error::Message { msg, .. } => msg.clone(),
            other => plain(&other.to_string()),
        };
        Self::Invalid {
            path: path.to_owned(),
            line,
            column,
            message,
        }
    }
}

fn unknown_field(field: &str, expected: &[&str]) -> String {
    // Of two that are as near, people rather mistake the end of a name than its beginning.
    let begin = |name: &str| {
        let same = field.chars().zip(name.chars()).take_while(|(a, b)| a == b);
        Reverse(same.count())
    };
    let nearest = expected
        .iter()
        .map(|name| (strsim::damerau_levenshtein(field, name), begin(name), name))
        .filter(|(distance, _, name)| *distance <= name.len() / 2)
        .min();
    let field = field.escape_debug();
    match nearest {
        Some((_, _, name)) => format!("unknown name `{field}`; did you mean `{name}`?"),
        None => format!(
            "unknown name `{field}`; the names here are {}",
            expected.join(", ")
        ),
    }
}

/// The parser's messages in the words of somebody who edits the file.
fn plain(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    // The place is already said in front.
    let line = line.split(" at line ").next().unwrap_or(line);
    if let Some(key) = line.strip_prefix("duplicate mapping key: ") {
        let key = key.split(", set ").next().unwrap_or(key);
        return format!("`{key}` is given twice; remove one");
    }
    match line {
        "expected mapping start" => "names with values belong here (`name: value`)".to_owned(),
        "expected sequence start" => "a list belongs here (`[a, b]`)".to_owned(),
        "expected string scalar" => "a text belongs here".to_owned(),
        "invalid u16" => "a whole number from 0 to 65535 belongs here".to_owned(),
        "invalid u64" => "a whole number belongs here".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("i.yaml"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        for text in ["", "# nothing\n\n", "{}"] {
            assert_eq!(
                Config::parse(text, Path::new("i.yaml")).unwrap(),
                Config::default()
            );
        }
    }

    #[test]
    fn every_name_can_be_set() {
        let config = Config::parse(
            "state: /s\npolicies: /p\ncontrol: /c.sock\ninstance: two\nlisten: {ipv4_port: 1, ipv6_port: 2}\n\
             limits: {message_bytes: 1048576, connections: 10, connections_per_agent: 5}\n\
             patience: {handshake: 1s, request: 2m, stalled: 3h, idle: 24h}\n\
             tags: {old_sockets: allow, uncuttable: kill, on_escape: freeze, unix_sockets: report, unguarded: refuse, allow_sockets: [/run/db.sock, '@x']}\nreviewers: {dba: [alice, '1000']}\napprovals: {break_glass: [oncall]}\nlog: debug\n",
            Path::new("i.yaml"),
        )
        .unwrap();
        assert_eq!(config.state, Path::new("/s"));
        assert_eq!(config.policies, Path::new("/p"));
        assert_eq!(config.control, Path::new("/c.sock"));
        assert_eq!(config.instance.as_str(), "two");
        assert_eq!((config.listen.ipv4_port, config.listen.ipv6_port), (1, 2));
        assert_eq!(config.limits.message_bytes, 1 << 20);
        assert_eq!(config.limits.connections.get(), 10);
        assert_eq!(config.limits.connections_per_agent.get(), 5);
        let patience = config.patience;
        assert_eq!(patience.handshake.as_secs(), 1);
        assert_eq!(patience.request.as_secs(), 120);
        assert_eq!(patience.stalled.as_secs(), 10_800);
        assert_eq!(patience.idle.as_secs(), 86_400);
        assert_eq!(config.tags.old_sockets, OldSockets::Allow);
        assert_eq!(config.tags.uncuttable, Uncuttable::Kill);
        assert_eq!(config.tags.on_escape, OnEscape::Freeze);
        assert_eq!(config.tags.unix_sockets, UnixSockets::Report);
        assert_eq!(config.tags.unguarded, Unguarded::Refuse);
        let allowed = config.tags.allow_sockets.iter();
        let allowed: Vec<String> = allowed.map(ToString::to_string).collect();
        assert_eq!(allowed, ["/run/db.sock", "@x"]);
        assert!(config.reviewers["dba"].contains("alice"));
        assert_eq!(*config.approvals.break_glass, ["oncall".into()]);
        assert_eq!(config.log.as_str(), "debug");
    }

    #[test]
    fn errors_name_place_and_remedy() {
        let table = [
            (
                "state: /s\npolicy: /p\n",
                "i.yaml:2:1: unknown name `policy`; did you mean `policies`?",
            ),
            (
                "listen:\n  port: 1\n",
                "i.yaml:2:3: unknown name `port`; the names here are ipv4_port, ipv6_port",
            ),
            (
                "limits: {message_bytes: 12}",
                "i.yaml:1:25: `message_bytes` is 12: it has to be between 65536 (64 KiB) and 1073741824 (1 GiB)",
            ),
            (
                "patience: {request: 0s}",
                "i.yaml:1:21: `0s` is no time from 1s to 24h; `90s`, `15m` and `2h` are",
            ),
            (
                "patience: {stalled: 25h}",
                "i.yaml:1:21: `25h` is no time from 1s to 24h; `90s`, `15m` and `2h` are",
            ),
            (
                "instance: A/B",
                "i.yaml:1:11: `A/B` can't name an instance: up to 48 letters, digits, - and _ can, not starting with -",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(error(text), expected);
        }
        assert_eq!(
            error("listen: {ipv4_port: 70000}"),
            "i.yaml:1:21: a whole number from 0 to 65535 belongs here"
        );
        assert_eq!(
            error("state: /a\nstate: /b\n"),
            "i.yaml:2:1: `state` is given twice; remove one"
        );
        for text in [
            "log: '=,='",
            "state: [",
            "- a\n",
            "reviewers: {dba: a}",
            "\t:",
        ] {
            let error = error(text);
            assert!(error.starts_with("i.yaml:1:"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn credentials_name_where_their_secrets_stand() {
        let config = Config::parse(
            "credentials:\n\
             - destination: 'db.example.com:5432'\n  protocol: postgres\n  user: app\n  database: '*'\n  login: app_real\n  \
               password: {file: /etc/interceptor/secrets/app}\n  placeholder: {env: APP_PLACEHOLDER}\n\
             - {destination: 192.0.2.0/24, protocol: postgres, password: {command: [/usr/bin/vault, read, app], ttl: 5m}}\n",
            Path::new("i.yaml"),
        )
        .unwrap();
        assert_eq!(config.credentials.len(), 2);
        let debug = format!("{config:?}");
        assert!(
            debug.contains("app_real") && debug.contains("300s"),
            "{debug}"
        );
    }

    #[test]
    fn errors_in_credentials_name_place_and_remedy() {
        let entry = |rest: &str| {
            format!("credentials:\n- destination: 192.0.2.1\n  protocol: postgres\n{rest}")
        };
        for (text, expected) in [
            (
                entry("  pasword: {env: A}\n"),
                "i.yaml:4:3: unknown name `pasword`; did you mean `password`?",
            ),
            (
                entry("  password: {env: A, file: /b}\n"),
                "i.yaml:4:13: a secret stands in one place: `{file: /path}`, `{env: NAME}` or `{command: [/path, …]}`",
            ),
            (
                entry("  password: {}\n"),
                "i.yaml:4:13: a secret stands in one place: `{file: /path}`, `{env: NAME}` or `{command: [/path, …]}`",
            ),
            (
                entry("  password: {file: secrets/app}\n"),
                "i.yaml:4:13: `secrets/app` depends on where the daemon is started: give the whole path",
            ),
            (
                entry("  password: {env: A, ttl: 5m}\n"),
                "i.yaml:4:13: `ttl` belongs to a `command`; files and variables are read anew",
            ),
            (
                entry("  password: {command: [/bin/true], ttl: 5}\n"),
                "i.yaml:4:13: `ttl` is `5`; `90s`, `15m` and `2h` are durations",
            ),
            (
                entry("  password: {command: []}\n"),
                "i.yaml:4:13: `command` is empty: `[/path/to/program, argument, …]` belongs here",
            ),
            (
                entry("  login: ''\n  password: {env: A}\n"),
                "i.yaml:4:10: `` names no user",
            ),
            (
                "credentials: [{destination: '*', protocol: postgres, password: {env: A}}]"
                    .to_owned(),
                "i.yaml:1:29: `*` would give the password to whatever server an agent connects to; name the servers it is for",
            ),
            (
                entry("  use: blast_radius\n  password: {env: A}\n"),
                "i.yaml:2:3: `login` is missing: the user, who may read and no more, as whom it is found out what would be touched",
            ),
            (
                entry("  use: blast_radius\n  login: r\n  placeholder: {env: B}\n  password: {env: A}\n"),
                "i.yaml:2:3: no agent logs in with `use: blast_radius`, so there is nothing that a `placeholder` could stand for",
            ),
            (
                "credentials: [{destination: a.b, protocol: http, use: blast_radius, bearer: {env: A}}]"
                    .to_owned(),
                "i.yaml:1:15: `use` is nothing that `protocol: http` has",
            ),
            (
                "credentials: [{destination: a.b, protocol: mysql, password: {env: A}}]".to_owned(),
                "i.yaml:1:44: ",
            ),
            (
                "credentials: [{destination: a.b, protocol: postgres}]".to_owned(),
                "i.yaml:1:15: `password` is missing: what to log in with",
            ),
            (
                "credentials: [{destination: a.b, protocol: http}]".to_owned(),
                "i.yaml:1:15: a credential for HTTP stands in one place: `bearer`",
            ),
            (
                "credentials: [{destination: a.b, protocol: http, bearer: {env: A}, query: {name: k, value: {env: A}}}]".to_owned(),
                "i.yaml:1:15: a credential for HTTP stands in one place: `bearer`",
            ),
            (
                "credentials: [{destination: a.b, protocol: http, bearer: {env: A}, database: d}]".to_owned(),
                "i.yaml:1:15: `database` is nothing that `protocol: http` has",
            ),
            (
                "credentials: [{destination: a.b, protocol: http, header: {name: Host, value: {env: A}}}]".to_owned(),
                "i.yaml:1:15: `host` says where a request ends or whom it is for",
            ),
            (
                "credentials: [{destination: a.b, protocol: http, bearer: {env: A}, path: v1}]".to_owned(),
                "i.yaml:1:15: `v1` is no path; `/v1/*` is",
            ),
            (entry("  password: s3cret\n"), "i.yaml:4:13: "),
        ] {
            let error = error(&text);
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_missing_explicit_file_is_an_error() {
        let error = Config::load(Some(Path::new("/nonexistent/i.yaml"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the configuration `/nonexistent/i.yaml` can't be read: No such file or directory \
             (os error 2); check --config, or leave it out to use the defaults"
        );
    }
}
