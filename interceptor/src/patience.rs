//! How long a peer may take over what others wait for: what a session costs is bounded in time as well.

use std::time::Duration;

use serde::Deserialize;

/// How long peers may take, each from when they began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patience {
    /// A client's ClientHello, and the handshake with either side.
    #[serde(deserialize_with = "duration")]
    pub handshake: Duration,
    /// A client's request, to the last byte that has to be there before it is decided: its head, and its
    /// body where the decision waits for that. 64 MiB in 60 s are 9 Mbit/s.
    #[serde(deserialize_with = "duration")]
    pub request: Duration,
    /// A peer of HTTP that takes nothing of what is there for it. Meanwhile up to
    /// [`QUEUED_BYTES_MAX`](interceptor_core::limits::QUEUED_BYTES_MAX) are kept for it.
    #[serde(deserialize_with = "duration")]
    pub stalled: Duration,
    /// A client of HTTP/2 without a request, whole ones: it is sent away in order (GOAWAY), for a header
    /// block that never ends looks like a connection that waits.
    #[serde(deserialize_with = "duration")]
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            request: Duration::from_secs(60),
            stalled: Duration::from_secs(120),
            idle: Duration::from_secs(5 * 60),
        }
    }
}

/// Longest time that can be configured: a day, as good as for ever.
const SECONDS_MAX: u64 = 86_400;

pub(crate) fn duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    let text = Box::<str>::deserialize(deserializer)?;
    let whole = |unit: char, seconds: u64| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(seconds)
    };
    whole('s', 1)
        .or_else(|| whole('m', 60))
        .or_else(|| whole('h', 3_600))
        .filter(|seconds| (1..=SECONDS_MAX).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{}` is no time from 1s to 24h; `90s`, `15m` and `2h` are",
                text.escape_debug()
            ))
        })
}
