//! Bodies that hide what is to be masked: nothing of it comes through, in whatever pieces they come.

use std::{io::Write as _, sync::Arc};

use bytes::BytesMut;

use super::*;
use crate::mask::{Pattern, PatternMask};

const SECRET: &str = "ada@example.com";
const CARD: &str = "4111111111111111";

fn plan(strict: bool) -> Arc<BodyPlan> {
    let key = |name: &str, with| KeyMask {
        name: Glob::new(name),
        with,
    };
    let pattern = |pattern: Pattern| PatternMask {
        rule: "r".into(),
        pattern,
        with: MaskKind::Redact,
    };
    Arc::new(BodyPlan {
        paths: vec![PathMask {
            path: JsonPath::new("$.users[*].phone").unwrap(),
            with: MaskKind::Null,
        }],
        keys: vec![
            key("password*", MaskKind::Redact),
            key("ssn", MaskKind::Last4),
        ],
        patterns: Patterns::new(vec![
            pattern(Pattern::Email),
            pattern(Pattern::Card),
            pattern(Pattern::Pem),
            pattern(Pattern::Jwt),
        ]),
        strict,
    })
}

fn patterns_only() -> Arc<BodyPlan> {
    Arc::new(BodyPlan {
        paths: Vec::new(),
        keys: Vec::new(),
        ..(*plan(false)).clone()
    })
}

fn masked(
    plan: &Arc<BodyPlan>,
    head: &BodyHead<'_>,
    body: &[u8],
    size: usize,
) -> Result<Vec<u8>, Unmaskable> {
    let mut masker = BodyMasker::new(plan, head)?;
    let mut out = BytesMut::new();
    for chunk in body.chunks(size.max(1)) {
        masker.push(chunk, &mut out)?;
    }
    masker.finish(&mut out)?;
    Ok(out.to_vec())
}

fn typed(content_type: &str) -> BodyHead<'_> {
    BodyHead {
        content_type: Some(content_type),
        ..BodyHead::default()
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn zlib(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn deflate(body: &[u8]) -> Vec<u8> {
    let mut encoder =
        flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn brotli(body: &[u8]) -> Vec<u8> {
    let mut encoder = ::brotli::CompressorWriter::new(Vec::new(), 4_096, 5, 20);
    encoder.write_all(body).unwrap();
    encoder.into_inner()
}

#[test]
fn values_are_replaced_and_the_rest_stays_byte_for_byte() {
    let plan = plan(true);
    for (body, expected) in [
        (
            r#"{ "a" : 1.50e0, "password":"x" , "b":[ ] }"#,
            r#"{ "a" : 1.50e0, "password":"[redacted]" , "b":[ ] }"#,
        ),
        (
            r#"{"PassWord_2": {"deep": [1,"]}"]}, "c": true}"#,
            r#"{"PassWord_2": "[redacted]", "c": true}"#,
        ),
        (r#"{"ssn": 123456789}"#, r#"{"ssn": "*****6789"}"#),
        (r#"{"ssn": null}"#, r#"{"ssn": null}"#),
        (
            r#"{"users":[{"phone":"1"},{"phone":2,"n":"\u00e9"}],"phone":"3"}"#,
            r#"{"users":[{"phone":null},{"phone":null,"n":"\u00e9"}],"phone":"3"}"#,
        ),
        (
            r#"{"x":"mail ada@example.com now"}"#,
            r#"{"x":"mail [redacted] now"}"#,
        ),
        (r#"[4111111111111111, -1]"#, r#"["[redacted]", -1]"#),
        (
            "{\"password\":1}\n{\"password\":2}\n",
            "{\"password\":\"[redacted]\"}\n{\"password\":\"[redacted]\"}\n",
        ),
        (
            ")]}',\n{\"password\":1}",
            ")]}',\n{\"password\":\"[redacted]\"}",
        ),
        (
            r#"{"log":"{\"password\": \"x\"}"}"#,
            r#"{"log":"{\"password\": \"[redacted]\"}"}"#,
        ),
        ("{}", "{}"),
        ("[]", "[]"),
        (
            "\u{feff}{\"password\":1}",
            "\u{feff}{\"password\":\"[redacted]\"}",
        ),
    ] {
        for size in 1..=body.len() {
            let out = masked(&plan, &typed("application/json"), body.as_bytes(), size).unwrap();
            assert_eq!(String::from_utf8_lossy(&out), expected, "{size}");
        }
    }
}

#[test]
fn forms_and_events_are_masked_field_by_field() {
    let plan = plan(false);
    for (kind, body, expected) in [
        (
            "application/x-www-form-urlencoded",
            "a=1&password=x&b=ada%40example.com",
            "a=1&password=%5Bredacted%5D&b=%5Bredacted%5D",
        ),
        (
            "text/event-stream",
            "event: a\ndata: {\"password\":\"x\"}\n\ndata: ada@example.com\n\n",
            "event: a\ndata: {\"password\":\"[redacted]\"}\n\ndata: [redacted]\n\n",
        ),
    ] {
        for size in 1..=body.len() {
            let out = masked(&plan, &typed(kind), body.as_bytes(), size).unwrap();
            assert_eq!(String::from_utf8_lossy(&out), expected, "{size}");
        }
    }
}

/// Whether `secret` is in `out`, also in the disguises that readers take off.
fn leaks(out: &[u8], secret: &str) -> bool {
    let text = String::from_utf8_lossy(out);
    let bare: String = text
        .chars()
        .filter(|character| *character != '\0')
        .collect();
    bare.contains(secret)
        || bare.replace("%40", "@").contains(secret)
        || bare.replace("\\u0040", "@").contains(secret)
}

#[test]
fn what_is_hidden_doesn_t_come_through() {
    let json = format!(r#"{{"password":"hunter22","x":"{SECRET}"}}"#);
    let text = format!("first line\ncontact {SECRET} or {CARD}\n");
    let pem = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\nhunter22hunter22hunter22\n-----END PRIVATE KEY-----\n";
    let utf16: Vec<u8> = json.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut utf16_marked = vec![0xFF, 0xFE];
    utf16_marked.extend(&utf16);
    let utf16_be: Vec<u8> = json.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let two_members = [gzip(&json.as_bytes()[..20]), gzip(&json.as_bytes()[20..])].concat();
    let secrets = [SECRET, CARD, "hunter22"];
    let j = "application/json";
    let t = "text/plain";
    type Case<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Vec<u8>);
    let table: Vec<Case<'_>> = vec![
        ("plain JSON", Some(j), None, json.clone().into()),
        ("JSON said to be text", Some(t), None, json.clone().into()),
        (
            "JSON said to be an image",
            Some("image/png"),
            None,
            json.clone().into(),
        ),
        (
            "JSON said to be HTML",
            Some("text/html; charset=utf-8"),
            None,
            json.clone().into(),
        ),
        (
            "JSON said to be binary",
            Some("application/octet-stream"),
            None,
            json.clone().into(),
        ),
        ("JSON of an unknown type", None, None, json.clone().into()),
        (
            "a suffix",
            Some("application/vnd.api+json"),
            None,
            json.clone().into(),
        ),
        (
            "problem JSON",
            Some("application/problem+json"),
            None,
            json.clone().into(),
        ),
        (
            "a mark in front",
            Some(j),
            None,
            [b"\xEF\xBB\xBF", json.as_bytes()].concat(),
        ),
        (
            "white space in front",
            Some(t),
            None,
            format!("\n\n \t{json}").into(),
        ),
        (
            "a prefix against execution",
            Some(j),
            None,
            format!(")]}}'\n{json}").into(),
        ),
        (
            "escaped at sign",
            Some(j),
            None,
            br#"{"x":"ada\u0040example.com"}"#.to_vec(),
        ),
        (
            "all escaped",
            Some(j),
            None,
            br#"{"x":"\u0061\u0064\u0061\u0040\u0065xample.com"}"#.to_vec(),
        ),
        (
            "an escaped key",
            Some(j),
            None,
            br#"{"p\u0061ssword":"hunter22"}"#.to_vec(),
        ),
        (
            "an escaped slash in a key",
            Some(j),
            None,
            br#"{"pass\u0077ord":"hunter22"}"#.to_vec(),
        ),
        (
            "capitals",
            Some(j),
            None,
            br#"{"PASSWORD":"hunter22"}"#.to_vec(),
        ),
        (
            "two of one name",
            Some(j),
            None,
            br#"{"password":"x","password":"hunter22"}"#.to_vec(),
        ),
        (
            "an array",
            Some(j),
            None,
            br#"{"password":["hunter22"]}"#.to_vec(),
        ),
        (
            "an object",
            Some(j),
            None,
            br#"{"password":{"v":"hunter22"}}"#.to_vec(),
        ),
        (
            "deep",
            Some(j),
            None,
            format!("{}{}{}", "[".repeat(100), json, "]".repeat(100)).into(),
        ),
        (
            "in a key",
            Some(j),
            None,
            format!(r#"{{"{SECRET}":1}}"#).into(),
        ),
        (
            "in a string of JSON",
            Some(j),
            None,
            br#"{"log":"{\"password\":\"hunter22\"}"}"#.to_vec(),
        ),
        (
            "lines of JSON",
            Some("application/x-ndjson"),
            None,
            format!("{json}\n{json}\n").into(),
        ),
        (
            "a JSON sequence",
            Some("application/json-seq"),
            None,
            format!("\u{1e}{json}\n\u{1e}{json}\n").into(),
        ),
        (
            "a number",
            Some(j),
            None,
            format!(r#"{{"n":{CARD}}}"#).into(),
        ),
        (
            "a number with a fraction",
            Some(j),
            None,
            format!(r#"{{"n":{CARD}.0}}"#).into(),
        ),
        (
            "cut within a string",
            Some(j),
            None,
            br#"{"password":"hunter22"#.to_vec(),
        ),
        (
            "cut within a value",
            Some(j),
            None,
            br#"{"password":["hunter22","#.to_vec(),
        ),
        (
            "broken JSON",
            Some(j),
            None,
            format!("{{oops {json}").into(),
        ),
        (
            "trailing garbage",
            Some(j),
            None,
            format!("{json} ]]] {json}").into(),
        ),
        ("text", Some(t), None, text.clone().into()),
        ("text of an unknown type", None, None, text.clone().into()),
        (
            "HTML",
            Some("text/html"),
            None,
            format!("<p>{SECRET}</p><td>4111 1111 1111 1111</td>").into(),
        ),
        (
            "CSV",
            Some("text/csv"),
            None,
            format!("a,{SECRET},{CARD}\n").into(),
        ),
        (
            "XML",
            Some("application/xml"),
            None,
            format!("<a b=\"{SECRET}\">{CARD}</a>").into(),
        ),
        ("a private key", Some(t), None, pem.into()),
        (
            "a private key in JSON",
            Some(j),
            None,
            format!(r#"{{"k":{}}}"#, serde_json::Value::String(pem.into())).into(),
        ),
        (
            "a form",
            Some("application/x-www-form-urlencoded"),
            None,
            b"password=hunter22&e=ada%40example.com".to_vec(),
        ),
        (
            "a form with plus signs",
            Some("application/x-www-form-urlencoded"),
            None,
            b"pass%77ord=hunter22&c=4111+1111+1111+1111".to_vec(),
        ),
        (
            "events",
            Some("text/event-stream"),
            None,
            format!("data: {json}\n\n").into(),
        ),
        (
            "events with carriage returns",
            Some("text/event-stream"),
            None,
            format!("data: {json}\r\rdata: {SECRET}\r").into(),
        ),
        ("UTF-16 with a mark", Some(j), None, utf16_marked),
        ("UTF-16 without", Some(j), None, utf16.clone()),
        ("UTF-16, the other way round", None, None, utf16_be),
        (
            "UTF-16 that is said",
            Some("application/json; charset=UTF-16"),
            None,
            utf16,
        ),
        ("gzip", Some(j), Some("gzip"), gzip(json.as_bytes())),
        (
            "gzip by its old name",
            Some(j),
            Some("x-gzip"),
            gzip(json.as_bytes()),
        ),
        ("gzip in two members", Some(j), Some("gzip"), two_members),
        (
            "gzip in capitals",
            Some(j),
            Some("GZIP"),
            gzip(json.as_bytes()),
        ),
        (
            "gzip that is cut",
            Some(j),
            Some("gzip"),
            gzip(json.as_bytes())[..30].to_vec(),
        ),
        (
            "gzip that isn't",
            Some(j),
            Some("gzip"),
            json.clone().into(),
        ),
        ("zlib", Some(j), Some("deflate"), zlib(json.as_bytes())),
        (
            "deflate",
            Some(j),
            Some("deflate"),
            deflate(json.as_bytes()),
        ),
        ("brotli", Some(j), Some("br"), brotli(json.as_bytes())),
        (
            "zstd",
            Some(j),
            Some("zstd"),
            zstd::encode_all(json.as_bytes(), 3).unwrap(),
        ),
        (
            "two encodings",
            Some(j),
            Some("gzip, gzip"),
            gzip(&gzip(json.as_bytes())),
        ),
        (
            "an encoding nobody knows",
            Some(j),
            Some("compress"),
            json.clone().into(),
        ),
        ("gzipped text", Some(t), Some("gzip"), gzip(text.as_bytes())),
        (
            "brotli of text",
            Some(t),
            Some("br"),
            brotli(text.as_bytes()),
        ),
        (
            "multipart",
            Some("multipart/form-data; boundary=b"),
            None,
            format!(
                "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{SECRET}\r\n--b--\r\n"
            )
            .into(),
        ),
        (
            "JSON in a part",
            Some("multipart/mixed; boundary=\"b c\""),
            None,
            format!("{SECRET}\r\n--b c\r\nContent-Type: application/json\r\n\r\n{json}\r\n--b c--\r\n{SECRET}").into(),
        ),
        (
            "line feeds alone",
            Some("multipart/mixed; boundary=b"),
            None,
            format!("--b\nX: y\n\n{json}\n--b\n\n{json}\n--b--").into(),
        ),
        (
            "an answer in a part",
            Some("multipart/mixed; boundary=b"),
            None,
            format!("--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{json}\r\n--b--").into(),
        ),
        (
            "parts in a part",
            Some("multipart/mixed; boundary=b"),
            None,
            format!("--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n{json}\r\n--c--\r\n--b--\r\n").into(),
        ),
        (
            "a field that is secret by its name",
            Some("multipart/form-data; boundary=b"),
            None,
            format!("--b\r\nContent-Disposition: form-data; filename=x; name=password\r\n\r\n{}\r\n--b--\r\n", secrets[0]).into(),
        ),
        (
            "a compressed part",
            Some("multipart/mixed; boundary=b"),
            None,
            [b"--b\r\nContent-Encoding: gzip\r\n\r\n", &*gzip(json.as_bytes()), b"\r\n--b--"].concat(),
        ),
        (
            "a part in base64",
            Some("multipart/mixed; boundary=b"),
            None,
            format!("--b\r\nContent-Transfer-Encoding: base64\r\n\r\n{json}\r\n--b--").into(),
        ),
        (
            "a range in a part",
            Some("multipart/byteranges; boundary=b"),
            None,
            format!("--b\r\nContent-Range: bytes 5-99/100\r\n\r\n{}\r\n--b--", json.get(5..).unwrap()).into(),
        ),
        (
            "a boundary that is the beginning of a line",
            Some("multipart/mixed; boundary=b"),
            None,
            format!("--b\r\n\r\n[\r\n--bx\r\n{json}\r\n--b--").into(),
        ),
        (
            "no boundary",
            Some("multipart/mixed"),
            None,
            format!("--b\r\n\r\n{json}\r\n--b--").into(),
        ),
    ];
    assert!(table.len() >= 45);
    for strict in [true, false] {
        for (what, content_type, content_encoding, body) in &table {
            let head = BodyHead {
                content_type: *content_type,
                content_encoding: *content_encoding,
                partial: false,
            };
            for size in [1, 2, 3, 5, 7, 16, 64, 100_000] {
                let plan = plan(strict);
                let mut out = BytesMut::new();
                // What came out before it was refused may have been sent.
                let _ = BodyMasker::new(&plan, &head).and_then(|mut masker| {
                    for chunk in body.chunks(size) {
                        masker.push(chunk, &mut out)?;
                    }
                    masker.finish(&mut out)
                });
                for secret in secrets {
                    assert!(
                        !leaks(&out, secret),
                        "{what} in pieces of {size}: {}",
                        String::from_utf8_lossy(&out)
                    );
                }
            }
        }
    }
}

#[test]
fn parts_are_masked_each_by_what_it_is() {
    let body = "ignored\r\n--b\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n{\"password\": \"x\"}\r\n--b \r\nContent-Disposition: form-data; name=\"ssn\"\r\n\r\n123456789\r\n--b\r\n\r\n\r\nplain\r\n\r\n--b--\r\nignored";
    let expected = "--b\r\nContent-Type: application/json\r\n\r\n{\"password\": \"[redacted]\"}\r\n--b\r\nContent-Disposition: form-data; name=\"ssn\"\r\n\r\n*****6789\r\n--b\r\n\r\n\r\nplain\r\n\r\n--b--\r\n";
    let head = typed("Multipart/Form-Data; charset=utf-8; boundary=b");
    for size in 1..body.len() {
        let out = masked(&plan(false), &head, body.as_bytes(), size).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{size}");
    }
    let broken = masked(&plan(false), &head, &body.as_bytes()[..60], 7);
    assert!(broken.is_err());
    // Deeper than anybody means it.
    let mut deep = r#"{"password": "x"}"#.to_owned();
    for level in 0..9 {
        deep = format!(
            "--b{level}\r\nContent-Type: multipart/mixed; boundary=b{}\r\n\r\n{deep}\r\n--b{level}--",
            level - 1
        );
    }
    let refused = masked(
        &plan(false),
        &typed("multipart/mixed; boundary=b8"),
        deep.as_bytes(),
        99,
    );
    assert!(refused.is_err());
}

#[test]
fn what_can_not_be_known_is_refused() {
    let partial = BodyHead {
        content_type: Some("application/json"),
        partial: true,
        ..BodyHead::default()
    };
    assert!(BodyMasker::new(&plan(false), &partial).is_err());
    assert!(BodyMasker::new(&patterns_only(), &partial).is_ok());
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
    assert!(masked(&plan(true), &typed("image/png"), png, 4).is_err());
    assert_eq!(
        masked(&plan(false), &typed("image/png"), png, 4).unwrap(),
        png
    );
    let deep = "[".repeat(1_000);
    assert!(
        masked(
            &plan(false),
            &typed("application/json"),
            deep.as_bytes(),
            100
        )
        .is_err()
    );
    let long = format!("\"{}\"", "x".repeat(2 << 20));
    assert!(
        masked(
            &plan(false),
            &typed("application/json"),
            long.as_bytes(),
            65_536
        )
        .is_err()
    );
}

/// What was written before an error may be sent all the same.
#[test]
fn nothing_masked_is_written_before_an_error_either() {
    let plan = plan(false);
    let deep = "[".repeat(300) + &"]".repeat(300);
    let within = format!(r#"{{"password":"s3cret","deep":{deep}}}"#);
    let within = serde_json::json!({ "text": within }).to_string();
    for body in [
        r#"{"password":{"a":"s3cret"!"#,
        r#"{"password":{"a":"s3cret","b":["s3cret" "s3cret"]}}"#,
        r#"{"a":1,"password":"s3cret"!"#,
        r#"{"password":["s3cret",x"s3cret"#,
        &within,
    ] {
        for size in 1..=body.len() {
            let mut masker = BodyMasker::new(&plan, &typed("application/json")).unwrap();
            let mut out = BytesMut::new();
            let ended = body
                .as_bytes()
                .chunks(size)
                .try_for_each(|chunk| masker.push(chunk, &mut out))
                .and_then(|()| masker.finish(&mut out));
            assert!(ended.is_err(), "{body} in pieces of {size}");
            assert!(!leaks(&out, "s3cret"), "{body} in pieces of {size}");
        }
    }
}

#[test]
fn what_was_refused_stays_refused() {
    let wide = [0xFF, 0xFE, b'a', 0];
    for size in 1..=wide.len() {
        let mut masker = BodyMasker::new(&plan(false), &BodyHead::default()).unwrap();
        let mut out = BytesMut::new();
        let mut push = |bytes: &[u8]| masker.push(bytes, &mut out);
        let pieces: Vec<_> = wide.chunks(size).map(&mut push).collect();
        assert!(pieces.last().unwrap().is_err(), "in pieces of {size}");
        assert!(push(b"{\"a\": 1}").is_err(), "in pieces of {size}");
        assert!(out.is_empty());
    }
}

/// Nothing is looked for in this value; what reads it is not to be guessed all the same.
#[test]
fn broken_escapes_are_refused_in_values_that_are_not_masked_too() {
    let by_name = Arc::new(BodyPlan {
        patterns: Patterns::default(),
        ..(*plan(true)).clone()
    });
    let body = br#"{"a":"\u12","password":"s3cret"}"#;
    for size in 1..=body.len() {
        let masked = masked(&by_name, &typed("application/json"), body, size);
        assert!(masked.is_err(), "in pieces of {size}");
    }
}

#[test]
fn memory_stays_bounded() {
    // A bomb: 64 MiB of one letter.
    let bomb = gzip(&vec![b'a'; 64 << 20]);
    let head = BodyHead {
        content_type: Some("text/plain"),
        content_encoding: Some("gzip"),
        partial: false,
    };
    let mut masker = BodyMasker::new(&patterns_only(), &head).unwrap();
    let mut total = 0;
    for chunk in bomb.chunks(masker.bytes_at_once()) {
        let mut out = BytesMut::new();
        masker.push(chunk, &mut out).unwrap();
        total += out.len();
        assert!(out.len() < 512 << 10);
    }
    assert!(total > 60 << 20);
    // A few bytes of which become as much.
    let bomb = brotli(&vec![b'a'; 64 << 20]);
    let head = BodyHead {
        content_encoding: Some("br"),
        ..head
    };
    let mut masker = BodyMasker::new(&patterns_only(), &head).unwrap();
    let mut out = BytesMut::new();
    let mut parts = bomb.chunks(masker.bytes_at_once());
    assert!(parts.any(|part| masker.push(part, &mut out).is_err()));
    assert!(out.len() < 2 << 20);
    // Long text without a break, and text in lines.
    for line in ["x".repeat(100_000), "word ".repeat(20) + "\n"] {
        let mut masker = BodyMasker::new(&patterns_only(), &typed("text/plain")).unwrap();
        for _ in 0..50 {
            let mut out = BytesMut::new();
            masker.push(line.as_bytes(), &mut out).unwrap();
            let Kind::Text(text) = &masker.masker.kind else {
                panic!()
            };
            assert!(text.kept_bytes() < 256 << 10);
        }
    }
}

#[test]
fn paths_are_read_or_refused() {
    for good in ["$.a", "$.a[0].b", "$..a", "$[*]", "$.a[*]..b*"] {
        assert!(JsonPath::new(good).is_ok(), "{good}");
    }
    for bad in ["", "$", "a", "$.", "$a", "$.a[", "$.a[x]", "$..", "$.a."] {
        assert!(JsonPath::new(bad).is_err(), "{bad}");
    }
}
