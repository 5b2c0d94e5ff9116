//! `interceptor ca`: the systems' own stores get our certificate and give it back.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use interceptor_tests::{
    certificates::Certificates,
    daemon::Daemon,
    keeper::{self, Keeper},
    run, scratch,
};

use crate::{
    support::ALLOW_ALL,
    tls::{daemon, web},
    trust::{BUNDLE, exclusive, unconfigured},
};

const ANCHORS: &str = "/usr/local/share/ca-certificates";
const FOLDER: &str = "/etc/ssl/certs";

/// Everything in the system's store: files by what they hold, links by where they lead. Java's store is
/// left out: its own tool orders it anew each time.
fn store() -> BTreeMap<String, Vec<u8>> {
    let entries = [FOLDER, ANCHORS].map(|folder| fs::read_dir(folder).unwrap());
    let entries = entries.into_iter().flatten().map(Result::unwrap);
    entries
        .filter(|entry| !entry.file_type().unwrap().is_dir())
        .map(|entry| {
            let path = entry.path();
            let content = match fs::read_link(&path) {
                Ok(link) => link.to_str().unwrap().into(),
                Err(_) => fs::read(&path).unwrap(),
            };
            (path.to_str().unwrap().to_owned(), content)
        })
        .collect()
}

/// The names in Java's store, where this system has one.
fn java() -> Vec<String> {
    let store = Path::new("/etc/ssl/certs/java/cacerts");
    if !store.exists() {
        return Vec::new();
    }
    let listed = run::output(
        Command::new("keytool")
            .args(["-list", "-storepass", "changeit", "-keystore"])
            .arg(store),
    );
    let listed = listed.unwrap();
    let entries = listed
        .lines()
        .filter(|line| line.contains("trustedCertEntry"));
    let names = entries.filter_map(|line| line.split(',').next());
    names.map(str::to_owned).collect()
}

/// Somebody else's certificate in the store.
struct Other {
    path: String,
}

impl Other {
    fn installed(daemon: &Daemon) -> Self {
        let authority = Certificates::new(daemon.folder()).unwrap().authority();
        let path = format!("{ANCHORS}/somebody-else.crt");
        fs::copy(authority, &path).unwrap();
        run::output(&mut Command::new("update-ca-certificates")).unwrap();
        Self { path }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = withdraw(&self.path);
    }
}

/// Takes a certificate that isn't ours out of the store again, as its administrator would.
fn withdraw(path: &str) -> anyhow::Result<String> {
    fs::remove_file(path)?;
    let name = Path::new(path).file_name().unwrap_or_default();
    let settings = scratch::folder("settings")?;
    let file = settings.join("ca-certificates.conf");
    let before = fs::read_to_string("/etc/ca-certificates.conf")?;
    fs::write(&file, format!("{before}\n!{}\n", name.display()))?;
    let mut update = Command::new("update-ca-certificates");
    let done = run::output(update.arg("--certsconf").arg(file));
    fs::remove_dir_all(settings)?;
    done
}

#[test]
fn the_system_s_store_gets_it_and_gives_it_back() {
    let _store = exclusive();
    let daemon = daemon(ALLOW_ALL);
    let before = store();
    let shown = daemon.ask(&["ca", "show"]).unwrap();
    assert!(shown.starts_with("-----BEGIN CERTIFICATE-----"));
    let facts = daemon.ask_json(&["ca", "show"]).unwrap();
    let subject = facts["subject"].as_str().unwrap();
    assert!(subject.contains("interceptor CA of"));
    daemon.ask(&["ca", "install"]).unwrap();
    // Again: that is no error, and changes nothing.
    daemon.ask(&["ca", "install"]).unwrap();
    let installed = fs::read_to_string(BUNDLE).unwrap();
    let body = shown.lines().nth(1).unwrap();
    assert_eq!(installed.matches(body).count(), 1);
    daemon.ask(&["ca", "uninstall"]).unwrap();
    daemon.ask(&["ca", "uninstall"]).unwrap();
    assert!(store() == before, "the store has changed");
}

#[test]
fn what_others_changed_in_between_stays() {
    let _store = exclusive();
    let mut daemon = daemon(ALLOW_ALL);
    let before = store();
    // A link of the administrator's own, into what the distribution brings.
    let link = format!("{FOLDER}/of-the-administrator.pem");
    let root = fs::read_dir("/usr/share/ca-certificates/mozilla").unwrap();
    let root = root.flatten().next().unwrap().path();
    daemon.ask(&["ca", "install"]).unwrap();
    std::os::unix::fs::symlink(&root, &link).unwrap();
    let other = Other::installed(&daemon);
    let in_java = java();
    daemon.ask(&["ca", "uninstall"]).unwrap();
    let after = store();
    let in_java_after = java();
    let link_stays = fs::read_link(&link).is_ok();
    let _ = fs::remove_file(&link);
    assert!(link_stays, "a link that isn't ours was taken away");
    assert!(after.contains_key(&other.path));
    let ours = |(path, _): &(&String, &Vec<u8>)| path.contains("interceptor-");
    assert_eq!(after.iter().filter(ours).count(), 0);
    let is_lost = |name: &&String| !in_java_after.contains(name);
    let lost: Vec<_> = in_java.iter().filter(is_lost).collect();
    assert_eq!(lost.len(), usize::from(!in_java.is_empty()), "{lost:?}");
    assert!(lost.iter().all(|name| name.contains("interceptor-")));
    drop(other);
    assert!(store() == before, "the store has changed");

    // An authority that is no more, and a daemon that isn't there to be asked.
    daemon.ask(&["ca", "install"]).unwrap();
    let foreign = format!("{ANCHORS}/interceptor-0123456789abcdef.crt");
    fs::copy(web().authority(), &foreign).unwrap();
    daemon.stop().unwrap();
    assert!(daemon.ask(&["ca", "uninstall"]).is_err());
    daemon.ask(&["ca", "uninstall", "--all"]).unwrap();
    withdraw(&foreign).expect("a file that only looks like ours stays");
    assert!(store() == before, "the store has changed");
}

#[test]
fn tagged_agents_of_every_user_trust_what_is_installed_whatever_the_umask() {
    let _store = exclusive();
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    fs::write(web.root().join("tagged.json"), "{\"hello\": \"tagged\"}").unwrap();
    let cgroup = keeper::cgroup2().unwrap().join(scratch::name("it-ca"));
    fs::create_dir(&cgroup).unwrap();
    let _keeper = Keeper::of_command("rmdir \"$1\"", [cgroup.as_os_str()]).unwrap();
    daemon
        .ask(&["tag", "add", cgroup.to_str().unwrap(), "--agent", "tagged"])
        .unwrap();
    let install = daemon.command(["ca", "install"]);
    let mut with_umask = Command::new("/bin/sh");
    with_umask
        .args(["-c", "umask 077; exec \"$@\"", "sh"])
        .arg(install.get_program())
        .args(install.get_args());
    run::output(&mut with_umask).unwrap();
    let anchor = fs::read_dir(ANCHORS).unwrap().flatten();
    let anchor = anchor
        .map(|entry| entry.path())
        .find(|path| path.to_str().unwrap().contains("interceptor-"));
    let mode = anchor.map(|path| fs::metadata(path).unwrap().mode() & 0o777);
    let script = "echo $$ >\"$0/cgroup.procs\"; exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let url = format!("https://localhost:{}/tagged.json", web.good);
    let python = format!("import urllib.request; print(urllib.request.urlopen('{url}').read())");
    let outcomes = [
        vec!["curl", "--silent", "--show-error", &*url],
        // OpenSSL by way of its folder of hashes.
        vec!["/usr/bin/python3", "-c", &python],
    ]
    .map(|client| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).arg(&cgroup).args(client);
        run::outcome(unconfigured(&mut command))
    });
    daemon.ask(&["ca", "uninstall"]).unwrap();
    assert_eq!(mode, Some(0o644));
    for outcome in outcomes {
        let outcome = outcome.unwrap();
        assert!(outcome.stdout.contains("tagged"), "{}", outcome.stderr);
    }
    let journal = daemon.ask(&["export", "--format", "jsonl"]).unwrap();
    assert_eq!(
        journal.matches("\"http.path\":\"/tagged.json\"").count(),
        2,
        "they went through interceptor"
    );
}

/// A system of another distribution: this one with its `/etc` and `/usr/local/share` changed, in a view of
/// its own. `update` stands in for what makes bundles of anchors there.
fn elsewhere(daemon: &Daemon, prepare: &str, update: &str, script: &str) -> String {
    let programs = daemon.folder().join("programs");
    fs::create_dir_all(&programs).unwrap();
    for name in ["update-ca-trust", "update-ca-certificates"] {
        let path = programs.join(name);
        fs::write(&path, format!("#!/bin/sh\nset -e\n{update}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let view = "
        set -e
        mount -t tmpfs view \"$1\"
        mkdir \"$1/upper\" \"$1/work\"
        mount -t overlay view -o \"lowerdir=/etc,upperdir=$1/upper,workdir=$1/work\" /etc
        mount -t tmpfs view /usr/local/share
        mount -t tmpfs view /etc/ssl
        interceptor() { \"$PROGRAM\" --control \"$CONTROL\" \"$@\"; }
    ";
    let place = daemon.folder().join("view");
    fs::create_dir_all(&place).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "/bin/sh", "-c"])
        .arg(format!("{view}\n{prepare}\n{script}"))
        .args([Path::new("sh"), &place])
        .env("PROGRAM", interceptor_tests::paths::interceptor().unwrap())
        .env("CONTROL", daemon.control())
        .env("UPDATE", update)
        .env(
            "PATH",
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()),
        );
    run::output(unconfigured(&mut command)).unwrap()
}

/// Installs it, compares, and takes it away again.
const INSTALL_AND_UNINSTALL: &str = "
    cp \"$BUNDLE\" /etc/before
    interceptor ca install
    interceptor ca show >/etc/ours
    grep -qxF \"$(sed -n 2p /etc/ours)\" \"$BUNDLE\" && echo installed
    interceptor ca uninstall
    cmp \"$BUNDLE\" /etc/before && ls \"$ANCHORS\" && echo gone
";

/// Shows that agents see it in the bundle and among the anchors, and whoever isn't one doesn't.
const RUN: &str = "
    interceptor run --agent other -- sh -c '
        grep -c BEGIN \"$BUNDLE\"; cat \"$ANCHORS\"/interceptor-ca.pem | grep -c BEGIN; [ -L /etc/ssl/certs/*.0 ] && echo hashed; echo $NODE_EXTRA_CA_CERTS $SSL_CERT_FILE'
    grep -c BEGIN \"$BUNDLE\"
    ls \"$ANCHORS\"
";

#[test]
fn red_hat_s_store_is_known() {
    let daemon = daemon(ALLOW_ALL);
    let prepare = format!(
        "export ANCHORS=/etc/pki/ca-trust/source/anchors BUNDLE=/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem
        mkdir -p $ANCHORS /etc/pki/ca-trust/extracted/pem /etc/pki/tls/certs
        ln -s /etc/pki/tls/certs /etc/ssl/certs
        ln -s $BUNDLE /etc/pki/tls/certs/ca-bundle.crt
        cp {} /etc/root.pem
        update-ca-trust extract",
        web().authority().display()
    );
    let update =
        "[ \"$1\" = extract ]; cat /etc/root.pem $ANCHORS/*.pem >$BUNDLE 2>/dev/null || true";
    let seen = elsewhere(&daemon, &prepare, update, INSTALL_AND_UNINSTALL);
    assert_eq!(seen, "installed\ngone\n");
    let seen = elsewhere(&daemon, &prepare, update, RUN);
    let expected = "2\n1\nhashed\n/etc/ssl/certs/interceptor-ca.pem /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem\n1\n";
    assert_eq!(seen, expected);
}

#[test]
fn suse_s_store_is_known() {
    let daemon = daemon(ALLOW_ALL);
    let prepare = format!(
        "export ANCHORS=/etc/pki/trust/anchors BUNDLE=/etc/ssl/ca-bundle.pem
        mkdir -p $ANCHORS /usr/local/share/ca-certificates /etc/ssl/certs
        cp {} /etc/root.pem
        update-ca-certificates",
        web().authority().display()
    );
    let update = "cat /etc/root.pem $ANCHORS/*.pem >$BUNDLE 2>/dev/null || true";
    let seen = elsewhere(&daemon, &prepare, update, INSTALL_AND_UNINSTALL);
    assert_eq!(seen, "installed\ngone\n");
    let seen = elsewhere(&daemon, &prepare, update, RUN);
    let expected = "2\n1\nhashed\n/etc/ssl/certs/interceptor-ca.pem /etc/ssl/ca-bundle.pem\n1\n";
    assert_eq!(seen, expected);
}

#[test]
fn keys_among_the_certificates_stay_what_they_are() {
    let daemon = daemon(ALLOW_ALL);
    let prepare = format!(
        "mkdir -p /etc/ssl/certs/java
        cp {} /etc/ssl/certs/ca-certificates.crt
        echo secret >/etc/ssl/certs/server.key
        chmod 640 /etc/ssl/certs/server.key
        : >/etc/ssl/certs/java/cacerts",
        web().authority().display()
    );
    let script = "
        cd /
        interceptor run --agent other --user nobody -- sh -c 'cat /etc/ssl/certs/server.key; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt' || true
        interceptor run --agent other -- stat -c '%a' /etc/ssl/certs/server.key
        : >/etc/ssl/certs/ca-certificates.crt
        interceptor run --agent other -- grep -c BEGIN /etc/ssl/certs/ca-certificates.crt
    ";
    // A store without a single certificate doesn't keep ours out.
    assert_eq!(elsewhere(&daemon, &prepare, "true", script), "2\n640\n1\n");
}
