//! A credential as the configuration has it.

use interceptor_core::{glob::Glob, login::Place};
use serde::Deserialize;

use super::servers::Servers;
use crate::secret::Source;

/// What to prove an agent's right with, and where.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Credential {
    /// Where it may be used; it is given to nobody else.
    pub destination: Servers,
    /// What it is used for.
    pub purpose: Purpose,
    /// Where the secret stands.
    pub secret: Source,
    /// What the agent has to present.
    pub placeholder: Option<Source>,
}

impl Credential {
    /// Where its secrets stand.
    pub fn secrets(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.secret).chain(&self.placeholder)
    }
}

/// What a credential is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Logins to PostgreSQL.
    Postgres {
        /// The users that agents name for it.
        user: Names,
        /// The databases that agents name for it.
        database: Names,
        /// The user to log in as; the agent's where there is none.
        login: Option<User>,
    },
    /// Finding out what a held operation would touch, as a user of PostgreSQL who may read and no more.
    BlastRadius {
        /// The users of the agents' sessions that it is for.
        user: Names,
        /// Their databases.
        database: Names,
        /// The user to log in as.
        login: User,
    },
    /// HTTP requests.
    Http {
        /// The paths that it is for.
        path: Names,
        /// Where in a request it stands.
        place: Place,
    },
}

/// All that an entry can have. Which of it belongs together is seen in [`Credential::try_from`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    destination: Servers,
    protocol: LoginProtocol,
    #[serde(default)]
    r#use: Use,
    #[serde(default)]
    placeholder: Option<Source>,
    #[serde(default)]
    user: Option<Names>,
    #[serde(default)]
    database: Option<Names>,
    #[serde(default)]
    login: Option<User>,
    #[serde(default)]
    password: Option<Source>,
    #[serde(default)]
    path: Option<Names>,
    #[serde(default)]
    bearer: Option<Source>,
    #[serde(default)]
    basic: Option<BasicFields>,
    #[serde(default)]
    header: Option<NamedFields>,
    #[serde(default)]
    query: Option<NamedFields>,
}

/// Protocols whose logins can be ended here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LoginProtocol {
    Postgres,
    Http,
}

/// Whose login it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Use {
    /// The agent's.
    #[default]
    Agent,
    /// Ours, to find out what an agent's operation would touch.
    BlastRadius,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BasicFields {
    user: String,
    password: Source,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedFields {
    name: String,
    value: Source,
}

impl TryFrom<Fields> for Credential {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields {
            destination,
            protocol,
            r#use,
            placeholder,
            user,
            database,
            login,
            password,
            path,
            bearer,
            basic,
            header,
            query,
        } = fields;
        let belongs =
            |given: &[(&str, bool)], protocol: &str| match given.iter().find(|(_, given)| *given) {
                Some((name, _)) => Err(format!(
                    "`{name}` is nothing that `protocol: {protocol}` has"
                )),
                None => Ok(()),
            };
        let (purpose, secret) = match protocol {
            LoginProtocol::Postgres => {
                let given = [
                    ("path", path.is_some()),
                    ("bearer", bearer.is_some()),
                    ("basic", basic.is_some()),
                    ("header", header.is_some()),
                    ("query", query.is_some()),
                ];
                belongs(&given, "postgres")?;
                let (user, database) = (user.unwrap_or_default(), database.unwrap_or_default());
                let purpose = match r#use {
                    Use::Agent => Purpose::Postgres {
                        user,
                        database,
                        login,
                    },
                    Use::BlastRadius => {
                        if placeholder.is_some() {
                            return Err("no agent logs in with `use: blast_radius`, so there is nothing that a `placeholder` could stand for".to_owned());
                        }
                        let login = login.ok_or("`login` is missing: the user, who may read and no more, as whom it is found out what would be touched")?;
                        Purpose::BlastRadius {
                            user,
                            database,
                            login,
                        }
                    }
                };
                let password = password.ok_or("`password` is missing: what to log in with")?;
                (purpose, password)
            }
            LoginProtocol::Http => {
                let given = [
                    ("user", user.is_some()),
                    ("database", database.is_some()),
                    ("login", login.is_some()),
                    ("password", password.is_some()),
                    ("use", r#use != Use::Agent),
                ];
                belongs(&given, "http")?;
                let (place, secret) = place(bearer, basic, header, query)?;
                let path = path.unwrap_or_default();
                if !path.is_any() && !path.as_str().starts_with(['/', '*']) {
                    return Err(format!("`{}` is no path; `/v1/*` is", path.as_str()));
                }
                (Purpose::Http { path, place }, secret)
            }
        };
        Ok(Self {
            destination,
            purpose,
            secret,
            placeholder,
        })
    }
}

/// Where in a request a credential stands, and where its secret does.
fn place(
    bearer: Option<Source>,
    basic: Option<BasicFields>,
    header: Option<NamedFields>,
    query: Option<NamedFields>,
) -> Result<(Place, Source), String> {
    match (bearer, basic, header, query) {
        (Some(token), None, None, None) => Ok((Place::Bearer, token)),
        (None, Some(BasicFields { user, password }), None, None) => {
            // A colon would end it (RFC 7617, section 2).
            if user.contains(|character: char| character == ':' || character.is_control()) {
                return Err(format!("`{}` can't be a user here", user.escape_debug()));
            }
            Ok((Place::Basic(user.into()), password))
        }
        (None, None, Some(NamedFields { name, value }), None) => {
            let name = name.to_ascii_lowercase();
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if name.is_empty() || !name.bytes().all(fits) {
                return Err(format!("`{}` names no header field", name.escape_debug()));
            }
            if interceptor_core::operation::http::Rewrite::RESERVED.contains(&&*name) {
                return Err(format!("`{name}` says where a request ends or whom it is for"));
            }
            Ok((Place::Header(name.into()), value))
        }
        (None, None, None, Some(NamedFields { name, value })) => {
            if name.is_empty() {
                return Err("a parameter needs a name".to_owned());
            }
            Ok((Place::Query(name.into()), value))
        }
        _ => Err("a credential for HTTP stands in one place: `bearer`, `basic: {user, password}`, `header: {name, value}` or `query: {name, value}`".to_owned()),
    }
}

/// Names with wildcards.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Names(Glob);

impl std::ops::Deref for Names {
    type Target = Glob;

    fn deref(&self) -> &Glob {
        &self.0
    }
}

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

impl User {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for User {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name.is_empty() || name.contains('\0') {
            return Err(format!("`{}` names no user", name.escape_debug()));
        }
        Ok(Self(name.into()))
    }
}
