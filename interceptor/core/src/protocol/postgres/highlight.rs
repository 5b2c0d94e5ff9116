//! Where a statement's keywords, strings, numbers and comments are, as PostgreSQL's own scanner sees them.

use std::ops::Range;

use pg_query::protobuf::{KeywordKind, Token};

/// What a piece of a statement is. What is none of these has no piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A keyword, of whichever reservedness.
    Keyword,
    /// A string, of any notation.
    String,
    /// A number, or a parameter.
    Number,
    /// A comment.
    Comment,
}

/// The pieces of `statement`, by bytes, in order; none where the scanner gives up.
#[must_use]
pub fn spans(statement: &str) -> Vec<(Range<usize>, Kind)> {
    // The scanner is C: it would stop at a NUL.
    if statement.contains('\0') {
        return Vec::new();
    }
    let Ok(scanned) = pg_query::scan(statement) else {
        return Vec::new();
    };
    let spans = scanned.tokens.iter().filter_map(|token| {
        let range = usize::try_from(token.start).ok()?..usize::try_from(token.end).ok()?;
        let is_text =
            statement.is_char_boundary(range.start) && statement.is_char_boundary(range.end);
        let kind = match token.token() {
            Token::Sconst | Token::Usconst | Token::Bconst | Token::Xconst => Kind::String,
            Token::Iconst | Token::Fconst | Token::Param => Kind::Number,
            Token::SqlComment | Token::CComment => Kind::Comment,
            _ if token.keyword_kind() != KeywordKind::NoKeyword => Kind::Keyword,
            _ => return None,
        };
        (is_text && range.start < range.end).then_some((range, kind))
    });
    spans.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_scanners() {
        let text = "SELECT 'a--b', $1, 2 -- DROP\nFROM \"select\" /* x */";
        let found: Vec<_> = spans(text)
            .into_iter()
            .map(|(range, kind)| (&text[range], kind))
            .collect();
        assert_eq!(
            found,
            [
                ("SELECT", Kind::Keyword),
                ("'a--b'", Kind::String),
                ("$1", Kind::Number),
                ("2", Kind::Number),
                ("-- DROP", Kind::Comment),
                ("FROM", Kind::Keyword),
                ("/* x */", Kind::Comment),
            ]
        );
        assert_eq!(spans("SELECT '\0'"), []);
        assert_eq!(spans("SELECT 'unterminated"), []);
    }
}
