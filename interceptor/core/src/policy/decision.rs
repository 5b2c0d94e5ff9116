//! What a policy answers.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::operation::radius::Estimate;

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
    /// What rules that aren't enforced would have done, in a policy that is.
    pub observed: Arc<[Observation]>,
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

/// What a rule would have done, and didn't, because it only observes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The rule that would have done it.
    pub rule: Box<str>,
    /// What.
    pub would: Would,
}

/// What a rule would have done that only observes, the least of it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Would {
    /// Masked what came back, where it had something to mask.
    Mask,
    /// Asked people.
    Hold,
    /// Refused it.
    Deny,
}

impl Would {
    /// As a word after `would`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mask => "mask",
            Self::Hold => "hold",
            Self::Deny => "deny",
        }
    }
}

impl Decision {
    /// What it would have done, where it is one that only observes, and what rules would have done that only observe.
    #[must_use]
    pub fn observations(&self) -> Vec<Observation> {
        if self.enforced {
            return self.observed.to_vec();
        }
        let would = match &self.verdict {
            Verdict::Allow => None,
            Verdict::Hold(_) => Some(Would::Hold),
            Verdict::Deny => Some(Would::Deny),
        };
        let own = would.map(|would| Observation {
            rule: (&*self.rule).into(),
            would,
        });
        // What would be refused has nothing that comes back.
        let masks = match self.verdict {
            Verdict::Deny => &[][..],
            _ => &*self.masked_by,
        };
        let masks = masks.iter().map(|rule| Observation {
            rule: rule.clone(),
            would: Would::Mask,
        });
        own.into_iter().chain(masks).collect()
    }
}

/// Who has to agree to a held operation, by when, and what their yes may be for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTerms {
    /// Groups whose members may vote. Where neither groups nor people are named, anyone who may use the control
    /// socket.
    pub groups: Arc<[Box<str>]>,
    /// People who may vote, whichever groups they are in.
    pub people: Arc<[Box<str>]>,
    /// How many distinct people have to agree, at least one.
    pub quorum: u32,
    /// How long they have.
    pub within: Duration,
    /// How long the client is kept waiting; after that it is told to come back. As long as they have, where not
    /// shorter.
    pub wait: Duration,
    /// How long after its client gave up waiting, or after it was approved, the operation may be sent again and pass
    /// without another question; zero where it may not.
    pub retry: Duration,
    /// What becomes of it where nobody says no and too few say yes.
    pub otherwise: Otherwise,
    /// Who is asked as well when it has waited for a while, soonest first.
    pub escalate: Arc<[Escalation]>,
    /// Whether a yes needs a reason.
    pub reason: bool,
    /// What people may agree to beyond the one operation; nothing where it isn't said.
    pub windows: Option<WindowLimits>,
    /// Whether a yes has to be signed by its giver's security key.
    pub security_key: bool,
    /// Whether what it would touch is found out beforehand, and how.
    pub blast_radius: Option<Estimate>,
}

/// What becomes of a held operation about which nobody decided in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    /// It is refused.
    #[default]
    Deny,
    /// It goes: people had the time to object. Only where its client still waits.
    Allow,
}

/// Further groups that are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escalation {
    /// How long after the operation was held.
    pub after: Duration,
    /// The groups.
    pub groups: Arc<[Box<str>]>,
}

/// What later operations an approval is for as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowScope {
    /// The same operation, byte for byte.
    Operation,
    /// The same but for values: a statement without its literals, a path without its ids.
    Shape,
    /// Whatever the same rule holds of this agent.
    Rule,
}

impl WindowScope {
    /// Its name in policies and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::Shape => "shape",
            Self::Rule => "rule",
        }
    }
}

/// The most that people may agree to in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowLimits {
    /// What for: this or less.
    pub scope: WindowScope,
    /// For how long.
    #[serde(rename = "for")]
    pub span: Duration,
    /// How many operations more than the one that was asked about.
    pub at_most: u32,
}

/// How long people have where a rule doesn't say.
pub const WITHIN: Duration = Duration::from_secs(15 * 60);

/// How long an operation may be sent again where a rule doesn't say.
pub const RETRY: Duration = Duration::from_secs(15 * 60);

impl Default for HoldTerms {
    fn default() -> Self {
        Self {
            groups: [].into(),
            people: [].into(),
            quorum: 1,
            within: WITHIN,
            wait: WITHIN,
            retry: RETRY,
            otherwise: Otherwise::Deny,
            escalate: [].into(),
            reason: false,
            windows: None,
            security_key: false,
            blast_radius: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(verdict: Verdict, enforced: bool) -> Decision {
        Decision {
            verdict,
            enforced,
            rule: "own".into(),
            reason: "".into(),
            masked_by: [Box::from("masks")].into(),
            observed: [Observation {
                rule: "other".into(),
                would: Would::Deny,
            }]
            .into(),
            strict: false,
            policy: PolicyHash([0; 32]),
        }
    }

    #[test]
    fn a_policy_that_only_observes_says_what_it_would_have_done() {
        let said = |decision: &Decision| {
            let observations = decision.observations();
            let said = observations.iter();
            let said = said.map(|said| format!("{} {}", said.rule, said.would.name()));
            said.collect::<Vec<_>>().join(", ")
        };
        let held = Verdict::Hold(HoldTerms::default());
        for (verdict, enforced, expected) in [
            (Verdict::Allow, true, "other deny"),
            (Verdict::Allow, false, "masks mask"),
            (held, false, "own hold, masks mask"),
            (Verdict::Deny, false, "own deny"),
        ] {
            assert_eq!(said(&decision(verdict, enforced)), expected);
        }
    }
}
