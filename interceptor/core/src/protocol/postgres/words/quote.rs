//! Parts of a statement in its own words.
//!
//! A condition is quoted from the source, not written anew from the tree: what people read is what the agent wrote.
//! Which part of the source it is can't be told from the tree alone, so what was cut out is parsed again, and is
//! quoted only where that gives the same tree.

use pg_query::protobuf::{Node, Token};
use serde_json::Value;

use crate::limits;

/// A text and its tokens, without its comments.
#[derive(Debug)]
pub(super) struct Source<'a> {
    text: &'a str,
    tokens: Vec<(usize, usize, Token)>,
    /// Conditions that may still be quoted.
    left: usize,
}

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let tokens = pg_query::scan_tokens(text).unwrap_or_default();
        let tokens = tokens.iter().filter_map(|token| {
            let start = usize::try_from(token.start).ok()?;
            let end = usize::try_from(token.end).ok()?;
            let kind = Token::try_from(token.token).ok()?;
            let is_comment = matches!(kind, Token::SqlComment | Token::CComment);
            (!is_comment).then_some((start, end, kind))
        });
        Self {
            text,
            tokens: tokens.collect(),
            left: limits::WORDS_QUOTES_MAX,
        }
    }

    /// The condition `node`, which stands behind `keyword`, bounded; `None` where it can't be told which part it is.
    pub(super) fn condition(&mut self, keyword: Token, node: &Node) -> Option<String> {
        self.left = self.left.checked_sub(1)?;
        let mut tree = serde_json::to_value(node).ok()?;
        let mut first = i64::MAX;
        forget_places(&mut tree, &mut first);
        let first = usize::try_from(first).ok()?;
        let upto = self.tokens.partition_point(|(start, _, _)| *start <= first);
        let before = self.tokens.get(..upto)?;
        let at = before.iter().rposition(|(_, _, kind)| *kind == keyword)?;
        let behind = self.tokens.get(at + 1..)?;
        let quote = self.collapsed(behind.get(..length(behind))?);
        (parsed(&quote)? == tree).then(|| bounded(&quote))
    }

    /// Tokens as they stand in the text, with one space wherever there was anything between two.
    fn collapsed(&self, tokens: &[(usize, usize, Token)]) -> String {
        let mut out = String::new();
        let mut last = None;
        for (start, end, _) in tokens {
            if last.is_some_and(|last| last < *start) {
                out.push(' ');
            }
            out.push_str(self.text.get(*start..*end).unwrap_or_default());
            last = Some(*end);
        }
        out
    }
}

/// How many of `tokens` belong to the expression that they begin with.
fn length(tokens: &[(usize, usize, Token)]) -> usize {
    let mut depth = 0_usize;
    for (at, (_, _, kind)) in tokens.iter().enumerate() {
        match kind {
            // Parentheses and brackets.
            Token::Ascii40 | Token::Ascii91 | Token::Case => depth += 1,
            Token::Ascii41 | Token::Ascii93 if depth == 0 => return at,
            Token::Ascii41 | Token::Ascii93 => depth -= 1,
            Token::EndP => depth = depth.saturating_sub(1),
            // A semicolon, and what may stand behind a condition, all of it reserved.
            Token::Ascii59
            | Token::Returning
            | Token::GroupP
            | Token::Having
            | Token::Window
            | Token::Order
            | Token::Limit
            | Token::Offset
            | Token::Fetch
            | Token::For
            | Token::Union
            | Token::Intersect
            | Token::Except
            | Token::On
            | Token::Do
            | Token::When
            | Token::Then
            | Token::With
                if depth == 0 =>
            {
                return at;
            }
            _ => {}
        }
    }
    tokens.len()
}

/// The tree of a condition.
fn parsed(condition: &str) -> Option<Value> {
    let text = format!("SELECT WHERE {condition}");
    let parsed = pg_query::parse(&text, pg_query::ParserOptions::default()).ok()?;
    let [statement] = parsed.protobuf.stmts.as_slice() else {
        return None;
    };
    let Some(pg_query::NodeEnum::SelectStmt(select)) = &statement.stmt.as_ref()?.node else {
        return None;
    };
    let mut tree = serde_json::to_value(select.where_clause.as_ref()?).ok()?;
    let mut first = i64::MAX;
    forget_places(&mut tree, &mut first);
    Some(tree)
}

/// Takes out where in the text things stand, and notes the first such place.
fn forget_places(tree: &mut Value, first: &mut i64) {
    match tree {
        Value::Array(items) => items.iter_mut().for_each(|item| forget_places(item, first)),
        Value::Object(fields) => fields.iter_mut().for_each(|(name, field)| {
            // Also where a list begins and ends.
            if name.ends_with("location") || name.starts_with("rexpr_list_") {
                let place = field.as_i64().filter(|place| *place >= 0);
                if let Some(place) = place.filter(|_| name == "location") {
                    *first = place.min(*first);
                }
                *field = Value::Null;
            } else {
                forget_places(field, first);
            }
        }),
        _ => {}
    }
}

/// `text`, or its beginning and how much isn't there.
pub(super) fn bounded(text: &str) -> String {
    cut(text, limits::WORDS_QUOTE_CHARACTERS_MAX).unwrap_or_else(|| text.to_owned())
}

/// The first `characters` of `text` and how many there are behind; `None` where that is all of it.
pub(super) fn cut(text: &str, characters: usize) -> Option<String> {
    let (end, _) = text.char_indices().nth(characters)?;
    let more = text.get(end..)?.chars().count();
    Some(format!("{} … ({more} more characters)", text.get(..end)?))
}

/// As a string literal, bounded.
pub(super) fn string(text: &str) -> String {
    match cut(text, limits::WORDS_QUOTE_CHARACTERS_MAX) {
        None => format!("'{}'", text.replace('\'', "''")),
        Some(cut) => format!("'{}", cut.replace('\'', "''")),
    }
}
