//! Very many connections.

use std::time::Duration;

use interceptor_tests::run;

use super::{Siege, answers, until_end, write};
use crate::{support::ALLOW_ALL, tls::web};

const CONNECTIONS: usize = 2_000;

/// Bytes for a connection with both of its sides, in the clear.
const CONNECTION_BYTES_MAX: usize = 48 << 10;

/// What a thousand operations that wait for people may take, in bytes.
const HELD_BYTES_MAX: usize = 100 << 20;

/// As many as one agent may have waiting.
const HELD: usize = 1_000;

#[test]
fn a_thousand_operations_wait_and_nobody_else_does() {
    let siege = Siege::start(
        "
default: {action: allow}
rules:
  - {id: posts, match: {protocol: http, action: POST}, action: hold, reviewers: {within: 10m, retry: 0s}}
",
    );
    siege.within(
        HELD_BYTES_MAX,
        &[("a thousand", |siege| {
            let held: Vec<_> = (0..HELD)
                .map(|number| {
                    let stream = siege.agent.connect(web().plain).unwrap();
                    let request = format!(
                        "POST /echo?{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}"
                    );
                    assert!(write(&stream, request.as_bytes()));
                    stream
                })
                .collect();
            let waiting = |count: u64| {
                run::wait_for("all to wait", Duration::from_secs(20), || {
                    let status = siege.daemon.ask_json(&["status"])?;
                    Ok((status["approvals"].as_u64() == Some(count)).then_some(()))
                })
                .unwrap();
            };
            waiting(HELD as u64);
            // One more has no place, and is told so.
            let stream = siege.agent.connect(web().plain).unwrap();
            let more = "POST /echo?more HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            assert!(write(&stream, more.as_bytes()));
            let told = String::from_utf8_lossy(&until_end(&stream)).into_owned();
            assert!(told.contains("too many operations of this agent"), "{told}");
            // Those who are asked can answer.
            let list = siege.daemon.ask_json(&["approvals", "list"]).unwrap();
            let first = list[0]["id"].as_str().unwrap();
            siege.daemon.ask(&["approvals", "approve", first]).unwrap();
            waiting(HELD as u64 - 1);
            drop(held);
            waiting(0);
        })],
    );
}

#[test]
fn two_thousand_connections_of_which_half_stand_still() {
    let siege = Siege::configured(ALLOW_ALL, "limits: {connections_per_agent: 2100}\n");
    siege.within(
        CONNECTIONS * CONNECTION_BYTES_MAX,
        &[("two thousand", |siege| {
            let streams: Vec<_> = (0..CONNECTIONS)
                .map(|_| siege.agent.connect(web().plain).unwrap())
                .collect();
            for (number, stream) in streams.iter().enumerate() {
                if number % 2 == 0 {
                    assert!(answers(stream), "number {number}");
                } else {
                    // Never goes on.
                    assert!(write(stream, b"GET /echo HTTP/1.1\r\nHost: "));
                }
            }
            run::wait_for(
                "those that stand still to be ended",
                Duration::from_secs(20),
                || {
                    let status = siege.daemon.ask_json(&["status"])?;
                    let open = status["sessions"].as_u64();
                    Ok(open.is_some_and(|open| open <= 1_010).then_some(()))
                },
            )
            .unwrap();
            for stream in streams.iter().step_by(2) {
                assert!(answers(stream));
            }
        })],
    );
}
