//! Who is told of records as they happen, as the configuration says it.

use std::{collections::BTreeMap, path::PathBuf};

use http::HeaderName;
use serde::Deserialize;

use crate::{
    notify::ServiceUrl,
    secret::Source,
    ship::{backlog, server},
};

/// How many records may wait for a stream that is required, unless said otherwise: what a busy host writes in some
/// ten seconds.
const BACKLOG_RECORDS: u64 = 100_000;

/// Largest message that every receiver takes (RFC 5425, 4.3.1, and what rsyslog takes as it comes), in bytes.
const SYSLOG_BYTES: u32 = 8_192;

/// Smallest that can be configured: a header and what says which record it is; RFC 5425 has receivers take that much.
const SYSLOG_BYTES_MIN: u32 = 2_048;

/// Largest, in bytes.
const SYSLOG_BYTES_MAX: u32 = 1 << 20;

/// "log audit", of RFC 5424's table 1.
const FACILITY: u8 = 13;

/// The number that RFC 5612 keeps for documents, since this program has none of its own.
const ENTERPRISE: u32 = 32_473;

/// A receiver of records as they happen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Stream {
    /// Who.
    pub receiver: Receiver,
    /// How many records may wait for it before the journal takes nothing more; without, it never waits.
    pub backlog_records_max: Option<u64>,
}

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receiver {
    /// A receiver of syslog messages.
    Syslog(Syslog),
    /// A receiver of OpenTelemetry's logs.
    Otlp(Otlp),
}

/// A receiver of syslog messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syslog {
    pub(super) is_tls: bool,
    pub(super) host: Box<str>,
    pub(super) port: u16,
    pub(super) facility: u8,
    pub(super) enterprise: u32,
    /// Bytes of a message, header included.
    pub(super) message_bytes_max: usize,
    /// PEM files of a certificate for receivers that ask for one, and of its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

/// A receiver of OpenTelemetry's logs by HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otlp {
    pub(super) url: Box<str>,
    pub(super) shown: Box<str>,
    pub(super) bearer: Option<Source>,
    /// Further headers, which mostly hold a vendor's key.
    pub(super) headers: BTreeMap<Box<str>, Source>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    syslog: Option<SyslogFields>,
    #[serde(default)]
    otlp: Option<OtlpFields>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    backlog_records: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SyslogFields {
    server: String,
    #[serde(default = "facility")]
    facility: u8,
    #[serde(default = "enterprise")]
    enterprise: u32,
    #[serde(default = "message_bytes")]
    message_bytes: u32,
    #[serde(default)]
    certificate: Option<PathBuf>,
    #[serde(default)]
    key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OtlpFields {
    url: String,
    #[serde(default)]
    bearer: Option<Source>,
    #[serde(default)]
    headers: BTreeMap<Box<str>, Source>,
}

const fn facility() -> u8 {
    FACILITY
}

const fn enterprise() -> u32 {
    ENTERPRISE
}

const fn message_bytes() -> u32 {
    SYSLOG_BYTES
}

impl TryFrom<Fields> for Stream {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let receiver = match (fields.syslog, fields.otlp) {
            (Some(syslog), None) => Receiver::Syslog(syslog.try_into()?),
            (None, Some(otlp)) => Receiver::Otlp(otlp.try_into()?),
            _ => {
                return Err(
                    "records go to a `syslog: {server: 'tls://…'}` or to an `otlp: {url: 'https://…'}`"
                        .to_owned(),
                );
            }
        };
        Ok(Self {
            receiver,
            backlog_records_max: backlog(
                "backlog_records",
                fields.required,
                fields.backlog_records,
                BACKLOG_RECORDS,
            )?,
        })
    }
}

impl TryFrom<SyslogFields> for Syslog {
    type Error = String;

    fn try_from(fields: SyslogFields) -> Result<Self, String> {
        let schemes = [("tls", true, 6_514), ("tcp", false, 514)];
        let (is_tls, host, port) = server(&fields.server, &schemes)?;
        if fields.facility > 23 {
            return Err(format!(
                "`facility` is {}: RFC 5424 has 0 to 23, 13 is that of audits",
                fields.facility
            ));
        }
        if !(SYSLOG_BYTES_MIN..=SYSLOG_BYTES_MAX).contains(&fields.message_bytes) {
            return Err(format!(
                "`message_bytes` is {}: it has to be between {SYSLOG_BYTES_MIN} and {SYSLOG_BYTES_MAX}",
                fields.message_bytes
            ));
        }
        let identity = match (fields.certificate, fields.key) {
            (Some(certificate), Some(key)) if is_tls => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(
                    "`certificate` and `key` are two PEM files that go together, with `tls://`"
                        .to_owned(),
                );
            }
        };
        Ok(Self {
            is_tls,
            host: host.into(),
            port,
            facility: fields.facility,
            enterprise: fields.enterprise,
            message_bytes_max: usize::try_from(fields.message_bytes).unwrap_or(usize::MAX),
            identity,
        })
    }
}

impl TryFrom<OtlpFields> for Otlp {
    type Error = String;

    fn try_from(fields: OtlpFields) -> Result<Self, String> {
        let shown = ServiceUrl::parse(&fields.url)?;
        for name in fields.headers.keys() {
            let is_own = ["content-type", "content-length", "host"]
                .iter()
                .any(|own| name.eq_ignore_ascii_case(own));
            if is_own || name.parse::<HeaderName>().is_err() {
                return Err(format!(
                    "`{}` is no header that can be given here",
                    name.escape_debug()
                ));
            }
        }
        Ok(Self {
            url: fields.url.trim().into(),
            shown: format!("{shown:?}").into(),
            bearer: fields.bearer,
            headers: fields.headers,
        })
    }
}

impl Stream {
    /// Where its secrets stand.
    pub fn secrets(&self) -> Vec<&Source> {
        match &self.receiver {
            Receiver::Syslog(_) => Vec::new(),
            Receiver::Otlp(otlp) => otlp.bearer.iter().chain(otlp.headers.values()).collect(),
        }
    }

    /// The file of its private key, if it has one.
    #[must_use]
    pub fn key(&self) -> Option<&PathBuf> {
        match &self.receiver {
            Receiver::Syslog(syslog) => syslog.identity.as_ref().map(|(_, key)| key),
            Receiver::Otlp(_) => None,
        }
    }
}

impl Receiver {
    /// What it is called; another name is another receiver.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Syslog(syslog) => {
                let scheme = if syslog.is_tls { "tls" } else { "tcp" };
                format!("syslog {scheme}://{}:{}", syslog.host, syslog.port)
            }
            Self::Otlp(otlp) => format!("otlp {}", otlp.shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(yaml: &str) -> Result<Stream, String> {
        serde_saphyr::from_str(yaml).map_err(|error| error.to_string())
    }

    #[test]
    fn a_receiver_has_a_name_and_what_rfcs_say() {
        let good = stream("syslog: {server: 'tls://logs.example.com'}\nrequired: true").unwrap();
        assert_eq!(good.receiver.name(), "syslog tls://logs.example.com:6514");
        assert_eq!(good.backlog_records_max, Some(BACKLOG_RECORDS));
        let good = stream("syslog: {server: 'tcp://[::1]:5514'}").unwrap();
        assert_eq!(good.receiver.name(), "syslog tcp://::1:5514");
        assert_eq!(good.backlog_records_max, None);
        let good = stream(
            "otlp: {url: 'https://o.example/v1/logs?key=s3cret', bearer: {file: /t}, headers: {x-key: {env: K}}}",
        )
        .unwrap();
        assert!(!good.receiver.name().contains("s3cret"));
        assert_eq!(good.secrets().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        for (yaml, expected) in [
            ("{}", "records go to a `syslog:"),
            ("syslog: {server: logs.example.com}", "`server` is `tls://"),
            ("syslog: {server: 'tcp://logs.example.com'}", "in the clear"),
            ("syslog: {server: 'udp://127.0.0.1'}", "`server` is `tls://"),
            (
                "syslog: {server: 'tls://a.example', facility: 24}",
                "RFC 5424 has 0 to 23",
            ),
            (
                "syslog: {server: 'tls://a.example', message_bytes: 100}",
                "between 2048 and",
            ),
            (
                "syslog: {server: 'tls://a.example', key: /k}",
                "go together",
            ),
            ("otlp: {url: 'http://a.example/v1/logs'}", "in the clear"),
            (
                "otlp: {url: 'https://a.example/v1/logs', headers: {Host: {env: A}}}",
                "no header that can be given",
            ),
            (
                "otlp: {url: 'https://a.example/v1/logs'}\nbacklog_records: 1",
                "goes with `required: true`",
            ),
            ("otpl: {url: 'https://a.example'}", "unknown field `otpl`"),
        ] {
            let error = stream(yaml).unwrap_err();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }
}
