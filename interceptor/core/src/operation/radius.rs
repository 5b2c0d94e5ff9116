//! What an operation would touch, found out before anybody agrees to it: its blast radius.
//!
//! It is what others see at that moment: neither what the operation's own session has changed and not committed, nor
//! what changes until it runs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How what an operation would touch is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimate {
    /// As the server would plan it (EXPLAIN): cheap, and as good as the server's statistics.
    Plan,
    /// By counting as well: exact, and as expensive as reading what it would touch.
    Count,
}

/// What an operation would touch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlastRadius {
    /// The user as whom the server was asked; `None` where it wasn't.
    pub asked_as: Option<Box<str>>,
    /// Everything that would be touched, as far as it is known.
    pub impacts: Vec<Impact>,
    /// What isn't known, and why, for people.
    pub unknown: Vec<Box<str>>,
    /// How long finding it out took, in milliseconds.
    pub took_ms: u64,
}

/// What would become of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impact {
    /// The statement that does it, by its place in the operation, from 1.
    pub statement: u32,
    /// What becomes of it.
    pub change: Change,
    /// Its name, with its schema; empty for a query's result.
    pub target: Box<str>,
    /// How many of its rows.
    pub rows: Option<Rows>,
    /// How many rows it has, as the server's statistics say.
    pub of: Option<u64>,
    /// How much room it takes with its indexes, in bytes.
    pub bytes: Option<u64>,
    /// Why it is touched where the operation doesn't name it: a foreign key, a trigger.
    pub through: Option<Box<str>>,
}

/// What becomes of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Rows are read.
    Reads,
    /// Rows are added.
    Adds,
    /// Rows are changed.
    Changes,
    /// Rows are removed.
    Deletes,
    /// All rows are removed at once.
    Empties,
    /// It is removed itself.
    Drops,
    /// Its definition is changed.
    Alters,
    /// Its trigger runs.
    Triggers,
    /// It refers to what would be removed, and may prevent that.
    MayPrevent,
}

/// A number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// As the server plans it.
    Planned(u64),
    /// Counted.
    Counted(u64),
    /// Counted up to here, and there are more.
    MoreThan(u64),
}

impl BlastRadius {
    /// One about which only this is known.
    #[must_use]
    pub fn unknown(why: impl Into<Box<str>>) -> Self {
        Self {
            unknown: vec![why.into()],
            ..Self::default()
        }
    }

    /// The statements that it tells of are several.
    #[must_use]
    pub fn is_of_several(&self) -> bool {
        self.impacts.iter().any(|impact| impact.statement > 1)
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, count) = match *self {
            Self::Planned(count) => ("about ", count),
            Self::Counted(count) => ("", count),
            Self::MoreThan(count) => ("more than ", count),
        };
        let noun = if count == 1 { "row" } else { "rows" };
        write!(f, "{before}{} {noun}", Grouped(count))
    }
}

impl fmt::Display for Impact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = &self.target;
        let rows = self
            .rows
            .map_or_else(|| "rows".to_owned(), |rows| rows.to_string());
        let through = self.through.as_deref();
        match self.change {
            Change::Reads if target.is_empty() => write!(f, "gives {rows}")?,
            Change::Reads => write!(f, "reads {rows} of {target}")?,
            Change::Adds => write!(f, "adds {rows} to {target}")?,
            Change::Changes => write!(f, "changes {rows} of {target}")?,
            Change::Deletes => write!(f, "deletes {rows} of {target}")?,
            Change::Empties => write!(f, "empties {target}")?,
            Change::Drops => write!(f, "drops {target}")?,
            Change::Alters => write!(f, "alters {target}")?,
            Change::MayPrevent => write!(f, "may be prevented by {target}, which refers to it")?,
            Change::Triggers => {
                return write!(f, "runs the trigger {} of {target}", through.unwrap_or("?"));
            }
        }
        if let Some(through) = through {
            write!(f, " through {through}")?;
        }
        let room = self.bytes.map(|bytes| Bytes(bytes).to_string());
        match (self.of, room) {
            (Some(of), Some(room)) => write!(f, " ({}, {room} in all)", Rows::Planned(of)),
            (Some(of), None) => write!(f, " ({} in all)", Rows::Planned(of)),
            (None, Some(room)) => write!(f, " ({room} in all)"),
            (None, None) => Ok(()),
        }
    }
}

/// A number with its thousands apart.
struct Grouped(u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A number of bytes in the largest unit of which there is one.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let (mut count, mut units) = (self.0, UNITS.iter());
        let mut unit = units.next();
        while count >= 1_024
            && let Some(next) = units.next()
        {
            count /= 1_024;
            unit = Some(next);
        }
        write!(f, "{count} {}", unit.unwrap_or(&"B"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_people_say_it() {
        let impact = |change, rows, of, bytes, through: Option<&str>| Impact {
            statement: 1,
            change,
            target: "public.orders".into(),
            rows,
            of,
            bytes,
            through: through.map(Into::into),
        };
        for (impact, expected) in [
            (
                impact(
                    Change::Deletes,
                    Some(Rows::Counted(1_204)),
                    Some(48_000),
                    Some(12 << 20),
                    None,
                ),
                "deletes 1,204 rows of public.orders (about 48,000 rows, 12 MiB in all)",
            ),
            (
                impact(Change::Changes, Some(Rows::Planned(1)), None, None, None),
                "changes about 1 row of public.orders",
            ),
            (
                impact(
                    Change::Deletes,
                    None,
                    Some(5),
                    None,
                    Some("items_order_id_fkey"),
                ),
                "deletes rows of public.orders through items_order_id_fkey (about 5 rows in all)",
            ),
            (
                impact(Change::Empties, None, None, Some(8_192), None),
                "empties public.orders (8 KiB in all)",
            ),
            (
                impact(Change::Triggers, None, None, None, Some("audit")),
                "runs the trigger audit of public.orders",
            ),
            (
                impact(
                    Change::Adds,
                    Some(Rows::MoreThan(1_000_000)),
                    None,
                    None,
                    None,
                ),
                "adds more than 1,000,000 rows to public.orders",
            ),
        ] {
            assert_eq!(impact.to_string(), expected);
        }
    }
}
