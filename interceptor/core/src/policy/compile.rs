//! From specifications to rules: every name known, every rule able to match.

mod direct;
mod dns;
mod reviewers;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use regex::bytes::Regex;
use serde_saphyr::{Location, Spanned};

use super::{
    direct::DirectRule,
    error::{Problem, unknown},
    file::{
        ActionSpec, ChangeSpec, DestinationSpec, DurabilitySpec, File, HttpSpec, MaskSpec,
        MatchSpec, OneOrMany, Ports, RateSpec, RewriteSpec, RuleSpec, TlsSpec,
    },
    http::{HttpMatch, JsonPath, PathPattern},
    rule::{
        Network, Rate, ResourceMatch, Rule, Says, ScopeMatch, Time, TlsRule, Treatment, WebMasks,
    },
};
use crate::{
    glob::Glob,
    mask::{
        ColumnMask, MaskKind, Pattern, PatternMask,
        body::{JsonPath as JsonMaskPath, KeyMask, PathMask},
    },
    operation::{
        Effects, Protocol, ResourceKind, Touch,
        http::{Change, Rewrite},
    },
};

/// Compiles one file after another, collecting what is wrong.
#[derive(Debug, Default)]
pub(super) struct Compiler {
    pub(super) problems: Vec<Problem>,
    pub(super) rules: Vec<Rule>,
    pub(super) tls: Vec<TlsRule>,
    pub(super) direct: Vec<DirectRule>,
    ids: HashMap<String, String>,
    /// A deny without any condition, after which nothing else can match.
    blanket: Option<String>,
}

impl Compiler {
    pub(super) fn add(&mut self, name: &str, file: &File) {
        if let Some(version) = &file.version
            && version.value != 1
        {
            self.problem(
                name,
                version.referenced,
                format!(
                    "version {} of the policy format is not known; 1 is",
                    version.value
                ),
            );
        }
        for rule in &file.rules {
            self.rule(name, rule);
        }
    }

    fn problem(&mut self, file: &str, place: Location, what: impl Into<String>) {
        self.problems.push(Problem::at(file, place, what));
    }

    fn rule(&mut self, file: &str, spanned: &Spanned<RuleSpec>) {
        let spec = &spanned.value;
        let place = spec.id.referenced;
        let id = spec.id.value.clone();
        if id.is_empty() || id == "default" {
            self.problem(
                file,
                place,
                "a rule needs an id of its own; `default` is what no rule matches",
            );
        }
        if let Some(other) = self.ids.insert(id.clone(), file.to_owned()) {
            self.problem(
                file,
                place,
                format!("there is a rule `{id}` already, in {other}; ids are unique"),
            );
        }
        let id: Arc<str> = id.into();
        if let Some(tls) = &spec.tls {
            return self.tls_rule(file, id, spec, tls);
        }
        if spec.udp.is_some() || spec.inbound.is_some() {
            return self.direct_rule(file, id, spec);
        }
        if let Some(source) = &spec.r#match.source {
            let what = "only a rule with `inbound` has a `source`: what an agent begins itself comes from the agent";
            self.problem(file, source.referenced, what);
        }
        let Some(action) = spec.action else {
            return self.problem(
                file,
                place,
                "a rule says what happens: add `action: allow`, `deny` or `hold` (or `tls: intercept`, `passthrough` or `deny`, or `udp` or `inbound`, `allow` or `deny`)",
            );
        };
        let says = match action {
            ActionSpec::Allow => Says::Allow,
            ActionSpec::Deny => Says::Deny,
            ActionSpec::Hold => Says::Hold(self.terms(file, spec.reviewers.as_ref())),
        };
        if let Some(reviewers) = &spec.reviewers
            && action != ActionSpec::Hold
        {
            self.problem(
                file,
                reviewers.referenced,
                "only a rule that holds has reviewers; set `action: hold` or remove them",
            );
        }
        if let (Some(mask), ActionSpec::Deny) = (spec.mask.first(), action) {
            self.problem(file, mask.referenced, "a rule that denies returns nothing to mask; set `action: allow` or remove the mask");
        }
        let matches = &spec.r#match;
        let resources = matches
            .resources
            .as_ref()
            .map(|resources| tables(&resources.value))
            .unwrap_or_default();
        let is_dns = self.dns_only(file, spec);
        let (mut columns, mut patterns, mut web) = (Vec::new(), Vec::new(), WebMasks::default());
        for mask in &spec.mask {
            self.mask(
                file,
                &id,
                &resources,
                mask,
                (&mut columns, &mut patterns, &mut web),
            );
        }
        let rule = Rule {
            scope: self.scope(file, matches),
            names: self.names(file, matches),
            actions: self.globs(file, matches.action.as_ref(), true),
            classes: matches.class.as_ref().map(|spec| self.classes(file, spec)),
            resources: matches
                .resources
                .as_ref()
                .map(|spec| self.resources(file, spec, is_dns)),
            touch: matches
                .touch
                .as_ref()
                .and_then(|spec| self.touch(file, spec)),
            attributes: matches
                .attributes
                .iter()
                .map(|(name, value)| (name.clone(), Glob::new(value)))
                .collect(),
            content: matches
                .content
                .as_ref()
                .and_then(|spec| self.regex(file, spec)),
            http: matches.http.as_ref().map(|spec| self.http(file, spec)),
            dns: matches
                .dns
                .as_ref()
                .map(|spec| self.dns(file, spec, action)),
            time: matches.time.as_ref().and_then(|spec| self.time(file, spec)),
            rate: matches.rate.as_ref().and_then(|spec| {
                Some(Rate {
                    over: spec.value.over,
                    per: self.per(file, spec)?,
                    seen: std::sync::Mutex::default(),
                })
            }),
            says,
            reason: spec.reason.as_str().into(),
            columns,
            patterns,
            web,
            rewrite: spec
                .rewrite
                .as_ref()
                .map(|rewrite| Arc::new(self.rewrite(file, rewrite, action))),
            enforced: spec.enforce.unwrap_or(true),
            strict: spec
                .durability
                .map(|durability| durability == DurabilitySpec::Strict),
            id: id.clone(),
        };
        if let Some(blanket) = &self.blanket
            && !matches!(rule.says, Says::Deny)
        {
            let what = format!("rule `{id}` can never decide: `{blanket}` denies everything");
            self.problem(file, place, what);
        }
        if matches!(rule.says, Says::Deny) && rule.enforced && is_blanket(&rule) {
            self.blanket = Some(id.to_string());
        }
        self.rules.push(rule);
    }

    /// A rule that says what becomes of TLS; nothing is known then but who connects where.
    fn tls_rule(&mut self, file: &str, id: Arc<str>, spec: &RuleSpec, tls: &Spanned<TlsSpec>) {
        let matches = &spec.r#match;
        let more = says_more(spec) || matches.source.is_some();
        if more {
            self.problem(
                file,
                tls.referenced,
                "a rule with `tls` is asked before anything else is known: it matches `agent`, `labels` and `destination` only, and has no `action` or `mask`",
            );
        }
        self.has_no_socket(file, matches, "TLS to a UNIX socket is always refused");
        let rule = TlsRule {
            scope: self.scope(file, matches),
            names: self.names(file, matches),
            treatment: match tls.value {
                TlsSpec::Intercept => Treatment::Intercept,
                TlsSpec::Passthrough => Treatment::Passthrough,
                TlsSpec::Deny => Treatment::Deny,
            },
            reason: spec.reason.as_str().into(),
            id,
        };
        self.tls.push(rule);
    }

    fn http(&mut self, file: &str, spec: &Spanned<HttpSpec>) -> HttpMatch {
        let place = spec.referenced;
        let spec = &spec.value;
        let pairs = |map: &std::collections::BTreeMap<String, String>| {
            map.iter()
                .map(|(name, value)| (name.clone(), Glob::new(value)))
                .collect()
        };
        let mut found = HttpMatch {
            query: pairs(&spec.query),
            headers: pairs(&spec.headers),
            ..HttpMatch::default()
        };
        let paths = spec.path.as_ref().map(OneOrMany::texts);
        let captures: BTreeMap<_, _> = spec
            .captures
            .iter()
            .map(|(name, globs)| (name.clone(), globs.texts()))
            .collect();
        for name in captures.keys() {
            let mut paths = paths.iter().flatten();
            if !paths.any(|path| PathPattern::names(path, name)) {
                let what = format!("no path of this rule has a segment `{{{name}}}`");
                self.problem(file, place, what);
            }
        }
        if let Some(paths) = paths {
            let mut patterns = Vec::new();
            for text in paths {
                match PathPattern::new(&text, &captures) {
                    Ok(pattern) => patterns.push(pattern),
                    Err(what) => self.problem(file, place, what),
                }
            }
            found.paths = Some(patterns);
        }
        for (path, value) in &spec.json {
            match JsonPath::new(path) {
                Ok(path) => found.json.push((path, Glob::new(value))),
                Err(what) => self.problem(file, place, what),
            }
        }
        found.content_types = spec.content_type.as_ref().map(|types| {
            let types = types.texts();
            types
                .iter()
                .map(|text| Glob::new(&text.to_ascii_lowercase()))
                .collect()
        });
        if let Some(size) = &spec.larger_than {
            found.larger_than = bytes(size);
            if found.larger_than.is_none() {
                self.problem(
                    file,
                    place,
                    format!("`{size}` is no size; `512`, `64KiB` and `10MiB` are"),
                );
            }
        }
        found
    }

    /// The time of a count.
    fn per(&mut self, file: &str, spec: &Spanned<RateSpec>) -> Option<Duration> {
        let per = duration(&spec.value.per).filter(|per| !per.is_zero());
        if per.is_none() {
            let what = format!("`{}` is no time; `10s`, `5m`, `1h` are", spec.value.per);
            self.problem(file, spec.referenced, what);
        }
        per
    }

    fn rewrite(&mut self, file: &str, spec: &Spanned<RewriteSpec>, action: ActionSpec) -> Rewrite {
        let place = spec.referenced;
        if action != ActionSpec::Allow {
            self.problem(file, place, "only what a rule allows can be rewritten: what people agree to goes on as they saw it");
        }
        let RewriteSpec { headers, query } = &spec.value;
        let headers = change(headers, str::to_ascii_lowercase);
        for (name, value) in &headers.set {
            let is_name = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            let is_value = value
                .bytes()
                .all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
            if Rewrite::RESERVED.contains(&&**name) {
                let what = format!(
                    "`{name}` says where a request ends or whom it is for; no rule changes it"
                );
                self.problem(file, place, what);
            } else if !is_name || !is_value {
                let what = format!("`{name}` with that value is no header field");
                self.problem(file, place, what);
            }
        }
        for glob in &headers.remove {
            if Rewrite::RESERVED.iter().any(|name| glob.matches(name)) {
                let what = format!(
                    "`{}` would remove what says where a request ends or whom it is for",
                    glob.as_str()
                );
                self.problem(file, place, what);
            }
        }
        let query = change(query, str::to_owned);
        Rewrite { headers, query }
    }

    fn names(&mut self, file: &str, matches: &MatchSpec) -> Option<Vec<Glob>> {
        let spec = matches.destination.as_ref()?.name.as_ref()?;
        let texts = self.texts(file, spec);
        let name = |text: &String| Glob::new(&text.to_ascii_lowercase());
        Some(texts.iter().map(name).collect())
    }

    fn scope(&mut self, file: &str, matches: &MatchSpec) -> ScopeMatch {
        let destination = matches.destination.as_ref();
        ScopeMatch {
            agents: self.globs(file, matches.agent.as_ref(), false),
            labels: matches
                .labels
                .iter()
                .map(|(name, value)| (name.clone(), Glob::new(value)))
                .collect(),
            addresses: destination
                .and_then(|spec| spec.address.as_ref())
                .map(|spec| self.networks(file, spec)),
            ports: destination
                .and_then(|spec| spec.port.as_ref())
                .map(|spec| self.ports(file, spec)),
            sockets: self.sockets(file, matches),
            protocol: matches
                .protocol
                .as_ref()
                .and_then(|spec| self.protocol(file, spec)),
        }
    }

    /// A rule for what UNIX sockets have nothing to do with doesn't match any; `why`, for people.
    fn has_no_socket(&mut self, file: &str, matches: &MatchSpec, why: &str) {
        let destination = matches.destination.as_ref();
        if let Some(spec) = destination.and_then(|spec| spec.socket.as_ref()) {
            self.problem(file, spec.referenced, why);
        }
    }

    /// The UNIX sockets that a rule is for. Nothing has both an address and a path.
    fn sockets(&mut self, file: &str, matches: &MatchSpec) -> Option<Vec<Glob>> {
        let destination = matches.destination.as_ref()?;
        let spec = destination.socket.as_ref()?;
        let DestinationSpec {
            name,
            address,
            port,
            socket: _,
        } = destination;
        if name.is_some() || address.is_some() || port.is_some() {
            let what = "a UNIX socket has no `name`, `address` or `port`: no destination has both, so make two rules of it";
            self.problem(file, spec.referenced, what);
        }
        let texts = self.texts(file, spec);
        for text in &texts {
            if !text.starts_with('/') && !text.starts_with('*') {
                let what = format!(
                    "`{text}` is no path of a UNIX socket; `/run/docker.sock` and `*/podman.sock` are"
                );
                self.problem(file, spec.referenced, what);
            }
        }
        Some(texts.iter().map(|text| Glob::new(text)).collect())
    }

    fn mask(
        &mut self,
        file: &str,
        id: &Arc<str>,
        tables: &[String],
        spec: &Spanned<MaskSpec>,
        (columns, patterns, web): (&mut Vec<ColumnMask>, &mut Vec<PatternMask>, &mut WebMasks),
    ) {
        let place = spec.referenced;
        let with = match &spec.value.with {
            None => None,
            // YAML reads `with: null` as no value; here it is the name of a mask.
            Some(None) => Some(MaskKind::Null),
            Some(Some(name)) => match MaskKind::named(name) {
                Some(kind) => Some(kind),
                None => {
                    return self.problem(
                        file,
                        place,
                        unknown("mask", name, MaskKind::NAMES.iter().map(|(name, _)| *name)),
                    );
                }
            },
        };
        let MaskSpec {
            column,
            json,
            key,
            header,
            pattern,
            strict,
            ..
        } = &spec.value;
        let redact = with.unwrap_or(MaskKind::Redact);
        let named = |name: &str| KeyMask {
            name: Glob::new(&name.to_lowercase()),
            with: redact,
        };
        let given = [column, json, key, header, pattern];
        if given.iter().filter(|what| what.is_some()).count() != 1 {
            return self.problem(
                file,
                place,
                "a mask is for a `column`, a `json` path, a `key`, a `header` or a `pattern`, one of them",
            );
        }
        if column.is_none() {
            web.strict |= strict;
        }
        if let Some(path) = json {
            match JsonMaskPath::new(path) {
                Ok(path) => web.paths.push(PathMask { path, with: redact }),
                Err(what) => self.problem(file, place, what),
            }
        }
        web.keys.extend(key.as_deref().map(named));
        web.headers.extend(header.as_deref().map(named));
        match (column, pattern) {
            (Some(column), None) => {
                let with = with.unwrap_or(MaskKind::Redact);
                columns.push(ColumnMask::new(id, tables, column, with, spec.value.strict));
            }
            (None, Some(name)) => match Pattern::named(name) {
                Some(pattern) => {
                    patterns.push(PatternMask {
                        rule: id.clone(),
                        pattern,
                        with: with.unwrap_or(pattern.usual()),
                    });
                }
                None => self.problem(
                    file,
                    place,
                    unknown(
                        "pattern",
                        name,
                        Pattern::NAMES.iter().map(|(name, _)| *name),
                    ),
                ),
            },
            _ => {}
        }
    }

    /// The patterns of a list, which may not be empty: such a rule would never match.
    fn globs(
        &mut self,
        file: &str,
        spec: Option<&Spanned<OneOrMany>>,
        uppercase: bool,
    ) -> Option<Vec<Glob>> {
        let spec = spec?;
        let texts = self.texts(file, spec);
        Some(
            texts
                .iter()
                .map(|text| {
                    if uppercase {
                        Glob::new(&text.to_ascii_uppercase())
                    } else {
                        Glob::new(text)
                    }
                })
                .collect(),
        )
    }

    fn texts(&mut self, file: &str, spec: &Spanned<OneOrMany>) -> Vec<String> {
        let texts = spec.value.texts();
        if texts.is_empty() {
            self.problem(
                file,
                spec.referenced,
                "an empty list matches nothing; leave the line out to match everything",
            );
        }
        texts
    }

    fn networks(&mut self, file: &str, spec: &Spanned<OneOrMany>) -> Vec<Network> {
        let texts = self.texts(file, spec);
        let mut networks = Vec::new();
        for text in texts {
            match network(&text) {
                Some(network) => networks.push(network),
                None => self.problem(
                    file,
                    spec.referenced,
                    format!("`{text}` is no address; `192.0.2.0/24` and `2001:db8::1` are"),
                ),
            }
        }
        networks
    }

    fn ports(&mut self, file: &str, spec: &Spanned<Ports>) -> Vec<RangeInclusive<u16>> {
        let mut ranges = Vec::new();
        let mut open = vec![spec.value.clone()];
        while let Some(ports) = open.pop() {
            match ports {
                Ports::Number(port) => ranges.push(port..=port),
                Ports::Many(many) => open.extend(many),
                Ports::Range(text) => {
                    let range = text.split_once('-').and_then(|(from, to)| {
                        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
                    });
                    match range {
                        Some((from, to)) if from <= to => ranges.push(from..=to),
                        _ => self.problem(
                            file,
                            spec.referenced,
                            format!("`{text}` is no range of ports; `5432-5440` is"),
                        ),
                    }
                }
            }
        }
        if ranges.is_empty() && self.problems.is_empty() {
            self.problem(
                file,
                spec.referenced,
                "an empty list matches nothing; leave the line out to match everything",
            );
        }
        ranges
    }

    fn protocol(&mut self, file: &str, spec: &Spanned<String>) -> Option<Protocol> {
        let found = Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.name() == spec.value);
        if found.is_none() {
            let what = unknown(
                "protocol",
                &spec.value,
                Protocol::ALL.into_iter().map(Protocol::name),
            );
            self.problem(file, spec.referenced, what);
        }
        found
    }

    fn classes(&mut self, file: &str, spec: &Spanned<OneOrMany>) -> Effects {
        let mut classes = Effects::empty();
        for name in self.texts(file, spec) {
            match Effects::named(&name) {
                Some(effect) => classes |= effect,
                None => {
                    let what = unknown(
                        "class",
                        &name,
                        Effects::NAMES.into_iter().map(|(_, name)| name),
                    );
                    self.problem(file, spec.referenced, what);
                }
            }
        }
        classes
    }

    /// `dns`: the rule is for DNS alone.
    fn resources(
        &mut self,
        file: &str,
        spec: &Spanned<OneOrMany>,
        dns: bool,
    ) -> Vec<ResourceMatch> {
        const KINDS: [(&str, ResourceKind); 11] = [
            ("url", ResourceKind::Url),
            ("name", ResourceKind::Name),
            ("table", ResourceKind::Table),
            ("function", ResourceKind::Function),
            ("object", ResourceKind::Object),
            ("database", ResourceKind::Database),
            ("role", ResourceKind::Role),
            ("setting", ResourceKind::Setting),
            ("file", ResourceKind::File),
            ("program", ResourceKind::Program),
            ("channel", ResourceKind::Channel),
        ];
        let texts = self.texts(file, spec);
        let mut out = Vec::new();
        for text in texts {
            let (kind, pattern) = match text.split_once(':') {
                None if dns => (ResourceKind::Name, &*text),
                None => (ResourceKind::Table, &*text),
                Some((kind, pattern)) => match KINDS.iter().find(|(name, _)| *name == kind) {
                    Some((_, kind)) => (*kind, pattern),
                    None => {
                        let what = unknown(
                            "kind of resource",
                            kind,
                            KINDS.iter().map(|(name, _)| *name),
                        );
                        self.problem(file, spec.referenced, what);
                        continue;
                    }
                },
            };
            if dns && kind != ResourceKind::Name {
                let what = format!(
                    "`{text}`: what is asked of the DNS are names; `name:*.example.com` is one, `*.example.com` as well"
                );
                self.problem(file, spec.referenced, what);
            }
            let dotted = matches!(kind, ResourceKind::Table | ResourceKind::Function);
            // As names are compared.
            let lower;
            let pattern = match kind {
                ResourceKind::Name => {
                    lower = pattern.to_ascii_lowercase();
                    lower
                        .strip_suffix('.')
                        .filter(|name| !name.is_empty())
                        .unwrap_or(&lower)
                }
                _ => pattern,
            };
            let (namespace, name) = match pattern.rsplit_once('.') {
                Some((namespace, name)) if dotted => (namespace, name),
                _ => ("*", pattern),
            };
            out.push(ResourceMatch {
                kind,
                namespace: Glob::new(namespace),
                name: Glob::new(name),
            });
        }
        out
    }

    fn touch(&mut self, file: &str, spec: &Spanned<String>) -> Option<Touch> {
        match &*spec.value {
            "read" => Some(Touch::Read),
            "write" => Some(Touch::Write),
            other => {
                self.problem(
                    file,
                    spec.referenced,
                    unknown("touch", other, ["read", "write"].into_iter()),
                );
                None
            }
        }
    }

    fn regex(&mut self, file: &str, spec: &Spanned<String>) -> Option<Regex> {
        match Regex::new(&spec.value) {
            Ok(regex) => Some(regex),
            Err(error) => {
                let text = error.to_string();
                let last = text
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ");
                self.problem(
                    file,
                    spec.referenced,
                    format!("`{}` is no regular expression: {last}", spec.value),
                );
                None
            }
        }
    }

    fn time(&mut self, file: &str, spec: &Spanned<super::file::TimeSpec>) -> Option<Time> {
        const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let mut days = 0;
        for day in &spec.value.days {
            match DAYS.iter().position(|known| known == day) {
                Some(index) => days |= 1 << index,
                None => self.problem(file, spec.referenced, unknown("day", day, DAYS.into_iter())),
            }
        }
        let minutes = match &spec.value.hours {
            None => Some((0, 1_440)),
            Some(text) => text
                .split_once('-')
                .and_then(|(from, to)| Some((minute(from)?, minute(to)?)))
                .filter(|(from, to)| from != to),
        };
        if minutes.is_none() {
            self.problem(
                file,
                spec.referenced,
                "the hours are no span of time; `09:00-17:30` (UTC) is",
            );
        }
        Some(Time {
            days: if days == 0 { 0x7F } else { days },
            minutes: minutes?,
        })
    }
}

/// Whether a rule says more than whom it is for and where to, apart from what becomes of it.
fn says_more(spec: &RuleSpec) -> bool {
    let RuleSpec {
        id: _,
        r#match,
        action,
        tls,
        udp,
        inbound,
        reason: _,
        reviewers,
        mask,
        rewrite,
        enforce,
        durability,
    } = spec;
    let MatchSpec {
        agent: _,
        labels: _,
        destination: _,
        source: _,
        protocol,
        action: actions,
        class,
        resources,
        touch,
        attributes,
        content,
        http,
        dns,
        time,
        rate,
    } = r#match;
    let ways = [tls.is_some(), udp.is_some(), inbound.is_some()];
    ways.into_iter().filter(|given| *given).count() > 1
        || action.is_some()
        || reviewers.is_some()
        || !mask.is_empty()
        || rewrite.is_some()
        || enforce.is_some()
        || durability.is_some()
        || protocol.is_some()
        || actions.is_some()
        || class.is_some()
        || resources.is_some()
        || touch.is_some()
        || !attributes.is_empty()
        || content.is_some()
        || http.is_some()
        || dns.is_some()
        || time.is_some()
        || rate.is_some()
}

/// The tables among the resources that a rule names, for its masks.
fn tables(resources: &OneOrMany) -> Vec<String> {
    let table = |text: String| match text.split_once(':') {
        None => Some(text),
        Some(("table", pattern)) => Some(pattern.to_owned()),
        Some(_) => None,
    };
    resources.texts().into_iter().filter_map(table).collect()
}

fn is_blanket(rule: &Rule) -> bool {
    let Rule {
        scope,
        names,
        actions,
        classes,
        resources,
        touch,
        attributes,
        content,
        http,
        dns,
        time,
        rate,
        ..
    } = rule;
    let ScopeMatch {
        agents,
        labels,
        addresses,
        ports,
        sockets,
        protocol,
    } = scope;
    agents.is_none()
        && labels.is_empty()
        && addresses.is_none()
        && sockets.is_none()
        && ports.is_none()
        && protocol.is_none()
        && names.is_none()
        && actions.is_none()
        && classes.is_none()
        && resources.is_none()
        && touch.is_none()
        && attributes.is_empty()
        && content.is_none()
        && http.is_none()
        && dns.is_none()
        && time.is_none()
        && rate.is_none()
}

fn network(text: &str) -> Option<Network> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix_bits = prefix.unwrap_or(most);
    (prefix_bits <= most).then_some(Network {
        address,
        prefix_bits,
    })
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    (hour < 24 && minute < 60 || (hour, minute) == (24, 0)).then_some(hour * 60 + minute)
}

fn change(spec: &ChangeSpec, named: fn(&str) -> String) -> Change {
    let set = spec.set.iter();
    let remove = spec.remove.iter();
    Change {
        set: set
            .map(|(name, value)| (named(name).into(), value.as_str().into()))
            .collect(),
        remove: remove.map(|name| Glob::new(&named(name))).collect(),
    }
}

/// `512`, `64KiB`, `10MiB`, `1GiB`.
fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u32); 3] = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    for (unit, shift) in UNITS {
        if let Some(number) = text.strip_suffix(unit) {
            return number.trim().parse::<u64>().ok()?.checked_mul(1 << shift);
        }
    }
    text.parse().ok()
}

/// `90s`, `15m`, `2h`, `1d`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "s" => number,
        "m" => number.checked_mul(60)?,
        "h" => number.checked_mul(3_600)?,
        "d" => number.checked_mul(86_400)?,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}
