//! Messages in Slack.
//!
//! All that an agent wrote stands in `plain_text`, which knows no formatting, links or mentions, with `&`, `<` and `>`
//! escaped besides; `mrkdwn` holds our own words only.

use serde_json::{Value, json};

use super::super::{
    facts::Facts,
    notice::Event,
    text::{line, slack},
};

/// Bytes of a heading; Slack takes 150 characters.
const HEADING_ROOM: usize = 145;

/// Bytes of the text that notifications show.
const NOTIFICATION_ROOM: usize = 300;

/// Bytes of one value.
const VALUE_ROOM: usize = 400;

/// Bytes of one block; Slack takes 3,000 characters.
const BLOCK_ROOM: usize = 2_900;

/// Bytes of content, with room behind it for what says that there is more.
pub(super) const CONTENT_ROOM: usize = 2_700;

/// Characters of a link on a button; Slack takes as many.
const LINK_MAX: usize = 3_000;

/// A message.
pub(super) struct Rendered {
    /// What notifications show.
    pub(super) text: String,
    pub(super) blocks: Vec<Value>,
}

/// The message that asks. With `buttons` it can be decided there, as far as all of it is shown there.
pub(super) fn asking(facts: &Facts, buttons: bool) -> Rendered {
    let mut rendered = body(facts);
    let is_whole = !facts.is_cut(CONTENT_ROOM, slack) && !facts.is_long(VALUE_ROOM, slack);
    let can_approve = buttons && !facts.needs_console && is_whole;
    if buttons && !can_approve {
        // What a reviewer agrees to they have to have seen.
        rendered.blocks.push(json!({
            "type": "context",
            "elements": [{
                "type": "plain_text",
                "text": "It can be approved in the console: it needs a reason or a security key, or not all of it is shown here.",
                "emoji": false,
            }],
        }));
    }
    let mut elements = Vec::new();
    if let Some(digest) = facts.digest.filter(|_| buttons) {
        let value = format!("{} {digest}", facts.approval);
        if can_approve {
            elements.push(json!({
                "type": "button",
                "action_id": "approve",
                "style": "primary",
                "text": words("Approve"),
                "value": value,
                "confirm": {
                    "title": words("Approve it?"),
                    "text": words("Exactly this operation may go, once."),
                    "confirm": words("Approve"),
                    "deny": words("Not yet"),
                },
            }));
        }
        elements.push(json!({
            "type": "button",
            "action_id": "deny",
            "style": "danger",
            "text": words("Deny"),
            "value": value,
        }));
    }
    finish(rendered, elements, facts)
}

/// The message that says what became of it.
pub(super) fn telling(facts: &Facts) -> Rendered {
    finish(body(facts), Vec::new(), facts)
}

fn body(facts: &Facts) -> Rendered {
    let headline = facts.headline();
    let mark = match facts.event {
        Event::Requested | Event::Escalated => "⏳ ",
        Event::Overridden | Event::Revoked => "🚨 ",
        Event::Ended if facts.state == "approved" => "✅ ",
        Event::Ended => "⛔ ",
    };
    let heading = format!("{mark}{}", line(&headline, HEADING_ROOM - 8, slack));
    let mut blocks = vec![json!({
        "type": "header",
        "text": {"type": "plain_text", "text": heading, "emoji": false},
    })];
    let mut lines = String::new();
    for (name, value) in facts.rows() {
        let row = format!("{name}: {}", line(&value, VALUE_ROOM, slack));
        if lines.len() + row.len() + 1 > BLOCK_ROOM {
            blocks.push(section(&std::mem::take(&mut lines)));
        }
        if !lines.is_empty() {
            lines.push('\n');
        }
        lines.push_str(&row);
    }
    if !lines.is_empty() {
        blocks.push(section(&lines));
    }
    let content = facts.content_text(CONTENT_ROOM, slack);
    if !content.is_empty() {
        blocks.push(json!({"type": "divider"}));
        blocks.push(json!({
            "type": "context",
            "elements": [{"type": "mrkdwn", "text": format!("*{}*", facts.content_title())}],
        }));
        blocks.push(section(&content));
    }
    Rendered {
        text: line(&headline, NOTIFICATION_ROOM, slack),
        blocks,
    }
}

fn finish(mut rendered: Rendered, mut elements: Vec<Value>, facts: &Facts) -> Rendered {
    match &facts.link {
        Some(link) if link.len() <= LINK_MAX => elements.push(json!({
            "type": "button",
            "action_id": "open",
            "text": words("Open"),
            "url": link,
        })),
        _ => rendered.blocks.push(section(&line(
            &format!("See {}", facts.whereto()),
            VALUE_ROOM,
            slack,
        ))),
    }
    if !elements.is_empty() {
        rendered
            .blocks
            .push(json!({"type": "actions", "elements": elements}));
    }
    rendered
}

/// Our own words.
fn words(text: &str) -> Value {
    json!({"type": "plain_text", "text": text, "emoji": false})
}

/// Text that is escaped already.
fn section(text: &str) -> Value {
    json!({"type": "section", "text": {"type": "plain_text", "text": text, "emoji": false}})
}
