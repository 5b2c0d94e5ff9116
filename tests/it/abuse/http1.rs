//! Clients and servers of HTTP/1.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use super::{Siege, Upstream, until_end, write};
use crate::tls::web;

const POLICY: &str = "
default: {action: allow}
rules:
  - {id: not-there, match: {protocol: http, http: {path: \"/private/{name}\"}}, action: deny, reason: private}
";

const HEAD: &str = "GET /echo HTTP/1.1\r\nHost: localhost\r\n";

/// Has the server asked for `/`, and gives its answer, to the connection's end.
#[track_caller]
fn answer_of(siege: &Siege, serve: fn(TcpStream), said_on_record: &'static str) -> String {
    let upstream = Upstream::start(serve);
    let stream = siege.agent.connect(upstream.port).unwrap();
    siege.expect(&stream, said_on_record);
    write(&stream, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    String::from_utf8_lossy(&until_end(&stream)).into_owned()
}

/// Reads a request's head.
fn asked(mut stream: &TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
}

/// Writes `part` without end.
fn for_ever(mut stream: &TcpStream, part: &[u8]) {
    let parts = part.repeat((32 << 10) / part.len() + 1);
    while stream.write_all(&parts).is_ok() {}
}

#[test]
fn clients_of_http1_that_flood_and_dawdle() {
    let big = web().root().join("big-h1");
    std::fs::File::create(&big)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let siege = Siege::start(POLICY);
    siege.hold(&[
        ("a head that comes byte by byte", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "408");
            for byte in HEAD.bytes().chain(b"X-Slow: ".iter().copied()).chain([b'x'; 200]) {
                if !write(&stream, &[byte]) {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            // What it still writes may turn the end into a reset, which takes the answer with it.
            until_end(&stream);
        }),
        ("half a head", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "408");
            write(&stream, HEAD.as_bytes());
            assert!(until_end(&stream).starts_with(b"HTTP/1.1 408 "));
        }),
        ("a method, then nothing: too few bytes to know the protocol by", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "too few to know a protocol by");
            write(&stream, b"GE");
            assert!(until_end(&stream).is_empty());
        }),
        ("a request after a long silence is still looked at", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            thread::sleep(Duration::from_millis(5_500));
            write(&stream, b"GET /private/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            assert!(until_end(&stream).starts_with(b"HTTP/1.1 403 "));
        }),
        ("a body that is waited for and doesn't come", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "408");
            write(&stream, b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc");
            assert!(until_end(&stream).starts_with(b"HTTP/1.1 408 "));
        }),
        ("the body of a refused request, which doesn't come", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "the rest of a refused request");
            write(&stream, b"POST /private/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nabc");
            assert!(until_end(&stream).starts_with(b"HTTP/1.1 403 "));
        }),
        ("answers that nobody reads", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "the client took nothing for 3s");
            write(&stream, b"GET /big-h1 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        }),
        ("refusals that nobody reads", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "the client took nothing for 3s");
            let asked = b"GET /private/a HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
            for _ in 0..10_000 {
                if !write(&stream, &asked) {
                    return;
                }
            }
            panic!("a million requests were taken");
        }),
        ("requests that don't wait for their answers", |siege| {
            const REQUESTS: usize = 2_000;
            let stream = siege.agent.connect(web().plain).unwrap();
            let from = stream.try_clone().unwrap();
            let answers = thread::spawn(move || until_end(&from));
            let asked = format!("{HEAD}\r\n").repeat(REQUESTS - 1);
            write(&stream, asked.as_bytes());
            write(&stream, format!("{HEAD}Connection: close\r\n\r\n").as_bytes());
            let answers = String::from_utf8(answers.join().unwrap()).unwrap();
            assert_eq!(answers.matches("GET localhost /echo").count(), REQUESTS);
        }),
        ("a head without end", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "431");
            write(&stream, HEAD.as_bytes());
            for_ever(&stream, b"X-More: and more\r\n");
        }),
        ("a header field without end", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "431");
            write(&stream, format!("{HEAD}X-Long: ").as_bytes());
            for_ever(&stream, b"x");
        }),
        ("a chunk extension without end", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "a chunk extension of more than 256 bytes");
            write(&stream, b"POST /sink HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;");
            for_ever(&stream, b"x");
        }),
        ("a trailer without end", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            siege.expect(&stream, "trailer fields or extensions of chunks of more than 64 KiB");
            write(&stream, b"POST /sink HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n");
            for_ever(&stream, b"X-More: and more\r\n");
        }),
        ("an upload that the server doesn't read", |siege| {
            let upstream = Upstream::start(|stream| {
                thread::sleep(Duration::from_secs(20));
                drop(stream);
            });
            let stream = siege.agent.connect(upstream.port).unwrap();
            siege.expect(&stream, "the server took nothing for 3s");
            write(&stream, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
            for_ever(&stream, &[b"8000\r\n", &[b'x'; 0x8000][..], b"\r\n"].concat());
        }),
        ("half of a connection closed before the answer", |siege| {
            let stream = siege.agent.connect(web().plain).unwrap();
            write(&stream, format!("{HEAD}\r\n").as_bytes());
            stream.shutdown(Shutdown::Write).unwrap();
            assert!(until_end(&stream).ends_with(b"GET localhost /echo\n"));
        }),
    ]);
    let _ = std::fs::remove_file(big);
}

#[test]
fn servers_of_http1_that_lie_and_never_end() {
    let siege = Siege::start(
        "
default: {action: allow}
rules:
  - {id: masked, match: {protocol: http}, action: allow, mask: [{header: x-secret, with: redact}]}
",
    );
    siege.hold(&[
        ("interim responses without end", |siege| {
            let answer = answer_of(siege, |stream| {
                asked(&stream);
                for_ever(&stream, b"HTTP/1.1 103 Early Hints\r\nX-Secret: hunter22\r\n\r\n");
            }, "more than 1000 interim responses");
            assert!(answer.contains("HTTP/1.1 502 "), "{answer:.300}");
            assert!(!answer.contains("hunter22"), "{answer:.300}");
        }),
        ("a head without end", |siege| {
            let answer = answer_of(siege, |stream| {
                asked(&stream);
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\n");
                for_ever(&stream, b"X-More: and more\r\n");
            }, "a head of more than 64 KiB");
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer:.300}");
        }),
        ("two answers to one question", |siege| {
            let answer = answer_of(siege, |stream| {
                asked(&stream);
                let one = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
                let _ = (&stream).write_all(format!("{one}good{one}evil").as_bytes());
                thread::sleep(Duration::from_secs(1));
            }, "a response that nobody asked for");
            assert!(answer.ends_with("good"), "{answer:.300}");
        }),
        ("a split response", |siege| {
            for head in [
                "HTTP/1.1 200 OK\r\nX-A: b\rX-C: d\r\n\r\n",
                "HTTP/1.1 200 OK\r\nX-A: b\nX-C: d\r\n\r\n",
                "HTTP/1.1 200 OK\r\nX-A: b\r\n X-C: d\r\n\r\n",
            ] {
                static HEAD: std::sync::Mutex<&str> = std::sync::Mutex::new("");
                *HEAD.lock().unwrap() = head;
                let answer = answer_of(siege, |stream| {
                    asked(&stream);
                    let _ = (&stream).write_all(HEAD.lock().unwrap().as_bytes());
                    thread::sleep(Duration::from_secs(1));
                }, "upstream: ");
                assert!(answer.starts_with("HTTP/1.1 502 "), "{answer:.300}");
            }
        }),
        ("two lengths", |siege| {
            let answer = answer_of(siege, |stream| {
                asked(&stream);
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
                thread::sleep(Duration::from_secs(1));
            }, "both Content-Length and Transfer-Encoding");
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer:.300}");
        }),
        ("a trailer without end", |siege| {
            answer_of(siege, |stream| {
                asked(&stream);
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n");
                for_ever(&stream, b"X-More: and more\r\n");
            }, "it has fields behind its body");
        }),
        ("a body without end, until the client has had enough", |siege| {
            let upstream = Upstream::start(|stream| {
                asked(&stream);
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                for_ever(&stream, &[b'x'; 32 << 10]);
            });
            let mut stream = siege.agent.connect(upstream.port).unwrap();
            write(&stream, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let mut part = vec![0; 64 << 10];
            for _ in 0..2_000 {
                assert!(stream.read(&mut part).unwrap() > 0);
            }
        }),
        ("no answer at all", |siege| {
            let answer = answer_of(siege, |stream| asked(&stream), "without an answer");
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer:.300}");
        }),
        ("half of an answer", |siege| {
            let answer = answer_of(siege, |stream| {
                asked(&stream);
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            }, "closed in the middle of a response");
            assert!(answer.ends_with("half"), "{answer:.300}");
        }),
    ]);
}
