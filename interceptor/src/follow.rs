//! Containers and units that are agents stay so when they start again, which is in another cgroup.
//!
//! An engine or systemd makes the cgroup anew and then what runs in it, and attaching hooks takes about as long as an
//! engine does: some tenths of a second. What slips by is cut like all that is there before a tag. It isn't held up
//! meanwhile, for engines give up a container that stands still. Whoever wants to do without the gap tags what is above.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use interceptor_core::record::Event;

use crate::{
    clock,
    journal::Journal,
    kernel::{Arrivals, Kernel, KernelError, Tag, TagKind},
};

/// How often they are looked for, besides whenever a cgroup is made beside where theirs was.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Has what comes back tagged by `again`, for as long as the daemon runs.
pub(crate) async fn follow(
    kernel: Arc<Kernel>,
    journal: Journal,
    again: impl Fn(&Tag) -> Result<(), KernelError> + Send + 'static,
) {
    let arrivals = match Arrivals::new() {
        Ok(arrivals) => Arc::new(arrivals),
        Err(error) => {
            tracing::error!(%error, "containers and units that start again are not agents again");
            return;
        }
    };
    let mut followed = Followed {
        kernel,
        journal,
        arrivals: arrivals.clone(),
        away: BTreeSet::new(),
        failed: BTreeSet::new(),
        again,
    };
    let mut timer = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            made = arrivals.next() => if let Err(error) = made {
                tracing::error!(%error, "cgroups that are made aren't told of");
                timer.tick().await;
            }
        }
        let looking = tokio::task::spawn_blocking(move || {
            followed.look();
            followed
        });
        followed = match looking.await {
            Ok(followed) => followed,
            Err(error) => {
                tracing::error!(%error, "containers and units that start again are not agents again");
                return;
            }
        };
    }
}

/// Who looks.
struct Followed<A> {
    kernel: Arc<Kernel>,
    journal: Journal,
    arrivals: Arc<Arrivals>,
    /// Those that are on record as away, by the numbers that they had.
    away: BTreeSet<u64>,
    /// Those that can't be tagged again, which has been told of.
    failed: BTreeSet<u64>,
    again: A,
}

impl<A: Fn(&Tag) -> Result<(), KernelError>> Followed<A> {
    fn look(&mut self) {
        self.kernel.set_aside();
        let away = self.kernel.away();
        let is_away = |number: &u64| away.iter().any(|tag| tag.number == *number);
        self.away.retain(is_away);
        self.failed.retain(is_away);
        let running = self.kernel.tags().into_iter();
        let running = running.filter(|tag| tag.kind == TagKind::Followed);
        for tag in running.chain(away.iter().cloned()) {
            // Where even what it was in is gone, the next look finds it.
            let _ = tag
                .cgroup
                .parent()
                .map(|parent| self.arrivals.watch(parent));
        }
        for tag in away {
            let cgroup = tag.cgroup.display().to_string();
            if self.away.insert(tag.number) {
                self.record(&tag, "agent_away", ("cgroup", cgroup.clone()));
            }
            if !tag.cgroup.is_dir() {
                continue;
            }
            match (self.again)(&tag) {
                Ok(()) => self.record(&tag, "agent_returned", ("cgroup", cgroup)),
                // Told once, and tried again.
                Err(error) if self.failed.insert(tag.number) => {
                    let agent = &tag.agent.name;
                    tracing::error!(%agent, %error, "it runs again and can't be made an agent again");
                    self.record(&tag, "agent_unguarded", ("reason", error.to_string()));
                }
                Err(_) => {}
            }
        }
    }

    fn record(&self, tag: &Tag, name: &str, detail: (&str, String)) {
        let event = Event::notice(name, [detail]);
        let agent: Arc<str> = Arc::from(&*tag.agent.name);
        // The journal tells of its own troubles.
        let _ = self.journal.append(None, &agent, clock::now(), [event]);
    }
}
