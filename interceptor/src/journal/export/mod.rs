//! What is on record, for other programs and for people who have none: a file a format.
//!
//! [`jsonl`] has the journal's own schema, and is what the daemon hands out. Every other format is made of its lines by
//! the command that asks for it, never in the daemon. They read a line at a time and keep no more than what is open:
//! operations without the end of their answer, sessions without their own. The same lines give the same bytes.

mod asciicast;
mod csv;
mod deed;
mod har;
mod html;
mod jsonl;
mod line;
mod message;
mod ocsf;
mod pcapng;
mod soc2;

use std::io::{self, Write};

use serde_json::Value;

pub use self::{
    asciicast::Asciicast,
    csv::Csv,
    har::Har,
    html::Html,
    jsonl::{Extent, Filter, Lines, Selection, export_jsonl, parameter, to_json},
    ocsf::Ocsf,
    pcapng::Pcapng,
    soc2::Soc2,
};

pub(crate) use self::line::plain;

/// A format that is made of exported lines.
pub trait Form {
    /// Takes the next line; how many more of what is counted are written.
    ///
    /// # Errors
    /// The writer's.
    fn take(&mut self, line: Value, out: &mut dyn Write) -> io::Result<u64>;

    /// Writes what is still open, and the end of the document; how many more of what is counted that is.
    ///
    /// # Errors
    /// The writer's.
    fn finish(&mut self, out: &mut dyn Write) -> io::Result<u64>;
}

#[cfg(test)]
fn written(form: &mut dyn Form, lines: &[Value]) -> (u64, Vec<u8>) {
    let mut out = Vec::new();
    let mut count = 0;
    for line in lines {
        count += form.take(line.clone(), &mut out).unwrap();
    }
    count += form.finish(&mut out).unwrap();
    (count, out)
}

/// A session of each protocol, with an approval, interleaved as sessions are.
#[cfg(test)]
fn sample() -> Vec<Value> {
    use serde_json::json;
    let time = |second: u64| format!("2026-11-20T22:07:{second:02}.123456789Z");
    let process = json!({"pid": 7, "uid": 1000, "executable": "/usr/bin/psql", "arguments": ["psql", "-c"], "cgroup": "/agents/x"});
    let start = |session: &str, destination: &str, client: Value, transport: &str| {
        json!({"kind": "session_start", "seq": 1, "session": session, "agent": "demo", "time": time(1), "destination": destination,
            "client": client, "transport": transport, "labels": {"team": "x"}, "process": process})
    };
    let wire = |data: &[u8]| {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        json!({"shape": null, "data": STANDARD.encode(data)})
    };
    let answer = [
        &[0, 9, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0][..],
        b"\x03www\x07example\0\0\x01\0\x01",
        b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\xc0\0\x02\x07",
    ]
    .concat();
    vec![
        start("pg", "192.0.2.5:5432", json!("192.0.2.9:40000"), "tcp"),
        json!({"kind": "event", "session": "pg", "agent": "demo", "time": time(1), "name": "postgres_startup", "detail": {"user": "app", "database": "shop"}}),
        json!({"kind": "operation", "seq": 3, "session": "pg", "agent": "demo", "time": time(2), "operation": 1, "protocol": "postgres", "actions": ["DELETE"],
            "effects": ["read", "write"], "resources": [{"kind": "table", "name": "shop.orders", "touch": "write"}],
            "content": "DELETE FROM shop.orders WHERE id = $1 -- </pre><script>alert(1)</script>\u{202e}", "parameters": ["7"], "digest": "sha256:00"}),
        json!({"kind": "decision", "seq": 4, "session": "pg", "agent": "demo", "time": time(2), "operation": 1, "verdict": "hold", "enforced": true, "rule": "r", "reason": "look", "policy": "sha256:11", "masked_by": [], "observed": []}),
        start(
            "web",
            "[2001:db8::1]:443",
            json!("[2001:db8::2]:40001"),
            "tcp",
        ),
        json!({"kind": "approval", "seq": 6, "session": "pg", "agent": "demo", "time": time(3), "operation": 1, "approval": "00000000000000aa", "step": "requested", "until": time(59), "digest": "sha256:00"}),
        json!({"kind": "operation", "seq": 7, "session": "web", "agent": "demo", "time": time(3), "operation": 1, "protocol": "http", "actions": ["GET"], "effects": ["read"],
            "resources": [], "attributes": {"http.scheme": "https", "http.host": "x.example"}, "content": "GET /a?b=c HTTP/1.1\r\nHost: x.example\r\nUser-Agent: u\r\n\r\n"}),
        json!({"kind": "decision", "seq": 8, "session": "web", "agent": "demo", "time": time(3), "operation": 1, "verdict": "allow", "enforced": true, "rule": "default", "reason": "", "policy": "sha256:11"}),
        json!({"kind": "approval", "seq": 9, "session": "pg", "agent": "demo", "time": time(4), "operation": 1, "approval": "00000000000000aa", "step": "voted", "choice": "approve", "approve": true, "by": "alice", "uid": 0, "reason": "fine", "digest": "sha256:00"}),
        json!({"kind": "approval", "seq": 10, "session": "pg", "agent": "demo", "time": time(4), "operation": 1, "approval": "00000000000000aa", "step": "approved", "window": null, "digest": "sha256:00"}),
        json!({"kind": "response", "seq": 11, "session": "web", "agent": "demo", "time": time(5), "operation": 1, "status": "continues", "rows": 0, "bytes": 2, "elapsed_ns": 1,
            "head": "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n", "body": "he"}),
        json!({"kind": "response", "seq": 12, "session": "pg", "agent": "demo", "time": time(5), "operation": 1, "status": "complete", "tag": "DELETE 1", "rows": 0, "bytes": 15, "elapsed_ns": 1_500_000,
            "masked": ["email"], "wire": wire(b"C\0\0\0\x0dDELETE 1\0")}),
        json!({"kind": "response", "seq": 13, "session": "web", "agent": "demo", "time": time(5), "operation": 1, "status": "complete", "tag": "200", "rows": 0, "bytes": 3, "elapsed_ns": 2_000_000, "body": "llo"}),
        start("dns", "192.0.2.53:53", json!("192.0.2.9:40002"), "udp"),
        json!({"kind": "operation", "seq": 15, "session": "dns", "agent": "demo", "time": time(6), "operation": 1, "protocol": "dns", "actions": ["QUERY"], "effects": ["read"], "resources": [],
            "attributes": {"dns.name": "www.example", "dns.type": "A", "dns.class": "IN"}, "content": "www.example. A"}),
        json!({"kind": "decision", "seq": 16, "session": "dns", "agent": "demo", "time": time(6), "operation": 1, "verdict": "deny", "enforced": false, "rule": "r", "reason": "", "policy": "sha256:11"}),
        json!({"kind": "response", "seq": 17, "session": "dns", "agent": "demo", "time": time(6), "operation": 1, "status": "complete", "tag": "NOERROR", "rows": 1, "bytes": 45, "elapsed_ns": 9,
            "answers": ["www.example. 300 A 192.0.2.7"], "wire": wire(&answer)}),
        start("unix", "unix:/run/docker.sock", Value::Null, "unix"),
        json!({"kind": "operation", "seq": 19, "session": "unix", "agent": "demo", "time": time(7), "operation": 1, "protocol": "opaque", "actions": ["BYTES"], "effects": ["unclassified"], "resources": [], "content": {"base64": "/w=="}}),
        json!({"kind": "session_end", "seq": 20, "session": "unix", "agent": "demo", "time": time(8), "reason": "the client closed", "operations": 1, "bytes_from_client": 1, "bytes_from_upstream": 0}),
        json!({"kind": "session_end", "seq": 21, "session": "pg", "agent": "demo", "time": time(8), "reason": "the client closed", "operations": 1, "bytes_from_client": 90, "bytes_from_upstream": 15}),
        json!({"kind": "event", "seq": 22, "session": null, "agent": "", "time": time(9), "name": "daemon_stopped", "detail": {"why": "asked"}}),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn forms() -> [Box<dyn Form>; 7] {
        let show = |line: &Value| format!("{line}\n");
        [
            Box::new(Csv::default()),
            Box::new(Ocsf::default()),
            Box::new(Har::default()),
            Box::new(Html::new("t".to_owned())),
            Box::new(Pcapng::default()),
            Box::new(Soc2::new("t".to_owned())),
            Box::new(Asciicast::new(std::time::Duration::ZERO, show)),
        ]
    }

    #[test]
    fn the_same_lines_give_the_same_bytes() {
        let lines = sample();
        for (mut first, mut second) in forms().into_iter().zip(forms()) {
            let (count, out) = written(&mut *first, &lines);
            assert!(count > 0);
            assert_eq!(written(&mut *second, &lines), (count, out));
        }
    }

    #[test]
    fn whatever_a_line_is_nothing_breaks() {
        let odd = [
            json!(null),
            json!(7),
            json!("x"),
            json!([]),
            json!({}),
            json!({"a": 1}),
            json!("\u{1b}<\"\n="),
        ];
        let members = [
            "operation",
            "content",
            "parameters",
            "resources",
            "actions",
            "options",
            "attributes",
            "destination",
            "client",
            "transport",
            "process",
            "labels",
            "head",
            "body",
            "data",
            "columns",
            "answers",
            "wire",
            "status",
            "tag",
            "code",
            "message",
            "rows",
            "bytes",
            "elapsed_ns",
            "masked",
            "time",
            "session",
            "agent",
            "name",
            "detail",
            "verdict",
            "step",
            "by",
            "of",
            "ends",
            "protocol",
        ];
        for member in members {
            for value in &odd {
                let mut lines = sample();
                for line in &mut lines {
                    line[member] = value.clone();
                }
                for mut form in forms() {
                    written(&mut *form, &lines);
                }
            }
        }
    }
}
