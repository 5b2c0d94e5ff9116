//! Encryption at rest: the files that sessions' keys are in, and who is given one.
//!
//! `session.keys` is what all sessions' keys are derived from ([`KeyTree`]), encrypted with a key of the operator's: one
//! from elsewhere, or `encryption.key` beside it. When a session is erased its key is gone from `session.keys`: the new
//! one is on disk first, then the old one is overwritten, then the new one gets its name. So a start finds both, or one
//! of them whole, and never what was to be destroyed under a name that it no longer has.

use std::{
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
};

use aws_lc_rs::aead::NONCE_LEN;
use interceptor_core::record::SessionId;
use rustc_hash::FxHashMap;
use zeroize::Zeroizing;

use super::{
    JournalError,
    cipher::{self, ContentKey, KEY_BYTES, Secret, TAG_BYTES},
    disk::{Disk, blank, draft_of},
    io_error,
    keytree::KeyTree,
};
use crate::sync::{lock, read, write};

/// First bytes of `session.keys`; with its version.
const MAGIC: &[u8; 8] = b"ICPTKEY1";

/// Keys that are at hand; of others they are derived anew.
const RECENT_MAX: usize = 4_096;

/// Where what all sessions' keys are derived from is.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("session.keys")
}

pub(super) fn next_path(directory: &Path) -> PathBuf {
    directory.join("session.keys.next")
}

/// Where the key that opens it is, unless it is elsewhere.
fn beside(directory: &Path) -> PathBuf {
    directory.join("encryption.key")
}

/// What `session.keys` is encrypted with.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey(Secret);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// The key that `text` is: 64 hexadecimal digits, as `openssl rand -hex 32` prints them.
    ///
    /// # Errors
    /// Where it is none; for people, and without it.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let mut secret = Secret::default();
        match hex::decode_to_slice(text.trim_ascii(), &mut *secret) {
            Ok(()) => Ok(Self(secret)),
            Err(_) => Err("is not 64 hexadecimal digits; `openssl rand -hex 32` makes such a key"),
        }
    }

    /// Makes one in `directory`, where a journal begins to be encrypted.
    fn make<D: Disk>(disk: &D, directory: &Path) -> io::Result<Self> {
        let secret = cipher::random()?;
        let mut text = Zeroizing::new(vec![0; 2 * KEY_BYTES + 1]);
        if let Some((end, digits)) = text.split_last_mut() {
            hex::encode_to_slice(secret.as_slice(), digits).map_err(io::Error::other)?;
            *end = b'\n';
        }
        disk.replace(&beside(directory), &text)?;
        Ok(Self(secret))
    }

    /// The one in `directory`, if there is one.
    fn read<D: Disk>(disk: &D, directory: &Path) -> Result<Option<Self>, JournalError> {
        let path = beside(directory);
        match disk.read(&path).map(Zeroizing::new) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .map_err(|what| bad(&path, what)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }
}

/// How a journal is encrypted.
#[derive(Debug, Clone)]
pub enum Encryption {
    /// With a key beside it, made if there is none.
    Beside,
    /// With this one.
    With {
        /// The key.
        key: MasterKey,
        /// The one before, in whose place it comes where it hasn't yet.
        before: Option<MasterKey>,
    },
}

/// Whether there is a session's key.
#[derive(Debug, Clone)]
pub(super) enum Held {
    /// This one.
    Key(Arc<ContentKey>),
    /// It was destroyed.
    Erased,
    /// Nothing here opens what all keys are derived from.
    Locked,
}

/// The keys of all sessions of a journal.
pub(super) struct SessionKeys {
    known: RwLock<Option<Known>>,
    /// Keys that were derived.
    recent: Mutex<FxHashMap<SessionId, Arc<ContentKey>>>,
    /// Whether what is recorded from now on is encrypted.
    encrypts: bool,
}

struct Known {
    tree: KeyTree,
    id: Id,
    master: MasterKey,
    /// A key was destroyed here that is on disk still.
    is_ahead: bool,
}

/// What tells the keys of one journal from those of another.
type Id = [u8; 16];

/// What was found in a folder.
struct Found {
    tree: KeyTree,
    id: Id,
    /// It is what was to follow.
    is_next: bool,
}

impl Found {
    fn known(self, master: MasterKey) -> Known {
        Known {
            tree: self.tree,
            id: self.id,
            master,
            is_ahead: false,
        }
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys = f.debug_struct("SessionKeys");
        keys.field("encrypts", &self.encrypts)
            .finish_non_exhaustive()
    }
}

impl SessionKeys {
    fn new(known: Option<Known>, encrypts: bool) -> Self {
        Self {
            known: RwLock::new(known),
            recent: Mutex::default(),
            encrypts,
        }
    }

    /// Those of a journal that is in no folder.
    #[cfg(test)]
    pub(super) fn fresh() -> Arc<Self> {
        let master = MasterKey(cipher::random().unwrap());
        Arc::new(Self::new(Some(Known::fresh(master).unwrap()), true))
    }

    /// Forgets the key of `session`, in memory alone.
    #[cfg(test)]
    pub(super) fn forget(&self, session: SessionId) {
        write(&self.known).as_mut().unwrap().tree.erase(session, 1);
        lock(&self.recent).remove(&session);
    }

    /// None: what is encrypted stays so.
    pub(super) fn none() -> Arc<Self> {
        Arc::new(Self::new(None, false))
    }

    /// Those of the journal in `directory`, opened with `master` or what is beside it, to read what it has.
    ///
    /// # Errors
    /// Where they can't be read, or that key isn't theirs.
    pub(super) fn read<D: Disk>(
        disk: &D,
        directory: &Path,
        master: Option<&MasterKey>,
    ) -> Result<Arc<Self>, JournalError> {
        let master = match master {
            Some(master) => Some(master.clone()),
            None => MasterKey::read(disk, directory)?,
        };
        let Some(master) = master else {
            return Ok(Self::none());
        };
        let found = find(disk, directory, &master)?;
        let known = found.map(|found| found.known(master));
        Ok(Arc::new(Self::new(known, false)))
    }

    /// Those of the journal in `directory`, to go on with it: what an earlier daemon was interrupted at is done, and
    /// where it is to be encrypted from now on and never was, there are keys now.
    ///
    /// # Errors
    /// Where there are keys and nothing opens them, or the disk fails.
    pub(super) fn open<D: Disk>(
        disk: &D,
        directory: &Path,
        encryption: Option<&Encryption>,
    ) -> Result<Arc<Self>, JournalError> {
        let mut is_there = false;
        for path in [path(directory), next_path(directory)] {
            match disk.open(&path) {
                Ok(_) => is_there = true,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // What can't be read isn't gone: nothing takes its place.
                Err(error) => return Err(io_error("reading", &path)(error)),
            }
        }
        let encrypts = encryption.is_some();
        let before = match encryption {
            Some(Encryption::With { before, .. }) => before.as_ref(),
            _ => None,
        };
        let master = match encryption {
            Some(Encryption::With { key, .. }) => Some(key.clone()),
            _ => MasterKey::read(disk, directory)?,
        };
        let writing = |error| io_error("writing", &path(directory))(error);
        let known = match (master, is_there) {
            (None, false) if !encrypts => None,
            (None, true) => {
                return Err(bad(
                    &path(directory),
                    "it is what encrypted sessions are read with, and what opens it is missing: put encryption.key back, or name the key in the configuration, `journal: {encryption: {key: {file: …}}}`",
                ));
            }
            (Some(master), true) => {
                let (found, is_stale) = match (find(disk, directory, &master), before) {
                    (Err(_), Some(before)) => (find(disk, directory, before)?, true),
                    (found, _) => (found?, false),
                };
                let Some(found) = found else {
                    return Err(bad(
                        &next_path(directory),
                        "session.keys is gone, and this isn't what was to take its place, or the key for it is another one: put the file back from a backup",
                    ));
                };
                match found.is_next {
                    true => {
                        let next = next_path(directory);
                        // It is seen, and may not be on disk for good, where the other one is.
                        let settled = disk.read(&next).and_then(|bytes| {
                            prepare(disk, directory, &bytes)?;
                            take_over(disk, directory)
                        });
                        settled.map_err(writing)?;
                    }
                    false => discard(disk, directory).map_err(writing)?,
                }
                let known = found.known(master);
                if is_stale {
                    let written = known.encode().and_then(|bytes| {
                        prepare(disk, directory, &bytes)?;
                        take_over(disk, directory)
                    });
                    written.map_err(writing)?;
                }
                Some(known)
            }
            // A key that is beside it and was never used doesn't encrypt anything.
            (Some(_), false) if !encrypts => None,
            (master, false) => {
                let master = match master {
                    Some(master) => master,
                    None => MasterKey::make(disk, directory)
                        .map_err(io_error("writing", &beside(directory)))?,
                };
                let known = Known::fresh(master).map_err(writing)?;
                let bytes = known.encode().map_err(writing)?;
                disk.replace(&path(directory), &bytes).map_err(writing)?;
                Some(known)
            }
        };
        Ok(Arc::new(Self::new(known, encrypts)))
    }

    /// Whether what is recorded now is encrypted.
    pub(super) const fn encrypts(&self) -> bool {
        self.encrypts
    }

    /// Whether anything was ever encrypted, as far as is known here.
    pub(super) fn is_used(&self) -> bool {
        read(&self.known).is_some()
    }

    /// What tells these keys from another journal's.
    pub(super) fn id(&self) -> Option<String> {
        read(&self.known)
            .as_ref()
            .map(|known| hex::encode(known.id))
    }

    /// The key of `session`.
    pub(super) fn of(&self, session: SessionId) -> Held {
        if let Some(key) = lock(&self.recent).get(&session) {
            return Held::Key(key.clone());
        }
        let known = read(&self.known);
        let Some(known) = &*known else {
            return Held::Locked;
        };
        let Some(key) = known.tree.key(session).map(ContentKey::new) else {
            return Held::Erased;
        };
        let Ok(key) = key.map(Arc::new) else {
            return Held::Locked;
        };
        // While the tree can't change: what is erased meanwhile is forgotten here behind it.
        let mut recent = lock(&self.recent);
        if recent.len() >= RECENT_MAX {
            recent.clear();
        }
        recent.insert(session, key.clone());
        Held::Key(key)
    }

    /// The record that says that `session` is erased, by what is kept with the keys.
    pub(super) fn erased_by(&self, session: SessionId) -> Option<u64> {
        read(&self.known).as_ref()?.tree.erased_by(session)
    }

    /// Whether there is a key of `session`.
    pub(super) fn has(&self, session: SessionId) -> bool {
        let known = read(&self.known);
        known
            .as_ref()
            .is_some_and(|known| known.tree.key(session).is_some())
    }

    /// What to encrypt something of `session` with; `None` where nothing ever was. What comes of a session that was
    /// erased is for nobody to read.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub(super) fn to_encrypt(&self, session: SessionId) -> io::Result<Option<Arc<ContentKey>>> {
        match self.of(session) {
            Held::Key(key) => Ok(Some(key)),
            Held::Erased => ContentKey::fresh().map(Arc::new).map(Some),
            Held::Locked if self.encrypts => {
                Err(io::Error::other("there is no key to encrypt it with"))
            }
            Held::Locked => Ok(None),
        }
    }

    /// Destroys the key of `session`, of which record `seq` says that; whether there was one. Where the disk fails it may
    /// be destroyed or not, and the next call or start goes on with it.
    ///
    /// # Errors
    /// Where the disk fails.
    pub(super) fn erase<D: Disk>(
        &self,
        disk: &D,
        directory: &Path,
        (session, seq): (SessionId, u64),
    ) -> io::Result<bool> {
        let mut known = write(&self.known);
        let Some(own) = &mut *known else {
            return Ok(false);
        };
        own.is_ahead |= own.tree.erase(session, seq);
        lock(&self.recent).remove(&session);
        if !own.is_ahead {
            return Ok(false);
        }
        prepare(disk, directory, &own.encode()?)?;
        take_over(disk, directory)?;
        own.is_ahead = false;
        Ok(true)
    }
}

/// What is kept in `directory`, opened with `master`, and whether it is what was to follow.
fn find<D: Disk>(
    disk: &D,
    directory: &Path,
    master: &MasterKey,
) -> Result<Option<Found>, JournalError> {
    // Between looking at one and at the other the daemon may have put the one in the other's place.
    find_now(disk, directory, master).or_else(|_| find_now(disk, directory, master))
}

fn find_now<D: Disk>(
    disk: &D,
    directory: &Path,
    master: &MasterKey,
) -> Result<Option<Found>, JournalError> {
    let mut next: Option<Found> = None;
    for (path, is_next) in [(next_path(directory), true), (path(directory), false)] {
        let bytes = match disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        match decode(&bytes, master) {
            Some((tree, id)) if is_next => next = Some(Found { tree, id, is_next }),
            Some((_, id)) if next.as_ref().is_some_and(|next| next.id != id) => {
                return Err(bad(
                    &next_path(directory),
                    "it has the keys of another journal, and would take the place of this one's; take it away",
                ));
            }
            Some((tree, id)) => return Ok(Some(next.unwrap_or(Found { tree, id, is_next }))),
            // It wasn't there whole, so the one before is; or it is, and the one before is being overwritten.
            None if is_next || next.is_some() => {}
            None => {
                return Err(bad(
                    &path,
                    "it was changed, or the key for it is another one: name the key that the journal was encrypted with, or put the file back from a backup",
                ));
            }
        }
    }
    Ok(next)
}

/// Puts on disk what is to follow. What an attempt before has left is destroyed, once this is there in its place: it may
/// be all that there is.
fn prepare<D: Disk>(disk: &D, directory: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = next_path(directory);
    disk.overwrite(&draft_of(&next))?;
    let before = match disk.edit(&next) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        opened => Some(opened?),
    };
    disk.replace(&next, bytes)?;
    match before {
        Some(before) => blank(&before),
        None => Ok(()),
    }
}

/// Destroys what is there and gives its name to what follows: what a disk keeps of what was overwritten is beyond our
/// reach.
fn take_over<D: Disk>(disk: &D, directory: &Path) -> io::Result<()> {
    let (own, next) = (path(directory), next_path(directory));
    disk.overwrite(&own)?;
    disk.rename(&next, &own)?;
    disk.sync_folder(directory)
}

/// Destroys what never came to follow, and what was begun of it.
fn discard<D: Disk>(disk: &D, directory: &Path) -> io::Result<()> {
    let next = next_path(directory);
    for path in [draft_of(&next), next] {
        disk.overwrite(&path)?;
        disk.remove_if_there(&path)?;
    }
    Ok(())
}

impl Known {
    /// Keys that nobody had before.
    fn fresh(master: MasterKey) -> io::Result<Self> {
        let mut id = Id::default();
        for (place, byte) in id.iter_mut().zip(*cipher::random()?) {
            *place = byte;
        }
        Ok(Self {
            tree: KeyTree::fresh()?,
            id,
            master,
            is_ahead: false,
        })
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut content = self.tree.encode();
        let cipher = cipher::cipher(&self.master.0)?;
        let nonce = cipher::seal(&cipher, &beginning(&self.id), &mut content)?;
        Ok([&MAGIC[..], &self.id, &nonce, &content].concat())
    }
}

fn decode(bytes: &[u8], master: &MasterKey) -> Option<(KeyTree, Id)> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
    let cipher = cipher::cipher(&master.0).ok()?;
    let mut content = Zeroizing::new(vec![0; sealed.len().checked_sub(TAG_BYTES)?]);
    let is_whole =
        magic == MAGIC && cipher::open(&cipher, nonce, &beginning(id), sealed, &mut content);
    let tree = is_whole.then(|| KeyTree::decode(&content)).flatten()?;
    Some((tree, *id))
}

/// What a file with these keys begins with.
fn beginning(id: &Id) -> Vec<u8> {
    [&MAGIC[..], id].concat()
}

fn bad(path: &Path, what: &str) -> JournalError {
    JournalError::Encryption {
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::disk::Local;

    const ONE: SessionId = SessionId(0x8d3f_00a1_b2c4_e5f6);
    const OTHER: SessionId = SessionId(7);

    fn opened(directory: &Path, encryption: Option<&Encryption>) -> Arc<SessionKeys> {
        SessionKeys::open(&Local, directory, encryption).unwrap()
    }

    fn key(keys: &SessionKeys, session: SessionId) -> Option<Secret> {
        match keys.of(session) {
            Held::Key(key) => Some(key.secret().clone()),
            Held::Erased => None,
            Held::Locked => panic!("locked"),
        }
    }

    fn master(text: &str) -> MasterKey {
        MasterKey::parse(text.repeat(32).as_bytes()).unwrap()
    }

    #[test]
    fn keys_are_the_same_after_a_start_but_for_what_was_erased() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        assert!(!opened(directory, None).is_used());
        assert!(std::fs::read_dir(directory).unwrap().next().is_none());
        let keys = opened(directory, Some(&Encryption::Beside));
        let (one, other) = (key(&keys, ONE), key(&keys, OTHER));
        assert!(one.is_some() && other.is_some() && one != other);
        assert_eq!(key(&opened(directory, None), ONE), one);
        assert!(keys.erase(&Local, directory, (ONE, 9)).unwrap());
        assert!(!keys.erase(&Local, directory, (ONE, 9)).unwrap());
        for keys in [
            keys,
            opened(directory, Some(&Encryption::Beside)),
            SessionKeys::read(&Local, directory, None).unwrap(),
        ] {
            assert_eq!((key(&keys, ONE), key(&keys, OTHER)), (None, other.clone()));
        }
        // What comes late of one that was erased is encrypted, and nobody reads it.
        let keys = opened(directory, Some(&Encryption::Beside));
        let late = keys.to_encrypt(ONE).unwrap().unwrap();
        assert_ne!(Some(late.secret()), one.as_ref());
        let off = opened(directory, None);
        assert!(off.is_used() && !off.encrypts());
        assert!(SessionKeys::none().to_encrypt(OTHER).unwrap().is_none());
    }

    #[test]
    fn without_the_key_nothing_is_opened_and_nothing_begun() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        let (right, wrong) = (master("0a"), master("0b"));
        let with = |key: &MasterKey, before: Option<&MasterKey>| Encryption::With {
            key: key.clone(),
            before: before.cloned(),
        };
        let keys = opened(directory, Some(&with(&right, None)));
        assert!(!beside(directory).exists());
        let one = key(&keys, ONE);
        let whole = std::fs::read(path(directory)).unwrap();
        for encryption in [None, Some(Encryption::Beside)] {
            let error = SessionKeys::open(&Local, directory, encryption.as_ref()).unwrap_err();
            assert!(
                error.to_string().contains("what opens it is missing"),
                "{error}"
            );
        }
        let other = with(&wrong, None);
        let error = SessionKeys::open(&Local, directory, Some(&other)).unwrap_err();
        assert!(error.to_string().contains("is another one"), "{error}");
        SessionKeys::read(&Local, directory, Some(&wrong)).unwrap_err();
        let locked = SessionKeys::read(&Local, directory, None).unwrap();
        assert!(matches!(locked.of(ONE), Held::Locked));
        let read = SessionKeys::read(&Local, directory, Some(&right)).unwrap();
        assert_eq!(key(&read, ONE), one);
        assert_eq!(std::fs::read(path(directory)).unwrap(), whole);
        // One that takes the place of another, once and for all.
        let neither = with(&wrong, Some(&master("0c")));
        SessionKeys::open(&Local, directory, Some(&neither)).unwrap_err();
        for _ in 0..2 {
            let replaced = opened(directory, Some(&with(&wrong, Some(&right))));
            assert_eq!(key(&replaced, ONE), one);
            SessionKeys::read(&Local, directory, Some(&right)).unwrap_err();
        }
        let back = opened(directory, Some(&with(&right, Some(&wrong))));
        assert_eq!(key(&back, ONE), one);
        let whole = std::fs::read(path(directory)).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(path(directory), changed).unwrap();
            SessionKeys::read(&Local, directory, Some(&right)).unwrap_err();
        }
        for (text, is_key) in [
            ("0a".repeat(32), true),
            ("0a".repeat(31), false),
            ("zz".repeat(32), false),
        ] {
            assert_eq!(
                MasterKey::parse(format!("{text}\n").as_bytes()).is_ok(),
                is_key
            );
        }
    }

    #[test]
    fn an_erasure_that_was_interrupted_is_done_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        let keys = opened(directory, Some(&Encryption::Beside));
        let other = key(&keys, OTHER);
        let before = std::fs::read(path(directory)).unwrap();
        keys.erase(&Local, directory, (ONE, 9)).unwrap();
        let after = std::fs::read(path(directory)).unwrap();
        let dashes = vec![b'-'; before.len()];
        // What there may be of the old one and of the next, and whether the key is there then.
        let cases = [
            (&before, None, true),
            (&before, Some(&after[..100]), true),
            (&before, Some(&after[..]), false),
            (&dashes, Some(&after[..]), false),
            (&after, None, false),
        ];
        for (own, next, is_there) in cases {
            std::fs::write(path(directory), own).unwrap();
            if let Some(next) = next {
                std::fs::write(next_path(directory), next).unwrap();
            }
            // Whoever reads meanwhile sees what the next start sees.
            let read = SessionKeys::read(&Local, directory, None).unwrap();
            let keys = opened(directory, None);
            for keys in [read, keys] {
                assert_eq!(key(&keys, ONE).is_some(), is_there);
                assert_eq!(key(&keys, OTHER), other);
            }
            assert!(!next_path(directory).exists());
        }
        // Without the one before, what may be all that there is isn't destroyed for a key that doesn't open it.
        std::fs::rename(path(directory), next_path(directory)).unwrap();
        let wrong = Encryption::With {
            key: master("0b"),
            before: None,
        };
        SessionKeys::open(&Local, directory, Some(&wrong)).unwrap_err();
        assert_eq!(key(&opened(directory, None), OTHER), other);
    }
}
