//! Keys under which descriptions are remembered.
//!
//! Statements of one shape differ in their numbers and plain strings only. Those are taken out where
//! they can be told without doubt; anything that could make two readers disagree about where a literal
//! ends (comments, backslashes, dollar quotes, prefixed strings) makes the text its own key.

use super::{Encoding, Lexing};

/// Writes the key of `text` with literals out; whether that can be done.
pub(super) fn shape(text: &[u8], lexing: Lexing, key: &mut Vec<u8>) -> bool {
    key.clear();
    if !lexing.standard_conforming_strings || lexing.encoding == Encoding::Unsafe {
        return false;
    }
    key.push(b'S');
    key.push(lexing.encoding as u8);
    let mut rest = text;
    let mut before = b' ';
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' | 0 | 0x80.. => return false,
            b'-' if rest.first() == Some(&b'-') => return false,
            b'/' if rest.first() == Some(&b'*') => return false,
            // A parameter's number is part of the shape; a dollar quote is not read here.
            b'$' => {
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                if digits == 0 {
                    return false;
                }
                let (number, after) = rest.split_at(digits);
                key.push(b'$');
                key.extend_from_slice(number);
                rest = after;
                before = b'0';
                continue;
            }
            b'\'' => {
                // E'…', B'…', N'…', X'…', U&'…' have rules of their own.
                if is_word(before) || before == b'&' {
                    return false;
                }
                loop {
                    let Some(end) = memchr::memchr2(b'\'', b'\\', rest) else {
                        return false;
                    };
                    let (inside, after) = rest.split_at(end);
                    if after.first() == Some(&b'\\') || inside.contains(&0) {
                        return false;
                    }
                    rest = after.get(1..).unwrap_or_default();
                    match rest.split_first() {
                        Some((b'\'', after)) => rest = after,
                        _ => break,
                    }
                }
                key.extend_from_slice(b"'?'");
                before = b'\'';
                continue;
            }
            b'"' => {
                if before == b'&' {
                    return false;
                }
                key.push(b'"');
                loop {
                    let Some(end) = memchr::memchr(b'"', rest) else {
                        return false;
                    };
                    let (inside, after) = rest.split_at(end);
                    if inside.iter().any(|byte| *byte == 0 || *byte >= 0x80) {
                        return false;
                    }
                    key.extend_from_slice(inside);
                    key.push(b'"');
                    rest = after.get(1..).unwrap_or_default();
                    match rest.split_first() {
                        Some((b'"', after)) => {
                            key.push(b'"');
                            rest = after;
                        }
                        _ => break,
                    }
                }
                before = b'"';
                continue;
            }
            b'0'..=b'9' if !is_word(before) && before != b'.' => {
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let (number, after) = rest.split_at(digits);
                match after.first() {
                    // 1.5, 1e5, 0x1F, 1a: left as they are.
                    Some(next) if is_word(*next) || *next == b'.' => {
                        key.push(byte);
                        key.extend_from_slice(number);
                    }
                    _ => key.push(b'?'),
                }
                rest = after;
                before = b'0';
                continue;
            }
            _ => key.push(byte),
        }
        before = byte;
    }
    true
}

/// Writes the key of `text` as it is.
pub(super) fn exact(text: &[u8], lexing: Lexing, key: &mut Vec<u8>) {
    key.clear();
    key.push(b'E');
    key.push(lexing.encoding as u8 | u8::from(lexing.standard_conforming_strings) << 4);
    key.extend_from_slice(text);
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}
