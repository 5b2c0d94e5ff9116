//! `interceptor export`: the journal for other programs.

mod file;

use std::{
    fs,
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::ValueEnum;
use interceptor_core::record::{Record, SessionId, Timestamp};
use serde_json::Value;

use self::file::Target;
use super::{
    Context, Outcome, client::Reading, display::message, failed::Failed, offline,
    timeline::Timeline,
};
use crate::{
    control::{ExportManifest, with_query},
    journal::{
        self, Asciicast, Csv, Extent, Filter, Form, Har, Html, Made, Ocsf, Pcapng, Selection, Soc2,
        Wanted,
    },
};

/// Write the journal, or a part of it, for other programs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  interceptor export --format jsonl --output audit.jsonl
  interceptor export --agent reporter --since 7d
  interceptor export --since 30d --format html --output report.html
  interceptor export --since 90d --format soc2 --output soc2.html
  interceptor export --since 7d --format csv --output operations.csv
  interceptor export --session 8d3f00a1b2c4e5f6 --format har --output session.har
  interceptor export --session 8d3f00a1b2c4e5f6 --format pcapng --output session.pcapng
  interceptor export --session 8d3f00a1b2c4e5f6 --format asciicast | asciinema play -
  interceptor export --session 8d3f00a1b2c4e5f6 --format evidence --output session.evidence
  interceptor export --evidence session.evidence --format html --output session.html
  interceptor export --until 2026-11-01T00:00:00Z --output all.jsonl --resume
  interceptor export --state /path/to/copy --session 8d3f00a1b2c4e5f6")]
pub(super) struct Arguments {
    /// Only this session
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Nothing before: a time (2026-11-20T22:07:01Z) or how long ago (7d, 12h, 90m)
    #[arg(long, value_name = "T", value_parser = moment)]
    since: Option<Timestamp>,
    /// Nothing after: as --since
    #[arg(long, value_name = "T", value_parser = moment)]
    until: Option<Timestamp>,
    /// What is written
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Longest pause of an asciicast: what took longer is shown as if it had taken that long (2s, 1m)
    #[arg(long, value_name = "T", default_value = "2s", value_parser = pause)]
    pause_max: Duration,
    /// Write to this file, readable by its owner alone, instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with FILE.partial, which an export that was interrupted has left. What is in it is compared and not written
    /// again
    #[arg(long, requires = "output")]
    resume: bool,
    /// Read this state folder (of a stopped daemon, or a copy) instead of asking the daemon
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Read this evidence file, which is checked first, instead of asking the daemon
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    evidence: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line of JSON a record: all there is.
    Jsonl,
    /// A row an operation, for spreadsheets.
    Csv,
    /// A page for a browser, for people: a timeline to search and to print.
    Html,
    /// A page for auditors: who approved what, policies in force, what was denied, when nobody watched.
    Soc2,
    /// OCSF 1.8 events, a line of JSON each, for SIEMs.
    Ocsf,
    /// The HTTP requests as one HAR 1.2 document, for a browser's developer tools.
    Har,
    /// Packets, for Wireshark: what sessions said, in the clear.
    Pcapng,
    /// Whole sessions with what proves that they are on record: `interceptor verify FILE` checks it anywhere.
    Evidence,
    /// An asciicast (version 2), for asciinema: what happened as text, in time.
    Asciicast,
}

impl Format {
    /// What makes it of lines; of lines themselves nothing has to be made.
    fn form(self, arguments: &Arguments) -> Option<Box<dyn Form>> {
        Some(match self {
            Self::Jsonl | Self::Evidence => return None,
            Self::Csv => Box::new(Csv::default()),
            Self::Html => Box::new(Html::new(arguments.title())),
            Self::Soc2 => Box::new(Soc2::new(arguments.title())),
            Self::Ocsf => Box::new(Ocsf::default()),
            Self::Har => Box::new(Har::default()),
            Self::Pcapng => Box::new(Pcapng::default()),
            Self::Asciicast => {
                let timeline = Timeline::new(CAST_ROWS, true);
                let show = move |line: &Value| timeline.line(line);
                Box::new(Asciicast::new(arguments.pause_max, show))
            }
        })
    }

    /// What is counted of it.
    const fn counted(self) -> &'static str {
        match self {
            Self::Jsonl => "records",
            Self::Evidence => "lines",
            Self::Csv | Self::Html | Self::Soc2 => "operations",
            Self::Ocsf => "events",
            Self::Har => "requests",
            Self::Pcapng => "packets",
            Self::Asciicast => "frames",
        }
    }

    /// What it needs beyond the records that are asked for.
    fn extent(self) -> Extent {
        Extent {
            context: !matches!(self, Self::Jsonl | Self::Evidence),
            wire: self == Self::Pcapng,
        }
    }
}

/// Rows of a result that an asciicast shows.
const CAST_ROWS: usize = 10;

impl Arguments {
    /// What was asked for, as a query's names and values.
    fn pairs(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("session", self.session.map(|id| id.to_string())),
            ("agent", self.agent.clone()),
            ("since", self.since.map(|time| time.to_string())),
            ("until", self.until.map(|time| time.to_string())),
        ]
    }

    /// What was asked for, in words.
    fn title(&self) -> String {
        let mut title = match &self.agent {
            Some(agent) => format!("Agent {agent}"),
            None => "All agents".to_owned(),
        };
        if let Some(session) = self.session {
            title = format!("Session {session}");
        }
        for (word, time) in [("since", self.since), ("until", self.until)] {
            if let Some(time) = time {
                title = format!("{title} {word} {}", crate::rfc3339::short(time));
            }
        }
        title
    }
}

/// Writes lines as they were asked for, and counts.
struct Exporter<'a> {
    form: Option<Box<dyn Form>>,
    out: &'a mut dyn Write,
    count: u64,
}

impl Exporter<'_> {
    /// Takes a line as the daemon sent it.
    fn encoded(&mut self, line: &[u8]) -> Result<(), Failed> {
        if self.form.is_some() {
            return self.line(serde_json::from_slice(line).map_err(Failed::because)?);
        }
        self.out.write_all(line)?;
        self.out.write_all(b"\n")?;
        self.count += 1;
        Ok(())
    }

    fn line(&mut self, line: Value) -> Result<(), Failed> {
        self.count += match &mut self.form {
            Some(form) => form.take(line, self.out)?,
            None => {
                writeln!(self.out, "{line}")?;
                1
            }
        };
        Ok(())
    }

    fn finish(self) -> Result<u64, Failed> {
        let last = match self.form {
            Some(mut form) => form.finish(self.out)?,
            None => 0,
        };
        Ok(self.count + last)
    }
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let Some(path) = &arguments.output else {
        if arguments.format == Format::Pcapng && io::stdout().is_terminal() {
            return Err(
                Failed::because("packets aren't text for a terminal").with_remedy(
                    "name a file with --output, or a program behind a pipe: `| tshark -r -`",
                ),
            );
        }
        let mut out = BufWriter::new(io::stdout().lock());
        write(context, arguments, &mut out)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    };
    // Under another name until it is whole: half an export must not pass for one.
    let mut partial = path.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = to_file(context, arguments, &partial).and_then(|written| {
        fs::rename(&partial, path).map_err(|error| unwritable(path, &error))?;
        Ok(written)
    });
    match written {
        Ok((count, made)) => {
            let what = arguments.format.counted();
            message(&format!("{count} {what} are in {}", path.display()));
            // Who makes a file of a copy has nobody there to sign for it.
            if arguments.state.is_none() && arguments.evidence.is_none() {
                let manifest = manifest(context, path, &made)?;
                message(&format!("who made it when is in {}", manifest.display()));
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(failed) => {
            // What is there is what `--resume` goes on with; of nothing nobody does.
            if fs::metadata(&partial).is_ok_and(|left| left.len() == 0) {
                _ = fs::remove_file(&partial);
            }
            Err(failed)
        }
    }
}

/// Has the daemon put on record that the file at `path` was made, and keeps what it signs beside the file.
fn manifest(context: &Context, path: &Path, made: &Made) -> Result<PathBuf, Failed> {
    let signed: ExportManifest = context.client.post("/v1/exports", made)?;
    let mut name = path.to_owned().into_os_string();
    name.push(".manifest");
    let name = PathBuf::from(name);
    let written = private(&name).and_then(|mut file| {
        file.write_all(signed.manifest.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| unwritable(&name, &error))?;
    Ok(name)
}

/// A file for its owner alone, with nothing in it.
fn private(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Writes what was asked for to the file at `path`; says how much, and what it is then.
fn to_file(context: &Context, arguments: &Arguments, path: &Path) -> Result<(u64, Made), Failed> {
    let unwritable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound if arguments.resume => {
            Failed::because(format!("there is no {} to go on with", path.display()))
                .with_remedy("begin anew without --resume")
        }
        _ => unwritable(path, &error),
    };
    let mut out = BufWriter::new(Target::open(path, arguments.resume).map_err(unwritable)?);
    let count = write(context, arguments, &mut out)?;
    let target = out
        .into_inner()
        .map_err(|error| unwritable(error.into_error()))?;
    let (bytes, sha256) = target.finish().map_err(unwritable)?;
    let format = arguments.format.to_possible_value();
    let made = Made {
        sha256,
        bytes,
        format: format.map_or_else(String::new, |format| format.get_name().to_owned()),
        asked: arguments.title(),
    };
    Ok((count, made))
}

/// Writes what was asked for; says how much.
fn write(context: &Context, arguments: &Arguments, out: &mut dyn Write) -> Result<u64, Failed> {
    let mut exporter = Exporter {
        form: arguments.format.form(arguments),
        out,
        count: 0,
    };
    match arguments.format {
        Format::Evidence => evidence(context, arguments, &mut exporter)?,
        _ => lines(context, arguments, &mut exporter)?,
    }
    exporter.finish()
}

/// Has `exporter` take the lines that were asked for.
fn lines(
    context: &Context,
    arguments: &Arguments,
    exporter: &mut Exporter<'_>,
) -> Result<(), Failed> {
    let extent = arguments.format.extent();
    if arguments.state.is_none() && arguments.evidence.is_none() {
        let wanted = |wanted: bool| wanted.then(|| "true".to_owned());
        let mut pairs = arguments.pairs();
        pairs.push(("context", wanted(extent.context)));
        pairs.push(("wire", wanted(extent.wire)));
        return stream(context, &with_query("/v1/export", &pairs), exporter);
    }
    let filter = Filter {
        session: arguments.session,
        agent: arguments.agent.clone(),
        since: arguments.since,
        until: arguments.until,
    };
    let mut selection = Selection::new(filter, extent);
    let mut failed = None;
    let take = |record: Record| {
        selection.take(&record, |line| match exporter.line(line) {
            Ok(()) => true,
            Err(error) => {
                failed = Some(error);
                false
            }
        })
    };
    if let Some(folder) = &arguments.state {
        offline::reader(context, folder)?
            .each(take)
            .map_err(Failed::because)?;
    } else if let Some(file) = &arguments.evidence {
        offline::proved(file, take)?;
    }
    failed.map_or(Ok(()), Err)
}

/// Has `exporter` take the lines of an evidence file.
fn evidence(
    context: &Context,
    arguments: &Arguments,
    exporter: &mut Exporter<'_>,
) -> Result<(), Failed> {
    if arguments.evidence.is_some() {
        return Err(Failed::because("it is evidence already").with_remedy("copy the file"));
    }
    let Some(folder) = &arguments.state else {
        let path = with_query("/v1/evidence", &arguments.pairs());
        return stream(context, &path, exporter);
    };
    let reader = offline::reader(context, folder)?;
    let sessions = match arguments.session {
        Some(session) => [session].into(),
        None => {
            let wanted = Wanted {
                agent: arguments.agent.as_deref().map(Into::into),
                since: arguments.since,
                until: arguments.until,
                ..Wanted::default()
            };
            let found = journal::sessions(&reader, &wanted, usize::MAX);
            let found = found.map_err(Failed::because)?;
            found.iter().map(|found| found.session).collect()
        }
    };
    let mut failed = None;
    journal::evidence(&reader, &sessions, None, |line| {
        let taken = exporter.encoded(line.trim_ascii_end());
        failed = taken.err();
        failed.is_none()
    })
    .map_err(Failed::because)?;
    failed.map_or(Ok(()), Err)
}

/// Has `exporter` take the lines that the daemon answers with.
fn stream(context: &Context, path: &str, exporter: &mut Exporter<'_>) -> Result<(), Failed> {
    context.client.lines(path, |line| {
        // The daemon's own objects have sorted names; only the last line of a broken stream
        // begins like this.
        if line.starts_with(br#"{"error":"#) {
            offline::check(&serde_json::from_slice(line).map_err(Failed::because)?)?;
        }
        exporter.encoded(line)?;
        Ok(Reading::On)
    })
}

fn unwritable(path: &Path, error: &io::Error) -> Failed {
    Failed::because(format!("{} can't be written: {error}", path.display()))
}

/// A moment: RFC 3339, or how long ago.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    match ago(text) {
        Some(ago) => {
            let ago_ns = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
            Ok(Timestamp(crate::clock::now().0.saturating_sub(ago_ns)))
        }
        None => crate::rfc3339::parse(text)
            .map_err(|error| format!("{error}, and so is 7d, 12h or 90m for how long ago")),
    }
}

/// How long: `2s`, `1m`.
pub(super) fn pause(text: &str) -> Result<Duration, String> {
    ago(text).ok_or_else(|| format!("`{text}` is not a length of time: 2s is, and so is 1m"))
}

/// The same, where it is one.
pub(super) fn ago(text: &str) -> Option<Duration> {
    let unit_at = text.len().checked_sub(1)?;
    let (number, unit) = text.split_at_checked(unit_at)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_secs(number.checked_mul(seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_or_how_long_ago() {
        assert_eq!(ago("90m"), Some(Duration::from_secs(5_400)));
        assert_eq!(ago("7d"), Some(Duration::from_secs(604_800)));
        for text in ["", "d", "-1d", "7w", "ü", "99999999999999999999d"] {
            assert_eq!(ago(text), None, "{text}");
        }
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(Timestamp(1_000_000_000)));
        assert_eq!(
            moment("soon").unwrap_err(),
            "`soon` is not a time: 2026-11-20T22:07:01Z is, and so is 7d, 12h or 90m for how long ago"
        );
    }
}
