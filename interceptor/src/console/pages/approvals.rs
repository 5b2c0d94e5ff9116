//! What waits for people, and answering it.

use std::{collections::VecDeque, sync::Arc};

use askama::Template;
use axum::{
    Form,
    extract::{Path, State as Extracted},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use interceptor_core::{
    limits,
    operation::{Protocol, Touch, radius::BlastRadius},
    record::{ApprovalId, Choice, Consent, Window},
    ruling::{Otherwise, WindowScope},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Frame, done, error, is_own_form, render, view};
use crate::{
    approval::{Content, Detail, SecurityKey, Signed, Standing, State, Summary},
    console::{
        daemon::Refused,
        people::Session,
        server::{App, SignedIn},
        text::{self, Html, Language, Shown},
    },
    control::{Ballot, Reason},
    words::words,
};

/// Questions that the list shows whole; the rest is counted, and comes up as these are answered.
const LISTED_MAX: usize = 100;

/// Latest outcomes that the list shows.
const ENDED_MAX: usize = 20;

/// Operations of the session that are shown before the one in question.
const BEFORE_MAX: usize = 8;

/// Bytes of statements that one page puts into words, 1.5 s at the very most; of those behind them effects and names are
/// told, until they are opened.
const WORDED_BYTES_MAX: usize = 8 * limits::WORDS_STATEMENT_BYTES_MAX;

/// Longest list of a session's records that is looked through for them, in bytes.
const RECORDS_BYTES_MAX: usize = 16 << 20;

/// A question on a page.
#[derive(Debug, Clone)]
pub(in crate::console) struct Card {
    pub(in crate::console) id: ApprovalId,
    is_pending: bool,
    state: Html,
    style: &'static str,
    agent: Html,
    labels: Vec<Html>,
    action: Html,
    protocol: &'static str,
    destination: Html,
    resources: Vec<(Html, &'static str)>,
    effects: Vec<&'static str>,
    /// What it does, in words.
    sentences: Vec<Html>,
    /// What must not be overlooked in that.
    warnings: Vec<&'static str>,
    rule: Html,
    reason: Html,
    content: Option<Shown>,
    parameters: Vec<(usize, Html, bool)>,
    options: Vec<(Html, Html)>,
    digest: String,
    who: String,
    agreed: usize,
    quorum: u32,
    votes: Vec<(Html, &'static str, Html)>,
    waits: bool,
    needs_reason: bool,
    needs_key: bool,
    lets_by_silence: bool,
    may_approve: bool,
    may_deny: bool,
    may_retract: bool,
    may_override: bool,
    /// Why whoever looks may not approve it; empty where they may.
    why_not: Html,
    requested: String,
    requested_ago: String,
    until: String,
    /// It is found out what it would touch.
    is_estimated: bool,
    /// What, once that is known.
    radius: Option<Radius>,
    /// Whether everything that would run is in sight, so that it can be answered from the list.
    is_in_sight: bool,
}

/// What a question's operation would touch.
#[derive(Debug, Clone)]
struct Radius {
    /// What becomes of what; whether that is because of something else.
    impacts: Vec<(Html, bool)>,
    unknown: Vec<Html>,
    asked_as: Option<Html>,
    took_ms: u64,
}

impl Radius {
    fn new(radius: &BlastRadius) -> Self {
        let is_of_several = radius.is_of_several();
        let impacts = radius.impacts.iter().map(|impact| {
            let what = if is_of_several {
                format!("{}: {impact}", impact.statement)
            } else {
                impact.to_string()
            };
            (text::line(&what), impact.through.is_some())
        });
        Self {
            impacts: impacts.collect(),
            unknown: radius.unknown.iter().map(|why| text::line(why)).collect(),
            asked_as: radius.asked_as.as_deref().map(text::line),
            took_ms: radius.took_ms,
        }
    }
}

/// `detail` as a card.
pub(in crate::console) fn card(detail: &Detail) -> Card {
    let mut room = limits::WORDS_STATEMENT_BYTES_MAX;
    card_within(detail, &mut room)
}

/// `detail` as a card, with its content in words as far as that is within `room`.
fn card_within(detail: &Detail, room: &mut usize) -> Card {
    let summary = &detail.summary;
    let content = detail.content.as_ref();
    let content_bytes = content.map_or(0, |content| match content {
        Content::Text(text) | Content::Hex(text) => text.len(),
    });
    let is_within = content_bytes <= *room;
    *room = room.saturating_sub(content_bytes);
    let words = words(summary, content.filter(|_| is_within));
    let language = match summary.protocol {
        Protocol::Postgres => Language::Sql,
        _ => Language::Plain,
    };
    let content = detail.content.as_ref().map(|content| match content {
        Content::Text(content) => text::block(content, language),
        Content::Hex(hex) => text::block(hex, Language::Plain),
    });
    let parameters: Vec<_> = detail
        .parameters
        .iter()
        .enumerate()
        .map(|(at, value)| {
            let shown = match (&value.value, &value.hex) {
                (Value::Null, _) => "NULL".to_owned(),
                (Value::String(text), None) => format!("'{}'", text.replace('\'', "''")),
                (other, None) => other.to_string(),
                (other, Some(hex)) => format!("{} (bytes {hex})", plain(other)),
            };
            (at + 1, text::line(&shown), shown.len() > 200)
        })
        .collect();
    let options: Vec<_> = detail
        .options
        .iter()
        .map(|(name, value)| (text::line(name), text::line(value)))
        .collect();
    let is_short = parameters.len() <= 8
        && parameters.iter().all(|(_, _, is_long)| !is_long)
        && options.len() <= 4;
    let is_in_sight = is_short && content.as_ref().is_some_and(|shown| shown.rest_lines == 0);
    let (state, style) = view::state(&summary.state);
    let yours = summary.yours.as_ref();
    let may = |choice| yours.is_some_and(|yours| yours.may.contains(&choice));
    Card {
        id: summary.id,
        is_pending: summary.state == State::Pending,
        state: text::line(&state),
        style,
        agent: text::line(&summary.agent),
        labels: view::labels(&summary.labels)
            .iter()
            .map(|label| text::line(label))
            .collect(),
        action: text::line(&summary.action),
        protocol: summary.protocol.name(),
        destination: text::line(&summary.destination.to_string()),
        resources: summary
            .resources
            .iter()
            .map(|resource| {
                (
                    text::line(&resource.to_string()),
                    match resource.touch {
                        Touch::Read => "read",
                        Touch::Write => "written",
                    },
                )
            })
            .collect(),
        effects: summary.effects.names().collect(),
        sentences: words
            .sentences
            .iter()
            .map(|sentence| text::line(&format!("{}.", sentence.text)))
            .collect(),
        warnings: words.warnings().iter().map(|one| one.text()).collect(),
        rule: text::line(&summary.rule),
        reason: text::line(&summary.reason),
        content,
        parameters,
        options,
        digest: summary.digest.to_string(),
        who: who(summary),
        agreed: summary
            .votes
            .iter()
            .filter(|vote| vote.choice == Choice::Approve)
            .count(),
        quorum: summary.quorum,
        votes: summary
            .votes
            .iter()
            .map(|vote| {
                let how = match vote.choice {
                    Choice::Approve => "approved",
                    Choice::Deny => "denied",
                    Choice::Retract => "took it back",
                };
                (text::line(&vote.by), how, text::line(&vote.reason))
            })
            .collect(),
        waits: summary.waits,
        needs_reason: summary.reason_required,
        needs_key: summary.security_key,
        lets_by_silence: summary.otherwise == Otherwise::Allow,
        may_approve: may(Choice::Approve),
        may_deny: may(Choice::Deny),
        may_retract: may(Choice::Retract),
        may_override: yours.is_some_and(|yours| yours.r#override),
        why_not: text::line(yours.map_or("", |yours| &yours.why)),
        requested: view::time(summary.requested),
        requested_ago: view::ago(summary.requested),
        until: summary.until.to_string(),
        is_estimated: summary.estimate.is_some(),
        radius: summary.blast_radius.as_ref().map(Radius::new),
        is_in_sight,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn who(summary: &Summary) -> String {
    let mut who = Vec::new();
    if !summary.groups.is_empty() {
        who.push(format!("members of {}", summary.groups.join(", ")));
    }
    if !summary.people.is_empty() {
        who.push(summary.people.join(", "));
    }
    if who.is_empty() {
        return "any reviewer".to_owned();
    }
    who.join(" and ")
}

#[derive(Template)]
#[template(path = "card.html")]
struct CardPart<'a> {
    frame: &'a Frame,
    card: &'a Card,
}

/// A card by itself, to be put into a page that is open.
pub(in crate::console) fn part(app: &App, session: &Session, card: &Card) -> String {
    let frame = &Frame::new(app, session, "approvals");
    // Rendering into a string can't fail.
    CardPart { frame, card }.render().unwrap_or_default()
}

#[derive(Template)]
#[template(path = "approvals.html")]
struct ListPage<'a> {
    frame: &'a Frame,
    cards: Vec<Card>,
    more: usize,
    ended: Vec<Card>,
    grants: Vec<Grant>,
}

/// What was approved and isn't used up.
struct Grant {
    id: String,
    agent: Html,
    action: Html,
    scope: &'static str,
    destination: Html,
    rule: Html,
    left: u32,
    until: String,
    by: String,
}

/// What waits, and what became of the latest.
pub(super) async fn list(
    Extracted(app): Extracted<Arc<App>>,
    SignedIn { session }: SignedIn,
) -> Response {
    let frame = Frame::new(&app, &session, "approvals");
    match find(&app, &session).await {
        Ok((cards, more, ended, grants)) => render(&ListPage {
            frame: &frame,
            cards,
            more,
            ended,
            grants,
        }),
        Err(refused) => error(&frame, &refused),
    }
}

type Found = (Vec<Card>, usize, Vec<Card>, Vec<Grant>);

async fn find(app: &App, session: &Session) -> Result<Found, Refused> {
    let by = &session.identity;
    let all: Vec<Summary> = app.daemon.get(by, "/v1/approvals?ended=true").await?;
    let (open, over): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|summary| summary.state == State::Pending);
    let more = open.len().saturating_sub(LISTED_MAX);
    let mut cards = Vec::new();
    let mut room = WORDED_BYTES_MAX;
    for summary in open.iter().take(LISTED_MAX) {
        // One that ended meanwhile is shown as that.
        match app
            .daemon
            .get::<Detail>(by, &format!("/v1/approvals/{}", summary.id))
            .await
        {
            Ok(detail) => cards.push(card_within(&detail, &mut room)),
            Err(refused) if refused.status == StatusCode::NOT_FOUND => {}
            Err(refused) => return Err(refused),
        }
    }
    let ended = over
        .into_iter()
        .take(ENDED_MAX)
        .map(|summary| card(&ended(summary)));
    let grants: Vec<Standing> = app.daemon.get(by, "/v1/approvals/grants").await?;
    let grants = grants.iter().map(|standing| Grant {
        id: standing.id.to_string(),
        agent: text::line(&standing.agent),
        action: text::line(&standing.action),
        scope: standing.scope.name(),
        destination: text::line(&standing.destination),
        rule: text::line(&standing.rule),
        left: standing.left,
        until: view::time(standing.until),
        by: standing.by.join(", "),
    });
    Ok((cards, more, ended.collect(), grants.collect()))
}

fn ended(summary: Summary) -> Detail {
    Detail {
        summary,
        content: None,
        parameters: Vec::new(),
        options: Vec::new(),
    }
}

#[derive(Template)]
#[template(path = "approval.html")]
struct OnePage<'a> {
    frame: &'a Frame,
    card: Card,
    session: String,
    number: u64,
    process: Vec<(&'static str, Html)>,
    before: Vec<(u64, String, Html)>,
    earlier: Vec<Card>,
    windows: Vec<(String, String)>,
    keys: String,
    challenge: String,
    host: &'a str,
}

/// One question, with everything that helps to answer it.
pub(super) async fn one(
    Extracted(app): Extracted<Arc<App>>,
    SignedIn { session }: SignedIn,
    Path(id): Path<String>,
) -> Response {
    let frame = Frame::new(&app, &session, "approvals");
    let by = &session.identity;
    let found = async {
        let detail: Detail = app
            .daemon
            .get(by, &format!("/v1/approvals/{}", checked(&id)?))
            .await?;
        let before = before(&app, &session, &detail.summary).await;
        let all: Vec<Summary> = app.daemon.get(by, "/v1/approvals?ended=true").await?;
        let keys: Vec<SecurityKey> = if frame.reviews() && detail.summary.security_key {
            app.daemon.get(by, "/v1/keys").await?
        } else {
            Vec::new()
        };
        Ok::<_, Refused>((detail, before, all, keys))
    };
    let (detail, before, all, keys) = match found.await {
        Ok(found) => found,
        Err(refused) => return error(&frame, &refused),
    };
    let summary = &detail.summary;
    let earlier = all
        .into_iter()
        .filter(|other| {
            other.id != summary.id
                && other.state != State::Pending
                && other.shape.is_some()
                && other.shape == summary.shape
        })
        .take(5)
        .map(|other| card(&ended(other)))
        .collect();
    let process = &summary.process;
    let user = process.uid.to_string();
    let command = process.arguments.join(" ");
    let around = summary.surroundings.clone().unwrap_or_default();
    let user = match &around.user {
        Some(name) => format!("{name} ({user})"),
        None => user,
    };
    let mut process = [
        (
            "Executable",
            process.executable.as_deref().unwrap_or("can't be read"),
        ),
        ("Command line", command.as_str()),
        ("Process", &process.pid.to_string()),
        ("User", &user),
        ("Control group", &process.cgroup),
    ]
    .map(|(name, value)| (name, text::line(value)))
    .to_vec();
    let more = [
        ("Working folder", &around.folder),
        ("Container", &around.container),
    ];
    process.extend(
        more.iter()
            .filter_map(|(name, value)| Some((*name, text::line(value.as_deref()?)))),
    );
    process.extend(around.ancestors.iter().map(|ancestor| {
        let command = match ancestor.arguments.as_slice() {
            [] => ancestor.executable.as_deref().unwrap_or("?").to_owned(),
            arguments => arguments.join(" "),
        };
        let short: String = command.chars().take(200).collect();
        let cut = if short.len() < command.len() {
            " …"
        } else {
            ""
        };
        (
            "Started by",
            text::line(&format!("{} {short}{cut}", ancestor.pid)),
        )
    }));
    let keys: Vec<Value> = keys
        .iter()
        .filter_map(|key| serde_json::to_value(key).ok()?.get("credential").cloned())
        .collect();
    render(&OnePage {
        frame: &frame,
        card: card(&detail),
        session: summary.session.to_string(),
        number: summary.number,
        process,
        before,
        earlier,
        windows: windows(summary),
        keys: Value::from(keys).to_string(),
        challenge: Consent::text(summary.id, &summary.digest, None),
        host: &app.host,
    })
}

/// The id in an address, which is all that goes into one of ours.
fn checked(id: &str) -> Result<ApprovalId, Refused> {
    id.parse()
        .map_err(|error: String| Refused::new(StatusCode::NOT_FOUND, &error, ""))
}

/// What a yes may be for, as a form's values and in words.
fn windows(summary: &Summary) -> Vec<(String, String)> {
    let Some(Window {
        scope,
        seconds,
        at_most,
    }) = summary.windows
    else {
        return Vec::new();
    };
    let scopes = [
        WindowScope::Operation,
        WindowScope::Shape,
        WindowScope::Rule,
    ];
    scopes
        .into_iter()
        .filter(|other| *other <= scope)
        .filter(|other| *other != WindowScope::Shape || summary.shape.is_some())
        .map(|other| {
            let what = match other {
                WindowScope::Operation => "this operation again",
                WindowScope::Shape => "operations that differ in their values alone",
                WindowScope::Rule => "whatever this rule holds of this agent",
            };
            let value = format!("{}:{seconds}:{at_most}", other.name());
            let text = format!(
                "also {what}, for {}, at most {at_most} times",
                view::span(seconds)
            );
            (value, text)
        })
        .collect()
}

/// What the session did before.
async fn before(app: &App, session: &Session, summary: &Summary) -> Vec<(u64, String, Html)> {
    let path = format!("/v1/sessions/{}", summary.session);
    let Ok(records) = super::sessions::records(app, session, &path, RECORDS_BYTES_MAX).await else {
        return Vec::new();
    };
    let mut before: VecDeque<(u64, String, Html)> = VecDeque::new();
    for record in &records {
        let Some(number) = record["operation"]
            .as_u64()
            .filter(|number| *number < summary.number)
        else {
            continue;
        };
        match record["kind"].as_str() {
            Some("operation") if before.back().is_none_or(|(last, _, _)| *last != number) => {
                if before.len() == BEFORE_MAX {
                    before.pop_front();
                }
                let what = plain(&record["content"]);
                let short: String = what.chars().take(200).collect();
                let cut = if short.len() < what.len() { " …" } else { "" };
                before.push_back((number, String::new(), text::line(&format!("{short}{cut}"))));
            }
            Some("decision") => {
                if let Some((_, verdict, _)) = before.iter_mut().find(|(of, _, _)| *of == number) {
                    *verdict = plain(&record["verdict"]);
                }
            }
            _ => {}
        }
    }
    before.into()
}

/// What a reviewer says.
#[derive(Debug, Deserialize)]
pub(super) struct VoteForm {
    csrf: String,
    choice: Choice,
    /// What they were shown.
    digest: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    window: String,
    #[serde(default)]
    signed: String,
}

pub(super) async fn vote(
    Extracted(app): Extracted<Arc<App>>,
    SignedIn { session }: SignedIn,
    Path(id): Path<String>,
    headers: HeaderMap,
    Form(form): Form<VoteForm>,
) -> Response {
    let voted = async {
        is_own_form(&session, &form.csrf)?;
        let id = checked(&id)?;
        let path = format!("/v1/approvals/{id}");
        let detail: Detail = app.daemon.get(&session.identity, &path).await?;
        if detail.summary.digest.to_string() != form.digest {
            return Err(Refused::new(
                StatusCode::CONFLICT,
                "this isn't what you were shown; nothing was done",
                "load the page again",
            ));
        }
        let ballot = Ballot {
            choice: form.choice,
            reason: form.reason.trim().to_owned(),
            window: window(&form.window)?,
            signed: signed(&form.signed)?,
        };
        let _: Summary = app
            .daemon
            .post(&session.identity, &format!("{path}/votes"), &ballot)
            .await?;
        Ok(())
    };
    let result = voted.await;
    done(&app, &session, "/approvals", &headers, result)
}

fn window(text: &str) -> Result<Option<Window>, Refused> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut parts = text.split(':');
    let mut next = || parts.next().unwrap_or_default();
    let scope = serde_json::from_value(Value::from(next()));
    let (seconds, at_most) = (next().parse(), next().parse());
    match (scope, seconds, at_most) {
        (Ok(scope), Ok(seconds), Ok(at_most)) => Ok(Some(Window {
            scope,
            seconds,
            at_most,
        })),
        _ => Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "that is no window",
            "load the page again",
        )),
    }
}

fn signed(json: &str) -> Result<Option<Signed>, Refused> {
    if json.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(json).map(Some).map_err(|error| {
        let what = format!("the security key's answer can't be read: {error}");
        Refused::new(StatusCode::BAD_REQUEST, &what, "try again")
    })
}

/// Something that takes a reason.
#[derive(Debug, Deserialize)]
pub(super) struct ReasonForm {
    csrf: String,
    #[serde(default)]
    reason: String,
}

pub(super) async fn override_alone(
    Extracted(app): Extracted<Arc<App>>,
    SignedIn { session }: SignedIn,
    Path(id): Path<String>,
    headers: HeaderMap,
    Form(form): Form<ReasonForm>,
) -> Response {
    let result = give_reason::<Summary>(&app, &session, &id, "override", &form).await;
    done(&app, &session, "/approvals", &headers, result)
}

pub(super) async fn revoke(
    Extracted(app): Extracted<Arc<App>>,
    SignedIn { session }: SignedIn,
    Path(id): Path<String>,
    headers: HeaderMap,
    Form(form): Form<ReasonForm>,
) -> Response {
    let result = give_reason::<Standing>(&app, &session, &id, "revocation", &form).await;
    done(&app, &session, "/approvals", &headers, result)
}

async fn give_reason<T: serde::de::DeserializeOwned>(
    app: &App,
    session: &Session,
    id: &str,
    what: &str,
    form: &ReasonForm,
) -> Result<(), Refused> {
    is_own_form(session, &form.csrf)?;
    let path = format!("/v1/approvals/{}/{what}", checked(id)?);
    let reason = Reason {
        reason: form.reason.trim().to_owned(),
    };
    let _: T = app.daemon.post(&session.identity, &path, &reason).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::Role;

    /// A question of `statement`'s whose viewer may answer `may`.
    fn detail(statement: &str, may: &[&str]) -> Detail {
        let is_free = may.contains(&"approve");
        let why = if is_free { "" } else { "`eve` <owns> it" };
        serde_json::from_value(json!({
            "id": "00000000000000ff", "state": "pending", "session": "0000000000000001", "number": 3,
            "agent": "a", "labels": {}, "destination": "192.0.2.1:5432", "protocol": "postgres",
            "process": {"pid": 7, "uid": 0, "executable": null, "arguments": [], "cgroup": "/a"},
            "action": "DELETE", "effects": ["write"],
            "resources": [{"kind": "table", "namespace": null, "name": "t", "touch": "write"}],
            "digest": format!("sha256:{}", "ab".repeat(32)),
            "rule": "writes-wait", "reason": "", "policy": "", "groups": [], "quorum": 1, "people": [],
            "reason_required": false, "otherwise": "deny", "windows": null, "waits": true, "retry": 9,
            "votes": [], "requested": "2026-11-20T22:00:00Z", "until": "2026-11-20T22:15:00Z",
            "content": {"text": statement}, "parameters": [], "options": [],
            "yours": {"may": may, "why": why, "override": false},
        }))
        .unwrap()
    }

    fn page(detail: &Detail) -> String {
        let frame = &Frame {
            instance: String::new(),
            assets: String::new(),
            name: "eve".into(),
            role: Role::Reviewer,
            csrf: "x".into(),
            here: "approvals",
        };
        let card = &card(detail);
        CardPart { frame, card }.render().unwrap()
    }

    #[test]
    fn a_card_says_in_words_what_would_run_and_flags_what_must_not_be_overlooked() {
        let shown = page(&detail(
            "DELETE FROM t WHERE '<b>\u{202e}' = '<b>\u{202e}'",
            &["deny"],
        ));
        assert!(shown.contains("<p class=\"words\">Deletes EVERY row of t (its WHERE, "));
        assert!(shown.contains("<p class=\"flag danger\">Its condition keeps no row out"));
        assert!(!shown.contains("<b>\u{202e}") && !shown.contains('\u{202e}'));
        let shown = page(&detail(
            "DELETE FROM t WHERE a = 1; DELETE FROM t WHERE a = 2",
            &[],
        ));
        assert!(!shown.contains("danger"));
        assert!(
            shown.contains("<ol class=\"words\"><li>Deletes the rows of t where a = 1.</li><li>")
        );
    }

    #[test]
    fn only_so_much_of_a_page_is_put_into_words() {
        let detail = detail("DELETE FROM t", &[]);
        let mut room = 20;
        let words = |room: &mut usize| card_within(&detail, room).sentences[0].to_string();
        assert!(words(&mut room).starts_with("Deletes EVERY row"));
        assert_eq!(words(&mut room), "It changes data in t.");
    }

    #[test]
    fn buttons_are_for_answers_that_would_count() {
        let buttons = |may: &[&str]| {
            let shown = page(&detail("DELETE FROM t", may));
            let all = ["approve", "deny", "retract"];
            let has = |choice: &&&str| shown.contains(&format!("value=\"{choice}\""));
            let buttons: Vec<_> = all.iter().filter(has).copied().collect();
            (buttons, shown.contains("You can't approve it: "))
        };
        assert_eq!(
            buttons(&["approve", "deny"]),
            (vec!["approve", "deny"], false)
        );
        assert_eq!(
            buttons(&["deny", "retract"]),
            (vec!["deny", "retract"], true)
        );
        assert_eq!(buttons(&[]), (vec![], true));
        // What isn't wholly in sight is answered where it is, and not by those who can't.
        let long = "DELETE FROM t\n".repeat(30);
        assert!(page(&detail(&long, &["deny"])).contains("Open to answer"));
        assert!(!page(&detail(&long, &[])).contains("Open to answer"));
    }
}
