//! What the hooks refuse, put on record: each refusal by itself, a flood of them as a number.
//!
//! A process can be refused some hundred thousand times a second. Neither the journal nor anybody's
//! patience is to be filled by that, and nothing goes uncounted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use interceptor_core::record::Event;
use tokio::{io::unix::AsyncFd, time::MissedTickBehavior};

use crate::{
    clock,
    journal::Journal,
    kernel::{Events, Kernel, Refusal},
    reach::Reach,
    sync::lock,
};

/// Refusals of one agent and kind that are recorded each by itself within a [`WINDOW`].
const EACH_MAX: u64 = 100;

/// How long refusals are counted together.
const WINDOW: Duration = Duration::from_secs(1);

/// Refusals that are looked at before others get their turn on this thread.
const TURN: usize = 256;

/// Tells how much of a flood is recorded each by itself: [`EACH_MAX`] within a [`WINDOW`].
#[derive(Debug, Default)]
pub(crate) struct Flood(Mutex<Option<(Instant, u64)>>);

impl Flood {
    /// Counts one more; whether it is one of so many that it isn't recorded by itself.
    pub(crate) fn is_one_of_many(&self) -> bool {
        let mut seen = lock(&self.0);
        let (since, count) = seen.get_or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() > WINDOW {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count > EACH_MAX
    }
}

/// Records what the hooks refuse, for as long as the daemon runs. `unarmed` is told which processes connect
/// where nobody listens.
pub(crate) async fn follow(
    kernel: Arc<Kernel>,
    reach: Arc<Reach>,
    journal: Journal,
    events: Events,
    unarmed: impl Fn(u32),
) {
    let mut ring = match events.watched() {
        Ok(ring) => ring,
        Err(error) => {
            tracing::error!(%error, "what the hooks refuse can't be recorded one by one");
            return;
        }
    };
    let mut lost = kernel.counters().events_lost;
    let mut seen: HashMap<(u64, &'static str), u64> = HashMap::new();
    let mut window = tokio::time::interval(WINDOW);
    window.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let refusals = tokio::select! {
            biased;
            _ = window.tick() => {
                for ((agent, name), count) in seen.drain() {
                    let more = count.saturating_sub(EACH_MAX);
                    if more > 0 {
                        let event = Event::notice(name, [("more", more.to_string())]);
                        record(&kernel, &journal, agent, event);
                    }
                }
                let now = kernel.counters().events_lost;
                if now > lost {
                    let detail = [("count", (now - lost).to_string())];
                    record(&kernel, &journal, 0, Event::notice("refusals_uncounted", detail));
                    lost = now;
                }
                continue;
            }
            refusals = next(&mut ring) => refusals,
        };
        let Some(refusals) = refusals else { return };
        // Before anything is recorded: somebody is trying again.
        for refusal in refusals.iter().filter(|refusal| refusal.is_unarmed()) {
            unarmed(refusal.pid);
        }
        for refusal in refusals {
            let count = seen.entry((refusal.agent, refusal.name)).or_default();
            *count += 1;
            if *count <= EACH_MAX {
                record(
                    &kernel,
                    &journal,
                    refusal.agent,
                    describe(&kernel, &reach, &refusal),
                );
            }
        }
        tokio::task::yield_now().await;
    }
}

/// The next refusals, some at least; `None` where there will be none any more.
async fn next(ring: &mut AsyncFd<Events>) -> Option<Vec<Refusal>> {
    loop {
        let mut ready = ring.readable_mut().await.ok()?;
        let events = ready.get_inner_mut();
        let refusals: Vec<Refusal> = std::iter::from_fn(|| events.next_refusal())
            .take(TURN)
            .collect();
        if refusals.len() < TURN {
            ready.clear_ready();
        }
        if !refusals.is_empty() {
            return Some(refusals);
        }
    }
}

fn describe(kernel: &Kernel, reach: &Reach, refusal: &Refusal) -> Event {
    let mut detail = Vec::new();
    if refusal.pid != 0 {
        let process = kernel.describe_process(refusal.pid);
        detail.push(("pid", refusal.pid.to_string()));
        detail.push(("uid", refusal.uid.to_string()));
        let executable = process.executable;
        detail.extend(executable.map(|executable| ("executable", executable.to_string())));
    }
    let (kind, protocol) = refusal.kind;
    detail.push(match refusal.name {
        "option_refused" => ("option", format!("level {kind} number {protocol}")),
        _ => ("socket", format!("type {kind} protocol {protocol}")),
    });
    detail.extend(refusal.socket.clone().map(|name| ("name", name)));
    if refusal.name == "unix_refused" {
        let remedy = "if it is to reach it: `tag add --allow-socket NAME`, or `tags: {allow_sockets: [NAME]}`";
        detail.push(("remedy", remedy.to_owned()));
    }
    match refusal.destination {
        // Of what comes in the port is the agent's own.
        Some(peer) if refusal.name.starts_with("inbound") => {
            detail.push(("source", peer.ip().to_string()));
            detail.push(("port", peer.port().to_string()));
        }
        Some(peer) => detail.push(("destination", peer.to_string())),
        None => {}
    }
    let agent = kernel.agent(refusal.agent);
    let rule = agent.and_then(|agent| reach.rule(&agent, refusal));
    detail.extend(rule.map(|rule| ("rule", rule.to_string())));
    Event::notice(refusal.name, detail)
}

/// Records `event` of the agent of that number; where the journal stands still nothing passes anyway.
fn record(kernel: &Kernel, journal: &Journal, agent: u64, event: Event) {
    let agent = kernel
        .agent(agent)
        .map_or_else(|| Arc::from(""), |agent| Arc::from(&*agent.name));
    let _ = journal.append(None, &agent, clock::now(), [event]);
}
