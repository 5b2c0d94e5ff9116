//! Records that were appended and not yet taken by the writer.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use interceptor_core::record::Record;

use super::{
    LENGTH_BYTES, Stopped,
    feed::lower_half,
    glance::{Fed, What},
    index, rotate,
    spill::Spill,
    succession,
};

/// What has been appended and not yet been taken by the writer.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Records, each a little-endian u32 length and the record in postcard's encoding.
    pub(super) bytes: Vec<u8>,
    pub(super) count: u32,
    pub(super) next_seq: u64,
    /// What the index has to learn from `bytes`.
    pub(super) parts: index::Parts,
    /// What one of them says of another key that follows.
    pub(super) statement: Option<Box<str>>,
    /// Who wants another key.
    pub(super) rotate: Option<rotate::Asked>,
    /// Where they are kept until they are written.
    pub(super) spill: Option<Spill>,
    /// Up to where the feed is drained.
    pub(super) drained: u64,
    /// The last record that there was no room to keep, until it is on disk.
    pub(super) unkept: Option<u64>,
    /// Somebody waits for the disk.
    pub(super) urgent: bool,
    pub(super) closing: bool,
    pub(super) stopped: Option<Stopped>,
    /// Why nothing is taken though the disk would, by who says so.
    pub(super) withheld: BTreeMap<Arc<str>, Stopped>,
    /// Since when the disk has what was taken last, and hasn't said that it is there.
    pub(super) since: Option<Instant>,
}

impl Waiting {
    /// Why nothing is taken, where that is so.
    pub(super) fn stopped(&self) -> Option<&Stopped> {
        let withheld = || self.withheld.values().next();
        self.stopped.as_ref().or_else(withheld)
    }

    /// Appends `record`, the next one.
    pub(super) fn take(&mut self, record: &Record) -> Result<(), Stopped> {
        self.encode(record)?;
        if let Some(statement) = succession::statement(record) {
            self.statement = Some(statement.into());
        }
        self.next_seq += 1;
        self.count += 1;
        if let Some(session) = record.session {
            self.parts.entry(session).or_default().take(record);
        }
        Ok(())
    }

    /// Appends `record`, the next one.
    pub(super) fn take_fed(&mut self, record: &Fed) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        record.number(self.next_seq, &mut self.bytes);
        self.measure(start);
        self.next_seq += 1;
        self.count += 1;
        let part = self.parts.entry(record.session).or_default();
        match &record.what {
            What::Started(whole) | What::Ended(whole) | What::Told(whole) => part.take(whole),
            What::Operation(_, protocol, effects) => part.seen(*protocol, *effects),
            What::Decision(answer, rule) => part.decided(*answer, rule),
            What::Approval | What::Other => {}
        }
    }

    /// Has the record that begins at `start` say how long it is.
    fn measure(&mut self, start: usize) {
        let length = u32::try_from(self.bytes.len() - start - LENGTH_BYTES).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + LENGTH_BYTES) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    /// Keeps what was appended from `start` on, or notes that there was no room.
    pub(super) fn keep(&mut self, start: usize) {
        let is_kept = match (&mut self.spill, self.bytes.get(start..)) {
            (Some(spill), Some(records)) => spill.keep(records, lower_half(self.drained)),
            _ => false,
        };
        if !is_kept {
            self.unkept = Some(self.next_seq - 1);
        }
    }

    /// Appends `record`, or nothing where it can't be encoded.
    pub(super) fn encode(&mut self, record: &Record) -> Result<(), Stopped> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        if let Err(stopped) = encode(record, &mut self.bytes) {
            self.bytes.truncate(start);
            return Err(stopped);
        }
        self.measure(start);
        Ok(())
    }
}

/// Appends `record` to `bytes`, in postcard's encoding.
///
/// # Errors
/// Where it can't be encoded; a part of it may be there.
pub(crate) fn encode(record: &Record, bytes: &mut Vec<u8>) -> Result<(), Stopped> {
    postcard::serialize_with_flavor(record, Encoding(bytes))
        .map_err(|error| Stopped(format!("a record can't be encoded: {error}").into()))
}

/// Where postcard writes a record to: behind what is there already, whole slices at once.
struct Encoding<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Encoding<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
