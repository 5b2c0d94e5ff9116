//! What the server's tables and views are, as far as masks need to know.

use crate::mask::MaskPlan;

/// Tables, views and where their columns come from.
#[derive(Debug, Default)]
pub struct Catalog {}

/// Collects the rows that [`Catalog::query`] returns.
#[derive(Debug, Default)]
pub struct CatalogBuilder {}

impl Catalog {
    /// The statement to ask the server, where `plan` needs one.
    #[must_use]
    pub fn query(_plan: &MaskPlan) -> Option<String> {
        None
    }
}

impl CatalogBuilder {
    /// Takes one row, its values as text.
    pub fn row(&mut self, _values: &[Option<&[u8]>]) {}

    /// The catalogue of all rows taken.
    #[must_use]
    pub fn finish(self) -> Catalog {
        Catalog {}
    }
}
