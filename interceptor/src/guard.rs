//! Looks after agents twice a second, and puts what it finds on record: sockets that no hook sees,
//! processes that leave, hooks that are taken away.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use interceptor_core::record::Event;
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    clock,
    config::{OldSockets, Tags, Uncuttable, Unguarded},
    confine,
    control::{Failure, FailureKind},
    journal::Journal,
    kernel::{
        self, Birth, Departure, Fate, Finding, Found, Handling, Kernel, Response, SocketName,
        Stray, Tag, UnixAccess, UnixSockets,
    },
};

/// How often agents are looked at: whatever happens is noticed within a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A look that takes longer than this is late, and on record: what it finds was not noticed in time.
const LATE_AFTER: Duration = Duration::from_millis(500);

/// Findings of one agent and name that are recorded each by itself, of one look.
const EACH_MAX: u64 = 100;

/// What `tags` in the configuration means for sockets; `old` says otherwise for those from before the tag.
pub(crate) fn handling(tags: &Tags, old: Option<OldSockets>) -> Handling {
    Handling {
        allows_old: old.unwrap_or(tags.old_sockets) == OldSockets::Allow,
        kills: tags.uncuttable == Uncuttable::Kill,
        // Another with each agent.
        refuses_unix: false,
    }
}

/// What an agent may do with UNIX sockets: what `tags` in the configuration says, `sockets` where it says
/// otherwise, and besides `allowed`.
pub(crate) fn unix_access(
    tags: &Tags,
    sockets: Option<UnixSockets>,
    allowed: Vec<SocketName>,
) -> UnixAccess {
    let all: BTreeSet<SocketName> = allowed
        .into_iter()
        .chain(tags.allow_sockets.iter().cloned())
        .collect();
    UnixAccess {
        sockets: sockets.unwrap_or(tags.unix_sockets),
        allowed: all.into_iter().collect(),
    }
}

const OPEN: &str =
    "UNIX sockets stay open to it, those of container engines, systemd and D-Bus too";

/// What of an agent that is to be tagged this kernel has no guard for, for the record; `unix` is what it may do with
/// UNIX sockets by hooks, which is nothing for what is launched.
///
/// # Errors
/// Where there is such a thing, and the configuration says that it isn't tagged then.
pub(crate) fn unguarded(
    tags: &Tags,
    unix: Option<&UnixAccess>,
    open_sockets: bool,
) -> Result<Option<String>, Failure> {
    const ASKED: &str = "it isn't tagged, as `tags: {unguarded: refuse}` asks for";
    let (open, remedy) = match unix {
        Some(unix) if unix.sockets != UnixSockets::Allow => (
            kernel::unguarded().map(|why| format!("{OPEN}: {why}")),
            "use Linux 6.7 or later, or launch it with `interceptor run`, or tag it with `--unix-sockets allow`",
        ),
        None if !open_sockets => (
            confine::unscoped().map(str::to_owned),
            "use Linux 6.12 or later, or launch it with `--allow sockets`",
        ),
        _ => (None, ""),
    };
    match open {
        Some(open) if tags.unguarded == Unguarded::Refuse => {
            let why = format!("{ASKED}: {open}");
            Err(Failure::new(FailureKind::Conflict, why).with_remedy(remedy))
        }
        open => Ok(open),
    }
}

/// What the hooks on UNIX sockets don't keep an agent from, for people.
pub(crate) fn cautions(tag: &Tag) -> Vec<String> {
    const RUN: &str = "`interceptor run` launches a command without them";
    if tag.unix.sockets == UnixSockets::Allow {
        return vec![format!("{OPEN}, as was asked for; {RUN}")];
    }
    if let Some(why) = kernel::unguarded() {
        return vec![format!("{OPEN}: {why}; {RUN}")];
    }
    let mut cautions = Vec::new();
    cautions.extend(kernel::unnamed().map(|why| {
        format!("UNIX sockets are told apart less well than they could be, and what can't be told is refused: {why}")
    }));
    cautions.extend(kernel::loose_names(tag).into_iter().map(|(name, why)| {
        format!("`{name}` is allowed by its name alone, and may come to lead elsewhere: {why}")
    }));
    let engines = tag.unix.allowed.iter().filter(|name| {
        let path = Path::new(name.path().unwrap_or_default());
        confine::is_engine(path)
    });
    cautions.extend(engines.map(|name| {
        format!("`{name}` is a container engine's: what it is asked there isn't decided and not on record, and can be anything on this host; `interceptor run --allow-socket` has it go by way of the daemon")
    }));
    cautions
}

/// Looks after agents for as long as the daemon runs.
pub(crate) async fn look_after(kernel: Arc<Kernel>, journal: Journal, tags: Tags) {
    let handling = handling(&tags, None);
    let mut timer = tokio::time::interval(LOOK_EVERY);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_late = false;
    loop {
        timer.tick().await;
        let start = Instant::now();
        let looking = kernel.clone();
        let found =
            tokio::task::spawn_blocking(move || looking.look_after(handling, tags.on_escape)).await;
        match found {
            Ok(found) => record(&journal, found),
            Err(error) => tracing::error!(%error, "agents were not looked after"),
        }
        let is_late = start.elapsed() > LATE_AFTER;
        if is_late && !was_late {
            let took = [("took_ms", start.elapsed().as_millis().to_string())];
            let event = Event::notice("look_late", took);
            let _ = journal.append(None, &Arc::from(""), clock::now(), [event]);
        }
        was_late = is_late;
    }
}

/// Records findings, each by itself; a flood of them as a number.
pub(crate) fn record(journal: &Journal, findings: impl IntoIterator<Item = Finding>) {
    let mut seen: HashMap<(Arc<str>, &'static str), u64> = HashMap::new();
    for finding in findings {
        let (name, detail) = describe(&finding.what);
        let count = seen.entry((finding.agent.clone(), name)).or_default();
        *count += 1;
        if *count <= EACH_MAX {
            let event = Event::notice(name, detail);
            let _ = journal.append(None, &finding.agent, clock::now(), [event]);
        }
    }
    for ((agent, name), count) in seen {
        if count > EACH_MAX {
            let event = Event::notice(name, [("more", (count - EACH_MAX).to_string())]);
            let _ = journal.append(None, &agent, clock::now(), [event]);
        }
    }
}

type Detail = Vec<(&'static str, String)>;

fn describe(found: &Found) -> (&'static str, Detail) {
    match found {
        Found::Stray(stray) => (stray_name(stray), stray_detail(stray)),
        Found::EventsLost(count) => ("moves_unseen", vec![("count", count.to_string())]),
        Found::Left(departure, response) => ("agent_left", left_detail(departure, response)),
        Found::HooksChanged { wrong, response } => (
            "hooks_changed",
            [("wrong", wrong.join(", "))]
                .into_iter()
                .chain(response_detail(response))
                .collect(),
        ),
    }
}

fn stray_name(stray: &Stray) -> &'static str {
    match (stray.birth, &stray.fate) {
        (Birth::Old, Fate::Cut) => "old_socket_cut",
        (Birth::Old, Fate::Allowed) => "old_socket_allowed",
        (Birth::Old, Fate::Kept) => "old_socket_kept",
        (Birth::Foreign, Fate::Kept) => "foreign_socket_kept",
        (Birth::Old, Fate::Uncut { .. }) => "old_socket_uncut",
        (Birth::Foreign, Fate::Uncut { .. }) => "foreign_socket_uncut",
        (Birth::Foreign, _) => "foreign_socket_cut",
        (Birth::Unseen, _) => "socket_unseen",
    }
}

fn stray_detail(stray: &Stray) -> Detail {
    let mut detail = vec![("protocol", stray.protocol.to_owned())];
    detail.extend(stray.local.map(|local| ("local", local.to_string())));
    detail.extend(stray.peer.map(|peer| ("destination", peer.to_string())));
    detail.extend(stray.name.clone().map(|name| ("name", name)));
    detail.extend(stray.pid.map(|pid| ("pid", pid.to_string())));
    detail.extend(
        stray
            .executable
            .as_ref()
            .map(|executable| ("executable", executable.to_string())),
    );
    if let Fate::Uncut { why, killed } = &stray.fate {
        detail.push(("reason", why.clone()));
        if *killed {
            detail.push(("response", "killed".to_owned()));
        }
    }
    detail
}

fn left_detail(departure: &Departure, response: &Response) -> Detail {
    let mut detail = vec![
        ("pid", departure.pid.to_string()),
        ("from", departure.from.display().to_string()),
        ("to", departure.to.display().to_string()),
    ];
    detail.extend(
        departure
            .executable
            .as_ref()
            .map(|executable| ("executable", executable.to_string())),
    );
    if departure.started.is_none() {
        detail.push(("ended", "true".to_owned()));
    }
    detail.extend(
        departure
            .parent
            .map(|parent| ("parent", parent.to_string())),
    );
    detail.extend(response_detail(response));
    detail
}

fn response_detail(response: &Response) -> Detail {
    match response {
        Response::Reported => Vec::new(),
        Response::Killed => vec![("response", "killed".to_owned())],
        Response::Frozen => vec![("response", "frozen".to_owned())],
        Response::Failed(error) => {
            vec![("response", "failed".to_owned()), ("error", error.clone())]
        }
    }
}
