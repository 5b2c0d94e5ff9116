//! Secrets that are recognised by their form, wherever they stand.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

use regex::bytes::{Regex, RegexSet};

use super::MaskKind;

/// A kind of secret that is recognised by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// An e-mail address.
    Email,
    /// A payment card number: 13 to 19 digits whose Luhn check holds.
    Card,
    /// An IBAN whose check digits hold (ISO 13616).
    Iban,
    /// A US social security number, with its dashes.
    UsSsn,
    /// An AWS access key id, or a secret access key beside its name.
    AwsKey,
    /// A JSON Web Token.
    Jwt,
    /// A private key in PEM form.
    Pem,
    /// A telephone number in international form.
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
    set: Option<RegexSet>,
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

    const fn expression(self) -> &'static str {
        match self {
            Self::Email => {
                r"[A-Za-z0-9._%+'-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}\.)+[A-Za-z]{2,24}"
            }
            Self::Card => r"[0-9](?:[ -]?[0-9]){12,18}",
            Self::Iban => r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}",
            Self::UsSsn => r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
            Self::AwsKey => {
                r#"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}|(?i:aws.{0,20}secret.{0,20}|secret_?access_?key.{0,10})["'=: ]{1,5}[A-Za-z0-9/+]{40}"#
            }
            Self::Jwt => r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
            Self::Pem => {
                r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)"
            }
            Self::Phone => r"\+[1-9](?:[ ()./-]{0,2}[0-9]){7,14}",
        }
    }

    fn regex(self) -> &'static Regex {
        static ALL: LazyLock<Vec<Regex>> = LazyLock::new(|| {
            Pattern::NAMES
                .iter()
                .filter_map(|(_, pattern)| Regex::new(pattern.expression()).ok())
                .collect()
        });
        static NOTHING: LazyLock<Regex> = LazyLock::new(|| match Regex::new("[^\\s\\S]") {
            Ok(regex) => regex,
            Err(error) => unreachable!("{error}"),
        });
        ALL.get(self as usize).unwrap_or(&NOTHING)
    }

    /// Whether what matches at `range` of `text` is meant: what stands around it and check digits tell.
    fn confirms(self, text: &[u8], range: &Range<usize>) -> bool {
        let found = text.get(range.clone()).unwrap_or_default();
        let before = range
            .start
            .checked_sub(1)
            .and_then(|at| text.get(at))
            .copied()
            .unwrap_or(b' ');
        let after = text.get(range.end).copied().unwrap_or(b' ');
        match self {
            Self::Card => {
                let digits: Vec<u8> = found
                    .iter()
                    .filter(|byte| byte.is_ascii_digit())
                    .copied()
                    .collect();
                !before.is_ascii_digit() && !after.is_ascii_digit() && is_luhn(&digits)
            }
            Self::Iban => {
                !before.is_ascii_alphanumeric() && !after.is_ascii_alphanumeric() && is_iban(found)
            }
            Self::UsSsn => {
                let impossible = found.starts_with(b"000")
                    || found.starts_with(b"666")
                    || found.starts_with(b"9");
                !before.is_ascii_digit()
                    && !after.is_ascii_digit()
                    && before != b'-'
                    && after != b'-'
                    && !impossible
            }
            Self::Phone => !before.is_ascii_alphanumeric() && !after.is_ascii_digit(),
            Self::Email | Self::AwsKey | Self::Jwt | Self::Pem => true,
        }
    }
}

/// ISO/IEC 7812-1, annex B; numbers of one repeated digit pass the check and are nobody's.
fn is_luhn(digits: &[u8]) -> bool {
    if digits.iter().all(|digit| Some(digit) == digits.first()) {
        return false;
    }
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            let value = u32::from(digit - b'0');
            match (place % 2, value * 2) {
                (0, _) => value,
                (_, doubled) if doubled > 9 => doubled - 9,
                (_, doubled) => doubled,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// ISO 7064 MOD 97-10 over the number with its first four characters moved to the end.
fn is_iban(found: &[u8]) -> bool {
    let characters: Vec<u8> = found
        .iter()
        .filter(|byte| **byte != b' ')
        .copied()
        .collect();
    let Some((start, rest)) = characters.split_at_checked(4) else {
        return false;
    };
    let remainder = rest
        .iter()
        .chain(start)
        .try_fold(0_u32, |sum, byte| match byte {
            b'0'..=b'9' => Some((sum * 10 + u32::from(byte - b'0')) % 97),
            b'A'..=b'Z' => Some((sum * 100 + u32::from(byte - b'A') + 10) % 97),
            _ => None,
        });
    characters.len() <= 34 && remainder == Some(1)
}

impl Patterns {
    /// Patterns ready to scan with; of several masks for one pattern the first counts.
    #[must_use]
    pub fn new(masks: Vec<PatternMask>) -> Self {
        let set = RegexSet::new(masks.iter().map(|mask| mask.pattern.expression())).ok();
        Self {
            set: set.filter(|_| !masks.is_empty()),
            masks,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.masks.is_empty()
    }

    /// `text` with everything masked that is found in it; `None` where nothing is.
    #[must_use]
    pub fn apply(&self, text: &[u8]) -> Option<Vec<u8>> {
        // The shortest thing looked for has nine characters.
        if text.len() < 6 || !self.set.as_ref().is_some_and(|set| set.is_match(text)) {
            return None;
        }
        let mut current: Option<Vec<u8>> = None;
        for mask in &self.masks {
            let source = current.as_deref().unwrap_or(text);
            if let Some(masked) = apply_one(mask, source) {
                current = Some(masked);
            }
        }
        current
    }
}

fn apply_one(mask: &PatternMask, text: &[u8]) -> Option<Vec<u8>> {
    let regex = mask.pattern.regex();
    let mut out: Option<Vec<u8>> = None;
    let (mut from, mut copied) = (0, 0);
    while let Some(found) = regex.find_at(text, from) {
        let range = found.range();
        if mask.pattern.confirms(text, &range) {
            let out = out.get_or_insert_default();
            out.extend_from_slice(text.get(copied..range.start).unwrap_or_default());
            let value = String::from_utf8_lossy(text.get(range.clone()).unwrap_or_default());
            out.extend_from_slice(mask.with.apply(&value).unwrap_or_default().as_bytes());
            copied = range.end;
            from = range.end;
        } else {
            // A shorter or later match may be one: `12 4111 1111 1111 1111`.
            from = range.start + 1;
        }
    }
    if let Some(out) = &mut out {
        out.extend_from_slice(text.get(copied..).unwrap_or_default());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::{Pattern, PatternMask, Patterns};

    fn all() -> Patterns {
        Patterns::new(
            Pattern::NAMES
                .iter()
                .map(|(_, pattern)| PatternMask {
                    rule: Arc::from("r"),
                    pattern: *pattern,
                    with: pattern.usual(),
                })
                .collect(),
        )
    }

    fn masked(text: &str) -> String {
        all().apply(text.as_bytes()).map_or_else(
            || text.to_owned(),
            |bytes| String::from_utf8(bytes).unwrap(),
        )
    }

    #[test]
    fn secrets_are_found_wherever_they_stand() {
        for (text, expected) in [
            ("ada@example.com", "a***@example.com"),
            (
                "{\"mail\":\"ada@example.com\"}",
                "{\"mail\":\"a***@example.com\"}",
            ),
            (
                "Key (email)=(ada@example.co.uk) already exists.",
                "Key (email)=(a***@example.co.uk) already exists.",
            ),
            ("4111111111111111", "************1111"),
            ("card 4111 1111 1111 1111.", "card ***************1111."),
            ("4111-1111-1111-1111", "***************1111"),
            (
                "5500005555555559,4111111111111111",
                "************5559,************1111",
            ),
            ("DE89370400440532013000", "******************3000"),
            ("GB82 WEST 1234 5698 7654 32", "***********************4 32"),
            ("ssn 078-05-1120", "ssn [redacted]"),
            ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
            (
                "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                "[redacted]",
            ),
            (
                "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
                "[redacted]",
            ),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n",
                "[redacted]\n",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMIIE", "[redacted]"),
            ("call +49 30 1234567", "call [redacted]"),
        ] {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    #[test]
    fn what_only_looks_like_one_stays() {
        for text in [
            "4111111111111112",
            "123456789012345678901234",
            "0000000000000000",
            "order 2026-11-20 12:00",
            "a@b",
            "user at example.com",
            "000-12-3456",
            "DE00370400440532013000",
            "550e8400-e29b-41d4-a716-446655440000",
            "1 + 2 = 3",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    proptest! {
        #[test]
        fn a_secret_never_survives_what_is_around_it(
            before in "[ ,;:\"(){}\\[\\]a-z]{0,20}",
            after in "[ ,;:\"(){}\\[\\]]{0,20}",
            secret in prop::sample::select(vec!["ada@example.com", "4111111111111111", "AKIAIOSFODNN7EXAMPLE", "-----BEGIN PRIVATE KEY-----"]),
        ) {
            let text = format!("{before}{secret}{after}");
            prop_assert!(!masked(&text).contains(secret), "{}", masked(&text));
        }

        #[test]
        fn arbitrary_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = all().apply(&text);
        }
    }
}
