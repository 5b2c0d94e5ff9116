//! How long the journal is kept, as the configuration says it.

use std::time::Duration;

use interceptor_core::glob::Glob;
use serde::Deserialize;

/// The smallest size that can be configured, in bytes: what waits to be written and the index take some 30 MiB.
const SIZE_MIN: u64 = 128 << 20;

/// The longest age that can be configured, in seconds: a century.
const AGE_MAX: u64 = 36_525 * 86_400;

/// What the journal keeps: segments go, whole ones, when nothing in them is to be kept any more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Retention {
    /// How long a segment is kept from when it was last written to.
    pub age: Option<Duration>,
    /// How long that is where it has only what certain agents did; of those that fit an agent's name the first counts.
    pub agents: Vec<(Glob, Duration)>,
    /// How many bytes the state folder may take; the oldest segments make room.
    pub size: Option<u64>,
}

impl Retention {
    /// How long what `agent` did is kept; `None` is for ever.
    #[must_use]
    pub fn age_of(&self, agent: &str) -> Option<Duration> {
        let own = self.agents.iter().find(|(name, _)| name.matches(agent));
        own.map_or(self.age, |(_, age)| Some(*age))
    }

    /// The shortest age that anything is removed at.
    #[must_use]
    pub fn least_age(&self) -> Option<Duration> {
        let ages = self.agents.iter().map(|(_, age)| *age);
        ages.chain(self.age).min()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    age: Option<Age>,
    #[serde(default)]
    size: Option<Size>,
    #[serde(default)]
    agents: Vec<AgentFields>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentFields {
    name: Box<str>,
    age: Age,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "Box<str>")]
struct Age(Duration);

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "Box<str>")]
struct Size(u64);

impl TryFrom<Fields> for Retention {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        if fields.age.is_none() && fields.size.is_none() && fields.agents.is_empty() {
            return Err("it says nothing: give `age`, `size` or `agents`".to_owned());
        }
        let named = |agent: AgentFields| (Glob::new(&agent.name), agent.age.0);
        Ok(Self {
            age: fields.age.map(|age| age.0),
            agents: fields.agents.into_iter().map(named).collect(),
            size: fields.size.map(|size| size.0),
        })
    }
}

impl TryFrom<Box<str>> for Age {
    type Error = String;

    fn try_from(text: Box<str>) -> Result<Self, String> {
        let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
        counted(&text, units)
            .filter(|seconds| (1..=AGE_MAX).contains(seconds))
            .map(|seconds| Self(Duration::from_secs(seconds)))
            .ok_or_else(|| {
                format!(
                    "`{}` is no age from 1s to 100 years; `90d`, `12h` and `30m` are",
                    text.escape_debug()
                )
            })
    }
}

impl TryFrom<Box<str>> for Size {
    type Error = String;

    fn try_from(text: Box<str>) -> Result<Self, String> {
        let units = [("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
        counted(&text, units)
            .filter(|bytes| *bytes >= SIZE_MIN)
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "`{}` is no size of 128 MiB or more; `500MiB`, `50GiB` and `2TiB` are",
                    text.escape_debug()
                )
            })
    }
}

/// A whole number of one of `units`.
fn counted<const N: usize>(text: &str, units: [(&str, u64); N]) -> Option<u64> {
    units.into_iter().find_map(|(unit, of)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(of)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Retention, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn ages_sizes_and_agents_are_read() {
        let day = Duration::from_secs(86_400);
        let all = parsed(
            "{age: 365d, size: 50GiB, agents: [{name: 'ci-*', age: 30d}, {name: '*', age: 12h}]}",
        )
        .unwrap();
        assert_eq!(all.age, Some(365 * day));
        assert_eq!(all.size, Some(50 << 30));
        assert_eq!(all.age_of("ci-7"), Some(30 * day));
        assert_eq!(all.age_of("other"), Some(day / 2));
        assert_eq!(all.least_age(), Some(day / 2));
        let size = parsed("size: 128MiB").unwrap();
        assert_eq!((size.age_of("x"), size.least_age()), (None, None));
        let some = parsed("agents: [{name: a, age: 1h}]").unwrap();
        assert_eq!(some.age_of("b"), None);
    }

    #[test]
    fn what_says_nothing_or_nonsense_is_refused_with_what_would_do() {
        for (text, why) in [
            ("{}", "it says nothing"),
            ("age: 0d", "`0d` is no age"),
            ("age: 90", "is no age"),
            ("age: 99999999999999999999d", "is no age"),
            ("age: 4000000d", "is no age"),
            ("size: 127MiB", "128 MiB or more"),
            ("size: 50GB", "`50GiB`"),
            ("size: 99999999TiB", "is no size"),
            ("agents: [{name: a}]", "age"),
            ("keep: 1d", "keep"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
