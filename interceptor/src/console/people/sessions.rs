//! Who is signed in. In memory: a console that starts again has everybody sign in again.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{hashed, secret};
use crate::{
    control::{Identity, Me},
    sync::lock,
};

/// People who are signed in at once; who did nothing for longest gives way.
const SESSIONS_MAX: usize = 10_000;

/// Somebody who is signed in.
#[derive(Debug, Clone)]
pub(in crate::console) struct Session {
    /// Whom the daemon is asked for.
    pub(in crate::console) identity: Identity,
    /// What it said of them.
    pub(in crate::console) me: Me,
    /// What their forms carry, so that no other site's do.
    pub(in crate::console) csrf: Box<str>,
    /// What their provider signs them out by.
    pub(in crate::console) id_token: Option<Box<str>>,
}

#[derive(Debug)]
struct Kept {
    session: Session,
    since: Instant,
    seen: Instant,
}

/// Everybody who is signed in, by what their cookies hash to.
#[derive(Debug)]
pub(in crate::console) struct Sessions {
    idle: Duration,
    absolute: Duration,
    kept: Mutex<HashMap<[u8; 32], Kept>>,
}

impl Sessions {
    pub(in crate::console) fn new(idle: Duration, absolute: Duration) -> Self {
        Self {
            idle,
            absolute,
            kept: Mutex::default(),
        }
    }

    /// Signs somebody in; gives what their cookie holds. It is always a new one, so that nobody can have had it before.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub(in crate::console) fn begin(
        &self,
        identity: Identity,
        me: Me,
        id_token: Option<Box<str>>,
        now: Instant,
    ) -> Result<String, &'static str> {
        let cookie = secret()?;
        let session = Session {
            identity,
            me,
            csrf: secret()?.into(),
            id_token,
        };
        let mut kept = lock(&self.kept);
        kept.retain(|_, kept| self.is_alive(kept, now));
        if kept.len() >= SESSIONS_MAX
            && let Some(idlest) = kept
                .iter()
                .min_by_key(|(_, kept)| kept.seen)
                .map(|(hash, _)| *hash)
        {
            kept.remove(&idlest);
        }
        kept.insert(
            hashed(&cookie),
            Kept {
                session,
                since: now,
                seen: now,
            },
        );
        Ok(cookie)
    }

    /// Whose `cookie` is; that they did something is noted where `acts`.
    pub(in crate::console) fn of(&self, cookie: &str, now: Instant, acts: bool) -> Option<Session> {
        let mut kept = lock(&self.kept);
        let hash = hashed(cookie);
        let found = kept.get_mut(&hash)?;
        if !self.is_alive(found, now) {
            kept.remove(&hash);
            return None;
        }
        if acts {
            found.seen = now;
        }
        Some(found.session.clone())
    }

    /// Signs out.
    pub(in crate::console) fn end(&self, cookie: &str) -> Option<Session> {
        lock(&self.kept)
            .remove(&hashed(cookie))
            .map(|kept| kept.session)
    }

    fn is_alive(&self, kept: &Kept, now: Instant) -> bool {
        now.duration_since(kept.seen) < self.idle && now.duration_since(kept.since) < self.absolute
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        approval::Voter,
        control::{Role, Way},
    };

    fn alice() -> (Identity, Me) {
        let voter = Voter {
            name: "alice".into(),
            uid: None,
            groups: [].into(),
        };
        let me = Me {
            name: "alice".into(),
            groups: [].into(),
            role: Role::Viewer,
        };
        let identity = Identity {
            voter,
            way: Way::Password,
            at_most: None,
        };
        (identity, me)
    }

    #[test]
    fn sessions_end_by_idleness_by_age_and_by_signing_out() {
        let (idle, absolute) = (Duration::from_secs(10), Duration::from_secs(60));
        let sessions = Sessions::new(idle, absolute);
        let start = Instant::now();
        let begin = || {
            let (identity, me) = alice();
            sessions.begin(identity, me, None, start).unwrap()
        };
        let (one, two, three) = (begin(), begin(), begin());
        assert_ne!(one, two);
        assert!(sessions.of("", start, true).is_none());
        for second in 0..59 {
            let now = start + Duration::from_secs(second);
            assert!(sessions.of(&one, now, true).is_some(), "{second}");
            // Watching isn't doing.
            assert_eq!(
                sessions.of(&two, now, false).is_some(),
                second < 10,
                "{second}"
            );
        }
        assert!(sessions.of(&one, start + absolute, true).is_none());
        assert!(sessions.end(&three).is_some());
        assert!(sessions.of(&three, start, true).is_none());
    }
}
