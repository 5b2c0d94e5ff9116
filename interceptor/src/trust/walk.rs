//! Looking through folders for bundles, within bounds: the command waits meanwhile, and who may write there
//! could have made them endless.

use std::{
    collections::{HashSet, VecDeque},
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::{
    dir::{Dir, Type},
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    libc,
};

use super::find::Found;

/// Folders that are looked into for at most: about a quarter of a second.
const FOLDERS_MAX: usize = 20_000;

/// How long is looked for at most, where the disk is slow.
const PATIENCE: Duration = Duration::from_millis(750);

/// Deeper than `.sdkman/candidates/java/21/lib/security` and what other installers do.
const DEPTH_MAX: u32 = 8;

/// What a folder holds at most that isn't somebody's data.
const ENTRIES_MAX: usize = 4096;

/// Folders that hold no installed programs, or nothing else than many.
const SKIPPED: [&[u8]; 14] = [
    b".git",
    b"node_modules",
    b"target",
    b".cache",
    b".cargo",
    b".rustup",
    b"share",
    b"include",
    b"doc",
    b"man",
    b"__pycache__",
    b"proc",
    b"sys",
    b"dev",
];

/// Folders in those, in a home, that do.
const WITHIN_SKIPPED: [&str; 7] = [
    ".local/share/pipx",
    ".local/share/uv",
    ".local/share/virtualenvs",
    ".local/share/hatch",
    ".local/share/mise",
    ".cache/pypoetry/virtualenvs",
    ".cache/uv/archive-v0",
];

/// A folder to look into: below one that is held open, so that nobody can move it elsewhere.
struct Below {
    start: Rc<(File, PathBuf)>,
    path: PathBuf,
    depth: u32,
}

/// Looks through the present folder, where programs are installed outside of packages, and `home`.
pub(super) fn everywhere(home: Option<&Path>, found: &mut Found) {
    let mut starts: Vec<PathBuf> = env::current_dir().into_iter().collect();
    starts.extend(["/opt", "/usr/local", "/var/lib/gems"].map(PathBuf::from));
    starts.extend(home.map(Path::to_owned));
    starts.extend(
        home.iter()
            .flat_map(|home| WITHIN_SKIPPED.map(|folder| home.join(folder))),
    );
    through(&starts, FOLDERS_MAX, found);
}

fn through(starts: &[PathBuf], folders_max: usize, found: &mut Found) {
    // The whole system is no place where somebody works.
    let starts = starts.iter().filter(|start| *start != Path::new("/"));
    let mut open: VecDeque<Below> = starts.filter_map(|start| Below::start(start)).collect();
    let mut seen = HashSet::new();
    let started = Instant::now();
    while let Some(folder) = open.pop_front() {
        if seen.len() >= folders_max || started.elapsed() > PATIENCE {
            found.problem = Some(format!(
                "not all folders were looked through for bundles of certificates ({} were); set SSL_CERT_FILE for what fails",
                seen.len()
            ));
            return;
        }
        // What can't be listed has nothing for the agent.
        if let Ok(Some(listing)) = folder.list(&mut seen) {
            folder.look(listing, found, &mut open);
        }
    }
}

#[derive(Default)]
struct Listing {
    folders: Vec<OsString>,
    others: Vec<OsString>,
}

impl Below {
    fn start(path: &Path) -> Option<Self> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(path)
            .ok()?;
        Some(Self {
            start: Rc::new((file, path.to_owned())),
            path: PathBuf::new(),
            depth: 0,
        })
    }

    /// What is in it; nothing where that was looked at before.
    fn list(&self, seen: &mut HashSet<(u64, u64)>) -> io::Result<Option<Listing>> {
        // Neither links, which may lead in circles, nor other file systems, which may never answer.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        let folder = File::from(openat2(
            &self.start.0,
            &Path::new(".").join(&self.path),
            how,
        )?);
        let metadata = folder.metadata()?;
        if !seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(None);
        }
        let mut listing = Listing::default();
        for entry in Dir::from_fd(folder.into())?.iter().take(ENTRIES_MAX) {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            match entry.file_type() {
                Some(Type::Directory) => listing.folders.push(name),
                _ => listing.others.push(name),
            }
        }
        Ok(Some(listing))
    }

    fn look(&self, listing: Listing, found: &mut Found, open: &mut VecDeque<Self>) {
        let here = self.start.1.join(&self.path);
        let name = here.file_name().unwrap_or_default().as_bytes();
        if matches!(name, b"site-packages" | b"dist-packages") {
            found.packages(&here);
            return;
        }
        let has = |name: &str| {
            let mut all = listing.others.iter().chain(&listing.folders);
            all.any(|other| other == name)
        };
        let is_environment = has("pyvenv.cfg") || has("conda-meta");
        if is_environment {
            found.environment(&here);
        }
        for file in &listing.others {
            found.file(&here, file);
        }
        if self.depth == DEPTH_MAX {
            return;
        }
        for folder in listing.folders {
            let bytes = folder.as_bytes();
            let is_searched = is_environment && matches!(bytes, b"lib" | b"lib64" | b"bin");
            // `.` and `..` among them.
            if is_searched || matches!(bytes, b"." | b"..") || SKIPPED.contains(&bytes) {
                continue;
            }
            open.push_back(Self {
                start: Rc::clone(&self.start),
                path: self.path.join(folder),
                depth: self.depth + 1,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn put(root: &Path, file: &str) -> PathBuf {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "x").unwrap();
        path
    }

    fn found(root: &Path, folders_max: usize) -> Found {
        let mut found = Found::default();
        through(&[root.to_owned()], folders_max, &mut found);
        found
    }

    #[test]
    fn what_packages_brought_is_found_wherever_they_are() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let mut expected: Vec<PathBuf> = [
            "work/.venv/lib/python3.13/site-packages/certifi/cacert.pem",
            "work/.venv/lib/python3.13/site-packages/pip/_vendor/certifi/cacert.pem",
            "sdk/lib/third_party/httplib2/python3/httplib2/cacerts.txt",
            "conda/ssl/cacert.pem",
            "ruby/gems/aws-sdk-core-3.209.0/ca-bundle.crt",
        ]
        .map(|file| put(home, file))
        .into();
        put(home, "work/.venv/pyvenv.cfg");
        put(home, "conda/conda-meta/history");
        let store = put(home, ".sdkman/candidates/java/21/lib/security/cacerts");
        put(
            home,
            "work/.venv/lib/python3.13/site-packages/other/cacert.pem",
        );
        put(home, "cacert.pem");
        expected.sort();
        let found = found(home, FOLDERS_MAX);
        assert!(found.bundles.into_iter().eq(expected));
        assert!(found.java.into_iter().eq([store]));
        assert_eq!(found.problem, None);
    }

    #[test]
    fn the_search_ends() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        for number in 0..50 {
            fs::create_dir(home.join(number.to_string())).unwrap();
        }
        std::os::unix::fs::symlink(home, home.join("again")).unwrap();
        assert_eq!(found(home, FOLDERS_MAX).problem, None);
        let cut_short = found(home, 20).problem.unwrap();
        assert!(cut_short.contains("20 were"), "{cut_short}");
        let deep = put(home, "1/2/3/4/5/6/7/8/9/10/certifi/cacert.pem");
        assert!(!found(home, FOLDERS_MAX).bundles.contains(&deep));
    }
}
