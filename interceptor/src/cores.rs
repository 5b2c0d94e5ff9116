//! Which thread runs on which core.
//!
//! Left to itself the scheduler queues whoever is woken by a write behind the thread that wrote, or in its
//! place, while another core idles, and lets the journal's compression run where a session waits: a tenth of
//! all requests. It is no matter of safety, so a host that allows none of it is served all the same.

use std::{num::NonZero, thread::available_parallelism};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The cores that the daemon may run on, divided.
#[derive(Debug)]
pub struct Cores {
    /// One for each thread that carries sessions; those of one core aren't kept there.
    data: Vec<Place>,
    rest: Place,
}

/// Cores that a thread keeps to; none where it goes where it is put.
#[derive(Debug, Clone)]
pub struct Place(Vec<usize>);

impl Cores {
    /// Half of the cores for sessions, or of what a quota leaves of them: the last ones, as interrupts go to
    /// the first. The rest for what else the daemon does.
    #[must_use]
    pub fn divided() -> Self {
        let mut cores = allowed();
        let usable = available_parallelism().map_or(1, NonZero::get);
        let threads = (usable.min(cores.len()) / 2).max(1);
        if cores.len() < 2 {
            let anywhere = Place(Vec::new());
            return Self {
                data: vec![anywhere.clone()],
                rest: anywhere,
            };
        }
        let data = cores.split_off(cores.len() - threads);
        Self {
            data: data.into_iter().map(|core| Place(vec![core])).collect(),
            rest: Place(cores),
        }
    }

    /// The place of each thread that carries sessions.
    pub fn for_data(&self) -> impl Iterator<Item = Place> {
        self.data.iter().cloned()
    }

    /// Where all other threads are.
    #[must_use]
    pub const fn for_the_rest(&self) -> &Place {
        &self.rest
    }
}

impl Place {
    /// Keeps this thread, and those that it starts from now on, to these cores.
    pub fn keep(&self) {
        if self.0.is_empty() {
            return;
        }
        let mut cores = CpuSet::new();
        let kept = self
            .0
            .iter()
            .try_for_each(|core| cores.set(*core))
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cores));
        if let Err(error) = kept {
            tracing::debug!(?self, %error, "a thread isn't kept on its cores");
        }
    }
}

/// The cores that this thread may run on; none where that can't be known.
fn allowed() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..CpuSet::count())
        .filter(|core| allowed.is_set(*core).unwrap_or(false))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Cores, allowed};

    #[test]
    fn sessions_share_no_core_with_the_rest() {
        let cores = Cores::divided();
        assert!(cores.for_data().count() >= 1);
        for place in cores.for_data() {
            assert!(
                place
                    .0
                    .iter()
                    .all(|core| !cores.for_the_rest().0.contains(core))
            );
        }
        // On a thread of its own: the others of this process go where they like.
        std::thread::spawn(move || {
            let before = allowed();
            cores.for_the_rest().keep();
            let expected = match &cores.for_the_rest().0[..] {
                [] => &before[..],
                kept => kept,
            };
            assert_eq!(allowed(), expected);
        })
        .join()
        .unwrap();
    }
}
