//! CSV (RFC 4180) for spreadsheets: a row an operation, as soon as its answer is whole.
//!
//! A cell that a spreadsheet would take for a formula, or that begins as what is written for bytes does, has an
//! apostrophe before it; so has one that begins with an apostrophe. Taking one apostrophe from the beginning of each cell
//! that has one gives what is on record.

use std::io::{self, Write};

use serde_json::Value;

use super::{
    Form,
    deed::{Deed, Deeds},
    line::{get, list, number, plain, text, texts},
};

/// Writes exported lines as a table of operations.
#[derive(Debug, Default)]
pub struct Csv {
    deeds: Deeds,
    is_begun: bool,
}

/// The columns, in order. New ones come last.
const COLUMNS: [&str; 27] = [
    "time",
    "session",
    "operation",
    "agent",
    "protocol",
    "destination",
    "action",
    "effects",
    "resources",
    "verdict",
    "enforced",
    "rule",
    "reason",
    "approval",
    "answered_by",
    "status",
    "tag",
    "code",
    "message",
    "rows",
    "bytes",
    "elapsed_ms",
    "masked",
    "content",
    "parameters",
    "executable",
    "digest",
];

impl Form for Csv {
    fn take(&mut self, line: Value, out: &mut dyn Write) -> io::Result<u64> {
        let deeds = self.deeds.take(line);
        self.rows(&deeds, out)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        let deeds = self.deeds.finish();
        let rows = self.rows(&deeds, out)?;
        // A table without rows has its heading too.
        self.begin(out)?;
        Ok(rows)
    }
}

impl Csv {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut self.is_begun, true) {
            return Ok(());
        }
        write!(out, "{}\r\n", COLUMNS.join(","))
    }

    fn rows(&mut self, deeds: &[Deed], out: &mut dyn Write) -> io::Result<u64> {
        for deed in deeds {
            self.begin(out)?;
            let cells = row(deed).map(|value| cell(&value));
            write!(out, "{}\r\n", cells.join(","))?;
        }
        Ok(deeds.len() as u64)
    }
}

/// A row's values: text and what stands for bytes as they are, numbers as numbers.
fn row(deed: &Deed) -> [Value; COLUMNS.len()] {
    let Deed {
        operation,
        decision,
        answer,
        ..
    } = deed;
    let of = |name: &str| get(operation, name).clone();
    let last = |name: &str| get(&answer.last, name).clone();
    let resources: Vec<_> = list(operation, "resources")
        .map(|resource| text(resource, "name"))
        .collect();
    let (approval, by) = deed.approval();
    let masked: Vec<&str> = answer.masked.iter().map(String::as_str).collect();
    let is_answered = !answer.last.is_null();
    let counted = |count: u64| {
        if is_answered {
            count.into()
        } else {
            Value::Null
        }
    };
    let parameters = match get(operation, "parameters") {
        Value::Null => Value::Null,
        values => values.to_string().into(),
    };
    [
        of("time"),
        of("session"),
        number(operation, "operation").into(),
        of("agent"),
        of("protocol"),
        deed.destination().into(),
        deed.actions().into(),
        texts(operation, "effects").join("; ").into(),
        resources.join("; ").into(),
        get(decision, "verdict").clone(),
        get(decision, "enforced").clone(),
        get(decision, "rule").clone(),
        get(decision, "reason").clone(),
        approval.into(),
        by.into(),
        last("status"),
        last("tag"),
        last("code"),
        last("message"),
        counted(answer.rows),
        counted(answer.bytes),
        if is_answered {
            milliseconds(answer.elapsed_ns).into()
        } else {
            Value::Null
        },
        masked.join("; ").into(),
        of("content"),
        parameters,
        get(get(&deed.session.start, "process"), "executable").clone(),
        of("digest"),
    ]
}

/// `1.500`: without the rounding of floating point.
fn milliseconds(nanoseconds: u64) -> String {
    let microseconds = nanoseconds / 1_000;
    format!("{}.{:03}", microseconds / 1_000, microseconds % 1_000)
}

/// What spreadsheets take for the beginning of a formula, some of them behind white space.
const FORMULA: [char; 10] = [
    '=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff20}',
];

/// A value as a cell.
fn cell(value: &Value) -> String {
    let mut written = plain(value);
    if let Value::String(text) = value {
        let acts = text.starts_with(FORMULA) || text.trim_start().starts_with(FORMULA);
        let passes_for_bytes = text.starts_with("base64:") || text.starts_with("hex:");
        if text.contains('\0') {
            // No reader of tables takes it.
            written = format!("hex:{}", hex::encode(text));
        } else if acts || passes_for_bytes || text.starts_with('\'') {
            written.insert(0, '\'');
        }
    }
    if written.contains(['"', ',', '\r', '\n']) || written.starts_with(' ') {
        return format!("\"{}\"", written.replace('"', "\"\""));
    }
    written
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::journal::export::written;

    #[test]
    fn a_row_has_an_operation_and_what_became_of_it() {
        let lines = [
            json!({"kind": "session_start", "session": "s", "agent": "a", "destination": "192.0.2.1:5432", "process": {"executable": "/usr/bin/psql"}}),
            json!({"kind": "operation", "session": "s", "agent": "a", "operation": 1, "time": "2026-11-20T22:07:01.000000001Z", "protocol": "postgres",
                "actions": ["UPDATE"], "effects": ["read", "write"], "resources": [{"name": "shop.orders"}, {"name": "a,b"}],
                "content": "UPDATE \"x\"\nSET y = 1", "digest": "sha256:00", "parameters": ["7", null]}),
            json!({"kind": "decision", "session": "s", "operation": 1, "verdict": "hold", "enforced": true, "rule": "r", "reason": ""}),
            json!({"kind": "approval", "session": "s", "operation": 1, "step": "requested"}),
            json!({"kind": "approval", "session": "s", "operation": 1, "step": "voted", "choice": "approve", "by": "alice"}),
            json!({"kind": "approval", "session": "s", "operation": 1, "step": "approved"}),
            json!({"kind": "response", "session": "s", "operation": 1, "status": "continues", "rows": 2, "bytes": 10, "elapsed_ns": 1, "masked": ["email"]}),
            json!({"kind": "response", "session": "s", "operation": 1, "status": "complete", "tag": "UPDATE 3", "rows": 1, "bytes": 5, "elapsed_ns": 1_500_000}),
            json!({"kind": "operation", "session": "s", "agent": "a", "operation": 2, "protocol": "postgres", "content": {"base64": "/w=="}}),
            json!({"kind": "session_end", "session": "s"}),
        ];
        let (rows, out) = written(&mut Csv::default(), &lines);
        assert_eq!(rows, 2);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!(
                "{}\r\n\
                 2026-11-20T22:07:01.000000001Z,s,1,a,postgres,192.0.2.1:5432,UPDATE,read; write,\"shop.orders; a,b\",hold,true,r,,\
                 approved,alice,complete,UPDATE 3,,,3,15,1.500,email,\"UPDATE \"\"x\"\"\nSET y = 1\",\"[\"\"7\"\",null]\",/usr/bin/psql,sha256:00\r\n\
                 ,s,2,a,postgres,192.0.2.1:5432,,,,,,,,,,,,,,,,,,base64:/w==,,/usr/bin/psql,\r\n",
                COLUMNS.join(",")
            )
        );
        assert_eq!(
            written(&mut Csv::default(), &lines),
            written(&mut Csv::default(), &lines)
        );
        let (rows, out) = written(&mut Csv::default(), &[]);
        assert_eq!(
            (rows, out),
            (0, format!("{}\r\n", COLUMNS.join(",")).into_bytes())
        );
    }

    #[test]
    fn nothing_is_a_formula_and_all_of_it_comes_back() {
        for text in [
            "=cmd|' /C calc'!A0",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            "\r=1",
            "\n=1",
            "  =1",
            "'=1",
            "''",
            "\u{ff1d}1",
            "base64:AAAA",
            "hex:00",
            "plain",
            "",
            "a \"quoted\", 'word'",
        ] {
            let cell = cell(&text.into());
            let inner = match cell.strip_prefix('"') {
                Some(inner) => inner.strip_suffix('"').unwrap().replace("\"\"", "\""),
                None => cell,
            };
            assert!(!inner.trim_start().starts_with(FORMULA), "{inner}");
            assert_eq!(inner.strip_prefix('\'').unwrap_or(&inner), text);
        }
        assert_eq!(cell(&"a\0b".into()), "hex:610062");
        assert_eq!(cell(&json!({"hex": "00ff"})), "hex:00ff");
    }
}
