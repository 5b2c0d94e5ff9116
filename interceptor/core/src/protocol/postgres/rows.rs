//! The layout of a result and what is masked in it.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{
    catalog::Catalog,
    mask::RowMask,
    wire::{self, Malformed, Reader},
};
use crate::{mask::MaskPlan, operation::Description};

/// A RowDescription with everything that is needed for its rows.
#[derive(Debug)]
pub(super) struct Shape {
    /// The RowDescription message, whole, with the formats that the rows have.
    pub(super) message: Bytes,
    /// What is masked.
    pub(super) mask: RowMask,
    /// The columns that are, by name, as records have them.
    pub(super) masked: Arc<[Box<str>]>,
}

/// Makes shapes, and remembers the last ones: a session tends to ask the same again.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    /// Latest use last.
    remembered: Vec<Remembered>,
    /// The RowDescriptions that came last, whole, so that one that comes again needs no copy.
    messages: VecDeque<Bytes>,
}

/// Shapes and messages that are remembered: more than the statements of a usual transaction, few enough
/// to look at each.
const REMEMBERED_MAX: usize = 16;

#[derive(Debug)]
struct Remembered {
    shape: Arc<Shape>,
    plan: Arc<MaskPlan>,
    catalog: Option<Arc<Catalog>>,
    description: Arc<Description>,
}

impl Shapes {
    /// `message`, to keep.
    pub(super) fn keep(&mut self, message: &[u8]) -> Bytes {
        if let Some(known) = self.messages.iter().find(|known| **known == message) {
            return known.clone();
        }
        if self.messages.len() >= REMEMBERED_MAX {
            self.messages.pop_front();
        }
        let kept = Bytes::copy_from_slice(message);
        self.messages.push_back(kept.clone());
        kept
    }

    /// The shape for the RowDescription `message` (a whole frame).
    pub(super) fn shape(
        &mut self,
        message: &[u8],
        plan: &Arc<MaskPlan>,
        catalog: Option<&Arc<Catalog>>,
        description: &Arc<Description>,
    ) -> Result<Arc<Shape>, Malformed> {
        let known = self.remembered.iter().rposition(|known| {
            Arc::ptr_eq(&known.plan, plan)
                && known.catalog.as_ref().map(Arc::as_ptr) == catalog.map(Arc::as_ptr)
                && (plan.is_empty() || Arc::ptr_eq(&known.description, description))
                && known.shape.message == message
        });
        if let Some(index) = known {
            let known = self.remembered.remove(index);
            let shape = known.shape.clone();
            self.remembered.push(known);
            return Ok(shape);
        }
        let payload = message.get(wire::HEADER..).unwrap_or_default();
        let mask = RowMask::new(
            payload,
            plan,
            catalog.map(|catalog| &**catalog),
            description,
        )?;
        let shape = Arc::new(Shape {
            message: self.keep(message),
            masked: mask.masked().into(),
            mask,
        });
        if self.remembered.len() >= REMEMBERED_MAX {
            self.remembered.remove(0);
        }
        self.remembered.push(Remembered {
            shape: shape.clone(),
            plan: plan.clone(),
            catalog: catalog.cloned(),
            description: description.clone(),
        });
        Ok(shape)
    }
}

/// `message` (a RowDescription) with the formats that a Bind asked for: none means text, one is for
/// all columns, else one each.
pub(super) fn with_formats(message: &Bytes, formats: &[i16]) -> Result<Bytes, Malformed> {
    if formats.iter().all(|format| *format == 0) {
        return Ok(message.clone());
    }
    let mut out = BytesMut::from(&message[..]);
    let mut reader = Reader::new(
        message.get(wire::HEADER..).unwrap_or_default(),
        "RowDescription",
    );
    let count = reader.count()?;
    for column in 0..count {
        reader.string()?;
        reader.take(16)?;
        let at = message.len() - reader.rest().len();
        reader.take(2)?;
        let format = match formats {
            [one] => *one,
            _ => formats.get(column).copied().ok_or_else(|| {
                Malformed(format!(
                    "Bind asks for {} result formats of {count} columns",
                    formats.len()
                ))
            })?,
        };
        if let Some(place) = out.get_mut(at..at + 2) {
            place.copy_from_slice(&format.to_be_bytes());
        }
    }
    Ok(out.freeze())
}
