//! JSON strings as they are written (RFC 8259, section 7).

use std::borrow::Cow;

use bytes::BytesMut;

use super::super::Unmaskable;

/// The end of the string that `text` begins with, where it is there.
pub(super) fn string_end(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text.get(at) == Some(&b'"') {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// A string without its quotes.
pub(super) fn inner(token: &[u8]) -> &[u8] {
    token
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""))
        .unwrap_or(token)
}

/// The characters of what a string says; what is none is a replacement character.
pub(super) fn text(bytes: &[u8]) -> Cow<'_, str> {
    // Not lossy at once: that looks at every character by itself.
    str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// What a string between its quotes says, escapes taken off; half of a pair of surrogates is a replacement
/// character.
pub(super) fn decoded(inner: &[u8]) -> Result<Cow<'_, [u8]>, Unmaskable> {
    if !inner.contains(&b'\\') {
        return Ok(inner.into());
    }
    let text = text(inner);
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
    Ok(out.into_bytes().into())
}

/// Writes a string, or `null`.
pub(super) fn encode(value: Option<&str>, out: &mut BytesMut) {
    let Some(value) = value else {
        return out.extend_from_slice(b"null");
    };
    let is_plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if value.bytes().all(is_plain) {
        out.reserve(value.len() + 2);
        out.extend_from_slice(b"\"");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\"");
    } else {
        out.extend_from_slice(serde_json::Value::from(value).to_string().as_bytes());
    }
}
