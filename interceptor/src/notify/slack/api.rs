//! Slack's methods: JSON out, JSON back, an error by its code.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;

use super::super::{
    address::ServiceUrl,
    net::Net,
    queue::Failure,
    secrets::{self, Secrets},
};
use crate::secret::Source;

/// Calls methods.
#[derive(Clone)]
pub(super) struct Api {
    base: ServiceUrl,
    net: Net,
    secrets: Secrets,
}

/// Why a method did nothing.
#[derive(Debug)]
pub(super) enum CallError {
    /// It couldn't be called.
    Failed(Failure),
    /// Slack says no, in a word of its own.
    Refused(Box<str>),
}

impl Api {
    pub(super) const fn new(base: ServiceUrl, net: Net, secrets: Secrets) -> Self {
        Self { base, net, secrets }
    }

    /// Calls `method` with the token at `token`.
    pub(super) async fn call(
        &self,
        method: &str,
        token: &Source,
        body: &Value,
    ) -> Result<Value, CallError> {
        let failed = CallError::Failed;
        let url = self.base.join(method);
        let url = url.ok_or_else(|| failed(Failure::last("its URL can't be put together")))?;
        let token = secrets::read(token, &self.secrets).await.map_err(failed)?;
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(header::USER_AGENT, HeaderValue::from_static("interceptor"));
        let bearer = secrets::header("Bearer ", &token, "its token").map_err(failed)?;
        headers.insert(header::AUTHORIZATION, bearer);
        let body = Bytes::from(body.to_string());
        let answer = self
            .net
            .post(&url, headers, body, true)
            .await
            .map_err(failed)?;
        answer.check(url.host()).map_err(failed)?;
        let answer = answer
            .body
            .as_deref()
            .and_then(|body| serde_json::from_slice::<Value>(body).ok());
        let answer = answer.ok_or_else(|| failed(Failure::down("Slack answers no JSON")))?;
        if answer.get("ok").and_then(Value::as_bool) == Some(true) {
            return Ok(answer);
        }
        let code = answer
            .get("error")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let code: String = code.chars().filter(|c| is_word(*c)).take(64).collect();
        Err(CallError::Refused(code.into()))
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let code = match error {
            CallError::Failed(failure) => return failure,
            CallError::Refused(code) => code,
        };
        let why = format!("Slack says `{code}`");
        match &*code {
            "ratelimited"
            | "internal_error"
            | "fatal_error"
            | "service_unavailable"
            | "request_timeout" => Self::down(why),
            "msg_too_long"
            | "msg_blocks_too_long"
            | "invalid_blocks"
            | "invalid_blocks_format"
            | "no_text" => Self::last(why),
            "not_in_channel" | "channel_not_found" => Self::unwelcome(format!(
                "{why}: invite the app to the channel, and see whether `channel` is its id"
            )),
            "invalid_auth" | "not_authed" | "token_revoked" | "token_expired"
            | "account_inactive" => Self::unwelcome(format!("{why}: its token doesn't hold")),
            "missing_scope" | "not_allowed_token_type" => Self::unwelcome(format!(
                "{why}: `bot_token` needs the scope `chat:write`, `app_token` `connections:write`"
            )),
            _ => Self::unwelcome(why),
        }
    }
}

/// Whether it means that a message can't be changed any more, so that another has to be made.
pub(super) fn is_gone(code: &str) -> bool {
    matches!(
        code,
        "message_not_found" | "cant_update_message" | "edit_window_closed" | "channel_not_found"
    )
}
