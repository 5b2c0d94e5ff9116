//! Records that wait to be written, where they outlive the process.
//!
//! Records gather for some milliseconds before they are written as a block, while what they are about goes
//! on. A daemon that is killed meanwhile would leave deeds without a record. So they are put into a mapped
//! file as well: that costs a copy and no system call, and is the kernel's as soon as it is done. The next
//! start finds them there. It guards against the end of the process, not of the machine: what has to outlive
//! that waits for the disk ([`Journal::durable`](super::Journal::durable)).
//!
//! The file is a row of frames: generation, length, checksum, how far the feed had been drained, records. What
//! isn't of the file's own generation is what an earlier use left there.

use std::{
    fs::{self, File},
    io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::atomic::{Ordering, compiler_fence},
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

use super::{
    disk::{Disk, Local},
    feed, private,
};

/// Room for what gathers, in bytes: twice what makes the writer hurry, and a large record.
const BYTES: usize = 8 << 20;

/// The generation, at the beginning of the file.
const HEADER: usize = 8;

/// Generation and length of a frame, then its checksum and the lower half of a position in the feed; frames
/// begin at multiples of eight.
const FRAME: usize = 16;

/// There are two: one gathers while the other is written.
const NAMES: [&str; 2] = ["waiting-a", "waiting-b"];

/// What a start found in both and in the feed, until it is on disk where it belongs.
const LEFT: &str = "waiting-left";
/// The same until it is whole.
const DRAFT: &str = "waiting-left.new";

/// A mapped file, for one block at a time.
#[derive(Debug)]
pub(super) struct Spill {
    start: NonNull<u8>,
    generation: u32,
    length: usize,
}

// SAFETY: the mapping is nobody else's, and `&mut self` guards what is written.
unsafe impl Send for Spill {}

impl Spill {
    /// Both files of `directory`, empty.
    ///
    /// # Errors
    /// Where there is no room for them.
    pub(super) fn open(directory: &Path) -> io::Result<[Self; 2]> {
        let _ = fs::remove_file(directory.join(LEFT));
        let [a, b] = paths(directory);
        let opened = Self::open_one(&a).and_then(|a| Ok([a, Self::open_one(&b)?]));
        if opened.is_err() {
            // Half of the room is no use, and others need it.
            for path in [a, b] {
                let _ = fs::remove_file(path);
            }
        }
        opened
    }

    fn open_one(path: &Path) -> io::Result<Self> {
        let file = private().open(path)?;
        // What was in it is on disk elsewhere, and isn't to stay here.
        file.set_len(0)?;
        // Room on the disk that nobody takes: a mapping without it ends the process where the disk is full.
        let bytes = i64::try_from(BYTES).unwrap_or(i64::MAX);
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        let mut spill = Self {
            start: map(&file)?,
            generation: 0,
            length: HEADER,
        };
        spill.clear();
        Ok(spill)
    }

    /// Whether there is room for `bytes` of records.
    pub(super) const fn has_room(&self, bytes: usize) -> bool {
        (self.length + FRAME + bytes).next_multiple_of(8) <= BYTES
    }

    /// Keeps `records`, with which the feed is drained up to `drained`; whether there was room for them.
    pub(super) fn keep(&mut self, records: &[u8], drained: u32) -> bool {
        let end = (self.length + FRAME + records.len()).next_multiple_of(8);
        let Some(length) = u32::try_from(records.len()).ok().filter(|_| end <= BYTES) else {
            return false;
        };
        let checksum = checksum(records, drained);
        // SAFETY: `length` and `end` are within the mapping, `length` is a multiple of eight, and `records`
        // is none of it. The frame counts from the moment that its first word is there, which is written
        // last and at once.
        unsafe {
            let frame = self.start.add(self.length);
            let body = frame.add(FRAME);
            std::ptr::copy_nonoverlapping(records.as_ptr(), body.as_ptr(), records.len());
            frame.add(8).cast::<u32>().write_volatile(checksum);
            frame.add(12).cast::<u32>().write_volatile(drained);
            compiler_fence(Ordering::Release);
            let head = u64::from(self.generation) | u64::from(length) << 32;
            frame.cast::<u64>().write_volatile(head);
        }
        self.length = end;
        true
    }

    /// What is kept is on disk elsewhere, and isn't to stay here when it is removed there.
    pub(super) fn clear(&mut self) {
        self.generation = self.generation.wrapping_add(1).max(1);
        // SAFETY: the mapping begins with the generation, and is aligned to a page.
        unsafe { self.start.cast::<u32>().write_volatile(self.generation) };
        compiler_fence(Ordering::Release);
        // SAFETY: the frames end at `length`, which is within the mapping; none of them counts any more.
        unsafe { self.start.add(HEADER).write_bytes(0, self.length - HEADER) };
        self.length = HEADER;
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        // SAFETY: the mapping is of this length, and nobody has a part of it.
        let _ = unsafe { munmap(self.start.cast(), BYTES) };
    }
}

fn map(file: &File) -> io::Result<NonNull<u8>> {
    let length = NonZeroUsize::new(BYTES).ok_or(io::ErrorKind::InvalidInput)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, where the kernel likes; the file has as many bytes.
    let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0)? };
    Ok(start.cast())
}

fn paths(directory: &Path) -> [PathBuf; 2] {
    NAMES.map(|name| directory.join(name))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// Covers all that a frame says.
fn checksum(records: &[u8], drained: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(records);
    hasher.update(&drained.to_le_bytes());
    hasher.finalize()
}

/// What was kept at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// The records.
    pub(super) records: Vec<u8>,
    /// Up to where the feed was drained with them: the lower half of the position.
    pub(super) drained: u32,
}

/// What an earlier daemon kept in `directory`, in the order of the files.
///
/// # Errors
/// Where a file can't be read.
pub(super) fn kept(directory: &Path) -> io::Result<Vec<Frame>> {
    let mut all = Vec::new();
    frames(&read(&directory.join(LEFT))?, &mut all);
    for path in paths(directory) {
        frames(&read(&path)?, &mut all);
    }
    Ok(all)
}

/// Removes what waits in `directory`, which is on disk where it belongs.
///
/// # Errors
/// Where the disk fails.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let [a, b] = paths(directory);
    for path in [a, b, directory.join(LEFT), directory.join(DRAFT)] {
        Local.overwrite(&path)?;
        Local.remove_if_there(&path)?;
    }
    feed::remove(directory)
}

/// Keeps `frame` in a file of its own, however large it is.
///
/// # Errors
/// Where it can't be written.
pub(super) fn set_aside(directory: &Path, frame: &Frame) -> io::Result<()> {
    let length = u32::try_from(frame.records.len()).map_err(io::Error::other)?;
    let mut file = [0; HEADER].to_vec();
    let generation = 1_u32.to_le_bytes();
    if let Some(place) = file.first_chunk_mut() {
        *place = generation;
    }
    file.extend_from_slice(&generation);
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(&checksum(&frame.records, frame.drained).to_le_bytes());
    file.extend_from_slice(&frame.drained.to_le_bytes());
    file.extend_from_slice(&frame.records);
    let (path, draft) = (directory.join(LEFT), directory.join(DRAFT));
    let _ = fs::remove_file(&draft);
    let written = private()
        .open(&draft)
        .and_then(|draft| io::Write::write_all(&mut &draft, &file));
    written.and_then(|()| fs::rename(&draft, &path))
}

fn frames(file: &[u8], all: &mut Vec<Frame>) {
    let word = |at: usize| {
        let bytes = file.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let Some(generation) = word(0) else { return };
    let mut at = HEADER;
    while word(at) == Some(generation) {
        let (Some(length), Some(sum), Some(drained)) = (word(at + 4), word(at + 8), word(at + 12))
        else {
            return;
        };
        let body = at + FRAME;
        let end = body.saturating_add(length as usize);
        let Some(records) = file.get(body..end) else {
            return;
        };
        if checksum(records, drained) != sum {
            return;
        }
        all.push(Frame {
            records: records.to_vec(),
            drained,
        });
        at = end.next_multiple_of(8);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{BYTES, Frame, Spill, set_aside};

    fn kept(directory: &Path) -> std::io::Result<Vec<Vec<u8>>> {
        let frames = super::kept(directory)?;
        Ok(frames.into_iter().map(|frame| frame.records).collect())
    }

    #[test]
    fn what_is_set_aside_is_found_first_with_what_was_drained() {
        let folder = tempfile::tempdir().unwrap();
        let [mut a, _] = Spill::open(folder.path()).unwrap();
        let frame = |records: &[u8], drained| Frame {
            records: records.to_vec(),
            drained,
        };
        assert!(a.keep(b"kept", 7));
        set_aside(folder.path(), &frame(b"aside", 9)).unwrap();
        let expected = [frame(b"aside", 9), frame(b"kept", 7)];
        assert_eq!(super::kept(folder.path()).unwrap(), expected);
        Spill::open(folder.path()).unwrap();
        assert!(super::kept(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn what_is_kept_is_found_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        assert!(kept(folder.path()).unwrap().is_empty());
        let [mut a, mut b] = Spill::open(folder.path()).unwrap();
        assert!(kept(folder.path()).unwrap().is_empty());
        for text in ["one", "", "three and more"] {
            assert!(a.keep(text.as_bytes(), 0));
        }
        assert!(b.keep(b"four", 0));
        // As after SIGKILL: nothing is done in the end.
        let expected: [&[u8]; 4] = [b"one", b"", b"three and more", b"four"];
        assert_eq!(kept(folder.path()).unwrap(), expected);
        a.clear();
        assert_eq!(kept(folder.path()).unwrap(), [b"four"]);
        assert!(a.keep(b"5", 0));
        // What is behind it is of an earlier use.
        assert_eq!(kept(folder.path()).unwrap(), [&b"5"[..], b"four"]);
        drop((a, b));
        Spill::open(folder.path()).unwrap();
        assert!(kept(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn what_has_no_room_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let [mut a, _] = Spill::open(folder.path()).unwrap();
        assert!(!a.keep(&vec![0; BYTES], 0));
        assert!(a.keep(&vec![7; BYTES / 2], 0));
        assert!(!a.keep(&vec![7; BYTES / 2], 0));
        assert!(a.keep(b"small", 0));
        assert_eq!(kept(folder.path()).unwrap().len(), 2);
    }

    #[test]
    fn what_is_damaged_ends_what_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let [mut a, _] = Spill::open(folder.path()).unwrap();
        for text in ["one", "two", "three"] {
            a.keep(text.as_bytes(), 0);
        }
        drop(a);
        let path = folder.path().join("waiting-a");
        let whole = std::fs::read(&path).unwrap();
        for place in 0..100 {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x55;
            std::fs::write(&path, damaged).unwrap();
            let found = kept(folder.path()).unwrap();
            assert!(
                [&b"one"[..], b"two", b"three"]
                    .starts_with(&found.iter().map(Vec::as_slice).collect::<Vec<_>>()),
                "{place}: {found:?}"
            );
        }
    }
}
