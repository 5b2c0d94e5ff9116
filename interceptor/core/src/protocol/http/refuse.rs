//! Answers in the place of the server: problem details (RFC 9457) that a language model can act on.

use bytes::Bytes;
use serde::Serialize;

use crate::{
    decoder::Failure,
    ruling::{Cause, Refusal},
};

/// The body of an answer of ours.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// What kind of problem it is.
    r#type: &'static str,
    title: &'static str,
    status: u16,
    /// What happened, in a sentence or two.
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<String>,
    /// What to do instead.
    remedy: &'static str,
    /// Seconds after which asking again makes sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
}

/// When who was told to come back for an answer should, in seconds.
const RETRY_AFTER: u32 = 30;

impl Problem {
    /// What became of a request that may not go.
    #[must_use]
    pub fn refused(refusal: &Refusal) -> Self {
        let (r#type, title, status, remedy) = match refusal.cause {
            Cause::Denied => (
                "urn:interceptor:problem:denied",
                "Denied by policy",
                403,
                "Don't repeat this request: it will be denied again. Do it in another way that the reason allows, or ask the operator of this host for a rule.",
            ),
            Cause::Rejected => (
                "urn:interceptor:problem:rejected",
                "Rejected by a reviewer",
                403,
                "Don't repeat this request. A person looked at it and said no; the reason says why.",
            ),
            Cause::TimedOut => (
                "urn:interceptor:problem:timed-out",
                "No reviewer answered in time",
                403,
                "It was not carried out. Try again when somebody is there to approve it.",
            ),
            Cause::Waiting => (
                "urn:interceptor:problem:held",
                "Held until a person approves it",
                403,
                "It was not carried out. Go on with something else and send exactly the same request again later: once it is approved it passes, and until then it waits for the same answer.",
            ),
            Cause::Cancelled => (
                "urn:interceptor:problem:cancelled",
                "Cancelled",
                403,
                "It was taken back while people were asked, and was not carried out.",
            ),
            Cause::Unavailable => (
                "urn:interceptor:problem:unavailable",
                "Can't be decided or recorded now",
                503,
                "It was not carried out. Try again later; the operator of this host sees the cause with `interceptor status`.",
            ),
        };
        let detail = if refusal.reason.is_empty() {
            format!(
                "interceptor refused this request by rule `{}`.",
                refusal.rule
            )
        } else {
            format!(
                "interceptor refused this request by rule `{}`: {}",
                refusal.rule, refusal.reason
            )
        };
        Self {
            r#type,
            title,
            status,
            detail,
            rule: Some(refusal.rule.to_string()),
            reason: (!refusal.reason.is_empty()).then(|| refusal.reason.to_string()),
            approval: refusal.approval.map(|id| id.to_string()),
            remedy,
            retry_after: (refusal.cause == Cause::Waiting).then_some(RETRY_AFTER),
        }
    }

    /// A request that two servers could take for two things.
    #[must_use]
    pub fn malformed(status: u16, reason: &str) -> Self {
        Self {
            r#type: "urn:interceptor:problem:malformed",
            title: "Not a request with one meaning",
            status,
            detail: format!("interceptor refused this request: {reason}"),
            rule: None,
            reason: None,
            approval: None,
            remedy: "Send it in the plainest form that RFC 9112 allows; it was not carried out.",
            retry_after: None,
        }
    }

    /// A body that is larger than what can be looked at.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        Self {
            r#type: "urn:interceptor:problem:too-large",
            title: "Too large to be decided",
            status: 413,
            detail: format!(
                "interceptor has to see the whole body before this request can be decided, and it is larger than {limit} bytes."
            ),
            rule: None,
            reason: None,
            approval: None,
            remedy: "Send less at once, or ask the operator of this host for a rule that doesn't look at the body.",
            retry_after: None,
        }
    }

    /// A request that proves its right with something of the agent's own, where it isn't to have any.
    #[must_use]
    pub fn foreign_credential(credential: usize) -> Self {
        Self {
            r#type: "urn:interceptor:problem:credential",
            title: "Not the placeholder",
            status: 403,
            detail: format!(
                "interceptor has the credential for this destination (number {credential}); what this request presents in its place isn't the placeholder for it."
            ),
            rule: None,
            reason: None,
            approval: None,
            remedy: "Present the placeholder that the operator of this host gave you. The request was not carried out.",
            retry_after: None,
        }
    }

    /// A server that can't be reached, or doesn't answer in HTTP.
    #[must_use]
    pub fn upstream(reason: &str) -> Self {
        Self {
            r#type: "urn:interceptor:problem:upstream",
            title: "No answer from the server",
            status: 502,
            detail: format!("interceptor could not get an answer from the server: {reason}"),
            rule: None,
            reason: None,
            approval: None,
            remedy: "Check that it is running and listens on this address.",
            retry_after: None,
        }
    }

    /// A response that a rule wants masked and that can't be.
    #[must_use]
    pub fn unmaskable(reason: &str) -> Self {
        Self {
            r#type: "urn:interceptor:problem:unmaskable",
            title: "The response can't be masked",
            status: 502,
            detail: format!(
                "The server answered, but a rule has to mask the response and can't: {reason}"
            ),
            rule: None,
            reason: None,
            approval: None,
            remedy: "The request was carried out. Ask for the response in another form (no Range, `Accept-Encoding: identity`, JSON).",
            retry_after: None,
        }
    }

    /// A journal that takes no records.
    #[must_use]
    pub fn unrecorded() -> Self {
        Self {
            r#type: "urn:interceptor:problem:unavailable",
            title: "Can't be recorded now",
            status: 503,
            detail: "interceptor can't record what this connection does, so it ends here; what was asked last may or may not have been carried out.".to_owned(),
            rule: None,
            reason: None,
            approval: None,
            remedy: "Try again later; the operator of this host sees the cause with `interceptor status`.",
            retry_after: None,
        }
    }

    /// What its agent has no room for.
    #[must_use]
    pub fn memory(failure: &Failure) -> Self {
        Self {
            r#type: "urn:interceptor:problem:memory",
            title: "Too much at once",
            status: 503,
            detail: format!("interceptor can't take this request in: {failure}."),
            rule: None,
            reason: None,
            approval: None,
            remedy: "Try again when other requests are done; send less at once. It was not carried out, unless an answer to it had begun.",
            retry_after: None,
        }
    }

    /// Seconds after which asking again makes sense (`Retry-After`), where it does.
    #[must_use]
    pub const fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    /// Its status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// What it is in gRPC (its `statuscodes`).
    #[must_use]
    pub const fn grpc_status(&self) -> u16 {
        const RESOURCE_EXHAUSTED: u16 = 8;
        const PERMISSION_DENIED: u16 = 7;
        const INTERNAL: u16 = 13;
        const UNAVAILABLE: u16 = 14;
        match self.status {
            403 => PERMISSION_DENIED,
            413 => RESOURCE_EXHAUSTED,
            502..=504 => UNAVAILABLE,
            _ => INTERNAL,
        }
    }

    /// What it says, as `grpc-message` has it: UTF-8, percent-encoded but for printable ASCII.
    #[must_use]
    pub fn grpc_message(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for byte in format!("{} {}", self.detail, self.remedy).bytes() {
            match byte {
                b'%' | ..b' ' | 0x7F.. => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
                byte => out.push(byte),
            }
        }
        out
    }

    /// The body, as `application/problem+json`.
    #[must_use]
    pub fn body(&self) -> Bytes {
        /// Clients of Docker, Podman and GitHub look for this name, and some fail where it is missing.
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(flatten)]
            problem: &'a Problem,
            message: &'a str,
        }
        let body = Body {
            problem: self,
            message: &self.detail,
        };
        serde_json::to_vec(&body).unwrap_or_default().into()
    }

    /// The whole response in HTTP/1.
    #[must_use]
    pub fn response(&self, with_body: bool, keep_alive: bool) -> Bytes {
        let body = self.body();
        let reason = match self.status {
            400 => "Bad Request",
            403 => "Forbidden",
            408 => "Request Timeout",
            413 => "Content Too Large",
            417 => "Expectation Failed",
            421 => "Misdirected Request",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            505 => "HTTP Version Not Supported",
            _ => "Error",
        };
        let connection = if keep_alive {
            ""
        } else {
            "Connection: close\r\n"
        };
        let retry_after = self
            .retry_after
            .map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
        let mut out = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{retry_after}{connection}\r\n",
            self.status,
            body.len(),
        )
        .into_bytes();
        if with_body {
            out.extend_from_slice(&body);
        }
        out.into()
    }
}
