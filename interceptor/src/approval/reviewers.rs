//! Who may vote.

use std::collections::{BTreeMap, BTreeSet};

/// A person at the control socket, as the kernel and the user database name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voter {
    /// User id of the peer; what makes people distinct.
    pub uid: u32,
    /// Its name, or the number where it has none.
    pub name: Box<str>,
    /// Names of the Unix groups the user is in.
    pub groups: Box<[Box<str>]>,
}

/// The people behind the groups that rules name.
///
/// A group that the configuration lists is exactly its members, user names or numeric ids; any
/// other is the Unix group of that name.
#[derive(Debug, Clone, Default)]
pub struct Reviewers {
    configured: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
}

impl Reviewers {
    /// Reviewers with these configured groups.
    #[must_use]
    pub const fn new(configured: BTreeMap<Box<str>, BTreeSet<Box<str>>>) -> Self {
        Self { configured }
    }

    /// Whether `voter` is in one of `groups`; where there is none, anyone is.
    #[must_use]
    pub fn admit(&self, voter: &Voter, groups: &[Box<str>]) -> bool {
        groups.is_empty()
            || groups.iter().any(|group| match self.configured.get(group) {
                Some(members) => {
                    members.contains(&voter.name)
                        || members.contains(voter.uid.to_string().as_str())
                }
                None => voter.groups.contains(group),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(uid: u32, name: &str, groups: &[&str]) -> Voter {
        Voter {
            uid,
            name: name.into(),
            groups: groups.iter().map(|group| (*group).into()).collect(),
        }
    }

    #[test]
    fn a_configured_group_is_exactly_its_members() {
        let reviewers = Reviewers::new(BTreeMap::from([(
            "dba".into(),
            BTreeSet::from(["alice".into(), "1007".into()]),
        )]));
        let dba: [Box<str>; 1] = ["dba".into()];
        assert!(reviewers.admit(&voter(1001, "alice", &[]), &dba));
        assert!(reviewers.admit(&voter(1007, "bob", &[]), &dba));
        // The Unix group of the same name doesn't count, and root is nobody special.
        assert!(!reviewers.admit(&voter(1002, "carol", &["dba"]), &dba));
        assert!(!reviewers.admit(&voter(0, "root", &["root"]), &dba));
    }

    #[test]
    fn another_group_is_the_unix_group_and_none_is_everyone() {
        let reviewers = Reviewers::default();
        let ops: [Box<str>; 1] = ["ops".into()];
        assert!(reviewers.admit(&voter(1002, "carol", &["ops"]), &ops));
        assert!(!reviewers.admit(&voter(1003, "dave", &["users"]), &ops));
        assert!(reviewers.admit(&voter(1003, "dave", &[]), &[]));
    }
}
