//! What a policy answers.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

/// SHA-256 of the policy files that were in force, in the order in which they were read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyHash(pub [u8; 32]);

// As bytes, not as a tuple of them: every decision on record carries one.
impl Serialize for PolicyHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for PolicyHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = bytes::Bytes::deserialize(deserializer)?;
        <[u8; 32]>::try_from(&bytes[..])
            .map(Self)
            .map_err(|_| serde::de::Error::custom("a policy's hash has 32 bytes"))
    }
}

impl fmt::Display for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was decided and by which rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What the rule says.
    pub verdict: Verdict,
    /// Whether the verdict is carried out; `false` only observes.
    pub enforced: bool,
    /// Id of the rule that decided, `default` where none did.
    pub rule: Arc<str>,
    /// The rule's reason, empty where it gives none.
    pub reason: Arc<str>,
    /// Ids of the rules whose masks apply to the response.
    pub masked_by: Arc<[Box<str>]>,
    /// Whether the record has to be on disk before the operation goes on.
    pub strict: bool,
    /// The policy in force.
    pub policy: PolicyHash,
}

/// The three verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Let it through, with the masks of the matching rules.
    Allow,
    /// Refuse it.
    Deny,
    /// Ask people first.
    Hold(HoldTerms),
}

/// Who has to agree to a held operation, and by when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTerms {
    /// Groups whose members may vote; empty means anyone who may use the control socket.
    pub groups: Arc<[Box<str>]>,
    /// How many distinct people have to agree, at least one.
    pub quorum: u32,
    /// How long the operation waits before it is refused.
    pub within: Duration,
}

impl Default for HoldTerms {
    fn default() -> Self {
        Self {
            groups: [].into(),
            quorum: 1,
            within: Duration::from_secs(15 * 60),
        }
    }
}
