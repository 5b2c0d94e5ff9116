//! Logging in: with the agent's own messages, or in its place with what the configuration gives.
//!
//! In its place, the order is: the agent proves that it knows the placeholder, where there is one; the
//! server is logged in to; only then is the agent told that it is in. The password is in no message but
//! the one that the server asks for, and that one is never recorded.

mod relay;
pub(super) mod scram;
#[cfg(test)]
mod tests;

pub(super) use self::relay::Relay;

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use md5::{Digest, Md5};
use zeroize::Zeroizing;

use self::scram::{Binding, Challenged, Client, Proved, Rejected, SCRAM, SCRAM_PLUS};
use super::{
    Phase, Postgres,
    backend::{Pass, framed},
    refuse, startup,
    wire::{self, Fields, Frame, Malformed, Reader},
};
use crate::{
    decoder::{Closing, Peer, Step},
    limits,
    login::Login,
    record::Event,
};

/// What an Authentication message asks for.
mod demand {
    pub(super) const OK: u32 = 0;
    pub(super) const KERBEROS: u32 = 2;
    pub(super) const CLEARTEXT: u32 = 3;
    pub(super) const MD5: u32 = 5;
    pub(super) const GSS: u32 = 7;
    pub(super) const SSPI: u32 = 9;
    pub(super) const SASL: u32 = 10;
    pub(super) const SASL_CONTINUE: u32 = 11;
    pub(super) const SASL_FINAL: u32 = 12;
}

/// Who the agent wants to be, as its StartupMessage says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) user: String,
    pub(super) database: String,
}

/// A login from the StartupMessage to AuthenticationOk.
pub(super) struct Attempt {
    /// The StartupMessage, until it is sent.
    packet: Bytes,
    /// With what; not known yet in [`Stage::Asked`].
    login: Option<Login>,
    stage: Stage,
    /// How the agent proved that it knows the placeholder.
    agent_mechanism: &'static str,
    /// How the server was convinced.
    mechanism: &'static str,
}

/// What is awaited.
enum Stage {
    /// Whether there is a credential.
    Asked,
    /// SASLInitialResponse of the agent.
    Offered,
    /// Its proof.
    Challenged(Box<Challenged>),
    /// What the server demands.
    Started,
    /// The server's challenge.
    Opened(Client),
    /// The server's own proof.
    Proved(Proved),
    /// AuthenticationOk.
    Answered,
}

/// Why a login is given up: for the agent, and for the record.
struct Refusal {
    sqlstate: String,
    message: String,
    hint: &'static str,
}

/// The operator has to do something.
const ASK_THE_OPERATOR: &str = "The agent can't mend this: the operator of this host has to check this entry of `credentials` in interceptor's configuration, and the server's pg_hba.conf.";

impl Postgres {
    /// Asks for a credential before `packet`, the StartupMessage, is sent.
    pub(super) fn ask_for_login(&mut self, packet: Bytes) {
        self.phase = Phase::Login;
        self.attempt = Some(Box::new(Attempt {
            packet,
            login: None,
            stage: Stage::Asked,
            agent_mechanism: "none",
            mechanism: "none",
        }));
        let Identity { user, database } = self.identity.clone();
        self.steps.push_back(Step::Login { user, database });
    }

    /// There is a credential for the login that was asked about, or none.
    pub(super) fn answer_login_question(&mut self, login: Option<Login>) {
        if self.phase != Phase::Login {
            return;
        }
        let Some(mut attempt) = self.attempt.take() else {
            return;
        };
        if !matches!(attempt.stage, Stage::Asked) {
            self.attempt = Some(attempt);
            return;
        }
        let Some(login) = login else {
            self.phase = Phase::Authentication;
            return self.send(Peer::Upstream, attempt.packet);
        };
        if login.placeholder.is_some() {
            let offer = offer(login.agent_binding.is_some());
            attempt.stage = Stage::Offered;
            attempt.login = Some(login);
            self.attempt = Some(attempt);
            self.send(Peer::Client, offer);
        } else {
            attempt.login = Some(login);
            self.send_startup(attempt);
        }
    }

    fn send_startup(&mut self, mut attempt: Box<Attempt>) {
        let packet = std::mem::take(&mut attempt.packet);
        let packet = match &attempt.login {
            Some(login) if login.user != self.identity.user => {
                match startup::with_user(&packet, &login.user, &self.identity.database) {
                    Ok(packet) => packet,
                    Err(malformed) => return self.violated(&malformed),
                }
            }
            _ => packet,
        };
        attempt.stage = Stage::Started;
        self.attempt = Some(attempt);
        self.send(Peer::Upstream, packet);
    }

    // === The agent's side ===

    /// Reads one message of the agent while it is logged in; whether to go on.
    pub(super) fn read_login(&mut self) -> Result<bool, Malformed> {
        let Some(attempt) = &self.attempt else {
            return Ok(false);
        };
        let Some(frame) = Frame::peek(&self.client, limits::LOGIN_MESSAGE_BYTES_MAX)
            .map_err(|_| too_long("the client"))?
        else {
            return Ok(false);
        };
        if self.client.len() < frame.len {
            return Ok(false);
        }
        if frame.tag == b'X' {
            self.close(Closing::Finished);
            return Ok(false);
        }
        if !matches!(attempt.stage, Stage::Offered | Stage::Challenged(_)) {
            // It has to wait: nothing was asked of it, and it is read on when it is in.
            return Ok(false);
        }
        if frame.tag != b'p' {
            return Err(Malformed(format!(
                "message `{}` where the answer to an authentication request was due",
                frame.tag.escape_ascii()
            )));
        }
        let message = Zeroizing::new(self.client.split_to(frame.len).to_vec());
        let payload = message.get(wire::HEADER..).unwrap_or_default();
        let Some(mut attempt) = self.attempt.take() else {
            return Ok(false);
        };
        let answered = match attempt.login.as_ref() {
            Some(login) => answer_agent(login, &mut attempt.stage, payload),
            None => Ok(Answer::default()),
        };
        match answered {
            Ok(Answer {
                message,
                mechanism,
                proved,
            }) => {
                if let Some(mechanism) = mechanism {
                    attempt.agent_mechanism = mechanism;
                }
                self.send(Peer::Client, message);
                if proved {
                    self.send_startup(attempt);
                } else {
                    self.attempt = Some(attempt);
                }
                Ok(true)
            }
            Err(Rejected::Malformed(what)) => Err(Malformed(what.to_owned())),
            Err(Rejected::WrongPassword) => {
                let message = format!(
                    "password authentication failed for user \"{}\"",
                    self.identity.user
                );
                self.attempt = Some(attempt);
                self.refuse_login(&Refusal {
                    sqlstate: refuse::INVALID_PASSWORD.to_owned(),
                    message,
                    hint: "This login asks for the placeholder that the operator of this host gave out, not for the server's password.",
                });
                Ok(false)
            }
        }
    }

    // === The server's side ===

    /// Reads one message of the server while it is logged in to.
    pub(super) fn answer_login(&mut self, frame: Frame) -> Result<Pass, Malformed> {
        let unasked = matches!(
            self.attempt.as_ref().map(|attempt| &attempt.stage),
            None | Some(Stage::Asked | Stage::Offered | Stage::Challenged(_))
        );
        if unasked {
            return Err(Malformed(format!(
                "message `{}` before it was asked anything",
                frame.tag.escape_ascii()
            )));
        }
        if frame.len > limits::LOGIN_MESSAGE_BYTES_MAX {
            return Err(too_long("the server"));
        }
        match frame.tag {
            // It may say what it was told, and it was told a secret.
            b'N' if self.tells_secret(self.upstream_payload(frame)) => Ok(Pass::Never),
            b'N' | b'v' => Ok(Pass::Whole),
            b'E' => {
                let refusal = self.refused_by_server(frame)?;
                self.give_up_login(refusal);
                Ok(Pass::Never)
            }
            b'R' => self.meet_demand(frame),
            tag => Err(Malformed(format!(
                "message `{}` during authentication",
                tag.escape_ascii()
            ))),
        }
    }

    fn meet_demand(&mut self, frame: Frame) -> Result<Pass, Malformed> {
        let Some(mut attempt) = self.attempt.take() else {
            return Ok(Pass::Never);
        };
        let mut reader = Reader::new(self.upstream_payload(frame), "Authentication");
        let demand = reader.u32()?;
        let payload = Bytes::copy_from_slice(reader.rest());
        if demand == demand::OK && matches!(attempt.stage, Stage::Started | Stage::Answered) {
            self.phase = Phase::Authentication;
            let notice = self.login_notice(&attempt, None);
            self.steps.push_back(Step::Record(notice));
            return Ok(Pass::Whole);
        }
        let answered = attempt.answer_server(demand, &payload);
        self.attempt = Some(attempt);
        match answered? {
            Ok(message) => self.send(Peer::Upstream, message),
            Err(refusal) => self.give_up_login(refusal),
        }
        Ok(Pass::Never)
    }

    /// What the server's ErrorResponse means for the agent.
    fn refused_by_server(&self, frame: Frame) -> Result<Refusal, Malformed> {
        let fields = Fields::read(self.upstream_payload(frame))?;
        let said = if self.tells_secret(fields.message) {
            "(its message holds the password)".into()
        } else {
            String::from_utf8_lossy(fields.message)
        };
        let sqlstate = match fields.code {
            code if code.len() == 5 && code.iter().all(u8::is_ascii_alphanumeric) => {
                String::from_utf8_lossy(code).into_owned()
            }
            _ => refuse::INVALID_AUTHORIZATION.to_owned(),
        };
        let hint = if sqlstate.starts_with("28") {
            ASK_THE_OPERATOR
        } else {
            ""
        };
        Ok(Refusal {
            sqlstate,
            message: format!("the server refused it: {said}"),
            hint,
        })
    }

    /// Whether the password stands in `text`.
    fn tells_secret(&self, text: &[u8]) -> bool {
        self.attempt
            .as_ref()
            .and_then(|attempt| attempt.login.as_ref())
            .is_some_and(|login| {
                let secret = login.password.expose();
                !secret.is_empty() && memchr::memmem::find(text, secret).is_some()
            })
    }

    /// The server and what is configured don't get on: it is said with which credential.
    fn give_up_login(&mut self, mut refusal: Refusal) {
        if let Some(attempt) = &self.attempt {
            let credential = attempt.credential();
            let why = refusal.message;
            refusal.message = format!("the login with credential {credential} failed: {why}");
        }
        self.refuse_login(&refusal);
    }

    /// Gives the login up: on record, and told to the agent.
    fn refuse_login(&mut self, refusal: &Refusal) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let notice = self.login_notice(&attempt, Some(&refusal.message));
        self.steps.push_back(Step::Record(notice));
        self.send_passed();
        let message = format!("interceptor: {}", refusal.message);
        let error = refuse::error("FATAL", &refusal.sqlstate, &message, "", refusal.hint);
        self.send(Peer::Client, error);
        self.close(Closing::Refused(refusal.message.clone()));
    }

    /// What is recorded of a login: everything but what it takes.
    fn login_notice(&self, attempt: &Attempt, error: Option<&str>) -> Event {
        let login = attempt.login.as_ref();
        let detail = [
            ("credential", attempt.credential().to_string()),
            ("user", self.identity.user.clone()),
            ("database", self.identity.database.clone()),
            (
                "login",
                login.map_or_else(String::new, |login| login.user.clone()),
            ),
            ("mechanism", attempt.mechanism.to_owned()),
            ("placeholder", attempt.agent_mechanism.to_owned()),
        ];
        let error = error.map(|error| ("error", error.to_owned()));
        Event::notice("postgres_login", detail.into_iter().chain(error))
    }
}

/// What the agent is answered, and what that says of it.
#[derive(Default)]
struct Answer {
    message: Bytes,
    mechanism: Option<&'static str>,
    proved: bool,
}

/// Answers one SASL message of the agent.
fn answer_agent(login: &Login, stage: &mut Stage, payload: &[u8]) -> Result<Answer, Rejected> {
    const MALFORMED: Rejected = Rejected::Malformed("a SASLInitialResponse that is cut short");
    if let Stage::Challenged(challenged) = stage {
        let last = challenged.finish(payload)?;
        return Ok(Answer {
            message: authentication(demand::SASL_FINAL, last.as_bytes()),
            mechanism: None,
            proved: true,
        });
    }
    let mut reader = Reader::new(payload, "SASLInitialResponse");
    let (Ok(mechanism), Ok(Some(first))) = (reader.string(), reader.value()) else {
        return Err(MALFORMED);
    };
    reader.end().map_err(|_| MALFORMED)?;
    let mechanism = [SCRAM, SCRAM_PLUS]
        .into_iter()
        .find(|name| name.as_bytes() == mechanism)
        .ok_or(Rejected::Malformed(
            "a SASL mechanism other than those that were offered",
        ))?;
    let placeholder = login
        .placeholder
        .as_ref()
        .map(crate::login::Secret::expose)
        .unwrap_or_default();
    let challenged = Challenged::new(
        placeholder,
        &login.randomness.server_nonce,
        login.randomness.salt,
        login.agent_binding.as_ref(),
        mechanism,
        first,
    )?;
    let message = authentication(demand::SASL_CONTINUE, challenged.first().as_bytes());
    *stage = Stage::Challenged(Box::new(challenged));
    Ok(Answer {
        message,
        mechanism: Some(mechanism),
        proved: false,
    })
}

impl Attempt {
    fn credential(&self) -> usize {
        self.login.as_ref().map_or(0, |login| login.credential)
    }

    /// The message that meets the server's `demand`.
    fn answer_server(
        &mut self,
        demand: u32,
        payload: &[u8],
    ) -> Result<Result<Bytes, Refusal>, Malformed> {
        let Some(login) = &self.login else {
            return Ok(Err(Refusal::ours("there is no credential")));
        };
        let stage = std::mem::replace(&mut self.stage, Stage::Answered);
        let password = login.password.expose();
        Ok(match (stage, demand) {
            (Stage::Started, demand::CLEARTEXT) if !login.confidential => Err(Refusal::ours(
                "the server asks for the password itself, which is only given where nobody can listen (TLS, or a server on this host)",
            )),
            (Stage::Started, demand::CLEARTEXT) => {
                self.mechanism = "password";
                Ok(password_message(password))
            }
            (Stage::Started, demand::MD5) => {
                self.mechanism = "md5";
                let salt = Reader::new(payload, "AuthenticationMD5Password").take(4)?;
                Ok(password_message(&md5_response(
                    password,
                    login.user.as_bytes(),
                    salt,
                )))
            }
            (Stage::Started, demand::SASL) => {
                let offered = mechanisms(payload)?;
                let offers = |name: &str| offered.contains(&name.as_bytes());
                let (mechanism, binding) = match &login.upstream_binding {
                    Some(hash) if offers(SCRAM_PLUS) => {
                        (SCRAM_PLUS, Binding::EndPoint(hash.clone()))
                    }
                    Some(_) if offers(SCRAM) => (SCRAM, Binding::Unoffered),
                    None if offers(SCRAM) => (SCRAM, Binding::Unsupported),
                    _ => {
                        return Ok(Err(Refusal::ours(
                            "the server offers no SASL mechanism that can be used here; SCRAM-SHA-256 can, and SCRAM-SHA-256-PLUS over TLS",
                        )));
                    }
                };
                self.mechanism = mechanism;
                let client = Client::new(password, "", &login.randomness.client_nonce, binding);
                let message = initial_response(mechanism, client.first().as_bytes());
                self.stage = Stage::Opened(client);
                Ok(message)
            }
            (Stage::Opened(client), demand::SASL_CONTINUE) => {
                let iterations_min = if login.confidential {
                    1
                } else {
                    limits::SCRAM_ITERATIONS
                };
                match client.prove(payload, iterations_min) {
                    Ok((message, proved)) => {
                        self.stage = Stage::Proved(proved);
                        Ok(framed(b'p', message.as_bytes()))
                    }
                    Err(why) => Err(Refusal::ours(format!("the server can't be trusted: {why}"))),
                }
            }
            (Stage::Proved(proved), demand::SASL_FINAL) => match proved.verify(payload) {
                Ok(()) => Ok(Bytes::new()),
                Err(why) => Err(Refusal::ours(format!("the server can't be trusted: {why}"))),
            },
            (Stage::Opened(_) | Stage::Proved(_), demand::OK) => Err(Refusal::ours(
                "the server can't be trusted: it let the login in without having proved that it knows the password",
            )),
            (Stage::Started, demand::GSS | demand::SSPI | demand::KERBEROS) => Err(Refusal::ours(
                "the server asks for Kerberos (GSSAPI or SSPI), which can't be done here; have its pg_hba.conf ask for scram-sha-256",
            )),
            (Stage::Started, other) => Err(Refusal::ours(format!(
                "the server asks for authentication of kind {other}, which can't be done here; have its pg_hba.conf ask for scram-sha-256"
            ))),
            (_, other) => {
                return Err(Malformed(format!(
                    "authentication request {other} out of turn"
                )));
            }
        })
    }
}

impl Refusal {
    fn ours(message: impl Into<String>) -> Self {
        Self {
            sqlstate: refuse::INVALID_AUTHORIZATION.to_owned(),
            message: message.into(),
            hint: ASK_THE_OPERATOR,
        }
    }
}

impl fmt::Debug for Attempt {
    /// Without what it holds: almost all of it is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("credential", &self.credential())
            .finish_non_exhaustive()
    }
}

// === Messages ===

/// AuthenticationSASL, as a server sends it.
fn offer(binds: bool) -> Bytes {
    let mut names = Vec::new();
    for name in binds.then_some(SCRAM_PLUS).into_iter().chain([SCRAM]) {
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    names.push(0);
    authentication(demand::SASL, &names)
}

/// The mechanisms that the payload of an AuthenticationSASL names, after its code.
fn mechanisms(payload: &[u8]) -> Result<Vec<&[u8]>, Malformed> {
    let mut reader = Reader::new(payload, "AuthenticationSASL");
    let mut names = Vec::new();
    loop {
        match reader.string()? {
            b"" => {
                reader.end()?;
                return Ok(names);
            }
            name => names.push(name),
        }
    }
}

fn authentication(code: u32, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(wire::HEADER + 4 + payload.len());
    wire::frame(&mut out, b'R', |out| {
        out.put_u32(code);
        out.put_slice(payload);
    });
    out.freeze()
}

fn initial_response(mechanism: &str, first: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    wire::frame(&mut out, b'p', |out| {
        out.put_slice(mechanism.as_bytes());
        out.put_u8(0);
        out.put_u32(u32::try_from(first.len()).unwrap_or(u32::MAX));
        out.put_slice(first);
    });
    out.freeze()
}

/// PasswordMessage.
fn password_message(password: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(wire::HEADER + password.len() + 1);
    wire::frame(&mut out, b'p', |out| {
        out.put_slice(password);
        out.put_u8(0);
    });
    out.freeze()
}

/// `md5` and the hash, with `salt`, of the hash that the server keeps.
fn md5_response(password: &[u8], user: &[u8], salt: &[u8]) -> Zeroizing<Vec<u8>> {
    let kept = Zeroizing::new(hex::encode(
        Md5::new()
            .chain_update(password)
            .chain_update(user)
            .finalize(),
    ));
    let answer = hex::encode(
        Md5::new()
            .chain_update(kept.as_bytes())
            .chain_update(salt)
            .finalize(),
    );
    Zeroizing::new([b"md5", answer.as_bytes()].concat())
}

fn too_long(who: &str) -> Malformed {
    Malformed(format!(
        "{who} sent a message of more than {} bytes during authentication",
        limits::LOGIN_MESSAGE_BYTES_MAX
    ))
}
