//! The corpus, the cache, and texts that want to break the parser.

use std::sync::Arc;

use proptest::prelude::*;
use serde::Deserialize;

use super::{Described, Describer, Encoding, Lexing, NameChange, Reference, statements};
use crate::operation::{Effects, ResourceKind, Touch};

const LEXING: Lexing = Lexing {
    standard_conforming_strings: true,
    encoding: Encoding::Utf8,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Corpus {
    hidden: Vec<Case>,
    harmless: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    sql: String,
    how: String,
    actions: Vec<String>,
    effects: Vec<String>,
    #[serde(default)]
    reads: Vec<String>,
    #[serde(default)]
    writes: Vec<String>,
}

fn corpus() -> Corpus {
    serde_saphyr::from_str(include_str!("corpus.yaml")).unwrap()
}

fn describe(text: &str) -> Arc<Described> {
    Describer::default().describe(text.as_bytes(), LEXING)
}

fn tables(described: &Described, touch: Touch) -> Vec<String> {
    let resources = described.description.resources.iter();
    resources
        .filter(|resource| resource.kind == ResourceKind::Table && resource.touch == touch)
        .map(ToString::to_string)
        .collect()
}

#[test]
fn every_statement_of_the_corpus_is_seen_for_what_it_does() {
    let corpus = corpus();
    assert!(corpus.hidden.len() >= 80 && corpus.harmless.len() >= 80);
    for case in corpus.hidden.iter().chain(&corpus.harmless) {
        let described = describe(&case.sql);
        let found = &described.description;
        let actions: Vec<&str> = found.actions.iter().map(|action| &**action).collect();
        assert_eq!(actions, case.actions, "{}: {}", case.how, case.sql);
        assert_eq!(
            found.effects.names().collect::<Vec<_>>(),
            case.effects,
            "{}: {}",
            case.how,
            case.sql
        );
        assert_eq!(
            tables(&described, Touch::Read),
            case.reads,
            "{}: {}",
            case.how,
            case.sql
        );
        assert_eq!(
            tables(&described, Touch::Write),
            case.writes,
            "{}: {}",
            case.how,
            case.sql
        );
    }
}

#[test]
fn nothing_harmless_does_more_than_read() {
    for case in corpus().harmless {
        let effects = describe(&case.sql).description.effects;
        assert!(
            Effects::READ.contains(effects),
            "{}: {}",
            case.how,
            case.sql
        );
    }
}

#[test]
fn names_that_only_the_session_knows_are_said() {
    assert_eq!(
        *describe("EXECUTE \"P\"(1)").runs,
        [Reference::Prepared("P".into())]
    );
    assert_eq!(
        *describe("FETCH 3 FROM c").runs,
        [Reference::Cursor("c".into())]
    );
    assert_eq!(
        *describe("UPDATE t SET a = 1 WHERE CURRENT OF c").runs,
        [Reference::Cursor("c".into())]
    );
    let prepared = describe("PREPARE p AS DELETE FROM t");
    let [NameChange::Prepare { name, statement }] = &*prepared.names else {
        panic!("{prepared:?}")
    };
    assert_eq!(
        (&**name, statement.description.effects),
        ("p", Effects::WRITE)
    );
    assert!(matches!(
        &*describe("DISCARD ALL").names,
        [NameChange::DeallocateAll, NameChange::CloseAll]
    ));
    assert!(describe("DISCARD PLANS").names.is_empty());
}

#[test]
fn texts_that_other_settings_would_read_differently_are_unclassified() {
    let describer = Describer::default();
    let old = Lexing {
        standard_conforming_strings: false,
        ..LEXING
    };
    let sjis = Lexing {
        encoding: Encoding::Unsafe,
        ..LEXING
    };
    let latin = Lexing {
        encoding: Encoding::AsciiSafe,
        ..LEXING
    };
    let effects = |text: &[u8], lexing| describer.describe(text, lexing).description.effects;
    assert_eq!(
        effects(b"SELECT '\\'; DROP TABLE t; --'", LEXING),
        Effects::READ | Effects::SCHEMA
    );
    assert_eq!(
        effects(b"SELECT '\\'; DROP TABLE t; --'", old),
        Effects::UNCLASSIFIED
    );
    assert_eq!(effects(b"SELECT 'plain'", old), Effects::READ);
    assert_eq!(effects(b"SELECT '\x95\x5c'", sjis), Effects::UNCLASSIFIED);
    assert_eq!(effects(b"SELECT 'plain'", sjis), Effects::READ);
    assert_eq!(effects(b"SELECT '\xe9'", latin), Effects::READ);
    assert_eq!(effects(b"SELECT '\xe9'", LEXING), Effects::UNCLASSIFIED);
    assert_eq!(
        effects(b"SELECT 1\0; DROP TABLE t", LEXING),
        Effects::UNCLASSIFIED
    );
}

#[test]
fn deep_and_long_texts_are_unclassified_and_break_nothing() {
    for (open, middle, close) in [
        ("SELECT NOT ", "true", ""),
        ("(", "SELECT 1", ")"),
        ("SELECT 1", "", "+1"),
        ("SELECT 1", "", " UNION SELECT 1"),
        ("SELECT (SELECT ", "1", ")"),
        ("CASE WHEN true THEN ", "1", " END"),
        ("SELECT 1", "", "::int"),
        ("SELECT - ", "1", ""),
        ("SELECT a", "", " IS NULL"),
        ("EXPLAIN ", "SELECT 1", ""),
        ("WITH a AS (", "SELECT 1", ") SELECT 1"),
    ] {
        for count in [100, 10_000, 40_000] {
            let text = format!("{}{middle}{}", open.repeat(count), close.repeat(count));
            let effects = describe(&text).description.effects;
            assert!(
                effects == Effects::UNCLASSIFIED || effects == Effects::READ,
                "{open}…{close} {count}: {effects:?}"
            );
        }
    }
    let long = format!(
        "SELECT '{}'",
        "x".repeat(crate::limits::STATEMENT_BYTES_MAX)
    );
    assert_eq!(describe(&long).description.effects, Effects::UNCLASSIFIED);
}

/// What is remembered under a shape is what each text of that shape does.
#[test]
fn statements_of_one_shape_share_a_description_and_others_do_not() {
    let describer = Describer::default();
    let of = |text: &str| describer.describe(text.as_bytes(), LEXING);
    let first = of("UPDATE accounts SET balance = balance + 123 WHERE aid = 42");
    assert!(Arc::ptr_eq(
        &first,
        &of("UPDATE accounts SET balance = balance + 7 WHERE aid = 1")
    ));
    assert!(Arc::ptr_eq(
        &of("SELECT 'a' FROM t"),
        &of("SELECT 'it''s; DROP TABLE t' FROM t")
    ));
    assert!(!Arc::ptr_eq(&of("SELECT $1"), &of("SELECT $2")));
    assert!(!Arc::ptr_eq(
        &of("SELECT nextval('a')"),
        &of("SELECT nextval('b')")
    ));
    assert!(!Arc::ptr_eq(
        &of("SET work_mem = '1'"),
        &of("SET work_mem = '2'")
    ));
    let harmless = of("SELECT set_config('application_name', 'x', false)");
    let role = of("SELECT set_config('role', 'admin', false)");
    assert_ne!(harmless.description, role.description);
}

/// A statement with its literals and white space varied.
fn variant() -> impl Strategy<Value = String> {
    let corpus = corpus();
    let texts: Vec<String> = corpus
        .hidden
        .into_iter()
        .chain(corpus.harmless)
        .map(|case| case.sql)
        .collect();
    let literals = prop::sample::select(vec![
        "'x'",
        "''",
        "'it''s'",
        "'DROP TABLE t'",
        "1",
        "-1",
        "0.5",
        "1e3",
        "$1",
        "E'\\''",
        "$$x$$",
        "B'1'",
        "'\\'",
        "role",
        "\"q\"",
        "1a",
        "'a' 'b'",
        "--",
        "/*",
        "'",
    ]);
    (
        prop::sample::select(texts),
        prop::collection::vec((any::<prop::sample::Index>(), literals), 0..3),
    )
        .prop_map(|(text, changes)| {
            let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            for (at, literal) in changes {
                let at = at.index(words.len());
                words[at] = literal.to_owned();
            }
            words.join(" ")
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    /// The cache never answers otherwise than the parser would, whatever it was filled with before.
    #[test]
    fn what_is_remembered_is_what_the_parser_says(text in variant()) {
        static SHARED: std::sync::LazyLock<Describer> = std::sync::LazyLock::new(Describer::default);
        let remembered = SHARED.describe(text.as_bytes(), LEXING);
        let parsed = statements::describe(text.as_bytes(), LEXING).described;
        prop_assert_eq!(&remembered.description, &parsed.description, "{}", text);
        prop_assert_eq!(&remembered.runs, &parsed.runs);
        prop_assert_eq!(remembered.barrier, parsed.barrier);
    }

    #[test]
    fn arbitrary_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..100)) {
        Describer::default().describe(&text, LEXING);
    }
}
