//! What a request is but for its values.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::operation::{
    Operation, attribute,
    http::{Body, percent_decoded},
};

/// Fields that differ from one request to the next and don't change what is asked for.
const INCIDENTAL: [&str; 12] = [
    "date",
    "content-length",
    "traceparent",
    "tracestate",
    "baggage",
    "x-request-id",
    "x-correlation-id",
    "x-amzn-trace-id",
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "x-amz-date",
    "if-none-match",
];

/// The request in `operation` with `{id}` in place of every segment of its path that looks like one and without the
/// values of its query. Its header fields, but for those that say nothing of what is asked for, and its body stay as
/// they are.
///
/// `None` where not all of it is known.
#[must_use]
pub fn shape(operation: &Operation) -> Option<Bytes> {
    let request = operation.http.as_deref()?;
    let attributes = &operation.description.attributes;
    let mut out = BytesMut::new();
    let mut part = |bytes: &[u8]| {
        out.put_u64(bytes.len() as u64);
        out.put_slice(bytes);
    };
    for name in [attribute::HTTP_HOST, attribute::HTTP_FRONTING] {
        part(attributes.get(name).map_or("", |value| value).as_bytes());
    }
    for segment in attributes.get(attribute::HTTP_PATH)?.split('/') {
        part(if is_id(segment) {
            b"{id}"
        } else {
            segment.as_bytes()
        });
    }
    part(b"");
    let pairs = request.query.as_deref().unwrap_or_default();
    for pair in pairs.split(|byte| *byte == b'&') {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        part(&percent_decoded(name, true));
    }
    part(b"");
    for (name, value) in request.fields.iter() {
        let name = name.to_ascii_lowercase();
        if !INCIDENTAL.iter().any(|known| known.as_bytes() == name) {
            part(&name);
            part(value);
        }
    }
    part(b"");
    match &request.body {
        Body::None => {}
        Body::Coming(_) => return None,
        Body::Whole(body) => part(body),
    }
    Some(out.freeze())
}

/// Whether a segment of a path names one of many: a number, a UUID, or a long string of hexadecimal digits.
fn is_id(segment: &str) -> bool {
    /// Shorter ones are words: `face`, `added`.
    const HEX_MIN: usize = 12;
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    let is_hex = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    digits > 0
        && (digits == segment.len() || segment.len() >= HEX_MIN && segment.bytes().all(is_hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_and_long_hexadecimals() {
        for id in [
            "7",
            "1234567890",
            "0b9fd1a6-7c1e-4c5e-9a56-6d0f3f3b6a11",
            "5f43a1b2c3d4e5f60718293a",
        ] {
            assert!(is_id(id), "{id}");
        }
        for word in [
            "",
            "v1",
            "users",
            "face",
            "added",
            "deadbeefdeadbeef",
            "2fa-codes",
        ] {
            assert!(!is_id(word), "{word}");
        }
    }
}
