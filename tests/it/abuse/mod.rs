//! Hostile clients and servers: what they do costs bounded memory and time, is on record, and harms nobody
//! else.

mod bodies;
mod crowd;
mod http1;
mod http2;
mod http2_servers;
mod memory;
mod names;
mod tls;

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use interceptor_tests::{agent::Agent, daemon::Daemon, journal::Journal, run};

use crate::tls::web;

/// Times that tests have the patience for.
const PATIENCE: &str = "patience: {handshake: 3s, request: 2s, stalled: 3s, idle: 4s}\n";

/// What a case may take with all of these times and a busy machine.
const IN_TIME: Duration = Duration::from_secs(25);

/// How much more memory a daemon and its proxy may have while they are attacked, in bytes.
const GROWTH_MAX: usize = 32 << 20;

/// How long others may wait for an answer meanwhile, at the worst: two cores do all of this at once.
const OTHERS_WAIT_MAX: Duration = Duration::from_secs(5);

/// A daemon, an agent that attacks it, and one that goes on working.
struct Siege {
    daemon: Daemon,
    agent: Agent,
    calm: Agent,
    expected: Mutex<Vec<(TcpStream, &'static str)>>,
}

/// One attack.
type Case = (&'static str, fn(&Siege));

impl Siege {
    fn start(policy: &str) -> Self {
        Self::configured(policy, "")
    }

    fn configured(policy: &str, more: &str) -> Self {
        Self::patient(policy, PATIENCE, more)
    }

    fn patient(policy: &str, patience: &str, more: &str) -> Self {
        let configuration = format!("{}{patience}{more}", web().configuration());
        let daemon = Daemon::configured(policy, |_| configuration).unwrap();
        let agent = Agent::start(&daemon, "hostile").unwrap();
        let calm = Agent::start(&daemon, "calm").unwrap();
        Self {
            daemon,
            agent,
            calm,
            expected: Mutex::default(),
        }
    }

    /// Runs all `cases` at once.
    fn hold(&self, cases: &[Case]) {
        self.within(GROWTH_MAX, cases);
    }

    /// Runs all `cases` at once, with memory growing by no more than `growth_max` bytes.
    fn within(&self, growth_max: usize, cases: &[Case]) {
        let over = AtomicBool::new(false);
        let mut failed = String::new();
        // What is made once has been made.
        answers(&self.calm.connect(web().plain).unwrap());
        self.daemon.forget_peak().unwrap();
        let [before, _] = self.daemon.memory().unwrap();
        let longest = thread::scope(|scope| {
            let calm = scope.spawn(|| self.work(&over));
            let cases: Vec<_> = cases
                .iter()
                .map(|(name, case)| (name, scope.spawn(move || case(self))))
                .collect();
            for (name, case) in cases {
                if let Err(panic) = case.join() {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or(panic.downcast_ref::<&str>().copied());
                    let _ = writeln!(failed, "{name}: {}", text.unwrap_or("?"));
                }
            }
            over.store(true, Ordering::Relaxed);
            calm.join().unwrap()
        });
        let [_, peak] = self.daemon.memory().unwrap();
        let growth = peak.saturating_sub(before);
        println!(
            "{} KiB more at the most, others waited {longest:?} at the most",
            growth >> 10
        );
        assert!(failed.is_empty(), "{failed}");
        assert!(growth <= growth_max, "{} KiB more", growth >> 10);
        assert!(longest < OTHERS_WAIT_MAX, "others waited {longest:?}");
        self.all_ended();
    }

    /// Asks again and again as somebody who has nothing to do with it; the longest that took.
    fn work(&self, over: &AtomicBool) -> Duration {
        let stream = self.calm.connect(web().plain).unwrap();
        let mut longest = Duration::ZERO;
        while !over.load(Ordering::Relaxed) {
            let asked = Instant::now();
            assert!(answers(&stream), "the session of another agent broke");
            longest = longest.max(asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        longest
    }

    /// Has the record of the session of a connection looked at for `text` when all is over. The connection
    /// stays open until then: it is not for the agent to end it.
    fn expect(&self, stream: &TcpStream, text: &'static str) {
        let stream = stream.try_clone().unwrap();
        self.expected.lock().unwrap().push((stream, text));
    }

    /// Every session of the hostile agent ends, with what was expected on record, and the daemon lives.
    fn all_ended(&self) {
        let ended = run::wait_for("all sessions to end", IN_TIME, || {
            let journal = self.daemon.journal()?;
            Ok(open(&journal).is_empty().then_some(journal))
        });
        let journal = ended.unwrap_or_else(|error| {
            let journal = self.daemon.journal().unwrap();
            let open = open(&journal);
            let left = journal.lines.iter();
            let left: Vec<_> = left.filter(|line| open.contains(&&line.session)).collect();
            panic!("{error}: {left:#?}")
        });
        for (stream, text) in std::mem::take(&mut *self.expected.lock().unwrap()) {
            let client = format!(":{}", port_of(&stream));
            let start = journal.of_kind("session_start").find(|line| {
                let own = line.at("/client").and_then(serde_json::Value::as_str);
                own.is_some_and(|own| own.ends_with(&client))
            });
            let session = &start.unwrap().session;
            let said = journal.lines.iter().filter(|line| line.session == *session);
            let said: Vec<_> = said
                .filter(|line| matches!(&*line.kind, "event" | "session_end"))
                .map(|line| serde_json::to_string(&line.rest).unwrap())
                .collect();
            assert!(
                said.iter().any(|line| line.contains(text)),
                "not on record: {text}; but {said:#?}"
            );
        }
        let log = self.daemon.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// The sessions of the hostile agent that have begun and not ended.
fn open(journal: &Journal) -> Vec<&Option<String>> {
    let of = |kind| {
        let lines = journal.of_kind(kind);
        lines.filter(|line| line.agent == "hostile")
    };
    let ended: Vec<_> = of("session_end").map(|line| &line.session).collect();
    let begun = of("session_start").map(|line| &line.session);
    begun.filter(|session| !ended.contains(session)).collect()
}

/// Whether a request on a connection to the web server is answered.
fn answers(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(IN_TIME)).unwrap();
    stream
        .write_all(b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    let ends = [
        &b"GET localhost /echo\n"[..],
        b"GET localhost /echo\n\r\n0\r\n\r\n",
    ];
    while !ends.iter().any(|end| answer.ends_with(end))
        || answer.ends_with(ends[0]) && chunked(&answer)
    {
        match stream.read(&mut part) {
            Ok(count @ 1..) => answer.extend_from_slice(&part[..count]),
            other => {
                eprintln!(
                    "no answer: {other:?} after {}",
                    String::from_utf8_lossy(&answer)
                );
                return false;
            }
        }
    }
    answer.starts_with(b"HTTP/1.1 200 ")
}

/// Whether an answer was framed anew, as those are that a mask may be for.
fn chunked(answer: &[u8]) -> bool {
    String::from_utf8_lossy(answer).contains("\r\nTransfer-Encoding: chunked\r\n")
}

/// Writes until all is written or the other side is gone or takes nothing for a while; whether it was all.
fn write(mut stream: &TcpStream, bytes: &[u8]) -> bool {
    stream
        .set_write_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.write_all(bytes).is_ok()
}

/// What the other side says until it ends the connection, which it has to do in time. Of much the first
/// mebibyte.
#[track_caller]
fn until_end(mut stream: &TcpStream) -> Vec<u8> {
    const KEPT: usize = 1 << 20;
    let start = Instant::now();
    let mut said = Vec::new();
    let mut part = vec![0; 64 << 10];
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    loop {
        assert!(
            start.elapsed() < IN_TIME,
            "still open: {}",
            String::from_utf8_lossy(&said[..said.len().min(500)])
        );
        match stream.read(&mut part) {
            Ok(0) => return said,
            Ok(count) => {
                said.extend_from_slice(&part[..count.min(KEPT.saturating_sub(said.len()))])
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                ) => {}
            Err(_) => return said,
        }
    }
}

fn port_of(stream: &TcpStream) -> u16 {
    stream.local_addr().unwrap().port()
}

/// A server that does with each connection what it is told.
struct Upstream {
    port: u16,
    over: Arc<AtomicBool>,
}

impl Upstream {
    fn start(serve: fn(TcpStream)) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(IN_TIME)).unwrap();
                stream.set_write_timeout(Some(IN_TIME)).unwrap();
                thread::spawn(move || serve(stream));
            }
        });
        Self { port, over }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
