//! Which sockets are those of container engines. Who is allowed one gets one of the daemon's in its place.
//!
//! What isn't known here is shown as it is where it is allowed: better too many names than too few, for what
//! isn't HTTP is decided there as well.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Exemptions, context, exemptions::Allowance, sockets};

/// What engines, and services beside them that start containers, have in the names of their sockets or in those
/// of the folders right above: `docker.sock`, `cri-dockerd.sock`, `podman/podman.sock`, `incus/unix.socket`.
const NAMES: [&str; 9] = [
    "docker",
    "podman",
    "containerd",
    "crio",
    "buildkit",
    "nerdctl",
    "balena-engine",
    "incus",
    "lxd",
];

/// Where those of the system are. A folder above may get one at any time.
const PLACES: [&str; 7] = [
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/buildkit/buildkitd.sock",
    "/var/lib/incus/unix.socket",
    "/var/lib/lxd/unix.socket",
];

/// A socket of the daemon's, and whose place it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandIn {
    /// The engine's: where the agent finds it.
    pub engine: PathBuf,
    /// Where the daemon's are that stand in for this agent's engines.
    pub folder: PathBuf,
    /// The name of this one there.
    pub name: String,
}

/// The sockets of engines among those that `exemptions` allow.
///
/// # Errors
/// Where one isn't there, or a whole folder with one in it is allowed.
pub fn engines(exemptions: &Exemptions) -> io::Result<Vec<PathBuf>> {
    if exemptions.allows(Allowance::Sockets) {
        return Ok(Vec::new());
    }
    let mut engines = Vec::new();
    for path in &exemptions.sockets {
        let found = path.canonicalize().map_err(|error| {
            let what = format!("the socket {} can't be allowed", path.display());
            context(&what, &error)
        })?;
        if found.is_dir() {
            let listening = sockets::listening()?;
            let known = listening.iter().map(PathBuf::as_path);
            let mut within = known
                .filter(|socket| is_engine(socket))
                .chain(PLACES.map(Path::new))
                .filter(|socket| socket.starts_with(&found));
            if let Some(engine) = within.next() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "the folder {} is where a container engine has its socket ({}), which would be reached unseen; allow sockets there one by one, or the folder by --allow-socket-unseen",
                        path.display(),
                        engine.display()
                    ),
                ));
            }
        } else if is_engine(&found) || is_engine(path) {
            engines.push(found);
        }
    }
    engines.sort_unstable();
    engines.dedup();
    Ok(engines)
}

/// Whether a socket of this path is an engine's, by its name.
pub(crate) fn is_engine(path: &Path) -> bool {
    let named = |part: Option<&std::ffi::OsStr>| {
        let part = part.unwrap_or_default().to_string_lossy().to_lowercase();
        NAMES.iter().any(|name| part.contains(name))
    };
    named(path.file_name()) || named(path.parent().and_then(Path::file_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowing(path: &Path) -> Exemptions {
        Exemptions {
            sockets: vec![path.to_owned()],
            ..Exemptions::default()
        }
    }

    #[test]
    fn engines_are_known_by_name() {
        for (path, is) in [
            ("/run/docker.sock", true),
            ("/run/user/1000/docker.sock", true),
            ("/run/cri-dockerd.sock", true),
            ("/run/user/1000/podman/podman.sock", true),
            ("/run/containerd/containerd.sock.ttrpc", true),
            ("/var/lib/incus/unix.socket", true),
            ("/home/a/.docker/run/engine.sock", false),
            ("/run/dbus/system_bus_socket", false),
            ("/", false),
        ] {
            assert_eq!(is_engine(Path::new(path)), is, "{path}");
        }
        assert!(PLACES.iter().all(|path| is_engine(Path::new(path))));
    }

    #[test]
    fn links_and_folders_do_not_hide_one() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (plain, engine) = (folder.join("x.sock"), folder.join("docker.sock"));
        let _listening =
            [&plain, &engine].map(|path| std::os::unix::net::UnixListener::bind(path).unwrap());
        let link = folder.join("link");
        std::os::unix::fs::symlink(&engine, &link).unwrap();
        assert_eq!(engines(&allowing(&plain)).unwrap(), [] as [PathBuf; 0]);
        assert_eq!(
            engines(&allowing(&engine)).unwrap(),
            std::slice::from_ref(&engine)
        );
        assert_eq!(
            engines(&allowing(&link)).unwrap(),
            std::slice::from_ref(&engine)
        );
        for holding in [&*folder, Path::new("/run"), Path::new("/")] {
            let error = engines(&allowing(holding)).unwrap_err().to_string();
            assert!(error.contains("--allow-socket-unseen"), "{error}");
        }
        let unseen = Exemptions {
            unseen: vec![folder],
            ..Exemptions::default()
        };
        assert!(engines(&unseen).unwrap().is_empty());
    }
}
