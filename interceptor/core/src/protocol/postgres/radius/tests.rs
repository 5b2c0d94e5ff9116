use bytes::Bytes;

use super::*;
use crate::operation::{Parameter, ParameterFormat};

fn questions(sql: &str, parameters: usize) -> Questions {
    let describer = Describer::default();
    let described = describer.describe(sql.as_bytes(), Lexing::default());
    let parameter = Parameter {
        format: ParameterFormat::Text,
        type_oid: 0,
        value: Some(Bytes::from_static(b"1")),
    };
    let operation = Operation {
        protocol: Protocol::Postgres,
        description: described.description.clone(),
        content: Bytes::copy_from_slice(sql.as_bytes()),
        parameters: vec![parameter; parameters].into(),
        options: Vec::new(),
        http: None,
    };
    Questions::about(&operation, &describer)
}

/// A question in a line: what becomes of what, by which query.
fn said(question: &Question) -> String {
    let target = match &question.target {
        Target::Result => "the result".to_owned(),
        Target::Relation(name) => name.quoted(),
        Target::Schema(name) => format!("schema {name}"),
    };
    let rows = match &question.rows {
        Which::Unknown => "?".to_owned(),
        Which::Whole => "all".to_owned(),
        Which::Number(number) => number.to_string(),
        Which::Query(query) => {
            let from: Vec<_> = query
                .parameters
                .iter()
                .map(|index| format!("${}", index + 1))
                .collect();
            match from.as_slice() {
                [] => query.sql.clone(),
                from => format!("{} [{}]", query.sql, from.join(" ")),
            }
        }
    };
    let cascade = if question.cascade { " CASCADE" } else { "" };
    format!("{:?} {target}{cascade}: {rows}", question.change)
}

#[test]
fn rows_are_found_by_a_query_that_only_reads() {
    for (sql, parameters, expected) in [
        (
            "DELETE FROM shop.orders WHERE status = 'old'",
            0,
            &["Deletes \"shop\".\"orders\": SELECT 1 FROM shop.orders WHERE status = 'old'"][..],
        ),
        (
            "DELETE FROM orders",
            0,
            &["Deletes \"orders\": SELECT 1 FROM orders"],
        ),
        (
            "UPDATE orders o SET total = $1 WHERE o.id = $3 AND o.day < $2 AND o.id > $3",
            3,
            &[
                "Changes \"orders\": SELECT 1 FROM orders o WHERE o.id = $1 AND o.day < $2 AND o.id > $1 [$3 $2]",
            ],
        ),
        (
            "UPDATE orders SET total = 0 FROM customers c WHERE c.id = customer AND c.gone",
            0,
            &[
                "Changes \"orders\": SELECT 1 FROM orders WHERE EXISTS (SELECT 1 FROM customers c WHERE c.id = customer AND c.gone)",
            ],
        ),
        (
            "DELETE FROM ONLY orders USING customers c, regions r WHERE c.id = customer",
            0,
            &[
                "Deletes \"orders\": SELECT 1 FROM ONLY orders WHERE EXISTS (SELECT 1 FROM customers c, regions r WHERE c.id = customer)",
            ],
        ),
        (
            "WITH old AS (SELECT id FROM orders WHERE day < now()) DELETE FROM items WHERE order_id IN (SELECT id FROM old)",
            0,
            &[
                "Deletes \"items\": WITH old AS (SELECT id FROM orders WHERE day < now()) SELECT 1 FROM items WHERE order_id IN (SELECT id FROM old)",
            ],
        ),
        ("INSERT INTO t VALUES (1), (2), (3)", 0, &["Adds \"t\": 3"]),
        ("INSERT INTO t DEFAULT VALUES", 0, &["Adds \"t\": 1"]),
        (
            "INSERT INTO t (a) SELECT a FROM u WHERE b > 1 ON CONFLICT DO NOTHING",
            0,
            &["Adds \"t\": SELECT a FROM u WHERE b > 1"],
        ),
        (
            "SELECT * FROM t WHERE a = 1 FOR UPDATE",
            0,
            &["Reads the result: SELECT * FROM t WHERE a = 1"],
        ),
        (
            "SELECT a INTO x.n FROM t",
            0,
            &["Adds \"x\".\"n\": SELECT a FROM t"],
        ),
        (
            "CREATE TABLE n AS SELECT a FROM t",
            0,
            &["Adds \"n\": SELECT a FROM t"],
        ),
        (
            "COPY (SELECT a FROM t) TO STDOUT",
            0,
            &["Reads the result: SELECT a FROM t"],
        ),
        ("COPY t TO STDOUT", 0, &["Reads \"t\": SELECT 1 FROM t"]),
        ("COPY t FROM STDIN", 0, &["Adds \"t\": ?"]),
        (
            "EXPLAIN ANALYZE DELETE FROM t",
            0,
            &["Deletes \"t\": SELECT 1 FROM t"],
        ),
        ("EXPLAIN DELETE FROM t", 0, &[]),
        (
            "MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN UPDATE SET a = u.a WHEN NOT MATCHED THEN INSERT (id) VALUES (u.id)",
            0,
            &[
                "Changes \"t\": SELECT 1 FROM t WHERE EXISTS (SELECT 1 FROM u WHERE t.id = u.id)",
                "Adds \"t\": SELECT 1 FROM u WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.id = u.id)",
            ],
        ),
        (
            "TRUNCATE a, b.c CASCADE",
            0,
            &[
                "Empties \"a\" CASCADE: all",
                "Empties \"b\".\"c\" CASCADE: all",
            ],
        ),
        (
            "DROP TABLE IF EXISTS a.\"B\"",
            0,
            &["Drops \"a\".\"B\": all"],
        ),
        ("DROP SCHEMA s CASCADE", 0, &["Drops schema s CASCADE: all"]),
        ("ALTER TABLE t DROP COLUMN c", 0, &["Alters \"t\": all"]),
        ("ALTER TABLE t RENAME TO u", 0, &["Alters \"t\": all"]),
        ("CREATE INDEX ON t (a)", 0, &["Alters \"t\": all"]),
        (
            "BEGIN; DELETE FROM a; COMMIT",
            0,
            &["Deletes \"a\": SELECT 1 FROM a"],
        ),
    ] {
        let questions = questions(sql, parameters);
        assert_eq!(questions.unknown, Vec::<Box<str>>::new(), "{sql}");
        let said: Vec<_> = questions.questions.iter().map(said).collect();
        assert_eq!(said, expected, "{sql}");
    }
}

#[test]
fn what_would_do_more_than_read_is_not_asked() {
    for sql in [
        "DELETE FROM t WHERE f(id)",
        "DELETE FROM t WHERE id = nextval('s')",
        "UPDATE t SET a = 1 WHERE pg_terminate_backend(pid)",
        "SELECT f()",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT set_config('search_path', 'evil', false)",
        "UPDATE t SET a = 1 FROM dblink('host=x', 'DROP TABLE y') AS d(a int)",
        "DELETE FROM t WHERE CURRENT OF c",
        "SELECT lo_unlink(1)",
        "EXECUTE p",
        "FETCH 10 FROM c",
        "CALL p()",
        "DO $$ BEGIN END $$",
        "VACUUM FULL t",
        "DROP FUNCTION f()",
        "GRANT SELECT ON t TO PUBLIC",
    ] {
        let questions = questions(sql, 0);
        let asked = |question: &Question| matches!(question.rows, Which::Query(_));
        assert!(
            !questions.questions.iter().any(asked),
            "{sql}: {questions:?}"
        );
        assert!(!questions.unknown.is_empty(), "{sql}");
    }
    // What a WITH changes is asked about for itself, and what depends on that isn't.
    let within = questions(
        "WITH d AS (DELETE FROM a WHERE x RETURNING *) INSERT INTO b SELECT * FROM d",
        0,
    );
    let all: Vec<_> = within.questions.iter().map(said).collect();
    assert_eq!(
        all,
        ["Deletes \"a\": SELECT 1 FROM a WHERE x", "Adds \"b\": ?"]
    );
    assert_eq!(within.unknown.len(), 1);
    let unbound = questions("DELETE FROM t WHERE id = $2", 1);
    assert!(unbound.unknown[0].contains("parameters"), "{unbound:?}");
    let nonsense = questions("DELETE FORM t", 0);
    assert!(nonsense.questions.is_empty() && nonsense.unknown.len() == 1);
    let many = questions(&"DELETE FROM t;".repeat(20), 0);
    assert_eq!((many.questions.len(), many.unknown.len()), (8, 1));
}

#[test]
fn names_without_a_schema_are_known_as_such() {
    for (sql, expected) in [
        ("DELETE FROM a.t", true),
        ("DELETE FROM t", false),
        ("DELETE FROM a.t WHERE x IN (SELECT y FROM u)", false),
        (
            "WITH u AS (SELECT 1 AS y) DELETE FROM a.t WHERE x IN (SELECT y FROM u)",
            true,
        ),
    ] {
        let questions = questions(sql, 0);
        let [
            Question {
                rows: Which::Query(query),
                ..
            },
        ] = &questions.questions[..]
        else {
            panic!("{questions:?}");
        };
        assert_eq!(query.is_qualified, expected, "{sql}");
    }
}

proptest::proptest! {
    #[test]
    fn it_never_panics_and_asks_nothing_that_writes(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "DELETE FROM", "UPDATE", "t", "a.b", "SET x =", "WHERE", "SELECT", "1", "$1", "(", ")", ",", "FROM",
            "WITH q AS", "INSERT INTO", "VALUES", "USING", "f()", "RETURNING *", ";", "EXISTS", "UNION", "*", "AS",
            "TRUNCATE", "DROP TABLE", "CASCADE", "nextval('s')", "MERGE INTO", "ON", "=", "'x'", "lateral",
        ]), 0..16),
    ) {
        let sql = parts.join(" ");
        let describer = Describer::default();
        for question in questions(&sql, 1).questions {
            if let Which::Query(query) = question.rows {
                let described = describer.describe(query.sql.as_bytes(), Lexing::default());
                proptest::prop_assert!(Effects::READ.contains(described.description.effects));
            }
        }
    }
}

#[test]
fn the_words_of_the_corpus_are_survived() {
    for line in include_str!("../describe/corpus.yaml").lines() {
        let _ = questions(line, 2);
        if let Some((_, sql)) = line.split_once("sql: ") {
            let _ = questions(sql.trim_matches(['\'', '"']), 2);
        }
    }
}
