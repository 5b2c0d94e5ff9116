//! The main job, shown: a throw-away PostgreSQL, a daemon, an agent that knows of neither.
//!
//! Every scene checks what it shows, so a demonstration that ends well is true.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use interceptor_tests::{
    clients::Way,
    cluster::{Cluster, Database},
    daemon::Daemon,
    run::{self, Outcome},
    web::Web,
};
use serde_json::Value;

use crate::{
    build,
    progress::{self, dim, heading, step},
    setup,
};

/// The pack for a first day: reads allowed, changes held, destruction denied, secrets masked.
const POLICY: &str = include_str!("../../policies/starter.yaml");

const SHOP: &str = "
    DROP SCHEMA shop CASCADE; DROP TABLE plain;
    CREATE TABLE customers (id int PRIMARY KEY, name text, email text, card_number text);
    INSERT INTO customers VALUES
        (1, 'Ada', 'ada@example.com', '4111111111111111'),
        (2, 'Grace', 'grace@example.org', '5500005555555559');
    CREATE TABLE orders (id int PRIMARY KEY, customer int, total numeric(8, 2));
    INSERT INTO orders VALUES (1, 1, 10.00), (2, 1, 20.50), (3, 2, 7.25);
    CREATE TABLE drafts (id int PRIMARY KEY, words text);";

/// What the throw-away web server has.
const CUSTOMERS: &str = r#"{"customers": [
  {"name": "Ada", "email": "ada@example.com", "card_number": "4111111111111111"},
  {"name": "Grace", "email": "grace@example.org", "card_number": "5500005555555559"}
]}
"#;

/// The agent's name in every scene.
const AGENT: &str = "demo-agent";

/// Shows the main job.
///
/// # Errors
/// Where set-up fails or a scene doesn't come out as promised.
pub(crate) fn show() -> Result<()> {
    let program = prepare()?;
    let cluster = step("a throw-away PostgreSQL", |_| Cluster::start())?;
    let database = cluster.database()?;
    database.sql(SHOP)?;
    let web = step("a throw-away web server, with TLS", |_| Web::start())?;
    fs::write(web.root().join("customers.json"), CUSTOMERS)?;
    let daemon = start_daemon(program, &web.configuration())?;
    eprintln!(
        "{}",
        dim(&format!(
            "  servers 127.0.0.1:{} and https://localhost:{} · policy {} · everything is removed at the end",
            cluster.port(),
            web.good,
            daemon.policies().display()
        ))
    );
    let stage = Stage {
        daemon: &daemon,
        database: &database,
        web: &web,
    };
    stage.reads_run()?;
    stage.columns_are_masked()?;
    stage.a_drop_waits_and_runs_once()?;
    stage.a_second_one_is_denied()?;
    stage.the_session_is_recorded()?;
    stage.the_web_is_decided_too()?;
    stage.the_log_is_evident()?;
    heading("That was it.");
    eprintln!(
        "Try your own: {}",
        progress::bold("cargo xtask demo -- curl https://…")
    );
    Ok(())
}

/// Runs `command` as an agent under the same policy and prints what was recorded of it.
///
/// # Errors
/// Where set-up fails; how `command` ends is the answer.
pub(crate) fn guard(command: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command given")?;
    let built = prepare()?;
    let daemon = start_daemon(built.clone(), "")?;
    eprintln!(
        "{}",
        dim(&format!(
            "  what is held waits for you; in another terminal:\n  {} --control {} approvals watch",
            built.display(),
            daemon.control().display()
        ))
    );
    let mut run = daemon.run_as(AGENT, program);
    run.args(arguments).env_remove("NO_COLOR");
    echo(&run, &daemon);
    let status = run
        .status()
        .with_context(|| format!("can't start {}", program.to_string_lossy()))?;

    heading("Recorded");
    let sessions = session_ids(&daemon)?;
    if sessions.is_empty() {
        println!("no connection was made");
    }
    for session in sessions {
        interceptor(&daemon, &["sessions", "show", &session])?;
    }
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn prepare() -> Result<PathBuf> {
    heading("Set-up");
    setup::setup()?;
    build::build(false)
}

fn start_daemon(program: PathBuf, configuration: &str) -> Result<Daemon> {
    step("the daemon, in a scratch folder", |_| {
        Daemon::of(program, POLICY, |_| configuration.to_owned())
    })
}

struct Stage<'a> {
    daemon: &'a Daemon,
    database: &'a Database<'a>,
    web: &'a Web,
}

impl Stage<'_> {
    fn reads_run(&self) -> Result<()> {
        heading("1 · A read runs");
        let outcome = self.agent("SELECT * FROM orders ORDER BY id")?;
        ensure!(outcome.stdout.contains("20.50"), "the read did not run");
        Ok(())
    }

    fn columns_are_masked(&self) -> Result<()> {
        heading("2 · What it needn't see is masked, in the answer and in the log");
        let outcome = self.agent("SELECT name, email AS contact, card_number FROM customers")?;
        ensure!(outcome.stdout.contains("Ada"), "the read did not run");
        ensure!(
            !outcome.stdout.contains("ada@example.com")
                && !outcome.stdout.contains("4111111111111111"),
            "the mask leaks"
        );
        Ok(())
    }

    fn a_drop_waits_and_runs_once(&self) -> Result<()> {
        heading("3 · A DROP TABLE waits for a person, who sees exactly what will run");
        let statement = "DROP TABLE drafts";
        let mut psql = self.psql(statement);
        echo(&psql, self.daemon);
        let agent = run::start(&mut psql)?;
        let id = approval_id(&self.daemon.held()?)?;
        ensure!(self.has_table("drafts")?, "it ran before it was approved");
        interceptor(self.daemon, &["approvals", "show", &id])?;
        interceptor(
            self.daemon,
            &["approvals", "approve", &id, "--reason", "nobody reads them"],
        )?;
        let outcome = agent.outcome()?;
        show_outcome("the agent, meanwhile, got", &outcome);
        ensure!(outcome.status.success(), "it was approved and did not run");
        ensure!(!self.has_table("drafts")?, "the table is still there");
        Ok(())
    }

    fn a_second_one_is_denied(&self) -> Result<()> {
        heading(
            "4 · The approval was for that one; the next waits again, and this time it is a no",
        );
        let mut psql = self.psql("DROP TABLE orders");
        echo(&psql, self.daemon);
        let agent = run::start(&mut psql)?;
        let id = approval_id(&self.daemon.held()?)?;
        interceptor(
            self.daemon,
            &["approvals", "deny", &id, "--reason", "those are paid for"],
        )?;
        let outcome = agent.outcome()?;
        show_outcome(
            "the agent got an error that it can read and act on",
            &outcome,
        );
        ensure!(!outcome.status.success(), "it was denied and ran");
        ensure!(self.has_table("orders")?, "the table is gone");
        Ok(())
    }

    fn the_session_is_recorded(&self) -> Result<()> {
        heading("5 · All of it is on record");
        interceptor(self.daemon, &["sessions", "list"])?;
        let session = session_ids(self.daemon)?
            .pop()
            .context("no session was recorded")?;
        interceptor(self.daemon, &["sessions", "show", &session])?;
        ensure!(
            !self.daemon.journal()?.mentions("ada@example.com"),
            "the log has what was masked"
        );
        Ok(())
    }

    fn the_web_is_decided_too(&self) -> Result<()> {
        heading("6 · The web as well: HTTPS of a program that knows of nothing");
        let answer = self.curl("/customers.json", &[])?;
        ensure!(answer.stdout.contains("Ada"), "the read did not run");
        ensure!(!answer.stdout.contains("ada@example.com"), "the mask leaks");
        let mut curl = self.curl_command("/echo", &["--data", "name=Eve"]);
        echo(&curl, self.daemon);
        let agent = run::start(&mut curl)?;
        let id = approval_id(&self.daemon.held()?)?;
        interceptor(self.daemon, &["approvals", "show", &id])?;
        interceptor(
            self.daemon,
            &["approvals", "deny", &id, "--reason", "not a customer yet"],
        )?;
        let outcome = agent.outcome()?;
        show_outcome("the agent got a 403 that it can act on", &outcome);
        ensure!(
            outcome.stdout.contains("not a customer yet"),
            "it was denied and went on"
        );
        Ok(())
    }

    fn the_log_is_evident(&self) -> Result<()> {
        heading("7 · The log is intact; a copy with one byte changed is not");
        let state = self.daemon.state();
        let outcome = interceptor_on(self.daemon, &["verify"], &state)?;
        ensure!(outcome.status.success(), "the log doesn't verify");

        let copy = self.daemon.folder().join("copy");
        copy_folder(&state, &copy)?;
        let changed = change_one_byte(&copy)?;
        eprintln!("{}", dim(&format!("  one byte changed in {changed}")));
        let outcome = interceptor_on(self.daemon, &["verify"], &copy)?;
        ensure!(
            outcome.status.code() == Some(5),
            "verify did not notice the changed byte"
        );
        Ok(())
    }

    fn agent(&self, statement: &str) -> Result<Outcome> {
        let mut psql = self.psql(statement);
        echo(&psql, self.daemon);
        let outcome = run::outcome(&mut psql)?;
        show_outcome("", &outcome);
        Ok(outcome)
    }

    fn psql(&self, statement: &str) -> Command {
        let mut psql = Way::Guarded(self.daemon, AGENT).command("psql");
        psql.args(["--no-psqlrc", "-c", statement]);
        self.database.enter(&mut psql);
        psql
    }

    fn curl(&self, path: &str, arguments: &[&str]) -> Result<Outcome> {
        let mut curl = self.curl_command(path, arguments);
        echo(&curl, self.daemon);
        let outcome = run::outcome(&mut curl)?;
        show_outcome("", &outcome);
        Ok(outcome)
    }

    fn curl_command(&self, path: &str, arguments: &[&str]) -> Command {
        let mut curl = Way::Guarded(self.daemon, AGENT).command("curl");
        curl.args(["--silent", "--show-error"])
            .args(arguments)
            .arg(format!("https://localhost:{}{path}", self.web.good));
        curl
    }

    fn has_table(&self, name: &str) -> Result<bool> {
        Ok(self
            .database
            .sql(&format!("SELECT to_regclass('{name}') IS NOT NULL"))?
            == "t")
    }
}

/// Runs `interceptor ARGUMENTS` with its output shown; it has to succeed.
fn interceptor(daemon: &Daemon, arguments: &[&str]) -> Result<Outcome> {
    let outcome = speak(daemon.command(arguments), daemon)?;
    if !outcome.status.success() {
        bail!("that should have worked ({})", outcome.status);
    }
    Ok(outcome)
}

/// Runs `interceptor ARGUMENTS PATH` with its output shown.
fn interceptor_on(daemon: &Daemon, arguments: &[&str], path: &Path) -> Result<Outcome> {
    let mut command = daemon.command(arguments);
    command.arg(path);
    speak(command, daemon)
}

fn speak(mut command: Command, daemon: &Daemon) -> Result<Outcome> {
    echo(&command, daemon);
    let outcome = run::outcome(&mut command)?;
    show_outcome("", &outcome);
    Ok(outcome)
}

/// Shows `command` as one would type it on a machine where the daemon is at its usual place.
fn echo(command: &Command, daemon: &Daemon) {
    let typed = progress::describe(command);
    let control = format!(" --control {}", daemon.control().display());
    let (program, rest) = typed.split_once(' ').unwrap_or((&typed, ""));
    let program = Path::new(program)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let line = format!("{program} {rest}").replacen(&control, "", 1);
    eprintln!("{}", progress::bold(&format!("$ {line}")));
}

fn show_outcome(introduction: &str, outcome: &Outcome) {
    if !introduction.is_empty() {
        eprintln!("{}", dim(&format!("  {introduction}:")));
    }
    for line in outcome.stdout.trim_end().lines() {
        println!("  {line}");
    }
    for line in outcome.stderr.trim_end().lines() {
        eprintln!("  {line}");
    }
}

fn approval_id(approval: &Value) -> Result<String> {
    text(approval, "id")
}

fn session_ids(daemon: &Daemon) -> Result<Vec<String>> {
    let sessions = daemon.ask_json(&["sessions", "list"])?;
    sessions
        .as_array()
        .context("`sessions list -o json` is no list")?
        .iter()
        .map(|session| text(session, "id"))
        .collect()
}

fn text(value: &Value, key: &str) -> Result<String> {
    value
        .get(key)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("no `{key}` in {value}"))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Changes one bit in the middle of the largest segment below `state` and says where.
fn change_one_byte(state: &Path) -> Result<String> {
    let mut files = Vec::new();
    let mut folders = vec![state.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains("segment")
                || entry.path().to_string_lossy().contains("segments/")
            {
                files.push((entry.metadata()?.len(), entry.path()));
            }
        }
    }
    let (length, path) = files.into_iter().max().context("there is no segment")?;
    let mut bytes = fs::read(&path)?;
    let at = usize::try_from(length / 2)?;
    *bytes.get_mut(at).context("the segment is empty")? ^= 1;
    fs::write(&path, bytes)?;
    Ok(format!(
        "{}, at {at} of {length}",
        path.strip_prefix(state).unwrap_or(&path).display()
    ))
}
