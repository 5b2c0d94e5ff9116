//! Masks on rows, errors and copies.

use bytes::BytesMut;

use super::{catalog::Catalog, wire::Malformed};
use crate::{mask::MaskPlan, operation::Description};

/// What is masked in the rows of one layout.
#[derive(Debug)]
pub struct RowMask {}

impl RowMask {
    /// The masks for rows whose RowDescription has this payload.
    ///
    /// # Errors
    /// Where the payload is malformed.
    pub fn new(
        _payload: &[u8],
        _plan: &MaskPlan,
        _catalog: Option<&Catalog>,
        _description: &Description,
    ) -> Result<Self, Malformed> {
        Ok(Self {})
    }

    /// Columns that are masked, by name.
    #[must_use]
    pub fn masked(&self) -> &[Box<str>] {
        &[]
    }

    /// Why a strict rule refuses the result, if one does.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        None
    }

    /// Whether no row can change.
    #[must_use]
    pub fn is_noop(&self) -> bool {
        true
    }

    /// Whether a column comes from a table that the catalogue doesn't know.
    #[must_use]
    pub fn has_unknown_origin(&self) -> bool {
        false
    }

    /// Writes the masked payload of a DataRow to `out`; whether it differs.
    ///
    /// # Errors
    /// Where the payload is malformed.
    pub fn apply(&self, _payload: &[u8], _out: &mut BytesMut) -> Result<bool, Malformed> {
        Ok(false)
    }
}

/// The payload of an ErrorResponse or NoticeResponse with masks applied, where that changes it.
#[must_use]
pub fn mask_fields(_payload: &[u8], _plan: &MaskPlan) -> Option<Vec<u8>> {
    None
}

/// The payload of a NotificationResponse with masks applied, where that changes it.
#[must_use]
pub fn mask_notification(_payload: &[u8], _plan: &MaskPlan) -> Option<Vec<u8>> {
    None
}

/// The payload of a CopyData from the server with masks applied, where that changes it.
#[must_use]
pub fn mask_copy_data(_payload: &[u8], _plan: &MaskPlan) -> Option<Vec<u8>> {
    None
}

/// The payload of a FunctionCallResponse with masks applied, where that changes it.
#[must_use]
pub fn mask_function_result(_payload: &[u8], _plan: &MaskPlan) -> Option<Vec<u8>> {
    None
}

/// Why a COPY TO STDOUT that does what `description` says can't be masked, where that is so.
#[must_use]
pub fn copy_out_refusal(
    _plan: &MaskPlan,
    _catalog: Option<&Catalog>,
    _description: &Description,
) -> Option<String> {
    None
}
