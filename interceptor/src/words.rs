//! What an operation does, in words, the same in the console, at the terminal and in what notifiers tell.
//!
//! It parses what agents wrote, so the daemon doesn't name it. What it gives is as agents wrote it: whoever shows it
//! makes it inert.

use interceptor_core::{
    operation::{
        Protocol,
        words::{Known, Words},
    },
    protocol::postgres,
};

use crate::approval::{Content, Summary};

/// What is asked for, in words: as far as the content says where there is one, else as far as effects and names do.
pub(crate) fn words(summary: &Summary, content: Option<&Content>) -> Words {
    let known = Known {
        action: &summary.action,
        effects: summary.effects,
        resources: &summary.resources,
    };
    match (summary.protocol, content) {
        (Protocol::Postgres, Some(Content::Text(text))) => postgres::words::words(text, known),
        _ => known.words(),
    }
}
