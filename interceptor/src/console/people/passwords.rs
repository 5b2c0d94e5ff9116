//! Local users.

use std::collections::HashMap;

use argon2::{Argon2, PasswordHash, PasswordVerifier as _};
use tokio::sync::Semaphore;

use crate::{
    approval::Voter,
    console::config::LocalUser,
    control::{Identity, Way},
};

/// Passwords that are looked at at once: each takes some 20 MiB and 50 ms of a core.
const AT_ONCE: usize = 2;

/// Longest password that is looked at, in bytes.
const PASSWORD_BYTES_MAX: usize = 1_024;

/// What a name is compared with that nobody has, so that it takes as long: a hash that no password has.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Local users by name.
pub(in crate::console) struct Passwords {
    users: HashMap<Box<str>, LocalUser>,
    turn: Semaphore,
}

impl Passwords {
    pub(in crate::console) fn new(users: Vec<LocalUser>) -> Self {
        let named = users.into_iter().map(|user| (user.name.clone(), user));
        Self {
            users: named.collect(),
            turn: Semaphore::new(AT_ONCE),
        }
    }

    /// The groups of `name`; none where nobody is called so.
    pub(in crate::console) fn groups(&self, name: &str) -> Box<[Box<str>]> {
        let groups = self.users.get(name).map(|user| user.groups.clone());
        groups.unwrap_or_default().into()
    }

    /// Whether there are any.
    pub(in crate::console) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Who `name` is, if `password` is theirs.
    pub(in crate::console) async fn check(&self, name: &str, password: String) -> Option<Identity> {
        if password.len() > PASSWORD_BYTES_MAX {
            return None;
        }
        let _turn = self.turn.acquire().await.ok()?;
        let user = self.users.get(name);
        let hash = user.map_or_else(|| NOBODY.into(), |user| user.password.clone());
        let fits = tokio::task::spawn_blocking(move || fits(&hash, password.as_bytes()))
            .await
            .unwrap_or(false);
        let user = user.filter(|_| fits)?;
        Some(Identity {
            voter: Voter {
                name: name.into(),
                uid: None,
                groups: user.groups.clone().into(),
            },
            way: Way::Password,
            at_most: None,
        })
    }
}

fn fits(hash: &str, password: &[u8]) -> bool {
    let parsed = PasswordHash::new(hash);
    parsed.is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use argon2::{PasswordHasher as _, password_hash::SaltString};

    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_the_right_name_fits() {
        let salt = SaltString::encode_b64(b"0123456789abcdef").unwrap();
        let hash = Argon2::default()
            .hash_password(b"right", &salt)
            .unwrap()
            .to_string();
        let users = Passwords::new(vec![LocalUser {
            name: "alice".into(),
            password: hash.into(),
            groups: vec!["dba".into()],
        }]);
        let alice = users.check("alice", "right".to_owned()).await.unwrap();
        assert_eq!(*alice.voter.groups, ["dba".into()]);
        for (name, password) in [
            ("alice", ""),
            ("alice", "Right"),
            ("bob", "right"),
            ("", ""),
            ("alice", &"x".repeat(2_000)),
        ] {
            assert!(
                users.check(name, password.to_owned()).await.is_none(),
                "{name} {password}"
            );
        }
        assert!(PasswordHash::new(NOBODY).is_ok(), "or nobody takes no time");
    }
}
