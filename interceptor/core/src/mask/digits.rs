//! Secrets that are made of digits: cards, IBANs, social security and telephone numbers.
//!
//! One pass over the runs of digits of a text. A number is never taken out of the middle of a run, but
//! it may be followed by other numbers (`4111 1111 1111 1111 12/27`): every end of a run is tried.

use std::ops::Range;

use super::{
    find::{at, begins},
    pattern::{Pattern, Wanted},
};

/// Calls `found` with every number of the `wanted` kinds in `text`.
pub(super) fn find(text: &[u8], wanted: Wanted, found: &mut impl FnMut(Pattern, Range<usize>)) {
    let (mut from, mut card_end) = (0, 0);
    while let Some(start) = next_digit(text, from) {
        let end = run_end(text, start);
        if wanted.has(Pattern::Card)
            && start >= card_end
            && let Some(to) = card(text, start)
        {
            found(Pattern::Card, start..to);
            card_end = to;
        }
        if wanted.has(Pattern::Iban)
            && let Some(range) = iban(text, start)
        {
            found(Pattern::Iban, range);
        }
        if wanted.has(Pattern::UsSsn)
            && let Some(to) = us_ssn(text, start)
        {
            found(Pattern::UsSsn, start..to);
        }
        if wanted.has(Pattern::Phone)
            && let Some(range) =
                international_phone(text, start).or_else(|| american_phone(text, start))
        {
            found(Pattern::Phone, range);
        }
        from = end;
    }
}

fn next_digit(text: &[u8], from: usize) -> Option<usize> {
    let rest = text.get(from..)?;
    rest.iter()
        .position(u8::is_ascii_digit)
        .map(|index| from + index)
}

fn run_end(text: &[u8], start: usize) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    let length = rest.iter().position(|byte| !byte.is_ascii_digit());
    start + length.unwrap_or(rest.len())
}

/// Where the card number that begins at `start`, the start of a run, ends.
fn card(text: &[u8], start: usize) -> Option<usize> {
    const DIGITS_MAX: usize = 19;
    // The fraction of a decimal number has as many digits.
    if start >= 2 && at(text, start - 1) == b'.' && at(text, start - 2).is_ascii_digit() {
        return None;
    }
    let mut digits = Vec::new();
    let (mut run, mut fours, mut longest) = (start, true, None);
    loop {
        let end = run_end(text, run);
        let piece = text.get(run..end)?;
        if digits.len() + piece.len() > DIGITS_MAX {
            return longest;
        }
        digits.extend_from_slice(piece);
        fours &= piece.len() == 4;
        if digits.len() >= 13 && is_issued(&digits) && is_luhn(&digits) {
            // Four groups of four are complete: what follows is the date or the security code.
            if fours && digits.len() == 16 {
                return Some(end);
            }
            longest = Some(end);
        }
        if !matches!(at(text, end), b' ' | b'-') || !at(text, end + 1).is_ascii_digit() {
            return longest;
        }
        run = end + 1;
    }
}

/// Whether a network issues numbers of this length that begin like this (ISO/IEC 7812).
///
/// The check digit alone passes one number in ten: order numbers, timestamps, identifiers.
fn is_issued(digits: &[u8]) -> bool {
    let first = |count: usize| {
        digits
            .iter()
            .take(count)
            .fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'))
    };
    let (one, two, three, four) = (first(1), first(2), first(3), first(4));
    let diners = matches!(two, 36 | 38 | 39) || matches!(three, 300..=305 | 309);
    // Maestro, Discover, UnionPay and their kin: any length.
    let any = matches!(two, 50 | 56..=58 | 60..=69);
    any || match digits.len() {
        13 => one == 4,
        14 => diners,
        15 => matches!(two, 34 | 37) || matches!(four, 2131 | 1800),
        16 => {
            one == 4
                || diners
                || matches!(two, 51..=55 | 81 | 82)
                || matches!(four, 2200..=2204 | 2221..=2720 | 3528..=3589 | 8600 | 9792 | 9860)
        }
        19 => one == 4 || matches!(four, 3528..=3589),
        _ => false,
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

/// Countries by the length of their IBANs (SWIFT's IBAN registry).
const IBAN_LENGTHS: [(usize, &str); 18] = [
    (15, "NO"),
    (16, "BE"),
    (18, "DK FI FK FO GL NL SD"),
    (19, "MK SI"),
    (20, "AT BA EE KZ LT LU MN XK"),
    (21, "CH HR LI LV"),
    (22, "BG BH CR DE GB GE IE ME RS VA"),
    (23, "AE GI IL IQ OM SO TL"),
    (24, "AD CZ ES MD PK RO SA SE SK TN VG"),
    (25, "LY PT ST"),
    (26, "IS TR"),
    (27, "BI DJ FR GR IT MC MR SM"),
    (28, "AL AZ BY CY DO GT HN HU LB NI PL SV"),
    (29, "BR EG PS QA UA"),
    (30, "JO KW MU YE"),
    (31, "MT SC"),
    (32, "LC"),
    (33, "RU"),
];

/// The IBAN whose check digits begin at `start`.
fn iban(text: &[u8], start: usize) -> Option<Range<usize>> {
    let from = start.checked_sub(2)?;
    let country = text.get(from..start)?;
    if !country.iter().all(u8::is_ascii_alphabetic) || !begins(text, from) {
        return None;
    }
    let country = country.to_ascii_uppercase();
    let expected = IBAN_LENGTHS.iter().find_map(|(length, countries)| {
        countries
            .split(' ')
            .any(|known| known.as_bytes() == country)
            .then_some(*length)
    });
    // Hexadecimal numbers look like IBANs in small letters of countries that don't exist.
    if expected.is_none() && !at(text, from).is_ascii_uppercase() {
        return None;
    }
    let mut characters = Vec::with_capacity(34);
    let (mut place, mut longest) = (from, None);
    while characters.len() < 34 && at(text, place).is_ascii_alphanumeric() {
        characters.push(at(text, place).to_ascii_uppercase());
        place += 1;
        if !at(text, place).is_ascii_alphanumeric() {
            if expected.is_none_or(|expected| expected == characters.len())
                && characters.len() >= 15
                && is_iban(&characters)
            {
                longest = Some(from..place);
            }
            if matches!(at(text, place), b' ' | b'-') {
                place += 1;
            }
        }
    }
    longest
}

/// ISO 7064 MOD 97-10 over the number with its first four characters moved to the end.
fn is_iban(characters: &[u8]) -> bool {
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
    remainder == Some(1)
}

/// Where the social security number that begins at `start` ends: three, two, four digits and dashes.
fn us_ssn(text: &[u8], start: usize) -> Option<usize> {
    let number = text.get(start..start + 11)?;
    let formed = number.iter().enumerate().all(|(index, byte)| match index {
        3 | 6 => *byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    let outside = |byte: u8| byte.is_ascii_digit() || byte == b'-';
    let impossible = number.starts_with(b"000")
        || number.starts_with(b"666")
        || number.starts_with(b"9")
        || number.get(4..6) == Some(b"00")
        || number.ends_with(b"0000");
    let before = start.checked_sub(1).map_or(b' ', |before| at(text, before));
    (formed && !impossible && !outside(before) && !outside(at(text, start + 11)))
        .then_some(start + 11)
}

/// The number in international form (ITU-T E.123) whose first digit is at `start`.
fn international_phone(text: &[u8], start: usize) -> Option<Range<usize>> {
    let from = start.checked_sub(1)?;
    if at(text, from) != b'+' || at(text, start) == b'0' || !begins(text, from) {
        return None;
    }
    let (mut run, mut digits, mut longest) = (start, 0, None);
    loop {
        let end = run_end(text, run);
        digits += end - run;
        // E.164 has 15 digits at most.
        if digits > 15 {
            return longest;
        }
        if digits >= 8 {
            longest = Some(from..end);
        }
        let between = |byte: u8| matches!(byte, b' ' | b'(' | b')' | b'.' | b'/' | b'-');
        let gap = (1..=2).find(|gap| {
            at(text, end + gap).is_ascii_digit()
                && (end..end + gap).all(|place| between(at(text, place)))
        });
        let Some(gap) = gap else {
            return longest;
        };
        run = end + gap;
    }
}

/// The North American number whose area code is at `start`: `(555) 123-4567`, `555-123-4567`.
fn american_phone(text: &[u8], start: usize) -> Option<Range<usize>> {
    if run_end(text, start) != start + 3 {
        return None;
    }
    let bracket = start >= 1 && at(text, start - 1) == b'(';
    let (exchange, dashes): (usize, &[u8]) =
        match (bracket, at(text, start + 3), at(text, start + 4)) {
            (true, b')', b' ' | b'-') => (start + 5, b"-. "),
            (true, b')', _) => (start + 4, b"-. "),
            (false, b'-', _) => (start + 4, b"-"),
            (false, b'.', _) => (start + 4, b"."),
            (false, b' ', _) => (start + 4, b"-"),
            _ => return None,
        };
    let end = exchange + 8;
    if run_end(text, exchange) != exchange + 3
        || !dashes.contains(&at(text, exchange + 3))
        || run_end(text, exchange + 4) != end
    {
        return None;
    }
    let mut from = start - usize::from(bracket);
    // The country's own number in front: `1-555-123-4567`.
    if let Some(before) = from.checked_sub(2)
        && matches!(at(text, before + 1), b'-' | b'.' | b' ')
        && at(text, before) == b'1'
        && begins(text, before)
    {
        from = before;
    }
    let before = from.checked_sub(1).map_or(b' ', |before| at(text, before));
    let continues = matches!(at(text, end), b'-' | b'.') && at(text, end + 1).is_ascii_digit();
    (begins(text, from) && !matches!(before, b'-' | b'.' | b'+') && !continues).then_some(from..end)
}
