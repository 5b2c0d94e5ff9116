//! The policies in force: read, validated, tested, swapped when their files change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use crate::sync::lock;
use arc_swap::ArcSwap;
use interceptor_core::{
    operation::{Operation, Protocol},
    policy::{Outcome, Policy, PolicyError, Problem},
    protocol::{
        dns, http,
        postgres::describe::{Describer, Lexing},
    },
    record::Timestamp,
};
use notify::Watcher as _;

/// How long files may keep changing before they are read: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(200);

/// The pack that is used where nothing else is configured.
pub const STARTER: &str = include_str!("../../policies/starter.yaml");

/// Name and text of each file that makes up a policy.
pub type Files = Vec<(String, String)>;

/// The policy in force and where it comes from.
#[derive(Debug)]
pub struct Policies {
    path: PathBuf,
    current: InForce,
    state: Mutex<State>,
    files: Mutex<Files>,
}

/// The policy in force.
#[derive(Debug)]
pub struct InForce(ArcSwap<Policy>);

impl InForce {
    /// `policy` is.
    #[must_use]
    pub fn new(policy: Arc<Policy>) -> Self {
        Self(ArcSwap::new(policy))
    }

    /// The policy that is.
    #[must_use]
    pub fn current(&self) -> Arc<Policy> {
        self.0.load_full()
    }

    /// Whether it is `policy`.
    #[must_use]
    pub fn is_current(&self, policy: &Arc<Policy>) -> bool {
        Arc::ptr_eq(&self.0.load(), policy)
    }

    /// `policy` is from now on.
    pub fn replace(&self, policy: Arc<Policy>) {
        self.0.store(policy);
    }
}

/// When the policy was loaded, and what is wrong with its files since.
#[derive(Debug, Clone)]
pub struct State {
    /// When the policy in force was loaded.
    pub loaded: Timestamp,
    /// Why the files as they are now can't be loaded.
    pub broken: Option<String>,
}

/// What a reload came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A policy of this hash is in force now.
    Loaded {
        /// Its hash.
        hash: String,
    },
    /// The files say what they said before.
    Unchanged,
    /// The files are broken; the policy before stays.
    Broken {
        /// What is wrong.
        error: String,
    },
}

/// The policy in the file or folder `path`. Beside `x.yaml`, `x.test.yaml` holds its cases.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn parse(path: &Path) -> Result<Policy, PolicyError> {
    Policy::parse(&files(path)?)
}

fn files(path: &Path) -> Result<Files, PolicyError> {
    read(path).map_err(|(path, error)| {
        let what = match error.kind() {
            io::ErrorKind::NotFound => {
                "there is no policy here; give --policies a file or a folder with *.yaml files"
                    .to_owned()
            }
            _ => format!("it can't be read: {error}"),
        };
        PolicyError(vec![Problem {
            file: path.display().to_string(),
            line: 0,
            column: 0,
            what,
        }])
    })
}

/// The policy in the file or folder `path`, its own cases run.
///
/// # Errors
/// Everything that is wrong with it, failed cases included, each with its place.
pub fn load(path: &Path) -> Result<Arc<Policy>, PolicyError> {
    tested(&files(path)?)
}

/// The policy that `files` make, its own cases run.
fn tested(files: &Files) -> Result<Arc<Policy>, PolicyError> {
    let policy = Arc::new(Policy::parse(files)?);
    let failed: Vec<Problem> = test(&policy)
        .into_iter()
        .filter_map(|(_, outcome)| match outcome {
            Outcome::Passed => None,
            Outcome::Failed(problem) => Some(problem),
        })
        .collect();
    if failed.is_empty() {
        Ok(policy)
    } else {
        Err(PolicyError(failed))
    }
}

/// Runs the policy's own cases: the name of each, and how it went.
#[must_use]
pub fn test(policy: &Arc<Policy>) -> Vec<(String, Outcome)> {
    let describe = describer();
    policy
        .cases()
        .iter()
        .map(|case| (case.name.clone(), case.run(policy, &describe)))
        .collect()
}

/// Makes operations of statements, as cases give them.
pub fn describer() -> impl Fn(Protocol, &str) -> Option<Operation> {
    let describer = Describer::default();
    move |protocol, statement: &str| match protocol {
        Protocol::Postgres => Some(Operation {
            protocol,
            description: describer
                .describe(statement.as_bytes(), Lexing::default())
                .description
                .clone(),
            content: statement.to_owned().into(),
            parameters: [].into(),
            options: Vec::new(),
            http: None,
        }),
        Protocol::Http => http::describe::example(statement),
        Protocol::Dns => dns::describe::example(statement),
        Protocol::Tls | Protocol::Opaque => None,
    }
}

/// Name and text of the files that make up the policy at `path`, in the order of their names.
fn read(path: &Path) -> Result<Files, (PathBuf, io::Error)> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let mut paths = Vec::new();
    if fs::metadata(path).map_err(failed(path))?.is_dir() {
        for entry in fs::read_dir(path).map_err(failed(path))? {
            let entry = entry.map_err(failed(path))?.path();
            if entry
                .extension()
                .is_some_and(|extension| extension == "yaml" || extension == "yml")
            {
                paths.push(entry);
            }
        }
        paths.sort();
    } else {
        paths.push(path.to_owned());
        let cases = path.with_extension("test.yaml");
        if cases.is_file() && cases != path {
            paths.push(cases);
        }
    }
    if paths.is_empty() {
        return Err((path.to_owned(), io::ErrorKind::NotFound.into()));
    }
    let text = |path: PathBuf| {
        Ok((
            path.display().to_string(),
            fs::read_to_string(&path).map_err(failed(&path))?,
        ))
    };
    paths.into_iter().map(text).collect()
}

impl Policies {
    /// Loads the policy at `path`.
    ///
    /// # Errors
    /// Where it is missing, broken, or fails its own cases.
    pub fn open(path: &Path) -> Result<Self, PolicyError> {
        let files = files(path)?;
        let policy = tested(&files)?;
        Ok(Self {
            files: Mutex::new(files),
            // Its folder is watched, and `policy.yaml` alone names none.
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            current: InForce::new(policy),
            state: Mutex::new(State {
                loaded: crate::clock::now(),
                broken: None,
            }),
        })
    }

    /// The policy in force.
    #[must_use]
    pub fn current(&self) -> Arc<Policy> {
        self.current.current()
    }

    /// The files that make it.
    #[must_use]
    pub fn files(&self) -> Files {
        let files = lock(&self.files);
        files.clone()
    }

    /// Where it is read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When it was loaded, and what is wrong since.
    #[must_use]
    pub fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// Reads the files again. A broken policy is never half in force: the one before stays.
    pub fn reload(&self) -> Change {
        // Held throughout, so that of two reloads at once the one that read last also stores last.
        let mut state = lock(&self.state);
        let loaded = files(&self.path).and_then(|files| Ok((tested(&files)?, files)));
        match loaded {
            Ok((policy, _)) if policy.hash() == self.current().hash() => {
                state.broken = None;
                Change::Unchanged
            }
            Ok((policy, files)) => {
                let hash = policy.hash().to_string();
                *lock(&self.files) = files;
                self.current.replace(policy);
                *state = State {
                    loaded: crate::clock::now(),
                    broken: None,
                };
                Change::Loaded { hash }
            }
            Err(error) => {
                let error = error.to_string();
                state.broken = Some(error.clone());
                Change::Broken { error }
            }
        }
    }

    /// Reloads whenever the files change, and tells `changed` what came of it. The watch lasts as long
    /// as what is returned.
    ///
    /// # Errors
    /// Where the folder can't be watched.
    pub fn watch(
        self: &Arc<Self>,
        changed: impl Fn(Change) + Send + 'static,
    ) -> notify::Result<notify::RecommendedWatcher> {
        let (sender, receiver) = mpsc::channel();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // Reading a file is an event as well, and would have us read it for ever.
                if event.is_ok_and(|event| !event.kind.is_access()) {
                    let _ = sender.send(());
                }
            })?;
        // The folder, not the file: editors and configuration managers replace files by renaming.
        let folder = match self.path.parent() {
            Some(parent) if self.path.is_file() => parent,
            _ => &self.path,
        };
        watcher.watch(folder, notify::RecursiveMode::NonRecursive)?;
        let policies = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("policies".to_owned())
            .spawn(move || {
                while receiver.recv().is_ok() {
                    while receiver.recv_timeout(SETTLE).is_ok() {}
                    match policies.upgrade() {
                        Some(policies) => changed(policies.reload()),
                        None => return,
                    }
                }
            })?;
        Ok(watcher)
    }
}
