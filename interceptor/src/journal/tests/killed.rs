//! `kill -9` at random moments, under load, of a process that says what is on record.
//!
//! `INTERCEPTOR_JOURNAL_KILLS` says how often.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use interceptor_core::record::{Event, SessionId, Timestamp};

use super::{super::Journal, all, durable, folder, memory::Random, notice, problems};

/// Where the process that is killed has its journal.
const FOLDER: &str = "INTERCEPTOR_JOURNAL_TO_KILL";

/// Set for the process that kills.
const KILLER: &str = "INTERCEPTOR_JOURNAL_KILLER";

/// Kills before a journal is begun anew, so that reading it doesn't take ever longer.
const KILLS_OF_ONE: u64 = 50;

/// The process that is killed: this test, run by the other one.
#[test]
fn writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let say = |line: String| std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    let journal = Journal::open(Path::new(&folder)).unwrap();
    // Behind what the one who runs tests has said of this one.
    say(format!("\nopen {}\n", journal.last_seq()));
    let life = std::process::id();
    thread::scope(|scope| {
        // Its key is replaced all the time.
        scope.spawn(|| {
            loop {
                let _ = journal.rotate("somebody", "to be killed at it");
                thread::sleep(Duration::from_millis(2));
            }
        });
        for writer in 0..3_u64 {
            let journal = &journal;
            scope.spawn(move || {
                for number in 0_u64.. {
                    // Some are large, and some are many.
                    let noise = "x".repeat((number * 37 % 11) as usize * 40);
                    let text = |part| format!("{life} {writer} {number}.{part} {noise}");
                    let parts = 1 + number % 3;
                    let events = (0..parts).map(|part| notice(&text(part)));
                    let agent = Arc::from("agent");
                    let session = Some(SessionId(writer));
                    let last = journal
                        .append(session, &agent, Timestamp(1), events)
                        .unwrap();
                    if writer == 0 {
                        durable(journal, last);
                    } else if !journal.is_kept(last) {
                        continue;
                    }
                    let lines: String = (0..parts)
                        .map(|part| format!("{} {}\n", last + 1 + part - parts, text(part)))
                        .collect();
                    say(lines);
                }
            });
        }
    });
}

/// One process's life: what it said to be on record, how far it was when it opened.
fn life(folder: &Path, random: &mut Random) -> (Option<u64>, Vec<(u64, String)>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "journal::tests::killed::writes_until_it_is_killed",
        ])
        .args(["--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut open = None;
    let mut lines = Vec::new();
    let mut line = String::new();
    // At times before it has come to open the journal, or while it does.
    if random.once_in(4) {
        thread::sleep(Duration::from_micros(random.next() % 25_000));
    } else {
        while open.is_none() && said.read_line(&mut line).unwrap() > 0 {
            open = line
                .strip_prefix("open ")
                .map(|seq| seq.trim().parse().unwrap());
            line.clear();
        }
        thread::sleep(Duration::from_micros(random.next() % 30_000));
    }
    child.kill().unwrap();
    let said = said.lines().map_while(Result::ok);
    // What is cut off in the middle wasn't said.
    let mut said: Vec<String> = said.collect();
    let _ = said.pop();
    for line in said {
        if let Some(seq) = line.strip_prefix("open ") {
            open = Some(seq.parse().unwrap());
        } else if let Some((seq, text)) = line.split_once(' ')
            && let Ok(seq) = seq.parse()
        {
            lines.push((seq, text.to_owned()));
        }
    }
    let ended = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&ended.stderr);
    assert!(!complaint.contains("panicked"), "{complaint}");
    (open, lines)
}

/// Everything that was said to be on record is there.
fn look(folder: &Path, on_record: &BTreeMap<u64, String>) -> usize {
    Journal::open(folder).unwrap().close();
    assert_eq!(problems(folder), Vec::<String>::new());
    let there: BTreeMap<u64, String> = all(folder)
        .into_iter()
        .filter_map(|record| match record.event {
            Event::Event(notice) => {
                let text = notice.detail.values().map(|text| &**text).collect();
                Some((record.seq, text))
            }
            _ => None,
        })
        .collect();
    assert!(there.keys().copied().eq(1..=there.len() as u64));
    for (seq, text) in on_record {
        assert_eq!(
            there.get(seq),
            Some(text),
            "record {seq} was said to be there"
        );
    }
    there.len()
}

#[test]
fn nothing_on_record_is_lost_by_a_thousand_kills() {
    if std::env::var_os(KILLER).is_some() {
        return kill_all();
    }
    // Other tests have this process in cgroups that they remove, and whoever is started then would stay in one.
    let turn = crate::kernel::tests::turn();
    let mut killer = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "journal::tests::killed::nothing_on_record_is_lost_by_a_thousand_kills",
        ])
        .args(["--nocapture", "--test-threads=1"])
        .env(KILLER, "1")
        .spawn()
        .unwrap();
    drop(turn);
    assert!(killer.wait().unwrap().success());
}

fn kill_all() {
    let kills: u64 = std::env::var("INTERCEPTOR_JOURNAL_KILLS").map_or(1_000, |text| {
        text.parse().expect("INTERCEPTOR_JOURNAL_KILLS is a number")
    });
    let since = Instant::now();
    let next = AtomicU64::new(0);
    let (said, opened, there) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(KILLS_OF_ONE, Ordering::Relaxed);
                    if first >= kills {
                        return;
                    }
                    let place = folder();
                    let folder: PathBuf = place.path().join("state");
                    let mut random = Random::new(first);
                    let mut on_record = BTreeMap::new();
                    for kill in first..kills.min(first + KILLS_OF_ONE) {
                        let (open, lines) = life(&folder, &mut random);
                        if let Some(open) = open {
                            let last = on_record.keys().next_back().copied().unwrap_or(0);
                            assert!(open >= last, "kill {kill}: {open} of {last}");
                            opened.fetch_add(1, Ordering::Relaxed);
                        }
                        said.fetch_add(lines.len() as u64, Ordering::Relaxed);
                        on_record.extend(lines);
                        if kill % 10 == 9 {
                            look(&folder, &on_record);
                        }
                    }
                    there.fetch_add(look(&folder, &on_record) as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{kills} kills in {:?}, {} of them of a journal that was open: {} records were said to be on record, {} are there; 0 lost",
        since.elapsed(),
        number(&opened),
        number(&said),
        number(&there)
    );
    assert!(number(&opened) > kills / 2 && number(&said) > kills);
}
