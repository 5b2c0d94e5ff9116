//! Docker for real: its unmodified clients reach its engine by way of the daemon and notice nothing, and its containers
//! are agents from their first instruction, and again when they start again.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use interceptor_tests::{
    daemon::Daemon,
    docker::{Docker, GATEWAY, IMAGE},
    journal::Journal,
    paths,
    run::{self, Outcome},
};
use serde_json::Value;

use crate::support::ALLOW_ALL;

/// The engine that all tests of this process share, each with containers of names of its own. It is never dropped; its
/// keeper ends it with the process.
fn docker() -> &'static Docker {
    static DOCKER: OnceLock<Docker> = OnceLock::new();
    DOCKER.get_or_init(|| Docker::start().expect("a throw-away Docker"))
}

/// How long a script of clients may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// `docker ARGUMENTS`, to its end.
fn directly(arguments: &[&str]) -> String {
    let said = run::start(docker().client().args(arguments)).unwrap();
    let said = said.outcome_within(PATIENCE).unwrap().success().unwrap();
    said.trim().to_owned()
}

/// `program` as an agent that is allowed the engine.
fn as_agent(daemon: &Daemon, program: &str) -> Command {
    let allow = format!("--allow-socket={}", docker().socket().display());
    let mut command = daemon.command(["run", "--agent", "builder", &allow, "--", program]);
    command.env("DOCKER_HOST", docker().host());
    command
}

fn within_patience(command: &mut Command) -> Outcome {
    run::start(command)
        .unwrap()
        .outcome_within(PATIENCE)
        .unwrap()
}

/// A container that does nothing, removed in the end.
struct Sleeper(&'static str);

impl Sleeper {
    fn start(name: &'static str, flags: &[&str]) -> Self {
        let run = ["run", "--detach", "--init", "--name", name];
        directly(&[&run[..], flags, &[IMAGE, "sleep", "600"]].concat());
        Self(name)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = docker().client().args(["rm", "--force", self.0]).output();
    }
}

/// Everything that goes over the socket in its own way: plain answers, streams that end and that don't, bodies of both
/// directions, connections that become another protocol. `$1` is a folder, `$2` tells names apart.
const DIALOGUE: &str = r#"
set -e
cd "$1"
name=$2
say() { echo "== $*"; }
docker version --format '{{.Server.Version}} {{.Server.APIVersion}}'
docker info --format '{{.Driver}} {{.CgroupVersion}}'
say run; docker run --rm it:1 sh -c 'echo out; echo err >&2; exit 0' 2>&1 | sort
say status; docker run --rm it:1 sh -c 'exit 7' || echo "status $?"
say stdin; head -c 300000 /dev/zero | docker run --rm --interactive it:1 md5sum
say detached; docker run --detach --init --name "$name" it:1 sh -c 'n=0; while true; do echo tick $n; n=$((n+1)); sleep 0.1; done' | wc -c
docker ps --filter name="$name" --format '{{.Names}} {{.Image}} {{.State}}'
docker inspect "$name" --format '{{.Name}} {{.Path}}'
say logs; docker logs --follow "$name" | head -n 20 | tail -n 2
docker top "$name" -o pid,args | grep -c tick
docker stats --no-stream --format '{{.Name}}' "$name"
say exec; docker exec "$name" echo hello
echo "typed in" | docker exec --interactive "$name" cat
docker exec --tty "$name" tty
docker exec "$name" sh -c 'echo one; echo two >&2; exit 5' 2>err || echo "status $?"; cat err
docker exec --detach "$name" touch /tmp/touched
say copy; docker cp data "$name":/tmp/data
docker exec "$name" md5sum /tmp/data
docker cp "$name":/tmp/data back && md5sum <back
say stop; docker stop --time 20 "$name"
docker start --attach --interactive "$name-none" 2>&1 || echo "status $?"
docker rm "$name"
say events; sleep 1.1; docker events --filter type=container --since "$(cat since)" --until "$(date +%s)" --filter container="$name" --format '{{.Action}}' | grep -v -e exec -e top | tr '\n' ' '; echo
say images; docker save it:1 --output image.tar
docker load --input image.tar
docker import --change 'CMD ["true"]' image.tar "$name:imported" | wc -c
docker image inspect "$name:imported" --format '{{.Config.Cmd}}'
docker rmi "$name:imported" | head -n 1
say build; for kit in 0 1; do
  DOCKER_BUILDKIT=$kit docker build --no-cache --quiet --tag "$name:$kit" context >/dev/null
  docker run --rm "$name:$kit" cat /made
  docker rmi "$name:$kit" >/dev/null
done
say refused; docker inspect "$name" 2>&1 || echo "status $?"
"#;

#[test]
fn an_unmodified_client_does_all_that_it_does_directly() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let folder = daemon.folder().join("files");
    fs::create_dir_all(folder.join("context")).unwrap();
    let data: Vec<u8> = (0..20_000_000_u32)
        .map(|number| (number % 251) as u8)
        .collect();
    fs::write(folder.join("data"), data).unwrap();
    fs::write(
        folder.join("context/Dockerfile"),
        "FROM it:1\nCOPY asked /asked\nRUN cat /asked /asked >/made\n",
    )
    .unwrap();
    fs::write(folder.join("context/asked"), "asked\n").unwrap();
    let dialogue = |mut command: Command| {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        fs::write(folder.join("since"), since.to_string()).unwrap();
        command
            .args(["-c", DIALOGUE, "sh"])
            .arg(&folder)
            .arg("it-dialogue")
            // Another client may be first on the path.
            .env("PATH", "/usr/bin:/bin");
        within_patience(&mut command).success().unwrap()
    };
    let expected = dialogue(docker().command("sh"));
    assert!(
        expected.contains("typed in") && expected.ends_with("status 1\n"),
        "{expected}"
    );
    let said = dialogue(as_agent(&daemon, "sh"));
    assert_eq!(said, expected);

    let journal = daemon.journal().unwrap();
    for upgrade in ["tcp", "h2c"] {
        let operations = journal.of_kind("operation");
        let attribute =
            |line: &interceptor_tests::journal::Line| line.at("/attributes/http.upgrade").cloned();
        let found = operations
            .filter_map(attribute)
            .filter(|name| name == upgrade);
        assert!(found.count() >= 1, "{upgrade}");
    }
    // What was typed and what came of it are on record; so is what the engine asked of its client.
    assert!(journal.mentions("typed in"), "what was typed");
    let ends: Vec<_> = journal.of_kind("session_end").collect();
    for end in &ends {
        let reason = end.at("/reason").and_then(Value::as_str).unwrap();
        assert!(
            !reason.contains("malformed") && !reason.contains("refused"),
            "{end:?}"
        );
    }
    assert_eq!(ends.len(), journal.of_kind("session_start").count());
    assert!(!journal.mentions("http_refused"));
}

/// Docker's library for Python, which Debian has.
const LIBRARY: &str = r#"
import docker, sys
client = docker.from_env()
container = client.containers.get(sys.argv[1])
print(container.exec_run(["echo", "hello"]))
_, stream = container.exec_run(["cat"], stdin=True, socket=True)
stream._sock.sendall(b"typed in\n")
print(stream._sock.recv(100))
try:
    container.remove(force=True)
except docker.errors.APIError as error:
    print(error.status_code, "nothing-is-removed" in error.explanation)
"#;

#[test]
fn what_is_refused_clients_say_and_go_on() {
    let policy = r#"
default: {action: allow}
rules:
  - {id: nothing-is-removed, match: {protocol: http, action: DELETE}, action: deny, reason: "others need it"}
  - {id: nothing-is-executed, match: {protocol: http, http: {path: "/v{version}/containers/*/exec"}, content: 'secret'}, action: deny, reason: "that is a secret"}
"#;
    let daemon = Daemon::start(policy).unwrap();
    let sleeper = Sleeper::start("it-refused", &[]);
    let said = run::output(as_agent(&daemon, "/usr/bin/python3").args(["-c", LIBRARY, sleeper.0]));
    assert_eq!(
        said.unwrap(),
        "ExecResult(exit_code=0, output=b'hello\\n')\n\
         b'\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\ttyped in\\n'\n403 True\n"
    );
    for (arguments, rule) in [
        (&["rm", "--force", sleeper.0][..], "nothing-is-removed"),
        (
            &["exec", sleeper.0, "cat", "/secret"],
            "nothing-is-executed",
        ),
    ] {
        let said = within_patience(as_agent(&daemon, "/usr/bin/docker").args(arguments));
        assert!(
            !said.status.success() && said.stderr.contains(rule),
            "{said}"
        );
    }
    assert_eq!(
        directly(&["inspect", sleeper.0, "--format", "{{.State.Running}}"]),
        "true"
    );
}

#[test]
fn masks_end_what_cannot_be_masked_and_mask_the_rest() {
    let policy = r#"
default: {action: allow}
rules:
  - {id: masked, match: {protocol: http}, action: allow, mask: [{key: "owner", with: redact}]}
"#;
    let daemon = Daemon::start(policy).unwrap();
    let sleeper = Sleeper::start("it-masked", &["--label", "owner=ada@example.com"]);
    let asked = as_agent(&daemon, "/usr/bin/docker")
        .args(["inspect", sleeper.0, "--format", "{{.Config.Labels}}"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(
        said.contains("owner:") && !said.contains("ada"),
        "{asked:?}"
    );
    let said =
        within_patience(as_agent(&daemon, "/usr/bin/docker").args(["exec", sleeper.0, "true"]));
    assert!(!said.status.success(), "{said}");
    assert!(daemon.journal().unwrap().mentions("can't be masked"));
}

#[test]
fn by_the_pack_a_person_sees_what_is_executed_and_nobody_waits_to_look() {
    let pack = fs::read_to_string(paths::root().join("policies/docker.yaml")).unwrap();
    let daemon = Daemon::start(&pack).unwrap();
    let sleeper = Sleeper::start("it-pack", &[]);
    let looked = within_patience(as_agent(&daemon, "/usr/bin/docker").args(["ps", "--quiet"]));
    assert!(!looked.success().unwrap().is_empty());

    // The old client asks for the container itself, environment and all, which the pack denies.
    let script = r#"
import docker, os, sys
api = docker.APIClient(os.environ["DOCKER_HOST"])
exec = api.exec_create(sys.argv[1], ["echo", "looked at"])
print(api.exec_start(exec))
"#;
    let mut asking = as_agent(&daemon, "/usr/bin/python3");
    let asking = run::start(asking.args(["-c", script, sleeper.0])).unwrap();
    let held = daemon.held().unwrap();
    let id = held["id"].as_str().unwrap();
    let shown = daemon.ask(&["approvals", "show", id]).unwrap();
    assert!(shown.contains("looked at"), "{shown}");
    daemon.ask(&["approvals", "approve", id]).unwrap();
    let said = asking.outcome_within(PATIENCE).unwrap().success().unwrap();
    assert_eq!(said, "b'looked at\\n'\n");

    for (arguments, rule) in [
        (
            &["run", "--rm", "--privileged", IMAGE, "true"][..],
            "docker-containers-have-no-rights-on-the-host",
        ),
        (
            &["run", "--rm", "--volume", "/:/host", IMAGE, "true"],
            "docker-containers-see-no-files-of-the-host",
        ),
        (&["exec", "--privileged", sleeper.0, "true"], "default"),
        (&["rm", "--force", sleeper.0], "default"),
    ] {
        let said = within_patience(as_agent(&daemon, "/usr/bin/docker").args(arguments));
        assert!(
            !said.status.success() && said.stderr.contains(rule),
            "{said}"
        );
    }
}

/// Upgrades the engine's connection to HTTP/2, as buildx does, and asks for two methods of BuildKit.
const BUILDKIT: &str = r#"
import h2.config, h2.connection, h2.events, socket, sys
stream = socket.socket(socket.AF_UNIX)
stream.settimeout(20)
stream.connect(sys.argv[1])
stream.sendall(b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
head = b""
while b"\r\n\r\n" not in head:
    head += stream.recv(1)
print(head.split(b"\r\n")[0].decode())
connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
connection.initiate_connection()
for method in sys.argv[2:]:
    number = connection.get_next_available_stream_id()
    connection.send_headers(number, [(":method", "POST"), (":scheme", "http"), (":authority", "docker"),
        (":path", method), ("content-type", "application/grpc"), ("te", "trailers")])
    connection.send_data(number, b"\0\0\0\0\0", end_stream=True)
    stream.sendall(connection.data_to_send())
    over = False
    while not over:
        for event in connection.receive_data(stream.recv(65536)):
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                said = dict(event.headers)
                if "grpc-status" in said: print(method, said["grpc-status"], said.get("grpc-message", "")[:60])
            over = over or isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset))
            if isinstance(event, h2.events.StreamReset): print(method, "reset")
            if isinstance(event, h2.events.DataReceived):
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        stream.sendall(connection.data_to_send())
"#;

#[test]
fn behind_an_upgrade_to_http2_requests_are_decided_one_by_one() {
    let policy = r#"
default: {action: deny, reason: "no rule allows it"}
rules:
  - {id: buildkit, match: {protocol: http, destination: {socket: "*/docker.sock"}, action: POST, http: {path: "/grpc"}}, action: allow}
  - {id: workers, match: {protocol: http, http: {path: "/moby.buildkit.v1.Control/ListWorkers"}}, action: allow}
"#;
    let daemon = Daemon::start(policy).unwrap();
    let [workers, usage] =
        ["ListWorkers", "DiskUsage"].map(|method| format!("/moby.buildkit.v1.Control/{method}"));
    let ask = |mut command: Command| {
        let socket = docker().socket();
        command
            .args(["-c", BUILDKIT])
            .arg(&socket)
            .args([&workers, &usage, &workers]);
        within_patience(&mut command).success().unwrap()
    };
    let python = paths::python().unwrap();
    let python = python.to_str().unwrap();
    let expected = ask(docker().command(python));
    let lines: Vec<&str> = expected.lines().collect();
    assert_eq!(lines[0], "HTTP/1.1 101 Switching Protocols");
    assert_eq!(lines[1].trim_end(), format!("{workers} 0"));
    assert_eq!(lines[2].trim_end(), format!("{usage} 0"));
    let said = ask(as_agent(&daemon, python));
    let said: Vec<&str> = said.lines().collect();
    assert_eq!((said[0], said[1], said[3]), (lines[0], lines[1], lines[3]));
    assert!(
        said[2].starts_with(&format!("{usage} 7 interceptor")),
        "{said:?}"
    );
    let journal = daemon.journal().unwrap();
    assert_eq!(journal.of_kind("operation").count(), 4);
    assert_eq!(journal.of_kind("session_start").count(), 1);
}

// === Containers that are agents ===

/// Who answers, in the engine's own network.
struct Echo(Child);

const PORT: &str = "7000";

impl Echo {
    /// One at a time, and containers restart: whoever needs it has it to itself.
    fn start() -> (Self, std::sync::MutexGuard<'static, ()>) {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut server = docker()
            .inside(&paths::python().unwrap())
            .arg(paths::client("net.py"))
            .args(["echo", "::", PORT])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = server.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        assert_eq!(line, "ready\n");
        (Self(server), one)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a container says to the server, and the server to it.
fn asking(server: &str) -> String {
    format!("echo ping | nc -w 5 {server} {PORT}")
}

fn asks(container: &str, server: &str) -> String {
    let script = asking(server);
    let mut exec = docker().client();
    run::outcome(exec.args(["exec", container, "sh", "-c", &script]))
        .unwrap()
        .stdout
}

fn answer() -> String {
    format!("port {PORT} got ping\n")
}

fn tag(daemon: &Daemon, container: &str) {
    let mut add = daemon.command(["tag", "add", "--container", container, "--agent", container]);
    // Whoever else is on the path doesn't know it.
    add.env("DOCKER_HOST", docker().host())
        .env("PATH", "/usr/bin:/bin");
    run::output(&mut add).unwrap();
}

fn state(daemon: &Daemon, agent: &str) -> Option<String> {
    let listed = daemon.ask_json(&["tag", "list"]).unwrap();
    let found = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|tagged| tagged["agent"] == agent)?;
    assert_eq!(found["kind"], "followed");
    Some(
        if found["away"] == true {
            "away"
        } else {
            "running"
        }
        .to_owned(),
    )
}

fn wait_for_state(daemon: &Daemon, agent: &str, wanted: &str) {
    run::wait_for(wanted, Duration::from_secs(10), || {
        Ok((state(daemon, agent).as_deref() == Some(wanted)).then_some(()))
    })
    .unwrap();
}

fn sessions(journal: &Journal, agent: &str) -> usize {
    let starts = journal.of_kind("session_start");
    starts.filter(|start| start.agent == agent).count()
}

#[test]
fn containers_are_found_by_name_and_intercepted_in_whichever_network_they_are() {
    let (_echo, _one) = Echo::start();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let bridged = Sleeper::start("it-bridged", &[]);
    let hosted = Sleeper::start("it-hosted", &["--network", "host"]);
    let alone = Sleeper::start("it-alone", &["--network", "none"]);
    for container in [&bridged, &hosted, &alone] {
        tag(&daemon, container.0);
        wait_for_state(&daemon, container.0, "running");
    }
    assert_eq!(asks(bridged.0, GATEWAY), answer());
    assert_eq!(asks(hosted.0, GATEWAY), answer());
    assert_eq!(asks(hosted.0, "127.0.0.1"), answer());
    assert_eq!(asks(alone.0, GATEWAY), "");
    let journal = daemon.journal().unwrap();
    assert_eq!(sessions(&journal, bridged.0), 1);
    assert_eq!(sessions(&journal, hosted.0), 2);
    assert_eq!(sessions(&journal, alone.0), 1);
    assert!(!journal.mentions("connect_refused"));
}

#[test]
fn a_container_that_starts_again_is_the_same_agent_again() {
    const AGAIN: &str = "it-again";
    let (_echo, _one) = Echo::start();
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let sleeper = Sleeper::start(AGAIN, &[]);
    tag(&daemon, AGAIN);
    assert_eq!(asks(AGAIN, GATEWAY), answer());
    for round in 1..=5 {
        directly(&["restart", "--time", "0", AGAIN]);
        run::wait_for("its return", Duration::from_secs(10), || {
            let journal = daemon.journal()?;
            let returned = journal.mentioning("event", "agent_returned").count();
            Ok((returned == round).then_some(()))
        })
        .unwrap();
        wait_for_state(&daemon, AGAIN, "running");
        assert_eq!(asks(AGAIN, GATEWAY), answer());
    }
    let journal = daemon.journal().unwrap();
    assert_eq!(sessions(&journal, AGAIN), 6);
    assert!(!journal.mentions("connect_refused"), "{journal:#?}");
    assert!(!journal.mentions("agent_unguarded"), "{journal:#?}");

    directly(&["stop", "--time", "0", AGAIN]);
    wait_for_state(&daemon, AGAIN, "away");
    // A daemon that is killed meanwhile forgets it as little as one that is there.
    daemon.kill().unwrap();
    directly(&["start", AGAIN]);
    daemon.restart().unwrap();
    wait_for_state(&daemon, AGAIN, "running");
    let before = sessions(&daemon.journal().unwrap(), AGAIN);
    assert_eq!(asks(AGAIN, GATEWAY), answer());
    assert_eq!(sessions(&daemon.journal().unwrap(), AGAIN), before + 1);

    // Until somebody says that it is none any more, whether it runs or not.
    directly(&["stop", "--time", "0", AGAIN]);
    wait_for_state(&daemon, AGAIN, "away");
    daemon.ask(&["tag", "remove", AGAIN]).unwrap();
    assert_eq!(state(&daemon, AGAIN), None);
    directly(&["start", AGAIN]);
    assert_eq!(asks(AGAIN, GATEWAY), answer());
    assert_eq!(state(&daemon, AGAIN), None);
    drop(sleeper);
}

#[test]
fn what_starts_below_a_tagged_cgroup_is_served_before_it_asks() {
    let (_echo, _one) = Echo::start();
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let above: PathBuf = docker().containers().join("it-agents");
    fs::create_dir_all(&above).unwrap();
    let path = above.to_str().unwrap();
    daemon
        .ask(&["tag", "add", path, "--agent", "above"])
        .unwrap();
    let script = asking(GATEWAY);
    for _ in 0..5 {
        let run = [
            "run",
            "--rm",
            "--cgroup-parent",
            "/docker/it-agents",
            IMAGE,
            "sh",
            "-c",
            &script,
        ];
        assert_eq!(directly(&run), answer().trim());
    }
    let journal = daemon.journal().unwrap();
    assert_eq!(sessions(&journal, "above"), 5);
    assert!(!journal.mentions("connect_refused"), "{journal:#?}");
}
