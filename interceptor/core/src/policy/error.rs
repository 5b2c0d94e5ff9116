//! What is wrong with a policy, in the words of somebody who edits it.

use std::fmt;

use serde_saphyr::Location;

/// One thing that is wrong, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Line, from 1; 0 where there is no place.
    pub line: u64,
    /// Column, from 1; 0 where there is no place.
    pub column: u64,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Everything that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError(pub Vec<Problem>);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file, self.what)
        } else {
            write!(
                f,
                "{}:{}:{}: {}",
                self.file, self.line, self.column, self.what
            )
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}

impl Problem {
    pub(super) fn at(file: &str, place: Location, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: place.line(),
            column: place.column(),
            what: what.into(),
        }
    }

    pub(super) fn of_yaml(file: &str, error: &serde_saphyr::Error) -> Self {
        let error = error.without_snippet();
        let (line, column) = error
            .location()
            .map_or((0, 0), |place| (place.line(), place.column()));
        let what = match error {
            serde_saphyr::Error::SerdeUnknownField {
                field, expected, ..
            } => unknown("name", field, expected.iter().copied()),
            serde_saphyr::Error::SerdeUnknownVariant {
                variant, expected, ..
            } => unknown("value", variant, expected.iter().copied()),
            other => {
                let text = other.to_string();
                let text = text.lines().next().unwrap_or_default();
                text.split(" at line ").next().unwrap_or(text).to_owned()
            }
        };
        Self {
            file: file.to_owned(),
            line,
            column,
            what,
        }
    }
}

/// `unknown name "protocl"; did you mean "protocol"?`
pub(super) fn unknown<'a>(what: &str, given: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, name)| *distance <= name.len().div_ceil(2))
        .min();
    let given = given.escape_debug();
    match nearest {
        Some((_, name)) => format!("unknown {what} `{given}`; did you mean `{name}`?"),
        None => format!("unknown {what} `{given}`; known are {}", known.join(", ")),
    }
}
