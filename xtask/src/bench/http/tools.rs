//! The clients: their command lines, and what they report.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use interceptor_tests::run;

use super::{
    site::{self, Door, Site},
    targets::Target,
};
use crate::load::Outcome;

/// What a closed-loop client reports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Report {
    /// Answers.
    pub(super) count: f64,
    /// Answers a second.
    pub(super) rate: f64,
    /// Microseconds to the middle answer and to all but a hundredth, where the client says it.
    pub(super) latency_us: Option<[f64; 2]>,
}

/// wrk with 16 connections that stay.
///
/// # Errors
/// Where anything but a 200 was answered.
pub(super) fn wrk(target: &Target, seconds: u32) -> Result<Report> {
    let mut wrk = target.client("wrk");
    wrk.args(["--threads", "1", "--connections", "16", "--latency"])
        .args(["--duration", &format!("{seconds}s")])
        .arg(url(target));
    read_wrk(&finish(&mut wrk, seconds)?)
}

/// h2load with one connection and `streams` requests at once on it.
///
/// # Errors
/// Where anything but a 200 was answered.
pub(super) fn h2load(target: &Target, streams: u32, seconds: u32) -> Result<Report> {
    let mut h2load = target.client("h2load");
    h2load
        .args(["--clients", "1", "--threads", "1"])
        .args(["--max-concurrent-streams", &streams.to_string()])
        .args(["--duration", &seconds.to_string()])
        .arg(url(target));
    read_h2load(&finish(&mut h2load, seconds)?)
}

/// Our own client, asking `target` at `door` for `path`; `work` as on its command line.
///
/// # Errors
/// Where anything but a 200 was answered.
pub(super) fn load(
    target: &Target,
    site: &Site,
    xtask: &Path,
    door: Door,
    path: &str,
    work: &[&str],
    seconds: u32,
) -> Result<Outcome> {
    let mut command = target.client(xtask);
    command
        .args([
            "load",
            "--connect",
            &format!("127.0.0.1:{}", target.port(door)),
        ])
        .arg("--authority")
        .arg(target.authority(door, site))
        .args(["--path", path])
        .args(work);
    serde_json::from_str(&finish(&mut command, seconds)?).context("our client said no JSON")
}

fn url(target: &Target) -> String {
    format!(
        "https://localhost:{}{}",
        target.port(Door::Kept),
        site::ANSWER
    )
}

fn finish(command: &mut Command, seconds: u32) -> Result<String> {
    let limit = Duration::from_secs(u64::from(seconds) + 60);
    run::start(command)?.outcome_within(limit)?.success()
}

fn read_wrk(report: &str) -> Result<Report> {
    for complaint in ["Non-2xx or 3xx responses", "Socket errors"] {
        if report.contains(complaint) {
            bail!("not everything was answered:\n{report}");
        }
    }
    let word = |label: &str, index: usize| {
        report
            .lines()
            .find(|line| line.contains(label))
            .and_then(|line| line.split_whitespace().nth(index))
            .with_context(|| format!("wrk didn't say `{label}`:\n{report}"))
    };
    Ok(Report {
        count: word(" requests in ", 0)?.parse()?,
        rate: word("Requests/sec:", 1)?.parse()?,
        latency_us: Some([
            microseconds(word(" 50% ", 1)?)?,
            microseconds(word(" 99% ", 1)?)?,
        ]),
    })
}

fn read_h2load(report: &str) -> Result<Report> {
    let number = |label: &str, until: &str| -> Result<f64> {
        report
            .split_once(label)
            .and_then(|(_, rest)| rest.split_once(until))
            .and_then(|(number, _)| number.trim().parse().ok())
            .with_context(|| format!("h2load didn't say `{label}`:\n{report}"))
    };
    let good = number("status codes: ", " 2xx")?;
    let bad = [
        (" 2xx, ", " 3xx"),
        (" 3xx, ", " 4xx"),
        (" 4xx, ", " 5xx"),
        ("succeeded, ", " failed"),
    ];
    for (label, until) in bad {
        if number(label, until)? > 0.0 {
            bail!("not everything was answered:\n{report}");
        }
    }
    let rate = report
        .lines()
        .find_map(|line| {
            line.strip_prefix("finished in ")?
                .split(", ")
                .nth(1)?
                .strip_suffix(" req/s")
        })
        .and_then(|rate| rate.parse().ok())
        .with_context(|| format!("h2load said no rate:\n{report}"))?;
    if good == 0.0 {
        bail!("nothing was answered:\n{report}");
    }
    Ok(Report {
        count: good,
        rate,
        latency_us: None,
    })
}

/// wrk's `1.23ms`.
fn microseconds(text: &str) -> Result<f64> {
    [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)]
        .into_iter()
        .find_map(|(unit, factor)| {
            let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
            Some(number * factor)
        })
        .with_context(|| format!("`{text}` is no time of wrk's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 1s test @ https://localhost:8443/answer.json\n\
        \x20 1 threads and 16 connections\n\
        \x20 Thread Stats   Avg      Stdev     Max   +/- Stdev\n\
        \x20   Latency   260.90us  155.42us   4.05ms   97.28%\n\
        \x20   Req/Sec    62.24k     3.31k   66.87k    63.64%\n\
        \x20 Latency Distribution\n\
        \x20    50%  246.00us\n     75%  262.00us\n     90%  309.00us\n     99%    1.50ms\n\
        \x20 68128 requests in 1.10s, 81.08MB read\n\
        Requests/sec:  61949.20\nTransfer/sec:     73.73MB\n";

    const H2LOAD: &str = "finished in 1.00s, 23456.00 req/s, 27.51MB/s\n\
        requests: 23456 total, 23456 started, 23456 done, 23456 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 23456 2xx, 0 3xx, 0 4xx, 0 5xx\n";

    #[test]
    fn the_report_of_wrk_is_read() {
        let report = read_wrk(WRK).unwrap();
        assert_eq!((report.count, report.rate), (68_128.0, 61_949.2));
        assert_eq!(report.latency_us, Some([246.0, 1_500.0]));
    }

    #[test]
    fn the_report_of_h2load_is_read() {
        let report = read_h2load(H2LOAD).unwrap();
        assert_eq!((report.count, report.rate), (23_456.0, 23_456.0));
    }

    #[test]
    fn refusals_are_no_success() {
        assert!(read_wrk(&format!("{WRK}  Non-2xx or 3xx responses: 3\n")).is_err());
        assert!(read_h2load(&H2LOAD.replace("0 4xx", "3 4xx")).is_err());
        assert!(read_h2load(&H2LOAD.replace("0 failed", "3 failed")).is_err());
    }
}
