//! Text of agents on its way to people: inert, escaped for the place it goes to, and never longer than fits.

use std::borrow::Cow;

use crate::inert::inert;

/// Where text goes: what one character is written as there.
pub(super) type Escape = fn(char, &mut String);

/// Into text that nothing interprets: JSON that a serializer writes, the text part of a mail.
pub(super) fn plain(character: char, out: &mut String) {
    out.push(character);
}

/// Into Slack, where mentions, links and broadcasts begin with `<`. Formatting characters mean nothing in
/// `plain_text`, which is where text of agents goes.
pub(super) fn slack(character: char, out: &mut String) {
    match character {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        _ => out.push(character),
    }
}

/// Into HTML, text or quoted attribute.
pub(super) fn html(character: char, out: &mut String) {
    match character {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '"' => out.push_str("&quot;"),
        '\'' => out.push_str("&#39;"),
        _ => out.push(character),
    }
}

/// Into the Markdown of an Adaptive Card's `TextBlock`: every character that CommonMark lets a backslash take the
/// meaning from, braces included because of `{{DATE(…)}}`.
pub(super) fn markdown(character: char, out: &mut String) {
    if character.is_ascii_punctuation() {
        out.push('\\');
    }
    out.push(character);
}

/// What fits of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    /// It.
    pub(super) text: String,
    /// How many bytes of the text are behind it.
    pub(super) more: usize,
}

/// As much of `text` as fits into `room` bytes once it is inert and escaped; ends of lines and indentation stay.
pub(super) fn block(text: &str, room: usize, escape: Escape) -> Shown {
    show(text, room, escape, true)
}

/// As much of `text` as fits into `room` bytes once it is inert and escaped, on one line.
pub(super) fn line(text: &str, room: usize, escape: Escape) -> String {
    let Shown { mut text, more } = show(text, room, escape, false);
    if more > 0 {
        text.push('…');
    }
    text
}

fn show(text: &str, room: usize, escape: Escape, lines: bool) -> Shown {
    let mut out = String::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let mut length = character.len_utf8();
        let before = out.len();
        let piece = rest.get(..length).unwrap_or_default();
        if lines && character == '\n' {
            out.push('\n');
        } else if lines && rest.starts_with("\r\n") {
            // Windows line ends are everyday; elsewhere a carriage return is shown.
            out.push('\n');
            length = 2;
        } else if lines && character == '\t' {
            out.push_str("    ");
        } else {
            let written: Cow<'_, str> = inert(piece);
            written.chars().for_each(|one| escape(one, &mut out));
        }
        if out.len() > room {
            out.truncate(before);
            break;
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Shown {
        text: out,
        more: rest.len(),
    }
}

/// `text`, or what of it fits into `bytes`, without a character cut in two.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    let end = text.floor_char_boundary(bytes);
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inert::acts_or_hides;

    #[test]
    fn text_is_escaped_for_where_it_goes() {
        let table: [(Escape, &str, &str); 8] = [
            (
                slack,
                "<!channel> & <@U1|you>",
                "&lt;!channel&gt; &amp; &lt;@U1|you&gt;",
            ),
            (slack, "a\u{202e}b", "a\\u{202e}b"),
            (
                html,
                "<b title='x' a=\"y\">&",
                "&lt;b title=&#39;x&#39; a=&quot;y&quot;&gt;&amp;",
            ),
            (html, "\u{0}", "\\u{0}"),
            (markdown, "[a](http://b)", "\\[a\\]\\(http\\:\\/\\/b\\)"),
            (
                markdown,
                "{{DATE(x)}} **y**",
                "\\{\\{DATE\\(x\\)\\}\\} \\*\\*y\\*\\*",
            ),
            (plain, "a\r\nBcc: x", "a\\r\\nBcc: x"),
            (plain, "\u{200b}ünïcödé 漢字", "\\u{200b}ünïcödé 漢字"),
        ];
        for (escape, given, shown) in table {
            assert_eq!(line(given, 1_000, escape), shown);
        }
    }

    #[test]
    fn lines_stay_in_a_block_and_nothing_else_that_moves() {
        let shown = block("a\r\n\tb\rc\u{1b}[2J\n", 1_000, plain);
        assert_eq!(shown.text, "a\n    b\\rc\\u{1b}[2J\n");
        assert_eq!(shown.more, 0);
    }

    #[test]
    fn what_is_cut_is_counted_in_bytes_of_the_text() {
        assert_eq!(
            block("&&&&", 12, slack),
            Shown {
                text: "&amp;&amp;".into(),
                more: 2
            }
        );
        // Nothing is cut within an escape or a character.
        assert_eq!(
            block("ab\u{1b}é", 7, plain),
            Shown {
                text: "ab".into(),
                more: 3
            }
        );
        assert_eq!(line("abcdef", 3, plain), "abc…");
        assert_eq!(cut("aéb", 2), "a");
    }

    proptest! {
        #[test]
        fn any_text_is_inert_escaped_and_bounded(text in any::<String>(), room in 0_usize..200) {
            for escape in [plain, slack, html, markdown] {
                let shown = block(&text, room, escape);
                prop_assert!(shown.text.len() <= room);
                prop_assert!(!shown.text.replace('\n', "").contains(acts_or_hides));
                prop_assert!(shown.more <= text.len());
            }
            prop_assert!(!block(&text, 10_000, slack).text.contains(['<', '>']));
            prop_assert!(!block(&text, 10_000, html).text.contains(['<', '>', '"', '\'']));
            prop_assert!(!line(&text, room, plain).contains(['\n', '\r']));
        }
    }
}
