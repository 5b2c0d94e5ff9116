//! `interceptor status`: how the daemon is.

use std::{fmt::Write as _, process::ExitCode};

use super::{
    Context, Outcome,
    display::{Style, between, count, inert, paint, print, span, time},
    failed::code,
};
use crate::control::Status;

/// How the daemon is; exit status 3 where something is not as it should be
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

pub(super) fn run(context: &Context, _: &Arguments) -> Outcome {
    let status: Status = context.client.get("/v1/status")?;
    if context.is_json() {
        context.print_json(&status)?;
    } else {
        print(&text(&status, crate::clock::now(), context.color))?;
    }
    Ok(if is_degraded(&status) {
        ExitCode::from(code::DEGRADED)
    } else {
        ExitCode::SUCCESS
    })
}

fn is_degraded(status: &Status) -> bool {
    !status.troubles.is_empty()
        || status.journal.stopped.is_some()
        || status.policy.broken.is_some()
}

fn text(status: &Status, now: interceptor_core::record::Timestamp, color: bool) -> String {
    let mut out = String::new();
    let headline = if is_degraded(status) {
        paint(Style::Bad, "degraded", color)
    } else {
        paint(Style::Good, "running", color)
    };
    // Writing to a string can't fail.
    _ = writeln!(
        out,
        "{headline}: interceptor {}, instance {}, pid {}, up {}",
        inert(&status.version),
        inert(&status.instance),
        status.pid,
        span(between(status.started, now)),
    );
    if let Some(proxy) = &status.proxy {
        _ = writeln!(
            out,
            "proxy     pid {}, user {}, confined{}",
            proxy.pid,
            proxy.user,
            if proxy.weaker.is_empty() {
                ""
            } else {
                " as far as this kernel can: see `interceptor doctor`"
            },
        );
    }
    _ = writeln!(
        out,
        "agents    {}, {} open, {} waiting for approval",
        count(status.agents, "agent"),
        count(status.sessions, "session"),
        count(status.approvals, "operation"),
    );
    let policy = &status.policy;
    _ = writeln!(
        out,
        "policy    {}, {} from {}, since {}",
        count(policy.rules, "rule"),
        inert(&policy.hash),
        inert(&policy.path.to_string_lossy()),
        time(policy.loaded),
    );
    let journal = &status.journal;
    _ = writeln!(
        out,
        "journal   {} in {}",
        count(journal.last_seq, "record"),
        inert(&journal.path.to_string_lossy()),
    );
    for copy in &journal.copies {
        let waiting = match copy.waiting {
            0 => "none waiting".to_owned(),
            waiting => format!("{waiting} waiting ({} bytes)", copy.waiting_bytes),
        };
        _ = writeln!(
            out,
            "shipped   {}, signed up to record {}, to {}; {waiting}",
            count(copy.segments, "segment"),
            copy.vouched_seq,
            inert(&copy.target),
        );
    }
    for stream in &journal.streams {
        _ = writeln!(
            out,
            "streamed  up to record {} to {}; {} waiting",
            stream.confirmed_seq,
            inert(&stream.target),
            stream.waiting,
        );
    }
    let counters: Vec<String> = status
        .kernel
        .iter()
        .map(|(name, value)| format!("{} {value}", inert(name)))
        .collect();
    if !counters.is_empty() {
        _ = writeln!(out, "kernel    {}", counters.join(", "));
    }
    for agent in &status.connects {
        let (account, connects) = (&agent.account, &agent.account.connects);
        _ = writeln!(
            out,
            "connects  {}: {} redirected, {} direct, {} refused; {} on record, {} turned away, {} given up, {} cut off, {} waiting; {}",
            inert(&account.agent),
            connects.redirected,
            connects.direct,
            connects.refused,
            account.sessions,
            account.turned_away + connects.lost,
            connects.given_up,
            account.cut_off,
            connects.waiting,
            match agent.unaccounted {
                0 => "all accounted for".to_owned(),
                missing => paint(Style::Bad, &format!("{missing} NOT ACCOUNTED FOR"), color),
            },
        );
    }
    for found in &status.troubles {
        trouble(&mut out, &found.what, &found.remedy, color);
    }
    out
}

fn trouble(out: &mut String, what: &str, remedy: &str, color: bool) {
    // Policy errors have several lines.
    let mut lines = what.lines();
    let first = lines.next().unwrap_or_default();
    _ = writeln!(out, "{} {}", paint(Style::Bad, "!", color), inert(first));
    for line in lines {
        _ = writeln!(out, "  {}", inert(line));
    }
    if !remedy.is_empty() {
        _ = writeln!(out, "  {}", inert(remedy));
    }
}
