//! What somebody could do to a journal: all of it is found, and where.
//!
//! Each attack is made many times, at other places. `verify` has the public key and the last checkpoint from
//! elsewhere; for histories that were replaced, an older one as well.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use interceptor_core::record::SessionId;

use super::{
    super::{
        Journal,
        block::BLOCK_HEADER,
        checkpoint,
        checkpoint::Checkpoint,
        disk::{Content, Disk},
        segment::{self, SEGMENT_HEADER},
        store::Store,
        tree::Tree,
        verify::{Kept, Kind, Problem, verify, verify_on},
    },
    append, crashes, durable, folder,
    memory::{Memory, Random},
};

const SEGMENT_BYTES: u64 = 1_200;

/// A block, and where it stands.
#[derive(Debug, Clone)]
struct Place {
    file: String,
    start: usize,
    end: usize,
    first: u64,
}

/// A journal of several segments, as files.
struct Sound {
    files: BTreeMap<PathBuf, Vec<u8>>,
    blocks: Vec<Place>,
    /// The checkpoint after so many blocks.
    notes: Vec<String>,
    key: String,
}

/// What has to be found.
struct Expected {
    kinds: Vec<Kind>,
    file: String,
    /// Where the problem may be said to begin.
    offset: (usize, usize),
    seq: Option<u64>,
}

fn state() -> PathBuf {
    PathBuf::from("/state")
}

fn load(files: &BTreeMap<PathBuf, Vec<u8>>) -> Memory {
    let disk = Memory::new(1);
    for (path, bytes) in files {
        disk.create(path).unwrap().write_all_at(bytes, 0).unwrap();
    }
    disk
}

fn unload(disk: &Memory) -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = [state(), segment::folder(&state())];
    let paths = folders.iter().flat_map(|folder| {
        let names = disk.list(folder).unwrap();
        names.into_iter().map(|name| folder.join(name))
    });
    paths
        .map(|path| (path.clone(), disk.read(&path).unwrap()))
        .collect()
}

fn segment_path(file: &str) -> PathBuf {
    segment::folder(&state()).join(file)
}

fn checkpoint_path() -> PathBuf {
    state().join("checkpoint")
}

impl Sound {
    fn new() -> Self {
        let disk = Memory::new(1);
        let (mut store, _) = Store::open(disk.clone(), state(), SEGMENT_BYTES).unwrap();
        let note = || String::from_utf8(disk.read(&checkpoint_path()).unwrap()).unwrap();
        let mut notes = vec![note()];
        let mut life = crashes::Life::new(5);
        while notes.len() <= 40 {
            life.extend(&mut store);
            notes.push(note());
        }
        let mut blocks = Vec::new();
        for number in segment::list(&disk, &state()).unwrap() {
            let path = segment::path(&state(), number);
            let scanned = segment::scan(&disk.open(&path).unwrap()).unwrap().unwrap();
            for (start, header) in scanned.blocks {
                blocks.push(Place {
                    file: path.file_name().unwrap().to_str().unwrap().to_owned(),
                    start: start as usize,
                    end: start as usize + BLOCK_HEADER + header.stored as usize,
                    first: header.first_seq,
                });
            }
        }
        assert_eq!(blocks.len(), 40);
        let files = unload(&disk);
        let key = String::from_utf8(files[&state().join("journal.pub")].clone()).unwrap();
        Self {
            files,
            blocks,
            notes,
            key,
        }
    }

    fn segments(&self) -> Vec<String> {
        let mut names: Vec<String> = self.blocks.iter().map(|block| block.file.clone()).collect();
        names.dedup();
        names
    }

    fn number(file: &str) -> u64 {
        segment::number(file, ".seg").unwrap()
    }

    /// The block that has the byte `at` of `file`.
    fn at(&self, file: &str, at: usize) -> &Place {
        let of_file = self.blocks.iter().filter(|block| block.file == file);
        of_file
            .rev()
            .find(|block| block.start <= at)
            .unwrap_or_else(|| self.blocks.iter().find(|block| block.file == file).unwrap())
    }

    /// The journal as it was after `count` blocks.
    fn after(&self, count: usize) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = self.files.clone();
        for file in self.segments() {
            let kept = self.blocks[..count]
                .iter()
                .rfind(|block| block.file == file);
            match kept {
                Some(block) => files
                    .get_mut(&segment_path(&file))
                    .unwrap()
                    .truncate(block.end),
                None => drop(files.remove(&segment_path(&file))),
            }
        }
        files.insert(checkpoint_path(), self.notes[count].clone().into_bytes());
        files
    }

    /// What whoever has the key makes of the journal as it was after `count` blocks.
    fn forked(&self, count: usize, more: usize) -> BTreeMap<PathBuf, Vec<u8>> {
        let disk = load(&self.after(count));
        let (mut store, _) = Store::open(disk.clone(), state(), SEGMENT_BYTES).unwrap();
        let mut life = crashes::Life::new(99);
        for _ in 0..more {
            life.extend(&mut store);
        }
        store.sign().unwrap();
        unload(&disk)
    }

    /// Makes the attack `number`; what was done, what there is afterwards, and what has to be found.
    #[expect(clippy::too_many_lines, reason = "a list")]
    fn attack(
        &self,
        number: usize,
        random: &mut Random,
    ) -> (&'static str, BTreeMap<PathBuf, Vec<u8>>, Vec<Expected>) {
        let mut files = self.files.clone();
        let segments = self.segments();
        let length = |file: &str| self.files[&segment_path(file)].len();
        let any = segments[random.below(segments.len())].clone();
        let middle = segments[1 + random.below(segments.len() - 2)].clone();
        let last = segments[segments.len() - 1].clone();
        let before = |file: &str| {
            let index = segments.iter().position(|name| name == file).unwrap();
            segments[index - 1].clone()
        };
        let block = self.blocks[random.below(self.blocks.len())].clone();
        let is = |kinds: &[Kind], file: &str, offset: (usize, usize), seq: Option<u64>| Expected {
            kinds: kinds.to_vec(),
            file: file.to_owned(),
            offset,
            seq,
        };
        // Not the first block, so that there is a history to go back to, nor the last.
        let count = 2 + random.below(self.blocks.len() - 4);
        let rolled_back = |count: usize| {
            let end = &self.blocks[count - 1];
            let next = Some(self.blocks[count].first);
            is(&[Kind::RolledBack], &end.file, (end.end, end.end), next)
        };
        match number % 24 {
            0 | 1 => {
                let at = block.start + random.below(block.end - block.start);
                files.get_mut(&segment_path(&block.file)).unwrap()[at] ^= 1 << random.below(8);
                let kinds = if block.end == length(&block.file) {
                    &[Kind::Changed, Kind::Truncated][..]
                } else {
                    &[Kind::Changed]
                };
                let place = (block.start, block.start);
                let found = is(kinds, &block.file, place, Some(block.first));
                ("a bit of a block", files, vec![found])
            }
            2 => {
                let at = random.below(SEGMENT_HEADER);
                files.get_mut(&segment_path(&any)).unwrap()[at] ^= 1 << random.below(8);
                let found = is(&[Kind::Changed], &any, (0, 16), Some(Self::number(&any)));
                ("a bit of a segment's header", files, vec![found])
            }
            3 | 4 => {
                let file = if number % 24 == 3 { last } else { middle };
                let at = random.below(length(&file));
                files.get_mut(&segment_path(&file)).unwrap().truncate(at);
                let block = self.at(&file, at);
                let from = if at < SEGMENT_HEADER { 0 } else { block.start };
                let kinds = &[Kind::Truncated, Kind::Missing];
                let found = is(kinds, &file, (from, at), Some(block.first));
                ("a segment cut off", files, vec![found])
            }
            5 => {
                files.remove(&segment_path(&middle));
                let before = before(&middle);
                let end = length(&before);
                let number = Self::number(&middle);
                let found = is(&[Kind::Missing], &before, (end, end), Some(number));
                ("a segment removed", files, vec![found])
            }
            6 => {
                files.remove(&segment_path(&last));
                let before = before(&last);
                let end = length(&before);
                let number = Self::number(&last);
                let found = is(&[Kind::Truncated], &before, (end, end), Some(number));
                ("the last segment removed", files, vec![found])
            }
            7 => {
                let other = if any == last {
                    segments[0].clone()
                } else {
                    last
                };
                let (one, two) = (segment_path(&any), segment_path(&other));
                files.insert(one.clone(), self.files[&two].clone());
                files.insert(two, self.files[&one].clone());
                let found = [(&any, &other), (&other, &any)].map(|(file, content)| {
                    is(
                        &[Kind::Reordered],
                        file,
                        (0, 0),
                        Some(Self::number(content)),
                    )
                });
                ("two segments swapped", files, found.into())
            }
            8 => {
                let free = 3_000 + random.next() % 100_000;
                let name = format!("{free:020}.seg");
                files.insert(segment_path(&name), self.files[&segment_path(&any)].clone());
                let found = is(&[Kind::Reordered], &name, (0, 0), Some(Self::number(&any)));
                ("a segment twice", files, vec![found])
            }
            9 => {
                let old = self.files[&segment_path(&before(&middle))].clone();
                files.insert(segment_path(&middle), old);
                let number = Some(Self::number(&before(&middle)));
                let found = is(&[Kind::Reordered], &middle, (0, 0), number);
                ("a segment replayed in another's place", files, vec![found])
            }
            10..=12 => {
                let pairs: Vec<(&Place, &Place)> =
                    self.blocks.iter().zip(&self.blocks[1..]).collect();
                let pairs: Vec<_> = pairs
                    .into_iter()
                    .filter(|(a, b)| a.file == b.file)
                    .collect();
                let (one, two) = pairs[random.below(pairs.len())];
                let bytes = files.get_mut(&segment_path(&one.file)).unwrap();
                let (first, second) = (
                    bytes[one.start..one.end].to_vec(),
                    bytes[two.start..two.end].to_vec(),
                );
                let (what, content, kind, at, seq) = match number % 24 {
                    10 => (
                        "two blocks swapped",
                        [second, first].concat(),
                        Kind::Reordered,
                        one.start,
                        one.first,
                    ),
                    11 => (
                        "a block removed",
                        second,
                        Kind::Missing,
                        one.start,
                        one.first,
                    ),
                    _ => (
                        "a block twice",
                        [first.clone(), first, second].concat(),
                        Kind::Reordered,
                        one.end,
                        two.first,
                    ),
                };
                bytes.splice(one.start..two.end, content);
                (
                    what,
                    files,
                    vec![is(&[kind], &one.file, (at, at), Some(seq))],
                )
            }
            13 => {
                let end = length(&any);
                let junk = (0..=random.below(200)).map(|_| random.next() as u8);
                files.get_mut(&segment_path(&any)).unwrap().extend(junk);
                let kinds = &[Kind::Changed, Kind::Truncated];
                (
                    "bytes added",
                    files,
                    vec![is(kinds, &any, (end, end), None)],
                )
            }
            14 => {
                files.insert(checkpoint_path(), self.notes[count].clone().into_bytes());
                let seq = Some(self.blocks[count].first);
                let found = is(&[Kind::RolledBack], "checkpoint", (0, 0), seq);
                ("an old checkpoint", files, vec![found])
            }
            15 => {
                let mut note = self.notes[40].clone().into_bytes();
                let at = random.below(note.len());
                note[at] ^= 1 << random.below(7);
                files.insert(checkpoint_path(), note);
                let kinds = &[Kind::Changed, Kind::AnotherKey];
                (
                    "a forged note",
                    files,
                    vec![is(kinds, "checkpoint", (0, 0), None)],
                )
            }
            16 => {
                files.remove(&checkpoint_path());
                let found = is(&[Kind::Unsigned], "checkpoint", (0, 0), None);
                ("a checkpoint removed", files, vec![found])
            }
            17 => (
                "the whole folder put back",
                self.after(count),
                vec![rolled_back(count)],
            ),
            18 => {
                // Whoever has the key signs what they have left.
                let files = self.forked(count, 0);
                ("cut off and signed again", files, vec![rolled_back(count)])
            }
            19 => {
                let other = load(&BTreeMap::new());
                let key = checkpoint::Key::open(&other, &state()).unwrap();
                let mut tree = Tree::default();
                for block in &self.blocks {
                    let bytes = &self.files[&segment_path(&block.file)];
                    let chain = &bytes[block.start + BLOCK_HEADER - 32..block.start + BLOCK_HEADER];
                    tree.push(chain.try_into().unwrap());
                }
                let public = checkpoint::PublicKey::parse(&self.key).unwrap();
                let last = public.verify(&self.notes[40]).unwrap().last_seq;
                key.publish(&other, &state(), &Checkpoint::of(&tree, last))
                    .unwrap();
                key.show(&other, &state()).unwrap();
                files.extend(unload(&other));
                let found = ["journal.pub", "checkpoint"]
                    .map(|file| is(&[Kind::AnotherKey], file, (0, 0), None));
                ("old entries under a new key", files, found.into())
            }
            20 => {
                let other = load(&BTreeMap::new());
                let key = checkpoint::Key::open(&other, &state()).unwrap();
                key.show(&other, &state()).unwrap();
                files.extend(unload(&other));
                let found = is(&[Kind::AnotherKey], "journal.pub", (0, 0), None);
                ("another key put beside it", files, vec![found])
            }
            21 => {
                // As long as the true one or longer, and signed with the true key.
                let files = self.forked(count, 40 - count + random.below(3));
                let since = Some(self.blocks[1].first);
                let found = is(&[Kind::Forked], "newest", (0, 0), since);
                ("another history, signed", files, vec![found])
            }
            22 => {
                let mut files = self.forked(count, 40 - count + random.below(3));
                files.insert(checkpoint_path(), self.notes[40].clone().into_bytes());
                let since = Some(self.blocks[1].first);
                let found = is(&[Kind::Forked], "checkpoint", (0, 0), since);
                (
                    "another history beside the true checkpoint",
                    files,
                    vec![found],
                )
            }
            _ => {
                let bytes = files.remove(&segment_path(&middle)).unwrap();
                let name = format!("{}.seg", Self::number(&middle));
                files.insert(segment_path(&name), bytes);
                let before = before(&middle);
                let end = length(&before);
                let missing = Some(Self::number(&middle));
                let found = vec![
                    is(&[Kind::Missing], &before, (end, end), missing),
                    is(&[Kind::Reordered], &name, (0, 0), None),
                ];
                ("a segment under another name", files, found)
            }
        }
    }
}

/// Closes it and lets go of it.
fn shut(journal: Journal) {
    journal.close();
    drop(journal);
}

fn is_found(expected: &Expected, problems: &[Problem]) -> bool {
    problems.iter().any(|problem| {
        let offset = problem.offset as usize;
        expected.kinds.contains(&problem.kind)
            && problem.file == expected.file
            && (expected.offset.0..=expected.offset.1).contains(&offset)
            && (expected.seq.is_none() || problem.seq == expected.seq)
    })
}

#[test]
fn whatever_is_done_to_it_is_found_and_where() {
    let sound = Sound::new();
    let elsewhere = [
        ("older".to_owned(), sound.notes[1].clone()),
        ("newest".to_owned(), sound.notes[40].clone()),
    ];
    let kept = Kept {
        key: Some(&sound.key),
        checkpoints: &elsewhere,
        ..Kept::default()
    };
    let problems = |disk: &Memory, kept: &Kept<'_>| {
        verify_on(disk, &state(), kept, |_, _| {}, |_| {})
            .unwrap()
            .problems
    };
    assert_eq!(problems(&load(&sound.files), &kept), []);
    let mut random = Random::new(1);
    let (mut without, mut refused) = (0, 0);
    let mut done: BTreeMap<&str, u32> = BTreeMap::new();
    const ATTACKS: usize = 960;
    for number in 0..ATTACKS {
        let (what, files, expected) = sound.attack(number, &mut random);
        let disk = load(&files);
        let found = problems(&disk, &kept);
        for expected in &expected {
            assert!(
                is_found(expected, &found),
                "{what} ({number}): {:?} of {} at {:?}, record {:?}, and said is {found:#?}",
                expected.kinds,
                expected.file,
                expected.offset,
                expected.seq
            );
        }
        *done.entry(what).or_default() += 1;
        without += usize::from(!problems(&disk, &Kept::default()).is_empty());
        refused += usize::from(Store::open(disk, state(), SEGMENT_BYTES).is_err());
    }
    println!(
        "{ATTACKS} of {ATTACKS} attacks found and located: {done:?}; {without} without anything kept elsewhere; the daemon's start refuses {refused}"
    );
}

#[test]
fn an_index_that_was_changed_is_found_and_made_anew() {
    let folder = folder();
    let journal = Journal::open(folder.path()).unwrap();
    for number in 0..20 {
        append(&journal, number % 5, &format!("record {number}"));
    }
    durable(&journal, 20);
    shut(journal);
    let index = folder.path().join("index");
    let look = || {
        verify(folder.path(), &Kept::default(), |_, _| {}, |_| {})
            .unwrap()
            .problems
    };
    assert_eq!(look(), []);
    let seal = folder.path().join("index.seal");
    let (database, sealed) = (
        fs::read(index.join("db")).unwrap(),
        fs::read(&seal).unwrap(),
    );
    let whole = super::all(folder.path()).len();
    // Nothing is written where nothing was wrong.
    Journal::open(folder.path()).unwrap().close();
    assert_eq!(super::all(folder.path()).len(), whole);
    let mut random = Random::new(4);
    for attempt in 0..24 {
        let database = fs::read(index.join("db")).unwrap_or_else(|_| database.clone());
        let mut changed = database.clone();
        let expected: &str = match attempt % 4 {
            0 | 1 => {
                let at = random.below(changed.len().min(4_096));
                changed[at] ^= 1 << random.below(8);
                fs::write(index.join("db"), changed).unwrap();
                "index/db"
            }
            2 => {
                changed.truncate(random.below(changed.len()));
                fs::write(index.join("db"), changed).unwrap();
                "index/db"
            }
            _ => {
                // An older one, with its own seal.
                fs::write(index.join("db"), &database).unwrap();
                fs::write(&seal, &sealed).unwrap();
                "index/"
            }
        };
        let found = look();
        assert!(
            found
                .iter()
                .any(|problem| problem.kind == Kind::Changed && problem.file.starts_with(expected)),
            "{attempt}: {found:?}"
        );
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.session(SessionId(3)).unwrap().len(), 4, "{attempt}");
        shut(journal);
        assert_eq!(look(), [], "{attempt}");
    }
    let said = super::all(folder.path());
    let said = said
        .iter()
        .filter(|record| format!("{:?}", record.event).contains("closed it"));
    assert!(said.count() >= 18, "each is on record");
}

#[test]
fn what_sled_fails_over_costs_no_answer() {
    let breaks: [fn(); 3] = [
        || panic!("as sled does on a damaged medium"),
        || std::thread::sleep(std::time::Duration::from_secs(15)),
        || {},
    ];
    for (number, how) in breaks.into_iter().enumerate() {
        let folder = folder();
        let journal = Journal::open(folder.path()).unwrap();
        for number in 0..20 {
            append(&journal, number % 5, &format!("record {number}"));
        }
        durable(&journal, 20);
        journal.shared.index.break_sled(how);
        assert_eq!(journal.session(SessionId(3)).unwrap().len(), 4, "{number}");
        let last = append(&journal, 3, "behind it");
        durable(&journal, last);
        assert_eq!(journal.session(SessionId(3)).unwrap().len(), 5, "{number}");
        shut(journal);
        Journal::open(folder.path()).unwrap().close();
        assert_eq!(super::problems(folder.path()), Vec::<String>::new());
    }
}

#[test]
fn an_index_that_is_older_newer_or_gone_is_made_anew() {
    let (one, other) = (folder(), folder());
    let fill = |place: &Path, count| {
        let journal = Journal::open(place).unwrap();
        for number in 0..count {
            append(&journal, number % 5, &format!("record {number}"));
        }
        shut(journal);
    };
    fill(one.path(), 10);
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to.join("index"));
        // Whoever is started stays in the cgroup that this process is in, which other tests remove.
        let _turn = crate::kernel::tests::turn();
        let status = std::process::Command::new("sh")
            .args(["-c", "cp -a \"$0/index\" \"$0/index.seal\" \"$1\""])
            .args([from, to])
            .status();
        assert!(status.unwrap().success());
    };
    copy(one.path(), other.path());
    let older = other;
    fill(one.path(), 10);
    let newer = folder();
    copy(one.path(), newer.path());
    // Older than the segments.
    copy(older.path(), one.path());
    let journal = Journal::open(one.path()).unwrap();
    assert_eq!(journal.session(SessionId(1)).unwrap().len(), 4);
    shut(journal);
    // Newer, without its seal; gone, with it.
    fs::remove_file(one.path().join("index.seal")).unwrap();
    let journal = Journal::open(one.path()).unwrap();
    assert_eq!(journal.session(SessionId(1)).unwrap().len(), 4);
    shut(journal);
    fs::remove_dir_all(one.path().join("index")).unwrap();
    let journal = Journal::open(one.path()).unwrap();
    assert_eq!(journal.session(SessionId(1)).unwrap().len(), 4);
    shut(journal);
}
