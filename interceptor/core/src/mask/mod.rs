//! Masks: what has to be taken out of responses, and how.

pub mod body;
mod digits;
mod find;
pub mod kind;
pub mod pattern;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::{
    kind::MaskKind,
    pattern::{Pattern, PatternMask, Patterns},
};
use crate::glob::Glob;

/// Everything that has to be masked in the responses of one agent at one destination.
#[derive(Debug, Clone, Default)]
pub struct MaskPlan {
    /// Masks by the column that a value comes from.
    pub columns: Vec<ColumnMask>,
    /// Masks by form, applied to all text that no column mask took.
    pub patterns: Patterns,
    /// What is to be masked in the bodies of HTTP.
    pub body: Arc<body::BodyPlan>,
    /// Header fields of responses that are masked.
    pub headers: Vec<body::KeyMask>,
}

/// One column mask of a rule.
#[derive(Debug, Clone)]
pub struct ColumnMask {
    /// Id of the rule it comes from.
    pub rule: Arc<str>,
    /// The tables it is for, none meaning all; a table without a schema is meant in every schema.
    tables: Vec<(Glob, Glob)>,
    /// The columns.
    column: Glob,
    /// What becomes of the value.
    pub with: MaskKind,
    /// Whether a result is refused rather than let an expression over the table pass.
    pub strict: bool,
}

impl MaskPlan {
    /// Whether a rule would rather refuse a result than let an unknown origin pass.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.columns.iter().any(|mask| mask.strict)
    }

    /// Whether nothing has to be masked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.patterns.is_empty()
    }

    /// The first mask for the column `column` of `schema.table`.
    #[must_use]
    pub fn column(&self, schema: &str, table: &str, column: &str) -> Option<&ColumnMask> {
        self.columns
            .iter()
            .find(|mask| mask.is_for_table(schema, table) && mask.is_for_column(column))
    }

    /// Whether any column of `schema.table` is masked; without a schema, of a table of that name.
    #[must_use]
    pub fn concerns_table(&self, schema: Option<&str>, table: &str) -> bool {
        self.columns.iter().any(|mask| match schema {
            Some(schema) => mask.is_for_table(schema, table),
            None => {
                mask.tables.is_empty() || mask.tables.iter().any(|(_, name)| name.matches(table))
            }
        })
    }
}

impl ColumnMask {
    /// A mask of `rule` for the columns `column` of `tables` (`schema.table`, `*.table`, `table`).
    #[must_use]
    pub fn new(
        rule: &Arc<str>,
        tables: &[String],
        column: &str,
        with: MaskKind,
        strict: bool,
    ) -> Self {
        let tables = tables.iter().map(|table| match table.rsplit_once('.') {
            Some((schema, name)) => (Glob::new(schema), Glob::new(name)),
            None => (Glob::new("*"), Glob::new(table)),
        });
        Self {
            rule: rule.clone(),
            tables: tables.collect(),
            column: Glob::new(column),
            with,
            strict,
        }
    }

    /// Whether it is for the table `schema.table`.
    #[must_use]
    pub fn is_for_table(&self, schema: &str, table: &str) -> bool {
        self.tables.is_empty()
            || self
                .tables
                .iter()
                .any(|(schemas, tables)| schemas.matches(schema) && tables.matches(table))
    }

    /// The tables it is for, as patterns for schema and name; none means all.
    #[must_use]
    pub fn tables(&self) -> &[(Glob, Glob)] {
        &self.tables
    }

    /// The pattern for the columns it is for.
    #[must_use]
    pub const fn column_glob(&self) -> &Glob {
        &self.column
    }

    /// Whether it is for columns named `column`.
    #[must_use]
    pub fn is_for_column(&self, column: &str) -> bool {
        self.column.matches(column)
    }
}
