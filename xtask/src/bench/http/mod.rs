//! wrk, h2load and a client of our own over TLS: directly, through nginx, haproxy, envoy and mitmproxy as
//! reverse proxies, and through interceptor.
//!
//! interceptor does all of its work: policy, masks, full recording. The others decide, mask and record
//! nothing. All ask the same server, with TLS on both sides of the proxy, and use one thread for it.

mod peers;
mod site;
mod targets;
mod tools;

use std::{path::PathBuf, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::{
    peers::Peer,
    site::{Door, Site},
    targets::{Target, Way},
};
use super::{
    Amount, Measured,
    report::{Case, Sample},
    usage,
};
use crate::{
    progress::{self, heading, step},
    setup,
};

/// Requests a second of the case in which latency is measured: far from what anybody but mitmproxy can do.
const PACE: u32 = 1_000;

/// Connections whose memory is measured.
const IDLE: u32 = 500;

/// Connections before them: what is needed once is there then.
const WARM: u32 = 16;

/// How long what a process frees takes to be free.
const SETTLE: Duration = Duration::from_millis(500);

/// How often it is looked how much memory there is.
const LOOK: Duration = Duration::from_millis(20);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Work {
    /// HTTP/1.1, as fast as answers come.
    KeepAlive,
    /// HTTP/1.1 at a fixed rate.
    Paced,
    /// HTTP/2 with so many requests at once.
    Streams(u32),
    /// A connection a request.
    Fresh,
    /// Large bodies that masks don't look into.
    Octets,
    /// Large bodies that masks look into.
    Json,
    /// Large bodies in TLS that isn't intercepted.
    Through,
    /// Memory for connections that do nothing.
    Idle,
}

impl Work {
    const ALL: [Self; 9] = [
        Self::KeepAlive,
        Self::Paced,
        Self::Streams(1),
        Self::Streams(100),
        Self::Fresh,
        Self::Octets,
        Self::Json,
        Self::Through,
        Self::Idle,
    ];

    fn title(self) -> String {
        match self {
            Self::KeepAlive => {
                "HTTP/1.1 keep-alive · 16 connections · wrk (closed loop)".to_owned()
            }
            Self::Paced => {
                format!("HTTP/1.1 latency · 16 connections · {PACE} requests/s (open loop)")
            }
            Self::Streams(1) => "HTTP/2 · 1 connection · 1 stream · h2load".to_owned(),
            Self::Streams(streams) => format!("HTTP/2 · 1 connection · {streams} streams · h2load"),
            Self::Fresh => {
                "new TLS connections · 16 at once · one request each · nothing resumed".to_owned()
            }
            Self::Octets => "download · 256 MiB octet-stream".to_owned(),
            Self::Json => "download · 256 MiB JSON · masked by interceptor".to_owned(),
            Self::Through => "download · 256 MiB · TLS passed through (haproxy splices)".to_owned(),
            Self::Idle => format!("memory · {IDLE} idle TLS connections after a request each"),
        }
    }

    const fn units(self) -> [&'static str; 2] {
        match self {
            Self::KeepAlive | Self::Paced | Self::Streams(_) => ["requests/s", "request"],
            Self::Fresh => ["connections/s", "connection"],
            Self::Octets | Self::Json | Self::Through => ["MiB/s", "MiB"],
            Self::Idle => ["KiB/connection", "connection"],
        }
    }

    const fn is_for(self, way: Way) -> bool {
        match (self, way) {
            (Self::Through, Way::Peer(peer)) => peer.lets_through(),
            (Self::Idle, Way::Direct) => false,
            (Self::Through, _) => true,
            (_, way) => !matches!(way, Way::Relay),
        }
    }
}

/// Measures, prints the tables and writes `target/bench/http.json`; only cases with one of `only` in their
/// title, where there are any.
///
/// # Errors
/// Where something can't be set up, or a target failed under load. A peer that can't be had is only named.
pub(crate) fn bench(amount: Amount, only: &[String]) -> Result<()> {
    heading("Set-up");
    setup::setup()?;
    setup::http_clients()?;
    let (peers, mut missing) = install();
    let built = super::build()?;
    let site = step("the server", |_| Site::start())?;
    let bench = Bench {
        site,
        xtask: built.join("xtask"),
        built,
    };
    let ways = [Way::Direct, Way::Relay]
        .into_iter()
        .chain(peers.into_iter().map(Way::Peer))
        .chain([Way::Interceptor]);
    let mut targets = Vec::new();
    let mut negotiated = Map::new();
    for way in ways {
        let started = step(way.name(), |_| bench.start(way));
        match (started, way) {
            (Ok((target, tls)), _) => {
                negotiated.extend(tls.map(|tls| (way.name().to_owned(), tls)));
                targets.push(target);
            }
            (Err(error), Way::Peer(peer)) => missing.push((peer, error)),
            (Err(error), _) => return Err(error),
        }
    }
    for (peer, why) in &missing {
        progress::note(&format!("{} is missing: {why:#}", peer.name()));
    }
    let cases: Vec<_> = Work::ALL
        .into_iter()
        .filter(|work| only.is_empty() || only.iter().any(|part| work.title().contains(part)))
        .map(|work| {
            let ways = targets
                .iter()
                .map(|target| target.way)
                .filter(|way| work.is_for(*way));
            Case::new(work.title(), work.units(), work, ways.map(Way::name))
        })
        .collect();
    if cases.is_empty() {
        bail!("no case has `{}` in its title", only.join("` or `"));
    }
    let measured = Measured::take(cases, amount.rounds(), |work: Work, name| {
        let target = targets.iter().find(|target| target.way.name() == name);
        bench.visit(target.context("no such target")?, work, amount.seconds())
    })?;
    let missing: Map<_, _> = missing
        .iter()
        .map(|(peer, why)| (peer.name().to_owned(), format!("{why:#}").into()))
        .collect();
    for (name, why) in &missing {
        println!("missing: {name}: {}\n", why.as_str().unwrap_or_default());
    }
    let more = [
        ("policy", targets::POLICY.into()),
        ("missing", missing.into()),
        ("negotiated", negotiated.into()),
        ("versions", versions()),
        ("notes", NOTES.into()),
    ];
    let more = more
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    measured.publish("http", amount, more.collect())
}

/// What whoever reads the JSON has to know.
const NOTES: &[&str] = &[
    "wrk is a closed loop: it waits for an answer before it asks again, so its latencies are those of a full queue; added latency is what the open loop says",
    "nginx, haproxy, envoy and mitmproxy are reverse proxies that clients are pointed at; they decide, mask and record nothing",
    "nginx asks the server over HTTP/1.1, whatever it is asked over",
    "nginx, haproxy and envoy share connections to the server, so an idle connection costs them one leg; interceptor and mitmproxy keep both",
];

/// Every peer that can be had, and why the others can't.
fn install() -> (Vec<Peer>, Vec<(Peer, anyhow::Error)>) {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for peer in Peer::ALL {
        match peer.install() {
            Ok(()) => there.push(peer),
            Err(error) => missing.push((peer, error)),
        }
    }
    (there, missing)
}

/// What visits need.
struct Bench {
    site: Site,
    built: PathBuf,
    xtask: PathBuf,
}

impl Bench {
    /// Sets `way` up, sees that it does what it should, and asks what was negotiated.
    fn start(&self, way: Way) -> Result<(Target, Option<Value>)> {
        let target = Target::start(way, &self.site, &self.built)?;
        if way == Way::Relay {
            target.fetch(site::ANSWER, Door::Through, &self.site)?;
            return Ok((target, None));
        }
        for door in [Door::Kept, Door::Fresh] {
            target.fetch(site::ANSWER, door, &self.site)?;
        }
        if Work::Through.is_for(way) {
            target.fetch(site::ANSWER, Door::Through, &self.site)?;
        }
        let with_server = target.fetch(site::NEGOTIATED, Door::Kept, &self.site)?;
        let probe = [
            "--connections",
            "1",
            "paced",
            "--rate",
            "10",
            "--seconds",
            "1",
        ];
        let with_client = self.load(&target, Door::Kept, site::ANSWER, &probe, 1)?.tls;
        let tls = json!({"with_client": with_client, "with_server": with_server.trim()});
        Ok((target, Some(tls)))
    }

    fn visit(&self, target: &Target, work: Work, seconds: u32) -> Result<Sample> {
        let time = seconds.to_string();
        let pids = target.pids();
        let before = usage::processor(&pids)?;
        let download = |door, path| -> Result<_> {
            let work = ["--connections", "1", "download", "--seconds", &time];
            let outcome = self.load(target, door, path, &work, seconds)?;
            let mebibytes = outcome.bytes as f64 / f64::from(1 << 20);
            Ok((mebibytes, Sample::of_rate(mebibytes / outcome.seconds)))
        };
        // How many of what processor time is counted for, and the rest.
        let (count, sample) = match work {
            Work::KeepAlive => tools::wrk(target, seconds)?.into(),
            Work::Streams(streams) => tools::h2load(target, streams, seconds)?.into(),
            Work::Paced => {
                let work = ["paced", "--rate", &PACE.to_string(), "--seconds", &time];
                answers(&self.load(target, Door::Kept, site::ANSWER, &work, seconds)?)
            }
            Work::Fresh => {
                let work = ["fresh", "--seconds", &time];
                answers(&self.load(target, Door::Fresh, site::ANSWER, &work, seconds)?)
            }
            Work::Octets => download(Door::Kept, site::OCTETS)?,
            Work::Json => download(Door::Kept, site::JSON)?,
            Work::Through => download(Door::Through, site::OCTETS)?,
            Work::Idle => return self.idle(target.way),
        };
        let after = usage::processor(&pids)?;
        let used = (!pids.is_empty()).then(|| after.saturating_sub(before));
        Ok(Sample {
            cpu_us: used.map(|used| used.as_secs_f64() * 1e6 / count),
            ..sample
        })
    }

    /// In a process of its own: one that was under load has memory to spare.
    fn idle(&self, way: Way) -> Result<Sample> {
        let target = Target::start(way, &self.site, &self.built)?;
        let pids = target.pids();
        let idle = |count: u32| {
            let connections = count.to_string();
            let work = ["--connections", &connections, "idle"];
            self.load(&target, Door::Kept, site::ANSWER, &work, 10)
        };
        idle(WARM)?;
        thread::sleep(SETTLE);
        let before = usage::memory(&pids)?;
        let most = thread::scope(|scope| -> Result<f64> {
            let idling = scope.spawn(|| idle(IDLE));
            let mut most = before;
            while !idling.is_finished() {
                most = most.max(usage::memory(&pids)?);
                thread::sleep(LOOK);
            }
            idling
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))??;
            Ok(most)
        })?;
        let grown = (most - before) / f64::from(IDLE);
        Ok(Sample::of_rate(grown / 1024.0))
    }

    fn load(
        &self,
        target: &Target,
        door: Door,
        path: &str,
        work: &[&str],
        seconds: u32,
    ) -> Result<crate::load::Outcome> {
        tools::load(target, &self.site, &self.xtask, door, path, work, seconds)
    }
}

impl Sample {
    fn of_rate(value: f64) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }
}

impl From<tools::Report> for (f64, Sample) {
    fn from(report: tools::Report) -> Self {
        let [p50_us, p99_us] = report
            .latency_us
            .map_or([None; 2], |latency| latency.map(Some));
        let sample = Sample {
            p50_us,
            p99_us,
            ..Sample::of_rate(report.rate)
        };
        (report.count, sample)
    }
}

fn answers(outcome: &crate::load::Outcome) -> (f64, Sample) {
    let count = outcome.count as f64;
    let sample = Sample {
        p50_us: Some(outcome.p50_us),
        p99_us: Some(outcome.p99_us),
        ..Sample::of_rate(count / outcome.seconds)
    };
    (count, sample)
}

fn versions() -> Value {
    let mut peers: Vec<(&str, Command)> = Peer::ALL
        .into_iter()
        .filter_map(|peer| Some((peer.name(), peer.version().ok()?)))
        .collect();
    for (name, argument) in [("wrk", "--version"), ("h2load", "--version")] {
        let mut command = Command::new(name);
        command.arg(argument);
        peers.push((name, command));
    }
    super::versions::versions(peers.iter_mut().map(|(name, command)| (*name, command)))
}
