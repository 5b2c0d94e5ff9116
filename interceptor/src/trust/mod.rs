//! Trust without configuration: a launched agent finds our certificate in every bundle that its programs
//! read, and nobody else's view of the file system changes.
//!
//! It must never give an agent what it couldn't read, or anything but its own content with our certificate
//! added in the place of a file: setuid programs have the agent's view too.

mod bundle;
mod find;
mod folder;
mod hash;
mod java;
mod nss;
mod pkcs12;
mod reach;
mod settings;
mod stage;
mod walk;

use std::{
    ffi::{OsStr, OsString},
    fmt, fs, io,
    path::{Path, PathBuf},
};

pub use self::reach::Identity;
use self::{reach::Place, stage::Stage};

/// Whom it is shown to.
#[derive(Debug)]
pub struct Agent<'a> {
    /// With whose rights files are looked for and read.
    pub identity: Identity,
    /// Whose virtual environments are looked for.
    pub home: Option<&'a Path>,
    /// What will be run: what is installed beside it comes first.
    pub program: &'a OsStr,
}

/// What a launched command has of it.
#[derive(Debug, Default)]
pub struct Shown {
    /// Variables to set.
    pub environment: Vec<(&'static str, OsString)>,
    /// What won't trust it, and why.
    pub problems: Vec<String>,
}

/// Variables for programs whose roots are compiled in and which no file reaches: they name more.
const NAMES_MORE: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

/// Variables for programs that bring their roots along and may be installed only by the agent itself, into
/// folders that aren't there yet: they name all.
const NAMES_ALL: [&str; 2] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"];

/// Has this process, and what it becomes, see `certificate` (PEM) in all bundles.
///
/// # Errors
/// When this process can't have a view of its own; nothing has changed then.
pub fn show(certificate: &str, agent: &Agent<'_>) -> io::Result<Shown> {
    let identity = agent.identity;
    let found = identity.assume(|| find::all(agent.home, agent.program))?;
    let mut overlay = Overlay {
        stage: Stage::new()?,
        identity,
        certificate,
        own: None,
        problems: Vec::from_iter(found.problem),
    };
    for folder in find::HASHED.iter().chain(&find::ANCHORS) {
        overlay.folder(Path::new(folder), false);
    }
    for folder in settings::folders() {
        overlay.folder(&folder, true);
    }
    for bundle in &found.bundles {
        overlay.bundle(bundle, &bundle.display());
    }
    // A variable that names nothing is as good as none.
    let mut named = Vec::new();
    for (variable, path) in settings::variables() {
        if overlay.bundle(&path, &format_args!("{variable}={}", path.display())) {
            named.push(variable);
        }
    }
    let roots = overlay.system_bundle();
    for store in &found.java {
        overlay.java(store, roots.as_deref());
    }
    overlay.nss();
    overlay.refresh_working_folder();
    let mut environment = Vec::new();
    for (variables, file) in [(NAMES_MORE, &overlay.own), (NAMES_ALL, &roots)] {
        for variable in variables {
            let is_free = variables == NAMES_MORE || settings::value(variable).is_none();
            match file {
                Some(file) if is_free && !named.contains(&variable) => {
                    environment.push((variable, file.clone().into_os_string()));
                }
                _ => {}
            }
        }
    }
    if overlay.own.is_none() {
        let text = format!(
            "there is no folder of certificates such as {} to put it into, so what needs {} won't trust it",
            find::HASHED.first().copied().unwrap_or_default(),
            NAMES_MORE.join(" or ")
        );
        overlay.problems.push(text);
    }
    overlay.stage.seal()?;
    Ok(Shown {
        environment,
        problems: overlay.problems,
    })
}

/// Puts files together and shows them in the place of others.
struct Overlay<'a> {
    stage: Stage,
    identity: Identity,
    certificate: &'a str,
    /// Where it is seen by itself.
    own: Option<PathBuf>,
    problems: Vec<String>,
}

impl Overlay<'_> {
    /// What is seen at `path`, where the agent can reach it.
    fn reach(&self, path: &Path) -> Option<Place> {
        self.identity.assume(|| Place::at(path)).ok()?.ok()
    }

    /// What the agent itself would read there.
    fn read(&self, place: &Place, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.identity.assume(|| place.read(bytes_max))?
    }

    fn problem(&mut self, what: &dyn fmt::Display, error: &io::Error) {
        self.problems
            .push(format!("what reads {what} won't trust it: {error}"));
    }

    /// Shows a file of certificates with ours among them; whether it is there then.
    fn bundle(&mut self, path: &Path, what: &dyn fmt::Display) -> bool {
        let Some(place) = self.reach(path) else {
            return false;
        };
        let shown = self.merged(&place).and_then(|merged| {
            let Some(merged) = merged else {
                return Ok(());
            };
            let new = self.stage.file(&merged, place.metadata())?;
            stage::show(&new, &place)
        });
        if let Err(error) = &shown {
            self.problem(what, error);
        }
        shown.is_ok()
    }

    /// The certificates in `place` with ours among them; nothing where it is already.
    fn merged(&self, place: &Place) -> io::Result<Option<Vec<u8>>> {
        let content = self.read(place, bundle::BYTES_MAX)?;
        if bundle::has(&content, self.certificate) {
            return Ok(None);
        }
        // The system's own may be empty: nothing that a destination's certificate needs is in it.
        let is_empty = content.is_empty() && is_system(place.path());
        if !is_empty && !bundle::is_one(&content) {
            return Err(reach::invalid(
                "it holds no certificates, or a key with them",
            ));
        }
        Ok(Some(bundle::with(&content, self.certificate)))
    }

    /// The system's own bundle as the agent sees it.
    fn system_bundle(&self) -> Option<PathBuf> {
        let mut bundles = find::SYSTEM.iter().map(PathBuf::from);
        bundles.find(|bundle| self.reach(bundle).is_some())
    }

    fn java(&mut self, path: &Path, roots: Option<&Path>) {
        let Some(place) = self.reach(path) else {
            return;
        };
        let shown = self.java_store(&place, roots).and_then(|store| {
            let Some(store) = store else {
                return Ok(None);
            };
            let new = self.stage.file(&store.content, place.metadata())?;
            stage::show(&new, &place)?;
            Ok(store.problem)
        });
        match shown {
            Ok(None) => {}
            Ok(Some(problem)) => self.problems.push(format!("{}: {problem}", path.display())),
            Err(error) => self.problem(&path.display(), &error),
        }
    }

    /// A store with our certificate in it; nothing where it is already.
    fn java_store(&self, place: &Place, roots: Option<&Path>) -> io::Result<Option<java::Store>> {
        let content = self.read(place, java::BYTES_MAX)?;
        if java::has(&content, self.certificate) {
            return Ok(None);
        }
        let roots = roots.and_then(|roots| fs::read_to_string(roots).ok());
        java::with(&content, self.certificate, &roots.unwrap_or_default()).map(Some)
    }

    /// The command may start in a folder that was covered: it is entered anew, where the agent can.
    fn refresh_working_folder(&self) {
        if let Ok(here) = std::env::current_dir() {
            // It stays where it is otherwise.
            let _ = self.identity.assume(|| std::env::set_current_dir(here));
        }
    }
}

fn is_system(path: &Path) -> bool {
    find::SYSTEM.iter().any(|system| path == Path::new(system))
}
