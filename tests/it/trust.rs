//! Agents that know nothing of us: unmodified clients believe the certificates they are shown, and
//! nobody else's view changes.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use interceptor_tests::{paths, run};

use crate::{
    support::ALLOW_ALL,
    tls::{daemon, web},
};

const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Both tests look at the one store that this system has.
static STORE: Mutex<()> = Mutex::new(());

#[test]
fn unmodified_clients_of_a_launched_agent_believe_us() {
    let _store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    fs::write(web.root().join("hello.json"), "{\"hello\": \"agent\"}").unwrap();
    let before = fs::read(BUNDLE).unwrap();
    let url = format!("https://localhost:{}/hello.json", web.good);
    let venv = paths::python().unwrap();
    let venv = venv.to_str().unwrap();
    let requests = format!("import requests; print(requests.get('{url}').text)");
    let httpx = format!(
        "import httpx; r = httpx.Client(http2=True).get('{url}'); print(r.http_version, r.text)"
    );
    let aiohttp = format!(
        "import aiohttp, asyncio\nasync def main():\n  async with aiohttp.ClientSession() as s:\n    async with s.get('{url}') as r: print(await r.text())\nasyncio.run(main())"
    );
    let urllib = format!("import urllib.request; print(urllib.request.urlopen('{url}').read())");
    let node = format!("fetch('{url}').then(r => r.text()).then(console.log)");
    for (client, more) in [
        ("curl", vec!["--silent", "--show-error", &*url]),
        ("/usr/bin/python3", vec!["-c", &urllib]),
        (venv, vec!["-c", &requests]),
        (venv, vec!["-c", &httpx]),
        (venv, vec!["-c", &aiohttp]),
        ("node", vec!["-e", &node]),
    ] {
        let outcome = run::outcome(daemon.run_as("client", client).args(&more)).unwrap();
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
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains("interceptor-trust"));
    let outcome =
        run::outcome(Command::new("curl").args(["--silent", "--show-error", &url])).unwrap();
    assert_eq!(
        outcome.status.code(),
        Some(60),
        "who is no agent meets the server itself"
    );
    let journal = daemon.ask(&["export", "--format", "jsonl"]).unwrap();
    assert_eq!(journal.matches("\"http.path\":\"/hello.json\"").count(), 6);
    assert!(!journal.contains("tls_client_refused"));
}

#[test]
fn the_system_s_store_gets_it_and_gives_it_back() {
    let _store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    let (web, daemon) = (web(), daemon(ALLOW_ALL));
    let before = fs::read(BUNDLE).unwrap();
    let shown = daemon.ask(&["ca", "show"]).unwrap();
    assert!(shown.starts_with("-----BEGIN CERTIFICATE-----"));
    let facts = daemon.ask_json(&["ca", "show"]).unwrap();
    assert!(
        facts["subject"]
            .as_str()
            .unwrap()
            .contains("interceptor CA of")
    );
    daemon.ask(&["ca", "install"]).unwrap();
    // Again: that is no error, and changes nothing.
    daemon.ask(&["ca", "install"]).unwrap();
    let installed = fs::read_to_string(BUNDLE).unwrap();
    let body = shown.lines().nth(1).unwrap();
    assert_eq!(installed.matches(body).count(), 1);
    daemon.ask(&["ca", "uninstall"]).unwrap();
    daemon.ask(&["ca", "uninstall"]).unwrap();
    assert!(
        fs::read(BUNDLE).unwrap() == before,
        "the bundle has changed"
    );
    let left = fs::read_dir("/usr/local/share/ca-certificates").unwrap();
    let ours = left.flatten().filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("interceptor-")
    });
    assert_eq!(ours.count(), 0);
    assert!(Path::new(BUNDLE).exists() && web.good > 0);
}
