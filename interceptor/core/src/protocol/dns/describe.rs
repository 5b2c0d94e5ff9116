//! From a message to an operation: what is asked for, and how much it looks like data.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _, sync::Arc};

use super::{
    query::{Edns, Query, Question, Section},
    transcript,
    wire::{self, Header, flag, kind, opcode},
};
use crate::operation::{
    Description, Effects, Operation, Protocol, Resource, ResourceKind, Touch, attribute, dns,
};

/// What `message`, read as `query`, attempts.
pub(super) fn operation(message: &[u8], query: &Query<'_>) -> Operation {
    let Question {
        name, kind: asked, ..
    } = query.question;
    let type_name = dns::type_name(asked);
    let folded = wire::folded(name);
    let (action, effects, touch) = match query.header.opcode() {
        opcode::QUERY => match asked {
            kind::AXFR | kind::IXFR => (&*type_name, Effects::READ | Effects::EXPORT, Touch::Read),
            _ => (&*type_name, Effects::READ, Touch::Read),
        },
        opcode::UPDATE => ("UPDATE", Effects::WRITE, Touch::Write),
        opcode::NOTIFY => ("NOTIFY", Effects::UNCLASSIFIED, Touch::Write),
        // Nothing else is read.
        _ => ("", Effects::UNCLASSIFIED, Touch::Write),
    };
    let mut resources = vec![resource(&folded, touch)];
    let mut content = match query.header.opcode() {
        opcode::QUERY => String::new(),
        _ => format!("{action} "),
    };
    content.push_str(&readable(&query.question));
    for (section, record) in &query.records {
        let section = match section {
            Section::Answer => "prerequisite",
            Section::Authority if query.header.opcode() == opcode::UPDATE => "update",
            Section::Authority => "authority",
            Section::Additional => "additional",
        };
        _ = write!(content, "\n{section} {}", transcript::line(message, record));
        if query.header.opcode() == opcode::UPDATE {
            resources.push(resource(&wire::folded(&record.owner), touch));
        }
    }
    resources.sort();
    resources.dedup();
    let mut options = options(query);
    if !query.records.is_empty() {
        // Records can be written in more than one way: what is agreed to is these bytes, whatever the id.
        let rest = message.get(2..).unwrap_or_default();
        options.push(("message".into(), hex::encode(rest).into()));
    }
    Operation {
        protocol: Protocol::Dns,
        description: Arc::new(Description {
            actions: [Box::from(action)].into(),
            effects,
            attributes: attributes(query, &type_name, &folded),
            resources: resources.into(),
        }),
        content: content.into(),
        parameters: [].into(),
        options,
        http: None,
    }
}

/// An operation of a question in words, `TXT a.example.com` or `TXT CH version.bind`, as a resolver asks it.
#[must_use]
pub fn example(statement: &str) -> Option<Operation> {
    let words: Vec<&str> = statement.split_whitespace().collect();
    let (kind, class, name) = match *words.as_slice() {
        [kind, name] => (kind, wire::IN, name),
        [kind, class, name] => (kind, class_number(class)?, name),
        _ => return None,
    };
    let kind = dns::type_number(&kind.to_ascii_uppercase())?;
    let mut message = Vec::new();
    Header {
        id: 0,
        flags: flag::RECURSION_DESIRED,
        counts: [1, 0, 0, 0],
    }
    .encode(&mut message);
    message.extend(wire::encoded(name)?);
    message.extend(kind.to_be_bytes());
    message.extend(class.to_be_bytes());
    let query = Query::read(&message).ok()?;
    Some(operation(&message, &query))
}

/// `A www.Example.com.`; the class stands between where it isn't the Internet's.
pub(super) fn readable(question: &Question<'_>) -> String {
    let kind = dns::type_name(question.kind);
    let name = wire::text(question.name);
    match question.class {
        wire::IN => format!("{kind} {name}"),
        class => format!("{kind} {} {name}", class_name(class)),
    }
}

fn resource(name: &str, touch: Touch) -> Resource {
    Resource {
        kind: ResourceKind::Name,
        namespace: None,
        name: name.into(),
        touch,
    }
}

fn attributes(query: &Query<'_>, type_name: &str, name: &str) -> BTreeMap<Box<str>, Box<str>> {
    let mut all: BTreeMap<Box<str>, Box<str>> = BTreeMap::new();
    let mut add = |key: &str, value: &str| _ = all.insert(key.into(), value.into());
    add(attribute::DNS_NAME, name);
    add(attribute::DNS_TYPE, type_name);
    add(attribute::DNS_CLASS, &class_name(query.question.class));
    add(attribute::DNS_DOMAIN, dns::registered(name));
    for (key, count) in [
        (attribute::DNS_NAME_BYTES, dns::name_bytes(name)),
        (attribute::DNS_LABEL_BYTES, dns::label_bytes(name)),
        (attribute::DNS_LABELS, dns::labels(name)),
    ] {
        add(key, &count.to_string());
    }
    let entropy = dns::entropy(dns::below_registered(name));
    add(attribute::DNS_ENTROPY, &format!("{entropy:.2}"));
    if let Some(edns) = &query.edns
        && !edns.options.is_empty()
    {
        let names: Vec<_> = edns.options.iter().map(|(name, _)| *name).collect();
        add(attribute::DNS_OPTIONS, &names.join(","));
    }
    all
}

/// What of the message isn't in its question: with that and the id it can be written again byte by byte.
fn options(query: &Query<'_>) -> Vec<(Box<str>, Box<str>)> {
    let mut options = Vec::new();
    let flags: Vec<&str> = [
        (flag::AUTHORITATIVE, "authoritative"),
        (flag::RECURSION_DESIRED, "recursion desired"),
        (flag::AUTHENTIC, "authentic data"),
        (flag::CHECKING_DISABLED, "checking disabled"),
    ]
    .into_iter()
    .filter(|(bit, _)| query.header.has(*bit))
    .map(|(_, name)| name)
    .collect();
    options.push((Box::from("flags"), Box::from(flags.join(", "))));
    if let Some(Edns {
        payload_bytes,
        flags,
        options: extensions,
    }) = &query.edns
    {
        let mut text = format!("answers of {payload_bytes} bytes");
        for (bit, name) in [(0x8000, "DNSSEC"), (0x4000, "compact answers")] {
            if flags & bit != 0 {
                _ = write!(text, ", {name}");
            }
        }
        options.push((Box::from("edns"), Box::from(text)));
        for (name, content) in extensions {
            let content = match *name {
                "padding" | "extended-error" => Cow::Owned(format!("{} zeros", content.len())),
                _ => Cow::Owned(hex::encode(content)),
            };
            options.push((Box::from(*name), Box::from(&*content)));
        }
    }
    options
}

pub(super) fn class_name(class: u16) -> Cow<'static, str> {
    Cow::Borrowed(match class {
        wire::IN => "IN",
        3 => "CH",
        4 => "HS",
        254 => "NONE",
        255 => "ANY",
        other => return Cow::Owned(format!("CLASS{other}")),
    })
}

fn class_number(name: &str) -> Option<u16> {
    match &*name.to_ascii_uppercase() {
        "IN" => Some(wire::IN),
        "CH" => Some(3),
        "HS" => Some(4),
        "NONE" => Some(254),
        "ANY" => Some(255),
        other => other.strip_prefix("CLASS")?.parse().ok(),
    }
}
