//! Which credential a login or a request takes, so that agents don't hold the real one.
//!
//! A list in the configuration, the first match wins. What a credential refers to is read when it is
//! needed, off the threads that carry bytes.

mod entry;
mod servers;

use std::time::Instant;

use bytes::Bytes;
use interceptor_core::{
    login::{Authorization, Login, Randomness, Secret},
    origin::Destination,
};
use tokio::sync::Mutex;

pub use self::{
    entry::{Credential, Names, Purpose, User},
    servers::Servers,
};
use crate::secret::{SecretError, Source};

/// The credentials of the configuration: for what each is.
pub struct Credentials<S> {
    list: Vec<Credential>,
    secrets: S,
}

/// Where the secrets of credentials come from.
pub trait Secrets {
    /// The secret and the placeholder of the credential `number`, from 1.
    ///
    /// # Errors
    /// Why there are none, for people.
    fn read(
        &self,
        number: usize,
    ) -> impl Future<Output = Result<(Secret, Option<Secret>), Unread>> + Send;
}

/// What the credentials of the configuration refer to.
pub struct Vault {
    entries: Vec<Entry>,
}

struct Entry {
    credential: Credential,
    secret: Cache,
    placeholder: Cache,
}

/// What a credential refers to can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{what}{error}")]
pub struct Unread {
    /// Which part of it, for people; empty where that is said by the error.
    pub what: &'static str,
    /// Why.
    pub error: Box<dyn std::error::Error + Send + Sync>,
}

/// What a command printed, and when: one session runs it, the others wait for its answer.
type Cache = Mutex<Option<(Instant, Secret)>>;

/// A login for which a credential is looked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// The server's name, where TLS has verified it.
    pub host: Option<&'a str>,
    /// TLS is on the way to it, and it has proved to be who was asked for.
    pub is_verified: bool,
    /// The user that the agent names.
    pub user: &'a str,
    /// The database that it names.
    pub database: &'a str,
    /// The hash of the server's certificate, where the way to it is TLS.
    pub upstream_binding: Option<Bytes>,
    /// The hash of the certificate that the agent was shown.
    pub agent_binding: Option<Bytes>,
}

/// Who may read and no more.
#[derive(Debug)]
pub struct Reader {
    /// The user.
    pub user: Box<str>,
    /// That user's password.
    pub password: Secret,
}

const OPEN: &str = "it isn't sent where others can listen: the way there has to be TLS";

/// A credential that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("credential {credential}: {unread}")]
pub struct LoginError {
    /// Its place in the list, from 1.
    pub credential: usize,
    unread: Unread,
}

impl LoginError {
    fn new(credential: usize, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let error = error.into();
        Self {
            credential,
            unread: Unread { what: "", error },
        }
    }
}

impl<S: Secrets> Credentials<S> {
    /// The credentials `list`, in this order, whose secrets come from `secrets`.
    #[must_use]
    pub const fn new(list: Vec<Credential>, secrets: S) -> Self {
        Self { list, secrets }
    }

    /// Whether there are any for HTTP requests.
    #[must_use]
    pub fn are_for_http(&self) -> bool {
        let mut purposes = self.list.iter().map(|credential| &credential.purpose);
        purposes.any(|purpose| matches!(purpose, Purpose::Http { .. }))
    }

    /// What to log in at `destination` with, if there is a credential for it.
    ///
    /// # Errors
    /// Where there is one, but not what it refers to.
    pub async fn login(
        &self,
        destination: &Destination,
        wanted: Wanted<'_>,
    ) -> Result<Option<Login>, LoginError> {
        let found = self.find(destination, wanted.host, |purpose| match purpose {
            Purpose::Postgres {
                user,
                database,
                login,
            } => (user.matches(wanted.user) && database.matches(wanted.database)).then_some(login),
            Purpose::Http { .. } | Purpose::BlastRadius { .. } => None,
        });
        let Some((number, login)) = found else {
            return Ok(None);
        };
        let (password, placeholder) = self.read(number).await?;
        let randomness =
            randomness().ok_or_else(|| LoginError::new(number, "the system has no randomness"))?;
        let user = login.as_ref().map_or(wanted.user, User::as_str);
        Ok(Some(Login {
            credential: number,
            user: user.to_owned(),
            password,
            placeholder,
            confidential: is_confidential(destination, wanted.is_verified),
            upstream_binding: wanted.upstream_binding,
            agent_binding: wanted.agent_binding,
            randomness,
        }))
    }

    /// As whom, and with which password, to find out what operations of the agent's session `wanted` would touch, if
    /// there is a credential for that.
    ///
    /// # Errors
    /// Where there is one, but not what it refers to, and where others could listen on the way.
    pub async fn reader(
        &self,
        destination: &Destination,
        wanted: Wanted<'_>,
    ) -> Result<Option<Reader>, LoginError> {
        let found = self.find(destination, wanted.host, |purpose| match purpose {
            Purpose::BlastRadius {
                user,
                database,
                login,
            } => (user.matches(wanted.user) && database.matches(wanted.database)).then_some(login),
            Purpose::Postgres { .. } | Purpose::Http { .. } => None,
        });
        let Some((number, login)) = found else {
            return Ok(None);
        };
        if !is_confidential(destination, wanted.is_verified) {
            return Err(LoginError::new(number, OPEN));
        }
        let (password, _) = self.read(number).await?;
        Ok(Some(Reader {
            user: login.as_str().into(),
            password,
        }))
    }

    /// What a request for `path` at `destination`, which has proved to be `host`, takes, if there is a
    /// credential for it.
    ///
    /// # Errors
    /// Where there is one, but not what it refers to, and where others could listen on the way.
    pub async fn authorization(
        &self,
        destination: &Destination,
        host: Option<&str>,
        is_verified: bool,
        path: &str,
    ) -> Result<Option<Authorization>, LoginError> {
        let found = self.find(destination, host, |purpose| match purpose {
            Purpose::Http { path: paths, place } => paths.matches(path).then_some(place),
            Purpose::Postgres { .. } | Purpose::BlastRadius { .. } => None,
        });
        let Some((number, place)) = found else {
            return Ok(None);
        };
        if !is_confidential(destination, is_verified) {
            return Err(LoginError::new(number, OPEN));
        }
        let (secret, placeholder) = self.read(number).await?;
        Ok(Some(Authorization {
            credential: number,
            place: place.clone(),
            secret,
            placeholder,
        }))
    }

    /// The first credential for `destination` that `is_for` wants, with its number and what it was wanted for.
    fn find<'a, T>(
        &'a self,
        destination: &Destination,
        host: Option<&str>,
        is_for: impl Fn(&'a Purpose) -> Option<T>,
    ) -> Option<(usize, T)> {
        let mut list = self.list.iter().enumerate();
        list.find_map(|(index, credential)| {
            let Credential {
                destination: servers,
                purpose,
                ..
            } = credential;
            let found = is_for(purpose).filter(|_| servers.contains(destination, host))?;
            Some((index + 1, found))
        })
    }

    async fn read(&self, number: usize) -> Result<(Secret, Option<Secret>), LoginError> {
        let read = self.secrets.read(number).await;
        read.map_err(|unread| LoginError {
            credential: number,
            unread,
        })
    }
}

impl Vault {
    /// What the credentials `list` refer to.
    #[must_use]
    pub fn new(list: Vec<Credential>) -> Self {
        let entries = list.into_iter().map(|credential| Entry {
            credential,
            secret: Cache::default(),
            placeholder: Cache::default(),
        });
        Self {
            entries: entries.collect(),
        }
    }

    /// What of the list can't be used as things stand, for the operator. Commands are not run.
    #[must_use]
    pub fn problems(&self) -> Vec<LoginError> {
        let mut problems = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let sources = [
                ("its secret: ", Some(&entry.credential.secret)),
                ("its placeholder: ", entry.credential.placeholder.as_ref()),
            ];
            for (what, source) in sources {
                let Some(source @ (Source::File(_) | Source::Environment(_))) = source else {
                    continue;
                };
                if let Err(error) = source.read() {
                    let error = error.into();
                    problems.push(LoginError {
                        credential: index + 1,
                        unread: Unread { what, error },
                    });
                }
            }
        }
        problems
    }
}

impl Secrets for Vault {
    async fn read(&self, number: usize) -> Result<(Secret, Option<Secret>), Unread> {
        let entry = number
            .checked_sub(1)
            .and_then(|index| self.entries.get(index));
        let entry = entry.ok_or_else(|| Unread {
            what: "",
            error: "it isn't in the configuration".into(),
        })?;
        entry.read().await
    }
}

impl Entry {
    async fn read(&self) -> Result<(Secret, Option<Secret>), Unread> {
        let failed = |what| {
            move |error: SecretError| Unread {
                what,
                error: error.into(),
            }
        };
        let Credential {
            secret,
            placeholder,
            ..
        } = &self.credential;
        let placeholder = match placeholder {
            Some(source) => Some(
                read(source, &self.placeholder)
                    .await
                    .map_err(failed("its placeholder: "))?,
            ),
            None => None,
        };
        let secret = read(secret, &self.secret)
            .await
            .map_err(failed("its secret: "))?;
        Ok((secret, placeholder))
    }
}

/// Nobody can listen on the way to `destination`.
fn is_confidential(destination: &Destination, is_verified: bool) -> bool {
    is_verified || destination.is_local()
}

async fn read(source: &Source, cache: &Cache) -> Result<Secret, SecretError> {
    let Source::Command { ttl, .. } = source else {
        return read_now(source).await;
    };
    let mut cached = cache.lock().await;
    if let Some((since, secret)) = &*cached
        && since.elapsed() < *ttl
    {
        return Ok(secret.clone());
    }
    *cached = None;
    let secret = read_now(source).await?;
    *cached = Some((Instant::now(), secret.clone()));
    Ok(secret)
}

async fn read_now(source: &Source) -> Result<Secret, SecretError> {
    let here = source.clone();
    match tokio::task::spawn_blocking(move || here.read()).await {
        Ok(secret) => secret,
        // The runtime is being taken down: the session ends anyway.
        Err(_) => Err(SecretError::interrupted(source)),
    }
}

fn randomness() -> Option<Randomness> {
    let mut randomness = Randomness {
        client_nonce: [0; 18],
        server_nonce: [0; 18],
        salt: [0; 16],
    };
    for bytes in [
        &mut randomness.client_nonce[..],
        &mut randomness.server_nonce[..],
        &mut randomness.salt[..],
    ] {
        aws_lc_rs::rand::fill(bytes).ok()?;
    }
    Some(randomness)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(yaml: &str) -> Credentials<Vault> {
        let list: Vec<Credential> = serde_saphyr::from_str(yaml).unwrap();
        Credentials::new(list.clone(), Vault::new(list))
    }

    fn wanted(user: &'static str) -> Wanted<'static> {
        Wanted {
            user,
            database: "shop",
            ..Wanted::default()
        }
    }

    #[tokio::test]
    async fn the_first_match_is_taken() {
        let credentials = credentials(
            "- {destination: 192.0.2.1, protocol: postgres, user: 'app*', database: other, password: {command: [/bin/echo, no]}}\n\
             - {destination: 192.0.2.1, protocol: postgres, user: 'app*', login: real, password: {command: [/bin/echo, one]}}\n\
             - {destination: 192.0.2.0/24, protocol: postgres, password: {command: [/bin/echo, two]}, placeholder: {command: [/bin/echo, p]}}\n",
        );
        let at = |address: &str| Destination::Ip(address.parse().unwrap());
        let login = credentials
            .login(&at("192.0.2.1:5432"), wanted("app1"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((login.credential, &*login.user), (2, "real"));
        assert_eq!(login.password.expose(), b"one");
        assert!(login.placeholder.is_none() && !login.confidential);
        let login = credentials
            .login(&at("192.0.2.1:5432"), wanted("dba"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((login.credential, &*login.user), (3, "dba"));
        assert_eq!(login.placeholder.unwrap().expose(), b"p");
        let elsewhere = at("198.51.100.1:5432");
        let none = credentials.login(&elsewhere, wanted("app1"));
        assert!(none.await.unwrap().is_none());
    }

    #[tokio::test]
    async fn who_may_read_is_nobody_that_agents_log_in_as() {
        let credentials = credentials(
            "- {destination: 127.0.0.0/8, protocol: postgres, use: blast_radius, database: shop, login: reader, password: {command: [/bin/echo, r]}}\n\
             - {destination: 192.0.2.1, protocol: postgres, use: blast_radius, login: reader, password: {command: [/bin/echo, r]}}\n\
             - {destination: 127.0.0.1, protocol: postgres, login: real, password: {command: [/bin/echo, a]}}\n",
        );
        let at = |address: &str| Destination::Ip(address.parse().unwrap());
        let here = at("127.0.0.1:5432");
        let login = credentials.login(&here, wanted("app")).await.unwrap();
        assert_eq!(login.unwrap().user, "real");
        let reader = credentials.reader(&here, wanted("app")).await.unwrap();
        assert_eq!(&*reader.unwrap().user, "reader");
        let other = Wanted {
            database: "other",
            ..wanted("app")
        };
        assert!(credentials.reader(&here, other).await.unwrap().is_none());
        // Where others can listen its password isn't sent.
        let open = credentials
            .reader(&at("192.0.2.1:5432"), wanted("app"))
            .await;
        assert!(open.unwrap_err().to_string().contains("TLS"));
    }

    #[tokio::test]
    async fn a_commands_answer_is_kept_as_long_as_it_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let yaml = |ttl| {
            format!(
                "- {{destination: 127.0.0.1, protocol: postgres, password: {{command: [/bin/sh, -c, 'echo x >> {0}; wc -l < {0}'], ttl: {ttl}}}}}",
                count.display()
            )
        };
        let at = Destination::Ip("127.0.0.1:5432".parse().unwrap());
        for (ttl, expected) in [("1h", [b"1", b"1", b"1"]), ("0s", [b"2", b"3", b"4"])] {
            let credentials = credentials(&yaml(ttl));
            for expected in expected {
                let login = credentials
                    .login(&at, wanted("app"))
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(login.password.expose(), expected);
                assert!(login.confidential);
            }
        }
    }

    #[tokio::test]
    async fn what_can_not_be_read_is_named_and_not_gone_without() {
        let credentials = credentials(
            "- {destination: 127.0.0.1, protocol: postgres, password: {file: /nonexistent/secret}}",
        );
        let at = Destination::Ip("127.0.0.1:5432".parse().unwrap());
        let error = credentials.login(&at, wanted("app")).await.unwrap_err();
        let expected = "credential 1: its secret: the file `/nonexistent/secret` can't be read: No such file or directory (os error 2)";
        assert_eq!(error.to_string(), expected);
        assert_eq!(credentials.secrets.problems()[0].to_string(), expected);
    }
}
