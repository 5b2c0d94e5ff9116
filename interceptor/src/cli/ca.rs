//! `interceptor ca`: the certificate that clients have to trust.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::{self, ExitCode},
};

use aws_lc_rs::digest;
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    stat::{Mode, umask},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    Context, Outcome,
    display::{message, print},
    failed::Failed,
};
use crate::control::AuthorityCertificate;

/// Show, install or uninstall the certificate that clients have to trust
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "`interceptor run` needs none of this: it shows the certificate to the command it \
                        launches. Agents that are tagged (`interceptor tag add`) read the system's store."
)]
pub(super) enum Command {
    /// Print it as PEM
    Show,
    /// Put it into the system's store
    Install,
    /// Take it out of the system's store again
    Uninstall {
        /// Take out those of earlier authorities too; the daemon isn't asked
        #[arg(long)]
        all: bool,
    },
}

/// The ways in which distributions keep what the administrator trusts.
struct Store {
    anchors: &'static str,
    extension: &'static str,
    update: &'static [&'static str],
    /// The folder in which each anchor has a link that `update` doesn't take away with it.
    links: Option<&'static str>,
}

/// Debian, Red Hat, SUSE.
const STORES: [Store; 3] = [
    Store {
        anchors: "/usr/local/share/ca-certificates",
        extension: "crt",
        update: &["update-ca-certificates"],
        links: Some("/etc/ssl/certs"),
    },
    Store {
        anchors: "/etc/pki/ca-trust/source/anchors",
        extension: "pem",
        update: &["update-ca-trust", "extract"],
        links: None,
    },
    Store {
        anchors: "/etc/pki/trust/anchors",
        extension: "pem",
        update: &["update-ca-certificates"],
        links: None,
    },
];

/// What our files in a store begin with; the start of the certificate's fingerprint follows.
const PREFIX: &str = "interceptor-";

/// Which of its certificates Debian's store leaves out.
const DEBIAN_SETTINGS: &str = "/etc/ca-certificates.conf";

pub(super) fn run(context: &Context, command: &Command) -> Outcome {
    if let Command::Uninstall { all: true } = command {
        let store = store()?;
        return uninstall(store, &ours(store)?);
    }
    let authority: AuthorityCertificate = context.client.get("/v1/ca")?;
    match command {
        Command::Show => show(context, &authority.pem),
        Command::Install => install(&authority.pem),
        Command::Uninstall { .. } => {
            let store = store()?;
            uninstall(store, &[store.place(&authority.pem)?])
        }
    }
}

fn show(context: &Context, pem: &str) -> Outcome {
    if !context.is_json() {
        print(pem)?;
        return Ok(ExitCode::SUCCESS);
    }
    let der = der(pem)?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(Failed::because)?;
    let time = |time: x509_parser::time::ASN1Time| time.to_datetime().to_string();
    context.print_json(&serde_json::json!({
        "subject": parsed.subject().to_string(),
        "sha256": fingerprint(&der),
        "not_before": time(parsed.validity().not_before),
        "not_after": time(parsed.validity().not_after),
        "pem": pem,
    }))
}

fn der(pem: &str) -> Result<CertificateDer<'static>, Failed> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| {
        Failed::because(format!("the daemon's certificate can't be read: {error}"))
    })
}

fn fingerprint(der: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, der).as_ref())
}

/// The store that this system has.
fn store() -> Result<&'static Store, Failed> {
    // Debian's folder is there on SUSE too, but not the other way round.
    let mut stores = STORES.iter().rev();
    stores
        .find(|store| Path::new(store.anchors).is_dir())
        .ok_or_else(|| {
            Failed::because("this system has none of the stores that Debian, Red Hat and SUSE have")
                .with_remedy("put the output of `interceptor ca show` where its programs look")
        })
}

impl Store {
    /// The file that is this certificate's.
    fn place(&self, pem: &str) -> Result<PathBuf, Failed> {
        let fingerprint = fingerprint(&der(pem)?);
        let short = fingerprint.get(..16).unwrap_or_default();
        let name = format!("{PREFIX}{short}.{}", self.extension);
        Ok(Path::new(self.anchors).join(name))
    }
}

/// The files of ours, known by having the name that their content gives them.
fn ours(store: &Store) -> Result<Vec<PathBuf>, Failed> {
    let entries = fs::read_dir(store.anchors).map_err(Failed::because)?;
    let paths = entries.flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        let pem = fs::read_to_string(path).unwrap_or_default();
        store.place(&pem).is_ok_and(|place| place == *path)
    };
    Ok(paths.filter(is_ours).collect())
}

fn install(pem: &str) -> Outcome {
    let store = store()?;
    let path = store.place(pem)?;
    if fs::read_to_string(&path).is_ok_and(|there| there == pem) {
        message(&format!("{} is there already", path.display()));
    } else {
        write(&path, pem).map_err(|error| not_root(&path, &error))?;
        message(&format!("wrote {}", path.display()));
    }
    call(store.update, &[]).map_err(|failed| {
        failed.with_remedy("`interceptor ca uninstall` takes the certificate away again")
    })?;
    message(
        "programs that read the system's store trust it now; running ones when they start again",
    );
    Ok(ExitCode::SUCCESS)
}

/// A file that everybody can read, whatever our umask is, and that is there as a whole or not at all.
fn write(path: &Path, pem: &str) -> io::Result<()> {
    let draft = path.with_extension("new");
    // Of an installation that was interrupted.
    if let Err(error) = fs::remove_file(&draft)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .open(&draft)?;
    file.write_all(pem.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

fn uninstall(store: &Store, paths: &[PathBuf]) -> Outcome {
    for path in paths {
        // The draft of an installation that was interrupted is nothing to speak of.
        let _ = fs::remove_file(path.with_extension("new"));
        match fs::remove_file(path) {
            Ok(()) => message(&format!("removed {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                message(&format!("{} isn't there", path.display()));
            }
            Err(error) => return Err(not_root(path, &error)),
        }
    }
    if paths.is_empty() {
        message(&format!("{} has none of ours", store.anchors));
    }
    let Some(links) = store.links else {
        call(store.update, &[])?;
        return Ok(ExitCode::SUCCESS);
    };
    withdraw(store, paths)?;
    let link =
        |path: &PathBuf| Some(Path::new(links).join(path.with_extension("pem").file_name()?));
    let is_left = |link: &PathBuf| link.symlink_metadata().is_ok();
    if paths.iter().filter_map(link).any(|link| is_left(&link)) {
        // An `update-ca-certificates` that knows fewer options; this takes away all links and makes them anew.
        call(store.update, &["--fresh".as_ref()])?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Has Debian's store forget anchors that are gone, as if the administrator had deselected them: so links
/// of others stay, and what hangs on the store (Java's) is told. `--fresh` would do neither.
fn withdraw(store: &Store, paths: &[PathBuf]) -> Result<(), Failed> {
    let mut settings = fs::read(DEBIAN_SETTINGS).unwrap_or_default();
    for name in paths.iter().filter_map(|path| path.file_name()) {
        settings.extend([b"\n!", name.as_bytes()].concat());
    }
    settings.push(b'\n');
    // In memory: a file could be left behind.
    let file = memfd_create("ca-certificates.conf", MFdFlags::MFD_CLOEXEC)
        .map_err(|error| Failed::because(error.desc()))?;
    let mut file = fs::File::from(file);
    file.write_all(&settings).map_err(Failed::because)?;
    let path = format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd());
    call(store.update, &["--certsconf".as_ref(), path.as_ref()])
}

fn not_root(path: &Path, error: &io::Error) -> Failed {
    let failed = Failed::because(format!("{}: {error}", path.display()));
    if error.kind() == io::ErrorKind::PermissionDenied {
        failed.with_remedy("the system's store is root's; run it with sudo")
    } else {
        failed
    }
}

fn call(command: &[&str], more: &[&OsStr]) -> Result<(), Failed> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    // What these scripts write is for everybody to read.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let run = |program: &str| {
        let mut command = process::Command::new(program);
        command.args(arguments).args(more).output()
    };
    let output = match run(program) {
        // After `su`, root's own folders aren't looked in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            run(&format!("/usr/sbin/{program}"))
        }
        output => output,
    };
    let output =
        output.map_err(|error| Failed::because(format!("`{program}` can't be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failed::because(format!(
        "`{}` failed ({}): {}",
        command.join(" "),
        output.status,
        said.trim()
    )))
}
