//! A request as it was decided, from what is on record of it: its head and, where that was there, its body.
//!
//! What the record leaves open isn't guessed: there is a way for each of what it may have been.

use bytes::Bytes;

use super::{
    describe::{Target, is_secret},
    framing::Framing,
    head::RequestHead,
};
use crate::{
    limits,
    operation::{
        Operation, attribute,
        http::{Body, Fields, HttpRequest},
        recalled::Recalled,
    },
};

/// What stands in the place of a secret.
const REDACTED: &[u8] = b"[redacted]";

const OPEN_BODY: &str = "whether it had a body isn't on record";
const OPEN_END: &str = "where its body ended and its trailer fields began isn't on record";

/// The request that `recorded` is on record of.
///
/// # Errors
/// Why that can't be told.
pub fn recall(recorded: &Operation) -> Result<Recalled, &'static str> {
    const NO_HEAD: &str = "its head isn't on record as one of a request";
    if recorded.http.is_some() {
        return Ok(Recalled::whole(recorded.clone()));
    }
    let content = &recorded.content;
    let end = memchr::memmem::find(content, b"\r\n\r\n").ok_or(NO_HEAD)? + 4;
    let (head, behind) = (content.slice(..end), content.slice(end..));
    let version = recorded.description.attributes.get("http.version");
    let head = match version.map(|version| &**version) {
        Some("2") => Head::of_http2(&head).ok_or(NO_HEAD)?,
        _ => Head::of_http1(&head).ok_or(NO_HEAD)?,
    };
    let body = recorded.description.attributes.get(attribute::HTTP_BODY);
    let (bodies, open) = bodies(&head, behind, body.map(|body| &**body))?;
    let operation = |body: Body| {
        let content = match &body {
            Body::Whole(_) => content.clone(),
            Body::None | Body::Coming(_) => content.slice(..end),
        };
        Operation {
            content,
            http: Some(std::sync::Arc::new(HttpRequest {
                fields: head.fields.clone(),
                query: head.query.clone(),
                body,
            })),
            ..recorded.clone()
        }
    };
    let ways = bodies.into_iter();
    let hidden = head
        .fields
        .iter()
        .filter(|(name, value)| is_secret(name) && value.ends_with(REDACTED));
    Ok(Recalled {
        hidden: hidden
            .map(|(name, _)| String::from_utf8_lossy(name).to_ascii_lowercase().into())
            .collect(),
        ways: ways
            .map(|stages| stages.into_iter().map(&operation).collect())
            .collect(),
        open,
    })
}

/// What a head says of the body behind it.
enum Said {
    Nothing,
    Length {
        bytes: u64,
        is_awaited: bool,
    },
    Chunks,
    /// Frames of HTTP/2, if there are any.
    Frames,
}

struct Head {
    fields: Fields,
    query: Option<Bytes>,
    said: Said,
}

impl Head {
    fn of_http1(raw: &Bytes) -> Option<Self> {
        let head = RequestHead::read(raw).ok()?;
        let expects = head.minor == 1 && head.fields.get("expect").is_some();
        let said = match Framing::of_request(&head.fields, head.minor).ok()? {
            Framing::None => Said::Nothing,
            Framing::Length(bytes) => Said::Length {
                bytes,
                // Whoever waits for a 100 waits for a decision.
                is_awaited: bytes <= limits::HTTP_BODY_AWAITED_MAX && !expects,
            },
            Framing::Chunked | Framing::UntilClose => Said::Chunks,
        };
        let (method, target) = (raw.get(head.method.clone())?, raw.get(head.target.clone())?);
        Some(Self {
            query: query(method, target)?,
            fields: head.fields,
            said,
        })
    }

    /// As this program writes them down: `GET /path HTTP/2`, `:authority`, fields.
    fn of_http2(raw: &Bytes) -> Option<Self> {
        let mut lines = Lines { raw, at: 0 };
        let first = lines.next()?;
        let mut words = raw.get(first)?.split(|byte| *byte == b' ');
        let (method, target) = (words.next()?, words.next()?);
        let mut places = Vec::new();
        for line in lines {
            let text = raw.get(line.clone())?;
            if text.is_empty() || text.starts_with(b":authority: ") {
                continue;
            }
            let colon = memchr::memmem::find(text, b": ")?;
            places.push((
                line.start..line.start + colon,
                line.start + colon + 2..line.end,
            ));
        }
        let fields = Fields::new(raw.clone(), places);
        let length = fields.get("content-length");
        let length = length.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        Some(Self {
            query: query(method, target)?,
            said: match length {
                Some(0) => Said::Nothing,
                Some(bytes) => Said::Length {
                    bytes,
                    is_awaited: bytes <= limits::HTTP_BODY_AWAITED_MAX,
                },
                None => Said::Frames,
            },
            fields,
        })
    }
}

#[expect(
    clippy::option_option,
    reason = "no query is something else than no target that can be read"
)]
fn query(method: &[u8], target: &[u8]) -> Option<Option<Bytes>> {
    let method = std::str::from_utf8(method).ok()?;
    let target = Target::read(method, target).ok()?;
    Some(target.query.map(Bytes::copy_from_slice))
}

/// Where the lines of a head are, without their ends.
struct Lines<'a> {
    raw: &'a [u8],
    at: usize,
}

impl Iterator for Lines<'_> {
    type Item = std::ops::Range<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.raw.get(self.at..)?;
        let length = memchr::memmem::find(rest, b"\r\n")?;
        let line = self.at..self.at + length;
        self.at = line.end + 2;
        Some(line)
    }
}

/// The ways in which a body may have come, each as what was there of it one time after another.
type Bodies = (Vec<Vec<Body>>, Option<&'static str>);

/// What may have been there of the body, of which `behind` is on record; `body` is what is known of one of HTTP/2.
fn bodies(head: &Head, behind: Bytes, body: Option<&str>) -> Result<Bodies, &'static str> {
    let certain = |stages: Vec<Body>| Ok((vec![stages], None));
    match head.said {
        Said::Nothing => certain(vec![Body::None]),
        Said::Length { bytes, .. } if behind.is_empty() => certain(vec![Body::Coming(Some(bytes))]),
        Said::Length { bytes, is_awaited } => {
            let whole = usize::try_from(bytes)
                .ok()
                .and_then(|bytes| behind.get(..bytes));
            // HTTP/2 has trailer fields behind it.
            let whole = whole.ok_or("not all of its body is on record")?;
            let whole = Body::Whole(behind.slice_ref(whole));
            match is_awaited {
                true => certain(vec![whole]),
                false => certain(vec![Body::Coming(Some(bytes)), whole]),
            }
        }
        Said::Chunks if behind.is_empty() => certain(vec![Body::Coming(None)]),
        Said::Frames if body == Some("none") => certain(vec![Body::None]),
        Said::Frames if behind.is_empty() && body.is_some() => certain(vec![Body::Coming(None)]),
        // Of a time when that wasn't put on record.
        Said::Frames if behind.is_empty() => Ok((
            vec![vec![Body::None], vec![Body::Coming(None)]],
            Some(OPEN_BODY),
        )),
        Said::Chunks | Said::Frames => {
            let ends = ends(&behind);
            let open = (ends.len() > 1).then_some(OPEN_END);
            let ways = ends.into_iter().map(|end| {
                let whole = Body::Whole(behind.slice(..end));
                vec![Body::Coming(None), whole]
            });
            Ok((ways.collect(), open))
        }
    }
}

/// Where a body may end behind which trailer fields may stand: at the end, behind the one value of JSON that it begins
/// with, or before the last lines that look like fields.
fn ends(behind: &[u8]) -> Vec<usize> {
    let mut ends = vec![behind.len()];
    let mut json =
        serde_json::Deserializer::from_slice(behind).into_iter::<serde::de::IgnoredAny>();
    if let Some(Ok(_)) = json.next()
        && !behind
            .get(json.byte_offset()..)
            .unwrap_or_default()
            .trim_ascii()
            .is_empty()
    {
        ends.push(json.byte_offset());
    }
    let mut end = behind.len();
    while let Some(line) = behind
        .get(..end)
        .and_then(|rest| rest.strip_suffix(b"\r\n"))
    {
        let start = memchr::memmem::rfind(line, b"\r\n").map_or(0, |at| at + 2);
        let is_field = |line: &[u8]| memchr::memchr(b':', line).is_some_and(|colon| colon > 0);
        if !line.get(start..).is_some_and(is_field) {
            break;
        }
        end = start;
        ends.push(end);
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::operation::Protocol;

    fn recorded(version: &str, content: &str) -> Operation {
        let mut operation =
            crate::protocol::http::describe::example("GET https://a.example/").unwrap();
        let description = Arc::make_mut(&mut operation.description);
        description
            .attributes
            .insert("http.version".into(), version.into());
        Operation {
            content: content.to_owned().into(),
            http: None,
            ..operation
        }
    }

    fn recalled(version: &str, content: &str) -> Recalled {
        let recalled = recall(&recorded(version, content)).unwrap();
        assert_eq!(recalled.ways.len() > 1, recalled.open.is_some());
        recalled
    }

    /// What was there of the body, one way a line.
    fn told(version: &str, content: &str) -> Vec<String> {
        let ways = recalled(version, content).ways;
        let told = ways.iter().map(|stages| {
            let stages =
                stages
                    .iter()
                    .map(|operation| match &operation.http.as_ref().unwrap().body {
                        Body::None => "none".to_owned(),
                        Body::Coming(None) => "?".to_owned(),
                        Body::Coming(Some(bytes)) => format!("{bytes}?"),
                        Body::Whole(body) => format!("={}", String::from_utf8_lossy(body)),
                    });
            stages.collect::<Vec<_>>().join(" ")
        });
        told.collect()
    }

    #[test]
    fn bodies_are_what_the_head_says_of_them() {
        let large = "x".repeat(70_000);
        let of_large =
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n{large}");
        let gathered = format!("70000? ={large}");
        for (version, content, expected) in [
            ("1.1", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", &["none"][..]),
            (
                "1.1",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                &["none"],
            ),
            (
                "1.1",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
                &["=abc"],
            ),
            (
                "1.1",
                "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
                &["3? =abc"],
            ),
            (
                "1.1",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n",
                &["70000?"],
            ),
            ("1.1", &of_large, &[&gathered]),
            (
                "1.1",
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                &["?"],
            ),
            (
                "1.1",
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nabc",
                &["? =abc"],
            ),
            (
                "1.1",
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{\"a\": 1}x: y\r\n",
                // The last line may be a body's as well as a trailer field.
                &["? =", "? ={\"a\": 1}", "? ={\"a\": 1}x: y\r\n"],
            ),
            (
                "2",
                "GET / HTTP/2\r\n:authority: a\r\naccept: */*\r\n\r\n",
                &["none", "?"],
            ),
            (
                "2",
                "POST / HTTP/2\r\n:authority: a\r\ncontent-length: 3\r\n\r\nabcx: y\r\n",
                &["=abc"],
            ),
            (
                "2",
                "POST / HTTP/2\r\n:authority: a\r\ncontent-length: 0\r\n\r\n",
                &["none"],
            ),
            (
                "2",
                "POST / HTTP/2\r\n:authority: a\r\ncontent-length: 70000\r\n\r\n",
                &["70000?"],
            ),
            (
                "2",
                "POST / HTTP/2\r\n:authority: a\r\n\r\nabc",
                &["? =abc"],
            ),
        ] {
            assert_eq!(told(version, content), expected, "{content}");
        }
        for content in ["", "GET / HTTP/1.1", "nothing\r\n\r\n"] {
            assert!(recall(&recorded("1.1", content)).is_err(), "{content}");
        }
        let half = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc";
        assert!(recall(&recorded("1.1", half)).is_err());
    }

    #[test]
    fn fields_queries_and_what_is_hidden_are_there() {
        for (version, content) in [
            (
                "1.1",
                "GET /x?a=b%20c HTTP/1.1\r\nHost: a\r\nX-Y:  z \r\nAuthorization: Bearer [redacted]\r\n\r\n",
            ),
            (
                "2",
                "GET /x?a=b%20c HTTP/2\r\n:authority: a\r\nx-y: z\r\nauthorization: Bearer [redacted]\r\n\r\n",
            ),
        ] {
            let recalled = recalled(version, content);
            let request = recalled.fullest().unwrap().http.clone().unwrap();
            assert_eq!(request.fields.get("x-y"), Some(&b"z"[..]));
            assert_eq!(request.query_values("a"), ["b c"]);
            assert_eq!(recalled.hidden, [Box::from("authorization")]);
        }
    }

    #[test]
    fn what_an_example_is_is_recalled_from_its_record() {
        for text in [
            "GET https://a.example/x?y=z",
            "POST https://a.example/x\nContent-Type: application/json\nContent-Length: 8\n\n{\"a\": 1}",
        ] {
            let operation = crate::protocol::http::describe::example(text).unwrap();
            let record = Operation {
                http: None,
                ..operation.clone()
            };
            let recalled = recall(&record).unwrap();
            assert_eq!(recalled.fullest(), Some(&operation), "{text}");
            assert_eq!(operation.protocol, Protocol::Http);
        }
    }
}
