//! The state machine between scripts of both sides.
//!
//! The server here follows PostgreSQL's rules for pipelines (skip to Sync after an error, names that
//! can't be defined twice) and notes every statement that it runs: what was denied must never be
//! among them.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;

use super::{Postgres, Shared, wire};
use crate::{
    decoder::{Closing, Decoder, Peer, Step},
    operation::Operation,
    record::{Event, ResponseStatus, Timestamp},
    ruling::{Cause, Permit, Refusal, Ruling},
};

const NOW: Timestamp = Timestamp(1);

/// A server that speaks enough of the protocol to tell whether a proxy keeps it.
#[derive(Default)]
struct Server {
    input: BytesMut,
    started: bool,
    skipping: bool,
    failed_transaction: bool,
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    portals: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Texts of the statements that ran.
    ran: Vec<String>,
}

impl Server {
    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let mut out = BytesMut::new();
        if !self.started {
            let Some(Some(frame)) = wire::StartupFrame::peek(&self.input).ok() else {
                return Vec::new();
            };
            if self.input.len() < frame.len {
                return Vec::new();
            }
            let _ = self.input.split_to(frame.len);
            self.started = true;
            wire::frame(&mut out, b'R', |out| out.put_u32(0));
            wire::frame(&mut out, b'Z', |out| out.put_u8(b'I'));
        }
        while let Some(frame) = wire::Frame::peek(&self.input, usize::MAX).unwrap() {
            if self.input.len() < frame.len {
                break;
            }
            let message = self.input.split_to(frame.len);
            self.message(frame.tag, &message[wire::HEADER..], &mut out);
        }
        out.to_vec()
    }

    fn fail(&mut self, code: &str, out: &mut BytesMut) {
        out.put_slice(&super::refuse::error("ERROR", code, "failed", "", ""));
    }

    fn run(&mut self, text: &[u8], out: &mut BytesMut) -> bool {
        let text = String::from_utf8_lossy(text).into_owned();
        if text.starts_with("interceptor refused") || text.starts_with("FAIL") {
            self.fail("42601", out);
            return false;
        }
        self.ran.push(text);
        wire::frame(out, b'C', |out| out.put_slice(b"SELECT 0\0"));
        true
    }

    fn message(&mut self, tag: u8, payload: &[u8], out: &mut BytesMut) {
        if self.skipping && tag != b'S' {
            return;
        }
        let complete = |tag, out: &mut BytesMut| wire::frame(out, tag, |_| {});
        match tag {
            b'Q' => {
                self.statements.remove(&b""[..]);
                self.run(&payload[..payload.len() - 1], out);
                self.portals.clear();
                wire::frame(out, b'Z', |out| out.put_u8(b'I'));
            }
            b'P' => {
                let parse = wire::Parse::read(payload).unwrap();
                let taken =
                    !parse.statement.is_empty() && self.statements.contains_key(parse.statement);
                if taken
                    || parse.text.starts_with(b"interceptor refused")
                    || parse.text.starts_with(b"BAD")
                {
                    self.fail("42601", out);
                    self.skipping = true;
                    return;
                }
                self.statements
                    .insert(parse.statement.to_vec(), parse.text.to_vec());
                complete(b'1', out);
            }
            b'B' => {
                let bind = wire::Bind::read(payload).unwrap();
                let Some(text) = self.statements.get(bind.statement).cloned() else {
                    self.fail("26000", out);
                    self.skipping = true;
                    return;
                };
                self.portals.insert(bind.portal.to_vec(), text);
                complete(b'2', out);
            }
            b'D' => match wire::Named::read(payload, "Describe").unwrap() {
                wire::Named::Statement(_) => {
                    wire::frame(out, b't', |out| out.put_u16(0));
                    complete(b'n', out);
                }
                wire::Named::Portal(_) => complete(b'n', out),
            },
            b'E' => {
                let execute = wire::Execute::read(payload).unwrap();
                let Some(text) = self.portals.get(execute.portal).cloned() else {
                    self.fail("34000", out);
                    self.skipping = true;
                    return;
                };
                if !self.run(&text, out) {
                    self.skipping = true;
                }
            }
            b'C' => {
                if let wire::Named::Statement(name) = wire::Named::read(payload, "Close").unwrap() {
                    self.statements.remove(name);
                }
                complete(b'3', out);
            }
            b'S' => {
                self.skipping = false;
                self.portals.clear();
                let status = if self.failed_transaction { b'E' } else { b'I' };
                wire::frame(out, b'Z', |out| out.put_u8(status));
            }
            b'F' => {
                self.fail("42883", out);
                wire::frame(out, b'Z', |out| out.put_u8(b'I'));
            }
            b'H' => {}
            other => panic!("the server got {}", other.escape_ascii()),
        }
    }
}

/// A client, the decoder and a server, wired together.
struct Wired {
    decoder: Postgres,
    server: Server,
    /// Bytes sent upstream and not delivered yet.
    upstream: Vec<u8>,
    client: BytesMut,
    operations: Vec<Operation>,
    records: Vec<Event>,
    closed: Option<Closing>,
    /// How many bytes are delivered at once.
    chunk: usize,
}

fn denied(operation: &Operation) -> bool {
    operation.content.windows(4).any(|window| window == b"DROP")
}

impl Wired {
    fn new(chunk: usize) -> Self {
        let mut wired = Self {
            decoder: Postgres::new(Arc::new(Shared::new(1 << 20))),
            server: Server::default(),
            upstream: Vec::new(),
            client: BytesMut::new(),
            operations: Vec::new(),
            records: Vec::new(),
            closed: None,
            chunk,
        };
        wired.send(b"\0\0\0\x10\0\x03\0\0user\0u\0\0");
        wired
    }

    /// The client sends; everybody answers until nobody has anything to say.
    fn send(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.chunk) {
            self.decoder
                .receive(Peer::Client, &mut BytesMut::from(piece), NOW);
            self.steps();
        }
        while !self.upstream.is_empty() && self.closed.is_none() {
            let bytes = std::mem::take(&mut self.upstream);
            let answer = self.server.receive(&bytes);
            for piece in answer.chunks(self.chunk) {
                self.decoder
                    .receive(Peer::Upstream, &mut BytesMut::from(piece), NOW);
                self.steps();
            }
        }
    }

    fn steps(&mut self) {
        loop {
            match self.decoder.poll() {
                Step::Wait => return,
                Step::Send(Peer::Client, bytes) => self.client.extend_from_slice(&bytes),
                Step::Send(Peer::Upstream, bytes) => self.upstream.extend_from_slice(&bytes),
                Step::Record(event) => self.records.push(event),
                Step::Cancellable(_) | Step::Cancel(_) | Step::Finish(_) => {}
                Step::StartTls => self.decoder.secured(),
                Step::Login { .. } => self.decoder.login(None),
                Step::Authorize { .. }
                | Step::Tunnel { .. }
                | Step::Http2 { .. }
                | Step::Resolved(_) => {
                    panic!("not in PostgreSQL")
                }
                Step::Close(closing) => self.closed = Some(closing),
                Step::Propose(operation) => {
                    let ruling = if denied(&operation) {
                        Ruling::Refuse(Refusal {
                            cause: Cause::Denied,
                            rule: "no-drops".into(),
                            reason: "tables stay".into(),
                            approval: None,
                        })
                    } else {
                        Ruling::Permit(Permit::unjudged(Arc::default()))
                    };
                    self.operations.push(operation);
                    self.decoder.rule(ruling, NOW);
                }
            }
        }
    }

    /// Type bytes of all messages that the client got, then forgets them.
    fn tags(&mut self) -> String {
        let mut tags = String::new();
        while let Some(frame) = wire::Frame::peek(&self.client, usize::MAX).unwrap() {
            tags.push(char::from(frame.tag));
            let _ = self.client.split_to(frame.len);
        }
        tags
    }

    fn statuses(&self) -> Vec<ResponseStatus> {
        self.records
            .iter()
            .filter_map(|record| match record {
                Event::Response(response) => Some(response.status.clone()),
                _ => None,
            })
            .collect()
    }
}

fn query(text: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::frame(&mut out, b'Q', |out| {
        out.put_slice(text.as_bytes());
        out.put_u8(0);
    });
    out.to_vec()
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::Parse::encode(name.as_bytes(), text.as_bytes(), &mut out);
    out.to_vec()
}

fn bind(portal: &str, statement: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::Bind::encode_plain(portal.as_bytes(), statement.as_bytes(), &mut out);
    out.to_vec()
}

fn execute(portal: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::Execute::encode(portal.as_bytes(), &mut out);
    out.to_vec()
}

fn close_statement(name: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::Named::Statement(name.as_bytes()).encode(b'C', &mut out);
    out.to_vec()
}

fn sync() -> Vec<u8> {
    b"S\0\0\0\x04".to_vec()
}

#[test]
fn a_query_passes_and_its_answer_is_recorded() {
    for chunk in [1, 2, 3, 7, 1000] {
        let mut wired = Wired::new(chunk);
        wired.send(&query("SELECT 1"));
        assert_eq!(wired.tags(), "RZCZ");
        assert_eq!(wired.server.ran, ["SELECT 1"]);
        assert_eq!(
            wired.statuses(),
            [ResponseStatus::Complete("SELECT 0".into())]
        );
    }
}

#[test]
fn a_denied_query_fails_in_its_own_place() {
    for chunk in [1, 5, 1000] {
        let mut wired = Wired::new(chunk);
        wired.send(&[query("SELECT 1"), query("DROP TABLE t"), query("SELECT 2")].concat());
        assert_eq!(wired.tags(), "RZCZEZCZ");
        assert_eq!(wired.server.ran, ["SELECT 1", "SELECT 2"]);
        assert_eq!(wired.statuses()[1], ResponseStatus::Refused);
    }
}

#[test]
fn a_denied_execute_skips_to_sync_like_any_error() {
    let pipeline = [
        parse("", "SELECT 1"),
        bind("", ""),
        execute(""),
        parse("", "DROP TABLE t"),
        bind("", ""),
        execute(""),
        parse("", "SELECT 2"),
        bind("", ""),
        execute(""),
        sync(),
        parse("", "SELECT 3"),
        bind("", ""),
        execute(""),
        sync(),
    ]
    .concat();
    for chunk in [1, 4, 1000] {
        let mut wired = Wired::new(chunk);
        wired.send(&pipeline);
        assert_eq!(wired.tags(), "RZ12C12EZ12CZ");
        assert_eq!(wired.server.ran, ["SELECT 1", "SELECT 3"]);
    }
}

#[test]
fn a_name_that_could_not_be_redefined_keeps_its_meaning() {
    // The second Parse fails, since the name is taken; what the name then runs is still the DROP.
    let script = [
        parse("s", "DROP TABLE t"),
        sync(),
        parse("s", "SELECT 1"),
        sync(),
        bind("", "s"),
        execute(""),
        sync(),
    ]
    .concat();
    for chunk in [1, 6, 1000] {
        let mut wired = Wired::new(chunk);
        wired.send(&script);
        assert_eq!(wired.server.ran, Vec::<String>::new());
        assert_eq!(wired.tags(), "RZ1ZEZ2EZ");
    }
}

#[test]
fn queries_before_authentication_has_ended_are_refused() {
    let mut decoder = Postgres::new(Arc::new(Shared::new(1 << 20)));
    let mut bytes = BytesMut::from(&b"\0\0\0\x10\0\x03\0\0user\0u\0\0"[..]);
    bytes.extend_from_slice(&query("SELECT 1"));
    decoder.receive(Peer::Client, &mut bytes, NOW);
    let mut sent = Vec::new();
    loop {
        match decoder.poll() {
            Step::Send(Peer::Upstream, bytes) => sent.extend_from_slice(&bytes),
            Step::Close(Closing::Malformed(reason)) => {
                assert!(
                    reason.contains("before authentication has ended"),
                    "{reason}"
                );
                break;
            }
            Step::Login { .. } => decoder.login(None),
            Step::Wait => panic!("it waits"),
            _ => {}
        }
    }
    assert_eq!(sent, b"\0\0\0\x10\0\x03\0\0user\0u\0\0");
}

#[test]
fn lengths_that_lie_end_the_session_with_a_reason() {
    for (message, expected) in [
        (&b"Q\0\0\0\x03"[..], "gives its length as 3"),
        (b"Q\xff\xff\xff\xff", "gives its length as -1"),
        (b"Q\x7f\xff\xff\xff", "the limit is"),
        (b"Q\0\0\0\x05X", "without its terminator"),
        (b"Q\0\0\0\x08a\0b\0", "after its last field"),
        (b"B\0\0\0\x0c\0\0\0\0\0\x01\0\0", "shorter than its fields"),
        (b"P\0\0\0\x08\0\0\0\x01", "shorter than its fields"),
        (b"D\0\0\0\x06X\0", "S and P are valid"),
        (b"p\0\0\0\x05\0", "not one that a client sends"),
    ] {
        let mut wired = Wired::new(1000);
        wired.send(message);
        match &wired.closed {
            Some(Closing::Malformed(reason)) => {
                assert!(reason.contains(expected), "{message:?}: {reason}")
            }
            other => panic!("{message:?}: {other:?}"),
        }
        assert_eq!(wired.tags(), "RZE");
    }
}

#[derive(Debug, Clone)]
enum Message {
    Query(&'static str),
    Parse(&'static str, &'static str),
    Bind(&'static str, &'static str),
    Execute(&'static str),
    Close(&'static str),
    Sync,
}

fn message() -> impl Strategy<Value = Message> {
    let text = prop::sample::select(vec!["SELECT 1", "DROP TABLE t", "FAIL", "BAD", "SELECT 2"]);
    let statement = prop::sample::select(vec!["", "a", "b"]);
    let portal = prop::sample::select(vec!["", "p"]);
    prop_oneof![
        text.clone().prop_map(Message::Query),
        (statement.clone(), text).prop_map(|(name, text)| Message::Parse(name, text)),
        (portal.clone(), statement.clone()).prop_map(|(portal, name)| Message::Bind(portal, name)),
        portal.prop_map(Message::Execute),
        statement.prop_map(Message::Close),
        Just(Message::Sync),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever a client pipelines, in whatever pieces: no denied text runs, every Query and Sync gets
    /// its ReadyForQuery, and the decoder never loses count.
    #[test]
    fn no_pipeline_gets_a_denied_text_run(
        messages in prop::collection::vec(message(), 1..40),
        chunk in prop::sample::select(vec![1usize, 3, 11, 64, 10_000]),
    ) {
        let mut script = Vec::new();
        for message in &messages {
            script.extend(match message {
                Message::Query(text) => query(text),
                Message::Parse(name, text) => parse(name, text),
                Message::Bind(portal, name) => bind(portal, name),
                Message::Execute(portal) => execute(portal),
                Message::Close(name) => close_statement(name),
                Message::Sync => sync(),
            });
        }
        script.extend(sync());
        let mut wired = Wired::new(chunk);
        wired.send(&script);
        prop_assert!(wired.closed.is_none(), "{:?}", wired.closed);
        prop_assert!(wired.server.ran.iter().all(|text| !text.contains("DROP")), "{:?}", wired.server.ran);
        prop_assert!(wired.decoder.pipeline.is_empty());
        prop_assert!(wired.decoder.client.is_empty() && wired.decoder.upstream.is_empty());
        let tags = wired.tags();
        prop_assert!(tags.ends_with('Z'), "{tags}");
    }

    /// Arbitrary bytes from either side never panic, and never leave the decoder spinning.
    #[test]
    fn arbitrary_bytes_never_panic(
        pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
        started in any::<bool>(),
    ) {
        let mut wired = if started {
            Wired::new(64)
        } else {
            let mut wired = Wired::new(64);
            wired.decoder = Postgres::new(Arc::new(Shared::new(1 << 20)));
            wired
        };
        for (from_client, bytes) in pieces {
            let from = if from_client { Peer::Client } else { Peer::Upstream };
            wired.decoder.receive(from, &mut BytesMut::from(&bytes[..]), NOW);
            wired.steps();
        }
    }
}
