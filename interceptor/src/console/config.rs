//! The `console` and `roles` sections of the configuration.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{approval::Site, control::Role, secret::Source};

/// The port on which the console listens unless said otherwise.
const PORT: u16 = 7676;

/// Whose what the console is, and who may sign in there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct ConsoleConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its address, as browsers know it.
    pub site: Site,
    /// What it presents to browsers; without it nobody but this host can reach it.
    pub tls: Option<Certificate>,
    /// Local users, for a single host.
    pub users: Vec<LocalUser>,
    /// An OpenID provider.
    pub oidc: Option<OidcConfig>,
    /// Programs that may ask what people may.
    pub tokens: Vec<Token>,
    /// How long somebody stays signed in who does nothing.
    pub idle: Duration,
    /// How long at the most.
    pub absolute: Duration,
    /// The user that its process is, by name: one that nothing else is. Without it, one without a name.
    pub user: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    listen: SocketAddr,
    url: Option<String>,
    tls: Option<Certificate>,
    users: Vec<LocalUser>,
    oidc: Option<OidcConfig>,
    tokens: Vec<Token>,
    #[serde(deserialize_with = "crate::patience::duration")]
    idle: Duration,
    #[serde(deserialize_with = "crate::patience::duration")]
    absolute: Duration,
    user: Option<Box<str>>,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The certificate and what is between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Somebody with a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalUser {
    /// What they are called. Whoever is called so on this host is the same person.
    #[serde(deserialize_with = "person")]
    pub name: Box<str>,
    /// What `interceptor console password` makes of their password.
    #[serde(deserialize_with = "hash")]
    pub password: Box<str>,
    /// The groups that they are in.
    #[serde(default)]
    pub groups: Vec<Box<str>>,
}

/// An OpenID provider.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// Its issuer's address.
    #[serde(deserialize_with = "issuer")]
    pub issuer: String,
    /// What it calls the console.
    pub client_id: Box<str>,
    /// What the console proves itself with; a public client has none.
    #[serde(default)]
    pub client_secret: Option<Source>,
    /// What is asked for beside `openid`.
    #[serde(default = "scopes")]
    pub scopes: Vec<Box<str>>,
    /// The claim that says who somebody is: one that people can't choose for themselves. `email` counts only where the
    /// provider says that it is verified.
    #[serde(default = "name_claim")]
    pub name_claim: Box<str>,
    /// The claim that lists somebody's groups.
    #[serde(default = "groups_claim")]
    pub groups_claim: Box<str>,
    /// People who are known by another name on this host, by what the provider calls them.
    #[serde(default)]
    pub aliases: BTreeMap<Box<str>, Box<str>>,
}

/// A program that may ask.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What it is called.
    #[serde(deserialize_with = "person")]
    pub name: Box<str>,
    /// What `interceptor console token` says of it.
    #[serde(deserialize_with = "token_hash")]
    pub sha256: Box<str>,
    /// What it may.
    pub role: Role,
}

/// What people may, by the groups that they are in: groups under `reviewers`, Unix groups, or those that the OpenID
/// provider says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Roles {
    /// Groups whose members see everything.
    pub viewer: Vec<Box<str>>,
    /// Groups whose members also answer what waits.
    pub reviewer: Vec<Box<str>>,
    /// Groups whose members also tag, freeze, thaw and cut agents.
    pub operator: Vec<Box<str>>,
    /// Groups whose members also load policies.
    pub administrator: Vec<Box<str>>,
}

impl ConsoleConfig {
    /// Its files that no agent is to see.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &PathBuf> {
        let key = self.tls.as_ref().map(|tls| &tls.key);
        let secret = self
            .oidc
            .as_ref()
            .and_then(|oidc| oidc.client_secret.as_ref());
        key.into_iter().chain(secret.and_then(Source::file))
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            listen: (IpAddr::V4(Ipv4Addr::LOCALHOST), PORT).into(),
            url: None,
            tls: None,
            users: Vec::new(),
            oidc: None,
            tokens: Vec::new(),
            idle: Duration::from_secs(30 * 60),
            absolute: Duration::from_secs(12 * 60 * 60),
            user: None,
        }
    }
}

impl TryFrom<Fields> for ConsoleConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        let (listen, is_tls) = (fields.listen, fields.tls.is_some());
        if !listen.ip().is_loopback() && !is_tls {
            return Err(format!(
                "`listen: {listen}` is reached from other hosts: give `tls` a certificate and its key, or listen on 127.0.0.1"
            ));
        }
        let url = fields
            .url
            .unwrap_or_else(|| match (is_tls, listen.ip().is_loopback()) {
                // A name, because browsers ask security keys for none but names.
                (false, _) => format!("http://localhost:{}", listen.port()),
                (true, true) => format!("https://localhost:{}", listen.port()),
                (true, false) => format!("https://{listen}"),
            });
        let site = site(&url)?;
        let mut names: Vec<_> = fields.users.iter().map(|user| &user.name).collect();
        names.sort();
        if let Some([name, _]) = names
            .windows(2)
            .find(|pair| matches!(pair, [a, b] if a == b))
        {
            return Err(format!("user `{name}` is there twice"));
        }
        Ok(Self {
            listen: fields.listen,
            site,
            tls: fields.tls,
            users: fields.users,
            oidc: fields.oidc,
            tokens: fields.tokens,
            idle: fields.idle,
            absolute: fields.absolute,
            user: fields.user,
        })
    }
}

/// An address that browsers know, with nothing behind its host and port.
fn site(url: &str) -> Result<Site, String> {
    let no = |why: &str| {
        Err(format!(
            "`url: {}` {why}; `https://interceptor.example.com` is an address",
            url.escape_debug()
        ))
    };
    let Ok(uri) = url.parse::<http::Uri>() else {
        return no("is no address");
    };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return no("lacks `https://` or a host");
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@')
    {
        return no("has more than a host and a port");
    }
    let host = authority.host().to_ascii_lowercase();
    let is_local = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    match scheme {
        "https" => {}
        "http" if is_local => {}
        _ => {
            return no(
                "isn't `https://`, and browsers would send what signs people in for everybody to read",
            );
        }
    }
    let authority = authority.as_str().to_ascii_lowercase();
    // Browsers leave the port out where it is the usual one.
    let usual = if scheme == "https" { ":443" } else { ":80" };
    let authority = authority.strip_suffix(usual).unwrap_or(&authority);
    Ok(Site {
        origin: format!("{scheme}://{authority}").into(),
        host: host.into(),
    })
}

/// Whether `destination`, of somebody in this host's own network or in another one, is where a console listens.
pub(crate) fn is_at(console: SocketAddr, destination: SocketAddr, is_hosts: bool) -> bool {
    let ip = destination.ip().to_canonical();
    if destination.port() != console.port() || (ip.is_loopback() && !is_hosts) {
        return false;
    }
    if !console.ip().is_unspecified() {
        // Linux takes what goes to no address at all to this host.
        return ip == console.ip().to_canonical() || (ip.is_unspecified() && is_hosts);
    }
    let own = nix::ifaddrs::getifaddrs().map(|all| {
        let addresses = all.filter_map(|interface| interface.address);
        let ips = addresses.filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        });
        ips.collect::<Vec<_>>()
    });
    // Where that can't be told, what has its port is taken for it.
    ip.is_loopback() || ip.is_unspecified() || own.map_or(true, |own| own.contains(&ip))
}

fn scopes() -> Vec<Box<str>> {
    vec!["profile".into(), "email".into()]
}

fn name_claim() -> Box<str> {
    "email".into()
}

fn groups_claim() -> Box<str> {
    "groups".into()
}

fn custom<T, E: serde::de::Error>(what: String) -> Result<T, E> {
    Err(E::custom(what))
}

fn person<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Box<str>, D::Error> {
    let name = Box::<str>::deserialize(deserializer)?;
    let fits = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte));
    if fits {
        return Ok(name);
    }
    custom(format!(
        "`{}` can't name anybody: up to 64 letters, digits and . _ - @ can",
        name.escape_debug()
    ))
}

fn hash<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Box<str>, D::Error> {
    let hash = Box::<str>::deserialize(deserializer)?;
    match argon2::PasswordHash::new(&hash) {
        Ok(parsed) if parsed.algorithm.as_str() == "argon2id" => Ok(hash),
        // What stands there may be the password itself.
        _ => custom("`password` is not what `interceptor console password` prints".to_owned()),
    }
}

fn token_hash<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Box<str>, D::Error> {
    let text = Box::<str>::deserialize(deserializer)?;
    match hex::decode(&*text) {
        Ok(hash) if hash.len() == 32 => Ok(text.to_ascii_lowercase().into()),
        _ => custom(
            "`sha256` is not what `interceptor console token` prints: 64 hexadecimal digits"
                .to_owned(),
        ),
    }
}

fn issuer<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_local =
        |uri: &http::Uri| matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match text.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("https") => Ok(text),
        Ok(uri) if uri.scheme_str() == Some("http") && is_local(&uri) => Ok(text),
        _ => custom(format!(
            "`{}` is no issuer's address; `https://login.example.com/realm` is",
            text.escape_debug()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("i.yaml"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn nothing_said_is_loopback_and_a_name() {
        for text in ["console: {}", "console:\n"] {
            let config = Config::parse(text, Path::new("i.yaml")).unwrap();
            let console = config.console.unwrap();
            assert_eq!(console.listen.to_string(), "127.0.0.1:7676");
            assert_eq!(&*console.site.origin, "http://localhost:7676");
            assert_eq!(&*console.site.host, "localhost");
        }
    }

    #[test]
    fn no_agent_is_led_to_it() {
        let at = |console: &str, destination: &str, is_hosts| {
            super::is_at(
                console.parse().unwrap(),
                destination.parse().unwrap(),
                is_hosts,
            )
        };
        for (console, destination, is_hosts, expected) in [
            ("127.0.0.1:7676", "127.0.0.1:7676", true, true),
            ("127.0.0.1:7676", "[::ffff:127.0.0.1]:7676", true, true),
            ("127.0.0.1:7676", "0.0.0.0:7676", true, true),
            ("127.0.0.1:7676", "127.0.0.1:7676", false, false),
            ("127.0.0.1:7676", "127.0.0.1:80", true, false),
            ("127.0.0.1:7676", "192.0.2.1:7676", true, false),
            ("192.0.2.1:7676", "192.0.2.1:7676", false, true),
            ("0.0.0.0:7676", "127.0.0.1:7676", true, true),
            ("0.0.0.0:7676", "192.0.2.1:7676", true, false),
        ] {
            assert_eq!(
                at(console, destination, is_hosts),
                expected,
                "{console} {destination}"
            );
        }
    }

    #[test]
    fn what_would_open_it_to_others_is_an_error() {
        for (text, expected) in [
            (
                "console: {listen: '0.0.0.0:7676'}",
                "`listen: 0.0.0.0:7676` is reached from other hosts",
            ),
            (
                "console: {url: 'http://console.example.com'}",
                "isn't `https://`",
            ),
            (
                "console: {url: 'https://a.example/path'}",
                "more than a host and a port",
            ),
            (
                "console: {url: 'https://u:p@a.example'}",
                "more than a host and a port",
            ),
            (
                "console: {users: [{name: a, password: secret}]}",
                "`password` is not what `interceptor console password` prints",
            ),
            (
                "console: {users: [{name: 'a b', password: x}]}",
                "`a b` can't name anybody",
            ),
            (
                "console: {tokens: [{name: ci, sha256: abc, role: viewer}]}",
                "64 hexadecimal digits",
            ),
            (
                "console: {tokens: [{name: ci, sha256: abc, role: root}]}",
                "",
            ),
            (
                "console: {oidc: {issuer: 'http://idp.example.com', client_id: a}}",
                "no issuer's address",
            ),
            (
                "console: {oidc: {issuer: 'https://idp.example.com', client: a}}",
                "unknown name `client`; did you mean `client_id`?",
            ),
            ("roles: {admin: [a]}", "unknown name `admin`"),
            (
                "console: {oidc: {issuer: 'https://idp.example.com', client_id: a}}",
                "nobody who signs in could do anything: name groups under `roles`",
            ),
        ] {
            let error = error(text);
            assert!(
                error.starts_with("i.yaml:1:") && error.contains(expected),
                "{text}: {error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
