//! Secrets that are recognised by their form, wherever they stand.

use std::{ops::Range, sync::Arc};

use super::{MaskKind, digits, find};

/// A kind of secret that is recognised by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// An e-mail address.
    Email,
    /// A payment card number: 13 to 19 digits as a network issues them whose Luhn check holds.
    Card,
    /// An IBAN whose check digits hold (ISO 13616).
    Iban,
    /// A US social security number, with its dashes.
    UsSsn,
    /// An AWS access key id, or what looks like a secret access key.
    AwsKey,
    /// A JSON Web Token.
    Jwt,
    /// A private key in PEM form.
    Pem,
    /// A telephone number in international or North American form.
    Phone,
}

/// A pattern of a rule.
#[derive(Debug, Clone)]
pub struct PatternMask {
    /// Id of the rule it comes from.
    pub rule: Arc<str>,
    /// What is looked for.
    pub pattern: Pattern,
    /// What becomes of it.
    pub with: MaskKind,
}

/// All patterns of a plan, ready to scan with.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    masks: Vec<PatternMask>,
    wanted: Wanted,
}

/// A set of patterns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted(u8);

impl Wanted {
    pub(super) const fn has(self, pattern: Pattern) -> bool {
        self.0 & (1 << pattern as u8) != 0
    }
}

impl Pattern {
    /// Each pattern by the name that policies give it.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("email", Self::Email),
        ("card", Self::Card),
        ("iban", Self::Iban),
        ("us_ssn", Self::UsSsn),
        ("aws_key", Self::AwsKey),
        ("jwt", Self::Jwt),
        ("pem", Self::Pem),
        ("phone", Self::Phone),
    ];

    /// The pattern of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, pattern)| *pattern)
    }

    /// What becomes of it where the rule doesn't say.
    #[must_use]
    pub const fn usual(self) -> MaskKind {
        match self {
            Self::Email => MaskKind::Email,
            Self::Card | Self::Iban => MaskKind::Last4,
            _ => MaskKind::Redact,
        }
    }
}

impl Patterns {
    /// Patterns ready to scan with; of several masks for one pattern the first counts.
    #[must_use]
    pub fn new(masks: Vec<PatternMask>) -> Self {
        let wanted = masks
            .iter()
            .fold(0, |set, mask| set | (1 << mask.pattern as u8));
        Self {
            masks,
            wanted: Wanted(wanted),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.masks.is_empty()
    }

    /// Whether `pattern` is looked for.
    #[must_use]
    pub fn contains(&self, pattern: Pattern) -> bool {
        self.wanted.has(pattern)
    }

    /// `text` with everything masked that is found in it; `None` where nothing is.
    ///
    /// What a mask makes NULL is taken out.
    #[must_use]
    pub fn apply(&self, text: &[u8]) -> Option<Vec<u8>> {
        // The shortest address: `a@b.de`.
        if self.masks.is_empty() || text.len() < 6 {
            return None;
        }
        let mut found: Vec<Found> = Vec::new();
        let mut note = |pattern, range| {
            let mask = self.masks.iter().find(|mask| mask.pattern == pattern);
            let with = mask.map_or(MaskKind::Redact, |mask| mask.with);
            found.push(Found { range, with });
        };
        find::find(text, self.wanted, &mut note);
        digits::find(text, self.wanted, &mut note);
        if found.is_empty() {
            return None;
        }
        let mut out = Vec::with_capacity(text.len());
        let mut copied = 0;
        for Found { range, with } in merged(found) {
            out.extend_from_slice(text.get(copied..range.start).unwrap_or_default());
            let value = String::from_utf8_lossy(text.get(range.clone()).unwrap_or_default());
            out.extend_from_slice(with.apply(&value).unwrap_or_default().as_bytes());
            copied = range.end;
        }
        out.extend_from_slice(text.get(copied..).unwrap_or_default());
        (out != text).then_some(out)
    }
}

/// Something to be masked in a text.
#[derive(Debug)]
struct Found {
    range: Range<usize>,
    with: MaskKind,
}

/// What was found, in order. Where two overlap, the one that holds the other counts; where neither
/// does, nothing of either stays.
fn merged(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_by_key(|found| (found.range.start, std::cmp::Reverse(found.range.end)));
    let mut out: Vec<Found> = Vec::with_capacity(found.len());
    for next in found {
        match out.last_mut() {
            Some(last) if next.range.start < last.range.end => {
                if next.range.end > last.range.end {
                    last.range.end = next.range.end;
                    last.with = MaskKind::Redact;
                }
            }
            _ => out.push(next),
        }
    }
    out
}
