//! Slack.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::address::ServiceUrl;
use crate::secret::Source;

/// Where Slack's methods are, but for those who have a Slack of their own (GovSlack).
const API: &str = "https://slack.com/api";

/// A channel of Slack.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct SlackConfig {
    /// The bot's token, `xoxb-…`.
    pub bot_token: Source,
    /// The app's token, `xapp-…`, for Socket Mode. Without it messages have no buttons to decide by.
    pub app_token: Option<Source>,
    /// The channel's id.
    pub channel: Box<str>,
    /// Whose click is whose vote: reviewers by their ids in Slack.
    pub people: BTreeMap<Box<str>, Box<str>>,
    /// Where Slack's methods are.
    pub api: ServiceUrl,
}

impl SlackConfig {
    pub(super) fn secrets(&self) -> Vec<&Source> {
        std::iter::once(&self.bot_token)
            .chain(&self.app_token)
            .collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    bot_token: Source,
    app_token: Option<Source>,
    channel: Box<str>,
    #[serde(default)]
    people: BTreeMap<Box<str>, Box<str>>,
    api: Option<Box<str>>,
}

impl TryFrom<Fields> for SlackConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        if !is_id(&fields.channel, &['C', 'G', 'D']) {
            return Err(format!(
                "`channel` is `{}`: the channel's id belongs here (`C0123456789`), which Slack shows at the end of its details; a name may be given to another",
                fields.channel.escape_debug()
            ));
        }
        for (user, person) in &fields.people {
            if !is_id(user, &['U', 'W']) {
                return Err(format!(
                    "`people` has `{}`: a member's id belongs here (`U0123456789`, in their profile under `Copy member ID`); a display name can be changed by its owner",
                    user.escape_debug()
                ));
            }
            if person.is_empty() {
                return Err(format!(
                    "`people` maps `{user}` to nobody: a reviewer's name belongs there"
                ));
            }
        }
        if !fields.people.is_empty() && fields.app_token.is_none() {
            return Err(
                "`people` needs an `app_token` (`xapp-…`, with the scope `connections:write`): clicks come over Socket Mode"
                    .to_owned(),
            );
        }
        let api = fields.api.as_deref().unwrap_or(API);
        Ok(Self {
            bot_token: fields.bot_token,
            app_token: fields.app_token,
            channel: fields.channel,
            people: fields.people,
            api: ServiceUrl::parse(api).map_err(|why| format!("`api`: {why}"))?,
        })
    }
}

fn is_id(text: &str, first: &[char]) -> bool {
    let is_rest = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
    text.starts_with(first) && (2..=32).contains(&text.len()) && text.chars().all(is_rest)
}
