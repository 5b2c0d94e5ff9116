//! What an HTTP request says, for those who decide it. The framing of each version is taken off.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use crate::glob::Glob;

/// Header fields in their order and spelling, as places in the bytes they came in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    raw: Bytes,
    places: Arc<[(Range<usize>, Range<usize>)]>,
}

impl Fields {
    /// The fields at `places` (name and value each) of `raw`.
    #[must_use]
    pub fn new(raw: Bytes, places: Vec<(Range<usize>, Range<usize>)>) -> Self {
        Self {
            raw,
            places: places.into(),
        }
    }

    /// The bytes they came in.
    #[must_use]
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Name and value of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let part = |range: &Range<usize>| self.raw.get(range.clone()).unwrap_or_default();
        self.places
            .iter()
            .map(move |(name, value)| (part(name), part(value)))
    }

    /// Where name and value of each are in [`Fields::raw`].
    #[must_use]
    pub fn places(&self) -> &[(Range<usize>, Range<usize>)] {
        &self.places
    }

    /// The values of all fields called `name`, in order.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The value of the first field called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// Whether a list in fields called `name` holds `token`, whatever its case.
    #[must_use]
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| {
            value
                .split(|byte| *byte == b',')
                .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    }
}

/// A request, as rules see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpRequest {
    /// Its header fields.
    pub fields: Fields,
    /// The query behind the path, without the `?`.
    pub query: Option<Bytes>,
    /// Its body, where all of it is there.
    pub body: Body,
}

/// Parts of a request that a rule changes before it goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Header fields; names in lower case.
    pub headers: Change,
    /// Parameters of the query.
    pub query: Change,
}

/// Named values that are set or left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Names and the values they get; whatever a request has under them is left out.
    pub set: Vec<(Box<str>, Box<str>)>,
    /// Names that are left out.
    pub remove: Vec<Glob>,
}

impl Change {
    /// Whether what has this name doesn't go on as it is.
    #[must_use]
    pub fn replaces(&self, name: &str) -> bool {
        self.set.iter().any(|(known, _)| **known == *name)
            || self.remove.iter().any(|glob| glob.matches(name))
    }

    fn summary<'a>(&'a self, what: &'a str) -> impl Iterator<Item = String> + 'a {
        let set = self.set.iter();
        let set = set.map(move |(name, _)| format!("set {what} {name}"));
        let removed = self.remove.iter();
        set.chain(removed.map(move |glob| format!("removed {what} {}", glob.as_str())))
    }
}

impl Rewrite {
    /// Names of fields that no rule may change: they say where the request ends, or whom it is for.
    pub const RESERVED: [&str; 10] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "expect",
        "keep-alive",
        "proxy-connection",
    ];

    /// What it does, in a line for the record: names only.
    #[must_use]
    pub fn summary(&self) -> String {
        let headers = self.headers.summary("header");
        let all: Vec<_> = headers.chain(self.query.summary("query")).collect();
        all.join(", ")
    }
}

/// A request's body, as far as it is there when the request is decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    #[default]
    None,
    /// It is still to come; its length where the head says it.
    Coming(Option<u64>),
    /// All of it.
    Whole(Bytes),
}

impl HttpRequest {
    /// The media type of the body, lower case, without parameters.
    #[must_use]
    pub fn content_type(&self) -> Option<String> {
        let value = self.fields.get("content-type")?;
        let media = value.split(|byte| *byte == b';').next()?.trim_ascii();
        Some(String::from_utf8_lossy(media).to_ascii_lowercase())
    }

    /// The values of the query parameter `name`, percent-decoded.
    #[must_use]
    pub fn query_values(&self, name: &str) -> Vec<String> {
        let Some(query) = &self.query else {
            return Vec::new();
        };
        let pairs = query.split(|byte| *byte == b'&').map(|pair| {
            let (key, value) = match memchr::memchr(b'=', pair) {
                Some(at) => (
                    pair.get(..at).unwrap_or_default(),
                    pair.get(at + 1..).unwrap_or_default(),
                ),
                None => (pair, &b""[..]),
            };
            (percent_decoded(key, true), percent_decoded(value, true))
        });
        pairs
            .filter(|(key, _)| *key == name.as_bytes())
            .map(|(_, value)| String::from_utf8_lossy(&value).into_owned())
            .collect()
    }
}

/// `text` with its percent-encoding taken off, and in forms `+` for a space.
#[must_use]
pub fn percent_decoded(text: &[u8], form: bool) -> Vec<u8> {
    let hexadecimal = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let ahead = rest.as_slice();
                match (hexadecimal(ahead.first()), hexadecimal(ahead.get(1))) {
                    (Some(high), Some(low)) => {
                        out.push((high << 4 | low) as u8);
                        rest = ahead.get(2..).unwrap_or_default().iter();
                    }
                    _ => out.push(b'%'),
                }
            }
            b'+' if form => out.push(b' '),
            byte => out.push(*byte),
        }
    }
    out
}

/// `text` as it stands in a query: everything but unreserved characters (RFC 3986, section 2.3) is
/// percent-encoded.
pub fn percent_encode(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(*byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}
