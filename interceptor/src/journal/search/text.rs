//! What is searched for: words, beginnings of words and phrases, all of which a session has to have.

use interceptor_core::operation::Operation;
use memchr::memmem;

use super::split::{self, Kind, WORD_BYTES_MAX};

/// Longest text that is searched for, in bytes: a long statement's worth. What tells it apart is much shorter.
const TEXT_BYTES_MAX: usize = 1_024;

/// Words that are searched for at once, those of phrases included: one bit each.
pub(super) const TERMS_MAX: usize = 32;

/// Fewest characters before a `*`: shorter beginnings are those of a large part of all words.
const PREFIX_CHARACTERS_MIN: usize = 2;

/// What is searched for; all of it has to be in the operations of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// What the index is asked for.
    terms: Vec<Term>,
    /// What has to be looked for on record besides, as it is compared: [`flattened`].
    phrases: Vec<Box<str>>,
}

/// A word that the index knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Term {
    Word(Box<[u8]>),
    Prefix(Box<[u8]>),
}

/// Why nothing can be searched for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// There is no word in it.
    #[error(
        "there is no word in `{0}`; give letters, digits or underscores: `orders`, `shop.orders`, `\"drop table\"`, `ord*`"
    )]
    Wordless(String),
    /// A quotation mark without its other one.
    #[error(
        "a quotation mark is not closed; put one at the end of the phrase as well: `\"drop table\"`"
    )]
    Unclosed,
    /// A star where none can be.
    #[error(
        "`{0}` has a `*` that isn't behind the beginning of a word; write `ord*`, with {PREFIX_CHARACTERS_MIN} characters or more before it, or put what has a star in it in quotation marks: `\"select * from\"`"
    )]
    Star(String),
    /// More than anybody looks for.
    #[error(
        "{0} bytes are too many to search for; give up to {TEXT_BYTES_MAX}: a few words that tell it apart"
    )]
    Long(usize),
    /// More words than anybody looks for.
    #[error("more than {TERMS_MAX} words are searched for; give a few that tell it apart")]
    Many,
}

impl Text {
    /// What `text` searches for: words, `shop.orders`, `begin*`, `"a phrase"`.
    ///
    /// # Errors
    /// Where nothing can be searched for; the message says what could.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TextError::Long(text.len()));
        }
        let mut parsed = Self {
            terms: Vec::new(),
            phrases: Vec::new(),
        };
        // What is between quotation marks is every second part.
        let parts: Vec<&str> = text.split('"').collect();
        if parts.len().is_multiple_of(2) {
            return Err(TextError::Unclosed);
        }
        for (index, part) in parts.into_iter().enumerate() {
            if index % 2 == 1 {
                parsed.phrase(part)?;
            } else {
                for item in part.split_whitespace() {
                    parsed.item(item)?;
                }
            }
        }
        if parsed.terms.is_empty() {
            return Err(TextError::Wordless(shown(text)));
        }
        if parsed.terms.len() > TERMS_MAX {
            return Err(TextError::Many);
        }
        Ok(parsed)
    }

    /// Takes a part without spaces.
    fn item(&mut self, item: &str) -> Result<(), TextError> {
        let word = item.strip_suffix('*').unwrap_or(item);
        let is_prefix = word.len() < item.len();
        // `shop.*` is all of what is in there.
        let identifier = word.strip_suffix('.').filter(|_| is_prefix);
        let is_one = is_identifier(identifier.unwrap_or(word));
        if word.contains('*') || (is_prefix && !is_one) {
            return Err(TextError::Star(shown(item)));
        }
        let lower = word.to_lowercase();
        if is_prefix {
            let characters = lower.chars().count();
            if characters < PREFIX_CHARACTERS_MIN || lower.len() > WORD_BYTES_MAX {
                return Err(TextError::Star(shown(item)));
            }
            self.add(Term::Prefix(lower.as_bytes().into()));
        } else if is_one && lower.len() <= WORD_BYTES_MAX {
            self.add(Term::Word(lower.as_bytes().into()));
        } else {
            self.phrase(word)?;
        }
        Ok(())
    }

    /// Takes words that follow one another.
    fn phrase(&mut self, phrase: &str) -> Result<(), TextError> {
        let before = self.terms.len();
        let mut found = false;
        split::each(phrase.as_bytes(), |word, kind| {
            // A phrase may end in the middle of an identifier.
            if kind == Kind::Word {
                found = true;
                self.add(Term::Word(word.into()));
            }
        });
        if !found {
            return Err(TextError::Wordless(shown(phrase)));
        }
        let flat = flattened(phrase.as_bytes());
        let flat = flat.trim();
        let is_one_word = self.terms.len() <= before + 1
            && flat.len() <= WORD_BYTES_MAX
            && flat.chars().all(split::is_word);
        if !is_one_word {
            self.phrases.push(flat.into());
        }
        Ok(())
    }

    fn add(&mut self, term: Term) {
        if !self.terms.contains(&term) {
            self.terms.push(term);
        }
    }

    /// What the index is asked for.
    pub(super) fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether what the index finds has to be looked up on record.
    pub(super) const fn is_verified(&self) -> bool {
        !self.phrases.is_empty()
    }

    /// Whether `operation` has all of it by itself.
    #[must_use]
    pub fn is_in(&self, operation: &Operation) -> bool {
        let mut seen = Seen::default();
        seen.take(self, operation);
        seen.is_all(self)
    }

    /// Whether `texts` of one operation have all of it.
    #[must_use]
    pub fn is_among(&self, texts: &[&[u8]]) -> bool {
        let mut seen = Seen::default();
        texts.iter().for_each(|bytes| seen.look_into(self, bytes));
        seen.is_all(self)
    }
}

/// What was seen of a text in the operations of a session.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    terms: u32,
    phrases: u32,
}

impl Seen {
    /// Takes what `operation` has of `text`.
    pub fn take(&mut self, text: &Text, operation: &Operation) {
        split::texts(operation, |bytes| self.look_into(text, bytes));
    }

    fn look_into(&mut self, text: &Text, bytes: &[u8]) {
        if self.terms != all(text.terms.len()) {
            split::each(bytes, |word, _| {
                for (index, term) in text.terms.iter().enumerate() {
                    self.terms |= u32::from(term.is(word)) << index;
                }
            });
        }
        if self.phrases != all(text.phrases.len()) {
            let flat = flattened(bytes);
            for (index, phrase) in text.phrases.iter().enumerate() {
                self.phrases |= u32::from(has(&flat, phrase)) << index;
            }
        }
    }

    /// Whether that is all of it.
    #[must_use]
    pub fn is_all(self, text: &Text) -> bool {
        self.terms == all(text.terms.len()) && self.phrases == all(text.phrases.len())
    }
}

impl Term {
    /// Whether `word` of a text is it.
    pub(super) fn is(&self, word: &[u8]) -> bool {
        match self {
            Self::Word(wanted) => **wanted == *word,
            Self::Prefix(wanted) => word.starts_with(wanted),
        }
    }
}

/// A bit for each of `count` things.
pub(super) const fn all(count: usize) -> u32 {
    if count >= TERMS_MAX {
        u32::MAX
    } else {
        (1 << count) - 1
    }
}

/// Whether it is one word, or one identifier that the index has whole.
fn is_identifier(text: &str) -> bool {
    let parts = text.split('.').count();
    parts <= split::PARTS_MAX
        && text
            .split('.')
            .all(|part| !part.is_empty() && part.chars().all(split::is_word))
}

/// `text` as phrases are compared: in lower case, with one space for any.
fn flattened(text: &[u8]) -> String {
    let mut flat = String::with_capacity(text.len());
    let mut is_gap = false;
    let text = String::from_utf8_lossy(text);
    for character in text.chars().flat_map(char::to_lowercase) {
        if character.is_whitespace() {
            is_gap = true;
            continue;
        }
        if std::mem::take(&mut is_gap) {
            flat.push(' ');
        }
        flat.push(character);
    }
    flat
}

/// Whether `flat` has `phrase`, which begins and ends where words do.
fn has(flat: &str, phrase: &str) -> bool {
    let begins = phrase.starts_with(split::is_word);
    let ends = phrase.ends_with(split::is_word);
    let finder = memmem::Finder::new(phrase.as_bytes());
    let mut from = 0;
    // One that is in the middle of a word may overlap one that isn't.
    while let Some(found) = flat
        .as_bytes()
        .get(from..)
        .and_then(|rest| finder.find(rest))
    {
        let at = from + found;
        let before = flat.get(..at).unwrap_or_default();
        let after = flat.get(at + phrase.len()..).unwrap_or_default();
        let is_cut =
            begins && before.ends_with(split::is_word) || ends && after.starts_with(split::is_word);
        if !is_cut {
            return true;
        }
        from = at + 1;
    }
    false
}

/// A part of what was asked for, as an error shows it.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use interceptor_core::operation::{Description, Protocol};
    use proptest::prelude::*;

    use super::*;

    fn operation(content: &str) -> Operation {
        Operation {
            protocol: Protocol::Postgres,
            description: Arc::new(Description::default()),
            content: content.to_owned().into(),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        }
    }

    #[test]
    fn what_is_asked_for_is_in_what_has_it() {
        let table = [
            ("orders", "SELECT * FROM shop.orders", true),
            ("ORDERS", "select * from Shop.Orders", true),
            ("shop.orders", "SELECT * FROM db.shop.orders", true),
            ("shop.orders", "SELECT shop, orders", false),
            ("order", "SELECT * FROM orders", false),
            ("ord*", "SELECT * FROM orders", true),
            ("shop.or*", "SELECT * FROM shop.orders", true),
            ("shop.*", "SELECT * FROM shop.orders", true),
            ("shop.*", "SELECT shop, orders", false),
            ("orders select", "SELECT * FROM orders", true),
            ("orders delete", "SELECT * FROM orders", false),
            ("\"from orders\"", "SELECT *\n\tFROM   orders", true),
            ("\"from order\"", "SELECT * FROM orders", false),
            ("\"ab ab\"", "xab ab ab", true),
            ("\"orders from\"", "SELECT * FROM orders", false),
            ("\"select * from\"", "SELECT * FROM orders", true),
            ("\"db.shop\"", "SELECT * FROM db.shop.orders", true),
            ("\"a.b.c.d.e.f.g.h.i\" x", "x a.b.c.d.e.f.g.h.i", true),
            ("/v1/users", "GET /api/v1/users HTTP/1.1", true),
            ("/v1/users", "GET /api/v1/usersmore HTTP/1.1", false),
            ("a@b.example", "mail A@B.example now", true),
            ("STRASSE", "Straße", false),
            ("straße", "STRAßE", true),
            ("übung", "die ÜBUNG", true),
        ];
        for (asked, content, is_in) in table {
            let text = Text::parse(asked).unwrap();
            assert_eq!(
                text.is_in(&operation(content)),
                is_in,
                "{asked} in {content}"
            );
        }
        let long = "x".repeat(200);
        let text = Text::parse(&long).unwrap();
        assert!(text.is_in(&operation(&format!("a {long} b"))));
        assert!(!text.is_in(&operation(&format!("a {long}y b"))));
    }

    #[test]
    fn what_cant_be_searched_for_is_said_with_what_can() {
        let table = [
            ("", "there is no word in ``; give letters"),
            ("  ", "there is no word in `  `"),
            ("-- ;", "there is no word in `--`"),
            ("\"==\"", "there is no word in `==`"),
            (
                "*",
                "`*` has a `*` that isn't behind the beginning of a word; write `ord*`",
            ),
            ("a*", "`a*` has a `*`"),
            ("a*b", "`a*b` has a `*`"),
            ("/api/us*", "`/api/us*` has a `*`"),
            (
                "select * from",
                "put what has a star in it in quotation marks",
            ),
            (
                "\"drop table",
                "a quotation mark is not closed; put one at the end",
            ),
            ("\u{1b}[2J*", "`\\u{1b}[2J*` has a `*`"),
        ];
        for (asked, expected) in table {
            let said = Text::parse(asked).unwrap_err().to_string();
            assert!(said.contains(expected), "{asked}: {said}");
        }
        let megabyte = "word ".repeat(200_000);
        let said = Text::parse(&megabyte).unwrap_err().to_string();
        assert!(said.starts_with("1000000 bytes are too many to search for; give up to 1024"));
        let many: Vec<String> = (0..TERMS_MAX + 1).map(|word| format!("w{word}")).collect();
        assert_eq!(Text::parse(&many.join(" ")), Err(TextError::Many));
        let most = many.get(1..).unwrap().join(" ");
        let text = Text::parse(&most).unwrap();
        assert!(text.is_in(&operation(&most)) && !text.is_in(&operation("w1 w2")));
    }

    proptest! {
        #[test]
        fn any_text_is_searched_for_or_refused(asked in any::<String>(), content in any::<String>()) {
            if let Ok(text) = Text::parse(&asked) {
                let _ = text.is_in(&operation(&content));
            }
        }

        #[test]
        fn what_is_written_is_found(before in "[a-z ,.]{0,8}", word in "[a-z]{2,10}", after in "[ ,;=]{1,8}") {
            let content = format!("{before} {word}{after}");
            for asked in [word.clone(), format!("{word}*"), format!("\"{word}\""), word.to_uppercase()] {
                prop_assert!(Text::parse(&asked).unwrap().is_in(&operation(&content)));
            }
        }
    }
}
