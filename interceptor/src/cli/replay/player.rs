//! What is shown when: the player without its terminal.

use std::time::Duration;

/// What is shown at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// When it was, in nanoseconds since the epoch.
    pub(super) at_ns: u64,
    /// The operation that begins with it.
    pub(super) operation: Option<u64>,
    /// Lines, each of which ends.
    pub(super) text: String,
}

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    /// Times as fast as it was.
    pub(super) speed: f64,
    /// The longest pause, as it was.
    pub(super) pause_max: Duration,
}

impl Pace {
    pub(super) const SPEED_MIN: f64 = 0.05;
    pub(super) const SPEED_MAX: f64 = 100.0;

    /// How long `pause` takes.
    fn of(self, pause: Duration) -> Duration {
        let seconds = pause.min(self.pause_max).as_secs_f64() / self.speed;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The next frame.
    Show,
    /// The next frame, after this.
    Pause(Duration),
    /// Whatever key is pressed.
    Key,
    /// Nothing.
    End,
}

/// A key that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Pause,
    Forward,
    Back,
    Faster,
    Slower,
    Quit,
    Suspend,
}

impl Key {
    /// The keys that `bytes` of a terminal are.
    pub(super) fn read(mut bytes: &[u8]) -> Vec<Self> {
        let mut keys = Vec::new();
        while let Some((first, rest)) = bytes.split_first() {
            bytes = rest;
            keys.extend(match first {
                b' ' => Some(Self::Pause),
                b'.' | b'n' | b'\r' | b'\n' => Some(Self::Forward),
                b'p' | b',' => Some(Self::Back),
                b'+' | b'=' => Some(Self::Faster),
                b'-' => Some(Self::Slower),
                // Ctrl-C, Ctrl-D and Ctrl-\ as well.
                b'q' | 0x03 | 0x04 | 0x1c => Some(Self::Quit),
                0x1a => Some(Self::Suspend),
                0x1b => {
                    let (key, after) = Self::sequence(rest);
                    bytes = after;
                    key
                }
                _ => None,
            });
        }
        keys
    }

    /// The key behind an escape, and what follows it.
    fn sequence(bytes: &[u8]) -> (Option<Self>, &[u8]) {
        let Some((b'[' | b'O', rest)) = bytes.split_first() else {
            return (None, bytes);
        };
        let is_end = |byte: &u8| (0x40..=0x7e).contains(byte);
        let length = rest.iter().position(is_end).map_or(rest.len(), |at| at + 1);
        let (sequence, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        let key = match sequence {
            b"C" | b"B" => Some(Self::Forward),
            b"D" | b"A" => Some(Self::Back),
            _ => None,
        };
        (key, after)
    }
}

/// A session that is played.
#[derive(Debug)]
pub(super) struct Player {
    frames: Vec<Frame>,
    /// The frame that comes next.
    next: usize,
    /// What is before it is shown at once.
    at_once: usize,
    pace: Pace,
    is_paused: bool,
}

impl Player {
    /// One that begins with the frame `begin`; where it goes by steps, it waits at each operation.
    pub(super) fn new(frames: Vec<Frame>, begin: usize, pace: Pace, by_steps: bool) -> Self {
        let mut player = Self {
            frames,
            next: begin,
            at_once: begin,
            pace,
            is_paused: by_steps,
        };
        if by_steps {
            player.at_once = player.operation_from(begin);
        }
        player
    }

    /// What comes next, `since` the last frame.
    pub(super) fn next(&self, since: Duration) -> Next {
        let Some(frame) = self.frames.get(self.next) else {
            return Next::End;
        };
        if self.next < self.at_once {
            return Next::Show;
        }
        if self.is_paused {
            return Next::Key;
        }
        let before = self.next.checked_sub(1).and_then(|at| self.frames.get(at));
        let pause = before.map_or(0, |before| frame.at_ns.saturating_sub(before.at_ns));
        let left = self.pace.of(Duration::from_nanos(pause)).checked_sub(since);
        match left.filter(|left| !left.is_zero()) {
            Some(left) => Next::Pause(left),
            None => Next::Show,
        }
    }

    /// The next frame's text.
    pub(super) fn show(&mut self) -> &str {
        let frame = self.frames.get(self.next);
        self.next = self.next.saturating_add(1);
        frame.map_or("", |frame| frame.text.as_str())
    }

    /// Takes a key; what is to be said about it.
    pub(super) fn key(&mut self, key: Key) -> Option<String> {
        match key {
            Key::Pause => self.is_paused = !self.is_paused,
            Key::Forward => self.at_once = self.operation_from(self.next.saturating_add(1)),
            Key::Back => return self.back(),
            Key::Faster => self.pace.speed = (self.pace.speed * 2.0).min(Pace::SPEED_MAX),
            Key::Slower => self.pace.speed = (self.pace.speed / 2.0).max(Pace::SPEED_MIN),
            Key::Quit | Key::Suspend => {}
        }
        None
    }

    /// Goes back to the operation before the one that is shown.
    fn back(&mut self) -> Option<String> {
        let shown = self.frames.get(..self.next).unwrap_or_default();
        let mut operations = shown
            .iter()
            .enumerate()
            .rev()
            .filter_map(|(at, frame)| Some((at, frame.operation?)));
        let current = operations.next()?;
        let (at, number) = operations.next().unwrap_or(current);
        self.next = at;
        // It is shown whole, as when it was come to by a key.
        self.at_once = self.operation_from(at.saturating_add(1));
        Some(format!("-- back to #{number}\n"))
    }

    /// The first frame from `at` on that begins an operation, or the end.
    fn operation_from(&self, at: usize) -> usize {
        let mut frames = self.frames.iter().enumerate().skip(at);
        let found = frames.find(|(_, frame)| frame.operation.is_some());
        found.map_or(self.frames.len(), |(at, _)| at)
    }

    /// Where it is, on one line.
    pub(super) fn standing(&self) -> String {
        let shown = self.frames.get(..self.next).unwrap_or_default();
        let operation = shown.iter().rev().find_map(|frame| frame.operation);
        let first = self.frames.first().map_or(0, |frame| frame.at_ns);
        let now = shown.last().map_or(first, |frame| frame.at_ns);
        let last = self.frames.last().map_or(first, |frame| frame.at_ns);
        let clock = |at: u64| {
            let seconds = at.saturating_sub(first) / 1_000_000_000;
            format!("{:02}:{:02}", seconds / 60, seconds % 60)
        };
        let paused = if self.is_paused { " paused" } else { "" };
        format!(
            "[#{} {}/{} {}x{paused}] space . + - q",
            operation.unwrap_or(0),
            clock(now),
            clock(last),
            self.pace.speed
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(second: u64, operation: Option<u64>) -> Frame {
        Frame {
            at_ns: second * 1_000_000_000,
            operation,
            text: format!("{second}\n"),
        }
    }

    fn player(by_steps: bool) -> Player {
        let frames = vec![
            frame(0, None),
            frame(1, Some(1)),
            frame(2, None),
            frame(60, Some(2)),
            frame(61, None),
            frame(62, Some(3)),
        ];
        let pace = Pace {
            speed: 2.0,
            pause_max: Duration::from_secs(4),
        };
        Player::new(frames, 0, pace, by_steps)
    }

    /// What is shown before somebody has to wait or press a key.
    fn shown(player: &mut Player) -> String {
        let mut all = String::new();
        while player.next(Duration::ZERO) == Next::Show {
            all.push_str(player.show().trim_end());
            all.push(' ');
        }
        all
    }

    #[test]
    fn pauses_are_as_long_as_they_were_and_no_longer_than_allowed() {
        let mut player = player(false);
        assert_eq!(shown(&mut player), "0 ");
        let half = Duration::from_millis(500);
        assert_eq!(player.next(Duration::ZERO), Next::Pause(half));
        assert_eq!(player.next(half / 2), Next::Pause(half / 2));
        assert_eq!(player.next(half), Next::Show);
        assert_eq!(player.show(), "1\n");
        assert_eq!(player.show(), "2\n");
        // 58 seconds, at the most four, twice as fast.
        assert_eq!(
            player.next(Duration::ZERO),
            Next::Pause(Duration::from_secs(2))
        );
        player.key(Key::Faster);
        assert_eq!(
            player.next(Duration::ZERO),
            Next::Pause(Duration::from_secs(1))
        );
        player.key(Key::Pause);
        assert_eq!(player.next(Duration::from_secs(9)), Next::Key);
        assert_eq!(
            player.standing(),
            "[#1 00:02/01:02 4x paused] space . + - q"
        );
        player.key(Key::Pause);
        assert_eq!(player.next(Duration::from_secs(9)), Next::Show);
    }

    #[test]
    fn steps_are_operations_with_all_that_belongs_to_them() {
        let mut player = player(true);
        assert_eq!(shown(&mut player), "0 ");
        assert_eq!(player.next(Duration::from_secs(99)), Next::Key);
        player.key(Key::Forward);
        assert_eq!(shown(&mut player), "1 2 ");
        player.key(Key::Forward);
        assert_eq!(shown(&mut player), "60 61 ");
        assert_eq!(player.key(Key::Back).as_deref(), Some("-- back to #1\n"));
        assert_eq!(shown(&mut player), "1 2 ");
        player.key(Key::Forward);
        player.key(Key::Forward);
        shown(&mut player);
        player.key(Key::Forward);
        assert_eq!(shown(&mut player), "62 ");
        assert_eq!(player.next(Duration::ZERO), Next::End);
    }

    #[test]
    fn keys_are_read_out_of_what_terminals_send() {
        use Key::{Back, Faster, Forward, Pause, Quit, Slower, Suspend};
        assert_eq!(
            Key::read(b" .\x1b[C\x1b[D\x1bOB+-=\x1a\x03q"),
            [
                Pause, Forward, Forward, Back, Forward, Faster, Slower, Faster, Suspend, Quit, Quit
            ]
        );
        assert!(Key::read(b"\x1b[1;5H\x1b[200~x\x1b\xff\x1b[").is_empty());
    }

    proptest! {
        #[test]
        fn whatever_is_pressed_it_comes_to_an_end(bytes in any::<Vec<u8>>(), speed in 0.05..100.0_f64, pause in any::<u64>(), by_steps in any::<bool>()) {
            let mut player = player(by_steps);
            player.pace = Pace { speed, pause_max: Duration::from_secs(pause) };
            for key in Key::read(&bytes) {
                player.key(key);
                if player.next(Duration::ZERO) == Next::Show {
                    player.show();
                }
                let _ = player.standing();
            }
            for _ in 0..100 {
                player.key(Key::Forward);
                shown(&mut player);
            }
            prop_assert_eq!(player.next(Duration::ZERO), Next::End);
        }
    }
}
