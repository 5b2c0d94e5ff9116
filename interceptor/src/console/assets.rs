//! What pages need besides themselves. Built in, and named by what they are, so that browsers keep them.

use axum::{
    extract::Path,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

/// How pages look.
const STYLE: &str = include_str!("assets/console.css");

/// What has pages change as things happen, and asks security keys.
const SCRIPT: &str = include_str!("assets/console.js");

/// The mark in a browser's tab.
const ICON: &str = include_str!("assets/icon.svg");

/// Changes with every version of the assets.
pub(super) fn version() -> String {
    let all = [STYLE, SCRIPT, ICON].concat();
    format!("{:08x}", crc32fast::hash(all.as_bytes()))
}

/// One of them.
pub(super) async fn get(Path((_, name)): Path<(String, String)>) -> Response {
    let (kind, text) = match &*name {
        "console.css" => ("text/css; charset=utf-8", STYLE),
        "console.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "icon.svg" => ("image/svg+xml", ICON),
        _ => return (StatusCode::NOT_FOUND, "there is no such file").into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, max-age=31536000, immutable"),
        ),
    ];
    (headers, text).into_response()
}
