//! Sentences as people read them, and statements that want to break them.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::protocol::postgres::describe::{Describer, Lexing};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    sql: String,
    says: String,
    #[serde(default)]
    warns: Vec<String>,
}

/// As it is said of an operation that nothing but `sql` is known of.
fn said(sql: &str) -> Words {
    let described = Describer::default().describe(sql.as_bytes(), Lexing::default());
    let description = &described.description;
    let known = Known {
        action: &description.action(),
        effects: description.effects,
        resources: &description.resources,
    };
    words(sql, known)
}

fn names(warnings: &[Warning]) -> Vec<String> {
    warnings.iter().map(|one| format!("{one:?}")).collect()
}

#[test]
fn statements_are_said_as_people_read_them() {
    let cases: Vec<Case> = serde_saphyr::from_str(include_str!("sentences.yaml")).unwrap();
    assert!(cases.len() >= 80);
    for case in cases {
        let words = said(&case.sql);
        assert_eq!(words.text(), case.says, "{}", case.sql);
        assert_eq!(names(&words.warnings()), case.warns, "{}", case.sql);
    }
}

/// The statements of the describer, which hide what they do or only look as if they did.
fn corpus() -> Vec<String> {
    #[derive(Deserialize)]
    struct Corpus {
        hidden: Vec<Statement>,
        harmless: Vec<Statement>,
    }
    #[derive(Deserialize)]
    struct Statement {
        sql: String,
    }
    let corpus: Corpus = serde_saphyr::from_str(include_str!("../describe/corpus.yaml")).unwrap();
    let all = corpus.hidden.into_iter().chain(corpus.harmless);
    all.map(|statement| statement.sql).collect()
}

/// What holds of all words: bounds, and that nothing is called a read that isn't.
fn check(sql: &str) {
    let words = said(sql);
    assert!(!words.sentences.is_empty(), "{sql}");
    assert!(words.sentences.len() <= limits::WORDS_SENTENCES_MAX + 2);
    for sentence in &words.sentences {
        assert!(!sentence.text.is_empty(), "{sql}");
        let length = sentence.text.chars().count();
        assert!(
            length <= limits::WORDS_SENTENCE_CHARACTERS_MAX + 40,
            "{sql}"
        );
    }
    let described = Describer::default().describe(sql.as_bytes(), Lexing::default());
    let description = &described.description;
    let [only] = words.sentences.as_slice() else {
        return;
    };
    if !Effects::READ.contains(description.effects) {
        let reads = [
            "Reads",
            "Computes",
            "Gives 1 row",
            "Shows",
            "It reads something",
        ];
        let more = [
            "; also ",
            "locks these rows",
            ", changes",
            ", and ",
            "; then ",
        ];
        let is_read = reads.iter().any(|start| only.text.starts_with(start));
        let is_more = more.iter().any(|part| only.text.contains(part));
        assert!(!is_read || is_more, "{sql}: {}", only.text);
    }
    let is_only_told = only.text.starts_with("Tells how");
    let is_for_all = description.attributes.contains_key("where");
    if is_for_all && !is_only_told && description.effects.contains(Effects::WRITE) {
        let warned = [Warning::EveryRow, Warning::NotAllSaid];
        assert!(
            warned.iter().any(|one| only.warnings.contains(one)),
            "{sql}: {}",
            only.text
        );
    }
}

#[test]
fn every_statement_of_the_corpus_is_said_and_no_change_is_called_a_read() {
    corpus().iter().for_each(|sql| check(sql));
}

#[test]
fn long_conditions_and_sentences_are_cut_and_say_so() {
    let long = format!("DELETE FROM t WHERE a = '{}'", "x".repeat(300));
    let text = said(&long).text();
    assert!(text.ends_with("xxx … (106 more characters)."), "{text}");
    // What is always true is seen in what is cut, too.
    let hidden = format!("DELETE FROM t WHERE a = '{}' OR true", "x".repeat(300));
    assert_eq!(said(&hidden).warnings(), [Warning::AlwaysTrue]);
    let changes: Vec<String> = (0..40).map(|n| format!("DROP COLUMN c{n}")).collect();
    let many = format!(
        "ALTER TABLE t {}, DISABLE ROW LEVEL SECURITY",
        changes.join(", ")
    );
    let words = said(&many);
    assert!(words.text().contains("29 more changes"), "{}", words.text());
    assert_eq!(
        words.warnings(),
        [Warning::RowSecurityOff, Warning::NotAllSaid]
    );
}

#[test]
fn what_is_behind_many_statements_is_told_together_with_its_warnings() {
    let text = format!("{} DELETE FROM t; SELECT 1", "SELECT 1;".repeat(30));
    let words = said(&text);
    assert_eq!(words.sentences.len(), limits::WORDS_SENTENCES_MAX + 1);
    let last = words.sentences.last().unwrap();
    assert_eq!(
        last.text,
        "In 12 more statements it reads and changes data in t"
    );
    assert_eq!(last.warnings, [Warning::EveryRow, Warning::NotAllSaid]);
}

/// A session may read backslashes otherwise: then what was decided on isn't what is read here.
#[test]
fn a_text_that_was_decided_on_as_something_else_is_told_by_what_was_decided() {
    let known = Known {
        action: "UNCLASSIFIED",
        effects: Effects::UNCLASSIFIED,
        resources: &[],
    };
    for sql in ["SELECT 'a\\'; DELETE FROM t; --'", "SELECT 1"] {
        let words = words(sql, known);
        assert_eq!(words, known.words());
        assert_eq!(words.warnings(), [Warning::NotAllSaid]);
    }
    let long = format!("SELECT '{}'", "x".repeat(limits::WORDS_STATEMENT_BYTES_MAX));
    assert_eq!(said(&long).text(), "It reads something that isn't named.");
}

#[test]
fn what_a_name_stands_for_is_said_as_far_as_it_is_known() {
    let resources = [Resource {
        kind: ResourceKind::Table,
        namespace: None,
        name: "orders".into(),
        touch: Touch::Write,
    }];
    let known = Known {
        action: "EXECUTE; DELETE",
        effects: Effects::WRITE,
        resources: &resources,
    };
    let words = words("EXECUTE p(1)", known);
    assert_eq!(
        words.text(),
        "1. Runs what was prepared as p. 2. By what it names, it also changes data in orders."
    );
    assert_eq!(words.warnings(), [Warning::NotAllSaid]);
}

/// A statement of the corpus in which words were replaced, so that most are still statements.
fn variant() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "'x'",
        "''",
        "1",
        "-1",
        "$1",
        "$$x$$",
        "true",
        "NOT",
        "OR",
        "WHERE",
        "(",
        ")",
        ";",
        "CASCADE",
        "DELETE",
        "FROM",
        "t",
        "\"q\"\"\"",
        "é",
        "--",
        "/*",
        "/* x */",
        "CASE",
        "END",
        "RETURNING *",
        "DROP TABLE x",
        "UNION SELECT",
        "FOR UPDATE",
        "f()",
        "a.b.c",
        "SELECT",
        ",",
        "PUBLIC",
    ]);
    (
        prop::sample::select(corpus()),
        prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), pieces), 0..4),
    )
        .prop_map(|(text, changes)| {
            let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            for (at, replace, piece) in changes {
                let at = at.index(words.len());
                match replace {
                    true => words[at] = piece.to_owned(),
                    false => words.insert(at, piece.to_owned()),
                }
            }
            words.join(" ")
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn changed_statements_break_nothing(text in variant()) {
        check(&text);
    }

    #[test]
    fn arbitrary_text_breaks_nothing(text in "\\PC{0,80}") {
        check(&text);
    }
}
