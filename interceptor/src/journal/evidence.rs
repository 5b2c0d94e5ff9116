//! Evidence: sessions in a file of their own, with what proves that they are on record as they are there.
//!
//! The file is lines of JSON. The first has the journal's public key and a checkpoint that it signed. Every other is
//! a block that has a part of these sessions: that part as it stands in the journal, the hashes of the parts beside
//! it, which are somebody else's business, what the block's chain value is made of besides, and the proof that this
//! value is in the tree that was signed. So the file can be checked with the public key alone, by us or by whoever
//! knows SHA-256 and RFC 6962, and shows nothing of other sessions. Of sessions that are encrypted it has the keys as
//! well, which open nothing else, and which the parts are bound to. A part says the how manieth of its session it
//! is: none can be left out before the session's end.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, Read as _},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use interceptor_core::record::{Event, Record, SessionId};
use serde::{Deserialize, Serialize};

use super::{
    JournalError, Kind, Problem, Reader,
    block::{BLOCK_HEADER, BlockHeader, CHAINED, Hash, Layout, Part, Unreadable, Whose},
    checkpoint::{Bad, Checkpoint, PublicKey},
    cipher::ContentKey,
    encryption::Held,
    io_error,
    reader::Piece as Found,
    segment::Location,
    succession::{self, Rotation},
    tree::{Prover, root_of},
};

/// Version of the file's format.
const VERSION: u32 = 1;

/// Blocks that are proved at once: each takes some 700 bytes until it is written.
const BLOCKS_MAX: usize = 100_000;

/// Bytes of the longest line that is read: what a block of the largest size takes.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The first.
    Evidence {
        version: u32,
        /// The journal's public key, as a verifier key of C2SP's signed notes.
        key: String,
        /// The checkpoint that everything is proved against: a signed note.
        checkpoint: String,
        /// Whose sessions these are.
        sessions: Vec<SessionId>,
        /// Blocks of these sessions that are on record and that no checkpoint vouched for yet.
        unsigned_blocks: u64,
        /// How the key came to be in force: what the keys before it have signed, one behind the other.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        rotations: Vec<String>,
        /// What those of its sessions that are encrypted are read with.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        keys: BTreeMap<SessionId, Hexed>,
    },
    /// Every other.
    Block(Box<Shown>),
}

/// A block as far as it is shown.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shown {
    /// How many blocks are before it.
    index: u64,
    /// The chain's value before it.
    #[serde(with = "hex::serde")]
    before: Hash,
    /// Its header without the chain's value, which is its leaf in the tree.
    #[serde(with = "hex::serde")]
    header: [u8; CHAINED],
    parts: Vec<Piece>,
    /// RFC 6962's audit path.
    proof: Vec<Hexed>,
}

/// A part of a block.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Piece {
    /// One of another session: the SHA-256 of it.
    Sha256(Hexed),
    /// One that is shown: all of it, in base64.
    Bytes(String),
}

/// A hash in hexadecimal digits.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
struct Hexed(#[serde(with = "hex::serde")] Hash);

/// A block that is to be shown.
struct Chosen {
    location: Location,
    index: u64,
    before: Hash,
}

/// A checkpoint, and what it can be checked with.
#[derive(Debug)]
pub(super) struct Vouched {
    pub(super) key: PublicKey,
    pub(super) note: String,
    /// Statements of the keys before it.
    pub(super) rotations: Vec<String>,
}

/// Gives `take` the lines that prove `sessions` of the state folder that `reader` reads, against its own checkpoint;
/// see [`Reader::evidence`].
///
/// # Errors
/// Where it can't be read, or isn't what was signed.
pub fn evidence(
    reader: &Reader,
    sessions: &BTreeSet<SessionId>,
    places: Option<&BTreeSet<Location>>,
    take: impl FnMut(&[u8]) -> bool,
) -> Result<u64, JournalError> {
    let read = |name| {
        let path = reader.directory().join(name);
        std::fs::read_to_string(&path).map_err(io_error("reading", &path))
    };
    let text = read("journal.pub")?;
    let key = PublicKey::parse(&text).ok_or_else(|| JournalError::Key {
        path: reader.directory().join("journal.pub"),
        what: "it is not a public key of a journal".to_owned(),
    })?;
    let rotations = succession::beside(reader.directory());
    let note = read("checkpoint")?;
    // What shows the key is written last when another one follows.
    let signer = succession::follow(key.clone(), &rotations)
        .into_iter()
        .find(|key| key.is_named_in(&note));
    let vouched = Vouched {
        key: signer.unwrap_or(key),
        note,
        rotations,
    };
    reader.evidence(vouched, sessions, places, take)
}

impl Reader {
    /// Gives `take` the lines that prove `sessions` against the checkpoint that is `vouched`. `places` says which blocks have parts of them, where that is known; else every block is looked at. How many blocks are
    /// shown; `take` may end it by returning `false`.
    ///
    /// # Errors
    /// Where a segment can't be read, or isn't what was signed.
    pub(super) fn evidence(
        &self,
        vouched: Vouched,
        sessions: &BTreeSet<SessionId>,
        places: Option<&BTreeSet<Location>>,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<u64, JournalError> {
        let Vouched {
            key,
            note,
            rotations,
        } = vouched;
        let contradicted = |what: &str| JournalError::Contradicted {
            path: self.directory().to_owned(),
            what: what.to_owned(),
        };
        let checkpoint = key
            .verify(&note)
            .map_err(|bad| contradicted(&bad.to_string()))?;
        let is_erased = |session: &&SessionId| matches!(self.keys().of(**session), Held::Erased);
        if let Some(session) = sessions.iter().find(is_erased) {
            return Err(JournalError::Erased(*session));
        }
        let (mut prover, mut chosen) = (Prover::default(), Vec::new());
        let (mut index, mut before, mut unsigned_blocks) = (0, [0; 32], 0);
        self.each_piece(|piece| {
            let (location, header) = match piece {
                Found::Block(location, header) => (location, header),
                Found::Husk(husk) => {
                    for leaf in &husk.leaves {
                        prover.push(leaf, false);
                    }
                    index += husk.leaves.len() as u64;
                    before = husk.chain();
                    return Ok(true);
                }
            };
            let is_wanted = match places {
                Some(places) => places.contains(&location),
                None => self.has_part(location, sessions)?,
            };
            if index < checkpoint.size {
                prover.push(&header.chain, is_wanted);
                if is_wanted && chosen.len() >= BLOCKS_MAX {
                    return Err(JournalError::TooMuch(BLOCKS_MAX));
                }
                if is_wanted {
                    chosen.push(Chosen {
                        location,
                        index,
                        before,
                    });
                }
            } else {
                unsigned_blocks += u64::from(is_wanted);
            }
            index += 1;
            before = header.chain;
            Ok(true)
        })?;
        let (root, proofs) = prover.finish();
        if index < checkpoint.size || root != checkpoint.root {
            return Err(contradicted("its blocks are not those that were signed"));
        }
        let keys = self.keys_of(&chosen, sessions)?;
        let first = Line::Evidence {
            version: VERSION,
            key: key.to_text(),
            checkpoint: note,
            sessions: sessions.iter().copied().collect(),
            unsigned_blocks,
            rotations,
            keys,
        };
        let mut shown = 0;
        if !take(&encode(&first)) {
            return Ok(shown);
        }
        let mut begun = BTreeSet::new();
        for (chosen, proof) in chosen.into_iter().zip(proofs) {
            if !take(&encode(&self.shown(chosen, proof, sessions, &mut begun)?)) {
                break;
            }
            shown += 1;
        }
        Ok(shown)
    }

    /// The keys of those of `sessions` that have something encrypted in the `chosen` blocks.
    fn keys_of(
        &self,
        chosen: &[Chosen],
        sessions: &BTreeSet<SessionId>,
    ) -> Result<BTreeMap<SessionId, Hexed>, JournalError> {
        let mut found = BTreeMap::new();
        for chosen in chosen {
            self.of_block(chosen.location, |header, stored| {
                for part in header.parts(stored)? {
                    let Whose::Session(session) = part.whose else {
                        continue;
                    };
                    if part.sealed.is_none()
                        || !sessions.contains(&session)
                        || found.contains_key(&session)
                    {
                        continue;
                    }
                    let key = match self.keys().of(session) {
                        Held::Key(key) => Hexed(**key.secret()),
                        Held::Erased => return Err(Unreadable::Erased(session)),
                        Held::Locked => return Err(Unreadable::Locked(session)),
                    };
                    found.insert(session, key);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    fn has_part(
        &self,
        location: Location,
        sessions: &BTreeSet<SessionId>,
    ) -> Result<bool, JournalError> {
        self.of_block(location, |header, stored| {
            if let Layout::Whole(_) = header.layout {
                let records = header.records(stored, self.keys())?;
                let mut whose = records.iter().filter_map(|record| record.session);
                return Ok(whose.any(|session| sessions.contains(&session)));
            }
            let parts = header.parts(stored)?;
            Ok(parts.iter().any(|part| is_of(part, sessions)))
        })
    }

    fn shown(
        &self,
        chosen: Chosen,
        proof: Vec<Hash>,
        sessions: &BTreeSet<SessionId>,
        begun: &mut BTreeSet<SessionId>,
    ) -> Result<Line, JournalError> {
        let mut beheaded = None;
        let line = self.of_block(chosen.location, |header, stored| {
            if let Layout::Whole(_) = header.layout {
                return Err("an earlier version has put the records of all sessions together here, so these can't be shown without the others: give a copy of the state folder instead".into());
            }
            let parts = header.parts(stored)?;
            for part in &parts {
                if let Whose::Session(session) = part.whose
                    && sessions.contains(&session)
                    && begun.insert(session)
                    && part.nth > 0
                {
                    beheaded = Some(session);
                }
            }
            let parts = parts.iter().map(|part| match is_of(part, sessions) {
                true => Piece::Bytes(STANDARD.encode(part.bytes)),
                false => Piece::Sha256(Hexed(part.hash())),
            });
            Ok(Line::Block(Box::new(Shown {
                index: chosen.index,
                before: chosen.before,
                header: header.chained_bytes(),
                parts: parts.collect(),
                proof: proof.into_iter().map(Hexed).collect(),
            })))
        })?;
        beheaded.map_or(Ok(line), |session| Err(JournalError::Beheaded(session)))
    }
}

fn is_of(part: &Part<'_>, sessions: &BTreeSet<SessionId>) -> bool {
    matches!(part.whose, Whose::Session(session) if sessions.contains(&session))
}

fn encode(line: &Line) -> Vec<u8> {
    // Numbers, texts and lists of them: it can always be written.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// What an evidence file proves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Proved {
    /// Blocks that have something of its sessions.
    pub blocks: u64,
    /// Records of them.
    pub records: u64,
    /// The last record that the checkpoint in it vouches for, shown here or not.
    pub signed_up_to: Option<u64>,
    /// Blocks that were on record when it was made, and that no checkpoint vouched for.
    pub unsigned_blocks: u64,
    /// Its sessions.
    pub sessions: BTreeMap<SessionId, Extent>,
    /// What is wrong, in the order in which it was found; offsets are of lines.
    pub problems: Vec<Problem>,
}

/// How much of a session an evidence file has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Records.
    pub records: u64,
    /// Parts, which are all from the first on.
    pub parts: u32,
    /// It has ended; else it went on when the checkpoint was signed.
    pub ended: bool,
}

/// Checks the evidence in `file`, called `name`, with the public `key` that was kept elsewhere, or with the one in
/// it. `observe` is told each record that is proved, with its session's in order.
///
/// # Errors
/// Where the file can't be read; what it says is reported, not an error.
pub fn prove(
    file: &mut dyn BufRead,
    name: &str,
    key: Option<&str>,
    mut observe: impl FnMut(Record),
) -> io::Result<Proved> {
    let mut check = Check {
        proved: Proved::default(),
        name,
        offset: 0,
        signed: None,
        latest: None,
        keys: BTreeMap::new(),
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = file.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        match serde_json::from_slice(&line) {
            _ if line.last() != Some(&b'\n') => {
                check.problem(Kind::Truncated, None, "its last line is cut off");
            }
            Ok(Line::Evidence {
                version,
                key: own,
                checkpoint,
                sessions,
                unsigned_blocks,
                rotations,
                keys,
            }) if check.offset == 0 => {
                if version != VERSION {
                    check.problem(
                        Kind::Unreadable,
                        None,
                        &format!("it is of version {version}, this program knows {VERSION}"),
                    );
                    break;
                }
                check.begin(key, &own, (&checkpoint, &rotations));
                for (session, key) in keys {
                    check.keys.insert(session, ContentKey::new(key.0.into())?);
                }
                check.proved.unsigned_blocks = unsigned_blocks;
                let nothing = |session| (session, Extent::default());
                check.proved.sessions = sessions.into_iter().map(nothing).collect();
            }
            Ok(Line::Block(shown)) if check.offset > 0 => check.block(&shown, &mut observe),
            Ok(_) => check.problem(Kind::Reordered, None, "this line doesn't belong here"),
            Err(error) => {
                check.problem(
                    Kind::Changed,
                    None,
                    &format!("it is not a line of evidence: {error}"),
                );
                if check.offset == 0 {
                    break;
                }
            }
        }
        check.offset += read as u64;
    }
    if check.offset == 0 && check.proved.problems.is_empty() {
        check.problem(Kind::Truncated, None, "it is empty");
    }
    let missing: Vec<SessionId> = check
        .proved
        .sessions
        .iter()
        .filter(|(_, extent)| extent.parts == 0 && check.proved.unsigned_blocks == 0)
        .map(|(session, _)| *session)
        .collect();
    for session in missing {
        check.problem(
            Kind::Missing,
            None,
            &format!("it says that it has session {session}, and has nothing of it"),
        );
    }
    Ok(check.proved)
}

/// How far the check has come.
struct Check<'a> {
    proved: Proved,
    name: &'a str,
    offset: u64,
    signed: Option<Checkpoint>,
    /// The block before.
    latest: Option<u64>,
    /// What its sessions are read with, where they are encrypted.
    keys: BTreeMap<SessionId, ContentKey>,
}

impl Check<'_> {
    fn problem(&mut self, kind: Kind, seq: Option<u64>, what: &str) {
        self.proved.problems.push(Problem {
            kind,
            file: self.name.to_owned(),
            offset: self.offset,
            seq,
            what: what.to_owned(),
        });
    }

    fn begin(&mut self, kept: Option<&str>, own: &str, (note, rotations): (&str, &[String])) {
        let parsed = (PublicKey::parse(kept.unwrap_or(own)), PublicKey::parse(own));
        let (Some(kept), Some(own)) = parsed else {
            self.problem(Kind::Changed, None, "it has no public key of a journal");
            return;
        };
        let forged = rotations.iter().find_map(|note| Rotation::read(note).err());
        if let Some(what) = forged {
            let what =
                format!("a statement that its key was replaced is not what was signed: {what}");
            self.problem(Kind::Changed, None, &what);
        }
        // From the key that was kept on: each says which one follows.
        let keys = succession::follow(kept, rotations);
        let key = match keys.into_iter().find(|key| *key == own) {
            Some(key) => key,
            None => {
                self.problem(
                    Kind::AnotherKey,
                    None,
                    "its key is another one than the one that was kept elsewhere, and none that followed it; of a journal whose key was replaced since this was made an earlier key is needed",
                );
                return;
            }
        };
        match key.verify(note) {
            Ok(checkpoint) => {
                self.proved.signed_up_to = Some(checkpoint.last_seq);
                self.signed = Some(checkpoint);
            }
            Err(bad) => {
                let kind = match bad {
                    Bad::AnotherKey => Kind::AnotherKey,
                    Bad::Changed(_) => Kind::Changed,
                };
                self.problem(kind, None, &bad.to_string());
            }
        }
    }

    fn block(&mut self, shown: &Shown, observe: &mut impl FnMut(Record)) {
        let mut header = [0; BLOCK_HEADER];
        if let Some(place) = header.get_mut(..CHAINED) {
            place.copy_from_slice(&shown.header);
        }
        let header =
            BlockHeader::decode(&header).filter(|header| matches!(header.layout, Layout::Parts(_)));
        let Some(header) = header else {
            self.problem(Kind::Changed, None, "it has a header that is not a block's");
            return;
        };
        let seq = Some(header.first_seq);
        let mut bytes = Vec::new();
        for piece in &shown.parts {
            bytes.push(match piece {
                Piece::Sha256(hash) => Err(hash.0),
                Piece::Bytes(encoded) => match STANDARD.decode(encoded) {
                    Ok(bytes) => Ok(bytes),
                    Err(error) => {
                        let what = format!("a part of it is not base64: {error}");
                        self.problem(Kind::Changed, seq, &what);
                        return;
                    }
                },
            });
        }
        let hashes = bytes.iter().map(|piece| match piece {
            Ok(bytes) => super::block::sha256(&[bytes]),
            Err(hash) => *hash,
        });
        let chain = header.link(&shown.before, hashes);
        let proof: Vec<Hash> = shown.proof.iter().map(|hash| hash.0).collect();
        // Without a checkpoint nothing is proved, which has been said.
        let is_proved = self.signed.as_ref().is_none_or(|signed| {
            root_of(&chain, shown.index, signed.size, &proof) == Some(signed.root)
        });
        if !is_proved {
            let what = format!(
                "block {} is not in the journal that the checkpoint is of: it was changed, or is another's",
                shown.index
            );
            self.problem(Kind::Changed, seq, &what);
            return;
        }
        if self.latest.is_some_and(|latest| shown.index <= latest) {
            let what = format!("block {} stands too late, or twice", shown.index);
            self.problem(Kind::Reordered, seq, &what);
            return;
        }
        self.latest = Some(shown.index);
        self.proved.blocks += 1;
        for bytes in bytes.into_iter().filter_map(Result::ok) {
            self.part(&header, &bytes, observe);
        }
    }

    fn part(&mut self, header: &BlockHeader, bytes: &[u8], observe: &mut impl FnMut(Record)) {
        let seq = Some(header.first_seq);
        let part = Part::read(bytes);
        let Some((part, Whose::Session(session))) = part.map(|part| (part, part.whose)) else {
            self.problem(Kind::Changed, seq, "a part of it is not a session's");
            return;
        };
        let known = self.proved.sessions.get(&session).copied();
        let Some(mut extent) = known else {
            let what = format!("it shows session {session}, and doesn't say so");
            self.problem(Kind::Reordered, seq, &what);
            return;
        };
        if part.nth != extent.parts {
            let what = format!(
                "parts {} to {} of session {session} are missing before this one",
                extent.parts,
                part.nth.saturating_sub(1)
            );
            self.problem(Kind::Missing, seq, &what);
        }
        extent.parts = part.nth.saturating_add(1);
        match part.records_with(self.keys.get(&session)) {
            Err(what) => self.problem(Kind::Changed, seq, &what),
            Ok(records) => {
                extent.records += records.len() as u64;
                self.proved.records += records.len() as u64;
                for record in records {
                    extent.ended |= matches!(record.event, Event::SessionEnd(_));
                    observe(record);
                }
            }
        }
        self.proved.sessions.insert(session, extent);
    }
}
