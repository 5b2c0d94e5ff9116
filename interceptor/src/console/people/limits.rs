//! How often somebody may try.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::sync::lock;

/// Failures that cost nothing but themselves.
const FREE: u32 = 5;

/// Longest wait: long enough to make guessing hopeless. Who is kept out by others who guess gets in by a link or a
/// provider.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long failures are remembered.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// Names and addresses that are remembered; beyond these everybody waits.
const KEPT_MAX: usize = 10_000;

/// Who failed how often: names and addresses each for themselves.
#[derive(Debug, Default)]
pub(in crate::console) struct Limits(Mutex<HashMap<Key, Failures>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Name(Box<str>),
    Address(IpAddr),
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Limits {
    /// Counts an attempt of `name` from `address` as failed until [`Self::succeeded`], so that many at once count
    /// as many.
    ///
    /// # Errors
    /// How long to wait.
    pub(in crate::console) fn attempt(
        &self,
        name: &str,
        address: IpAddr,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut kept = lock(&self.0);
        kept.retain(|_, failures| now.duration_since(failures.last) < REMEMBERED);
        let keys = keys(name, address);
        let waits = keys.iter().filter_map(|key| kept.get(key)?.wait(now));
        if let Some(wait) = waits.max() {
            return Err(wait);
        }
        if kept.len() + keys.len() > KEPT_MAX {
            return Err(WAIT_MAX);
        }
        for key in keys {
            let failures = kept.entry(key).or_insert(Failures {
                count: 0,
                last: now,
            });
            failures.count += 1;
            failures.last = now;
        }
        Ok(())
    }

    /// The attempt was none to guess.
    pub(in crate::console) fn succeeded(&self, name: &str, address: IpAddr) {
        let mut kept = lock(&self.0);
        let [name, address] = keys(name, address);
        kept.remove(&name);
        // Others at that address stay as they were.
        if let Some(failures) = kept.get_mut(&address) {
            failures.count = failures.count.saturating_sub(1);
        }
    }
}

impl Failures {
    fn wait(self, now: Instant) -> Option<Duration> {
        let over = self.count.checked_sub(FREE)?;
        let wait = Duration::from_secs(1 << over.min(6)).min(WAIT_MAX);
        wait.checked_sub(now.duration_since(self.last))
            .filter(|wait| !wait.is_zero())
    }
}

fn keys(name: &str, address: IpAddr) -> [Key; 2] {
    [Key::Name(name.to_lowercase().into()), Key::Address(address)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_gets_slower_and_patience_is_let_by() {
        let limits = Limits::default();
        let (start, here) = (Instant::now(), IpAddr::from([127, 0, 0, 1]));
        for _ in 0..FREE {
            assert_eq!(limits.attempt("alice", here, start), Ok(()));
        }
        assert_eq!(
            limits.attempt("alice", here, start),
            Err(Duration::from_secs(1))
        );
        // From elsewhere the name still counts, and under another name the address does.
        let there = IpAddr::from([127, 0, 0, 2]);
        assert!(limits.attempt("ALICE", there, start).is_err());
        assert!(limits.attempt("bob", here, start).is_err());
        assert_eq!(limits.attempt("bob", there, start), Ok(()));
        let mut now = start;
        let mut waited = Duration::ZERO;
        for _ in 0..20 {
            let wait = limits.attempt("alice", here, now).unwrap_err();
            now += wait;
            waited += wait;
            assert_eq!(limits.attempt("alice", here, now), Ok(()));
        }
        assert!(waited > WAIT_MAX * 10, "{waited:?}");
        now += WAIT_MAX;
        assert_eq!(limits.attempt("alice", here, now), Ok(()));
        limits.succeeded("alice", here);
        assert_eq!(limits.attempt("alice", there, now), Ok(()));
    }
}
