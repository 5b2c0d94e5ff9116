//! What was measured, as a table for people and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// One pgbench run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    /// Transactions a second, without the time to connect.
    pub(crate) tps: f64,
    /// Microseconds of processor time a transaction that the proxy used; `None` without a proxy.
    pub(crate) cpu_us: Option<f64>,
}

/// All runs of one case through one target.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cell {
    /// The target's name.
    pub(crate) target: &'static str,
    /// One a round; `None` where it failed.
    pub(crate) samples: Vec<Option<Sample>>,
}

/// One combination of script, clients and protocol.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Case {
    /// pgbench's name of the script.
    pub(crate) script: &'static str,
    /// Connections at once.
    pub(crate) clients: u32,
    /// pgbench's name of the protocol.
    pub(crate) protocol: &'static str,
    /// A cell a target, in the order of the targets.
    pub(crate) cells: Vec<Cell>,
}

/// Middle and ends of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The middle one.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

/// A case's line for one target, as the table and the JSON have it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    /// The target's name.
    pub(crate) target: &'static str,
    /// Transactions a second.
    pub(crate) tps: Option<Spread>,
    /// Share of the direct connection's, round by round.
    pub(crate) of_direct: Option<Spread>,
    /// Share of the relay's, round by round.
    pub(crate) of_relay: Option<Spread>,
    /// Microseconds of the proxy's processor time a transaction.
    pub(crate) cpu_us: Option<Spread>,
}

impl Spread {
    /// The spread of `values`; `None` where there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
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

impl Case {
    /// Its title.
    pub(crate) fn title(&self) -> String {
        format!(
            "{} · {} client{} · {}",
            self.script,
            self.clients,
            if self.clients == 1 { "" } else { "s" },
            self.protocol
        )
    }

    /// Its lines.
    ///
    /// Ratios are taken within a round, where both sides met the same noise.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let of = |cell: &Cell, other: &str| {
            let other = self.cells.iter().find(|cell| cell.target == other)?;
            Spread::of(
                cell.samples
                    .iter()
                    .zip(&other.samples)
                    .filter_map(|(own, other)| Some((*own)?.tps / (*other)?.tps)),
            )
        };
        self.cells
            .iter()
            .map(|cell| Line {
                target: cell.target,
                tps: Spread::of(cell.samples.iter().flatten().map(|sample| sample.tps)),
                of_direct: of(cell, "direct"),
                of_relay: of(cell, "relay"),
                cpu_us: Spread::of(
                    cell.samples
                        .iter()
                        .flatten()
                        .filter_map(|sample| sample.cpu_us),
                ),
            })
            .collect()
    }

    /// Its part of the table.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("{}\n", self.title());
        let _ = writeln!(
            table,
            "  {:<12} {:>28} {:>22} {:>22} {:>20}",
            "", "tps (min–max)", "of direct", "of relay", "proxy CPU µs/tx"
        );
        for line in self.lines() {
            let _ = writeln!(
                table,
                "  {:<12} {:>28} {:>22} {:>22} {:>20}",
                line.target,
                show(line.tps, 0),
                show(line.of_direct, 2),
                show(line.of_relay, 2),
                show(line.cpu_us, 1),
            );
        }
        table
    }
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
    fn ratios_are_taken_round_by_round() {
        let cell = |target, tps: [f64; 2]| Cell {
            target,
            samples: tps.map(|tps| Some(Sample { tps, cpu_us: None })).to_vec(),
        };
        let case = Case {
            script: "select-only",
            clients: 1,
            protocol: "simple",
            cells: vec![cell("direct", [100.0, 200.0]), cell("relay", [50.0, 100.0])],
        };
        let relay = case.lines()[1].of_direct.unwrap();
        assert_eq!((relay.min, relay.max), (0.5, 0.5));
    }
}
