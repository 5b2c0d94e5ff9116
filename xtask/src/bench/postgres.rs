//! pgbench through interceptor, a do-nothing relay and pgbouncer, and directly.
//!
//! interceptor does all of its work: policy, masks on one table, full recording. pgbouncer decides,
//! masks and records nothing. The relay looks at nothing: it is the ceiling.
//!
//! Every visit begins with new server processes. A pool would hand pgbench those of the visit before,
//! which have mapped the server's memory and filled their caches: in visits of seconds that is worth
//! several percent, and says nothing of the proxy.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use interceptor_tests::{
    cluster::{Cluster, Database},
    paths, run,
};
use serde_json::json;

use super::{
    cpu,
    report::{Case, Cell, Sample},
    targets::Target,
};
use crate::{
    progress::{self, heading, step},
    setup,
    shell::{answer, cargo, command},
};

const POLICY: &str = include_str!("policy.yaml");

/// pgbench's scale: 500,000 accounts, some 75 MB, all in memory.
const SCALE: u32 = 5;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    /// Rounds; every round visits every case and target once.
    pub(crate) rounds: u32,
    /// Seconds of load a visit.
    pub(crate) seconds: u32,
}

/// Measures, prints the table and writes `target/bench/postgres.json`.
///
/// # Errors
/// Where something can't be set up, or a target failed under load.
pub(crate) fn bench(amount: Amount) -> Result<()> {
    heading("Set-up");
    setup::setup()?;
    setup::pgbouncer()?;
    step("build interceptor and the relay (release)", |step| {
        step.run(cargo().args([
            "build",
            "--locked",
            "--release",
            "-p",
            "interceptor",
            "-p",
            "xtask",
        ]))
    })?;
    let built = paths::target().join("release");
    let cluster = step("a throw-away PostgreSQL", |_| {
        Cluster::bare(&[("shared_buffers", "256MB"), ("max_wal_size", "4GB")])
    })?;
    cluster.sql("postgres", "CREATE ROLE agent SUPERUSER LOGIN")?;
    cluster.sql("postgres", "CREATE DATABASE fixture")?;
    let database = cluster.database()?;
    step(&format!("pgbench --initialize --scale={SCALE}"), |_| {
        run::output(
            Target::Direct
                .pgbench(&database)
                .args(["--initialize", "--quiet"])
                .arg(format!("--scale={SCALE}")),
        )
    })?;
    let targets = [
        Target::Direct,
        Target::relay(&built.join("xtask"), &database)?,
        Target::pgbouncer(&database)?,
        Target::interceptor(built.join("interceptor"), POLICY)?,
    ];

    let mut cases = cases(&targets);
    let mut failures = Vec::new();
    for round in 1..=amount.rounds {
        step(&format!("round {round} of {}", amount.rounds), |step| {
            for case in &mut cases {
                let title = case.title();
                let (script, clients, protocol) = (case.script, case.clients, case.protocol);
                for (target, cell) in targets.iter().zip(&mut case.cells) {
                    step.say(&format!("{title} · {}", target.name()));
                    let load = Load {
                        script,
                        clients,
                        protocol,
                        seconds: amount.seconds,
                    };
                    let sample = fresh(&cluster).and_then(|()| measure(target, &database, load));
                    if let Err(error) = &sample {
                        failures.push(format!("{title} · {}: {error:#}", target.name()));
                    }
                    cell.samples.push(sample.ok());
                }
            }
            Ok(())
        })?;
    }
    publish(&cases, amount, &failures)?;
    if !failures.is_empty() {
        bail!("{} runs failed:\n{}", failures.len(), failures.join("\n"));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Load {
    script: &'static str,
    clients: u32,
    protocol: &'static str,
    seconds: u32,
}

fn cases(targets: &[Target]) -> Vec<Case> {
    let mut cases = Vec::new();
    for script in ["select-only", "tpcb-like"] {
        for clients in [1, 16] {
            for protocol in ["simple", "prepared"] {
                cases.push(Case {
                    script,
                    clients,
                    protocol,
                    cells: targets
                        .iter()
                        .map(|target| Cell {
                            target: target.name(),
                            samples: Vec::new(),
                        })
                        .collect(),
                });
            }
        }
    }
    cases
}

/// Ends what the last visit left connected.
fn fresh(cluster: &Cluster) -> Result<()> {
    cluster.sql(
        "postgres",
        "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )?;
    Ok(())
}

fn measure(target: &Target, database: &Database<'_>, load: Load) -> Result<Sample> {
    let before = target.pid().map(cpu::used).transpose()?;
    let mut pgbench = target.pgbench(database);
    pgbench
        .args(["--no-vacuum", "--jobs=1"])
        .arg(format!("--builtin={}", load.script))
        .arg(format!("--protocol={}", load.protocol))
        .arg(format!("--client={}", load.clients))
        .arg(format!("--time={}", load.seconds));
    let limit = Duration::from_secs(u64::from(load.seconds) + 20);
    let report = run::start(&mut pgbench)?.outcome_within(limit)?.success()?;
    let after = target.pid().map(cpu::used).transpose()?;
    let failed = number(&report, "number of failed transactions: ")?;
    if failed > 0.0 {
        bail!("{failed} transactions failed:\n{report}");
    }
    let transactions = number(&report, "number of transactions actually processed: ")?;
    let used = before
        .zip(after)
        .map(|(before, after)| after.saturating_sub(before));
    Ok(Sample {
        tps: number(&report, "tps = ")?,
        cpu_us: used.map(|used| used.as_secs_f64() * 1e6 / transactions),
    })
}

/// The number behind `label` in pgbench's report.
fn number(report: &str, label: &str) -> Result<f64> {
    let (_, rest) = report
        .split_once(label)
        .with_context(|| format!("pgbench didn't say `{label}`:\n{report}"))?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    rest.get(..end)
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("pgbench gave no number for `{label}`:\n{report}"))
}

fn publish(cases: &[Case], amount: Amount, failures: &[String]) -> Result<()> {
    heading("pgbench, medians over interleaved rounds");
    for case in cases {
        println!("{}", case.table());
    }
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder)?;
    let file = folder.join("postgres.json");
    let cases: Vec<_> = cases
        .iter()
        .map(|case| json!({"case": case, "lines": case.lines()}))
        .collect();
    let document = json!({
        "benchmark": "postgres",
        "scale": SCALE,
        "rounds": amount.rounds,
        "seconds": amount.seconds,
        "policy": POLICY,
        "versions": versions(),
        "cases": cases,
        "failures": failures,
    });
    fs::write(&file, serde_json::to_string_pretty(&document)?)?;
    progress::note(&format!("written to {}", file.display()));
    Ok(())
}

fn versions() -> serde_json::Value {
    let of = |command: &mut Command| {
        answer(command).and_then(|text| text.lines().next().map(str::to_owned))
    };
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, name)| name.to_owned())
    });
    json!({
        "interceptor": of(command("git").args(["describe", "--always", "--dirty"])),
        "postgres": of(command("/usr/lib/postgresql/15/bin/postgres").arg("--version")),
        "pgbouncer": of(command("/usr/sbin/pgbouncer").arg("--version")),
        "rustc": of(command("rustc").arg("--version")),
        "kernel": of(command("uname").arg("-r")),
        "processor": processor,
        "processors": std::thread::available_parallelism().map(usize::from).ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_a_report() {
        let report = "number of transactions actually processed: 100/100\n\
                      number of failed transactions: 0 (0.000%)\n\
                      tps = 1234.5678 (without initial connection time)\n";
        assert_eq!(number(report, "tps = ").unwrap(), 1234.5678);
        assert_eq!(
            number(report, "number of failed transactions: ").unwrap(),
            0.0
        );
        assert!(number(report, "latency = ").is_err());
    }
}
