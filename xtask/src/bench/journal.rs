//! The session log against the disk alone and against SQLite: how fast records are on disk, are checked, exported
//! and listed, and how much room they take.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use interceptor_tests::{paths, run};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Amount, Measured,
    report::{Case, Sample},
};
use crate::{
    progress::{heading, note, step},
    shell,
};

/// A file that the same bytes are written to in order, and synced.
const DISK: &str = "direct";
/// A table in WAL mode that they are inserted into.
const SQLITE: &str = "sqlite";
/// The journal.
const JOURNAL: &str = "interceptor";

/// Records that the disk and SQLite are given at once where nobody waits for each of them.
const BATCH: u64 = 5_000;

/// Records that a journal is filled with for what grows; up to ten million with `--full`.
const SIZES: [u64; 5] = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000];

/// What is shown as a curve over them: what, of which work, and divided by which number of it.
const CURVES: [(&str, [&str; 2], Option<&str>); 8] = [
    (
        "bytes a record",
        ["filled", "segment_bytes"],
        Some("records"),
    ),
    (
        "of the index, bytes a record",
        ["filled", "index_bytes"],
        Some("records"),
    ),
    ("opened, ms", ["listed", "open_ms"], None),
    (
        "the latest thousand sessions, ms",
        ["listed", "latest_ms"],
        None,
    ),
    (
        "a thousand of one agent, ms",
        ["listed", "of_one_agent_ms"],
        None,
    ),
    ("none that fits, ms", ["listed", "none_fits_ms"], None),
    ("verified, MB/s", ["verified", "mb_per_s"], None),
    ("exported, MB/s", ["exported", "mb_per_s"], None),
];

/// How often sessions are listed, for a median.
const LISTS: &str = "9";

#[derive(Debug, Clone, Copy, Serialize)]
enum Work {
    /// Each writer waits until its record is on disk.
    Strict(u64),
    /// Nobody waits.
    Batched(u64),
}

/// Measures, prints the tables and writes `target/bench/journal.json`. Ten million records take 10 GB and minutes:
/// they are measured where `full` says so.
///
/// # Errors
/// Where something can't be built or fails.
pub(crate) fn bench(amount: Amount, full: bool) -> Result<()> {
    heading("Set-up");
    step("build the journal's load (release)", |step| {
        step.run(shell::cargo().args([
            "build",
            "--locked",
            "--release",
            "-p",
            "interceptor",
            "--example",
            "journal",
        ]))
    })?;
    let bench = Bench {
        program: paths::target().join("release/examples/journal"),
        folder: paths::target().join("bench/journal"),
    };
    let record = bench.load(&["record"])?;
    let record = text(&record, "record")?.to_owned();
    note(&format!("a record is {} bytes", record.len() / 2));
    let strict = [1, 4, 16, 64].map(|writers| {
        let title = format!("on disk before the next, {writers} writers");
        (title, Work::Strict(writers))
    });
    let batched = [1, 16, 64].map(|writers| {
        let title = format!("on disk within 100 ms, {writers} writers");
        (title, Work::Batched(writers))
    });
    let cases = strict.into_iter().chain(batched).map(|(title, work)| {
        Case::new(
            title,
            ["records/s", "record"],
            work,
            [DISK, SQLITE, JOURNAL],
        )
    });
    let seconds = amount.seconds().to_string();
    let measured = Measured::take(cases.collect(), amount.rounds(), |work, target| {
        let at_once = match work {
            Work::Strict(writers) => writers,
            Work::Batched(_) => BATCH,
        };
        let at_once = at_once.to_string();
        match (target, work) {
            (DISK, _) => bench.load(&["raw", &at_once, &seconds]),
            (SQLITE, work) => {
                let synchronous = match work {
                    Work::Strict(_) => "full",
                    Work::Batched(_) => "normal",
                };
                bench.sqlite(&[&record, &at_once, &seconds, synchronous])
            }
            (_, Work::Strict(writers)) => bench.load(&["strict", &writers.to_string(), &seconds]),
            (_, Work::Batched(writers)) => bench.load(&["batched", &writers.to_string(), &seconds]),
        }
        .and_then(|said| {
            Ok(Sample {
                value: number(&said, "rate")?,
                p50_us: said.get("p50_us").and_then(Value::as_f64),
                p99_us: said.get("p99_us").and_then(Value::as_f64),
                cpu_us: None,
            })
        })
    })?;
    let sizes = SIZES.into_iter().filter(|size| full || *size <= 1_000_000);
    let growth = sizes.map(|size| bench.growth(size));
    let growth = growth.collect::<Result<Vec<Value>>>()?;
    fs::remove_dir_all(&bench.folder)?;
    heading("Growth");
    for curve in CURVES {
        print!("{}", drawn(&growth, curve)?);
    }
    let more = [
        ("growth", json!(growth)),
        (
            "notes",
            json!([
                "direct: the same bytes written to one file in order, with fdatasync: as many records at once as there are writers, or 5,000",
                "sqlite: WAL, by Python's module, one connection: a transaction has as many records as there are writers (synchronous=FULL), or 5,000 (NORMAL, which doesn't sync each)",
                "interceptor: with compression, hash chain, checkpoints, index and what outlives a kill",
                "list: up to a thousand sessions, newest first; where none fits all are looked at",
                "search: up to a thousand sessions that have a text; a phrase whose words all sessions have and which none has is looked for on record until the time for it is over"
            ]),
        ),
        (
            "versions",
            super::versions::versions([(
                "sqlite",
                Command::new("python3")
                    .args(["-c", "import sqlite3; print(sqlite3.sqlite_version)"]),
            )]),
        ),
    ];
    let more: Map<String, Value> = more
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    measured.publish("journal", amount, more)
}

/// Cells of the longest bar of a curve.
const BAR: f64 = 40.0;

/// One of the [`CURVES`] over what was measured of journals of growing size, as bars.
fn drawn(
    growth: &[Value],
    (title, [work, name], by): (&str, [&str; 2], Option<&str>),
) -> Result<String> {
    let points = growth.iter().map(|point| {
        let of = point.get(work).cloned().unwrap_or_default();
        let by = by.map_or(Ok(1.0), |by| number(&of, by))?;
        Ok((number(point, "records")?, number(&of, name)? / by))
    });
    let points = points.collect::<Result<Vec<(f64, f64)>>>()?;
    let longest = points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let mut out = format!("  {title}\n");
    for (records, value) in points {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 40"
        )]
        let cells = (value / longest.max(f64::MIN_POSITIVE) * BAR).round() as usize;
        // Writing to a string can't fail.
        _ = writeln!(out, "  {records:>12} {} {value:.1}", "█".repeat(cells));
    }
    Ok(out)
}

/// What is run, and where.
struct Bench {
    program: PathBuf,
    folder: PathBuf,
}

impl Bench {
    /// What the load says that it did, in an empty folder.
    fn load(&self, arguments: &[&str]) -> Result<Value> {
        self.empty()?;
        self.again(arguments)
    }

    /// The same in what was left there.
    fn again(&self, arguments: &[&str]) -> Result<Value> {
        answer(
            Command::new(&self.program)
                .arg(&self.folder)
                .args(arguments),
        )
    }

    fn sqlite(&self, arguments: &[&str]) -> Result<Value> {
        self.empty()?;
        answer(
            Command::new("python3")
                .arg(paths::client("sqlite.py"))
                .arg(&self.folder)
                .args(arguments),
        )
    }

    fn empty(&self) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        Ok(fs::create_dir_all(&self.folder)?)
    }

    /// What becomes of a journal of that many records.
    fn growth(&self, records: u64) -> Result<Value> {
        let filled = step(&format!("{records} records"), |_| {
            self.load(&["fill", &records.to_string()])
        })?;
        let listed = self.again(&["list", LISTS])?;
        let verified = self.again(&["verify"])?;
        let exported = self.again(&["export"])?;
        let hashed = self.hashed()?;
        let bytes = number(&filled, "segment_bytes")?;
        let a_record = bytes / number(&filled, "records")?;
        println!(
            "  {records} records: {:.0} a second, {a_record:.0} bytes each, index {:.0} more\n    opened in {:.0} ms; of {:.0} sessions the latest thousand in {:.1} ms, of one agent in {:.1} ms, none that fits in {:.1} ms\n    verified at {:.0} MB/s, {:.1} million a second (SHA-256 alone: {hashed:.0} MB/s) with {:.0} MB of memory\n    exported at {:.0} MB/s of JSON, {:.2} million a second, with {:.0} MB",
            number(&filled, "rate")?,
            number(&filled, "index_bytes")? / number(&filled, "records")?,
            number(&listed, "open_ms")?,
            number(&listed, "sessions")?,
            number(&listed, "latest_ms")?,
            number(&listed, "of_one_agent_ms")?,
            number(&listed, "none_fits_ms")?,
            number(&verified, "mb_per_s")?,
            number(&verified, "rate")? / 1e6,
            number(&verified, "peak_bytes")? / 1e6,
            number(&exported, "mb_per_s")?,
            number(&exported, "rate")? / 1e6,
            number(&exported, "peak_bytes")? / 1e6,
        );
        let texts = listed.get("texts").cloned().unwrap_or_default();
        let took = |name: &str| {
            let of = texts.get(name).cloned().unwrap_or_default();
            number(&of, "ms").map(|ms| format!("{ms:.1} ms"))
        };
        println!(
            "    searched for a word of one session in {}, of all in {}, of all of one agent in {}, of none in {}; a beginning in {}, a phrase of one in {}, of all in {}, of none in {}",
            took("of_the_oldest")?,
            took("of_all")?,
            took("of_all_of_one_agent")?,
            took("of_none")?,
            took("short_prefix")?,
            took("phrase_of_one")?,
            took("phrase_of_all")?,
            took("phrase_of_none")?,
        );
        Ok(json!({
            "records": records,
            "filled": filled,
            "listed": listed,
            "verified": verified,
            "exported": exported,
            "sha256_mb_per_s": hashed,
        }))
    }

    /// How fast the segments are read and hashed by what does nothing else, in MB/s.
    fn hashed(&self) -> Result<f64> {
        let segments = self.folder.join("segments");
        let script = format!(
            "import hashlib, os, time, json\nbegan, size = time.monotonic(), 0\nfor name in sorted(os.listdir({0:?})):\n  with open(os.path.join({0:?}, name), 'rb') as file:\n    size += os.fstat(file.fileno()).st_size\n    hashlib.file_digest(file, 'sha256')\nprint(json.dumps({{'rate': size / (time.monotonic() - began) / 1e6}}))",
            segments.display().to_string()
        );
        number(
            &answer(Command::new("python3").args(["-c", &script]))?,
            "rate",
        )
    }
}

fn answer(command: &mut Command) -> Result<Value> {
    let said = run::output(command)?;
    let line = said.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))
}

fn number(said: &Value, name: &str) -> Result<f64> {
    let number = said.get(name).and_then(Value::as_f64);
    number.with_context(|| format!("no `{name}` in {said}"))
}

fn text<'a>(said: &'a Value, name: &str) -> Result<&'a str> {
    let text = said.get(name).and_then(Value::as_str);
    text.with_context(|| format!("no `{name}` in {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_shown_as_bars() {
        let point = |records: u64, bytes: u64| json!({"records": records, "filled": {"records": records, "bytes": bytes}});
        let growth = [point(10, 400), point(100, 2_000)];
        let curve = ("bytes a record", ["filled", "bytes"], Some("records"));
        assert_eq!(
            drawn(&growth, curve).unwrap(),
            format!(
                "  bytes a record\n            10 {} 40.0\n           100 {} 20.0\n",
                "█".repeat(40),
                "█".repeat(20)
            )
        );
        drawn(&growth, ("missing", ["filled", "x"], None)).unwrap_err();
    }
}
