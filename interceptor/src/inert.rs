//! Text that does nothing to whoever it is shown to: on terminals, in chats and in mails.

use std::{borrow::Cow, fmt::Write as _};

/// `text` on one line with nothing in it that acts on a terminal or hides: control characters,
/// escapes, bidirectional overrides and invisible characters are written out, `\u{202e}`.
///
/// Everything that an agent could have written goes through here before a person sees it.
pub(crate) fn inert(text: &str) -> Cow<'_, str> {
    if !text.contains(acts_or_hides) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if acts_or_hides(character) => {
                // Writing to a string can't fail.
                _ = write!(out, "\\u{{{:x}}}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    Cow::Owned(out)
}

/// Whether `character` does something to what shows it, or doesn't show.
pub(crate) fn acts_or_hides(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Soft hyphen, combining grapheme joiner, Arabic letter mark, Hangul and Khmer fillers,
            // Mongolian separators.
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
                | '\u{180b}'..='\u{180f}'
            // Zero-width characters, directional marks, line and paragraph separators, overrides.
                | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            // Word joiner, invisible operators, isolates, deprecated controls.
                | '\u{2060}'..='\u{206f}'
            // Fillers, variation selectors, byte order mark, annotations.
                | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
            // Shorthand and musical format characters, tags and further variation selectors.
                | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_alive() {
        let table = [
            ("plain ünïcödé ✓ 漢字", "plain ünïcödé ✓ 漢字"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\u{9b}31mb", "a\\u{9b}31mb"),
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("user\u{202e}nimda", "user\\u{202e}nimda"),
            ("a\u{2066}b\u{2069}", "a\\u{2066}b\\u{2069}"),
            ("DROP\u{200b}TABLE", "DROP\\u{200b}TABLE"),
            ("a\r\nb\tc\0\u{7f}", "a\\r\\nb\\tc\\u{0}\\u{7f}"),
            ("\u{e0041}\u{feff}", "\\u{e0041}\\u{feff}"),
        ];
        for (given, shown) in table {
            assert_eq!(inert(given), shown);
        }
    }
}
