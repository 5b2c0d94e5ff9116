//! Text by pattern, across the borders of chunks.

use std::collections::BTreeSet;

use bytes::BytesMut;

use super::{BodyPlan, Unmaskable, note};

/// Bytes at the end that are kept back, for a secret may go on in the next chunk: the longest private
/// keys and tokens have some 12 KiB. Lines that are whole aren't kept back.
const KEPT_BYTES: usize = 16 << 10;

/// Text that is looked at.
#[derive(Debug, Default)]
pub(super) struct Text {
    kept: Vec<u8>,
}

impl Text {
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        if plan.patterns.is_empty() {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        self.kept.extend_from_slice(bytes);
        let cut = self.cut();
        if cut > 0 {
            let rest = self.kept.split_off(cut);
            apply(&self.kept, plan, masked, out);
            self.kept = rest;
        }
        Ok(())
    }

    pub(super) fn finish(
        &mut self,
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) {
        let kept = std::mem::take(&mut self.kept);
        apply(&kept, plan, masked, out);
    }

    /// How much may go on: up to the last whole line, or all but the bytes that are kept.
    fn cut(&self) -> usize {
        let kept = &self.kept;
        let line = memchr::memrchr(b'\n', kept).map_or(0, |feed| feed + 1);
        let most = line.max(break_before(kept, kept.len().saturating_sub(KEPT_BYTES)));
        // A key has many lines, and what looks like its beginning may be cut.
        let begin = memchr::memmem::rfind(kept, b"-----BEGIN ");
        match begin {
            Some(begin)
                if memchr::memmem::find(kept.get(begin..).unwrap_or_default(), b"-----END ")
                    .is_none() =>
            {
                most.min(begin)
                    .max(kept.len().saturating_sub(4 * KEPT_BYTES))
            }
            _ => most,
        }
    }
}

/// The last place before `at` where no secret goes on: behind white space or punctuation that has no
/// digit or letter on both its sides within reach. Where there is none for long, `at` itself.
fn break_before(text: &[u8], at: usize) -> usize {
    let from = at.saturating_sub(KEPT_BYTES);
    let window = text.get(from..at).unwrap_or_default();
    let found = window.iter().rposition(|byte| {
        matches!(
            byte,
            b'"' | b'<' | b'>' | b'{' | b'}' | b'(' | b')' | b'|' | b';'
        )
    });
    found.map_or(at, |place| from + place + 1)
}

fn apply(text: &[u8], plan: &BodyPlan, masked: &mut BTreeSet<Box<str>>, out: &mut BytesMut) {
    match plan.patterns.apply(text) {
        Some(changed) => {
            note(masked, "pattern");
            out.extend_from_slice(&changed);
        }
        None => out.extend_from_slice(text),
    }
}

#[cfg(test)]
impl Text {
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.len()
    }
}
