//! Mail.

use lettre::{Address, message::Mailbox};
use serde::Deserialize;

use super::super::{address::is_loopback, limits::RECIPIENTS_MAX};
use crate::secret::Source;

/// Mail by a server of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct EmailConfig {
    /// The server's name.
    pub server: Box<str>,
    /// Its port.
    pub port: u16,
    /// How it is spoken to.
    pub security: Security,
    /// Whom to log in as, with which password.
    pub login: Option<(Box<str>, Source)>,
    /// Whom it is from.
    pub from: Mailbox,
    /// Whom it is for.
    pub to: Vec<Mailbox>,
}

/// How a mail server is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Security {
    /// In TLS from the first byte.
    #[default]
    Smtps,
    /// In TLS after the first words; where the server has none, not at all.
    StartTls,
    /// In the clear: on this host.
    None,
}

impl EmailConfig {
    pub(super) fn secrets(&self) -> Vec<&Source> {
        self.login.iter().map(|(_, password)| password).collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    server: Box<str>,
    port: Option<u16>,
    #[serde(default)]
    security: Security,
    user: Option<Box<str>>,
    password: Option<Source>,
    from: Box<str>,
    to: Vec<Box<str>>,
}

impl TryFrom<Fields> for EmailConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let server = fields.server;
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
        if server.is_empty() || !server.chars().all(is_host) {
            return Err(format!(
                "`server` is `{}`: a host's name belongs here (`smtp.example.com`), and its port under `port`",
                server.escape_debug()
            ));
        }
        if fields.security == Security::None && !is_loopback(&server) {
            return Err(format!(
                "`security: none` would send mail to {server} in the clear; `smtps` and `starttls` do not, and only a server on loopback may do without"
            ));
        }
        let port = fields.port.unwrap_or(match fields.security {
            Security::Smtps => 465,
            Security::StartTls => 587,
            Security::None => 25,
        });
        let login = match (fields.user, fields.password) {
            (None, None) => None,
            (Some(user), Some(password)) => Some((user, password)),
            (Some(_), None) => {
                return Err("`password` is missing: `user` alone logs nobody in".to_owned());
            }
            (None, Some(_)) => {
                return Err("`user` is missing: `password` alone logs nobody in".to_owned());
            }
        };
        if fields.to.is_empty() || fields.to.len() > RECIPIENTS_MAX {
            return Err(format!(
                "`to` has {} addresses: from 1 to {RECIPIENTS_MAX} belong there; a mailing list is one",
                fields.to.len()
            ));
        }
        let to = fields.to.iter().map(|text| mailbox("to", text));
        Ok(Self {
            to: to.collect::<Result<_, _>>()?,
            from: mailbox("from", &fields.from)?,
            server,
            port,
            security: fields.security,
            login,
        })
    }
}

fn mailbox(field: &str, text: &str) -> Result<Mailbox, String> {
    let wrong = || {
        format!(
            "`{field}` has `{}`: `reviews@example.com` and `Reviews <reviews@example.com>` are addresses",
            text.escape_debug()
        )
    };
    let mailbox: Mailbox = text.parse().map_err(|_| wrong())?;
    // Servers that take others are few, and lettre would find out at the first mail.
    let is_plain = |address: &Address| address.to_string().is_ascii();
    if text.contains(['\r', '\n']) || !is_plain(&mailbox.email) {
        return Err(wrong());
    }
    Ok(mailbox)
}
