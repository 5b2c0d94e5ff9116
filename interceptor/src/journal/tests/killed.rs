//! `kill -9` at random moments, under load, of a process that says what is on record, and what it has erased.
//!
//! `INTERCEPTOR_JOURNAL_KILLS` says how often.

use std::{
    collections::{BTreeMap, BTreeSet},
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

use super::{
    super::{Encryption, Journal, Options},
    all, durable, folder,
    memory::Random,
    notice, problems,
};
use crate::retention::{Retainer, Retention};

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
    let journal = open(Path::new(&folder));
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
        // Sessions are erased all the time, where they can be.
        scope.spawn(|| {
            for number in 0_u64.. {
                let session = SessionId(u64::from(life) << 32 | number);
                let said = [notice("to be erased")];
                let agent = Arc::from("agent");
                let appended = journal.append(Some(session), &agent, Timestamp(1), said);
                durable(&journal, appended.unwrap());
                if !journal.encrypts() {
                    return;
                }
                journal
                    .erase(session, "somebody", "to be killed at it")
                    .unwrap();
                say(format!("erased {session}\n"));
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
                    if journal.encrypts() {
                        // Who reads what is said reads it in the end: others are to come to say something too.
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
    });
}

/// The journal in `folder`, as a daemon opens and goes on with it; encrypted where its name says so.
fn open(folder: &Path) -> Journal {
    let options = Options {
        encryption: folder.ends_with("encrypted").then_some(Encryption::Beside),
        waiting: Some(folder.with_file_name("waiting")),
        ..Options::default()
    };
    let journal = Journal::open_with(folder, &options).unwrap();
    let retainer = Retainer::new(Retention::default(), folder);
    let observe = |record| {
        retainer.observe(&record);
        true
    };
    let read = journal.reader().unwrap().each(observe);
    retainer.take_up(&journal, read).unwrap();
    journal
}

/// What a process said before it was killed.
#[derive(Default)]
struct Said {
    /// How far it was when it opened.
    open: Option<u64>,
    /// What is on record.
    lines: Vec<(u64, String)>,
    erased: Vec<SessionId>,
}

/// One process's life.
fn life(folder: &Path, random: &mut Random) -> Said {
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
    let (mut lines, mut erased) = (Vec::new(), Vec::new());
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
        // To erase something takes a few syncs more.
        let longest = match folder.ends_with("encrypted") {
            true => 60_000,
            false => 30_000,
        };
        thread::sleep(Duration::from_micros(random.next() % longest));
    }
    child.kill().unwrap();
    let said = said.lines().map_while(Result::ok);
    // What is cut off in the middle wasn't said.
    let mut said: Vec<String> = said.collect();
    let _ = said.pop();
    for line in said {
        if let Some(seq) = line.strip_prefix("open ") {
            open = Some(seq.parse().unwrap());
        } else if let Some(session) = line.strip_prefix("erased ") {
            erased.extend(session.parse::<SessionId>());
        } else if let Some((seq, text)) = line.split_once(' ')
            && let Ok(seq) = seq.parse()
        {
            lines.push((seq, text.to_owned()));
        }
    }
    let ended = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&ended.stderr);
    assert!(!complaint.contains("panicked"), "{complaint}");
    Said {
        open,
        lines,
        erased,
    }
}

/// Everything that was said to be on record is there, and nothing of what was said to be erased.
fn look(folder: &Path, on_record: &BTreeMap<u64, String>, erased: &BTreeSet<SessionId>) -> usize {
    open(folder).close();
    assert_eq!(problems(folder), Vec::<String>::new());
    let mut there: BTreeMap<u64, String> = BTreeMap::new();
    let mut numbers = 0;
    for record in all(folder) {
        assert!(
            record
                .session
                .is_none_or(|session| !erased.contains(&session))
        );
        numbers = record.seq;
        if let Event::Event(notice) = record.event {
            let text = notice.detail.values().map(|text| &**text).collect();
            there.insert(record.seq, text);
        }
    }
    // Of what was erased each left one record, or two where another one wasn't said to be any more.
    let gone = numbers - there.len() as u64;
    assert!(gone >= erased.len() as u64 && (gone == 0 || folder.ends_with("encrypted")));
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
    let gone = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(KILLS_OF_ONE, Ordering::Relaxed);
                    if first >= kills {
                        return;
                    }
                    let place = folder();
                    let names = ["state", "encrypted"];
                    let name = names[(first / KILLS_OF_ONE) as usize % 2];
                    let folder: PathBuf = place.path().join(name);
                    let mut random = Random::new(first);
                    let (mut on_record, mut erased) = (BTreeMap::new(), BTreeSet::new());
                    for kill in first..kills.min(first + KILLS_OF_ONE) {
                        let life = life(&folder, &mut random);
                        if let Some(open) = life.open {
                            let last = on_record.keys().next_back().copied().unwrap_or(0);
                            assert!(open >= last, "kill {kill}: {open} of {last}");
                            opened.fetch_add(1, Ordering::Relaxed);
                        }
                        said.fetch_add(life.lines.len() as u64, Ordering::Relaxed);
                        on_record.extend(life.lines);
                        erased.extend(life.erased);
                        if kill % 10 == 9 {
                            look(&folder, &on_record, &erased);
                        }
                    }
                    let found = look(&folder, &on_record, &erased) as u64;
                    there.fetch_add(found, Ordering::Relaxed);
                    gone.fetch_add(erased.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{kills} kills in {:?}, {} of them of a journal that was open: {} records were said to be on record, {} are there; 0 lost; {} sessions were said to be erased, 0 are there",
        since.elapsed(),
        number(&opened),
        number(&said),
        number(&there),
        number(&gone)
    );
    assert!(number(&opened) > kills / 2 && number(&said) > kills);
    assert!(number(&gone) > kills / 20);
}
