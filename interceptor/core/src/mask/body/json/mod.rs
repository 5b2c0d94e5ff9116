//! JSON (RFC 8259) as it streams: values are replaced by their place, their name or their form, the rest
//! goes on byte for byte.

mod path;
mod string;

use std::{borrow::Cow, collections::BTreeSet, ops::Range};

use bytes::BytesMut;
use serde::de::IgnoredAny;

pub use self::path::JsonPath;
use self::{
    path::Place,
    string::{decoded, encode, inner, string_end, text},
};
use super::{BodyPlan, Unmaskable, note, text::Text};
use crate::mask::MaskKind;

/// Longest string or number that is looked at, in bytes: it is held until it is whole.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// Longest name, in bytes: of every level that is open one is kept.
const NAME_BYTES_MAX: usize = 4 << 10;

/// Names that are remembered of one body.
const NAMES_MAX: usize = 128;

/// Longest of them, in bytes.
const KNOWN_BYTES_MAX: usize = 128;

/// Deepest nesting.
const DEPTH_MAX: usize = 256;

/// Follows a text of JSON values.
#[derive(Debug)]
pub(super) struct Json {
    /// The body says it is JSON: where it isn't, nobody can say what it is.
    claimed: bool,
    state: State,
    /// A string or word of which only the beginning is there, quotes included.
    token: Vec<u8>,
    /// Open objects and arrays, with the place within each.
    places: Vec<Place>,
    /// Room for the names of the next object.
    spare: Vec<u8>,
    /// What becomes of the string or word that is being read.
    with: Option<MaskKind>,
    /// A value that is left out, and how deep in it we are.
    skipping: Option<Skipping>,
    /// Whether something of the text was understood already.
    begun: bool,
    /// It isn't JSON after all.
    text: Option<Text>,
    names: Names,
}

/// What is known of the names that were met: bodies have few, many times, and in turn.
#[derive(Debug, Default)]
struct Names {
    known: Vec<Name>,
    /// The one that comes next, where they come as they did before.
    next: usize,
}

#[derive(Debug)]
struct Name {
    name: Box<[u8]>,
    is: Wanted,
}

/// What a plan has to do with values of a name.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// What becomes of them by their name.
    with: Option<MaskKind>,
    /// A path of the plan ends with it.
    ends_path: bool,
}

impl Names {
    fn wanted(&mut self, name: &[u8], plan: &BodyPlan) -> Wanted {
        let is_it = |known: &Name| &*known.name == name;
        let index = if self.known.get(self.next).is_some_and(is_it) {
            Some(self.next)
        } else {
            self.known.iter().position(is_it)
        };
        if let Some((index, known)) = index.and_then(|index| Some((index, self.known.get(index)?)))
        {
            self.next = if index + 1 < self.known.len() {
                index + 1
            } else {
                0
            };
            return known.is;
        }
        let text = text(name);
        let is = Wanted {
            with: plan.key(&text),
            ends_path: plan.paths.iter().any(|mask| mask.path.may_end_with(&text)),
        };
        if self.known.len() < NAMES_MAX && name.len() < KNOWN_BYTES_MAX {
            let name = name.into();
            self.known.push(Name { name, is });
        }
        is
    }
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

/// What goes on in the place of a value: a string, or else `null`.
type Instead = Option<Cow<'static, str>>;

/// Some bytes on their way through: those that nothing happens to go on in runs.
struct Pass<'a> {
    plan: &'a BodyPlan,
    masked: &'a mut BTreeSet<Box<str>>,
    bytes: &'a [u8],
    /// Where what has not gone on yet begins.
    from: usize,
    out: &'a mut BytesMut,
}

impl Pass<'_> {
    /// All before `to` goes on.
    fn carry(&mut self, to: usize) {
        let run = self.bytes.get(self.from..to).unwrap_or_default();
        self.out.extend_from_slice(run);
        self.from = to;
    }

    /// `instead` goes on in the place of `range`.
    fn replace(&mut self, range: &Range<usize>, instead: &Instead) {
        self.carry(range.start);
        encode(instead.as_deref(), self.out);
        self.from = range.end;
    }

    /// What a text becomes in which a pattern is found.
    fn without_patterns(&mut self, text: &[u8]) -> Option<Instead> {
        if self.plan.patterns.is_empty() {
            return None;
        }
        let changed = self.plan.patterns.apply(text)?;
        note(self.masked, "pattern");
        let changed = String::from_utf8_lossy(&changed).into_owned();
        Some(Some(changed.into()))
    }
}

impl Json {
    pub(super) fn new(claimed: bool) -> Self {
        Self {
            claimed,
            state: State::Value,
            token: Vec::new(),
            places: Vec::new(),
            spare: Vec::new(),
            with: None,
            skipping: None,
            begun: false,
            text: None,
            names: Names::default(),
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
        out.reserve(bytes.len());
        let mut pass = Pass {
            plan,
            masked,
            bytes,
            from: 0,
            out,
        };
        let mut at = 0;
        while let Some(rest) = bytes.get(at..)
            && let Some(&byte) = rest.first()
        {
            at = match self.state {
                State::String { .. } | State::Word => self.go_on(at, &mut pass)?,
                State::Prefix => {
                    if byte == b'\n' {
                        self.state = State::Value;
                    }
                    at + 1
                }
                _ if byte.is_ascii_whitespace() => at + 1,
                _ if byte == 0x1E && self.places.is_empty() => at + 1,
                _ => {
                    if self.state == State::After && self.places.is_empty() && byte != b',' {
                        // Another value behind the first: lines of JSON.
                        self.state = State::Value;
                    }
                    match (self.state, byte) {
                        (State::Value | State::Name, b'"') => self.begin_string(at, &mut pass)?,
                        (State::Value, _) if is_word(byte) => self.begin_word(at, &mut pass)?,
                        _ if self.mark(byte, at, &mut pass)? => at + 1,
                        _ => {
                            if self.skipping.is_none() {
                                pass.carry(at);
                            }
                            return self.not_json(rest, plan, masked, out);
                        }
                    }
                }
            };
        }
        let holds = matches!(self.state, State::String { .. } | State::Word);
        if !holds && self.skipping.is_none() {
            pass.carry(bytes.len());
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
            State::Word => self.held(&mut Pass {
                plan,
                masked,
                bytes: &[],
                from: 0,
                out,
            }),
            // What is cut within a string can't be known: none of it goes on.
            State::String { .. } => Err(Unmaskable("JSON that ends within a string".to_owned())),
            _ => Ok(()),
        }
    }

    /// A string begins at `at`. Where to go on: behind it, or behind all where its end isn't there.
    fn begin_string(&mut self, at: usize, pass: &mut Pass<'_>) -> Result<usize, Unmaskable> {
        let name = self.state == State::Name;
        if !name {
            self.begin(at, pass);
        }
        let rest = pass.bytes.get(at..).unwrap_or_default();
        if let Some((token, _)) = string_end(rest).and_then(|end| rest.split_at_checked(end)) {
            let range = at..at + token.len();
            if let Some(instead) = self.string(token, name, pass)? {
                pass.replace(&range, &instead);
            }
            return Ok(range.end);
        }
        self.state = State::String {
            escaped: false,
            name,
        };
        self.begin_held(at, pass)?;
        Ok(at + 1)
    }

    /// As [`Self::begin_string`], for a number or a word.
    fn begin_word(&mut self, at: usize, pass: &mut Pass<'_>) -> Result<usize, Unmaskable> {
        self.begin(at, pass);
        let rest = pass.bytes.get(at..).unwrap_or_default();
        let end = rest.iter().position(|byte| !is_word(*byte));
        if let Some((token, _)) = end.and_then(|end| rest.split_at_checked(end)) {
            let range = at..at + token.len();
            if let Some(instead) = self.word(token, pass)? {
                pass.replace(&range, &instead);
            }
            return Ok(range.end);
        }
        self.state = State::Word;
        self.begin_held(at, pass)?;
        Ok(at + 1)
    }

    /// What begins at `at` is held until it is whole.
    fn begin_held(&mut self, at: usize, pass: &mut Pass<'_>) -> Result<(), Unmaskable> {
        if self.skipping.is_none() {
            pass.carry(at);
        }
        self.hold(pass.bytes.get(at..=at).unwrap_or_default())
    }

    /// More of what is held. Where to go on.
    fn go_on(&mut self, at: usize, pass: &mut Pass<'_>) -> Result<usize, Unmaskable> {
        let rest = pass.bytes.get(at..).unwrap_or_default();
        let State::String { escaped, name } = self.state else {
            let word = rest.iter().position(|byte| !is_word(*byte));
            let end = word.unwrap_or(rest.len());
            self.hold(rest.get(..end).unwrap_or_default())?;
            if word.is_some() {
                self.held(pass)?;
            }
            pass.from = at + end;
            return Ok(at + end);
        };
        // To the next character that counts, and with it.
        let counts = if escaped {
            Some(0)
        } else {
            memchr::memchr2(b'"', b'\\', rest)
        };
        let end = counts.map_or(rest.len(), |counts| counts + 1);
        self.hold(rest.get(..end).unwrap_or_default())?;
        match counts.and_then(|counts| rest.get(counts)) {
            Some(b'"') if !escaped => self.held(pass)?,
            Some(b'\\') if !escaped => {
                self.state = State::String {
                    escaped: true,
                    name,
                };
            }
            Some(_) => {
                self.state = State::String {
                    escaped: false,
                    name,
                };
            }
            None => {}
        }
        pass.from = at + end;
        Ok(at + end)
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

    /// What was held is whole.
    fn held(&mut self, pass: &mut Pass<'_>) -> Result<(), Unmaskable> {
        let mut token = std::mem::take(&mut self.token);
        let instead = match self.state {
            State::String { name, .. } => self.string(&token, name, pass)?,
            _ => self.word(&token, pass)?,
        };
        if self.skipping.is_none() {
            match &instead {
                Some(instead) => encode(instead.as_deref(), pass.out),
                None => pass.out.extend_from_slice(&token),
            }
        }
        token.clear();
        self.token = token;
        Ok(())
    }

    /// Takes one character outside of strings and words; whether it belongs there.
    fn mark(&mut self, byte: u8, at: usize, pass: &mut Pass<'_>) -> Result<bool, Unmaskable> {
        match (self.state, byte) {
            (State::Value, b'{' | b'[') => self.open(byte, at, pass)?,
            (State::Value | State::After, b']')
                if matches!(self.places.last(), Some(Place::Item(_))) =>
            {
                self.close(at, pass);
            }
            (State::Name | State::After, b'}')
                if matches!(self.places.last(), Some(Place::Member(_))) =>
            {
                self.close(at, pass);
            }
            (State::Colon, b':') => self.state = State::Value,
            (State::After, b',') => match self.places.last_mut() {
                Some(Place::Item(index)) => {
                    *index += 1;
                    self.state = State::Value;
                }
                Some(Place::Member(_)) => self.state = State::Name,
                None => return Ok(false),
            },
            (State::Value, b')') if !self.begun && self.places.is_empty() => {
                self.state = State::Prefix;
            }
            (State::Value, 0xEF | 0xBB | 0xBF) if !self.begun && self.places.is_empty() => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// A value begins: whether it is one that is masked.
    fn begin(&mut self, at: usize, pass: &mut Pass<'_>) -> Option<MaskKind> {
        self.begun = true;
        self.with = None;
        if self.skipping.is_some() {
            return None;
        }
        let with = self.wanted(pass.plan)?;
        self.with = Some(with);
        pass.carry(at);
        let name = self.places.iter().rev().find_map(|place| match place {
            Place::Member(name) => Some(text(name)),
            Place::Item(_) => None,
        });
        note(pass.masked, name.as_deref().unwrap_or("$"));
        Some(with)
    }

    fn wanted(&mut self, plan: &BodyPlan) -> Option<MaskKind> {
        if !plan.by_name() {
            return None;
        }
        let wanted = match self.places.last() {
            Some(Place::Member(name)) => self.names.wanted(name, plan),
            _ => Wanted {
                with: None,
                ends_path: true,
            },
        };
        let mut paths = plan.paths.iter().filter(|_| wanted.ends_path);
        let by_path = paths.find(|mask| mask.path.matches(&self.places));
        by_path.map(|mask| mask.with).or(wanted.with)
    }

    /// A string is whole: what goes on in its place, where that is something else.
    fn string(
        &mut self,
        token: &[u8],
        name: bool,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Instead>, Unmaskable> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(too_long());
        }
        let token = inner(token);
        if name {
            let text = decoded(token)?;
            self.name(&text)?;
            return Ok(match self.skipping {
                Some(_) => None,
                None => pass.without_patterns(&text),
            });
        }
        self.state = State::After;
        if self.skipping.is_some() {
            return Ok(None);
        }
        let may_hold_json = pass.plan.by_name() && may_begin_json(token);
        // Escapes are looked at all the same: those that are broken make it no JSON.
        let is_plain = memchr::memchr(b'\\', token).is_none();
        if self.with.is_none() && pass.plan.patterns.is_empty() && !may_hold_json && is_plain {
            return Ok(None);
        }
        let decoded = decoded(token)?;
        if let Some(with) = self.with {
            return Ok(Some(with.apply(&text(&decoded))));
        }
        if may_hold_json && let Some(changed) = within(&text(&decoded), pass.plan, pass.masked)? {
            return Ok(Some(Some(changed.into())));
        }
        Ok(pass.without_patterns(&decoded))
    }

    /// A number or a word is whole: what goes on in its place, where that is something else.
    fn word(&mut self, token: &[u8], pass: &mut Pass<'_>) -> Result<Option<Instead>, Unmaskable> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(too_long());
        }
        self.state = State::After;
        Ok(if self.skipping.is_some() || token == b"null" {
            None
        } else if let Some(with) = self.with {
            Some(with.apply(&text(token)))
        } else {
            pass.without_patterns(token)
        })
    }

    /// The next value has this name.
    fn name(&mut self, name: &[u8]) -> Result<(), Unmaskable> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Unmaskable("JSON with a name of more than 4 KiB".to_owned()));
        }
        if let Some(Place::Member(last)) = self.places.last_mut() {
            last.clear();
            last.extend_from_slice(name);
        }
        self.state = State::Colon;
        Ok(())
    }

    fn open(&mut self, byte: u8, at: usize, pass: &mut Pass<'_>) -> Result<(), Unmaskable> {
        if let Some(with) = self.begin(at, pass) {
            let depth = self.places.len();
            self.skipping = Some(Skipping { with, depth });
        }
        if self.places.len() >= DEPTH_MAX {
            return Err(Unmaskable(format!(
                "JSON nested more than {DEPTH_MAX} deep"
            )));
        }
        if byte == b'{' {
            let mut name = std::mem::take(&mut self.spare);
            name.clear();
            self.places.push(Place::Member(name));
            self.state = State::Name;
        } else {
            self.places.push(Place::Item(0));
            self.state = State::Value;
        }
        Ok(())
    }

    fn close(&mut self, at: usize, pass: &mut Pass<'_>) {
        if let Some(Place::Member(name)) = self.places.pop() {
            self.spare = name;
        }
        self.state = State::After;
        if let Some(skipping) = self
            .skipping
            .take_if(|skipping| skipping.depth == self.places.len())
        {
            pass.out.extend_from_slice(match skipping.with {
                MaskKind::Null => b"null",
                _ => b"\"[redacted]\"",
            });
            pass.from = at + 1;
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

/// Whether what a string says, escapes included, could be JSON that has names.
fn may_begin_json(text: &[u8]) -> bool {
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    first.is_some_and(|first| matches!(first, b'{' | b'[' | b'\\' | 0x80..))
}

/// JSON within a string, masked; `None` where there is none, or nothing in it is masked. One level is
/// looked into.
fn within(
    text: &str,
    plan: &BodyPlan,
    masked: &mut BTreeSet<Box<str>>,
) -> Result<Option<String>, Unmaskable> {
    let may_be = matches!(text.trim_start().as_bytes().first(), Some(b'{' | b'['));
    if !may_be || !plan.by_name() || serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Ok(None);
    }
    let inner_plan = BodyPlan {
        strict: false,
        ..plan.clone()
    };
    let (mut inner, mut out) = (Json::new(false), BytesMut::new());
    inner.push(text.as_bytes(), &inner_plan, masked, &mut out)?;
    inner.finish(&inner_plan, masked, &mut out)?;
    let changed = String::from_utf8_lossy(&out).into_owned();
    Ok((changed != text).then_some(changed))
}
