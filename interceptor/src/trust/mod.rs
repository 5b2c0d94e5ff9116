//! Trust without configuration: a launched agent finds our certificate in every bundle that its programs
//! read, and nobody else's view of the file system changes.

mod find;
mod hash;
mod java;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// Where the files are put together, in a file system that only the agent has.
const STAGE: &str = "/run/interceptor-trust";

/// The folders in which OpenSSL finds certificates by their names' hashes.
const HASHED: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// Variables that name a bundle; what they point at is one more.
const NAMES_A_BUNDLE: [&str; 13] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "DENO_CERT",
    "PGSSLROOTCERT",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "npm_config_cafile",
];

/// The variable for Node, whose roots are compiled in and which no file reaches.
const FOR_NODE: &str = "NODE_EXTRA_CA_CERTS";

/// What a launched command has of it.
#[derive(Debug, Default)]
pub struct Shown {
    /// The files and folders in the place of which others are seen.
    pub places: BTreeSet<PathBuf>,
    /// Variables to set.
    pub environment: Vec<(&'static str, OsString)>,
    /// What won't trust it, and why.
    pub problems: Vec<String>,
}

/// Has this process, and what it becomes, see `certificate` (PEM) in all bundles. `home` is whose
/// virtual environments are looked for.
///
/// # Errors
/// When this process can't have a view of its own; nothing has changed then.
pub fn show(certificate: &str, home: Option<&Path>) -> io::Result<Shown> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted here stays here; what the host mounts is still seen.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let stage = Path::new(STAGE);
    match fs::DirBuilder::new().mode(0o755).create(stage) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("interceptor"),
        stage,
        Some("tmpfs"),
        flags,
        Some("mode=0755,size=256m"),
    )?;
    let mut overlay = Overlay {
        stage,
        certificate,
        count: 0,
        shown: Shown::default(),
    };
    for folder in HASHED {
        overlay.folder(Path::new(folder));
    }
    let named = NAMES_A_BUNDLE
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from);
    let found = find::bundles(home);
    overlay.shown.problems.extend(found.problem);
    for bundle in found.bundles.into_iter().chain(named) {
        overlay.bundle(&bundle);
    }
    let roots = overlay.system_roots();
    for store in find::java_stores() {
        overlay.java(&store, &roots);
    }
    if std::env::var_os(FOR_NODE).is_none() {
        let own = Path::new("/etc/ssl/certs").join(hash::FILE_NAME);
        if own.exists() {
            overlay.shown.environment.push((FOR_NODE, own.into()));
        } else {
            overlay.shown.problems.push(format!(
                "Node won't trust it: there is no /etc/ssl/certs to put it into; set {FOR_NODE}"
            ));
        }
    }
    let shown = overlay.shown;
    // The files live on in the places where they are seen.
    umount2(stage, MntFlags::MNT_DETACH)?;
    Ok(shown)
}

/// Puts files together and shows them in the place of others.
struct Overlay<'a> {
    stage: &'a Path,
    certificate: &'a str,
    count: u32,
    shown: Shown,
}

impl Overlay<'_> {
    fn fresh(&mut self) -> PathBuf {
        self.count += 1;
        self.stage.join(self.count.to_string())
    }

    /// Shows `new` in the place of `old`, read-only.
    fn bind(&mut self, new: &Path, old: PathBuf) -> io::Result<()> {
        let none: Option<&str> = None;
        mount(Some(new), &old, none, MsFlags::MS_BIND, none)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(
            none,
            &old,
            none,
            flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            none,
        )?;
        self.shown.places.insert(old);
        Ok(())
    }

    fn problem(&mut self, place: &Path, error: &io::Error) {
        self.shown.problems.push(format!(
            "what reads {} won't trust it: {error}",
            place.display()
        ));
    }

    /// Shows a file of certificates with ours behind them.
    fn bundle(&mut self, place: &Path) {
        // Where it is a link, the file is what others read too.
        let Ok(place) = place.canonicalize() else {
            return;
        };
        if self.is_shown(&place) {
            return;
        }
        let shown = (|| {
            let Some(merged) = self.merged(&place)? else {
                return Ok(());
            };
            let new = self.fresh();
            fs::write(&new, merged)?;
            self.bind(&new, place.clone())
        })();
        if let Err(error) = shown {
            self.problem(&place, &error);
        }
    }

    /// Whether another file is seen there, or the folder it is in was put together anew.
    fn is_shown(&self, place: &Path) -> bool {
        place
            .ancestors()
            .any(|folder| self.shown.places.contains(folder))
    }

    /// The certificates in `place` with ours behind them; nothing where there are none.
    fn merged(&self, place: &Path) -> io::Result<Option<String>> {
        /// Bundles of all public roots have some 220 KiB.
        const BUNDLE_BYTES_MAX: u64 = 8 << 20;
        let metadata = fs::metadata(place)?;
        if !metadata.is_file() || metadata.len() > BUNDLE_BYTES_MAX {
            return Ok(None);
        }
        let mut merged = String::from_utf8_lossy(&fs::read(place)?).into_owned();
        if !merged.contains("-----BEGIN CERTIFICATE-----") {
            return Ok(None);
        }
        merged.push('\n');
        merged.push_str(self.certificate);
        Ok(Some(merged))
    }

    /// Shows a folder of certificates with ours in it, under the name by which OpenSSL looks for it.
    fn folder(&mut self, place: &Path) {
        let Ok(place) = place.canonicalize() else {
            return;
        };
        if !place.is_dir() || self.is_shown(&place) {
            return;
        }
        let shown = (|| {
            let new = self.fresh();
            self.copy_folder(&place, &new)?;
            fs::write(new.join(hash::FILE_NAME), self.certificate)?;
            let name = hash::of_subject(self.certificate).ok_or_else(|| {
                io::Error::other("the certificate authority's name can't be read")
            })?;
            // Of certificates with one hash each has its number.
            let link = (0..100)
                .map(|number| new.join(format!("{name:08x}.{number}")))
                .find(|link| link.symlink_metadata().is_err())
                .ok_or_else(|| io::Error::other("a hundred certificates have its hash"))?;
            std::os::unix::fs::symlink(hash::FILE_NAME, link)?;
            self.bind(&new, place.clone())
        })();
        if let Err(error) = shown {
            self.problem(&place, &error);
        }
    }

    /// Links as links, files as copies, and bundles and key stores among them with our certificate.
    fn copy_folder(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o755).create(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (old, new) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(&old)?, &new)?;
            } else if kind.is_dir() {
                self.copy_folder(&old, &new)?;
            } else if kind.is_file() {
                let name = entry.file_name();
                let is_bundle = find::is_bundle_name(&name.to_string_lossy());
                let merged = if is_bundle { self.merged(&old)? } else { None };
                match merged {
                    Some(merged) => fs::write(&new, merged)?,
                    None if name == "cacerts" => {
                        let roots = self.system_roots();
                        fs::write(
                            &new,
                            java::with(&fs::read(&old)?, self.certificate, &roots)?,
                        )?;
                    }
                    None => _ = fs::copy(&old, &new)?,
                }
                fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
            }
        }
        Ok(())
    }

    /// The system's own bundle, for stores of a form that can't be added to.
    fn system_roots(&self) -> String {
        let bundles = find::SYSTEM.iter().map(Path::new);
        let mut texts = bundles.filter_map(|bundle| fs::read_to_string(bundle).ok());
        texts.next().unwrap_or_default()
    }

    fn java(&mut self, place: &Path, roots: &str) {
        let Ok(place) = place.canonicalize() else {
            return;
        };
        if self.is_shown(&place) {
            return;
        }
        let shown = (|| {
            let store = java::with(&fs::read(&place)?, self.certificate, roots)?;
            let new = self.fresh();
            fs::write(&new, store)?;
            self.bind(&new, place.clone())
        })();
        if let Err(error) = shown {
            self.problem(&place, &error);
        }
    }
}
