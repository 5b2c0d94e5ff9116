//! Reading exported lines: what isn't there, or isn't what it should be, is nothing.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use interceptor_core::record::Timestamp;
use serde_json::Value;

use crate::rfc3339;

/// The member `name`, or null.
pub(super) fn get<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}

/// The text `name`, or none.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    get(value, name).as_str().unwrap_or_default()
}

/// The number `name`, or 0.
pub(super) fn number(value: &Value, name: &str) -> u64 {
    get(value, name).as_u64().unwrap_or_default()
}

/// The members of the list `name`.
pub(super) fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    get(value, name).as_array().into_iter().flatten()
}

/// The texts of the list `name`.
pub(super) fn texts<'a>(value: &'a Value, name: &str) -> Vec<&'a str> {
    list(value, name).filter_map(Value::as_str).collect()
}

/// When the line was recorded.
pub(super) fn time(line: &Value) -> Timestamp {
    rfc3339::parse(text(line, "time")).unwrap_or_default()
}

/// A line's time for people, to the second: `2026-11-20 22:07:01`.
pub(super) fn moment(time: &str) -> String {
    time.get(..19).unwrap_or(time).replace('T', " ")
}

/// Content as it was exported: text, or bytes in base64 or hexadecimal.
pub(super) fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.as_bytes().to_vec(),
        other => match (get(other, "base64").as_str(), get(other, "hex").as_str()) {
            (Some(encoded), _) => STANDARD.decode(encoded).unwrap_or_default(),
            (_, Some(digits)) => hex::decode(digits).unwrap_or_default(),
            _ => Vec::new(),
        },
    }
}

/// A value in one text: what isn't text says what it is, `base64:…`, `hex:…`.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(object) if object.len() == 1 => object
            .iter()
            .map(|(kind, value)| format!("{kind}:{}", value.as_str().unwrap_or_default()))
            .collect(),
        other => other.to_string(),
    }
}
