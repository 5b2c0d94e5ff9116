//! More at once than there is memory for.

use std::{
    io::Read as _,
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use interceptor_tests::{clients::Way, paths, run};

use super::{IN_TIME, Siege, answers, until_end, write};
use crate::{support::cluster, tls::web};

/// A rule that looks at content needs all of it.
const POLICY: &str = "
default: {action: allow}
rules:
  - {id: no-secrets, match: {protocol: http, content: secret}, action: deny, reason: that stays here}
";

const LIMIT: &str = "limits: {memory_per_agent: 67108864}\n";

/// What is allowed, one buffer that is copied as it doubles, and one request that is whole and about to go on. Without
/// a limit it is four times as much.
const GROWTH_MAX: usize = 224 << 20;

const AT_ONCE: usize = 24;
const SENT_BYTES: usize = 8 << 20;

#[test]
fn an_agent_s_sessions_hold_no_more_together_than_one_agent_may() {
    let siege = Siege::patient(POLICY, "patience: {request: 30s}\n", LIMIT);
    siege.within(
        GROWTH_MAX,
        &[("halves of large requests", |siege| {
            let head = format!(
                "POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                2 * SENT_BYTES
            );
            let said = many(siege, web().plain, head.as_bytes());
            assert!(
                said.iter().all(|said| said.starts_with("HTTP/1.1 503 ")
                    && said.contains("urn:interceptor:problem:memory")),
                "{said:?}"
            );
            // Small ones of the same agent go on, and large ones when there is room again.
            assert!(answers(&siege.agent.connect(web().plain).unwrap()));
            run::wait_for("room for a large request", IN_TIME, || {
                let stream = siege.agent.connect(web().plain)?;
                let body = vec![b'x'; 2 * SENT_BYTES];
                write(&stream, &[head.as_bytes(), &body].concat());
                Ok(begins(&stream).contains("HTTP/1.1 200 ").then_some(()))
            })
            .unwrap();
        })],
    );
    let database = cluster().database().unwrap();
    let startup = [
        b"\0\0\0\0\0\x03\0\0user\0agent\0database\0",
        database.name().as_bytes(),
        b"\0\0",
    ];
    let mut startup = startup.concat();
    let length = u32::try_from(startup.len()).unwrap();
    startup[..4].copy_from_slice(&length.to_be_bytes());
    let query = u32::try_from(2 * SENT_BYTES).unwrap().to_be_bytes();
    let head = [&startup[..], b"Q", &query].concat();
    let said = many(&siege, database.port(), &head);
    assert!(
        said.iter()
            .all(|said| said.contains("53200") && said.contains("limits.memory_per_agent")),
        "{said:?}"
    );
}

/// Sends the beginnings of messages without end, as many as nobody may; what those were told that it was too much
/// of.
fn many(siege: &Siege, port: u16, head: &[u8]) -> Vec<String> {
    let body = vec![b'x'; SENT_BYTES];
    let streams: Vec<TcpStream> = (0..AT_ONCE)
        .map(|_| {
            let stream = siege.agent.connect(port).unwrap();
            assert!(write(&stream, head));
            // Who is refused meanwhile takes no more.
            write(&stream, &body);
            stream
        })
        .collect();
    let ended: Vec<_> = streams.iter().filter(|stream| is_over(stream)).collect();
    assert!(
        (AT_ONCE / 2..AT_ONCE).contains(&ended.len()),
        "{} of {AT_ONCE} were refused",
        ended.len()
    );
    let said = ended.into_iter().map(|stream| until_end(stream));
    said.map(|said| String::from_utf8_lossy(&said).into_owned())
        .collect()
}

/// Whether the other side has said that it is over, or does so within a while.
fn is_over(stream: &TcpStream) -> bool {
    let until = Instant::now() + Duration::from_millis(300);
    stream.set_nonblocking(true).unwrap();
    let mut seen = vec![0; 64 << 10];
    let mut over = false;
    while !over && Instant::now() < until {
        over = match stream.peek(&mut seen) {
            Ok(count) => {
                let seen = String::from_utf8_lossy(&seen[..count]);
                count == 0 || seen.contains("memory")
            }
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        std::thread::sleep(Duration::from_millis(5));
    }
    stream.set_nonblocking(false).unwrap();
    over
}

/// The first of what comes.
fn begins(mut stream: &TcpStream) -> String {
    let mut part = vec![0; 4 << 10];
    stream.set_read_timeout(Some(IN_TIME)).unwrap();
    let count = stream.read(&mut part).unwrap_or(0);
    String::from_utf8_lossy(&part[..count]).into_owned()
}

#[test]
fn nor_do_the_streams_of_one_connection() {
    let siege = Siege::patient(POLICY, "patience: {request: 30s}\n", LIMIT);
    siege.within(
        GROWTH_MAX,
        &[("halves of large requests", |siege| {
            let mut client: Command =
                Way::Guarded(&siege.daemon, "streams").command(paths::python().unwrap());
            let numbers = [web().plain_h2.into(), AT_ONCE, SENT_BYTES];
            client.arg(paths::client("halves.py"));
            client.args(numbers.map(|number: usize| number.to_string()));
            let said = run::output(&mut client).unwrap();
            let mut said = said.splitn(3, ' ');
            let [open, over] = [(); 2].map(|()| said.next().unwrap().parse::<usize>().unwrap());
            assert!((1..AT_ONCE / 2).contains(&open), "{open} are open");
            assert_eq!(open + over, AT_ONCE);
            assert_eq!(
                said.next(),
                Some("('503', 'urn:interceptor:problem:memory')\n200\n")
            );
        })],
    );
}
