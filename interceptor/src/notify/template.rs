//! Bodies of webhooks for programs that want their own: a JSON document with names in its strings.
//!
//! What is substituted goes into strings of a document that is parsed already, once, and a serializer writes them: no
//! value can end its string, add a member or name another value. Members' names are never substituted.

use std::{collections::BTreeMap, fmt};

use interceptor_core::login::Secret;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    facts::{Facts, VARIABLES},
    limits::{PLACES_MAX, TEMPLATE_BYTES_MAX},
    queue::Failure,
    secrets::{Text, text},
};

/// A body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    document: Value,
    named: Option<Named>,
}

/// A template that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    PagerDuty,
    Jira,
    ServiceNow,
}

impl Named {
    const ALL: [(&'static str, Self); 3] = [
        ("pagerduty", Self::PagerDuty),
        ("jira", Self::Jira),
        ("servicenow", Self::ServiceNow),
    ];

    /// PagerDuty's Events API v2, Jira's REST API v3 (its documents hold text literally), ServiceNow's Table API.
    fn document(self) -> Value {
        match self {
            Self::PagerDuty => json!({
                "routing_key": "{{routing_key}}",
                "event_action": "{{trigger}}",
                "dedup_key": "interceptor-{{host}}-{{approval}}",
                "client": "interceptor on {{host}}",
                "client_url": "{{link}}",
                "payload": {
                    "summary": "{{summary}}",
                    "source": "{{host}}",
                    "severity": "{{severity}}",
                    "component": "{{agent}}",
                    "class": "{{protocol}}",
                    "custom_details": {
                        "action": "{{action}}",
                        "approval": "{{approval}}",
                        "command": "{{command}}",
                        "content": "{{content}}",
                        "destination": "{{destination}}",
                        "digest": "{{digest}}",
                        "groups": "{{groups}}",
                        "outcome": "{{outcome}}",
                        "process": "{{process}}",
                        "reason": "{{reason}}",
                        "resources": "{{resources}}",
                        "rule": "{{rule}}",
                        "until": "{{until}}"
                    }
                },
                "links": [{"href": "{{link}}", "text": "Decide"}]
            }),
            Self::Jira => json!({
                "fields": {
                    "project": {"key": "{{project}}"},
                    "issuetype": {"name": "{{issue_type}}"},
                    "summary": "{{summary}}",
                    "labels": ["interceptor"],
                    "description": {
                        "type": "doc",
                        "version": 1,
                        "content": [
                            {"type": "paragraph", "content": [{"type": "text", "text": "Decide at {{whereto}}"}]},
                            {"type": "codeBlock", "content": [{"type": "text", "text": "agent        {{agent}}\nprocess      {{process}}\ncommand      {{command}}\ndestination  {{destination}}\naction       {{action}}\ntouches      {{resources}}\nheld by      {{rule}}: {{reason}}\nasked        {{groups}}\nuntil        {{until}}\noutcome      {{outcome}}\nhost         {{host}}\napproval     {{approval}}\ndigest       {{digest}}"}]},
                            {"type": "codeBlock", "content": [{"type": "text", "text": "content\n{{content}}"}]}
                        ]
                    }
                }
            }),
            Self::ServiceNow => json!({
                "short_description": "{{summary}}",
                "description": "Decide at {{whereto}}\n\nagent: {{agent}}\nprocess: {{process}}\ncommand: {{command}}\ndestination: {{destination}}\naction: {{action}}\ntouches: {{resources}}\nheld by: {{rule}}: {{reason}}\nasked: {{groups}}\nuntil: {{until}}\noutcome: {{outcome}}\nhost: {{host}}\napproval: {{approval}}\ndigest: {{digest}}\n\n{{content}}",
                "urgency": "2",
                "correlation_id": "{{approval}}",
                "correlation_display": "interceptor on {{host}}"
            }),
        }
    }

    /// Values that the configuration has to give, and what they are.
    const fn values(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::PagerDuty => &[("routing_key", "the integration's key, a secret")],
            Self::Jira => &[
                ("project", "the project's key"),
                ("issue_type", "the kind of issue, such as Task"),
            ],
            Self::ServiceNow => &[],
        }
    }
}

impl Template {
    /// Whether what it is told becomes a ticket, which is opened once.
    #[must_use]
    pub fn opens_tickets(&self) -> bool {
        matches!(self.named, Some(Named::Jira | Named::ServiceNow))
    }

    /// Whether what it is told calls people.
    #[must_use]
    pub fn calls_people(&self) -> bool {
        self.named == Some(Named::PagerDuty)
    }

    /// Whether all that it names there is, `values` included.
    ///
    /// # Errors
    /// What is missing, not named by anything, or too much.
    pub(super) fn check(&self, values: &BTreeMap<Box<str>, Text>) -> Result<(), String> {
        for (name, what) in self.named.into_iter().flat_map(Named::values) {
            if !values.contains_key(*name) {
                return Err(format!(
                    "`values` has no `{name}`, which this template needs: {what}"
                ));
            }
        }
        for name in values.keys() {
            if VARIABLES.contains(&&**name) {
                return Err(format!(
                    "`values` has `{name}`, which is what is told; give yours another name"
                ));
            }
        }
        let mut names = Vec::new();
        names_of(&self.document, &mut names)?;
        if names.len() > PLACES_MAX {
            return Err(format!(
                "a template has {} places: up to {PLACES_MAX} it can",
                names.len()
            ));
        }
        for name in &names {
            if !VARIABLES.contains(name) && !values.contains_key(*name) {
                return Err(unknown(name, values));
            }
        }
        if let Some(name) = values.keys().find(|name| !names.contains(&&***name)) {
            return Err(format!(
                "`values` has `{name}`, which the template doesn't name"
            ));
        }
        let bytes = self.document.to_string().len();
        if bytes > TEMPLATE_BYTES_MAX {
            return Err(format!(
                "a template of {bytes} bytes is too long: up to {TEMPLATE_BYTES_MAX} it can have"
            ));
        }
        Ok(())
    }

    /// The body that tells `facts`.
    pub(super) fn render(
        &self,
        facts: &Facts,
        delivery: &str,
        values: &BTreeMap<Box<str>, Secret>,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut document = self.document.clone();
        let mut lookup = |name: &str| -> Result<String, Failure> {
            if let Some(value) = facts.variable(name, delivery) {
                return Ok(value);
            }
            let value = values.get(name);
            let value = value.ok_or_else(|| {
                Failure::last(format!("the template names `{name}`, which there isn't"))
            })?;
            text(value, &format!("the value `{name}`")).map(str::to_owned)
        };
        substitute(&mut document, &mut lookup)?;
        if self.named == Some(Named::PagerDuty)
            && facts.link.is_none()
            && let Some(document) = document.as_object_mut()
        {
            // An empty URL is none, and PagerDuty would refuse it.
            document.remove("client_url");
            document.remove("links");
        }
        serde_json::to_vec(&document)
            .map(Zeroizing::new)
            .map_err(|error| Failure::last(format!("its template gives no JSON: {error}")))
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Template;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("pagerduty, jira, servicenow, or a JSON document of your own")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Template, E> {
                let known = Named::ALL.iter().find(|(known, _)| *known == name);
                let (_, named) = known.ok_or_else(|| {
                    E::custom(format!(
                        "`{}` is no template: pagerduty, jira and servicenow are, and a JSON document of your own",
                        name.escape_debug()
                    ))
                })?;
                Ok(Template {
                    document: named.document(),
                    named: Some(*named),
                })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Template, A::Error> {
                let document = Value::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Template {
                    document,
                    named: None,
                })
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Template, A::Error> {
                let document = Value::deserialize(de::value::SeqAccessDeserializer::new(list))?;
                Ok(Template {
                    document,
                    named: None,
                })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

fn unknown(name: &str, values: &BTreeMap<Box<str>, Text>) -> String {
    let all = VARIABLES
        .into_iter()
        .chain(values.keys().map(AsRef::as_ref));
    let nearest = all
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| *distance <= known.len() / 2)
        .min();
    let name = name.escape_debug();
    match nearest {
        Some((_, known)) => {
            format!("the template names `{{{{{name}}}}}`; did you mean `{{{{{known}}}}}`?")
        }
        None => format!(
            "the template names `{{{{{name}}}}}`; it can name {}, and what `values` gives",
            VARIABLES.join(", ")
        ),
    }
}

/// The names in all strings of `value`.
fn names_of<'a>(value: &'a Value, names: &mut Vec<&'a str>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            for piece in pieces(text) {
                if let Piece::Name(name) = piece? {
                    names.push(name);
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                names_of(value, names)?;
            }
        }
        Value::Object(members) => {
            for value in members.values() {
                names_of(value, names)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

fn substitute(
    value: &mut Value,
    lookup: &mut impl FnMut(&str) -> Result<String, Failure>,
) -> Result<(), Failure> {
    match value {
        Value::String(text) => {
            let mut out = String::with_capacity(text.len());
            for piece in pieces(text) {
                match piece.map_err(Failure::last)? {
                    Piece::Text(text) => out.push_str(text),
                    Piece::Name(name) => out.push_str(&lookup(name)?),
                }
            }
            *text = out;
        }
        Value::Array(list) => {
            for value in list {
                substitute(value, lookup)?;
            }
        }
        Value::Object(members) => {
            for value in members.values_mut() {
                substitute(value, lookup)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// A part of a string.
enum Piece<'a> {
    Text(&'a str),
    Name(&'a str),
}

/// The parts of `text`: what is between `{{` and `}}` is a name.
fn pieces(text: &str) -> impl Iterator<Item = Result<Piece<'_>, String>> {
    let mut rest = Some(text);
    let mut name = None;
    std::iter::from_fn(move || {
        if let Some(name) = name.take() {
            return Some(Ok(Piece::Name(name)));
        }
        let text = rest.take()?;
        let Some((before, after)) = text.split_once("{{") else {
            return Some(Ok(Piece::Text(text)));
        };
        let Some((inside, behind)) = after.split_once("}}") else {
            return Some(Err("a `{{` in the template has no `}}`".to_owned()));
        };
        name = Some(inside.trim());
        rest = Some(behind);
        Some(Ok(Piece::Text(before)))
    })
}
