//! Which credential a login takes, so that agents don't hold the real one.
//!
//! A list in the configuration, the first match wins. What a credential refers to is read when it is
//! needed, off the threads that carry bytes.

use std::{net::IpAddr, time::Instant};

use bytes::Bytes;
use interceptor_core::{
    glob::Glob,
    login::{Login, Randomness, Secret},
    origin::Destination,
};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::secret::{SecretError, Source};

/// What to log in with, and where.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Where it may be used; it is given to nobody else.
    pub destination: Servers,
    /// The protocol it is for.
    pub protocol: LoginProtocol,
    /// The users that agents name for it.
    #[serde(default)]
    pub user: Names,
    /// The databases that agents name for it.
    #[serde(default)]
    pub database: Names,
    /// The user to log in as; the agent's where there is none.
    #[serde(default)]
    pub login: Option<User>,
    /// That user's password.
    pub password: Source,
    /// What the agent has to present.
    #[serde(default)]
    pub placeholder: Option<Source>,
}

/// Protocols whose logins can be ended here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoginProtocol {
    /// PostgreSQL.
    Postgres,
}

/// The credentials of the configuration.
pub struct Credentials {
    entries: Vec<Entry>,
}

struct Entry {
    credential: Credential,
    password: Cache,
    placeholder: Cache,
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

/// A credential that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("credential {credential}: {what}{error}")]
pub struct LoginError {
    /// Its place in the list, from 1.
    pub credential: usize,
    what: &'static str,
    error: Box<dyn std::error::Error + Send + Sync>,
}

impl Credentials {
    /// The credentials `list`, in this order.
    #[must_use]
    pub fn new(list: Vec<Credential>) -> Self {
        let entries = list.into_iter().map(|credential| Entry {
            credential,
            password: Cache::default(),
            placeholder: Cache::default(),
        });
        Self {
            entries: entries.collect(),
        }
    }

    /// What to log in at `destination` with, if there is a credential for it.
    ///
    /// # Errors
    /// Where there is one, but not what it refers to.
    pub async fn login(
        &self,
        destination: Destination,
        wanted: Wanted<'_>,
    ) -> Result<Option<Login>, LoginError> {
        let Some((index, entry)) = self
            .entries
            .iter()
            .enumerate()
            .find(|(_, entry)| entry.credential.matches(destination, &wanted))
        else {
            return Ok(None);
        };
        let number = index + 1;
        let failed = |what| {
            move |error: SecretError| LoginError {
                credential: number,
                what,
                error: error.into(),
            }
        };
        let Credential {
            login,
            password,
            placeholder,
            ..
        } = &entry.credential;
        let placeholder = match placeholder {
            Some(source) => Some(
                read(source, &entry.placeholder)
                    .await
                    .map_err(failed("its placeholder: "))?,
            ),
            None => None,
        };
        let password = read(password, &entry.password)
            .await
            .map_err(failed("its password: "))?;
        let randomness = randomness().ok_or_else(|| LoginError {
            credential: number,
            what: "",
            error: "the system has no randomness".into(),
        })?;
        let user = login.as_ref().map_or(wanted.user, |user| &user.0);
        Ok(Some(Login {
            credential: number,
            user: user.to_owned(),
            password,
            placeholder,
            confidential: wanted.is_verified || destination.0.ip().to_canonical().is_loopback(),
            upstream_binding: wanted.upstream_binding,
            agent_binding: wanted.agent_binding,
            randomness,
        }))
    }

    /// What of the list can't be used as things stand, for the operator. Commands are not run.
    #[must_use]
    pub fn problems(&self) -> Vec<LoginError> {
        let mut problems = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let sources = [
                ("its password: ", Some(&entry.credential.password)),
                ("its placeholder: ", entry.credential.placeholder.as_ref()),
            ];
            for (what, source) in sources {
                let Some(source @ (Source::File(_) | Source::Environment(_))) = source else {
                    continue;
                };
                if let Err(error) = source.read() {
                    problems.push(LoginError {
                        credential: index + 1,
                        what,
                        error: error.into(),
                    });
                }
            }
        }
        problems
    }
}

impl Credential {
    fn matches(&self, destination: Destination, wanted: &Wanted<'_>) -> bool {
        let LoginProtocol::Postgres = self.protocol;
        self.destination.contains(destination, wanted.host)
            && self.user.0.matches(wanted.user)
            && self.database.0.matches(wanted.database)
    }
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

/// Names with wildcards.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Names(Glob);

impl Default for Names {
    fn default() -> Self {
        Self(Glob::new("*"))
    }
}

impl From<String> for Names {
    fn from(pattern: String) -> Self {
        Self(Glob::new(&pattern))
    }
}

/// A user's name as a StartupMessage can hold it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct User(Box<str>);

impl TryFrom<String> for User {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name.is_empty() || name.contains('\0') {
            return Err(format!("`{}` names no user", name.escape_debug()));
        }
        Ok(Self(name.into()))
    }
}

/// Servers by verified name or by address, and by port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Servers {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    /// Names that TLS has verified, in lower case: what a resolver says of a name is no proof.
    Named(Glob),
    /// The addresses whose first bits are these.
    Network { address: IpAddr, prefix_bits: u32 },
}

impl Servers {
    /// Whether the server at `destination`, which has proved to be called `host`, is one of them.
    #[must_use]
    pub fn contains(&self, destination: Destination, host: Option<&str>) -> bool {
        if self.port.is_some_and(|port| port != destination.0.port()) {
            return false;
        }
        match &self.hosts {
            Hosts::Named(pattern) => host.is_some_and(|host| {
                let host = host.strip_suffix('.').unwrap_or(host);
                pattern.matches(&host.to_ascii_lowercase())
            }),
            Hosts::Network {
                address,
                prefix_bits,
            } => match (*address, destination.0.ip().to_canonical()) {
                (IpAddr::V4(network), IpAddr::V4(address)) => {
                    (network.to_bits() ^ address.to_bits()).leading_zeros() >= *prefix_bits
                }
                (IpAddr::V6(network), IpAddr::V6(address)) => {
                    (network.to_bits() ^ address.to_bits()).leading_zeros() >= *prefix_bits
                }
                _ => false,
            },
        }
    }
}

impl TryFrom<String> for Servers {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is no destination; `db.example.com:5432`, `*.example.com`, `192.0.2.0/24`, `[2001:db8::1]:5432` are",
                text.escape_debug()
            )
        };
        let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
            let (host, rest) = bracketed.split_once(']').ok_or_else(wrong)?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            }
        } else {
            match text.split_once(':') {
                // More colons than one: an address of version 6, which has no port without brackets.
                Some((_, rest)) if rest.contains(':') => (&*text, None),
                Some((host, port)) => (host, Some(port)),
                None => (&*text, None),
            }
        };
        let port = match port {
            None => None,
            Some(port) => match port.parse() {
                Ok(port @ 1..) => Some(port),
                _ => return Err(wrong()),
            },
        };
        let (address, bits) = match host.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (host, None),
        };
        let hosts = match (address.parse::<IpAddr>(), bits) {
            (Ok(address), bits) => {
                let bits_max = if address.is_ipv4() { 32 } else { 128 };
                let prefix_bits = match bits {
                    None => bits_max,
                    Some(bits) => bits.parse().map_err(|_| wrong())?,
                };
                if prefix_bits > bits_max {
                    return Err(wrong());
                }
                if prefix_bits == 0 {
                    return Err(anywhere(&text));
                }
                Hosts::Network {
                    address,
                    prefix_bits,
                }
            }
            (Err(_), Some(_)) => return Err(wrong()),
            (Err(_), None) => {
                Hosts::Named(name_pattern(host).map_err(|why| why.unwrap_or_else(wrong))?)
            }
        };
        Ok(Self { hosts, port })
    }
}

/// A pattern for hosts' names; where it is none, why, if there is more to say.
fn name_pattern(host: &str) -> Result<Glob, Option<String>> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*?".contains(&byte);
    if host.is_empty() || !host.bytes().all(allowed) {
        return Err(None);
    }
    if host.bytes().all(|byte| b".*?".contains(&byte)) {
        return Err(Some(anywhere(&host)));
    }
    if !host.bytes().any(|byte| byte.is_ascii_alphabetic()) {
        // It looks live and would match nothing: a name doesn't end in a number.
        return Err(Some(format!(
            "`{host}` is no address; ranges of addresses are written `192.0.2.0/24`"
        )));
    }
    Ok(Glob::new(&host))
}

fn anywhere(text: &str) -> String {
    format!(
        "`{text}` would give the password to whatever server an agent connects to; name the servers it is for"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Result<Servers, String> {
        Servers::try_from(text.to_owned())
    }

    #[test]
    fn servers_are_those_that_are_named() {
        for (pattern, destination, host, expected) in [
            ("192.0.2.1", "192.0.2.1:5432", None, true),
            ("192.0.2.1", "192.0.2.2:5432", None, false),
            ("192.0.2.1:5432", "192.0.2.1:5432", None, true),
            ("192.0.2.1:5433", "192.0.2.1:5432", None, false),
            ("192.0.2.0/24", "192.0.2.99:1", None, true),
            ("192.0.2.0/24:1", "192.0.2.99:1", None, true),
            ("192.0.2.0/24", "192.0.3.1:1", None, false),
            ("192.0.2.1", "[::ffff:192.0.2.1]:5432", None, true),
            ("2001:db8::1", "[2001:db8::1]:5432", None, true),
            ("[2001:db8::1]:5432", "[2001:db8::1]:5432", None, true),
            ("[2001:db8::/32]:5432", "[2001:db8::7]:5432", None, true),
            ("2001:db8::/32", "[2001:db9::7]:5432", None, false),
            ("127.0.0.1", "[::1]:5432", None, false),
            ("db.example.com", "192.0.2.1:5432", None, false),
            (
                "DB.example.com",
                "192.0.2.1:5432",
                Some("db.EXAMPLE.com."),
                true,
            ),
            (
                "db.example.com:5432",
                "192.0.2.1:5432",
                Some("db.example.com"),
                true,
            ),
            (
                "db.example.com:1",
                "192.0.2.1:5432",
                Some("db.example.com"),
                false,
            ),
            (
                "*.example.com",
                "192.0.2.1:5432",
                Some("db.example.com"),
                true,
            ),
            (
                "*.example.com",
                "192.0.2.1:5432",
                Some("example.org"),
                false,
            ),
            ("192.0.2.1", "192.0.2.1:5432", Some("db.example.com"), true),
        ] {
            let destination = Destination(destination.parse().unwrap());
            assert_eq!(
                servers(pattern).unwrap().contains(destination, host),
                expected,
                "{pattern} {destination} {host:?}"
            );
        }
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for (text, expected) in [
            ("", "is no destination"),
            (":5432", "is no destination"),
            ("db:0", "is no destination"),
            ("db:65536", "is no destination"),
            ("db:port", "is no destination"),
            ("[::1", "is no destination"),
            ("[::1]5432", "is no destination"),
            ("db/24", "is no destination"),
            ("10.0.0.0/33", "is no destination"),
            ("postgres://db", "is no destination"),
            ("db example", "is no destination"),
            ("*", "whatever server"),
            ("*:5432", "whatever server"),
            ("*.*", "whatever server"),
            ("0.0.0.0/0", "whatever server"),
            ("::/0", "whatever server"),
            ("10.0.0.*", "ranges of addresses are written"),
            ("10.0.0.256", "ranges of addresses are written"),
        ] {
            let error = servers(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    fn credentials(yaml: &str) -> Credentials {
        Credentials::new(serde_saphyr::from_str(yaml).unwrap())
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
        let at = |address: &str| Destination(address.parse().unwrap());
        let login = credentials
            .login(at("192.0.2.1:5432"), wanted("app1"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((login.credential, &*login.user), (2, "real"));
        assert_eq!(login.password.expose(), b"one");
        assert!(login.placeholder.is_none() && !login.confidential);
        let login = credentials
            .login(at("192.0.2.1:5432"), wanted("dba"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((login.credential, &*login.user), (3, "dba"));
        assert_eq!(login.placeholder.unwrap().expose(), b"p");
        let none = credentials.login(at("198.51.100.1:5432"), wanted("app1"));
        assert!(none.await.unwrap().is_none());
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
        let at = Destination("127.0.0.1:5432".parse().unwrap());
        for (ttl, expected) in [("1h", [b"1", b"1", b"1"]), ("0s", [b"2", b"3", b"4"])] {
            let credentials = credentials(&yaml(ttl));
            for expected in expected {
                let login = credentials.login(at, wanted("app")).await.unwrap().unwrap();
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
        let at = Destination("127.0.0.1:5432".parse().unwrap());
        let error = credentials.login(at, wanted("app")).await.unwrap_err();
        let expected = "credential 1: its password: the file `/nonexistent/secret` can't be read: No such file or directory (os error 2)";
        assert_eq!(error.to_string(), expected);
        assert_eq!(credentials.problems()[0].to_string(), expected);
    }
}
