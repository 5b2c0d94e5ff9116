//! The console: in a browser, by programs, and by those who shouldn't be there.

use std::{process::Command, time::Duration};

use interceptor_tests::{
    clients::Way,
    cluster::{Database, free_port},
    console::{self, PASSWORD},
    daemon::Daemon,
    paths,
    run::{self, Running},
};
use serde_json::Value;

use crate::support::cluster;

const HOLD_WRITES: &str = "
default: {action: allow}
rules:
  - id: writes-wait
    match: {protocol: postgres, class: [write, schema]}
    action: hold
    reason: \"a person looks first\"
    reviewers: {groups: [dba], quorum: 1, within: 2m}
";

/// How long a browser may take for its way.
const BROWSER: Duration = Duration::from_secs(90);

/// A daemon with a console, and where that is.
struct Bench {
    daemon: Daemon,
    url: String,
}

impl Bench {
    fn start(policy: &str, more: &str) -> Self {
        let port = free_port().unwrap();
        let configuration = console::configuration(port, more).unwrap();
        let daemon = Daemon::configured(policy, |_| configuration).unwrap();
        console::listens(port).unwrap();
        Self {
            daemon,
            url: format!("http://localhost:{port}"),
        }
    }

    /// Goes `way` in a browser.
    fn browse(&self, way: &str, arguments: &[&str]) -> Running {
        let mut command = console::node("console.js").unwrap();
        command.args([way, &self.url]).args(arguments);
        run::start(&mut command).unwrap()
    }

    fn psql(&self, agent: &str, database: &Database<'_>, sql: &str) -> Running {
        let command = format!("--command={sql}");
        run::start(&mut Way::Guarded(&self.daemon, agent).psql(database, &[&command])).unwrap()
    }

    /// What is on record of who signed in and didn't.
    fn sign_ins(&self, name: &str) -> Vec<String> {
        let journal = self.daemon.journal().unwrap();
        journal
            .mentioning("event", name)
            .map(|line| format!("{line:?}"))
            .collect()
    }

    fn curl(&self, arguments: &[&str]) -> (u16, String) {
        let mut command = Command::new("curl");
        command
            .args(["-s", "-w", "\n%{http_code}", "--max-time", "20"])
            .args(arguments);
        let said = run::output(&mut command).unwrap();
        let (body, status) = said.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }
}

fn finish(browser: Running) -> String {
    let said = browser.outcome_within(BROWSER).unwrap().success().unwrap();
    assert!(said.ends_with("ok\n"), "{said}");
    said
}

fn count(database: &Database<'_>) -> String {
    database.sql("SELECT count(*) FROM shop.orders").unwrap()
}

#[test]
fn what_is_held_is_shown_live_and_runs_by_one_click() {
    let bench = Bench::start(HOLD_WRITES, "");
    let database = cluster().database().unwrap();
    let browser = bench.browse("approve", &["shop.orders"]);
    let agent = bench.psql("shopper", &database, "DELETE FROM shop.orders WHERE id = 1");
    finish(browser);
    agent.outcome().unwrap().success().unwrap();
    assert_eq!(count(&database), "2");
    let votes = bench.daemon.journal().unwrap();
    let vote = votes.mentioning("approval", "voted").next().unwrap();
    assert!(vote.mentions("alice"), "{vote:?}");
    let signed_in = bench.sign_ins("signed_in");
    assert!(
        signed_in[0].contains("alice (console, by password)"),
        "{signed_in:?}"
    );
}

#[test]
fn what_it_would_touch_is_shown_as_soon_as_it_is_known() {
    let policy = HOLD_WRITES.replace("quorum: 1", "blast_radius: count");
    let port = cluster().port();
    let reader = format!(
        "credentials:\n- {{destination: \"127.0.0.1:{port}\", protocol: postgres, use: blast_radius, login: agent, password: {{command: [/bin/echo, none]}}}}\n"
    );
    let bench = Bench::start(&policy, &reader);
    let database = cluster().database().unwrap();
    let browser = bench.browse("approve", &["deletes 2 rows of shop.orders"]);
    let agent = bench.psql("sized", &database, "DELETE FROM shop.orders WHERE id > 1");
    finish(browser);
    agent.outcome().unwrap().success().unwrap();
    assert_eq!(count(&database), "1");
}

#[test]
fn a_quorum_of_two_takes_two_people() {
    let bench = Bench::start(&HOLD_WRITES.replace("quorum: 1", "quorum: 2"), "");
    let database = cluster().database().unwrap();
    let browser = bench.browse("quorum", &["shop.orders"]);
    let agent = bench.psql("pair", &database, "DELETE FROM shop.orders WHERE id = 1");
    finish(browser);
    agent.outcome().unwrap().success().unwrap();
    assert_eq!(count(&database), "2");
}

#[test]
fn what_an_agent_writes_does_nothing_on_a_page() {
    let bench = Bench::start(HOLD_WRITES, "");
    let database = cluster().database().unwrap();
    let hostile = "DELETE FROM shop.orders WHERE item = '</pre><script>alert(1)</script><img src=x onerror=alert(2)>' \
                   AND \"\u{43e}rders\" = '\u{1b}]0;owned\u{7}\u{1b}[2J' -- \u{202e} \u{2066}harmless\u{200b}";
    let long = format!(
        "DELETE FROM shop.orders WHERE id = 7{}; DROP TABLE the_end",
        "\n".repeat(200)
    );
    let agents = [
        bench.psql("evil", &database, hostile),
        bench.psql("long", &database, &long),
    ];
    finish(bench.browse("deception", &["evil"]));
    drop(agents);
}

#[test]
fn a_security_key_signs_what_its_rule_asks_it_for() {
    let policy = HOLD_WRITES.replace("quorum: 1", "security_key: true");
    let bench = Bench::start(&policy, "");
    let database = cluster().database().unwrap();
    let agent = bench.psql("signed", &database, "DELETE FROM shop.orders WHERE id = 1");
    let held = bench.daemon.held().unwrap();
    let id = held["id"].as_str().unwrap();
    // Not by the command line, whoever asks.
    let refused = bench.daemon.ask(&["approvals", "approve", id]).unwrap_err();
    assert!(format!("{refused:#}").contains("dba"), "{refused:#}");
    finish(bench.browse("key", &["shop.orders"]));
    agent.outcome().unwrap().success().unwrap();
    assert_eq!(count(&database), "2");
    let journal = bench.daemon.journal().unwrap();
    let vote = journal.mentioning("approval", "voted").next().unwrap();
    assert!(
        vote.mentions("clientDataJSON") && vote.mentions("signed off"),
        "{vote:?}"
    );
    assert!(
        journal
            .mentioning("event", "security_key_added")
            .next()
            .is_some()
    );
}

#[test]
fn roles_are_held_to() {
    let bench = Bench::start(HOLD_WRITES, "");
    let database = cluster().database().unwrap();
    let agent = bench.psql("held", &database, "DELETE FROM shop.orders WHERE id = 1");
    bench.daemon.held().unwrap();
    finish(bench.browse("viewer", &["shop.orders"]));
    finish(bench.browse("freeze", &["held"]));
    let journal = bench.daemon.journal().unwrap();
    for deed in ["agent_frozen", "agent_thawed"] {
        let line = journal.mentioning("event", deed).next().unwrap();
        assert!(line.mentions("otto (console, by password)"), "{line:?}");
    }
    finish(bench.browse("keyboard", &["shop.orders"]));
    assert!(!agent.outcome().unwrap().status.success());
}

#[test]
fn a_link_signs_in_who_made_it_once() {
    let bench = Bench::start(HOLD_WRITES, "");
    let link = bench.daemon.ask(&["console", "link"]).unwrap();
    finish(bench.browse("link", &[link.trim()]));
    assert!(bench.sign_ins("signed_in")[0].contains("root (uid 0)"));
    assert_eq!(bench.sign_ins("sign_in_refused").len(), 1);
    assert_eq!(bench.sign_ins("signed_out").len(), 1);
}

/// `console.oidc` in the configuration, for a provider at `port`.
fn provider(port: u16, folder: &std::path::Path) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let secret = folder.join("client-secret");
    std::fs::write(&secret, "of-the-client").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    format!(
        "  oidc: {{issuer: 'http://localhost:{port}', client_id: console, client_secret: {{file: {}}}}}\n",
        secret.display()
    )
}

#[test]
fn people_sign_in_at_a_real_provider() {
    let (port, folder) = (free_port().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::start(HOLD_WRITES, &provider(port, folder.path()));
    let serving = console::node("oidc.js")
        .unwrap()
        .args(["serve", &port.to_string(), &bench.url])
        .stdout(std::process::Stdio::null())
        .spawn()
        .map(Served)
        .unwrap();
    console::listens(port).unwrap();
    let said = finish(bench.browse("oidc", &["carol"]));
    assert!(
        said.contains("carol@example.com") && said.contains("reviewer"),
        "{said}"
    );
    let signed_in = bench.sign_ins("signed_in");
    assert!(
        signed_in[0].contains("carol@example.com (console, by OpenID Connect)"),
        "{signed_in:?}"
    );
    drop(serving);
}

#[test]
fn providers_that_lie_sign_nobody_in() {
    let (port, folder) = (free_port().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::start(HOLD_WRITES, &provider(port, folder.path()));
    let mut command = console::node("oidc.js").unwrap();
    command.args(["hostile", &port.to_string(), &bench.url]);
    let said = finish(run::start(&mut command).unwrap());
    let refused = said
        .lines()
        .filter(|line| line.starts_with("refused "))
        .count();
    assert!(refused >= 28, "{said}");
    println!("{refused} of {refused} hostile sign-ins refused");
    assert!(bench.sign_ins("sign_in_refused").len() >= 25);
}

#[test]
fn other_sites_and_other_names_get_nothing() {
    let made = run::output(
        Command::new(paths::interceptor().unwrap()).args(["-o", "json", "console", "token"]),
    )
    .unwrap();
    let made: Value = serde_json::from_str(&made).unwrap();
    let (token, sha256) = (
        made["token"].as_str().unwrap(),
        made["sha256"].as_str().unwrap(),
    );
    let bench = Bench::start(
        HOLD_WRITES,
        &format!("  tokens: [{{name: ci, sha256: {sha256}, role: viewer}}]\n"),
    );
    let url = &bench.url;
    let jar = bench.daemon.folder().join("cookies");
    let jar = jar.to_str().unwrap();
    let sign_in = format!("name=alice&password={}", PASSWORD.replace(' ', "+"));
    let (status, _) = bench.curl(&[
        "-c",
        jar,
        "-d",
        &sign_in,
        &format!("{url}/sign-in/password"),
    ]);
    assert_eq!(status, 303);
    let (status, page) = bench.curl(&["-b", jar, &format!("{url}/approvals")]);
    assert_eq!(status, 200);
    // What the policy would say, asked there.
    let trial = format!("{url}/policy?agent=a&statement=DROP+TABLE+x");
    let (status, said) = bench.curl(&["-b", jar, &trial]);
    assert!(
        status == 200 && said.contains(">hold</span> by <b>writes-wait</b>"),
        "{said}"
    );
    let (_, said) = bench.curl(&[
        "-b",
        jar,
        &format!("{url}/policy?destination=nowhere&statement=x"),
    ]);
    assert!(said.contains("is no destination"), "{said}");
    let csrf = page
        .split("data-csrf=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let deed = |csrf: &str| format!("csrf={csrf}&agent=nobody&deed=freeze");
    let freeze = format!("{url}/agents/deeds");
    let bearer = format!("authorization: Bearer {token}");
    let own = format!("origin: {url}");
    // What is asked, and the status that it comes to: 409, because there is no such agent, is what is let by.
    let table: Vec<(&str, Vec<String>, u16)> = vec![
        (
            "our own form",
            vec![
                "-b".into(),
                jar.into(),
                "-H".into(),
                own.clone(),
                "-d".into(),
                deed(csrf),
                freeze.clone(),
            ],
            409,
        ),
        (
            "no token of the form",
            vec![
                "-b".into(),
                jar.into(),
                "-d".into(),
                deed(""),
                freeze.clone(),
            ],
            403,
        ),
        (
            "another session's",
            vec![
                "-b".into(),
                jar.into(),
                "-d".into(),
                deed("AAAA"),
                freeze.clone(),
            ],
            403,
        ),
        (
            "another site's page",
            vec![
                "-b".into(),
                jar.into(),
                "-H".into(),
                "origin: https://evil.example".into(),
                "-d".into(),
                deed(csrf),
                freeze.clone(),
            ],
            403,
        ),
        (
            "no origin at all",
            vec![
                "-b".into(),
                jar.into(),
                "-H".into(),
                "origin: null".into(),
                "-d".into(),
                deed(csrf),
                freeze.clone(),
            ],
            403,
        ),
        (
            "a cross-site request",
            vec![
                "-b".into(),
                jar.into(),
                "-H".into(),
                "sec-fetch-site: cross-site".into(),
                "-d".into(),
                deed(csrf),
                freeze.clone(),
            ],
            403,
        ),
        (
            "a name that leads here",
            vec![
                "-b".into(),
                jar.into(),
                "-H".into(),
                "host: evil.example".into(),
                format!("{url}/approvals"),
            ],
            421,
        ),
        ("nobody", vec!["-d".into(), deed(csrf), freeze.clone()], 401),
        ("nobody at the API", vec![format!("{url}/v1/status")], 401),
        (
            "a cookie at the API",
            vec!["-b".into(), jar.into(), format!("{url}/v1/status")],
            200,
        ),
        (
            "a cookie that does something at the API",
            vec![
                "-b".into(),
                jar.into(),
                "-X".into(),
                "POST".into(),
                format!("{url}/v1/policy/reload"),
            ],
            403,
        ),
        (
            "the same with what pages have",
            vec![
                "-b".into(),
                jar.into(),
                "-H".into(),
                format!("x-csrf-token: {csrf}"),
                "-X".into(),
                "POST".into(),
                format!("{url}/v1/policy/reload"),
            ],
            200,
        ),
        (
            "a token",
            vec!["-H".into(), bearer.clone(), format!("{url}/v1/status")],
            200,
        ),
        (
            "a token beyond its scope",
            vec![
                "-H".into(),
                bearer.clone(),
                "-X".into(),
                "POST".into(),
                format!("{url}/v1/policy/reload"),
            ],
            403,
        ),
        (
            "a token that votes",
            vec![
                "-H".into(),
                bearer.clone(),
                "-H".into(),
                "content-type: application/json".into(),
                "-d".into(),
                "{\"choice\":\"approve\"}".into(),
                format!("{url}/v1/approvals/0011223344556677/votes"),
            ],
            403,
        ),
        (
            "a token for links",
            vec![
                "-H".into(),
                bearer,
                "-X".into(),
                "POST".into(),
                format!("{url}/v1/console/links"),
            ],
            404,
        ),
        (
            "a wrong token",
            vec![
                "-H".into(),
                "authorization: Bearer interceptor_wrong".into(),
                format!("{url}/v1/status"),
            ],
            401,
        ),
        (
            "an identity of one's own",
            vec![
                "-H".into(),
                "interceptor-identity: e30".into(),
                format!("{url}/v1/status"),
            ],
            401,
        ),
        (
            "the console's own requests",
            vec![
                "-b".into(),
                jar.into(),
                "-d".into(),
                "{}".into(),
                format!("{url}/console/sign-ins"),
            ],
            404,
        ),
        (
            "a form that is too large",
            vec![
                "-b".into(),
                jar.into(),
                "-d".into(),
                // More than a command line holds.
                format!("@{}", paths::interceptor().unwrap().display()),
                freeze.clone(),
            ],
            413,
        ),
        (
            "a path that climbs",
            vec![
                "-b".into(),
                jar.into(),
                "--path-as-is".into(),
                format!("{url}/approvals/..%2f..%2fv1%2fstatus"),
            ],
            404,
        ),
    ];
    for (what, arguments, expected) in table {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (status, body) = bench.curl(&arguments);
        assert_eq!(status, expected, "{what}: {body}");
    }
    // An agent gets no answer at all, whatever the rules allow.
    let mut agent = bench.daemon.run_as("curious", "curl");
    let outcome = run::outcome(agent.args(["-s", "--max-time", "5", url])).unwrap();
    assert!(
        !outcome.status.success() && outcome.stdout.is_empty(),
        "{outcome}"
    );
    let refused = bench.daemon.journal().unwrap();
    let refused = refused
        .mentioning("event", "connection_refused")
        .next()
        .unwrap();
    assert!(refused.mentions("no agent may go there"), "{refused:?}");
    // Guessing gets slower.
    let guess = format!("{url}/sign-in/password");
    let statuses: Vec<u16> = (0..8)
        .map(|_| bench.curl(&["-d", "name=bob&password=wrong", &guess]).0)
        .collect();
    assert!(
        statuses.starts_with(&[403, 403]) && statuses.ends_with(&[429]),
        "{statuses:?}"
    );
    // What is never in an answer or the log.
    assert!(!bench.daemon.log().contains(token) && !bench.daemon.log().contains(PASSWORD));
}

#[test]
fn pages_keep_nobody_out() {
    let bench = Bench::start(HOLD_WRITES, "");
    let database = cluster().database().unwrap();
    let agent = bench.psql(
        "shopper",
        &database,
        "SELECT * FROM shop.orders; DELETE FROM shop.orders WHERE id = 1",
    );
    let held = bench.daemon.held().unwrap();
    let one = format!("/approvals/{}", held["id"].as_str().unwrap());
    let session = format!("/sessions/{}", held["session"].as_str().unwrap());
    let paths = [
        "/approvals",
        &one,
        "/sessions",
        &session,
        "/agents",
        "/policy",
        "/policy?protocol=postgres&statement=DROP+TABLE+x",
        "/policy/observed",
        "/log",
        "/notifications",
        "/account",
    ];
    let browser = bench.browse("axe", &[&paths.join(",")]);
    let said = browser
        .outcome_within(Duration::from_secs(240))
        .unwrap()
        .success()
        .unwrap();
    assert!(said.ends_with("ok\n"), "{said}");
    drop(agent);
}

#[test]
fn a_console_that_dies_comes_back_and_takes_nothing_with_it() {
    let bench = Bench::start(HOLD_WRITES, "");
    let database = cluster().database().unwrap();
    let agent = bench.psql("held", &database, "DELETE FROM shop.orders WHERE id = 1");
    let held = bench.daemon.held().unwrap();
    let pid = || bench.daemon.ask_json(&["status"]).ok()?["console"]["pid"].as_i64();
    let first = pid().unwrap();
    // It is nobody who may do anything.
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "no {line} in {status}");
    }
    assert!(!status.contains("Uid:\t0"), "{status}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first.try_into().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    run::wait_for("another console", Duration::from_secs(20), || {
        Ok(pid().filter(|pid| *pid != first))
    })
    .unwrap();
    let (status, _) = bench.curl(&[
        "--retry",
        "20",
        "--retry-connrefused",
        "--retry-delay",
        "1",
        &format!("{}/sign-in", bench.url),
    ]);
    assert_eq!(status, 200);
    bench
        .daemon
        .ask(&["approvals", "approve", held["id"].as_str().unwrap()])
        .unwrap_err();
    finish(bench.browse("approve", &["shop.orders"]));
    agent.outcome().unwrap().success().unwrap();
}

/// A server of a test's, which ends with it.
struct Served(std::process::Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a webhook was told so far, each with the right signature.
fn heard(file: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .inspect(|line| assert_eq!(line["signed"], true, "{line}"))
        .collect()
}

fn wait_for_told(file: &std::path::Path, count: usize) -> Vec<Value> {
    run::wait_for("people to be told", Duration::from_secs(40), || {
        Ok(Some(heard(file)).filter(|told| told.len() >= count))
    })
    .unwrap()
}

#[test]
fn people_are_told_once_whoever_is_down() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (secret, file) = (folder.path().join("secret"), folder.path().join("heard"));
    const KEY: &str = "0123456789abcdef0123456789abcdef";
    std::fs::write(
        &secret,
        "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    )
    .unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (port, nobody) = (free_port().unwrap(), free_port().unwrap());
    let mut bench = Bench::start(
        HOLD_WRITES,
        &format!(
            "notify:\n  - name: hook\n    webhook: {{url: 'http://127.0.0.1:{port}/hook', secret: {{file: {secret}}}}}\n  \
             - name: down\n    webhook: {{url: 'http://127.0.0.1:{nobody}/hook', secret: {{file: {secret}}}}}\n",
            secret = secret.display()
        ),
    );
    let listen = || {
        let mut command = Command::new(paths::python().unwrap());
        command
            .arg(paths::client("hook.py"))
            .args([&port.to_string(), KEY])
            .arg(&file);
        let child = Served(command.spawn().unwrap());
        console::listens(port).unwrap();
        child
    };
    let receiver = listen();
    let database = cluster().database().unwrap();
    let agent = bench.psql("told", &database, "DELETE FROM shop.orders WHERE id = 1");
    let held = bench.daemon.held().unwrap();
    let id = held["id"].as_str().unwrap().to_owned();
    let told = wait_for_told(&file, 1);
    let text = told[0]["body"].to_string();
    for fact in [
        &*id,
        "requested",
        "told",
        "DELETE FROM shop.orders",
        &format!("{}/approvals/{id}", bench.url),
    ] {
        assert!(text.contains(fact), "no {fact} in {text}");
    }
    // Another console tells nobody what this one has told, once that is on record.
    run::wait_for("a record of it", Duration::from_secs(5), || {
        let journal = bench.daemon.journal()?;
        Ok(journal.mentioning("event", "notified").next().map(drop))
    })
    .unwrap();
    let pid = bench.daemon.ask_json(&["status"]).unwrap()["console"]["pid"]
        .as_i64()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    finish(bench.browse("approve", &["shop.orders"]));
    agent.outcome().unwrap().success().unwrap();
    let told = wait_for_told(&file, 2);
    assert!(told[1]["body"].to_string().contains("ended"), "{}", told[1]);
    // Who is down hears of it when they are back, and nobody waits for them.
    drop(receiver);
    let agent = bench.psql("told", &database, "DELETE FROM shop.orders WHERE id = 2");
    let id = bench.daemon.held().unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    std::thread::sleep(Duration::from_secs(2));
    bench.daemon.restart().unwrap();
    let receiver = listen();
    let told = wait_for_told(&file, 3);
    assert!(told[2]["body"].to_string().contains(&id), "{}", told[2]);
    let ids: std::collections::BTreeSet<&str> =
        told.iter().filter_map(|told| told["id"].as_str()).collect();
    assert_eq!(ids.len(), told.len(), "nobody is told twice: {told:?}");
    drop(agent);
    run::wait_for("a record of all three", Duration::from_secs(5), || {
        let journal = bench.daemon.journal()?;
        let told = journal.mentioning("event", "notified").count();
        Ok((told >= 3).then_some(()))
    })
    .unwrap();
    drop(receiver);
}
