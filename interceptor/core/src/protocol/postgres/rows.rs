//! The layout of a result and what is masked in it.

use std::sync::Arc;

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
}

/// Makes shapes, and remembers the last one: a session tends to ask the same again.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    last: Option<Remembered>,
}

#[derive(Debug)]
struct Remembered {
    shape: Arc<Shape>,
    plan: Arc<MaskPlan>,
    catalog: Option<Arc<Catalog>>,
    description: Arc<Description>,
}

impl Shapes {
    /// The shape for the RowDescription `message` (a whole frame).
    pub(super) fn shape(
        &mut self,
        message: &[u8],
        plan: &Arc<MaskPlan>,
        catalog: Option<&Arc<Catalog>>,
        description: &Arc<Description>,
    ) -> Result<Arc<Shape>, Malformed> {
        if let Some(last) = &self.last
            && last.shape.message == message
            && Arc::ptr_eq(&last.plan, plan)
            && last.catalog.as_ref().map(Arc::as_ptr) == catalog.map(Arc::as_ptr)
            && (plan.is_empty() || Arc::ptr_eq(&last.description, description))
        {
            return Ok(last.shape.clone());
        }
        let payload = message.get(wire::HEADER..).unwrap_or_default();
        let mask = RowMask::new(
            payload,
            plan,
            catalog.map(|catalog| &**catalog),
            description,
        )?;
        let shape = Arc::new(Shape {
            message: Bytes::copy_from_slice(message),
            mask,
        });
        self.last = Some(Remembered {
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
