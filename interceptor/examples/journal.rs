//! What `cargo xtask bench journal` has the journal do, and the disk without it. Each prints a line of JSON.

use std::{
    fs, io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use interceptor::journal::{
    Decided, Encryption, Filter, Found, Journal, Kept, Options, Reader, SessionSummary, Text,
    Wanted, export_jsonl, verify,
};
use interceptor_core::{
    operation::{Description, Effects, Operation, Protocol, Resource, ResourceKind, Touch},
    origin::{Agent, Destination, Origin, Process},
    record::{
        DecisionRecord, Event, OperationRecord, Record, ResponseRecord, ResponseStatus, SessionEnd,
        SessionId, SessionStart, Timestamp,
    },
    ruling::{Decision, PolicyHash, Verdict},
};
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    /// An empty folder to work in
    folder: PathBuf,
    /// Have sessions be encrypted
    #[arg(long, global = true)]
    encrypted: bool,
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Have each record on disk before the next of the same writer
    Strict { writers: u64, seconds: u64 },
    /// Have records on disk at some time, and all of them in the end
    Batched { writers: u64, seconds: u64 },
    /// Write this many records at once to a file and sync it, without a journal
    Raw { at_once: usize, seconds: u64 },
    /// One record as it is on the way to disk, in hexadecimal
    Record,
    /// Fill a journal with this many records
    Fill { records: u64 },
    /// Check a journal that was filled
    Verify,
    /// Export it
    Export,
    /// Open it, and list its sessions this many times
    List { times: usize },
}

/// Whether sessions are encrypted.
static ENCRYPTED: AtomicBool = AtomicBool::new(false);

/// Records of a session: its start, for each operation three, its end.
const OPERATIONS: u64 = 32;

fn main() -> Result<()> {
    let Arguments {
        folder,
        encrypted,
        work,
    } = Arguments::parse();
    ENCRYPTED.store(encrypted, Ordering::Relaxed);
    let said = match work {
        Work::Strict { writers, seconds } => strict(&folder, writers, seconds)?,
        Work::Batched { writers, seconds } => batched(&folder, writers, seconds)?,
        Work::Raw { at_once, seconds } => raw(&folder, at_once, seconds)?,
        Work::Record => json!({"record": hex::encode(typical()?)}),
        Work::Fill { records } => fill(&folder, records)?,
        Work::Verify => check(&folder)?,
        Work::Export => export(&folder)?,
        Work::List { times } => list(&folder, times)?,
    };
    println!("{said}");
    Ok(())
}

/// Something that no other place of any journal has, as ids, tokens and sums are (splitmix64).
fn noise(session: u64, number: u64) -> u64 {
    let mut mixed = (session << 32 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The `number`th of what an agent's session is made of.
fn event(session: u64, number: u64) -> Event {
    let operation = number / 3 + 1;
    let any = |place: u64| noise(session, number * 16 + place);
    match number % 3 {
        0 => Event::Operation(OperationRecord {
            number: operation,
            operation: Operation {
                protocol: Protocol::Postgres,
                description: Arc::new(Description {
                    actions: [Box::from("SELECT")].into(),
                    effects: Effects::READ,
                    resources: [Resource {
                        kind: ResourceKind::Table,
                        namespace: Some("shop".into()),
                        name: "orders".into(),
                        touch: Touch::Read,
                    }]
                    .into(),
                    ..Description::default()
                }),
                content: format!(
                    "SELECT id, customer, total, note FROM shop.orders WHERE customer = {} AND id > {} AND token = '{:016x}' ORDER BY id LIMIT 50",
                    any(0) % 100_000,
                    any(1) % 1_000_000,
                    any(2)
                )
                .into(),
                parameters: [].into(),
                options: Vec::new(),
                http: None,
            },
        }),
        1 => Event::Decision(DecisionRecord {
            number: operation,
            decision: Arc::new(Decision {
                verdict: Verdict::Allow,
                enforced: true,
                rule: "reads".into(),
                reason: "".into(),
                masked_by: [].into(),
                observed: [].into(),
                strict: false,
                policy: PolicyHash([7; 32]),
            }),
        }),
        _ => Event::Response(ResponseRecord {
            number: operation,
            protocol: Protocol::Postgres,
            status: ResponseStatus::Complete("SELECT 3".into()),
            rows: 3,
            bytes: 240,
            elapsed_ns: 900_000 + any(3) % 400_000,
            shape: None,
            data: (0..3_u64)
                .map(|row| {
                    format!(
                        "D\0\0\0\x46\0\x04\0\0\0\x06{:06}\0\0\0\x05{:05}\0\0\0\x06{:>6}\0\0\0\x1Aleft with {:016x}",
                        any(4 + row) % 1_000_000,
                        any(0) % 100_000,
                        any(8 + row) % 99_999,
                        any(12 + row)
                    )
                    .into()
                })
                .collect(),
            masked: [].into(),
        }),
    }
}

fn start() -> Event {
    Event::SessionStart(SessionStart {
        origin: Arc::new(Origin {
            agent: Arc::new(Agent {
                name: "reporter".into(),
                labels: [("team".into(), "finance".into())].into(),
            }),
            process: Process {
                pid: 4_711,
                uid: 1_000,
                executable: Some("/usr/bin/python3.11".into()),
                arguments: ["python3", "report.py"].map(Into::into).into(),
                cgroup: "/interceptor/agents/reporter-1".into(),
                network_namespace: None,
            },
            destination: Destination::Ip(([192, 0, 2, 10], 5_432).into()),
            names: vec!["db.example.com".into()],
        }),
        client: Some(([192, 0, 2, 1], 40_000).into()),
    })
}

fn end() -> Event {
    Event::SessionEnd(SessionEnd {
        reason: "finished".into(),
        operations: OPERATIONS,
        bytes_from_client: 4_000,
        bytes_from_upstream: 8_000,
    })
}

/// A record of ordinary size, in the journal's own encoding.
fn typical() -> Result<Vec<u8>> {
    Ok(postcard::to_stdvec(&Record {
        seq: 1_000_000,
        time: Timestamp(1_795_000_000_000_000_000),
        session: Some(SessionId(0x0123_4567_89AB_CDEF)),
        agent: "reporter".into(),
        event: event(1, 2),
    })?)
}

fn rate(records: u64, began: Instant) -> Value {
    let seconds = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let rate = records as f64 / seconds;
    json!({"records": records, "seconds": seconds, "rate": rate})
}

fn journal(folder: &Path) -> Result<Journal> {
    let options = Options {
        encryption: ENCRYPTED
            .load(Ordering::Relaxed)
            .then_some(Encryption::Beside),
        ..Options::default()
    };
    Journal::open_with(folder, &options)
        .with_context(|| format!("the journal in {}", folder.display()))
}

fn strict(folder: &Path, writers: u64, seconds: u64) -> Result<Value> {
    let journal = journal(folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let written = runtime.block_on(async {
        let writers: Vec<_> = (0..writers)
            .map(|writer| tokio::spawn(write_strictly(journal.clone(), writer, until)))
            .collect();
        let (mut written, mut took) = (0, Vec::new());
        for writer in writers {
            let (records, mut each) = writer.await??;
            written += records;
            took.append(&mut each);
        }
        anyhow::Ok((written, took))
    });
    let (written, took) = written?;
    let said = with_times(rate(written, began), took);
    journal.close();
    Ok(said)
}

fn with_times(mut said: Value, mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let percentile = |part: usize| took.get(took.len() * part / 100).map(Duration::as_micros);
    if let Some(said) = said.as_object_mut() {
        said.insert("p50_us".to_owned(), json!(percentile(50)));
        said.insert("p99_us".to_owned(), json!(percentile(99)));
    }
    said
}

async fn write_strictly(
    journal: Journal,
    writer: u64,
    until: Instant,
) -> Result<(u64, Vec<Duration>)> {
    let agent = Arc::from("reporter");
    let (mut written, mut took) = (0, Vec::new());
    while Instant::now() < until {
        let began = Instant::now();
        let time = Timestamp(1_795_000_000_000_000_000 + written);
        let event = event(writer, written);
        let seq = journal.append(Some(SessionId(writer)), &agent, time, [event])?;
        journal.durable(seq).await?;
        took.push(began.elapsed());
        written += 1;
    }
    Ok((written, took))
}

fn batched(folder: &Path, writers: u64, seconds: u64) -> Result<Value> {
    let journal = journal(folder)?;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..writers)
            .map(|writer| {
                let journal = &journal;
                scope.spawn(move || {
                    let agent = Arc::from("reporter");
                    let mut written = 0;
                    while Instant::now() < until {
                        let time = Timestamp(1_795_000_000_000_000_000 + written);
                        let event = event(writer, written);
                        match journal.append(Some(SessionId(writer)), &agent, time, [event]) {
                            Ok(_) => written += 1,
                            // As sessions do: what there is no room for waits.
                            Err(_) => std::thread::sleep(Duration::from_millis(1)),
                        }
                    }
                    written
                })
            })
            .collect();
        let written = writers.into_iter().map(|writer| writer.join());
        written.filter_map(Result::ok).sum()
    });
    // The clock runs until all of it is on disk.
    settle(&journal)?;
    let said = rate(written, began);
    journal.close();
    Ok(said)
}

fn settle(journal: &Journal) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(journal.durable(journal.last_seq()))?)
}

fn raw(folder: &Path, at_once: usize, seconds: u64) -> Result<Value> {
    let bytes = typical()?.repeat(at_once);
    let file = fs::File::create(folder.join("raw"))?;
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let (mut written, mut offset, mut took) = (0, 0, Vec::new());
    while Instant::now() < until {
        let began = Instant::now();
        file.write_all_at(&bytes, offset)?;
        file.sync_data()?;
        took.push(began.elapsed());
        offset += bytes.len() as u64;
        written += at_once as u64;
    }
    Ok(with_times(rate(written, began), took))
}

fn fill(folder: &Path, records: u64) -> Result<Value> {
    let journal = journal(folder)?;
    let began = Instant::now();
    let mut written = 0;
    let mut session = 0;
    while written < records {
        session += 1;
        let all = std::iter::once(start())
            .chain((0..OPERATIONS * 3).map(|number| event(session, number)))
            .chain([end()]);
        let agent = Arc::from(format!("agent-{}", session % 20));
        let time = Timestamp(1_795_000_000_000_000_000 + session * 1_000_000_000);
        let id = SessionId(session.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let all: Vec<Event> = all.collect();
        written += all.len() as u64;
        while let Err(stopped) = journal.append(Some(id), &agent, time, all.iter().cloned()) {
            if began.elapsed() > Duration::from_secs(3_600) {
                bail!("{stopped}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // As fast as the disk, and no faster: what waits is memory.
        if session % 500 == 0 {
            settle(&journal)?;
        }
    }
    settle(&journal)?;
    let mut said = rate(written, began);
    journal.close();
    if let Some(said) = said.as_object_mut() {
        said.insert(
            "segment_bytes".to_owned(),
            json!(size(&folder.join("segments"))?),
        );
        said.insert(
            "index_bytes".to_owned(),
            json!(size(&folder.join("index"))?),
        );
    }
    Ok(said)
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => size(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

/// What was done to `records` in `bytes`.
fn timed(bytes: u64, records: u64, began: Instant) -> Result<Value> {
    let mut said = rate(records, began);
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let megabytes = bytes as f64 / began.elapsed().as_secs_f64() / 1e6;
    if let Some(said) = said.as_object_mut() {
        said.insert("mb_per_s".to_owned(), json!(megabytes));
        said.insert("peak_bytes".to_owned(), json!(peak()?));
    }
    Ok(said)
}

/// Counts what is written, and keeps none of it.
#[derive(Default)]
struct Counted(u64);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The most memory that this process has had at once, in bytes.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no VmHWM in /proc/self/status")? << 10)
}

fn check(folder: &Path) -> Result<Value> {
    let began = Instant::now();
    let report = verify(folder, &Kept::default(), |_, _| {}, |_| {})?;
    if !report.problems.is_empty() {
        bail!("{:?}", report.problems);
    }
    timed(size(&folder.join("segments"))?, report.records, began)
}

fn export(folder: &Path) -> Result<Value> {
    let reader = Reader::open(folder)?;
    let began = Instant::now();
    let mut out = Counted::default();
    let records = export_jsonl(&reader, &Filter::default(), &mut out)?;
    timed(out.0, records, began)
}

/// How long texts are searched for, by what they are.
fn texts(journal: &Journal, sessions: &[SessionSummary], times: usize) -> Result<Value> {
    // As `event` has it of the first operation of a session.
    let token = |session: Option<&SessionSummary>| {
        let number = session.map_or(0, |session| {
            session.started.0 / 1_000_000_000 - 1_795_000_000
        });
        format!("{:016x}", noise(number, 2))
    };
    let (newest, oldest) = (token(sessions.first()), token(sessions.last()));
    let prefix = oldest.get(..6).unwrap_or_default();
    let asked = [
        ("of_all", "select shop.orders".to_owned(), None),
        (
            "of_all_of_one_agent",
            "shop.orders".to_owned(),
            Some("agent-7"),
        ),
        ("of_the_newest", newest, None),
        ("of_the_oldest", oldest.clone(), None),
        ("of_both_sorts", format!("select {oldest} orders"), None),
        ("of_none", "nowhere".to_owned(), None),
        ("prefix", format!("{prefix}*"), None),
        ("short_prefix", "12*".to_owned(), None),
        ("phrase_of_one", format!("\"token = '{oldest}'\""), None),
        (
            "phrase_of_all",
            "\"from shop.orders where customer\"".to_owned(),
            None,
        ),
        ("phrase_of_none", "\"orders from\"".to_owned(), None),
    ];
    // What was written last is gathered first.
    let began = Instant::now();
    let _ = search(journal, "nowhere", None)?;
    let mut said = serde_json::Map::new();
    said.insert(
        "first_ms".to_owned(),
        json!(began.elapsed().as_secs_f64() * 1e3),
    );
    for (name, text, agent) in asked {
        let mut took = Vec::new();
        let mut found = Found::default();
        for _ in 0..times {
            let began = Instant::now();
            found = search(journal, &text, agent)?;
            took.push(began.elapsed());
        }
        took.sort_unstable();
        let median = took.get(times / 2).copied().unwrap_or_default();
        let of = json!({
            "ms": median.as_secs_f64() * 1e3,
            "found": found.sessions.len(),
            "stopped": found.stopped.is_some(),
        });
        said.insert(name.to_owned(), of);
    }
    Ok(Value::Object(said))
}

fn search(journal: &Journal, text: &str, agent: Option<&str>) -> Result<Found> {
    let wanted = Wanted {
        agent: agent.map(Into::into),
        text: Some(Arc::new(Text::parse(text)?)),
        ..Wanted::default()
    };
    Ok(journal.find(&wanted, 1_000)?)
}

fn list(folder: &Path, times: usize) -> Result<Value> {
    let began = Instant::now();
    let journal = journal(folder)?;
    let opened = began.elapsed();
    let all = Wanted::default();
    let of_one = Wanted {
        agent: Some("agent-7".into()),
        ..Wanted::default()
    };
    // Nothing fits: all are looked at.
    let none = Wanted {
        verdict: Some(Decided::Deny),
        ..Wanted::default()
    };
    let [latest, of_one, none] = [all, of_one, none].map(|wanted| {
        let mut took: Vec<Duration> = (0..times)
            .map(|_| {
                let began = Instant::now();
                let _ = journal.sessions(&wanted, 1_000);
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        took.get(times / 2)
            .copied()
            .unwrap_or_default()
            .as_secs_f64()
            * 1e3
    });
    let sessions = journal.sessions(&Wanted::default(), usize::MAX);
    let texts = texts(&journal, &sessions, times)?;
    journal.close();
    Ok(json!({
        "sessions": sessions.len(),
        "texts": texts,
        "open_ms": opened.as_secs_f64() * 1e3,
        "latest_ms": latest,
        "of_one_agent_ms": of_one,
        "none_fits_ms": none,
    }))
}
