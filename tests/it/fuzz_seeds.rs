//! The fuzz targets' functions on their seeds and on bounded changes of them: what `cargo xtask
//! fuzz` does without end, for a few seconds and always in the same way.

use std::{fs, panic, path::PathBuf};

use interceptor_tests::paths;

#[allow(unreachable_pub, reason = "there it is a crate of its own")]
#[path = "../../interceptor/core/fuzz/src/lib.rs"]
mod targets;

/// Changed inputs a seed.
const CHANGES: u32 = 300;

fn replay(name: &str, target: fn(&[u8])) {
    let folder = paths::root().join("interceptor/core/fuzz/seeds").join(name);
    let mut seeds: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty());
    let inputs: Vec<Vec<u8>> = seeds.iter().map(|seed| fs::read(seed).unwrap()).collect();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for (seed, input) in seeds.iter().zip(&inputs) {
        target(input);
        for change in 0..CHANGES {
            let changed = dice.change(input, &inputs);
            if panic::catch_unwind(|| target(&changed)).is_err() {
                panic!(
                    "change {change} of {}: {}",
                    seed.display(),
                    changed.escape_ascii()
                );
            }
        }
    }
}

/// Numbers that are the same in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % below.max(1)
    }

    fn change(&mut self, input: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
        let mut changed = input.to_vec();
        for _ in 0..=self.roll(4) {
            let at = self.roll(changed.len());
            match self.roll(6) {
                0 if !changed.is_empty() => changed[at] ^= 1 << self.roll(8),
                1 if !changed.is_empty() => {
                    changed[at] = [0, 1, 0x7f, 0x80, 0xff, b'\''][self.roll(6)];
                }
                2 => changed.truncate(at),
                3 if !changed.is_empty() => {
                    changed.remove(at);
                }
                4 => changed.insert(at.min(changed.len()), u8::try_from(self.roll(256)).unwrap()),
                _ => {
                    let other = &others[self.roll(others.len())];
                    changed.truncate(at);
                    changed.extend_from_slice(&other[self.roll(other.len())..]);
                }
            }
        }
        changed
    }
}

#[test]
fn sessions() {
    replay("session", targets::session);
}

#[test]
fn logins() {
    replay("login", targets::login);
}

#[test]
fn statements() {
    replay("describe", targets::describe);
}

#[test]
fn policies() {
    replay("policy", targets::policy);
}

#[test]
fn secrets() {
    replay("patterns", targets::patterns);
}

#[test]
fn http_connections() {
    replay("http", targets::http);
}

#[test]
fn client_hellos() {
    replay("hello", targets::hello);
}

#[test]
fn dns_connections() {
    replay("dns", targets::dns);
}
