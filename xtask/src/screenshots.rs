//! Pictures of every page of the console: light, dark and on a phone.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use interceptor_tests::{
    cluster::{self, Cluster},
    console,
    daemon::Daemon,
    run,
};
use serde_json::Value;

use crate::{
    build,
    progress::{heading, note, step},
    setup,
};

/// Some of what agents do all day, and some that they try.
const POLICY: &str = "
default: {action: allow}
rules:
  - {id: customers-are-masked, match: {protocol: postgres, action: SELECT}, action: allow, mask: [{column: email, with: email}, {column: \"card_*\", with: last4}]}
  - {id: nobody-becomes-anybody, match: {protocol: postgres, class: admin}, action: deny, reason: \"roles are Terraform's\"}
  - id: changes-wait
    match: {protocol: postgres, class: write}
    action: hold
    reason: \"a person looks at changes first\"
    reviewers: {groups: [dba], within: 30m, blast_radius: count, windows: {scope: shape, for: 15m, at_most: 20}}
  - id: structure-takes-two
    match: {protocol: postgres, class: schema}
    action: hold
    reason: \"what is dropped is gone\"
    reviewers: {groups: [dba], quorum: 2, within: 30m, blast_radius: plan}
";

/// Agents, their labels, and what they do.
const AGENTS: [(&str, &str, &[&str]); 6] = [
    (
        "report-writer",
        "team=finance",
        &[
            "SELECT name, email, card_number FROM shop.customers",
            "SELECT customer, sum(total) FROM shop.orders GROUP BY customer",
        ],
    ),
    (
        "support-bot",
        "team=support",
        &[
            "SELECT id, note FROM shop.orders",
            "UPDATE shop.orders SET note = 'refund approved' WHERE id = 2",
        ],
    ),
    (
        "migrator",
        "team=platform",
        &["ALTER TABLE shop.orders DROP COLUMN note"],
    ),
    (
        "curious",
        "team=research",
        &["SELECT 1", "ALTER ROLE agent SUPERUSER"],
    ),
    (
        "stranger",
        "team=research",
        &[
            "DELETE FROM shop.orders WHERE note = '</pre><script>alert(1)</script>' -- \u{202e}sredro lla peek\u{1b}[2J",
        ],
    ),
    (
        "importer",
        "team=platform",
        &[
            "INSERT INTO shop.orders VALUES (10, 1, 1.99, 'imported'),\n(11, 1, 2.99, 'imported'),\n(12, 2, 3.99, 'imported'),\n(13, 2, 4.99, 'imported'),\n(14, 2, 5.99, 'imported'),\n(15, 2, 6.99, 'imported'),\n(16, 2, 7.99, 'imported'),\n(17, 2, 8.99, 'imported'),\n(18, 2, 9.99, 'imported'),\n(19, 2, 1.99, 'imported'),\n(20, 2, 2.99, 'imported'),\n(21, 2, 3.99, 'imported'),\n(22, 2, 4.99, 'imported'),\n(23, 2, 5.99, 'imported'),\n(24, 2, 6.99, 'imported'),\n(25, 1, 7.99, 'imported')",
        ],
    ),
];

/// Takes them into `folder`.
///
/// # Errors
/// Where set-up fails, or a page doesn't come up or complains.
pub(crate) fn take(folder: &Path) -> Result<()> {
    heading("Set-up");
    setup::setup()?;
    let program = build::build(false)?;
    let cluster = step("a throw-away PostgreSQL", |_| Cluster::start())?;
    let database = cluster.database()?;
    let port = cluster::free_port()?;
    // The throw-away server believes everybody.
    let reader = format!(
        "credentials:\n- {{destination: \"127.0.0.1:{}\", protocol: postgres, use: blast_radius, login: agent, password: {{command: [/bin/echo, none]}}}}\n",
        cluster.port()
    );
    let configuration = console::configuration(port, &reader)?;
    let daemon = step("a daemon with a console", |_| {
        let daemon = Daemon::of(program, POLICY, |_| configuration)?;
        console::listens(port)?;
        Ok(daemon)
    })?;
    let agents = step("agents that do what agents do", |_| {
        let agents = AGENTS.map(|(name, label, statements)| {
            let mut command = daemon.command([
                "run",
                "--agent",
                name,
                "--label",
                label,
                "--",
                "psql",
                "--no-psqlrc",
                "--quiet",
            ]);
            command.args(
                statements
                    .iter()
                    .map(|statement| format!("--command={statement}")),
            );
            run::start(database.enter(&mut command))
        });
        let agents: Vec<_> = agents.into_iter().collect::<Result<_>>()?;
        run::wait_for("four questions", Duration::from_secs(20), || {
            let list = daemon.ask_json(&["approvals", "list"])?;
            Ok(list.as_array().filter(|list| list.len() >= 4).cloned())
        })
        .map(|_| agents)
    })?;
    // What is shown as seconds ago is to be some.
    thread::sleep(Duration::from_secs(3));
    let of = |list: &Value, agent: &str, name: &str| -> Option<String> {
        let is_its = |one: &&Value| one.get("agent").and_then(Value::as_str) == Some(agent);
        let found = list.as_array()?.iter().find(is_its)?;
        found.get(name)?.as_str().map(str::to_owned)
    };
    let approvals = daemon.ask_json(&["approvals", "list"])?;
    let sessions = daemon.ask_json(&["sessions", "list"])?;
    let question = of(&approvals, "support-bot", "id").context("no question")?;
    let session = of(&sessions, "report-writer", "id").context("no session")?;
    fs::create_dir_all(folder)?;
    let paths = format!(
        "/approvals,/approvals/{question},/sessions,/sessions/{session},/agents,/policy,/log,/notifications,/account"
    );
    step("pictures", |_| {
        let mut browser = console::node("console.js")?;
        browser
            .args(["pictures", &format!("http://localhost:{port}")])
            .arg(folder)
            .arg(paths);
        run::start(&mut browser)?
            .outcome_within(Duration::from_secs(120))?
            .success()
    })?;
    drop(agents);
    note(&format!("they are in {}", folder.display()));
    Ok(())
}
