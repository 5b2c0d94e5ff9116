//! Checks a journal offline: the chain through every byte, the records' numbers, the signed checkpoint.

use std::{fs, path::Path};

use interceptor_core::record::Record;
use serde::Serialize;

use super::{
    JournalError,
    checkpoint::{PublicKey, Tree},
    io_error,
    reader::read_block,
    segment::{self, SEGMENT_HEADER},
};

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Segments read.
    pub segments: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Records read.
    pub records: u64,
    /// The last record that a good checkpoint vouches for.
    pub signed_up_to: Option<u64>,
    /// What is wrong, in the order in which it was found.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Byte offset in it.
    pub offset: u64,
    /// Number of the first record that can't be trusted, where that can be told.
    pub seq: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// Checks the state folder `directory`, with the public key `key` (its text form) or else the folder's
/// own. `progress` is told the bytes checked so far and in all, `observe` every record that can be read.
///
/// # Errors
/// Where files can't be read; what they hold is reported, not an error.
pub fn verify(
    directory: &Path,
    key: Option<&str>,
    mut progress: impl FnMut(u64, u64),
    mut observe: impl FnMut(&Record),
) -> Result<Report, JournalError> {
    let mut report = Report::default();
    let numbers = segment::list(&super::disk::Local, directory)?;
    let sizes = numbers
        .iter()
        .map(|number| fs::metadata(segment::path(directory, *number)).map_or(0, |meta| meta.len()));
    let total: u64 = sizes.sum();
    let (mut done, mut chain, mut next_seq, mut tree) = (0, [0; 32], 1, Tree::default());
    let mut roots = vec![tree.root()];
    for number in numbers {
        let path = segment::path(directory, number);
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        report.segments += 1;
        let problem = |offset, seq, what: String| Problem {
            file: name.clone(),
            offset,
            seq: Some(seq),
            what,
        };
        let file = fs::File::open(&path).map_err(io_error("opening", &path))?;
        let Some(scanned) = segment::scan(&file).map_err(io_error("reading", &path))? else {
            report.problems.push(problem(
                0,
                next_seq,
                "its header is not a segment's".to_owned(),
            ));
            continue;
        };
        if number != scanned.first_seq
            || scanned.first_seq != next_seq
            || scanned.chain_before != chain
        {
            let what = format!(
                "it begins with record {} and should follow record {}: segments are missing, changed or in another order",
                scanned.first_seq,
                next_seq - 1
            );
            report.problems.push(problem(0, next_seq, what));
            // Go on from what it says itself, so that damage inside it is found as well.
            chain = scanned.chain_before;
            next_seq = scanned.first_seq;
        }
        for (offset, _) in &scanned.blocks {
            let Some((header, payload)) =
                read_block(&file, *offset).map_err(io_error("reading", &path))?
            else {
                break;
            };
            if !header.is_chained(&chain, &payload) {
                report.problems.push(problem(
                    *offset,
                    next_seq,
                    "a block was changed, or doesn't follow the one before it".to_owned(),
                ));
            }
            match segment::records(&header, &payload) {
                Ok(records) => {
                    report.records += records.len() as u64;
                    records.iter().for_each(&mut observe);
                    if header.first_seq != next_seq {
                        let what = format!(
                            "it begins with record {} where {next_seq} belongs",
                            header.first_seq
                        );
                        report.problems.push(problem(*offset, next_seq, what));
                    }
                }
                Err(what) => report.problems.push(problem(*offset, next_seq, what)),
            }
            next_seq = header.first_seq.saturating_add(u64::from(header.count));
            chain = header.chain;
            tree.push(&header.chain);
            roots.push(tree.root());
            report.blocks += 1;
            done += payload.len() as u64;
            progress(done, total);
        }
        if scanned.good < scanned.length {
            let what = format!(
                "{} bytes at its end are not a whole block",
                scanned.length - scanned.good
            );
            report.problems.push(problem(
                scanned.good.max(SEGMENT_HEADER as u64),
                next_seq,
                what,
            ));
        }
    }
    check_checkpoint(directory, key, &roots, &mut report)?;
    Ok(report)
}

fn check_checkpoint(
    directory: &Path,
    key: Option<&str>,
    roots: &[[u8; 32]],
    report: &mut Report,
) -> Result<(), JournalError> {
    let mut problem = |file: &str, what: String| {
        report.problems.push(Problem {
            file: file.to_owned(),
            offset: 0,
            seq: None,
            what,
        });
    };
    let path = directory.join("journal.pub");
    let text = match key {
        Some(key) => key.to_owned(),
        None => match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                problem(
                    "journal.pub",
                    format!("the public key can't be read: {error}"),
                );
                return Ok(());
            }
        },
    };
    let Some(key) = PublicKey::parse(&text) else {
        problem(
            "journal.pub",
            "it is not a public key of a journal".to_owned(),
        );
        return Ok(());
    };
    let path = directory.join("checkpoint");
    let note = match fs::read_to_string(&path) {
        Ok(note) => note,
        // A journal without blocks has nothing to sign yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && report.blocks == 0 => {
            return Ok(());
        }
        Err(error) => {
            problem(
                "checkpoint",
                format!("it can't be read, so nothing vouches for the journal: {error}"),
            );
            return Ok(());
        }
    };
    match key.verify(&note) {
        Err(what) => problem("checkpoint", what),
        Ok(checkpoint) => match usize::try_from(checkpoint.size)
            .ok()
            .and_then(|size| roots.get(size))
        {
            None => problem(
                "checkpoint",
                format!(
                    "it vouches for {} blocks up to record {}, but only {} are there: the journal was cut off or rolled back",
                    checkpoint.size,
                    checkpoint.last_seq,
                    roots.len() - 1
                ),
            ),
            Some(root) if *root != checkpoint.root => {
                problem(
                    "checkpoint",
                    "the blocks are not those that it was signed for".to_owned(),
                );
            }
            Some(_) => report.signed_up_to = Some(checkpoint.last_seq),
        },
    }
    Ok(())
}
