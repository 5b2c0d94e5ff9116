//! Webhooks, those of Microsoft Teams included.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, header};
use serde::Deserialize;

use super::super::{address::ServiceUrl, secrets::Text, template::Template};
use crate::secret::Source;

/// Header fields that say where a request ends, whom it is for, or that it is ours.
const OURS: [HeaderName; 8] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::HOST,
    header::UPGRADE,
    header::EXPECT,
    header::TE,
    header::TRAILER,
];

/// A request to a program.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct WebhookConfig {
    /// Where to.
    pub url: Text,
    /// What it is signed with.
    pub secret: Option<Source>,
    /// Its body, where it isn't ours.
    pub template: Option<Template>,
    /// What the template may name besides what is told.
    pub values: BTreeMap<Box<str>, Text>,
    /// Further header fields.
    pub headers: Vec<(HeaderName, Text)>,
}

/// A workflow's webhook of Microsoft Teams.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeamsConfig {
    /// Its URL, which is a secret: who has it can write to the channel.
    pub url: Source,
}

impl WebhookConfig {
    pub(super) fn secrets(&self) -> Vec<&Source> {
        let values = self.values.values();
        let headers = self.headers.iter().map(|(_, value)| value);
        let texts = std::iter::once(&self.url).chain(values).chain(headers);
        texts.filter_map(Text::source).chain(&self.secret).collect()
    }

    /// Whether what it is told calls people.
    pub(super) fn calls_people(&self) -> bool {
        self.template.as_ref().is_some_and(Template::calls_people)
    }

    /// Whether what it is told becomes a ticket.
    pub(super) fn opens_tickets(&self) -> bool {
        self.template.as_ref().is_some_and(Template::opens_tickets)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    url: Text,
    secret: Option<Source>,
    template: Option<Template>,
    #[serde(default)]
    values: BTreeMap<Box<str>, Text>,
    #[serde(default)]
    headers: BTreeMap<Box<str>, Text>,
}

impl TryFrom<Fields> for WebhookConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        if let Text::Plain(url) = &fields.url {
            ServiceUrl::parse(url).map_err(|why| format!("`url`: {why}"))?;
        }
        match &fields.template {
            None if fields.secret.is_none() => {
                return Err("`secret` is missing: what requests are signed with, so that receivers know whom they are from; `echo whsec_$(openssl rand -base64 32)` makes one".to_owned());
            }
            None => {
                if let Some(name) = fields.values.keys().next() {
                    return Err(format!(
                        "`values` has `{name}`, and there is no `template` that could name it"
                    ));
                }
            }
            Some(template) => template.check(&fields.values)?,
        }
        let headers = fields.headers.into_iter().map(|(name, value)| {
            let parsed: HeaderName = name
                .parse()
                .map_err(|_| format!("`{}` names no header field", name.escape_debug()))?;
            if OURS.contains(&parsed) || parsed.as_str().starts_with("webhook-") {
                return Err(format!(
                    "`{parsed}` is not yours to set: interceptor sends it itself"
                ));
            }
            if let Text::Plain(text) = &value {
                HeaderValue::from_str(text)
                    .map_err(|_| format!("the value of `{parsed}` can't stand in a header"))?;
            }
            Ok((parsed, value))
        });
        Ok(Self {
            headers: headers.collect::<Result<_, String>>()?,
            url: fields.url,
            secret: fields.secret,
            template: fields.template,
            values: fields.values,
        })
    }
}
