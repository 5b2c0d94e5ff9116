//! What follows a request for longer than an answer: WebSocket, server-sent events, tunnels.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use interceptor_tests::{
    cluster::free_port,
    paths,
    run::{self, Running},
    web::Web,
};
use serde_json::Value;

use crate::tls::{curl, daemon, records, web};

const POLICY: &str = "
default: {action: deny, reason: no rule allows it}
rules:
  - {id: reads, match: {protocol: http, class: [read]}, action: allow, mask: [{key: token, with: redact}]}
  - {id: conversations, match: {protocol: http, class: [read, write], http: {path: /ws}}, action: allow}
  - {id: proxies, match: {protocol: http, action: CONNECT, class: [transfer]}, action: allow}
  - {id: not-that, match: {protocol: http, http: {path: /echo/private}}, action: deny, reason: that is private}
";

/// A server of our own, of `tests/clients`, with the certificate of `web`; and its port.
fn serve(web: &Web, script: &str) -> (Running, u16) {
    let port = free_port().unwrap();
    let mut server = Command::new(paths::python().unwrap());
    server
        .arg(paths::client(script))
        .args(["serve", &port.to_string()])
        .arg(&web.certificate.certificate)
        .arg(&web.certificate.key);
    let running = run::start(&mut server).unwrap();
    run::wait_for("the server", Duration::from_secs(10), || {
        Ok(TcpStream::connect(("127.0.0.1", port)).ok())
    })
    .unwrap();
    (running, port)
}

#[test]
fn calls_of_grpc_stream_both_ways_and_are_refused_in_their_own_words() {
    let policy = "
default: {action: deny, reason: no rule allows it}
rules:
  - {id: calls, match: {protocol: http, http: {path: /test.Echo/*}, class: [write]}, action: allow}
  - {id: private, match: {protocol: http, http: {path: /test.Echo/Private}}, action: deny, reason: that is private}
";
    let (web, daemon) = (web(), daemon(policy));
    let (_server, port) = serve(web, "calls.py");
    let mut client = daemon.run_as("caller", paths::python().unwrap());
    client
        .arg(paths::client("calls.py"))
        .args(["speak", &port.to_string()])
        .arg(daemon.state().join("ca/ca.pem"));
    let seen = run::output(&mut client).unwrap();
    let (calls, refused) = seen.split_once("StatusCode").unwrap();
    assert_eq!(
        calls,
        "b'olleh' {'x-trailer': 'behind'}\nb'0 egassem'\nb'1 egassem'\nb'2 egassem'\n"
    );
    assert!(
        refused.starts_with(
            ".PERMISSION_DENIED interceptor refused this request by rule `private`: that is private"
        ),
        "{refused}"
    );
    let records = records(&daemon);
    let mut trailers = records
        .iter()
        .filter(|record| record["name"] == "http_trailers");
    assert!(
        trailers.any(|record| record["detail"]["fields"]
            .as_str()
            .unwrap()
            .contains("x-trailer: behind")),
        "what is behind a body is on record"
    );
}

#[test]
fn messages_and_events_are_masked_and_recorded_one_by_one() {
    let (web, daemon) = (web(), daemon(POLICY));
    let (_server, port) = serve(web, "messages.py");
    let mut client = daemon.run_as("talker", paths::python().unwrap());
    client
        .arg(paths::client("messages.py"))
        .args(["speak", &format!("https://localhost:{port}")]);
    let seen = run::output(&mut client).unwrap();
    assert_eq!(
        seen,
        "hello 0 [redacted]\nlarge 200000 [redacted]\nb'\\x00\\x01'\nclosed with 1000\n\
         data: {\"n\": 0, \"token\": \"[redacted]\"}\ndata: {\"n\": 1, \"token\": \"[redacted]\"}\n\
         data: {\"n\": 2, \"token\": \"[redacted]\"}\n"
    );
    let records = records(&daemon);
    let messages: Vec<_> = records
        .iter()
        .filter(|record| record["message"].is_string() && record["ends"] == true)
        .map(|record| {
            let of = record["of"].as_str().unwrap();
            (of, record["message"].as_str().unwrap(), &record["masked"])
        })
        .collect();
    let (none, token) = (&Value::Null, &serde_json::json!(["token"]));
    let (client, upstream) = ("client", "upstream");
    assert_eq!(
        messages,
        [
            (client, "text", none),
            (upstream, "text", token),
            (client, "text", none),
            (upstream, "text", token),
            (client, "binary", none),
            (upstream, "binary", none),
            (client, "close", none),
            (upstream, "close", none),
        ]
    );
    assert!(records.iter().any(|record| record["body"] == "hello"));
    assert!(!format!("{records:?}").contains("hunter2"));
    let har = daemon.ask(&["export", "--format", "har"]).unwrap();
    let har: Value = serde_json::from_str(&har).unwrap();
    let entries = har["log"]["entries"].as_array().unwrap();
    let spoken = entries
        .iter()
        .find(|entry| entry["_resourceType"] == "websocket");
    assert_eq!(spoken.unwrap()["_webSocketMessages"][0]["data"], "hello");
}

/// A proxy that connects to whatever it is asked for on this host. Ends with the test.
pub(crate) fn proxy() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(client.try_clone().unwrap());
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let to = line
                    .split(' ')
                    .nth(1)
                    .unwrap()
                    .replace("localhost", "127.0.0.1");
                while !line.trim().is_empty() {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                }
                let mut server = TcpStream::connect(to).unwrap();
                client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
                let (mut back, mut forth) = (server.try_clone().unwrap(), client);
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut back, &mut forth);
                    let _ = forth.shutdown(std::net::Shutdown::Write);
                });
                let _ = std::io::copy(&mut reader, &mut server);
                let _ = server.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    port
}

#[test]
fn what_goes_through_a_proxy_is_looked_into() {
    let (web, daemon) = (web(), daemon(POLICY));
    let proxy = format!("http://127.0.0.1:{}", proxy());
    for (base, scheme) in [(web.good, "https"), (web.plain, "http")] {
        for version in ["--http1.1", "--http2"] {
            let ask = |path: &str| {
                let mut command = curl(&daemon, "localhost", base);
                let url = format!("{scheme}://localhost:{base}{path}");
                let through = [
                    "--noproxy",
                    "",
                    "--proxytunnel",
                    "--proxy",
                    &proxy,
                    version,
                    &url,
                ];
                run::outcome(command.args(through)).unwrap()
            };
            let seen = ask("/echo/a");
            let expected = format!("GET localhost:{base} /echo/a\n");
            assert_eq!(seen.stdout, expected, "{scheme} {version}: {}", seen.stderr);
            let seen = ask("/echo/private").stdout;
            assert!(seen.contains("not-that"), "{scheme} {version}: {seen}");
        }
    }
    let records = records(&daemon);
    let connects = records
        .iter()
        .filter(|record| record["actions"] == serde_json::json!(["CONNECT"]));
    assert_eq!(connects.count(), 8);
    let inside = records.iter().filter(|record| record["rule"] == "not-that");
    assert_eq!(inside.count(), 4);
    crate::policies::is_decided_again(&daemon);
}
