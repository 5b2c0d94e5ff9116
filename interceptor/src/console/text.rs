//! What agents and servers wrote, for a page: seen as what it is, and inert.
//!
//! Templates escape everything that isn't [`Html`], and only what is in here makes that. Control characters, terminal
//! escapes, bidirectional overrides and invisible characters are written out; letters that only look like Latin ones are
//! marked; a statement is coloured by PostgreSQL's own scanner, so that what looks like a comment is one.

use std::fmt::{self, Write as _};

use interceptor_core::protocol::postgres::highlight::{self, Kind};

use crate::inert::acts_or_hides;

/// HTML that needs no escaping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Html(String);

impl fmt::Display for Html {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl askama::filters::HtmlSafe for Html {}

/// How content is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// As PostgreSQL reads it.
    Sql,
    /// Not at all.
    Plain,
}

/// Content for a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// What is seen first: all of it where it is short.
    pub(crate) first: Html,
    /// What is behind the fold; empty where there is none.
    pub(crate) rest: Html,
    /// Lines behind the fold.
    pub(crate) rest_lines: usize,
    /// Bytes of all of it.
    pub(crate) bytes: usize,
    /// Characters that act or can't be seen, which are written out.
    pub(crate) written_out: usize,
    /// Letters that only look like Latin ones.
    pub(crate) alike: usize,
}

impl Shown {
    /// What has to be known of it beside what is seen.
    pub(crate) fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        match self.written_out {
            0 => {}
            1 => flags.push("1 character that acts or can't be seen is written out.".to_owned()),
            more => flags.push(format!(
                "{more} characters that act or can't be seen are written out."
            )),
        }
        match self.alike {
            0 => {}
            1 => flags.push("1 letter only looks like a Latin one. It is marked.".to_owned()),
            more => flags.push(format!(
                "{more} letters only look like Latin ones. They are marked."
            )),
        }
        flags
    }

    /// `1 more line is`, `5 more lines are`.
    pub(crate) fn more(&self) -> String {
        match self.rest_lines {
            1 => "1 more line is".to_owned(),
            more => format!("{more} more lines are"),
        }
    }
}

/// Lines and characters of a first view: what a phone shows without scrolling.
const LINES_FIRST: usize = 14;
const CHARACTERS_FIRST: usize = 900;

/// Longest statement that is coloured, in bytes: beyond it nobody looks at colours.
const COLOURED_BYTES_MAX: usize = 256 << 10;

/// One line of text.
pub(crate) fn line(text: &str) -> Html {
    let mut out = Writer::default();
    for character in text.chars() {
        match character {
            '\n' => out.written_out("\\n", character),
            '\t' => out.written_out("\\t", character),
            other => out.character(other),
        }
    }
    Html(out.html)
}

/// Text of several lines, coloured, whole, with a fold.
pub(crate) fn block(text: &str, language: Language) -> Shown {
    let fold = fold(text);
    let spans = match language {
        Language::Sql if text.len() <= COLOURED_BYTES_MAX => highlight::spans(text),
        _ => Vec::new(),
    };
    let mut first = Writer::default();
    let mut rest = Writer::default();
    let mut spans = spans.into_iter().peekable();
    let mut open: Option<(usize, Kind)> = None;
    for (at, character) in text.char_indices() {
        if at == fold
            && let Some((_, kind)) = open
        {
            first.close();
            rest.open(kind);
        }
        let out = if at < fold { &mut first } else { &mut rest };
        if open.is_some_and(|(end, _)| at >= end) {
            out.close();
            open = None;
        }
        if open.is_none()
            && let Some((range, kind)) = spans.next_if(|(range, _)| range.start <= at)
        {
            out.open(kind);
            open = Some((range.end, kind));
        }
        match character {
            '\n' => out.html.push('\n'),
            '\t' => out.html.push('\t'),
            '\r' if text[at..].starts_with("\r\n") => {}
            other => out.character(other),
        }
    }
    if open.is_some() {
        if fold < text.len() {
            rest.close()
        } else {
            first.close()
        }
    }
    let behind = text.get(fold..).unwrap_or_default();
    Shown {
        first: Html(first.html),
        rest: Html(rest.html),
        rest_lines: if behind.is_empty() {
            0
        } else {
            behind.lines().count().max(1)
        },
        bytes: text.len(),
        written_out: first.written_out + rest.written_out,
        alike: first.alike + rest.alike,
    }
}

/// Where the first view ends.
fn fold(text: &str) -> usize {
    let mut lines = 0;
    for (characters, (at, character)) in text.char_indices().enumerate() {
        if character == '\n' {
            lines += 1;
        }
        if lines >= LINES_FIRST || characters >= CHARACTERS_FIRST {
            return at;
        }
    }
    text.len()
}

#[derive(Default)]
struct Writer {
    html: String,
    written_out: usize,
    alike: usize,
}

impl Writer {
    fn open(&mut self, kind: Kind) {
        let class = match kind {
            Kind::Keyword => "k",
            Kind::String => "s",
            Kind::Number => "n",
            Kind::Comment => "c",
        };
        _ = write!(self.html, "<span class={class}>");
    }

    fn close(&mut self) {
        self.html.push_str("</span>");
    }

    fn character(&mut self, character: char) {
        match character {
            '<' => self.html.push_str("&lt;"),
            '>' => self.html.push_str("&gt;"),
            '&' => self.html.push_str("&amp;"),
            '"' => self.html.push_str("&quot;"),
            '\'' => self.html.push_str("&#39;"),
            _ if acts_or_hides(character) => {
                let code = format!("\\u{{{:x}}}", u32::from(character));
                self.written_out(&code, character);
            }
            _ if looks_latin(character) => {
                self.alike += 1;
                let code = u32::from(character);
                _ = write!(
                    self.html,
                    "<mark class=alike title=\"U+{code:04X}: not a Latin letter\">{character}</mark>"
                );
            }
            _ => self.html.push(character),
        }
    }

    fn written_out(&mut self, code: &str, character: char) {
        self.written_out += 1;
        let number = u32::from(character);
        _ = write!(
            self.html,
            "<mark class=out title=\"U+{number:04X}\">{code}</mark>"
        );
    }
}

/// Whether `character` is of an alphabet, or a style, whose letters pass for Latin ones.
fn looks_latin(character: char) -> bool {
    matches!(u32::from(character),
        0x0250..=0x02AF | 0x0370..=0x03FF | 0x0400..=0x052F | 0x0531..=0x0587 | 0x13A0..=0x13FF
        | 0x1D00..=0x1DBF | 0x2100..=0x214F | 0x2160..=0x2188 | 0x2C80..=0x2CFF | 0xA4D0..=0xA4FF
        | 0xFF01..=0xFF5E | 0x1D400..=0x1D7FF)
        && !matches!(character, '№' | '™' | '℃' | 'µ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_acts() {
        for text in [
            "<script>alert(1)</script>",
            "\" onmouseover=alert(1) x=\"",
            "'--><img src=x onerror=alert(1)>",
            "\u{1b}]0;title\u{7}\u{1b}[2J",
            "a\u{202e}txt.exe\u{2066}",
            "zero\u{200b}width\u{feff}\u{ad}",
        ] {
            for html in [
                line(text).0,
                block(text, Language::Sql).first.0,
                block(text, Language::Plain).first.0,
            ] {
                let mut bare = html.clone();
                for tag in [
                    "<mark class=out title=",
                    "<mark class=alike title=",
                    "</mark>",
                    "</span>",
                    "<span class=k>",
                    "<span class=s>",
                    "<span class=c>",
                    "<span class=n>",
                ] {
                    bare = bare.replace(tag, "");
                }
                assert!(!bare.contains('<'), "{html}");
                assert!(!html.contains(acts_or_hides), "{html}");
            }
        }
        assert_eq!(
            line("a\u{202e}b\n").0,
            "a<mark class=out title=\"U+202E\">\\u{202e}</mark>b<mark class=out title=\"U+000A\">\\n</mark>"
        );
    }

    #[test]
    fn letters_that_pass_for_others_are_marked() {
        let shown = block("DROP TABLE \u{441}ustomers", Language::Sql);
        assert_eq!(shown.alike, 1);
        assert!(shown.first.0.contains("U+0441"));
        assert_eq!(block("Zürich, São Paulo, 東京", Language::Plain).alike, 0);
    }

    #[test]
    fn what_is_behind_the_fold_is_all_there_and_counted() {
        let text = format!("SELECT 1 /* {}\n*/; DROP TABLE t", "\n".repeat(50));
        let shown = block(&text, Language::Sql);
        assert!(
            shown.rest_lines > 30 && shown.rest.0.contains("DROP"),
            "{shown:?}"
        );
        // A comment that goes on behind the fold is one there too.
        assert_eq!(
            shown.first.0.matches("<span").count(),
            shown.first.0.matches("</span>").count()
        );
        assert!(
            shown.rest.0.starts_with("<span class=c>"),
            "{}",
            shown.rest.0
        );
        let short = block("SELECT 1", Language::Sql);
        assert_eq!((short.rest_lines, short.bytes), (0, 8));
        assert_eq!(
            short.first.0,
            "<span class=k>SELECT</span> <span class=n>1</span>"
        );
        let long = "x".repeat(5_000);
        assert_eq!(
            block(&long, Language::Plain).rest.0.len(),
            5_000 - CHARACTERS_FIRST
        );
    }
}
