//! Clients of HTTP/2.

use std::{
    io::Read as _,
    net::TcpStream,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Instant,
};

use interceptor_tests::h2::{
    END_HEADERS, END_STREAM, Frame, PREFACE, frame, headers, kind, request, reset, settings, string,
};

use super::{IN_TIME, Siege, write};
use crate::{support::ALLOW_ALL, tls::web};

/// A client that speaks frames.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    frames: Receiver<Frame>,
}

impl Client {
    /// One that reads all it gets.
    pub(super) fn new(siege: &Siege, port: u16) -> Self {
        let stream = open(siege, port, &[]);
        let mut from = stream.try_clone().unwrap();
        from.set_read_timeout(Some(2 * IN_TIME)).unwrap();
        let (sender, frames) = channel();
        thread::spawn(move || {
            while let Ok(Some(mut frame)) = Frame::read(&mut from) {
                if frame.kind == kind::DATA {
                    frame.payload.truncate(4 << 10);
                }
                if sender.send(frame).is_err() {
                    return;
                }
            }
        });
        Self { stream, frames }
    }

    pub(super) fn send(&self, bytes: &[u8]) -> bool {
        write(&self.stream, bytes)
    }

    /// The next frame that `wanted` says yes to; `None` when the connection ends before.
    #[track_caller]
    pub(super) fn find(&self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let start = Instant::now();
        loop {
            match self
                .frames
                .recv_timeout(IN_TIME.saturating_sub(start.elapsed()))
            {
                Ok(frame) if wanted(&frame) => return Some(frame),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("nothing came, and the connection stays open")
                }
            }
        }
    }

    /// The frames that come until the connection ends, which it has to.
    #[track_caller]
    pub(super) fn until_end(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.find(|_| true) {
            frames.push(frame);
        }
        frames
    }

    /// Asks and is answered with `200`.
    #[track_caller]
    pub(super) fn answers(&self, stream: u32) {
        assert!(self.send(&headers(
            stream,
            &request("GET", "localhost", "/echo", &[]),
            true
        )));
        let head = self
            .find(|frame| frame.stream == stream && frame.kind != kind::WINDOW)
            .unwrap();
        assert_eq!(
            (head.kind, head.payload.first()),
            (kind::HEADERS, Some(&0x88)),
            "{head:?}"
        );
    }
}

/// A connection on which the preface was said.
fn open(siege: &Siege, port: u16, values: &[(u16, u32)]) -> TcpStream {
    let stream = siege.agent.connect(port).unwrap();
    stream.set_nodelay(true).unwrap();
    assert!(write(&stream, &[PREFACE, &settings(values)].concat()));
    stream
}

/// Sends `part` of a number again and again; the number after which the other side was gone.
fn repeat(client: &Client, times: u32, part: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    const AT_ONCE: u32 = 200;
    let mut from = 0;
    while from < times {
        let parts: Vec<u8> = (from..from + AT_ONCE).flat_map(&part).collect();
        if !client.send(&parts) {
            return Some(from);
        }
        from += AT_ONCE;
    }
    None
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    headers(stream, &request("GET", "localhost", path, &[]), true)
}

fn post(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    headers(stream, &request("POST", "localhost", "/echo", more), false)
}

fn client(siege: &Siege) -> Client {
    Client::new(siege, web().plain_h2)
}

const SETTINGS_WINDOW: u16 = 4;

#[test]
fn clients_of_http2_that_flood_stall_and_lie() {
    let big = web().root().join("big-h2");
    std::fs::File::create(&big)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let siege = Siege::start(ALLOW_ALL);
    // Some twenty attacks at once, of which one has 100 streams that each hold a full buffer.
    siege.within(
        48 << 20,
        &[
            ("rapid reset (CVE-2023-44487)", |siege| {
                let client = client(siege);
                repeat(&client, 20_000, |number| {
                    [get(number * 2 + 1, "/echo"), reset(number * 2 + 1, 8)].concat()
                });
                client.until_end();
                siege.expect(&client.stream, "client: ");
            }),
            (
                "slow reset: as many as may be open, then none of them",
                |siege| {
                    let client = client(siege);
                    for round in 0..40 {
                        let streams = (round * 100..round * 100 + 100).map(|number| number * 2 + 1);
                        let asked: Vec<u8> = streams
                            .clone()
                            .flat_map(|stream| get(stream, "/big-h2"))
                            .collect();
                        client.send(&asked);
                        // All have been accepted by then: h2 itself counts only those that haven't.
                        let answered = |frame: &Frame| {
                            frame.kind == kind::HEADERS && frame.stream == round * 200 + 199
                        };
                        if client.find(answered).is_none() {
                            break;
                        }
                        let resets: Vec<u8> = streams.flat_map(|stream| reset(stream, 8)).collect();
                        client.send(&resets);
                    }
                    client.until_end();
                    siege.expect(&client.stream, "it took back or broke");
                },
            ),
            ("MadeYouReset (CVE-2025-8671)", |siege| {
                let client = client(siege);
                let nothing = |stream| frame(kind::WINDOW, 0, stream, &[0; 4]);
                repeat(&client, 20_000, |number| {
                    [post(number * 2 + 1, &[]), nothing(number * 2 + 1)].concat()
                });
                client.until_end();
                siege.expect(&client.stream, "client: ");
            }),
            ("CONTINUATION without end", |siege| {
                let client = client(siege);
                let block = request("GET", "localhost", "/", &[]);
                client.send(&frame(kind::HEADERS, END_STREAM, 1, &block));
                let gone = repeat(&client, 1_000_000, |_| {
                    frame(kind::CONTINUATION, 0, 1, b"\0\x01a\x01b")
                });
                assert!(gone.is_some(), "all of it was read");
                client.until_end();
                siege.expect(&client.stream, "client: ");
            }),
            ("CONTINUATION with nothing in it", |siege| {
                let client = client(siege);
                client.send(&frame(
                    kind::HEADERS,
                    END_STREAM,
                    1,
                    &request("GET", "localhost", "/", &[]),
                ));
                let gone = repeat(&client, 1_000_000, |_| frame(kind::CONTINUATION, 0, 1, b""));
                assert!(gone.is_some(), "all of it was read");
                client.until_end();
            }),
            ("a bomb of HPACK", |siege| {
                let client = client(siege);
                let mut block = request("GET", "localhost", "/echo", &[]);
                // Remembered once, named again with a byte each: 16 KiB become 64 MiB.
                block.push(0x40);
                string(&mut block, b"x");
                string(&mut block, &[b'y'; 4_000]);
                block.extend_from_slice(&[0xBE; 12_000]);
                client.send(&headers(1, &block, true));
                let refused = client
                    .find(|frame| frame.code().is_some() || frame.stream == 1)
                    .unwrap();
                // 431, a reset, or the end: none of it is a request.
                assert!(
                    refused.code().is_some()
                        || refused.payload.windows(3).any(|part| part == b"431"),
                    "{refused:?}"
                );
            }),
            ("a header list that is too large", |siege| {
                let client = client(siege);
                let long = "y".repeat(15_000);
                let block = request("GET", "localhost", "/echo", &[("a", &long)]);
                client.send(&frame(kind::HEADERS, END_STREAM, 1, &block));
                for _ in 0..9 {
                    let more = interceptor_tests::h2::block(&[("b", &long)]);
                    client.send(&frame(kind::CONTINUATION, 0, 1, &more));
                }
                client.send(&frame(kind::CONTINUATION, END_HEADERS, 1, &[]));
                let refused = client
                    .find(|frame| frame.code().is_some() || frame.stream == 1)
                    .unwrap();
                assert!(
                    refused.code().is_some()
                        || refused.payload.windows(3).any(|part| part == b"431"),
                    "{refused:?}"
                );
            }),
            ("DATA with nothing in it", |siege| {
                let client = client(siege);
                client.send(&post(1, &[]));
                let gone = repeat(&client, 1_000_000, |_| frame(kind::DATA, 0, 1, b""));
                assert!(gone.is_some(), "all of it was read");
                client.until_end();
                siege.expect(&client.stream, "client: ");
            }),
            ("SETTINGS without end", |siege| {
                let client = client(siege);
                repeat(&client, 100_000, |number| {
                    settings(&[(SETTINGS_WINDOW, number)])
                });
                client.send(&frame(kind::GOAWAY, 0, 0, &[0; 8]));
                client.until_end();
            }),
            ("PING without end, and nobody reads the answers", |siege| {
                let stream = open(siege, web().plain_h2, &[]);
                let pings: Vec<u8> = (0..1_000)
                    .flat_map(|_| frame(kind::PING, 0, 0, b"12345678"))
                    .collect();
                for _ in 0..2_000 {
                    if !write(&stream, &pings) {
                        break;
                    }
                }
                siege.expect(&stream, "client: ");
            }),
            ("a window that stays closed", |siege| {
                let stream = open(siege, web().plain_h2, &[(SETTINGS_WINDOW, 0)]);
                let asked: Vec<u8> = (0..100)
                    .flat_map(|number| get(number * 2 + 1, "/big-h2"))
                    .collect();
                assert!(write(&stream, &asked));
                super::until_end(&stream);
                siege.expect(&stream, "took nothing");
            }),
            ("open windows, and nobody reads", |siege| {
                let stream = open(siege, web().plain_h2, &[(SETTINGS_WINDOW, 0x7FFF_FFFF)]);
                assert!(write(
                    &stream,
                    &frame(kind::WINDOW, 0, 0, &0x7FFF_0000_u32.to_be_bytes())
                ));
                let asked: Vec<u8> = (0..100)
                    .flat_map(|number| get(number * 2 + 1, "/big-h2"))
                    .collect();
                assert!(write(&stream, &asked));
                siege.expect(&stream, "took nothing");
            }),
            ("answers of ours that nobody has a window for", |siege| {
                let stream = open(siege, web().plain_h2, &[(SETTINGS_WINDOW, 0)]);
                // Two hosts: refused without asking the server.
                let fields = [("host", "other.test")];
                let block = request("GET", "localhost", "/", &fields);
                let asked: Vec<u8> = (0..1_000)
                    .flat_map(|number| headers(number * 2 + 1, &block, true))
                    .collect();
                write(&stream, &asked);
                super::until_end(&stream);
            }),
            ("PRIORITY of streams that don't exist", |siege| {
                let client = client(siege);
                repeat(&client, 200_000, |number| {
                    frame(
                        kind::PRIORITY,
                        0,
                        number * 2 + 1,
                        &[&(number * 7 + 2).to_be_bytes()[..], &[9]].concat(),
                    )
                });
                client.answers(1_000_001);
            }),
            ("more streams than may be open", |siege| {
                let client = client(siege);
                let asked: Vec<u8> = (0..5_000)
                    .flat_map(|number| post(number * 2 + 1, &[]))
                    .collect();
                client.send(&asked);
                let refused = client.find(|frame| frame.code().is_some()).unwrap();
                assert!(
                    matches!(refused.kind, kind::RESET | kind::GOAWAY),
                    "{refused:?}"
                );
                let _ = client.stream.shutdown(std::net::Shutdown::Both);
            }),
            ("a body that never comes", |siege| {
                let client = client(siege);
                client.send(&post(1, &[("content-length", "10")]));
                let body = client.find(|frame| frame.kind == kind::DATA).unwrap();
                let body = String::from_utf8_lossy(&body.payload).into_owned();
                assert!(body.contains("\"status\":408"), "{body}");
                // The others of the connection go on.
                client.answers(3);
                drop(client.stream.shutdown(std::net::Shutdown::Both));
                siege.expect(&client.stream, "408");
            }),
            ("a header block that never ends", |siege| {
                let client = client(siege);
                client.send(&frame(
                    kind::HEADERS,
                    END_STREAM,
                    1,
                    &request("GET", "localhost", "/", &[]),
                ));
                client.until_end();
                siege.expect(&client.stream, "no request");
            }),
            ("a preface that never ends", |siege| {
                let mut stream = siege.agent.connect(web().plain_h2).unwrap();
                assert!(write(&stream, &PREFACE[..12]));
                super::until_end(&stream);
                assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
                siege.expect(&stream, "no HTTP/2 within");
            }),
            ("trailers, and a farewell before the answer", |siege| {
                let client = client(siege);
                client.send(&post(1, &[("te", "trailers")]));
                client.send(&frame(kind::DATA, 0, 1, b"a=1"));
                client.send(&headers(
                    1,
                    &interceptor_tests::h2::block(&[("x-sum", "1")]),
                    true,
                ));
                client.send(&frame(kind::GOAWAY, 0, 0, &[0; 8]));
                let head = client
                    .find(|frame| frame.stream == 1 && frame.kind == kind::HEADERS)
                    .unwrap();
                assert_eq!(head.payload.first(), Some(&0x88), "{head:?}");
                client.until_end();
            }),
            ("frames that break the protocol", |siege| {
                let ping = |flags, payload: &[u8]| frame(kind::PING, flags, 0, payload);
                for broken in [
                    frame(kind::DATA, 0, 1, b"on a stream that isn't"),
                    frame(
                        kind::HEADERS,
                        END_HEADERS,
                        2,
                        &request("GET", "localhost", "/", &[]),
                    ),
                    frame(
                        kind::HEADERS,
                        END_HEADERS,
                        0,
                        &request("GET", "localhost", "/", &[]),
                    ),
                    frame(kind::CONTINUATION, END_HEADERS, 1, b""),
                    frame(kind::HEADERS, END_HEADERS, 1, b"\xFF\xFF\xFF\xFF\xFF\xFF"),
                    frame(kind::SETTINGS, 0, 0, b"12345"),
                    frame(kind::SETTINGS, 0, 1, b""),
                    settings(&[(SETTINGS_WINDOW, 0x8000_0000)]),
                    frame(kind::PUSH, END_HEADERS, 1, b"\0\0\0\x02"),
                    frame(kind::WINDOW, 0, 0, &[0; 4]),
                    frame(kind::RESET, 0, 0, &[0; 4]),
                    ping(0, b"1234567"),
                    frame(kind::DATA, 0, 1, &vec![0; 40 << 10]),
                    [
                        frame(kind::HEADERS, 0, 1, &request("GET", "localhost", "/", &[])),
                        ping(0, b"12345678"),
                    ]
                    .concat(),
                ] {
                    let client = client(siege);
                    client.send(&broken);
                    let last = client.until_end();
                    let told = last.iter().any(|frame| frame.kind == kind::GOAWAY);
                    assert!(told, "{:?}: {last:?}", &broken[..9]);
                    siege.expect(&client.stream, "client: ");
                }
            }),
        ],
    );
    let _ = std::fs::remove_file(big);
}
