//! What of a message goes on record: its bytes up to a limit, and the digest of all of them beyond it.

use std::fmt;

use aws_lc_rs::digest;
use bytes::Bytes;

use super::describe::is_secret;
use crate::{
    limits,
    operation::{Digest, Protocol},
    record::{
        ContentRecord, Event, MessageRecord, ResponseRecord, ResponseStatus, Speaker, Timestamp,
    },
};

/// Collects one side of an exchange for the record.
pub struct Recorder {
    number: u64,
    of: Speaker,
    released: Timestamp,
    /// Bytes that may still be kept.
    left: u64,
    head: Option<Bytes>,
    /// Kept and not on record yet.
    data: Vec<Bytes>,
    data_bytes: usize,
    /// Reached the other side and isn't on record yet.
    passed: u64,
    total: u64,
    /// Of all of the content, once it is clear that not all of it is kept.
    digest: Option<digest::Context>,
    /// What was kept so far, to be hashed when that becomes clear.
    kept: Vec<Bytes>,
    masked: Vec<Box<str>>,
    /// What was said beside the content: trailer fields and the like.
    said: Vec<u8>,
    /// What kind of message it is, where it is neither a request nor a response.
    message: Option<&'static str>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("number", &self.number)
            .field("of", &self.of)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder of operation `number`, which was released at `released`.
    #[must_use]
    pub const fn new(number: u64, of: Speaker, released: Timestamp, limit: u64) -> Self {
        Self {
            number,
            of,
            released,
            left: limit,
            head: None,
            data: Vec::new(),
            data_bytes: 0,
            passed: 0,
            total: 0,
            digest: None,
            kept: Vec::new(),
            masked: Vec::new(),
            said: Vec::new(),
            message: None,
        }
    }

    /// A recorder of a message of this kind within operation `number`.
    #[must_use]
    pub const fn message(number: u64, of: Speaker, kind: &'static str, limit: u64) -> Self {
        let mut recorder = Self::new(number, of, Timestamp(0), limit);
        recorder.message = Some(kind);
        recorder
    }

    /// Adds a head, which is always kept and isn't content.
    pub fn head(&mut self, head: Bytes) {
        self.data_bytes += head.len();
        self.head = Some(head);
    }

    /// Adds content.
    pub fn content(&mut self, bytes: Bytes) {
        let length = bytes.len() as u64;
        self.total += length;
        self.passed += length;
        if let Some(digest) = &mut self.digest {
            digest.update(&bytes);
            return;
        }
        if length <= self.left {
            self.left -= length;
            self.data_bytes += bytes.len();
            self.kept.push(bytes.clone());
            self.data.push(bytes);
            return;
        }
        let mut context = digest::Context::new(&digest::SHA256);
        for part in self.kept.drain(..) {
            context.update(&part);
        }
        context.update(&bytes);
        self.digest = Some(context);
        let keep = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.data_bytes += keep;
        self.data.push(bytes.slice(..keep));
        self.left = 0;
    }

    /// Adds trailer fields and the like, as lines; who reads them bounds them.
    pub fn said(&mut self, bytes: &[u8]) {
        self.said.extend_from_slice(bytes);
    }

    /// Says what was masked, once it is known.
    pub fn masked(&mut self, names: impl IntoIterator<Item = Box<str>>) {
        self.masked.extend(names);
    }

    /// A part of the record, where so much has come together that it shouldn't wait.
    pub fn part(&mut self, now: Timestamp) -> Option<Event> {
        (self.data_bytes >= limits::RESPONSE_PART_BYTES)
            .then(|| self.event(ResponseStatus::Continues, now))
    }

    /// The last part; `status` is how it ended. Behind it, the digest of what isn't on record, and what was said
    /// beside the content.
    pub fn end(&mut self, status: ResponseStatus, now: Timestamp) -> [Option<Event>; 3] {
        let digest = self.digest.take().map(|context| {
            let mut bytes = [0; 32];
            bytes.copy_from_slice(context.finish().as_ref());
            let mut content = self.content_record(Vec::new(), true);
            content.sha256 = Some(Digest(bytes));
            Event::Content(content)
        });
        let last = match (self.of, self.message) {
            (_, Some(_)) => {
                let data = std::mem::take(&mut self.data);
                let ends = digest.is_none() && status != ResponseStatus::Interrupted;
                Some(Event::Content(self.content_record(data, ends)))
            }
            // A request's body is on record when its last byte is.
            (Speaker::Client, None) if self.data.is_empty() => None,
            (_, None) => Some(self.event(status, now)),
        };
        let said = std::mem::take(&mut self.said);
        let said = (!said.is_empty()).then(|| {
            let of = match self.of {
                Speaker::Client => "client",
                Speaker::Upstream => "upstream",
            };
            let detail = [
                ("operation", self.number.to_string()),
                ("of", of.to_owned()),
                ("fields", described(&said)),
            ];
            Event::notice("http_trailers", detail)
        });
        [last, digest, said]
    }

    fn content_record(&mut self, data: Vec<Bytes>, ends: bool) -> ContentRecord {
        ContentRecord {
            number: self.number,
            of: self.of,
            data,
            bytes: self.total,
            sha256: None,
            message: self.message.map(|kind| MessageRecord {
                kind: kind.into(),
                ends,
                masked: match ends {
                    true => std::mem::take(&mut self.masked).into(),
                    false => [].into(),
                },
            }),
        }
    }

    fn event(&mut self, status: ResponseStatus, now: Timestamp) -> Event {
        let data = std::mem::take(&mut self.data);
        self.data_bytes = 0;
        match self.of {
            Speaker::Upstream if self.message.is_none() => Event::Response(ResponseRecord {
                number: self.number,
                protocol: Protocol::Http,
                status,
                rows: 0,
                bytes: std::mem::take(&mut self.passed),
                elapsed_ns: now.0.saturating_sub(self.released.0),
                shape: self.head.take(),
                data,
                masked: std::mem::take(&mut self.masked).into(),
            }),
            _ => Event::Content(self.content_record(data, false)),
        }
    }
}

/// Lines of fields, without credentials.
fn described(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines = text.lines().map(|line| match line.split_once(':') {
        Some((name, _)) if is_secret(name.as_bytes()) => format!("{name}: [redacted]"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}
