//! Agents that don't hold the password log in; who presents the wrong placeholder doesn't.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use interceptor_tests::{
    clients::Way,
    cluster::Database,
    daemon::Daemon,
    journal::{Journal, Line},
    run::{self, Outcome},
};

use crate::{
    messages::proxy,
    support::{ALLOW_ALL, cluster},
    tls::{curl, web},
};

/// The roles of the harness that have to prove their password, with how they do.
const ROLES: [(&str, &str); 3] = [
    ("scram_user", "SCRAM-SHA-256"),
    ("md5_user", "md5"),
    ("password_user", "password"),
];

/// A file in `folder` that holds `secret`, for its owner only.
fn secret(folder: &Path, name: &str, secret: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, format!("{secret}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// One credential: the harness's server, `rest` of the entry.
fn entry(rest: &str) -> String {
    format!(
        "- {{destination: \"127.0.0.1:{}\", protocol: postgres, {rest}}}\n",
        cluster().port()
    )
}

fn daemon(credentials: impl Fn(&Path) -> String) -> Daemon {
    Daemon::configured(ALLOW_ALL, |folder| {
        format!("credentials:\n{}", credentials(folder))
    })
    .unwrap()
}

/// What `psql` as an agent, `user` with `password`, gets.
fn log_in(daemon: &Daemon, database: &Database<'_>, user: &str, password: Option<&str>) -> Outcome {
    let mut psql = Way::Guarded(daemon, "agent").psql(
        database,
        &[
            "--no-password",
            "--command=SELECT current_user, current_database()",
        ],
    );
    psql.env("PGUSER", user);
    match password {
        Some(password) => psql.env("PGPASSWORD", password),
        None => psql.env_remove("PGPASSWORD"),
    };
    run::outcome(&mut psql).unwrap()
}

fn logins(journal: &Journal) -> Vec<&Line> {
    journal
        .of_kind("event")
        .filter(|line| line.at("/name").and_then(|name| name.as_str()) == Some("postgres_login"))
        .collect()
}

fn detail<'a>(line: &'a Line, name: &str) -> &'a str {
    line.at(&format!("/detail/{name}"))
        .and_then(|value| value.as_str())
        .unwrap_or_default()
}

#[test]
fn an_agent_without_the_password_logs_in() {
    let daemon = daemon(|folder| {
        entry(&format!(
            "user: \"*_user\", password: {{file: {}}}",
            secret(folder, "password", "secret")
        ))
    });
    let database = cluster().database().unwrap();
    for (role, _) in ROLES {
        for password in [None, Some("wrong")] {
            let seen = log_in(&daemon, &database, role, password)
                .success()
                .unwrap();
            assert_eq!(seen, format!("{role}|{}\n", database.name()));
        }
    }
    let journal = daemon.journal().unwrap();
    let logins = logins(&journal);
    assert_eq!(logins.len(), 2 * ROLES.len());
    for (line, (role, mechanism)) in logins
        .iter()
        .zip(ROLES.iter().flat_map(|role| [role, role]))
    {
        assert_eq!(detail(line, "credential"), "1");
        assert_eq!(detail(line, "user"), *role);
        assert_eq!(detail(line, "login"), *role);
        assert_eq!(detail(line, "mechanism"), *mechanism);
        assert!(!line.mentions("secret"), "{line:?}");
    }
}

#[test]
fn an_agents_user_can_stand_for_another() {
    let daemon =
        daemon(|_| entry("user: app, login: scram_user, password: {command: [/bin/echo, secret]}"));
    let database = cluster().database().unwrap();
    let seen = log_in(&daemon, &database, "app", None).success().unwrap();
    assert_eq!(seen, format!("scram_user|{}\n", database.name()));
    // Whom no credential is for logs in himself.
    let own = |password| log_in(&daemon, &database, "md5_user", Some(password));
    assert!(own("secret").success().is_ok());
    assert!(
        own("wrong")
            .stderr
            .contains("password authentication failed for user \"md5_user\"")
    );
}

#[test]
fn a_wrong_configured_password_says_whose_it_is() {
    let daemon = daemon(|folder| {
        entry(&format!(
            "user: other, password: {{file: {0}}}}}\n- {{destination: 127.0.0.0/8, protocol: postgres, password: {{file: {0}}}",
            secret(folder, "password", "mistyped-by-somebody")
        ))
    });
    let database = cluster().database().unwrap();
    for (role, _) in ROLES {
        // The agent's own, right password doesn't help: it isn't looked at.
        let outcome = log_in(&daemon, &database, role, Some("secret"));
        assert!(!outcome.status.success());
        for expected in [
            &*format!(
                "FATAL:  interceptor: the login with credential 2 failed: the server refused it: password authentication failed for user \"{role}\""
            ),
            "the operator of this host has to check this entry of `credentials`",
        ] {
            assert!(outcome.stderr.contains(expected), "{outcome}");
        }
    }
    let journal = daemon.journal().unwrap();
    assert_eq!(logins(&journal).len(), ROLES.len());
    assert!(!journal.mentions("mistyped-by-somebody"));
}

#[test]
fn the_placeholder_is_asked_for() {
    let daemon = daemon(|folder| {
        entry(&format!(
            "login: scram_user, password: {{file: {}}}, placeholder: {{file: {}}}",
            secret(folder, "password", "secret"),
            secret(folder, "placeholder", "for-agents")
        ))
    });
    let database = cluster().database().unwrap();
    let none = log_in(&daemon, &database, "app", None);
    assert!(none.stderr.contains("no password supplied"), "{none}");
    for wrong in ["wrong", "secret"] {
        let wrong = log_in(&daemon, &database, "app", Some(wrong));
        for expected in [
            "FATAL:  interceptor: password authentication failed for user \"app\"",
            "asks for the placeholder",
        ] {
            assert!(wrong.stderr.contains(expected), "{wrong}");
        }
    }
    let right = log_in(&daemon, &database, "app", Some("for-agents"));
    assert_eq!(
        right.success().unwrap(),
        format!("scram_user|{}\n", database.name())
    );
    let journal = daemon.journal().unwrap();
    let logins = logins(&journal);
    assert_eq!(logins.len(), 3);
    assert_eq!(detail(logins[2], "placeholder"), "SCRAM-SHA-256");
    assert_eq!(detail(logins[2], "error"), "");
    assert!(!journal.mentions("for-agents"));
}

#[test]
fn drivers_prove_that_they_know_the_placeholder() {
    let daemon = daemon(|folder| {
        entry(&format!(
            "user: agent, password: {{env: PATH}}, placeholder: {{file: {}}}",
            secret(folder, "placeholder", "für Agenten")
        ))
    });
    for (script, mode) in [
        ("psycopg_client.py", "simple"),
        ("asyncpg_client.py", "errors"),
        ("node_client.js", "errors"),
    ] {
        let database = cluster().database().unwrap();
        let mut client = Way::Guarded(&daemon, "agent")
            .script(&database, script, &[mode])
            .unwrap();
        client.env("PGPASSWORD", "für Agenten");
        run::output(&mut client).unwrap();
    }
    let journal = daemon.journal().unwrap();
    assert!(logins(&journal).len() >= 3);
    for line in logins(&journal) {
        assert_eq!(detail(line, "placeholder"), "SCRAM-SHA-256", "{line:?}");
    }
}

#[test]
fn a_secret_that_everybody_could_read_is_not_used() {
    let daemon = daemon(|folder| {
        let path = secret(folder, "password", "secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        entry(&format!("password: {{file: {path}}}"))
    });
    let path = daemon.folder().join("password");
    let database = cluster().database().unwrap();
    let outcome = log_in(&daemon, &database, "scram_user", Some("secret"));
    let expected = "FATAL:  interceptor: credential 1, which logs in here, can't be used now";
    assert!(outcome.stderr.contains(expected), "{outcome}");
    let remedy = format!("`chmod o= {}` mends that", path.display());
    assert!(!outcome.stderr.contains(&remedy), "{outcome}");
    assert!(daemon.log().contains(&remedy), "{}", daemon.log());
    assert!(daemon.journal().unwrap().mentions(&remedy));

    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mended = log_in(&daemon, &database, "scram_user", None);
    assert!(mended.success().is_ok());
}

#[test]
fn requests_carry_what_the_agent_does_not_hold() {
    let web = web();
    let daemon = Daemon::configured(ALLOW_ALL, |folder| {
        let here = format!("destination: \"localhost:{}\", protocol: http", web.good);
        let token = secret(folder, "token", "hunter2");
        let stand_in = secret(folder, "stand-in", "stand-in");
        format!(
            "credentials:\n\
             - {{{here}, path: /headers, bearer: {{file: {token}}}, placeholder: {{file: {stand_in}}}}}\n\
             - {{{here}, path: \"/echo/*\", query: {{name: key, value: {{file: {token}}}}}}}\n{}",
            web.configuration()
        )
    })
    .unwrap();
    for version in ["--http1.1", "--http2"] {
        let ask = |path: &str, token: &str| {
            let mut curl = curl(&daemon, "localhost", web.good);
            let url = format!("https://localhost:{}{path}", web.good);
            let token = format!("Authorization: Bearer {token}");
            run::outcome(curl.args([version, "--header", &token, &url])).unwrap()
        };
        let seen = ask("/headers", "stand-in").stdout;
        assert_eq!(seen, "||Bearer hunter2\n", "{version}");
        let seen = ask("/headers", "stolen").stdout;
        assert!(seen.contains("isn't the placeholder"), "{version}: {seen}");
        let seen = ask("/echo/a?key=mine&x=y", "own").stdout;
        let expected = format!("GET localhost:{} /echo/a?x=y&key=hunter2\n", web.good);
        assert_eq!(seen, expected, "{version}");
    }
    let journal = daemon.journal().unwrap();
    let credited: Vec<_> = journal
        .of_kind("event")
        .filter(|line| line.at("/name").and_then(|name| name.as_str()) == Some("http_credential"))
        .map(|line| (detail(line, "credential"), detail(line, "error").is_empty()))
        .collect();
    assert_eq!(
        credited,
        [("1", true), ("1", false), ("2", true)].repeat(2),
        "each use is on record"
    );
}

#[test]
fn a_credential_for_an_address_is_not_one_for_who_is_behind_it() {
    let web = web();
    let daemon = Daemon::configured(ALLOW_ALL, |folder| {
        let token = secret(folder, "token", "hunter2");
        format!(
            "credentials:\n- {{destination: 127.0.0.1, protocol: http, bearer: {{file: {token}}}}}\n{}",
            web.configuration()
        )
    })
    .unwrap();
    let proxy = format!("http://127.0.0.1:{}", proxy());
    let bases = [("http", web.plain), ("https", web.good)];
    for (scheme, port) in bases {
        let ask = |through: &[&str]| {
            let url = format!("{scheme}://localhost:{port}/headers");
            run::outcome(curl(&daemon, "localhost", port).args(through).arg(&url)).unwrap()
        };
        assert_eq!(ask(&[]).stdout, "||Bearer hunter2\n", "{scheme}");
        let through = ask(&["--noproxy", "", "--proxytunnel", "--proxy", &proxy]);
        assert_eq!(through.stdout, "||\n", "{scheme}: {}", through.stderr);
    }
}
