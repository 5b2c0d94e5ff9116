//! JSON (RFC 8259) as it streams: values are replaced by their place, their name or their form, the rest
//! goes on byte for byte.

use std::{borrow::Cow, collections::BTreeSet};

use bytes::BytesMut;
use rustc_hash::FxHashMap;

use super::{BodyPlan, Unmaskable, note, text::Text};
use crate::{glob::Glob, mask::MaskKind};

/// Longest string or number that is looked at, in bytes: it is held until it is whole.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// Longest name, in bytes: of every level that is open one is kept.
const NAME_BYTES_MAX: usize = 4 << 10;

/// Names that are remembered of one body.
const KEYS_MAX: usize = 256;

/// Deepest nesting.
const DEPTH_MAX: usize = 256;

/// A place in JSON: `$.users[*].email`, `$..password`.
#[derive(Debug, Clone)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone)]
enum Step {
    Name(Glob),
    Index(usize),
    Each,
    /// Any number of levels.
    Deep,
}

/// Where a value is.
#[derive(Debug)]
enum Place {
    Member(String),
    Item(usize),
}

impl JsonPath {
    /// Reads a path.
    ///
    /// # Errors
    /// When it is none; what one looks like.
    pub fn new(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no path into JSON; `$.users[*].email` and `$..password` are");
        let mut rest = text.strip_prefix('$').ok_or_else(wrong)?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("..") {
                steps.push(Step::Deep);
                rest = after;
                if rest.starts_with('[') {
                    continue;
                }
            } else if let Some(after) = rest.strip_prefix('[') {
                let (index, after) = after.split_once(']').ok_or_else(wrong)?;
                steps.push(match index {
                    "*" => Step::Each,
                    index => Step::Index(index.parse().map_err(|_| wrong())?),
                });
                rest = after;
                continue;
            } else {
                rest = rest.strip_prefix('.').ok_or_else(wrong)?;
            }
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (name, after) = rest.split_at_checked(end).ok_or_else(wrong)?;
            if name.is_empty() {
                return Err(wrong());
            }
            steps.push(Step::Name(Glob::new(name)));
            rest = after;
        }
        if steps.is_empty() || matches!(steps.last(), Some(Step::Deep)) {
            return Err(wrong());
        }
        Ok(Self(steps))
    }

    fn matches(&self, places: &[Place]) -> bool {
        fn matches(steps: &[Step], places: &[Place]) -> bool {
            let Some((first, rest)) = steps.split_first() else {
                return places.is_empty();
            };
            if matches!(first, Step::Deep) {
                return (0..=places.len())
                    .any(|skip| matches(rest, places.get(skip..).unwrap_or_default()));
            }
            let Some((place, below)) = places.split_first() else {
                return false;
            };
            let meant = match (first, place) {
                (Step::Name(glob), Place::Member(name)) => glob.matches(name),
                (Step::Each, Place::Item(_)) => true,
                (Step::Index(wanted), Place::Item(index)) => wanted == index,
                _ => false,
            };
            meant && matches(rest, below)
        }
        // Most values aren't called what the path ends with.
        let ends = match (self.0.last(), places.last()) {
            (Some(Step::Name(glob)), Some(Place::Member(name))) => glob.matches(name),
            (Some(Step::Each), Some(Place::Item(_))) => true,
            (Some(Step::Index(wanted)), Some(Place::Item(index))) => wanted == index,
            _ => false,
        };
        ends && matches(&self.0, places)
    }
}

/// Follows a text of JSON values.
#[derive(Debug)]
pub(super) struct Json {
    /// The body says it is JSON: where it isn't, nobody can say what it is.
    claimed: bool,
    state: State,
    /// A string or number that isn't whole, quotes included.
    token: Vec<u8>,
    /// Open objects and arrays, with the place within each.
    places: Vec<Place>,
    /// What becomes of the string or word that is being read.
    with: Option<MaskKind>,
    /// A value that is left out, and how deep in it we are.
    skipping: Option<Skipping>,
    /// Whether something of the text was understood already.
    begun: bool,
    /// It isn't JSON after all.
    text: Option<Text>,
    /// What becomes of the values of names that were met: bodies have few, many times.
    keys: FxHashMap<Box<str>, Option<MaskKind>>,
}

#[derive(Debug)]
struct Skipping {
    with: MaskKind,
    depth: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a value.
    Value,
    /// Behind `{` or, in an object, behind `,`.
    Name,
    /// Behind a name.
    Colon,
    /// Behind a value.
    After,
    /// In a string: whether a backslash stands before, and whether it is a name.
    String { escaped: bool, name: bool },
    /// In a number or a word.
    Word,
    /// In a line in front of the JSON that keeps browsers from running it.
    Prefix,
}

impl Json {
    pub(super) fn new(claimed: bool) -> Self {
        Self {
            claimed,
            state: State::Value,
            token: Vec::new(),
            places: Vec::new(),
            with: None,
            skipping: None,
            begun: false,
            text: None,
            keys: FxHashMap::default(),
        }
    }

    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        if let Some(text) = &mut self.text {
            return text.push(bytes, plan, masked, out);
        }
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            match self.state {
                State::String { escaped, name } => {
                    // To the next character that counts.
                    let end = if escaped {
                        0
                    } else {
                        memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len())
                    };
                    let (part, behind) = rest.split_at_checked(end).unwrap_or((rest, &[]));
                    self.hold(part)?;
                    let Some((&byte, behind)) = behind.split_first() else {
                        rest = behind;
                        continue;
                    };
                    self.hold(&[byte])?;
                    rest = behind;
                    if escaped {
                        self.state = State::String {
                            escaped: false,
                            name,
                        };
                    } else if byte == b'\\' {
                        self.state = State::String {
                            escaped: true,
                            name,
                        };
                    } else {
                        self.string(name, plan, masked, out)?;
                    }
                    continue;
                }
                State::Word if is_word(byte) => {
                    let end = rest
                        .iter()
                        .position(|byte| !is_word(*byte))
                        .unwrap_or(rest.len());
                    let (part, behind) = rest.split_at_checked(end).unwrap_or((rest, &[]));
                    self.hold(part)?;
                    rest = behind;
                    continue;
                }
                State::Word => {
                    self.word(plan, masked, out);
                    continue;
                }
                State::Prefix => {
                    out.extend_from_slice(&[byte]);
                    if byte == b'\n' {
                        self.state = State::Value;
                    }
                    rest = after;
                    continue;
                }
                State::Value | State::Name | State::Colon | State::After => {}
            }
            if byte.is_ascii_whitespace() || (byte == 0x1E && self.places.is_empty()) {
                let end = rest
                    .iter()
                    .position(|byte| !byte.is_ascii_whitespace() && *byte != 0x1E)
                    .unwrap_or(rest.len());
                let (part, behind) = rest.split_at_checked(end.max(1)).unwrap_or((rest, &[]));
                self.emit(part, out);
                rest = behind;
                continue;
            }
            if byte == b'"'
                && matches!(self.state, State::Value | State::Name)
                && let Some(end) = plain_string(rest)
            {
                let (token, behind) = rest.split_at_checked(end).unwrap_or((rest, &[]));
                self.plain(token, plan, masked, out)?;
                rest = behind;
                continue;
            }
            if !self.mark(byte, plan, masked, out)? {
                return self.not_json(rest, plan, masked, out);
            }
            rest = after;
        }
        Ok(())
    }

    pub(super) fn finish(
        &mut self,
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        if let Some(text) = &mut self.text {
            text.finish(plan, masked, out);
            return Ok(());
        }
        match self.state {
            State::Word => self.word(plan, masked, out),
            // What is cut within a string can't be known: none of it goes on.
            State::String { .. } => {
                return Err(Unmaskable("JSON that ends within a string".to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    fn emit(&self, bytes: &[u8], out: &mut BytesMut) {
        if self.skipping.is_none() {
            out.extend_from_slice(bytes);
        }
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), Unmaskable> {
        if self.skipping.is_some() && !matches!(self.state, State::String { name: true, .. }) {
            // It is left out anyway, and only its end counts.
            return Ok(());
        }
        if self.token.len() + bytes.len() > TOKEN_BYTES_MAX {
            return Err(too_long());
        }
        self.token.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes one character outside of strings and words; whether it belongs there.
    fn mark(
        &mut self,
        byte: u8,
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<bool, Unmaskable> {
        if self.state == State::After && self.places.is_empty() && byte != b',' {
            // Another value behind the first: lines of JSON.
            self.state = State::Value;
        }
        match (self.state, byte) {
            (State::Value, b'{' | b'[') => {
                self.open(byte, plan, masked, out)?;
            }
            (State::Value | State::Name, b'"') => {
                if self.state == State::Value {
                    self.begin(plan, masked);
                }
                let name = self.state == State::Name;
                self.state = State::String {
                    escaped: false,
                    name,
                };
                self.hold(b"\"")?;
            }
            (State::Value, b']') | (State::After, b']')
                if matches!(self.places.last(), Some(Place::Item(_))) =>
            {
                self.close(byte, out);
            }
            (State::Name, b'}') | (State::After, b'}')
                if matches!(self.places.last(), Some(Place::Member(_))) =>
            {
                self.close(byte, out);
            }
            (State::Colon, b':') => {
                self.emit(b":", out);
                self.state = State::Value;
            }
            (State::After, b',') => match self.places.last_mut() {
                Some(Place::Item(index)) => {
                    *index += 1;
                    self.emit(b",", out);
                    self.state = State::Value;
                }
                Some(Place::Member(_)) => {
                    self.emit(b",", out);
                    self.state = State::Name;
                }
                None => return Ok(false),
            },
            (State::Value, b')') if !self.begun && self.places.is_empty() => {
                self.emit(b")", out);
                self.state = State::Prefix;
            }
            (State::Value, 0xEF | 0xBB | 0xBF) if !self.begun && self.places.is_empty() => {
                self.emit(&[byte], out);
            }
            (State::Value, _) if is_word(byte) => {
                self.begin(plan, masked);
                self.state = State::Word;
                self.hold(&[byte])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// A value begins: whether it is one that is masked.
    fn begin(&mut self, plan: &BodyPlan, masked: &mut BTreeSet<Box<str>>) -> Option<MaskKind> {
        self.begun = true;
        self.with = None;
        if self.skipping.is_some() {
            return None;
        }
        let with = self.wanted(plan)?;
        self.with = Some(with);
        let name = self.places.iter().rev().find_map(|place| match place {
            Place::Member(name) => Some(&**name),
            Place::Item(_) => None,
        });
        note(masked, name.unwrap_or("$"));
        Some(with)
    }

    fn wanted(&mut self, plan: &BodyPlan) -> Option<MaskKind> {
        let by_path = plan
            .paths
            .iter()
            .find(|mask| mask.path.matches(&self.places));
        if let Some(mask) = by_path {
            return Some(mask.with);
        }
        match self.places.last() {
            Some(Place::Member(name)) if !plan.keys.is_empty() => {
                if let Some(known) = self.keys.get(&**name) {
                    return *known;
                }
                let with = plan.key(name);
                if self.keys.len() < KEYS_MAX && name.len() < 128 {
                    self.keys.insert(name.as_str().into(), with);
                }
                with
            }
            _ => None,
        }
    }

    /// A string without escapes, all of which is there.
    fn plain(
        &mut self,
        token: &[u8],
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        let text = inner(token);
        if text.len() > TOKEN_BYTES_MAX {
            return Err(too_long());
        }
        if self.state == State::Name {
            self.emit_string(token, text, plan, masked, out);
            return self.name(&String::from_utf8_lossy(text));
        }
        let with = self.begin(plan, masked);
        self.state = State::After;
        if self.skipping.is_some() {
            return Ok(());
        }
        self.value(
            token,
            &String::from_utf8_lossy(text),
            with,
            plan,
            masked,
            out,
        );
        Ok(())
    }

    /// The next value has this name.
    fn name(&mut self, name: &str) -> Result<(), Unmaskable> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Unmaskable("JSON with a name of more than 4 KiB".to_owned()));
        }
        if let Some(Place::Member(last)) = self.places.last_mut() {
            last.clear();
            last.push_str(name);
        }
        self.state = State::Colon;
        Ok(())
    }

    /// A string that is a value: `text` is what the `token` says.
    fn value(
        &self,
        token: &[u8],
        text: &str,
        with: Option<MaskKind>,
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) {
        if let Some(with) = with {
            out.extend_from_slice(encoded(with.apply(text)).as_bytes());
        } else if let Some(changed) = within(text, plan, masked) {
            out.extend_from_slice(encoded(Some(changed)).as_bytes());
        } else {
            self.emit_string(token, text.as_bytes(), plan, masked, out);
        }
    }

    fn open(
        &mut self,
        byte: u8,
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        if let Some(with) = self.begin(plan, masked) {
            let depth = self.places.len();
            self.skipping = Some(Skipping { with, depth });
        }
        if self.places.len() >= DEPTH_MAX {
            return Err(Unmaskable(format!(
                "JSON nested more than {DEPTH_MAX} deep"
            )));
        }
        self.emit(&[byte], out);
        if byte == b'{' {
            self.places.push(Place::Member(String::new()));
            self.state = State::Name;
        } else {
            self.places.push(Place::Item(0));
            self.state = State::Value;
        }
        Ok(())
    }

    fn close(&mut self, byte: u8, out: &mut BytesMut) {
        self.emit(&[byte], out);
        self.places.pop();
        self.state = State::After;
        if let Some(skipping) = &self.skipping
            && skipping.depth == self.places.len()
        {
            let with = skipping.with;
            self.skipping = None;
            out.extend_from_slice(match with {
                MaskKind::Null => b"null",
                _ => b"\"[redacted]\"",
            });
        }
    }

    /// A string is whole.
    fn string(
        &mut self,
        name: bool,
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        let token = std::mem::take(&mut self.token);
        if name {
            let decoded = decoded(&token)?;
            self.emit_string(&token, decoded.as_bytes(), plan, masked, out);
            self.name(&decoded)?;
        } else {
            self.state = State::After;
            if self.skipping.is_none() {
                self.value(&token, &decoded(&token)?, self.with, plan, masked, out);
            }
        }
        self.token = token;
        self.token.clear();
        Ok(())
    }

    fn emit_string(
        &self,
        token: &[u8],
        decoded: &[u8],
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) {
        if self.skipping.is_some() {
            return;
        }
        if plan.patterns.is_empty() {
            out.extend_from_slice(token);
            return;
        }
        match plan.patterns.apply(decoded) {
            Some(changed) => {
                note(masked, "pattern");
                let changed = String::from_utf8_lossy(&changed).into_owned();
                out.extend_from_slice(encoded(Some(changed)).as_bytes());
            }
            None => out.extend_from_slice(token),
        }
    }

    /// A number or a word is whole.
    fn word(&mut self, plan: &BodyPlan, masked: &mut BTreeSet<Box<str>>, out: &mut BytesMut) {
        let token = std::mem::take(&mut self.token);
        self.state = State::After;
        if self.skipping.is_none() {
            let text = String::from_utf8_lossy(&token);
            if &*text == "null" {
                out.extend_from_slice(&token);
            } else if let Some(with) = self.with {
                out.extend_from_slice(encoded(with.apply(&text)).as_bytes());
            } else {
                self.emit_word(&token, plan, masked, out);
            }
        }
        self.token = token;
        self.token.clear();
    }

    fn emit_word(
        &self,
        token: &[u8],
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) {
        match plan.patterns.apply(token) {
            Some(changed) => {
                note(masked, "pattern");
                let changed = String::from_utf8_lossy(&changed).into_owned();
                out.extend_from_slice(encoded(Some(changed)).as_bytes());
            }
            None => out.extend_from_slice(token),
        }
    }

    /// What comes isn't JSON: text, where nothing has to be known of its names.
    fn not_json(
        &mut self,
        rest: &[u8],
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        if plan.strict || (plan.by_name() && (self.claimed || self.begun)) {
            return Err(Unmaskable("JSON that can't be read".to_owned()));
        }
        let text = self.text.insert(Text::default());
        text.push(rest, plan, masked, out)
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_')
}

fn too_long() -> Unmaskable {
    Unmaskable("a value of more than 1 MiB".to_owned())
}

/// The end of the string that `text` begins with, where it is there and has no escapes.
fn plain_string(text: &[u8]) -> Option<usize> {
    let end = memchr::memchr2(b'"', b'\\', text.get(1..)?)? + 1;
    (text.get(end) == Some(&b'"')).then_some(end + 1)
}

/// A string without its quotes.
fn inner(token: &[u8]) -> &[u8] {
    token
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""))
        .unwrap_or(token)
}

/// A string's characters, escapes taken off; half of a pair of surrogates is a replacement character.
fn decoded(token: &[u8]) -> Result<Cow<'_, str>, Unmaskable> {
    let inner = inner(token);
    if !inner.contains(&b'\\') {
        return Ok(String::from_utf8_lossy(inner));
    }
    let text = String::from_utf8_lossy(inner);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    let mut pending: Option<u32> = None;
    while let Some(character) = rest.next() {
        let mut unit = None;
        let decoded = if character == '\\' {
            match rest.next() {
                Some('u') => {
                    let digits: String = rest.by_ref().take(4).collect();
                    let code = (digits.len() == 4)
                        .then(|| u32::from_str_radix(&digits, 16).ok())
                        .flatten()
                        .ok_or_else(|| Unmaskable("JSON with a broken escape".to_owned()))?;
                    unit = Some(code);
                    char::from_u32(code)
                }
                Some('b') => Some('\u{8}'),
                Some('f') => Some('\u{c}'),
                Some('n') => Some('\n'),
                Some('r') => Some('\r'),
                Some('t') => Some('\t'),
                Some(other) => Some(other),
                None => None,
            }
        } else {
            Some(character)
        };
        match (pending.take(), unit) {
            (Some(high), Some(low @ 0xDC00..0xE000)) => {
                let code = 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00);
                out.extend(char::from_u32(code));
                continue;
            }
            (Some(_), _) => out.push(char::REPLACEMENT_CHARACTER),
            (None, _) => {}
        }
        match (unit, decoded) {
            (Some(high @ 0xD800..0xDC00), _) => pending = Some(high),
            (_, Some(character)) => out.push(character),
            (_, None) => out.push(char::REPLACEMENT_CHARACTER),
        }
    }
    if pending.is_some() {
        out.push(char::REPLACEMENT_CHARACTER);
    }
    Ok(out.into())
}

/// A value as JSON.
fn encoded(value: Option<String>) -> String {
    match value {
        None => "null".to_owned(),
        Some(value) => serde_json::Value::String(value).to_string(),
    }
}

/// JSON within a string, masked; `None` where there is none, or nothing in it is masked. One level is
/// looked into.
fn within(text: &str, plan: &BodyPlan, masked: &mut BTreeSet<Box<str>>) -> Option<String> {
    if !matches!(text.trim_start().as_bytes().first(), Some(b'{' | b'[')) || !plan.by_name() {
        return None;
    }
    serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
    let inner_plan = BodyPlan {
        strict: false,
        ..plan.clone()
    };
    let (mut inner, mut out) = (Json::new(false), BytesMut::new());
    inner
        .push(text.as_bytes(), &inner_plan, masked, &mut out)
        .ok()?;
    inner.finish(&inner_plan, masked, &mut out).ok()?;
    let changed = String::from_utf8_lossy(&out).into_owned();
    (changed != text).then_some(changed)
}
