//! What a rule can ask of an HTTP request, apart from its method and host.

use std::{collections::BTreeMap, fmt};

use regex::Regex;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::rule::Unmet;
use crate::{
    glob::Glob,
    operation::{
        Operation, attribute,
        http::{Body, HttpRequest},
    },
};

/// Conditions on an HTTP request; all of them have to hold.
#[derive(Debug, Default)]
pub(super) struct HttpMatch {
    pub(super) paths: Option<Vec<PathPattern>>,
    pub(super) query: Vec<(String, Glob)>,
    pub(super) headers: Vec<(String, Glob)>,
    pub(super) json: Vec<(JsonPath, Glob)>,
    pub(super) content_types: Option<Vec<Glob>>,
    /// Bytes of body that are too few for the rule.
    pub(super) larger_than: Option<u64>,
}

/// A path: `*` stands for any text, `{name}` for one segment, which is further limited by what the rule says
/// of that name.
#[derive(Debug)]
pub(super) struct PathPattern {
    pub(super) text: Box<str>,
    expression: Regex,
}

impl PathPattern {
    pub(super) fn new(
        pattern: &str,
        captures: &BTreeMap<String, Vec<String>>,
    ) -> Result<Self, String> {
        if !pattern.starts_with('/') && !pattern.starts_with('*') {
            return Err(format!(
                "`{pattern}` is no path; `/v1/users/{{id}}` and `/docs/*` are"
            ));
        }
        let mut expression = String::from("(?s)^");
        let mut rest = pattern;
        while let Some(character) = rest.chars().next() {
            rest = rest.get(character.len_utf8()..).unwrap_or_default();
            match character {
                '*' => expression.push_str(".*"),
                '{' => {
                    let (name, after) = rest.split_once('}').unwrap_or_default();
                    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
                    if name.is_empty() || !name.bytes().all(fits) {
                        return Err(format!("`{pattern}`: a segment is named like `{{id}}`"));
                    }
                    match captures.get(name) {
                        // Part of the expression rather than asked of what it captured: whatever way there
                        // is to read the path so is found.
                        Some(globs) => {
                            let globs: Vec<_> = globs.iter().map(|glob| segment(glob)).collect();
                            expression.push_str(&format!("(?:{})", globs.join("|")));
                        }
                        None => expression.push_str("[^/]+"),
                    }
                    rest = after;
                }
                other => expression.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
            }
        }
        expression.push('$');
        Regex::new(&expression)
            .map(|expression| Self {
                text: pattern.into(),
                expression,
            })
            .map_err(|error| error.to_string())
    }

    fn matches(&self, path: &str) -> bool {
        self.expression.is_match(path)
    }

    /// Whether `pattern` has a segment called `name`.
    pub(super) fn names(pattern: &str, name: &str) -> bool {
        pattern.contains(&format!("{{{name}}}"))
    }
}

/// What a glob for one segment of a path is as an expression.
fn segment(glob: &str) -> String {
    let parts = glob.chars().map(|character| match character {
        '*' => "[^/]*".to_owned(),
        '?' => "[^/]".to_owned(),
        other => regex::escape(other.encode_utf8(&mut [0; 4])),
    });
    parts.collect()
}

impl HttpMatch {
    /// Whether it asks for something that only the body tells.
    pub(super) const fn looks_at_body(&self) -> bool {
        !self.json.is_empty()
    }

    /// Whether it asks for something that isn't in the description.
    pub(super) fn looks_beyond_description(&self) -> bool {
        !self.query.is_empty()
            || !self.headers.is_empty()
            || !self.json.is_empty()
            || self.content_types.is_some()
            || self.larger_than.is_some()
    }

    /// The first condition on anything but the body that `operation` doesn't meet.
    pub(super) fn unmet_head(&self, operation: &Operation) -> Option<Unmet> {
        let path = operation.description.attributes.get(attribute::HTTP_PATH);
        let Some(request) = &operation.http else {
            return Some(Unmet::NoRequest);
        };
        let is_path = self.paths.as_ref().is_none_or(|patterns| {
            path.is_some_and(|path| patterns.iter().any(|pattern| pattern.matches(path)))
        });
        if !is_path {
            return Some(Unmet::Path);
        }
        let is_other = |(name, glob): &(String, Glob)| {
            let values = request.query_values(name);
            !values.iter().any(|value| glob.matches(value))
        };
        if let Some(place) = self.query.iter().position(is_other) {
            return Some(Unmet::Query(place));
        }
        let is_other = |(name, glob): &(String, Glob)| {
            let mut values = request.fields.all(name);
            !values.any(|value| glob.matches(&String::from_utf8_lossy(value)))
        };
        if let Some(place) = self.headers.iter().position(is_other) {
            return Some(Unmet::Header(place));
        }
        let is_type = self.content_types.as_ref().is_none_or(|globs| {
            let media = request.content_type().unwrap_or_default();
            globs.iter().any(|glob| glob.matches(&media))
        });
        if !is_type {
            return Some(Unmet::ContentType);
        }
        let is_larger = self.larger_than.is_none_or(|bytes| match &request.body {
            Body::None => false,
            Body::Whole(body) => body.len() as u64 > bytes,
            Body::Coming(Some(length)) => *length > bytes,
            // It may be.
            Body::Coming(None) => true,
        });
        (!is_larger).then_some(Unmet::LargerThan)
    }

    /// Whether the body is as it has to be. A body that claims or seems to be JSON and isn't, or that
    /// is compressed, is what a restrictive rule means and what a permissive one doesn't.
    pub(super) fn matches_body(&self, request: &HttpRequest, permissive: bool) -> bool {
        if self.json.is_empty() {
            return true;
        }
        let Body::Whole(body) = &request.body else {
            return false;
        };
        if request.fields.get("content-encoding").is_some() {
            return !permissive;
        }
        match serde_json::from_slice::<Json>(body) {
            Ok(json) => self.json.iter().all(|(path, glob)| {
                let mut found = Vec::new();
                json.find(&path.segments, &mut found);
                if permissive {
                    !found.is_empty() && found.iter().all(|value| glob.matches(value))
                } else {
                    found.iter().any(|value| glob.matches(value))
                }
            }),
            Err(_) => {
                let claimed = request
                    .content_type()
                    .is_some_and(|media| media.contains("json"));
                let looks = matches!(body.trim_ascii_start().first(), Some(b'{' | b'['));
                !permissive && (claimed || looks)
            }
        }
    }
}

/// `$.messages[*].content`: names, `[n]`, `[*]`.
#[derive(Debug)]
pub(super) struct JsonPath {
    pub(super) text: Box<str>,
    segments: Vec<Segment>,
}

#[derive(Debug)]
enum Segment {
    Name(Glob),
    Index(usize),
    Each,
}

impl JsonPath {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no path into JSON; `$.messages[*].role` is");
        let mut rest = text.strip_prefix('$').ok_or_else(wrong)?;
        let mut segments = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let (index, after) = after.split_once(']').ok_or_else(wrong)?;
                segments.push(match index {
                    "*" => Segment::Each,
                    index => Segment::Index(index.parse().map_err(|_| wrong())?),
                });
                rest = after;
            } else {
                let after = rest.strip_prefix('.').ok_or_else(wrong)?;
                let end = after.find(['.', '[']).unwrap_or(after.len());
                let (name, after) = after.split_at_checked(end).ok_or_else(wrong)?;
                if name.is_empty() {
                    return Err(wrong());
                }
                segments.push(Segment::Name(Glob::new(name)));
                rest = after;
            }
        }
        Ok(Self {
            text: text.into(),
            segments,
        })
    }
}

/// JSON with every member that is there: of two with one name different readers take different ones.
#[derive(Debug)]
enum Json {
    Object(Vec<(String, Json)>),
    Array(Vec<Json>),
    Scalar(String),
}

impl Json {
    fn find<'a>(&'a self, path: &[Segment], found: &mut Vec<&'a str>) {
        let Some((first, rest)) = path.split_first() else {
            return match self {
                Self::Scalar(text) => found.push(text),
                Self::Object(_) | Self::Array(_) => {}
            };
        };
        match (first, self) {
            (Segment::Name(glob), Self::Object(members)) => {
                for (name, value) in members {
                    if glob.matches(name) {
                        value.find(rest, found);
                    }
                }
            }
            (Segment::Each, Self::Array(items)) => {
                for item in items {
                    item.find(rest, found);
                }
            }
            (Segment::Index(index), Self::Array(items)) => {
                if let Some(item) = items.get(*index) {
                    item.find(rest, found);
                }
            }
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Scalar(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Scalar(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Scalar(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Scalar(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::Scalar(value.to_owned()))
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Scalar("null".to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Json::Array(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = members.next_entry()? {
                    all.push(member);
                }
                Ok(Json::Object(all))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
