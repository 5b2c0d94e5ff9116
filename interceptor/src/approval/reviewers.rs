//! Who may vote.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use interceptor_core::origin::Agent;
use serde::{Deserialize, Serialize};

use super::keys::SecurityKeys;

/// A person: at the control socket as the kernel and the user database name them, at the console as they signed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    /// What makes people distinct: a user name (the number where it has none), a local user's, or what an OpenID
    /// provider proved.
    pub name: Box<str>,
    /// User id, where the kernel told it.
    pub uid: Option<u32>,
    /// Names of the groups that they are in: Unix groups, or those that their provider says.
    pub groups: Box<[Box<str>]>,
}

/// The people behind the groups that rules name.
///
/// A group that the configuration lists is exactly its members, user names or numeric ids; any
/// other is the Unix group of that name.
#[derive(Debug, Clone, Default)]
pub struct Reviewers {
    configured: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
    /// Groups whose members may let something through alone, in an emergency.
    break_glass: Vec<Box<str>>,
    /// What people sign with.
    keys: Arc<SecurityKeys>,
}

/// Who is asked about one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) groups: &'a [Box<str>],
    pub(super) people: &'a [Box<str>],
    /// Groups that were asked later.
    pub(super) escalated: &'a [Box<str>],
}

/// The label of an agent that says whose it is.
const OWNER: &str = "owner";

impl Reviewers {
    /// Reviewers with these configured groups; the members of `break_glass` may override.
    #[must_use]
    pub fn new(
        configured: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
        break_glass: Vec<Box<str>>,
    ) -> Self {
        Self {
            configured,
            break_glass,
            keys: Arc::default(),
        }
    }

    /// The same, whose people sign with `keys`.
    #[must_use]
    pub fn signing_with(self, keys: Arc<SecurityKeys>) -> Self {
        Self { keys, ..self }
    }

    /// What people sign with.
    #[must_use]
    pub fn keys(&self) -> &SecurityKeys {
        &self.keys
    }

    /// Whether `voter` is one of those who are `asked`; where nobody is named, anyone is.
    pub(super) fn admit(&self, voter: &Voter, asked: Asked<'_>) -> bool {
        let Asked {
            groups,
            people,
            escalated,
        } = asked;
        // Who is asked later doesn't take from those that nobody was named for at first.
        groups.is_empty() && people.is_empty()
            || people.iter().any(|name| voter.is(name))
            || self.is_in(voter, groups)
            || self.is_in(voter, escalated)
    }

    /// Whether `voter` may override.
    pub(super) fn may_break_glass(&self, voter: &Voter) -> bool {
        self.is_in(voter, &self.break_glass)
    }

    /// The groups whose members may override.
    pub(super) fn break_glass(&self) -> &[Box<str>] {
        &self.break_glass
    }

    /// Whether `voter` is in one of `groups`.
    pub(crate) fn is_in(&self, voter: &Voter, groups: &[Box<str>]) -> bool {
        groups.iter().any(|group| match self.configured.get(group) {
            Some(members) => members.iter().any(|member| voter.is(member)),
            None => voter.groups.contains(group),
        })
    }
}

impl Voter {
    /// Whether this is who is called `name`, or has that number.
    pub(crate) fn is(&self, name: &str) -> bool {
        *self.name == *name || self.uid.is_some_and(|uid| uid.to_string() == name)
    }

    /// Whether `agent` is this person's own.
    pub(super) fn owns(&self, agent: &Agent) -> bool {
        agent.labels.get(OWNER).is_some_and(|owner| self.is(owner))
    }
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = [self.groups, self.escalated].concat();
        if !groups.is_empty() {
            write!(f, "members of {}", groups.join(", "))?;
        }
        if !self.people.is_empty() {
            let and = if groups.is_empty() { "" } else { " and " };
            write!(f, "{and}{}", self.people.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(uid: u32, name: &str, groups: &[&str]) -> Voter {
        Voter {
            uid: Some(uid),
            name: name.into(),
            groups: groups.iter().map(|group| (*group).into()).collect(),
        }
    }

    #[test]
    fn a_configured_group_is_exactly_its_members() {
        let configured = BTreeMap::from([(
            "dba".into(),
            BTreeSet::from(["alice".into(), "1007".into()]),
        )]);
        let reviewers = Reviewers::new(configured, vec!["dba".into()]);
        let dba = groups(&["dba"]);
        for admit in [
            |reviewers: &Reviewers, voter: Voter, dba: &[Box<str>]| {
                reviewers.admit(&voter, asked(dba, &[], &[]))
            },
            |reviewers: &Reviewers, voter: Voter, _: &[Box<str>]| reviewers.may_break_glass(&voter),
        ] {
            assert!(admit(&reviewers, voter(1001, "alice", &[]), &dba));
            assert!(admit(&reviewers, voter(1007, "bob", &[]), &dba));
            // The Unix group of the same name doesn't count, and root is nobody special.
            assert!(!admit(&reviewers, voter(1002, "carol", &["dba"]), &dba));
            assert!(!admit(&reviewers, voter(0, "root", &["root"]), &dba));
        }
        assert!(!Reviewers::default().may_break_glass(&voter(0, "root", &["root"])));
    }

    #[test]
    fn another_group_is_the_unix_group_and_none_is_everyone() {
        let reviewers = Reviewers::default();
        let ops = groups(&["ops"]);
        assert!(reviewers.admit(&voter(1002, "carol", &["ops"]), asked(&ops, &[], &[])));
        assert!(!reviewers.admit(&voter(1003, "dave", &["users"]), asked(&ops, &[], &[])));
        assert!(reviewers.admit(&voter(1003, "dave", &[]), asked(&[], &[], &[])));
        assert!(reviewers.admit(&voter(1003, "dave", &[]), asked(&[], &[], &ops)));
    }

    #[test]
    fn people_are_asked_beside_groups_and_others_later() {
        let reviewers = Reviewers::default();
        let (ops, leads, erin) = (groups(&["ops"]), groups(&["leads"]), groups(&["erin"]));
        let all = asked(&ops, &erin, &leads);
        for (name, of, is_asked) in [
            ("carol", "ops", true),
            ("erin", "users", true),
            ("frank", "leads", true),
            ("dave", "users", false),
        ] {
            assert_eq!(
                reviewers.admit(&voter(1002, name, &[of]), all),
                is_asked,
                "{name}"
            );
        }
        assert!(!reviewers.admit(&voter(1003, "frank", &["leads"]), asked(&ops, &erin, &[])));
        assert_eq!(all.to_string(), "members of ops, leads and erin");
    }

    #[test]
    fn an_agent_is_its_owners_by_name_or_number() {
        let agent = |owner: &str| Agent {
            name: "a".into(),
            labels: BTreeMap::from([("owner".into(), owner.into())]),
        };
        let alice = voter(1001, "alice", &[]);
        assert!(alice.owns(&agent("alice")) && alice.owns(&agent("1001")));
        assert!(!alice.owns(&agent("bob")));
        assert!(!alice.owns(&Agent {
            name: "alice".into(),
            labels: BTreeMap::new()
        }));
    }

    fn groups(names: &[&str]) -> Vec<Box<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn asked<'a>(
        groups: &'a [Box<str>],
        people: &'a [Box<str>],
        escalated: &'a [Box<str>],
    ) -> Asked<'a> {
        Asked {
            groups,
            people,
            escalated,
        }
    }
}
