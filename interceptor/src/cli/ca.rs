//! `interceptor ca`: the certificate that clients have to trust.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{self, ExitCode},
};

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    Context, Outcome,
    display::{message, print},
    failed::Failed,
};
use crate::console::AuthorityCertificate;

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
    Uninstall,
}

/// The ways in which distributions keep what the administrator trusts.
struct Store {
    anchors: &'static str,
    extension: &'static str,
    update: &'static [&'static str],
    /// What takes effect after something was removed.
    refresh: &'static [&'static str],
}

/// Debian, Red Hat, SUSE.
const STORES: [Store; 3] = [
    Store {
        anchors: "/usr/local/share/ca-certificates",
        extension: "crt",
        update: &["update-ca-certificates"],
        refresh: &["update-ca-certificates", "--fresh"],
    },
    Store {
        anchors: "/etc/pki/ca-trust/source/anchors",
        extension: "pem",
        update: &["update-ca-trust", "extract"],
        refresh: &["update-ca-trust", "extract"],
    },
    Store {
        anchors: "/etc/pki/trust/anchors",
        extension: "pem",
        update: &["update-ca-certificates"],
        refresh: &["update-ca-certificates"],
    },
];

pub(super) fn run(context: &Context, command: &Command) -> Outcome {
    let authority: AuthorityCertificate = context.client.get("/v1/ca")?;
    match command {
        Command::Show => show(context, &authority.pem),
        Command::Install => install(&authority.pem),
        Command::Uninstall => uninstall(&authority.pem),
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

/// The file that is this certificate's, in the store that this system has.
fn place(pem: &str) -> Result<(&'static Store, PathBuf), Failed> {
    // Debian's folder is there on SUSE too, but not the other way round.
    let store = STORES
        .iter()
        .rev()
        .find(|store| Path::new(store.anchors).is_dir())
        .ok_or_else(|| {
            Failed::because("this system has none of the stores that Debian, Red Hat and SUSE have")
                .with_remedy("put the output of `interceptor ca show` where its programs look")
        })?;
    let fingerprint = fingerprint(&der(pem)?);
    let short = fingerprint.get(..16).unwrap_or_default();
    let name = format!("interceptor-{short}.{}", store.extension);
    Ok((store, Path::new(store.anchors).join(name)))
}

fn install(pem: &str) -> Outcome {
    let (store, path) = place(pem)?;
    if fs::read_to_string(&path).is_ok_and(|there| there == pem) {
        message(&format!("{} is there already", path.display()));
    } else {
        let draft = path.with_extension("new");
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&draft)
            .and_then(|mut file| io::Write::write_all(&mut file, pem.as_bytes()))
            .and_then(|()| fs::rename(&draft, &path));
        written.map_err(|error| not_root(&path, &error))?;
        message(&format!("wrote {}", path.display()));
    }
    call(store.update)?;
    message(
        "programs that read the system's store trust it now; running ones when they start again",
    );
    Ok(ExitCode::SUCCESS)
}

fn uninstall(pem: &str) -> Outcome {
    let (store, path) = place(pem)?;
    match fs::remove_file(&path) {
        Ok(()) => message(&format!("removed {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            message(&format!("{} isn't there", path.display()));
        }
        Err(error) => return Err(not_root(&path, &error)),
    }
    call(store.refresh)?;
    Ok(ExitCode::SUCCESS)
}

fn not_root(path: &Path, error: &io::Error) -> Failed {
    let failed = Failed::because(format!("{}: {error}", path.display()));
    if error.kind() == io::ErrorKind::PermissionDenied {
        failed.with_remedy("the system's store is root's; run it with sudo")
    } else {
        failed
    }
}

fn call(command: &[&str]) -> Result<(), Failed> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let output = process::Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| Failed::because(format!("`{program}` can't be run: {error}")))?;
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
