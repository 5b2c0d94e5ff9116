//! Benchmarks against peers, interleaved, with medians and spread.
//!
//! A benchmark is a list of cases, each visited once a round through every target that takes part. What
//! else the machine does in the meantime meets all of them.

pub(crate) mod approvals;
pub(crate) mod connect;
pub(crate) mod http;
pub(crate) mod journal;
pub(crate) mod postgres;
mod proxy;
mod report;
mod usage;
mod versions;

use std::fs;

use anyhow::{Result, bail};
use interceptor_tests::paths;
use serde::Serialize;
use serde_json::Value;

use self::report::{Case, Sample};
use crate::progress::{self, heading, step};

/// How much is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Amount {
    /// Two rounds of a second: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Rounds; every round visits every case and target once
    #[arg(long, default_value_t = 5, conflicts_with = "quick", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Seconds of load a visit
    #[arg(long, default_value_t = 3, conflicts_with = "quick", value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
}

impl Amount {
    const fn rounds(&self) -> u32 {
        if self.quick { 2 } else { self.rounds }
    }

    const fn seconds(&self) -> u32 {
        if self.quick { 1 } else { self.seconds }
    }
}

/// What came of all rounds.
#[derive(Debug)]
struct Measured<W> {
    cases: Vec<Case<W>>,
    failures: Vec<String>,
}

impl<W: Copy + Serialize> Measured<W> {
    /// Visits all `cases` in `rounds`, calling `visit` with a case's work and a target's name.
    fn take(
        mut cases: Vec<Case<W>>,
        rounds: u32,
        mut visit: impl FnMut(W, &'static str) -> Result<Sample>,
    ) -> Result<Self> {
        let mut failures = Vec::new();
        for round in 1..=rounds {
            step(&format!("round {round} of {rounds}"), |step| {
                for case in &mut cases {
                    for cell in &mut case.cells {
                        let what = format!("{} · {}", case.title, cell.target);
                        step.say(&what);
                        let sample = visit(case.work, cell.target);
                        if let Err(error) = &sample {
                            failures.push(format!("{what}: {error:#}"));
                        }
                        cell.samples.push(sample.ok());
                    }
                }
                Ok(())
            })?;
        }
        Ok(Self { cases, failures })
    }

    /// Prints the tables, writes `target/bench/NAME.json` with `more` in it, and fails where a visit did.
    fn publish(
        self,
        name: &str,
        amount: Amount,
        mut more: serde_json::Map<String, Value>,
    ) -> Result<()> {
        heading("Medians over interleaved rounds");
        for case in &self.cases {
            println!("{}", case.table());
        }
        let cases: Vec<_> = self
            .cases
            .iter()
            .map(|case| serde_json::json!({"case": case, "lines": case.lines()}))
            .collect();
        more.extend([
            ("benchmark".to_owned(), name.into()),
            ("rounds".to_owned(), amount.rounds().into()),
            ("seconds".to_owned(), amount.seconds().into()),
            ("cases".to_owned(), cases.into()),
            ("failures".to_owned(), self.failures.clone().into()),
        ]);
        let folder = paths::target().join("bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_string_pretty(&more)?)?;
        progress::note(&format!("written to {}", file.display()));
        if !self.failures.is_empty() {
            bail!(
                "{} runs failed:\n{}",
                self.failures.len(),
                self.failures.join("\n")
            );
        }
        Ok(())
    }
}

/// Builds what is measured and what measures, with optimisations.
fn build() -> Result<std::path::PathBuf> {
    step("build interceptor and the tools (release)", |step| {
        step.run(crate::shell::cargo().args([
            "build",
            "--locked",
            "--release",
            "-p",
            "interceptor",
            "-p",
            "xtask",
        ]))
    })?;
    Ok(paths::target().join("release"))
}
