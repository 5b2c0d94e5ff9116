//! connect() alone: without hooks, beside them, and through them.
//!
//! A client connects over loopback to a server that only accepts, one connect a millisecond, with 1 and with
//! 10,000 connections open. What each hook costs is what the kernel itself counts, with its statistics on.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::{programs::loaded_programs, sys::Stats};
use interceptor_tests::{
    daemon::Daemon,
    keeper::{self, Farewell, Keeper},
    run, scratch,
};
use serde::Serialize;
use serde_json::json;

use super::{
    Amount, Measured,
    report::{Case, Sample},
};
use crate::{
    connect::{Outcome, raise_descriptor_limit},
    progress::{heading, note, step},
};

/// Connections that are open while one connects, at the most.
const MOST: u32 = 10_000;

/// Descriptors that a daemon has besides those of its connections.
const OTHERS: u64 = 512;

/// Connects a second: the client pauses for a millisecond between two.
const CONNECTS_A_SECOND: u32 = 700;

/// Connects by which the hooks' own cost is told.
const COUNTED: u32 = 2_000;

/// How the connects follow one another by which the hooks' own cost is told, in microseconds between two: with
/// everything in the processor's caches, and as after other work.
const PACES: [(&str, u64); 2] = [("one after the other", 0), ("one a millisecond", PAUSE_US)];

/// Microseconds between two connects.
const PAUSE_US: u64 = 1_000;

/// The steps of a connection that are told apart.
const STEPS: [&str; 3] = ["socket()", CONNECT, "close()"];
const CONNECT: &str = "connect()";

/// What the hooks of a tagged connect are to cost at the most.
const AIM_NS: f64 = 2_000.0;

/// No daemon and no hooks; what the others are compared to.
const DIRECT: &str = "direct";
/// A daemon with a tagged agent, which the client is not.
const UNTAGGED: &str = "untagged";
/// The client is the agent.
const REDIRECTED: &str = "redirected";
/// The client is the agent, and so is the server.
const WITHIN: &str = "within the agent";

const POLICY: &str = "default: {action: allow}\n";

/// What stands beside a client.
#[derive(Debug)]
struct Bench {
    xtask: PathBuf,
    cgroup: PathBuf,
    _keeper: Keeper,
    daemon: Daemon,
    is_tagged: bool,
}

/// A server that accepts, ended when dropped.
#[derive(Debug)]
struct Server {
    port: u16,
    _keeper: Keeper,
}

/// What the kernel has counted of a program, by its number.
type Counted = BTreeMap<u32, (String, Duration, u64)>;

/// What a hook costs in one step of a connection.
#[derive(Debug, Serialize)]
struct Cost {
    /// The program.
    hook: String,
    /// How often it runs for one connection.
    runs: f64,
    /// Nanoseconds of one run.
    run_ns: f64,
    /// Nanoseconds for one connection.
    connection_ns: f64,
}

/// What all hooks cost a redirected connection in one step at one pace, in nanoseconds.
#[derive(Debug, Serialize)]
struct Costs {
    step: &'static str,
    pace: &'static str,
    /// Calls of the agent.
    calls_ns: f64,
    /// Packets of the agent.
    packets_ns: f64,
    /// The daemon's side, its own dial included.
    daemon_ns: f64,
    each: Vec<Cost>,
}

impl Costs {
    fn new(step: &'static str, pace: &'static str, each: Vec<Cost>) -> Self {
        let sum = |is_meant: fn(&str) -> bool| {
            let meant = each.iter().filter(|cost| is_meant(&cost.hook));
            meant.map(|cost| cost.connection_ns).sum::<f64>()
        };
        Self {
            step,
            pace,
            calls_ns: sum(|hook| hook.starts_with("agent_") && !hook.ends_with("gress")),
            packets_ns: sum(|hook| hook.ends_with("gress")),
            daemon_ns: sum(|hook| hook.starts_with("daemon_")),
            each,
        }
    }

    fn table(&self) -> String {
        let Self {
            step,
            pace,
            calls_ns,
            packets_ns,
            daemon_ns,
            ..
        } = self;
        let mut table = format!("{step}, {pace}\n");
        for cost in &self.each {
            // Writing to a string can't fail.
            _ = writeln!(
                table,
                "  {:<18} {:>6.2} runs × {:>6.0} ns = {:>6.0} ns",
                cost.hook, cost.runs, cost.run_ns, cost.connection_ns
            );
        }
        _ = write!(
            table,
            "  the agent's calls {calls_ns:.0} ns, its packets {packets_ns:.0} ns; the daemon's side {daemon_ns:.0} ns"
        );
        if *step == CONNECT {
            let kept = if calls_ns + packets_ns < AIM_NS {
                "kept"
            } else {
                "MISSED"
            };
            _ = write!(
                table,
                "; the aim for calls and packets together, under {AIM_NS:.0} ns, is {kept}"
            );
        }
        table + "\n"
    }
}

/// Measures, prints the tables and writes `target/bench/connect.json`.
///
/// # Errors
/// Where something can't be set up, or a connect fails.
pub(crate) fn bench(amount: Amount) -> Result<()> {
    heading("Set-up");
    // The daemon has two descriptors for each, and some for itself.
    let room = raise_descriptor_limit()?.saturating_sub(OTHERS) / 2;
    let most = u32::try_from(room).unwrap_or(u32::MAX).min(MOST);
    if most < MOST {
        note(&format!(
            "{most} connections have to do: this process may have no more descriptors (ulimit -Hn)"
        ));
    }
    let built = super::build()?;
    let mut bench = step("a daemon and a cgroup", |_| Bench::new(&built))?;
    let outside = bench.server(false)?;
    let cases = [1, most].map(|open| {
        let title = format!("connect() · {open} open · one a millisecond");
        let targets = [DIRECT, UNTAGGED, REDIRECTED, WITHIN];
        Case::new(title, ["connects/s of its own", "connect"], open, targets)
    });
    let count = amount.seconds() * CONNECTS_A_SECOND;
    let measured = Measured::take(cases.into(), amount.rounds(), |open, target| {
        bench.visit(&outside, open, count, target)
    })?;
    let mut costs = Vec::new();
    for (title, pause_us) in PACES {
        let of_this = step(
            &format!("what the kernel counts for each hook, {title}"),
            |_| bench.costs(&outside, pause_us),
        )?;
        costs.extend(of_this.map(|(step, each)| Costs::new(step, title, each)));
    }
    heading("What the hooks cost a redirected connection, as the kernel counts it");
    for costs in &costs {
        println!("{}", costs.table());
    }
    let more = [
        ("aim_ns", json!(AIM_NS)),
        ("hooks", json!(costs)),
        ("notes", NOTES.into()),
    ];
    let more = more
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    measured.publish("connect", amount, more.collect())
}

/// What whoever reads the JSON has to know.
const NOTES: &[&str] = &[
    "direct: neither daemon nor hooks; untagged: a daemon with a tagged agent beside the client; redirected: the client is the agent; within the agent: the server is as well",
    "of a redirected connection the client waits for the daemon's kernel side alone, not for the daemon: its connect is answered before the daemon accepts",
    "hooks: with the kernel's statistics on (BPF_ENABLE_STATS), which add some tens of nanoseconds to each run; two thousand sockets are made, then connected, then ended",
];

impl Bench {
    fn new(built: &Path) -> Result<Self> {
        let cgroup = keeper::cgroup2()?.join(scratch::name("bench-connect"));
        fs::create_dir(&cgroup)?;
        let keeper = Keeper::of_command("rmdir \"$1\"", [cgroup.as_os_str()])?;
        // All ten thousand are of one agent.
        let limits = "limits: {connections: 30000, connections_per_agent: 20000}\n";
        let mut daemon = Daemon::of(built.join("interceptor"), POLICY, |_| limits.to_owned())?;
        daemon.stop()?;
        Ok(Self {
            xtask: built.join("xtask"),
            cgroup,
            _keeper: keeper,
            daemon,
            is_tagged: false,
        })
    }

    fn visit(
        &mut self,
        outside: &Server,
        open: u32,
        count: u32,
        target: &'static str,
    ) -> Result<Sample> {
        self.tag(target != DIRECT)?;
        let own = (target == WITHIN).then(|| self.server(true)).transpose()?;
        let port = own.as_ref().unwrap_or(outside).port;
        let is_tagged = [REDIRECTED, WITHIN].contains(&target);
        let outcome = self.connect(port, [open, count], PAUSE_US, is_tagged)?;
        Ok(Sample {
            value: 1e6 / outcome.mean_us,
            p50_us: Some(outcome.p50_us),
            p99_us: Some(outcome.p99_us),
            cpu_us: None,
        })
    }

    /// Has the daemon run and the cgroup be an agent, or neither of both.
    fn tag(&mut self, tagged: bool) -> Result<()> {
        if self.is_tagged == tagged {
            return Ok(());
        }
        if tagged {
            self.daemon.restart()?;
            let cgroup = self.cgroup.to_str().context("a cgroup's path is text")?;
            self.daemon
                .ask(&["tag", "add", cgroup, "--agent", "bench"])?;
        } else {
            self.daemon.ask(&["tag", "remove", "bench"])?;
            self.daemon.stop()?;
        }
        self.is_tagged = tagged;
        Ok(())
    }

    fn connect(
        &self,
        port: u16,
        [open, count]: [u32; 2],
        pause_us: u64,
        tagged: bool,
    ) -> Result<Outcome> {
        let mut command = self.command(tagged);
        command.args(["connect", "--pause-us", &pause_us.to_string()]);
        command.args(["--to", &format!("127.0.0.1:{port}")]);
        command.args(["--open", &open.to_string()]);
        command.args(["--count", &count.to_string()]);
        let patience = Duration::from_secs(60 + u64::from(count) / 100);
        let outcome = run::start(command.stdout(Stdio::piped()))?.outcome_within(patience)?;
        let said = outcome.success()?;
        serde_json::from_str(&said).with_context(|| format!("the client said: {said}"))
    }

    /// Starts a server, in the agent's cgroup or outside of it.
    fn server(&self, tagged: bool) -> Result<Server> {
        let mut child = self
            .command(tagged)
            .arg("hold")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut keeper = Keeper::of_process(
            child.id(),
            Farewell::Terminate,
            &scratch::folder("bench-hold")?,
        )?;
        let said = child.stdout.take().context("its stdout is a pipe")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        keeper.reap(child);
        Ok(Server {
            port: line.trim().parse().context("the server said no port")?,
            _keeper: keeper,
        })
    }

    /// This program, to be started in the agent's cgroup or outside of it.
    fn command(&self, tagged: bool) -> Command {
        if !tagged {
            return Command::new(&self.xtask);
        }
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo $$ >\"$0/cgroup.procs\"; exec \"$@\""])
            .arg(&self.cgroup)
            .arg(&self.xtask);
        command
    }

    /// What the kernel counts for each hook in each step of a redirected connection.
    fn costs(
        &mut self,
        outside: &Server,
        pause_us: u64,
    ) -> Result<[(&'static str, Vec<Cost>); STEPS.len()]> {
        self.tag(false)?;
        let others: Vec<u32> = counted()?.into_keys().collect();
        self.tag(true)?;
        // On until this is dropped.
        let _statistics = aya::sys::enable_stats(Stats::RunTime)
            .context("the kernel's statistics need Linux 5.8 and root")?;
        let mut command = self.command(true);
        command.args(["connect", "--by-steps", "--open", "0"]);
        command.args(["--to", &format!("127.0.0.1:{}", outside.port)]);
        command.args(["--count", &COUNTED.to_string()]);
        command.args(["--pause-us", &pause_us.to_string()]);
        let mut client = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut go_on = client.stdin.take().context("its stdin is a pipe")?;
        let said = client.stdout.take().context("its stdout is a pipe")?;
        let mut said = BufReader::new(said).lines();
        said.next().context("the client ended")??;
        let mut costs = STEPS.map(|step| (step, Vec::new()));
        for (_, of_step) in &mut costs {
            let before = counted()?;
            writeln!(go_on)?;
            said.next().context("the client ended")??;
            // What the daemon does about it is over as well.
            thread::sleep(Duration::from_secs(1));
            *of_step = differences(&others, &before, counted()?);
        }
        drop(go_on);
        if !client.wait()?.success() || costs.iter().any(|(_, costs)| costs.is_empty()) {
            bail!("the hooks haven't run");
        }
        Ok(costs)
    }
}

/// What each of our hooks has cost a connection from `before` to `after`; `others` are programs of somebody else's.
fn differences(others: &[u32], before: &Counted, after: Counted) -> Vec<Cost> {
    let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
    for (id, (hook, time, runs)) in after {
        let Some((_, time_before, runs_before)) = before.get(&id) else {
            continue;
        };
        let (time, runs) = (time - *time_before, runs - runs_before);
        let is_ours = hook.starts_with("agent_") || hook.starts_with("daemon_");
        if others.contains(&id) || !is_ours || runs == 0 {
            continue;
        }
        let (time_ns, runs) = (time.as_nanos() as f64, runs as f64);
        let cost = Cost {
            hook: hook.clone(),
            runs: runs / f64::from(COUNTED),
            run_ns: time_ns / runs,
            connection_ns: time_ns / f64::from(COUNTED),
        };
        // Another daemon may have started meanwhile: ours is the one that has the more to do.
        if costs.get(&hook).is_none_or(|known| known.runs < cost.runs) {
            costs.insert(hook, cost);
        }
    }
    costs.into_values().collect()
}

/// What the kernel has counted of all programs.
fn counted() -> Result<Counted> {
    let mut all = Counted::new();
    for program in loaded_programs() {
        // It may be gone by the time it is looked at.
        let Ok(program) = program else { continue };
        let name = program.name_as_str().unwrap_or_default().to_owned();
        all.insert(
            program.id(),
            (name, program.run_time(), program.run_count()),
        );
    }
    Ok(all)
}
