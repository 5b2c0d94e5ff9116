//! What the configuration may say, and what is said where it may not.

use std::path::Path;

use super::*;
use crate::{config::Config, notify::tests::configs};

fn error(yaml: &str) -> String {
    let text = format!("console: {{}}\nnotify:\n{yaml}");
    let error = Config::parse(&text, Path::new("i.yaml")).unwrap_err();
    error.to_string()
}

#[test]
fn every_kind_can_be_configured() {
    let all = configs(
        "- name: audit\n  groups: [dba]\n  rules: ['pay-*']\n  agents: ['ci-*']\n  on: [requested, ended]\n  retry_for: 2d\n  \
           webhook: {url: 'https://hooks.example.com/in', secret: {file: /etc/interceptor/secrets/hook}, headers: {X-Team: red, Authorization: {env: H}}}\n\
         - {name: pager, webhook: {url: 'https://events.pagerduty.com/v2/enqueue', template: pagerduty, values: {routing_key: {env: K}}}}\n\
         - {name: tickets, webhook: {url: 'https://x.atlassian.net/rest/api/3/issue', template: jira, values: {project: OPS, issue_type: Task}}}\n\
         - {name: own, webhook: {url: {env: U}, template: {a: ['{{agent}} {{n}}', 1]}, values: {n: 7}}}\n\
         - {name: chat, slack: {bot_token: {env: B}, app_token: {env: A}, channel: C0123, people: {U0123: alice}}}\n\
         - {name: teams, teams: {url: {file: /etc/interceptor/secrets/teams}}}\n\
         - {name: mail, email: {server: smtp.example.com, user: u, password: {env: P}, from: a@example.com, to: ['B <b@example.com>']}}\n",
    );
    let kinds: Vec<&str> = all.iter().map(NotifierConfig::kind_name).collect();
    assert_eq!(
        kinds,
        [
            "webhook", "webhook", "webhook", "webhook", "slack", "teams", "email"
        ]
    );
    assert_eq!(all[0].retry_for, Duration::from_secs(2 * 86_400));
    assert_eq!(all[0].filter.on, [Event::Requested, Event::Ended].into());
    assert_eq!(all[0].secrets().len(), 2);
    assert_eq!(all[1].retry_for, Duration::from_secs(86_400));
    // A pager doesn't go off because nothing happens any more.
    assert!(all[1].filter.on.len() == 4 && !all[1].filter.on.contains(&Event::Revoked));
    assert_eq!(all[4].filter.on.len(), 5);
    // A ticket is opened once.
    assert_eq!(
        all[2].filter.on,
        [Event::Requested, Event::Overridden].into()
    );
    assert_eq!(all[4].secrets().len(), 2);
    let Kind::Email(email) = &all[6].kind else {
        panic!()
    };
    assert_eq!((email.port, email.security), (465, Security::Smtps));
}

#[test]
fn secrets_in_files_are_hidden_from_agents() {
    let text =
        "console: {}\nnotify: [{name: t, teams: {url: {file: /etc/interceptor/secrets/teams}}}]";
    let config = Config::parse(text, Path::new("i.yaml")).unwrap();
    let hidden = config.places().hidden;
    assert!(hidden.contains(&"/etc/interceptor/secrets/teams".into()));
}

#[test]
fn errors_name_what_is_wrong_and_what_would_be_right() {
    let hook = |rest: &str| {
        format!("- {{name: a, webhook: {{url: 'https://h.example/s3cret', {rest}}}}}\n")
    };
    let slack = |rest: &str| format!("- {{name: a, slack: {{bot_token: {{env: B}}, {rest}}}}}\n");
    let email = |rest: &str| format!("- {{name: a, email: {{from: a@example.com, {rest}}}}}\n");
    for (yaml, expected) in [
        (
            "- {name: a}\n".to_owned(),
            "notifier `a` tells nobody: it needs one of webhook, slack, teams, email",
        ),
        (
            "- {name: a, teams: {url: {env: T}}, slack: {bot_token: {env: B}, channel: C1}}\n"
                .to_owned(),
            "notifier `a` has slack and teams: each needs an entry of its own, with its own name",
        ),
        (
            "- {name: a, teams: {url: {env: T}}}\n- {name: a, teams: {url: {env: U}}}\n".to_owned(),
            "two notifiers are called `a`: the record tells them apart by name, so give each its own",
        ),
        (
            "- {name: 'a b', teams: {url: {env: T}}}\n".to_owned(),
            "`a b` can't name a notifier: up to 48 letters, digits, - and _ can",
        ),
        (
            "- {name: a, group: [dba], teams: {url: {env: T}}}\n".to_owned(),
            "unknown name `group`; did you mean `groups`?",
        ),
        (
            "- {name: a, on: [], teams: {url: {env: T}}}\n".to_owned(),
            "notifier `a` hears nothing: leave `on` out for what is usual, or name some of requested, escalated, ended, overridden, revoked",
        ),
        (
            "- {name: a, on: [asked], teams: {url: {env: T}}}\n".to_owned(),
            "unknown variant `asked`, expected one of requested, escalated, ended, overridden, revoked",
        ),
        (
            "- {name: a, retry_for: 5s, teams: {url: {env: T}}}\n".to_owned(),
            "`retry_for` is `5s`: it has to be between 10s and 7d; `90s`, `15m`, `24h` and `2d` are",
        ),
        (
            "- {name: a, teams: {url: 'https://h.example/s3cret'}}\n".to_owned(),
            "names with values belong here (`name: value`)",
        ),
        (
            hook(""),
            "`secret` is missing: what requests are signed with, so that receivers know whom they are from; `echo whsec_$(openssl rand -base64 32)` makes one",
        ),
        (
            hook("secret: {env: S}, values: {x: z}"),
            "`values` has `x`, and there is no `template` that could name it",
        ),
        (
            hook("secret: {env: S}, headers: {Host: x}"),
            "`host` is not yours to set: interceptor sends it itself",
        ),
        (
            hook("secret: {env: S}, headers: {Webhook-Id: x}"),
            "`webhook-id` is not yours to set: interceptor sends it itself",
        ),
        (
            hook("secret: {env: S}, headers: {'a b': x}"),
            "`a b` names no header field",
        ),
        (
            hook("secret: {env: S}, headers: {a: \"s3cret\\r\\nb: c\"}"),
            "the value of `a` can't stand in a header",
        ),
        (
            hook("template: pagerduti"),
            "`pagerduti` is no template: pagerduty, jira and servicenow are, and a JSON document of your own",
        ),
        (
            hook("template: pagerduty"),
            "`values` has no `routing_key`, which this template needs: the integration's key, a secret",
        ),
        (
            hook("template: {a: '{{agnt}}'}"),
            "the template names `{{agnt}}`; did you mean `{{agent}}`?",
        ),
        (
            hook("template: {a: '{{agent'}"),
            "a `{{` in the template has no `}}`",
        ),
        (
            hook("template: {a: '{{agent}}'}, values: {x: z}"),
            "`values` has `x`, which the template doesn't name",
        ),
        (
            hook("template: {a: '{{agent}}'}, values: {agent: z}"),
            "`values` has `agent`, which is what is told; give yours another name",
        ),
        (
            "- {name: a, webhook: {url: 'http://h.example/s3cret', secret: {env: S}}}\n".to_owned(),
            "`url`: `http://h.example` would send it in the clear: `https://` does not; only loopback may do without",
        ),
        (
            "- {name: a, webhook: {url: {enw: S}, secret: {env: S}}}\n".to_owned(),
            "unknown name `enw`; did you mean `env`?",
        ),
        (
            slack("channel: '#ops'"),
            "`channel` is `#ops`: the channel's id belongs here (`C0123456789`), which Slack shows at the end of its details; a name may be given to another",
        ),
        (
            slack("channel: C1, app_token: {env: A}, people: {alice: alice}"),
            "`people` has `alice`: a member's id belongs here (`U0123456789`, in their profile under `Copy member ID`); a display name can be changed by its owner",
        ),
        (
            slack("channel: C1, people: {U1: alice}"),
            "`people` needs an `app_token` (`xapp-…`, with the scope `connections:write`): clicks come over Socket Mode",
        ),
        (
            email("server: smtp.example.com, security: none, to: [b@example.com]"),
            "`security: none` would send mail to smtp.example.com in the clear; `smtps` and `starttls` do not, and only a server on loopback may do without",
        ),
        (
            email("server: 'smtp.example.com/x', to: [b@example.com]"),
            "`server` is `smtp.example.com/x`: a host's name belongs here (`smtp.example.com`), and its port under `port`",
        ),
        (
            email("server: smtp.example.com, to: []"),
            "`to` has 0 addresses: from 1 to 50 belong there; a mailing list is one",
        ),
        (
            email("server: smtp.example.com, to: [\"b@example.com\\r\\nBcc: x@y.z\"]"),
            "`to` has `b@example.com\\r\\nBcc: x@y.z`: `reviews@example.com` and `Reviews <reviews@example.com>` are addresses",
        ),
        (
            email("server: smtp.example.com, user: u, to: [b@example.com]"),
            "`password` is missing: `user` alone logs nobody in",
        ),
    ] {
        let error = error(&yaml);
        let (place, rest) = error.split_once(": ").unwrap();
        assert!(place.starts_with("i.yaml:"), "{error}");
        assert_eq!(rest, expected, "{yaml}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn the_examples_of_the_readme_can_be_taken_as_they_are() {
    let readme = include_str!("../../../../README.md");
    let (_, section) = readme.split_once("## Telling reviewers\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let examples = section.split("```yaml\n").skip(1);
    let examples: Vec<&str> = examples
        .map(|rest| rest.split_once("```").unwrap().0)
        .collect();
    assert_eq!(examples.len(), 2);
    let text = format!("console: {{}}\n{}", examples[0]);
    let all = Config::parse(&text, Path::new("i.yaml")).unwrap().notify;
    assert_eq!(all.len(), 5);
    let own = configs(&format!("  - name: own\n{}", examples[1]));
    assert_eq!(own.len(), 1);
}
