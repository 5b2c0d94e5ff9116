//! Agents that know nothing of us: unmodified clients believe the certificates they are shown, and
//! nobody else's view changes.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use interceptor_tests::{
    certificates::Certificates,
    daemon::Daemon,
    paths,
    run::{self, Outcome},
    scratch,
    web::Web,
};

use crate::{
    support::ALLOW_ALL,
    tls::{daemon, web},
};

pub(crate) const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// For tests that look at the one store that this system has.
pub(crate) fn exclusive() -> MutexGuard<'static, ()> {
    static STORE: Mutex<()> = Mutex::new(());
    STORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without the variables that would make a client read a certain bundle.
pub(crate) fn unconfigured(command: &mut Command) -> &mut Command {
    for name in [
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
        "GIT_SSL_CAINFO",
        "AWS_CA_BUNDLE",
        "PIP_CERT",
        "HTTPLIB2_CA_CERTS",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "NIX_SSL_CERT_FILE",
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
        "npm_config_cafile",
        "JAVA_HOME",
    ] {
        command.env_remove(name);
    }
    command
}

/// An agent of the user `nobody` in an environment of Python's: a folder of its own.
fn nobody(daemon: &Daemon, environment: &Path, client: &[&str]) -> Outcome {
    let mut command = daemon.command(["run", "--agent", "client", "--user", "nobody", "--"]);
    command.args(client).current_dir("/");
    let command = unconfigured(&mut command)
        .env("VIRTUAL_ENV", environment)
        .env("JAVA_HOME", environment);
    run::outcome(command).unwrap()
}

/// A folder that anybody may write to, with a link where a bundle would be.
fn environment(file: &str, target: &Path) -> (PathBuf, PathBuf) {
    let folder = scratch::folder("environment").unwrap();
    let link = folder.join(file);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(target, &link).unwrap();
    (folder, link)
}

fn serve_hello(web: &Web) -> String {
    fs::write(web.root().join("hello.json"), "{\"hello\": \"agent\"}").unwrap();
    format!("https://localhost:{}/hello.json", web.good)
}

/// As Python's programs are that don't look at variables: the bundles of packages have to do.
const PACKAGES_ONLY: &str =
    "import os\nfor name in ('SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE'): os.environ.pop(name)\n";

#[test]
fn unmodified_clients_of_a_launched_agent_believe_us() {
    let _store = exclusive();
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let url = serve_hello(web);
    let before = fs::read(BUNDLE).unwrap();
    let venv = paths::python().unwrap();
    let venv = venv.to_str().unwrap();
    let go = paths::go().unwrap();
    let [get_go, get_java] =
        ["get.go", "Get.java"].map(|file| paths::client(file).to_str().unwrap().to_owned());
    let python = [
        format!("import requests; print(requests.get('{url}').text)"),
        format!(
            "import httpx; r = httpx.Client(http2=True).get('{url}'); print(r.http_version, r.text)"
        ),
        format!(
            "import aiohttp, asyncio\nasync def main():\n  async with aiohttp.ClientSession() as s:\n    async with s.get('{url}') as r: print(await r.text())\nasyncio.run(main())"
        ),
        format!(
            "import certifi, urllib3; print(urllib3.PoolManager(ca_certs=certifi.where()).request('GET', '{url}').data)"
        ),
        format!("import httplib2; print(httplib2.Http().request('{url}')[1])"),
        format!(
            "from botocore import awsrequest, httpsession; print(httpsession.URLLib3Session().send(awsrequest.AWSRequest('GET', '{url}', headers={{}}).prepare()).content)"
        ),
    ]
    .map(|script| format!("{PACKAGES_ONLY}{script}"));
    let urllib = format!("import urllib.request; print(urllib.request.urlopen('{url}').read())");
    let node = format!("fetch('{url}').then(r => r.text()).then(console.log)");
    let mut clients = vec![
        ("curl", vec!["--silent", "--show-error", &*url]),
        // GnuTLS.
        ("wget", vec!["--quiet", "--output-document=-", &url]),
        ("/usr/bin/python3", vec!["-c", &urllib]),
        ("node", vec!["-e", &node]),
        ("java", vec![&get_java, &url]),
        (go.to_str().unwrap(), vec!["run", &get_go, &url]),
    ];
    clients.extend(python.iter().map(|script| (venv, vec!["-c", script])));
    let count = clients.len();
    for (client, more) in clients {
        let mut command = daemon.run_as("client", client);
        command
            .args(&more)
            .env("GOCACHE", paths::target().join("clients/go-cache"))
            .env("GOPROXY", "off")
            .env("GOTOOLCHAIN", "local")
            .env("CGO_ENABLED", "0");
        // Go compiles its library first.
        let running = run::start(unconfigured(&mut command)).unwrap();
        let outcome = running.outcome_within(Duration::from_secs(240)).unwrap();
        assert!(
            outcome.stdout.contains("hello"),
            "{client} {more:?}: {}",
            outcome.stderr
        );
    }
    // Nobody else sees any of it, and nothing stays behind.
    assert!(
        fs::read(BUNDLE).unwrap() == before,
        "the bundle has changed"
    );
    let mut curl = Command::new("curl");
    let outcome =
        run::outcome(unconfigured(&mut curl).args(["--silent", "--show-error", &url])).unwrap();
    assert_eq!(
        outcome.status.code(),
        Some(60),
        "who is no agent meets the server itself"
    );
    let journal = daemon.ask(&["export", "--format", "jsonl"]).unwrap();
    assert_eq!(
        journal.matches("\"http.path\":\"/hello.json\"").count(),
        count
    );
    assert!(!journal.contains("tls_client_refused"));
}

#[test]
fn package_managers_git_nss_and_grpc_believe_us() {
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let url = format!("https://localhost:{}", web.good);
    let root = web.root().join("registry");
    fs::create_dir(&root).unwrap();
    let registry = format!("{url}/registry");
    let mut fill = Command::new("/usr/bin/python3");
    fill.arg(paths::client("registry.py")).arg(&root);
    run::output(fill.arg(&registry)).unwrap();
    let python = paths::python().unwrap();
    let python = python.to_str().unwrap();
    let place = |name: &str| daemon.folder().join(name).to_str().unwrap().to_owned();
    let [git, pip, npm, cache] = ["git", "pip", "npm", "cache"].map(place);
    let [demo, simple, modules] =
        ["demo.git", "simple/", "npm/"].map(|path| format!("{registry}/{path}"));
    let port = web.good.to_string();
    let request = place("request");
    let text = "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    fs::write(&request, text).unwrap();
    let grpc = format!(
        "{PACKAGES_ONLY}import grpc\nchannel = grpc.secure_channel('localhost:{port}', grpc.ssl_channel_credentials())\ngrpc.channel_ready_future(channel).result(timeout=20)\nprint('ready')"
    );
    let tstclnt = ["tstclnt", "-4", "-D", "-b", "-h", "localhost", "-p"];
    for (client, sign) in [
        (vec!["git", "clone", &demo, &git], "Cloning"),
        (
            [
                &[
                    python,
                    "-m",
                    "pip",
                    "--isolated",
                    "install",
                    "--no-cache-dir",
                ][..],
                &["--index-url", &simple, "--target", &pip, "demo-package"],
            ]
            .concat(),
            "Successfully installed demo-package",
        ),
        (
            [
                &[
                    "npm",
                    "install",
                    "--no-audit",
                    "--no-fund",
                    "--cache",
                    &cache,
                ][..],
                &["--registry", &modules, "--prefix", &npm, "demo-package"],
            ]
            .concat(),
            "added 1 package",
        ),
        (
            [&tstclnt[..], &[&port, "-A", &request]].concat(),
            "GET localhost /echo",
        ),
        (vec![python, "-c", &grpc], "ready"),
    ] {
        let mut command = daemon.run_as("client", client[0]);
        let outcome = run::outcome(unconfigured(&mut command).args(&client[1..])).unwrap();
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(
            outcome.status.success() && said.contains(sign),
            "{client:?}: {said}"
        );
    }
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn agents_of_other_users_believe_us_whatever_our_umask_is() {
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let url = serve_hello(web);
    let python = format!("import urllib.request; print(urllib.request.urlopen('{url}').read())");
    for client in [
        vec!["curl", "--silent", "--show-error", &*url],
        vec!["/usr/bin/python3", "-c", &python],
    ] {
        let run = daemon.command(["run", "--agent", "client", "--user", "nobody", "--"]);
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "umask 077; exec \"$@\"", "sh"])
            .arg(run.get_program())
            .args(run.get_args())
            .args(&client)
            .current_dir("/");
        let outcome = run::outcome(unconfigured(&mut command)).unwrap();
        assert!(
            outcome.stdout.contains("hello"),
            "{client:?}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn what_the_agent_can_t_read_is_not_read_for_it() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let secrets = scratch::folder("secrets").unwrap();
    let files = Certificates::new(&secrets)
        .unwrap()
        .issue("server", &["localhost"])
        .unwrap();
    // As servers have it: certificate and key in one file that is root's alone.
    let secret = secrets.join("both.pem");
    let text = [&files.certificate, &files.key].map(|file| fs::read_to_string(file).unwrap());
    for (content, mode) in [(text.concat(), 0o600), (text[0].clone(), 0o600)] {
        fs::write(&secret, content).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
        let (folder, link) =
            environment("lib/python3.13/site-packages/certifi/cacert.pem", &secret);
        let outcome = nobody(&daemon, &folder, &["cat", link.to_str().unwrap()]);
        assert_eq!(outcome.stdout, "");
        assert!(
            outcome.stderr.contains("Permission denied"),
            "{}",
            outcome.stderr
        );
        fs::remove_dir_all(folder).unwrap();
    }
    fs::remove_dir_all(secrets).unwrap();
}

#[test]
fn nothing_but_bundles_and_stores_is_covered() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let key = "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n";
    for (content, file) in [
        // What setuid programs read, found where an agent put a link to it.
        ("auth required pam_deny.so\n", "lib/security/cacerts"),
        (
            "auth required pam_deny.so\n",
            "lib/python3.13/site-packages/certifi/cacert.pem",
        ),
        (key, "lib/python3.13/site-packages/certifi/cacert.pem"),
    ] {
        let others = scratch::folder("others").unwrap();
        let other = others.join("file");
        fs::write(&other, content).unwrap();
        let (folder, _) = environment(file, &other);
        let outcome = nobody(&daemon, &folder, &["cat", other.to_str().unwrap()]);
        assert_eq!(outcome.stdout, content, "{file}");
        fs::remove_dir_all(folder).unwrap();
        fs::remove_dir_all(others).unwrap();
    }
}

#[test]
fn an_agent_gets_nothing_else_of_it() {
    let daemon = Daemon::start(ALLOW_ALL).unwrap();
    let (folder, _) = environment("unused", Path::new("/dev/null"));
    let is_open = "ls /proc/self/fd; true";
    // The standard ones, and the one that `ls` reads.
    let open = "0\n1\n2\n3\n";
    let script = format!(
        "stat -c '%a %U' {BUNDLE}; echo x >>{BUNDLE}; umount {BUNDLE}; pwd; ls -1 interceptor-ca.pem; ls -d /sys/[0-9]; {is_open}"
    );
    // Started in a folder that will be covered.
    let expected = format!("644 root\n/etc/ssl/certs\ninterceptor-ca.pem\n{open}");
    let mut command = daemon.run_as("client", "/bin/sh");
    command.args(["-c", &script]).current_dir("/etc/ssl/certs");
    let outcome = run::outcome(unconfigured(&mut command)).unwrap();
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
    let script = format!("cd /etc/ssl/certs; {script}");
    let outcome = nobody(&daemon, &folder, &["/bin/sh", "-c", &script]);
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
    assert!(
        !fs::read_to_string("/proc/mounts")
            .unwrap()
            .contains("interceptor tmpfs")
    );
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn folders_and_files_that_variables_name_are_found() {
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let url = serve_hello(web);
    let folder = scratch::folder("hashed").unwrap();
    let certificate = folder.join("other.pem");
    fs::copy(web.authority(), &certificate).unwrap();
    run::output(Command::new("openssl").arg("rehash").arg(&folder)).unwrap();
    let python = format!("import urllib.request; print(urllib.request.urlopen('{url}').read())");
    let node = format!("fetch('{url}').then(r => r.text()).then(console.log)");
    let unnamed = Path::new("/nonexistent");
    for (variables, client) in [
        (
            [("SSL_CERT_DIR", &*folder), ("SSL_CERT_FILE", unnamed)],
            ["/usr/bin/python3", "-c", &python],
        ),
        (
            [("SSL_CERT_DIR", unnamed), ("SSL_CERT_FILE", &certificate)],
            ["/usr/bin/python3", "-c", &python],
        ),
        // It names nothing, and Node would only warn of that.
        (
            [("NODE_EXTRA_CA_CERTS", unnamed), ("SSL_CERT_DIR", unnamed)],
            ["node", "-e", &node],
        ),
    ] {
        let mut command = daemon.run_as("client", client[0]);
        unconfigured(&mut command)
            .args(&client[1..])
            .envs(variables);
        let outcome = run::outcome(&mut command).unwrap();
        assert!(
            outcome.stdout.contains("hello"),
            "{variables:?}: {}",
            outcome.stderr
        );
    }
    // A folder that is none of certificates stays as it is.
    let mut command = daemon.run_as("client", "ls");
    unconfigured(&mut command)
        .arg(daemon.folder())
        .env("SSL_CERT_DIR", daemon.folder());
    let outcome = run::outcome(&mut command).unwrap();
    assert!(!outcome.stdout.contains("interceptor-ca.pem"));
    assert!(outcome.stderr.contains("under its hash"), "{outcome}");
    fs::remove_dir_all(folder).unwrap();
}
