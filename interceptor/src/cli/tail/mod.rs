//! `interceptor sessions tail`: what agents do, as they do it.
//!
//! It outlives the daemon: when that is back, what was recorded meanwhile comes first, and nothing twice.

mod following;

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Duration,
};

use interceptor_core::{operation::Protocol, record::SessionId};
use serde_json::Value;

use self::following::{Following, Place};
use super::{
    Context, Outcome,
    client::{Client, Reading},
    display::{message, print},
    failed::Failed,
    sessions::protocol,
};
use crate::{
    control::{ErrorBody, Session, SessionsQuery, with_query},
    journal::Decided,
};

/// How often a daemon that is gone is looked for.
const AGAIN: Duration = Duration::from_millis(500);

/// Lines that may wait for a slow reader here, before they wait at the daemon, which says how many it had to leave out.
const LINES_QUEUED: usize = 1_024;

/// Print what happens as it happens: a line an operation
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only this session
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Only this agent's
    #[arg(long, value_name = "NAME")]
    agent: Option<Box<str>>,
    /// Only of agents with this label; can be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Only operations of this protocol: postgres, http, dns, tls, opaque
    #[arg(long, value_name = "NAME", value_parser = protocol)]
    protocol: Option<Protocol>,
    /// Only operations of this class (read, write, schema, …); can be given more than once: any of them
    #[arg(long, value_name = "CLASS")]
    class: Vec<String>,
    /// Only operations that were decided so
    #[arg(long, value_enum)]
    verdict: Option<Decided>,
    /// Only operations that this rule decided
    #[arg(long, value_name = "ID")]
    rule: Option<Box<str>>,
    /// Only to an address or a name that has this in it
    #[arg(long, value_name = "TEXT")]
    destination: Option<Box<str>>,
    /// Only operations that have these words: orders, shop.orders, ord*, "a phrase"
    #[arg(long, value_name = "WORDS")]
    text: Option<String>,
    /// Print all that is said, as `sessions show` does, with this many rows of each response
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
}

/// What comes.
enum Input {
    /// From here on nothing is missed.
    Opened,
    Line(Vec<u8>),
    Over(Result<(), Failed>),
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Outcome {
    let joined = |all: &[String]| (!all.is_empty()).then(|| all.join(","));
    let asked = SessionsQuery {
        agent: arguments.agent.clone(),
        label: joined(&arguments.label),
        class: joined(&arguments.class),
        protocol: arguments.protocol,
        verdict: arguments.verdict,
        rule: arguments.rule.clone(),
        destination: arguments.destination.clone(),
        text: arguments.text.clone(),
        ..SessionsQuery::default()
    };
    let wanted = asked.wanted().map_err(Failed::because)?;
    let mut following = Following::new(wanted, arguments.rows, context.color);
    let of = [
        ("session", arguments.session.map(|id| id.to_string())),
        ("agent", arguments.agent.as_ref().map(ToString::to_string)),
    ];
    let mut last: Option<Place> = None;
    let (mut was_there, mut is_away) = (false, false);
    loop {
        let told = follow(context, &with_query("/v1/tail", &of))?;
        for input in told {
            match input {
                Input::Opened => {
                    was_there = true;
                    if std::mem::take(&mut is_away) {
                        message("the daemon is back");
                    }
                    if !learn(context, arguments, &mut following)
                        || !catch_up(context, &of, &mut following, &mut last)?
                    {
                        break;
                    }
                }
                Input::Line(line) => take(context, &mut following, &mut last, &line)?,
                // Nobody was there from the start.
                Input::Over(Err(failed)) if !was_there => return Err(failed),
                Input::Over(_) => break,
            }
        }
        if !std::mem::replace(&mut is_away, true) {
            message(
                "the daemon is gone; what is recorded follows when it is back (Ctrl-C ends this)",
            );
        }
        thread::sleep(AGAIN);
    }
}

/// Takes what was recorded since the `last` line; whether that was all of it.
fn catch_up(
    context: &Context,
    of: &[(&'static str, Option<String>)],
    following: &mut Following,
    last: &mut Option<Place>,
) -> Result<bool, Failed> {
    let Some(since) = last.clone() else {
        return Ok(true);
    };
    let missed = [of, &[("since", Some(since.time))]].concat();
    let mut failed = None;
    let path = with_query("/v1/export", &missed);
    let read = context.client.stream(
        &path,
        || {},
        |line| {
            failed = take(context, following, last, line).err();
            Ok(match failed {
                Some(_) => Reading::Done,
                None => Reading::On,
            })
        },
    );
    // What can't be printed ends it; what can't be read comes when the daemon is back.
    failed.map_or(Ok(read.is_ok()), Err)
}

/// Follows `path` on a connection and in a thread of its own: what was missed is read meanwhile.
fn follow(context: &Context, path: &str) -> Result<Receiver<Input>, Failed> {
    let client = Client::new(context.config.control.clone())?;
    let (tell, told) = sync_channel(LINES_QUEUED);
    let path = path.to_owned();
    thread::spawn(move || {
        let opened = || _ = tell.send(Input::Opened);
        let over = client.stream(&path, opened, |line| {
            Ok(match tell.send(Input::Line(line.to_vec())) {
                Ok(()) => Reading::On,
                Err(_) => Reading::Done,
            })
        });
        let _ = tell.send(Input::Over(over));
    });
    Ok(told)
}

/// Has `following` know the sessions that go on: their starts were told before. Whether the daemon told.
fn learn(context: &Context, arguments: &Arguments, following: &mut Following) -> bool {
    let live = SessionsQuery {
        agent: arguments.agent.clone(),
        live: Some(true),
        limit: Some(usize::from(u16::MAX)),
        ..SessionsQuery::default()
    };
    let live = context
        .client
        .get::<Vec<Session>>(&with_query("/v1/sessions", &live.pairs()));
    live.iter()
        .flatten()
        .for_each(|session| following.learn(session));
    live.is_ok()
}

fn take(
    context: &Context,
    following: &mut Following,
    last: &mut Option<Place>,
    line: &[u8],
) -> Result<(), Failed> {
    let value: Value = serde_json::from_slice(line).map_err(Failed::because)?;
    let Some(place) = Place::of(&value) else {
        // Records that came too fast are no end: the next ones still come.
        if let Ok(missed) = serde_json::from_value::<ErrorBody>(value) {
            message(&format!("{}; {}", missed.error, missed.remedy));
        }
        return Ok(());
    };
    if last.as_ref().is_some_and(|last| place.seq <= last.seq) {
        return Ok(());
    }
    *last = Some(place);
    for (line, shown) in following.take(value) {
        match context.is_json() {
            true => print(&format!("{line}\n"))?,
            false => print(&shown)?,
        }
    }
    Ok(())
}
