//! Security keys: whose they are, and whether one signed that it agrees.
//!
//! A rule with `security_key: true` takes no yes that its giver's key hasn't signed. What is signed names the
//! question and the operation ([`Consent::text`]), so that neither this daemon nor the console could have invented it,
//! and a yes to one question is none to another.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{
        ECDSA_P256_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
        VerificationAlgorithm,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use interceptor_core::record::{
    ApprovalId, ApprovalRecord, ApprovalStep, Consent, Event, Record, Timestamp,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sync::lock;

/// Keys that one person may have.
const KEYS_MAX: usize = 10;

/// Longest that any part of what a key or a browser says may be, in bytes: an RSA key of 8,192 bits is 1 KiB.
const PART_BYTES_MAX: usize = 4 << 10;

/// What a key says it is allowed to: somebody touched it.
const USER_PRESENT: u8 = 1;

/// Bytes of `authenticatorData` up to its flags: the hash of whom it answers.
const RELYING_PARTY_BYTES: usize = 32;

/// A registered security key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityKey {
    /// Its credential's id, by which it is asked.
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub credential: Bytes,
    /// Its public half, as a SubjectPublicKeyInfo in DER.
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub public_key: Bytes,
    /// What its owner calls it.
    pub label: Box<str>,
    /// When it was registered.
    #[serde(with = "crate::rfc3339", default)]
    pub added: Timestamp,
}

impl SecurityKey {
    /// What another key of the same person signs so that this one is taken.
    #[must_use]
    pub fn text(&self) -> String {
        let key = hex::encode(&self.public_key);
        format!("interceptor: this security key is mine as well\n{key}\n")
    }
}

/// What a browser hands over of an assertion, as WebAuthn names the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Signed {
    /// Which key.
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub credential: Bytes,
    /// See [`Consent::client_data`].
    #[serde(
        rename = "clientDataJSON",
        serialize_with = "encode",
        deserialize_with = "decode"
    )]
    pub client_data: Bytes,
    /// See [`Consent::authenticator_data`].
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub authenticator_data: Bytes,
    /// See [`Consent::signature`].
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub signature: Bytes,
}

/// Where keys are asked from: the console's address, as browsers know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// `https://console.example.com`.
    pub origin: Box<str>,
    /// Its host, which WebAuthn calls the relying party's id.
    pub host: Box<str>,
}

/// Why a key isn't taken, or its signature isn't.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No such key of this person.
    #[error("`{0}` has no such security key; register it in the console, under “Security keys”")]
    Unknown(Box<str>),
    /// The signature isn't for this.
    #[error("the security key's answer doesn't count: {0}")]
    Invalid(&'static str),
    /// It can't be registered.
    #[error("this security key can't be registered: {0}")]
    Unfit(&'static str),
    /// The file of keys can't be read or written.
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
}

/// Everybody's security keys, in the state folder's `security-keys.json`.
#[derive(Debug, Default)]
pub struct SecurityKeys {
    path: Option<PathBuf>,
    site: Option<Site>,
    people: Mutex<BTreeMap<Box<str>, Vec<SecurityKey>>>,
}

impl SecurityKeys {
    /// Those in the state folder `state`, asked from `site`; without one nobody can be asked for a key.
    ///
    /// # Errors
    /// Where the file is there and can't be read: a key that is forgotten would let its place be taken.
    pub fn open(state: &Path, site: Option<Site>) -> Result<Self, KeyError> {
        let path = state.join("security-keys.json");
        let people = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| file(&path, &error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(file(&path, &error)),
        };
        Ok(Self {
            path: Some(path),
            site,
            people: Mutex::new(people),
        })
    }

    /// Where question `id` is shown to people with keys.
    #[must_use]
    pub fn link(&self, id: ApprovalId) -> Option<Box<str>> {
        let site = self.site.as_ref()?;
        Some(format!("{}/approvals/{id}", site.origin).into())
    }

    /// The keys of `person`.
    #[must_use]
    pub fn of(&self, person: &str) -> Vec<SecurityKey> {
        lock(&self.people).get(person).cloned().unwrap_or_default()
    }

    /// Whether `key` can be taken in for `person`. Who has one already has another one say so: what vouches is signed
    /// by a key that is there, over [`SecurityKey::text`].
    ///
    /// # Errors
    /// Where it isn't a key, is there already, or nobody vouches for it.
    pub fn admit(
        &self,
        person: &str,
        key: &SecurityKey,
        vouched: Option<&Signed>,
    ) -> Result<(), KeyError> {
        if algorithm(&key.public_key).is_none() {
            let what = "it is none of ES256 (P-256), EdDSA (Ed25519) and RS256";
            return Err(KeyError::Unfit(what));
        }
        if key.label.is_empty() || key.label.len() > 64 || key.label.contains(char::is_control) {
            return Err(KeyError::Unfit("its name is 1 to 64 bytes of text"));
        }
        if !self.of(person).is_empty() {
            let Some(signed) = vouched else {
                let what = "you have one, and it has to vouch for the next";
                return Err(KeyError::Unfit(what));
            };
            self.consent(person, signed, &key.text())?;
        }
        let people = lock(&self.people);
        if people
            .values()
            .flatten()
            .any(|other| other.credential == key.credential)
        {
            return Err(KeyError::Unfit("it is registered already"));
        }
        if people
            .get(person)
            .is_some_and(|keys| keys.len() >= KEYS_MAX)
        {
            return Err(KeyError::Unfit("ten are enough; remove one first"));
        }
        Ok(())
    }

    /// Takes in a key that [`Self::admit`] has let by.
    ///
    /// # Errors
    /// Where that can't be written.
    pub fn add(&self, person: &str, key: SecurityKey) -> Result<(), KeyError> {
        let mut people = lock(&self.people);
        let keys = people.entry(person.into()).or_default();
        keys.push(key);
        self.keep(&people)
    }

    /// Forgets one of the keys of `person`; `false` where there is no such key.
    ///
    /// # Errors
    /// Where that can't be written.
    pub fn remove(&self, person: &str, credential: &[u8]) -> Result<bool, KeyError> {
        let mut people = lock(&self.people);
        let Some(keys) = people.get_mut(person) else {
            return Ok(false);
        };
        let before = keys.len();
        keys.retain(|key| key.credential != credential);
        let removed = keys.len() < before;
        self.keep(&people)?;
        Ok(removed)
    }

    /// What is to be recorded of `signed`, a yes of `person` to `text`.
    ///
    /// # Errors
    /// Where it is no signature of theirs, or not over that.
    pub fn consent(&self, person: &str, signed: &Signed, text: &str) -> Result<Consent, KeyError> {
        let Some(site) = &self.site else {
            return Err(KeyError::Invalid("no console is configured to ask for it"));
        };
        let keys = self.of(person);
        let key = keys
            .iter()
            .find(|key| key.credential == signed.credential)
            .ok_or_else(|| KeyError::Unknown(person.into()))?;
        let consent = Consent {
            public_key: key.public_key.clone(),
            client_data: signed.client_data.clone(),
            authenticator_data: signed.authenticator_data.clone(),
            signature: signed.signature.clone(),
        };
        verify(&consent, text, Some(site)).map_err(KeyError::Invalid)?;
        Ok(consent)
    }

    fn keep(&self, people: &BTreeMap<Box<str>, Vec<SecurityKey>>) -> Result<(), KeyError> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let write = || -> io::Result<()> {
            let new = path.with_extension("new");
            let mut file = fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            serde_json::to_writer_pretty(&mut file, people)?;
            file.sync_all()?;
            fs::rename(&new, path)
        };
        write().map_err(|error| file(path, &error))
    }
}

/// Whether `consent` is what a key signed of `text`, at `site` where that is known.
///
/// # Errors
/// What is wrong with it.
pub fn verify(consent: &Consent, text: &str, site: Option<&Site>) -> Result<(), &'static str> {
    /// What a browser puts into `clientDataJSON`; more may be there.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ClientData {
        r#type: String,
        challenge: String,
        origin: String,
        #[serde(default)]
        cross_origin: bool,
    }
    let said: ClientData = serde_json::from_slice(&consent.client_data)
        .map_err(|_| "what the browser says it asked can't be read")?;
    if said.r#type != "webauthn.get" {
        return Err("it answers another kind of question");
    }
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()));
    if said.challenge != challenge {
        return Err("it was signed for something else");
    }
    let data = &consent.authenticator_data;
    let (Some(party), Some(flags)) = (
        data.get(..RELYING_PARTY_BYTES),
        data.get(RELYING_PARTY_BYTES),
    ) else {
        return Err("what the key says of itself is too short");
    };
    if let Some(site) = site {
        if said.cross_origin || *said.origin != *site.origin {
            return Err("it was asked for from another site");
        }
        if party != digest(&SHA256, site.host.as_bytes()).as_ref() {
            return Err("it was made for another site");
        }
    }
    if flags & USER_PRESENT == 0 {
        return Err("nobody touched the key");
    }
    let algorithm = algorithm(&consent.public_key).ok_or("its kind of key isn't known")?;
    let signed = [
        data.as_ref(),
        digest(&SHA256, &consent.client_data).as_ref(),
    ]
    .concat();
    UnparsedPublicKey::new(algorithm, &consent.public_key)
        .verify(&signed, &consent.signature)
        .map_err(|_| "its signature is wrong")
}

/// Whether every yes on record that a key signed was: looked at without the daemon that took it.
#[derive(Debug, Default)]
pub struct Consents {
    /// Whose each key is, by its public half.
    registered: HashMap<String, Box<str>>,
    /// How many hold.
    pub good: u64,
    /// Numbers of the records of those that don't, and why.
    pub bad: Vec<(u64, String)>,
}

impl Consents {
    /// Takes the next record of a journal.
    pub fn observe(&mut self, record: &Record) {
        match &record.event {
            Event::Event(notice) if &*notice.name == "security_key_added" => {
                let fact = |name: &str| notice.detail.get(name);
                if let (Some(key), Some(by)) = (fact("public_key"), fact("by")) {
                    // `alice (console, by password)`
                    let name = by.rsplit_once(" (").map_or(&**by, |(name, _)| name);
                    self.registered.insert(key.to_string(), name.into());
                }
            }
            Event::Approval(ApprovalRecord {
                approval,
                digest,
                step:
                    ApprovalStep::Voted {
                        by,
                        window,
                        consent: Some(consent),
                        ..
                    },
                ..
            }) => {
                let text = Consent::text(*approval, digest, *window);
                let owner = self.registered.get(&hex::encode(&consent.public_key));
                let why = match owner {
                    None => Some("signed by a key that nobody registered".to_owned()),
                    Some(owner) if owner != by => Some(format!("signed by the key of `{owner}`")),
                    Some(_) => verify(consent, &text, None).err().map(str::to_owned),
                };
                match why {
                    None => self.good += 1,
                    Some(why) => {
                        let what = format!("the consent of `{by}` to approval {approval}: {why}");
                        self.bad.push((record.seq, what));
                    }
                }
            }
            _ => {}
        }
    }
}

/// How keys of this kind sign; nothing where it isn't one.
fn algorithm(public_key: &[u8]) -> Option<&'static dyn VerificationAlgorithm> {
    use x509_parser::{oid_registry, prelude::FromDer as _, x509::SubjectPublicKeyInfo};
    if public_key.len() > PART_BYTES_MAX {
        return None;
    }
    let (rest, info) = SubjectPublicKeyInfo::from_der(public_key).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let kind = &info.algorithm.algorithm;
    if *kind == oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
        (curve == oid_registry::OID_EC_P256).then_some(&ECDSA_P256_SHA256_ASN1 as _)
    } else if *kind == oid_registry::OID_SIG_ED25519 {
        Some(&ED25519)
    } else if *kind == oid_registry::OID_PKCS1_RSAENCRYPTION {
        Some(&RSA_PKCS1_2048_8192_SHA256)
    } else {
        None
    }
}

fn file(path: &Path, what: &impl ToString) -> KeyError {
    KeyError::File {
        path: path.display().to_string(),
        what: what.to_string(),
    }
}

fn encode<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(serde::de::Error::custom)?;
    if bytes.is_empty() || bytes.len() > PART_BYTES_MAX {
        let what = format!("a part of a security key's answer is 1 to {PART_BYTES_MAX} bytes");
        return Err(serde::de::Error::custom(what));
    }
    Ok(bytes.into())
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use interceptor_core::operation::Digest;

    use super::*;

    const SITE: &str = "https://console.example.com";

    /// What a real key and browser would do.
    pub(in crate::approval) struct Authenticator {
        pair: EcdsaKeyPair,
    }

    impl Authenticator {
        pub(in crate::approval) fn new() -> Self {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
            Self { pair }
        }

        pub(in crate::approval) fn key(&self, credential: &'static [u8]) -> SecurityKey {
            // SubjectPublicKeyInfo of a P-256 key is this head and the point.
            let head = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
            SecurityKey {
                credential: Bytes::from_static(credential),
                public_key: [head.as_slice(), self.pair.public_key().as_ref()]
                    .concat()
                    .into(),
                label: "yubikey".into(),
                added: Timestamp(0),
            }
        }

        pub(in crate::approval) fn sign(
            &self,
            credential: &'static [u8],
            text: &str,
            change: impl FnOnce(&mut serde_json::Value, &mut Vec<u8>),
        ) -> Signed {
            let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()));
            let mut client = serde_json::json!({
                "type": "webauthn.get", "challenge": challenge, "origin": SITE, "crossOrigin": false
            });
            let mut data = digest(&SHA256, b"console.example.com").as_ref().to_vec();
            data.extend([USER_PRESENT, 0, 0, 0, 1]);
            change(&mut client, &mut data);
            let client = client.to_string();
            let over = [&data, digest(&SHA256, client.as_bytes()).as_ref()].concat();
            let signature = self.pair.sign(&SystemRandom::new(), &over).unwrap();
            Signed {
                credential: Bytes::from_static(credential),
                client_data: client.into(),
                authenticator_data: data.into(),
                signature: Bytes::copy_from_slice(signature.as_ref()),
            }
        }
    }

    pub(in crate::approval) fn site() -> Site {
        Site {
            origin: SITE.into(),
            host: "console.example.com".into(),
        }
    }

    fn text(approval: u64) -> String {
        Consent::text(ApprovalId(approval), &Digest([7; 32]), None)
    }

    #[test]
    fn a_yes_counts_for_one_question_from_one_site_by_ones_own_key() {
        let folder = tempfile::tempdir().unwrap();
        let keys = SecurityKeys::open(folder.path(), Some(site())).unwrap();
        let (own, other) = (Authenticator::new(), Authenticator::new());
        keys.add("alice", own.key(b"one")).unwrap();
        keys.add("bob", other.key(b"two")).unwrap();
        let yes = own.sign(b"one", &text(1), |_, _| {});
        let consent = keys.consent("alice", &yes, &text(1)).unwrap();
        assert_eq!(verify(&consent, &text(1), None), Ok(()));

        let refused = |person: &str, signed: &Signed, approval: u64| {
            keys.consent(person, signed, &text(approval))
                .unwrap_err()
                .to_string()
        };
        assert!(refused("alice", &yes, 2).contains("for something else"));
        assert!(refused("bob", &yes, 1).contains("`bob` has no such security key"));
        let forged = Signed {
            credential: Bytes::from_static(b"two"),
            ..yes.clone()
        };
        assert!(refused("bob", &forged, 1).contains("signature is wrong"));
        for (what, signed) in [
            (
                "another site",
                own.sign(b"one", &text(1), |client, _| {
                    client["origin"] = "https://evil.example".into()
                }),
            ),
            (
                "another site",
                own.sign(b"one", &text(1), |client, _| {
                    client["crossOrigin"] = true.into()
                }),
            ),
            (
                "another kind",
                own.sign(b"one", &text(1), |client, _| {
                    client["type"] = "webauthn.create".into()
                }),
            ),
            (
                "made for another",
                own.sign(b"one", &text(1), |_, data| data[0] ^= 1),
            ),
            (
                "nobody touched",
                own.sign(b"one", &text(1), |_, data| data[32] = 4),
            ),
            (
                "too short",
                own.sign(b"one", &text(1), |_, data| data.truncate(32)),
            ),
            (
                "signature is wrong",
                Signed {
                    signature: other.sign(b"one", &text(1), |_, _| {}).signature,
                    ..yes.clone()
                },
            ),
            (
                "can't be read",
                Signed {
                    client_data: Bytes::from_static(b"{"),
                    ..yes.clone()
                },
            ),
        ] {
            let error = refused("alice", &signed, 1);
            assert!(error.contains(what), "{what}: {error}");
        }
    }

    #[test]
    fn a_yes_on_record_can_be_checked_without_the_daemon() {
        let (key, stranger) = (Authenticator::new(), Authenticator::new());
        let keys = SecurityKeys::open(Path::new("/nonexistent"), Some(site())).unwrap();
        lock(&keys.people).insert("alice".into(), vec![key.key(b"one")]);
        lock(&keys.people).insert("bob".into(), vec![stranger.key(b"two")]);
        let record = |seq, event| Record {
            seq,
            time: Timestamp(0),
            session: None,
            agent: "".into(),
            event,
        };
        let added = |by: &str, key: &SecurityKey| {
            let public = hex::encode(&key.public_key);
            Event::notice(
                "security_key_added",
                [("by", by.to_owned()), ("public_key", public)],
            )
        };
        let voted = |by: &str, approval: u64, consent: Consent| {
            Event::Approval(ApprovalRecord {
                approval: ApprovalId(approval),
                number: 1,
                digest: Digest([7; 32]),
                step: ApprovalStep::Voted {
                    by: by.into(),
                    uid: None,
                    choice: interceptor_core::record::Choice::Approve,
                    reason: "".into(),
                    window: None,
                    consent: Some(consent.into()),
                },
            })
        };
        let signed = key.sign(b"one", &text(1), |_, _| {});
        let own = keys.consent("alice", &signed, &text(1)).unwrap();
        let signed = stranger.sign(b"two", &text(2), |_, _| {});
        let other = keys.consent("bob", &signed, &text(2)).unwrap();
        let mut consents = Consents::default();
        for (seq, event) in [
            added("alice (console, by password)", &key.key(b"one")),
            voted("alice", 1, own.clone()),
            voted("alice", 2, own.clone()),
            voted("bob", 1, own),
            voted("bob", 2, other),
        ]
        .into_iter()
        .enumerate()
        {
            consents.observe(&record(seq as u64 + 1, event));
        }
        assert_eq!(consents.good, 1);
        let bad: Vec<String> = consents
            .bad
            .iter()
            .map(|(seq, what)| format!("{seq}: {what}"))
            .collect();
        assert_eq!(
            bad,
            [
                "3: the consent of `alice` to approval 0000000000000002: it was signed for something else",
                "4: the consent of `bob` to approval 0000000000000001: signed by the key of `alice`",
                "5: the consent of `bob` to approval 0000000000000002: signed by a key that nobody registered",
            ]
        );
    }

    #[test]
    fn keys_outlive_the_daemon_and_the_next_needs_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Authenticator::new(), Authenticator::new());
        {
            let keys = SecurityKeys::open(folder.path(), Some(site())).unwrap();
            keys.admit("alice", &one.key(b"one"), None).unwrap();
            keys.add("alice", one.key(b"one")).unwrap();
        }
        let keys = SecurityKeys::open(folder.path(), Some(site())).unwrap();
        assert_eq!(keys.of("alice").len(), 1);
        assert!(keys.admit("alice", &two.key(b"two"), None).is_err());
        let text = two.key(b"two").text();
        let itself = two.sign(b"two", &text, |_, _| {});
        assert!(
            keys.admit("alice", &two.key(b"two"), Some(&itself))
                .is_err()
        );
        let vouched = one.sign(b"one", &text, |_, _| {});
        keys.admit("alice", &two.key(b"two"), Some(&vouched))
            .unwrap();
        let third = Authenticator::new().key(b"three");
        assert!(
            keys.admit("alice", &third, Some(&vouched)).is_err(),
            "it vouches for another"
        );
        keys.add("alice", two.key(b"two")).unwrap();
        assert!(
            keys.admit("bob", &one.key(b"one"), None).is_err(),
            "it is alice's"
        );
        let mut broken = Authenticator::new().key(b"three");
        broken.public_key = Bytes::from_static(b"\x30\x00");
        assert!(keys.admit("carol", &broken, None).is_err());
        assert!(keys.remove("alice", b"one").unwrap());
        assert!(!keys.remove("alice", b"one").unwrap());
        fs::write(folder.path().join("security-keys.json"), "{").unwrap();
        assert!(SecurityKeys::open(folder.path(), None).is_err());
    }
}
