//! HAR 1.2: the requests of an export, for a browser's developer tools.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    string::FromUtf8Error,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    Form,
    line::{bytes, get},
    message::parts,
};
use crate::rfc3339;

/// Writes exported lines as one HAR document, an entry as soon as its response is whole.
#[derive(Debug, Default)]
pub struct Har {
    /// Requests without the end of their response, by session and number.
    open: BTreeMap<(String, u64), Entry>,
    /// Where each session goes, as far as it runs.
    addresses: BTreeMap<String, String>,
    entries: u64,
}

#[derive(Debug, Default)]
struct Entry {
    started: String,
    /// Head and, where it was there when it was decided, body.
    request: Vec<u8>,
    request_body: Vec<u8>,
    scheme: String,
    host: String,
    response: Vec<u8>,
    response_body: Vec<u8>,
    response_bytes: u64,
    status: u64,
    elapsed_ms: f64,
    comment: String,
    /// Messages of a connection that was upgraded, as developer tools write them.
    messages: Vec<Value>,
    /// Parts of one of the agent's and one of the server's.
    parts: [Vec<u8>; 2],
}

impl Form for Har {
    fn take(&mut self, line: Value, out: &mut dyn Write) -> io::Result<u64> {
        let before = self.entries;
        self.line(&line, out)?;
        Ok(self.entries - before)
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<u64> {
        let before = self.entries;
        let left: Vec<_> = self.open.keys().cloned().collect();
        for key in left {
            self.write(&key, out)?;
        }
        if self.entries == 0 {
            out.write_all(start().as_bytes())?;
        }
        out.write_all(b"\n]}}\n")?;
        Ok(self.entries - before)
    }
}

impl Har {
    fn line(&mut self, line: &Value, out: &mut dyn Write) -> io::Result<()> {
        let text = |name: &str| get(line, name).as_str().unwrap_or_default().to_owned();
        let session = text("session");
        let number = get(line, "operation").as_u64().unwrap_or(0);
        let key = (session.clone(), number);
        match &*text("kind") {
            "session_start" => {
                self.addresses.insert(session, text("destination"));
            }
            "session_end" => {
                let left: Vec<_> = self
                    .open
                    .keys()
                    .filter(|(of, _)| *of == session)
                    .cloned()
                    .collect();
                for key in left {
                    self.write(&key, out)?;
                }
                self.addresses.remove(&session);
            }
            "operation" if get(line, "protocol") == "http" => {
                let attribute = |name: &str| {
                    get(get(line, "attributes"), name)
                        .as_str()
                        .unwrap_or_default()
                        .to_owned()
                };
                self.open.insert(
                    key,
                    Entry {
                        started: text("time"),
                        request: bytes(get(line, "content")),
                        scheme: attribute("http.scheme"),
                        host: attribute("http.host"),
                        ..Entry::default()
                    },
                );
            }
            "decision" => {
                if let Some(entry) = self.open.get_mut(&key) {
                    let rule = text("rule");
                    entry.comment = format!("{} by rule {rule}", text("verdict"));
                }
            }
            "content" if !text("message").is_empty() => {
                if let Some(entry) = self.open.get_mut(&key) {
                    entry.message(line);
                }
            }
            "content" if text("of") == "client" => {
                if let Some(entry) = self.open.get_mut(&key) {
                    entry.request_body.extend(bytes(get(line, "body")));
                }
            }
            "response" => {
                let Some(entry) = self.open.get_mut(&key) else {
                    return Ok(());
                };
                entry.response.extend(bytes(get(line, "head")));
                entry.response_body.extend(bytes(get(line, "body")));
                entry.response_bytes += get(line, "bytes").as_u64().unwrap_or(0);
                entry.elapsed_ms = get(line, "elapsed_ns").as_f64().unwrap_or(0.0) / 1e6;
                let status = text("status");
                if let Ok(tag) = text("tag").parse() {
                    entry.status = tag;
                }
                if status == "refused" {
                    let problem: Value =
                        serde_json::from_slice(&entry.response_body).unwrap_or_default();
                    entry.status = get(&problem, "status").as_u64().unwrap_or(403);
                    entry.comment.push_str("; answered by interceptor");
                }
                if status != "continues" {
                    return self.write(&key, out);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn write(&mut self, key: &(String, u64), out: &mut dyn Write) -> io::Result<()> {
        let Some(entry) = self.open.remove(key) else {
            return Ok(());
        };
        let address = self.addresses.get(&key.0).map_or("", |address| address);
        let before = if self.entries == 0 {
            start()
        } else {
            ",".to_owned()
        };
        self.entries += 1;
        write!(out, "{before}\n{}", entry.json(&key.0, address))
    }
}

/// The beginning of the document.
fn start() -> String {
    let creator = json!({"name": "interceptor", "version": env!("CARGO_PKG_VERSION")});
    format!("{{\"log\": {{\"version\": \"1.2\", \"creator\": {creator}, \"entries\": [")
}

impl Entry {
    /// Takes (a part of) a message.
    fn message(&mut self, line: &Value) {
        let is_sent = get(line, "of") == "client";
        let [sent, received] = &mut self.parts;
        let part = if is_sent { sent } else { received };
        part.extend(bytes(get(line, "body")));
        if get(line, "ends") != true {
            return;
        }
        let content = std::mem::take(part);
        let (opcode, data) = match (get(line, "message").as_str(), String::from_utf8(content)) {
            (Some("text"), Ok(text)) => (1, text),
            (Some("close"), content) => (8, encoded(content)),
            (_, content) => (2, encoded(content)),
        };
        let at = get(line, "time")
            .as_str()
            .and_then(|time| rfc3339::parse(time).ok());
        self.messages.push(json!({
            "type": if is_sent { "send" } else { "receive" },
            "time": at.map_or(0.0, |at| at.0 as f64 / 1e9),
            "opcode": opcode,
            "data": data,
        }));
    }

    fn json(&self, session: &str, address: &str) -> Value {
        let (first, headers, body) = parts(&self.request);
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or("GET"), words.next().unwrap_or("/"));
        let version = words.next().unwrap_or("HTTP/1.1");
        let authority = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("host") || name == ":authority")
            .map_or(&*self.host, |(_, value)| value);
        let url = if target.starts_with('/') || target == "*" {
            format!("{}://{authority}{target}", self.scheme)
        } else {
            target.to_owned()
        };
        let query: Vec<Value> = target
            .split_once('?')
            .map(|(_, query)| query.split('&'))
            .into_iter()
            .flatten()
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                json!({"name": name, "value": value})
            })
            .collect();
        let sent = [body, &self.request_body].concat();
        let mut request = json!({
            "method": method,
            "url": url,
            "httpVersion": version,
            "cookies": [],
            "headers": named(&headers),
            "queryString": query,
            "headersSize": -1,
            "bodySize": sent.len(),
        });
        if !sent.is_empty() {
            let data = json!({
                "mimeType": media(&headers),
                "params": [],
                "text": String::from_utf8_lossy(&sent),
            });
            set(&mut request, "postData", data);
        }
        let (first, headers, _) = parts(&self.response);
        let mut words = first.splitn(3, ' ');
        let version = words
            .next()
            .filter(|version| !version.is_empty())
            .unwrap_or("HTTP/1.1");
        let reason = words.nth(1).unwrap_or_default();
        let mut content = json!({"size": self.response_bytes, "mimeType": media(&headers)});
        match std::str::from_utf8(&self.response_body) {
            Ok(text) => set(&mut content, "text", text.into()),
            Err(_) => {
                let encoded = STANDARD.encode(&self.response_body);
                set(&mut content, "text", encoded.into());
                set(&mut content, "encoding", "base64".into());
            }
        }
        let location = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("location"));
        let mut entry = json!({
            "startedDateTime": self.started,
            "time": self.elapsed_ms,
            "request": request,
            "response": {
                "status": self.status,
                "statusText": reason,
                "httpVersion": version,
                "cookies": [],
                "headers": named(&headers),
                "content": content,
                "redirectURL": location.map_or("", |(_, value)| value),
                "headersSize": -1,
                "bodySize": self.response_bytes,
            },
            "cache": {},
            "timings": {"send": 0, "wait": self.elapsed_ms, "receive": 0},
            "connection": session,
            "comment": self.comment,
        });
        if !self.messages.is_empty() {
            set(&mut entry, "_resourceType", "websocket".into());
            set(
                &mut entry,
                "_webSocketMessages",
                self.messages.clone().into(),
            );
        }
        if let Ok(address) = address.parse::<std::net::SocketAddr>() {
            set(
                &mut entry,
                "serverIPAddress",
                address.ip().to_string().into(),
            );
        }
        entry
    }
}

fn encoded(content: Result<String, FromUtf8Error>) -> String {
    STANDARD.encode(content.map_or_else(FromUtf8Error::into_bytes, String::into_bytes))
}

fn set(value: &mut Value, name: &str, member: Value) {
    if let Value::Object(members) = value {
        members.insert(name.to_owned(), member);
    }
}

fn named(headers: &[(String, String)]) -> Vec<Value> {
    let header = |(name, value): &(String, String)| json!({"name": name, "value": value});
    headers.iter().map(header).collect()
}

fn media(headers: &[(String, String)]) -> &str {
    headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))
        .map_or("application/octet-stream", |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::export::written;

    fn document(lines: &[Value]) -> Value {
        let (entries, out) = written(&mut Har::default(), lines);
        let har: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            har["log"]["entries"].as_array().unwrap().len() as u64,
            entries
        );
        har
    }

    #[test]
    fn entries_have_all_that_the_format_asks_for() {
        let har = document(&[
            json!({"kind": "session_start", "session": "s", "destination": "192.0.2.1:443"}),
            json!({"kind": "operation", "session": "s", "operation": 1, "protocol": "http", "time": "2026-11-21T00:00:00Z",
                   "attributes": {"http.scheme": "https", "http.host": "x.example"},
                   "content": "POST /a?b=c&d HTTP/1.1\r\nHost: x.example:8443\r\nContent-Type: text/plain\r\n\r\nhello"}),
            json!({"kind": "decision", "session": "s", "operation": 1, "verdict": "allow", "rule": "r"}),
            json!({"kind": "response", "session": "s", "operation": 1, "status": "continues", "bytes": 2, "elapsed_ns": 1,
                   "head": "HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Type: application/json\r\n\r\n", "body": "{}"}),
            json!({"kind": "response", "session": "s", "operation": 1, "status": "complete", "tag": "302", "bytes": 1,
                   "elapsed_ns": 2_000_000, "body": {"base64": "/w=="}}),
            json!({"kind": "operation", "session": "s", "operation": 2, "protocol": "http", "time": "2026-11-21T00:00:01Z",
                   "attributes": {"http.scheme": "https", "http.host": "x.example"},
                   "content": "GET / HTTP/2\r\n:authority: x.example\r\n\r\n"}),
            json!({"kind": "session_end", "session": "s"}),
        ]);
        assert_eq!(har["log"]["version"], "1.2");
        let entries = har["log"]["entries"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        for entry in entries {
            for name in [
                "startedDateTime",
                "time",
                "request",
                "response",
                "cache",
                "timings",
            ] {
                assert!(!entry[name].is_null(), "{name}");
            }
            for name in [
                "method",
                "url",
                "httpVersion",
                "cookies",
                "headers",
                "queryString",
                "headersSize",
                "bodySize",
            ] {
                assert!(!entry["request"][name].is_null(), "{name}");
            }
            for name in [
                "status",
                "statusText",
                "httpVersion",
                "cookies",
                "headers",
                "content",
                "redirectURL",
                "headersSize",
                "bodySize",
            ] {
                assert!(!entry["response"][name].is_null(), "{name}");
            }
            assert!(entry["response"]["content"]["mimeType"].is_string());
        }
        let first = &entries[0];
        assert_eq!(first["request"]["url"], "https://x.example:8443/a?b=c&d");
        assert_eq!(first["request"]["postData"]["text"], "hello");
        assert_eq!(first["request"]["queryString"][0]["value"], "c");
        assert_eq!(first["response"]["status"], 302);
        assert_eq!(first["response"]["redirectURL"], "/b");
        assert_eq!(first["response"]["content"]["encoding"], "base64");
        assert_eq!(first["time"], 2.0);
        assert_eq!(first["serverIPAddress"], "192.0.2.1");
        assert_eq!(entries[1]["request"]["url"], "https://x.example/");
    }

    #[test]
    fn messages_are_those_of_their_request() {
        let message = |of: &str, kind: &str, body: Value, ends: bool| {
            json!({"kind": "content", "session": "s", "operation": 1, "time": "2026-11-21T00:00:01.5Z",
                   "of": of, "message": kind, "body": body, "ends": ends})
        };
        let har = document(&[
            json!({"kind": "operation", "session": "s", "operation": 1, "protocol": "http", "time": "2026-11-21T00:00:00Z",
                   "attributes": {"http.scheme": "https", "http.host": "x.example"},
                   "content": "GET /ws HTTP/1.1\r\nHost: x.example\r\n\r\n"}),
            message("client", "text", json!("he"), false),
            message("upstream", "binary", json!({"base64": "AAE="}), true),
            message("client", "text", json!("llo"), true),
            json!({"kind": "response", "session": "s", "operation": 1, "status": "complete", "tag": "101", "bytes": 0,
                   "elapsed_ns": 1, "head": "HTTP/1.1 101 Switching Protocols\r\n\r\n"}),
        ]);
        let entry = &har["log"]["entries"][0];
        assert_eq!(entry["response"]["status"], 101);
        assert_eq!(
            entry["_webSocketMessages"],
            json!([
                {"type": "receive", "time": 1_795_219_201.5, "opcode": 2, "data": "AAE="},
                {"type": "send", "time": 1_795_219_201.5, "opcode": 1, "data": "hello"},
            ])
        );
    }

    #[test]
    fn nothing_is_a_document_too() {
        assert_eq!(document(&[])["log"]["entries"], json!([]));
    }
}
