//! `kill -9` of either part of the daemon, or of both, at the worst of moments, again and again, under load:
//! nothing reaches a server that wasn't decided and isn't on record, nothing approved runs twice.
//!
//! `INTERCEPTOR_KILLS` says how often; a few times suffice to see that it goes on working.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use interceptor_tests::{daemon::Daemon, dns::Dns, netns::Outside, paths, run};

use crate::redirect::Cgroup;

const POLICY: &str = "
default: {action: deny, reason: \"nothing else\"}
rules:
  - {id: fine, match: {protocol: http, http: {path: \"/ok/*\"}}, action: allow}
  - {id: ask, match: {protocol: http, http: {path: \"/held/*\"}}, action: hold, reviewers: {within: 10s}}
  - {id: names, match: {protocol: dns, resources: [\"*.ok.test\"]}, action: allow}
";

/// Says every path that it is asked for.
const SERVE: &str = "
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def answer(self):
        # One write: many threads speak.
        os.write(1, self.path.encode() + b'\\n')
        self.send_response(200)
        self.send_header('Content-Length', '2')
        self.end_headers()
        self.wfile.write(b'ok')
    do_GET = do_DELETE = answer
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(('', 8000), Handler)
os.write(1, b'ready\\n')
server.serve_forever()
";

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_reaches_a_server_was_decided_and_is_on_record_however_often_the_daemon_is_killed() {
    let kills: u32 = std::env::var("INTERCEPTOR_KILLS").map_or(15, |text| {
        text.parse().expect("INTERCEPTOR_KILLS is a number")
    });
    let outside = Outside::new().unwrap();
    let dns = Dns::start(&outside).unwrap();
    let mut server = outside
        .command("python3")
        .args(["-c", SERVE])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(server.stdout.take().unwrap());
    let server = Ended(server);
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let reached = thread::spawn(move || {
        let mut reached: BTreeMap<String, u32> = BTreeMap::new();
        for line in said.lines().map_while(Result::ok) {
            *reached.entry(line).or_default() += 1;
        }
        reached
    });

    let mut daemon = Daemon::start(POLICY).unwrap();
    let cgroup = Cgroup::new();
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "hammer"])
        .unwrap();
    let stop = daemon.folder().join("stop");
    let hammers: Vec<Ended> = (0..3)
        .map(|number| {
            let mut command = cgroup.command("python3");
            command
                .arg(paths::client("hammer.py"))
                .args([&outside.address_v4(), "8000", &format!("h{number}")])
                .arg(&stop);
            Ended(command.spawn().unwrap())
        })
        .collect();

    let mut approved = 0;
    for kill in 0..kills {
        // Approves what is held, for as long as this round lasts: shorter than a start at times.
        let round = Duration::from_millis(u64::from((kill * 7_919) % 700));
        let until = std::time::Instant::now() + round;
        while std::time::Instant::now() < until {
            let pending = daemon.ask_json(&["approvals", "list"]);
            for approval in pending.iter().flat_map(|list| list.as_array()).flatten() {
                let id = approval["id"].as_str().unwrap_or_default();
                approved += u32::from(daemon.ask(&["approvals", "approve", id]).is_ok());
            }
            thread::sleep(Duration::from_millis(20));
        }
        // The proxy, the daemon, or both: the proxy is replaced by itself.
        if kill % 3 != 1
            && let Some(proxy) = daemon.proxy()
        {
            let _ = nix::sys::signal::kill(proxy, nix::sys::signal::Signal::SIGKILL);
        }
        if kill % 3 != 0 {
            daemon.kill().unwrap();
            daemon.restart().unwrap();
        }
    }
    // Those that go on are served again.
    daemon.ask(&["tag", "list"]).unwrap();
    thread::sleep(Duration::from_secs(1));
    std::fs::write(&stop, "").unwrap();
    for mut hammer in hammers {
        run::wait_for("a client to end", Duration::from_secs(60), || {
            Ok(hammer.0.try_wait()?)
        })
        .unwrap();
    }
    drop(server);
    let reached = reached.join().unwrap();

    let journal = daemon.journal().unwrap();
    let text = |line: &interceptor_tests::journal::Line, at: &str| {
        line.at(at)
            .and_then(|value| value.as_str())
            .map(str::to_owned)
    };
    // What was decided, by session and number; then which paths and names were let by.
    let verdicts: BTreeMap<(String, u64), String> = journal
        .of_kind("decision")
        .filter_map(|line| {
            let number = line.at("/operation")?.as_u64()?;
            Some(((line.session.clone()?, number), text(line, "/verdict")?))
        })
        .collect();
    let approvals: BTreeSet<(String, u64)> = journal
        .of_kind("approval")
        .filter(|line| text(line, "/step").as_deref() == Some("approved"))
        .filter_map(|line| Some((line.session.clone()?, line.at("/operation")?.as_u64()?)))
        .collect();
    let (mut paths, mut names) = (BTreeSet::new(), BTreeSet::new());
    for line in journal.of_kind("operation") {
        let Some(key) = line
            .session
            .clone()
            .zip(line.at("/operation").and_then(|n| n.as_u64()))
        else {
            continue;
        };
        let verdict = verdicts.get(&key).map(String::as_str);
        let passes =
            verdict == Some("allow") || (verdict == Some("hold") && approvals.contains(&key));
        if !passes {
            continue;
        }
        paths.extend(
            line.at("/attributes")
                .and_then(|all| all.get("http.path"))
                .and_then(|path| path.as_str())
                .map(str::to_owned),
        );
        names.extend(
            line.at("/attributes")
                .and_then(|all| all.get("dns.name"))
                .and_then(|name| name.as_str())
                .map(str::to_owned),
        );
    }
    let undecided: Vec<&String> = reached
        .keys()
        .filter(|path| !paths.contains(*path))
        .collect();
    let asked = dns.names();
    let unasked: Vec<&String> = asked
        .iter()
        .filter(|name| name.contains('-') && !names.contains(*name))
        .collect();
    let twice: Vec<(&String, &u32)> = reached.iter().filter(|(_, count)| **count > 1).collect();
    println!(
        "{kills} kills: {} requests and {} names reached a server, {approved} of them approved by hand; \
         undecided {}, {}; twice {}",
        reached.len(),
        asked.len(),
        undecided.len(),
        unasked.len(),
        twice.len()
    );
    assert!(undecided.is_empty(), "{undecided:?}");
    assert!(unasked.is_empty(), "{unasked:?}");
    assert!(twice.is_empty(), "{twice:?}");
    assert!(
        reached.keys().any(|path| path.starts_with("/ok/")),
        "some get through"
    );
    assert!(
        asked.iter().any(|name| name.ends_with(".ok.test")),
        "some get through"
    );
    assert!(!asked.iter().any(|name| name.ends_with(".no.test")));
    daemon.ask(&["verify"]).unwrap();
}

/// Answers every request, of thousands of connections at once.
const ANSWER: &str = "
import asyncio
async def serve(reader, writer):
    await reader.readuntil(b'\\r\\n\\r\\n')
    writer.write(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, '', 8000, backlog=4096)
    print('ready', flush=True)
    await server.serve_forever()
asyncio.run(main())
";

/// Connects two thousand times within a second, from when a file is there.
const RUSH: &str = "
import asyncio, os, sys
ADDRESS, GO = sys.argv[1:]
async def ask(number):
    await asyncio.sleep(number / 2000)
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(ADDRESS, 8000), 30)
    except (ConnectionRefusedError, PermissionError):
        return 'refused'
    except Exception as e:
        return 'connect: ' + repr(e)
    try:
        writer.write(b'GET /ok/x HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return 'served' if answer.endswith(b'ok') else 'answer: ' + repr(answer[:90])
    except Exception as e:
        return repr(e)
async def main():
    while not os.path.exists(GO):
        await asyncio.sleep(0.001)
    found = await asyncio.gather(*(ask(number) for number in range(2000)))
    for what in sorted(set(found)):
        print(what, found.count(what))
asyncio.run(main())
";

#[test]
fn two_thousand_connects_while_it_starts_again_are_served_or_refused() {
    let outside = Outside::new().unwrap();
    let mut server = outside
        .command("python3")
        .args(["-c", ANSWER])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let _server = Ended(server);
    assert_eq!(line, "ready\n");
    let mut daemon = Daemon::start(POLICY).unwrap();
    let cgroup = Cgroup::new();
    daemon
        .ask(&["tag", "add", cgroup.name(), "--agent", "rush"])
        .unwrap();
    let go = daemon.folder().join("go");
    let mut command = cgroup.command("sh");
    command
        .args(["-c", "ulimit -n 8192; exec python3 -c \"$@\"", "sh", RUSH])
        .arg(outside.address_v4())
        .arg(&go);
    let rush = run::start(&mut command).unwrap();
    thread::sleep(Duration::from_millis(500));
    daemon.kill().unwrap();
    std::fs::write(&go, "").unwrap();
    daemon.restart().unwrap();
    let said = rush
        .outcome_within(Duration::from_secs(120))
        .unwrap()
        .success()
        .unwrap();
    let mut count = BTreeMap::new();
    for line in said.lines() {
        let (what, number) = line.rsplit_once(' ').unwrap();
        count.insert(what.to_owned(), number.parse::<u32>().unwrap());
    }
    println!("{count:?}");
    let [served, refused] = ["served", "refused"].map(|what| count.remove(what).unwrap_or(0));
    assert!(count.is_empty(), "{count:?}");
    assert_eq!(served + refused, 2_000);
    assert!(served > 0, "the new daemon serves the last of them");
}
