//! Timestamps as JSON and people write them. For serde: `#[serde(with = "crate::rfc3339")]`.

use interceptor_core::record::Timestamp;
use serde::{Deserialize, Deserializer, Serializer};

/// Writes RFC 3339 with nanoseconds.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// Reads RFC 3339.
///
/// # Errors
/// Where it isn't, or lies outside 1970 to 2554.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// The same for times that may be absent.
pub mod option {
    use interceptor_core::record::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes RFC 3339 with nanoseconds, or null.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.collect_str(time),
            None => serializer.serialize_none(),
        }
    }

    /// Reads RFC 3339, or null.
    ///
    /// # Errors
    /// Where it is neither, or lies outside 1970 to 2554.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| super::parse(&text).map_err(serde::de::Error::custom))
            .transpose()
    }
}

/// The time that `text` gives in RFC 3339.
///
/// # Errors
/// Where it isn't, or lies outside 1970 to 2554; the message names what would be right.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    text.parse::<jiff::Timestamp>()
        .ok()
        .and_then(|time| u64::try_from(time.as_nanosecond()).ok())
        .map(Timestamp)
        .ok_or_else(|| {
            format!(
                "`{}` is not a time: 2026-11-20T22:07:01Z is",
                text.escape_debug()
            )
        })
}

/// `time` to the second, for people.
#[must_use]
pub fn short(time: Timestamp) -> String {
    let text = time.to_string();
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_to_the_nanosecond() {
        for nanoseconds in [0, 1, 1_700_000_000_123_456_789, u64::MAX] {
            let time = Timestamp(nanoseconds);
            assert_eq!(parse(&time.to_string()), Ok(time));
        }
        assert_eq!(parse("2026-11-20T22:07:01+01:00").unwrap().0 % 1_000, 0);
        assert_eq!(
            parse("yesterday").unwrap_err(),
            "`yesterday` is not a time: 2026-11-20T22:07:01Z is"
        );
        assert!(parse("1969-12-31T23:59:59Z").is_err());
    }
}
