//! Recorded backend messages as readable values, for exports and people.
//!
//! The bytes come from the journal and are trusted as little as any others: what can't be read is
//! given as it is, in base64.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::wire::{Frame, HEADER, Malformed, Reader};

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    type_oid: u32,
    binary: bool,
}

/// Reads the messages of one response, or of a part of one.
#[derive(Debug, Default)]
pub struct Transcript {
    columns: Vec<Column>,
    rows: Vec<Value>,
    notices: Vec<Value>,
    copied: Vec<Value>,
    unread: Vec<Value>,
}

impl Transcript {
    /// A transcript whose rows, if any come before a RowDescription, are laid out as `shape` (a
    /// RowDescription message) says.
    #[must_use]
    pub fn new(shape: Option<&[u8]>) -> Self {
        let mut transcript = Self::default();
        if let Some(shape) = shape {
            transcript.read(shape);
        }
        transcript
    }

    /// Reads whole messages.
    pub fn read(&mut self, mut messages: &[u8]) {
        while !messages.is_empty() {
            let frame = Frame::peek(messages, usize::MAX).ok().flatten();
            let Some((message, rest)) =
                frame.and_then(|frame| messages.split_at_checked(frame.len))
            else {
                self.unread.push(STANDARD.encode(messages).into());
                return;
            };
            messages = rest;
            if self.message(message).is_err() {
                self.unread.push(STANDARD.encode(message).into());
            }
        }
    }

    fn message(&mut self, message: &[u8]) -> Result<(), Malformed> {
        let (Some((tag, _)), Some(payload)) = (message.split_first(), message.get(HEADER..)) else {
            return Ok(());
        };
        match tag {
            b'T' => self.columns = columns(payload)?,
            b'D' => {
                let row = self.row(payload)?;
                self.rows.push(row);
            }
            b'N' => self.notices.push(fields(payload)?),
            b'A' => {
                let mut reader = Reader::new(payload, "NotificationResponse");
                let pid = reader.u32()?;
                let (channel, payload) = (text(reader.string()?), text(reader.string()?));
                self.notices.push(
                    json!({"notification": {"pid": pid, "channel": channel, "payload": payload}}),
                );
            }
            b'd' => self.copied.push(text(payload)),
            _ => {}
        }
        Ok(())
    }

    fn row(&self, payload: &[u8]) -> Result<Value, Malformed> {
        let mut reader = Reader::new(payload, "DataRow");
        let count = reader.count()?;
        let mut row = Vec::with_capacity(count.min(1_664));
        for index in 0..count {
            let column = self.columns.get(index);
            row.push(match reader.value()? {
                None => Value::Null,
                Some(value) => match column {
                    Some(column) if column.binary => binary(value, column.type_oid),
                    _ => text(value),
                },
            });
        }
        reader.end()?;
        Ok(Value::Array(row))
    }

    /// What was read, by name; only what there is.
    #[must_use]
    pub fn finish(self) -> Map<String, Value> {
        let mut out = Map::new();
        let names: Vec<Value> = self
            .columns
            .into_iter()
            .map(|column| column.name.into())
            .collect();
        for (name, values) in [
            ("columns", names),
            ("data", self.rows),
            ("copied", self.copied),
            ("notices", self.notices),
            ("unread", self.unread),
        ] {
            if !values.is_empty() {
                out.insert(name.to_owned(), Value::Array(values));
            }
        }
        out
    }
}

fn columns(payload: &[u8]) -> Result<Vec<Column>, Malformed> {
    let mut reader = Reader::new(payload, "RowDescription");
    let count = reader.count()?;
    (0..count)
        .map(|_| {
            let name = String::from_utf8_lossy(reader.string()?).into_owned();
            reader.take(6)?;
            let type_oid = reader.u32()?;
            reader.take(6)?;
            Ok(Column {
                name,
                type_oid,
                binary: reader.i16()? == 1,
            })
        })
        .collect()
}

fn fields(payload: &[u8]) -> Result<Value, Malformed> {
    let mut reader = Reader::new(payload, "NoticeResponse");
    let mut out = Map::new();
    loop {
        let name = match reader.u8()? {
            0 => return Ok(Value::Object(out)),
            b'V' => "severity",
            b'C' => "code",
            b'M' => "message",
            b'D' => "detail",
            b'H' => "hint",
            _ => {
                reader.string()?;
                continue;
            }
        };
        out.insert(name.to_owned(), text(reader.string()?));
    }
}

/// A text, or what isn't UTF-8 as `{"base64": …}`.
#[must_use]
pub fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

/// A value in its type's binary form: readable for the common types, else `{"hex": …}`.
#[must_use]
pub fn binary(bytes: &[u8], type_oid: u32) -> Value {
    let known = match (type_oid, bytes.len()) {
        (16, 1) => bytes
            .first()
            .map(|byte| if *byte == 0 { "f" } else { "t" }.to_owned()),
        (21, 2) => bytes
            .first_chunk()
            .map(|bytes| i16::from_be_bytes(*bytes).to_string()),
        (23, 4) => bytes
            .first_chunk()
            .map(|bytes| i32::from_be_bytes(*bytes).to_string()),
        (26, 4) => bytes
            .first_chunk()
            .map(|bytes| u32::from_be_bytes(*bytes).to_string()),
        (20, 8) => bytes
            .first_chunk()
            .map(|bytes| i64::from_be_bytes(*bytes).to_string()),
        (700, 4) => bytes
            .first_chunk()
            .map(|bytes| f32::from_be_bytes(*bytes).to_string()),
        (701, 8) => bytes
            .first_chunk()
            .map(|bytes| f64::from_be_bytes(*bytes).to_string()),
        (2950, 16) => {
            let hexadecimal = hex::encode(bytes);
            let mut parts = Vec::new();
            let mut rest = &hexadecimal[..];
            for length in [8, 4, 4, 4, 12] {
                let (part, after) = rest.split_at(length.min(rest.len()));
                parts.push(part);
                rest = after;
            }
            Some(parts.join("-"))
        }
        // "char", name, text, bpchar, varchar, unknown, json, xml.
        (18 | 19 | 25 | 1042 | 1043 | 705 | 114 | 142, _) => return text(bytes),
        // jsonb: a version byte before the text.
        (3802, _) => return text(bytes.split_first().map_or(bytes, |(_, rest)| rest)),
        _ => None,
    };
    known.map_or_else(|| json!({"hex": hex::encode(bytes)}), Value::String)
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use proptest::prelude::*;
    use serde_json::json;

    use super::Transcript;
    use crate::protocol::postgres::wire;

    #[test]
    fn rows_are_read_by_their_layout() {
        let mut messages = BytesMut::new();
        wire::frame(&mut messages, b'T', |out| {
            out.put_u16(2);
            for (name, oid, format) in [("id", 23, 1), ("name", 25, 0)] {
                out.put_slice(name.as_bytes());
                out.put_u8(0);
                out.put_u32(1);
                out.put_u16(1);
                out.put_u32(oid);
                out.put_u16(4);
                out.put_u32(0);
                out.put_u16(format);
            }
        });
        wire::frame(&mut messages, b'D', |out| {
            out.put_u16(2);
            out.put_u32(4);
            out.put_u32(7);
            out.put_i32(-1);
        });
        let mut transcript = Transcript::new(None);
        transcript.read(&messages);
        assert_eq!(
            json!(transcript.finish()),
            json!({"columns": ["id", "name"], "data": [["7", null]]})
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_kept_or_read(shape in prop::collection::vec(any::<u8>(), 0..60), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut transcript = Transcript::new(Some(&shape));
            transcript.read(&bytes);
            let _ = transcript.finish();
        }
    }
}
