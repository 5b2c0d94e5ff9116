//! What the hooks refuse, put on record: each refusal by itself, a flood of them as a number.
//!
//! A process can be refused some hundred thousand times a second. Neither the journal nor anybody's
//! patience is to be filled by that, and nothing goes uncounted.

use std::{collections::HashMap, sync::Arc, time::Duration};

use interceptor_core::record::Event;
use tokio::{io::unix::AsyncFd, time::MissedTickBehavior};

use crate::{
    clock,
    journal::Journal,
    kernel::{Events, Kernel, Refusal},
};

/// Refusals of one agent and kind that are recorded each by itself within a [`WINDOW`].
const EACH_MAX: u64 = 100;

/// How long refusals are counted together.
const WINDOW: Duration = Duration::from_secs(1);

/// Refusals that are looked at before others get their turn on this thread.
const TURN: usize = 256;

/// Records what the hooks refuse, for as long as the daemon runs.
pub(crate) async fn follow(kernel: Arc<Kernel>, journal: Journal, events: Events) {
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
        for refusal in refusals {
            let count = seen.entry((refusal.agent, refusal.name)).or_default();
            *count += 1;
            if *count <= EACH_MAX {
                record(
                    &kernel,
                    &journal,
                    refusal.agent,
                    describe(&kernel, &refusal),
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

fn describe(kernel: &Kernel, refusal: &Refusal) -> Event {
    let process = kernel.describe_process(refusal.pid);
    let mut detail = vec![
        ("pid", refusal.pid.to_string()),
        ("uid", refusal.uid.to_string()),
        (
            "socket",
            format!("type {} protocol {}", refusal.kind.0, refusal.kind.1),
        ),
    ];
    detail.extend(
        refusal
            .destination
            .map(|destination| ("destination", destination.to_string())),
    );
    detail.extend(
        process
            .executable
            .map(|executable| ("executable", executable.to_string())),
    );
    Event::notice(refusal.name, detail)
}

/// Records `event` of the agent of that number; where the journal stands still nothing passes anyway.
fn record(kernel: &Kernel, journal: &Journal, agent: u64, event: Event) {
    let agent = kernel
        .agent(agent)
        .map_or_else(|| Arc::from(""), |agent| Arc::from(&*agent.name));
    let _ = journal.append(None, &agent, clock::now(), [event]);
}
