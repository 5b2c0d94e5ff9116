//! Bodies that are lists of short things, each masked by itself: fields of a form, lines of events.

use std::collections::BTreeSet;

use bytes::BytesMut;

use super::{BodyPlan, Unmaskable, json::Json, note};
use crate::operation::http::percent_decoded;

/// Longest field or line, in bytes.
const ITEM_BYTES_MAX: usize = 1 << 20;

/// A list that is looked at.
#[derive(Debug)]
pub(super) struct Lines {
    form: bool,
    kept: Vec<u8>,
}

impl Lines {
    pub(super) const fn form() -> Self {
        Self {
            form: true,
            kept: Vec::new(),
        }
    }

    pub(super) const fn events() -> Self {
        Self {
            form: false,
            kept: Vec::new(),
        }
    }

    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        let ends = |byte: &u8| {
            if self.form {
                *byte == b'&'
            } else {
                matches!(byte, b'\n' | b'\r')
            }
        };
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(ends) {
            let (item, behind) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            self.kept.extend_from_slice(item);
            let item = std::mem::take(&mut self.kept);
            masked_item(self.form, &item, plan, masked, out)?;
            let (separator, behind) = behind.split_at_checked(1).unwrap_or((behind, &[]));
            out.extend_from_slice(separator);
            rest = behind;
        }
        self.kept.extend_from_slice(rest);
        if self.kept.len() > ITEM_BYTES_MAX {
            return Err(Unmaskable("a field or line of more than 1 MiB".to_owned()));
        }
        Ok(())
    }

    pub(super) fn finish(
        &mut self,
        plan: &BodyPlan,
        masked: &mut BTreeSet<Box<str>>,
        out: &mut BytesMut,
    ) -> Result<(), Unmaskable> {
        let item = std::mem::take(&mut self.kept);
        masked_item(self.form, &item, plan, masked, out)
    }
}

fn masked_item(
    form: bool,
    item: &[u8],
    plan: &BodyPlan,
    masked: &mut BTreeSet<Box<str>>,
    out: &mut BytesMut,
) -> Result<(), Unmaskable> {
    if form {
        field(item, plan, masked, out);
        Ok(())
    } else {
        line(item, plan, masked, out)
    }
}

/// `name=value` of a form.
fn field(item: &[u8], plan: &BodyPlan, masked: &mut BTreeSet<Box<str>>, out: &mut BytesMut) {
    let equals = memchr::memchr(b'=', item).unwrap_or(item.len());
    let (name, value) = item.split_at_checked(equals).unwrap_or((item, &[]));
    let value = value.strip_prefix(b"=").unwrap_or(value);
    let decoded_name = String::from_utf8_lossy(&percent_decoded(name, true)).into_owned();
    let decoded = percent_decoded(value, true);
    let changed = match plan.key(&decoded_name) {
        Some(with) => {
            note(masked, &decoded_name);
            Some(
                with.apply(&String::from_utf8_lossy(&decoded))
                    .unwrap_or_default()
                    .into_owned()
                    .into_bytes(),
            )
        }
        None => {
            let changed = plan.patterns.apply(&decoded);
            if changed.is_some() {
                note(masked, "pattern");
            }
            changed
        }
    };
    match changed {
        None => out.extend_from_slice(item),
        Some(changed) => {
            out.extend_from_slice(name);
            out.extend_from_slice(b"=");
            for byte in changed {
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                    out.extend_from_slice(&[byte]);
                } else {
                    out.extend_from_slice(format!("%{byte:02X}").as_bytes());
                }
            }
        }
    }
}

/// A line of an event stream: its data is looked into where it is JSON.
fn line(
    item: &[u8],
    plan: &BodyPlan,
    masked: &mut BTreeSet<Box<str>>,
    out: &mut BytesMut,
) -> Result<(), Unmaskable> {
    if let Some(data) = item.strip_prefix(b"data:")
        && matches!(data.trim_ascii_start().first(), Some(b'{' | b'['))
    {
        let (mut json, mut inner) = (Json::new(true), BytesMut::new());
        json.push(data, plan, masked, &mut inner)?;
        json.finish(plan, masked, &mut inner)?;
        out.extend_from_slice(b"data:");
        out.extend_from_slice(&inner);
        return Ok(());
    }
    if plan.strict && plan.by_name() && item.starts_with(b"data:") && !item.ends_with(b"[DONE]") {
        return Err(Unmaskable("an event without keys".to_owned()));
    }
    match plan.patterns.apply(item) {
        Some(changed) => {
            note(masked, "pattern");
            out.extend_from_slice(&changed);
        }
        None => out.extend_from_slice(item),
    }
    Ok(())
}
