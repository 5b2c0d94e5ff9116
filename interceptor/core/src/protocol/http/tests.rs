//! Exchanges as real clients and hostile ones have them, cut at every byte.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Context, Http1, Shared, is_request};
use crate::{
    decoder::{Closing, Decoder, Failure, Peer, Step},
    glob::Glob,
    login::{Authorization, Place, Secret},
    mask::{
        MaskKind, MaskPlan,
        body::{BodyPlan, KeyMask},
    },
    operation::{Effects, Operation, http::Body},
    record::{ApprovalId, Event, ResponseStatus, Speaker, Timestamp},
    ruling::{Cause, Permit, Refusal, Ruling},
};

const NOW: Timestamp = Timestamp(1);

/// A connection whose two ends are the test.
struct World {
    decoder: Http1,
    client: Vec<u8>,
    upstream: Vec<u8>,
    operations: Vec<Operation>,
    records: Vec<Event>,
    finished: Vec<Peer>,
    closed: Option<Closing>,
    tunnel: Option<(Bytes, Bytes)>,
    http2: Option<(Bytes, Bytes)>,
    rule: fn(&Operation) -> Answer,
}

enum Answer {
    Permit,
    Refuse,
    Gather,
    Hold,
}

fn permit(_: &Operation) -> Answer {
    Answer::Permit
}

fn refuse(_: &Operation) -> Answer {
    Answer::Refuse
}

fn gather(operation: &Operation) -> Answer {
    match &operation.http.as_ref().unwrap().body {
        Body::Coming(_) => Answer::Gather,
        Body::None | Body::Whole(_) => Answer::Permit,
    }
}

impl World {
    fn new(rule: fn(&Operation) -> Answer) -> Self {
        let shared = Shared {
            has_credentials: false,
            message_bytes_max: 1 << 20,
            recorded_bytes_max: 1 << 20,
        };
        Self::with(shared, Context::default(), rule)
    }

    fn with(shared: Shared, context: Context, rule: fn(&Operation) -> Answer) -> Self {
        Self {
            decoder: Http1::new(Arc::new(shared), context),
            client: Vec::new(),
            upstream: Vec::new(),
            operations: Vec::new(),
            records: Vec::new(),
            finished: Vec::new(),
            closed: None,
            tunnel: None,
            http2: None,
            rule,
        }
    }

    fn says(&mut self, from: Peer, bytes: &[u8], chunk: usize) {
        for piece in bytes.chunks(chunk) {
            self.decoder.receive(from, &mut BytesMut::from(piece), NOW);
            self.steps();
        }
    }

    fn ends(&mut self, from: Peer) {
        self.decoder.finish(from);
        self.steps();
    }

    fn steps(&mut self) {
        loop {
            match self.decoder.poll() {
                Step::Wait => return,
                Step::Send(Peer::Client, bytes) => self.client.extend_from_slice(&bytes),
                Step::Send(Peer::Upstream, bytes) => self.upstream.extend_from_slice(&bytes),
                Step::Record(event) => self.records.push(event),
                Step::Finish(peer) => self.finished.push(peer),
                Step::Close(closing) => self.closed = Some(closing),
                Step::Tunnel { client, upstream } => {
                    self.tunnel = Some((client.freeze(), upstream.freeze()));
                }
                Step::Http2 { client, upstream } => {
                    self.http2 = Some((client.freeze(), upstream.freeze()));
                }
                Step::Resolved(_)
                | Step::Cancellable(_)
                | Step::Cancel(_)
                | Step::StartTls
                | Step::Login { .. } => {
                    panic!("not in HTTP")
                }
                Step::Authorize { host, path } => {
                    assert_eq!((host.as_deref(), &*path), (Some("x.example"), "/a"));
                    self.decoder.authorize(Some(Authorization {
                        credential: 1,
                        place: Place::Bearer,
                        secret: Secret::new(b"hunter2".to_vec()),
                        placeholder: Some(Secret::new(b"stand-in".to_vec())),
                    }));
                }
                Step::Propose(operation) => {
                    let answer = (self.rule)(&operation);
                    self.operations.push(operation);
                    match answer {
                        Answer::Permit => {
                            let permit = Permit::unjudged(Arc::default());
                            self.decoder.rule(Ruling::Permit(permit), NOW);
                        }
                        Answer::Refuse => self.decoder.rule(Ruling::Refuse(refusal()), NOW),
                        Answer::Gather => self.decoder.rule(Ruling::Gather, NOW),
                        Answer::Hold => return,
                    }
                }
            }
        }
    }

    fn client(&self) -> String {
        String::from_utf8_lossy(&self.client).into_owned()
    }

    fn upstream(&self) -> String {
        String::from_utf8_lossy(&self.upstream).into_owned()
    }
}

fn refusal() -> Refusal {
    Refusal {
        cause: Cause::Denied,
        rule: "no".into(),
        reason: "because".into(),
        approval: None,
    }
}

#[test]
fn exchanges_go_through_byte_for_byte_however_they_are_cut() {
    let table: [(&[u8], &[u8]); 6] = [
        (b"GET /a?b=c HTTP/1.1\r\nhOsT: x.example\r\nX-b: 1\r\nx-A:2\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nx: Y\r\n\r\nabc"),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nt: v\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwxyz\r\n0\r\nx: y\r\n\r\n"),
        (b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nIf-None-Match: y\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: z\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nz"),
    ];
    for (request, response) in table {
        for chunk in 1..request.len().max(response.len()) {
            let mut world = World::new(permit);
            // Twice: the connection goes on.
            for _ in 0..2 {
                world.says(Peer::Client, request, chunk);
                world.says(Peer::Upstream, response, chunk);
            }
            assert_eq!(world.upstream, [request, request].concat(), "{chunk}");
            assert_eq!(world.client, [response, response].concat(), "{chunk}");
            assert_eq!(world.operations.len(), 2);
            assert_eq!(world.closed, None);
            let complete = world.records.iter().filter(|record| matches!(record, Event::Response(response) if matches!(response.status, ResponseStatus::Complete(_))));
            assert_eq!(complete.count(), 2);
        }
    }
}

#[test]
fn a_credential_takes_its_placeholders_place_and_nobody_elses() {
    let shared = Shared {
        has_credentials: true,
        message_bytes_max: 1 << 20,
        recorded_bytes_max: 1 << 20,
    };
    let context = Context {
        secure: true,
        names: vec!["x.example".into()],
        ..Context::default()
    };
    let request =
        |host: &str, token: &str| format!("GET /a HTTP/1.1\r\nHost: {host}\r\n{token}X: y\r\n\r\n");
    for (host, token, expected) in [
        (
            "x.example",
            "authorization: bearer stand-in\r\n",
            Some("X: y\r\nauthorization: Bearer hunter2\r\n\r\n"),
        ),
        ("x.example", "", Some("X: y\r\n\r\n")),
        ("x.example", "Authorization: Bearer mine\r\n", None),
        // Whoever else answers on that connection isn't given it.
        (
            "y.example",
            "authorization: bearer stand-in\r\n",
            Some("authorization: bearer stand-in\r\nX: y\r\n\r\n"),
        ),
    ] {
        let mut world = World::with(shared, context.clone(), permit);
        world.says(Peer::Client, request(host, token).as_bytes(), 7);
        match expected {
            Some(rest) => assert_eq!(
                world.upstream(),
                format!("GET /a HTTP/1.1\r\nHost: {host}\r\n{rest}")
            ),
            None => {
                assert_eq!(world.upstream(), "");
                assert!(
                    world.client().starts_with("HTTP/1.1 403 "),
                    "{}",
                    world.client()
                );
                assert!(world.client().contains("isn't the placeholder"));
            }
        }
        let records = format!("{:?} {:?}", world.records, world.operations);
        assert!(!records.contains("hunter2"), "{records}");
        assert_eq!(
            records.contains("http_credential"),
            host == "x.example" && !token.is_empty()
        );
    }
}

#[test]
fn no_credential_is_handed_to_a_proxy() {
    let shared = Shared {
        has_credentials: true,
        message_bytes_max: 1 << 20,
        recorded_bytes_max: 1 << 20,
    };
    // In the clear nothing proves who is asked for, and whoever answers would pass it on.
    let mut world = World::with(shared, Context::default(), permit);
    let request = b"GET http://x.example/a HTTP/1.1\r\nHost: x.example\r\nAuthorization: Bearer stand-in\r\n\r\n";
    world.says(Peer::Client, request, 9);
    assert_eq!(world.upstream, request);
}

#[test]
fn pipelined_requests_are_decided_one_after_the_other() {
    let mut world = World::new(permit);
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    world.says(Peer::Client, &[&request[..], request].concat(), 1_000);
    assert_eq!(world.operations.len(), 1);
    world.says(
        Peer::Upstream,
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        9,
    );
    assert_eq!(
        (world.operations.len(), world.upstream.len()),
        (2, 2 * request.len())
    );
}

#[test]
fn what_has_two_meanings_is_refused_and_nothing_of_it_goes_on() {
    let host = "Host: x\r\n";
    let with =
        |fields: &str| format!("POST /a HTTP/1.1\r\n{host}{fields}\r\n\r\n5\r\nabcde\r\n0\r\n\r\n");
    let to = |target: &str| format!("GET {target} HTTP/1.1\r\n{host}\r\n");
    let table: Vec<(String, &str, &str)> = vec![
        // Lengths.
        (
            with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            "400",
            "both lengths",
        ),
        (
            with("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
            "400",
            "both, the other way round",
        ),
        (
            with("Content-Length: 5\r\nContent-Length: 6\r\n"),
            "400",
            "two lengths that differ",
        ),
        (
            with("Content-Length: 5\r\nContent-Length: 5\r\n"),
            "400",
            "two lengths",
        ),
        (with("Content-Length: 5, 5\r\n"), "400", "a list of lengths"),
        (with("Content-Length: +5\r\n"), "400", "a sign"),
        (with("Content-Length: -1\r\n"), "400", "a negative length"),
        (with("Content-Length: 0x5\r\n"), "400", "hexadecimal"),
        (with("Content-Length: 5 5\r\n"), "400", "two numbers"),
        (with("Content-Length: 5.0\r\n"), "400", "a fraction"),
        (with("Content-Length: \r\n"), "400", "an empty length"),
        (
            with("Content-Length: 99999999999999999999\r\n"),
            "400",
            "a length over 64 bits",
        ),
        (
            with("Content-Length: \u{665}\r\n"),
            "400",
            "digits of another script",
        ),
        (with("Content_Length: 5\r\n"), "400", "an underscore"),
        (
            with("Content-Length : 5\r\n"),
            "400",
            "a space before the colon",
        ),
        (
            with("Content-Length\t: 5\r\n"),
            "400",
            "a tab before the colon",
        ),
        (
            with(" Content-Length: 5\r\n"),
            "400",
            "a space before the name",
        ),
        // Codings.
        (with("Transfer-Encoding: identity\r\n"), "501", "identity"),
        (
            with("Transfer-Encoding: gzip, chunked\r\n"),
            "501",
            "two codings",
        ),
        (
            with("Transfer-Encoding: chunked, identity\r\n"),
            "501",
            "chunked not last",
        ),
        (
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            "400",
            "chunked twice",
        ),
        (
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
            "400",
            "and identity",
        ),
        (
            with("Transfer-Encoding: xchunked\r\n"),
            "501",
            "something like chunked",
        ),
        (with("Transfer-Encoding: \"chunked\"\r\n"), "501", "quoted"),
        (
            with("Transfer-Encoding: chunked;q=1\r\n"),
            "501",
            "a parameter",
        ),
        (
            with("Transfer-Encoding:\x0bchunked\r\n"),
            "400",
            "a vertical tab",
        ),
        (
            with("Transfer_Encoding: chunked\r\n"),
            "400",
            "an underscore",
        ),
        (
            with("Transfer-Encoding : chunked\r\n"),
            "400",
            "a space before the colon",
        ),
        (
            with("Transfer-Encoding:\r\n chunked\r\n"),
            "400",
            "obs-fold",
        ),
        (
            with("X: y\r\n\tTransfer-Encoding: chunked\r\n"),
            "400",
            "obs-fold with a tab",
        ),
        (
            "POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            "400",
            "chunked in 1.0",
        ),
        // Ends of lines.
        (
            "GET /a HTTP/1.1\nHost: x\n\n".into(),
            "400",
            "bare line feeds",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x\n\r\n".into(),
            "400",
            "one bare line feed",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x\rX: y\r\n\r\n".into(),
            "400",
            "a bare carriage return",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x\r\r\n\r\n".into(),
            "400",
            "two carriage returns",
        ),
        (
            "GET /a HTTP/1.1\r\nX: a\0b\r\nHost: x\r\n\r\n".into(),
            "400",
            "a NUL in a value",
        ),
        (
            "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "400",
            "an empty line first",
        ),
        // Request lines.
        (
            "GET  /a HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "400",
            "two spaces",
        ),
        (
            "GET /a  HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "505",
            "two spaces before the version",
        ),
        ("GET /a\tHTTP/1.1\r\nHost: x\r\n\r\n".into(), "400", "a tab"),
        (
            "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "505",
            "a space in the target",
        ),
        (
            "GET /a HTTP/1.1 \r\nHost: x\r\n\r\n".into(),
            "400",
            "a space behind",
        ),
        (
            "GET /a HTTP/1.2\r\nHost: x\r\n\r\n".into(),
            "505",
            "a version that isn't",
        ),
        (
            "GET /a HTTP/2.0\r\nHost: x\r\n\r\n".into(),
            "505",
            "another version",
        ),
        ("GET /a\r\nHost: x\r\n\r\n".into(), "400", "HTTP/0.9"),
        (
            "G\u{e9}T /a HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "400",
            "a method that is no token",
        ),
        // Hosts.
        ("GET /a HTTP/1.1\r\n\r\n".into(), "400", "no Host"),
        (
            "GET /a HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n".into(),
            "400",
            "two Hosts",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n".into(),
            "400",
            "two Hosts that differ",
        ),
        (
            "GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "400",
            "absolute-form against Host",
        ),
        (
            "GET http://x:81/a HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "400",
            "another port",
        ),
        (
            "GET http://u@x/a HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "400",
            "a user in the authority",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x y\r\n\r\n".into(),
            "400",
            "a Host with a space",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x/y\r\n\r\n".into(),
            "400",
            "a Host with a path",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x,y\r\n\r\n".into(),
            "400",
            "a list of Hosts",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: x:99999\r\n\r\n".into(),
            "400",
            "no port",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: u@x\r\n\r\n".into(),
            "400",
            "a Host with a user",
        ),
        (
            "GET /a HTTP/1.1\r\nHost: \r\n\r\n".into(),
            "400",
            "an empty Host",
        ),
        // Targets.
        (to("/a/../b"), "400", "dots"),
        (to("/a/%2e%2e/b"), "400", "encoded dots"),
        (to("/a/.%2E/b"), "400", "half-encoded dots"),
        (to("/a/..;x=y/b"), "400", "dots with a parameter"),
        (to("/a%2f..%2fb"), "400", "dots between encoded slashes"),
        (to("/./a"), "400", "a dot"),
        (to("/a%00b"), "400", "an encoded NUL"),
        (to("/a%5cb"), "400", "an encoded backslash"),
        (to("/a\\b"), "400", "a backslash"),
        (to("/a#b"), "400", "a fragment"),
        (to("/a%zz"), "400", "a broken encoding"),
        (to("/a%2"), "400", "half an encoding"),
        (to("a"), "400", "no slash"),
        (to("ftp://x/a"), "400", "another scheme"),
        (to("*"), "400", "an asterisk"),
        (to("/\u{e9}"), "400", "a letter that has to be encoded"),
        // Expectations and upgrades.
        (with("Expect: 200-ok\r\n"), "417", "another expectation"),
        (
            with("Content-Length: 5\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"),
            "400",
            "an Upgrade to WebSocket with a body",
        ),
        (
            with("Content-Length: 5\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"),
            "400",
            "an Upgrade to HTTP/2 with a body",
        ),
        (
            with("Content-Length: 65537\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"),
            "400",
            "an Upgrade with a large body",
        ),
        (
            with("Transfer-Encoding: chunked\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"),
            "400",
            "an Upgrade with a body of unknown length",
        ),
        (
            with(
                "Content-Length: 5\r\nExpect: 100-continue\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n",
            ),
            "400",
            "an Upgrade with a body that may not come",
        ),
    ];
    assert!(table.len() >= 60);
    for (request, status, what) in &table {
        for chunk in [1, 7, 10_000] {
            let mut world = World::new(permit);
            world.says(Peer::Client, request.as_bytes(), chunk);
            let answer = world.client();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{what}: {answer}"
            );
            assert!(answer.contains("application/problem+json"), "{what}");
            assert!(
                matches!(world.closed, Some(Closing::Malformed(_))),
                "{what}: {:?}",
                world.closed
            );
            assert_eq!(world.upstream(), "", "{what}");
            assert!(world.operations.is_empty(), "{what}");
            assert!(world.records.iter().any(|record| matches!(record, Event::Event(notice) if &*notice.name == "http_refused")), "{what}");
        }
    }
}

#[test]
fn chunks_with_two_meanings_end_the_connection_before_they_go_on() {
    for (body, what) in [
        ("5\r\nabcdeX\r\n0\r\n\r\n", "longer than its size"),
        ("5\nabcde\r\n0\r\n\r\n", "a bare line feed behind the size"),
        (
            "5;a\nb\r\nabcde\r\n0\r\n\r\n",
            "a bare line feed in an extension",
        ),
        (
            "5;a\rb\r\nabcde\r\n0\r\n\r\n",
            "a bare carriage return in an extension",
        ),
        (" 5\r\nabcde\r\n0\r\n\r\n", "a space before the size"),
        ("5 \r\nabcde\r\n0\r\n\r\n", "a space behind the size"),
        ("0x5\r\nabcde\r\n0\r\n\r\n", "a prefix"),
        ("-5\r\nabcde\r\n0\r\n\r\n", "a sign"),
        ("\r\nabcde\r\n0\r\n\r\n", "no size"),
        (
            "10000000000000005\r\nabcde\r\n0\r\n\r\n",
            "a size over 64 bits",
        ),
        ("5\r\nabcde\n0\r\n\r\n", "a bare line feed behind the data"),
        (
            "5\r\nabcde\r\n0\r\nno name\r\n\r\n",
            "a trailer without a colon",
        ),
        (
            "5\r\nabcde\r\n0\r\n x: y\r\n\r\n",
            "a trailer that begins with a space",
        ),
        (
            "5\r\nabcde\r\n0\r\nx: y\n\r\n",
            "a trailer with a bare line feed",
        ),
        ("5\r\nabcde\r\n0\r\nx: a\0b\r\n\r\n", "a trailer with a NUL"),
        ("5\r\nabcde\r\n0\r\n\rX", "half an end"),
    ] {
        let request =
            format!("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let mut world = World::new(gather);
        world.says(Peer::Client, request.as_bytes(), 4);
        assert!(
            matches!(world.closed, Some(Closing::Malformed(_))),
            "{what}: {:?}",
            world.closed
        );
        assert_eq!(world.upstream(), "", "{what}");
        assert!(world.client().contains("HTTP/1.1 400 "), "{what}");
    }
}

#[test]
fn answers_with_two_meanings_are_a_502() {
    for (answer, what) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "both lengths",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "two lengths",
        ),
        ("HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", "obs-fold"),
        ("HTTP/1.1 200 OK\nX: y\r\n\r\n", "a bare line feed"),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "an upgrade nobody asked for",
        ),
        ("SSH-2.0-x\r\n\r\n", "no HTTP"),
    ] {
        let mut world = World::new(permit);
        world.says(Peer::Client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 100);
        world.says(Peer::Upstream, answer.as_bytes(), 5);
        assert!(
            world.client().starts_with("HTTP/1.1 502 "),
            "{what}: {}",
            world.client()
        );
        assert!(world.closed.is_some(), "{what}");
    }
    let mut world = World::new(permit);
    world.says(Peer::Upstream, b"HTTP/1.1 200 OK\r\n\r\n", 100);
    assert_eq!(
        (world.client(), world.closed.is_some()),
        (String::new(), true),
        "before any request"
    );
}

#[test]
fn refusals_leave_the_connection_usable_and_say_why() {
    let mut world = World::new(refuse);
    let request = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
    world.says(Peer::Client, request, 10);
    world.says(Peer::Client, request, 10);
    assert_eq!(world.client().matches("HTTP/1.1 403 Forbidden").count(), 2);
    assert!(world.client().contains("\"rule\":\"no\"") && world.client().contains("because"));
    assert_eq!((world.upstream().len(), &world.closed), (0, &None));
    // A body that hasn't come yet is dropped.
    let mut world = World::new(refuse);
    world.says(
        Peer::Client,
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        10,
    );
    assert!(world.client().starts_with("HTTP/1.1 403"));
    world.says(
        Peer::Client,
        b"3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        2,
    );
    assert_eq!(world.client().matches("HTTP/1.1 403 Forbidden").count(), 2);
    assert_eq!(world.upstream(), "");
}

#[test]
fn a_body_that_a_rule_needs_is_held_back_whole() {
    let head = "POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let mut world = World::new(gather);
    world.says(Peer::Client, head.as_bytes(), 1_000);
    assert_eq!(world.client(), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(world.upstream(), "");
    world.says(Peer::Client, b"abcde", 2);
    let whole = world.operations.last().unwrap().http.clone().unwrap();
    assert_eq!(whole.body, Body::Whole(Bytes::from_static(b"abcde")));
    // We have answered the expectation: the server isn't asked again.
    assert_eq!(
        world.upstream(),
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde"
    );
    let shared = Shared {
        has_credentials: false,
        message_bytes_max: 4,
        recorded_bytes_max: 4,
    };
    let mut world = World::with(shared, Context::default(), gather);
    world.says(
        Peer::Client,
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabcdefghi\r\n",
        10,
    );
    assert!(
        world.client().starts_with("HTTP/1.1 413 "),
        "{}",
        world.client()
    );
    assert_eq!(world.upstream(), "");
}

#[test]
fn credentials_are_sent_and_not_recorded() {
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer abc123\r\nX-Api-Key: def456\r\nCookie: s=ghi789\r\n\r\n";
    let mut world = World::new(permit);
    world.says(Peer::Client, request, 1_000);
    world.says(
        Peer::Upstream,
        b"HTTP/1.1 200 OK\r\nSet-Cookie: s=jkl012\r\nContent-Length: 0\r\n\r\n",
        1_000,
    );
    assert_eq!(world.upstream, request);
    let recorded = format!("{:?} {:?}", world.operations[0].content, world.records);
    for secret in ["abc123", "def456", "ghi789", "jkl012"] {
        assert!(!recorded.contains(secret), "{secret}");
    }
    assert!(recorded.contains("Bearer [redacted]"));
    assert!(world.client().contains("jkl012"));
}

#[test]
fn what_is_longer_than_the_limit_is_recorded_by_its_digest() {
    let shared = Shared {
        has_credentials: false,
        message_bytes_max: 1 << 20,
        recorded_bytes_max: 4,
    };
    let mut world = World::with(shared, Context::default(), permit);
    world.says(Peer::Client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 100);
    world.says(
        Peer::Upstream,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
        3,
    );
    let digest = world.records.iter().find_map(|record| match record {
        Event::Content(content) => content
            .sha256
            .map(|digest| (digest.to_string(), content.bytes)),
        _ => None,
    });
    let expected = "sha256:84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
    assert_eq!(digest, Some((expected.to_owned(), 10)));
    let kept: usize = world
        .records
        .iter()
        .map(|record| match record {
            Event::Response(response) => response.data.iter().map(Bytes::len).sum(),
            _ => 0,
        })
        .sum();
    assert_eq!(kept, 4);
}

#[test]
fn nothing_behind_an_upgrade_goes_on_before_it_is_agreed() {
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    let mut world = World::new(permit);
    world.says(Peer::Client, request.as_bytes(), 1_000);
    world.says(
        Peer::Client,
        b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        1_000,
    );
    assert!(!world.upstream().contains("smuggled") && !world.upstream().contains("deflate"));
    world.says(
        Peer::Upstream,
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        1_000,
    );
    // It wasn't: the rest is a request of its own.
    assert_eq!(world.operations.len(), 2);
    let mut world = World::new(permit);
    world.says(Peer::Client, request.as_bytes(), 1_000);
    world.says(Peer::Upstream, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi", 7);
    assert!(world.client.ends_with(b"\r\n\r\n\x81\x02hi"));
    // What the agent says has to be WebSocket as well.
    world.says(
        Peer::Client,
        b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        3,
    );
    assert!(!world.upstream().contains("smuggled"));
    let farewell = b"\x03\xEAinterceptor: a WebSocket frame";
    assert!(
        world
            .client
            .windows(farewell.len())
            .any(|window| window == farewell)
    );
    assert!(matches!(&world.closed, Some(Closing::Malformed(_))));
    let records = format!("{:?}", world.records);
    assert!(
        records.contains("MessageRecord { kind: \"text\", ends: true"),
        "{records}"
    );
    assert!(records.contains("Complete(\"101\")"), "{records}");
}

#[test]
fn what_is_behind_a_connect_is_looked_at_anew() {
    let mut world = World::new(permit);
    world.says(
        Peer::Client,
        b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\nearly",
        9,
    );
    assert_eq!(world.operations[0].description.effects, Effects::TRANSFER);
    assert!(world.tunnel.is_none() && !world.upstream().contains("early"));
    world.says(Peer::Upstream, b"HTTP/1.1 200 OK\r\n\r\nhello", 1_000);
    assert_eq!(world.client(), "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(
        world.tunnel,
        Some((Bytes::from("early"), Bytes::from("hello")))
    );
    // A proxy that won't: the connection is one of HTTP still.
    let mut world = World::new(permit);
    world.says(
        Peer::Client,
        b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n",
        9,
    );
    world.says(
        Peer::Upstream,
        b"HTTP/1.1 407 Who?\r\nContent-Length: 2\r\n\r\nno",
        1_000,
    );
    assert!(world.client().ends_with("\r\n\r\nno") && world.tunnel.is_none());
}

#[test]
fn what_would_go_past_the_masks_isn_t_upgraded() {
    let plan = masking();
    for request in [
        EXEC,
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket, other\r\n\r\n",
    ] {
        let mut world = World::new(|_| Answer::Hold);
        world.says(Peer::Client, request.as_bytes(), 1_000);
        world.decoder.rule(
            Ruling::Permit(Permit::unjudged(Arc::new(plan.clone()))),
            NOW,
        );
        world.steps();
        assert!(
            world.client().starts_with("HTTP/1.1 403 "),
            "{}",
            world.client()
        );
        assert_eq!(world.upstream(), "");
    }
}

/// A plan that has something to mask in any body.
fn masking() -> MaskPlan {
    MaskPlan {
        body: Arc::new(BodyPlan {
            keys: vec![KeyMask {
                name: Glob::new("password"),
                with: MaskKind::Redact,
            }],
            ..BodyPlan::default()
        }),
        ..MaskPlan::default()
    }
}

/// As Docker's client starts a command in a container.
const EXEC: &str = "POST /v1.41/exec/3f/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 12\r\n\r\n{\"Tty\":true}";

/// A connection to a UNIX socket.
fn nameless() -> World {
    let shared = Shared {
        has_credentials: false,
        message_bytes_max: 1 << 20,
        recorded_bytes_max: 1 << 20,
    };
    let context = Context {
        nameless: true,
        ..Context::default()
    };
    World::with(shared, context, permit)
}

#[test]
fn an_engine_takes_a_connection_over_that_asks_for_a_stream_and_no_other() {
    const STREAM: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n";
    let post =
        |path: &str| format!("POST {path} HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{{}}");
    let exec = "/v4.3.1/libpod/exec/3f/start";
    for chunk in [1, 9, 1_000] {
        let mut world = nameless();
        world.says(Peer::Client, post(exec).as_bytes(), chunk);
        let effects = world.operations[0].description.effects;
        assert!(effects.contains(Effects::UNCLASSIFIED));
        world.says(Peer::Client, b"early", chunk);
        assert_eq!(world.upstream(), post(exec));
        world.says(Peer::Upstream, STREAM.as_bytes(), chunk);
        world.says(Peer::Client, b" and late", chunk);
        world.ends(Peer::Client);
        world.says(Peer::Upstream, b"said", chunk);
        world.ends(Peer::Upstream);
        assert!(world.upstream().ends_with("{}early and late"));
        assert_eq!(world.client(), format!("{STREAM}said"));
        assert_eq!(world.closed, Some(Closing::Finished));
    }
    let chunked = STREAM.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n");
    let plain = STREAM.replace("vnd.docker.raw-stream", "json");
    for (mut world, path, answer) in [
        (World::new(permit), exec, STREAM),
        (nameless(), "/v4.3.1/libpod/containers/3f/start", STREAM),
        (nameless(), "/v1.41/containers/3f/wait", STREAM),
        (nameless(), exec, &*chunked),
        (nameless(), exec, &plain),
    ] {
        world.says(Peer::Client, post(path).as_bytes(), 1_000);
        world.says(Peer::Upstream, answer.as_bytes(), 1_000);
        world.says(
            Peer::Client,
            b"GET /smuggled HTTP/1.1\r\nHost: d\r\n\r\n",
            1_000,
        );
        assert_eq!(world.upstream(), post(path), "{path} {answer}");
    }
    // Nobody masks a stream, so there is none.
    let mut world = nameless();
    world.rule = |_| Answer::Hold;
    world.says(Peer::Client, post(exec).as_bytes(), 1_000);
    let permit = Permit::unjudged(Arc::new(masking()));
    world.decoder.rule(Ruling::Permit(permit), NOW);
    world.steps();
    world.says(Peer::Upstream, STREAM.as_bytes(), 1_000);
    world.says(Peer::Client, b"typed in", 1_000);
    assert_eq!(world.upstream(), post(exec));
}

#[test]
fn at_a_unix_socket_no_host_needs_to_be_named() {
    let request = "GET /a HTTP/1.1\r\nHost: \r\n\r\n";
    let mut world = nameless();
    world.says(Peer::Client, request.as_bytes(), 3);
    assert_eq!(world.upstream(), request);
    assert_eq!(&*world.operations[0].description.resources[0].name, "/a");
    for ambiguous in [
        "GET /a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: \r\nHost: \r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: \r\nHost: x\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: /x\r\n\r\n",
    ] {
        let mut world = nameless();
        world.says(Peer::Client, ambiguous.as_bytes(), 1_000);
        assert!(world.client().starts_with("HTTP/1.1 400 "), "{ambiguous}");
        assert_eq!(world.upstream(), "");
    }
}

#[test]
fn what_follows_the_body_of_an_upgrade_waits_until_it_is_agreed() {
    for chunk in [1, 7, 1_000] {
        let mut world = World::new(permit);
        world.says(Peer::Client, EXEC.as_bytes(), chunk);
        let [operation] = &world.operations[..] else {
            panic!("{:?}", world.operations)
        };
        assert!(
            operation
                .description
                .effects
                .contains(Effects::UNCLASSIFIED)
        );
        assert!(operation.content.ends_with(b"{\"Tty\":true}"));
        assert_eq!(world.upstream(), EXEC);
        world.says(Peer::Client, b"early", chunk);
        assert_eq!(world.upstream(), EXEC);
        world.says(
            Peer::Upstream,
            b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n$ ",
            chunk,
        );
        world.says(Peer::Client, b" and late", chunk);
        world.ends(Peer::Client);
        assert!(world.upstream().ends_with("}early and late"));
        assert_eq!(world.finished, [Peer::Upstream]);
        assert!(world.client().ends_with("\r\n\r\n$ "));
        world.ends(Peer::Upstream);
        assert_eq!(world.closed, Some(Closing::Finished));
        let recorded = |of: Speaker| -> Vec<u8> {
            let parts = world.records.iter().filter_map(|event| match (event, of) {
                (Event::Content(content), Speaker::Client) => Some(content.data.concat()),
                (Event::Response(response), Speaker::Upstream) => Some(response.data.concat()),
                _ => None,
            });
            parts.flatten().collect()
        };
        assert_eq!(recorded(Speaker::Client), b"early and late");
        assert_eq!(recorded(Speaker::Upstream), b"$ ");
    }
    // Not agreed: it is a request of its own.
    let mut world = World::new(permit);
    world.says(Peer::Client, EXEC.as_bytes(), 1_000);
    world.says(Peer::Client, b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n", 1_000);
    let answer = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n";
    world.says(Peer::Upstream, answer, 1_000);
    assert_eq!(world.operations.len(), 2);
}

/// As Docker's clients ask for BuildKit, and for the engine to ask them.
const GRPC: &str = "POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";

const AGREED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
fn who_asks_behind_an_upgrade_to_http2_is_who_begins_it() {
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    for chunk in [1, 3, 1_000] {
        // The agent asks: each of its requests is decided.
        for early in [&b""[..], SETTINGS] {
            let mut world = World::new(permit);
            world.says(Peer::Client, GRPC.as_bytes(), chunk);
            let effects = world.operations[0].description.effects;
            assert!(effects.contains(Effects::UNCLASSIFIED));
            assert_eq!(world.upstream(), GRPC);
            world.says(Peer::Upstream, AGREED, chunk);
            assert_eq!(world.client.as_slice(), AGREED);
            world.says(Peer::Upstream, early, chunk);
            assert_eq!(world.client.as_slice(), AGREED);
            world.says(Peer::Client, &PREFACE[..7], chunk);
            let (client, upstream) = world.http2.as_ref().unwrap();
            assert!(PREFACE.starts_with(client), "the rest is read by others");
            assert_eq!(upstream, early);
            assert_eq!(world.upstream(), GRPC);
        }
        // The server asks: bytes.
        for early in [&b""[..], SETTINGS] {
            let mut world = World::new(permit);
            world.says(Peer::Client, GRPC.as_bytes(), chunk);
            world.says(Peer::Upstream, AGREED, chunk);
            world.says(Peer::Client, early, chunk);
            assert_eq!(world.upstream(), GRPC);
            world.says(Peer::Upstream, PREFACE, chunk);
            assert!(world.client.ends_with(PREFACE) && world.http2.is_none());
            assert!(world.upstream.ends_with(early));
        }
    }
}

#[test]
fn behind_an_upgrade_to_http2_nothing_else_passes_and_nothing_past_the_masks() {
    let mut world = World::new(permit);
    world.says(Peer::Client, GRPC.as_bytes(), 1_000);
    world.says(Peer::Upstream, AGREED, 1_000);
    world.says(Peer::Client, b"hello", 1);
    world.says(Peer::Upstream, b"hello", 1);
    assert!(matches!(&world.closed, Some(Closing::Malformed(_))));
    assert_eq!(world.upstream(), GRPC);
    assert_eq!(world.client.as_slice(), AGREED);

    let mut world = World::new(|_| Answer::Hold);
    world.says(Peer::Client, GRPC.as_bytes(), 1_000);
    let permit = Permit::unjudged(Arc::new(masking()));
    world.decoder.rule(Ruling::Permit(permit), NOW);
    world.steps();
    world.says(Peer::Upstream, AGREED, 1_000);
    world.says(Peer::Upstream, PREFACE, 5);
    assert!(matches!(&world.closed, Some(Closing::Refused(_))));
    assert_eq!(world.client.as_slice(), AGREED);

    // HTTP/2 whose first answer is to the request in HTTP/1 wasn't passed on: nobody can have agreed to it.
    let mut world = World::new(|_| Answer::Permit);
    world.says(Peer::Client, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", 1_000);
    world.says(Peer::Upstream, AGREED, 1_000);
    assert!(world.client().starts_with("HTTP/1.1 502 "));
}

#[test]
fn connections_in_cleartext_aren_t_upgraded_to_http2() {
    let mut world = World::new(permit);
    world.says(Peer::Client, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nA: b\r\n\r\n", 1_000);
    assert_eq!(
        world.upstream(),
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nA: b\r\n\r\n"
    );
}

#[test]
fn who_hangs_up_while_people_are_asked_withdraws_the_question() {
    let mut world = World::new(|_| Answer::Hold);
    world.says(Peer::Client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 100);
    world.decoder.still_held(ApprovalId(1));
    world.steps();
    assert_eq!(world.client(), "HTTP/1.1 100 Continue\r\n\r\n");
    world.ends(Peer::Client);
    assert_eq!(world.closed, Some(Closing::Finished));
}

#[test]
fn ends_of_the_connection_are_ends_of_bodies_or_errors() {
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut world = World::new(permit);
    world.says(Peer::Client, request, 100);
    world.says(Peer::Upstream, b"HTTP/1.0 200 OK\r\n\r\nabc", 100);
    world.ends(Peer::Upstream);
    assert_eq!(world.closed, Some(Closing::Finished));
    assert!(world.client().ends_with("abc"));
    let mut world = World::new(permit);
    world.says(Peer::Client, request, 100);
    world.says(
        Peer::Upstream,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        100,
    );
    world.ends(Peer::Upstream);
    assert!(matches!(world.closed, Some(Closing::Malformed(_))));
    let mut world = World::new(permit);
    world.says(Peer::Client, request, 100);
    world.ends(Peer::Upstream);
    assert!(world.client().starts_with("HTTP/1.1 502 "));
    let mut world = World::new(permit);
    world.says(Peer::Client, request, 100);
    world.decoder.fail(&Failure::Unrecorded);
    world.steps();
    assert!(world.client().starts_with("HTTP/1.1 503 "));
}

#[test]
fn a_request_for_another_host_is_known_as_such() {
    let context = Context {
        secure: true,
        address: Some("192.0.2.1".parse().unwrap()),
        names: vec!["front.example".into()],
        certified: ["front.example".into(), "*.cdn.example".into()].into(),
        nameless: false,
    };
    for (host, fronted) in [
        ("front.example", false),
        ("FRONT.example.:443", false),
        ("a.cdn.example", false),
        ("192.0.2.1", false),
        ("a.b.cdn.example", true),
        ("cdn.example", true),
        ("hidden.example", true),
        ("192.0.2.2", true),
        ("[2001:db8::1]", true),
    ] {
        let shared = Shared {
            has_credentials: false,
            message_bytes_max: 100,
            recorded_bytes_max: 100,
        };
        let mut world = World::with(shared, context.clone(), permit);
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        world.says(Peer::Client, request.as_bytes(), 1_000);
        let attributes = &world.operations[0].description.attributes;
        assert_eq!(attributes.contains_key("http.fronting"), fronted, "{host}");
    }
}

#[test]
fn paths_are_what_every_server_makes_of_them() {
    for (target, expected) in [
        ("/", "/"),
        ("//admin///x", "/admin/x"),
        ("/%61dmin", "/admin"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%2fb/", "/a%2Fb/"),
        ("/a%20b?c=/../d", "/a b"),
        ("http://x", "/"),
        ("/caf%C3%A9", "/café"),
        ("/a%25b", "/a%25b"),
    ] {
        let mut world = World::new(permit);
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        world.says(Peer::Client, request.as_bytes(), 1_000);
        assert_eq!(world.closed, None, "{target}");
        assert_eq!(
            &*world.operations[0].description.attributes["http.path"], expected,
            "{target}"
        );
    }
}

#[test]
fn first_bytes_tell() {
    for (bytes, expected) in [
        (&b"GET /"[..], Some(true)),
        (b"GET ", None),
        (b"PROPFIND", None),
        (b"OPTIONS *", Some(true)),
        (b"CONNECT a.example:443 HTTP/1.1\r\n", Some(true)),
        (b"GET http://x/ HTTP/1.0\r\n", Some(true)),
        (b"HELO there\r\n", Some(false)),
        (b"HELO there", None),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", Some(false)),
        (b"*1\r\n", Some(false)),
        (b"\0\0", Some(false)),
        (b" GET /", Some(false)),
    ] {
        assert_eq!(
            is_request(bytes),
            expected,
            "{}",
            String::from_utf8_lossy(bytes)
        );
    }
}

#[test]
fn a_request_that_never_ends_is_over_in_time() {
    for begun in [
        "GET / HT",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
    ] {
        let mut world = World::new(permit);
        assert!(!world.decoder.is_waiting_for_client());
        world.says(Peer::Client, begun.as_bytes(), 1_000);
        assert!(world.decoder.is_waiting_for_client());
        world.decoder.expire();
        world.steps();
        assert!(
            world.client().starts_with("HTTP/1.1 408 "),
            "{}",
            world.client()
        );
        assert_eq!(
            (world.upstream(), world.closed.is_some()),
            (String::new(), true)
        );
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let request = b"POST /a?b=%20 HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\nUpgrade: x\r\n\r\n3;a\r\nabc\r\n0\r\nt: v\r\n\r\n";
    for index in 0..request.len() {
        for value in [0, b'\r', b'\n', b' ', b':', b'%', 0x7F, 0xFF] {
            let mut changed = request.to_vec();
            changed[index] = value;
            let mut world = World::new(gather);
            world.says(Peer::Client, &changed, 1_000);
            world.ends(Peer::Client);
        }
    }
}

#[test]
fn what_is_said_beside_a_body_is_decided_and_recorded_too() {
    let request = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;ext=one\r\na\r\n0\r\nX-Said: two\r\nX-Token: three\r\n\r\n";
    let response =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Back: four\r\n\r\n";
    for chunk in [1, 3, 1_000] {
        // As it streams, and as what a rule needs all of.
        for rule in [permit, gather] {
            let mut world = World::new(rule);
            world.says(Peer::Client, request, chunk);
            world.says(Peer::Upstream, response, chunk);
            assert_eq!(
                (&*world.upstream, &*world.client),
                (&request[..], &response[..])
            );
            let seen = format!("{:?} {:?}", world.records, world.operations);
            for said in ["ext=one", "X-Said: two", "X-Back: four"] {
                assert!(seen.contains(said), "{said}: {seen}");
            }
        }
    }
    let mut world = World::new(|_| Answer::Hold);
    world.says(Peer::Client, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", 99);
    let plan = crate::mask::MaskPlan {
        headers: vec![crate::mask::body::KeyMask {
            name: crate::glob::Glob::new("x-back"),
            with: crate::mask::MaskKind::Redact,
        }],
        ..Default::default()
    };
    let permit = Permit::unjudged(Arc::new(plan));
    world.decoder.rule(Ruling::Permit(permit), NOW);
    world.steps();
    world.says(Peer::Upstream, response, 5);
    assert!(!world.client().contains("four"), "{}", world.client());
}

/// What the request in `bytes` is but for its values.
fn shape_of(bytes: &str) -> Option<Bytes> {
    let mut world = World::new(gather);
    world.says(Peer::Client, bytes.as_bytes(), bytes.len());
    super::shape::shape(world.operations.last().expect("a request"))
}

#[test]
fn ids_and_values_make_no_difference_to_a_shape_and_everything_else_does() {
    let post = |target: &str, fields: &str, body: &str| {
        let length = body.len();
        format!(
            "POST {target} HTTP/1.1\r\nHost: x.example\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
        )
    };
    let plain = shape_of(&post("/users/7/disable?why=spam&by=3", "", "{}"));
    assert!(plain.is_some());
    for same in [
        post("/users/123/disable?why=fraud&by=", "", "{}"),
        post(
            "/users/0b9fd1a6-7c1e-4c5e-9a56-6d0f3f3b6a11/disable?why=&by=1",
            "",
            "{}",
        ),
        post(
            "/users/7/disable?why=spam&by=3",
            "X-Request-Id: 7f\r\nDate: now\r\n",
            "{}",
        ),
    ] {
        assert_eq!(shape_of(&same), plain, "{same}");
    }
    for other in [
        post("/users/all/disable?why=spam&by=3", "", "{}"),
        post("/users/7/enable?why=spam&by=3", "", "{}"),
        post("/users/7/disable?why=spam", "", "{}"),
        post("/users/7/disable?why=spam&by=3&force=1", "", "{}"),
        post("/users/7/disable?why=spam&by=3", "", "{\"all\":1}"),
        post(
            "/users/7/disable?why=spam&by=3",
            "Authorization: Bearer x\r\n",
            "{}",
        ),
        post(
            "/users/7/disable?why=spam&by=3",
            "X-HTTP-Method-Override: DELETE\r\n",
            "{}",
        ),
        post("/users/7/disable?why=spam&by=3", "", "{}").replace("x.example", "y.example"),
    ] {
        assert_ne!(shape_of(&other), plain, "{other}");
    }
}
