//! Bodies that are more than they seem, under masks.

use std::{
    fs,
    io::{Read as _, Write as _},
};

use interceptor_tests::h2::{self, kind};

use super::{Siege, http2::Client, until_end, write};
use crate::tls::web;

const POLICY: &str = r#"
default: {action: deny, reason: no rule allows it}
rules:
  - id: reads
    match: {protocol: http, class: [read], http: {path: ["/encoded/{encoding}/{name}", "/{name}.json"]}}
    action: allow
    mask: [{key: password, with: redact}, {pattern: email, with: redact}]
  - {id: others, match: {protocol: http, class: [read]}, action: allow}
"#;

/// What one unit of a bomb is when it has gone off; a file has 64 of them.
const UNIT: usize = 16 << 20;
const UNITS: usize = 64;

fn put(name: &str, bytes: &[u8]) {
    fs::write(web().root().join(name), bytes).unwrap();
}

/// Asks for a file, which the web server sends with the encoding that its folder names; how many bytes came,
/// and the first of them.
fn get(siege: &Siege, path: &str) -> (usize, String) {
    let mut stream = siege.agent.connect(web().plain).unwrap();
    let asked = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    write(&stream, asked.as_bytes());
    stream.set_read_timeout(Some(super::IN_TIME)).unwrap();
    let (mut total, mut first, mut part) = (0, Vec::new(), vec![0; 256 << 10]);
    while let Ok(count @ 1..) = stream.read(&mut part) {
        total += count;
        if first.len() < 4 << 10 {
            first.extend_from_slice(&part[..count.min(4 << 10)]);
        }
    }
    (total, String::from_utf8_lossy(&first).into_owned())
}

/// It is refused, or, where some of it has gone on, broken off.
#[track_caller]
fn is_refused(siege: &Siege, path: &str) {
    let (total, first) = get(siege, path);
    let problem = first.contains("urn:interceptor:problem:unmaskable");
    let refused = problem || !first.ends_with("0\r\n\r\n");
    assert!(
        refused && total < 4 << 10,
        "{path}: {total} bytes: {first:.300}"
    );
}

#[test]
fn bodies_that_grow_without_measure() {
    let zeros = vec![0; UNIT];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&zeros).unwrap();
    put("bomb-gzip", &gzip.finish().unwrap().repeat(UNITS));
    put(
        "bomb-zstd",
        &zstd::bulk::compress(&zeros, 3).unwrap().repeat(UNITS),
    );
    let mut br = brotli::CompressorWriter::new(Vec::new(), 64 << 10, 3, 22);
    for _ in 0..8 {
        br.write_all(&zeros).unwrap();
    }
    put("bomb-br", &br.into_inner());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"{\"password\": \"").unwrap();
    gzip.write_all(&vec![b'x'; UNIT]).unwrap();
    put("string-gzip", &gzip.finish().unwrap());
    put("deep.json", &b"[".repeat(4 << 20));
    put(
        "string.json",
        &[b"{\"password\": \"", &vec![b'x'; 4 * UNIT][..]].concat(),
    );
    let siege = Siege::start(POLICY);
    siege.hold(&[
        ("gzip of a GiB", |siege| {
            let (total, first) = get(siege, "/encoded/gzip/bomb-gzip");
            assert!(total > UNIT * UNITS, "{total} bytes: {first:.300}");
        }),
        ("br of 128 MiB in a few bytes", |siege| {
            is_refused(siege, "/encoded/br/bomb-br")
        }),
        ("zstd of a GiB", |siege| {
            let (total, first) = get(siege, "/encoded/zstd/bomb-zstd");
            assert!(
                total > UNIT * UNITS || first.contains("problem:unmaskable"),
                "{total} bytes: {first:.300}"
            );
        }),
        ("a string of JSON without end, in gzip", |siege| {
            is_refused(siege, "/encoded/gzip/string-gzip")
        }),
        ("a string of JSON without end", |siege| {
            is_refused(siege, "/string.json")
        }),
        ("JSON nested without end", |siege| {
            is_refused(siege, "/deep.json")
        }),
        ("many bombs at once, that nobody reads", |siege| {
            let client = Client::new(siege, web().plain_h2);
            siege.expect(&client.stream, "the client took nothing for 3s");
            for stream in (1..60).step_by(2) {
                let block = h2::request("GET", "localhost", "/encoded/gzip/bomb-gzip", &[]);
                assert!(client.send(&h2::headers(stream, &block, true)));
            }
            client.find(|frame| frame.kind == kind::DATA).unwrap();
            until_end(&client.stream);
        }),
    ]);
    for name in [
        "bomb-gzip",
        "bomb-zstd",
        "bomb-br",
        "string-gzip",
        "deep.json",
        "string.json",
    ] {
        let _ = fs::remove_file(web().root().join(name));
    }
}
