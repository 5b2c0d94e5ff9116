//! What was measured, as a table for people and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// One visit.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Sample {
    /// In the case's unit.
    pub(super) value: f64,
    /// Microseconds that the middle one took.
    pub(super) p50_us: Option<f64>,
    /// Microseconds that all but a hundredth took at the most.
    pub(super) p99_us: Option<f64>,
    /// Microseconds of processor time that the proxy used for one; `None` without a proxy.
    pub(super) cpu_us: Option<f64>,
}

/// All visits of one case through one target.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cell {
    /// The target's name.
    pub(super) target: &'static str,
    /// One a round; `None` where it failed.
    pub(super) samples: Vec<Option<Sample>>,
}

/// One kind of work, through all targets that take part in it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Case<W> {
    /// For people.
    pub(super) title: String,
    /// What a sample's value counts.
    pub(super) unit: &'static str,
    /// What processor time is counted for.
    pub(super) per: &'static str,
    /// What is done.
    pub(super) work: W,
    /// A cell a target.
    pub(super) cells: Vec<Cell>,
}

/// Middle and ends of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    /// The middle one.
    pub(super) median: f64,
    /// The least.
    pub(super) min: f64,
    /// The greatest.
    pub(super) max: f64,
}

/// A case's line for one target, as the table and the JSON have it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    /// The target's name.
    pub(super) target: &'static str,
    /// In the case's unit.
    pub(super) value: Option<Spread>,
    /// Share of the direct connection's, round by round.
    pub(super) of_direct: Option<Spread>,
    /// Share of the relay's, round by round.
    pub(super) of_relay: Option<Spread>,
    /// Microseconds that the middle one took.
    pub(super) p50_us: Option<Spread>,
    /// Microseconds that all but a hundredth took at the most.
    pub(super) p99_us: Option<Spread>,
    /// By how much that is more than directly, round by round.
    pub(super) added_p50_us: Option<Spread>,
    /// By how much that is more than directly, round by round.
    pub(super) added_p99_us: Option<Spread>,
    /// Microseconds of the proxy's processor time for one.
    pub(super) cpu_us: Option<Spread>,
}

impl Spread {
    /// The spread of `values`; `None` where there are none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            min,
            max,
        })
    }
}

impl<W> Case<W> {
    /// A case of `work` through `targets`, not yet visited.
    pub(super) fn new(
        title: String,
        [unit, per]: [&'static str; 2],
        work: W,
        targets: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let cells = targets
            .into_iter()
            .map(|target| Cell {
                target,
                samples: Vec::new(),
            })
            .collect();
        Self {
            title,
            unit,
            per,
            work,
            cells,
        }
    }

    /// Its lines.
    ///
    /// Ratios and differences are taken within a round, where both sides met the same noise.
    pub(super) fn lines(&self) -> Vec<Line> {
        self.cells
            .iter()
            .map(|cell| Line {
                target: cell.target,
                value: cell.spread(|sample| Some(sample.value)),
                of_direct: self.against(cell, "direct", |own, other| Some(own.value / other.value)),
                of_relay: self.against(cell, "relay", |own, other| Some(own.value / other.value)),
                p50_us: cell.spread(|sample| sample.p50_us),
                p99_us: cell.spread(|sample| sample.p99_us),
                added_p50_us: self.against(cell, "direct", |own, other| {
                    Some(own.p50_us? - other.p50_us?)
                }),
                added_p99_us: self.against(cell, "direct", |own, other| {
                    Some(own.p99_us? - other.p99_us?)
                }),
                cpu_us: cell.spread(|sample| sample.cpu_us),
            })
            .collect()
    }

    fn against(
        &self,
        cell: &Cell,
        other: &str,
        compare: impl Fn(Sample, Sample) -> Option<f64>,
    ) -> Option<Spread> {
        let other = self.cells.iter().find(|cell| cell.target == other)?;
        Spread::of(
            cell.samples
                .iter()
                .zip(&other.samples)
                .filter_map(|(own, other)| compare((*own)?, (*other)?)),
        )
    }

    /// Its part of the table: the columns that any target has something in.
    pub(super) fn table(&self) -> String {
        let lines = self.lines();
        type Column = (String, fn(&Line) -> Option<Spread>, usize);
        let decimals = |column: fn(&Line) -> Option<Spread>| {
            let least = lines
                .iter()
                .filter_map(column)
                .map(|spread| spread.median)
                .fold(f64::MAX, f64::min);
            if least < 10.0 {
                2
            } else {
                usize::from(least < 100.0)
            }
        };
        let columns: [Column; 8] = [
            (
                format!("{} (min–max)", self.unit),
                |line| line.value,
                decimals(|line| line.value),
            ),
            ("of direct".to_owned(), |line| line.of_direct, 2),
            ("of relay".to_owned(), |line| line.of_relay, 2),
            ("p50 µs".to_owned(), |line| line.p50_us, 0),
            ("added".to_owned(), |line| line.added_p50_us, 0),
            ("p99 µs".to_owned(), |line| line.p99_us, 0),
            ("added".to_owned(), |line| line.added_p99_us, 0),
            (format!("proxy CPU µs/{}", self.per), |line| line.cpu_us, 1),
        ];
        let mut rows = vec![vec![String::new()]];
        rows.extend(lines.iter().map(|line| vec![line.target.to_owned()]));
        for (heading, value, decimals) in columns {
            if lines.iter().all(|line| value(line).is_none()) {
                continue;
            }
            let cells = lines.iter().map(|line| show(value(line), decimals));
            for (row, cell) in rows.iter_mut().zip([heading].into_iter().chain(cells)) {
                row.push(cell);
            }
        }
        format!("{}\n{}", self.title, aligned(&rows))
    }
}

impl Cell {
    fn spread(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.samples.iter().flatten().filter_map(of))
    }
}

/// The first column to the left, all others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut table = String::new();
    for row in rows {
        table.push(' ');
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            let _ = if column == 0 {
                write!(table, " {cell:<width$}")
            } else {
                write!(table, "   {cell:>width$}")
            };
        }
        table.push('\n');
    }
    table
}

fn show(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or_else(
        || "–".to_owned(),
        |Spread { median, min, max }| {
            format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_both() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn ratios_and_differences_are_taken_round_by_round() {
        let case = case([[100.0, 200.0], [50.0, 100.0]]);
        let relay = case.lines()[1].of_direct.unwrap();
        assert_eq!((relay.min, relay.max), (0.5, 0.5));
        let added = case.lines()[1].added_p50_us.unwrap();
        assert_eq!((added.min, added.max), (-100.0, -50.0));
    }

    #[test]
    fn columns_without_anything_are_left_out() {
        let table = case([[1.0, 1.0], [1.0, 1.0]]).table();
        assert!(
            table.contains("of relay") && !table.contains("p99") && !table.contains("CPU"),
            "{table}"
        );
    }

    fn case(values: [[f64; 2]; 2]) -> Case<()> {
        let mut case = Case::new("a title".to_owned(), ["tps", "tx"], (), ["direct", "relay"]);
        for (cell, values) in case.cells.iter_mut().zip(values) {
            cell.samples.extend(values.map(|value| {
                Some(Sample {
                    value,
                    p50_us: Some(value),
                    ..Sample::default()
                })
            }));
        }
        case
    }
}
