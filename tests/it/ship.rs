//! Copies off the host: whole, checked, enough by themselves; and nobody waits for who doesn't take them.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use interceptor_tests::{
    certificates::Certificates,
    cluster::free_port,
    daemon::Daemon,
    keeper::{Farewell, Keeper},
    paths, run, scratch,
};

use crate::support::ALLOW_ALL;

/// How long something may take that is tried every few seconds.
const SOON: Duration = Duration::from_secs(40);

/// A store, with moto behind it and faults to order.
struct Store {
    port: u16,
    behind: u16,
    folder: PathBuf,
    _keeper: Keeper,
    _child: Child,
}

impl Store {
    fn start() -> Self {
        Self::at(free_port().unwrap())
    }

    fn at(port: u16) -> Self {
        let (behind, folder) = (free_port().unwrap(), scratch::folder("store").unwrap());
        let child = Command::new(paths::python().unwrap())
            .arg(paths::client("store.py"))
            .args(["serve", &port.to_string(), &behind.to_string()])
            .arg(&folder)
            .spawn()
            .unwrap();
        let keeper = Keeper::of_process(child.id(), Farewell::Terminate, &folder).unwrap();
        run::wait_for("the store", SOON, || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok())
        })
        .unwrap();
        Self {
            port,
            behind,
            folder,
            _keeper: keeper,
            _child: child,
        }
    }

    fn have_it(&self, fault: &str) {
        fs::write(self.folder.join("fault"), fault).unwrap();
    }

    fn ask(&self, command: &str, argument: &[&str]) -> String {
        let mut asking = Command::new(paths::python().unwrap());
        asking.arg(paths::client("store.py")).arg(command);
        asking.arg(self.behind.to_string()).args(argument);
        run::output(&mut asking).unwrap()
    }

    /// What was asked of it, with what it answered.
    fn requests(&self) -> String {
        fs::read_to_string(self.folder.join("requests")).unwrap_or_default()
    }

    /// The copy that is in it, downloaded.
    fn copy(&self, daemon: &Daemon) -> PathBuf {
        let to = daemon.folder().join(scratch::name("fetched"));
        fs::create_dir(&to).unwrap();
        self.ask("fetch", &[to.to_str().unwrap()]);
        to.join("host1/a")
    }
}

/// A daemon that ships to the store at `port`, with what `more` says.
fn shipping_to(port: u16, more: &str) -> Daemon {
    Daemon::configured(ALLOW_ALL, |folder| {
        for (name, secret) in [("id", "AKIDTEST\n"), ("secret", "secret/of+a=test\n")] {
            fs::write(folder.join(name), secret).unwrap();
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        format!(
            "journal:\n  ship:\n  - s3:\n      endpoint: http://127.0.0.1:{port}\n      bucket: evidence\n      prefix: host1/a\n      region: eu-test-1\n      access_key: {{file: {0}/id}}\n      secret_key: {{file: {0}/secret}}\n      {more}\n",
            folder.display()
        )
    })
    .unwrap()
}

/// A daemon that ships to a folder beside its state, which is there or not.
fn shipping(is_there: bool, more: &str) -> (Daemon, PathBuf) {
    let daemon = Daemon::configured(ALLOW_ALL, |folder| {
        let copy = folder.join("copy");
        if is_there {
            fs::create_dir(&copy).unwrap();
        }
        format!(
            "journal:\n  ship:\n  - folder: {}\n    {more}\n",
            copy.display()
        )
    })
    .unwrap();
    let copy = daemon.folder().join("copy");
    (daemon, copy)
}

/// Something on record.
fn busy(daemon: &Daemon) {
    run::outcome(daemon.run_as("busy", "/bin/true").arg("")).unwrap();
}

/// Closes a segment: a daemon writes to none but its own.
fn close(daemon: &mut Daemon) {
    busy(daemon);
    daemon.restart().unwrap();
}

/// What `status` says, whatever troubles it.
fn status(daemon: &Daemon) -> String {
    run::outcome(&mut daemon.command(["status"]))
        .unwrap()
        .stdout
}

#[track_caller]
fn says(daemon: &Daemon, what: &str) {
    let said = run::wait_for(what, SOON, || {
        let said = status(daemon);
        Ok(said.contains(what).then_some(said))
    });
    said.unwrap_or_else(|error| panic!("{error}: {}\n{}", status(daemon), daemon.log()));
}

/// Waits until all that is closed is shipped, and all is well.
#[track_caller]
fn is_well(daemon: &Daemon) {
    let well = run::wait_for("a copy", SOON, || {
        let said = status(daemon);
        Ok((said.starts_with("running") && said.contains("; none waiting")).then_some(()))
    });
    well.unwrap_or_else(|error| panic!("{error}: {}\n{}", status(daemon), daemon.log()));
}

/// Holds `copy` to the journal of `daemon`, which is stopped: it is intact, signed to its end, and exports the same.
#[track_caller]
fn is_the_same(daemon: &Daemon, copy: &Path) {
    let copy = copy.to_str().unwrap();
    let state = daemon.state();
    let verified = daemon.ask(&["verify", copy]).unwrap();
    let original = daemon.ask(&["verify", state.to_str().unwrap()]).unwrap();
    assert!(verified.contains("intact"), "{verified}");
    assert_eq!(
        verified.replace(copy, ""),
        original.replace(state.to_str().unwrap(), "")
    );
    let export = |folder: &str| daemon.ask(&["export", "--state", folder]).unwrap();
    assert!(export(copy) == export(state.to_str().unwrap()));
}

fn segments(copy: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(copy.join("segments")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn a_folder_gets_all_that_verify_and_export_need() {
    let (mut daemon, copy) = shipping(true, "");
    for closed in 1..=3 {
        close(&mut daemon);
        is_well(&daemon);
        // At every time it is a journal by itself, signed as far as that can be.
        let verified = daemon.ask(&["verify", copy.to_str().unwrap()]).unwrap();
        assert!(verified.contains("intact"), "{verified}");
        assert!(!verified.contains("nothing is signed"), "{verified}");
        assert_eq!(segments(&copy).len(), closed);
    }
    daemon.stop().unwrap();
    is_the_same(&daemon, &copy);
    assert_eq!(segments(&copy).len(), 4);
    for path in segments(&copy) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    // A byte that is another one is found, and where.
    let second = &segments(&copy)[1];
    let mut bytes = fs::read(second).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(second, bytes).unwrap();
    let seen = run::outcome(&mut daemon.command(["verify", copy.to_str().unwrap()])).unwrap();
    assert_eq!(seen.status.code(), Some(5), "{seen:?}");
    let name = second.file_name().unwrap().to_str().unwrap();
    assert!(seen.stdout.contains(name), "{seen:?}");
}

#[test]
fn a_killed_daemon_leaves_a_copy_that_the_next_one_completes() {
    let (mut daemon, copy) = shipping(true, "");
    for _ in 0..3 {
        busy(&daemon);
        daemon.kill().unwrap();
        daemon.restart().unwrap();
        is_well(&daemon);
        let verified = daemon.ask(&["verify", copy.to_str().unwrap()]).unwrap();
        assert!(verified.contains("intact"), "{verified}");
    }
    daemon.stop().unwrap();
    is_the_same(&daemon, &copy);
}

#[test]
fn a_store_gets_them_signed_and_locked_and_has_them_back() {
    let store = Store::start();
    let mut daemon = shipping_to(store.port, "lock: {mode: compliance, days: 30}");
    close(&mut daemon);
    close(&mut daemon);
    is_well(&daemon);
    daemon.stop().unwrap();
    is_the_same(&daemon, &store.copy(&daemon));
    let locks = store.ask("locks", &[]);
    assert_eq!(locks.matches(" COMPLIANCE 20").count(), 6, "{locks}");
    for name in [
        "journal.pub",
        "format",
        "checkpoint",
        "segments/00000000000000000001.seg",
    ] {
        assert!(locks.contains(&format!("host1/a/{name} ")), "{locks}");
    }
    // What the daemon was given to sign in with is nowhere.
    let log = daemon.log();
    assert!(!log.contains("secret/of") && !log.contains("AKIDTEST"));
    let export = daemon
        .ask(&["export", "--state", daemon.state().to_str().unwrap()])
        .unwrap();
    assert!(!export.contains("secret/of"));
}

#[test]
fn a_store_that_has_no_checksums_is_read_back() {
    let store = Store::start();
    store.have_it("no-checksums");
    let mut daemon = shipping_to(store.port, "");
    close(&mut daemon);
    is_well(&daemon);
    let asked = store.requests();
    let segment = "/evidence/host1/a/segments/00000000000000000001.seg 200";
    assert!(asked.contains(&format!("GET {segment}")), "{asked}");
    daemon.stop().unwrap();
    is_the_same(&daemon, &store.copy(&daemon));
}

#[test]
fn a_store_that_fails_delays_nobody_and_is_caught_up_with() {
    let port = free_port().unwrap();
    // It isn't there at first.
    let mut daemon = shipping_to(port, "lock: {mode: governance, days: 1}");
    says(&daemon, "Connection refused");
    close(&mut daemon);
    let store = Store::at(port);
    is_well(&daemon);
    for (fault, said) in [
        ("500", "500 Internal Server Error: InternalError"),
        ("403", "AccessDenied: Access\\u{1b}[2J Denied"),
        ("redirect", "307 Temporary Redirect, which isn't followed"),
        ("die", "connection closed before message completed"),
        ("flip", "is there already and is another one"),
        ("unlocked", "is there already, without a lock"),
    ] {
        store.have_it(fault);
        close(&mut daemon);
        says(&daemon, "wait to be shipped to s3://127.0.0.1");
        says(&daemon, said);
        // Meanwhile agents work.
        busy(&daemon);
        if fault == "flip" || fault == "unlocked" {
            // What went wrong there is the operator's to take away.
            store.have_it("");
            let state = segments(&daemon.state());
            let closed = state.iter().rev().nth(1).unwrap();
            let name = closed.file_name().unwrap().to_str().unwrap();
            store.ask("remove", &[&format!("host1/a/segments/{name}")]);
        }
        store.have_it("");
        is_well(&daemon);
    }
    // Slow is no fault.
    store.have_it("slow");
    close(&mut daemon);
    is_well(&daemon);
    let journal = daemon.journal().unwrap();
    for name in ["ship_failed", "ship_reached"] {
        assert!(journal.mentioning("event", name).count() >= 5, "{name}");
    }
    // Whoever sent it looked, and said so.
    for said in ["it was changed on its way", "without locking it"] {
        assert!(daemon.log().contains(said), "{said}");
    }
    daemon.stop().unwrap();
    is_the_same(&daemon, &store.copy(&daemon));
}

#[test]
fn what_was_sent_and_not_remembered_is_not_sent_again() {
    let store = Store::start();
    let mut daemon = shipping_to(store.port, "");
    is_well(&daemon);
    store.have_it("hang");
    busy(&daemon);
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    run::wait_for("a segment on its way", SOON, || {
        Ok(store.folder.join("took").exists().then_some(()))
    })
    .unwrap();
    daemon.kill().unwrap();
    store.have_it("");
    daemon.restart().unwrap();
    is_well(&daemon);
    let requests = store.requests();
    let sent = "PUT /evidence/host1/a/segments/00000000000000000001.seg 200";
    assert_eq!(requests.matches(sent).count(), 1, "{requests}");
    daemon.stop().unwrap();
    is_the_same(&daemon, &store.copy(&daemon));
}

#[test]
fn what_a_target_no_longer_has_or_has_changed_is_found() {
    let store = Store::start();
    let mut daemon = shipping_to(store.port, "");
    close(&mut daemon);
    close(&mut daemon);
    is_well(&daemon);
    daemon.stop().unwrap();
    let first = "host1/a/segments/00000000000000000001.seg";
    store.ask("remove", &[first]);
    daemon.restart().unwrap();
    run::wait_for("what was gone", SOON, || {
        let sent = store
            .requests()
            .matches(&format!("PUT /evidence/{first} 200"))
            .count();
        Ok((sent == 2).then_some(()))
    })
    .unwrap();
    is_well(&daemon);
    store.ask("spoil", &[first]);
    daemon.restart().unwrap();
    says(&daemon, "is not what was shipped, in 1 of its segments");
    // Evidence of what was done isn't written over.
    let copy = store.copy(&daemon);
    assert_eq!(fs::read(&segments(&copy)[0]).unwrap(), b"something else");
    let seen = run::outcome(&mut daemon.command(["verify", copy.to_str().unwrap()])).unwrap();
    assert_eq!(seen.status.code(), Some(5), "{seen:?}");
}

#[test]
fn the_copy_of_another_journal_is_left_alone() {
    let (daemon, copy) = shipping(true, "");
    is_well(&daemon);
    let other = Daemon::configured(ALLOW_ALL, |_| {
        format!("journal: {{ship: [{{folder: {}}}]}}\n", copy.display())
    })
    .unwrap();
    says(&other, "it has the copy of another journal");
    drop(daemon);
}

#[test]
fn a_target_that_is_required_stops_what_it_is_not_shipped() {
    let (mut daemon, copy) = shipping(false, "required: true\n    backlog_bytes: 1");
    says(&daemon, "there is no folder");
    assert!(!copy.exists(), "what isn't mounted isn't made");
    close(&mut daemon);
    says(&daemon, "which is required, and 1 may");
    let seen = run::outcome(daemon.run_as("stopped", "/bin/true").arg("")).unwrap();
    assert_ne!(seen.status.code(), Some(0), "{seen:?}");
    fs::create_dir(&copy).unwrap();
    is_well(&daemon);
    busy(&daemon);
    daemon.stop().unwrap();
    is_the_same(&daemon, &copy);
    // One whose disk is gone gets nothing on the disk below it.
    fs::rename(&copy, daemon.folder().join("away")).unwrap();
    fs::create_dir(&copy).unwrap();
    daemon.restart().unwrap();
    says(&daemon, "the copy that was in it is gone");
    assert_eq!(fs::read_dir(&copy).unwrap().count(), 0);
}

/// A disk of some KiB at `path`, full.
struct FullDisk(PathBuf);

impl FullDisk {
    fn at(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=16k", "full"])
            .arg(&path);
        run::output(&mut mount).unwrap();
        let full = Self(path);
        // As much as there is room for.
        let _ = fs::write(full.0.join("filler"), [0; 64 << 10]);
        full
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn where_nothing_can_be_remembered_nothing_is_lost() {
    let (mut daemon, copy) = shipping(true, "");
    is_well(&daemon);
    daemon.stop().unwrap();
    let _ = fs::remove_dir_all(daemon.state().join("shipped"));
    let full = FullDisk::at(daemon.state().join("shipped"));
    daemon.restart().unwrap();
    close(&mut daemon);
    says(&daemon, "can't be remembered: No space left on device");
    busy(&daemon);
    run::wait_for("the copy", SOON, || {
        Ok((segments(&copy).len() >= 2).then_some(()))
    })
    .unwrap();
    fs::remove_file(full.0.join("filler")).unwrap();
    is_well(&daemon);
    daemon.stop().unwrap();
    is_the_same(&daemon, &copy);
}

/// A server of NATS JetStream, with its own TLS and login.
struct Nats {
    port: u16,
    folder: PathBuf,
    authority: PathBuf,
    keeper: Option<(Keeper, Child)>,
}

impl Nats {
    fn new() -> Self {
        let (port, folder) = (free_port().unwrap(), scratch::folder("nats").unwrap());
        let mut certificates = Certificates::new(&folder).unwrap();
        let files = certificates.issue("nats", &["localhost"]).unwrap();
        let configuration = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\nauthorization {{ user: ship, password: s3cret }}\ntls {{ cert_file: \"{}\", key_file: \"{}\" }}\n",
            folder.display(),
            files.certificate.display(),
            files.key.display(),
        );
        fs::write(folder.join("nats.conf"), configuration).unwrap();
        Self {
            port,
            authority: certificates.authority(),
            folder,
            keeper: None,
        }
    }

    fn start(&mut self) {
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(self.folder.join("nats.conf"));
        command.arg("-l").arg(self.folder.join("log"));
        let child = command.spawn().unwrap();
        let nothing = scratch::folder("nats-keeper").unwrap();
        let keeper = Keeper::of_process(child.id(), Farewell::Terminate, &nothing).unwrap();
        run::wait_for("the server", SOON, || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", self.port)).ok())
        })
        .unwrap();
        self.keeper = Some((keeper, child));
    }

    fn kill(&mut self) {
        if let Some((keeper, mut child)) = self.keeper.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            keeper.release();
        }
    }

    fn ask(&self, command: &str, argument: &[&str]) {
        let mut asking = Command::new(paths::python().unwrap());
        asking.arg(paths::client("nats_store.py")).arg(command);
        asking.arg(format!("tls://localhost:{}", self.port));
        asking.arg(&self.authority).args(argument);
        run::output(&mut asking).unwrap();
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn jetstream_gets_them_and_has_them_back() {
    let mut nats = Nats::new();
    let mut daemon = Daemon::configured(ALLOW_ALL, |folder| {
        fs::write(folder.join("password"), "s3cret\n").unwrap();
        fs::set_permissions(folder.join("password"), fs::Permissions::from_mode(0o600)).unwrap();
        format!(
            "journal:\n  ship:\n  - nats: {{server: 'tls://localhost:{}', bucket: evidence, prefix: host1, user: ship, password: {{file: {}/password}}}}\ntls: {{roots: [{}]}}\n",
            nats.port,
            folder.display(),
            nats.authority.display()
        )
    })
    .unwrap();
    says(&daemon, "Connection refused");
    close(&mut daemon);
    nats.start();
    // Nobody makes a bucket but the operator, who says how it is kept.
    says(&daemon, "its object store `evidence`");
    nats.ask("make", &[]);
    is_well(&daemon);
    close(&mut daemon);
    is_well(&daemon);
    // It dies and comes back, in the middle of the daemon's life and of its death.
    nats.kill();
    close(&mut daemon);
    says(
        &daemon,
        "1 closed segments wait to be shipped to tls://localhost",
    );
    busy(&daemon);
    nats.start();
    is_well(&daemon);
    // What is gone is shipped again.
    nats.ask("remove", &["host1/segments/00000000000000000001.seg"]);
    busy(&daemon);
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    is_well(&daemon);
    run::wait_for("what was gone", SOON, || {
        let said = daemon.log().contains("it is gone, and is shipped again");
        Ok(said.then_some(()))
    })
    .unwrap();
    is_well(&daemon);
    daemon.stop().unwrap();
    let to = daemon.folder().join("fetched");
    nats.ask("fetch", &[to.to_str().unwrap()]);
    is_the_same(&daemon, &to.join("host1"));
    assert!(!daemon.log().contains("s3cret"));
}

#[test]
fn what_was_removed_before_it_could_be_shipped_is_said_in_the_copy() {
    let retention = "journal: {retention: {age: 1s}";
    let mut daemon = Daemon::configured(ALLOW_ALL, |_| format!("{retention}}}\n")).unwrap();
    close(&mut daemon);
    let copy = daemon.folder().join("copy");
    fs::create_dir(&copy).unwrap();
    let is_gone = |path: PathBuf| path.extension().is_some_and(|ending| ending == "gone");
    run::wait_for("the first segment to go", SOON, || {
        let husks = segments(&daemon.state())
            .into_iter()
            .filter(|path| is_gone(path.clone()));
        Ok((husks.count() > 0).then_some(()))
    })
    .unwrap();
    let path = daemon.configuration();
    let before = fs::read_to_string(&path).unwrap();
    let ship = format!("{retention}, ship: [{{folder: {}}}]}}", copy.display());
    fs::write(&path, before.replace(&format!("{retention}}}"), &ship)).unwrap();
    for _ in 0..3 {
        close(&mut daemon);
        is_well(&daemon);
        // Whatever has gone there so far, it is a journal by itself; at first there may be nothing to go.
        if !copy.join("segments").exists() {
            continue;
        }
        let verified = daemon.ask(&["verify", copy.to_str().unwrap()]).unwrap();
        assert!(verified.contains("intact"), "{verified}");
    }
    daemon.stop().unwrap();
    // What was shipped in time is there whole, and of what wasn't that it was removed.
    let verified = daemon.ask(&["verify", copy.to_str().unwrap()]).unwrap();
    assert!(verified.contains("removed: "), "{verified}");
    let state = daemon.state();
    let records = |folder: &Path| {
        let report = daemon
            .ask_json(&["verify", folder.to_str().unwrap()])
            .unwrap();
        let of = |name: &str| report[name].as_u64().unwrap();
        (of("signed_up_to"), of("removed_segments"))
    };
    let ((signed, removed), (of_it, more)) = (records(&copy), records(&state));
    assert_eq!(signed, of_it);
    assert!(removed >= 1 && more > removed, "{removed} and {more}");
}
