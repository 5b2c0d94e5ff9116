//! The walls of the house: who may know of whom.
//!
//! Crates by what cargo resolves, modules by what their source names. See ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use interceptor_tests::{paths, run};
use serde_json::Value;

/// What the pure library must not reach, not even through another crate.
const IMPURE_CRATES: [&str; 12] = [
    "aya",
    "axum",
    "hyper",
    "interceptor",
    "mio",
    "nix",
    "rand",
    "ring",
    "rustls",
    "sled",
    "socket2",
    "tokio",
];

/// What the pure library must not name.
const IMPURE_PATHS: [&str; 14] = [
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "SystemTime",
    "Instant",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "ToSocketAddrs",
    "RandomState",
    "stdin",
    "stdout",
];

/// Protocols that may build on another one.
const FOUNDATIONS: [(&str, &str); 5] = [
    ("aws", "http"),
    ("azure", "http"),
    ("kubernetes", "http"),
    ("llm", "http"),
    ("mcp", "http"),
];

#[test]
fn crates_depend_one_way() {
    let graph = dependencies();
    let direct = |name: &str| graph.get(name).cloned().unwrap_or_default();
    assert_eq!(
        direct("interceptor-abi"),
        BTreeSet::new(),
        "the abi depends on nothing"
    );
    assert!(!direct("interceptor-core").contains("interceptor-abi"));
    assert!(direct("interceptor").contains("interceptor-core"));
    assert!(direct("interceptor").contains("interceptor-abi"));

    let reachable = closure(&graph, "interceptor-core");
    let impure: Vec<_> = IMPURE_CRATES
        .into_iter()
        .filter(|name| reachable.contains(*name))
        .collect();
    assert_eq!(impure, [""; 0], "interceptor-core is pure");

    let product = closure(&graph, "interceptor");
    // Metadata names what could be switched on too; what is built is what counts here.
    let built = run::output(
        Command::new(env!("CARGO"))
            .args([
                "tree",
                "--package",
                "interceptor",
                "--edges",
                "normal",
                "--prefix",
                "none",
            ])
            .args(["--offline", "--locked"])
            .current_dir(paths::root()),
    )
    .unwrap();
    assert!(built.contains("aws-lc-rs v"));
    assert!(!built.contains("ring v"), "aws-lc-rs is the one provider");
    assert!(!product.contains("interceptor-tests"));
    assert!(!product.contains("xtask"));
}

#[test]
fn the_pure_library_names_nothing_impure() {
    let mut found = Vec::new();
    for (path, tokens) in sources("interceptor/core/src") {
        for forbidden in IMPURE_PATHS {
            let parts: Vec<&str> = forbidden.split("::").collect();
            let names = |window: &[String]| match parts.as_slice() {
                [single] => window.first().is_some_and(|token| token == single),
                [first, second] => {
                    matches!(window, [a, b, c, ..] if a == first && b == "::" && c == second)
                }
                _ => false,
            };
            if tokens.windows(3).any(names) {
                found.push(format!("{}: {forbidden}", path.display()));
            }
        }
    }
    assert_eq!(found, [""; 0]);
}

#[test]
fn policy_and_protocols_never_import_each_other() {
    let mut found = Vec::new();
    for (path, tokens) in sources("interceptor/core/src") {
        let inside =
            |folder: &str| path.starts_with(folder) || path.starts_with(format!("{folder}.rs"));
        if !inside("policy") && path != Path::new("ruling.rs") && imports(&tokens, "policy") {
            found.push(format!("{} names policy", path.display()));
        }
        if inside("policy") && imports(&tokens, "protocol") {
            found.push(format!("{} names protocol", path.display()));
        }
    }
    assert_eq!(found, [""; 0]);
}

#[test]
fn protocols_do_not_import_each_other() {
    let root = paths::root().join("interceptor/core/src/protocol");
    let protocols: Vec<String> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != "mod")
        .collect();
    let mut found = Vec::new();
    for (path, tokens) in sources("interceptor/core/src/protocol") {
        let own = path.components().next().unwrap().as_os_str();
        let own = Path::new(own).file_stem().unwrap().to_string_lossy();
        for other in protocols
            .iter()
            .filter(|name| **name != own && own != "mod")
        {
            let founded = FOUNDATIONS.contains(&(&own, other));
            if !founded && imports(&tokens, other) {
                found.push(format!("{} names {other}", path.display()));
            }
        }
    }
    assert_eq!(found, [""; 0]);
}

#[test]
fn aya_lives_in_the_kernel_module_alone() {
    let strangers: Vec<_> = sources("interceptor/src")
        .into_iter()
        .filter(|(path, _)| !path.starts_with("kernel"))
        .filter(|(_, tokens)| {
            ["aya", "aya_log", "aya_obj"]
                .iter()
                .any(|name| imports(tokens, name))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

/// What runs in the process that reads what agents and servers send, and what it may not name: what the daemon
/// keeps from it.
const PARSING: [&str; 9] = [
    "session",
    "leg.rs",
    "upstream.rs",
    "cancellations.rs",
    "dns/forwarder.rs",
    "proxy/carrier.rs",
    "proxy/desk.rs",
    "proxy/network.rs",
    "proxy/records.rs",
];
const KEPT: [&str; 5] = ["kernel", "Journal", "Approvals", "Authority", "Vault"];

/// What runs in the process that reads what browsers and identity providers send: it asks the daemon, and has nothing
/// of its. What starts it, and what it is given, is the daemon's.
const SERVING: [&str; 7] = [
    "console/daemon.rs",
    "console/fetch.rs",
    "console/live.rs",
    "console/pages",
    "console/people",
    "console/server.rs",
    "console/text.rs",
];

/// What runs in the daemon, and what it may not name: what parses.
const KEEPING: [&str; 16] = [
    "accept.rs",
    "approval",
    "books",
    "daemon.rs",
    "guard.rs",
    "journal",
    "kernel",
    "namespaces",
    "refusals.rs",
    "proxy/intake.rs",
    "proxy/keeper",
    "proxy/keeper.rs",
    "proxy/process.rs",
    "proxy/sessions.rs",
    "ship",
    "stream",
];
const PARSERS: [&str; 5] = ["session", "leg", "protocol", "sniff", "words"];

/// What shows people what is on record, answers included.
const SHOWING: [&str; 2] = ["approval/summary.rs", "journal/export/jsonl.rs"];

#[test]
fn the_daemon_parses_nothing_and_who_parses_has_nothing_of_the_daemons() {
    let mut found = Vec::new();
    for (path, tokens) in sources("interceptor/src") {
        for (places, strangers) in [
            (&PARSING[..], &KEPT[..]),
            (&SERVING, &KEPT),
            (&KEEPING, &PARSERS),
        ] {
            let is_there = |place: &&str| path.starts_with(place);
            if !places.iter().any(is_there) || SHOWING.iter().any(is_there) {
                continue;
            }
            let named = strangers.iter().filter(|name| imports(&tokens, name));
            found.extend(named.map(|name| format!("{} names {name}", path.display())));
        }
    }
    assert_eq!(found, [""; 0]);
}

/// Whether a `use` names `module`, or a path goes through it.
fn imports(tokens: &[String], module: &str) -> bool {
    let mut in_use = false;
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "use" => in_use = true,
            ";" => in_use = false,
            name if name == module => {
                let before = at.checked_sub(1).map(|at| tokens[at].as_str());
                let after = tokens.get(at + 1).map(String::as_str);
                // `mod policy` and a variable called `policy` are no imports.
                if in_use || before == Some("::") || (after == Some("::") && before != Some(".")) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// The product's source below `root`, as tokens without comments, literals and tests.
fn sources(root: &str) -> Vec<(PathBuf, Vec<String>)> {
    let root = paths::root().join(root);
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap_or_default();
            if stem == "tests" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let tokens = tokens(&fs::read_to_string(&path).unwrap());
                files.push((path.strip_prefix(&root).unwrap().to_owned(), tokens));
            }
        }
    }
    assert!(files.len() > 3, "no sources in {}", root.display());
    files
}

/// Identifiers, `::` and single punctuation, without the tests at the end.
fn tokens(source: &str) -> Vec<String> {
    let source = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            string(rest)
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            tokens.push(rest[..end].to_owned());
            end
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

fn raw_string(source: &str) -> Option<usize> {
    let after = source
        .strip_prefix("br")
        .or_else(|| source.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let close = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(source.len() - body.len() + close)
}

fn string(source: &str) -> usize {
    let mut escaped = false;
    for (at, c) in source.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    source.len()
}

/// A character literal, or only the quote of a lifetime.
fn character(source: &str) -> usize {
    let mut characters = source.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => source[2..].find('\'').map_or(1, |at| at + 3),
        _ => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
    }
}

/// Crate name to the names of its normal dependencies, as resolved for this platform.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let metadata = run::output(
        Command::new(cargo)
            .args(["metadata", "--format-version=1", "--locked", "--offline"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(paths::root()),
    )
    .unwrap();
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            (
                package["id"].as_str().unwrap(),
                package["name"].as_str().unwrap(),
            )
        })
        .collect();
    metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let normal = |dependency: &&Value| {
                dependency["dep_kinds"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|kind| kind["kind"].is_null())
            };
            let dependencies = node["deps"]
                .as_array()
                .unwrap()
                .iter()
                .filter(normal)
                .map(|dependency| names[dependency["pkg"].as_str().unwrap()].to_owned())
                .collect();
            (names[node["id"].as_str().unwrap()].to_owned(), dependencies)
        })
        .collect()
}

fn closure(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from.to_owned()];
    while let Some(name) = next.pop() {
        for dependency in graph.get(&name).into_iter().flatten() {
            if reached.insert(dependency.clone()) {
                next.push(dependency.clone());
            }
        }
    }
    reached
}
