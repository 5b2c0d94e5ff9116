//! Logins between scripts of an agent and a server that check everything they are told.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    super::{Postgres, Shared, refuse, wire},
    Binding, Challenged, Client, Proved, SCRAM, SCRAM_PLUS, authentication, demand,
    initial_response, md5_response, mechanisms, offer, password_message,
};
use crate::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    login::{Login, Randomness, Secret},
    record::{Event, Timestamp},
};

const NOW: Timestamp = Timestamp(1);
const PASSWORD: &[u8] = "pä\u{AD}ss".as_bytes();
const PLACEHOLDER: &[u8] = b"let me in";

/// How the server wants to be convinced.
#[derive(Debug, Clone, PartialEq)]
enum Hba {
    Trust,
    Cleartext,
    Md5,
    /// With what it offers to bind to.
    Scram(Option<Bytes>),
    Kind(u32),
    /// It lets everybody in after their first SCRAM message.
    Impostor,
    Error,
}

/// A server with one user.
struct Server {
    hba: Hba,
    user: &'static str,
    input: BytesMut,
    /// The parameters of the StartupMessage.
    parameters: BTreeMap<String, String>,
    started: bool,
    challenged: Option<Challenged>,
    /// Everything that it was sent.
    got: Vec<u8>,
    in_: bool,
}

impl Server {
    fn receive(&mut self, bytes: &[u8], out: &mut BytesMut) {
        self.got.extend_from_slice(bytes);
        self.input.extend_from_slice(bytes);
        if !self.started {
            let Some(frame) = wire::StartupFrame::peek(&self.input).unwrap() else {
                return;
            };
            if self.input.len() < frame.len {
                return;
            }
            let packet = self.input.split_to(frame.len);
            let mut words = packet[8..].split(|byte| *byte == 0);
            while let (Some(name @ [_, ..]), Some(value)) = (words.next(), words.next()) {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                assert_eq!(self.parameters.insert(text(name), text(value)), None);
            }
            self.started = true;
            match &self.hba {
                Hba::Trust => self.let_in(out),
                Hba::Cleartext => out.put(authentication(demand::CLEARTEXT, b"")),
                Hba::Md5 => out.put(authentication(demand::MD5, b"salt")),
                Hba::Scram(binding) => out.put(offer(binding.is_some())),
                Hba::Impostor => out.put(offer(false)),
                Hba::Kind(kind) => out.put(authentication(*kind, b"")),
                Hba::Error => self.refuse(out),
            }
        }
        while let Some(frame) = wire::Frame::peek(&self.input, usize::MAX).unwrap() {
            if self.input.len() < frame.len {
                break;
            }
            let message = self.input.split_to(frame.len);
            assert_eq!(frame.tag, b'p');
            self.answer(&message[wire::HEADER..], out);
        }
    }

    fn answer(&mut self, payload: &[u8], out: &mut BytesMut) {
        assert!(!self.in_, "it was let in already");
        match self.hba.clone() {
            Hba::Cleartext if payload == [PASSWORD, b"\0"].concat() => self.let_in(out),
            Hba::Md5 => {
                let right = md5_response(PASSWORD, self.user.as_bytes(), b"salt");
                if password_message(&right)[wire::HEADER..] == *payload {
                    self.let_in(out);
                } else {
                    self.refuse(out);
                }
            }
            Hba::Impostor => self.let_in(out),
            Hba::Scram(binding) => match self.challenged.take() {
                None => {
                    let mut reader = wire::Reader::new(payload, "");
                    let mechanism = std::str::from_utf8(reader.string().unwrap()).unwrap();
                    let first = reader.value().unwrap().unwrap();
                    let challenged = Challenged::new(
                        PASSWORD,
                        &[7; 18],
                        [8; 16],
                        binding.as_ref(),
                        mechanism,
                        first,
                    );
                    match challenged {
                        Ok(challenged) => {
                            let first = challenged.first().as_bytes();
                            out.put(authentication(demand::SASL_CONTINUE, first));
                            self.challenged = Some(challenged);
                        }
                        Err(_) => self.refuse(out),
                    }
                }
                Some(challenged) => match challenged.finish(payload) {
                    Ok(last) => {
                        out.put(authentication(demand::SASL_FINAL, last.as_bytes()));
                        self.let_in(out);
                    }
                    Err(_) => self.refuse(out),
                },
            },
            _ => self.refuse(out),
        }
    }

    fn let_in(&mut self, out: &mut BytesMut) {
        self.in_ = true;
        out.put(authentication(demand::OK, b""));
        wire::frame(out, b'S', |out| out.put_slice(b"TimeZone\0UTC\0"));
        wire::frame(out, b'Z', |out| out.put_u8(b'I'));
    }

    fn refuse(&mut self, out: &mut BytesMut) {
        let message = format!(
            "password authentication failed, you said {}",
            String::from_utf8_lossy(PASSWORD)
        );
        out.put(refuse::error("FATAL", "28P01", &message, "", ""));
    }
}

/// What the agent has to say when it is asked.
struct Agent {
    password: &'static [u8],
    binding: Binding,
    input: BytesMut,
    client: Option<Client>,
    proved: Option<Proved>,
    tags: String,
    error: Option<String>,
}

impl Agent {
    fn receive(&mut self, bytes: &[u8], out: &mut BytesMut) {
        self.input.extend_from_slice(bytes);
        while let Some(frame) = wire::Frame::peek(&self.input, usize::MAX).unwrap() {
            if self.input.len() < frame.len {
                break;
            }
            let message = self.input.split_to(frame.len);
            let payload = &message[wire::HEADER..];
            self.tags.push(char::from(frame.tag));
            match frame.tag {
                b'R' => {
                    let code = u32::from_be_bytes(payload[..4].try_into().unwrap());
                    self.tags.push_str(&code.to_string());
                    self.answer(code, &payload[4..], out);
                }
                b'E' => self.error = Some(String::from_utf8_lossy(payload).into_owned()),
                _ => {}
            }
        }
    }

    fn answer(&mut self, code: u32, payload: &[u8], out: &mut BytesMut) {
        match code {
            demand::SASL => {
                let mechanism = match self.binding {
                    Binding::EndPoint(_) => SCRAM_PLUS,
                    _ => SCRAM,
                };
                assert!(
                    mechanisms(payload).unwrap().contains(&mechanism.as_bytes()),
                    "{mechanism} wasn't offered"
                );
                let client = Client::new(self.password, "", &[9; 18], self.binding.clone());
                out.put(initial_response(mechanism, client.first().as_bytes()));
                self.client = Some(client);
            }
            demand::SASL_CONTINUE => {
                let (last, proved) = self.client.take().unwrap().prove(payload, 1).unwrap();
                wire::frame(out, b'p', |out| out.put_slice(last.as_bytes()));
                self.proved = Some(proved);
            }
            demand::SASL_FINAL => self.proved.take().unwrap().verify(payload).unwrap(),
            demand::CLEARTEXT => out.put(password_message(self.password)),
            _ => {}
        }
    }
}

/// An agent, the decoder and a server.
struct Scene {
    decoder: Postgres,
    login: Option<Login>,
    agent: Agent,
    server: Server,
    chunk: usize,
    asked: Vec<(String, String)>,
    records: Vec<Event>,
    closed: Option<Closing>,
}

impl Scene {
    fn new(hba: Hba, login: Option<Login>) -> Self {
        Self {
            decoder: Postgres::new(Arc::new(Shared::new(1 << 20)))
                .towards("db.example.com:5432".to_owned()),
            server: Server {
                hba,
                user: login.as_ref().map_or("app", |_| "app_real"),
                input: BytesMut::new(),
                parameters: BTreeMap::new(),
                started: false,
                challenged: None,
                got: Vec::new(),
                in_: false,
            },
            login,
            agent: Agent {
                password: b"wrong",
                binding: Binding::Unsupported,
                input: BytesMut::new(),
                client: None,
                proved: None,
                tags: String::new(),
                error: None,
            },
            chunk: usize::MAX,
            asked: Vec::new(),
            records: Vec::new(),
            closed: None,
        }
    }

    fn play(mut self) -> Self {
        let mut to_decoder = [BytesMut::new(), BytesMut::new()];
        let mut packet = BytesMut::new();
        packet.put_slice(b"\0\0\0\0\0\x03\0\0application_name\0t\0user\0app\0\0");
        let len = packet.len() as u32;
        packet[..4].copy_from_slice(&len.to_be_bytes());
        to_decoder[0].put(packet);
        while self.closed.is_none() && to_decoder.iter().any(|bytes| !bytes.is_empty()) {
            for (peer, at) in [(Peer::Client, 0), (Peer::Upstream, 1)] {
                let bytes = std::mem::take(&mut to_decoder[at]);
                for piece in bytes.chunks(self.chunk) {
                    self.decoder.receive(peer, &mut BytesMut::from(piece), NOW);
                    self.steps(&mut to_decoder);
                }
            }
        }
        self
    }

    fn steps(&mut self, to_decoder: &mut [BytesMut; 2]) {
        let [from_agent, from_server] = to_decoder;
        loop {
            match self.decoder.poll() {
                Step::Wait => return,
                Step::Send(Peer::Client, bytes) => self.agent.receive(&bytes, from_agent),
                Step::Send(Peer::Upstream, bytes) => self.server.receive(&bytes, from_server),
                Step::Record(event) => self.records.push(event),
                Step::Login { user, database } => {
                    self.asked.push((user, database));
                    let login = self.login.take();
                    self.decoder.login(login);
                }
                Step::Close(closing) => self.closed = Some(closing),
                other => panic!("{other:?}"),
            }
        }
    }

    fn notice(&self) -> BTreeMap<String, String> {
        let notices = self.records.iter().filter_map(|event| match event {
            Event::Event(notice) if &*notice.name == "postgres_login" => Some(notice),
            _ => None,
        });
        let notices: Vec<_> = notices.collect();
        assert_eq!(notices.len(), 1, "{:?}", self.records);
        notices[0]
            .detail
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    /// Nothing but the server may know the password.
    fn keeps_its_secret(&self) {
        let secret = String::from_utf8_lossy(PASSWORD);
        assert!(!format!("{:?}", self.records).contains(&*secret));
        assert!(!format!("{:?}", self.closed).contains(&*secret));
        assert!(!format!("{:?}", self.agent.error).contains(&*secret));
    }
}

fn login() -> Login {
    Login {
        credential: 3,
        user: "app_real".to_owned(),
        password: Secret::new(PASSWORD.to_vec()),
        placeholder: None,
        upstream_binding: None,
        agent_binding: None,
        confidential: true,
        randomness: Randomness {
            client_nonce: [1; 18],
            server_nonce: [2; 18],
            salt: [3; 16],
        },
    }
}

fn hash() -> Bytes {
    Bytes::from_static(b"the hash of a certificate")
}

#[test]
fn an_agent_without_a_password_is_logged_in() {
    for (hba, mechanism) in [
        (Hba::Trust, "none"),
        (Hba::Cleartext, "password"),
        (Hba::Md5, "md5"),
        (Hba::Scram(None), SCRAM),
    ] {
        for chunk in [1, 2, 3, 5, 7, 11, 64, usize::MAX] {
            let mut scene = Scene::new(hba.clone(), Some(login()));
            scene.chunk = chunk;
            let scene = scene.play();
            assert_eq!(scene.agent.tags, "R0SZ", "{hba:?} {:?}", scene.agent.error);
            assert!(scene.server.in_);
            assert_eq!(scene.asked, [("app".to_owned(), "app".to_owned())]);
            assert_eq!(
                scene.server.parameters,
                BTreeMap::from(
                    [
                        ("user", "app_real"),
                        ("database", "app"),
                        ("application_name", "t")
                    ]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                )
            );
            let notice = scene.notice();
            assert_eq!(notice["credential"], "3");
            assert_eq!(notice["user"], "app");
            assert_eq!(notice["login"], "app_real");
            assert_eq!(notice["mechanism"], mechanism);
            assert_eq!(notice["placeholder"], "none");
            assert_eq!(notice.get("error"), None);
            scene.keeps_its_secret();
        }
    }
}

#[test]
fn the_servers_connection_is_bound_where_it_can_be() {
    for (offered, ours, works) in [
        (Some(hash()), Some(hash()), true),
        // Another server's certificate: somebody sits between.
        (Some(Bytes::from_static(b"another")), Some(hash()), false),
        // A server behind TLS that doesn't bind.
        (None, Some(hash()), true),
        (Some(hash()), None, true),
    ] {
        let mut login = login();
        login.upstream_binding = ours.clone();
        let scene = Scene::new(Hba::Scram(offered.clone()), Some(login)).play();
        assert_eq!(scene.server.in_, works);
        let mechanism = match (offered, ours) {
            (Some(_), Some(_)) => SCRAM_PLUS,
            _ => SCRAM,
        };
        assert_eq!(scene.notice()["mechanism"], mechanism);
        scene.keeps_its_secret();
    }
}

#[test]
fn the_password_itself_goes_only_where_nobody_listens() {
    let mut login = login();
    login.confidential = false;
    let scene = Scene::new(Hba::Cleartext, Some(login)).play();
    assert!(
        !scene
            .server
            .got
            .windows(PASSWORD.len())
            .any(|window| window == PASSWORD)
    );
    let error = scene.agent.error.clone().unwrap();
    assert!(
        error.contains("credential 3 failed: the server asks for the password itself"),
        "{error}"
    );
    scene.keeps_its_secret();
}

#[test]
fn what_the_server_refuses_is_told_without_the_password() {
    for hba in [Hba::Error, Hba::Cleartext] {
        let mut login = login();
        if hba == Hba::Cleartext {
            login.password = Secret::new(b"mistyped".to_vec());
        }
        let scene = Scene::new(hba.clone(), Some(login)).play();
        assert_eq!(scene.agent.tags, "E");
        let error = scene.agent.error.clone().unwrap();
        assert!(error.contains("C28P01\0"), "{error}");
        assert!(
            error.contains("the login with credential 3 failed: the server refused it: "),
            "{error}"
        );
        assert!(error.contains("the operator of this host has to check"));
        assert_eq!(scene.notice()["credential"], "3");
        assert!(matches!(scene.closed, Some(Closing::Refused(_))));
        if hba == Hba::Error {
            scene.keeps_its_secret();
        }
    }
}

#[test]
fn a_server_that_proves_nothing_is_not_believed() {
    let scene = Scene::new(Hba::Impostor, Some(login())).play();
    assert_eq!(scene.agent.tags, "E");
    let error = scene.agent.error.unwrap();
    assert!(
        error.contains("let the login in without having proved"),
        "{error}"
    );
}

#[test]
fn other_ways_of_authentication_are_refused_by_name() {
    for (kind, expected) in [
        (demand::GSS, "asks for Kerberos"),
        (demand::SSPI, "asks for Kerberos"),
        (6, "authentication of kind 6"),
    ] {
        let scene = Scene::new(Hba::Kind(kind), Some(login())).play();
        let error = scene.agent.error.unwrap();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("C28000\0"), "{error}");
    }
}

fn with_placeholder(binding: Option<Bytes>) -> Login {
    let mut login = login();
    login.placeholder = Some(Secret::new(PLACEHOLDER.to_vec()));
    login.agent_binding = binding;
    login
}

#[test]
fn the_placeholder_lets_in_with_and_without_binding() {
    for (offered, binding, mechanism) in [
        (None, Binding::Unsupported, SCRAM),
        (None, Binding::Unoffered, SCRAM),
        (Some(hash()), Binding::Unsupported, SCRAM),
        (Some(hash()), Binding::EndPoint(hash()), SCRAM_PLUS),
    ] {
        for chunk in [1, 3, 8, usize::MAX] {
            let login = with_placeholder(offered.clone());
            let mut scene = Scene::new(Hba::Scram(None), Some(login));
            scene.agent.password = PLACEHOLDER;
            scene.agent.binding = binding.clone();
            scene.chunk = chunk;
            let scene = scene.play();
            assert_eq!(scene.agent.tags, "R10R11R12R0SZ", "{:?}", scene.agent.error);
            assert_eq!(scene.notice()["placeholder"], mechanism);
            scene.keeps_its_secret();
        }
    }
}

#[test]
fn without_the_placeholder_the_server_hears_nothing() {
    let scene = Scene::new(Hba::Trust, Some(with_placeholder(None))).play();
    assert_eq!(scene.agent.tags, "R10R11E");
    assert_eq!(scene.server.got, b"");
    let error = scene.agent.error.clone().unwrap();
    assert!(error.contains("C28P01\0"), "{error}");
    assert!(
        error.contains("Minterceptor: password authentication failed for user \"app\"\0"),
        "{error}"
    );
    assert!(scene.notice()["error"].contains("password authentication failed"));
    scene.keeps_its_secret();
}

#[test]
fn the_agent_is_not_in_before_we_are() {
    let mut login = with_placeholder(None);
    login.password = Secret::new(b"mistyped".to_vec());
    let mut scene = Scene::new(Hba::Scram(None), Some(login));
    scene.agent.password = PLACEHOLDER;
    let scene = scene.play();
    assert_eq!(scene.agent.tags, "R10R11R12E");
}

#[test]
fn without_a_credential_the_agent_logs_in_itself() {
    for hba in [Hba::Cleartext, Hba::Scram(None), Hba::Trust] {
        let mut scene = Scene::new(hba.clone(), None);
        scene.agent.password = PASSWORD;
        let scene = scene.play();
        assert!(scene.server.in_, "{hba:?}");
        assert_eq!(scene.asked.len(), 1);
        assert_eq!(scene.server.parameters["user"], "app");
    }
}

#[test]
fn an_agent_that_binds_through_us_is_told_what_helps() {
    let relayed = |binding| {
        let mut scene = Scene::new(Hba::Scram(Some(hash())), None);
        scene.agent.password = PASSWORD;
        scene.agent.binding = binding;
        scene.decoder.secured();
        scene.play()
    };
    for binding in [
        Binding::Unoffered,
        Binding::EndPoint(Bytes::from_static(b"ours")),
    ] {
        let scene = relayed(binding);
        let error = scene.agent.error.unwrap();
        assert!(error.contains("C28000\0"), "{error}");
        assert!(error.contains("SCRAM-SHA-256-PLUS"), "{error}");
        assert!(error.contains("channel_binding=disable"), "{error}");
        assert!(
            error.contains(
                "credentials: [{destination: \"db.example.com:5432\", protocol: postgres, user: \"app\", database: \"app\", password: {"
            ),
            "{error}"
        );
        assert!(!scene.server.in_);
    }
    assert!(relayed(Binding::Unsupported).server.in_);
}

#[test]
fn what_can_not_be_read_is_said_without_the_path() {
    let mut decoder = Postgres::new(Arc::new(Shared::new(1 << 20)));
    let mut packet = BytesMut::from(&b"\0\0\0\x10\0\x03\0\0user\0u\0\0"[..]);
    decoder.receive(Peer::Client, &mut packet, NOW);
    let mut sent = Vec::new();
    loop {
        match decoder.poll() {
            Step::Login { .. } => {
                decoder.fail(&Failure::NoSecret("credential 1 can't be read now".into()));
            }
            Step::Send(peer, bytes) => {
                assert_eq!(peer, Peer::Client);
                sent.extend_from_slice(&bytes);
            }
            Step::Close(Closing::Refused(_)) => break,
            Step::Record(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let error = String::from_utf8_lossy(&sent);
    assert!(
        error.contains("Minterceptor: credential 1 can't be read now\0"),
        "{error}"
    );
}

#[test]
fn md5_is_as_the_server_keeps_it() {
    // SELECT 'md5' || md5(md5('secret' || 'md5_user')::bytea || '\x01020304')
    assert_eq!(
        &*md5_response(b"secret", b"md5_user", &[1, 2, 3, 4]),
        b"md530d9d09f02a72e0bbede8eccf68ddabc"
    );
}

proptest! {
    #[test]
    fn nothing_that_either_side_says_panics_or_gets_in(
        messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        placeholder: bool,
    ) {
        let mut decoder = Postgres::new(Arc::new(Shared::new(1 << 16)));
        let mut packet = BytesMut::from(&b"\0\0\0\x10\0\x03\0\0user\0u\0\0"[..]);
        decoder.receive(Peer::Client, &mut packet, NOW);
        let mut queue = messages.into_iter();
        loop {
            match decoder.poll() {
                Step::Login { .. } => {
                    let login = if placeholder { with_placeholder(None) } else { login() };
                    decoder.login(Some(login));
                }
                Step::Wait => {
                    let Some((client, payload)) = queue.next() else { break };
                    let (peer, tag) = if client { (Peer::Client, b'p') } else { (Peer::Upstream, b'R') };
                    let mut bytes = BytesMut::new();
                    wire::frame(&mut bytes, tag, |out| {
                        // Codes that mean something are what gets far.
                        if !client {
                            out.put_u32(u32::from(payload.first().copied().unwrap_or(0) % 13));
                        }
                        out.put_slice(payload.get(1..).unwrap_or_default());
                    });
                    decoder.receive(peer, &mut bytes, NOW);
                }
                Step::Send(Peer::Upstream, _) => prop_assert!(!placeholder, "sent without the placeholder"),
                Step::Close(_) => break,
                _ => {}
            }
        }
    }
}
