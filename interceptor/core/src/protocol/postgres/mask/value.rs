//! Masks on one value: text, JSON, arrays of them, in text and binary form.

use bytes::{BufMut, BytesMut};
use serde_json::Value;

use super::super::wire::{Malformed, Reader};
use crate::mask::MaskKind;

/// What stands in a value's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Masked {
    Same,
    Null,
    Instead(Vec<u8>),
}

pub(super) fn put(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        None => out.put_i32(-1),
        Some(value) => {
            out.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
            out.put_slice(value);
        }
    }
}

pub(super) fn mask_text(kind: MaskKind, value: &[u8]) -> Masked {
    match kind.apply(&String::from_utf8_lossy(value)) {
        Some(text) => Masked::Instead(text.into_owned().into_bytes()),
        None => Masked::Null,
    }
}

pub(super) fn mask_value(kind: MaskKind, value: &Value) -> Value {
    let text = match value {
        Value::Null => return Value::Null,
        Value::String(text) => text.clone(),
        _ => return Value::String("[redacted]".to_owned()),
    };
    kind.apply(&text)
        .map_or(Value::Null, |text| Value::String(text.into_owned()))
}

pub(super) fn mask_json(kind: MaskKind, text: &[u8]) -> Option<Vec<u8>> {
    let value = serde_json::from_slice(text).unwrap_or_else(|_| Value::String(String::new()));
    serde_json::to_vec(&mask_value(kind, &value)).ok()
}

/// The version byte of a jsonb value in binary form, and its text.
pub(super) fn jsonb(value: &[u8], binary: bool) -> (&[u8], &[u8]) {
    value.split_at(usize::from(binary).min(value.len()))
}

/// An array in its binary form with each element masked. What isn't one becomes NULL.
pub(super) fn array(value: &[u8], mask: &mut dyn FnMut(&[u8]) -> Masked) -> Masked {
    binary_array(value, mask).unwrap_or(Masked::Null)
}

pub(super) fn binary_array(
    value: &[u8],
    mask: &mut dyn FnMut(&[u8]) -> Masked,
) -> Result<Masked, Malformed> {
    let mut reader = Reader::new(value, "array");
    let dimensions = reader.i32()?;
    reader.i32()?;
    let element = reader.u32()?;
    let mut count = i64::from(dimensions != 0);
    let bounds = reader.rest();
    for _ in 0..dimensions {
        count = count.saturating_mul(i64::from(reader.i32()?));
        reader.i32()?;
    }
    let bounds = bounds
        .get(..bounds.len() - reader.rest().len())
        .unwrap_or_default();
    let (mut out, mut nulls, mut changed) = (BytesMut::with_capacity(value.len()), false, false);
    for _ in 0..count {
        match reader.value()? {
            None => {
                nulls = true;
                put(&mut out, None);
            }
            Some(value) => match mask(value) {
                Masked::Same => put(&mut out, Some(value)),
                Masked::Null => {
                    (nulls, changed) = (true, true);
                    put(&mut out, None);
                }
                Masked::Instead(bytes) => {
                    changed = true;
                    put(&mut out, Some(&bytes));
                }
            },
        }
    }
    reader.end()?;
    if !changed {
        return Ok(Masked::Same);
    }
    let mut whole = BytesMut::with_capacity(out.len() + bounds.len() + 12);
    whole.put_i32(dimensions);
    whole.put_i32(i32::from(nulls));
    whole.put_u32(element);
    whole.put_slice(bounds);
    whole.put_slice(&out);
    Ok(Masked::Instead(whole.to_vec()))
}

/// An array in its text form with each element masked.
pub(super) fn text_array(value: &[u8], mask: &mut dyn FnMut(&[u8]) -> Masked) -> Masked {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'{' | b'}' | b',' => {
                out.push(byte);
                rest = after;
            }
            b'"' => {
                let mut element = Vec::new();
                let mut inside = after;
                loop {
                    match inside.split_first() {
                        Some((b'\\', after)) => {
                            let Some((escaped, after)) = after.split_first() else {
                                return Masked::Null;
                            };
                            element.push(*escaped);
                            inside = after;
                        }
                        Some((b'"', after)) => {
                            inside = after;
                            break;
                        }
                        Some((byte, after)) => {
                            element.push(*byte);
                            inside = after;
                        }
                        None => return Masked::Null,
                    }
                }
                rest = inside;
                quote(mask(&element), &element, &mut out);
            }
            _ => {
                let end = rest
                    .iter()
                    .position(|byte| matches!(byte, b',' | b'}'))
                    .unwrap_or(rest.len());
                let (element, after) = rest.split_at(end);
                rest = after;
                if element == b"NULL" {
                    out.extend_from_slice(element);
                } else {
                    quote(mask(element), element, &mut out);
                }
            }
        }
    }
    Masked::Instead(out)
}

pub(super) fn quote(masked: Masked, element: &[u8], out: &mut Vec<u8>) {
    let bytes = match masked {
        Masked::Null => return out.extend_from_slice(b"NULL"),
        Masked::Same => element.to_vec(),
        Masked::Instead(bytes) => bytes,
    };
    out.push(b'"');
    for byte in bytes {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}
