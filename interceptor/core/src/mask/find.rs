//! Secrets that begin with, or are built around, characters of their own.

use std::{ops::Range, sync::LazyLock};

use memchr::{memchr, memmem::Finder};

use super::pattern::{Pattern, Wanted};

/// Calls `found` with everything of the `wanted` kinds in `text`, apart from numbers.
pub(super) fn find(text: &[u8], wanted: Wanted, found: &mut impl FnMut(Pattern, Range<usize>)) {
    if wanted.has(Pattern::Email) {
        emails(text, &mut |range| found(Pattern::Email, range));
    }
    if wanted.has(Pattern::AwsKey) && text.len() >= 20 {
        aws_key_ids(text, &mut |range| found(Pattern::AwsKey, range));
        aws_secrets(text, &mut |range| found(Pattern::AwsKey, range));
    }
    if wanted.has(Pattern::Jwt) && text.len() >= 16 {
        tokens(text, &mut |range| found(Pattern::Jwt, range));
    }
    if wanted.has(Pattern::Pem) && text.len() >= PEM_MIN {
        private_keys(text, &mut |range| found(Pattern::Pem, range));
    }
}

/// The byte at `index`; behind the end a NUL, which no secret contains.
pub(super) fn at(text: &[u8], index: usize) -> u8 {
    text.get(index).copied().unwrap_or(0)
}

/// Whether a word may begin at `index`: at the start, behind what isn't a letter or digit, or behind
/// an escaped line end or tab as JSON and COPY write them.
pub(super) fn begins(text: &[u8], index: usize) -> bool {
    let Some(before) = index.checked_sub(1) else {
        return true;
    };
    !at(text, before).is_ascii_alphanumeric()
        || matches!(at(text, before), b'n' | b'r' | b't')
            && before
                .checked_sub(1)
                .is_some_and(|escape| at(text, escape) == b'\\')
}

/// How many bytes from `from` on are `of` a kind.
fn span(text: &[u8], from: usize, of: impl Fn(u8) -> bool) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    rest.iter()
        .position(|byte| !of(*byte))
        .unwrap_or(rest.len())
}

/// RFC 5321 addresses with a domain of two labels or more; letters of other scripts as RFC 6531 has them.
fn emails(text: &[u8], found: &mut impl FnMut(Range<usize>)) {
    const LOCAL_MAX: usize = 256;
    let local = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || byte >= 0x80
            || matches!(
                byte,
                b'.' | b'_' | b'%' | b'+' | b'\'' | b'-' | b'!' | b'#' | b'$' | b'&' | b'~'
            )
    };
    let mut from = 0;
    while let Some(sign) = memchr(b'@', text.get(from..).unwrap_or_default()) {
        let sign = from + sign;
        let head = text.get(from.max(sign.saturating_sub(LOCAL_MAX))..sign);
        let length = head
            .unwrap_or_default()
            .iter()
            .rev()
            .take_while(|byte| local(**byte))
            .count();
        // Quotes and punctuation around it aren't part of it; nor is half a character.
        let lead = span(text, sign - length, |byte| {
            !byte.is_ascii_alphanumeric() && byte != b'_' && !(0xC2..0xF5).contains(&byte)
        });
        from = sign + 1;
        if lead < length
            && let Some(end) = domain_end(text, from)
        {
            found(sign - length + lead..end);
            from = end;
        }
    }
}

/// Where the domain name that begins at `from` ends.
fn domain_end(text: &[u8], from: usize) -> Option<usize> {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80 || byte == b'-';
    let mut end = None;
    let mut label = from;
    loop {
        let length = span(text, label, part);
        // Top-level domains have letters only, two or more, but for `xn--…`.
        let letters = span(text, label, |byte| {
            byte.is_ascii_alphabetic() || byte >= 0x80
        });
        if label > from && letters >= 2 {
            let encoded = text
                .get(label..label + 4)
                .is_some_and(|start| start.eq_ignore_ascii_case(b"xn--"));
            end = Some(label + if encoded { length } else { letters });
        }
        if length == 0 || at(text, label + length) != b'.' {
            return end;
        }
        label += length + 1;
    }
}

/// Access key ids: four letters that tell the kind, sixteen characters.
fn aws_key_ids(text: &[u8], found: &mut impl FnMut(Range<usize>)) {
    static IA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("IA"));
    static ACCA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("ACCA"));
    let mut id = |start: usize| {
        let rest = span(text, start + 4, |byte| {
            byte.is_ascii_uppercase() || byte.is_ascii_digit()
        });
        if rest >= 16 {
            found(start..start + 20);
        }
    };
    for index in IA.find_iter(text) {
        if let Some(start) = index.checked_sub(2)
            && matches!(text.get(start..index), Some([b'A', b'K' | b'S' | b'B']))
        {
            id(start);
        }
    }
    for start in ACCA.find_iter(text) {
        id(start);
    }
}

/// Secret access keys: words of exactly forty characters of base64 that look drawn by lot. They have
/// no mark of their own, and stand alone in a column as often as beside their name.
fn aws_secrets(text: &[u8], found: &mut impl FnMut(Range<usize>)) {
    const LENGTH: usize = 40;
    let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'+');
    // Whatever has forty characters covers one of every forty places.
    let mut place = LENGTH - 1;
    while place < text.len() {
        if !word(at(text, place)) {
            place += LENGTH;
            continue;
        }
        let before = text.get(place.saturating_sub(LENGTH)..place);
        let start = place
            - before
                .unwrap_or_default()
                .iter()
                .rev()
                .take_while(|byte| word(**byte))
                .count();
        let rest = text.get(start..text.len().min(start + LENGTH + 1));
        let length = span(rest.unwrap_or_default(), 0, word);
        let end = start + length;
        let around = [
            start.checked_sub(1).map_or(0, |before| at(text, before)),
            at(text, end),
        ];
        if length == LENGTH
            && !matches!(around, [b'_' | b'-', _] | [_, b'_' | b'-' | b'='])
            && is_drawn_by_lot(text.get(start..end).unwrap_or_default())
        {
            found(start..end);
        }
        place = if length > LENGTH { place } else { end } + LENGTH;
    }
}

/// Capitals, small letters and digits or signs in no order: forty characters of base64 change kind 25
/// times on average and hardly ever less than 14; names and paths do so rarely, hexadecimal has no
/// capitals.
fn is_drawn_by_lot(word: &[u8]) -> bool {
    let kind = |byte: &u8| match byte {
        b'A'..=b'Z' => 0_usize,
        b'a'..=b'z' => 1,
        _ => 2,
    };
    let mut seen = [false; 3];
    for byte in word {
        if let Some(seen) = seen.get_mut(kind(byte)) {
            *seen = true;
        }
    }
    let changes = word
        .windows(2)
        .filter(|pair| pair.first().map(kind) != pair.last().map(kind))
        .count();
    seen == [true; 3] && changes >= 14
}

/// JSON Web Tokens, signed (three parts, the last may be empty) or encrypted (five).
fn tokens(text: &[u8], found: &mut impl FnMut(Range<usize>)) {
    static HEAD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("eyJ"));
    let part = |from: usize| {
        span(text, from, |byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
        })
    };
    let mut from = 0;
    while let Some(start) = HEAD.find(text.get(from..).unwrap_or_default()) {
        let start = from + start;
        let mut end = start + part(start);
        from = end;
        if end - start < 11 || at(text, end) != b'.' {
            continue;
        }
        let payload = part(end + 1);
        let signature = end + 1 + payload;
        if at(text, signature) != b'.' || (payload < 8 && payload != 0) {
            continue;
        }
        end = signature + 1 + part(signature + 1);
        for _ in 0..2 {
            let more = part(end + 1);
            if at(text, end) == b'.' && more > 0 {
                end += 1 + more;
            }
        }
        // An empty payload belongs to an encrypted token only.
        if payload > 0 || end > signature + 1 {
            found(start..end);
            from = end;
        }
    }
}

/// The shortest line that begins a private key.
const PEM_MIN: usize = "-----BEGIN PRIVATE KEY-----".len();

/// Private keys in the textual encodings of RFC 7468, OpenSSH and OpenPGP. What has no end is one to
/// the end of the text.
fn private_keys(text: &[u8], found: &mut impl FnMut(Range<usize>)) {
    static BEGIN: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("-----BEGIN "));
    static END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("-----END "));
    let mut from = 0;
    while let Some(start) = BEGIN.find(text.get(from..).unwrap_or_default()) {
        let start = from + start;
        let label = start + 11;
        let length = span(text, label, |byte| {
            byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' '
        });
        from = label + length;
        let name = text.get(label..from).unwrap_or_default();
        if !name.ends_with(b"PRIVATE KEY") && !name.ends_with(b"PRIVATE KEY BLOCK")
            || text.get(from..from + 5) != Some(b"-----")
        {
            continue;
        }
        let rest = text.get(from..).unwrap_or_default();
        let end = END.find(rest).map_or(text.len(), |end| {
            let label = from + end + 9;
            let close = span(text, label, |byte| byte != b'-');
            label + close + span(text, label + close, |byte| byte == b'-').min(5)
        });
        found(start..end);
        from = end;
    }
}
