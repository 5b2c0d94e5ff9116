//! Links by which somebody at the control socket signs in at the console.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use aws_lc_rs::{digest, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::host::{Failure, FailureKind};
use crate::{approval::Voter, sync::lock};

/// How long a link is good: a person copies it from one window to another.
const GOOD_FOR: Duration = Duration::from_secs(120);

/// Links that are good at once; the oldest give way.
const LINKS_MAX: usize = 64;

/// Links that nobody has used yet, by what their codes hash to.
#[derive(Debug, Default)]
pub struct Links(Mutex<HashMap<Vec<u8>, (Voter, Instant)>>);

impl Links {
    /// A code that signs `voter` in, once and soon.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn make(&self, voter: Voter) -> Result<String, Failure> {
        let mut code = [0; 32];
        rand::fill(&mut code)
            .map_err(|_| Failure::new(FailureKind::Broken, "the system has no randomness"))?;
        let code = URL_SAFE_NO_PAD.encode(code);
        let mut links = lock(&self.0);
        links.retain(|_, (_, made)| made.elapsed() < GOOD_FOR);
        if links.len() >= LINKS_MAX {
            let oldest = links.iter().min_by_key(|(_, (_, made))| *made);
            if let Some(oldest) = oldest.map(|(hash, _)| hash.clone()) {
                links.remove(&oldest);
            }
        }
        links.insert(hash(&code), (voter, Instant::now()));
        Ok(code)
    }

    /// Whom `code` signs in. It is used up.
    ///
    /// # Errors
    /// Where it is none, was used, or is too old.
    pub fn redeem(&self, code: &str) -> Result<Voter, Failure> {
        // By its hash, so that how long a wrong one takes to look up says nothing.
        match lock(&self.0).remove(&hash(code)) {
            Some((voter, made)) if made.elapsed() < GOOD_FOR => Ok(voter),
            _ => Err(Failure::new(
                FailureKind::Forbidden,
                "this link has been used, is older than two minutes, or was never made",
            )
            .with_remedy("make another with `interceptor console link`")),
        }
    }
}

fn hash(code: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, code.as_bytes())
        .as_ref()
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::person;

    #[test]
    fn a_link_signs_in_once() {
        let links = Links::default();
        let me = person::user(0);
        let code = links.make(me.clone()).unwrap();
        assert_ne!(code, links.make(me.clone()).unwrap());
        assert_eq!(links.redeem(&code), Ok(me.clone()));
        assert!(links.redeem(&code).is_err());
        assert!(links.redeem("").is_err());
        let first = links.make(me.clone()).unwrap();
        for _ in 0..LINKS_MAX {
            links.make(me.clone()).unwrap();
        }
        assert!(links.redeem(&first).is_err(), "the oldest gives way");
    }
}
