//! Where the programs on a host keep the certificates they trust.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::{reach::Place, settings, walk};

/// The system's bundles, where the distributions have them: Debian, Red Hat, SUSE, Alpine, Arch.
pub(super) const SYSTEM: [&str; 9] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/openssl/ca-bundle.trust.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/lib/ssl/cert.pem",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
];

/// The folders in which OpenSSL finds certificates by their names' hashes.
pub(super) const HASHED: [&str; 5] = [
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted/pem/directory-hash",
    "/var/lib/ca-certificates/openssl",
    "/var/lib/ca-certificates/pem",
];

/// The folders from which p11-kit takes what the administrator trusts: for GnuTLS and NSS, except on Debian.
pub(super) const ANCHORS: [&str; 3] = [
    "/etc/pki/ca-trust/source/anchors",
    "/etc/pki/trust/anchors",
    "/etc/ca-certificates/trust-source/anchors",
];

/// Bundles and stores that stand in one place.
const FIXED: [&str; 3] = [
    "/usr/share/perl5/Mozilla/CA/cacert.pem",
    "/home/linuxbrew/.linuxbrew/etc/ca-certificates/cert.pem",
    "/nix/var/nix/profiles/default/etc/ssl/certs/ca-bundle.crt",
];

/// Bundles that packages of Python bring, below a folder of packages.
const OF_PACKAGES: [&str; 8] = [
    "certifi/cacert.pem",
    "pip/_vendor/certifi/cacert.pem",
    "pip/_vendor/requests/cacert.pem",
    "botocore/cacert.pem",
    "httplib2/cacerts.txt",
    "grpc/_cython/_credentials/roots.pem",
    "stripe/data/ca-certificates.crt",
    "pipenv/patched/pip/_vendor/certifi/cacert.pem",
];

/// Bundles that environments of conda and the like bring, below their root.
const OF_ENVIRONMENTS: [&str; 2] = ["ssl/cacert.pem", "ssl/cert.pem"];

/// Stores below the home of a Java runtime; the first is read in the place of the second.
const OF_JAVA: [&str; 3] = [
    "lib/security/jssecacerts",
    "lib/security/cacerts",
    "jre/lib/security/cacerts",
];

/// Where NSS's built-in roots are, as a module, below a folder of libraries.
const OF_NSS: [&str; 2] = ["libnssckbi.so", "nss/libnssckbi.so"];

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) bundles: BTreeSet<PathBuf>,
    pub(super) java: BTreeSet<PathBuf>,
    /// Why there may be more.
    pub(super) problem: Option<String>,
}

impl Found {
    fn bundle(&mut self, path: PathBuf) {
        if path.is_file() {
            self.bundles.insert(path);
        }
    }

    fn store(&mut self, path: PathBuf) {
        if path.is_file() {
            self.java.insert(path);
        }
    }

    /// What a folder of Python's packages has.
    pub(super) fn packages(&mut self, folder: &Path) {
        for file in OF_PACKAGES {
            self.bundle(folder.join(file));
        }
    }

    /// What is below the root of an environment: `/usr`, a virtual one, conda's, Java's.
    pub(super) fn environment(&mut self, root: &Path) {
        for folder in ["lib", "lib64"].map(|name| root.join(name)) {
            for version in names(&folder).filter(|name| is_python(name)) {
                for packages in ["site-packages", "dist-packages"] {
                    self.packages(&folder.join(&version).join(packages));
                }
            }
        }
        for file in OF_ENVIRONMENTS {
            self.bundle(root.join(file));
        }
        for file in OF_JAVA {
            self.store(root.join(file));
        }
    }

    /// A file by the names of it and its folder: what is installed in ways of its own.
    pub(super) fn file(&mut self, folder: &Path, name: &OsStr) {
        let parent = folder.file_name().unwrap_or_default().as_bytes();
        match (parent, name.as_bytes()) {
            (
                b"certifi" | b"botocore" | b"requests" | b"httpclient" | b"CA" | b"res",
                b"cacert.pem",
            )
            | (b"httplib2", b"cacerts.txt")
            | (b"_credentials", b"roots.pem")
            | (b"ca-certificates" | b"julia", b"cert.pem") => self.bundle(folder.join(name)),
            (gem, b"ca-bundle.crt") if gem.starts_with(b"aws-sdk-core") => {
                self.bundle(folder.join(name));
            }
            (b"security", b"cacerts" | b"jssecacerts") => self.store(folder.join(name)),
            _ => {}
        }
    }
}

/// All bundles and stores: the system's, and those that packages brought, wherever they are installed.
pub(super) fn all(home: Option<&Path>, program: &OsStr) -> Found {
    let mut found = Found::default();
    for path in SYSTEM.iter().chain(&FIXED) {
        found.bundle(path.into());
    }
    for store in [
        "/etc/ssl/certs/java/cacerts",
        "/etc/pki/ca-trust/extracted/java/cacerts",
        "/var/lib/ca-certificates/java-cacerts",
    ] {
        found.store(store.into());
    }
    for root in roots(program) {
        found.environment(&root);
    }
    let packages = settings::value("PYTHONPATH").unwrap_or_default();
    for folder in env::split_paths(&packages) {
        found.packages(&folder);
    }
    for path in settings::files(home) {
        found.bundle(path);
    }
    walk::everywhere(home, &mut found);
    found
}

/// The roots of environments that are known by name: those that the command runs in first.
fn roots(program: &OsStr) -> BTreeSet<PathBuf> {
    let variables = ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "JAVA_HOME"];
    let mut roots: BTreeSet<PathBuf> = variables
        .into_iter()
        .filter_map(settings::value)
        .map(PathBuf::from)
        .collect();
    roots.extend(["/usr", "/usr/local"].map(PathBuf::from));
    let path = settings::value("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path)
        .filter(|at| at.is_absolute())
        .collect();
    roots.extend(folders.iter().filter_map(|folder| above(folder)));
    for folder in ["/usr/lib/jvm", "/usr/lib64/jvm", "/usr/java"].map(Path::new) {
        roots.extend(names(folder).map(|name| folder.join(name)));
    }
    // `interceptor run -- /path/to/environment/bin/program`, which may be a link or a script.
    let script = find_program(program.as_bytes(), &folders);
    let interpreter = script.as_deref().and_then(interpreter);
    for start in script.into_iter().chain(interpreter) {
        roots.extend(
            links(start)
                .iter()
                .filter_map(|program| above(program.parent()?)),
        );
    }
    roots
}

fn above(folder: &Path) -> Option<PathBuf> {
    folder
        .parent()
        .filter(|root| *root != Path::new("/"))
        .map(Path::to_owned)
}

fn find_program(program: &[u8], folders: &[PathBuf]) -> Option<PathBuf> {
    let program = Path::new(OsStr::from_bytes(program));
    if program.components().count() > 1 {
        return std::path::absolute(program).ok();
    }
    let mut candidates = folders.iter().map(|folder| folder.join(program));
    candidates.find(|candidate| candidate.is_file())
}

/// What the first line of a script says that it is run by.
fn interpreter(script: &Path) -> Option<PathBuf> {
    /// As much as the kernel reads.
    const LINE_BYTES_MAX: u64 = 256;

    let line = Place::at(script).ok()?.start(LINE_BYTES_MAX).ok()?;
    let line = line
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let program = line.trim_ascii().split(|&byte| byte == b' ').next()?;
    Some(OsStr::from_bytes(program).into())
}

/// A path, and what it is a link to, and so on: Python knows its environment by the link.
fn links(start: PathBuf) -> Vec<PathBuf> {
    const LINKS_MAX: usize = 8;
    let next = |path: &PathBuf| Some(path.parent()?.join(fs::read_link(path).ok()?));
    std::iter::successors(Some(start), next)
        .take(LINKS_MAX)
        .collect()
}

/// NSS's modules with built-in roots, and p11-kit's, which can take their place because they read the
/// system's.
pub(super) fn nss_modules() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let folder = folder.to_owned();
        names(&folder).map(|name| folder.join(name)).collect()
    };
    let mut folders = below(Path::new("/usr/lib"));
    folders.extend(below(Path::new("/opt")));
    folders.extend(["/usr/lib", "/usr/lib64"].map(PathBuf::from));
    let all = |files: &[&str]| {
        let files = folders
            .iter()
            .flat_map(|folder| files.iter().map(move |file| folder.join(file)));
        files.filter(|file| file.is_file()).collect()
    };
    (all(&OF_NSS), all(&["pkcs11/p11-kit-trust.so"]))
}

/// Whether a file of this name is a bundle of certificates.
pub(super) fn is_bundle_name(name: &OsStr) -> bool {
    SYSTEM
        .iter()
        .any(|path| Path::new(path).file_name() == Some(name))
}

fn is_python(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"python") || name.starts_with(b"pypy")
}

/// The names in a folder. Whoever can't read a folder can't use what is in it.
fn names(folder: &Path) -> impl Iterator<Item = std::ffi::OsString> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name())
}
