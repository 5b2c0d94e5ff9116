//! From a request to the operation that it is.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use bytes::{Bytes, BytesMut};
use regex::bytes::Regex;

use super::head::{Malformed, RequestHead};
use crate::operation::{
    Description, Effects, Operation, Protocol, Resource, ResourceKind, Touch, attribute,
    http::{Body, Fields, HttpRequest, percent_decoded},
};

/// What is known of the connection that requests come on.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// TLS is on it.
    pub secure: bool,
    /// Where it goes.
    pub address: Option<IpAddr>,
    /// It goes to a UNIX socket, which has no name that a request could ask for.
    pub nameless: bool,
    /// Names that the destination has proved to have.
    pub names: Vec<Box<str>>,
    /// Names that its certificate is for, wildcards included, lower case.
    pub certified: Arc<[Box<str>]>,
}

/// A request, before it is described.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a [u8],
    /// The target: a path with its query, an absolute URI, `*`, or an authority.
    pub target: &'a [u8],
    /// The authority that stands apart from the fields (`:authority` of HTTP/2).
    pub authority: Option<&'a [u8]>,
    /// `1.0`, `1.1` or `2`.
    pub version: &'static str,
    /// The header fields.
    pub fields: &'a Fields,
}

/// A request in parts.
#[derive(Debug, Clone)]
pub struct Described {
    /// What it does.
    pub description: Arc<Description>,
    /// Where in the target the query is.
    pub query: Option<Bytes>,
    /// The protocol that it wants to go on with.
    pub upgrade: Option<Upgrade>,
    /// It asks a container engine for a stream in both directions, which Podman's client does without an upgrade.
    pub takes_over: bool,
}

/// A protocol that a request wants to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// As the request names it, lower case.
    pub name: Box<str>,
    /// What is known of it.
    pub to: Beyond,
}

/// What is behind an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// Messages of WebSocket.
    WebSocket,
    /// HTTP/2 whose first stream answers this very request (RFC 7540, section 3.2). It isn't passed on, and servers
    /// answer in HTTP/1.
    AnswerInHttp2,
    /// HTTP/2 from its preface on, which either side may send: Docker's engine asks its client by `/session`, and is
    /// asked by `/grpc`.
    Http2,
    /// Bytes.
    Unknown,
}

impl Upgrade {
    fn of(fields: &Fields) -> Option<Self> {
        let value = fields
            .get("upgrade")
            .filter(|_| fields.lists("connection", "upgrade"))?;
        let name = String::from_utf8_lossy(value)
            .to_ascii_lowercase()
            .into_boxed_str();
        let to = match &*name {
            "websocket" => Beyond::WebSocket,
            // Without its settings no server may take it for RFC 7540's.
            "h2c" if fields.get("http2-settings").is_none() => Beyond::Http2,
            "h2c" => Beyond::AnswerInHttp2,
            _ => Beyond::Unknown,
        };
        Some(Self { name, to })
    }
}

/// Says what a request does.
///
/// # Errors
/// When two servers could take it for two things.
pub fn describe(asked: &Asked<'_>, context: &Context) -> Result<Described, Malformed> {
    let method = std::str::from_utf8(asked.method)
        .map_err(|_| Malformed::new("a method that isn't ASCII"))?;
    let target = Target::read(method, asked.target)?;
    let host = host(asked, &target, context)?;
    let path = match target.path {
        Some(path) => Some(normal_path(path)?),
        None => None,
    };
    let upgrade = Upgrade::of(asked.fields);
    let mut actions: Vec<Box<str>> = vec![method.into()];
    let mut effects = effects(method);
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ] {
        // Frameworks take this for the method: it is both until somebody knows.
        for value in asked.fields.all(name) {
            let value = String::from_utf8_lossy(value).to_ascii_uppercase();
            effects |= self::effects(&value);
            if !actions.iter().any(|action| **action == *value) {
                actions.push(value.into());
            }
        }
    }
    match upgrade.as_ref().map(|upgrade| upgrade.to) {
        None | Some(Beyond::AnswerInHttp2) => {}
        Some(Beyond::WebSocket) => effects |= Effects::WRITE,
        Some(Beyond::Http2 | Beyond::Unknown) => effects |= Effects::UNCLASSIFIED,
    }
    let takes_over = context.nameless
        && method == "POST"
        && upgrade.is_none()
        && path.as_deref().is_some_and(takes_over);
    if takes_over {
        effects |= Effects::UNCLASSIFIED;
    }
    let mut attributes: BTreeMap<Box<str>, Box<str>> = BTreeMap::new();
    attributes.insert("http.version".into(), asked.version.into());
    let scheme = if context.secure { "https" } else { "http" };
    attributes.insert("http.scheme".into(), scheme.into());
    if let Some(path) = &path {
        attributes.insert(attribute::HTTP_PATH.into(), path.as_str().into());
    }
    if let Some(upgrade) = &upgrade {
        attributes.insert("http.upgrade".into(), upgrade.name.clone());
    }
    if let Some(host) = &host {
        if let Some(why) = context.is_fronted(host) {
            effects |= Effects::UNCLASSIFIED;
            attributes.insert(attribute::HTTP_FRONTING.into(), why.into());
        }
        attributes.insert(attribute::HTTP_HOST.into(), host.as_str().into());
    }
    let touch = if effects.intersects(Effects::all().difference(Effects::READ)) {
        Touch::Write
    } else {
        Touch::Read
    };
    let resource = Resource {
        kind: ResourceKind::Url,
        namespace: None,
        name: format!(
            "{}{}",
            host.as_deref().unwrap_or_default(),
            path.as_deref().unwrap_or_default()
        )
        .into(),
        touch,
    };
    Ok(Described {
        description: Arc::new(Description {
            actions: actions.into(),
            effects,
            resources: [resource].into(),
            attributes,
        }),
        query: target.query.map(Bytes::copy_from_slice),
        upgrade,
        takes_over,
    })
}

/// Whether this is a path by which container engines are asked for a stream: of a container, or of a command in one.
fn takes_over(path: &str) -> bool {
    path.ends_with("/attach") || path.ends_with("/start") && path.contains("/exec/")
}

/// The operation that a described request is; `content` is how it is shown and recorded.
#[must_use]
pub fn operation(described: &Described, fields: Fields, body: Body, content: Bytes) -> Operation {
    Operation {
        protocol: Protocol::Http,
        description: described.description.clone(),
        content,
        parameters: [].into(),
        options: Vec::new(),
        http: Some(Arc::new(HttpRequest {
            fields,
            query: described.query.clone(),
            body,
        })),
    }
}

/// The operation that an example is: `POST https://host/path`, then header fields, an empty line and the
/// body. For the cases that policies are tested with.
#[must_use]
pub fn example(text: &str) -> Option<Operation> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, url) = lines.next()?.split_once(' ')?;
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let target = rest
        .get(authority.len()..)
        .filter(|target| target.starts_with('/'));
    let mut raw = format!(
        "{method} {} HTTP/1.1\r\nHost: {authority}\r\n",
        target.unwrap_or("/")
    );
    for line in lines {
        raw.push_str(&format!("{line}\r\n"));
    }
    raw.push_str("\r\n");
    let raw = Bytes::from(raw);
    let head = RequestHead::read(&raw).ok()?;
    let context = Context {
        secure: scheme == "https",
        names: vec![authority.split(':').next()?.to_ascii_lowercase().into()],
        ..Context::default()
    };
    let asked = Asked {
        method: raw.get(head.method.clone())?,
        target: raw.get(head.target.clone())?,
        authority: None,
        version: "1.1",
        fields: &head.fields,
    };
    let described = describe(&asked, &context).ok()?;
    let content = [&*recorded(&head.fields), body.as_bytes()].concat();
    let body = match body {
        "" => Body::None,
        body => Body::Whole(Bytes::copy_from_slice(body.as_bytes())),
    };
    Some(operation(&described, head.fields, body, content.into()))
}

fn effects(method: &str) -> Effects {
    match method {
        "GET" | "HEAD" | "OPTIONS" | "PROPFIND" | "REPORT" | "SEARCH" | "QUERY" => Effects::READ,
        "POST" | "PUT" | "PATCH" | "DELETE" | "MKCOL" | "COPY" | "MOVE" | "PROPPATCH" | "LOCK"
        | "UNLOCK" | "MKCALENDAR" | "LINK" | "UNLINK" => Effects::WRITE,
        "CONNECT" => Effects::TRANSFER,
        _ => Effects::UNCLASSIFIED,
    }
}

impl Context {
    /// Why a request for `host` isn't one for the server that the connection was made to.
    fn is_fronted(&self, host: &str) -> Option<String> {
        if !self.secure {
            return None;
        }
        let own = self.names.iter().any(|name| **name == *host)
            || self.certified.iter().any(|name| covers(name, host))
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| Some(address.to_canonical()) == self.address);
        (!own).then(|| {
            let name = self.names.first().map_or("an address", |name| name);
            format!("the connection is to {name}, the request is for {host}")
        })
    }
}

/// Whether a certificate for `name` is one for `host` (RFC 9525, section 6.3).
fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => name == host,
    }
}

/// A request's target (RFC 9112, section 3.2).
#[derive(Debug, Default)]
pub(super) struct Target<'a> {
    authority: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    pub(super) query: Option<&'a [u8]>,
}

impl<'a> Target<'a> {
    pub(super) fn read(method: &str, target: &'a [u8]) -> Result<Self, Malformed> {
        if !target.iter().all(|byte| matches!(byte, b'!'..=b'~')) {
            return Err(Malformed::new(
                "a target with characters that have to be percent-encoded",
            ));
        }
        if target.iter().any(|byte| matches!(byte, b'#' | b'\\')) {
            return Err(Malformed::new("a target with `#` or `\\`"));
        }
        if method == "CONNECT" {
            return Ok(Self {
                authority: Some(target),
                ..Self::default()
            });
        }
        if target == b"*" {
            return if method == "OPTIONS" {
                Ok(Self::default())
            } else {
                Err(Malformed::new(
                    "the target `*` of a method other than OPTIONS",
                ))
            };
        }
        let (authority, rest) = if target.starts_with(b"/") {
            (None, target)
        } else {
            let text = target.get(..8).unwrap_or(target).to_ascii_lowercase();
            let skip = if text.starts_with(b"http://") {
                7
            } else if text.starts_with(b"https://") {
                8
            } else {
                return Err(Malformed::new("a target that is neither a path nor a URI"));
            };
            let rest = target.get(skip..).unwrap_or_default();
            let end = rest
                .iter()
                .position(|byte| matches!(byte, b'/' | b'?'))
                .unwrap_or(rest.len());
            let (authority, rest) = rest.split_at_checked(end).unwrap_or_default();
            (Some(authority), rest)
        };
        let (path, query) = match memchr::memchr(b'?', rest) {
            Some(at) => (rest.get(..at), rest.get(at + 1..)),
            None => (Some(rest), None),
        };
        let path = path.unwrap_or_default();
        Ok(Self {
            authority,
            path: Some(if path.is_empty() { b"/" } else { path }),
            query,
        })
    }
}

/// The one host that a request is for, lower case, without a port.
fn host(
    asked: &Asked<'_>,
    target: &Target<'_>,
    context: &Context,
) -> Result<Option<String>, Malformed> {
    let mut hosts = asked.fields.all("host");
    let field = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::new("more than one Host"));
    }
    if field.is_none() && asked.version == "1.1" {
        return Err(Malformed::new("no Host"));
    }
    if asked
        .fields
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case(b":authority"))
    {
        return Err(Malformed::new("a pseudo-header among the fields"));
    }
    // RFC 9112 has who speaks of no host say so with an empty field, as Docker's client does up to version 24. Where
    // there are hosts to choose from, it would be for the server to say which one is meant.
    let field = field.filter(|field| !(context.nameless && field.is_empty()));
    let mut found: Option<(String, Option<u16>)> = None;
    for authority in [target.authority, asked.authority, field]
        .into_iter()
        .flatten()
    {
        let read = read_authority(authority)?;
        match &found {
            Some(before) if *before != read => {
                return Err(Malformed::new(
                    "two hosts that differ: in the target and in Host",
                ));
            }
            _ => found = Some(read),
        }
    }
    Ok(found.map(|(host, _)| host))
}

/// `host[:port]`, nothing else.
fn read_authority(authority: &[u8]) -> Result<(String, Option<u16>), Malformed> {
    let wrong = || Malformed::new("a Host that is no host name or address, with or without a port");
    let text = std::str::from_utf8(authority).map_err(|_| wrong())?;
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(wrong)?;
            let address: std::net::Ipv6Addr = address.parse().map_err(|_| wrong())?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or_else(wrong)?),
            };
            (address.to_string(), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            let fits =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            if host.is_empty() || host.len() > 255 || !host.bytes().all(fits) {
                return Err(wrong());
            }
            (host.trim_end_matches('.').to_ascii_lowercase(), port)
        }
    };
    let port = match port {
        None | Some("") => None,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(port.parse::<u16>().map_err(|_| wrong())?)
        }
        Some(_) => return Err(wrong()),
    };
    Ok((host, port))
}

/// The path as every server understands it: percent-encoding off where it means the same, slashes once.
fn normal_path(path: &[u8]) -> Result<String, Malformed> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let Some((digits, after)) = rest.split_at_checked(2) else {
            return Err(Malformed::new("a path with half of a percent-encoding"));
        };
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(Malformed::new("a path with `%` that encodes nothing"));
        }
        rest = after;
        match percent_decoded(&[b"%", digits].concat(), false).first() {
            Some(0) => return Err(Malformed::new("a path with a NUL")),
            Some(b'\\') => return Err(Malformed::new("a path with an encoded `\\`")),
            // To some servers it parts segments, to others it doesn't.
            Some(b'/') => decoded.extend_from_slice(b"%2F"),
            Some(b'%') => decoded.extend_from_slice(b"%25"),
            Some(byte) => decoded.push(*byte),
            None => {}
        }
    }
    let text = String::from_utf8(decoded)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let mut out = String::with_capacity(text.len());
    for segment in text.split('/').skip(1) {
        // A parameter behind a segment doesn't change what a server takes the dots for.
        let bare = segment.split(';').next().unwrap_or_default();
        if matches!(bare, "." | "..") || segment.split("%2F").any(|part| matches!(part, "." | ".."))
        {
            return Err(Malformed::new(
                "a path with `.` or `..` for a segment, which servers resolve differently",
            ));
        }
        if !segment.is_empty() || out.is_empty() && text.len() <= 1 {
            out.push('/');
            out.push_str(segment);
        }
    }
    if out.is_empty() || (text.ends_with('/') && !out.ends_with('/')) {
        out.push('/');
    }
    Ok(out)
}

/// The bytes of a head as they are recorded: without the values that are secrets.
#[must_use]
pub fn recorded(fields: &Fields) -> Bytes {
    let raw = fields.raw();
    let secret = |(name, _): &(&[u8], &[u8])| is_secret(name);
    if !fields.iter().any(|field| secret(&field)) {
        return raw.clone();
    }
    let mut out = BytesMut::with_capacity(raw.len());
    let mut done = 0;
    for ((name, value), (_, place)) in fields.iter().zip(fields.places()) {
        if is_secret(name) && !value.is_empty() {
            out.extend_from_slice(raw.get(done..place.start).unwrap_or_default());
            // The scheme isn't secret, and tells who should have had a placeholder.
            if name.ends_with(b"uthorization")
                && let Some(space) = memchr::memchr(b' ', value)
            {
                out.extend_from_slice(value.get(..=space).unwrap_or_default());
            }
            out.extend_from_slice(b"[redacted]");
            done = place.end;
        }
    }
    out.extend_from_slice(raw.get(done..).unwrap_or_default());
    out.freeze()
}

/// Whether the values of fields with this name are credentials, which no record may hold.
#[must_use]
pub fn is_secret(name: &[u8]) -> bool {
    static SECRET: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let names = "authorization|cookie|token|secret|password|api-?key|credential|auth-key";
        Regex::new(&format!("(?i-u){names}")).ok()
    });
    // Without the expression, which is known to be one, nothing is shown.
    SECRET.as_ref().is_none_or(|names| names.is_match(name))
}
