//! What all of these tests share: one PostgreSQL, the plainest policies.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use interceptor_tests::{cluster::Cluster, daemon::Daemon};

/// Everything may pass; everything is still decoded, decided and recorded.
pub(crate) const ALLOW_ALL: &str = "default: {action: allow}\n";

/// The server that all tests of this process share, each with databases of its own.
///
/// It is never dropped; its keeper ends it with the process.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start().expect("a throw-away PostgreSQL"))
}

/// What is pinned by that name for `daemon`.
#[track_caller]
pub(crate) fn pin(daemon: &Daemon, name: &str) -> PathBuf {
    let pins = Path::new("/sys/fs/bpf").join(daemon.instance());
    find(&pins, name).unwrap_or_else(|| panic!("nothing is pinned as {name}"))
}

/// The file of that name below `folder`.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.file_name()? == name {
            return Some(path);
        }
        find(&path, name)
    })
}
