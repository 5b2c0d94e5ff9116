//! Copies of the journal off this host: each segment as soon as it is closed, with what `interceptor verify` and
//! `interceptor export` need to work on the copy alone.
//!
//! A copy has the names of the state folder: `segments/N.seg`, `checkpoint`, `journal.pub`, `journal.keys`, `format`. A
//! segment goes there once and is never replaced: where a target has another one under its name, both are evidence.
//! What a target is said to have it was asked for, and where it can't tell a digest it is read back. Nothing is queued:
//! what isn't there yet stands in the journal. A target that is dead delays nobody, unless it is required.

mod checkpoints;
mod config;
mod folder;
mod nats;
mod piece;
mod remembered;
mod s3;
mod sigv4;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use interceptor_core::record::Event;
use serde::{Deserialize, Serialize};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

pub use self::config::{Bucket, Lock, LockMode, Ship, Subjects, Target};
use self::{
    checkpoints::Checkpoints,
    folder::Folder,
    piece::{Piece, Sha256},
    remembered::{Remembered, Segment},
    s3::Store,
};
pub(crate) use self::{
    config::{backlog, server},
    remembered::{cursor, save},
};
use crate::{
    clock,
    fetch::{self, Fetch},
    journal::{Journal, JournalError, Reader, identity, is_of_one_journal, is_signed_with},
    sync::lock,
};

/// How often it is looked whether a segment was closed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How soon a target that failed is tried again at first; each time twice as long.
const AGAIN: Duration = Duration::from_secs(1);

/// At the most that long.
const AGAIN_MAX: Duration = Duration::from_secs(300);

/// How often a target is asked for all that it is to have.
const AUDIT_EVERY: Duration = Duration::from_secs(86_400);

/// How many segments it is asked for before it is looked for what is to be shipped.
const AUDITED_AT_ONCE: usize = 64;

/// How long what is left may take at a daemon's end.
const LAST: Duration = Duration::from_secs(5);

/// Largest file that is read from a target whole, in bytes: a key's text is some hundred.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// The targets of a journal.
#[derive(Debug, Clone)]
pub(crate) struct Ships {
    all: Arc<[Shipping]>,
    checkpoints: Arc<Checkpoints>,
}

/// How far a copy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Where it is.
    pub target: String,
    /// Segments that it has.
    pub segments: u64,
    /// Number of the last record that its checkpoint vouches for.
    pub vouched_seq: u64,
    /// Closed segments that it has yet to get.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// How many bytes may wait before nothing passes; where nothing ever waits for it there is no such number.
    pub backlog_bytes_max: Option<u64>,
    /// Why it gets nothing, where that is so.
    pub failing: Option<String>,
}

/// What a target says that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    bytes: u64,
    /// Where it can tell.
    sha256: Option<Sha256>,
    /// Nobody can change it for some time.
    is_locked: bool,
}

/// A target, and what it was sent.
#[derive(Debug)]
struct Shipping {
    /// Its name.
    name: Arc<str>,
    place: Place,
    /// The state folder.
    directory: PathBuf,
    backlog_bytes_max: Option<u64>,
    /// One at a time.
    turn: tokio::sync::Mutex<Round>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum Place {
    Folder(Folder),
    S3(Box<Store>),
    Nats(Box<nats::Store>),
}

/// What is kept from one look to the next.
#[derive(Debug, Default)]
struct Round {
    /// The target was seen to have a copy of this journal and no other.
    is_prepared: bool,
    /// The public key that stands there.
    key: Vec<u8>,
    /// Up to which record the journal was looked through.
    looked_up_to: u64,
    /// Whose turn it is to be asked for.
    audit: Vec<u64>,
    audited: Option<Instant>,
    asked_again: Option<Instant>,
    /// What is remembered isn't on disk.
    unsaved: bool,
    /// Of removed segments that it never got it has what stays of these.
    husks: BTreeSet<u64>,
    /// The segment that was written to when the first of the others was seen: with it the target has the record of
    /// their removal, without which nothing stays of them that counts.
    behind: Option<u64>,
}

/// What there is to ship.
struct Here {
    /// Segments that nothing is added to any more, each with the one that follows it.
    closed: Vec<(u64, Option<u64>)>,
    /// What stays of those that were removed.
    husks: Vec<u64>,
    /// The last segment.
    last: Option<u64>,
}

#[derive(Debug)]
struct State {
    remembered: Remembered,
    /// Segments of which it has something else, and what.
    others: BTreeMap<u64, String>,
    waiting: u64,
    waiting_bytes: u64,
    failing: Option<String>,
    /// Why what is remembered can't be kept.
    forgetful: Option<String>,
}

impl Ships {
    /// Those of `config` for the journal in `directory`, which isn't open yet. TLS is to believe `roots` besides the
    /// system's authorities.
    ///
    /// # Errors
    /// Where what TLS is to believe can't be read.
    pub(crate) fn new(config: &[Ship], directory: &Path, roots: &[PathBuf]) -> io::Result<Self> {
        let remote = config.iter().any(|ship| ship.folder().is_none());
        let outwards = match remote {
            true => {
                let roots: io::Result<Vec<String>> =
                    roots.iter().map(std::fs::read_to_string).collect();
                let roots = roots?;
                Some((Fetch::new(&roots)?, fetch::tls(&roots)?))
            }
            false => None,
        };
        let shippings = config.iter().filter_map(|ship| {
            let place = match &ship.target {
                Target::Folder(path) => Place::Folder(Folder(path.clone())),
                Target::S3(bucket) => {
                    let (fetch, _) = outwards.as_ref()?;
                    Place::S3(Store::new((**bucket).clone(), fetch.clone()).into())
                }
                Target::Nats(subjects) => {
                    let (_, tls) = outwards.as_ref()?;
                    Place::Nats(nats::Store::new((**subjects).clone(), tls.clone()).into())
                }
            };
            let name = ship.target.name();
            Some(Shipping {
                place,
                directory: directory.to_owned(),
                backlog_bytes_max: ship.backlog_bytes_max,
                turn: tokio::sync::Mutex::default(),
                state: Mutex::new(State {
                    remembered: Remembered::open(directory, &name),
                    others: BTreeMap::new(),
                    waiting: 0,
                    waiting_bytes: 0,
                    failing: None,
                    forgetful: None,
                }),
                name: name.into(),
            })
        });
        Ok(Self {
            all: shippings.collect(),
            checkpoints: Arc::new(Checkpoints::new(directory)),
        })
    }

    /// Ships the segments of `journal` as they are closed, for as long as the runtime runs.
    pub(crate) fn start(&self, journal: &Journal) {
        if self.all.is_empty() {
            return;
        }
        for place in 0..self.all.len() {
            let (ships, journal) = (self.clone(), journal.clone());
            tokio::spawn(async move {
                if let Some(shipping) = ships.all.get(place) {
                    shipping.keep(&journal, &ships.checkpoints).await;
                }
            });
        }
        let ships = self.clone();
        tokio::spawn(async move {
            loop {
                let looking = ships.clone();
                let _ = spawn_blocking(move || looking.look()).await;
                sleep(checkpoints::EVERY).await;
            }
        });
    }

    fn look(&self) {
        self.checkpoints.look();
        let vouched = self.all.iter().map(|shipping| {
            let state = lock(&shipping.state);
            state.remembered.vouched()
        });
        if let Some(vouched) = vouched.min() {
            self.checkpoints.forget_before(vouched);
        }
    }

    /// Ships what is left of a journal that is closed, its last segment included, as far as some seconds allow.
    pub(crate) async fn last(&self) {
        self.checkpoints.look();
        let rounds = self.all.iter().map(|shipping| async {
            if let Err(error) = shipping.round(&self.checkpoints, None).await {
                let target = &*shipping.name;
                tracing::warn!(
                    to = target,
                    error,
                    "the end of the journal isn't shipped yet"
                );
            }
        });
        // What is left is shipped first by the next daemon.
        let _ = timeout(LAST, join_all(rounds)).await;
    }

    /// How far each is.
    pub(crate) fn status(&self) -> Vec<CopyStatus> {
        self.all.iter().map(Shipping::status).collect()
    }

    /// Whether anybody has no copy of the segment yet.
    pub(crate) fn waits_for(&self, segment: u64) -> bool {
        let mut all = self.all.iter();
        all.any(|shipping| lock(&shipping.state).remembered.segment(segment).is_none())
    }

    /// What is wrong with any of them, and what to do about it.
    pub(crate) fn troubles(&self) -> Vec<(String, &'static str)> {
        self.all.iter().flat_map(Shipping::troubles).collect()
    }
}

impl Shipping {
    async fn keep(&self, journal: &Journal, checkpoints: &Checkpoints) {
        let mut again = AGAIN;
        loop {
            let shipped = self.round(checkpoints, Some(journal)).await;
            let is_well = shipped.is_ok();
            if let Some(event) = self.note(shipped) {
                // While nothing can be recorded, that is said elsewhere.
                let _ = journal.append(None, &Arc::from(""), clock::now(), [event]);
            }
            if is_well {
                again = AGAIN;
                sleep(LOOK_EVERY).await;
            } else {
                sleep(again).await;
                again = again.saturating_mul(2).min(AGAIN_MAX);
            }
        }
    }

    /// Notes how it went, and gives what to record where the target begins to fail or is there again.
    fn note(&self, shipped: Result<(), String>) -> Option<Event> {
        let mut state = lock(&self.state);
        let target = self.name.to_string();
        match shipped {
            Ok(()) => {
                state.failing.take()?;
                tracing::info!(to = target, "segments are shipped again");
                Some(Event::notice("ship_reached", [("target", target)]))
            }
            Err(error) => {
                let before = state.failing.replace(error.clone());
                if before.is_some() {
                    return None;
                }
                tracing::error!(to = target, error, "segments can't be shipped");
                let facts = [("target", target), ("error", error)];
                Some(Event::notice("ship_failed", facts))
            }
        }
    }

    /// Ships what is closed and not there yet. Without a `journal` that is open all segments are.
    async fn round(
        &self,
        checkpoints: &Checkpoints,
        journal: Option<&Journal>,
    ) -> Result<(), String> {
        let mut round = self.turn.lock().await;
        let on_disk = journal.map(Journal::durable_seq);
        let is_idle = lock(&self.state).waiting == 0 && lock(&self.state).failing.is_none();
        if round.is_prepared && is_idle && on_disk == Some(round.looked_up_to) {
            self.show_key(&mut round).await?;
            self.save(&mut round).await;
            return self.audit(&mut round).await;
        }
        // Before the look: what is written during it is looked at next time.
        round.looked_up_to = on_disk.unwrap_or_default();
        let here = self.here(journal.is_some()).await?;
        let closed = here.closed.clone();
        self.measure(&closed, journal);
        if !round.is_prepared || !is_idle {
            round.key = self.prepare(&here).await?;
            round.is_prepared = true;
        }
        // Nothing behind what it doesn't have is vouched for: the copy would look as if that had been taken away.
        let before = |gap: Option<u64>| {
            let closed = closed.iter().copied();
            closed
                .filter(|(number, _)| gap.is_none_or(|gap| *number < gap))
                .collect::<Vec<_>>()
        };
        let vouched = before(self.gaps(&here, &round).first().copied());
        for (number, next) in &closed {
            if lock(&self.state).remembered.segment(*number).is_some() {
                continue;
            }
            if !self.ship(*number, *next).await? {
                continue;
            }
            round.unsaved = true;
            self.save(&mut round).await;
            self.vouch(checkpoints, &vouched, &mut round).await?;
            self.measure(&closed, journal);
        }
        let gap = self.fill(&here, &mut round).await?;
        self.vouch(checkpoints, &before(gap), &mut round).await?;
        self.show_key(&mut round).await?;
        self.measure(&closed, journal);
        let refused = lock(&self.state).waiting;
        if refused > 0 {
            return Err(format!(
                "it has something else in the place of {refused} segments"
            ));
        }
        self.audit(&mut round).await
    }

    async fn here(&self, is_open: bool) -> Result<Here, String> {
        let directory = self.directory.clone();
        let listed = spawn_blocking(move || {
            let reader = Reader::open(&directory)?;
            Ok::<_, JournalError>((reader.followed()?, reader.husks()?))
        });
        let (segments, husks) = listed
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        Ok(Here {
            last: segments.last().map(|(number, _)| *number),
            closed: segments
                .into_iter()
                .filter(|(_, next)| next.is_some() || !is_open)
                .collect(),
            husks,
        })
    }

    /// The segments that were removed before the target got them, and of which it has nothing yet.
    fn gaps(&self, here: &Here, round: &Round) -> Vec<u64> {
        let state = lock(&self.state);
        let husks = here.husks.iter().copied();
        husks
            .filter(|number| !round.husks.contains(number))
            .filter(|number| state.remembered.segment(*number).is_none())
            .collect()
    }

    /// Has the target have what stays of those segments; the first of which it still has nothing.
    async fn fill(&self, here: &Here, round: &mut Round) -> Result<Option<u64>, String> {
        let gaps = self.gaps(here, round);
        let (Some(first), Some(last)) = (gaps.first(), here.last) else {
            round.behind = None;
            return Ok(None);
        };
        let behind = *round.behind.get_or_insert(last);
        let is_closed = here.closed.iter().any(|(number, _)| *number == behind);
        let is_there = lock(&self.state).remembered.segment(behind).is_some();
        // One that was removed meanwhile was closed as well, and its record stays in its husk.
        if !is_there && (is_closed || behind == last) {
            return Ok(Some(*first));
        }
        for number in gaps {
            let (directory, name) = (self.directory.clone(), husk_name(number));
            let read = spawn_blocking(move || {
                let path = directory.join(&name);
                let bytes = std::fs::metadata(&path)?.len();
                Piece::file(name, path, bytes)
            });
            let piece = read.await.map_err(|error| error.to_string())?;
            let piece = piece.map_err(|error| error.to_string())?;
            if self.place.held(&piece.name).await?.is_none() {
                self.send(&piece).await?;
            }
            round.husks.insert(number);
        }
        round.behind = None;
        Ok(None)
    }

    /// Counts what waits, and has the journal stop where that is too much.
    fn measure(&self, closed: &[(u64, Option<u64>)], journal: Option<&Journal>) {
        let mut state = lock(&self.state);
        let (mut waiting, mut bytes) = (0, 0_u64);
        for (number, _) in closed {
            if state.remembered.segment(*number).is_none() {
                let path = self.directory.join(name_of(*number));
                waiting += 1;
                bytes += std::fs::metadata(path).map_or(0, |found| found.len());
            }
        }
        (state.waiting, state.waiting_bytes) = (waiting, bytes);
        drop(state);
        let (Some(limit), Some(journal)) = (self.backlog_bytes_max, journal) else {
            return;
        };
        let why = (bytes > limit).then(|| {
            format!(
                "{bytes} bytes of closed segments wait for {}, which is required, and {limit} may",
                self.name
            )
        });
        journal.withhold(&self.name, why);
    }

    /// Finds out whether the target is for this journal, and has it begin with what says whose copy it is: the public
    /// key, which may be an earlier one of this journal's.
    async fn prepare(&self, here: &Here) -> Result<Vec<u8>, String> {
        let mut key = self.own("journal.pub").await?;
        match self.place.read("journal.pub").await? {
            Some(held) if held == key => {}
            Some(held) => {
                let (directory, earlier) = (self.directory.clone(), held.clone());
                let is_ours =
                    spawn_blocking(move || is_of_one_journal(&directory, &earlier, &key)).await;
                if !is_ours.map_err(|error| error.to_string())? {
                    return Err(
                        "it has the copy of another journal: give this one another folder or prefix"
                            .to_owned(),
                    );
                }
                key = held;
            }
            None => {
                let is_new = lock(&self.state).remembered.is_empty();
                if !is_new && matches!(self.place, Place::Folder(_)) {
                    return Err(
                        "the copy that was in it is gone: mount what belongs there. If it is to begin anew, remove the folder `shipped` from the state folder"
                            .to_owned(),
                    );
                }
                // The first checkpoint there may be one of a key before the one in force.
                let directory = self.directory.clone();
                let first = spawn_blocking(move || identity(&directory)).await;
                key = first.map_err(|error| error.to_string())?;
                self.send(&Piece::text("journal.pub", key.clone())).await?;
            }
        }
        let format = self.own("format").await?;
        if self.place.read("format").await?.as_ref() != Some(&format) {
            self.send(&Piece::text("format", format)).await?;
        }
        let closed = here.closed.iter().map(|(number, _)| number);
        let known: BTreeSet<u64> = closed.chain(&here.husks).copied().collect();
        lock(&self.state).remembered.keep_only(&known);
        Ok(key)
    }

    /// Has the copy show the key in force once that has signed what it has; until then the one that it shows leads
    /// there by the records.
    async fn show_key(&self, round: &mut Round) -> Result<(), String> {
        let key = self.own("journal.pub").await?;
        if key == round.key {
            return Ok(());
        }
        let there = self.place.read("checkpoint").await?;
        if !there.is_some_and(|note| is_signed_with(&note, &key)) {
            return Ok(());
        }
        let statements = self.own("journal.keys").await?;
        self.send(&Piece::text("journal.keys", statements)).await?;
        self.send(&Piece::text("journal.pub", key.clone())).await?;
        round.key = key;
        Ok(())
    }

    /// What is in a small file of the state folder.
    async fn own(&self, name: &str) -> Result<Vec<u8>, String> {
        let path = self.directory.join(name);
        let read = spawn_blocking(move || {
            std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
        });
        read.await.map_err(|error| error.to_string())?
    }

    /// Has the target have a segment; whether it has. What it has already it isn't sent again, and what it has
    /// something else for it isn't sent at all.
    async fn ship(&self, number: u64, next: Option<u64>) -> Result<bool, String> {
        let directory = self.directory.clone();
        let read = spawn_blocking(move || {
            let reader = Reader::open(&directory).map_err(|error| error.to_string())?;
            let (path, bytes) = reader
                .on_record(number, next)
                .map_err(|error| error.to_string())?;
            Piece::file(name_of(number), path, bytes).map_err(|error| error.to_string())
        });
        let piece = read.await.map_err(|error| error.to_string())??;
        match self.place.held(&piece.name).await? {
            None => self.send(&piece).await?,
            // Sent by a daemon that was killed before it could remember, or by one that could not make sure of it.
            Some(held) => {
                let name = &piece.name;
                let wrong = if !self.is(&held, &piece).await? {
                    format!("{name} is there already and is another one")
                } else if self.place.locks() && !held.is_locked {
                    format!("{name} is there already, without a lock")
                } else {
                    String::new()
                };
                if !wrong.is_empty() {
                    lock(&self.state).others.insert(number, wrong);
                    return Ok(false);
                }
            }
        }
        let mut state = lock(&self.state);
        state.others.remove(&number);
        state.remembered.add(number, &piece);
        tracing::debug!(to = &*self.name, piece.name, piece.bytes, "shipped");
        Ok(true)
    }

    /// Sends a piece, and makes sure that it is there.
    async fn send(&self, piece: &Piece) -> Result<(), String> {
        self.place.put(piece).await?;
        let held = self.place.held(&piece.name).await?;
        let Some(held) = held else {
            return Err(format!("it took {} and doesn't have it", piece.name));
        };
        if !self.is(&held, piece).await? {
            return Err(format!(
                "it took {} and has something else: it was changed on its way",
                piece.name
            ));
        }
        if self.place.locks() && !held.is_locked {
            return Err(format!(
                "it took {} without locking it: the bucket has to be made with object lock, and the key has to have s3:GetObjectRetention",
                piece.name
            ));
        }
        Ok(())
    }

    /// Whether what the target holds is `piece`.
    async fn is(&self, held: &Held, piece: &Piece) -> Result<bool, String> {
        if held.bytes != piece.bytes {
            return Ok(false);
        }
        let sha256 = match held.sha256 {
            Some(sha256) => Some(sha256),
            None => self.place.sha256(&piece.name).await?,
        };
        Ok(sha256 == Some(piece.sha256))
    }

    /// Ships the newest checkpoint that vouches for nothing that isn't there.
    async fn vouch(
        &self,
        checkpoints: &Checkpoints,
        closed: &[(u64, Option<u64>)],
        round: &mut Round,
    ) -> Result<(), String> {
        let newest = {
            let state = lock(&self.state);
            let there = closed
                .iter()
                .map_while(|(number, _)| state.remembered.segment(*number).map(|_| *number));
            let checkpoint = there.last().and_then(|number| checkpoints.up_to(number));
            checkpoint.filter(|checkpoint| checkpoint.seq > state.remembered.vouched())
        };
        if let Some(checkpoint) = newest {
            let piece = Piece::text("checkpoint", checkpoint.note.into_bytes());
            self.send(&piece).await?;
            lock(&self.state).remembered.vouch(checkpoint.seq);
            round.unsaved = true;
        }
        self.save(round).await;
        Ok(())
    }

    /// Keeps what is remembered. Where that fails it is remembered until this daemon ends, and the next one asks.
    async fn save(&self, round: &mut Round) {
        if !round.unsaved {
            return;
        }
        let draft = lock(&self.state).remembered.draft();
        let saved = match draft {
            Ok((path, bytes)) => spawn_blocking(move || save(&path, &bytes)).await,
            Err(error) => Ok(Err(error)),
        };
        let saved = saved.unwrap_or_else(|error| Err(io::Error::other(error)));
        round.unsaved = saved.is_err();
        lock(&self.state).forgetful = saved.err().map(|error| error.to_string());
    }

    /// Asks the target for some of what it is to have: for all of it from a start on, once a day, and more often for
    /// that of which it had something else.
    async fn audit(&self, round: &mut Round) -> Result<(), String> {
        if round.audited.is_none_or(|at| at.elapsed() >= AUDIT_EVERY) {
            round.audited = Some(Instant::now());
            round.audit = lock(&self.state).remembered.numbers();
        }
        if round.asked_again.is_none_or(|at| at.elapsed() >= AGAIN_MAX) {
            round.asked_again = Some(Instant::now());
            round.audit.extend(lock(&self.state).others.keys());
        }
        for _ in 0..AUDITED_AT_ONCE {
            let Some(number) = round.audit.last().copied() else {
                return Ok(());
            };
            let sent = lock(&self.state).remembered.segment(number);
            if let Some(sent) = sent {
                let held = self.place.held(&name_of(number)).await?;
                if self.compare(number, held, &sent) {
                    round.unsaved = true;
                    // So that the next look finds it.
                    round.looked_up_to = 0;
                }
            }
            round.audit.pop();
        }
        Ok(())
    }

    /// Compares what the target holds of a segment with what it was sent; whether it is gone and forgotten.
    fn compare(&self, number: u64, held: Option<Held>, sent: &Segment) -> bool {
        let (mut state, name) = (lock(&self.state), name_of(number));
        state.others.remove(&number);
        match held {
            Some(held) if is_sent(&held, sent) => false,
            Some(_) => {
                let what = format!("{name} isn't what was sent any more");
                state.others.insert(number, what);
                false
            }
            None => {
                tracing::warn!(to = &*self.name, name, "it is gone, and is shipped again");
                state.remembered.forget(number);
                true
            }
        }
    }

    fn status(&self) -> CopyStatus {
        let state = lock(&self.state);
        CopyStatus {
            target: self.name.to_string(),
            segments: state.remembered.len() as u64,
            vouched_seq: state.remembered.vouched(),
            waiting: state.waiting,
            waiting_bytes: state.waiting_bytes,
            backlog_bytes_max: self.backlog_bytes_max,
            failing: state.failing.clone(),
        }
    }

    fn troubles(&self) -> Vec<(String, &'static str)> {
        let (state, target) = (lock(&self.state), &self.name);
        let mut troubles = Vec::new();
        if let Some(error) = &state.failing {
            let waiting = state.waiting;
            troubles.push((
                format!("{waiting} closed segments wait to be shipped to {target}: {error}"),
                "mend it, or take it out of `journal: {ship: […]}`; what waits stays in the journal",
            ));
        }
        for what in state.others.values().take(1) {
            let count = state.others.len();
            troubles.push((
                format!("the copy at {target} is not what was shipped, in {count} of its segments: {what}"),
                "keep what is there as evidence elsewhere, then remove it there: it is shipped again",
            ));
        }
        if let Some(error) = &state.forgetful {
            troubles.push((
                format!("what was shipped to {target} can't be remembered: {error}"),
                "make room on the disk of the state folder; until then the next daemon asks the target again",
            ));
        }
        troubles
    }
}

impl Place {
    async fn held(&self, name: &str) -> Result<Option<Held>, String> {
        match self {
            Self::Folder(folder) => {
                let length = in_folder(folder, name, Folder::length).await?;
                Ok(length.map(|bytes| Held {
                    bytes,
                    sha256: None,
                    is_locked: false,
                }))
            }
            Self::S3(store) => store.held(name).await,
            Self::Nats(store) => store.held(name).await,
        }
    }

    async fn sha256(&self, name: &str) -> Result<Option<Sha256>, String> {
        match self {
            Self::Folder(folder) => in_folder(folder, name, Folder::sha256).await,
            Self::S3(store) => store.sha256(name).await,
            Self::Nats(store) => store.sha256(name).await,
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        match self {
            Self::Folder(folder) => in_folder(folder, name, Folder::read).await,
            Self::S3(store) => store.read(name).await,
            Self::Nats(store) => store.read(name).await,
        }
    }

    async fn put(&self, piece: &Piece) -> Result<(), String> {
        match self {
            Self::Folder(folder) => {
                let (folder, piece) = (folder.clone(), piece.clone());
                let put = spawn_blocking(move || folder.put(&piece)).await;
                put.map_err(|error| error.to_string())?
            }
            Self::S3(store) => store.put(piece).await,
            Self::Nats(store) => store.put(piece).await,
        }
    }

    const fn locks(&self) -> bool {
        match self {
            Self::Folder(_) | Self::Nats(_) => false,
            Self::S3(store) => store.locks(),
        }
    }
}

async fn in_folder<T: Send + 'static>(
    folder: &Folder,
    name: &str,
    ask: fn(&Folder, &str) -> Result<T, String>,
) -> Result<T, String> {
    let (folder, name) = (folder.clone(), name.to_owned());
    let asked = spawn_blocking(move || ask(&folder, &name)).await;
    asked.map_err(|error| error.to_string())?
}

/// Whether what a target says that it holds is what it was sent, as far as it says.
fn is_sent(held: &Held, sent: &Segment) -> bool {
    held.bytes == sent.bytes && held.sha256.is_none_or(|sha256| sha256 == sent.sha256)
}

/// A segment's name in the state folder, and in every copy.
fn name_of(number: u64) -> String {
    format!("segments/{number:020}.seg")
}

/// The name of what stays of a segment that was removed.
fn husk_name(number: u64) -> String {
    format!("segments/{number:020}.gone")
}
