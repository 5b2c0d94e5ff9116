//! How things are shown: inert text, tables, times, sizes.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write as _},
    time::Duration,
};

use interceptor_core::record::Timestamp;

pub(super) use crate::inert::{acts_or_hides, inert};

/// `text` on as many lines as it has, each behind `gutter`, so that no line of it can pass for one
/// of ours. Says so where characters had to be written out.
pub(super) fn block(text: &str, gutter: &str) -> String {
    let mut out = String::new();
    let mut escaped = 0;
    for line in text.split('\n') {
        // Windows line ends and indentation are everyday; elsewhere they are shown.
        let line = line
            .strip_suffix('\r')
            .unwrap_or(line)
            .replace('\t', "    ");
        escaped += line.chars().filter(|c| acts_or_hides(*c)).count();
        _ = writeln!(out, "{gutter}{}", inert(&line));
    }
    if escaped > 0 {
        let characters = if escaped == 1 {
            "character"
        } else {
            "characters"
        };
        _ = writeln!(
            out,
            "{gutter}^ {escaped} {characters} above would not show as written; each stands as \\u{{…}}"
        );
    }
    out
}

/// Prints to stdout, whole.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Says something on stderr. Its text may hold what an agent wrote.
pub(super) fn message(text: &str) {
    // Where stderr is closed there is nobody to tell.
    _ = writeln!(io::stderr(), "interceptor: {}", inert_lines(text));
}

/// Asks for something on stderr, on the same line.
pub(super) fn prompt(text: &str) {
    // Where stderr is closed there is nobody to ask.
    _ = write!(io::stderr(), "{text}");
    _ = io::stderr().flush();
}

fn inert_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(inert).collect();
    lines.join("\n")
}

/// Columns under headings, as wide as they need to be. Cells are made inert.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>], color: bool) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| inert(cell)).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain(headings.get(column).map(|heading| heading.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut out = String::new();
    let head = line(headings.iter().copied(), &widths);
    _ = writeln!(out, "{}", paint(Style::Bold, &head, color));
    for row in &rows {
        _ = writeln!(out, "{}", line(row.iter().map(AsRef::as_ref), &widths));
    }
    out
}

fn line<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.zip(widths) {
        _ = write!(line, "{cell:width$}  ");
    }
    line.truncate(line.trim_end().len());
    line
}

/// How a piece of text stands out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Style {
    Bold,
    Dim,
    Good,
    Bad,
    Wait,
}

/// `text` in `style`, where colours are wanted.
pub(super) fn paint(style: Style, text: &str, color: bool) -> String {
    if !color {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Good => "32",
        Style::Bad => "1;31",
        Style::Wait => "33",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// `2026-11-20 22:07:01Z`.
pub(super) fn time(at: Timestamp) -> String {
    let text = at.to_string();
    match text.split_once('.') {
        Some((seconds, _)) => format!("{}Z", seconds.replace('T', " ")),
        None => text,
    }
}

/// `15m`, `2h 5m`, `3d 4h`: how long, in its two largest units.
pub(super) fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, 0) => format!("{minutes}m"),
        (0, 0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (0, hours, 0, _) => format!("{hours}h"),
        (0, hours, minutes, _) => format!("{hours}h {minutes}m"),
        (days, 0, _, _) => format!("{days}d"),
        (days, hours, _, _) => format!("{days}d {hours}h"),
    }
}

/// From `earlier` to `later`; none where the clock went backwards.
pub(super) fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::from_nanos(later.0.saturating_sub(earlier.0))
}

/// `512 B`, `1.5 KiB`, `3.0 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1_024, UNITS[0]);
    for larger in &UNITS[1..] {
        if tenths < 10_240 {
            break;
        }
        (tenths, unit) = (tenths / 1_024, larger);
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// `1 row`, `2 rows`.
pub(super) fn count(number: u64, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{number} {one}s")
    }
}

/// `team=red,tier=1`.
pub(super) fn labels(labels: &std::collections::BTreeMap<Box<str>, Box<str>>) -> String {
    let labels: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    labels.join(",")
}

/// A command line, its words quoted where their bounds would be unclear.
pub(super) fn command_line<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(quoted).collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = !word.is_empty()
        && word
            .chars()
            .all(|c| c.is_alphanumeric() || "-_./:=@%+,".contains(c));
    if plain {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_cannot_leave_its_gutter() {
        assert_eq!(
            block("SELECT 1;\r\n\tapproved by root\u{1b}[1A", "  | "),
            "  | SELECT 1;\n  |     approved by root\\u{1b}[1A\n  \
             | ^ 1 character above would not show as written; each stands as \\u{…}\n"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_inert(text in any::<String>()) {
            prop_assert!(!inert(&text).contains(acts_or_hides));
            prop_assert!(block(&text, "| ").lines().all(|line| line.starts_with("| ")));
            let table = table(&["A"], &[vec![text]], false);
            prop_assert!(table.lines().count() == 2 && !table.contains(char::from(27)));
        }
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(
            table(
                &["ID", "AGENT"],
                &[
                    vec!["1".into(), "x".into()],
                    vec!["22".into(), "long".into()]
                ],
                false
            ),
            "ID  AGENT\n1   x\n22  long\n"
        );
    }

    #[test]
    fn spans_sizes_and_times_are_for_people() {
        for (seconds, shown) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m 1s"),
            (3_600, "1h"),
            (7_505, "2h 5m"),
            (90_000, "1d 1h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), shown);
        }
        for (bytes, shown) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (1_536, "1.5 KiB"),
            (3 << 20, "3.0 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
        assert_eq!(time(Timestamp(1_000_000_001)), "1970-01-01 00:00:01Z");
    }
}
