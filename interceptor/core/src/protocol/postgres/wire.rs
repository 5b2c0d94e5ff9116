//! Frames and messages as they stand on the wire: bytes in, borrowed messages out.
//!
//! Source: PostgreSQL documentation, "Message Formats". Every reader has three outcomes: complete,
//! need more, malformed; lengths are checked against the frame that holds them, so no length can
//! make two readers disagree about where a message ends.

use std::{fmt, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    limits,
    operation::{Parameter, ParameterFormat},
};

/// Request codes that stand in the place of a protocol version in a start-up packet.
pub(super) mod code {
    /// 1234.5678: cancel a running query.
    pub(crate) const CANCEL: u32 = 80_877_102;
    /// 1234.5679: TLS.
    pub(crate) const SSL: u32 = 80_877_103;
    /// 1234.5680: GSSAPI encryption.
    pub(crate) const GSSENC: u32 = 80_877_104;
}

/// What is wrong with a message, for the one who reads the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Type byte and whole length (type byte included) of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) len: usize,
}

/// Bytes before a frame's payload: the type byte and the length.
pub(super) const HEADER: usize = 5;

impl Frame {
    /// The frame at the start of `buffer`, once its header is there (its payload may not be).
    pub(super) fn peek(buffer: &[u8], bytes_max: usize) -> Result<Option<Self>, Malformed> {
        let Some((&[tag, a, b, c, d], _)) = buffer.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        // The length counts itself but not the type byte. PostgreSQL reads it as int32, so values
        // from 2³¹ are negative there.
        if length < 4 || length > i32::MAX as u32 {
            return Err(Malformed(format!(
                "message `{}` gives its length as {}; at least 4 is valid",
                tag.escape_ascii(),
                length as i32
            )));
        }
        let len = length as usize + 1;
        if len > bytes_max {
            return Err(Malformed(format!(
                "message `{}` has {len} bytes; the limit is {bytes_max} (`limits.message_bytes` in the configuration)",
                tag.escape_ascii()
            )));
        }
        Ok(Some(Self { tag, len }))
    }
}

/// A start-up packet: length, code, rest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StartupFrame {
    pub(super) code: u32,
    pub(super) len: usize,
}

impl StartupFrame {
    /// Bytes before the payload.
    pub(super) const HEADER: usize = 8;

    pub(super) fn peek(buffer: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some((&[a, b, c, d], rest)) = buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(Self::HEADER..=limits::STARTUP_BYTES_MAX).contains(&len) {
            return Err(Malformed(format!(
                "the start-up packet gives its length as {len}; {} to {} is valid",
                Self::HEADER,
                limits::STARTUP_BYTES_MAX
            )));
        }
        let Some((&code, _)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        Ok(Some(Self {
            code: u32::from_be_bytes(code),
            len,
        }))
    }
}

/// Reads fields off a payload, never past its end.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader of the payload of a `message` (its name in PostgreSQL's documentation).
    #[must_use]
    pub const fn new(payload: &'a [u8], message: &'static str) -> Self {
        Self {
            rest: payload,
            message,
        }
    }

    fn short(&self) -> Malformed {
        Malformed(format!("{} is shorter than its fields say", self.message))
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// Where the payload has fewer.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end of the payload.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Int16.
    ///
    /// # Errors
    /// At the end of the payload.
    pub fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    /// Int32.
    ///
    /// # Errors
    /// At the end of the payload.
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    /// Int32 that is an OID.
    ///
    /// # Errors
    /// At the end of the payload.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// Int16 that counts something and so can't be negative.
    ///
    /// # Errors
    /// At the end of the payload, or where it is negative.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let count = self.i16()?;
        usize::try_from(count)
            .map_err(|_| Malformed(format!("{} counts {count} items", self.message)))
    }

    /// A string that ends with a NUL, without it.
    ///
    /// # Errors
    /// Where there is no NUL.
    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let end = memchr::memchr(0, self.rest).ok_or_else(|| {
            Malformed(format!(
                "{} has a string without its terminator",
                self.message
            ))
        })?;
        let text = self.take(end)?;
        self.take(1)?;
        Ok(text)
    }

    /// A value with its length before it; −1 is NULL.
    ///
    /// # Errors
    /// Where the length is below −1 or past the end of the payload.
    pub fn value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.i32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| {
                    Malformed(format!(
                        "{} gives a value's length as {length}",
                        self.message
                    ))
                })?;
                self.take(length).map(Some)
            }
        }
    }

    /// What hasn't been read.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The payload has been read to its end.
    ///
    /// # Errors
    /// Where bytes are left: a reader that ignores them and one that doesn't would disagree.
    pub fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed(format!(
                "{} has {} bytes after its last field",
                self.message,
                self.rest.len()
            )))
        }
    }
}

/// Parse: text of a statement to prepare.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parse<'a> {
    pub(super) statement: &'a [u8],
    pub(super) text: &'a [u8],
    pub(super) parameter_types: Vec<u32>,
}

impl<'a> Parse<'a> {
    pub(super) fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload, "Parse");
        let statement = reader.string()?;
        let text = reader.string()?;
        let count = reader.count()?;
        let parameter_types = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self {
            statement,
            text,
            parameter_types,
        })
    }

    pub(super) fn encode(statement: &[u8], text: &[u8], out: &mut BytesMut) {
        frame(out, b'P', |out| {
            out.put_slice(statement);
            out.put_u8(0);
            out.put_slice(text);
            out.put_u8(0);
            out.put_u16(0);
        });
    }
}

/// The values of a Bind or FunctionCall, read where they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Values<'a> {
    /// Two bytes a format: none means text for all, one is for all, else one a value.
    formats: &'a [u8],
    count: usize,
    /// The values, each with its length before it.
    values: &'a [u8],
}

impl<'a> Values<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let message = reader.message;
        let format_count = reader.count()?;
        let formats = reader.take(format_count * 2)?;
        for format in formats.chunks_exact(2) {
            if !matches!(format, [0, 0 | 1]) {
                let format = Reader::new(format, message).i16()?;
                return Err(Malformed(format!(
                    "{message} gives format {format}; 0 and 1 are valid"
                )));
            }
        }
        let count = reader.count()?;
        if format_count > 1 && format_count != count {
            return Err(Malformed(format!(
                "{message} has {format_count} formats for {count} values"
            )));
        }
        let values = reader.rest();
        for _ in 0..count {
            reader.value()?;
        }
        Ok(Self {
            formats,
            count,
            values,
        })
    }

    fn iter(self) -> impl ExactSizeIterator<Item = (ParameterFormat, Option<&'a [u8]>)> {
        let mut values = Reader::new(self.values, "");
        (0..self.count).map(move |index| {
            let format = match self.formats {
                [_, one] => *one,
                formats => formats.get(index * 2 + 1).copied().unwrap_or(0),
            };
            let format = match format {
                0 => ParameterFormat::Text,
                _ => ParameterFormat::Binary,
            };
            // Each was read before.
            (format, values.value().unwrap_or(None))
        })
    }

    /// The values with their `types`, as an operation keeps them; `whole` is what they are read from.
    pub(super) fn parameters(self, whole: &Bytes, types: &[u32]) -> Arc<[Parameter]> {
        self.iter()
            .enumerate()
            .map(|(index, (format, value))| Parameter {
                format,
                type_oid: types.get(index).copied().unwrap_or(0),
                value: value.map(|value| whole.slice_ref(value)),
            })
            .collect()
    }
}

/// Bind: values for a prepared statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bind<'a> {
    pub(super) portal: &'a [u8],
    pub(super) statement: &'a [u8],
    pub(super) values: Values<'a>,
    pub(super) result_formats: Vec<i16>,
}

impl<'a> Bind<'a> {
    pub(super) fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload, "Bind");
        let portal = reader.string()?;
        let statement = reader.string()?;
        let values = Values::read(&mut reader)?;
        let result_count = reader.count()?;
        let result_formats = (0..result_count)
            .map(|_| reader.i16())
            .collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self {
            portal,
            statement,
            values,
            result_formats,
        })
    }

    /// A Bind without parameters whose results come as text.
    pub(super) fn encode_plain(portal: &[u8], statement: &[u8], out: &mut BytesMut) {
        frame(out, b'B', |out| {
            out.put_slice(portal);
            out.put_u8(0);
            out.put_slice(statement);
            out.put_u8(0);
            out.put_u16(0);
            out.put_u16(0);
            out.put_u16(0);
        });
    }
}

/// What Describe and Close name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

impl<'a> Named<'a> {
    pub(super) fn read(payload: &'a [u8], message: &'static str) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload, message);
        let kind = reader.u8()?;
        let name = reader.string()?;
        reader.end()?;
        match kind {
            b'S' => Ok(Self::Statement(name)),
            b'P' => Ok(Self::Portal(name)),
            other => Err(Malformed(format!(
                "{message} names a `{}`; S and P are valid",
                other.escape_ascii()
            ))),
        }
    }

    pub(super) fn encode(self, tag: u8, out: &mut BytesMut) {
        frame(out, tag, |out| {
            let (kind, name) = match self {
                Self::Statement(name) => (b'S', name),
                Self::Portal(name) => (b'P', name),
            };
            out.put_u8(kind);
            out.put_slice(name);
            out.put_u8(0);
        });
    }
}

/// Execute: run a portal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Execute<'a> {
    pub(super) portal: &'a [u8],
    /// Most rows to return; 0 is no limit.
    pub(super) rows_max: u32,
}

impl<'a> Execute<'a> {
    pub(super) fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload, "Execute");
        let portal = reader.string()?;
        let rows_max = reader.i32()?;
        reader.end()?;
        // PostgreSQL takes a limit below zero for none.
        Ok(Self {
            portal,
            rows_max: u32::try_from(rows_max).unwrap_or(0),
        })
    }

    pub(super) fn encode(portal: &[u8], out: &mut BytesMut) {
        frame(out, b'E', |out| {
            out.put_slice(portal);
            out.put_u8(0);
            out.put_u32(0);
        });
    }
}

/// FunctionCall, by the function's OID.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FunctionCall<'a> {
    pub(super) function_oid: u32,
    pub(super) values: Values<'a>,
}

impl<'a> FunctionCall<'a> {
    pub(super) fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload, "FunctionCall");
        let function_oid = reader.u32()?;
        let values = Values::read(&mut reader)?;
        reader.i16()?;
        reader.end()?;
        Ok(Self {
            function_oid,
            values,
        })
    }

    /// A call of function 0, which never exists: PostgreSQL answers with an error.
    pub(super) fn encode_impossible(out: &mut BytesMut) {
        frame(out, b'F', |out| {
            out.put_u32(0);
            out.put_u16(0);
            out.put_u16(0);
            out.put_u16(0);
        });
    }
}

/// The fields of an ErrorResponse or NoticeResponse that are looked at here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    pub(super) severity: &'a [u8],
    pub(super) code: &'a [u8],
    pub(super) message: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload, "ErrorResponse");
        let mut fields = Self::default();
        loop {
            match reader.u8()? {
                0 => return Ok(fields),
                b'V' => fields.severity = reader.string()?,
                b'C' => fields.code = reader.string()?,
                b'M' => fields.message = reader.string()?,
                _ => {
                    reader.string()?;
                }
            }
        }
    }
}

/// Appends a frame of type `tag` whose payload `payload` writes.
pub(super) fn frame(out: &mut BytesMut, tag: u8, payload: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_u32(0);
    payload(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}
