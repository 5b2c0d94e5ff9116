//! The mail itself. Headers are lettre's to encode, of text without any end of line; bodies are text and HTML that says
//! the same.

use std::fmt::Write as _;

use lettre::{
    Message,
    message::{
        MultiPart,
        header::{HeaderName, HeaderValue},
    },
};

use super::super::{
    config::EmailConfig,
    facts::Facts,
    notice::Event,
    queue::Failure,
    text::{html, line, plain},
};

/// Bytes of a subject: what lists of mails show, and some.
const SUBJECT_ROOM: usize = 200;

/// Bytes of one value.
const VALUE_ROOM: usize = 2_000;

/// Bytes of content; all that is kept, written out.
const CONTENT_ROOM: usize = 24_000;

/// The mail that tells `facts` as `delivery`, ready to be sent.
pub(super) fn build(
    config: &EmailConfig,
    facts: &Facts,
    delivery: &str,
) -> Result<Vec<u8>, Failure> {
    let domain = config.from.email.domain();
    // What asked has a name that what follows can tell without having been there.
    let thread = format!("<approval-{}.{}@{domain}>", facts.approval, host(facts));
    let mut builder = Message::builder()
        .from(config.from.clone())
        .date(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(facts.time.0))
        .subject(subject(facts));
    for mailbox in &config.to {
        builder = builder.to(mailbox.clone());
    }
    builder = if facts.event == Event::Requested {
        builder.message_id(Some(thread))
    } else {
        builder
            .message_id(Some(format!("<{delivery}@{domain}>")))
            .in_reply_to(thread.clone())
            .references(thread)
    };
    // RFC 3834: no holiday notices to it.
    let ours = [
        ("Auto-Submitted", "auto-generated"),
        ("X-Auto-Response-Suppress", "All"),
    ];
    for (name, value) in ours {
        let name = HeaderName::new_from_ascii_str(name);
        builder = builder.raw_header(HeaderValue::new(name, value.to_owned()));
    }
    let parts = MultiPart::alternative_plain_html(text_part(facts), html_part(facts));
    let message = builder.multipart(parts);
    let message =
        message.map_err(|error| Failure::last(format!("no mail can be made of it: {error}")))?;
    Ok(message.formatted())
}

/// What answers begin with, so that threads stay whole where `References` isn't looked at.
fn subject(facts: &Facts) -> String {
    let id = facts.approval.to_string();
    let headline = line(&facts.headline(), SUBJECT_ROOM, plain);
    format!("[interceptor {id}] {headline}")
}

fn text_part(facts: &Facts) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    _ = writeln!(out, "{}\n", line(&facts.headline(), VALUE_ROOM, plain));
    _ = writeln!(out, "{}: {}\n", decide(facts), facts.whereto());
    for (name, value) in facts.rows() {
        _ = writeln!(
            out,
            "{:<13}{}",
            format!("{name}:"),
            line(&value, VALUE_ROOM, plain)
        );
    }
    let content = facts.content_text(CONTENT_ROOM, plain);
    if !content.is_empty() {
        _ = writeln!(out, "\n{}:\n", facts.content_title());
        // Behind a gutter, so that no line of it passes for one of ours.
        for line in content.lines() {
            _ = writeln!(out, "  | {line}");
        }
    }
    out
}

fn html_part(facts: &Facts) -> String {
    let mut out = String::from("<!DOCTYPE html><html><head><meta charset=\"utf-8\"></head><body>");
    _ = write!(
        out,
        "<h3>{}</h3>",
        line(&facts.headline(), VALUE_ROOM, html)
    );
    let whereto = line(&facts.whereto(), VALUE_ROOM, html);
    _ = match facts.link {
        Some(_) => write!(out, "<p><a href=\"{whereto}\">{}</a></p>", decide(facts)),
        None => write!(out, "<p>{}: <code>{whereto}</code></p>", decide(facts)),
    };
    out.push_str("<table cellpadding=\"3\">");
    for (name, value) in facts.rows() {
        let value = line(&value, VALUE_ROOM, html);
        _ = write!(
            out,
            "<tr><th align=\"left\" valign=\"top\">{name}</th><td><code>{value}</code></td></tr>"
        );
    }
    out.push_str("</table>");
    let content = facts.content_text(CONTENT_ROOM, html);
    if !content.is_empty() {
        _ = write!(
            out,
            "<h4>{}</h4><pre>{content}</pre>",
            facts.content_title()
        );
    }
    out.push_str("</body></html>");
    out
}

const fn decide(facts: &Facts) -> &'static str {
    if facts.event.asks() { "Decide" } else { "See" }
}

/// The host's name as a part of an id: two hosts may ask under one number.
fn host(facts: &Facts) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    facts.host.chars().filter(is_plain).take(64).collect()
}
