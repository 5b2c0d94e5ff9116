//! The text of a policy file: strict YAML into typed specifications, each with its place.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use super::{
    decision::{Otherwise, WindowScope},
    error::Problem,
};
use crate::operation::radius::Estimate;

/// A policy file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default, deserialize_with = "given")]
    pub(super) version: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) default: Option<Spanned<DefaultSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) enforce: Option<bool>,
    #[serde(default, deserialize_with = "listed")]
    pub(super) rules: Vec<Spanned<RuleSpec>>,
    #[serde(default, deserialize_with = "listed")]
    pub(super) tests: Vec<Spanned<CaseSpec>>,
}

/// What happens to what no rule matches.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DefaultSpec {
    pub(super) action: ActionSpec,
    #[serde(default)]
    pub(super) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ActionSpec {
    Allow,
    Deny,
    Hold,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleSpec {
    pub(super) id: Spanned<String>,
    #[serde(default)]
    pub(super) r#match: MatchSpec,
    #[serde(default, deserialize_with = "given")]
    pub(super) action: Option<ActionSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(super) tls: Option<Spanned<TlsSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) udp: Option<Spanned<DirectSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) inbound: Option<Spanned<DirectSpec>>,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default, deserialize_with = "given")]
    pub(super) reviewers: Option<Spanned<ReviewersSpec>>,
    #[serde(default, deserialize_with = "listed")]
    pub(super) mask: Vec<Spanned<MaskSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) rewrite: Option<Spanned<RewriteSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) enforce: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    pub(super) durability: Option<DurabilitySpec>,
}

/// What becomes of TLS to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TlsSpec {
    Intercept,
    Passthrough,
    Deny,
}

/// What becomes of what isn't redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DirectSpec {
    Allow,
    Deny,
}

/// What is changed in a request before it goes on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RewriteSpec {
    #[serde(default)]
    pub(super) headers: ChangeSpec,
    #[serde(default)]
    pub(super) query: ChangeSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeSpec {
    #[serde(default)]
    pub(super) set: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "listed")]
    pub(super) remove: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DurabilitySpec {
    Strict,
    Batched,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MatchSpec {
    #[serde(default, deserialize_with = "given")]
    pub(super) agent: Option<Spanned<OneOrMany>>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) destination: Option<DestinationSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(super) source: Option<Spanned<SourceSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) protocol: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) action: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) class: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) resources: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) touch: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) content: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) http: Option<Spanned<HttpSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) dns: Option<Spanned<DnsSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) time: Option<Spanned<TimeSpec>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) rate: Option<Spanned<RateSpec>>,
}

/// Conditions on an HTTP request, apart from its method (`action`) and host (`destination: {name}`).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpSpec {
    #[serde(default, deserialize_with = "given")]
    pub(super) path: Option<OneOrMany>,
    /// What `{name}` in a path has to be.
    #[serde(default)]
    pub(super) captures: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    pub(super) query: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) json: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) content_type: Option<OneOrMany>,
    #[serde(default, deserialize_with = "given")]
    pub(super) larger_than: Option<String>,
}

/// Conditions on a question to the DNS.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DnsSpec {
    #[serde(default, deserialize_with = "given")]
    pub(super) name: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) r#type: Option<Spanned<OneOrMany>>,
    /// EDNS options.
    #[serde(default, deserialize_with = "given")]
    pub(super) option: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) longer_than: Option<Spanned<u64>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) label_longer_than: Option<Spanned<u64>>,
    /// Bits a character.
    #[serde(default, deserialize_with = "given")]
    pub(super) entropy_over: Option<Spanned<f64>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) distinct: Option<Spanned<RateSpec>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DestinationSpec {
    #[serde(default, deserialize_with = "given")]
    pub(super) name: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) address: Option<Spanned<OneOrMany>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) port: Option<Spanned<Ports>>,
    /// The path of a UNIX socket.
    #[serde(default, deserialize_with = "given")]
    pub(super) socket: Option<Spanned<OneOrMany>>,
}

/// Who comes in.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceSpec {
    #[serde(default, deserialize_with = "given")]
    pub(super) address: Option<Spanned<OneOrMany>>,
}

/// A text, or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A port, a range of ports, or a list of both.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Ports {
    Number(u16),
    Range(String),
    Many(Vec<Ports>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReviewersSpec {
    #[serde(default, deserialize_with = "listed")]
    pub(super) groups: Vec<String>,
    #[serde(default, deserialize_with = "listed")]
    pub(super) people: Vec<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) quorum: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    pub(super) within: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) wait: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) retry: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) otherwise: Option<Otherwise>,
    #[serde(default, deserialize_with = "listed")]
    pub(super) escalate: Vec<EscalationSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(super) reason: Option<ReasonSpec>,
    #[serde(default, deserialize_with = "given")]
    pub(super) windows: Option<WindowsSpec>,
    #[serde(default)]
    pub(super) security_key: bool,
    #[serde(default, deserialize_with = "given")]
    pub(super) blast_radius: Option<Estimate>,
}

/// Whether a yes needs a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ReasonSpec {
    Optional,
    Required,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EscalationSpec {
    pub(super) after: String,
    #[serde(deserialize_with = "listed")]
    pub(super) groups: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WindowsSpec {
    pub(super) scope: WindowScope,
    pub(super) r#for: String,
    pub(super) at_most: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MaskSpec {
    #[serde(default, deserialize_with = "given")]
    pub(super) column: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) json: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) key: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) header: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) pattern: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) with: Option<Option<String>>,
    #[serde(default)]
    pub(super) strict: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TimeSpec {
    /// `[mon, tue]`; none means every day.
    #[serde(default, deserialize_with = "listed")]
    pub(super) days: Vec<String>,
    /// `09:00-17:30`, UTC; it may go past midnight.
    #[serde(default, deserialize_with = "given")]
    pub(super) hours: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RateSpec {
    /// Operations (different names, for DNS) that are let by before the rule matches.
    pub(super) over: u32,
    /// In which time, `1m`.
    pub(super) per: String,
}

/// A case of a policy's own tests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseSpec {
    pub(super) name: String,
    #[serde(default, deserialize_with = "given")]
    pub(super) agent: Option<String>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) destination: Option<String>,
    /// The name that the destination has proved to have.
    #[serde(default, deserialize_with = "given")]
    pub(super) host: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) protocol: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) statement: Option<String>,
    #[serde(default, deserialize_with = "listed")]
    pub(super) actions: Vec<String>,
    #[serde(default, deserialize_with = "listed")]
    pub(super) effects: Vec<String>,
    pub(super) expect: ExpectSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectSpec {
    pub(super) verdict: ActionSpec,
    #[serde(default, deserialize_with = "given")]
    pub(super) rule: Option<String>,
}

impl OneOrMany {
    pub(super) fn texts(&self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text.clone()],
            Self::Many(texts) => texts.clone(),
        }
    }
}

/// A value that may be left out, but not left empty: `class:` with nothing behind it would otherwise
/// match everything, which is hardly what its writer meant.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A list that may be left out, but not left empty.
fn listed<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(deserializer)?.ok_or_else(|| {
        serde::de::Error::custom("a list belongs here (`[a, b]`); leave the line out for none")
    })
}

/// Reads the file `name` from its `text`.
pub(super) fn read(name: &str, text: &str) -> Result<File, Problem> {
    serde_saphyr::from_str(text).map_err(|error| Problem::of_yaml(name, &error))
}
