//! What agents do, followed as they do it and across a daemon that is killed.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use interceptor_tests::{clients::Way, daemon::Daemon, run};

use crate::support::{ALLOW_ALL, cluster};

/// How long a line may take.
const SOON: Duration = Duration::from_secs(20);

/// Somebody who follows, into a file.
struct Follower {
    child: Child,
    file: PathBuf,
}

impl Follower {
    fn start(daemon: &Daemon, arguments: &[&str]) -> Self {
        let file = daemon.folder().join("followed");
        let arguments = [&["sessions", "tail"], arguments].concat();
        let mut command = daemon.command(arguments);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&file).unwrap())
            .stderr(File::create(daemon.folder().join("said")).unwrap());
        Self {
            child: command.spawn().unwrap(),
            file,
        }
    }

    fn lines(&self) -> String {
        fs::read_to_string(&self.file).unwrap()
    }

    /// Does `act` until it is followed: following begins a moment after the command does.
    fn until(&self, part: &str, mut act: impl FnMut()) {
        run::wait_for(part, SOON, || {
            act();
            std::thread::sleep(Duration::from_millis(300));
            Ok(self.lines().contains(part).then_some(()))
        })
        .unwrap();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn operations_are_followed_across_a_daemon_that_is_killed_once_each() {
    let mut daemon = Daemon::start(ALLOW_ALL).unwrap();
    let database = cluster().database().unwrap();
    let psql = |daemon: &Daemon, agent: &str, sql: &str| {
        let command = format!("--command={sql}");
        run::outcome(&mut Way::Guarded(daemon, agent).psql(&database, &[&command])).unwrap();
    };
    let follower = Follower::start(&daemon, &["--text", "mark*", "--class", "read"]);
    follower.until("'markone'", || psql(&daemon, "shopper", "SELECT 'markone'"));
    psql(&daemon, "shopper", "SELECT 'other'");
    psql(
        &daemon,
        "shopper",
        "DELETE FROM shop.orders WHERE note = 'marked'",
    );
    psql(&daemon, "shopper", "SELECT 'mark\u{1b}[2J\u{202e}two'");
    for round in 0..3 {
        daemon.kill().unwrap();
        daemon.restart().unwrap();
        // Before who follows is back, most likely.
        psql(&daemon, "again", &format!("SELECT 'mark{round}a'"));
        follower.until(&format!("'mark{round}a'"), || {});
        psql(&daemon, "again", &format!("SELECT 'mark{round}b'"));
        follower.until(&format!("'mark{round}b'"), || {});
    }
    let lines = follower.lines();
    for part in ["mark0a", "mark0b", "mark1a", "mark1b", "mark2a", "mark2b"] {
        assert_eq!(lines.matches(part).count(), 1, "{part} in {lines}");
    }
    assert!(lines.contains("\\u{1b}[2J\\u{202e}two"), "{lines}");
    assert!(
        !lines.contains("other") && !lines.contains("marked"),
        "{lines}"
    );
    assert!(
        lines
            .lines()
            .all(|line| line.contains("allowed by default")),
        "{lines}"
    );
    let said = fs::read_to_string(daemon.folder().join("said")).unwrap();
    assert!(
        said.contains("the daemon is gone") && said.contains("is back"),
        "{said}"
    );
    drop(follower);
    let refused = daemon
        .ask(&["sessions", "tail", "--text", "*"])
        .unwrap_err();
    assert!(refused.to_string().contains("write `ord*`"), "{refused}");
}
