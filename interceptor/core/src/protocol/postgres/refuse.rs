//! PostgreSQL's own way to say no, and the messages that make the server fail in an operation's place.
//!
//! A refused operation is not simply swallowed: the server is sent something that fails at the same
//! point of the protocol and touches nothing. So the server itself aborts the transaction, skips to
//! Sync and reports its state, and the connection is exactly as after any failed statement; only the
//! text of the error is ours.

use std::fmt::Write as _;

use bytes::{BufMut, Bytes, BytesMut};

use super::wire::{self, FunctionCall, Parse};
use crate::{
    record::ApprovalId,
    ruling::{Cause, Refusal},
};

/// SQLSTATE successful_completion.
const SUCCESSFUL_COMPLETION: &str = "00000";
/// SQLSTATE insufficient_privilege.
pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// SQLSTATE query_canceled.
pub(super) const QUERY_CANCELED: &str = "57014";
/// SQLSTATE invalid_authorization_specification.
pub(super) const INVALID_AUTHORIZATION: &str = "28000";
/// SQLSTATE invalid_password.
pub(super) const INVALID_PASSWORD: &str = "28P01";
/// SQLSTATE protocol_violation.
pub(super) const PROTOCOL_VIOLATION: &str = "08P01";
/// SQLSTATE connection_failure.
pub(super) const CONNECTION_FAILURE: &str = "08006";
/// SQLSTATE sqlclient_unable_to_establish_sqlconnection.
pub(super) const CANNOT_CONNECT: &str = "08001";

/// SQLSTATE io_error.
pub(super) const IO_ERROR: &str = "58030";
pub(super) const OUT_OF_MEMORY: &str = "53200";

/// A text that is no statement in any version of PostgreSQL; it shows up in the server's log.
const NO_STATEMENT: &[u8] = b"interceptor refused an operation here";

/// The name that the failing Parse would define; a failed one defines nothing.
const NO_NAME: &[u8] = b"interceptor refused";

/// A simple query that fails.
pub(super) fn failing_query() -> Bytes {
    let mut out = BytesMut::new();
    wire::frame(&mut out, b'Q', |out| {
        out.put_slice(NO_STATEMENT);
        out.put_u8(0);
    });
    out.freeze()
}

/// An extended-protocol message that fails. It is named so that the unnamed statement survives.
pub(super) fn failing_parse() -> Bytes {
    let mut out = BytesMut::new();
    Parse::encode(NO_NAME, NO_STATEMENT, &mut out);
    out.freeze()
}

/// A function call that fails.
pub(super) fn failing_call() -> Bytes {
    let mut out = BytesMut::new();
    FunctionCall::encode_impossible(&mut out);
    out.freeze()
}

/// The ErrorResponse for a refused operation: what, why, and what to do instead.
pub(super) fn refusal(refusal: &Refusal, severity: &str) -> Bytes {
    let Refusal {
        cause,
        rule,
        reason,
        approval,
    } = refusal;
    let because = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    let message = match cause {
        Cause::Denied => format!("interceptor: denied by rule \"{rule}\"{because}"),
        Cause::Rejected => format!("interceptor: held by rule \"{rule}\" and rejected{because}"),
        Cause::TimedOut => {
            format!("interceptor: held by rule \"{rule}\" and not approved in time{because}")
        }
        Cause::Waiting => {
            format!("interceptor: held by rule \"{rule}\" until a person approves it{because}")
        }
        Cause::Unavailable => format!("interceptor: can't be decided or recorded now{because}"),
        Cause::Cancelled => {
            format!("interceptor: cancelled while it waited for approval by rule \"{rule}\"")
        }
    };
    let mut detail = match cause {
        Cause::Denied | Cause::Cancelled => "The operation did not reach the server.".to_owned(),
        Cause::Rejected => {
            "A reviewer rejected the operation; it did not reach the server.".to_owned()
        }
        Cause::TimedOut => {
            "Nobody approved the operation in time; it did not reach the server.".to_owned()
        }
        Cause::Waiting => {
            "The operation has not reached the server; people are being asked.".to_owned()
        }
        Cause::Unavailable => {
            "The operation did not reach the server; others may pass once this is mended."
                .to_owned()
        }
    };
    if let Some(approval) = approval {
        let _ = write!(detail, " Approval {approval}.");
    }
    let hint = match cause {
        Cause::Denied => {
            "Do not retry: the same operation will be denied again. Ask the operator if the rule should change."
        }
        Cause::Rejected => "Do not retry unchanged: a person has seen this operation and said no.",
        Cause::TimedOut => "Retry when a reviewer is available; the operation will be held again.",
        Cause::Waiting => {
            "Go on with something else and send exactly the same again later, on this connection or in the same way on another: once it is approved it passes, and until then it waits for the same answer."
        }
        Cause::Unavailable => {
            "Retry later, and tell the operator: `interceptor status` shows the cause."
        }
        Cause::Cancelled => "",
    };
    let sqlstate = match cause {
        Cause::Cancelled => QUERY_CANCELED,
        _ => INSUFFICIENT_PRIVILEGE,
    };
    error(severity, sqlstate, &message, &detail, hint)
}

/// The NoticeResponse that tells whoever waits what for.
pub(super) fn still_held(approval: ApprovalId) -> Bytes {
    let message = format!("interceptor: held until a person approves it (approval {approval})");
    response(b'N', "NOTICE", SUCCESSFUL_COMPLETION, [&message, "", ""])
}

/// An ErrorResponse. Empty `detail` and `hint` are left out.
pub(super) fn error(
    severity: &str,
    sqlstate: &str,
    message: &str,
    detail: &str,
    hint: &str,
) -> Bytes {
    response(b'E', severity, sqlstate, [message, detail, hint])
}

fn response(tag: u8, severity: &str, sqlstate: &str, [message, detail, hint]: [&str; 3]) -> Bytes {
    let mut out = BytesMut::with_capacity(64 + message.len() + detail.len() + hint.len());
    wire::frame(&mut out, tag, |out| {
        let fields = [
            (b'S', severity),
            (b'V', severity),
            (b'C', sqlstate),
            (b'M', message),
            (b'D', detail),
            (b'H', hint),
        ];
        for (field, text) in fields.into_iter().filter(|(_, text)| !text.is_empty()) {
            out.put_u8(field);
            // A NUL would end the field early and let its rest pass for another one.
            out.extend(text.bytes().filter(|byte| *byte != 0));
            out.put_u8(0);
        }
        out.put_u8(0);
    });
    out.freeze()
}
