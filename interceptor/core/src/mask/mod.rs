//! Masks: what has to be taken out of responses, and how.

use std::sync::Arc;

/// Everything that has to be masked in the responses of one agent at one destination.
#[derive(Debug, Clone, Default)]
pub struct MaskPlan {
    /// Masks by column.
    pub columns: Arc<[ColumnMask]>,
    /// Masks by pattern, applied to all text that no column mask took.
    pub patterns: Arc<[Pattern]>,
}

/// One column mask of a rule.
#[derive(Debug, Clone)]
pub struct ColumnMask {
    /// Id of the rule it comes from.
    pub rule: Arc<str>,
}

/// A kind of secret that is recognised by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// An e-mail address.
    Email,
}

impl MaskPlan {
    /// Whether a rule would rather refuse a result than let an unknown origin pass.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        false
    }

    /// Whether nothing has to be masked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.patterns.is_empty()
    }
}
