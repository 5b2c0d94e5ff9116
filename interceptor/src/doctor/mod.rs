//! What keeps agents in on this host: each guard, what it rests on, and what to do where it isn't whole.
//!
//! Every group finds out first (`find`, which touches the host) and judges then (`guards`, which doesn't), so
//! that hosts which nobody has at hand can be judged in a test.

mod agents;
mod daemon;
mod hooks;
mod host;
mod processes;
mod sockets;

use serde::{Deserialize, Serialize};

use crate::{config::Config, control::Status};

/// A guard, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// What kind of guard it is.
    pub group: String,
    /// What it guards.
    pub guard: String,
    /// How it stands.
    pub state: State,
    /// What it rests on, as it was found.
    pub rests_on: String,
    /// What to do about it; empty where it is in force.
    pub remedy: String,
}

/// How a guard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does what it is there for.
    InForce,
    /// It does less than it could.
    Weaker,
    /// It isn't there.
    Missing,
    /// Who asks can't see it.
    Unseen,
}

/// What is said where only root can see.
const NEEDS_ROOT: &str = "run `interceptor doctor` as root";

/// Looks at every guard of this host. `status` is what the daemon says, or why none answers.
#[must_use]
pub fn examine(config: &Config, status: Result<&Status, &str>) -> Vec<Guard> {
    let is_root = nix::unistd::geteuid().is_root();
    let agents = agents::find(config.instance.as_str(), is_root);
    let mut guards = host::guards(&host::find());
    guards.extend(hooks::guards(&hooks::find(is_root)));
    guards.extend(sockets::guards(&sockets::find(is_root)));
    guards.extend(processes::guards(&processes::find(is_root)));
    guards.extend(daemon::guards(&daemon::find(config, status, &agents)));
    guards.extend(agents::guards(&agents));
    guards
}

/// Builds the guards of one group.
#[derive(Debug)]
struct Group {
    name: &'static str,
    guards: Vec<Guard>,
}

impl Group {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            guards: Vec::new(),
        }
    }

    fn in_force(&mut self, guard: &str, rests_on: impl Into<String>) {
        self.add(guard, State::InForce, rests_on.into(), "");
    }

    fn weaker(&mut self, guard: &str, rests_on: impl Into<String>, remedy: &str) {
        self.add(guard, State::Weaker, rests_on.into(), remedy);
    }

    fn missing(&mut self, guard: &str, rests_on: impl Into<String>, remedy: &str) {
        self.add(guard, State::Missing, rests_on.into(), remedy);
    }

    fn unseen(&mut self, guard: &str, why: impl Into<String>, remedy: &str) {
        self.add(guard, State::Unseen, why.into(), remedy);
    }

    /// In force where `tried` went well, missing where it didn't, unseen where it wasn't tried.
    fn tried(&mut self, guard: &str, tried: &Tried, rests_on: &str, remedy: &str) {
        match tried {
            Tried::Works => self.in_force(guard, rests_on),
            Tried::Fails(error) => self.missing(guard, format!("{rests_on}: {error}"), remedy),
            Tried::Left => self.unseen(guard, rests_on, NEEDS_ROOT),
        }
    }

    fn add(&mut self, guard: &str, state: State, rests_on: String, remedy: &str) {
        self.guards.push(Guard {
            group: self.name.to_owned(),
            guard: guard.to_owned(),
            state,
            rests_on,
            remedy: remedy.to_owned(),
        });
    }
}

/// What came of trying something out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tried {
    Works,
    Fails(String),
    /// Who asks may not try.
    Left,
}

impl Tried {
    /// Tries where that is any use.
    fn out<E: std::fmt::Display>(is_root: bool, trial: impl FnOnce() -> Result<(), E>) -> Self {
        if !is_root {
            return Self::Left;
        }
        match trial() {
            Ok(()) => Self::Works,
            Err(error) => Self::Fails(error.to_string()),
        }
    }
}

/// The content of a file of /proc or /sys, without the line's end.
fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
fn states(guards: &[Guard]) -> Vec<(&str, State)> {
    guards
        .iter()
        .map(|guard| (&*guard.guard, guard.state))
        .collect()
}
