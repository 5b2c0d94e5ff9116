//! SET and RESET, and what each setting means for everybody else.

use serde_json::Value;

use super::{
    statements::{ADMIN, EXECUTE, READ, effect},
    walk::{Walk, literal, string},
};
use crate::operation::{ResourceKind, Touch};

/// Whether a `search_path` has the names of somebody else's functions and operators go before the built-in
/// ones, which are searched first only where the path doesn't say otherwise.
pub(super) fn hides_catalog<'a>(path: impl Iterator<Item = &'a str>) -> bool {
    path.skip(1)
        .any(|schema| schema.trim().trim_matches('"') == "pg_catalog")
}

/// Settings that change nothing but how a client is spoken to, or what it may do less.
pub(super) fn is_harmless_setting(name: &str) -> bool {
    matches!(
        &*name.to_ascii_lowercase(),
        "application_name"
            | "client_encoding"
            | "client_min_messages"
            | "datestyle"
            | "intervalstyle"
            | "timezone"
            | "extra_float_digits"
            | "bytea_output"
            | "statement_timeout"
            | "lock_timeout"
            | "idle_in_transaction_session_timeout"
            | "idle_session_timeout"
            | "geqo"
            | "jit"
            | "work_mem"
            | "enable_seqscan"
            | "random_page_cost"
            | "lc_messages"
            | "lc_monetary"
            | "lc_numeric"
            | "lc_time"
            | "search_path"
            | "standard_conforming_strings"
            | "synchronize_seqscans"
            | "transaction"
            | "session characteristics"
            | "transaction_isolation"
            | "default_transaction_isolation"
            | "default_transaction_read_only"
            | "transaction_read_only"
            | "xmloption"
            | "row_security"
            | "quote_all_identifiers"
            | "options"
    )
}

pub(super) fn set(walk: &mut Walk, body: &Value) {
    use pg_query::protobuf::VariableSetKind as Kind;
    walk.barrier = true;
    let name = string(&body["name"]);
    let kind = body["kind"]
        .as_i64()
        .and_then(|kind| i32::try_from(kind).ok());
    let kind = kind.and_then(|kind| Kind::try_from(kind).ok());
    let action = match kind {
        Some(Kind::VarReset | Kind::VarResetAll) => "RESET",
        _ if name == "role" => "SET ROLE",
        _ if name == "session_authorization" => "SET SESSION AUTHORIZATION",
        _ => "SET",
    };
    if kind == Some(Kind::VarResetAll) {
        return effect(walk, action, READ);
    }
    let values = body["args"].as_array().into_iter().flatten();
    let values: Vec<String> = values.filter_map(literal).collect();
    let hides = hides_catalog(values.iter().flat_map(|value| value.split(',')));
    let harmless = is_harmless_setting(name) && !hides;
    let effects = match (harmless, hides) {
        (true, _) => READ,
        (_, true) => EXECUTE,
        _ => ADMIN,
    };
    effect(walk, action, effects);
    if action == "SET" || action == "RESET" {
        walk.touch(
            ResourceKind::Setting,
            None,
            name,
            if harmless { Touch::Read } else { Touch::Write },
        );
    } else if let Some(role) = body["args"].get(0).and_then(literal) {
        walk.touch(ResourceKind::Role, None, &role, Touch::Write);
    }
}
