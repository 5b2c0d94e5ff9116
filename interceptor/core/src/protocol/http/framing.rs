//! Where a body ends (RFC 9112, section 6 and 7), in the one way in which all readers agree.

use bytes::Buf as _;

use super::head::Malformed;
use crate::{limits, operation::http::Fields};

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// After that many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// When the connection ends.
    UntilClose,
}

/// What the fields say of a body, if they say the same to everybody.
fn said(fields: &Fields, minor: u8) -> Result<Option<Framing>, Malformed> {
    let (mut length, mut chunked) = (None, false);
    for (name, value) in fields.iter() {
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err(Malformed::new("more than one Content-Length"));
            }
            let digits =
                !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
            let parsed = digits
                .then(|| std::str::from_utf8(value).ok()?.parse::<u64>().ok())
                .flatten();
            length =
                Some(parsed.ok_or_else(|| Malformed::new("a Content-Length that is no number"))?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked {
                return Err(Malformed::new("more than one Transfer-Encoding"));
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::with(
                    501,
                    "a Transfer-Encoding other than `chunked`",
                ));
            }
            if minor == 0 {
                return Err(Malformed::new("a Transfer-Encoding in HTTP/1.0"));
            }
            chunked = true;
        } else if is_lookalike(name) {
            return Err(Malformed::new(
                "a header field with `_` that some servers take for Content-Length, Transfer-Encoding or Host",
            ));
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(Malformed::new("both Content-Length and Transfer-Encoding")),
        (None, true) => Ok(Some(Framing::Chunked)),
        (Some(length), false) => Ok(Some(Framing::Length(length))),
        (None, false) => Ok(None),
    }
}

/// CGI and its heirs turn `-` into `_`, so that two names become one.
fn is_lookalike(name: &[u8]) -> bool {
    let like = |other: &[u8]| {
        name.len() == other.len()
            && name
                .iter()
                .zip(other)
                .all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
    };
    name.contains(&b'_') && (like(b"content-length") || like(b"transfer-encoding"))
}

impl Framing {
    /// How the body of a request ends.
    pub(super) fn of_request(fields: &Fields, minor: u8) -> Result<Self, Malformed> {
        Ok(match said(fields, minor)? {
            None | Some(Self::Length(0)) => Self::None,
            Some(framing) => framing,
        })
    }

    /// How the body of a response of `status` to a request of `method` ends.
    pub(super) fn of_response(
        fields: &Fields,
        minor: u8,
        status: u16,
        method: &[u8],
    ) -> Result<Self, Malformed> {
        let said = said(fields, minor)?;
        if method == b"HEAD" || status < 200 || status == 204 || status == 304 {
            return Ok(Self::None);
        }
        Ok(match said {
            None => Self::UntilClose,
            Some(Self::Length(0)) => Self::None,
            Some(framing) => framing,
        })
    }
}

/// Follows a body to its end.
#[derive(Debug)]
pub(super) struct Body {
    state: State,
    /// Bytes of content so far, framing apart.
    pub(super) content_bytes: u64,
    /// Bytes that were said beside it.
    said_bytes: usize,
}

const SAID_TOO_MUCH: &str = "trailer fields or extensions of chunks of more than 64 KiB";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    ChunkSize { digits: u8, size: u64 },
    ChunkExtension { size: u64, length: u16 },
    ChunkSizeFeed { size: u64 },
    ChunkData(u64),
    ChunkDataReturn,
    ChunkDataFeed,
    TrailerStart { bytes: u32 },
    TrailerName { bytes: u32, length: u8 },
    TrailerValue { bytes: u32 },
    TrailerFeed { bytes: u32 },
    LastFeed,
    Done,
}

impl State {
    /// Whether the byte that leads from here to `next` says something that is no framing.
    const fn says(self, next: Self) -> bool {
        matches!(
            next,
            Self::ChunkExtension { length: 1.., .. }
                | Self::TrailerName { .. }
                | Self::TrailerValue { .. }
                | Self::TrailerFeed { .. }
        ) || matches!(self, Self::TrailerFeed { .. })
    }
}

/// What a piece of a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// That many bytes of content.
    Content(usize),
    /// That many bytes of framing around it.
    Framing(usize),
    /// That many bytes that are said beside it: extensions of chunks, trailer fields.
    Said(usize),
}

impl Body {
    pub(super) const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize { digits: 0, size: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            state,
            content_bytes: 0,
            said_bytes: 0,
        }
    }

    /// Whether all of it was there.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Length(0))
    }

    /// Whether the end of the connection is its end.
    pub(super) fn ends_with_connection(&self) -> bool {
        self.state == State::UntilClose
    }

    /// What the next bytes are; `None` when there are none, or when the body is over.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Option<Piece>, Malformed> {
        if bytes.is_empty() || self.is_done() {
            return Ok(None);
        }
        let content = |available: usize, left: u64| {
            usize::try_from(left).map_or(available, |left| available.min(left))
        };
        match self.state {
            State::Length(left) => {
                let count = content(bytes.len(), left);
                self.content_bytes += count as u64;
                self.state = State::Length(left - count as u64);
                Ok(Some(Piece::Content(count)))
            }
            State::UntilClose => {
                self.content_bytes += bytes.len() as u64;
                Ok(Some(Piece::Content(bytes.len())))
            }
            State::ChunkData(left) => {
                let count = content(bytes.len(), left);
                self.content_bytes += count as u64;
                let left = left - count as u64;
                self.state = if left == 0 {
                    State::ChunkDataReturn
                } else {
                    State::ChunkData(left)
                };
                Ok(Some(Piece::Content(count)))
            }
            _ => {
                let mut rest = bytes;
                let mut said = false;
                while let Some(byte) = rest.first()
                    && !matches!(self.state, State::ChunkData(_) | State::Done)
                {
                    let next = step(self.state, *byte)?;
                    let is_said = self.state.says(next);
                    if rest.len() < bytes.len() && is_said != said {
                        break;
                    }
                    said = is_said;
                    if said {
                        self.said_bytes += 1;
                        if self.said_bytes > limits::HTTP_HEAD_BYTES_MAX {
                            return Err(Malformed::with(431, SAID_TOO_MUCH));
                        }
                    }
                    self.state = next;
                    rest.advance(1);
                }
                let count = bytes.len() - rest.len();
                Ok(Some(match said {
                    true => Piece::Said(count),
                    false => Piece::Framing(count),
                }))
            }
        }
    }
}

/// One byte of chunk framing.
fn step(state: State, byte: u8) -> Result<State, Malformed> {
    const DIGITS_MAX: u8 = 15;
    const EXTENSION_BYTES_MAX: u16 = 256;
    let bad = |what: &str| Err(Malformed::new(what));
    let trailer = |bytes: u32| {
        if bytes as usize >= limits::HTTP_HEAD_BYTES_MAX {
            Err(Malformed::with(431, SAID_TOO_MUCH))
        } else {
            Ok(bytes + 1)
        }
    };
    Ok(match (state, byte) {
        (State::ChunkSize { digits, size }, _) if byte.is_ascii_hexdigit() => {
            if digits >= DIGITS_MAX {
                return bad("a chunk size of more than 15 digits");
            }
            let digit = char::from(byte).to_digit(16).unwrap_or(0);
            State::ChunkSize {
                digits: digits + 1,
                size: size << 4 | u64::from(digit),
            }
        }
        (State::ChunkSize { digits: 0, .. }, _) => return bad("a chunk without a size"),
        (State::ChunkSize { size, .. }, b';') => State::ChunkExtension { size, length: 0 },
        (State::ChunkSize { size, .. }, b'\r') => State::ChunkSizeFeed { size },
        (State::ChunkSize { .. }, _) => return bad("a chunk size that is no number"),
        (State::ChunkExtension { size, .. }, b'\r') => State::ChunkSizeFeed { size },
        (State::ChunkExtension { size, length }, b' '..=b'~' | b'\t') => {
            if length >= EXTENSION_BYTES_MAX {
                return bad("a chunk extension of more than 256 bytes");
            }
            State::ChunkExtension {
                size,
                length: length + 1,
            }
        }
        (State::ChunkExtension { .. }, _) => {
            return bad("a chunk extension with a control character");
        }
        (State::ChunkSizeFeed { size: 0 }, b'\n') => State::TrailerStart { bytes: 0 },
        (State::ChunkSizeFeed { size }, b'\n') => State::ChunkData(size),
        (State::ChunkDataReturn, b'\r') => State::ChunkDataFeed,
        (State::ChunkDataReturn, _) => return bad("a chunk that is longer than its size"),
        (State::ChunkDataFeed, b'\n') => State::ChunkSize { digits: 0, size: 0 },
        (State::TrailerStart { .. }, b'\r') => State::LastFeed,
        (State::TrailerStart { bytes } | State::TrailerName { bytes, .. }, _) if is_token(byte) => {
            State::TrailerName {
                bytes: trailer(bytes)?,
                length: 1,
            }
        }
        (State::TrailerName { bytes, .. }, b':') => State::TrailerValue { bytes },
        (State::TrailerStart { .. } | State::TrailerName { .. }, _) => {
            return bad("a trailer field without a name");
        }
        (State::TrailerValue { bytes }, b'\r') => State::TrailerFeed { bytes },
        (State::TrailerValue { bytes }, b'\t' | b' '..=b'~' | 0x80..) => State::TrailerValue {
            bytes: trailer(bytes)?,
        },
        (State::TrailerValue { .. }, _) => return bad("a trailer field with a control character"),
        (State::TrailerFeed { bytes }, b'\n') => State::TrailerStart { bytes },
        (State::LastFeed, b'\n') => State::Done,
        (
            State::ChunkSizeFeed { .. }
            | State::ChunkDataFeed
            | State::TrailerFeed { .. }
            | State::LastFeed,
            _,
        ) => return bad("a carriage return without a line feed in the framing of chunks"),
        (State::Length(_) | State::UntilClose | State::ChunkData(_) | State::Done, _) => state,
    })
}

/// Whether `byte` may be in a field's name (RFC 9110, section 5.6.2).
pub(super) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}
