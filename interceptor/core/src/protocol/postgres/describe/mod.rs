//! From a message's text to what it does, by PostgreSQL's own parser.

mod definitions;
mod functions;
mod settings;
mod shape;
mod statements;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHashMap;
use serde_json::Value;

use crate::operation::{Description, Effects};

/// Session settings that change how a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lexing {
    /// `standard_conforming_strings`, as the server last reported it.
    pub standard_conforming_strings: bool,
    /// What `client_encoding` means for reading the text.
    pub encoding: Encoding,
}

impl Default for Lexing {
    /// What a server does unless it is told otherwise.
    fn default() -> Self {
        Self {
            standard_conforming_strings: true,
            encoding: Encoding::Utf8,
        }
    }
}

/// Client encodings, by what they mean for reading a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// UTF8.
    Utf8,
    /// Any other in which every byte below 0x80 is an ASCII character wherever it stands.
    AsciiSafe,
    /// SJIS, BIG5, GBK, …: a byte that looks like a quote or backslash may be half a character.
    Unsafe,
}

impl Encoding {
    /// What the value of `client_encoding` means.
    #[must_use]
    pub fn named(name: &[u8]) -> Self {
        match name.to_ascii_uppercase().as_slice() {
            b"UTF8" => Self::Utf8,
            b"SJIS" | b"BIG5" | b"GBK" | b"UHC" | b"GB18030" | b"JOHAB" | b"SHIFT_JIS_2004" => {
                Self::Unsafe
            }
            _ => Self::AsciiSafe,
        }
    }
}

/// What the text of one message does. Texts of one shape share it.
#[derive(Debug)]
pub struct Described {
    /// Actions, effects and resources of all statements in it, together.
    pub description: Arc<Description>,
    /// How many statements it has; 0 for an empty one.
    pub statements: usize,
    /// What it runs by a name that only the session knows, in order.
    pub runs: Box<[Reference]>,
    /// What it does to names that only the session knows, in order, once it has succeeded.
    pub names: Box<[NameChange]>,
    /// Whether it may change how a later text is read or what a name means in a way that only its
    /// result tells (SET, set_config, DO, CALL, unknown functions, …): decode nothing further until
    /// it is answered.
    pub barrier: bool,
}

/// A name that only the session can resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// EXECUTE name.
    Prepared(Box<str>),
    /// FETCH or MOVE in, or WHERE CURRENT OF, a cursor or portal of that name.
    Cursor(Box<str>),
}

/// What a statement does to the session's names.
#[derive(Debug, Clone)]
pub enum NameChange {
    /// PREPARE name AS …
    Prepare {
        /// The name.
        name: Box<str>,
        /// What running it does.
        statement: Arc<Described>,
    },
    /// DEALLOCATE name.
    Deallocate(Box<str>),
    /// DEALLOCATE ALL or DISCARD ALL.
    DeallocateAll,
    /// DECLARE name CURSOR FOR …
    Declare {
        /// The name.
        name: Box<str>,
        /// What fetching from it does.
        statement: Arc<Described>,
    },
    /// CLOSE name.
    Close(Box<str>),
    /// CLOSE ALL or DISCARD ALL.
    CloseAll,
}

/// Describes texts, remembering what it has described. One serves many sessions.
#[derive(Debug, Default)]
pub struct Describer {
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// The key of the text at hand; kept so that it needn't be allocated anew.
    key: Vec<u8>,
    known: FxHashMap<Box<[u8]>, Arc<Described>>,
}

/// What the statement `node` does by itself.
pub(super) fn statement(node: &Value) -> Arc<Description> {
    statements::inner(node).description
}

/// What calling a function does beyond computing.
pub(super) fn function(schema: Option<&str>, name: &str) -> Effects {
    functions::effects(schema, name).effects
}

pub(super) use definitions::object_name;

/// How many descriptions are remembered: applications have hundreds of shapes. Over it, all are
/// forgotten: what is still in use is back after one parse each.
const REMEMBERED_MAX: usize = 8_192;
/// Longest text that is remembered, in bytes: with the above it bounds the memory to 32 MiB.
const REMEMBERED_BYTES_MAX: usize = 4_096;

impl Describer {
    /// What `text` does. Never fails: what can't be understood is `unclassified`.
    pub fn describe(&self, text: &[u8], lexing: Lexing) -> Arc<Described> {
        if text.len() > REMEMBERED_BYTES_MAX {
            return Arc::new(statements::describe(text, lexing).described);
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = &mut *cache;
        // A text is looked for by its shape first, then as it is: which of the two a description was
        // stored under was decided when it was made.
        let shaped = shape::shape(text, lexing, &mut cache.key);
        if shaped && let Some(known) = cache.known.get(&cache.key[..]) {
            return known.clone();
        }
        shape::exact(text, lexing, &mut cache.key);
        if let Some(known) = cache.known.get(&cache.key[..]) {
            return known.clone();
        }
        let statements::Outcome {
            described,
            literal_free,
        } = statements::describe(text, lexing);
        let described = Arc::new(described);
        if shaped && literal_free {
            shape::shape(text, lexing, &mut cache.key);
        }
        if cache.known.len() >= REMEMBERED_MAX {
            cache.known.clear();
        }
        cache
            .known
            .insert(cache.key.clone().into(), described.clone());
        described
    }
}
