//! What is masked in a response: header fields, and the body as it streams.

use bytes::Bytes;

use super::edit::{self, Edit};
use crate::{
    mask::{
        MaskPlan,
        body::{BodyHead, BodyMasker, KeyMask, Unmaskable},
    },
    operation::http::Fields,
};

/// Fields that are true of the body as the server sent it, and not of one that was masked.
const OF_THE_BODY: [&str; 9] = [
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "content-md5",
    "content-digest",
    "repr-digest",
    "digest",
    "accept-ranges",
    "trailer",
];

/// What masks the body of a response with these `fields`, if anything in it could have to be masked.
///
/// # Errors
/// When the body can't be masked.
pub fn masker(
    plan: &MaskPlan,
    fields: &Fields,
    status: u16,
) -> Result<Option<BodyMasker>, Unmaskable> {
    if plan.body.is_empty() {
        return Ok(None);
    }
    let text = |name: &str| {
        let mut values = fields.all(name).map(String::from_utf8_lossy);
        let first = values.next()?.into_owned();
        // Of several fields the values are one list.
        Some(values.fold(first, |list, next| list + ", " + &next))
    };
    let content_type = text("content-type");
    let content_encoding = text("content-encoding");
    let head = BodyHead {
        content_type: content_type.as_deref(),
        content_encoding: content_encoding.as_deref(),
        partial: status == 206 || fields.get("content-range").is_some(),
    };
    BodyMasker::new(&plan.body, &head).map(Some)
}

/// Whether a field says something of the body that masking makes untrue.
#[must_use]
pub fn is_of_the_body(name: &[u8]) -> bool {
    OF_THE_BODY
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// The value of a header field after masking; `None` where it isn't masked.
#[must_use]
pub fn masked_value(masks: &[KeyMask], name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    if masks.is_empty() {
        return None;
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let mask = masks.iter().find(|mask| mask.name.matches(&name))?;
    let value = String::from_utf8_lossy(value);
    // A cookie keeps its name and attributes: the client knows what it has no value for.
    if name == "set-cookie"
        && let Some((cookie, rest)) = value.split_once('=')
    {
        let (secret, attributes) = rest.split_at(rest.find(';').unwrap_or(rest.len()));
        let masked = mask.with.apply(secret).unwrap_or_default();
        return Some(format!("{cookie}={masked}{attributes}").into_bytes());
    }
    let masked = mask.with.apply(&value).unwrap_or_default();
    Some(masked.into_owned().into_bytes())
}

/// The head of a response as it goes on: with fields masked, and, where the body is, framed anew by the
/// lines `framing`.
pub(super) fn head(plan: &MaskPlan, fields: &Fields, framing: Option<&[u8]>) -> Bytes {
    edit::head(
        fields,
        |name, value| {
            if framing.is_some() && is_of_the_body(name) {
                Edit::Drop
            } else {
                masked_value(&plan.headers, name, value).map_or(Edit::Keep, Edit::Value)
            }
        },
        framing.unwrap_or_default(),
    )
}
