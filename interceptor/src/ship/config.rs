//! Where copies of the journal go, as the configuration says it.

use std::path::PathBuf;

use http::uri::Authority;
use serde::Deserialize;

use crate::{notify::ServiceUrl, secret::Source};

/// How much may wait for a target that is required, in bytes, unless said otherwise: some sixteen segments.
const BACKLOG_BYTES: u64 = 1 << 30;

/// Longest lock that can be configured, in days: a century, as long as S3's own.
const LOCK_DAYS_MAX: u32 = 36_500;

/// A place that closed segments are shipped to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Ship {
    /// Where to.
    pub target: Target,
    /// How many bytes of closed segments may wait for it before the journal takes nothing more; without, it never
    /// waits.
    pub backlog_bytes_max: Option<u64>,
}

/// Where copies go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A folder: another host's disk, if it is to be of use.
    Folder(PathBuf),
    /// A bucket of an S3-compatible store.
    S3(Box<Bucket>),
    /// An object store of NATS JetStream.
    Nats(Box<Subjects>),
}

/// An object store of NATS JetStream, and what to sign in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    pub(super) is_tls: bool,
    /// As its client takes it.
    pub(super) server: Box<str>,
    pub(super) bucket: Box<str>,
    /// What stands before an object's name; empty, or ends with `/`.
    pub(super) prefix: Box<str>,
    pub(super) login: Option<(Box<str>, Source)>,
    pub(super) token: Option<Source>,
}

/// A bucket of an S3-compatible store, and what to sign in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// `http` or `https`.
    pub(super) scheme: Box<str>,
    /// Host and port of requests: the store's, or the bucket's own at it.
    pub(super) authority: Box<str>,
    /// What stands in a path before an object's name: the bucket, where the host doesn't name it, and the prefix;
    /// begins and ends with `/`.
    pub(super) root: Box<str>,
    /// The bucket and the prefix, for people.
    pub(super) shown: Box<str>,
    pub(super) region: Box<str>,
    pub(super) lock: Option<Lock>,
    /// Name of the key that requests are signed with.
    pub(super) access_key: Source,
    /// The key.
    pub(super) secret_key: Source,
    /// What goes with keys that are good for some hours.
    pub(super) session_token: Option<Source>,
}

/// How long nobody may change or remove what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Whether anybody may let go of it earlier.
    pub(super) mode: LockMode,
    /// From when it is sent, in days.
    #[serde(deserialize_with = "lock_days")]
    pub(super) days: u32,
}

/// Whether a lock can be let go of earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// By who has the right to.
    Governance,
    /// By nobody.
    Compliance,
}

impl LockMode {
    /// As S3 writes it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }
}

fn lock_days<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let days = u32::deserialize(deserializer)?;
    if (1..=LOCK_DAYS_MAX).contains(&days) {
        Ok(days)
    } else {
        Err(serde::de::Error::custom(format!(
            "`days` is {days}: it has to be between 1 and {LOCK_DAYS_MAX}"
        )))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    folder: Option<PathBuf>,
    #[serde(default)]
    s3: Option<Bucket>,
    #[serde(default)]
    nats: Option<Subjects>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    backlog_bytes: Option<u64>,
}

impl TryFrom<Fields> for Ship {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let target = match (fields.folder, fields.s3, fields.nats) {
            (Some(folder), None, None) if folder.is_absolute() => Target::Folder(folder),
            (Some(folder), None, None) => {
                return Err(format!(
                    "`{}` depends on where the daemon is started: give the whole path",
                    folder.display()
                ));
            }
            (None, Some(bucket), None) => Target::S3(bucket.into()),
            (None, None, Some(subjects)) => Target::Nats(subjects.into()),
            _ => {
                return Err(
                    "copies go to a `folder: /path`, to an `s3: {endpoint: …, bucket: …}` or to a `nats: {server: …, bucket: …}`"
                        .to_owned(),
                );
            }
        };
        Ok(Self {
            target,
            backlog_bytes_max: backlog(
                "backlog_bytes",
                fields.required,
                fields.backlog_bytes,
                BACKLOG_BYTES,
            )?,
        })
    }
}

/// How much may wait where a target is `required`: what is said under `name`, or `default`.
///
/// # Errors
/// Where there is something said of a target that isn't, or nothing may wait.
pub(crate) fn backlog(
    name: &str,
    required: bool,
    said: Option<u64>,
    default: u64,
) -> Result<Option<u64>, String> {
    match (required, said) {
        (false, Some(_)) => Err(format!(
            "`{name}` is how much may wait before nothing passes: it goes with `required: true`"
        )),
        (true, Some(0)) => Err(format!(
            "`{name}` is 0, and nothing would ever pass: something always waits for a moment"
        )),
        (true, said) => Ok(Some(said.unwrap_or(default))),
        (false, None) => Ok(None),
    }
}

impl Ship {
    /// Where its secrets stand.
    pub fn secrets(&self) -> Vec<&Source> {
        match &self.target {
            Target::Folder(_) => Vec::new(),
            Target::S3(bucket) => [&bucket.access_key, &bucket.secret_key]
                .into_iter()
                .chain(&bucket.session_token)
                .collect(),
            Target::Nats(subjects) => {
                let password = subjects.login.iter().map(|(_, password)| password);
                password.chain(&subjects.token).collect()
            }
        }
    }

    /// The folder, if it goes to one.
    #[must_use]
    pub const fn folder(&self) -> Option<&PathBuf> {
        match &self.target {
            Target::Folder(folder) => Some(folder),
            Target::S3(_) | Target::Nats(_) => None,
        }
    }
}

impl Target {
    /// What it is called; another name is another target.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::S3(bucket) => format!("s3://{}", bucket.shown),
            Self::Nats(subjects) => {
                format!(
                    "{}/{}/{}",
                    subjects.server, subjects.bucket, subjects.prefix
                )
            }
        }
    }
}

impl<'de> Deserialize<'de> for Bucket {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = BucketFields::deserialize(deserializer)?;
        fields.try_into().map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BucketFields {
    endpoint: String,
    bucket: String,
    #[serde(default)]
    prefix: String,
    #[serde(default = "region")]
    region: Box<str>,
    #[serde(default)]
    style: Option<Style>,
    #[serde(default)]
    lock: Option<Lock>,
    access_key: Source,
    secret_key: Source,
    #[serde(default)]
    session_token: Option<Source>,
}

/// What a store without regions takes.
fn region() -> Box<str> {
    "us-east-1".into()
}

/// Where a request names the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Style {
    /// `https://host/bucket/name`
    Path,
    /// `https://bucket.host/name`
    Virtual,
}

impl TryFrom<BucketFields> for Bucket {
    type Error = String;

    fn try_from(fields: BucketFields) -> Result<Self, String> {
        // Says what is wrong with it, and refuses one in the clear over a network.
        ServiceUrl::parse(&fields.endpoint)?;
        let uri: http::Uri = fields
            .endpoint
            .trim()
            .parse()
            .map_err(|_| "`endpoint` is no URL: `https://s3.example.com` is".to_owned())?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(
                "`endpoint` is the store alone, `https://s3.example.com`; what is in it goes under `bucket` and `prefix`"
                    .to_owned(),
            );
        }
        let (scheme, host) = (
            uri.scheme_str().unwrap_or("https"),
            uri.authority().map_or("", Authority::as_str),
        );
        let bucket = &*fields.bucket;
        let is_name = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
            });
        if !is_name {
            return Err(format!(
                "`{}` names no bucket: 3 to 63 of a-z, 0-9, - and . do",
                bucket.escape_debug()
            ));
        }
        let prefix = prefix(&fields.prefix)?;
        // Amazon's own takes new buckets by their hosts; others mostly have no such names in the DNS.
        let at_amazon = uri
            .host()
            .is_some_and(|host| host.ends_with(".amazonaws.com"));
        let default = if at_amazon && !bucket.contains('.') {
            Style::Virtual
        } else {
            Style::Path
        };
        let (authority, root) = match fields.style.unwrap_or(default) {
            Style::Path => (host.to_owned(), format!("/{bucket}/{prefix}")),
            Style::Virtual => (format!("{bucket}.{host}"), format!("/{prefix}")),
        };
        Ok(Self {
            scheme: scheme.into(),
            authority: authority.into(),
            root: root.into(),
            shown: format!("{host}/{bucket}/{prefix}").into(),
            region: fields.region,
            lock: fields.lock,
            access_key: fields.access_key,
            secret_key: fields.secret_key,
            session_token: fields.session_token,
        })
    }
}

/// `text` as what stands before names: nothing, or something that ends with `/`.
fn prefix(text: &str) -> Result<String, String> {
    let prefix = text.trim_matches('/');
    let is_plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'=')
            })
    };
    if prefix.is_empty() {
        return Ok(String::new());
    }
    if prefix.split('/').all(is_plain) {
        return Ok(format!("{prefix}/"));
    }
    Err(format!(
        "`prefix` is `{}`: parts of letters, digits, -, _, = and . with / between them are one, `evidence/host1`",
        text.escape_debug()
    ))
}

impl<'de> Deserialize<'de> for Subjects {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = SubjectsFields::deserialize(deserializer)?;
        fields.try_into().map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectsFields {
    server: String,
    bucket: Box<str>,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    user: Option<Box<str>>,
    #[serde(default)]
    password: Option<Source>,
    #[serde(default)]
    token: Option<Source>,
}

impl TryFrom<SubjectsFields> for Subjects {
    type Error = String;

    fn try_from(fields: SubjectsFields) -> Result<Self, String> {
        let (is_tls, host, port) = server(
            &fields.server,
            &[("tls", true, 4_222), ("nats", false, 4_222)],
        )?;
        let is_name = !fields.bucket.is_empty()
            && fields
                .bucket
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !is_name {
            return Err(format!(
                "`{}` names no bucket: letters, digits, - and _ do",
                fields.bucket.escape_debug()
            ));
        }
        let login = match (fields.user, fields.password) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            _ => return Err("`user` and `password` go together".to_owned()),
        };
        if login.is_some() && fields.token.is_some() {
            return Err("a server takes a `user` with a `password`, or a `token`".to_owned());
        }
        let scheme = if is_tls { "tls" } else { "nats" };
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Ok(Self {
            is_tls,
            server: format!("{scheme}://{host}:{port}").into(),
            bucket: fields.bucket,
            prefix: prefix(&fields.prefix)?.into(),
            login,
            token: fields.token,
        })
    }
}

/// The host and port of a server that isn't one of HTTP, out of `text`. Its scheme is one of `schemes`, each with
/// whether it is of TLS, and its port.
///
/// # Errors
/// Where it is none, or would be sent to in the clear over a network.
pub(crate) fn server(
    text: &str,
    schemes: &[(&str, bool, u16); 2],
) -> Result<(bool, String, u16), String> {
    let [(secure, _, secure_port), (clear, ..)] = schemes;
    let wrong = || {
        format!(
            "`server` is `{secure}://host.example:{secure_port}` or, on this host, `{clear}://127.0.0.1`"
        )
    };
    let uri: http::Uri = text.trim().parse().map_err(|_| wrong())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong());
    };
    let is_more = !matches!(uri.path(), "" | "/")
        || uri.query().is_some()
        || authority.as_str().contains('@');
    let host = authority.host().trim_matches(['[', ']']);
    if is_more || host.is_empty() {
        return Err(wrong());
    }
    let found = schemes.iter().find(|(name, ..)| *name == scheme);
    let (_, is_tls, port) = found.ok_or_else(wrong)?;
    let is_loopback = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if !is_tls && !is_loopback {
        return Err(format!(
            "`{scheme}://{host}` would send it in the clear: `{secure}://` does not; only loopback may do without"
        ));
    }
    Ok((
        *is_tls,
        host.to_owned(),
        authority.port_u16().unwrap_or(*port),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ship(yaml: &str) -> Result<Ship, String> {
        serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
    }

    const KEYS: &str = "access_key: {env: A}, secret_key: {file: /b}";

    #[test]
    fn a_bucket_is_named_in_the_path_or_by_its_host() {
        for (said, authority, root) in [
            (
                "endpoint: 'https://s3.example.com:9000', bucket: evidence, prefix: /a/host1/",
                "s3.example.com:9000",
                "/evidence/a/host1/",
            ),
            (
                "endpoint: 'https://s3.example.com', bucket: evidence, style: virtual",
                "evidence.s3.example.com",
                "/",
            ),
            (
                "endpoint: 'https://s3.eu-central-1.amazonaws.com/', bucket: evidence",
                "evidence.s3.eu-central-1.amazonaws.com",
                "/",
            ),
            // Amazon's certificate names no host with a dot more.
            (
                "endpoint: 'https://s3.eu-central-1.amazonaws.com/', bucket: evi.dence",
                "s3.eu-central-1.amazonaws.com",
                "/evi.dence/",
            ),
        ] {
            let good = ship(&format!("s3: {{{said}, {KEYS}}}")).unwrap();
            let Target::S3(bucket) = good.target else {
                panic!("{said}")
            };
            assert_eq!((&*bucket.authority, &*bucket.root), (authority, root));
            assert_eq!(&*bucket.region, "us-east-1");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        let at = "endpoint: 'https://a.example', bucket: evidence";
        for (yaml, expected) in [
            ("{}".to_owned(), "copies go to a `folder: /path`, to an `s3"),
            ("folder: a".to_owned(), "give the whole path"),
            (
                "folder: /a\nbacklog_bytes: 5".to_owned(),
                "goes with `required: true`",
            ),
            (
                "folder: /a\nrequired: true\nbacklog_bytes: 0".to_owned(),
                "nothing would ever pass",
            ),
            ("floder: /a".to_owned(), "unknown field `floder`"),
            (
                format!("s3: {{endpoint: 'http://a.example', bucket: evidence, {KEYS}}}"),
                "in the clear",
            ),
            (
                format!("s3: {{endpoint: 'https://a.example/x', bucket: evidence, {KEYS}}}"),
                "is the store alone",
            ),
            (
                format!("s3: {{endpoint: 'https://a.example', bucket: E_, {KEYS}}}"),
                "names no bucket",
            ),
            (
                format!("s3: {{{at}, prefix: a//b, {KEYS}}}"),
                "`prefix` is `a//b`",
            ),
            (
                format!("s3: {{{at}, prefix: ../b, {KEYS}}}"),
                "`prefix` is `../b`",
            ),
            (
                format!("s3: {{{at}, lock: {{mode: compliance, days: 0}}, {KEYS}}}"),
                "`days` is 0",
            ),
            (
                format!("s3: {{{at}, lock: {{mode: forever, days: 1}}, {KEYS}}}"),
                "forever",
            ),
            (
                format!("s3: {{{at}, key: x, {KEYS}}}"),
                "unknown field `key`",
            ),
            (
                "nats: {server: 'nats://a.example', bucket: b}".to_owned(),
                "in the clear",
            ),
            (
                "nats: {server: a.example, bucket: b}".to_owned(),
                "`server` is `tls://host.example:4222`",
            ),
            (
                "nats: {server: 'tls://a.example', bucket: b.c}".to_owned(),
                "names no bucket",
            ),
            (
                "nats: {server: 'tls://a.example', bucket: b, user: u}".to_owned(),
                "go together",
            ),
            (
                format!("s3: {{{at}, access_key: {{env: A}}}}"),
                "missing field `secret_key`",
            ),
        ] {
            let error = ship(&yaml).unwrap_err();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }
}
