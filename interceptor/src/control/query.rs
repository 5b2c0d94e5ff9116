//! What is asked for in a request's query.

use std::{fmt::Write as _, sync::Arc};

use interceptor_core::{
    operation::{Effects, Protocol},
    record::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::journal::{Decided, Text, Wanted};

/// Sessions that are listed unless more are asked for.
const SESSIONS_LISTED: usize = 1_000;

/// The header of an answer that not all sessions were looked into for: of those that began then or earlier, only some
/// were; in RFC 3339.
pub const STOPPED: &str = "interceptor-stopped";

/// Which sessions: the query of `GET /v1/sessions`. What isn't given isn't asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsQuery {
    /// Only of this agent, by name.
    pub agent: Option<Box<str>>,
    /// Only of agents with this label, `name=value`; several with commas between them.
    pub label: Option<String>,
    /// Only those that began then or later, in RFC 3339.
    #[serde(with = "crate::rfc3339::option")]
    pub since: Option<Timestamp>,
    /// Only those that began then or earlier, in RFC 3339.
    #[serde(with = "crate::rfc3339::option")]
    pub until: Option<Timestamp>,
    /// Only with operations of this protocol.
    pub protocol: Option<Protocol>,
    /// Only with operations that have this effect; several with commas between them: any of these.
    pub class: Option<String>,
    /// Only with operations that were decided so.
    pub verdict: Option<Decided>,
    /// Only with operations that this rule decided.
    pub rule: Option<Box<str>>,
    /// Only with operations that this person voted on.
    pub reviewer: Option<Box<str>>,
    /// Only to an address or a name that has this in it.
    pub destination: Option<Box<str>>,
    /// Only with operations whose statement, path, resource, command or host has these words: `orders`, `shop.orders`,
    /// `ord*`, `"a phrase"`; of several all.
    pub text: Option<String>,
    /// Only those that go on; with `false`, only those that are over.
    pub live: Option<bool>,
    /// How many at most.
    pub limit: Option<usize>,
}

impl SessionsQuery {
    /// What is asked for.
    ///
    /// # Errors
    /// Where a label or an effect is none, or the text can't be searched for; for people.
    pub fn wanted(&self) -> Result<Wanted, String> {
        let labels = self.label.iter().flat_map(|labels| labels.split(','));
        let labels = labels.map(|label| {
            let (name, value) = label
                .split_once('=')
                .ok_or_else(|| format!("`{}` is no label; `team=data` is", label.escape_debug()))?;
            Ok((name.into(), value.into()))
        });
        let mut class = Effects::empty();
        for name in self.class.iter().flat_map(|class| class.split(',')) {
            class |= Effects::named(name).ok_or_else(|| {
                let known: Vec<_> = Effects::NAMES.iter().map(|(_, name)| *name).collect();
                format!(
                    "`{}` is no class of operations; {} are",
                    name.escape_debug(),
                    known.join(", ")
                )
            })?;
        }
        let text = self.text.as_deref();
        let text = text.map(|text| Text::parse(text).map(Arc::new));
        Ok(Wanted {
            agent: self.agent.clone(),
            labels: labels.collect::<Result<_, String>>()?,
            since: self.since,
            until: self.until,
            protocol: self.protocol,
            class,
            verdict: self.verdict,
            rule: self.rule.clone(),
            reviewer: self.reviewer.clone(),
            destination: self.destination.clone(),
            live: self.live,
            text: text.transpose().map_err(|error| error.to_string())?,
        })
    }

    /// How many at most.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(SESSIONS_LISTED)
    }

    /// As a query's names and values.
    #[must_use]
    pub fn pairs(&self) -> Vec<(&'static str, Option<String>)> {
        let text = |value: &Option<Box<str>>| value.as_ref().map(ToString::to_string);
        let verdict = self.verdict.map(|verdict| match verdict {
            Decided::Allow => "allow".to_owned(),
            Decided::Deny => "deny".to_owned(),
            Decided::Hold => "hold".to_owned(),
        });
        vec![
            ("agent", text(&self.agent)),
            ("label", self.label.clone()),
            ("since", self.since.map(|time| time.to_string())),
            ("until", self.until.map(|time| time.to_string())),
            ("protocol", self.protocol.map(|one| one.name().to_owned())),
            ("class", self.class.clone()),
            ("verdict", verdict),
            ("rule", text(&self.rule)),
            ("reviewer", text(&self.reviewer)),
            ("destination", text(&self.destination)),
            ("text", self.text.clone()),
            ("live", self.live.map(|live| live.to_string())),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ]
    }
}

/// `path` with the parameters that are given as its query.
#[must_use]
pub fn with_query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_deref()?))));
    let query = given.collect::<Vec<_>>().join("&");
    match query.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{query}"),
    }
}

/// `text` as it can stand in a query (application/x-www-form-urlencoded, without its `+`).
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_hold_any_value() {
        assert_eq!(with_query("/v1/x", &[("a", None)]), "/v1/x");
        assert_eq!(
            with_query(
                "/v1/x",
                &[
                    ("a", Some("1&b=ü /".into())),
                    ("b", None),
                    ("c", Some("2".into()))
                ]
            ),
            "/v1/x?a=1%26b%3D%C3%BC%20%2F&c=2"
        );
    }
}
