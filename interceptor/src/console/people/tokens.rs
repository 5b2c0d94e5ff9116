//! Programs.

use std::collections::HashMap;

use super::hashed;
use crate::{
    approval::Voter,
    control::{Identity, Role, Way},
};

/// Programs by what their tokens hash to: their names and what they may.
pub(in crate::console) struct Tokens(HashMap<[u8; 32], (Box<str>, Role)>);

impl Tokens {
    pub(in crate::console) fn new(tokens: Vec<(Box<str>, Box<str>, Role)>) -> Self {
        let known = tokens.into_iter().filter_map(|(name, sha256, role)| {
            // The configuration has been held to it.
            let hash = hex::decode(&*sha256).ok()?.try_into().ok()?;
            Some((hash, (name, role)))
        });
        Self(known.collect())
    }

    /// Which program `token` is.
    pub(in crate::console) fn of(&self, token: &str) -> Option<Identity> {
        let (name, role) = self.0.get(&hashed(token))?;
        Some(Identity {
            voter: Voter {
                // No person can be called so.
                name: format!("token:{name}").into(),
                uid: None,
                groups: [].into(),
            },
            way: Way::Token,
            at_most: Some(*role),
        })
    }
}
