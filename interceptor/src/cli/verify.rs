//! `interceptor verify`: whether a journal is what was recorded.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::{
    Context, Outcome,
    display::{Style, count, inert, paint, print},
    failed::{Failed, code},
    offline,
};
use crate::{
    console::Status,
    journal::{self, Report},
};

/// Check that a journal is what was recorded: nothing changed, dropped or reordered
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status 5 where it isn't. Examples:
  interceptor verify
  interceptor verify /path/to/copy --key journal.pub")]
pub(super) struct Arguments {
    /// A state folder or a copy of one [default: this host's journal]
    path: Option<PathBuf>,
    /// The public key to check signatures with, kept apart from the journal [default: the
    /// journal's own, which whoever rewrites all of it could replace]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
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
    offline::is_state(&folder)?;
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
    let mut report = look(&folder, key.as_deref())?;
    for _ in 1..LOOKS {
        if report.problems.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        let again = look(&folder, key.as_deref())?;
        // What nobody is writing to stays as bad as it is.
        let unchanged = again == report;
        report = again;
        if unchanged {
            break;
        }
    }
    if context.is_json() {
        context.print_json(&report)?;
    } else {
        print(&text(&report, &folder, context.color))?;
    }
    Ok(if report.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(code::INTEGRITY)
    })
}

fn look(folder: &Path, key: Option<&str>) -> Result<Report, Failed> {
    journal::verify(folder, key, |_, _| {}).map_err(Failed::because)
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
        return format!(
            "{}: {folder}: {what}, {signed}\n",
            paint(Style::Good, "intact", color)
        );
    }
    let mut out = format!(
        "{}: {folder}: {} in {what}\n",
        paint(Style::Bad, "NOT INTACT", color),
        count(report.problems.len() as u64, "problem"),
    );
    for problem in &report.problems {
        // Writing to a string can't fail.
        _ = write!(
            out,
            "  {}, byte {}: {}",
            inert(&problem.file),
            problem.offset,
            inert(&problem.what)
        );
        if let Some(seq) = problem.seq {
            _ = write!(out, " (from record {seq} on)");
        }
        out.push('\n');
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Problem;

    #[test]
    fn one_clear_line_where_all_is_well() {
        let mut report = Report {
            segments: 1,
            blocks: 2,
            records: 30,
            signed_up_to: Some(30),
            problems: Vec::new(),
        };
        assert_eq!(
            text(&report, Path::new("/s"), false),
            "intact: /s: 30 records in 2 blocks, 1 segment, signed up to record 30\n"
        );
        report.problems.push(Problem {
            file: "1.seg".to_owned(),
            offset: 77,
            seq: Some(12),
            what: "a block was changed".to_owned(),
        });
        assert_eq!(
            text(&report, Path::new("/s"), false),
            "NOT INTACT: /s: 1 problem in 30 records in 2 blocks, 1 segment\n  \
             1.seg, byte 77: a block was changed (from record 12 on)\n\
             Records before 12 follow one another as written.\n\
             Keep this folder as it is, and compare it with a copy or an export from before.\n"
        );
    }
}
