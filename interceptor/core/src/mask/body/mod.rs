//! Masks on bodies as they stream: JSON by path and by key, forms, events, and text by pattern, through
//! compression, in bounded memory. What comes out is never encoded.

mod decode;
mod json;
mod lines;
mod multipart;
#[cfg(test)]
mod tests;
mod text;

use std::{collections::BTreeSet, sync::Arc};

use bytes::BytesMut;

pub use self::json::JsonPath;
use self::{decode::Decoded, json::Json, lines::Lines, multipart::Multipart, text::Text};
use super::{MaskKind, Patterns};
use crate::glob::Glob;

/// What is to be masked in bodies.
#[derive(Debug, Clone, Default)]
pub struct BodyPlan {
    /// Masks by the place of a value in JSON.
    pub paths: Vec<PathMask>,
    /// Masks by the name of a member of JSON at any depth, or of a field of a form.
    pub keys: Vec<KeyMask>,
    /// Masks by form.
    pub patterns: Patterns,
    /// A rule would rather refuse a body than let one pass that it can't look into.
    pub strict: bool,
}

/// A mask by the place of a value.
#[derive(Debug, Clone)]
pub struct PathMask {
    /// The place.
    pub path: JsonPath,
    /// What becomes of it.
    pub with: MaskKind,
}

/// A mask by a name, whatever its case.
#[derive(Debug, Clone)]
pub struct KeyMask {
    /// The names, lower case.
    pub name: Glob,
    /// What becomes of the value.
    pub with: MaskKind,
}

/// What is known of a body before it comes.
#[derive(Debug, Clone, Copy, Default)]
pub struct BodyHead<'a> {
    /// Its media type with parameters.
    pub content_type: Option<&'a str>,
    /// Its encodings, as the field lists them.
    pub content_encoding: Option<&'a str>,
    /// It is a part of something (206): what is cut off can't be known.
    pub partial: bool,
}

/// A body that can't be masked; why, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmaskable(pub String);

/// Masks one body.
#[derive(Debug)]
pub struct BodyMasker {
    decoded: Option<Box<Decoded>>,
    masker: Masker,
}

/// Looks at what is decoded. Apart from the decoding, because a decoder hands its output on.
#[derive(Debug)]
struct Masker {
    plan: Arc<BodyPlan>,
    says_json: bool,
    form: bool,
    events: bool,
    /// The first bytes, until it is clear what they are.
    first: Vec<u8>,
    kind: Kind,
    masked: BTreeSet<Box<str>>,
}

#[derive(Debug)]
enum Kind {
    Unknown,
    /// Neither text nor anything else that is understood.
    Binary,
    Json(Box<Json>),
    Text(Text),
    /// Fields of a form, or events: each by itself.
    Lines(Lines),
    /// Several bodies.
    Multipart(Box<Multipart>),
}

/// Bodies within bodies that are looked into.
const DEPTH_MAX: usize = 4;

/// Bytes of masked content that are handed on before more is masked: little input can become much.
pub const MASKED_AT_ONCE: usize = 16 << 10;

/// Bytes that tell what a body is.
const SNIFFED_BYTES: usize = 512;

impl BodyPlan {
    /// Whether nothing is to be masked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.keys.is_empty() && self.patterns.is_empty()
    }

    /// Whether a part of a body can't be masked: what is around it would have to be known.
    #[must_use]
    pub fn needs_whole(&self) -> bool {
        self.by_name() || self.strict
    }

    fn by_name(&self) -> bool {
        !self.paths.is_empty() || !self.keys.is_empty()
    }

    fn key(&self, name: &str) -> Option<MaskKind> {
        let lower;
        let name = if name
            .bytes()
            .all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
        {
            name
        } else {
            lower = name.to_lowercase();
            &lower
        };
        let mask = self.keys.iter().find(|mask| mask.name.matches(name));
        mask.map(|mask| mask.with)
    }
}

impl BodyMasker {
    /// What masks a body of `head` by `plan`.
    ///
    /// # Errors
    /// When such a body can't be masked, whatever is in it.
    pub fn new(plan: &Arc<BodyPlan>, head: &BodyHead<'_>) -> Result<Self, Unmaskable> {
        Self::within(plan, head, 0)
    }

    /// The same of a body that is in as many others as `depth` says.
    fn within(plan: &Arc<BodyPlan>, head: &BodyHead<'_>, depth: usize) -> Result<Self, Unmaskable> {
        if depth > DEPTH_MAX {
            return Err(Unmaskable("parts within parts within parts".to_owned()));
        }
        let content_type = head.content_type.unwrap_or_default().to_ascii_lowercase();
        let media = content_type.split(';').next().unwrap_or_default().trim();
        if head.partial && plan.needs_whole() {
            return Err(Unmaskable(
                "it is a part of something, and what is cut off can't be known; ask without Range"
                    .to_owned(),
            ));
        }
        for wide in ["utf-16", "utf-32", "ucs-2", "ucs-4", "utf-7"] {
            if content_type.contains(wide) {
                return Err(Unmaskable(format!("text in {wide} isn't looked into")));
            }
        }
        let kind = match media.starts_with("multipart/") {
            true => Kind::Multipart(Box::new(Multipart::new(
                head.content_type.unwrap_or_default(),
                depth,
            )?)),
            false => Kind::Unknown,
        };
        let decoded = match head.content_encoding.map(str::trim) {
            None | Some("" | "identity") => None,
            Some(encoding) => Some(Box::new(Decoded::new(encoding)?)),
        };
        Ok(Self {
            decoded,
            masker: Masker {
                plan: plan.clone(),
                says_json: media.ends_with("json") || media.contains("json-"),
                form: media == "application/x-www-form-urlencoded",
                events: media == "text/event-stream",
                first: Vec::new(),
                kind,
                masked: BTreeSet::new(),
            },
        })
    }

    /// Bytes to [`push`](Self::push) at once: of an encoded body so few that what becomes of them has a
    /// bound, whatever they say.
    #[must_use]
    pub const fn bytes_at_once(&self) -> usize {
        match self.decoded {
            Some(_) => decode::STEP_BYTES,
            None => 64 << 10,
        }
    }

    /// Takes the next bytes, and puts what may go on behind `out`.
    ///
    /// # Errors
    /// When it turns out that the body can't be masked. What is in `out` may be sent all the same.
    pub fn push(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), Unmaskable> {
        match &mut self.decoded {
            None => self.masker.push(bytes, out),
            Some(decoded) => {
                let masker = &mut self.masker;
                decoded.push(bytes, &mut |bytes| masker.push(bytes, out))
            }
        }
    }

    /// The body is over.
    ///
    /// # Errors
    /// As [`BodyMasker::push`].
    pub fn finish(&mut self, out: &mut BytesMut) -> Result<(), Unmaskable> {
        if let Some(decoded) = &mut self.decoded {
            let masker = &mut self.masker;
            decoded.finish(&mut |bytes| masker.push(bytes, out))?;
        }
        self.masker.finish(out)
    }

    /// What was masked so far: keys, and `pattern` for what was found by its form.
    #[must_use]
    pub fn masked(&self) -> &BTreeSet<Box<str>> {
        &self.masker.masked
    }
}

impl Masker {
    fn push(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), Unmaskable> {
        if !matches!(self.kind, Kind::Unknown) {
            return self.pass(bytes, out);
        }
        if self.first.is_empty() && matches!(self.sniff(bytes, false), Ok(true)) {
            return self.pass(bytes, out);
        }
        let mut first = std::mem::take(&mut self.first);
        first.extend_from_slice(bytes);
        match self.sniff(&first, false) {
            Ok(true) => self.pass(&first, out),
            unclear => {
                // Also of what can't be masked: whoever went on would not begin anew.
                self.first = first;
                unclear.map(drop)
            }
        }
    }

    fn finish(&mut self, out: &mut BytesMut) -> Result<(), Unmaskable> {
        if matches!(self.kind, Kind::Unknown) && !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            self.sniff(&first, true)?;
            self.pass(&first, out)?;
        }
        let (plan, masked) = (&self.plan, &mut self.masked);
        match &mut self.kind {
            Kind::Unknown | Kind::Binary => Ok(()),
            Kind::Json(json) => json.finish(plan, masked, out),
            Kind::Text(text) => {
                text.finish(plan, masked, out);
                Ok(())
            }
            Kind::Lines(lines) => lines.finish(plan, masked, out),
            Kind::Multipart(multipart) => multipart.finish(),
        }
    }

    fn pass(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), Unmaskable> {
        let (plan, masked) = (&self.plan, &mut self.masked);
        match &mut self.kind {
            Kind::Unknown | Kind::Binary => {
                out.extend_from_slice(bytes);
                Ok(())
            }
            Kind::Json(json) => json.push(bytes, plan, masked, out),
            Kind::Text(text) => text.push(bytes, plan, masked, out),
            Kind::Lines(lines) => lines.push(bytes, plan, masked, out),
            Kind::Multipart(multipart) => multipart.push(bytes, plan, masked, out),
        }
    }

    /// Finds out what the body is, by what is in it rather than by what it says; whether that is clear.
    fn sniff(&mut self, first: &[u8], whole: bool) -> Result<bool, Unmaskable> {
        if let [0xFE, 0xFF, ..] | [0xFF, 0xFE, ..] | [0, 0, 0xFE, 0xFF, ..] = first {
            return Err(Unmaskable(
                "text in UTF-16 or UTF-32 isn't looked into".to_owned(),
            ));
        }
        let text = first.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(first);
        let start = text.trim_ascii_start();
        if start.is_empty() && !whole {
            return Ok(false);
        }
        // Wide characters of ASCII, without a mark in front.
        let is_wide = matches!(
            start,
            [0, b' '..=b'~', 0, ..] | [b' '..=b'~', 0, b' '..=b'~', 0, ..]
        );
        if is_wide {
            return Err(Unmaskable(
                "text in UTF-16 or UTF-32 isn't looked into".to_owned(),
            ));
        }
        self.kind = if self.form {
            Kind::Lines(Lines::form())
        } else if self.events {
            Kind::Lines(Lines::events())
        } else if matches!(start.first(), Some(b'{' | b'['))
            || self.says_json
            || start.starts_with(b")]}'")
        {
            Kind::Json(Box::new(Json::new(self.says_json)))
        } else {
            if first.len() < SNIFFED_BYTES && !whole && !first.contains(&b'\n') {
                return Ok(false);
            }
            let sample = first.get(..SNIFFED_BYTES).unwrap_or(first);
            if is_binary(sample) {
                if self.plan.strict {
                    return Err(Unmaskable("it is neither text nor JSON".to_owned()));
                }
                Kind::Binary
            } else if self.plan.by_name() && self.plan.strict {
                return Err(Unmaskable("it is text without keys".to_owned()));
            } else {
                Kind::Text(Text::default())
            }
        };
        Ok(true)
    }
}

/// Whether these bytes can't be text.
fn is_binary(sample: &[u8]) -> bool {
    let control = |byte: &u8| matches!(byte, 0..=8 | 14..=26 | 28..=31);
    if sample.iter().any(control) {
        return true;
    }
    match std::str::from_utf8(sample) {
        Ok(_) => false,
        // A character that is cut at the end is none that is wrong.
        Err(error) => {
            error.error_len().is_some() && {
                // Latin-1 and its like: mostly ASCII.
                let high = sample.iter().filter(|byte| **byte >= 0x80).count();
                high * 4 > sample.len()
            }
        }
    }
}

/// Notes what was masked, once.
fn note(masked: &mut BTreeSet<Box<str>>, name: &str) {
    if !masked.contains(name) {
        masked.insert(name.into());
    }
}
