//! Copies in a bucket of an S3-compatible store.
//!
//! Of its answers only headers are read, but for an error's first words. Redirects aren't followed: what is signed is
//! signed for one host.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use interceptor_core::record::Timestamp;
use zeroize::Zeroizing;

use super::{
    Held, SMALL_BYTES_MAX,
    config::Bucket,
    piece::{Piece, Sha256, fixed, while_moving},
    sigv4::{self, Signed, Signer},
};
use crate::{
    clock,
    fetch::{self, Body, Fetch},
    inert::inert,
    secret::Source,
};

/// What of an error is read, in bytes.
const ERROR_BYTES_MAX: usize = 4_096;

/// What of an error is shown, in characters.
const ERROR_SHOWN_MAX: usize = 300;

const CHECKSUM: &str = "x-amz-checksum-sha256";
const LOCK_MODE: &str = "x-amz-object-lock-mode";
const LOCK_UNTIL: &str = "x-amz-object-lock-retain-until-date";

const DAY_NS: u64 = 86_400 * 1_000_000_000;

/// A bucket with a copy.
#[derive(Debug, Clone)]
pub(super) struct Store {
    bucket: Bucket,
    fetch: Fetch,
}

impl Store {
    pub(super) const fn new(bucket: Bucket, fetch: Fetch) -> Self {
        Self { bucket, fetch }
    }

    /// What it has under `name`.
    pub(super) async fn held(&self, name: &str) -> Result<Option<Held>, String> {
        let more = [("x-amz-checksum-mode", "ENABLED".to_owned())];
        let asked = Asked::new(Method::HEAD, name, &more);
        let Some(answer) = self.ask_if_there(asked).await? else {
            return Ok(None);
        };
        let headers = answer.headers();
        let bytes = text(headers, "content-length").and_then(|length| length.parse().ok());
        Ok(Some(Held {
            bytes: bytes.ok_or_else(|| format!("it doesn't say how long {name} is"))?,
            // A checksum of parts is none of the whole, and has their number behind it.
            sha256: text(headers, CHECKSUM).and_then(|sum| {
                let sum = STANDARD.decode(sum).ok()?;
                sum.try_into().ok()
            }),
            is_locked: text(headers, LOCK_MODE).is_some(),
        }))
    }

    /// Puts `piece` there, locked where that is configured.
    pub(super) async fn put(&self, piece: &Piece) -> Result<(), String> {
        let mut more = vec![
            ("content-type", "application/octet-stream".to_owned()),
            (CHECKSUM, STANDARD.encode(piece.sha256)),
        ];
        if let Some(lock) = self.bucket.lock {
            let until = clock::now().0.saturating_add(u64::from(lock.days) * DAY_NS);
            more.extend([
                // What S3 asked for before it knew checksums, and other stores still do.
                ("content-md5", STANDARD.encode(piece.md5)),
                (LOCK_MODE, lock.mode.as_str().to_owned()),
                (LOCK_UNTIL, sigv4::seconds(Timestamp(until))),
            ]);
        }
        let asked = Asked {
            piece: Some(piece),
            ..Asked::new(Method::PUT, &piece.name, &more)
        };
        let answer = self.ask(asked).await?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(refusal(answer).await),
        }
    }

    /// Whether it locks what it is given.
    pub(super) const fn locks(&self) -> bool {
        self.bucket.lock.is_some()
    }

    /// What it gives back for `name`, read to its end.
    pub(super) async fn sha256(&self, name: &str) -> Result<Option<Sha256>, String> {
        let Some(answer) = self
            .ask_if_there(Asked::new(Method::GET, name, &[]))
            .await?
        else {
            return Ok(None);
        };
        let (moved, mut body) = (AtomicU64::new(0), answer.into_body());
        let read = async {
            let mut context = digest::Context::new(&digest::SHA256);
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| fetch::chain(&error))?;
                if let Some(part) = frame.data_ref() {
                    context.update(part);
                    moved.fetch_add(part.len() as u64, Ordering::Relaxed);
                }
            }
            Ok(Some(fixed(&context.finish())))
        };
        while_moving(&moved, read).await?
    }

    /// What is in the small object `name`, where there is one.
    pub(super) async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        let asked = Asked::new(Method::GET, name, &[]);
        let Some(answer) = self.ask_if_there(asked).await? else {
            return Ok(None);
        };
        let limit = usize::try_from(SMALL_BYTES_MAX).unwrap_or(usize::MAX);
        let body = Limited::new(answer.into_body(), limit).collect();
        let body = while_moving(&AtomicU64::new(0), body).await?;
        let body = body.map_err(|error| format!("{name} can't be read back: {error}"))?;
        Ok(Some(body.to_bytes().to_vec()))
    }

    /// The answer, or `None` where there is no such object.
    async fn ask_if_there(&self, asked: Asked<'_>) -> Result<Option<Response<Incoming>>, String> {
        let answer = self.ask(asked).await?;
        match answer.status() {
            status if status.is_success() => Ok(Some(answer)),
            StatusCode::NOT_FOUND => {
                let why = refusal(answer).await;
                // Where there is no bucket there is no copy either, and it isn't made by putting one there.
                if why.contains("NoSuchBucket") {
                    Err(why)
                } else {
                    Ok(None)
                }
            }
            _ => Err(refusal(answer).await),
        }
    }

    async fn ask(&self, asked: Asked<'_>) -> Result<Response<Incoming>, String> {
        let moved = Arc::new(AtomicU64::new(0));
        let request = self.request(&asked, &moved).await?;
        let answer = while_moving(&moved, self.fetch.begin(request)).await?;
        answer.map_err(|error| error.to_string())
    }

    /// The request, signed.
    async fn request(
        &self,
        asked: &Asked<'_>,
        moved: &Arc<AtomicU64>,
    ) -> Result<Request<Body>, String> {
        let bucket = &self.bucket;
        let access_key = secret(&bucket.access_key).await?;
        let secret_key = secret(&bucket.secret_key).await?;
        let token = match &bucket.session_token {
            Some(source) => Some(secret(source).await?),
            None => None,
        };
        let of_text = |bytes: &[u8], what: &str| {
            let text = std::str::from_utf8(bytes).map(str::to_owned);
            text.map_err(|_| format!("its {what} is no text"))
        };
        let access_key = of_text(&access_key, "`access_key`")?;
        let token = token.map(|token| of_text(&token, "`session_token`"));
        let date = sigv4::date(clock::now());
        let payload = match asked.piece {
            Some(piece) => hex::encode(piece.sha256),
            None => hex::encode(digest::digest(&digest::SHA256, b"")),
        };
        let path = format!("{}{}", bucket.root, asked.name);
        let mut headers: Vec<(&str, String)> = asked.more.to_vec();
        headers.extend([
            ("host", bucket.authority.to_string()),
            ("x-amz-content-sha256", payload.clone()),
            ("x-amz-date", date.clone()),
        ]);
        if let Some(token) = token.transpose()? {
            headers.push(("x-amz-security-token", token));
        }
        let signed: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let signer = Signer {
            access_key: &access_key,
            secret_key: &secret_key,
            region: &bucket.region,
        };
        let authorization = signer.authorization(
            &Signed {
                method: asked.method.as_str(),
                path: &path,
                query: "",
                headers: &signed,
                payload: &payload,
            },
            &date,
        );
        let mut request = Request::builder()
            .method(asked.method.clone())
            .uri(format!("{}://{}{path}", bucket.scheme, bucket.authority));
        for (name, value) in headers.iter().chain([&("authorization", authorization)]) {
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("what it is signed in with can't stand in `{name}`"))?;
            request = request.header(*name, value);
        }
        let body = match asked.piece {
            Some(piece) => {
                request = request.header(header::CONTENT_LENGTH, piece.bytes);
                piece.body(moved.clone())
            }
            None => fetch::body(Vec::new()),
        };
        request.body(body).map_err(|error| error.to_string())
    }
}

/// What is asked of a store. Names are of letters, digits, `.` and `/` only, so that they stand in a path as they are.
struct Asked<'a> {
    method: Method,
    name: &'a str,
    more: &'a [(&'a str, String)],
    piece: Option<&'a Piece>,
}

impl<'a> Asked<'a> {
    const fn new(method: Method, name: &'a str, more: &'a [(&'a str, String)]) -> Self {
        Self {
            method,
            name,
            more,
            piece: None,
        }
    }
}

async fn secret(source: &Source) -> Result<Zeroizing<Vec<u8>>, String> {
    let source = source.clone();
    let read = tokio::task::spawn_blocking(move || source.read()).await;
    let secret = read
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    Ok(Zeroizing::new(secret.expose().to_vec()))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What an answer that is no success says, for people.
async fn refusal(answer: Response<Incoming>) -> String {
    let status = answer.status();
    let mut said = format!("it answers {status}");
    if status.is_redirection() {
        said.push_str(", which isn't followed: give the endpoint that the bucket is at");
        if let Some(region) = text(answer.headers(), "x-amz-bucket-region") {
            said = format!("{said} (region {})", inert(region));
        }
        return said;
    }
    let body = Limited::new(answer.into_body(), ERROR_BYTES_MAX).collect();
    if let Ok(Ok(body)) = while_moving(&AtomicU64::new(0), body).await {
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        for name in ["Code", "Message"] {
            if let Some(part) = between(&body, name) {
                said = format!("{said}: {}", inert(&part));
            }
        }
    }
    said
}

/// What stands in the element `name` of an error.
fn between(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (inside, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inside.chars().take(ERROR_SHOWN_MAX).collect())
}
