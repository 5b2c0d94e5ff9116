//! Records on their way from the process that carries sessions to the one that has the journal.
//!
//! They go through a mapped file: that costs a copy and no system call, and what is in it outlives both
//! processes. Whoever reads doesn't trust who writes: lengths and positions are checked, and what is decoded
//! is a copy.
//!
//! The file is a header and a ring of frames: length, bytes; each begins at a multiple of eight. Positions count
//! bytes since the file was made and never go back. A frame doesn't wrap: where it has no room before the
//! ring's end, a length of [`SKIP`] says that the next is at its start. The file takes as much of the disk as
//! was ever waiting at once.

use std::{
    fs::File,
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

use super::{
    disk::{Disk, Local},
    private,
};

/// The ring's size, in bytes: three of the largest messages.
const RING_BYTES: usize = 256 << 20;

/// The header's, so that the ring begins at a page.
const HEADER_BYTES: usize = 4_096;

/// What the file begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"icfeed 1");

/// Room that the disk gives at first.
const FIRST_BYTES: usize = 64 << 10;

/// Room that is asked of the disk at once from then on.
const STEP_BYTES: usize = 1 << 20;

/// Where the writer goes back to the ring's start as soon as nothing waits, so that a file that is mostly
/// empty stays in few pages.
const REWIND_BYTES: usize = 1 << 20;

/// A length that says that the next frame is at the ring's start.
const SKIP: u32 = u32::MAX;

/// Bytes of a frame's length, with what makes them eight.
const FRAME_BYTES: usize = 8;

/// How long to wait for a process of an earlier daemon that still has the file.
const BUSY: Duration = Duration::from_secs(5);

/// The file's name in the state folder.
const NAME: &str = "feed";

/// What both processes see.
#[repr(C)]
struct Header {
    magic: AtomicU64,
    /// Where the next frame will begin; the writer's.
    head: AtomicU64,
    /// Every frame before this is in the journal. The reader's, but for a writer that goes back to the start:
    /// it moves this first and then the head, when they are the same.
    tail: AtomicU64,
    /// Not zero: the journal takes no records.
    stopped: AtomicU32,
    /// Not zero: the reader waits to be woken.
    asleep: AtomicU32,
}

/// The mapped file.
#[derive(Debug)]
struct Ring {
    start: NonNull<u8>,
    file: File,
}

// SAFETY: the header is only reached by atomics; the frames between tail and head are the reader's, the rest is
// the writer's, and each of the two is one object that is `&mut` where it touches them.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    fn map(file: File) -> io::Result<Self> {
        let length =
            NonZeroUsize::new(HEADER_BYTES + RING_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel likes; the file is as long. Nobody makes it shorter: the
        // daemon doesn't, and the other process may not (its system calls are filtered).
        let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0)? };
        Ok(Self {
            start: start.cast(),
            file,
        })
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping begins with it, is aligned to a page and lives as long as `self`; all of it is
        // atomic.
        unsafe { self.start.cast::<Header>().as_ref() }
    }

    /// Where in the file the frame at `position` is.
    fn offset(position: u64) -> usize {
        HEADER_BYTES + usize::try_from(position % RING_BYTES as u64).unwrap_or(0)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is of this length, and nobody has a part of it.
        let _ = unsafe { munmap(self.start.cast(), HEADER_BYTES + RING_BYTES) };
    }
}

/// Where records come out.
#[derive(Debug)]
pub(crate) struct Outlet {
    ring: Ring,
    /// How far the reader has come: whoever writes could move back what both see.
    tail: u64,
}

/// What waits in a ring.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// Each frame, copied, and where it ends.
    pub(crate) frames: Vec<(Vec<u8>, u64)>,
    /// Where the last of them ends.
    pub(crate) end: u64,
}

/// A writer wrote what none would write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the records that wait aren't in order: {0}")]
pub(crate) struct Disorder(&'static str);

/// Frames that are read at once, in bytes: a lock is held meanwhile.
const READ_BYTES: usize = 4 << 20;

impl Outlet {
    /// Whether there is one in `directory`.
    pub(super) fn is_there(directory: &Path) -> bool {
        path(directory).exists()
    }

    /// Opens the file in `directory`, made if it isn't there, when no other process has it any more.
    ///
    /// # Errors
    /// Where it can't be made, or another process has it for seconds.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let file = private().open(path(directory))?;
        let since = Instant::now();
        // A process of a daemon that was killed may be about to end.
        while let Err(error) = file.try_lock() {
            if since.elapsed() > BUSY {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let length = (HEADER_BYTES + RING_BYTES) as u64;
        if file.metadata()?.len() != length {
            file.set_len(0)?;
            file.set_len(length)?;
        }
        // A mapping without room behind it ends the process where the disk is full.
        allocate(&file, 0, HEADER_BYTES + FIRST_BYTES)?;
        let mut outlet = Self {
            ring: Ring::map(file)?,
            tail: 0,
        };
        if outlet.ring.header().magic.swap(MAGIC, Ordering::AcqRel) == MAGIC {
            outlet.tail = outlet.ring.header().tail.load(Ordering::Acquire);
        } else {
            outlet.forget();
        }
        Ok(outlet)
    }

    /// The file, for the other process.
    ///
    /// # Errors
    /// Where there can't be one more descriptor.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.ring.file.try_clone()
    }

    /// Up to where everything is in the journal.
    pub(crate) const fn drained(&self) -> u64 {
        self.tail
    }

    /// What waits, oldest first, not all of it where it is much.
    ///
    /// # Errors
    /// Where the writer can't be trusted.
    pub(crate) fn peek(&mut self) -> Result<Fresh, Disorder> {
        let header = self.ring.header();
        let head = header.head.load(Ordering::Acquire);
        let mut at = self.tail.max(header.tail.load(Ordering::Acquire));
        if head < self.tail || !at.is_multiple_of(8) || !head.is_multiple_of(8) {
            return Err(Disorder("it goes back"));
        }
        if head.saturating_sub(at) > RING_BYTES as u64 {
            return Err(Disorder("there is more than there is room for"));
        }
        let mut frames = Vec::new();
        let mut bytes = 0;
        while at < head && bytes < READ_BYTES {
            let offset = Ring::offset(at);
            let room = HEADER_BYTES + RING_BYTES - offset;
            // SAFETY: within the mapping, as positions are multiples of eight; the writer could change it, so
            // it is read once.
            let length = unsafe { self.ring.start.add(offset).cast::<u32>().read_volatile() };
            if length == SKIP {
                at += room as u64;
                continue;
            }
            let length = length as usize;
            let end = at + (FRAME_BYTES + length).next_multiple_of(8) as u64;
            if FRAME_BYTES + length > room || end > head {
                if frames.is_empty() {
                    return Err(Disorder("a record is longer than what is there"));
                }
                // What is before it is in order.
                break;
            }
            let mut frame = vec![0; length];
            // SAFETY: source and target are of this length, and the target is new. The writer could change
            // the source meanwhile, which makes bytes that don't decode or another record of its own.
            unsafe {
                let body = self.ring.start.add(offset + FRAME_BYTES);
                std::ptr::copy_nonoverlapping(body.as_ptr(), frame.as_mut_ptr(), length);
            }
            bytes += length;
            frames.push((frame, end));
            at = end;
        }
        if at > head {
            return Err(Disorder("what is skipped isn't there"));
        }
        Ok(Fresh { frames, end: at })
    }

    /// Everything before `position` is in the journal.
    pub(crate) fn release(&mut self, position: u64) {
        // Behind nothing there is nothing new to say, and the writer may be going back to the start.
        if position > self.tail {
            self.pass(position);
            self.settle();
        }
    }

    /// Goes on to `position`; whoever opens the file the next time doesn't know yet.
    pub(super) const fn pass(&mut self, position: u64) {
        self.tail = position;
    }

    /// Has whoever opens the file the next time go on here, and nobody find there what was before.
    pub(crate) fn settle(&mut self) {
        let from = self.ring.header().tail.load(Ordering::Acquire);
        self.wipe(from);
        let tail = &self.ring.header().tail;
        tail.fetch_max(self.tail, Ordering::AcqRel);
    }

    /// Overwrites the frames from `at` to where the reader is: what is removed from the journal isn't to stay here.
    fn wipe(&mut self, mut at: u64) {
        while at < self.tail && at.is_multiple_of(8) {
            let offset = Ring::offset(at);
            let room = HEADER_BYTES + RING_BYTES - offset;
            let left = usize::try_from(self.tail - at).unwrap_or(usize::MAX);
            // SAFETY: within the mapping, as positions are multiples of eight.
            let length = unsafe { self.ring.start.add(offset).cast::<u32>().read_volatile() };
            let (used, whole) = match length {
                SKIP => (FRAME_BYTES, room),
                length => {
                    let used = FRAME_BYTES + length as usize;
                    (used, used.next_multiple_of(8))
                }
            };
            if used > room || whole > left {
                // Not what was read: the writer can't be trusted, and loses what it has there.
                return;
            }
            // SAFETY: `used` bytes from `offset` are within the mapping, and before the tail they are the reader's.
            unsafe { self.ring.start.add(offset).write_bytes(0, used) };
            at += whole as u64;
        }
    }

    /// Goes on to the position whose lower half is `position`, if it is before what waits.
    pub(super) fn skip_to(&mut self, position: u32) {
        let head = self.ring.header().head.load(Ordering::Acquire);
        let ahead = position.wrapping_sub(lower_half(self.tail));
        let there = self.tail + u64::from(ahead);
        if there <= head {
            self.release(there);
        }
    }

    /// Forgets whatever waits: nobody could make sense of it.
    pub(crate) fn forget(&self) {
        let header = self.ring.header();
        header.head.store(self.tail, Ordering::Release);
        header.tail.store(self.tail, Ordering::Release);
    }

    /// Whether anything waits.
    pub(crate) fn has_more(&self) -> bool {
        let header = self.ring.header();
        let tail = header.tail.load(Ordering::SeqCst).max(self.tail);
        header.head.load(Ordering::SeqCst) > tail
    }

    /// Bytes that wait.
    pub(crate) fn backlog(&self) -> u64 {
        let header = self.ring.header();
        header
            .head
            .load(Ordering::Acquire)
            .saturating_sub(self.tail)
    }

    /// Says whether the journal takes records.
    pub(crate) fn set_stopped(&self, stopped: bool) {
        self.ring
            .header()
            .stopped
            .store(stopped.into(), Ordering::Release);
    }

    /// Has the writer wake the reader, or not.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.ring
            .header()
            .asleep
            .store(asleep.into(), Ordering::SeqCst);
    }
}

/// Where records go in.
#[derive(Debug)]
pub(crate) struct Inlet {
    ring: Ring,
    /// Bytes of the ring that the disk has given.
    allocated: usize,
}

/// Why a record isn't taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// More waits than there is room for.
    Ring,
    /// The disk has none.
    Disk,
}

impl Inlet {
    /// The writer's end of `file`.
    ///
    /// # Errors
    /// Where it can't be mapped.
    pub(crate) fn of(file: File) -> io::Result<Self> {
        let ring = Ring::map(file)?;
        // A writer that was killed may have had it grow, or not have come to use it.
        Ok(Self {
            ring,
            allocated: FIRST_BYTES,
        })
    }

    /// Whether the journal takes no records.
    pub(crate) fn is_stopped(&self) -> bool {
        self.ring.header().stopped.load(Ordering::Acquire) != 0
    }

    /// Bytes that wait.
    pub(crate) fn backlog(&self) -> u64 {
        let header = self.ring.header();
        let tail = header.tail.load(Ordering::Acquire);
        header.head.load(Ordering::Relaxed).saturating_sub(tail)
    }

    /// Puts `record` in; its position, and whether the reader has to be woken.
    ///
    /// # Errors
    /// Where there is no room.
    pub(crate) fn push(&mut self, record: &[u8]) -> Result<(u64, bool), Full> {
        let Ok(length) = u32::try_from(record.len()) else {
            return Err(Full::Ring);
        };
        let needed = (FRAME_BYTES + record.len()).next_multiple_of(8);
        let header = self.ring.header();
        let mut at = header.head.load(Ordering::Relaxed);
        let tail = header.tail.load(Ordering::Acquire);
        let offset = Ring::offset(at);
        let room = HEADER_BYTES + RING_BYTES - offset;
        if at <= tail && offset - HEADER_BYTES >= REWIND_BYTES {
            at += room as u64;
            header.tail.store(at, Ordering::SeqCst);
            header.head.store(at, Ordering::SeqCst);
        } else {
            let skipped = if needed > room { room } else { 0 };
            let waiting = usize::try_from(at.saturating_sub(tail)).unwrap_or(RING_BYTES);
            if waiting + skipped + needed > RING_BYTES {
                return Err(Full::Ring);
            }
            if skipped > 0 {
                if !self.grow(offset - HEADER_BYTES + FRAME_BYTES) {
                    return Err(Full::Disk);
                }
                // SAFETY: a multiple of eight within the mapping, and the disk has given the page.
                unsafe {
                    self.ring
                        .start
                        .add(offset)
                        .cast::<u32>()
                        .write_volatile(SKIP)
                };
                at += skipped as u64;
            }
        }
        if needed > RING_BYTES {
            return Err(Full::Ring);
        }
        let offset = Ring::offset(at);
        if !self.grow(offset - HEADER_BYTES + needed) {
            return Err(Full::Disk);
        }
        // SAFETY: `needed` bytes from `offset` on are within the mapping and between head and tail, where the
        // reader doesn't read before the new head is there, which is written last.
        unsafe {
            let frame = self.ring.start.add(offset);
            frame.cast::<u32>().write_volatile(length);
            let body = frame.add(FRAME_BYTES);
            std::ptr::copy_nonoverlapping(record.as_ptr(), body.as_ptr(), record.len());
        }
        let end = at + needed as u64;
        let header = self.ring.header();
        header.head.store(end, Ordering::SeqCst);
        let wakes = header.asleep.load(Ordering::SeqCst) != 0
            && header.asleep.swap(0, Ordering::SeqCst) != 0;
        Ok((end, wakes))
    }

    /// Has the disk give `bytes` of the ring, if it hasn't yet.
    fn grow(&mut self, bytes: usize) -> bool {
        if bytes <= self.allocated {
            return true;
        }
        // Where the disk is nearly full, no more than what it takes.
        let targets = [STEP_BYTES, HEADER_BYTES];
        let grown = targets
            .map(|step| bytes.next_multiple_of(step).min(RING_BYTES))
            .into_iter()
            .find(|target| {
                let more = target - self.allocated;
                allocate(&self.ring.file, HEADER_BYTES + self.allocated, more).is_ok()
            });
        self.allocated = grown.unwrap_or(self.allocated);
        grown.is_some()
    }
}

fn allocate(file: impl AsFd, start: usize, bytes: usize) -> io::Result<()> {
    let number = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
    fallocate(file, FallocateFlags::empty(), number(start), number(bytes))?;
    Ok(())
}

fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// Removes the file in `directory`, which nobody writes to any more. What was in it was overwritten as it was taken.
///
/// # Errors
/// Where the disk fails.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    Local.remove_if_there(&path(directory))
}

/// What is kept of a position.
pub(super) const fn lower_half(position: u64) -> u32 {
    let [a, b, c, d, ..] = position.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::{Full, Inlet, Outlet, RING_BYTES, STEP_BYTES};

    fn both(folder: &std::path::Path) -> (Outlet, Inlet) {
        let outlet = Outlet::open(folder).unwrap();
        let inlet = Inlet::of(outlet.file().unwrap()).unwrap();
        (outlet, inlet)
    }

    fn taken(outlet: &mut Outlet) -> Vec<Vec<u8>> {
        let waiting = outlet.peek().unwrap();
        outlet.release(waiting.end);
        waiting.frames.into_iter().map(|(frame, _)| frame).collect()
    }

    #[test]
    fn what_goes_in_comes_out_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (mut outlet, mut inlet) = both(folder.path());
        assert!(!outlet.has_more() && taken(&mut outlet).is_empty());
        let mut expected = Vec::new();
        for round in 0..1_000_usize {
            // Lengths that meet the ring's end in every way.
            let record = vec![round as u8; round * 7_919 % 1_000_003];
            inlet.push(&record).unwrap();
            expected.push(record);
            if round % 3 == 0 {
                let some = taken(&mut outlet);
                assert_eq!(some, expected.drain(..some.len()).collect::<Vec<_>>());
            }
        }
        while outlet.has_more() {
            let some = taken(&mut outlet);
            assert_eq!(some, expected.drain(..some.len()).collect::<Vec<_>>());
        }
        assert!(expected.is_empty());
    }

    #[test]
    fn it_goes_round_and_round() {
        let folder = tempfile::tempdir().unwrap();
        let (mut outlet, mut inlet) = both(folder.path());
        let large = vec![7; RING_BYTES / 16];
        inlet.push(&large).unwrap();
        for _ in 0..64 {
            // One always waits, so that it never starts anew.
            inlet.push(&large).unwrap();
            taken(&mut outlet);
        }
        assert!(taken(&mut outlet) == [large] && !outlet.has_more());
    }

    #[test]
    fn a_file_that_is_mostly_empty_stays_small() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (mut outlet, mut inlet) = both(folder.path());
        for _ in 0..20_000 {
            inlet.push(&[1; 10_000]).unwrap();
            taken(&mut outlet);
        }
        let blocks = outlet.file().unwrap().metadata().unwrap().blocks();
        assert!(blocks * 512 <= 3 * STEP_BYTES as u64, "{blocks}");
    }

    #[test]
    fn what_has_no_room_is_refused_and_the_rest_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (mut outlet, mut inlet) = both(folder.path());
        assert_eq!(inlet.push(&vec![0; RING_BYTES]), Err(Full::Ring));
        let half = vec![1; RING_BYTES / 2 - 8];
        inlet.push(&half).unwrap();
        inlet.push(&half).unwrap();
        assert_eq!(inlet.push(b""), Err(Full::Ring));
        assert!(taken(&mut outlet) == [&*half]);
        inlet.push(b"small").unwrap();
        assert_eq!(taken(&mut outlet), [half]);
        assert_eq!(taken(&mut outlet), [b"small"]);
    }

    #[test]
    fn it_outlives_both_and_nobody_opens_it_twice() {
        let folder = tempfile::tempdir().unwrap();
        let (mut outlet, mut inlet) = both(folder.path());
        inlet.push(b"gone").unwrap();
        taken(&mut outlet);
        inlet.push(b"left").unwrap();
        drop(outlet);
        let path = folder.path().to_owned();
        // The writer still has it.
        let opening = std::thread::spawn(move || Outlet::open(&path).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!opening.is_finished());
        inlet.push(b"and more").unwrap();
        drop(inlet);
        let mut outlet = opening.join().unwrap();
        assert_eq!(taken(&mut outlet), [&b"left"[..], b"and more"]);
    }

    #[test]
    fn a_writer_that_lies_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feed");
        let (mut outlet, mut inlet) = both(folder.path());
        inlet.push(b"honest").unwrap();
        let whole = std::fs::read(&path).unwrap()[..8_192].to_vec();
        let write = |at: usize, value: &[u8]| {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&whole, 0).unwrap();
            file.write_all_at(value, at as u64).unwrap();
        };
        for (at, value) in [
            (8, u64::MAX),
            (8, 1 << 40),
            (8, 13),
            (16, 1 << 40),
            (4_096, 9),
            (4_096, 0xFFFF_FFFE),
            (4_096, 0xFFFF_FFFF),
            (4_096, u64::from(u32::MAX / 2)),
        ] {
            write(at, &value.to_le_bytes());
            outlet.peek().unwrap_err();
        }
        for place in 0..4_200 {
            write(place, &[0x55]);
            // Whatever it says, it neither panics nor goes astray.
            let _ = outlet.peek();
        }
    }
}
