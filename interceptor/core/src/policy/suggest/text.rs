//! Groups of operations as rules and cases.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    CASES_MAX,
    group::{Contents, Key, Kind, Place},
    is_understood, siblings, yaml,
};
use crate::{
    operation::{Operation, Protocol, Resource, ResourceKind, Touch, attribute},
    origin::Origin,
    policy::{
        Attempt, Given, Policy,
        cases::Describe,
        decision::{Decision, Verdict},
    },
    record::Timestamp,
};

/// Texts of one rule that allows by them: an expression of more is hard to look through.
const TEXTS_MAX: usize = 20;

/// A rule as it is written.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    id: String,
    /// Lines below `match:`, and what they say.
    conditions: Vec<(&'static str, String)>,
    says: &'static str,
    reason: &'static str,
    note: String,
}

/// The rules for `groups`.
pub(super) fn rules(
    agent: &str,
    groups: &BTreeMap<Key, Contents>,
    has_whole_tables: bool,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut ids = BTreeSet::new();
    for (key, contents) in groups {
        for mut rule in of_group(key, contents) {
            rule.conditions
                .insert(0, ("agent", yaml::scalar(&literally(agent))));
            rule.id = id(agent, key, &mut ids);
            rules.push(rule);
        }
    }
    let changes = groups.iter().any(|(key, _)| {
        let mut actions = key.actions.iter();
        key.protocol == Protocol::Postgres
            && actions.any(|action| matches!(&**action, "UPDATE" | "DELETE"))
    });
    if changes && !has_whole_tables {
        rules.push(Rule {
            id: unique(format!("{}-changes-no-whole-tables", word(agent)), &mut ids),
            conditions: vec![
                ("agent", yaml::scalar(&literally(agent))),
                ("protocol", "postgres".to_owned()),
                ("attributes", "{where: absent}".to_owned()),
            ],
            says: "action: deny",
            reason: "it would change every row; add a WHERE clause",
            note: "no statement without WHERE was seen, and rules that allow can't ask for one"
                .to_owned(),
        });
    }
    rules
}

/// The policy file that `rules` make.
pub(super) fn policy(rules: &[Rule]) -> String {
    let mut out = "version: 1\n\
                   # One file of a folder has a default: take this one out where another has it.\n\
                   default: {action: deny, reason: \"no rule allows it; ask the operator for a rule\"}\n"
        .to_owned();
    if rules.is_empty() {
        out.push_str("rules: []\n");
        return out;
    }
    out.push_str("rules:\n");
    for rule in rules {
        // Writing to a string can't fail.
        _ = writeln!(out, "  # {}", rule.note);
        _ = writeln!(out, "  - id: {}\n    match:", yaml::scalar(&rule.id));
        for (name, value) in &rule.conditions {
            _ = writeln!(out, "      {name}: {value}");
        }
        _ = writeln!(out, "    {}", rule.says);
        if !rule.reason.is_empty() {
            _ = writeln!(out, "    reason: {}", yaml::quoted(rule.reason));
        }
    }
    out
}

/// The cases file that `cases` make.
pub(super) fn all_cases(cases: &[String]) -> String {
    match cases {
        [] => "tests: []\n".to_owned(),
        cases => format!("tests:\n{}", cases.concat()),
    }
}

fn of_group(key: &Key, contents: &Contents) -> Vec<Rule> {
    let rule = |conditions: Vec<(&'static str, String)>| {
        let mut note = format!("from {}", count(contents.operations, "operation"));
        if matches!(key.kind, Kind::Mixed(_)) {
            note.push_str("; a rule can't say which of these is read and which is written");
        }
        Rule {
            id: String::new(),
            conditions,
            says: "action: allow",
            reason: "",
            note,
        }
    };
    if key.protocol == Protocol::Tls {
        let name = key.attributes.get(attribute::TLS_SERVER_NAME);
        let name = name.filter(|name| !name.is_empty());
        let mut unseen = rule(vec![("destination", of_tls(key, name.map(|name| &**name)))]);
        unseen.says = "tls: passthrough";
        return vec![unseen];
    }
    let mut common = vec![
        ("destination", destination(key.place())),
        ("protocol", key.protocol.name().to_owned()),
    ];
    match &key.kind {
        Kind::Action => {
            let actions = contents.actions.iter();
            common.push(("action", yaml::list(actions.map(|action| &**action))));
        }
        _ if key.actions.is_empty() => {}
        _ => {
            let actions: Vec<_> = key.actions.iter().map(|action| literally(action)).collect();
            common.push(("action", yaml::list(actions.iter().map(|action| &**action))));
        }
    }
    if !key.effects().is_empty() {
        let names: Vec<_> = key.effects().names().collect();
        common.push(("class", format!("[{}]", names.join(", "))));
    }
    let mut attributes = key.attributes.clone();
    if let Kind::OddPath(path) = &key.kind {
        attributes.insert(attribute::HTTP_PATH.into(), path.clone());
    }
    if !attributes.is_empty() {
        let attributes = attributes.iter();
        let attributes: Vec<_> = attributes
            .map(|(name, value)| format!("{name}: {}", yaml::scalar(&literally(value))))
            .collect();
        common.push(("attributes", format!("{{{}}}", attributes.join(", "))));
    }
    let with =
        |more: Vec<(&'static str, String)>| rule(common.iter().cloned().chain(more).collect());
    match &key.kind {
        Kind::Action | Kind::OddPath(_) | Kind::Place => vec![with(Vec::new())],
        Kind::Touching(touch) => {
            let touch = match touch {
                Touch::Read => "read",
                Touch::Write => "write",
            };
            vec![with(vec![
                ("resources", resources(contents.resources.iter())),
                ("touch", touch.to_owned()),
            ])]
        }
        Kind::Mixed(touched) => vec![with(vec![("resources", resources(touched.iter()))])],
        Kind::Path => {
            let paths = siblings::of_paths(&contents.paths);
            let paths = yaml::list(paths.iter().map(String::as_str));
            vec![with(vec![("http", format!("{{path: {paths}}}"))])]
        }
        Kind::Question => questions(contents)
            .into_iter()
            .map(|dns| with(vec![("dns", dns)]))
            .collect(),
        Kind::Exact => {
            let texts: Vec<&Bytes> = contents.texts.iter().collect();
            let texts = texts.chunks(TEXTS_MAX);
            texts
                .map(|texts| with(vec![("content", expression(texts))]))
                .collect()
        }
    }
}

/// What a glob is that stands for `text`: of what has a meaning in it, any one character.
fn literally(text: &str) -> String {
    text.replace('*', "?")
}

fn destination(place: &Place) -> String {
    match place {
        Place::Names(names, port) => {
            let names: Vec<_> = names.iter().map(|name| literally(name)).collect();
            let names = yaml::list(names.iter().map(String::as_str));
            match port {
                Some(port) => format!("{{name: {names}, port: {port}}}"),
                None => format!("{{name: {names}}}"),
            }
        }
        Place::Address(ip, port) => {
            format!(
                "{{address: {}, port: {port}}}",
                yaml::scalar(&ip.to_string())
            )
        }
        Place::Socket(path) => format!("{{socket: {}}}", yaml::scalar(&literally(path))),
    }
}

fn of_tls(key: &Key, name: Option<&str>) -> String {
    let port = match key.place() {
        Place::Names(_, port) => *port,
        Place::Address(_, port) => Some(*port),
        Place::Socket(_) => None,
    };
    match name {
        Some(name) => destination(&Place::Names(vec![name.to_ascii_lowercase().into()], port)),
        None => destination(key.place()),
    }
}

fn resources<'a>(touched: impl Iterator<Item = &'a Resource>) -> String {
    let mut tables = BTreeSet::new();
    let mut others = BTreeSet::new();
    for resource in touched {
        // What is before the last dot is taken for the namespace.
        let name = literally(&resource.name);
        let (dotted, name) = match resource.kind {
            ResourceKind::Table | ResourceKind::Function => (true, name.replace('.', "?")),
            _ => (false, name),
        };
        let name = match &resource.namespace {
            Some(namespace) if dotted => format!("{}.{name}", literally(namespace)),
            _ => name,
        };
        match resource.kind {
            ResourceKind::Table => _ = tables.insert(name),
            kind => _ = others.insert(format!("{}:{name}", crate::policy::explain::kind(kind))),
        }
    }
    let tables = siblings::of_tables(&tables);
    let tables = tables.iter().map(|name| format!("table:{name}"));
    let all: Vec<String> = tables.chain(others).collect();
    format!(
        "[{}]",
        all.iter()
            .map(|text| yaml::quoted(text))
            .collect::<Vec<_>>()
            .join(", ")
    )
}

/// What is asked of the DNS: names that were asked for in the same types together.
fn questions(contents: &Contents) -> Vec<String> {
    let mut by_types: BTreeMap<&BTreeSet<Box<str>>, BTreeSet<String>> = BTreeMap::new();
    for (name, types) in &contents.names {
        by_types.entry(types).or_default().insert(literally(name));
    }
    let extensions = &contents.extensions;
    let extensions = match extensions.is_empty() {
        // The one that says nothing: no rule can ask for none.
        true => "padding".to_owned(),
        false => yaml::list(extensions.iter().map(String::as_str)),
    };
    let of = |(types, names): (&BTreeSet<Box<str>>, BTreeSet<String>)| {
        let names = siblings::of_names(&names);
        format!(
            "{{name: {}, type: {}, option: {extensions}}}",
            yaml::list(names.iter().map(String::as_str)),
            yaml::list(types.iter().map(|kind| &**kind)),
        )
    };
    by_types.into_iter().map(of).collect()
}

/// An expression for these texts and no others.
fn expression(texts: &[&Bytes]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| escaped(text)).collect();
    yaml::quoted(&format!("(?s-u)^(?:{})$", texts.join("|")))
}

/// `text` in an expression, byte by byte where it isn't printable ASCII.
fn escaped(text: &[u8]) -> String {
    let mut out = String::new();
    for byte in text {
        match byte {
            b' '..=b'~' => out.push_str(&regex::escape(char::from(*byte).encode_utf8(&mut [0; 4]))),
            _ => _ = write!(out, "\\x{byte:02X}"),
        }
    }
    out
}

/// An id for a rule: `reporter-postgres-select`.
fn id(agent: &str, key: &Key, ids: &mut BTreeSet<String>) -> String {
    let of = match &*key.actions {
        [] => match key.kind {
            Kind::Question => "questions",
            _ => "transactions",
        }
        .to_owned(),
        [one] => word(one),
        [first, ..] => format!("{}-and-more", word(first)),
    };
    unique(format!("{}-{}-{of}", word(agent), key.protocol), ids)
}

fn unique(id: String, ids: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|number: u32| format!("{id}-{number}"));
    let mut free = std::iter::once(id.clone()).chain(numbered);
    let free = free.find(|id| !ids.contains(id)).unwrap_or(id);
    ids.insert(free.clone());
    free
}

/// `text` as a part of an id.
fn word(text: &str) -> String {
    let fits = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let word: String = text.chars().take(40).map(fits).collect();
    word.trim_matches('-').to_owned()
}

/// Cases for `groups` that `policy` passes: that what was seen goes, that the same of another agent doesn't, and
/// something else of this one neither.
pub(super) fn cases(
    agent: &str,
    groups: &BTreeMap<Key, Contents>,
    policy: &Arc<Policy>,
    describe: Describe<'_>,
) -> Vec<String> {
    let mut cases = Vec::new();
    let mut elsewhere: BTreeMap<(Place, Protocol), Given> = BTreeMap::new();
    for (key, contents) in groups
        .iter()
        .filter(|(key, _)| key.protocol != Protocol::Tls)
    {
        let mut of_group = 0;
        for (origin, operation) in &contents.samples {
            let given = given(agent, origin, operation);
            let Some(decision) = decided(policy, &given, describe) else {
                continue;
            };
            if decision.verdict != Verdict::Allow || of_group >= CASES_MAX {
                continue;
            }
            of_group += 1;
            cases.push(case(&in_short(operation), &given, &decision));
            elsewhere
                .entry((key.place().clone(), key.protocol))
                .or_insert(given);
        }
    }
    let mut has_stranger = false;
    for ((_, protocol), given) in &elsewhere {
        let stranger = Given {
            agent: Some(format!("not-{}", word(agent))),
            ..given.clone()
        };
        let other = unseen(*protocol, given);
        let strangers = (!has_stranger).then_some(("another agent may not", stranger));
        let others = other.map(|other| ("nor may it do what it didn't", other));
        for (name, given) in strangers.into_iter().chain(others) {
            if let Some(decision) = decided(policy, &given, describe)
                && decision.verdict == Verdict::Deny
            {
                has_stranger |= name.starts_with("another");
                cases.push(case(&yaml::quoted(name), &given, &decision));
            }
        }
    }
    cases
}

/// What `policy` says of `given`, where that can be read.
fn decided(policy: &Arc<Policy>, given: &Given, describe: Describe<'_>) -> Option<Arc<Decision>> {
    let (origin, operation) = Attempt::new(given).ok()?.operation(describe).ok()?;
    let mut scope = Policy::scope(policy, origin);
    Some(scope.evaluate(&operation, Timestamp(0)).decision)
}

/// `operation` as a case gives it.
fn given(agent: &str, origin: &Origin, operation: &Operation) -> Given {
    let description = &operation.description;
    let statement = match operation.protocol {
        Protocol::Postgres => std::str::from_utf8(&operation.content)
            .ok()
            .map(str::to_owned),
        Protocol::Http => request(operation),
        Protocol::Dns => std::str::from_utf8(&operation.content).ok().map(|text| {
            // An update has its records in further lines, and can't be given so.
            text.lines().next().unwrap_or_default().to_owned()
        }),
        Protocol::Tls | Protocol::Opaque => None,
    };
    let without = statement.is_none() || !is_understood(operation.protocol);
    Given {
        agent: Some(agent.to_owned()),
        destination: Some(origin.destination.to_string()),
        host: origin.names.first().map(ToString::to_string),
        protocol: Some(operation.protocol.name().to_owned()),
        statement: statement.filter(|_| !without),
        actions: match without {
            true => description
                .actions
                .iter()
                .map(ToString::to_string)
                .collect(),
            false => Vec::new(),
        },
        effects: match without {
            true => description.effects.names().map(str::to_owned).collect(),
            false => Vec::new(),
        },
        ..Given::default()
    }
}

/// A request as cases give it: `GET https://host/path?query`.
fn request(operation: &Operation) -> Option<String> {
    let attributes = &operation.description.attributes;
    let scheme = attributes.get("http.scheme")?;
    let host = attributes
        .get(attribute::HTTP_HOST)
        .map_or("host", |host| &**host);
    let line = operation.content.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.get(rest.find('/')?..)?,
        None => target,
    };
    Some(format!("{method} {scheme}://{host}{target}"))
}

/// Something that the agent of `given` didn't do in the same place.
fn unseen(protocol: Protocol, given: &Given) -> Option<Given> {
    let statement = match protocol {
        Protocol::Postgres => "DROP TABLE never_seen_before".to_owned(),
        Protocol::Http => {
            let (_, url) = given.statement.as_ref()?.split_once(' ')?;
            let (scheme, rest) = url.split_once("://")?;
            let host = rest.split('/').next()?;
            format!("DELETE {scheme}://{host}/never-seen-before")
        }
        Protocol::Dns => "TXT never-seen-before.invalid".to_owned(),
        Protocol::Tls | Protocol::Opaque => return None,
    };
    Some(Given {
        statement: Some(statement),
        ..given.clone()
    })
}

fn case(name: &str, given: &Given, decision: &Decision) -> String {
    let Given {
        agent,
        labels: _,
        destination,
        host,
        protocol,
        statement,
        actions,
        effects,
        ..
    } = given;
    let mut out = format!("  - {{name: {name}");
    for (key, value) in [
        ("agent", agent),
        ("destination", destination),
        ("host", host),
        ("protocol", protocol),
        ("statement", statement),
    ] {
        if let Some(value) = value {
            _ = write!(out, ", {key}: {}", yaml::scalar(value));
        }
    }
    for (key, values) in [("actions", actions), ("effects", effects)] {
        if !values.is_empty() {
            let values: Vec<_> = values.iter().map(|value| yaml::scalar(value)).collect();
            _ = write!(out, ", {key}: [{}]", values.join(", "));
        }
    }
    let verdict = match decision.verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
        Verdict::Hold(_) => "hold",
    };
    let rule = yaml::scalar(&decision.rule);
    _ = writeln!(out, ", expect: {{verdict: {verdict}, rule: {rule}}}}}");
    out
}

/// `operation` in a line, quoted.
pub(super) fn in_short(operation: &Operation) -> String {
    let description = &operation.description;
    let resources: Vec<_> = description
        .resources
        .iter()
        .map(ToString::to_string)
        .collect();
    let text = format!("{} {}", description.action(), resources.join(", "));
    yaml::comment(text.trim())
}

/// `1 rule`, `2 rules`.
pub(super) fn count(number: u64, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {one}s"),
    }
}
