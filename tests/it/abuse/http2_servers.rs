//! Servers of HTTP/2.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use interceptor_tests::{
    h2::{
        END_HEADERS, END_STREAM, Frame, PREFACE, block, frame, headers, kind, request, reset,
        settings, string,
    },
    run,
};

use super::{IN_TIME, Siege, Upstream, http2::Client};
use crate::support::ALLOW_ALL;

/// What the client of a hostile server is told.
#[derive(Debug, Default)]
struct Told {
    head: bool,
    refused: bool,
    ended: bool,
    body: String,
}

/// Has the server asked for `/`.
#[track_caller]
fn ask(siege: &Siege, serve: fn(TcpStream)) -> Told {
    let upstream = Upstream::start(serve);
    let client = Client::new(siege, upstream.port);
    assert!(client.send(&headers(1, &request("GET", "localhost", "/", &[]), true)));
    told(&client)
}

/// What the stream 1 comes to.
#[track_caller]
fn told(client: &Client) -> Told {
    let mut told = Told::default();
    while let Some(frame) = client.find(|frame| frame.stream == 1 || frame.kind == kind::GOAWAY) {
        match frame.kind {
            kind::HEADERS => told.head = true,
            kind::DATA => told.body.push_str(&String::from_utf8_lossy(&frame.payload)),
            kind::RESET => told.refused = true,
            _ => continue,
        }
        told.ended =
            matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.flags & END_STREAM != 0;
        if told.ended || told.refused {
            break;
        }
    }
    told
}

impl Told {
    /// It is said that there is no answer, by a problem or by breaking off.
    #[track_caller]
    fn is_none(&self) {
        let problem = self.body.contains("problem:upstream");
        assert!(problem || !self.ended, "{self:?}");
    }
}

/// Greets and reads frames until a request is there.
fn greet(mut stream: &TcpStream, values: &[(u16, u32)]) {
    let mut preface = [0; PREFACE.len()];
    let _ = stream.read_exact(&mut preface);
    let _ = stream.write_all(&settings(values));
    while let Ok(Some(frame)) = Frame::read(&mut stream) {
        if frame.kind == kind::HEADERS {
            return;
        }
    }
}

fn say(mut stream: &TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

/// Writes `part` without end.
fn for_ever(mut stream: &TcpStream, part: &[u8]) {
    let parts = part.repeat((32 << 10) / part.len() + 1);
    while stream.write_all(&parts).is_ok() {}
}

fn ok() -> Vec<u8> {
    headers(1, &block(&[(":status", "200")]), false)
}

#[test]
fn servers_of_http2_that_flood_stall_and_lie() {
    let siege = Siege::start(ALLOW_ALL);
    siege.hold(&[
        ("interim responses without end", |siege| {
            ask(siege, |stream| {
                greet(&stream, &[]);
                for_ever(
                    &stream,
                    &headers(1, &block(&[(":status", "103"), ("link", "x")]), false),
                );
            })
            .is_none();
        }),
        ("CONTINUATION without end", |siege| {
            ask(siege, |stream| {
                greet(&stream, &[]);
                say(
                    &stream,
                    &frame(kind::HEADERS, 0, 1, &block(&[(":status", "200")])),
                );
                for_ever(&stream, &frame(kind::CONTINUATION, 0, 1, b"\0\x01a\x01b"));
            })
            .is_none();
        }),
        ("a bomb of HPACK", |siege| {
            ask(siege, |stream| {
                greet(&stream, &[]);
                let mut bomb = block(&[(":status", "200")]);
                bomb.push(0x40);
                string(&mut bomb, b"x");
                string(&mut bomb, &[b'y'; 4_000]);
                bomb.extend_from_slice(&[0xBE; 12_000]);
                say(&stream, &headers(1, &bomb, true));
                thread::sleep(Duration::from_secs(2));
            })
            .is_none();
        }),
        ("DATA with nothing in it", |siege| {
            ask(siege, |stream| {
                greet(&stream, &[]);
                say(&stream, &ok());
                for_ever(&stream, &frame(kind::DATA, 0, 1, b""));
            })
            .is_none();
        }),
        ("SETTINGS without end", |siege| {
            ask(siege, |stream| {
                greet(&stream, &[]);
                for number in 0..200_u32 {
                    say(&stream, &settings(&[(4, number)]).repeat(1_000));
                }
            })
            .is_none();
        }),
        ("PING without end, and nobody reads the answers", |siege| {
            let upstream = Upstream::start(|stream| {
                greet(&stream, &[]);
                let _ = stream.set_write_timeout(Some(Duration::from_secs(2)));
                for_ever(&stream, &frame(kind::PING, 0, 0, b"12345678"));
            });
            let client = Client::new(siege, upstream.port);
            client.send(&headers(1, &request("GET", "localhost", "/", &[]), true));
            told(&client).is_none();
        }),
        ("an upload that is never read", |siege| {
            let upstream = Upstream::start(|stream| {
                greet(&stream, &[(4, 0)]);
                thread::sleep(Duration::from_secs(15));
            });
            let client = Client::new(siege, upstream.port);
            siege.expect(&client.stream, "the server took nothing for 3s");
            client.send(&headers(1, &request("POST", "localhost", "/", &[]), false));
            // Not before it is known that the server's window is closed.
            thread::sleep(Duration::from_secs(1));
            client.send(&frame(kind::DATA, 0, 1, &[b'x'; 10_000]));
            let told = told(&client);
            assert!(told.body.contains("takes nothing"), "{told:?}");
        }),
        (
            "a reset, and a farewell that forgets the request",
            |siege| {
                let told = ask(siege, |stream| {
                    greet(&stream, &[]);
                    say(&stream, &reset(1, 7));
                    thread::sleep(Duration::from_secs(1));
                });
                assert!(told.refused, "{told:?}");
                ask(siege, |stream| {
                    greet(&stream, &[]);
                    say(&stream, &frame(kind::GOAWAY, 0, 0, &[0; 8]));
                    thread::sleep(Duration::from_secs(1));
                })
                .is_none();
            },
        ),
        ("a push that nobody wanted", |siege| {
            ask(siege, |stream| {
                greet(&stream, &[]);
                let promised = [
                    &[0, 0, 0, 2][..],
                    &request("GET", "localhost", "/evil", &[]),
                ]
                .concat();
                say(&stream, &frame(kind::PUSH, END_HEADERS, 1, &promised));
                thread::sleep(Duration::from_secs(1));
            })
            .is_none();
        }),
        ("a body before its head", |siege| {
            for first in [vec![], headers(1, &block(&[(":status", "103")]), false)] {
                static FIRST: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
                *FIRST.lock().unwrap() = first;
                ask(siege, |stream| {
                    greet(&stream, &[]);
                    say(&stream, &FIRST.lock().unwrap());
                    say(&stream, &frame(kind::DATA, END_STREAM, 1, b"evil"));
                    thread::sleep(Duration::from_secs(1));
                })
                .is_none();
            }
        }),
        ("a length that isn't the body's", |siege| {
            for (length, body) in [("10", "short"), ("2", "long")] {
                static SAID: std::sync::Mutex<[&str; 2]> = std::sync::Mutex::new(["", ""]);
                *SAID.lock().unwrap() = [length, body];
                let told = ask(siege, |stream| {
                    greet(&stream, &[]);
                    let [length, body] = *SAID.lock().unwrap();
                    say(
                        &stream,
                        &headers(
                            1,
                            &block(&[(":status", "200"), ("content-length", length)]),
                            false,
                        ),
                    );
                    say(&stream, &frame(kind::DATA, END_STREAM, 1, body.as_bytes()));
                    thread::sleep(Duration::from_secs(1));
                });
                assert!(!told.ended, "{told:?}");
            }
        }),
        ("half of an answer", |siege| {
            let told = ask(siege, |stream| {
                greet(&stream, &[]);
                say(&stream, &ok());
                say(&stream, &frame(kind::DATA, 0, 1, b"half"));
            });
            assert!(!told.ended, "{told:?}");
        }),
        ("the end, without an answer", |siege| {
            ask(siege, |stream| greet(&stream, &[])).is_none();
        }),
        ("no HTTP/2 at all", |siege| {
            // The end is found in reading or in writing, as it comes.
            for _ in 0..20 {
                ask(siege, |mut stream| {
                    let _ = stream.read(&mut [0; 100]);
                    say(
                        &stream,
                        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
                    );
                })
                .is_none();
            }
        }),
        ("an answer that the client has had enough of", |siege| {
            static RESET: AtomicBool = AtomicBool::new(false);
            let upstream = Upstream::start(|mut stream| {
                greet(&stream, &[]);
                say(&stream, &ok());
                say(&stream, &frame(kind::DATA, 0, 1, b"half"));
                while let Ok(Some(frame)) = Frame::read(&mut stream) {
                    RESET.fetch_or(frame.kind == kind::RESET, Ordering::Relaxed);
                }
            });
            let client = Client::new(siege, upstream.port);
            client.send(&headers(1, &request("GET", "localhost", "/", &[]), true));
            client.find(|frame| frame.kind == kind::DATA).unwrap();
            assert!(client.send(&reset(1, 8)));
            run::wait_for("the server to be told", IN_TIME, || {
                Ok(RESET.load(Ordering::Relaxed).then_some(()))
            })
            .unwrap();
            let _ = client.stream.shutdown(std::net::Shutdown::Both);
        }),
    ]);
}
