//! What the journal keeps, and for how long: closed segments go by age, by whose they are and by size, unless
//! somebody holds what is in them. What becomes of a segment that goes is the journal's to know.

mod config;
mod erasures;
mod holds;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use interceptor_core::record::{Event, Record, SessionId, Timestamp};
use tokio::{task::spawn_blocking, time::sleep};

pub(crate) use self::holds::{PLACED, RELEASED};
pub use self::{config::Retention, holds::Hold};
use self::{erasures::Erasures, holds::Holds};
use crate::{
    clock,
    journal::{Closed, Contents, Erasure, Journal, JournalError, NotErased, NotRemoved, taken_by},
    sync::lock,
};

/// How often it is looked how much there is, where that has a limit.
const SIZE_EVERY: Duration = Duration::from_millis(500);

/// The same while there is plenty of room: a look takes some milliseconds for thousands of segments.
const SIZE_SELDOM: Duration = Duration::from_secs(5);

/// Room that no disk fills between two looks then, in bytes.
const PLENTY: u64 = 8 << 30;

/// How often it is looked how old things are, at the least.
const AGE_EVERY: Duration = Duration::from_secs(60);

/// Room that is left free for what is written until the next look: as much as a disk takes meanwhile, in bytes.
const SPARE_BYTES: u64 = 64 << 20;

/// Keeps to what is to be kept.
#[derive(Debug)]
pub struct Retainer {
    config: Retention,
    directory: PathBuf,
    holds: Holds,
    erasures: Erasures,
    /// Of one removal at a time; and nobody begins to hold something while it is being removed.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the state folder takes.
    bytes: u64,
    /// Why something that should go doesn't.
    blocked: Option<String>,
    /// What is in closed segments.
    contents: BTreeMap<u64, Contents>,
    /// Those that can't be read, and why.
    damaged: BTreeMap<u64, String>,
}

/// Why a session wasn't erased.
#[derive(Debug, thiserror::Error)]
pub enum NotErasable {
    /// Somebody holds it.
    #[error("session {0} is held, so it can't be erased")]
    Held(SessionId),
    /// It was before.
    #[error("session {} was erased already, by {}: {}", .0.session, .0.by, .0.reason)]
    Erased(Box<Erasure>),
    /// The journal can't.
    #[error(transparent)]
    NotErased(#[from] NotErased),
}

/// How it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Bytes that the state folder takes.
    pub bytes: u64,
    /// Sessions that are held.
    pub held: u64,
    /// Sessions that were erased.
    pub erased: u64,
}

impl Retainer {
    /// Keeps to `config` for the journal in `directory`.
    #[must_use]
    pub fn new(config: Retention, directory: &Path) -> Self {
        Self {
            config,
            directory: directory.to_owned(),
            holds: Holds::default(),
            erasures: Erasures::default(),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Takes note of a record from before the start, each in order.
    pub fn observe(&self, record: &Record) {
        self.holds.observe(record);
        self.erasures.observe(record);
    }

    /// Has `journal` go on with what earlier daemons put on record of it, once all records were observed, which have
    /// been `read`.
    ///
    /// # Errors
    /// Where its keys are other ones than those on record, or the disk fails; or where the records couldn't be read,
    /// which other keys explain.
    pub fn take_up(
        &self,
        journal: &Journal,
        read: Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        if read.is_ok() || self.erasures.has_keys() {
            self.erasures.take_up(journal)?;
        }
        read
    }

    /// The sessions that were erased.
    #[must_use]
    pub fn erasures(&self) -> Vec<Erasure> {
        self.erasures.all()
    }

    /// When and why `session` was erased, if it was.
    #[must_use]
    pub fn erasure(&self, session: SessionId) -> Option<Erasure> {
        self.erasures.of(session)
    }

    /// Erases `session` in `journal`, which `by` wants for this `reason`. Blocks for the disk, and while something is
    /// being removed.
    ///
    /// # Errors
    /// Where it is held or erased already, or can't be erased.
    pub fn erase(
        &self,
        journal: &Journal,
        session: SessionId,
        (by, reason): (&str, &str),
    ) -> Result<Erasure, NotErasable> {
        let _turn = self.turn.blocking_lock();
        if self.holds.has(session) {
            return Err(NotErasable::Held(session));
        }
        if let Some(erasure) = self.erasures.of(session) {
            if !journal.has_key(session) {
                return Err(NotErasable::Erased(Box::new(erasure)));
            }
            // It was begun, and the disk didn't take it then.
            return match journal.finish(&erasure) {
                Ok(()) => Ok(erasure),
                Err(error) => Err(NotErased::Later {
                    erasure: Box::new(erasure),
                    error,
                }
                .into()),
            };
        }
        let erased = journal.erase(session, by, reason);
        if let Ok(erasure) = &erased {
            self.erasures.put(erasure.clone());
        }
        // Nobody begins to hold what is to go.
        if let Err(NotErased::Later { erasure, .. }) = &erased {
            self.erasures.put((**erasure).clone());
        }
        Ok(erased?)
    }

    /// The sessions that are held.
    #[must_use]
    pub fn holds(&self) -> Vec<Hold> {
        self.holds.all()
    }

    /// Holds what `hold` says, once `record` has put that on record; whether it wasn't held before, nor erased. Blocks while
    /// something is being removed.
    ///
    /// # Errors
    /// As of `record`.
    pub fn hold<E>(&self, hold: Hold, record: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
        let _turn = self.turn.blocking_lock();
        if self.holds.has(hold.session) || self.erasures.of(hold.session).is_some() {
            return Ok(false);
        }
        record()?;
        self.holds.put(hold);
        Ok(true)
    }

    /// Lets go of `session`, once `record` has put that on record; whether it was held.
    ///
    /// # Errors
    /// As of `record`.
    pub fn release<E>(
        &self,
        session: SessionId,
        record: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let _turn = self.turn.blocking_lock();
        if !self.holds.has(session) {
            return Ok(false);
        }
        record()?;
        self.holds.remove(session);
        Ok(true)
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let known = lock(&self.state).bytes;
        Standing {
            // Where nothing is looked at all the time it is now.
            bytes: match (known, self.config.size) {
                (0, _) | (_, None) => taken_by(&self.directory).unwrap_or(known),
                _ => known,
            },
            held: self.holds.all().len() as u64,
            erased: self.erasures.all().len() as u64,
        }
    }

    /// The most that the state folder may take, in bytes.
    #[must_use]
    pub const fn bytes_max(&self) -> Option<u64> {
        self.config.size
    }

    /// What is wrong, and what to do about it.
    #[must_use]
    pub fn trouble(&self) -> Option<(String, &'static str)> {
        let blocked = lock(&self.state).blocked.clone()?;
        Some((
            blocked,
            "release what is held, keep what is damaged as evidence elsewhere, or allow more in `journal: {retention: {size: …}}`",
        ))
    }

    /// Removes what is not to be kept, for as long as the runtime runs. `waits` says which segments are to be copied
    /// elsewhere first: for age there is time, for room there is none.
    pub fn start(
        self: &Arc<Self>,
        journal: &Journal,
        waits: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) {
        if self.config == Retention::default() {
            return;
        }
        let (own, journal) = (self.clone(), journal.clone());
        let age_every = self.config.least_age().unwrap_or(AGE_EVERY).min(AGE_EVERY);
        let every = self.config.size.map_or(age_every, |_| SIZE_EVERY);
        tokio::spawn(async move {
            let mut since_ages = age_every;
            loop {
                let with_ages = since_ages >= age_every;
                let blocked = match own.round(&journal, &waits, with_ages).await {
                    Ok(blocked) => blocked,
                    Err(error) => Some(format!("a segment can't be removed: {error}")),
                };
                own.note(&journal, blocked);
                let pause = if own.has_plenty() {
                    every.max(SIZE_SELDOM).min(age_every)
                } else {
                    every
                };
                since_ages = if with_ages { pause } else { since_ages + pause };
                sleep(pause).await;
            }
        });
    }

    /// Whether there is so much room that it needn't be looked after closely.
    fn has_plenty(&self) -> bool {
        let bytes = lock(&self.state).bytes;
        let enough = self.config.size.map(enough);
        enough.is_some_and(|enough| enough.saturating_sub(bytes) > PLENTY)
    }

    /// Says on record, once, that something should go and doesn't.
    fn note(&self, journal: &Journal, blocked: Option<String>) {
        let mut state = lock(&self.state);
        let is_new = blocked.is_some() && state.blocked.is_none();
        state.blocked = blocked;
        if let Some(why) = state.blocked.as_ref().filter(|_| is_new) {
            tracing::error!("{why}");
            let event = Event::notice("retention_blocked", [("why", why.clone())]);
            // While nothing can be recorded, that is said elsewhere.
            let _ = journal.append(None, &Arc::from(""), clock::now(), [event]);
        }
    }

    /// Removes what is to go now; why something stays that shouldn't.
    async fn round(
        self: &Arc<Self>,
        journal: &Journal,
        waits: &(impl Fn(u64) -> bool + Sync),
        with_ages: bool,
    ) -> Result<Option<String>, String> {
        if with_ages {
            for closed in self.closed(journal).await? {
                if waits(closed.number) {
                    continue;
                }
                match self.expiry(journal, closed).await {
                    Ok(None) => {}
                    Ok(Some(why)) => self.remove(journal, closed, &why).await?,
                    Err(error) => self.give_up(closed, error)?,
                }
            }
        }
        let Some(limit) = self.config.size else {
            return Ok(self.given_up());
        };
        let enough = enough(limit);
        let mut bytes = self.measure().await?;
        if bytes <= enough {
            return Ok(self.given_up());
        }
        for closed in self.closed(journal).await? {
            if bytes <= enough {
                break;
            }
            let why = match waits(closed.number) {
                false => format!("more than {enough} of {limit} bytes"),
                true => format!("more than {enough} of {limit} bytes, before it was shipped"),
            };
            self.remove(journal, closed, &why).await?;
            bytes = self.measure().await?;
        }
        if bytes <= limit {
            return Ok(self.given_up());
        }
        Ok(Some(format!(
            "the state folder takes {bytes} of {limit} bytes, and nothing more of it may be removed"
        )))
    }

    /// Leaves `closed` alone from now on if it is damaged: it is evidence, and the others can go.
    fn give_up(&self, closed: Closed, error: NotRemoved) -> Result<(), String> {
        let NotRemoved::Journal(JournalError::Damaged { .. }) = &error else {
            return Err(error.to_string());
        };
        let mut state = lock(&self.state);
        state.damaged.insert(closed.number, error.to_string());
        Ok(())
    }

    /// What is damaged and stays for that.
    fn given_up(&self) -> Option<String> {
        let state = lock(&self.state);
        let first = state.damaged.values().next();
        first.map(|what| format!("a segment isn't removed: {what}"))
    }

    async fn measure(self: &Arc<Self>) -> Result<u64, String> {
        let own = self.clone();
        let bytes = spawn_blocking(move || taken_by(&own.directory)).await;
        let bytes = bytes.map_err(|error| error.to_string())?;
        let bytes = bytes.map_err(|error| format!("{}: {error}", self.directory.display()))?;
        lock(&self.state).bytes = bytes;
        Ok(bytes)
    }

    /// The closed segments that nobody holds, oldest first.
    async fn closed(self: &Arc<Self>, journal: &Journal) -> Result<Vec<Closed>, String> {
        let (own, journal) = (self.clone(), journal.clone());
        let listed = spawn_blocking(move || {
            let held = own.held(&journal);
            let mut closed = journal.closed()?;
            let there: BTreeSet<u64> = closed.iter().map(|closed| closed.number).collect();
            let mut state = lock(&own.state);
            state.contents.retain(|number, _| there.contains(number));
            closed.retain(|closed| {
                !held.contains(&closed.number) && !state.damaged.contains_key(&closed.number)
            });
            drop(state);
            Ok::<_, JournalError>(closed)
        });
        let listed = listed.await.map_err(|error| error.to_string())?;
        listed.map_err(|error| error.to_string())
    }

    /// The segments that have something of a session that is held.
    fn held(&self, journal: &Journal) -> BTreeSet<u64> {
        let holds = self.holds.all();
        let segments = holds.iter().map(|hold| journal.segments_of(hold.session));
        segments.flatten().collect()
    }

    /// Why `closed` is to go for its age, if it is.
    async fn expiry(
        self: &Arc<Self>,
        journal: &Journal,
        closed: Closed,
    ) -> Result<Option<String>, NotRemoved> {
        let Some(least) = self.config.least_age() else {
            return Ok(None);
        };
        let (own, journal) = (self.clone(), journal.clone());
        let read = spawn_blocking(move || {
            let now = clock::now();
            let known = lock(&own.state).contents.get(&closed.number).cloned();
            let contents = match known {
                Some(contents) => contents,
                None => {
                    if !is_over(journal.newest(&closed)?, least, now) {
                        return Ok(None);
                    }
                    let contents = journal.contents(&closed)?;
                    let mut state = lock(&own.state);
                    let known = state.contents.entry(closed.number);
                    known.or_insert(contents).clone()
                }
            };
            Ok::<_, JournalError>(
                own.config
                    .age_of_all(&contents)
                    .filter(|age| is_over(contents.newest, *age, now)),
            )
        });
        let age = read.await.map_err(NotRemoved::cut_short)??;
        Ok(age.map(|age| format!("older than {} seconds", age.as_secs())))
    }

    async fn remove(&self, journal: &Journal, closed: Closed, why: &str) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        // It may have been held since it was listed.
        let held = self.holds.all().iter().map(|hold| hold.session).collect();
        match journal.remove(closed, &held, why).await {
            Ok(()) => Ok(()),
            Err(error) => self.give_up(closed, error),
        }
    }
}

impl Retention {
    /// How long a segment with `contents` is kept; `None` is for ever.
    fn age_of_all(&self, contents: &Contents) -> Option<Duration> {
        if contents.agents.is_empty() {
            // Of nobody, or of somebody who isn't known: then it may be of whoever is kept longest.
            let own = self.agents.iter().map(|(_, age)| *age).max();
            return self.age.map(|age| own.map_or(age, |own| own.max(age)));
        }
        let mut longest = Duration::ZERO;
        for agent in &contents.agents {
            longest = longest.max(self.age_of(agent)?);
        }
        Some(longest)
    }
}

/// What may be there of `limit` bytes before segments are removed.
fn enough(limit: u64) -> u64 {
    limit - SPARE_BYTES.min(limit / 4).max(limit / 32)
}

/// Whether `age` has passed between `newest` and `now`.
fn is_over(newest: Timestamp, age: Duration, now: Timestamp) -> bool {
    let passed = now.0.saturating_sub(newest.0);
    u128::from(passed) >= age.as_nanos()
}
