//! Requests and answers as h2 has them: read for the record, changed on their way, answered in the server's place.

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response, StatusCode, header, request};
use interceptor_core::{
    mask::body::KeyMask,
    operation::http::Fields,
    protocol::http::{answer, change::Changes, refuse::Problem},
};

use super::Broken;

/// Makes `changes`; `None` where one can't be sent, which no configuration that was loaded leads to.
pub(super) fn apply(changes: &Changes<'_>, parts: &mut request::Parts) -> Option<()> {
    let headers = &mut parts.headers;
    let replaced: Vec<_> = headers
        .keys()
        .filter(|name| changes.replace(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in replaced {
        headers.remove(name);
    }
    for (name, value, is_secret) in changes.added() {
        let name = header::HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = header::HeaderValue::from_bytes(value).ok()?;
        // Kept out of the table that compression looks back at (RFC 7541, section 7.1.3).
        value.set_sensitive(is_secret);
        headers.insert(name, value);
    }
    let target = parts.uri.path_and_query().map_or("", |path| path.as_str());
    if let Some(target) = changes.target(target.as_bytes()) {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(http::uri::PathAndQuery::from_maybe_shared(target).ok()?);
        parts.uri = http::Uri::from_parts(uri).ok()?;
    }
    Some(())
}

/// The form that an answer in the server's place has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// To HEAD: no body.
    Head,
    /// Problem details.
    Body,
    /// A call of gRPC: its status in place of a body.
    Grpc,
}

impl Form {
    pub(super) fn of(request: &Request<RecvStream>) -> Self {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
            Self::Grpc
        } else if request.method() == http::Method::HEAD {
            Self::Head
        } else {
            Self::Body
        }
    }
}

/// Answers in the server's place.
pub(super) fn say(
    respond: &mut SendResponse<Bytes>,
    problem: &Problem,
    form: Form,
) -> Result<(), Broken> {
    let gone = |_| Broken::Client(Reason::CANCEL);
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    if let Some(seconds) = problem.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if form == Form::Grpc {
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/grpc"),
        );
        headers.insert("grpc-status", problem.grpc_status().into());
        let message = header::HeaderValue::from_bytes(&problem.grpc_message());
        headers.extend(
            message
                .ok()
                .map(|message| (header::HeaderName::from_static("grpc-message"), message)),
        );
        // No more than a head: what gRPC calls Trailers-Only.
        return respond
            .send_response(response, true)
            .map(drop)
            .map_err(gone);
    }
    let body = problem.body();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    *response.status_mut() =
        StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let with_body = form == Form::Body;
    let mut stream = respond.send_response(response, !with_body).map_err(gone)?;
    if with_body {
        stream.send_data(body, true).map_err(gone)?;
    }
    Ok(())
}

/// The head of a request as text, for the record and for rules.
pub(super) fn fields(parts: &request::Parts) -> Fields {
    let authority = parts
        .uri
        .authority()
        .map_or("", |authority| authority.as_str());
    let target = parts
        .uri
        .path_and_query()
        .map_or(authority, |target| target.as_str());
    let method = parts.method.as_str();
    if authority.is_empty() {
        text(&[method, " ", target, " HTTP/2\r\n"], &parts.headers)
    } else {
        text(
            &[
                method,
                " ",
                target,
                " HTTP/2\r\n:authority: ",
                authority,
                "\r\n",
            ],
            &parts.headers,
        )
    }
}

pub(super) fn response_fields(status: StatusCode, headers: &HeaderMap) -> Fields {
    text(&["HTTP/2 ", status.as_str(), "\r\n"], headers)
}

/// Masks fields of an answer, those behind its body as well.
pub(super) fn mask_fields(masks: &[KeyMask], fields: &mut HeaderMap) {
    for (name, value) in fields {
        let masked = answer::masked_value(masks, name.as_str().as_bytes(), value.as_bytes());
        if let Some(masked) = masked {
            *value = header::HeaderValue::from_bytes(&masked)
                .unwrap_or(header::HeaderValue::from_static("[redacted]"));
        }
    }
}

/// Fields behind a body as text.
pub(super) fn lines(trailers: &HeaderMap) -> Vec<u8> {
    let lines = trailers
        .iter()
        .map(|(name, value)| [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    lines.flatten().collect()
}

fn text(first: &[&str], headers: &HeaderMap) -> Fields {
    let line = |(name, value): (&header::HeaderName, &header::HeaderValue)| {
        name.as_str().len() + value.len() + ": \r\n".len()
    };
    let first_bytes: usize = first.iter().map(|part| part.len()).sum();
    let bytes = first_bytes + headers.iter().map(line).sum::<usize>() + "\r\n".len();
    let mut out = Vec::with_capacity(bytes);
    for part in first {
        out.extend_from_slice(part.as_bytes());
    }
    let mut places = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let start = out.len();
        out.extend_from_slice(name.as_str().as_bytes());
        let name = start..out.len();
        out.extend_from_slice(b": ");
        let start = out.len();
        out.extend_from_slice(value.as_bytes());
        places.push((name, start..out.len()));
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Fields::new(out.into(), places)
}
