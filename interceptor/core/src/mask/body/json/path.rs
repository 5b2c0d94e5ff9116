//! Places in JSON, as rules write them.

use super::string::text;
use crate::glob::Glob;

/// A place in JSON: `$.users[*].email`, `$..password`.
#[derive(Debug, Clone)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone)]
enum Step {
    Name(Glob),
    Index(usize),
    Each,
    /// Any number of levels.
    Deep,
}

/// Where a value is.
#[derive(Debug)]
pub(super) enum Place {
    /// By its name, escapes taken off.
    Member(Vec<u8>),
    Item(usize),
}

impl JsonPath {
    /// Reads a path.
    ///
    /// # Errors
    /// When it is none; what one looks like.
    pub fn new(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no path into JSON; `$.users[*].email` and `$..password` are");
        let mut rest = text.strip_prefix('$').ok_or_else(wrong)?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("..") {
                steps.push(Step::Deep);
                rest = after;
                if rest.starts_with('[') {
                    continue;
                }
            } else if let Some(after) = rest.strip_prefix('[') {
                let (index, after) = after.split_once(']').ok_or_else(wrong)?;
                steps.push(match index {
                    "*" => Step::Each,
                    index => Step::Index(index.parse().map_err(|_| wrong())?),
                });
                rest = after;
                continue;
            } else {
                rest = rest.strip_prefix('.').ok_or_else(wrong)?;
            }
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (name, after) = rest.split_at_checked(end).ok_or_else(wrong)?;
            if name.is_empty() {
                return Err(wrong());
            }
            steps.push(Step::Name(Glob::new(name)));
            rest = after;
        }
        if steps.is_empty() || matches!(steps.last(), Some(Step::Deep)) {
            return Err(wrong());
        }
        Ok(Self(steps))
    }

    /// Whether a member of this name can be what it leads to.
    pub(super) fn may_end_with(&self, name: &str) -> bool {
        matches!(self.0.last(), Some(Step::Name(glob)) if glob.matches(name))
    }

    pub(super) fn matches(&self, places: &[Place]) -> bool {
        fn matches(steps: &[Step], places: &[Place]) -> bool {
            let Some((first, rest)) = steps.split_first() else {
                return places.is_empty();
            };
            if matches!(first, Step::Deep) {
                return (0..=places.len())
                    .any(|skip| matches(rest, places.get(skip..).unwrap_or_default()));
            }
            let Some((place, below)) = places.split_first() else {
                return false;
            };
            let meant = match (first, place) {
                (Step::Name(glob), Place::Member(name)) => glob.matches(&text(name)),
                (Step::Each, Place::Item(_)) => true,
                (Step::Index(wanted), Place::Item(index)) => wanted == index,
                _ => false,
            };
            meant && matches(rest, below)
        }
        // Most values aren't called what the path ends with.
        let ends = match (self.0.last(), places.last()) {
            (Some(Step::Name(glob)), Some(Place::Member(name))) => glob.matches(&text(name)),
            (Some(Step::Each), Some(Place::Item(_))) => true,
            (Some(Step::Index(wanted)), Some(Place::Item(index))) => wanted == index,
            _ => false,
        };
        ends && matches(&self.0, places)
    }
}
