//! pgbench through interceptor, a do-nothing relay and pgbouncer, and directly.
//!
//! interceptor does all of its work: policy, masks on one table, full recording. pgbouncer decides,
//! masks and records nothing. The relay looks at nothing: it is the ceiling.
//!
//! Every visit begins with new server processes. A pool would hand pgbench those of the visit before,
//! which have mapped the server's memory and filled their caches: in visits of seconds that is worth
//! several percent, and says nothing of the proxy.

mod targets;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use interceptor_tests::{
    cluster::{Cluster, Database},
    run,
};
use serde::Serialize;
use serde_json::Value;

use self::targets::Target;
use super::{
    Amount, Measured,
    report::{Case, Sample},
    usage,
};
use crate::{
    progress::{heading, step},
    setup,
    shell::command,
};

const POLICY: &str = include_str!("policy.yaml");

/// pgbench's scale: 500,000 accounts, some 75 MB, all in memory.
const SCALE: u32 = 5;

/// Measures, prints the table and writes `target/bench/postgres.json`.
///
/// # Errors
/// Where something can't be set up, or a target failed under load.
pub(crate) fn bench(amount: Amount) -> Result<()> {
    heading("Set-up");
    setup::setup()?;
    setup::pgbouncer()?;
    let built = super::build()?;
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

    let measured = Measured::take(cases(&targets), amount.rounds(), |load: Load, name| {
        let target = targets
            .iter()
            .find(|target| target.name() == name)
            .context("no such target")?;
        fresh(&cluster)?;
        measure(target, &database, load, amount.seconds())
    })?;
    let more = [
        ("scale".to_owned(), SCALE.into()),
        ("policy".to_owned(), POLICY.into()),
        ("versions".to_owned(), versions()),
    ];
    measured.publish("postgres", amount, more.into_iter().collect())
}

/// What pgbench does.
#[derive(Debug, Clone, Copy, Serialize)]
struct Load {
    /// pgbench's name of the script.
    script: &'static str,
    /// Connections at once.
    clients: u32,
    /// pgbench's name of the protocol.
    protocol: &'static str,
}

fn cases(targets: &[Target]) -> Vec<Case<Load>> {
    let mut cases = Vec::new();
    for script in ["select-only", "tpcb-like"] {
        for clients in [1, 16] {
            for protocol in ["simple", "prepared"] {
                let plural = if clients == 1 { "" } else { "s" };
                let title = format!("{script} · {clients} client{plural} · {protocol}");
                let load = Load {
                    script,
                    clients,
                    protocol,
                };
                cases.push(Case::new(
                    title,
                    ["tps", "tx"],
                    load,
                    targets.iter().map(Target::name),
                ));
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

fn measure(target: &Target, database: &Database<'_>, load: Load, seconds: u32) -> Result<Sample> {
    let pids = target.pids();
    let before = usage::processor(&pids)?;
    let mut pgbench = target.pgbench(database);
    pgbench
        .args(["--no-vacuum", "--jobs=1"])
        .arg(format!("--builtin={}", load.script))
        .arg(format!("--protocol={}", load.protocol))
        .arg(format!("--client={}", load.clients))
        .arg(format!("--time={}", seconds));
    let limit = Duration::from_secs(u64::from(seconds) + 20);
    let report = run::start(&mut pgbench)?.outcome_within(limit)?.success()?;
    let after = usage::processor(&pids)?;
    let failed = number(&report, "number of failed transactions: ")?;
    if failed > 0.0 {
        bail!("{failed} transactions failed:\n{report}");
    }
    let transactions = number(&report, "number of transactions actually processed: ")?;
    let used = (!pids.is_empty()).then(|| after.saturating_sub(before));
    Ok(Sample {
        value: number(&report, "tps = ")?,
        cpu_us: used.map(|used| used.as_secs_f64() * 1e6 / transactions),
        ..Sample::default()
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

fn versions() -> Value {
    super::versions::versions([
        (
            "postgres",
            command("/usr/lib/postgresql/15/bin/postgres").arg("--version"),
        ),
        ("pgbouncer", command("/usr/sbin/pgbouncer").arg("--version")),
    ])
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
