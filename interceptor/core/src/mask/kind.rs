//! What becomes of a masked value.

use std::borrow::Cow;

/// What becomes of a masked value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskKind {
    /// The first letter and the domain stay: `a***@example.com`.
    Email,
    /// The last four characters stay: `************1111`.
    Last4,
    /// Nothing stays: `[redacted]`.
    Redact,
    /// NULL.
    Null,
}

impl MaskKind {
    /// Each kind by the name that policies give it.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("email", Self::Email),
        ("last4", Self::Last4),
        ("redact", Self::Redact),
        ("null", Self::Null),
    ];

    /// The kind of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, kind)| *kind)
    }

    /// What stands in the place of `value`; `None` is NULL.
    #[must_use]
    pub fn apply(self, value: &str) -> Option<Cow<'static, str>> {
        match self {
            Self::Null => None,
            Self::Redact => Some("[redacted]".into()),
            Self::Email => Some(match value.split_once('@') {
                Some((name, domain)) if !name.is_empty() && !domain.contains('@') => {
                    let mut masked = String::with_capacity(domain.len() + 8);
                    masked.extend(name.chars().next());
                    masked.push_str("***@");
                    masked.push_str(domain);
                    masked.into()
                }
                _ => "***".into(),
            }),
            Self::Last4 => {
                let count = value.chars().count();
                // Four of a short value would be most of it.
                if count < 8 {
                    return Some("****".into());
                }
                let last = value.chars().skip(count - 4);
                Some(std::iter::repeat_n('*', count - 4).chain(last).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MaskKind;

    #[test]
    fn what_stays_is_what_is_said() {
        for (kind, value, expected) in [
            (MaskKind::Email, "ada@example.com", Some("a***@example.com")),
            (MaskKind::Email, "no address", Some("***")),
            (MaskKind::Email, "@", Some("***")),
            (
                MaskKind::Last4,
                "4111111111111111",
                Some("************1111"),
            ),
            (MaskKind::Last4, "1234567", Some("****")),
            (MaskKind::Redact, "x", Some("[redacted]")),
            (MaskKind::Null, "x", None),
        ] {
            assert_eq!(kind.apply(value).as_deref(), expected, "{value}");
        }
    }
}
