//! What is fed to hostile input, a function a target. They return or panic; a panic is a finding.
//!
//! The same functions replay the seeds, and changes of them, in plain tests.

use std::{collections::BTreeMap, net::SocketAddr, str::FromStr, sync::Arc};

use bytes::{Bytes, BytesMut};
use interceptor_core::{
    decoder::{Decoder, Failure, Peer, Step},
    login::{Authorization, Login, Place, Randomness, Secret},
    mask::{Pattern, PatternMask, Patterns},
    operation::{Effects, Operation},
    origin::{Agent, Destination, Origin, Process},
    policy::Policy,
    protocol::{
        dns, http,
        postgres::{
            Postgres, Shared,
            describe::{Describer, Encoding, Lexing},
        },
        tls::{ClientHello, Reading},
    },
    record::Timestamp,
    ruling::{Cause, Judge, Judgement, Refusal, Ruling},
};

/// Steps that one piece of input may cause. Each queued message makes a handful; a decoder that
/// makes this many of a few bytes is spinning.
const STEPS_MAX: usize = 100_000;

/// Largest message of the session target: small, so that the limit is met too.
const MESSAGE_BYTES_MAX: usize = 4_096;

const NOW: Timestamp = Timestamp(1_700_000_000_000_000_000);

/// Reads pass, with masks by column and by form; everything else is refused.
const POLICY: &str = "
default: {action: deny, reason: no}
rules:
  - id: reads
    match: {class: [read]}
    action: allow
    mask: [{column: \"e*\", with: email}, {pattern: email}, {pattern: card}]
";

/// A PostgreSQL session: pieces from either side, judged under a policy.
///
/// A piece is a byte that says from whom (bit 7 set: the client) and how many bytes follow; none
/// means that this side has finished. Whatever happens, no denied statement is released.
pub fn session(data: &[u8]) {
    let mut decoder = Postgres::new(Arc::new(Shared::new(MESSAGE_BYTES_MAX)));
    converse(&mut decoder, data);
}

/// An HTTP/1 connection, in the same pieces. Only what reads is released.
pub fn http(data: &[u8]) {
    let shared = http::Shared {
        has_credentials: data.len().is_multiple_of(3),
        message_bytes_max: MESSAGE_BYTES_MAX,
        recorded_bytes_max: 64,
    };
    let context = http::Context {
        secure: data.len().is_multiple_of(2),
        ..Default::default()
    };
    converse(&mut http::Http1::new(Arc::new(shared), context), data);
}

/// A connection to a DNS server, in the same pieces. Questions are released, as whole messages that a client sent;
/// whatever answers say, no keys for Encrypted ClientHello are left that can be found, and people can read it.
pub fn dns(data: &[u8]) {
    converse(&mut Answered::default(), data);
}

/// A decoder that is watched.
#[derive(Debug, Default)]
struct Answered(dns::Dns);

impl Decoder for Answered {
    fn receive(&mut self, from: Peer, bytes: &mut BytesMut, now: Timestamp) {
        self.0.receive(from, bytes, now);
    }

    fn finish(&mut self, from: Peer) {
        self.0.finish(from);
    }

    fn fail(&mut self, failure: &Failure) {
        self.0.fail(failure);
    }

    fn rule(&mut self, ruling: Ruling, now: Timestamp) {
        self.0.rule(ruling, now);
    }

    fn poll(&mut self) -> Step {
        let step = self.0.poll();
        if let Step::Send(_, frame) = &step {
            let (length, message) = frame.split_at_checked(2).unwrap_or_default();
            assert_eq!(
                length,
                u16::try_from(message.len())
                    .unwrap_or_default()
                    .to_be_bytes()
            );
        }
        if let Step::Send(Peer::Client, frame) = &step {
            let message = frame.get(2..).unwrap_or_default();
            let shown = dns::Transcript::read(message);
            let mut lines = shown.answers.iter();
            assert!(!lines.any(|line| line.contains(" ech=")), "{shown:?}");
        }
        if let Step::Resolved(resolved) = &step {
            assert!(!resolved.addresses.is_empty());
        }
        step
    }

    fn wants(&self, from: Peer) -> bool {
        self.0.wants(from)
    }
}

/// A ClientHello; what is read of it doesn't depend on how much of it is there.
pub fn hello(data: &[u8]) {
    let whole = ClientHello::read(data);
    for end in 0..data.len().min(64) {
        let part = ClientHello::read(data.get(..end).unwrap_or_default());
        if let (Reading::Complete(_), Reading::Complete(_)) = (&part, &whole) {
            panic!("two ends of one message");
        }
    }
}

fn converse(decoder: &mut dyn Decoder, data: &[u8]) {
    let policy = Policy::parse(&[("fuzz.yaml".to_owned(), POLICY.to_owned())])
        .unwrap_or_else(|error| panic!("{error}"));
    let mut judge = Judge::new(&Arc::new(policy), Arc::new(origin()));
    let mut rest = data;
    while let Some((&header, after)) = rest.split_first() {
        let from = if header & 0x80 == 0 {
            Peer::Upstream
        } else {
            Peer::Client
        };
        let (piece, after) = after.split_at(usize::from(header & 0x7f).min(after.len()));
        rest = after;
        if header & 0x7f == 0 {
            decoder.finish(from);
        } else {
            decoder.receive(from, &mut BytesMut::from(piece), NOW);
        }
        if !take_steps(decoder, &mut judge) {
            return;
        }
    }
}

/// A PostgreSQL session that is logged in to in the agent's place, in one of the ways that the first
/// byte chooses; the rest is as in [`session`]. Whatever happens, nothing goes to the server before a
/// placeholder was proved, and no record holds the password.
pub fn login(data: &[u8]) {
    let Some((&how, mut rest)) = data.split_first() else {
        return;
    };
    let chosen = |bit: u8| how >> bit & 1 == 1;
    let mut decoder = Postgres::new(Arc::new(Shared::new(MESSAGE_BYTES_MAX)));
    while let Some((&header, after)) = rest.split_first() {
        let from = if header & 0x80 == 0 {
            Peer::Upstream
        } else {
            Peer::Client
        };
        let (piece, after) = after.split_at(usize::from(header & 0x7f).min(after.len()));
        rest = after;
        decoder.receive(from, &mut BytesMut::from(piece), NOW);
        for steps in 0.. {
            assert!(steps < STEPS_MAX, "the decoder is spinning");
            match decoder.poll() {
                Step::Wait => break,
                Step::Close(_) => return,
                Step::Login { .. } => decoder.login(Some(Login {
                    credential: 1,
                    user: if chosen(1) { "other" } else { "u" }.to_owned(),
                    password: Secret::new(PASSWORD.as_bytes().to_vec()),
                    placeholder: chosen(0).then(|| Secret::new(b"p".to_vec())),
                    upstream_binding: chosen(2).then(|| Bytes::from_static(b"up")),
                    agent_binding: chosen(3).then(|| Bytes::from_static(b"down")),
                    confidential: chosen(4),
                    randomness: Randomness {
                        client_nonce: [0; 18],
                        server_nonce: [0; 18],
                        salt: [0; 16],
                    },
                })),
                // What a start-up packet sets is not what is looked for here.
                Step::Propose(_) => return,
                Step::Send(Peer::Upstream, _) => {
                    assert!(!chosen(0), "nobody can prove the placeholder by chance");
                }
                Step::Record(event) => assert!(
                    !format!("{event:?}").contains(PASSWORD),
                    "the password is on record"
                ),
                _ => {}
            }
        }
    }
}

/// What no input happens to hold.
const PASSWORD: &str = "correct horse battery staple";

/// Whether the session goes on.
fn take_steps(decoder: &mut dyn Decoder, judge: &mut Judge) -> bool {
    for _ in 0..STEPS_MAX {
        match decoder.poll() {
            Step::Wait => return true,
            Step::Close(_) => return false,
            Step::StartTls => decoder.secured(),
            Step::Propose(operation) => decoder.rule(rule(judge, &operation), NOW),
            Step::Login { .. } => decoder.login(None),
            Step::Authorize { path, .. } => decoder.authorize(Some(Authorization {
                credential: 1,
                place: match path.len() % 3 {
                    0 => Place::Bearer,
                    1 => Place::Basic("u".into()),
                    _ => Place::Query("k".into()),
                },
                secret: Secret::new(PASSWORD.as_bytes().to_vec()),
                placeholder: path
                    .len()
                    .is_multiple_of(2)
                    .then(|| Secret::new(b"p".to_vec())),
            })),
            _ => {}
        }
    }
    panic!("the decoder is spinning");
}

fn rule(judge: &mut Judge, operation: &Operation) -> Ruling {
    match judge.judge(operation, NOW) {
        Judgement::Incomplete => Ruling::Gather,
        Judgement::Permit(permit) => {
            let may = Effects::READ;
            assert!(
                may.contains(operation.description.effects),
                "{:?} was let by",
                operation.description
            );
            Ruling::Permit(permit)
        }
        Judgement::Refuse(_, refusal) => Ruling::Refuse(refusal),
        Judgement::Hold(hold) => Ruling::Refuse(Refusal {
            cause: Cause::TimedOut,
            rule: hold.decision().rule.clone(),
            reason: Arc::from("nobody is there"),
            approval: None,
        }),
    }
}

/// A statement, in one of the ways of reading it that the first byte chooses.
pub fn describe(data: &[u8]) {
    let Some((&how, text)) = data.split_first() else {
        return;
    };
    let lexing = Lexing {
        standard_conforming_strings: how & 1 == 0,
        encoding: match how >> 1 & 3 {
            0 | 1 => Encoding::Utf8,
            2 => Encoding::AsciiSafe,
            _ => Encoding::Unsafe,
        },
    };
    let describer = Describer::default();
    let first = describer.describe(text, lexing);
    let again = describer.describe(text, lexing);
    assert_eq!(
        first.description, again.description,
        "remembered otherwise than read"
    );
}

/// A policy file.
pub fn policy(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    if let Err(error) = Policy::parse(&[("fuzz.yaml".to_owned(), text)]) {
        assert!(!error.to_string().is_empty(), "an error that says nothing");
    }
}

/// A value that is searched for secrets of every form.
pub fn patterns(data: &[u8]) {
    let all = Patterns::new(
        Pattern::NAMES
            .iter()
            .map(|(_, pattern)| PatternMask {
                rule: Arc::from("fuzz"),
                pattern: *pattern,
                with: pattern.usual(),
            })
            .collect(),
    );
    if let Some(masked) = all.apply(data) {
        assert_ne!(masked, data, "said to be masked and isn't");
    }
}

fn origin() -> Origin {
    Origin {
        agent: Arc::new(Agent {
            name: "fuzz".into(),
            labels: BTreeMap::new(),
        }),
        process: Process::default(),
        destination: Destination::Ip(
            SocketAddr::from_str("192.0.2.1:5432").unwrap_or_else(|error| panic!("{error}")),
        ),
        names: Vec::new(),
    }
}
