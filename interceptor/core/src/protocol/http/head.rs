//! Request and response heads of HTTP/1 (RFC 9112), read strictly: what two readers could take for two
//! things is malformed.

use std::{fmt, ops::Range};

use bytes::Bytes;
use memchr::memchr_iter;

use crate::{limits, operation::http::Fields};

/// Why a message is refused, with the status that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The status for the client.
    pub status: u16,
    /// What is wrong, for people.
    pub reason: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Malformed {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self::with(400, reason)
    }

    pub(super) fn with(status: u16, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }
}

/// The head of a request.
#[derive(Debug, Clone)]
pub(super) struct RequestHead {
    pub(super) method: Range<usize>,
    pub(super) target: Range<usize>,
    /// 0 or 1: HTTP/1.0 or HTTP/1.1.
    pub(super) minor: u8,
    pub(super) fields: Fields,
}

/// The head of a response.
#[derive(Debug, Clone)]
pub(super) struct ResponseHead {
    pub(super) minor: u8,
    pub(super) status: u16,
    pub(super) fields: Fields,
}

/// Where the head at the beginning of `bytes` ends; `None` while it isn't whole. `searched` bytes were
/// there before, without an end.
pub(super) fn end(bytes: &[u8], searched: usize) -> Result<Option<usize>, Malformed> {
    let from = searched.saturating_sub(3);
    let found = memchr::memmem::find(bytes.get(from..).unwrap_or_default(), b"\r\n\r\n")
        .map(|at| from + at + 4);
    match found {
        Some(end) if end <= limits::HTTP_HEAD_BYTES_MAX => Ok(Some(end)),
        None if bytes.len() <= limits::HTTP_HEAD_BYTES_MAX => {
            // Lines that end otherwise would have the search go on for ever.
            lines(bytes.get(from..).unwrap_or_default(), false)?;
            Ok(None)
        }
        _ => Err(Malformed::with(
            431,
            format!(
                "a head of more than {} KiB",
                limits::HTTP_HEAD_BYTES_MAX >> 10
            ),
        )),
    }
}

/// Checks that every line ends with CR LF, and that none goes on in the next.
fn lines(head: &[u8], whole: bool) -> Result<(), Malformed> {
    let at = |index: usize| head.get(index).copied();
    for feed in memchr_iter(b'\n', head) {
        // The one before the first was looked at in an earlier round.
        if feed > 0 && at(feed - 1) != Some(b'\r') {
            return Err(Malformed::new("a line feed without a carriage return"));
        }
        if matches!(at(feed + 1), Some(b' ' | b'\t')) {
            return Err(Malformed::new(
                "a header field that goes on in the next line (obs-fold)",
            ));
        }
    }
    for carriage_return in memchr_iter(b'\r', head) {
        match at(carriage_return + 1) {
            Some(b'\n') => {}
            None if !whole => {}
            _ => {
                return Err(Malformed::new(
                    "a carriage return that isn't the end of a line",
                ));
            }
        }
    }
    Ok(())
}

impl RequestHead {
    /// Reads `raw`, which ends with the empty line.
    pub(super) fn read(raw: &Bytes) -> Result<Self, Malformed> {
        if matches!(raw.first(), Some(b'\r' | b'\n')) {
            return Err(Malformed::new("an empty line in the place of a request"));
        }
        lines(raw, true)?;
        let mut headers = [const { std::mem::MaybeUninit::uninit() }; limits::HTTP_FIELDS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(raw, &mut headers);
        whole(parsed, raw)?;
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(Malformed::new("a request without a request line"));
        };
        let (method, target) = (range(raw, method.as_bytes()), range(raw, target.as_bytes()));
        // httparse takes several spaces for one.
        if method.end + 1 != target.start || raw.get(target.end) != Some(&b' ') {
            return Err(Malformed::new(
                "a request line with more than one space between its parts",
            ));
        }
        let version = raw.get(target.end + 1..target.end + 11);
        if version
            != Some(if minor == 1 {
                b"HTTP/1.1\r\n"
            } else {
                b"HTTP/1.0\r\n"
            })
        {
            return Err(Malformed::new(
                "a request line that doesn't end with its version",
            ));
        }
        Ok(Self {
            method,
            target,
            minor,
            fields: fields(raw, request.headers),
        })
    }
}

impl ResponseHead {
    /// Reads `raw`, which ends with the empty line.
    pub(super) fn read(raw: &Bytes) -> Result<Self, Malformed> {
        lines(raw, true)?;
        let mut headers = [const { std::mem::MaybeUninit::uninit() }; limits::HTTP_FIELDS_MAX];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            raw,
            &mut headers,
        );
        whole(parsed, raw)?;
        let (Some(minor), Some(status)) = (response.version, response.code) else {
            return Err(Malformed::new("a response without a status line"));
        };
        Ok(Self {
            minor,
            status,
            fields: fields(raw, response.headers),
        })
    }
}

fn whole(parsed: httparse::Result<usize>, raw: &Bytes) -> Result<(), Malformed> {
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == raw.len() => Ok(()),
        Ok(_) => Err(Malformed::new("an empty line within a head")),
        Err(httparse::Error::TooManyHeaders) => Err(Malformed::with(
            431,
            format!("more than {} header fields", limits::HTTP_FIELDS_MAX),
        )),
        Err(httparse::Error::Version) => Err(Malformed::with(
            505,
            "a version of HTTP that isn't spoken here; HTTP/1.0 and HTTP/1.1 are",
        )),
        Err(error) => Err(Malformed::new(error.to_string())),
    }
}

fn fields(raw: &Bytes, headers: &[httparse::Header<'_>]) -> Fields {
    let places = headers
        .iter()
        .map(|header| (range(raw, header.name.as_bytes()), range(raw, header.value)));
    Fields::new(raw.clone(), places.collect())
}

/// Where `part` lies in `whole`, of which it is a part.
fn range(whole: &Bytes, part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    start..start + part.len()
}
