//! Checks a journal offline: the chain through every byte, the records' numbers, the signed checkpoint, and
//! checkpoints that were kept elsewhere.
//!
//! What it says of a problem is what the evidence shows: what was done to it, in which file, at which byte, and
//! from which record on nothing can be said. One thing that was done is one problem where that can be told, so
//! it reads on behind what it found.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
    sync::Arc,
};

use interceptor_core::record::{Record, SessionId};
use serde::Serialize;

use super::{
    JournalError,
    block::{BLOCK_HEADER, BlockHeader, Closed, Facts, Hash, Unreadable},
    checkpoint::{Bad, Checkpoint, PublicKey},
    disk::{Content, Disk, Local},
    encryption::{self, Held, MasterKey, SessionKeys},
    erasure::{self, Erasure},
    husk::{self, Husk},
    io_error,
    reader::read_block,
    seal::{self, Sealed},
    segment::{self, SEGMENT_HEADER},
    succession::{self, Rotation, Succession},
    tree::Tree,
};

/// How far apart in time blocks may be that nothing vouches for yet: a daemon signs every second.
const UNSIGNED_NS_MAX: u64 = 60_000_000_000;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Segments read.
    pub segments: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Records read.
    pub records: u64,
    /// Segments that were removed by retention, each of which is on record.
    pub removed_segments: u64,
    /// Records that were removed with them.
    pub removed_records: u64,
    /// Sessions that were erased, each of which is on record.
    pub erased_sessions: u64,
    /// Records of theirs that are there, and that nobody can read.
    pub erased_records: u64,
    /// Records that are encrypted and weren't looked into, for want of the key.
    pub locked_records: u64,
    /// How often the journal's key was replaced, each on record and signed by the key before.
    pub rotations: u64,
    /// The last record that a good checkpoint vouches for.
    pub signed_up_to: Option<u64>,
    /// The last record that a checkpoint kept elsewhere vouches for.
    pub witnessed_up_to: Option<u64>,
    /// What is wrong, in the order in which it was found.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What was done.
    pub kind: Kind,
    /// The file.
    pub file: String,
    /// Byte offset in it.
    pub offset: u64,
    /// Number of the first record that can't be trusted, where that can be told.
    pub seq: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// What was done to a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Bytes are other ones.
    Changed,
    /// Records that others follow are gone.
    Missing,
    /// What is there belongs elsewhere, or is there twice.
    Reordered,
    /// The end is gone.
    Truncated,
    /// It is as it was at an earlier time.
    RolledBack,
    /// It is another history than the one that was signed.
    Forked,
    /// It was signed with another key.
    AnotherKey,
    /// Nothing vouches for it, and something should.
    Unsigned,
    /// It can't be read.
    Unreadable,
    /// A signature on record isn't for what it is said to be for.
    Unproven,
}

/// What was kept apart from a journal, out of reach of whoever rewrites it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kept<'a> {
    /// The public key, in its text form; without it the one beside the journal is believed.
    pub key: Option<&'a str>,
    /// Checkpoints of earlier times, each with the name that it is spoken of by.
    pub checkpoints: &'a [(String, String)],
    /// What encrypted sessions are read with, if it isn't beside the journal.
    pub encryption_key: Option<&'a MasterKey>,
}

/// Checks the state folder `directory` with what was `kept` elsewhere. `progress` is told the bytes checked so
/// far and in all, `observe` every record that can be read and isn't content: operations, decisions, responses.
///
/// # Errors
/// Where its files can't be listed; what they hold is reported, not an error.
pub fn verify(
    directory: &Path,
    kept: &Kept<'_>,
    progress: impl FnMut(u64, u64),
    observe: impl FnMut(&Record),
) -> Result<Report, JournalError> {
    let (mut report, key) = checked(&Local, directory, kept, progress, observe)?;
    // The index is no evidence, but whoever asks is answered out of it.
    if let Some(Sealed::Broken(broken)) = key.map(|key| seal::check(directory, &key)) {
        report.problems.push(Problem {
            kind: Kind::Changed,
            file: broken.file,
            offset: broken.offset,
            seq: None,
            what: broken.what.to_owned(),
        });
    }
    Ok(report)
}

/// As [`verify`], of what is on `disk`.
#[cfg(test)]
pub(super) fn verify_on<D: Disk>(
    disk: &D,
    directory: &Path,
    kept: &Kept<'_>,
    progress: impl FnMut(u64, u64),
    observe: impl FnMut(&Record),
) -> Result<Report, JournalError> {
    let (report, _) = checked(disk, directory, kept, progress, observe)?;
    Ok(report)
}

/// What a check of what is on `disk` finds, and the key in force at its end, if one can be believed.
fn checked<D: Disk>(
    disk: &D,
    directory: &Path,
    kept: &Kept<'_>,
    progress: impl FnMut(u64, u64),
    observe: impl FnMut(&Record),
) -> Result<(Report, Option<PublicKey>), JournalError> {
    // Before the segments: what a daemon that runs adds meanwhile is only more than was signed, and what it erases is on
    // record before.
    let claims = Claims::read(disk, directory);
    let (keys, unopened) = match SessionKeys::read(disk, directory, kept.encryption_key) {
        Ok(keys) => (keys, None),
        Err(error) => (SessionKeys::none(), Some(error.to_string())),
    };
    let mut check = Check {
        report: Report::default(),
        chain: [0; 32],
        next_seq: 1,
        end: (name(&segment::path(directory, 1)), 0),
        tree: Tree::default(),
        wanted: claims.sizes(kept),
        roots: BTreeMap::new(),
        times: Vec::new(),
        is_adrift: false,
        progress,
        observe,
        removed: BTreeMap::new(),
        removals: BTreeSet::new(),
        keys,
        closed: BTreeMap::new(),
        encrypted: None,
        are_keys_gone: disk.open(&encryption::path(directory)).is_err()
            && disk.open(&encryption::next_path(directory)).is_err(),
        foreign: None,
        erasures: BTreeMap::new(),
        succession: Succession::default(),
        done: 0,
        total: 0,
    };
    check.root();
    let (files, mut strange) = Segment::all(disk, directory)?;
    check.total = files.iter().map(|file| file.length).sum();
    check.report.problems.append(&mut strange);
    let mut husks = segment::Names::read(disk, directory)?.husks;
    for file in &files {
        // One that says that it is another one is not in this one's place.
        husks.remove(&file.number);
    }
    for (index, file) in files.iter().enumerate() {
        let later = files.get(index + 1..).unwrap_or_default();
        let behind = husks.split_off(&file.number);
        for number in std::mem::replace(&mut husks, behind) {
            check.husk(disk, directory, number);
        }
        let next = later.first().map(|next| next.number);
        let next = next.into_iter().chain(husks.first().copied()).min();
        check.segment(file, next);
    }
    for number in husks {
        check.husk(disk, directory, number);
    }
    check.hold_to_removals();
    if let Some(what) = unopened {
        check.problem(Kind::Unreadable, "session.keys", 0, None, what);
    }
    // What was erased while this was read isn't there any more.
    let now = SessionKeys::read(disk, directory, kept.encryption_key);
    let now = now.unwrap_or_else(|_| SessionKeys::none());
    // Nobody gives that away.
    let is_own = disk.open(&directory.join("journal.key")).is_ok();
    check.hold_to_erasures(&now, is_own);
    check.report.rotations = check.succession.rotations();
    // Which key has signed what is for the records to say.
    let (notes, mut unreadable) = claims.verified(kept, &check.succession);
    if check.report.segments == 0 {
        // A journal without records may not have come to be signed.
        unreadable.retain(|problem| problem.kind != Kind::Unsigned);
    }
    check.report.problems.append(&mut unreadable);
    check.hold_to(&notes);
    if notes.is_current(disk, directory) {
        check.hold_to_time(&notes);
    }
    Ok((check.report, notes.key))
}

/// What stands beside the segments, as it was read: nothing of it is believed yet.
struct Claims {
    beside: std::io::Result<String>,
    own: std::io::Result<Vec<u8>>,
}

impl Claims {
    fn read<D: Disk>(disk: &D, directory: &Path) -> Self {
        // In this order: what shows a new key is written when that has signed.
        let beside = disk.read(&directory.join("journal.pub"));
        Self {
            beside: beside.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            own: disk.read(&directory.join("checkpoint")),
        }
    }

    /// How many blocks each checkpoint says that it vouches for.
    fn sizes(&self, kept: &Kept<'_>) -> BTreeSet<u64> {
        let own = self.own.iter().map(|note| String::from_utf8_lossy(note));
        let kept = kept.checkpoints.iter().map(|(_, note)| note.into());
        let claimed = own
            .chain(kept)
            .filter_map(|note| Checkpoint::claimed(&note));
        claimed.map(|checkpoint| checkpoint.size).collect()
    }

    /// Checkpoints that are signed by the key that was in force where they belong, and what is wrong with any other.
    fn verified(self, kept: &Kept<'_>, succession: &Succession) -> (Notes, Vec<Problem>) {
        let mut notes = Notes {
            own: None,
            kept: Vec::new(),
            key: None,
        };
        let mut problems = Vec::new();
        let mut problem = |kind, file: &str, what: String| {
            problems.push(Problem {
                kind,
                file: file.to_owned(),
                offset: 0,
                seq: None,
                what,
            });
        };
        let text = match (kept.key, &self.beside) {
            (Some(key), _) => key,
            (None, Ok(text)) => text,
            (None, Err(error)) => {
                let what = format!("the public key can't be read: {error}");
                problem(Kind::Unreadable, "journal.pub", what);
                return (notes, problems);
            }
        };
        let believed = PublicKey::parse(text).map(|key| succession.believe(key));
        if let (Some(key), Ok(beside)) = (kept.key, &self.beside)
            && key.trim_end() != beside.trim_end()
        {
            let beside = PublicKey::parse(beside);
            let is_known = believed
                .as_ref()
                .zip(beside)
                .is_some_and(|(believed, beside)| believed.knows(&beside));
            if !is_known {
                let what = "it is another key than the one that was kept elsewhere, and no record says that one follows the other";
                problem(Kind::AnotherKey, "journal.pub", what.to_owned());
            }
        } else if believed
            .as_ref()
            .is_some_and(|believed| believed.is_stranger)
            && succession.rotations() > 0
        {
            let what = "the records say which keys this journal had, and it is none of them";
            problem(Kind::AnotherKey, "journal.pub", what.to_owned());
        }
        let Some(believed) = believed else {
            let what = "it is not a public key of a journal".to_owned();
            problem(Kind::Changed, "journal.pub", what);
            return (notes, problems);
        };
        let of_note = |note: &[u8], is_latest| {
            let note = String::from_utf8_lossy(note);
            believed.verify(&note, is_latest).map_err(|(bad, what)| {
                let kind = match bad {
                    Bad::AnotherKey => Kind::AnotherKey,
                    Bad::Changed(_) => Kind::Changed,
                };
                (kind, what)
            })
        };
        match self.own {
            Ok(note) => match of_note(&note, true) {
                Ok(checkpoint) => notes.own = Some((note, checkpoint)),
                Err((kind, what)) => problem(kind, "checkpoint", what),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let what = "it is missing, so nothing vouches for the journal".to_owned();
                problem(Kind::Unsigned, "checkpoint", what);
            }
            Err(error) => {
                let what = format!("it can't be read, so nothing vouches for the journal: {error}");
                problem(Kind::Unreadable, "checkpoint", what);
            }
        }
        for (name, note) in kept.checkpoints {
            match of_note(note.as_bytes(), false) {
                Ok(checkpoint) => notes.kept.push((name.clone(), checkpoint)),
                Err((kind, what)) => {
                    problem(
                        kind,
                        name,
                        format!(
                            "{what}; it was kept elsewhere, so either it isn't this journal's or this journal isn't what it was"
                        ),
                    );
                }
            }
        }
        notes.kept.sort_by_key(|(_, checkpoint)| checkpoint.size);
        notes.key = believed.last().cloned();
        (notes, problems)
    }
}

/// Checkpoints, with what is known of each.
struct Notes {
    /// The folder's own as it was read, and what it vouches for.
    own: Option<(Vec<u8>, Checkpoint)>,
    /// Those that were kept elsewhere.
    kept: Vec<(String, Checkpoint)>,
    /// The key in force.
    key: Option<PublicKey>,
}

impl Notes {
    /// Whether the folder's checkpoint is still the one that was read first: nobody writes.
    fn is_current<D: Disk>(&self, disk: &D, directory: &Path) -> bool {
        let now = disk.read(&directory.join("checkpoint")).ok();
        now.as_ref() == self.own.as_ref().map(|(note, _)| note)
    }
}

/// A segment's file, as far as it says itself what it is.
struct Segment<F> {
    name: String,
    /// The number of its first record, as far as that can be told: where it belongs.
    number: u64,
    file: F,
    length: u64,
    head: Option<(u64, Hash)>,
    /// What its header or its name has that it shouldn't.
    odd: Option<(Kind, u64, String)>,
    /// Another file is this segment.
    is_copy: bool,
}

impl<F: Content> Segment<F> {
    /// All segments in the order in which their content belongs, and what can't be read.
    fn all<D: Disk<File = F>>(
        disk: &D,
        directory: &Path,
    ) -> Result<(Vec<Self>, Vec<Problem>), JournalError> {
        let folder = segment::folder(directory);
        let mut names = disk.list(&folder).map_err(io_error("listing", &folder))?;
        names.sort_unstable();
        let (mut segments, mut problems) = (Vec::new(), Vec::new());
        for name in names.into_iter().filter(|name| name.ends_with(".seg")) {
            let mut problem = |kind, what: String| {
                problems.push(Problem {
                    kind,
                    file: name.clone(),
                    offset: 0,
                    seq: segment::number(&name, ".seg"),
                    what,
                });
            };
            let Some(number) = segment::number(&name, ".seg") else {
                problem(Kind::Reordered, "no segment has such a name".to_owned());
                continue;
            };
            match Self::read(disk, &folder.join(&name), number) {
                Ok(segment) => segments.push(segment),
                Err(error) => problem(Kind::Unreadable, format!("it can't be read: {error}")),
            }
        }
        // Of two that are the same, the one whose name says so is it.
        segments.sort_by_key(|segment| (segment.number, segment.odd.is_some()));
        let mut before = None;
        for segment in &mut segments {
            segment.is_copy = before == Some(segment.number);
            before = Some(segment.number);
        }
        Ok((segments, problems))
    }

    fn read<D: Disk<File = F>>(disk: &D, path: &Path, named: u64) -> std::io::Result<Self> {
        let file = disk.open(path)?;
        let length = file.length()?;
        let head = segment::head(&file)?;
        let first = read_block(&file, SEGMENT_HEADER as u64)?.map(|(header, _)| header.first_seq);
        let (number, odd) = match head {
            Some((number, _)) if number == named => (named, None),
            Some((number, _)) if first == Some(number) => (
                number,
                Some((
                    Kind::Reordered,
                    0,
                    format!("it is the segment that begins with record {number}"),
                )),
            ),
            None if length < SEGMENT_HEADER as u64 => (
                named,
                Some((
                    Kind::Truncated,
                    length,
                    "it is cut off in its header".to_owned(),
                )),
            ),
            _ => (
                named,
                Some((
                    Kind::Changed,
                    0,
                    "its header is not the one of this segment".to_owned(),
                )),
            ),
        };
        Ok(Self {
            name: name(path),
            number,
            file,
            length,
            head,
            odd,
            is_copy: false,
        })
    }

    /// Where the next block after `offset` begins that others of this journal follow or that ends the file.
    fn resume(&self, offset: u64, next_seq: u64) -> std::io::Result<Option<u64>> {
        let rest = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; rest];
        self.file.read_exact_at(&mut bytes, offset)?;
        for at in 1..bytes.len() {
            let Some(header) = bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk::<BLOCK_HEADER>())
                .and_then(BlockHeader::decode)
            else {
                continue;
            };
            let end = at + BLOCK_HEADER + header.stored as usize;
            if header.first_seq <= next_seq || end > bytes.len() {
                continue;
            }
            let behind = bytes.get(end..).unwrap_or_default();
            let is_followed = match behind.first_chunk::<BLOCK_HEADER>() {
                None => behind.is_empty(),
                Some(next) => BlockHeader::decode(next).is_some_and(|next| {
                    let payload = behind
                        .get(BLOCK_HEADER..)
                        .and_then(|rest| rest.get(..next.stored as usize));
                    payload.is_some_and(|payload| next.is_chained(&header.chain, payload))
                }),
            };
            if is_followed {
                return Ok(Some(offset + at as u64));
            }
        }
        Ok(None)
    }
}

/// How far the check has come.
struct Check<P, O> {
    report: Report,
    /// What the next block has to follow.
    chain: Hash,
    next_seq: u64,
    /// Where what follows belongs.
    end: (String, u64),
    tree: Tree,
    /// Of how many blocks the root is asked for.
    wanted: BTreeSet<u64>,
    roots: BTreeMap<u64, Hash>,
    /// When each block was written.
    times: Vec<u64>,
    /// The block before couldn't say with which record the next begins.
    is_adrift: bool,
    /// What stays of removed segments, by their numbers: the records that are gone and the hash.
    removed: BTreeMap<u64, (u64, String)>,
    /// Removals on record: of which segment, and what stayed of it.
    removals: BTreeSet<(u64, String)>,
    /// What sessions are opened with.
    keys: Arc<SessionKeys>,
    /// Sessions that there is no key of any more, and where something of theirs is.
    closed: BTreeMap<SessionId, (String, u64, u64)>,
    /// The record that says that sessions are encrypted.
    encrypted: Option<u64>,
    /// What they are encrypted with isn't there.
    are_keys_gone: bool,
    /// A session that its key doesn't open, and where.
    foreign: Option<(SessionId, String, u64, u64)>,
    /// Sessions that were erased, and the records that say so.
    erasures: BTreeMap<SessionId, u64>,
    /// The journal's keys, as far as was read.
    succession: Succession,
    progress: P,
    observe: O,
    done: u64,
    total: u64,
}

impl<P: FnMut(u64, u64), O: FnMut(&Record)> Check<P, O> {
    /// Takes in what stays of the segment `number`. That it was removed by who may is for the records to say.
    fn husk<D: Disk>(&mut self, disk: &D, directory: &Path, number: u64) {
        let path = segment::husk_path(directory, number);
        let file = name(&path);
        let read = disk.read(&path).map_err(|error| {
            let what = format!("it can't be read: {error}");
            (Kind::Unreadable, what)
        });
        let husk = read.and_then(|bytes| {
            let husk = Husk::decode(&bytes).and_then(|husk| match husk.first_seq == number {
                true => Ok(husk),
                false => Err("it is what stays of another segment".to_owned()),
            });
            Ok((husk.map_err(|what| (Kind::Changed, what))?, bytes))
        });
        let (husk, bytes) = match husk {
            Ok(husk) => husk,
            Err((kind, what)) => {
                self.problem(kind, &file, 0, Some(number), what);
                return;
            }
        };
        if number > self.next_seq && !self.is_adrift {
            let (file, offset) = self.end.clone();
            let from = self.next_seq;
            let what = format!("records {from} to {} are missing behind it", number - 1);
            self.problem(Kind::Missing, &file, offset, Some(from), what);
        } else if number < self.next_seq && !self.is_adrift {
            let what = format!("it begins with record {number}, which is there already");
            self.problem(Kind::Reordered, &file, 0, Some(number), what);
        } else if husk.before != self.chain {
            let what = "it doesn't follow the records before it".to_owned();
            self.problem(Kind::Changed, &file, 0, Some(number), what);
        }
        let rotations = husk.records.iter().filter_map(succession::statement);
        let rotations = rotations.filter_map(|statement| Rotation::read(statement).ok());
        self.wanted
            .extend(rotations.map(|rotation| rotation.up_to.size));
        let from = self.tree.size();
        self.root();
        for leaf in &husk.leaves {
            self.tree.push(leaf);
            self.times.push(0);
            self.root();
        }
        self.is_adrift = false;
        self.chain = husk.chain();
        self.next_seq = husk.next_seq.max(self.next_seq);
        self.end = (file.clone(), bytes.len() as u64);
        self.report.removed_segments += 1;
        self.report.removed_records += husk.next_seq.saturating_sub(husk.first_seq);
        self.removed
            .insert(number, (husk.next_seq, husk::hash(&bytes)));
        for record in &husk.records {
            // In one of the blocks that were there.
            self.observe(record, (&file, 0), from..self.tree.size());
        }
    }

    /// Takes in a record of `file`, which is in one of these `blocks`.
    fn observe(&mut self, record: &Record, place: (&str, u64), blocks: Range<u64>) {
        if let Some(statement) = succession::statement(record)
            && let Err(what) = self.succeed(statement, record.seq, blocks)
        {
            let (file, offset) = place;
            let what = format!(
                "record {} says that the journal's key was replaced: {what}",
                record.seq
            );
            self.problem(Kind::Unproven, file, offset, Some(record.seq), what);
        }
        if let Some((segment, hash)) = husk::removal(record) {
            self.removals.insert((segment, hash.to_owned()));
        }
        if erasure::began(record).is_some() {
            self.encrypted.get_or_insert(record.seq);
        }
        if let Some(known) = erasure::began(record)
            && self.keys.id().is_some_and(|own| own != known)
        {
            let what = format!(
                "these aren't the keys that record {} says this journal's sessions are encrypted with, so those weren't looked into",
                record.seq
            );
            self.problem(Kind::Changed, "session.keys", 0, Some(record.seq), what);
            self.keys = SessionKeys::none();
            self.foreign = None;
        }
        if let Some(erasure) = Erasure::read(record) {
            self.erasures.insert(erasure.session, record.seq);
        }
        (self.observe)(record);
    }

    /// Takes in that another key follows, where that is signed by the one before and is where it says.
    fn succeed(&mut self, statement: &str, seq: u64, blocks: Range<u64>) -> Result<(), String> {
        let rotation = Rotation::read(statement)?;
        let size = rotation.up_to.size;
        let root = match self.tree.size() {
            now if now == size => Some(self.tree.root()),
            _ => self.roots.get(&size).copied(),
        };
        let is_there = blocks.contains(&size) && root == Some(rotation.up_to.root);
        // Where something was changed before, that is what isn't as it was.
        if !is_there && self.report.problems.is_empty() {
            return Err("it was signed for another place, or another history".to_owned());
        }
        Ok(self.succession.take(rotation, seq)?)
    }

    /// Compares what stays of removed segments with what is on record of their removal.
    fn hold_to_removals(&mut self) {
        for (number, (next, hash)) in std::mem::take(&mut self.removed) {
            let file = format!("{number:020}.gone");
            if self.removals.contains(&(number, hash)) {
                continue;
            }
            let mut removals = self.removals.range((number, String::new())..);
            let is_on_record = removals.next().is_some_and(|(of, _)| *of == number);
            let (kind, what) = match is_on_record {
                true => (
                    Kind::Changed,
                    "it isn't what stayed of the segment when that was removed".to_owned(),
                ),
                false => (
                    Kind::Missing,
                    format!(
                        "records {number} to {} are gone, and nothing on record says that they were removed",
                        next.saturating_sub(1)
                    ),
                ),
            };
            self.problem(kind, &file, 0, Some(number), what);
        }
    }

    /// Compares sessions that there is no key of with what is on record of their erasure, and with the keys there are
    /// `now`. In a state folder that `is_own`, none that was copied, all that there should be is there.
    fn hold_to_erasures(&mut self, now: &SessionKeys, is_own: bool) {
        if let Some(seq) = self.encrypted.filter(|_| is_own && self.are_keys_gone) {
            let what = format!(
                "it is gone: record {seq} says that sessions are encrypted with what was in it, and without it nobody can read them"
            );
            self.problem(Kind::Missing, "session.keys", 0, Some(seq), what);
        }
        for (session, (file, offset, seq)) in std::mem::take(&mut self.closed) {
            // Of a copy the end may be missing: then it is what was kept with the keys that says so.
            let is_behind = self
                .keys
                .erased_by(session)
                .is_some_and(|by| by >= self.next_seq && !is_own);
            if !self.erasures.contains_key(&session) && !is_behind {
                let what = format!(
                    "the key of session {session} is gone from session.keys, and nothing on record says that it was erased"
                );
                self.problem(Kind::Missing, &file, offset, Some(seq), what);
            }
        }
        if let Some((session, file, offset, seq)) = self.foreign.take() {
            let what = format!(
                "it has session {session}, which was encrypted with another key than the one that session.keys has for it"
            );
            self.problem(Kind::Changed, &file, offset, Some(seq), what);
        }
        self.report.erased_sessions = self.erasures.len() as u64;
        for (session, seq) in std::mem::take(&mut self.erasures) {
            if matches!(now.of(session), Held::Key(_)) {
                let what = format!(
                    "it has the key of session {session}, which record {seq} says was erased: it is an earlier one that was put back, or the daemon has yet to finish, which its next start does"
                );
                self.problem(Kind::RolledBack, "session.keys", 0, Some(seq), what);
            }
        }
    }

    fn segment<F: Content>(&mut self, segment: &Segment<F>, next: Option<u64>) {
        self.report.segments += 1;
        let seq = segment.number;
        if segment.is_copy {
            let what = format!("it is a copy of the segment that begins with record {seq}");
            self.problem(Kind::Reordered, &segment.name, 0, Some(seq), what);
            return;
        }
        if let Some((kind, offset, what)) = &segment.odd {
            self.problem(*kind, &segment.name, *offset, Some(seq), what.clone());
        }
        if seq > self.next_seq && !self.is_adrift {
            let (file, offset) = self.end.clone();
            let from = self.next_seq;
            let what = format!("records {from} to {} are missing behind it", seq - 1);
            self.problem(Kind::Missing, &file, offset, Some(from), what);
        } else if seq < self.next_seq && !self.is_adrift {
            let what = format!("it begins with record {seq}, which is there already");
            self.problem(Kind::Reordered, &segment.name, 0, Some(seq), what);
        }
        let follows = seq == self.next_seq || self.is_adrift;
        self.next_seq = seq;
        self.is_adrift = false;
        if let Some((_, before)) = segment.head {
            if follows && before != self.chain && segment.odd.is_none() {
                let what = "it doesn't follow the records before it".to_owned();
                self.problem(Kind::Changed, &segment.name, 16, Some(seq), what);
                // Whose fault it is, its own first block tells.
                if !self.is_next(segment, &self.chain) {
                    self.chain = before;
                }
            } else if !follows {
                self.chain = before;
            }
        }
        if let Err(error) = self.blocks(segment, next) {
            let what = format!("it can't be read: {error}");
            self.problem(
                Kind::Unreadable,
                &segment.name,
                self.end.1,
                Some(self.next_seq),
                what,
            );
        }
    }

    /// Whether the first block of `segment` follows `chain`.
    fn is_next<F: Content>(&self, segment: &Segment<F>, chain: &Hash) -> bool {
        let first = read_block(&segment.file, SEGMENT_HEADER as u64);
        matches!(first, Ok(Some((header, payload))) if header.is_chained(chain, &payload))
    }

    fn blocks<F: Content>(
        &mut self,
        segment: &Segment<F>,
        next: Option<u64>,
    ) -> std::io::Result<()> {
        let places = segment::scan(&segment.file)?.map_or_else(Vec::new, |found| found.blocks);
        let places: BTreeSet<u64> = places.iter().map(|(_, header)| header.first_seq).collect();
        let mut offset = SEGMENT_HEADER as u64;
        self.end = (segment.name.clone(), offset.min(segment.length));
        while offset < segment.length {
            if next == Some(self.next_seq) {
                let what = format!(
                    "{} bytes at its end are not on record: what a failed write left, or what was added",
                    segment.length - offset
                );
                self.problem(
                    Kind::Changed,
                    &segment.name,
                    offset,
                    Some(self.next_seq),
                    what,
                );
                return Ok(());
            }
            let Some((header, payload)) = read_block(&segment.file, offset)? else {
                let from = self.next_seq;
                let resumed = segment.resume(offset, from)?;
                let Some(resumed) = resumed else {
                    let what = format!(
                        "{} bytes at its end are not a whole block",
                        segment.length - offset
                    );
                    self.problem(Kind::Truncated, &segment.name, offset, Some(from), what);
                    return Ok(());
                };
                let Some((header, _)) = read_block(&segment.file, resumed)? else {
                    return Ok(());
                };
                let to = header.first_seq.saturating_sub(1);
                let what = format!("a block was changed: records {from} to {to} can't be read");
                self.problem(Kind::Changed, &segment.name, offset, Some(from), what);
                // Its chain value is where it was, most likely; if not, the next block doesn't follow either.
                self.chain = claimed(&segment.file, offset)?;
                self.push(self.chain, 0);
                self.next_seq = header.first_seq;
                offset = resumed;
                continue;
            };
            self.block((&segment.name, offset), &header, &payload, &places);
            offset += (BLOCK_HEADER + payload.len()) as u64;
            self.end.1 = offset;
            self.done += (BLOCK_HEADER + payload.len()) as u64;
            (self.progress)(self.done, self.total);
        }
        Ok(())
    }

    fn block(
        &mut self,
        (file, offset): (&str, u64),
        header: &BlockHeader,
        payload: &[u8],
        places: &BTreeSet<u64>,
    ) {
        let (from, first) = (self.next_seq, header.first_seq);
        let next = first.saturating_add(u64::from(header.count));
        let is_chained = header.is_chained(&self.chain, payload);
        let records = header.facts(payload, &self.keys);
        let found = match &records {
            _ if is_chained && first != from && !self.is_adrift => Some((
                Kind::Reordered,
                format!("it begins with record {first} where {from} belongs"),
            )),
            Err(Unreadable::Damaged(what)) if is_chained => Some((Kind::Changed, what.clone())),
            _ if is_chained => None,
            Ok(_) if first > from && !places.contains(&from) => Some((
                Kind::Missing,
                format!("records {from} to {} are missing here", first - 1),
            )),
            Ok(_) if first != from => Some((
                Kind::Reordered,
                format!("it begins with record {first} where {from} belongs"),
            )),
            _ => Some((
                Kind::Changed,
                format!(
                    "a block was changed, or doesn't follow the one before it, from record {from} on"
                ),
            )),
        };
        if let Some((kind, what)) = found {
            self.problem(kind, file, offset, Some(from), what);
        }
        // Numbers that nothing holds together say nothing of those behind them.
        self.is_adrift = records.is_err() && !is_chained;
        self.next_seq = if self.is_adrift {
            from.saturating_add(u64::from(header.count))
        } else {
            next.max(from)
        };
        if let Ok(facts) = records {
            self.facts(&facts, (file, offset), first);
        }
        self.chain = header.chain;
        self.push(header.chain, header.time_ns);
    }

    /// Takes in what the block at that place, which begins with record `first`, has.
    fn facts(&mut self, facts: &Facts, place: (&str, u64), first: u64) {
        self.report.records += facts.count;
        for (session, why, count) in &facts.closed {
            match why {
                Closed::Locked => self.report.locked_records += u64::from(*count),
                Closed::Foreign => {
                    self.report.locked_records += u64::from(*count);
                    let (file, offset) = place;
                    self.foreign
                        .get_or_insert_with(|| (*session, file.to_owned(), offset, first));
                }
                Closed::Erased => {
                    self.report.erased_records += u64::from(*count);
                    let (file, offset) = place;
                    let known = self.closed.entry(*session);
                    known.or_insert_with(|| (file.to_owned(), offset, first));
                }
            }
        }
        let index = self.tree.size();
        for fact in &facts.records {
            self.observe(fact, place, index..index + 1);
        }
    }

    fn push(&mut self, leaf: Hash, time_ns: u64) {
        self.tree.push(&leaf);
        self.times.push(time_ns);
        self.report.blocks += 1;
        self.root();
    }

    fn root(&mut self) {
        let size = self.tree.size();
        if self.wanted.contains(&size) {
            self.roots.insert(size, self.tree.root());
        }
    }

    /// Compares what is there with what checkpoints vouch for.
    fn hold_to(&mut self, notes: &Notes) {
        let blocks = self.tree.size();
        let is_whole = self.report.problems.is_empty();
        // Up to where a checkpoint of the same history is known.
        let mut good = 0;
        let mut forked = None;
        for (name, kept) in &notes.kept {
            match self.roots.get(&kept.size) {
                Some(root) if *root == kept.root => {
                    good = kept.last_seq;
                    self.report.witnessed_up_to = Some(kept.last_seq);
                }
                Some(_) => {
                    forked.get_or_insert((name, kept));
                }
                None => {
                    let (file, offset) = self.end.clone();
                    let what = format!(
                        "{name} vouches for {} blocks up to record {}, and {blocks} up to record {} are there: the journal is as it was at an earlier time, or was cut off",
                        kept.size,
                        kept.last_seq,
                        self.next_seq.saturating_sub(1),
                    );
                    let seq = Some(self.next_seq);
                    self.problem(Kind::RolledBack, &file, offset, seq, what);
                }
            }
        }
        if let Some((_, own)) = &notes.own {
            match self.roots.get(&own.size) {
                None => {
                    let (file, offset) = self.end.clone();
                    let what = format!(
                        "the checkpoint vouches for {} blocks up to record {}, but only {blocks} are there: the journal was cut off or rolled back",
                        own.size, own.last_seq,
                    );
                    let seq = Some(self.next_seq);
                    self.problem(Kind::Truncated, &file, offset, seq, what);
                }
                Some(root) if *root != own.root => {
                    let what = format!(
                        "the blocks are not those that it was signed for: another history was put in place of records {} to {}",
                        good + 1,
                        own.last_seq
                    );
                    // What was changed has been said, where that could be told.
                    let kind = if is_whole {
                        Kind::Forked
                    } else {
                        Kind::Changed
                    };
                    self.problem(kind, "checkpoint", 0, is_whole.then_some(good + 1), what);
                }
                Some(_) => self.report.signed_up_to = Some(own.last_seq),
            }
            if let Some((name, newest)) = notes.kept.last()
                && newest.size > own.size
            {
                let what = format!(
                    "it vouches for {} blocks up to record {}, {name} for {} up to record {}: it is older than one that was kept elsewhere",
                    own.size, own.last_seq, newest.size, newest.last_seq
                );
                let seq = Some(own.last_seq + 1);
                self.problem(Kind::RolledBack, "checkpoint", 0, seq, what);
            }
        }
        if let Some((name, kept)) = forked {
            let what = format!(
                "the blocks are not those that it vouches for: another history was put in place of records {} to {}",
                good + 1,
                kept.last_seq
            );
            let kind = if is_whole {
                Kind::Forked
            } else {
                Kind::Changed
            };
            self.problem(kind, name, 0, is_whole.then_some(good + 1), what);
        }
    }

    /// Compares what isn't signed with what a daemon leaves so.
    fn hold_to_time(&mut self, notes: &Notes) {
        let Some((_, own)) = &notes.own else { return };
        let Some(size) = usize::try_from(own.size).ok() else {
            return;
        };
        let unsigned = self.times.get(size..).unwrap_or_default();
        let (Some(first), Some(last)) = (unsigned.first(), unsigned.last()) else {
            return;
        };
        let span = last.saturating_sub(*first);
        if span > UNSIGNED_NS_MAX {
            let what = format!(
                "{} blocks of {} seconds behind it are not signed, and a daemon signs every second: it is an older checkpoint, or the disk took none",
                unsigned.len(),
                span / 1_000_000_000
            );
            let seq = Some(own.last_seq + 1);
            self.problem(Kind::Unsigned, "checkpoint", 0, seq, what);
        }
    }

    fn problem(&mut self, kind: Kind, file: &str, offset: u64, seq: Option<u64>, what: String) {
        self.report.problems.push(Problem {
            kind,
            file: file.to_owned(),
            offset,
            seq,
            what,
        });
    }
}

/// The chain value that stands in the block at `offset`, whatever the rest of it is.
fn claimed<F: Content>(file: &F, offset: u64) -> std::io::Result<Hash> {
    let mut chain = [0; 32];
    file.read_exact_at(&mut chain, offset + (BLOCK_HEADER - 32) as u64)?;
    Ok(chain)
}

fn name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
