//! The keys of all sessions, of which any one can be destroyed and no other suffers.
//!
//! A session's key is derived from one secret, digit by digit of its id (16 hexadecimal ones): the secret of `8` makes
//! that of `8d`, which makes that of `8d3`, and so on. So there is one secret to keep, however many sessions there are,
//! and none to be put on disk when a session begins. To destroy the key of `8d3f00a1b2c4e5f6` that one secret is
//! exchanged for those of everything beside its way: `0`, `1`, …, `80`, `81`, …, 240 of them. All other keys can still
//! be derived, this one can't: a puncturable pseudorandom function, after Goldreich, Goldwasser and Micali ("How to
//! construct random functions", 1986), with HMAC-SHA-256.

use std::{collections::BTreeMap, io};

use interceptor_core::record::SessionId;
use zeroize::Zeroizing;

use super::cipher::{KEY_BYTES, Secret, derive, random};

/// Hexadecimal digits of a session's id.
const DIGITS: u8 = 16;

/// In place of how many digits: what follows is a session that was erased, and the record that says so.
const ERASED: u8 = DIGITS + 1;

/// Bytes of a secret as it is kept: how many digits, the digits, itself.
const NODE_BYTES: usize = 1 + 8 + KEY_BYTES;

/// The ids that begin with certain digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    /// The digits, the first one highest, and zeros.
    id: u64,
    digits: u8,
}

impl Prefix {
    /// The first `digits` of `session`.
    const fn of(session: SessionId, digits: u8) -> Self {
        let kept = match digits {
            0 => 0,
            _ => u64::MAX << (4 * (DIGITS - digits) as u32),
        };
        Self {
            id: session.0 & kept,
            digits,
        }
    }

    /// With one more digit.
    const fn then(self, digit: u8) -> Self {
        let place = 4 * (DIGITS - self.digits - 1) as u32;
        Self {
            id: self.id | (digit as u64) << place,
            digits: self.digits + 1,
        }
    }
}

/// The digit of `session` behind the first `digits`.
const fn digit(session: SessionId, digits: u8) -> u8 {
    let place = 4 * (DIGITS - digits - 1) as u32;
    ((session.0 >> place) & 0xF) as u8
}

/// What all keys that are left are derived from.
pub(super) struct KeyTree {
    /// By the digits that they are of; none begins another.
    nodes: BTreeMap<Prefix, Secret>,
    /// Sessions whose keys were destroyed, and the records that say so.
    erased: BTreeMap<SessionId, u64>,
}

impl KeyTree {
    /// The keys of a journal that has none yet.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub(super) fn fresh() -> io::Result<Self> {
        let root = Prefix { id: 0, digits: 0 };
        Ok(Self {
            nodes: [(root, random()?)].into(),
            erased: BTreeMap::new(),
        })
    }

    /// The key of `session`; `None` where it was destroyed.
    pub(super) fn key(&self, session: SessionId) -> Option<Secret> {
        let (prefix, secret) = self.above(session)?;
        let rest = prefix.digits..DIGITS;
        Some(rest.fold(secret.clone(), |secret, digits| {
            child(&secret, digit(session, digits))
        }))
    }

    /// The record that says that `session` is erased, which its key was destroyed for.
    pub(super) fn erased_by(&self, session: SessionId) -> Option<u64> {
        self.erased.get(&session).copied()
    }

    /// Destroys the key of `session`, of which record `seq` says that; whether there was one.
    pub(super) fn erase(&mut self, session: SessionId, seq: u64) -> bool {
        let Some((mut prefix, _)) = self.above(session) else {
            return false;
        };
        let Some(mut secret) = self.nodes.remove(&prefix) else {
            return false;
        };
        while prefix.digits < DIGITS {
            let own = digit(session, prefix.digits);
            for other in (0..16).filter(|other| *other != own) {
                self.nodes.insert(prefix.then(other), child(&secret, other));
            }
            secret = child(&secret, own);
            prefix = prefix.then(own);
        }
        self.erased.insert(session, seq);
        true
    }

    /// The secret that the key of `session` is derived from, and of which digits it is.
    fn above(&self, session: SessionId) -> Option<(Prefix, &Secret)> {
        (0..=DIGITS).find_map(|digits| {
            let prefix = Prefix::of(session, digits);
            self.nodes.get(&prefix).map(|secret| (prefix, secret))
        })
    }

    /// As it is kept.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        // All of the room at once, so that nothing is left where a smaller one was; and for a tag behind it.
        let kept = self.nodes.len() + self.erased.len();
        let room = kept * NODE_BYTES + super::cipher::TAG_BYTES;
        let mut out = Zeroizing::new(Vec::with_capacity(room));
        for (prefix, secret) in &self.nodes {
            out.push(prefix.digits);
            out.extend_from_slice(&prefix.id.to_le_bytes());
            out.extend_from_slice(&**secret);
        }
        for (session, seq) in &self.erased {
            out.push(ERASED);
            out.extend_from_slice(&session.0.to_le_bytes());
            out.extend_from_slice(&seq.to_le_bytes());
            out.extend_from_slice(&[0; KEY_BYTES - 8]);
        }
        out
    }

    /// What `bytes` keep; `None` where they are nothing that was kept.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (nodes, rest) = bytes.as_chunks::<NODE_BYTES>();
        let mut tree = Self {
            nodes: BTreeMap::new(),
            erased: BTreeMap::new(),
        };
        for node in nodes {
            let (digits, node) = node.split_first()?;
            let (id, secret) = node.split_first_chunk()?;
            let (id, secret) = (SessionId(u64::from_le_bytes(*id)), secret.first_chunk()?);
            if *digits == ERASED {
                let seq = secret.first_chunk().map(|seq| u64::from_le_bytes(*seq))?;
                let is_first = tree.erased.insert(id, seq).is_none();
                if !is_first || tree.above(id).is_some() {
                    return None;
                }
                continue;
            }
            let prefix = (*digits <= DIGITS).then(|| Prefix::of(id, *digits))?;
            let is_behind = tree.nodes.keys().next_back() < Some(&prefix);
            // One that begins another would bring back what was destroyed.
            if prefix.id != id.0
                || !is_behind
                || tree.above(id).is_some()
                || !tree.erased.is_empty()
            {
                return None;
            }
            tree.nodes.insert(prefix, Zeroizing::new(*secret));
        }
        rest.is_empty().then_some(tree)
    }
}

/// The secret of one more digit.
fn child(secret: &Secret, digit: u8) -> Secret {
    derive(secret, &[digit])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids that have more and fewer digits in common.
    const SESSIONS: [SessionId; 7] = [
        SessionId(0),
        SessionId(1),
        SessionId(0x8d3f_00a1_b2c4_e5f6),
        SessionId(0x8d3f_00a1_b2c4_e5f7),
        SessionId(0x8d3f_00a1_b2c4_f5f6),
        SessionId(0x7fff_ffff_ffff_ffff),
        SessionId(u64::MAX),
    ];

    fn keys(tree: &KeyTree) -> Vec<Option<Secret>> {
        SESSIONS.iter().map(|session| tree.key(*session)).collect()
    }

    #[test]
    fn one_goes_and_all_others_stay_as_they_were() {
        let mut tree = KeyTree::fresh().unwrap();
        let mut expected = keys(&tree);
        let mut different = expected.clone();
        different.sort_by_key(|key| key.as_deref().copied());
        different.dedup();
        assert_eq!(different.len(), SESSIONS.len());
        for place in [2, 3, 0, 6, 5, 1, 4] {
            assert!(tree.erase(SESSIONS[place], 7));
            assert!(!tree.erase(SESSIONS[place], 7));
            expected[place] = None;
            assert_eq!(keys(&tree), expected);
            let again = KeyTree::decode(&tree.encode()).unwrap();
            assert_eq!(keys(&again), expected);
            assert_eq!(again.erased_by(SESSIONS[place]), Some(7));
        }
        // 15 beside each of 16 digits; those that share digits share them.
        let mut one = KeyTree::fresh().unwrap();
        one.erase(SESSIONS[2], 7);
        assert_eq!(one.nodes.len(), 240);
        one.erase(SESSIONS[3], 8);
        assert_eq!(one.nodes.len(), 239);
    }

    #[test]
    fn nothing_that_is_left_leads_to_what_was_destroyed() {
        let mut tree = KeyTree::fresh().unwrap();
        let session = SESSIONS[2];
        // Everything that the key could be derived from, the key included.
        let mut way = vec![tree.nodes.values().next().unwrap().clone()];
        for digits in 0..DIGITS {
            way.push(child(way.last().unwrap(), digit(session, digits)));
        }
        assert_eq!(way.last(), tree.key(session).as_ref());
        tree.erase(session, 7);
        assert!(
            way.iter()
                .all(|secret| tree.nodes.values().all(|kept| kept != secret))
        );
        let kept = tree.encode();
        let is_kept = |secret: &Secret| kept.windows(KEY_BYTES).any(|bytes| *bytes == **secret);
        assert!(!way.iter().any(is_kept));
    }

    #[test]
    fn what_was_never_kept_is_refused() {
        let mut tree = KeyTree::fresh().unwrap();
        let root = tree.encode();
        tree.erase(SESSIONS[2], 7);
        let whole = tree.encode();
        assert!(KeyTree::decode(&whole[1..]).is_none());
        assert!(KeyTree::decode(&whole[..whole.len() - 1]).is_none());
        // What would give back what was destroyed.
        assert!(KeyTree::decode(&[&root[..], &whole[..]].concat()).is_none());
        let twice = [&whole[..], &whole[..NODE_BYTES]].concat();
        assert!(KeyTree::decode(&twice).is_none());
        let mut long = root.to_vec();
        long[0] = 18;
        assert!(KeyTree::decode(&long).is_none());
        long[0] = 1;
        long[1] = 1;
        assert!(KeyTree::decode(&long).is_none());
        // All keys may be gone.
        assert!(KeyTree::decode(&[]).unwrap().key(SESSIONS[0]).is_none());
    }
}
