//! The control API over a real socket, with a daemon that only remembers what it was asked.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use interceptor_core::{
    origin::{Agent, Destination, Origin, Process},
    record::{Event, SessionEnd, SessionId, SessionStart, Timestamp},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::*;
use crate::{
    approval::{Approvals, Pending, Reviewers, Voter},
    confine::Places,
    journal::Journal,
    kernel::TagKind,
    retention::{Retainer, Retention},
};

struct Fake {
    approvals: Approvals,
    journal: Journal,
    agents: Mutex<Vec<Tagged>>,
    desk: ConsoleDesk,
    notes: Mutex<Vec<String>>,
    retainer: Retainer,
    /// Whether whoever speaks is an agent.
    is_agent: AtomicBool,
}

impl Host for Fake {
    fn authority(&self) -> String {
        "-----BEGIN CERTIFICATE-----".to_owned()
    }

    fn status(&self) -> Result<Status, Failure> {
        let policy = self.policy();
        Ok(Status {
            version: "1".to_owned(),
            instance: "test".to_owned(),
            pid: 1,
            proxy: None,
            console: None,
            started: Timestamp(0),
            agents: 0,
            sessions: 0,
            approvals: self.approvals.pending() as u64,
            policy,
            journal: JournalStatus {
                path: "/s".into(),
                last_seq: self.journal.last_seq(),
                stopped: None,
                copies: Vec::new(),
                streams: Vec::new(),
                bytes: 0,
                bytes_max: None,
                held: 0,
                encrypted: false,
                erased: 0,
            },
            kernel: BTreeMap::new(),
            connects: Vec::new(),
            troubles: Vec::new(),
        })
    }

    fn places(&self) -> Places {
        Places::default()
    }

    fn agents(&self) -> Result<Vec<Tagged>, Failure> {
        Ok(self.agents.lock().unwrap().clone())
    }

    fn tag(&self, tag: NewTag, by: &Person) -> Result<Tagged, Failure> {
        assert_eq!(by.voter().uid, Some(nix::unistd::getuid().as_raw()));
        let tagged = Tagged {
            agent: tag.agent,
            labels: tag.labels,
            cgroup: match tag.target {
                TagTarget::Cgroup(path) => path,
                TagTarget::Pid(pid) => PathBuf::from(format!("/of/{pid}")),
                TagTarget::Unit(name) => PathBuf::from(format!("/unit/{name}")),
                TagTarget::Container(id) => PathBuf::from(format!("/container/{id}")),
                TagTarget::New => "/new".into(),
            },
            kind: TagKind::Existing,
            frozen: false,
            away: false,
            old_sockets: OldSocketCounts::default(),
            cautions: Vec::new(),
            stand_ins: Vec::new(),
        };
        self.agents.lock().unwrap().push(tagged.clone());
        Ok(tagged)
    }

    fn untag(&self, agent: &str, _: &Person) -> Result<Tagged, Failure> {
        let mut agents = self.agents.lock().unwrap();
        match agents.iter().position(|tagged| &*tagged.agent == agent) {
            Some(index) => Ok(agents.remove(index)),
            None => Err(Failure::new(FailureKind::Missing, "no such agent").with_remedy("list")),
        }
    }

    fn act(&self, deed: NewDeed, _: &Person) -> Result<Done, Failure> {
        let mut agents = self.agents.lock().unwrap();
        let agent = agents.iter_mut().find(|tagged| tagged.agent == deed.agent);
        let agent = agent.ok_or_else(|| Failure::new(FailureKind::Missing, "no such agent"))?;
        agent.frozen = deed.deed == Deed::Freeze;
        Ok(Done {
            agent: agent.clone(),
            connections: 0,
        })
    }

    fn role(&self, voter: &Voter, way: Way) -> Option<Role> {
        match way {
            Way::Socket | Way::Link | Way::Token => Some(Role::Administrator),
            _ if voter.groups.contains(&"sre".into()) => Some(Role::Operator),
            _ if voter.groups.contains(&"staff".into()) => Some(Role::Viewer),
            _ => None,
        }
    }

    fn console(&self) -> Option<&ConsoleDesk> {
        Some(&self.desk)
    }

    fn policy(&self) -> Result<PolicyText, Failure> {
        Ok(PolicyText {
            status: self.status()?.policy,
            enforced: true,
            files: Vec::new(),
            hits: BTreeMap::new(),
        })
    }

    fn note(&self, name: &str, detail: &[(&str, &str)]) -> Result<(), Failure> {
        let detail = detail.iter().map(|(name, value)| format!("{name}={value}"));
        let line = format!("{name} {}", detail.collect::<Vec<_>>().join(" "));
        self.notes.lock().unwrap().push(line);
        Ok(())
    }

    fn agent_of(&self, pid: u32) -> Result<Option<Box<str>>, Failure> {
        assert_eq!(pid, std::process::id());
        Ok(self.is_agent.load(Ordering::SeqCst).then(|| "evil".into()))
    }

    fn reload(&self, _: &Person) -> Result<PolicyStatus, Failure> {
        Err(Failure::new(
            FailureKind::Invalid,
            "p.yaml:1:1: unknown name `x`",
        ))
    }

    fn approvals(&self) -> &Approvals {
        &self.approvals
    }

    fn journal(&self) -> &Journal {
        &self.journal
    }

    fn retainer(&self) -> &Retainer {
        &self.retainer
    }

    fn is_open(&self, _: SessionId) -> bool {
        false
    }
}

impl Fake {
    fn policy(&self) -> PolicyStatus {
        PolicyStatus {
            hash: "sha256:0".to_owned(),
            path: "/p".into(),
            rules: 1,
            loaded: Timestamp(0),
            broken: None,
        }
    }
}

/// A control API in a folder of its own.
struct Bench {
    folder: tempfile::TempDir,
    fake: Arc<Fake>,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
    lines: tokio::sync::mpsc::UnboundedSender<UnixStream>,
}

impl Bench {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("state")).unwrap();
        let fake = Arc::new(Fake {
            approvals: Approvals::new(journal.clone(), Reviewers::default(), crate::clock::now),
            journal,
            agents: Mutex::default(),
            desk: ConsoleDesk {
                url: "http://localhost:7676".into(),
                links: Links::default(),
                secrets: Vec::new(),
                told: Told::default(),
            },
            notes: Mutex::default(),
            retainer: Retainer::new(Retention::default(), folder.path()),
            is_agent: AtomicBool::new(false),
        });
        let socket = ControlSocket::bind(&folder.path().join("run/control.sock")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (lines, consoles) = tokio::sync::mpsc::unbounded_channel();
        let served = tokio::spawn(serve(socket, fake.clone(), consoles, async move {
            _ = stopped.await;
        }));
        Self {
            folder,
            fake,
            stop: Some(stop),
            served,
            lines,
        }
    }

    /// A console's line.
    async fn line(&self) -> crate::console::Daemon {
        let (own, its) = UnixStream::pair().unwrap();
        self.lines.send(its).unwrap();
        let (daemon, ends) = crate::console::Daemon::connect(own).await.unwrap();
        tokio::spawn(ends);
        daemon
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("run/control.sock")
    }

    /// Status and body of one exchange, as bytes on the socket.
    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (status, body) = self.raw(method, path, body).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    async fn raw(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        tokio::task::spawn_blocking(move || {
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            let body = if head.contains("chunked") {
                unchunk(body)
            } else {
                body.to_owned()
            };
            (status, body)
        })
        .await
        .unwrap()
    }

    fn hold(&self) -> Pending {
        self.fake.approvals.request(
            interceptor_core::record::ApprovalId(255),
            crate::approval::example("reporter", 1, 60, &[]),
            crate::clock::now(),
        )
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&rest[..length]);
        body = &rest[length + 2..];
    }
    whole
}

fn start_of_session(journal: &Journal, session: u64) {
    let origin = Arc::new(Origin {
        agent: Arc::new(Agent {
            name: "reporter".into(),
            labels: BTreeMap::new(),
        }),
        process: Process::default(),
        destination: Destination::Ip("192.0.2.1:5432".parse().unwrap()),
        names: Vec::new(),
    });
    let start = SessionStart {
        origin,
        client: "127.0.0.1:9".parse().ok(),
    };
    append(journal, session, Event::SessionStart(start));
}

fn append(journal: &Journal, session: u64, event: Event) {
    journal
        .append(
            Some(SessionId(session)),
            &"reporter".into(),
            crate::clock::now(),
            [event],
        )
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_come_and_go() {
    let bench = Bench::start();
    let tag = json!({"agent": "a", "labels": {"team": "x"}, "target": {"cgroup": "/c"}});
    let (status, tagged) = bench.ask("POST", "/v1/agents", tag).await;
    assert_eq!((status, &tagged["cgroup"]), (200, &json!("/c")));
    let new = json!({"agent": "b", "target": "new"});
    assert_eq!(bench.ask("POST", "/v1/agents", new).await.0, 200);
    let (_, list) = bench.ask("GET", "/v1/agents", Value::Null).await;
    assert_eq!(list.as_array().unwrap().len(), 2);
    let (status, _) = bench.ask("DELETE", "/v1/agents?agent=a", Value::Null).await;
    assert_eq!(status, 200);
    let (status, error) = bench.ask("DELETE", "/v1/agents?agent=a", Value::Null).await;
    assert_eq!(status, 404);
    assert_eq!(error, json!({"error": "no such agent", "remedy": "list"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_said() {
    let bench = Bench::start();
    for (method, path, body, status) in [
        (
            "POST",
            "/v1/agents",
            json!({"agent": "../x", "target": "new"}),
            400,
        ),
        (
            "POST",
            "/v1/agents",
            json!({"agent": "x", "target": "new", "oops": 1}),
            400,
        ),
        (
            "POST",
            "/v1/agents",
            json!({"agent": "x", "labels": {"a": "\u{1b}"}, "target": "new"}),
            400,
        ),
        ("GET", "/v1/approvals/xyz", Value::Null, 400),
        ("GET", "/v1/approvals/0000000000000001", Value::Null, 404),
        ("GET", "/v1/sessions/0000000000000001", Value::Null, 404),
        ("GET", "/v1/export?since=yesterday", Value::Null, 400),
        ("GET", "/v1/nothing", Value::Null, 404),
        ("POST", "/v1/policy/reload", Value::Null, 400),
    ] {
        let (got, answer) = bench.ask(method, path, body).await;
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(
            answer["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty()),
            "{method} {path}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_refused_everywhere() {
    let bench = Bench::start();
    bench.fake.is_agent.store(true, Ordering::SeqCst);
    let pending = bench.hold();
    for (method, path) in [
        ("GET", "/v1/status"),
        ("GET", "/v1/approvals"),
        ("POST", "/v1/agents"),
        ("GET", "/v1/nothing"),
    ] {
        let (status, answer) = bench.ask(method, path, Value::Null).await;
        assert_eq!(status, 403, "{method} {path}");
        assert_eq!(
            answer["error"],
            "this process runs as agent `evil`, and agents may not control interceptor"
        );
    }
    let vote = format!("/v1/approvals/{}/votes", pending.id());
    let (status, _) = bench.ask("POST", &vote, json!({"choice": "approve"})).await;
    assert_eq!(status, 403);
    assert_eq!(bench.fake.approvals.pending(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_votes_under_their_own_name() {
    let bench = Bench::start();
    let mut pending = bench.hold();
    let (_, list) = bench.ask("GET", "/v1/approvals", Value::Null).await;
    assert_eq!(list[0]["state"], "pending");
    assert_eq!(list[0]["id"], "00000000000000ff");
    let yours = json!({"may": ["approve", "deny"], "why": "", "override": false});
    assert_eq!(list[0]["yours"], yours);
    let (_, detail) = bench
        .ask("GET", "/v1/approvals/00000000000000ff", Value::Null)
        .await;
    assert_eq!(detail["content"]["text"], "DROP TABLE t");
    assert_eq!(detail["yours"], yours);
    let vote = json!({"choice": "approve", "reason": "fine"});
    let path = "/v1/approvals/00000000000000ff/votes";
    let (status, voted) = bench.ask("POST", path, vote.clone()).await;
    assert_eq!((status, &voted["state"]), (200, &json!("approved")));
    let me = user(nix::unistd::getuid().as_raw());
    assert_eq!(voted["votes"][0]["by"], *me.name);
    assert_eq!(pending.outcome().await, crate::approval::Outcome::Approved);
    let (status, error) = bench.ask("POST", path, vote).await;
    assert_eq!(status, 409, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_exports_are_up_to_date_at_once() {
    let bench = Bench::start();
    for session in [1, 2] {
        start_of_session(&bench.fake.journal, session);
        let end = SessionEnd {
            reason: "done".into(),
            operations: 0,
            bytes_from_client: 0,
            bytes_from_upstream: 0,
        };
        append(&bench.fake.journal, session, Event::SessionEnd(end));
    }
    let (_, sessions) = bench.ask("GET", "/v1/sessions?limit=1", Value::Null).await;
    assert_eq!(sessions.as_array().unwrap().len(), 1);
    assert_eq!(sessions[0]["id"], "0000000000000002");
    assert_eq!(sessions[0]["operations"], 0);
    let (_, shown) = bench
        .raw("GET", "/v1/sessions/0000000000000001", Value::Null)
        .await;
    assert_eq!(shown.lines().count(), 2);
    let (_, all) = bench
        .raw(
            "GET",
            "/v1/export?agent=reporter&since=1970-01-01T00:00:00Z",
            Value::Null,
        )
        .await;
    assert_eq!(all.lines().count(), 4);
    let (_, none) = bench.raw("GET", "/v1/export?agent=x", Value::Null).await;
    assert_eq!(none, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_follow_and_end_with_the_daemon() {
    let mut bench = Bench::start();
    let first = bench.hold();
    let read = |path: &'static str| {
        let mut stream = UnixStream::connect(bench.path()).unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .unwrap();
        std::thread::spawn(move || {
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let mut answer = Vec::new();
            let mut buffer = [0; 4_096];
            // To the last chunk: the connection itself stays open for another request.
            while !answer.ends_with(b"0\r\n\r\n") {
                match stream.read(&mut buffer).unwrap() {
                    0 => break,
                    read => answer.extend_from_slice(&buffer[..read]),
                }
            }
            String::from_utf8(answer).unwrap()
        })
    };
    let approvals = read("/v1/approvals/watch");
    let tail = read("/v1/tail");
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(first);
    start_of_session(&bench.fake.journal, 7);
    tokio::time::sleep(Duration::from_millis(300)).await;
    bench.stop.take().unwrap().send(()).unwrap();
    let joined = tokio::task::spawn_blocking(|| (approvals.join(), tail.join()));
    let (approvals, tail) = joined.await.unwrap();
    let approvals = approvals.unwrap();
    assert!(approvals.contains(r#""change":"requested""#), "{approvals}");
    assert!(approvals.contains(r#""change":"ended""#), "{approvals}");
    assert!(tail.unwrap().contains("session_start"));
    tokio::time::timeout(Duration::from_secs(5), &mut bench.served)
        .await
        .expect("it stops in time")
        .unwrap()
        .unwrap();
    assert!(!bench.path().exists(), "the socket is gone");
}

#[test]
fn the_socket_is_private_and_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    assert_eq!(
        ControlSocket::bind(&path).unwrap_err().to_string(),
        format!(
            "another daemon answers at {}; stop it, or give this one its own --control",
            path.display()
        )
    );
    drop(socket);
    assert!(!path.exists());

    // A killed daemon leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(ControlSocket::bind(&path).unwrap());

    fs::write(&path, "precious").unwrap();
    let error = ControlSocket::bind(&path).unwrap_err();
    assert!(matches!(&error, SocketError::NotASocket(at) if at == Path::new(&path)));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

fn signed_in(name: &str, group: &str, way: Way) -> Identity {
    Identity {
        voter: Voter {
            name: name.into(),
            uid: None,
            groups: [group.into()].into(),
        },
        way,
        at_most: (way == Way::Token).then_some(Role::Viewer),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_asks_for_people_and_nobody_gets_more_than_their_role() {
    let bench = Bench::start();
    let line = bench.line().await;
    let (viewer, operator) = (
        signed_in("vera", "staff", Way::Oidc),
        signed_in("otto", "sre", Way::Password),
    );
    let stranger = signed_in("sam", "guests", Way::Oidc);
    let deed = json!({"agent": "nobody", "deed": "freeze"});
    let vote = json!({"choice": "approve"});
    // Who, what, and what becomes of it: 404 is what an allowed one comes to here.
    let vote_path = "/v1/approvals/00000000000000ff/votes";
    for (who, path, body, expected) in [
        (&viewer, vote_path, &vote, 403),
        (&viewer, "/v1/agents/deeds", &deed, 403),
        (&viewer, "/v1/policy/reload", &json!(null), 403),
        (
            &viewer,
            "/v1/approvals/00000000000000ff/override",
            &json!({"reason": "x"}),
            403,
        ),
        (&viewer, "/v1/keys", &json!({}), 403),
        (&operator, vote_path, &vote, 404),
        (&operator, "/v1/agents/deeds", &deed, 404),
        (&operator, "/v1/policy/reload", &json!(null), 403),
        (&stranger, vote_path, &vote, 403),
        (&stranger, "/v1/agents/deeds", &deed, 403),
        (&operator, "/v1/console/links", &json!({}), 404),
    ] {
        let answer = line.post::<Value>(who, path, body).await.unwrap_err();
        assert_eq!(
            answer.status.as_u16(),
            expected,
            "{} {path}: {}",
            who.voter.name,
            answer.error
        );
    }
    for (who, is_let_by) in [(&viewer, true), (&operator, true), (&stranger, false)] {
        assert_eq!(
            line.get::<Value>(who, "/v1/status").await.is_ok(),
            is_let_by
        );
        let sign_in = SignIn {
            identity: who.clone(),
            from: "192.0.2.1".to_owned(),
        };
        assert_eq!(
            line.own::<Me>("/console/sign-ins", &sign_in).await.is_ok(),
            is_let_by
        );
    }
    assert_eq!(
        *bench.fake.notes.lock().unwrap(),
        [
            "signed_in by=vera (console, by OpenID Connect) from=192.0.2.1 role=viewer",
            "signed_in by=otto (console, by password) from=192.0.2.1 role=operator",
            "sign_in_refused name=sam way=console, by OpenID Connect from=192.0.2.1 why=no role",
        ]
    );
    // However much a token may, it is nobody's consent.
    let program = Identity {
        at_most: Some(Role::Administrator),
        ..signed_in("token:ci", "", Way::Token)
    };
    let refused = line.post::<Value>(&program, vote_path, &vote).await;
    assert_eq!(refused.unwrap_err().status.as_u16(), 403);
    // Whom a vote would be refused of is told so before.
    let _pending = bench.hold();
    for (who, may, why) in [
        (
            &viewer,
            json!([]),
            "`vera` is viewer here, and this takes the role reviewer",
        ),
        (&operator, json!(["approve", "deny"]), ""),
        (
            &program,
            json!([]),
            "a token is a program's, and consent is people's",
        ),
    ] {
        let yours = json!({"may": may, "why": why, "override": false});
        let list: Value = line.get(who, "/v1/approvals").await.unwrap();
        assert_eq!(list[0]["yours"], yours);
        let one: Value = line
            .get(who, "/v1/approvals/00000000000000ff")
            .await
            .unwrap();
        assert_eq!(one["yours"], yours);
    }
    // A link is who made it, once; and the console has no person of its own.
    let (status, link) = bench.ask("POST", "/v1/console/links", json!({})).await;
    assert_eq!(status, 200, "{link}");
    let code = link["url"]
        .as_str()
        .unwrap()
        .split_once('#')
        .unwrap()
        .1
        .to_owned();
    let code = LinkCode { code };
    let identity: Identity = line.own("/console/links", &code).await.unwrap();
    assert_eq!(identity.voter, user(nix::unistd::getuid().as_raw()));
    assert!(line.own::<Identity>("/console/links", &code).await.is_err());
    assert!(line.own::<Value>("/v1/status", &json!(null)).await.is_err());
    assert!(
        line.own::<()>(
            "/console/notes",
            &json!({"name": "tag_added", "detail": {}})
        )
        .await
        .is_err()
    );
    // What isn't done to something that is there is said like everything else.
    let (status, error) = bench.ask("DELETE", "/v1/status", Value::Null).await;
    assert!(status == 405 && error["remedy"].is_string(), "{error}");
    // What is the console's own isn't at the control socket.
    let (status, _) = bench.ask("POST", "/console/sign-ins", json!({})).await;
    assert_eq!(status, 404);
}

/// What the document says that there is: method, path and role.
fn documented() -> Vec<(String, String, String)> {
    let document: Value = serde_json::from_str(routes::DOCUMENT).unwrap();
    let mut all = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let role = operation["x-role"].as_str().unwrap();
            all.push((method.to_uppercase(), path.clone(), role.to_owned()));
        }
    }
    all.sort();
    all
}

#[test]
fn the_document_has_what_is_served_and_nothing_else() {
    let routes = routes::everyones().into_iter().chain(routes::sockets());
    let mut served: Vec<_> = routes
        .map(|route| {
            let role = route.role.name().to_owned();
            (route.method.to_string(), route.path.to_owned(), role)
        })
        .collect();
    served.sort();
    assert_eq!(documented(), served);
    // Nor is anything served past the table.
    let source = include_str!("routes.rs");
    let past: Vec<&str> = source
        .split(".route(\"")
        .skip(1)
        .filter(|rest| !rest.starts_with("/console/"))
        .collect();
    assert!(past.is_empty(), "{past:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_takes_the_role_that_the_document_says() {
    let bench = Bench::start();
    let line = bench.line().await;
    let roles = [
        Role::Viewer,
        Role::Reviewer,
        Role::Operator,
        Role::Administrator,
    ];
    for (method, path, role) in documented() {
        let path = path.replace("{id}", "0000000000000001");
        if path.starts_with("/v1/console/") {
            // At the socket alone.
            let (status, link) = bench.ask(&method, &path, json!({})).await;
            assert_eq!(status, 200, "{link}");
            continue;
        }
        for has in roles.map(Some).into_iter().chain([None]) {
            let who = match has {
                Some(_) => Identity {
                    at_most: has,
                    ..signed_in("token:ci", "", Way::Token)
                },
                None => signed_in("sam", "guests", Way::Oidc),
            };
            let answer = line
                .send(
                    Some(&who),
                    method.parse().unwrap(),
                    &path,
                    "{}".as_bytes().into(),
                )
                .await
                .unwrap();
            let status = answer.status().as_u16();
            let what = format!("{method} {path} by {has:?}");
            let least = roles.into_iter().find(|least| least.name() == role);
            if status < 400 {
                // Streams have no end to wait for.
                assert!(has >= least, "{what}");
                continue;
            }
            let body = http_body_util::BodyExt::collect(answer.into_body())
                .await
                .unwrap()
                .to_bytes();
            let error: ErrorBody = serde_json::from_slice(&body).unwrap();
            assert_ne!(
                error.error, "this version of interceptor has no such request",
                "{what}"
            );
            let is_refused = status == 403
                && (error.error.contains("takes the role") || error.error.contains("do nothing"));
            assert_eq!(is_refused, has < least, "{what}: {}", error.error);
        }
    }
}
