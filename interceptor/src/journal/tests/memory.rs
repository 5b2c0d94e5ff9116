//! A disk in memory that fails as real ones do, always in the same way for the same seed.
//!
//! What is written is what whoever asks sees; what is on the medium is another thing until it is synced. When
//! the power fails any of the sectors that weren't synced may have got there, in any order, and any length that
//! the file had; of names each that was given or taken since their folder was synced, or none, or the first
//! few. A sector is written whole or not at all, but for the mode that tears one.
//!
//! A sync that fails leaves each sector on the medium or not, and forgets that it had to be written: the next
//! sync succeeds without it, as on Linux.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::super::disk::{Content, Disk};
use crate::sync::lock;

const SECTOR: usize = 512;

/// Numbers that look random, from a seed.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub(super) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Less than `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// True once in `times`.
    pub(super) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// EIO.
    Error,
    /// ENOSPC, before anything is written.
    Full,
    /// ENOSPC, after a part was written.
    Short,
    /// EROFS.
    ReadOnly,
}

/// When something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Never,
    /// The n-th operation from now on, counted from zero; all after it as well where it is to stay.
    Nth {
        left: usize,
        stays: bool,
    },
    /// One in so many.
    OneIn(usize),
}

/// How the power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process alone ends: the system has everything that was written.
    Kill,
    /// Nothing that wasn't synced is there.
    Nothing,
    /// Everything is there.
    Everything,
    /// Sectors up to some point are there, and a part of the next.
    Torn,
    /// Any of the sectors.
    Some,
    /// Any of the sectors, and rubbish in some others.
    Rubbish,
}

pub(super) const CRASHES: [Crash; 6] = [
    Crash::Kill,
    Crash::Nothing,
    Crash::Everything,
    Crash::Torn,
    Crash::Some,
    Crash::Rubbish,
];

#[derive(Debug, Clone, Default)]
struct Inode {
    /// What is seen.
    seen: Vec<u8>,
    /// What is on the medium.
    kept: Vec<u8>,
    /// Sectors that have to be written.
    dirty: BTreeSet<usize>,
}

impl Inode {
    /// The sector of what is seen goes to the medium.
    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.seen.len());
        if start >= end {
            return;
        }
        if self.kept.len() < end {
            self.kept.resize(end, 0);
        }
        self.kept[start..end].copy_from_slice(&self.seen[start..end]);
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / SECTOR..=(end - 1) / SECTOR);
        }
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector);
        }
        let length = self.seen.len();
        self.kept.resize(length, 0);
    }

    /// The sync fails: some of it is there, and nobody will write the rest.
    fn lose(&mut self, random: &mut Random) {
        for sector in std::mem::take(&mut self.dirty) {
            if random.once_in(2) {
                self.keep(sector);
            }
        }
        if random.once_in(2) {
            let length = self.seen.len();
            self.kept.resize(length, 0);
        }
    }

    fn crash(&mut self, how: Crash, random: &mut Random) {
        let dirty: Vec<usize> = std::mem::take(&mut self.dirty).into_iter().collect();
        let before = self.kept.len();
        match how {
            Crash::Kill => return,
            Crash::Nothing => {}
            Crash::Everything => dirty.iter().for_each(|sector| self.keep(*sector)),
            Crash::Torn => {
                let whole = random.below(dirty.len() + 1);
                dirty[..whole].iter().for_each(|sector| self.keep(*sector));
                if let Some(torn) = dirty.get(whole) {
                    let start = torn * SECTOR;
                    let end = (start + random.below(SECTOR)).min(self.seen.len());
                    // What was there before in this sector stays: a torn write is of new bytes.
                    let start = start.max(self.kept.len());
                    if start < end {
                        self.kept.resize(end, 0);
                        self.kept[start..end].copy_from_slice(&self.seen[start..end]);
                    }
                }
            }
            Crash::Some | Crash::Rubbish => {
                for sector in &dirty {
                    if random.once_in(2) {
                        self.keep(*sector);
                    }
                }
            }
        }
        // The length is any that it had, or what the sectors that are there say.
        let (kept, seen) = (self.kept.len(), self.seen.len());
        if how != Crash::Nothing && seen != kept {
            match random.below(3) {
                0 => self.kept.resize(seen, 0),
                1 if seen > kept => {
                    let length = kept + random.below(seen - kept);
                    self.kept.resize(length, 0);
                }
                _ => {}
            }
        }
        if how == Crash::Rubbish {
            // Only where nothing was synced: behind what was there before.
            for sector in &dirty {
                let start = (sector * SECTOR).max(before);
                let end = ((sector + 1) * SECTOR).min(self.kept.len());
                if random.once_in(3) && start < end {
                    for byte in &mut self.kept[start..end] {
                        *byte = random.next() as u8;
                    }
                }
            }
        }
        self.seen.clone_from(&self.kept);
    }
}

/// What became of a name.
#[derive(Debug, Clone)]
enum Naming {
    Given(PathBuf, usize),
    Taken(PathBuf),
    Changed(PathBuf, PathBuf, usize),
}

impl Naming {
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Given(path, _) | Self::Taken(path) | Self::Changed(path, ..) => path.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Given(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Taken(path) => {
                names.remove(path);
            }
            Self::Changed(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

#[derive(Debug)]
struct State {
    inodes: Vec<Inode>,
    /// Names as they are seen.
    seen: BTreeMap<PathBuf, usize>,
    /// Names on the medium.
    kept: BTreeMap<PathBuf, usize>,
    /// What became of names since their folders were synced.
    pending: Vec<Naming>,
    random: Random,
    when: When,
    fault: Fault,
    /// Faults so far.
    failed: usize,
    /// What failed last.
    last: &'static str,
    /// Bytes that there is room for.
    room: Option<usize>,
    /// A sync takes as long as somebody holds this.
    gate: Arc<Mutex<()>>,
}

/// The disk.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Mutex<State>>);

/// An open file.
#[derive(Debug)]
pub(super) struct Open {
    disk: Memory,
    inode: usize,
}

impl Memory {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            inodes: Vec::new(),
            seen: BTreeMap::new(),
            kept: BTreeMap::new(),
            pending: Vec::new(),
            random: Random::new(seed),
            when: When::Never,
            fault: Fault::Error,
            failed: 0,
            last: "",
            room: None,
            gate: Arc::default(),
        })))
    }

    /// What holds syncs up while it is locked.
    pub(super) fn gate(&self) -> Arc<Mutex<()>> {
        lock(&self.0).gate.clone()
    }

    /// Has operations fail from now on.
    pub(super) fn fail(&self, when: When, fault: Fault) {
        let mut state = lock(&self.0);
        state.when = when;
        state.fault = fault;
    }

    /// Gives it room for so many bytes, or as many as anybody wants.
    pub(super) fn give_room(&self, bytes: Option<usize>) {
        lock(&self.0).room = bytes;
    }

    /// Bytes that are seen.
    pub(super) fn used(&self) -> usize {
        lock(&self.0).used()
    }

    /// How many operations have failed, and which was the last.
    pub(super) fn failed(&self) -> (usize, &'static str) {
        let state = lock(&self.0);
        (state.failed, state.last)
    }

    /// What is there afterwards. Files that are open go on with what nobody sees any more.
    pub(super) fn crash(&self, how: Crash) -> Self {
        let mut state = lock(&self.0);
        let mut random = Random::new(state.random.next());
        let mut inodes = state.inodes.clone();
        for inode in &mut inodes {
            if how == Crash::Kill {
                continue;
            }
            inode.crash(how, &mut random);
        }
        let (seen, kept, pending) = if how == Crash::Kill {
            (
                state.seen.clone(),
                state.kept.clone(),
                state.pending.clone(),
            )
        } else {
            let mut names = state.kept.clone();
            let first = random.below(state.pending.len() + 1);
            for (index, naming) in state.pending.iter().enumerate() {
                let is_kept = match how {
                    Crash::Nothing | Crash::Kill => false,
                    Crash::Everything => true,
                    Crash::Torn => index < first,
                    Crash::Some | Crash::Rubbish => random.once_in(2),
                };
                if is_kept {
                    naming.apply(&mut names);
                }
            }
            (names.clone(), names, Vec::new())
        };
        Self(Arc::new(Mutex::new(State {
            inodes,
            seen,
            kept,
            pending,
            random,
            when: state.when,
            fault: state.fault,
            failed: state.failed,
            last: state.last,
            room: state.room,
            gate: Arc::default(),
        })))
    }

    fn with<T>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut State, Option<Fault>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = lock(&self.0);
        let fault = state.next_fault(what);
        work(&mut state, fault)
    }
}

impl State {
    fn used(&self) -> usize {
        let linked = self.seen.values();
        linked.map(|inode| self.inodes[*inode].seen.len()).sum()
    }

    fn next_fault(&mut self, what: &'static str) -> Option<Fault> {
        let fails = match &mut self.when {
            When::Never => false,
            When::Nth { left: 0, stays } => {
                if !*stays {
                    self.when = When::Never;
                }
                true
            }
            When::Nth { left, .. } => {
                *left -= 1;
                false
            }
            When::OneIn(times) => {
                let times = *times;
                self.random.once_in(times)
            }
        };
        // A full disk is read, and has nothing against what makes room; a disk that can't be written neither.
        let applies = match self.fault {
            Fault::Error => true,
            Fault::Full | Fault::Short => {
                matches!(what, "create" | "write" | "sync" | "rename" | "sync folder")
            }
            Fault::ReadOnly => !matches!(what, "open" | "length" | "read" | "list"),
        };
        if !fails || !applies {
            return None;
        }
        self.failed += 1;
        self.last = what;
        Some(self.fault)
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let found = self.seen.get(path).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn error(fault: Fault) -> io::Error {
    io::Error::from_raw_os_error(match fault {
        Fault::Error => libc::EIO,
        Fault::Full | Fault::Short => libc::ENOSPC,
        Fault::ReadOnly => libc::EROFS,
    })
}

fn stop_at(fault: Option<Fault>) -> io::Result<()> {
    fault.map_or(Ok(()), |fault| Err(error(fault)))
}

impl Disk for Memory {
    type File = Open;

    fn open(&self, path: &Path) -> io::Result<Open> {
        self.with("open", |state, fault| {
            stop_at(fault)?;
            let inode = state.find(path)?;
            Ok(Open {
                disk: self.clone(),
                inode,
            })
        })
    }

    fn edit(&self, path: &Path) -> io::Result<Open> {
        self.with("edit", |state, fault| {
            stop_at(fault)?;
            let inode = state.find(path)?;
            Ok(Open {
                disk: self.clone(),
                inode,
            })
        })
    }

    fn create(&self, path: &Path) -> io::Result<Open> {
        self.with("create", |state, fault| {
            stop_at(fault)?;
            if state.seen.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let inode = state.inodes.len();
            state.inodes.push(Inode::default());
            state.seen.insert(path.to_owned(), inode);
            state.pending.push(Naming::Given(path.to_owned(), inode));
            Ok(Open {
                disk: self.clone(),
                inode,
            })
        })
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.with("list", |state, fault| {
            stop_at(fault)?;
            let inside = state
                .seen
                .keys()
                .filter(|path| path.parent() == Some(folder));
            Ok(inside
                .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
                .collect())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with("rename", |state, fault| {
            stop_at(fault)?;
            let inode = state.find(from)?;
            let naming = Naming::Changed(from.to_owned(), to.to_owned(), inode);
            naming.apply(&mut state.seen);
            state.pending.push(naming);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with("remove", |state, fault| {
            stop_at(fault)?;
            state.find(path)?;
            let naming = Naming::Taken(path.to_owned());
            naming.apply(&mut state.seen);
            state.pending.push(naming);
            Ok(())
        })
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.with("sync folder", |state, fault| {
            let State {
                pending,
                kept,
                random,
                ..
            } = state;
            pending.retain(|naming| {
                if naming.folder() != Some(folder) {
                    return true;
                }
                // After a failure nobody will write it, whether it is there or not.
                if fault.is_none() || random.once_in(2) {
                    naming.apply(kept);
                }
                false
            });
            stop_at(fault)
        })
    }
}

impl Open {
    fn with<T>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut Inode, &mut Random, Option<Fault>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.disk.with(what, |state, fault| {
            let State { inodes, random, .. } = state;
            work(&mut inodes[self.inode], random, fault)
        })
    }
}

impl Content for Open {
    fn length(&self) -> io::Result<u64> {
        self.with("length", |inode, _, fault| {
            stop_at(fault)?;
            Ok(inode.seen.len() as u64)
        })
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.with("read", |inode, _, fault| {
            stop_at(fault)?;
            let start = offset as usize;
            let found = inode.seen.get(start..start + bytes.len());
            bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.with("write", |state, fault| {
            let end = offset as usize + bytes.len();
            let more = end.saturating_sub(state.inodes[self.inode].seen.len());
            let left = state.room.map(|room| room.saturating_sub(state.used()));
            let State { inodes, random, .. } = state;
            let inode = &mut inodes[self.inode];
            if let Some(left) = left.filter(|left| more > *left) {
                let fits = bytes.len() - (more - left);
                inode.write(&bytes[..fits], offset as usize);
                return Err(error(Fault::Full));
            }
            match fault {
                None => inode.write(bytes, offset as usize),
                Some(Fault::Full | Fault::ReadOnly) => {}
                Some(Fault::Short | Fault::Error) => {
                    let part = random.below(bytes.len() + 1);
                    inode.write(&bytes[..part], offset as usize);
                }
            }
            stop_at(fault)
        })
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.with("truncate", |inode, _, fault| {
            stop_at(fault)?;
            inode.seen.resize(length as usize, 0);
            let sectors = (length as usize).div_ceil(SECTOR);
            inode.dirty.retain(|sector| *sector < sectors);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        drop(lock(&self.disk.gate()));
        self.with("sync", |inode, random, fault| {
            match fault {
                None => inode.sync(),
                Some(_) => inode.lose(random),
            }
            stop_at(fault)
        })
    }
}
