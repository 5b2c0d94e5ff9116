//! Words: which sessions have operations with what somebody searches for.
//!
//! A thread of its own reads the blocks as they are written, out of the writer's way, and gathers their words in
//! memory ([`Gathering`]); what is full is put into sled as a run that never changes. Whoever asks is answered from
//! both, newest first. Phrases, and everything where there is no index, are looked for on record ([`find`]).

mod find;
mod run;
mod shelf;
mod split;
mod text;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use self::run::{Gathering, Member};
pub use self::{
    find::Found,
    split::SEARCHED,
    text::{Seen, Text, TextError},
};
pub(super) use self::{find::find, run::Run, shelf::Shelf};
use super::{JournalError, encryption::SessionKeys, reader::Reader, segment::Location};

/// What was gathered and isn't in sled: sessions, and which words of what is asked for they have.
pub(super) type Fresh = Vec<(Member, u32)>;

/// The thread that gathers words.
#[derive(Debug)]
pub(super) struct Gatherer {
    tasks: Sender<Task>,
    /// What hasn't been read is left to the next start.
    is_closing: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

enum Task {
    Add(Location),
    Ask(Arc<Text>, Box<dyn FnOnce(Fresh) + Send>),
    /// Put everything away, and say whether it is all there.
    Close(SyncSender<bool>),
}

impl Gatherer {
    /// Starts it on the segments of `directory`. `put` puts a run into sled, and says whether it is there.
    pub(super) fn start(
        directory: &Path,
        put: impl FnMut(Run) -> bool + Send + 'static,
    ) -> Option<Self> {
        // Of what is encrypted there are no words: who could read those could read it.
        let reader = Reader::with_keys(directory, SessionKeys::none()).ok()?;
        let (tasks, todo) = mpsc::channel();
        let is_closing = Arc::new(AtomicBool::new(false));
        let closing = is_closing.clone();
        let thread = std::thread::Builder::new()
            .name("words".to_owned())
            .spawn(move || gather(&reader, &todo, &closing, put))
            .ok()?;
        Some(Self {
            tasks,
            is_closing,
            thread,
        })
    }

    /// Has it read the block at `location`, which is on disk.
    pub(super) fn add(&self, location: Location) {
        // Without a thread nobody is answered from here.
        let _ = self.tasks.send(Task::Add(location));
    }

    /// Has it give `then` what it has of `text` and isn't in sled, as of all blocks that it was told of; nothing
    /// where it doesn't have all of them.
    pub(super) fn ask(&self, text: Arc<Text>, then: impl FnOnce(Fresh) + Send + 'static) {
        let _ = self.tasks.send(Task::Ask(text, Box::new(then)));
    }

    /// Has what was gathered put into sled and ends it; whether it is there, and says up to which block. What is
    /// behind that is for the next start to [`Gatherer::add`].
    pub(super) fn close(self, patience: Duration) -> bool {
        let Self {
            tasks,
            is_closing,
            thread,
        } = self;
        is_closing.store(true, Ordering::Relaxed);
        let (done, is_done) = mpsc::sync_channel(1);
        let asked = tasks.send(Task::Close(done)).is_ok();
        let is_whole = asked && is_done.recv_timeout(patience) == Ok(true);
        drop(tasks);
        let until = Instant::now() + patience;
        while is_whole && !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        is_whole
    }
}

fn gather(
    reader: &Reader,
    todo: &Receiver<Task>,
    is_closing: &AtomicBool,
    mut put: impl FnMut(Run) -> bool,
) {
    let mut gathering = Gathering::default();
    let mut is_whole = true;
    for task in todo {
        match task {
            Task::Add(_) if !is_whole || is_closing.load(Ordering::Relaxed) => {}
            Task::Add(location) => match add(reader, location, &mut gathering, &mut put) {
                Ok(is_put) => is_whole = is_put,
                Err(error) => {
                    tracing::error!(%error, "words are searched for on record until the next start");
                    is_whole = false;
                }
            },
            // Dropped, it says that there is no answer.
            Task::Ask(..) if !is_whole => {}
            Task::Ask(text, then) => then(gathering.find(&text)),
            Task::Close(done) => {
                if is_whole && gathering.is_ahead() {
                    is_whole = put(gathering.finish());
                }
                let _ = done.send(is_whole);
                return;
            }
        }
    }
}

fn add(
    reader: &Reader,
    location: Location,
    gathering: &mut Gathering,
    mut put: impl FnMut(Run) -> bool,
) -> Result<bool, JournalError> {
    let mut is_put = true;
    match reader.each_clear_attempt(location, |record| {
        is_put = is_put && gathering.take(record, &mut put);
    }) {
        // Before its words were looked at.
        Err(JournalError::Removed(_)) => {}
        read => read?,
    }
    gathering.has_all_of(location);
    Ok(is_put)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_left_when_it_stops_is_for_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("segments")).unwrap();
        let (runs, put) = mpsc::channel();
        let gatherer = Gatherer::start(folder.path(), move |run| runs.send(run).is_ok()).unwrap();
        gatherer.is_closing.store(true, Ordering::Relaxed);
        // It isn't there, and isn't looked for.
        gatherer.add(Location {
            segment: 1,
            offset: 48,
        });
        assert!(gatherer.close(Duration::from_secs(10)));
        assert!(put.recv().is_err());
    }

    #[test]
    fn who_missed_a_block_answers_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("segments")).unwrap();
        let gatherer = Gatherer::start(folder.path(), |_| true).unwrap();
        let text = Arc::new(Text::parse("word").unwrap());
        let (answer, reply) = mpsc::channel();
        let tell = answer.clone();
        gatherer.ask(text.clone(), move |fresh| tell.send(fresh).unwrap());
        assert_eq!(reply.recv().unwrap(), []);
        gatherer.add(Location {
            segment: 1,
            offset: 48,
        });
        gatherer.ask(text, move |fresh| answer.send(fresh).unwrap());
        reply.recv().unwrap_err();
        assert!(!gatherer.close(Duration::from_secs(10)));
    }
}
