//! UNIX sockets of agents that are tagged while they run: what isn't theirs and isn't allowed is refused, by name
//! and on record, whoever is dead.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use interceptor_tests::{
    daemon::Daemon,
    host,
    journal::Line,
    keeper::{self, Keeper},
    paths, run, scratch,
};
use serde_json::Value;

use crate::support::{ALLOW_ALL, pin};

const NOBODY: u32 = 65_534;

/// What is noticed is noticed within this, and some more for a busy machine.
const NOTICED: Duration = Duration::from_secs(3);

/// A Python process that takes a line and answers one.
struct Talker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Talker {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cgroup that interceptor didn't make.
struct Cgroup {
    path: PathBuf,
    _keeper: Keeper,
}

impl Cgroup {
    fn new() -> Self {
        let path = keeper::cgroup2().unwrap().join(scratch::name("it-unix"));
        let script = "echo 0 >\"$1/cgroup.freeze\"; echo 1 >\"$1/cgroup.kill\"; n=0; \
                      while [ -d \"$1\" ] && [ $n -lt 100 ]; do rmdir \"$1\"; sleep 0.02; n=$((n+1)); done";
        let keeper = Keeper::of_command(script, [path.as_os_str()]).unwrap();
        fs::create_dir(&path).unwrap();
        Self {
            path,
            _keeper: keeper,
        }
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// A command that runs in it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo $$ >\"$0/cgroup.procs\"; exec \"$@\""])
            .arg(&self.path)
            .arg(program);
        command
    }

    /// A process that was born in it.
    fn agent(&self, uid: u32) -> Talker {
        let mut command = self.command("/usr/bin/python3");
        command
            .arg(paths::client("unix_agent.py"))
            .arg(uid.to_string());
        let mut agent = Talker::start(&mut command);
        assert_eq!(agent.line(), "ready");
        agent
    }

    /// A process that goes there when it is told to enter.
    fn newcomer(&self) -> Talker {
        let mut command = Command::new("/usr/bin/python3");
        command
            .arg(paths::client("unix_agent.py"))
            .arg("0")
            .arg(&self.path);
        Talker::start(&mut command)
    }
}

/// Somebody else's sockets: paths that everybody may use, and abstract ones.
struct World {
    folder: PathBuf,
    name: String,
    server: Talker,
}

impl World {
    fn new(daemon: &Daemon) -> Self {
        let folder = daemon.folder().join("sockets");
        fs::create_dir(&folder).unwrap();
        for folder in [daemon.folder(), &folder] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let name = scratch::name("it-unix");
        let path = |name: &str| folder.join(name).display().to_string();
        let mut command = Command::new("/usr/bin/python3");
        command
            .arg(paths::client("unix_server.py"))
            .arg(folder.join("log"))
            .arg(format!("stream:{}", path("docker.sock")))
            .arg(format!("stream:{}", path("db.sock")))
            .arg(format!("datagram:{}", path("notify")))
            .arg(format!("packets:{}", path("packets")))
            .arg(format!("stream:@{name}-bus"))
            .arg(format!("stream:@{name}-allowed"));
        let mut server = Talker::start(&mut command);
        assert_eq!(server.line(), "ready");
        Self {
            folder,
            name,
            server,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn hidden(&self, name: &str) -> String {
        format!("@{}-{name}", self.name)
    }

    /// All ways to all of them but to what is allowed, each with what a free process gets.
    fn ways(&self) -> Vec<(String, &'static str)> {
        vec![
            (
                format!("connect stream {}", self.path("docker.sock")),
                "served",
            ),
            (
                format!("connect packets {}", self.path("packets")),
                "served",
            ),
            (format!("connect datagram {}", self.path("notify")), "sent"),
            (format!("send {}", self.path("notify")), "sent"),
            (format!("connect stream {}", self.hidden("bus")), "served"),
        ]
    }

    /// How often something reached any of them.
    fn reached(&self) -> usize {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines().count()
    }

    fn curl(&self, command: &mut Command) -> (Option<i32>, String) {
        command
            .args(["-s", "-m", "5", "--unix-socket"])
            .arg(self.folder.join("docker.sock"))
            .arg("http://localhost/_ping");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    }
}

fn tag(daemon: &Daemon, cgroup: &Cgroup, agent: &str, flags: &[&str]) -> String {
    let arguments = ["tag", "add", cgroup.name(), "--agent", agent];
    let output = daemon
        .command(arguments.iter().chain(flags))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// The records of one name about an agent, once there is one with these words.
fn told(daemon: &Daemon, agent: &str, name: &str, words: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let found = run::wait_for("the record", NOTICED, || {
        lines = daemon.journal()?.lines;
        lines.retain(|line| {
            line.agent == agent && line.at("/name").and_then(Value::as_str) == Some(name)
        });
        Ok(lines.iter().any(|line| line.mentions(words)).then_some(()))
    });
    found.unwrap_or_else(|error| panic!("{name} with {words}: {error}: {:#?}", daemon.journal()));
    lines
}

/// Whether this kernel has hooks on UNIX sockets (Linux 6.7). Where it has none, everything passes, and whoever tags
/// is told so: that is tried in the place of what the hooks do.
fn has_hooks(daemon: &Daemon) -> bool {
    let Some(why) = host::weaker(daemon, host::UNIX_HOOKS).unwrap() else {
        return true;
    };
    assert!(why.contains("no hooks on UNIX sockets"), "{why}");
    let world = World::new(daemon);
    let cgroup = Cgroup::new();
    let mut agent = cgroup.agent(NOBODY);
    let said = tag(daemon, &cgroup, "unhooked", &[]);
    assert!(said.contains("UNIX sockets stay open to it"), "{said}");
    assert!(said.contains("no hooks on UNIX sockets"), "{said}");
    told(daemon, "unhooked", "tag_added", "UNIX sockets stay open");
    for (way, free) in world.ways() {
        assert_eq!(agent.ask(&way), free, "{way}");
    }
    let output = daemon.command(["-o", "json", "doctor"]).output().unwrap();
    let guards: Value = serde_json::from_slice(&output.stdout).unwrap();
    let guards = guards.as_array().unwrap();
    let own = guards
        .iter()
        .find(|guard| guard["guard"] == "unhooked: UNIX sockets");
    assert_eq!(own.unwrap()["state"], "weaker");
    let strict =
        Daemon::configured(ALLOW_ALL, |_| "tags: {unguarded: refuse}\n".to_owned()).unwrap();
    let other = Cgroup::new();
    let refused = strict.ask(&["tag", "add", other.name(), "--agent", "strict"]);
    let said = format!("{:#}", refused.unwrap_err());
    assert!(said.contains("it isn't tagged"), "{said}");
    assert!(said.contains("no hooks on UNIX sockets"), "{said}");
    tag(&strict, &other, "asked", &["--unix-sockets", "allow"]);
    false
}

fn others_are_refused(uid: u32) {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    if !has_hooks(&daemon) {
        return;
    }
    let world = World::new(&daemon);
    let (cgroup, beside) = (Cgroup::new(), Cgroup::new());
    let mut agent = cgroup.agent(uid);
    let mut neighbour = beside.agent(uid);
    for (way, free) in world.ways() {
        assert_eq!(agent.ask(&way), free, "before the tag: {way}");
    }
    let said = tag(&daemon, &cgroup, "boxed", &[]);
    assert!(!said.contains("stay open"), "{said}");
    let before = world.reached();
    for (way, _) in world.ways() {
        assert_eq!(agent.ask(&way), "EPERM", "{way}");
    }
    let (code, said) = world.curl(&mut cgroup.command("curl"));
    assert_eq!((code, &*said), (Some(7), ""), "curl doesn't connect");
    assert_eq!(world.reached(), before, "nobody was reached");
    let lines = told(&daemon, "boxed", "unix_refused", &world.path("docker.sock"));
    let pid = agent.child.id().to_string();
    let first = &lines[0];
    let detail = |key: &str| first.at(&format!("/detail/{key}")).and_then(Value::as_str);
    assert_eq!(detail("pid"), Some(&*pid), "{first:?}");
    assert_eq!(detail("uid"), Some(&*uid.to_string()), "{first:?}");
    assert!(detail("remedy").unwrap().contains("--allow-socket"));
    told(&daemon, "boxed", "unix_refused", &world.hidden("bus"));
    told(&daemon, "boxed", "unix_refused", &world.path("notify"));
    let status = daemon.ask_json(&["status"]).unwrap();
    // And what libraries ask for besides.
    let refused = status["kernel"]["refused_unix"].as_u64().unwrap();
    assert!(refused >= 6, "{status:#}");
    // Who isn't tagged isn't concerned, and who isn't any more neither.
    for (way, free) in world.ways() {
        assert_eq!(neighbour.ask(&way), free, "beside: {way}");
    }
    let (code, said) = world.curl(&mut beside.command("curl"));
    assert_eq!((code, &*said), (Some(0), "served"));
    daemon.ask(&["tag", "remove", "boxed"]).unwrap();
    // The kernel takes hooks off a moment after their pins are gone.
    let (first, free) = &world.ways()[0];
    run::wait_for("the hooks to go", NOTICED, || {
        Ok((agent.ask(first) == *free).then_some(()))
    })
    .unwrap();
    for (way, free) in world.ways() {
        assert_eq!(agent.ask(&way), free, "after the tag: {way}");
    }
}

#[test]
fn sockets_of_others_are_refused_to_root() {
    others_are_refused(0);
}

#[test]
fn sockets_of_others_are_refused_to_a_user() {
    others_are_refused(NOBODY);
}

#[test]
fn what_is_allowed_passes_and_is_on_record() {
    let hidden = scratch::name("it-unix-everybody");
    let daemon = Daemon::configured(ALLOW_ALL, |_| {
        format!("tags: {{allow_sockets: ['@{hidden}']}}\n")
    })
    .unwrap();
    if !has_hooks(&daemon) {
        return;
    }
    let world = World::new(&daemon);
    let cgroup = Cgroup::new();
    let mut agent = cgroup.agent(NOBODY);
    assert_eq!(agent.ask(&format!("listen stream @{hidden}")), "listens");
    let (db, allowed) = (world.path("db.sock"), world.hidden("allowed"));
    let roundabout = ["--allow-socket", "/tmp/../run/db.sock"];
    let output = daemon
        .command(
            ["tag", "add", cgroup.name(), "--agent", "boxed"]
                .iter()
                .chain(&roundabout),
        )
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("byte by byte"), "{said}");
    let said = tag(
        &daemon,
        &cgroup,
        "boxed",
        &[
            "--allow-socket",
            &db,
            "--allow-socket",
            &allowed,
            "--allow-socket",
            "/tmp/it-unix-loose",
        ],
    );
    assert!(
        said.contains("`/tmp/it-unix-loose` is allowed by its name alone"),
        "{said}"
    );
    assert!(said.contains("can write to /tmp"), "{said}");
    assert_eq!(agent.ask(&format!("connect stream {db}")), "served");
    assert_eq!(agent.ask(&format!("connect stream {allowed}")), "served");
    assert_eq!(agent.ask(&format!("connect stream @{hidden}")), "own");
    // Another name of the same socket is another name.
    let other = world.path("./db.sock");
    assert_eq!(agent.ask(&format!("connect stream {other}")), "EPERM");
    for (way, _) in world.ways() {
        assert_eq!(agent.ask(&way), "EPERM", "{way}");
    }
    told(&daemon, "boxed", "unix_allowed", &db);
    told(&daemon, "boxed", "unix_allowed", &allowed);
    told(&daemon, "boxed", "unix_allowed", &hidden);
    told(
        &daemon,
        "boxed",
        "tag_added",
        "UNIX sockets refused but for",
    );
}

#[test]
fn its_own_abstract_sockets_work_and_those_of_another_agent_dont() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    if !has_hooks(&daemon) {
        return;
    }
    let world = World::new(&daemon);
    let (cgroup, other) = (Cgroup::new(), Cgroup::new());
    let mut agent = cgroup.agent(NOBODY);
    let mut sibling = cgroup.agent(0);
    let mut stranger = other.agent(NOBODY);
    tag(&daemon, &cgroup, "boxed", &[]);
    tag(&daemon, &other, "stranger", &[]);
    let own = world.hidden("own");
    assert_eq!(sibling.ask(&format!("listen stream {own}")), "listens");
    assert_eq!(agent.ask(&format!("connect stream {own}")), "own");
    assert_eq!(stranger.ask(&format!("connect stream {own}")), "EPERM");
    let letters = world.hidden("letters");
    assert_eq!(
        sibling.ask(&format!("listen datagram {letters}")),
        "listens"
    );
    assert_eq!(agent.ask(&format!("send {letters}")), "sent");
    assert_eq!(stranger.ask(&format!("send {letters}")), "EPERM");
    // A path may be a link to anywhere by the time that it is looked up.
    let path = world.path("own");
    assert_eq!(sibling.ask(&format!("listen stream {path}")), "listens");
    assert_eq!(sibling.ask(&format!("connect stream {path}")), "EPERM");
    told(&daemon, "boxed", "unix_direct", &own);
    told(&daemon, "stranger", "unix_refused", &own);
    // A name that another has had before is whose it is now.
    let passed_on = world.hidden("passed-on");
    let mut first = cgroup.agent(NOBODY);
    assert_eq!(first.ask(&format!("listen stream {passed_on}")), "listens");
    assert_eq!(agent.ask(&format!("connect stream {passed_on}")), "own");
    drop(first);
    assert_eq!(
        stranger.ask(&format!("listen stream {passed_on}")),
        "listens"
    );
    assert_eq!(agent.ask(&format!("connect stream {passed_on}")), "EPERM");
}

#[test]
fn a_dead_daemon_refuses_and_the_next_one_goes_on() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    if !has_hooks(&daemon) {
        return;
    }
    let world = World::new(&daemon);
    let cgroup = Cgroup::new();
    let mut agent = cgroup.agent(0);
    let db = world.path("db.sock");
    tag(&daemon, &cgroup, "boxed", &["--allow-socket", &db]);
    let own = world.hidden("own");
    assert_eq!(agent.ask(&format!("listen stream {own}")), "listens");
    let before = world.reached();
    let mut all = |when: &str| {
        for (way, _) in world.ways() {
            assert_eq!(agent.ask(&way), "EPERM", "{when}: {way}");
        }
        assert_eq!(
            agent.ask(&format!("connect stream {db}")),
            "served",
            "{when}"
        );
        assert_eq!(agent.ask(&format!("connect stream {own}")), "own", "{when}");
    };
    all("alive");
    daemon.kill().unwrap();
    all("dead");
    daemon.restart().unwrap();
    daemon.ask(&["status"]).unwrap();
    all("adopted");
    let allowed = [1, 2, 3].len() * 2;
    assert_eq!(
        world.reached(),
        before + allowed,
        "what is allowed, and nothing else"
    );
    // Somebody takes a hook away: it is put back, with what it allows.
    let hook = pin(&daemon, "agent_connect_unix");
    fs::remove_file(&hook).unwrap();
    told(&daemon, "boxed", "hooks_changed", "agent_connect_unix");
    run::wait_for("the hook", NOTICED, || Ok(hook.exists().then_some(()))).unwrap();
    daemon.ask(&["agents", "thaw", "boxed"]).unwrap();
    all("attached again");
}

#[test]
fn sockets_that_were_born_elsewhere_lead_nowhere_new() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    if !has_hooks(&daemon) {
        return;
    }
    let mut world = World::new(&daemon);
    let cgroup = Cgroup::new();
    let mut agent = cgroup.newcomer();
    let (docker, notify) = (world.path("docker.sock"), world.path("notify"));
    for (line, answer) in [
        (format!("keep connected stream {docker}"), "kept"),
        ("keep idle stream".to_owned(), "kept"),
        ("keep letters datagram".to_owned(), "kept"),
        (format!("keep addressed datagram {notify}"), "kept"),
        ("say addressed".to_owned(), "sent"),
    ] {
        assert_eq!(agent.ask(&line), answer, "{line}");
    }
    agent.tell("enter");
    assert_eq!(agent.line(), "ready");
    let said = tag(&daemon, &cgroup, "boxed", &[]);
    assert!(said.contains("3 sockets from before were cut"), "{said}");
    assert!(
        said.contains("it stays connected to 1 UNIX socket of others"),
        "{said}"
    );
    let before = world.reached();
    assert_eq!(agent.ask(&format!("use idle {docker}")), "EPIPE");
    assert_eq!(agent.ask(&format!("sendby letters {notify}")), "EPIPE");
    assert_eq!(agent.ask(&format!("sendby addressed {notify}")), "EPIPE");
    assert_eq!(agent.ask("say addressed"), "EPIPE");
    // That somebody connected is seen, and nothing of what it said.
    run::wait_for("it to be seen", NOTICED, || {
        Ok((world.reached() > before).then_some(()))
    })
    .unwrap();
    assert_eq!(world.reached(), before + 1);
    assert_eq!(agent.ask("say connected"), "served", "it stays");
    told(&daemon, "boxed", "old_socket_kept", &docker);
    told(&daemon, "boxed", "old_socket_cut", "unix");
    // What an accomplice hands over later is of no use after a moment.
    let inbox = world.path("inbox");
    agent.tell(&format!("take gift {inbox}"));
    assert_eq!(agent.line(), "waits");
    assert_eq!(world.server.ask(&format!("hand {inbox}")), "handed");
    assert_eq!(agent.line(), "taken");
    told(&daemon, "boxed", "foreign_socket_cut", "unix");
    assert_eq!(agent.ask(&format!("sendby gift {notify}")), "EPIPE");
    // A stream that stands already is told of.
    let inbox = world.path("another");
    agent.tell(&format!("take stream {inbox}"));
    assert_eq!(agent.line(), "waits");
    assert_eq!(
        world.server.ask(&format!("pass {inbox} {docker}")),
        "handed"
    );
    assert_eq!(agent.line(), "taken");
    told(&daemon, "boxed", "foreign_socket_kept", &docker);
}

#[test]
fn who_asks_for_reports_or_for_all_gets_them() {
    let daemon =
        Daemon::configured(ALLOW_ALL, |_| "tags: {unix_sockets: report}\n".to_owned()).unwrap();
    if !has_hooks(&daemon) {
        return;
    }
    let world = World::new(&daemon);
    let (cgroup, other) = (Cgroup::new(), Cgroup::new());
    let (mut reported, mut free) = (cgroup.agent(0), other.agent(0));
    tag(&daemon, &cgroup, "reported", &[]);
    let said = tag(&daemon, &other, "free", &["--unix-sockets", "allow"]);
    assert!(said.contains("UNIX sockets stay open to it"), "{said}");
    for (way, answer) in world.ways() {
        assert_eq!(reported.ask(&way), answer, "{way}");
        assert_eq!(free.ask(&way), answer, "{way}");
    }
    told(
        &daemon,
        "reported",
        "unix_reported",
        &world.path("docker.sock"),
    );
    told(&daemon, "reported", "unix_reported", &world.hidden("bus"));
    let journal = daemon.journal().unwrap();
    let of_free = journal
        .lines
        .iter()
        .filter(|line| line.agent == "free" && line.mentions("unix_"));
    assert_eq!(of_free.count(), 0);
    // It is no success where something is weaker.
    let output = daemon.command(["-o", "json", "doctor"]).output().unwrap();
    let guards: Value = serde_json::from_slice(&output.stdout).unwrap();
    let state = |name: &str| {
        let guards = guards.as_array().unwrap();
        let guard = guards.iter().find(|guard| guard["guard"] == name);
        guard.unwrap_or_else(|| panic!("{name}: {guards:#?}"))["state"].clone()
    };
    assert_eq!(
        state("UNIX sockets of agents that are tagged while they run"),
        "in_force"
    );
    assert_eq!(state("reported: UNIX sockets"), "weaker");
    assert_eq!(state("free: UNIX sockets"), "weaker");
}
