//! What of a rule an operation doesn't meet, in words.

use std::{
    fmt::{self, Write as _},
    ops::RangeInclusive,
    time::Duration,
};

use crate::{
    glob::Glob,
    operation::{
        Effects, Operation, Resource, ResourceKind, Touch, attribute,
        http::{Body, HttpRequest},
    },
    origin::Origin,
    policy::{
        dns::{Distinct, DnsMatch},
        http::HttpMatch,
        rule::{Network, Rate, ResourceMatch, Rule, Says, ScopeMatch, Time, TlsRule, Unmet},
    },
    record::Timestamp,
};

/// Most patterns of a list that are named.
const NAMED_MAX: usize = 6;

/// Most characters of what an agent wrote that are shown.
const SHOWN_CHARACTERS_MAX: usize = 120;

/// Why `rule` doesn't match, of which `unmet` is the first condition that isn't met.
pub(super) fn unmet(
    rule: &Rule,
    unmet: Unmet,
    operation: &Operation,
    origin: &Origin,
    now: Timestamp,
) -> String {
    let description = &operation.description;
    let permissive = matches!(rule.says, Says::Allow);
    match unmet {
        Unmet::Agent | Unmet::Label(_) | Unmet::Address | Unmet::Port | Unmet::Socket => {
            scope(&rule.scope, unmet, origin)
        }
        Unmet::Protocol => {
            let of = rule.scope.protocol.map_or("", |protocol| protocol.name());
            format!("protocol is {}, the rule is for {of}", operation.protocol)
        }
        Unmet::Action => action(rule, &description.actions, permissive),
        Unmet::Class => class(rule, description.effects, permissive),
        Unmet::Beyond => {
            let beyond = Effects::EXECUTE | Effects::ADMIN | Effects::TRANSFER | Effects::UNCLASSIFIED;
            let beyond = effects(description.effects & beyond, "and");
            format!("it is {beyond} as well, which a rule that allows has to name under `class`")
        }
        Unmet::Resources => resources(rule, &description.resources, permissive),
        Unmet::Name => name(rule, operation, origin, permissive),
        Unmet::Attribute(place) => match rule.attributes.get(place) {
            Some((name, glob)) => {
                let value = description.attributes.get(&**name);
                valued(&format!("attribute `{name}`"), value.map(|value| &**value), glob)
            }
            None => String::new(),
        },
        Unmet::Content => {
            let expression = rule.content.as_ref().map_or("", |regex| regex.as_str());
            format!("its content doesn't match `{}`", short(expression))
        }
        Unmet::NoRequest => "the rule is for HTTP requests, and this is none".to_owned(),
        Unmet::Path
        | Unmet::Query(_)
        | Unmet::Header(_)
        | Unmet::ContentType
        | Unmet::LargerThan
        | Unmet::Json => match (&rule.http, &operation.http) {
            (Some(http), Some(request)) => asked_of_http(http, unmet, operation, request),
            _ => String::new(),
        },
        Unmet::NoQuestion => "the rule is for questions to the DNS, and this is none".to_owned(),
        Unmet::MoreThanQuestion
        | Unmet::Type
        | Unmet::Extension
        | Unmet::Question
        | Unmet::LongerThan
        | Unmet::LabelLongerThan
        | Unmet::Entropy => match &rule.dns {
            Some(dns) => asked_of_dns(dns, unmet, operation),
            None => String::new(),
        },
        Unmet::Time => rule.time.map_or_else(String::new, |time| hours(time, now)),
        Unmet::Rate => rule
            .rate
            .as_ref()
            .map_or_else(String::new, |rate| often(rate, &origin.agent.name, now)),
        Unmet::Distinct => rule.distinct().map_or_else(String::new, |distinct| {
            let Distinct { over, per, .. } = distinct;
            format!(
                "it isn't one name too many: the rule lets {over} different ones below a domain by every {}",
                span(*per)
            )
        }),
    }
}

/// Why a rule about TLS doesn't match a connection to what the client calls `name`.
pub(super) fn unmet_tls(
    rule: &TlsRule,
    unmet: Unmet,
    origin: &Origin,
    name: Option<&str>,
) -> String {
    if unmet != Unmet::Name {
        return scope(&rule.scope, unmet, origin);
    }
    let globs = rule.names.as_deref().unwrap_or_default();
    let of = any_of(globs.iter().map(Glob::as_str));
    match name {
        Some(name) => format!(
            "the client asks for `{}`, the rule is for {of}",
            short(name)
        ),
        None => format!("the client names no server, the rule is for {of}"),
    }
}

fn scope(scope: &ScopeMatch, unmet: Unmet, origin: &Origin) -> String {
    let Origin {
        agent, destination, ..
    } = origin;
    match unmet {
        Unmet::Label(place) => match scope.labels.get(place) {
            Some((name, glob)) => {
                let value = agent.labels.get(&**name);
                valued(
                    &format!("label `{name}`"),
                    value.map(|value| &**value),
                    glob,
                )
            }
            None => String::new(),
        },
        Unmet::Address => {
            let networks = scope.addresses.as_deref().unwrap_or_default();
            let of = listed(networks.iter().map(|network| network.to_string()), "or");
            format!("destination is {destination}, the rule is for {of}")
        }
        Unmet::Port => {
            let mut ports = scope.ports.clone().unwrap_or_default();
            ports.sort_by_key(|range| *range.start());
            let of = listed(ports.iter().map(port), "or");
            format!("destination is {destination}, the rule is for port {of}")
        }
        Unmet::Socket => {
            let globs = scope.sockets.as_deref().unwrap_or_default();
            let of = any_of(globs.iter().map(Glob::as_str));
            format!("destination is {destination}, the rule is for the UNIX socket {of}")
        }
        _ => {
            let globs = scope.agents.as_deref().unwrap_or_default();
            let of = any_of(globs.iter().map(Glob::as_str));
            format!("agent is `{}`, the rule is for {of}", agent.name)
        }
    }
}

fn action(rule: &Rule, actions: &[Box<str>], permissive: bool) -> String {
    let globs = rule.actions.as_deref().unwrap_or_default();
    let of = any_of(globs.iter().map(Glob::as_str));
    let other = actions.iter().find(|action| {
        let action = action.to_ascii_uppercase();
        !globs.iter().any(|glob| glob.matches(&action))
    });
    match other {
        Some(other) if permissive && actions.len() > 1 => {
            format!(
                "`{}` is among its actions, the rule allows {of} alone",
                short(other)
            )
        }
        _ => format!(
            "action is `{}`, the rule is for {of}",
            short(&actions.join("; "))
        ),
    }
}

fn class(rule: &Rule, found: Effects, permissive: bool) -> String {
    let classes = rule.classes.unwrap_or_default();
    if permissive && found.intersects(classes) {
        let beyond = effects(found.difference(classes), "and");
        return format!(
            "its class is {} as well, the rule allows {} alone",
            beyond,
            effects(classes, "and")
        );
    }
    format!(
        "its class is {}, the rule is for {}",
        effects(found, "and"),
        effects(classes, "or")
    )
}

fn resources(rule: &Rule, found: &[Resource], permissive: bool) -> String {
    let touched = match rule.touch {
        None => "",
        Some(Touch::Read) => ", read",
        Some(Touch::Write) => ", written",
    };
    let of = match &rule.resources {
        None => "whatever it is".to_owned(),
        Some(patterns) => listed(patterns.iter().map(|pattern| format!("`{pattern}`")), "or"),
    };
    let other = found
        .iter()
        .find(|resource| !permissive || rule.is_kept_from(resource));
    match other {
        Some(resource) if permissive => format!(
            "it touches {}, the rule is for {of}{touched} alone",
            shown(resource)
        ),
        Some(_) => {
            let all = listed(found.iter().map(shown), "and");
            format!("it touches {all}, the rule is for {of}{touched}")
        }
        None => format!("it touches nothing that the rule could mean, which is for {of}{touched}"),
    }
}

fn name(rule: &Rule, operation: &Operation, origin: &Origin, permissive: bool) -> String {
    let globs = rule.names.as_deref().unwrap_or_default();
    let of = any_of(globs.iter().map(Glob::as_str));
    let is_proved = rule.is_for_names(&origin.names);
    let claimed = operation.description.attributes.get(attribute::HTTP_HOST);
    match (claimed, origin.names.is_empty()) {
        (Some(claimed), _) if permissive && is_proved => {
            format!(
                "it asks for the host `{}`, the rule is for {of}",
                short(claimed)
            )
        }
        (_, false) => {
            let names = any_of(origin.names.iter().map(|name| &**name));
            format!("destination is {names}, the rule is for {of}")
        }
        (Some(claimed), true) if permissive => format!(
            "nothing proves that the destination is `{}`, the rule is for {of}",
            short(claimed)
        ),
        (_, true) => {
            format!(
                "destination is {}, of which no name is known, the rule is for {of}",
                origin.destination
            )
        }
    }
}

fn asked_of_http(
    http: &HttpMatch,
    unmet: Unmet,
    operation: &Operation,
    request: &HttpRequest,
) -> String {
    match unmet {
        Unmet::Path => {
            let paths = http.paths.as_deref().unwrap_or_default();
            let of = any_of(paths.iter().map(|path| &*path.text));
            match operation.description.attributes.get(attribute::HTTP_PATH) {
                Some(path) => format!("path is `{}`, the rule is for {of}", short(path)),
                None => format!("it has no path, the rule is for {of}"),
            }
        }
        Unmet::Query(place) => http
            .query
            .get(place)
            .map_or_else(String::new, |(name, glob)| {
                let values = request.query_values(name);
                valued(
                    &format!("`{name}` of the query"),
                    values.first().map(|value| &**value),
                    glob,
                )
            }),
        Unmet::Header(place) => http
            .headers
            .get(place)
            .map_or_else(String::new, |(name, glob)| {
                let value = request.fields.get(name).map(String::from_utf8_lossy);
                valued(&format!("header field `{name}`"), value.as_deref(), glob)
            }),
        Unmet::ContentType => {
            let globs = http.content_types.as_deref().unwrap_or_default();
            let of = any_of(globs.iter().map(Glob::as_str));
            match request.content_type() {
                Some(media) => format!("its body is `{}`, the rule is for {of}", short(&media)),
                None => format!("it says of no body what that is, the rule is for {of}"),
            }
        }
        Unmet::LargerThan => {
            let bytes = http.larger_than.unwrap_or_default();
            match &request.body {
                Body::None => {
                    format!("it has no body, the rule is for more than {bytes} bytes of one")
                }
                Body::Whole(body) => {
                    format!(
                        "its body has {} bytes, the rule is for more than {bytes}",
                        body.len()
                    )
                }
                Body::Coming(length) => format!(
                    "its body has {} bytes, the rule is for more than {bytes}",
                    length.unwrap_or_default()
                ),
            }
        }
        _ => {
            let paths = http.json.iter();
            let of = paths.map(|(path, glob)| format!("`{}` is `{}`", path.text, glob.as_str()));
            let of = listed(of, "and");
            match &request.body {
                Body::Whole(_) => format!("its body isn't JSON where {of}"),
                Body::None => format!("it has no body, the rule is for JSON where {of}"),
                Body::Coming(_) => {
                    format!("its body isn't there yet, the rule is for JSON where {of}")
                }
            }
        }
    }
}

fn asked_of_dns(dns: &DnsMatch, unmet: Unmet, operation: &Operation) -> String {
    let attribute = |name| {
        let value = operation.description.attributes.get(name);
        value.map_or("", |value| &**value)
    };
    let globs = |globs: &Option<Vec<Glob>>| {
        let globs = globs.as_deref().unwrap_or_default();
        any_of(globs.iter().map(Glob::as_str))
    };
    match unmet {
        Unmet::Type => format!(
            "it asks for {}, the rule is for {}",
            short(attribute(attribute::DNS_TYPE)),
            globs(&dns.types)
        ),
        Unmet::Extension => match attribute(attribute::DNS_OPTIONS) {
            "" => format!("it uses no extension, the rule is for {}", globs(&dns.options)),
            used => format!("it uses {used}, the rule is for {}", globs(&dns.options)),
        },
        Unmet::Question => format!(
            "it asks for `{}`, the rule is for {}",
            short(attribute(attribute::DNS_NAME)),
            globs(&dns.names)
        ),
        Unmet::LongerThan => format!(
            "its name has {} bytes, the rule is for more than {}",
            attribute(attribute::DNS_NAME_BYTES),
            dns.longer_than.unwrap_or_default()
        ),
        Unmet::LabelLongerThan => format!(
            "the longest label has {} bytes, the rule is for more than {}",
            attribute(attribute::DNS_LABEL_BYTES),
            dns.label_longer_than.unwrap_or_default()
        ),
        Unmet::Entropy => format!(
            "its name has {} bits a character, the rule is for more than {}",
            attribute(attribute::DNS_ENTROPY),
            dns.entropy_over.unwrap_or_default()
        ),
        _ => "it is more than a question, which a rule that allows has to name by `class`, `action` or `type`".to_owned(),
    }
}

fn hours(time: Time, now: Timestamp) -> String {
    const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let minute = now.0 / 60_000_000_000;
    // The epoch was a Thursday.
    let day = (minute / 1_440 + 3) % 7;
    let name = |day: u64| DAYS.get(usize::try_from(day).unwrap_or(0)).copied();
    let days = (0..7).filter(|day| time.days >> day & 1 == 1);
    let days = match time.days {
        0x7F => "every day".to_owned(),
        _ => listed(days.filter_map(name).map(str::to_owned), "and"),
    };
    let clock = |minutes: u64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
    let (from, to) = time.minutes;
    format!(
        "it is {} {} UTC, the rule is for {days}, {} to {}",
        name(day).unwrap_or(""),
        clock(minute % 1_440),
        clock(from.into()),
        clock(to.into())
    )
}

fn often(rate: &Rate, agent: &str, now: Timestamp) -> String {
    format!(
        "it would be number {} of agent `{agent}` in these {}, and the rule lets {} by",
        u64::from(rate.count(agent, now)) + 1,
        span(rate.per),
        rate.over
    )
}

/// That `what` has another value than those meant, or none.
fn valued(what: &str, value: Option<&str>, glob: &Glob) -> String {
    match value {
        Some(value) => format!(
            "{what} is `{}`, the rule is for `{}`",
            short(value),
            glob.as_str()
        ),
        None if glob.is_any() => format!("there is no {what}, and the rule asks for one"),
        None => format!("there is no {what}, the rule is for `{}`", glob.as_str()),
    }
}

fn effects(effects: Effects, word: &str) -> String {
    if effects.is_empty() {
        return "none".to_owned();
    }
    listed(effects.names().map(str::to_owned), word)
}

fn shown(resource: &Resource) -> String {
    let touch = match resource.touch {
        Touch::Read => "read",
        Touch::Write => "written",
    };
    let name = short(&resource.to_string());
    format!("`{}:{name}` ({touch})", kind(resource.kind))
}

pub(in crate::policy) const fn kind(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Table => "table",
        ResourceKind::Function => "function",
        ResourceKind::Object => "object",
        ResourceKind::Database => "database",
        ResourceKind::Role => "role",
        ResourceKind::Setting => "setting",
        ResourceKind::File => "file",
        ResourceKind::Program => "program",
        ResourceKind::Channel => "channel",
        ResourceKind::Url => "url",
        ResourceKind::Name => "name",
    }
}

fn port(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

fn any_of<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    listed(texts.map(|text| format!("`{}`", short(text))), "or")
}

/// `a, b or c`, of many the first.
fn listed(texts: impl Iterator<Item = String>, word: &str) -> String {
    let texts: Vec<String> = texts.collect();
    let mut out = String::new();
    for (place, text) in texts.iter().take(NAMED_MAX).enumerate() {
        match place {
            0 => {}
            _ if place + 1 == texts.len() => _ = write!(out, " {word} "),
            _ => out.push_str(", "),
        }
        out.push_str(text);
    }
    match texts.len().saturating_sub(NAMED_MAX) {
        0 => out,
        more => format!("{out} {word} {more} more"),
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds > 0 && seconds.is_multiple_of(86_400) => {
            format!("{}d", seconds / 86_400)
        }
        seconds if seconds > 0 && seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        seconds if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix_bits < bits {
            write!(f, "/{}", self.prefix_bits)?;
        }
        Ok(())
    }
}

impl fmt::Display for ResourceMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", kind(self.kind))?;
        if !self.namespace.is_any() {
            write!(f, "{}.", self.namespace.as_str())?;
        }
        f.write_str(self.name.as_str())
    }
}
