//! Records told to others as they happen: to receivers of syslog and of OpenTelemetry's logs.
//!
//! Each receiver is told of every record that is on disk, in order, at least once: how far it is, is remembered, and
//! goes on only over what it has confirmed. Nothing is queued for one that isn't there: what it has yet to be told
//! stands in the journal, and some megabytes of it at a time are in memory. It delays nobody, unless it is required.

mod config;
mod line;
mod otlp;
mod syslog;

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use interceptor_core::record::{Event, Record};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, sleep_until, timeout},
};

pub use self::config::{Otlp, Receiver, Stream, Syslog};
use self::{line::Line, otlp::Refused};
use crate::{
    clock,
    fetch::Fetch,
    journal::{Follower, Journal, Lines},
    ship::{cursor, save},
    sync::lock,
};

/// How soon a receiver that failed is tried again at first; each time twice as long.
const AGAIN: Duration = Duration::from_secs(1);

/// At the most that long.
const AGAIN_MAX: Duration = Duration::from_secs(300);

/// How long a connection of syslog carries what isn't confirmed.
const CARRIES: Duration = Duration::from_secs(10);

/// How long one does where the journal stops when too much isn't.
const CARRIES_REQUIRED: Duration = Duration::from_secs(1);

/// How much may be unconfirmed, in bytes; then no more is read.
const UNCONFIRMED_BYTES_MAX: usize = 8 << 20;

/// How much goes into one write, and into one request, in bytes: collectors take some megabytes.
const BATCH_BYTES: usize = 1 << 20;

/// How many records go into one request.
const BATCH_RECORDS: usize = 2_048;

/// How often it is written down how far a receiver is, at the most. What it confirmed since is told again after a
/// daemon was killed.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// How often what waits for a required receiver is counted.
const COUNT_EVERY: Duration = Duration::from_millis(500);

/// How long what is left may take at a daemon's end.
const LAST: Duration = Duration::from_secs(5);

/// The receivers of a journal.
#[derive(Debug)]
pub(crate) struct Streams(Vec<Arc<Streaming>>);

/// How far a receiver is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Who it is.
    pub target: String,
    /// Number of the last record that it has confirmed.
    pub confirmed_seq: u64,
    /// How many records it has yet to confirm.
    pub waiting: u64,
    /// How many may wait before nothing passes; where nothing ever waits for it there is no such number.
    pub backlog_records_max: Option<u64>,
    /// Why it is told nothing, where that is so.
    pub failing: Option<String>,
}

/// A receiver, and what it was told.
#[derive(Debug)]
struct Streaming {
    name: Arc<str>,
    sink: Sink,
    directory: PathBuf,
    path: PathBuf,
    backlog_records_max: Option<u64>,
    state: Mutex<State>,
    /// Until it is started.
    lines: Mutex<Option<Lines>>,
    /// The daemon ends.
    ending: watch::Sender<bool>,
}

#[derive(Debug)]
enum Sink {
    Syslog(syslog::Receiver),
    Otlp(OtlpParts),
}

/// What makes a receiver as soon as the journal's key is there.
#[derive(Debug)]
struct OtlpParts {
    config: Otlp,
    fetch: Fetch,
}

/// How far it is.
#[derive(Debug)]
struct State {
    /// Up to which record it has confirmed all; before a new one is started that isn't known.
    confirmed: Option<u64>,
    /// Number of the last record from before the start.
    last_seq: u64,
    saved: u64,
    saved_at: Option<Instant>,
    failing: Option<String>,
    forgetful: Option<String>,
}

/// What is remembered from one daemon to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Which receiver, for people.
    target: String,
    /// Number of the last record that it has confirmed.
    confirmed: u64,
}

/// Where its records come from.
#[derive(Debug)]
struct Source {
    lines: Lines,
    follower: Follower,
    /// What was read and isn't confirmed, in order.
    read: VecDeque<Message>,
    /// Bytes of those.
    bytes: usize,
}

/// A record as it is sent.
#[derive(Debug)]
struct Message {
    seq: u64,
    bytes: Vec<u8>,
}

impl Streams {
    /// Those of `config` for the journal in `directory`. TLS is to believe `roots` besides the system's authorities.
    ///
    /// # Errors
    /// Where what TLS is to believe or to present can't be read.
    pub(crate) fn new(config: &[Stream], directory: &Path, roots: &[PathBuf]) -> io::Result<Self> {
        if config.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let roots: io::Result<Vec<String>> = roots.iter().map(std::fs::read_to_string).collect();
        let roots = roots?;
        let fetch = Fetch::new(&roots)?;
        let streams = config.iter().map(|stream| {
            let name = stream.receiver.name();
            let path = cursor(directory, "streamed", &name);
            let sink = match &stream.receiver {
                Receiver::Syslog(syslog) => {
                    Sink::Syslog(syslog::Receiver::new(syslog.clone(), &roots)?)
                }
                Receiver::Otlp(otlp) => Sink::Otlp(OtlpParts {
                    config: otlp.clone(),
                    fetch: fetch.clone(),
                }),
            };
            let confirmed = confirmed(&path)?;
            Ok(Arc::new(Streaming {
                name: name.into(),
                sink,
                directory: directory.to_owned(),
                path,
                backlog_records_max: stream.backlog_records_max,
                state: Mutex::new(State {
                    confirmed,
                    last_seq: 0,
                    saved: 0,
                    saved_at: None,
                    failing: None,
                    forgetful: None,
                }),
                lines: Mutex::new(Some(Lines::default())),
                ending: watch::channel(false).0,
            }))
        });
        Ok(Self(streams.collect::<io::Result<_>>()?))
    }

    /// Whether nobody is told of anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes note of a record from before the start, each in order: what comes refers to it.
    pub(crate) fn observe(&mut self, record: &Record) {
        for streaming in &self.0 {
            let mut state = lock(&streaming.state);
            state.last_seq = record.seq;
            if state
                .confirmed
                .is_some_and(|confirmed| record.seq > confirmed)
            {
                continue;
            }
            if let Some(lines) = &mut *lock(&streaming.lines) {
                let is_start = matches!(
                    &record.event,
                    Event::Event(notice) if &*notice.name == "daemon_started"
                );
                if is_start {
                    // No session outlives a daemon, and of one that was killed not all are said to have ended.
                    *lines = Lines::default();
                }
                lines.pass(record);
            }
        }
    }

    /// Tells each of what it hasn't confirmed, and of what happens, for as long as the runtime runs. Who wasn't told
    /// of anything yet begins with what happens from now on.
    pub(crate) fn start(&self, journal: &Journal) {
        for streaming in &self.0 {
            tokio::spawn(streaming.clone().keep(journal.clone()));
            if streaming.backlog_records_max.is_some() {
                tokio::spawn(streaming.clone().count(journal.clone()));
            }
        }
    }

    /// Has each be told of the end, and remembers how far it is, within some seconds. The `journal` is closed.
    pub(crate) async fn last(&self, journal: &Journal) {
        for streaming in &self.0 {
            streaming.ending.send_replace(true);
        }
        let told = async {
            let last = journal.durable_seq();
            while self.0.iter().any(|streaming| streaming.waiting(last) > 0) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        // Who isn't told now is told first by the next daemon.
        let _ = timeout(LAST, told).await;
        for streaming in &self.0 {
            streaming.save(true).await;
        }
    }

    /// How far each is in `journal`.
    pub(crate) fn status(&self, journal: &Journal) -> Vec<StreamStatus> {
        let last = journal.durable_seq();
        self.0
            .iter()
            .map(|streaming| streaming.status(last))
            .collect()
    }

    /// What is wrong with them, for people.
    pub(crate) fn troubles(&self) -> Vec<(String, &'static str)> {
        let troubles = self.0.iter().flat_map(|streaming| streaming.troubles());
        troubles.collect()
    }
}

impl Streaming {
    async fn keep(self: Arc<Self>, journal: Journal) {
        let Some(lines) = lock(&self.lines).take() else {
            return;
        };
        let confirmed = {
            let mut state = lock(&self.state);
            let last = state.last_seq;
            *state.confirmed.get_or_insert(last)
        };
        self.save(true).await;
        let mut source = Source {
            lines,
            follower: journal.follower(confirmed.saturating_add(1)),
            read: VecDeque::new(),
            bytes: 0,
        };
        let receiver = match &self.sink {
            Sink::Syslog(_) => None,
            Sink::Otlp(parts) => {
                // The same whichever key is in force, so that receivers know a record that they had.
                let key = crate::journal::identity(&self.directory);
                let (config, fetch) = (parts.config.clone(), parts.fetch.clone());
                Some(otlp::Receiver::new(config, fetch, &key))
            }
        };
        let (mut again, mut batch_max) = (AGAIN, BATCH_RECORDS);
        loop {
            let told = match (&self.sink, &receiver) {
                (Sink::Syslog(syslog), _) => self
                    .converse(syslog, &mut source, &journal)
                    .await
                    .map_err(|error| (error, None)),
                (Sink::Otlp(_), Some(otlp)) => {
                    self.post(otlp, &mut source, &journal, &mut batch_max).await
                }
                (Sink::Otlp(_), None) => return,
            };
            let after = told.as_ref().err().and_then(|(_, after)| *after);
            let is_well = told.is_ok();
            if let Some(event) = self.note(told.map_err(|(error, _)| error)) {
                // While nothing can be recorded, that is said elsewhere.
                let _ = journal.append(None, &Arc::from(""), clock::now(), [event]);
            }
            if is_well {
                again = AGAIN;
            } else {
                sleep(after.unwrap_or(again)).await;
                again = again.saturating_mul(2).min(AGAIN_MAX);
            }
        }
    }

    /// Has a receiver of syslog confirm what is there, and what happens for some seconds.
    async fn converse(
        &self,
        receiver: &syslog::Receiver,
        source: &mut Source,
        journal: &Journal,
    ) -> Result<(), String> {
        let format = |line: &Line| receiver.message(line);
        if source.read.is_empty() {
            source.wait(journal).await?;
            source.fill(&format)?;
        }
        let mut connection = receiver.connect().await?;
        let carries = match self.backlog_records_max {
            Some(_) => CARRIES_REQUIRED,
            None => CARRIES,
        };
        let until = tokio::time::Instant::now() + carries;
        let mut ending = self.ending.subscribe();
        let mut sent = 0;
        loop {
            while sent < source.read.len() {
                let (messages, count) = source.batch(sent, usize::MAX);
                connection.send(&messages.concat()).await?;
                sent += count;
            }
            if source.bytes >= UNCONFIRMED_BYTES_MAX {
                break;
            }
            let has_more = tokio::select! {
                biased;
                more = source.wait(journal) => { more?; true }
                _ = ending.wait_for(|ending| *ending) => false,
                () = sleep_until(until) => false,
                error = connection.ended() => return Err(error),
            };
            if !has_more || tokio::time::Instant::now() >= until {
                break;
            }
            source.fill(&format)?;
        }
        connection.finish().await?;
        self.confirmed(source, sent).await;
        Ok(())
    }

    /// Has a collector take what is there.
    async fn post(
        &self,
        receiver: &otlp::Receiver,
        source: &mut Source,
        journal: &Journal,
        batch_max: &mut usize,
    ) -> Result<(), (String, Option<Duration>)> {
        if source.read.is_empty() {
            source.wait(journal).await.map_err(|error| (error, None))?;
            let format = |line: &Line| receiver.record(line, clock::now());
            source.fill(&format).map_err(|error| (error, None))?;
        }
        let (messages, count) = source.batch(0, *batch_max);
        match receiver.post(messages.into_iter()).await {
            Ok(()) => {
                *batch_max = batch_max.saturating_mul(2).min(BATCH_RECORDS);
                self.confirmed(source, count).await;
                Ok(())
            }
            Err(Refused::TooLarge) if count > 1 => {
                *batch_max = count / 2;
                Ok(())
            }
            Err(Refused::TooLarge) => {
                let error = "a single record is too large for it: have it take requests of 128 KiB";
                Err((error.to_owned(), None))
            }
            Err(Refused::Failed(error, after)) => Err((error, after)),
        }
    }

    /// The first `count` of what was read are confirmed.
    async fn confirmed(&self, source: &mut Source, count: usize) {
        let last = source.let_go(count);
        if let Some(last) = last {
            lock(&self.state).confirmed = Some(last);
        }
        self.save(false).await;
    }

    /// Writes down how far it is, now or when it is time.
    async fn save(&self, now: bool) {
        let draft = {
            let mut state = lock(&self.state);
            let is_due = now || state.saved_at.is_none_or(|at| at.elapsed() >= SAVE_EVERY);
            let confirmed = state
                .confirmed
                .filter(|seq| is_due && (now || *seq != state.saved));
            if confirmed.is_some() {
                state.saved_at = Some(Instant::now());
            }
            confirmed.map(|confirmed| Kept {
                target: self.name.to_string(),
                confirmed,
            })
        };
        let Some(kept) = draft else { return };
        let (confirmed, path) = (kept.confirmed, self.path.clone());
        let saved = spawn_blocking(move || save(&path, &serde_json::to_vec(&kept)?)).await;
        let saved = saved.unwrap_or_else(|error| Err(io::Error::other(error)));
        let mut state = lock(&self.state);
        if saved.is_ok() {
            state.saved = confirmed;
        }
        state.forgetful = saved.err().map(|error| error.to_string());
    }

    /// Has the journal stop for as long as too much waits.
    async fn count(self: Arc<Self>, journal: Journal) {
        let Some(limit) = self.backlog_records_max else {
            return;
        };
        loop {
            let waiting = self.waiting(journal.durable_seq());
            let why = (waiting > limit).then(|| {
                format!(
                    "{waiting} records wait for {}, which is required, and {limit} may",
                    self.name
                )
            });
            journal.withhold(&self.name, why);
            sleep(COUNT_EVERY).await;
        }
    }

    /// How many of the records up to `last` it hasn't confirmed.
    fn waiting(&self, last: u64) -> u64 {
        let confirmed = lock(&self.state).confirmed;
        last.saturating_sub(confirmed.unwrap_or(last))
    }

    /// Notes how it went, and gives what to record where the receiver begins to fail or is there again.
    fn note(&self, told: Result<(), String>) -> Option<Event> {
        let mut state = lock(&self.state);
        let target = self.name.to_string();
        match told {
            Ok(()) => {
                state.failing.take()?;
                tracing::info!(to = target, "records are streamed again");
                Some(Event::notice("stream_reached", [("target", target)]))
            }
            Err(error) => {
                let before = state.failing.replace(error.clone());
                if before.is_some() {
                    return None;
                }
                tracing::error!(to = target, error, "records can't be streamed");
                let facts = [("target", target), ("error", error)];
                Some(Event::notice("stream_failed", facts))
            }
        }
    }

    fn status(&self, last: u64) -> StreamStatus {
        let state = lock(&self.state);
        let confirmed = state.confirmed.unwrap_or(last);
        StreamStatus {
            target: self.name.to_string(),
            confirmed_seq: confirmed,
            waiting: last.saturating_sub(confirmed),
            backlog_records_max: self.backlog_records_max,
            failing: state.failing.clone(),
        }
    }

    fn troubles(&self) -> Vec<(String, &'static str)> {
        let (state, target) = (lock(&self.state), &self.name);
        let mut troubles = Vec::new();
        if let Some(error) = &state.failing {
            troubles.push((
                format!("records aren't streamed to {target}: {error}"),
                "mend it, or take it out of `journal: {stream: […]}`; it is told later of what it misses now",
            ));
        }
        if let Some(error) = &state.forgetful {
            troubles.push((
                format!("how far {target} is can't be remembered: {error}"),
                "make room on the disk of the state folder; until then the next daemon tells it again of what it knows",
            ));
        }
        troubles
    }
}

impl Source {
    /// Waits until there is a record that wasn't read.
    async fn wait(&self, journal: &Journal) -> Result<(), String> {
        let before = self.follower.next_seq().saturating_sub(1);
        let last = journal.beyond(before).await;
        last.map(|_| ())
            .ok_or_else(|| "the journal is closed".to_owned())
    }

    /// Reads the next block, which is on disk.
    fn fill(&mut self, format: &impl Fn(&Line) -> Vec<u8>) -> Result<(), String> {
        // Some megabytes of a local file, and as much work.
        tokio::task::block_in_place(|| {
            let records = self
                .follower
                .next_block()
                .map_err(|error| error.to_string())?;
            for record in &records {
                let value = self.lines.line(record);
                let bytes = format(&Line::new(record, value));
                self.bytes += bytes.len();
                self.read.push_back(Message {
                    seq: record.seq,
                    bytes,
                });
            }
            Ok(())
        })
    }

    /// Some of what was read, without the first `from` and of at most `count`, as much as goes at once; at least one.
    fn batch(&self, from: usize, count: usize) -> (Vec<&[u8]>, usize) {
        let mut bytes = 0;
        let rest = self.read.iter().skip(from).take(count.max(1));
        let messages: Vec<&[u8]> = rest
            .map(|message| message.bytes.as_slice())
            .take_while(|message| {
                let is_first = bytes == 0;
                bytes += message.len();
                is_first || bytes <= BATCH_BYTES
            })
            .collect();
        let taken = messages.len();
        (messages, taken)
    }

    /// Lets go of the first `count`, and gives the number of the last one of them.
    fn let_go(&mut self, count: usize) -> Option<u64> {
        let gone = self.read.drain(..count.min(self.read.len()));
        let mut last = None;
        for message in gone {
            self.bytes = self.bytes.saturating_sub(message.bytes.len());
            last = Some(message.seq);
        }
        last
    }
}

/// How far a receiver is as the file at `path` says, if it was ever told of anything.
///
/// # Errors
/// Where the file is there and can't be read: to begin anew would leave out what it wasn't told of.
fn confirmed(path: &Path) -> io::Result<Option<u64>> {
    let named = |what: String| io::Error::other(format!("{}: {what}", path.display()));
    match std::fs::read(path) {
        Ok(bytes) => {
            let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| {
                named(format!(
                    "it doesn't say how far a stream is ({error}); without the file it begins with the next record"
                ))
            })?;
            Ok(Some(kept.confirmed))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(error.to_string())),
    }
}
