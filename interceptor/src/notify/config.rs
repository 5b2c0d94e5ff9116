//! Notifiers as the configuration has them: who hears what, and how they are told.

mod email;
mod slack;
mod webhook;

use std::{collections::BTreeSet, time::Duration};

use interceptor_core::glob::Glob;
use serde::{Deserialize, Deserializer, de::Error as _};

pub use self::{
    email::{EmailConfig, Security},
    slack::SlackConfig,
    webhook::{TeamsConfig, WebhookConfig},
};
use super::{facts::Facts, limits::NOTIFIERS_MAX, notice::Event};
use crate::secret::Source;

/// How long a notice is tried unless said otherwise: a night and the morning in which somebody mends the receiver.
const RETRY_FOR: Duration = Duration::from_secs(86_400);

/// Longest time that a notice may be tried, in seconds: a week. The queue is full long before.
const RETRY_FOR_S_MAX: u64 = 7 * 86_400;

/// Shortest: the first pause and a bit.
const RETRY_FOR_S_MIN: u64 = 10;

/// A notifier.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct NotifierConfig {
    /// What it is called on record.
    pub name: Box<str>,
    /// What it hears.
    pub filter: Filter,
    /// For how long it tries.
    pub retry_for: Duration,
    /// How it tells.
    pub kind: Kind,
}

/// How a notifier tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// By a request to a program.
    Webhook(Box<WebhookConfig>),
    /// In a channel of Slack.
    Slack(Box<SlackConfig>),
    /// In a channel of Microsoft Teams.
    Teams(TeamsConfig),
    /// By mail.
    Email(Box<EmailConfig>),
}

/// What a notifier hears. Break-glass it hears in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// What happens.
    pub on: BTreeSet<Event>,
    /// Only requests asked of one of these groups; of none: all.
    pub groups: Vec<Box<str>>,
    /// Only what one of these rules holds; of none: all.
    pub rules: Vec<Glob>,
    /// Only what one of these agents asks for; of none: all.
    pub agents: Vec<Glob>,
}

impl Filter {
    /// Whether a notifier with it hears of `facts`. `groups` are those that the approval was asked of.
    pub(super) fn hears(&self, facts: &Facts, groups: Option<&[Box<str>]>) -> bool {
        facts.event == Event::Overridden
            || (self.on.contains(&facts.event) && self.concerns(facts, groups))
    }

    /// Whether it is about what this notifier is for.
    pub(super) fn concerns(&self, facts: &Facts, groups: Option<&[Box<str>]>) -> bool {
        let any = |globs: &[Glob], name: &str| {
            globs.is_empty() || globs.iter().any(|glob| glob.matches(name))
        };
        // Where nobody knows whom it was asked of, it is better heard twice than not at all.
        let asked = self.groups.is_empty()
            || groups.is_none_or(|groups| groups.iter().any(|group| self.groups.contains(group)));
        asked && any(&self.rules, &facts.rule) && any(&self.agents, &facts.agent)
    }
}

impl NotifierConfig {
    /// Where its secrets stand.
    #[must_use]
    pub fn secrets(&self) -> Vec<&Source> {
        match &self.kind {
            Kind::Webhook(webhook) => webhook.secrets(),
            Kind::Slack(slack) => slack.secrets(),
            Kind::Teams(teams) => vec![&teams.url],
            Kind::Email(email) => email.secrets(),
        }
    }

    /// The name of its kind.
    #[must_use]
    pub const fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Webhook(_) => "webhook",
            Kind::Slack(_) => "slack",
            Kind::Teams(_) => "teams",
            Kind::Email(_) => "email",
        }
    }
}

/// The list of the configuration: each name once.
///
/// # Errors
/// Those of the deserializer, and where two have one name or there are too many.
pub fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NotifierConfig>, D::Error> {
    let list = Vec::<NotifierConfig>::deserialize(deserializer)?;
    if list.len() > NOTIFIERS_MAX {
        return Err(D::Error::custom(format!(
            "{} notifiers are too many: up to {NOTIFIERS_MAX} can be had",
            list.len()
        )));
    }
    let mut names = BTreeSet::new();
    for notifier in &list {
        if !names.insert(&notifier.name) {
            return Err(D::Error::custom(format!(
                "two notifiers are called `{}`: the record tells them apart by name, so give each its own",
                notifier.name
            )));
        }
    }
    Ok(list)
}

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    name: Box<str>,
    on: Option<BTreeSet<Event>>,
    #[serde(default)]
    groups: Vec<Box<str>>,
    #[serde(default)]
    rules: Vec<Box<str>>,
    #[serde(default)]
    agents: Vec<Box<str>>,
    retry_for: Option<Box<str>>,
    webhook: Option<Box<WebhookConfig>>,
    slack: Option<Box<SlackConfig>>,
    teams: Option<TeamsConfig>,
    email: Option<Box<EmailConfig>>,
}

impl TryFrom<Fields> for NotifierConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let name = fields.name;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !(1..=48).contains(&name.len()) || !name.chars().all(is_name) {
            return Err(format!(
                "`{}` can't name a notifier: up to 48 letters, digits, - and _ can",
                name.escape_debug()
            ));
        }
        let kinds: Vec<(&str, Kind)> = [
            fields
                .webhook
                .map(|webhook| ("webhook", Kind::Webhook(webhook))),
            fields.slack.map(|slack| ("slack", Kind::Slack(slack))),
            fields.teams.map(|teams| ("teams", Kind::Teams(teams))),
            fields.email.map(|email| ("email", Kind::Email(email))),
        ]
        .into_iter()
        .flatten()
        .collect();
        let given: Vec<&str> = kinds.iter().map(|(name, _)| *name).collect();
        let given = given.join(" and ");
        let mut kinds = kinds.into_iter();
        let kind = match (kinds.next(), kinds.next()) {
            (Some((_, kind)), None) => kind,
            (None, _) => {
                return Err(format!(
                    "notifier `{name}` tells nobody: it needs one of webhook, slack, teams, email"
                ));
            }
            _ => {
                return Err(format!(
                    "notifier `{name}` has {given}: each needs an entry of its own, with its own name"
                ));
            }
        };
        let on = match fields.on {
            Some(on) if on.is_empty() => {
                return Err(format!(
                    "notifier `{name}` hears nothing: leave `on` out for what is usual, or name some of requested, escalated, ended, overridden, revoked"
                ));
            }
            Some(on) => on,
            None => usual(&kind),
        };
        let retry_for = match fields.retry_for {
            None => RETRY_FOR,
            Some(text) => duration(&text)?,
        };
        let globs = |texts: &[Box<str>]| texts.iter().map(|text| Glob::new(text)).collect();
        Ok(Self {
            filter: Filter {
                on,
                groups: fields.groups,
                rules: globs(&fields.rules),
                agents: globs(&fields.agents),
            },
            name,
            retry_for,
            kind,
        })
    }
}

/// What a notifier hears that doesn't say: everything, but for tickets, which are opened once, and pagers, which
/// nobody wants to go off at night because something can't happen any more.
fn usual(kind: &Kind) -> BTreeSet<Event> {
    use Event::{Ended, Escalated, Overridden, Requested, Revoked};
    match kind {
        Kind::Webhook(webhook) if webhook.opens_tickets() => [Requested, Overridden].into(),
        Kind::Webhook(webhook) if webhook.calls_people() => {
            [Requested, Escalated, Ended, Overridden].into()
        }
        _ => [Requested, Escalated, Ended, Overridden, Revoked].into(),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let whole = |unit: char, seconds: u64| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(seconds)
    };
    whole('s', 1)
        .or_else(|| whole('m', 60))
        .or_else(|| whole('h', 3_600))
        .or_else(|| whole('d', 86_400))
        .filter(|seconds| (RETRY_FOR_S_MIN..=RETRY_FOR_S_MAX).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            format!(
                "`retry_for` is `{}`: it has to be between 10s and 7d; `90s`, `15m`, `24h` and `2d` are",
                text.escape_debug()
            )
        })
}

#[cfg(test)]
mod tests;
