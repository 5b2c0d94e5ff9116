//! Who is asked for, where a connection says it more than once: SNI, Host, `:authority`, an absolute URI.

use std::process::Command;

use interceptor_tests::run;

use super::Siege;
use crate::tls::{curl, web};

const POLICY: &str = "
default: {action: deny, reason: no rule allows it}
rules:
  - {id: reads, match: {protocol: http, class: [read]}, action: allow}
";

/// A request on a connection for web.test, whose certificate has `localhost` too: how it is asked, and the
/// status it comes to.
const TABLE: [(&str, &[&str], &str); 14] = [
    // The same in all places.
    ("--http1.1", &[], "200"),
    ("--http2", &[], "200"),
    ("--http1.1", &["--header", "Host: WEB.TEST:PORT"], "200"),
    // Another name of the same certificate: the same server, as coalesced connections have it.
    ("--http1.1", &["--header", "Host: localhost"], "200"),
    ("--http2", &["--header", "Host: localhost"], "200"),
    // Fronting: the connection is to one, the request is for another. What it does is unclassified, and
    // no rule allows that.
    ("--http1.1", &["--header", "Host: other.test"], "403"),
    ("--http2", &["--header", "Host: other.test"], "403"),
    (
        "--http1.1",
        &["--header", "Host: web.test.evil.test"],
        "403",
    ),
    ("--http2", &["--header", "Host: evil.web.test"], "403"),
    ("--http1.1", &["--header", "Host: 192.0.2.1"], "403"),
    // An absolute URI says it again.
    (
        "--http1.1",
        &[
            "--request-target",
            "https://web.test:PORT/echo",
            "--header",
            "Host: web.test:PORT",
        ],
        "200",
    ),
    (
        "--http1.1",
        &["--request-target", "https://other.test/echo"],
        "400",
    ),
    (
        "--http1.1",
        &[
            "--request-target",
            "https://other.test/echo",
            "--header",
            "Host: other.test",
        ],
        "403",
    ),
    // Nobody.
    ("--http1.1", &["--header", "Host:"], "400"),
];

#[test]
fn a_request_is_for_whom_the_connection_is() {
    let siege = Siege::start(POLICY);
    let port = web().good;
    let ask = |mut curl: Command, version: &str, more: &[&str]| {
        let more = more
            .iter()
            .map(|part| part.replace("PORT", &port.to_string()));
        curl.arg(version).args(more);
        curl.args(["--output", "/dev/null", "--write-out", "%{http_code}"]);
        let url = format!("https://web.test:{port}/echo");
        run::outcome(curl.arg(url)).unwrap().stdout
    };
    for (version, more, expected) in TABLE {
        let status = ask(curl(&siege.daemon, "web.test", port), version, more);
        assert_eq!(status, expected, "{version} {more:?}");
    }
    // A name that the server has no certificate for gets no connection at all.
    let mut curl = siege.daemon.run_as("web", "curl");
    curl.args(["--silent", "--insecure", "--max-time", "20", "--connect-to"]);
    curl.args([
        &format!("::127.0.0.1:{port}"),
        &format!("https://other.test:{port}/echo"),
    ]);
    assert_eq!(run::outcome(&mut curl).unwrap().status.code(), Some(35));
    let journal = siege.daemon.journal().unwrap();
    let fronted = journal.mentioning(
        "operation",
        "the connection is to web.test, the request is for",
    );
    assert_eq!(fronted.count(), 6);
}
