//! Text for policy files. What agents wrote stands in it, so it is in ASCII and on one line, whatever it was.

use std::fmt::Write as _;

/// `text` as a scalar: plain where nothing could be taken for anything else, else in double quotes with everything
/// that isn't printable ASCII written out.
pub(super) fn scalar(text: &str) -> String {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    let is_word = text.bytes().all(plain)
        && text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic());
    // What YAML, of one version or another, takes for something else than a text.
    let is_other = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    if is_word && !is_other {
        return text.to_owned();
    }
    quoted(text)
}

/// `text` in double quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(character),
            // Writing to a string can't fail.
            _ if u32::from(character) > 0xFFFF => {
                _ = write!(out, "\\U{:08X}", u32::from(character))
            }
            _ => _ = write!(out, "\\u{:04X}", u32::from(character)),
        }
    }
    out.push('"');
    out
}

/// `[a, b]`, or `a` alone.
pub(super) fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<String> = texts.into_iter().map(scalar).collect();
    match &*texts {
        [one] => one.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }
}

/// The beginning of a text that may be long, in double quotes.
pub(super) fn comment(text: &str) -> String {
    const CHARACTERS_MAX: usize = 160;
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => quoted(&format!("{}...", text.get(..end).unwrap_or_default())),
        None => quoted(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_read_as_it_was(text in any::<String>()) {
            let line = scalar(&text);
            prop_assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            let read: Vec<String> = serde_saphyr::from_str(&format!("- {line}\n- x")).unwrap();
            prop_assert_eq!(read, [text, "x".to_owned()]);
        }
    }

    #[test]
    fn what_looks_like_something_else_is_quoted() {
        for (text, expected) in [
            ("SELECT", "SELECT"),
            ("DROP TABLE", "\"DROP TABLE\""),
            ("NO", "\"NO\""),
            ("1.5", "\"1.5\""),
            ("", "\"\""),
            ("a\nb", "\"a\\nb\""),
            ("*.x", "\"*.x\""),
            ("\u{202e}", "\"\\u202E\""),
        ] {
            assert_eq!(scalar(text), expected);
        }
    }
}
