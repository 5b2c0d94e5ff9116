//! What a statement is but for its values, and which statements change what later ones mean.

use bytes::{BufMut as _, Bytes, BytesMut};
use pg_query::protobuf::Token;

use crate::operation::{Effects, Operation};

/// What reads and writes rows and does nothing to its session.
const ROWS: [&str; 6] = ["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES"];

/// What begins and ends transactions.
const TRANSACTIONS: [&str; 5] = ["BEGIN", "START TRANSACTION", "COMMIT", "END", "ROLLBACK"];

/// What an operation does to the session that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// Nothing that a later operation could tell.
    None,
    /// It begins or ends a transaction: that undoes what was done to the session, or keeps it.
    Transaction,
    /// It may change what later operations mean, as `SET` or `CREATE TEMPORARY TABLE` do.
    State,
}

/// The statement in `operation` with `?` in place of every literal, without comments, every token behind one space.
/// `true`, `false` and `null` stay: they make more of a difference than another number.
///
/// `None` where PostgreSQL's scanner can't read it.
#[must_use]
pub fn shape(operation: &Operation) -> Option<Bytes> {
    let text = std::str::from_utf8(&operation.content).ok()?;
    // The scanner stops at a NUL, and so does what it tells.
    if text.contains('\0') {
        return None;
    }
    let tokens = pg_query::scan_tokens(text).ok()?;
    let mut out = BytesMut::with_capacity(text.len());
    for token in tokens {
        let kind = Token::try_from(token.token).ok()?;
        let (start, end) = (
            usize::try_from(token.start).ok()?,
            usize::try_from(token.end).ok()?,
        );
        out.put_u8(b' ');
        match kind {
            Token::SqlComment | Token::CComment => {
                out.truncate(out.len() - 1);
            }
            Token::Iconst
            | Token::Fconst
            | Token::Sconst
            | Token::Usconst
            | Token::Bconst
            | Token::Xconst => out.put_u8(b'?'),
            _ => out.put_slice(text.get(start..end)?.as_bytes()),
        }
    }
    Some(out.freeze())
}

/// What `operation` does to its session.
#[must_use]
pub fn trace(operation: &Operation) -> Trace {
    let description = &operation.description;
    let all = |names: &[&str]| {
        let actions = &description.actions;
        !actions.is_empty() && actions.iter().all(|action| names.contains(&&**action))
    };
    let rows = Effects::READ | Effects::WRITE;
    if all(&ROWS) && rows.contains(description.effects) {
        Trace::None
    } else if all(&TRANSACTIONS) {
        Trace::Transaction
    } else {
        Trace::State
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::operation::{Description, Protocol};

    fn of(sql: &str) -> Option<String> {
        let operation = Operation {
            protocol: Protocol::Postgres,
            description: Arc::new(Description::default()),
            content: Bytes::copy_from_slice(sql.as_bytes()),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        };
        let shape = shape(&operation)?;
        Some(String::from_utf8(shape.to_vec()).unwrap())
    }

    #[test]
    fn values_and_comments_make_no_difference() {
        for (one, other) in [
            (
                "DELETE FROM t WHERE id = 1",
                "DELETE FROM t\nWHERE id=234 -- all",
            ),
            (
                "UPDATE t SET a = 'x'",
                "UPDATE t SET a = E'y\\'z' /* really */",
            ),
            (
                "UPDATE t SET a = $$x$$",
                "UPDATE t SET a = 'x; DROP TABLE t'",
            ),
            ("SELECT 1.5", "SELECT 2e10"),
            ("SELECT B'1'", "SELECT X'ff'"),
        ] {
            assert_eq!(of(one).unwrap(), of(other).unwrap());
        }
    }

    #[test]
    fn everything_else_does() {
        for (one, other) in [
            ("DELETE FROM t WHERE id = 1", "DELETE FROM t"),
            ("DELETE FROM t WHERE id = 1", "DELETE FROM u WHERE id = 1"),
            (
                "DELETE FROM t WHERE id = 1",
                "DELETE FROM t WHERE id = 1 OR true",
            ),
            (
                "DELETE FROM t WHERE a = false",
                "DELETE FROM t WHERE a = true",
            ),
            ("DELETE FROM t WHERE a = 1", "DELETE FROM t WHERE a = null"),
            ("DELETE FROM t WHERE a = 1", "DELETE FROM t WHERE a = -1"),
            ("DELETE FROM t WHERE a = $1", "DELETE FROM t WHERE a = $2"),
            (
                "DELETE FROM t WHERE a = 1",
                "DELETE FROM t WHERE a = 1; DROP TABLE t",
            ),
            ("SELECT a b", "SELECT ab"),
            ("SELECT \"a b\"", "SELECT \"a\" b"),
        ] {
            assert_ne!(of(one).unwrap(), of(other).unwrap());
        }
        assert_eq!(of("SELECT 'open"), None);
        assert_eq!(of("SELECT 1\0; DROP TABLE t"), None);
    }
}
