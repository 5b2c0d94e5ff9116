//! UNIX sockets: what an agent may reach by its name, and how the hooks are told.

use std::{
    fmt,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use aya::maps::{HashMap as BpfHashMap, LpmTrie, MapData, lpm_trie::Key};
use interceptor_abi as abi;
use serde::{Deserialize, Serialize};

use super::{KernelError, Plain, Tag, cgroup, program};

/// What is done where an agent asks for a UNIX socket that is neither its own nor allowed by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum UnixSockets {
    /// It is refused.
    #[default]
    Refuse,
    /// It is allowed, and each time recorded.
    Report,
    /// It is allowed.
    Allow,
}

/// What an agent may do with UNIX sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixAccess {
    /// With those that are neither its own nor allowed.
    pub sockets: UnixSockets,
    /// Those that it may reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<SocketName>,
}

impl UnixAccess {
    /// What hooks have no say in.
    pub(super) const FREE: Self = Self {
        sockets: UnixSockets::Allow,
        allowed: Vec::new(),
    };

    /// The same as the hooks are told.
    pub(super) const fn otherwise(&self) -> u32 {
        match self.sockets {
            UnixSockets::Refuse => abi::unix::REFUSE,
            UnixSockets::Report => abi::unix::REPORT,
            UnixSockets::Allow => abi::unix::ALLOW,
        }
    }
}

impl fmt::Display for UnixAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.sockets {
            UnixSockets::Refuse => "UNIX sockets refused",
            UnixSockets::Report => "UNIX sockets reported",
            UnixSockets::Allow => return f.write_str("UNIX sockets allowed"),
        })?;
        for (index, name) in self.allowed.iter().enumerate() {
            f.write_str(if index == 0 { " but for " } else { ", " })?;
            name.fmt(f)?;
        }
        Ok(())
    }
}

/// The name of a UNIX socket, as a program asks for it: `/run/db.sock`, or `@name` for an abstract one. It is
/// compared byte by byte: links and folders of other names are other names. `/run/db/` is all that is in that folder
/// and below.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SocketName(Box<str>);

impl SocketName {
    /// Whether it is a path.
    #[must_use]
    pub fn is_path(&self) -> bool {
        self.0.starts_with('/')
    }

    /// The path, of one that is.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.is_path().then_some(&*self.0)
    }

    /// Whether it is all of a folder.
    fn is_folder(&self) -> bool {
        self.is_path() && self.0.ends_with('/')
    }

    /// The same for agent number `agent`, as the hooks compare it.
    fn of_agent(&self, agent: u64) -> abi::UnixName {
        let mut name = abi::UnixName {
            agent,
            // Not longer than this, by `from_str`.
            length: self.0.len() as u32,
            reserved: 0,
            bytes: [0; abi::UnixName::BYTES],
        };
        for (to, from) in name.bytes.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        if let ("@", Some(first)) = (self.0.get(..1).unwrap_or_default(), name.bytes.first_mut()) {
            *first = 0;
        }
        name
    }
}

impl FromStr for SocketName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name.len() > abi::UnixName::LENGTH_MAX {
            return Err(format!(
                "`{name}` is too long for a UNIX socket: {} bytes fit",
                abi::UnixName::LENGTH_MAX
            ));
        }
        if name.bytes().any(|byte| byte == 0) {
            return Err("a name of a UNIX socket that is given here has no zero byte".to_owned());
        }
        if name.len() > 1 && name.starts_with('@') {
            return Ok(Self(name.into()));
        }
        let Some(path) = name.strip_prefix('/') else {
            return Err(format!(
                "`{name}` names no UNIX socket: an absolute path or @NAME, for an abstract one, does"
            ));
        };
        // A slash at the end makes it a folder; that of all isn't one.
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!(
                "`{name}` is compared byte by byte with what programs ask for: give it without `.`, `..` and `//`"
            ));
        }
        Ok(Self(name.into()))
    }
}

impl TryFrom<String> for SocketName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<SocketName> for String {
    fn from(name: SocketName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that a hook saw, for people: what isn't text is escaped, an abstract name begins with `@`. Nothing where
/// it saw none.
pub(super) fn seen(bytes: &[u8]) -> Option<String> {
    match bytes {
        [] => None,
        [0, name @ ..] => Some(format!("@{}", name.escape_ascii())),
        path => Some(match std::str::from_utf8(path) {
            Ok(path) if !path.chars().any(char::is_control) => path.to_owned(),
            _ => path.escape_ascii().to_string(),
        }),
    }
}

/// Why agents can reach all UNIX sockets on this kernel, where that is so.
#[must_use]
pub fn unguarded() -> Option<&'static str> {
    program::facts().absent
}

/// Why the hooks don't see all that they could of a UNIX socket that is asked for, where that is so.
#[must_use]
pub fn unnamed() -> Option<&'static str> {
    program::blind()
}

/// Paths among what an agent is allowed that others than root can have lead elsewhere, and why: as its first
/// process sees them.
#[must_use]
pub fn loose_names(tag: &Tag) -> Vec<(SocketName, String)> {
    let process = cgroup::with_below(&tag.cgroup)
        .iter()
        .flat_map(|cgroup| cgroup::processes_in(cgroup))
        .next();
    let root = process.map_or_else(
        || PathBuf::from("/"),
        |pid| PathBuf::from(format!("/proc/{pid}/root")),
    );
    let paths = tag.unix.allowed.iter().filter(|name| name.is_path());
    paths
        .filter_map(|name| {
            let path = Path::new(&*name.0);
            let why = if name.is_folder() {
                // Whatever is made there.
                loose(&root, &path.join("*"))
            } else {
                loose(&root, path)
            };
            Some((name.clone(), why?))
        })
        .collect()
}

/// Why others than root can have `path` lead elsewhere, where they can.
fn loose(root: &Path, path: &Path) -> Option<String> {
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o022;
    let within = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let names: Vec<&Path> = path.ancestors().collect();
    for pair in names.windows(2).rev() {
        let [entry, folder] = *pair else { continue };
        let Ok(holder) = std::fs::symlink_metadata(within(folder)) else {
            return None;
        };
        let found = std::fs::symlink_metadata(within(entry)).ok();
        if holder.uid() != 0 {
            return Some(format!(
                "{} belongs to user {}",
                folder.display(),
                holder.uid()
            ));
        }
        let is_kept =
            holder.mode() & STICKY != 0 && found.as_ref().is_some_and(|found| found.uid() == 0);
        if holder.mode() & OTHERS_WRITE != 0 && !is_kept {
            return Some(format!(
                "others than root can write to {}",
                folder.display()
            ));
        }
        if found.is_some_and(|found| found.is_symlink()) {
            return Some(format!("{} is a link", entry.display()));
        }
    }
    None
}

/// What is allowed, as the hooks look it up.
pub(super) struct Names {
    names: BpfHashMap<MapData, Plain<abi::UnixName>, u8>,
    folders: LpmTrie<MapData, Plain<abi::UnixFolder>, u8>,
}

// SAFETY: integers only without padding (its size is asserted), so every bit pattern is a value.
unsafe impl aya::Pod for Plain<abi::UnixName> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::UnixFolder> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<abi::UnixLayout> {}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

impl Names {
    pub(super) const fn new(
        names: BpfHashMap<MapData, Plain<abi::UnixName>, u8>,
        folders: LpmTrie<MapData, Plain<abi::UnixFolder>, u8>,
    ) -> Self {
        Self { names, folders }
    }

    /// Has agent number `agent` reach these, and no others.
    pub(super) fn set(&mut self, agent: u64, names: &[SocketName]) -> Result<(), KernelError> {
        self.keep_only(|other| other != agent);
        for name in names {
            let asked = name.of_agent(agent);
            let allowed = if name.is_folder() {
                let folder = abi::UnixFolder::new(agent, asked.bytes);
                let bits = abi::UnixFolder::FIXED_BITS + asked.length * 8;
                self.folders.insert(&Key::new(bits, Plain(folder)), 1, 0)
            } else {
                self.names.insert(Plain(asked), 1, 0)
            };
            allowed.map_err(|error| KernelError::Bpf {
                what: "allowing a UNIX socket".to_owned(),
                error: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// Forgets what is allowed to others.
    pub(super) fn keep_only(&mut self, is_kept: impl Fn(u64) -> bool) {
        let known: Vec<_> = self.names.keys().flatten().collect();
        for name in known.iter().filter(|Plain(name)| !is_kept(name.agent)) {
            let _ = self.names.remove(name);
        }
        let known: Vec<_> = self.folders.keys().flatten().collect();
        for key in known {
            let Plain(folder) = key.data();
            let [upper, lower] = folder.agent;
            if !is_kept(u64::from(upper) << 32 | u64::from(lower)) {
                let _ = self.folders.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_absolute_paths_or_abstract_ones() {
        let name = |text: &str| text.parse::<SocketName>();
        for good in [
            "/run/db.sock",
            "/run/db/",
            "@x",
            "@/tmp/.X11-unix/X0",
            "/run/ä",
        ] {
            assert_eq!(name(good).unwrap().to_string(), good);
        }
        let long = format!("/{}", "x".repeat(108));
        for bad in [
            "",
            "@",
            "/",
            "run/x",
            "./x",
            "/run/../x",
            "/run//x",
            "/run/x//",
            "/run/../",
            "//",
            "/run/./x",
            "/a\0b",
            &*long,
        ] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(name("/run//x").unwrap_err().contains("byte by byte"));
    }

    #[test]
    fn the_hooks_compare_what_programs_ask_for() {
        let path = SocketName("/run/x".into()).of_agent(7);
        assert_eq!((path.agent, path.length), (7, 6));
        assert_eq!(path.bytes[..7], *b"/run/x\0");
        let hidden = SocketName("@x".into()).of_agent(7);
        assert_eq!(hidden.length, 2);
        assert_eq!(hidden.bytes[..3], *b"\0x\0");
    }

    #[test]
    fn paths_that_others_can_turn_elsewhere_are_told() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let why = |path: &str| loose(root, Path::new(path));
        let mode = |path: &str, mode| {
            let path = root.join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("run/db", 0o755);
        assert_eq!(why("/run/db/socket"), None);
        assert_eq!(why("/run/not/there"), None);
        mode("tmp", 0o1777);
        mode("tmp/kept", 0o755);
        assert_eq!(why("/tmp/kept/socket"), None);
        assert_eq!(
            why("/tmp/socket").unwrap(),
            "others than root can write to /tmp"
        );
        mode("open", 0o777);
        mode("open/kept", 0o755);
        assert!(why("/open/kept/socket").unwrap().contains("/open"));
        mode("home", 0o755);
        std::os::unix::fs::chown(root.join("home"), Some(4_242), None).unwrap();
        assert_eq!(why("/home/socket").unwrap(), "/home belongs to user 4242");
        symlink("/run", root.join("var")).unwrap();
        assert_eq!(why("/var/db/socket").unwrap(), "/var is a link");
    }

    #[test]
    fn what_was_seen_is_told_without_what_a_terminal_would_obey() {
        assert_eq!(seen(b"").as_deref(), None);
        assert_eq!(seen(b"/run/\xc3\xa4").as_deref(), Some("/run/ä"));
        assert_eq!(seen(b"/a\x1b[2J").as_deref(), Some("/a\\x1b[2J"));
        assert_eq!(seen(b"\0a\0\xff").as_deref(), Some("@a\\x00\\xff"));
    }
}
