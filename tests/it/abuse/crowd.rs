//! Very many connections.

use std::time::Duration;

use interceptor_tests::run;

use super::{Siege, answers, write};
use crate::{support::ALLOW_ALL, tls::web};

const CONNECTIONS: usize = 2_000;

/// Bytes for a connection with both of its sides, in the clear.
const CONNECTION_BYTES_MAX: usize = 48 << 10;

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
