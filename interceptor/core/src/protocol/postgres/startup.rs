//! From the first byte to the first ReadyForQuery.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Phase, Postgres,
    frontend::Proposal,
    login::Identity,
    wire::{self, Malformed, Reader, StartupFrame, code},
};
use crate::{
    decoder::{Peer, Step},
    limits,
    operation::{Description, Effects, Operation, Protocol, Resource, ResourceKind, Touch},
    record::Event,
};

/// The parameters of a StartupMessage.
#[derive(Debug, Default)]
pub struct Parameters {
    /// Who the client wants to be.
    pub user: Option<String>,
    /// Where to; the database of the user's name where it isn't said.
    pub database: Option<String>,
    /// It is for replication.
    pub replication: bool,
    /// Settings, those inside `options` included, as name and value.
    pub settings: Vec<(String, String)>,
}

impl Postgres {
    /// Takes one start-up packet off the client's buffer; whether to go on.
    pub(super) fn read_startup(&mut self) -> Result<bool, Malformed> {
        let Some(frame) = StartupFrame::peek(&self.client)? else {
            return Ok(false);
        };
        match frame.code {
            code::SSL | code::GSSENC if frame.len == StartupFrame::HEADER => {
                if self.client.len() < frame.len {
                    return Ok(false);
                }
                let request = self.client.split_to(frame.len).freeze();
                if self.relay.is_secure {
                    return Err(Malformed("an encryption request inside of TLS".to_owned()));
                }
                // What is sent before the answer would count as sent under TLS (CVE-2021-23222).
                if !self.client.is_empty() {
                    return Err(Malformed(
                        "bytes behind an encryption request, before its answer".to_owned(),
                    ));
                }
                if frame.code == code::GSSENC {
                    // Not here: the client goes on with TLS, in plain text or leaves, as it is configured to.
                    self.send(Peer::Client, Bytes::from_static(b"N"));
                    return Ok(true);
                }
                self.phase = Phase::Encryption;
                self.send(Peer::Upstream, request);
                Ok(false)
            }
            code::SSL | code::GSSENC => Err(Malformed(format!(
                "an encryption request of {} bytes; 8 is valid",
                frame.len
            ))),
            code::CANCEL => self.read_cancel(&frame),
            version if version >> 16 == 3 => self.read_startup_message(&frame),
            version => Err(Malformed(format!(
                "protocol version {}.{} is not spoken here; 3.0 and 3.2 are",
                version >> 16,
                version & 0xFFFF
            ))),
        }
    }

    /// Passes on whether the server speaks TLS: one byte, and nothing behind it.
    pub(super) fn read_encryption_answer(&mut self) {
        let answer = match (&*self.upstream, self.client.is_empty()) {
            ([], _) => return,
            ([answer @ (b'S' | b'N')], true) => *answer,
            _ => {
                // An ErrorResponse of a server that knows no SSLRequest, or something smuggled in front
                // of the handshake: nothing that could be passed on as its answer.
                let what = "its answer to the SSLRequest is neither `S` nor `N`";
                return self.upstream_violated(&Malformed(what.to_owned()));
            }
        };
        self.upstream.clear();
        self.send(Peer::Client, Bytes::copy_from_slice(&[answer]));
        match answer {
            b'S' => self.steps.push_back(Step::StartTls),
            _ => self.phase = Phase::Startup,
        }
    }

    fn read_cancel(&mut self, frame: &StartupFrame) -> Result<bool, Malformed> {
        // Process id, then a key of 4 bytes (3.0) to 256 bytes (3.2).
        if !(StartupFrame::HEADER + 8..=StartupFrame::HEADER + 4 + 256).contains(&frame.len) {
            return Err(Malformed(format!("a CancelRequest of {} bytes", frame.len)));
        }
        if self.client.len() < frame.len {
            return Ok(false);
        }
        let packet = self.client.split_to(frame.len).freeze();
        let description = Description {
            actions: [Box::from("CANCEL")].into(),
            effects: Effects::READ,
            ..Default::default()
        };
        let operation = Operation {
            protocol: Protocol::Postgres,
            description: Arc::new(description),
            content: Bytes::from_static(b"CancelRequest"),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        };
        self.propose(operation, Proposal::Cancel(packet));
        Ok(false)
    }

    fn read_startup_message(&mut self, frame: &StartupFrame) -> Result<bool, Malformed> {
        if self.client.len() < frame.len {
            return Ok(false);
        }
        let packet = self.client.split_to(frame.len).freeze();
        let parameters = Parameters::read(packet.get(StartupFrame::HEADER..).unwrap_or_default())?;
        let user = parameters.user.clone().ok_or_else(|| {
            Malformed("the StartupMessage names no user; PostgreSQL asks for one".to_owned())
        })?;
        self.replication = parameters.replication;
        self.beginning = packet.slice(StartupFrame::HEADER.min(packet.len())..);
        let database = parameters.database.clone().unwrap_or_else(|| user.clone());
        self.identity = Identity {
            user: user.clone(),
            database: database.clone(),
        };
        let notice = Event::notice(
            "postgres_startup",
            [
                ("user", user.clone()),
                ("database", database.clone()),
                (
                    "settings",
                    parameters
                        .settings
                        .iter()
                        .map(|(name, _)| &**name)
                        .collect::<Vec<_>>()
                        .join(", "),
                ),
            ],
        );
        self.steps.push_back(Step::Record(notice));
        match self.startup_operation(&parameters, &user, &database) {
            Some(operation) => {
                self.propose(operation, Proposal::Startup(packet));
                Ok(false)
            }
            None => {
                self.ask_for_login(packet);
                Ok(false)
            }
        }
    }

    /// The operation that a StartupMessage is, where it is more than a plain connection: replication,
    /// or settings that SET would have to be allowed for.
    fn startup_operation(
        &self,
        parameters: &Parameters,
        user: &str,
        database: &str,
    ) -> Option<Operation> {
        let mut description = Description {
            actions: [Box::from("CONNECT")].into(),
            effects: Effects::READ,
            ..Default::default()
        };
        if parameters.replication {
            description.actions = [Box::from("REPLICATION")].into();
            description.effects |= Effects::EXPORT | Effects::ADMIN;
        }
        for (name, value) in &parameters.settings {
            let quoted = |text: &str, quote: char| {
                format!(
                    "{quote}{}{quote}",
                    text.replace(quote, &format!("{quote}{quote}"))
                )
            };
            // A name with a dot is a setting of an extension: each part is quoted by itself.
            let name = name
                .split('.')
                .map(|part| quoted(&part.to_ascii_lowercase(), '"'))
                .collect::<Vec<_>>()
                .join(".");
            let set = format!("SET {name} = {}", quoted(value, '\''));
            let described = self.shared.describer.describe(set.as_bytes(), self.lexing);
            description = description.merged(&described.description);
        }
        if description.effects == Effects::READ {
            return None;
        }
        let mut resources = description.resources.to_vec();
        let mut touched = |kind, name: &str| {
            resources.push(Resource {
                kind,
                namespace: None,
                name: name.into(),
                touch: Touch::Read,
            });
        };
        touched(ResourceKind::Database, database);
        touched(ResourceKind::Role, user);
        resources.sort();
        resources.dedup();
        description.resources = resources.into();
        let mut content = format!("StartupMessage user={user} database={database}");
        if parameters.replication {
            content.push_str(" replication");
        }
        for (name, value) in &parameters.settings {
            content.push_str(&format!(" {name}={value}"));
        }
        Some(Operation {
            protocol: Protocol::Postgres,
            description: Arc::new(description),
            content: content.into(),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        })
    }

    /// Relays one message of the client while the server authenticates it.
    pub(super) fn read_authentication(&mut self) -> Result<bool, Malformed> {
        let Some(frame) = self.next_client_frame()? else {
            return Ok(false);
        };
        match frame.tag {
            // PasswordMessage, SASLInitialResponse, SASLResponse, GSSResponse: never recorded.
            b'p' => {
                let binds = {
                    let range = self.accepted + wire::HEADER..self.accepted + frame.len;
                    let payload = self.client.get(range).unwrap_or_default();
                    self.relay.binds_in_vain(payload)
                };
                if binds {
                    self.refuse_binding();
                    return Ok(false);
                }
                self.accepted += frame.len;
                Ok(true)
            }
            b'X' => {
                self.accepted += frame.len;
                self.client_finished = true;
                Ok(true)
            }
            tag => Err(Malformed(format!(
                "message `{}` before authentication has ended; wait for ReadyForQuery",
                tag.escape_ascii()
            ))),
        }
    }

    /// Sends what the client may have sent.
    pub(super) fn send_accepted(&mut self) {
        if self.accepted > 0 {
            let bytes = self.client.split_to(self.accepted).freeze();
            self.accepted = 0;
            self.send(Peer::Upstream, bytes);
        }
    }
}

impl Parameters {
    /// Reads what stands behind a StartupMessage's protocol version, which is what
    /// [`Decoder::beginning`](crate::decoder::Decoder::beginning) gives of a session.
    ///
    /// # Errors
    /// Where it isn't that.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload, "StartupMessage");
        let mut parameters = Self::default();
        loop {
            let name = reader.string()?;
            if name.is_empty() {
                reader.end()?;
                return Ok(parameters);
            }
            let name = text(name)?;
            let value = text(reader.string()?)?;
            match &*name {
                "user" if parameters.user.is_some() => {
                    return Err(Malformed("the StartupMessage names two users".to_owned()));
                }
                "database" if parameters.database.is_some() => {
                    return Err(Malformed(
                        "the StartupMessage names two databases".to_owned(),
                    ));
                }
                "user" => parameters.user = Some(value),
                "database" if value.is_empty() => {}
                "database" => parameters.database = Some(value),
                "replication" => {
                    parameters.replication = !matches!(
                        &*value.to_ascii_lowercase(),
                        "false" | "off" | "no" | "0" | "f" | "n"
                    );
                }
                "options" => parameters.settings.extend(command_line_settings(&value)?),
                // Protocol options: the server answers those that it doesn't know.
                _ if name.starts_with("_pq_.") => {}
                _ => parameters.settings.push((name, value)),
            }
        }
    }
}

/// The StartupMessage `packet` with another user, and the same database: without one it would be that
/// of the user's name.
pub(super) fn with_user(packet: &[u8], user: &str, database: &str) -> Result<Bytes, Malformed> {
    let mut reader = Reader::new(packet, "StartupMessage");
    let head = reader.take(StartupFrame::HEADER)?;
    let mut out = BytesMut::with_capacity(packet.len() + user.len() + database.len() + 16);
    out.put_slice(head);
    let mut put = |name: &[u8], value: &[u8]| {
        for text in [name, value] {
            out.extend(text.iter().filter(|byte| **byte != 0));
            out.put_u8(0);
        }
    };
    put(b"user", user.as_bytes());
    put(b"database", database.as_bytes());
    loop {
        let name = reader.string()?;
        if name.is_empty() {
            break;
        }
        let value = reader.string()?;
        if !matches!(name, b"user" | b"database") {
            put(name, value);
        }
    }
    out.put_u8(0);
    if out.len() > limits::STARTUP_BYTES_MAX {
        return Err(Malformed(
            "the StartupMessage is too long with the configured user's name".to_owned(),
        ));
    }
    let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(..4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(out.freeze())
}

fn text(bytes: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Malformed("the StartupMessage has a parameter that isn't UTF-8".to_owned()))
}

/// The settings in `options`, which the server reads like its own command line: `-c name=value` and
/// `--name=value`, split at white space, a backslash takes the next character as it is.
fn command_line_settings(options: &str) -> Result<Vec<(String, String)>, Malformed> {
    let mut words = vec![String::new()];
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                if let (Some(word), Some(next)) = (words.last_mut(), characters.next()) {
                    word.push(next);
                }
            }
            _ if character.is_ascii_whitespace() => words.push(String::new()),
            _ => {
                if let Some(word) = words.last_mut() {
                    word.push(character);
                }
            }
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next()
        } else if let Some(joined) = word.strip_prefix("--") {
            Some(joined.to_owned())
        } else {
            word.strip_prefix("-c").map(str::to_owned)
        };
        let pair = setting
            .as_deref()
            .and_then(|setting| setting.split_once('='));
        let Some((name, value)) = pair else {
            return Err(Malformed(format!(
                "start-up options hold `{word}`, which is not understood; `-c name=value` and `--name=value` are"
            )));
        };
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

/// Whether these are the first bytes of a start-up packet; `None` while that can't be told.
#[must_use]
pub fn is_startup(first: &[u8]) -> Option<bool> {
    let Some((&[a, b, c, d], rest)) = first.split_first_chunk::<4>() else {
        // A start-up packet is shorter than 64 KiB, so its first two bytes are zero.
        return if first.iter().take(2).all(|byte| *byte == 0) {
            None
        } else {
            Some(false)
        };
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(StartupFrame::HEADER..=crate::limits::STARTUP_BYTES_MAX).contains(&len) {
        return Some(false);
    }
    let (&code, _) = rest.split_first_chunk::<4>()?;
    let code = u32::from_be_bytes(code);
    Some(matches!(code, code::SSL | code::GSSENC | code::CANCEL) || matches!(code >> 16, 2 | 3))
}
