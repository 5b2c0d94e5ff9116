//! How far something is, for somebody at a terminal: a line on stderr that is written over.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use super::display::prompt;

/// How often it is said.
const TOLD_EVERY: Duration = Duration::from_millis(500);

/// Says how far something is, until it is dropped: then the line is the next message's.
pub(super) struct Progress {
    /// When it was said last; where nobody is at a terminal it never is.
    told: Option<Instant>,
}

impl Progress {
    /// Says something after a while, if there is a terminal.
    pub(super) fn new() -> Self {
        Self {
            told: io::stderr().is_terminal().then(Instant::now),
        }
    }

    /// Says `how_far` it is, if it wasn't said just now.
    pub(super) fn tell(&mut self, how_far: impl FnOnce() -> String) {
        if self.is_due() {
            prompt(&format!("\r\x1b[K{}", how_far()));
        }
    }

    fn is_due(&mut self) -> bool {
        let is_due = self.told.is_some_and(|told| told.elapsed() >= TOLD_EVERY);
        if is_due {
            self.told = Some(Instant::now());
        }
        is_due
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.told.is_some() {
            prompt("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_now_and_then_and_to_nobody_without_a_terminal() {
        let mut nobody = Progress { told: None };
        assert!(!nobody.is_due());
        let mut just_now = Progress {
            told: Some(Instant::now()),
        };
        assert!(!just_now.is_due());
        just_now.told = Instant::now().checked_sub(TOLD_EVERY);
        assert!(just_now.is_due());
        assert!(!just_now.is_due());
        // Nothing is left of it on this test's own terminal.
        just_now.told = None;
    }
}
