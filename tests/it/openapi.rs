//! The control API against its own document: everything that it says, by every way in, is what `docs/openapi.json`
//! says that it says.

use std::{fs, path::PathBuf, process::Command};

use interceptor_tests::{
    clients::Way,
    cluster::{Database, free_port},
    console::{self, PASSWORD},
    daemon::Daemon,
    paths,
    run::{self, Outcome, Running},
};
use serde_json::{Value, json};

use crate::{support::cluster, tls::web};

const POLICY: &str = "
default: {action: allow}
rules:
  - id: writes-wait
    match: {protocol: postgres, class: [write, schema]}
    action: hold
    reason: \"a person looks first\"
    reviewers: {groups: [dba], quorum: 1, within: 2m, blast_radius: plan, windows: {scope: shape, for: 10m, at_most: 5}}
  - id: reads-are-watched
    match: {protocol: postgres, class: [read]}
    action: deny
    enforce: false
    reason: \"not yet\"
";

/// The public half of a key that nobody has, as a SubjectPublicKeyInfo in base64url.
const KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE1CvwpHKVeLsRDdXqr7CNsFgtDLH1KTpVIqkloQZcmBYYfwlllPEs5fPwUN0DiWVndzgUOsRYpwo67wkT8LBY0w";

/// Writes what `-w` prints: the status and the type behind the body.
const WRITTEN: &str = "\n%{http_code} %{content_type}";

/// By which way, and so as whom, something is asked.
#[derive(Debug, Clone, Copy)]
enum By {
    /// root, at the control socket.
    Socket,
    /// A program that may everything but consent.
    Token,
    /// A program that may look.
    Viewer,
    /// alice, signed in.
    Cookie,
    /// alice's cookie, without what her pages have.
    Forged,
    /// A token that nobody has.
    Wrong,
    Nobody,
    /// By a name that leads there and isn't the console's.
    Rebound,
}

/// Every way in that something may be asked by.
const WAYS: [By; 3] = [By::Socket, By::Token, By::Cookie];

struct Bench {
    daemon: Daemon,
    url: String,
    tokens: [String; 2],
    csrf: String,
    exchanges: Vec<Value>,
}

/// A request whose answer is a stream, under way.
struct Stream {
    by: By,
    path: String,
    running: Running,
}

impl Bench {
    fn start() -> Self {
        let port = free_port().unwrap();
        let ((admin, admin_hash), (viewer, viewer_hash)) = (token(), token());
        let tokens = format!(
            "  tokens: [{{name: all, sha256: {admin_hash}, role: administrator}}, {{name: ci, sha256: {viewer_hash}, role: viewer}}]\n\
             approvals: {{break_glass: [dba]}}\n"
        );
        let configuration = console::configuration(port, &tokens).unwrap();
        let daemon = Daemon::configured(POLICY, |_| configuration).unwrap();
        console::listens(port).unwrap();
        let mut bench = Self {
            daemon,
            url: format!("http://localhost:{port}"),
            tokens: [admin, viewer],
            csrf: String::new(),
            exchanges: Vec::new(),
        };
        bench.sign_in();
        bench
    }

    /// Has alice sign in.
    fn sign_in(&mut self) {
        let jar = self.jar();
        let form = format!("name=alice&password={}", PASSWORD.replace(' ', "+"));
        let mut curl = Command::new("curl");
        curl.args(["-s", "-S", "-f", "-o", "/dev/null", "-c"])
            .arg(&jar)
            .args(["-d", &form, &format!("{}/sign-in/password", self.url)]);
        run::output(&mut curl).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-s", "-S", "-f", "-b"])
            .arg(&jar)
            .arg(format!("{}/approvals", self.url));
        let page = run::output(&mut curl).unwrap();
        let (_, behind) = page.split_once("data-csrf=\"").unwrap();
        let (csrf, _) = behind.split_once('"').unwrap();
        self.csrf = csrf.to_owned();
    }

    fn jar(&self) -> PathBuf {
        self.daemon.folder().join("cookies")
    }

    fn curl(&self, by: By, method: &str, path: &str, body: Option<&str>, seconds: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-N", "-X", method, "-w", WRITTEN])
            .args(["--max-time", seconds]);
        let mut header = |text: &str| {
            curl.args(["-H", text]);
        };
        match by {
            By::Socket | By::Nobody => {}
            By::Token => header(&format!("authorization: Bearer {}", self.tokens[0])),
            By::Viewer => header(&format!("authorization: Bearer {}", self.tokens[1])),
            By::Wrong => header("authorization: Bearer interceptor_wrong"),
            By::Rebound => header("host: evil.example"),
            By::Cookie => header(&format!("x-csrf-token: {}", self.csrf)),
            By::Forged => header("x-csrf-token: AAAA"),
        }
        if let Some(body) = body {
            header("content-type: application/json");
            curl.args(["-d", body]);
        }
        match by {
            By::Socket => curl
                .arg("--unix-socket")
                .arg(self.daemon.control())
                .arg(format!("http://localhost{path}")),
            By::Cookie | By::Forged => curl
                .arg("-b")
                .arg(self.jar())
                .arg(format!("{}{path}", self.url)),
            _ => curl.arg(format!("{}{path}", self.url)),
        };
        curl
    }

    /// Asks, and keeps what was said.
    fn ask(&mut self, by: By, method: &str, path: &str, body: Option<Value>) -> (u64, Value) {
        let body = body.map(|body| body.to_string());
        let outcome = run::outcome(&mut self.curl(by, method, path, body.as_deref(), "20"));
        self.keep(by, method, path, body, &outcome.unwrap())
    }

    fn get(&mut self, by: By, path: &str) -> (u64, Value) {
        self.ask(by, "GET", path, None)
    }

    fn post(&mut self, by: By, path: &str, body: Value) -> (u64, Value) {
        self.ask(by, "POST", path, Some(body))
    }

    /// Asks for what has no end, for a while.
    fn listen(&self, by: By, path: &str) -> Stream {
        Stream {
            by,
            path: path.to_owned(),
            running: run::start(&mut self.curl(by, "GET", path, None, "15")).unwrap(),
        }
    }

    fn heard(&mut self, stream: Stream) -> String {
        let outcome = stream.running.outcome().unwrap();
        self.keep(stream.by, "GET", &stream.path, None, &outcome);
        outcome.stdout
    }

    fn keep(
        &mut self,
        by: By,
        method: &str,
        path: &str,
        request: Option<String>,
        outcome: &Outcome,
    ) -> (u64, Value) {
        let (body, about) = outcome.stdout.rsplit_once('\n').unwrap();
        let (status, kind) = about.split_once(' ').unwrap();
        let status: u64 = status.parse().unwrap();
        self.exchanges.push(json!({
            "way": format!("{by:?}"),
            "method": method,
            "path": path,
            "request": request,
            "status": status,
            "type": kind,
            "body": body,
        }));
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// Has an agent delete the order `id`, which is held: the agent, and the approval's id.
    fn held(&self, database: &Database<'_>, id: &str) -> (Running, String) {
        let way = Way::Guarded(&self.daemon, "shopper");
        let agent = run::start(&mut way.script(database, "values.py", &[id]).unwrap()).unwrap();
        let held = self.daemon.held().unwrap();
        (agent, held["id"].as_str().unwrap().to_owned())
    }

    /// Has the document judge all that was said.
    fn judge(&self) {
        let file = self.daemon.folder().join("exchanges.json");
        fs::write(&file, Value::from(self.exchanges.clone()).to_string()).unwrap();
        let mut judge = Command::new(paths::python().unwrap());
        judge
            .arg(paths::client("openapi.py"))
            .arg(paths::root().join("docs/openapi.json"))
            .arg(file);
        println!("{}", run::output(&mut judge).unwrap());
    }
}

/// A token, and what the configuration has of it.
fn token() -> (String, String) {
    let mut command = Command::new(paths::interceptor().unwrap());
    let made = run::output(command.args(["-o", "json", "console", "token"])).unwrap();
    let made: Value = serde_json::from_str(&made).unwrap();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("token"), text("sha256"))
}

#[test]
fn everything_that_is_answered_is_documented() {
    let mut bench = Bench::start();
    let database = cluster().database().unwrap();

    // A session from its start to its end, and what a rule would have denied in it.
    let read = "--command=SELECT id, item FROM shop.orders; SELECT nothing";
    let reader = Way::Guarded(&bench.daemon, "reader").psql(&database, &[read]);
    run::outcome(&mut { reader }).unwrap();
    let mut browser = bench.daemon.run_as("reader", "curl");
    let shop = format!("http://127.0.0.1:{}/", web().plain);
    run::output(browser.args(["-s", "-d", "item=book", &shop])).unwrap();
    let streams = [
        bench.listen(By::Socket, "/v1/approvals/watch"),
        bench.listen(By::Token, "/v1/approvals/watch"),
        bench.listen(By::Socket, "/v1/tail"),
        bench.listen(By::Cookie, "/v1/tail?agent=shopper"),
    ];

    // One that is approved with a window, goes by it once more, and is revoked.
    let (agent, id) = bench.held(&database, "1");
    let (votes, whole) = (
        format!("/v1/approvals/{id}/votes"),
        format!("/v1/approvals/{id}"),
    );
    for by in WAYS {
        assert_eq!(bench.get(by, "/v1/approvals").0, 200);
        let (_, detail) = bench.get(by, &whole);
        assert!(
            detail["content"]["text"].is_string() && detail["parameters"][0].is_object(),
            "{detail}"
        );
        assert_eq!(bench.get(by, "/v1/agents").0, 200);
    }
    let window = json!({"scope": "shape", "seconds": 60, "at_most": 3});
    let yes = json!({"choice": "approve", "reason": "fine", "window": window});
    let beyond =
        json!({"choice": "approve", "window": {"scope": "rule", "seconds": 60, "at_most": 3}});
    for (by, body, expected) in [
        (By::Viewer, yes.clone(), 403),
        (By::Token, yes.clone(), 403),
        (By::Forged, yes.clone(), 403),
        (By::Socket, yes.clone(), 403),
        (By::Cookie, beyond, 403),
        (By::Cookie, json!({"choice": "perhaps"}), 400),
        (By::Cookie, json!({"choice": "retract"}), 409),
        (By::Cookie, yes, 200),
        (By::Cookie, json!({"choice": "approve"}), 409),
    ] {
        let (status, said) = bench.post(by, &votes, body);
        assert_eq!(status, expected, "{by:?}: {said}");
    }
    agent.outcome().unwrap().success().unwrap();
    let again = Way::Guarded(&bench.daemon, "shopper").script(&database, "values.py", &["2"]);
    run::output(&mut again.unwrap()).unwrap();
    for by in WAYS {
        let (_, grants) = bench.get(by, "/v1/approvals/grants");
        assert_eq!(grants[0]["left"], 2, "{grants}");
        let (_, ended) = bench.get(by, "/v1/approvals?ended=true");
        assert_eq!(ended[0]["state"], "approved", "{ended}");
        assert_eq!(bench.get(by, &whole).0, 200);
    }
    let revocation = format!("{whole}/revocation");
    for (by, expected) in [(By::Token, 403), (By::Cookie, 200), (By::Cookie, 409)] {
        let (status, said) = bench.post(by, &revocation, json!({"reason": "enough"}));
        assert_eq!(status, expected, "{said}");
    }

    // One that is refused, and one that is let through in an emergency.
    let (agent, id) = bench.held(&database, "3");
    let no = json!({"choice": "deny", "reason": "no"});
    let (status, said) = bench.post(By::Cookie, &format!("/v1/approvals/{id}/votes"), no);
    assert_eq!(status, 200, "{said}");
    agent.outcome().unwrap();
    let (agent, id) = bench.held(&database, "3");
    let alone = format!("/v1/approvals/{id}/override");
    for (by, body, expected) in [
        (By::Socket, json!({"reason": "the shop is down"}), 403),
        (By::Cookie, json!({}), 400),
        (By::Cookie, json!({"reason": "the shop is down"}), 200),
    ] {
        let (status, said) = bench.post(by, &alone, body);
        assert_eq!(status, expected, "{by:?}: {said}");
    }
    agent.outcome().unwrap();

    // An agent that comes, stands still, goes on and goes.
    for (by, path, body, expected) in [
        (
            By::Viewer,
            "/v1/agents",
            json!({"agent": "new", "target": "new"}),
            403,
        ),
        (
            By::Token,
            "/v1/agents",
            json!({"agent": "../x", "target": "new"}),
            400,
        ),
        (
            By::Token,
            "/v1/agents",
            json!({"agent": "gone", "target": {"pid": 4_000_000}}),
            404,
        ),
        (
            By::Token,
            "/v1/agents",
            json!({"agent": "new", "labels": {"team": "x"}, "target": "new"}),
            200,
        ),
        (
            By::Socket,
            "/v1/agents",
            json!({"agent": "new", "target": "new"}),
            409,
        ),
        (
            By::Token,
            "/v1/agents/deeds",
            json!({"agent": "new", "deed": "freeze"}),
            200,
        ),
        (
            By::Cookie,
            "/v1/agents/deeds",
            json!({"agent": "new", "deed": "thaw"}),
            200,
        ),
        (
            By::Socket,
            "/v1/agents/deeds",
            json!({"agent": "new", "deed": "cut"}),
            200,
        ),
        (
            By::Token,
            "/v1/agents/deeds",
            json!({"agent": "nobody", "deed": "cut"}),
            409,
        ),
        (
            By::Token,
            "/v1/agents/deeds",
            json!({"agent": "new", "deed": "kill"}),
            400,
        ),
    ] {
        let (status, said) = bench.post(by, path, body);
        assert_eq!(status, expected, "{by:?} {path}: {said}");
    }
    for (query, expected) in [("?agent=new", 200), ("?agent=new", 409), ("", 400)] {
        let (status, said) = bench.ask(By::Token, "DELETE", &format!("/v1/agents{query}"), None);
        assert_eq!(status, expected, "{said}");
    }

    // Keys, a link and the policy.
    let key = |credential: &str, label: &str| json!({"key": {"credential": credential, "public_key": KEY, "label": label}});
    for (body, expected) in [
        (key("b25l", ""), 403),
        (key("!", "one"), 400),
        (key("b25l", "one"), 200),
        (key("dHdv", "two"), 403),
    ] {
        let (status, said) = bench.post(By::Cookie, "/v1/keys", body);
        assert_eq!(status, expected, "{said}");
    }
    for by in WAYS {
        assert_eq!(bench.get(by, "/v1/keys").0, 200);
    }
    for (credential, expected) in [("b25l", 200), ("b25l", 404), ("!", 400)] {
        let path = format!("/v1/keys?credential={credential}");
        assert_eq!(bench.ask(By::Cookie, "DELETE", &path, None).0, expected);
    }
    for (by, expected) in [(By::Socket, 200), (By::Token, 404)] {
        assert_eq!(bench.post(by, "/v1/console/links", json!({})).0, expected);
    }
    for (by, expected) in [(By::Viewer, 403), (By::Token, 200), (By::Cookie, 200)] {
        assert_eq!(bench.post(by, "/v1/policy/reload", json!({})).0, expected);
    }

    // A file that was made of what is on record.
    let made = |asked: &str| json!({"sha256": "0".repeat(64), "bytes": 7, "format": "html", "asked": asked});
    for by in WAYS {
        assert_eq!(bench.post(by, "/v1/exports", made("all agents")).0, 200);
    }
    for body in [made(""), made("two\nlines"), json!({"sha256": "0"})] {
        assert_eq!(bench.post(By::Token, "/v1/exports", body).0, 400);
    }

    // Everything else that can be looked at, by each way in.
    let (_, sessions) = bench.get(By::Socket, "/v1/sessions");
    let session = sessions[0]["id"].as_str().unwrap().to_owned();
    let session = format!("/v1/sessions/{session}");
    let reason = |reason: &str| json!({"reason": reason});
    for (by, way, body, expected) in [
        (By::Viewer, "hold", reason("case 7"), 403),
        (By::Token, "hold", reason(" "), 400),
        (By::Token, "hold", json!({}), 400),
        (By::Token, "hold", reason("case 7"), 200),
        (By::Cookie, "hold", reason("case 8"), 409),
        (By::Viewer, "release", reason("over"), 403),
        (By::Cookie, "release", reason("over"), 200),
        (By::Socket, "release", reason("over"), 404),
        (By::Socket, "hold", reason("case 9"), 200),
    ] {
        let (status, said) = bench.post(by, &format!("{session}/{way}"), body);
        assert_eq!(status, expected, "{by:?} {way}: {said}");
    }
    for (by, body, expected) in [
        (By::Viewer, reason("yearly"), 403),
        (By::Token, reason(" "), 400),
        (By::Token, reason("yearly"), 200),
        (By::Cookie, reason("once more"), 200),
        (By::Socket, reason("and again"), 200),
    ] {
        let (status, said) = bench.post(by, "/v1/journal/key", body);
        assert_eq!(status, expected, "{by:?}: {said}");
    }
    // The whole life of an erasure: of the oldest session, which is over.
    let erased = sessions.as_array().and_then(|all| all.first());
    let erased = format!("/v1/sessions/{}", erased.unwrap()["id"].as_str().unwrap());
    for (by, body, expected) in [
        (By::Viewer, reason("ticket 7"), 403),
        (By::Token, reason(" "), 400),
        (By::Token, reason("ticket 7"), 409),
    ] {
        let (status, said) = bench.post(by, &format!("{erased}/erase"), body);
        assert_eq!(status, expected, "{by:?}: {said}");
    }
    let nobody = "/v1/sessions/0000000000000000/hold";
    assert_eq!(bench.post(By::Token, nobody, reason("x")).0, 404);
    for by in WAYS {
        for path in [
            "/v1/openapi.json",
            "/v1/holds",
            "/v1/erasures",
            "/v1/me",
            "/v1/status",
            "/v1/ca",
            "/v1/places",
            "/v1/sessions?agent=reader&limit=1",
            &session,
            "/v1/export",
            "/v1/export?agent=shopper&since=2026-01-01T00:00:00Z",
            "/v1/export?context=true&wire=true",
            "/v1/evidence",
            "/v1/evidence?agent=shopper&since=2026-01-01T00:00:00Z",
            "/v1/policy",
            "/v1/policy/observed?agent=reader",
        ] {
            let (status, said) = bench.get(by, path);
            assert_eq!(status, 200, "{by:?} {path}: {said}");
        }
    }
    let (_, observed) = bench.get(By::Viewer, "/v1/policy/observed");
    assert_eq!(
        observed["rules"][0]["rule"], "reads-are-watched",
        "{observed}"
    );

    // Who isn't let in, and what makes no sense.
    let missing = "0000000000000001";
    for (by, path, expected) in [
        (By::Nobody, "/v1/status", 401),
        (By::Wrong, "/v1/status", 401),
        (By::Rebound, "/v1/status", 421),
        (By::Viewer, "/v1/keys", 403),
        (By::Socket, "/v1/approvals/xyz", 400),
        (By::Socket, "/v1/approvals?ended=perhaps", 400),
        (By::Token, "/v1/export?since=yesterday", 400),
        (By::Token, "/v1/evidence?context=true", 400),
        (By::Token, "/v1/sessions?oops=1", 400),
        (By::Socket, &format!("/v1/approvals/{missing}"), 404),
        (By::Token, &format!("/v1/sessions/{missing}"), 404),
    ] {
        let (status, said) = bench.get(by, path);
        assert_eq!(status, expected, "{by:?} {path}: {said}");
    }
    let large = json!({"agent": "x".repeat(70 << 10), "target": "new"});
    assert_eq!(bench.post(By::Socket, "/v1/agents", large.clone()).0, 400);
    assert_eq!(bench.post(By::Token, "/v1/agents", large).0, 413);
    bench.daemon.write_policy("rules: [").unwrap();
    assert_eq!(bench.post(By::Token, "/v1/policy/reload", json!({})).0, 400);
    let (_, status) = bench.get(By::Token, "/v1/status");
    assert!(status["policy"]["broken"].is_string(), "{status}");

    let said: String = streams
        .into_iter()
        .map(|stream| bench.heard(stream))
        .collect();
    for change in ["requested", "voted", "admitted", "revoked", "ended"] {
        let line = format!("\"change\":\"{change}\"");
        assert!(said.contains(&line), "no {change} in {said}");
    }
    // Last: from then on whoever has a wrong token waits.
    let status = (0..8).map(|_| bench.get(By::Wrong, "/v1/me").0).last();
    assert_eq!(status, Some(429));
    bench.judge();
}
