//! Where the programs on a host keep the certificates they trust.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The system's bundles, where the distributions have them.
pub(super) const SYSTEM: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/lib/ssl/cert.pem",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
];

/// Bundles that packages of Python bring, below a folder of packages.
const OF_PACKAGES: [&str; 8] = [
    "certifi/cacert.pem",
    "pip/_vendor/certifi/cacert.pem",
    "pip/_vendor/requests/cacert.pem",
    "botocore/cacert.pem",
    "httplib2/cacerts.txt",
    "grpc/_cython/_credentials/roots.pem",
    "google/auth/transport/cacert.pem",
    "pipenv/patched/pip/_vendor/certifi/cacert.pem",
];

/// Bundles that environments of conda and the like bring, below their root.
const OF_ENVIRONMENTS: [&str; 2] = ["ssl/cacert.pem", "ssl/cert.pem"];

/// Folders that are looked through for at most.
const FOLDERS_MAX: usize = 60_000;

/// How long is looked for at most: the command waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) bundles: BTreeSet<PathBuf>,
    /// Why there may be more.
    pub(super) problem: Option<String>,
}

/// Whether a file of this name is a bundle of certificates.
pub(super) fn is_bundle_name(name: &str) -> bool {
    matches!(
        name,
        "ca-certificates.crt"
            | "ca-bundle.crt"
            | "ca-bundle.trust.crt"
            | "tls-ca-bundle.pem"
            | "cert.pem"
            | "ca-bundle.pem"
    )
}

/// All bundles: the system's, and those that packages brought, wherever they are installed.
pub(super) fn bundles(home: Option<&Path>) -> Found {
    let mut found = Found::default();
    let system = SYSTEM.iter().map(PathBuf::from);
    found.bundles.extend(system.filter(|path| path.is_file()));
    let mut open: VecDeque<PathBuf> = VecDeque::new();
    // What the command is most likely to use first.
    let named = ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME"];
    open.extend(
        named
            .into_iter()
            .filter_map(std::env::var_os)
            .map(PathBuf::from),
    );
    open.extend(
        std::env::current_dir()
            .ok()
            .filter(|folder| folder != Path::new("/")),
    );
    open.extend(["/usr/lib", "/usr/local", "/opt"].map(PathBuf::from));
    open.extend(home.map(Path::to_owned));
    open.extend(
        std::env::var_os("PYTHONPATH")
            .iter()
            .flat_map(std::env::split_paths),
    );
    let started = Instant::now();
    let mut seen = BTreeSet::new();
    while let Some(folder) = open.pop_front() {
        if seen.len() >= FOLDERS_MAX || started.elapsed() > PATIENCE {
            found.problem = Some(format!(
                "not all folders were looked through for bundles of certificates ({} were); set SSL_CERT_FILE for what still fails",
                seen.len()
            ));
            break;
        }
        if !seen.insert(folder.clone()) {
            continue;
        }
        look_into(&folder, &mut found.bundles, &mut open);
    }
    found
}

fn look_into(folder: &Path, bundles: &mut BTreeSet<PathBuf>, open: &mut VecDeque<PathBuf>) {
    let name = folder.file_name().unwrap_or_default();
    if name == "site-packages" || name == "dist-packages" {
        let files = OF_PACKAGES.iter().map(|file| folder.join(file));
        bundles.extend(files.filter(|file| file.is_file()));
        return;
    }
    if folder.join("conda-meta").is_dir() {
        let files = OF_ENVIRONMENTS.iter().map(|file| folder.join(file));
        bundles.extend(files.filter(|file| file.is_file()));
    }
    // Whoever can't read a folder can't use what is in it.
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let skipped = |name: &str| {
            matches!(
                name,
                ".git"
                    | "node_modules"
                    | "target"
                    | ".cache"
                    | ".cargo"
                    | ".rustup"
                    | "share"
                    | "include"
                    | "doc"
                    | "__pycache__"
            )
        };
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && !entry.file_name().to_str().is_none_or(skipped)
        {
            open.push_back(entry.path());
        }
    }
    // pipx and uv keep their environments where much else is.
    if folder.ends_with(".local") {
        open.extend(["share/pipx", "share/uv"].map(|below| folder.join(below)));
    }
}

/// The trust stores of all Java runtimes.
pub(super) fn java_stores() -> BTreeSet<PathBuf> {
    let mut homes: Vec<PathBuf> = std::env::var_os("JAVA_HOME")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    for folder in ["/usr/lib/jvm", "/usr/lib64/jvm", "/usr/java", "/opt/java"] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        homes.extend(entries.map(|entry| entry.path()));
    }
    let below = ["lib/security/cacerts", "jre/lib/security/cacerts"];
    let mut stores: BTreeSet<PathBuf> = homes
        .iter()
        .flat_map(|home| below.iter().map(move |store| home.join(store)))
        .collect();
    stores.insert("/etc/ssl/certs/java/cacerts".into());
    stores.insert("/etc/pki/ca-trust/extracted/java/cacerts".into());
    stores.retain(|store| store.is_file());
    stores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_of_virtual_environments_are_found() {
        let home = tempfile::tempdir().unwrap();
        let packages = home.path().join("work/.venv/lib/python3.13/site-packages");
        for file in [
            "certifi/cacert.pem",
            "pip/_vendor/certifi/cacert.pem",
            "other/cacert.pem",
        ] {
            fs::create_dir_all(packages.join(file).parent().unwrap()).unwrap();
            fs::write(packages.join(file), "x").unwrap();
        }
        let found = bundles(Some(home.path())).bundles;
        let own: Vec<_> = found
            .iter()
            .filter(|path| path.starts_with(home.path()))
            .collect();
        assert_eq!(
            own,
            [
                &packages.join("certifi/cacert.pem"),
                &packages.join("pip/_vendor/certifi/cacert.pem")
            ]
        );
    }
}
