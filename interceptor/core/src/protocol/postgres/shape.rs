//! What a statement is but for its values, and which statements change what later ones mean.

use bytes::{BufMut as _, Bytes, BytesMut};
use pg_query::protobuf::Token;

use crate::operation::{Effects, Operation, ResourceKind, Touch};

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
    // `SELECT set_config('search_path', …)` reads, as far as rules are concerned, and is a SET all the same.
    let does_more = description.resources.iter().any(|resource| {
        let does = resource.kind == ResourceKind::Function && resource.touch == Touch::Write;
        does || resource.kind == ResourceKind::Setting
    });
    if all(&ROWS) && rows.contains(description.effects) && !does_more {
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

    fn trace_of(sql: &str) -> Trace {
        use crate::protocol::postgres::describe::{Describer, Encoding, Lexing};
        let lexing = Lexing {
            standard_conforming_strings: true,
            encoding: Encoding::Utf8,
        };
        let described = Describer::default().describe(sql.as_bytes(), lexing);
        trace(&Operation {
            protocol: Protocol::Postgres,
            description: described.description.clone(),
            content: Bytes::copy_from_slice(sql.as_bytes()),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        })
    }

    #[test]
    fn what_changes_the_session_leaves_a_trace_in_whatever_words() {
        for sql in [
            "SELECT 1",
            "SELECT count(*), lower(a) FROM t",
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET a = 1 WHERE id IN (SELECT 2)",
        ] {
            assert_eq!(trace_of(sql), Trace::None, "{sql}");
        }
        for sql in ["BEGIN", "COMMIT", "ROLLBACK", "START TRANSACTION"] {
            assert_eq!(trace_of(sql), Trace::Transaction, "{sql}");
        }
        for sql in [
            "SET search_path = other",
            "SELECT set_config('search_path', 'other', false)",
            "SELECT 1 WHERE pg_catalog.set_config($1, $2, false) IS NULL",
            "UPDATE t SET a = set_config('search_path', 'other', false)",
            "WITH s AS (SELECT set_config('timezone', 'UTC', true)) SELECT * FROM s",
            "SELECT f()",
            "CREATE TEMP TABLE t ()",
            "SELECT 1 AS a INTO TEMP t",
            "SAVEPOINT s",
            "PREPARE p AS SELECT 1",
            "RESET ALL",
            "SELECT 1; SET ROLE other",
            "",
        ] {
            assert_eq!(trace_of(sql), Trace::State, "{sql}");
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
