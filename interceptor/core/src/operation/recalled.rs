//! An operation as it may have been, from what is on record of it.

use super::Operation;

/// What a record tells of an operation: what was asked about it, as far as that is certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recalled {
    /// Each way in which it may have come, one at least. Within each what was proposed of it: if that couldn't be
    /// decided, what was proposed next, with more of it.
    pub ways: Vec<Vec<Operation>>,
    /// Why there is more than one way.
    pub open: Option<&'static str>,
    /// Names of the header fields whose values aren't on record, lower case.
    pub hidden: Vec<Box<str>>,
}

impl Recalled {
    /// Of an operation that is on record as it was decided.
    #[must_use]
    pub fn whole(operation: Operation) -> Self {
        Self {
            ways: vec![vec![operation]],
            open: None,
            hidden: Vec::new(),
        }
    }

    /// All that is known of it, in the first of the ways.
    #[must_use]
    pub fn fullest(&self) -> Option<&Operation> {
        self.ways.first()?.last()
    }
}
