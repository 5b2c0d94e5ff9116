//! Microsoft Teams, by the webhook of a workflow: an Adaptive Card with what is asked and a link to where it is decided.
//!
//! What agents wrote stands in `TextRun`s, which know no Markdown; a `TextBlock` would make links of it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::{
    config::TeamsConfig,
    facts::Facts,
    net::Net,
    notice::Event,
    queue::{Failure, Job, Told},
    secrets::{self, Secrets},
    text::{line, markdown, plain},
    webhook::url,
    worker::Sink,
};

/// Bytes of content in a card. Teams takes 28 KiB in all, and a card that fills a screen is read by nobody.
const CONTENT_ROOM: usize = 3_000;

/// Bytes of one value in a card.
const VALUE_ROOM: usize = 800;

/// Tells a channel of Microsoft Teams.
pub(super) struct Teams {
    config: TeamsConfig,
    net: Net,
    secrets: Secrets,
}

impl Teams {
    pub(super) const fn new(config: TeamsConfig, net: Net, secrets: Secrets) -> Self {
        Self {
            config,
            net,
            secrets,
        }
    }
}

impl Sink for Teams {
    async fn deliver(&mut self, job: &Job) -> Result<Told, Failure> {
        let url = url(&secrets::read(&self.config.url, &self.secrets).await?)?;
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::USER_AGENT, HeaderValue::from_static("interceptor"));
        let body = Bytes::from(message(&job.facts).to_string());
        let answer = self.net.post(&url, headers, body, false).await?;
        answer.check(url.host())?;
        Ok(Told::default())
    }
}

/// What is posted to the workflow.
pub(super) fn message(facts: &Facts) -> Value {
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": card(facts),
        }],
    })
}

fn card(facts: &Facts) -> Value {
    let color = match facts.event {
        Event::Requested | Event::Escalated => "Warning",
        Event::Overridden => "Attention",
        Event::Ended | Event::Revoked => "Default",
    };
    let mut body = vec![json!({
        "type": "TextBlock",
        "text": line(&facts.headline(), VALUE_ROOM, markdown),
        "weight": "Bolder",
        "size": "Medium",
        "color": color,
        "wrap": true,
    })];
    for (name, value) in facts.rows() {
        body.push(json!({
            "type": "RichTextBlock",
            "spacing": "Small",
            "inlines": [
                {"type": "TextRun", "text": format!("{name}: "), "weight": "Bolder"},
                {"type": "TextRun", "text": line(&value, VALUE_ROOM, plain)},
            ],
        }));
    }
    let content = facts.content_text(CONTENT_ROOM, plain);
    if !content.is_empty() {
        body.push(json!({
            "type": "RichTextBlock",
            "inlines": [{"type": "TextRun", "text": facts.content_title(), "weight": "Bolder"}],
        }));
        body.push(json!({
            "type": "RichTextBlock",
            "inlines": [{"type": "TextRun", "text": content, "fontType": "Monospace"}],
        }));
    }
    let mut actions = Vec::new();
    match &facts.link {
        Some(link) => {
            let title = if facts.event.asks() { "Decide" } else { "Open" };
            actions.push(json!({"type": "Action.OpenUrl", "title": title, "url": link}));
        }
        None => body.push(json!({
            "type": "RichTextBlock",
            "inlines": [{"type": "TextRun", "text": format!("See {}", facts.whereto())}],
        })),
    }
    json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": body,
        "actions": actions,
    })
}
