//! `interceptor verify`: whether a journal is what was recorded.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufReader, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use aws_lc_rs::digest;
use interceptor_core::record::Record;

use super::{
    Context, Outcome,
    display::{Style, count, inert, paint, print, size},
    failed::{Failed, code},
    offline,
    progress::Progress,
};
use crate::{
    approval::Consents,
    books::{Account, Ledger},
    control::Status,
    journal::{self, Kept, Kind, Manifest, Problem, Proved, Report},
};

/// Check that a journal is what was recorded, and that every connect is accounted for
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status 5 where it isn't, 3 where it is and connects are not accounted for. Examples:
  interceptor verify
  interceptor verify /path/to/copy --key journal.pub
  interceptor verify session.evidence --key journal.pub
  interceptor verify report.html.manifest --key journal.pub
  interceptor verify --checkpoint /elsewhere/monday --checkpoint /elsewhere/tuesday"
)]
pub(super) struct Arguments {
    /// A state folder, a copy of one, or an evidence file of some sessions, or the manifest
    /// of an exported file [default: this host's journal]
    path: Option<PathBuf>,
    /// The public key to check signatures with, kept apart from the journal: the one in force or an
    /// earlier one, from which on the records of rotations lead to it [default: the journal's own, which
    /// whoever rewrites all of it could replace]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A copy of the journal's file `checkpoint` that was kept apart from it: shows whether the journal
    /// was put back to an earlier time or replaced by another history, which one who may sign can do.
    /// Several narrow down since when
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
}

/// A block that the daemon is just writing looks cut off; the next look finds it whole.
const LOOKS: u32 = 3;

/// Time between two looks: more than the daemon takes from a block to its checkpoint.
const PAUSE: Duration = Duration::from_millis(300);

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let folder = match &arguments.path {
        Some(path) => path.clone(),
        // The daemon knows best where its journal is; without one the configuration does, unless a
        // certain daemon was meant.
        None => match context.client.get::<Status>("/v1/status") {
            Ok(status) => status.journal.path,
            Err(failed) if context.control_given => return Err(failed),
            Err(_) => context.config.state.clone(),
        },
    };
    let is_file = folder.is_file();
    if !is_file {
        offline::is_state(&folder)?;
    }
    let key = arguments
        .key
        .as_ref()
        .map(|path| {
            fs::read_to_string(path).map_err(|error| {
                Failed::because(format!(
                    "the public key {} can't be read: {error}",
                    path.display()
                ))
            })
        })
        .transpose()?;
    if is_file {
        if !arguments.checkpoints.is_empty() {
            return Err(Failed::because(
                "an evidence file is checked against the checkpoint in it, not against others",
            )
            .with_remedy("check the journal itself with --checkpoint"));
        }
        return match is_manifest(&folder) {
            true => manifest(context, &folder, key.as_deref()),
            false => evidence(context, &folder, key.as_deref()),
        };
    }
    let checkpoints: Vec<(String, String)> = arguments
        .checkpoints
        .iter()
        .map(|path| {
            let note = fs::read(path).map_err(|error| {
                Failed::because(format!(
                    "the checkpoint {} can't be read: {error}",
                    path.display()
                ))
            })?;
            let kept = String::from_utf8_lossy(&note);
            let name = path.display().to_string();
            // A file that is no note is one that was changed.
            let notes = match journal::notes(&kept) {
                notes if notes.is_empty() => vec![kept.into_owned()],
                notes => notes,
            };
            let notes = notes.into_iter().map(|note| (name.clone(), note));
            Ok(notes.collect())
        })
        .collect::<Result<Vec<Vec<_>>, Failed>>()?
        .concat();
    let master = offline::master(context, &folder)?;
    let kept = Kept {
        key: key.as_deref(),
        checkpoints: &checkpoints,
        encryption_key: master.as_ref(),
    };
    let mut checked = look(&folder, &kept)?;
    for _ in 1..LOOKS {
        if checked.report.problems.is_empty() && checked.unaccounted == 0 {
            break;
        }
        std::thread::sleep(PAUSE);
        let again = look(&folder, &kept)?;
        // What nobody is writing to stays as bad as it is.
        let unchanged = again == checked;
        checked = again;
        if unchanged {
            break;
        }
    }
    if context.is_json() {
        context.print_json(&checked)?;
    } else {
        print(&text(&checked.report, &folder, context.color))?;
        print(&completeness(&checked.connects, context.color))?;
        if checked.consents > 0 {
            let signed = count(checked.consents, "approval");
            print(&format!(
                "{}: {signed} signed by security keys, each over exactly what it is for\n",
                paint(Style::Good, "consented", context.color)
            ))?;
        }
    }
    Ok(match (&*checked.report.problems, checked.unaccounted) {
        ([], 0) => ExitCode::SUCCESS,
        ([], _) => ExitCode::from(code::DEGRADED),
        _ => ExitCode::from(code::INTEGRITY),
    })
}

/// Whether the file at `path` begins as a manifest does.
fn is_manifest(path: &Path) -> bool {
    let mut start = [0; 32];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut start));
    read.is_ok_and(|read| Manifest::is_one(start.get(..read).unwrap_or_default()))
}

/// What became of the file that a manifest is of.
#[derive(Debug, serde::Serialize)]
struct Held {
    #[serde(flatten)]
    manifest: Manifest,
    /// The file beside it.
    file: PathBuf,
    /// It is what the manifest says.
    intact: bool,
}

/// Checks the manifest at `path` and the file that it is of.
fn manifest(context: &Context, path: &Path, key: Option<&str>) -> Outcome {
    let unreadable = |path: &Path, error: io::Error| {
        Failed::because(format!("{} can't be read: {error}", path.display()))
    };
    let Some(key) = key else {
        return Err(
            Failed::because("a manifest doesn't say with which key it is signed")
                .with_remedy("give the journal's (journal.pub of its state folder) with --key"),
        );
    };
    let note = fs::read_to_string(path).map_err(|error| unreadable(path, error))?;
    let manifest = match Manifest::verify(&note, key) {
        Ok(manifest) => manifest,
        Err(what) => {
            print(&format!(
                "{}: {}: {what}\n",
                paint(Style::Bad, "NOT PROVED", context.color),
                inert(&path.to_string_lossy())
            ))?;
            return Ok(ExitCode::from(code::INTEGRITY));
        }
    };
    let file = path.with_extension("");
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut open = fs::File::open(&file).map_err(|error| {
        unreadable(&file, error).with_remedy("put the exported file beside its manifest")
    })?;
    let mut part = vec![0; 1 << 20];
    loop {
        match open
            .read(&mut part)
            .map_err(|error| unreadable(&file, error))?
        {
            0 => break,
            read => hash.update(part.get(..read).unwrap_or_default()),
        }
    }
    let intact = hash.finish().as_ref() == manifest.made.sha256;
    let held = Held {
        manifest,
        file,
        intact,
    };
    if context.is_json() {
        context.print_json(&held)?;
    } else {
        let (manifest, made) = (&held.manifest, &held.manifest.made);
        let verdict = match intact {
            true => paint(Style::Good, "as it was made", context.color),
            false => paint(Style::Bad, "NOT AS IT WAS MADE", context.color),
        };
        print(&format!(
            "{verdict}: {}: {} of {}, made by {} on {} at {}, when the journal was signed up to record {}\n",
            inert(&held.file.to_string_lossy()),
            inert(&made.format),
            inert(&made.asked),
            inert(&manifest.by),
            inert(&manifest.host),
            manifest.time,
            manifest.signed_up_to,
        ))?;
    }
    Ok(match intact {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(code::INTEGRITY),
    })
}

/// Checks an evidence file.
fn evidence(context: &Context, path: &Path, key: Option<&str>) -> Outcome {
    let unreadable = |error| Failed::because(format!("{} can't be read: {error}", path.display()));
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut consents = Consents::default();
    let observe = |record: Record| consents.observe(&record);
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut proved =
        journal::prove(&mut BufReader::new(file), &name, key, observe).map_err(unreadable)?;
    proved
        .problems
        .extend(consents.bad.into_iter().map(unproven));
    if context.is_json() {
        context.print_json(&proved)?;
    } else {
        print(&told(&proved, path, key.is_some(), context.color))?;
    }
    Ok(match proved.problems.as_slice() {
        [] => ExitCode::SUCCESS,
        _ => ExitCode::from(code::INTEGRITY),
    })
}

/// What an evidence file proves, for people.
fn told(proved: &Proved, path: &Path, key_was_kept: bool, color: bool) -> String {
    let what = format!(
        "{} in {}",
        count(proved.records, "record"),
        count(proved.blocks, "block")
    );
    let path = path.to_string_lossy();
    let path = inert(&path);
    let mut out = if proved.problems.is_empty() {
        let signed = proved.signed_up_to.unwrap_or_default();
        format!(
            "{}: {path}: {what}, all in the journal that was signed up to record {signed}\n",
            paint(Style::Good, "proved", color)
        )
    } else {
        format!(
            "{}: {path}: {} in {what}\n",
            paint(Style::Bad, "NOT PROVED", color),
            count(proved.problems.len() as u64, "problem"),
        )
    };
    for problem in &proved.problems {
        tell(&mut out, problem);
    }
    for (session, extent) in &proved.sessions {
        let records = count(extent.records, "record");
        let until = match extent.ended {
            true => "from start to end",
            false => "from its start; it had not ended when this was signed",
        };
        // Writing to a string can't fail.
        _ = writeln!(out, "  session {session}: {records}, {until}");
    }
    if proved.unsigned_blocks > 0 {
        let more = count(proved.unsigned_blocks, "block");
        _ = writeln!(
            out,
            "{more} of these sessions had been written and not been signed yet; export them again for the rest."
        );
    }
    if !key_was_kept {
        out.push_str("The key is the file's own: give the journal's (journal.pub) with --key to know whose journal it is.\n");
    }
    out
}

/// A signature on record that isn't for what it is said to be for.
fn unproven((seq, what): (u64, String)) -> Problem {
    Problem {
        kind: Kind::Unproven,
        file: "records".to_owned(),
        offset: 0,
        seq: Some(seq),
        what,
    }
}

/// What a look found.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
struct Checked {
    #[serde(flatten)]
    report: Report,
    /// What became of each agent's connects.
    connects: Vec<Account>,
    /// How many of them nothing accounts for.
    unaccounted: u64,
    /// How many approvals security keys have signed.
    consents: u64,
}

fn look(folder: &Path, kept: &Kept<'_>) -> Result<Checked, Failed> {
    let (mut ledger, mut consents) = (Ledger::default(), Consents::default());
    let observe = |record: &Record| {
        ledger.observe(record);
        consents.observe(record);
    };
    let mut progress = Progress::new();
    let tell = |done, all| progress.tell(|| format!("{} of {} checked", size(done), size(all)));
    let report = journal::verify(folder, kept, tell, observe);
    drop(progress);
    let mut report = report.map_err(Failed::because)?;
    report
        .problems
        .extend(consents.bad.into_iter().map(unproven));
    let connects = ledger.accounts().to_vec();
    Ok(Checked {
        report,
        unaccounted: connects.iter().map(Account::unaccounted).sum(),
        connects,
        consents: consents.good,
    })
}

/// Whether what the kernel counted is on record; empty where it has counted nothing.
fn completeness(connects: &[Account], color: bool) -> String {
    let sum = |of: fn(&Account) -> u64| connects.iter().map(of).sum::<u64>();
    let redirected = sum(|account| account.connects.redirected);
    if connects.is_empty() {
        return String::new();
    }
    let unaccounted = sum(Account::unaccounted);
    if unaccounted == 0 {
        // A daemon that runs puts its count on record less often than sessions.
        let newer = sum(Account::not_counted_yet);
        let parts = [
            (
                sum(|account| account.sessions).saturating_sub(newer),
                "on record",
            ),
            (sum(|account| account.turned_away), "turned away"),
            (sum(|account| account.connects.lost), "refused unread"),
            (sum(|account| account.cut_off), "cut off"),
            (sum(|account| account.connects.given_up), "given up"),
            (sum(|account| account.connects.waiting), "waiting"),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{number} {what}"))
            .collect();
        return format!(
            "{}: every connect is accounted for: {} redirected{}{}{}\n",
            paint(Style::Good, "complete", color),
            redirected,
            if parts.is_empty() { "" } else { ": " },
            parts.join(", "),
            match newer {
                0 => String::new(),
                newer => format!("; {} since the last count", count(newer, "session")),
            }
        );
    }
    let mut out = format!(
        "{}: {} not accounted for, of {redirected} redirected\n",
        paint(Style::Bad, "NOT COMPLETE", color),
        count(unaccounted, "connect"),
    );
    for account in connects.iter().filter(|account| account.unaccounted() > 0) {
        // Writing to a string can't fail.
        _ = writeln!(
            out,
            "  agent {}: {} taken by the proxy, {} on record, {} turned away, {} cut off; {} unknown to the kernel",
            inert(&account.agent),
            account.connects.taken,
            account.sessions,
            account.turned_away,
            account.cut_off,
            account.unsettled,
        );
    }
    out.push_str(
        "Where the daemon was killed and hasn't been started since: its next start accounts for what ended with it.\n",
    );
    out
}

fn text(report: &Report, folder: &Path, color: bool) -> String {
    let what = format!(
        "{} in {}, {}",
        count(report.records, "record"),
        count(report.blocks, "block"),
        count(report.segments, "segment"),
    );
    let folder = folder.to_string_lossy();
    let folder = inert(&folder);
    if report.problems.is_empty() {
        let signed = report.signed_up_to.map_or_else(
            || "nothing is signed yet".to_owned(),
            |seq| format!("signed up to record {seq}"),
        );
        let witnessed = report.witnessed_up_to.map_or_else(String::new, |seq| {
            format!(", the same as was kept elsewhere up to record {seq}")
        });
        let removed = match report.removed_segments {
            0 => String::new(),
            segments => format!(
                "{}: {} in {} by retention, each on record\n",
                paint(Style::Good, "removed", color),
                count(report.removed_records, "record"),
                count(segments, "segment"),
            ),
        };
        let rotated = match report.rotations {
            0 => String::new(),
            rotations => format!(
                "{}: {} of the journal's key, each signed by the key before\n",
                paint(Style::Good, "keys", color),
                count(rotations, "rotation"),
            ),
        };
        let erased = match report.erased_sessions {
            0 => String::new(),
            sessions => format!(
                "{}: {}, each on record; {} of theirs can't be read by anybody\n",
                paint(Style::Good, "erased", color),
                count(sessions, "session"),
                count(report.erased_records, "record"),
            ),
        };
        let locked = match report.locked_records {
            0 => String::new(),
            records => format!(
                "{}: {} of sessions: in the chain, not looked into; name what opens them with --encryption-key\n",
                paint(Style::Good, "encrypted", color),
                count(records, "record"),
            ),
        };
        return format!(
            "{}: {folder}: {what}, {signed}{witnessed}\n{removed}{erased}{locked}{rotated}",
            paint(Style::Good, "intact", color)
        );
    }
    let mut out = format!(
        "{}: {folder}: {} in {what}\n",
        paint(Style::Bad, "NOT INTACT", color),
        count(report.problems.len() as u64, "problem"),
    );
    for problem in &report.problems {
        tell(&mut out, problem);
    }
    let first = report
        .problems
        .iter()
        .filter_map(|problem| problem.seq)
        .min();
    if let Some(first) = first.filter(|first| *first > 1) {
        _ = writeln!(out, "Records before {first} follow one another as written.");
    }
    out.push_str(
        "Keep this folder as it is, and compare it with a copy or an export from before.\n",
    );
    out
}

fn tell(out: &mut String, problem: &Problem) {
    // Writing to a string can't fail.
    _ = write!(
        out,
        "  {}: {}, byte {}: {}",
        done(problem.kind),
        inert(&problem.file),
        problem.offset,
        inert(&problem.what)
    );
    if let Some(seq) = problem.seq {
        _ = write!(out, " (from record {seq} on)");
    }
    out.push('\n');
}

/// What was done, in a word or two.
const fn done(kind: Kind) -> &'static str {
    match kind {
        Kind::Changed => "changed",
        Kind::Missing => "missing",
        Kind::Reordered => "reordered",
        Kind::Truncated => "cut off",
        Kind::RolledBack => "rolled back",
        Kind::Forked => "another history",
        Kind::AnotherKey => "another key",
        Kind::Unsigned => "unsigned",
        Kind::Unreadable => "unreadable",
        Kind::Unproven => "unproven",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connects_that_nothing_accounts_for_are_told_of() {
        let mut account = Account {
            agent: "a".into(),
            connects: crate::kernel::Connects {
                redirected: 5,
                begun: 5,
                given_up: 1,
                taken: 4,
                ..Default::default()
            },
            sessions: 3,
            turned_away: 1,
            ..Account::default()
        };
        assert_eq!(completeness(&[], false), "");
        assert_eq!(
            completeness(&[account.clone()], false),
            "complete: every connect is accounted for: 5 redirected: 3 on record, 1 turned away, 1 given up\n"
        );
        account.sessions = 2;
        assert!(
            completeness(&[account], false).starts_with(
                "NOT COMPLETE: 1 connect not accounted for, of 5 redirected\n  agent a: 4 taken by the proxy, 2 on record,"
            )
        );
    }

    #[test]
    fn one_clear_line_where_all_is_well() {
        let mut report = Report {
            segments: 1,
            blocks: 2,
            records: 30,
            removed_segments: 0,
            removed_records: 0,
            erased_sessions: 0,
            erased_records: 0,
            locked_records: 0,
            rotations: 0,
            signed_up_to: Some(30),
            witnessed_up_to: None,
            problems: Vec::new(),
        };
        assert_eq!(
            text(&report, Path::new("/s"), false),
            "intact: /s: 30 records in 2 blocks, 1 segment, signed up to record 30\n"
        );
        report.rotations = 1;
        assert_eq!(
            text(&report, Path::new("/s"), false),
            "intact: /s: 30 records in 2 blocks, 1 segment, signed up to record 30\n\
             keys: 1 rotation of the journal's key, each signed by the key before\n"
        );
        (report.removed_segments, report.removed_records) = (2, 7_000);
        report.rotations = 0;
        assert_eq!(
            text(&report, Path::new("/s"), false),
            "intact: /s: 30 records in 2 blocks, 1 segment, signed up to record 30\n\
             removed: 7000 records in 2 segments by retention, each on record\n"
        );
        report.problems.push(Problem {
            kind: Kind::Changed,
            file: "1.seg".to_owned(),
            offset: 77,
            seq: Some(12),
            what: "a block was changed".to_owned(),
        });
        assert_eq!(
            text(&report, Path::new("/s"), false),
            "NOT INTACT: /s: 1 problem in 30 records in 2 blocks, 1 segment\n  \
             changed: 1.seg, byte 77: a block was changed (from record 12 on)\n\
             Records before 12 follow one another as written.\n\
             Keep this folder as it is, and compare it with a copy or an export from before.\n"
        );
    }
}
