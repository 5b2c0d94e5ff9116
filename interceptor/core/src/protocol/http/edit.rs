//! Heads that go on with some fields changed: all others byte for byte, in their order.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::operation::http::Fields;

/// What becomes of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    /// It stays.
    Keep,
    /// It is left out.
    Drop,
    /// It has this value.
    Value(Vec<u8>),
}

/// The head of `fields` with each changed as `edit` says by name and value, and the lines `more` at its
/// end.
pub(super) fn head(fields: &Fields, edit: impl Fn(&[u8], &[u8]) -> Edit, more: &[u8]) -> Bytes {
    head_for(fields, None, edit, more)
}

/// The same, with something else in the place of the target.
pub(super) fn head_for(
    fields: &Fields,
    target: Option<(&Range<usize>, &[u8])>,
    edit: impl Fn(&[u8], &[u8]) -> Edit,
    more: &[u8],
) -> Bytes {
    let raw = fields.raw();
    let edits: Vec<Edit> = fields
        .iter()
        .map(|(name, value)| edit(name, value))
        .collect();
    if target.is_none() && more.is_empty() && edits.iter().all(|edit| *edit == Edit::Keep) {
        return raw.clone();
    }
    let mut out = BytesMut::with_capacity(raw.len() + more.len());
    let mut done = 0;
    let upto = |from: usize, to: usize| raw.get(from..to).unwrap_or_default();
    if let Some((place, target)) = target {
        out.extend_from_slice(upto(done, place.start));
        out.extend_from_slice(target);
        done = place.end;
    }
    for (edit, (name, value)) in edits.into_iter().zip(fields.places()) {
        match edit {
            Edit::Keep => {}
            Edit::Drop => {
                out.extend_from_slice(upto(done, name.start));
                // To the end of its line.
                let rest = raw.get(value.end..).unwrap_or_default();
                done = value.end + memchr::memchr(b'\n', rest).map_or(rest.len(), |feed| feed + 1);
            }
            Edit::Value(new) => {
                out.extend_from_slice(upto(done, value.start));
                out.extend_from_slice(&new);
                done = value.end;
            }
        }
    }
    // Before the empty line.
    let end = raw.len().saturating_sub(2).max(done);
    out.extend_from_slice(upto(done, end));
    out.extend_from_slice(more);
    out.extend_from_slice(upto(end, raw.len()));
    out.freeze()
}
