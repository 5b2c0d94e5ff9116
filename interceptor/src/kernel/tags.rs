//! Which cgroups are tagged as which agents, kept so that a restarted daemon finds them again.
//!
//! A tag is a note in /run and a folder of pinned links. The note is written first and removed last,
//! so a daemon that is killed between the two leaves something that the next one can clean up.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use interceptor_core::origin::Agent;
use serde::{Deserialize, Serialize};

use super::{KernelError, cgroup, hooks, io_error};

/// A tagged cgroup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tag {
    /// The agent's number, as the hooks know it.
    pub number: u64,
    /// Its name and labels.
    pub agent: Arc<Agent>,
    /// The cgroup, as a path in the file system.
    pub cgroup: PathBuf,
    /// The cgroup's id. A cgroup that is removed takes its hooks with it, and one that is made again
    /// under the same path is another.
    pub cgroup_id: u64,
    /// Where the cgroup comes from.
    pub kind: TagKind,
}

impl Tag {
    /// Whether the tagged cgroup, and with it the hooks, is still there.
    fn is_alive(&self) -> bool {
        cgroup::id(&self.cgroup).is_ok_and(|id| id == self.cgroup_id)
    }
}

/// Where a tagged cgroup comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TagKind {
    /// It was there; untagging leaves it.
    Existing,
    /// It was made for a launched command; untagging removes it.
    Launched,
}

/// Who the agents' numbers are. Asked for every connection, so it has a lock of its own: making or
/// ending an agent may take seconds.
#[derive(Debug, Default)]
pub(super) struct Numbers(RwLock<BTreeMap<u64, Arc<Agent>>>);

impl Numbers {
    pub(super) fn find(&self, number: u64) -> Option<Arc<Agent>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&number).cloned()
    }

    fn learn(&self, number: u64, agent: &Arc<Agent>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(number, agent.clone());
    }

    fn forget(&self, number: u64) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(&number);
    }
}

/// All tags of an instance.
#[derive(Debug)]
pub(super) struct Tags {
    folder: PathBuf,
    pins: PathBuf,
    by_number: BTreeMap<u64, Tag>,
    numbers: Arc<Numbers>,
}

/// `name` as a part of a path: what isn't a letter, digit, dash or underscore becomes a dash.
pub(super) fn file_name(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '-'
            }
        })
        .take(48)
        .collect()
}

impl Tags {
    /// Adopts what an earlier daemon left.
    pub(super) fn adopt(instance: &str, pins: &Path) -> Result<Self, KernelError> {
        let folder = Path::new("/run").join(instance).join("agents");
        fs::create_dir_all(&folder).map_err(io_error("creating the folder of tags", &folder))?;
        let mut tags = Self {
            folder,
            pins: pins.to_owned(),
            by_number: BTreeMap::new(),
            numbers: Arc::default(),
        };
        let entries =
            fs::read_dir(&tags.folder).map_err(io_error("reading the tags", &tags.folder))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let tag = fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice::<Tag>(&text).ok());
            let Some(tag) = tag.filter(|tag| path == tags.note(tag.number)) else {
                tracing::warn!(path = %path.display(), "a note of a tag can't be read and is removed");
                let _ = fs::remove_file(&path);
                continue;
            };
            let links = tags.links(tag.number);
            let whole = hooks::AGENT_PROGRAMS
                .iter()
                .all(|(name, _)| links.join(name).exists());
            if whole && tag.is_alive() {
                tags.numbers.learn(tag.number, &tag.agent);
                tags.by_number.insert(tag.number, tag);
            } else {
                tracing::warn!(agent = %tag.agent.name, "a tag that was half made, or whose cgroup is gone, is removed");
                tags.take_away(&tag)?;
            }
        }
        Ok(tags)
    }

    pub(super) fn add(
        &mut self,
        cgroup: PathBuf,
        agent: Agent,
        kind: TagKind,
        now_ns: u64,
    ) -> Result<Tag, KernelError> {
        self.forget_gone();
        for tag in self.by_number.values() {
            if tag.agent.name == agent.name {
                return Err(KernelError::Refused(format!(
                    "an agent named `{}` is tagged already ({}); choose another name or remove it first",
                    agent.name,
                    tag.cgroup.display()
                )));
            }
            if cgroup.starts_with(&tag.cgroup) || tag.cgroup.starts_with(&cgroup) {
                return Err(KernelError::Refused(format!(
                    "{} overlaps with {}, which is agent `{}`; an agent is one cgroup with all below it",
                    cgroup.display(),
                    tag.cgroup.display(),
                    tag.agent.name
                )));
            }
        }
        // Never used before: a connection of an agent that was untagged may still be queued, and must
        // not become another's. Pins and sockets end with the boot whose clock this is.
        let last = self.by_number.keys().next_back().copied().unwrap_or(0);
        let number = now_ns.max(last + 1);
        let cgroup_id = cgroup::id(&cgroup).map_err(io_error("finding the cgroup", &cgroup))?;
        let tag = Tag {
            number,
            agent: Arc::new(agent),
            cgroup,
            cgroup_id,
            kind,
        };
        let note = self.note(number);
        let text = serde_json::to_vec(&tag)
            .map_err(|error| io_error("writing a tag", &note)(io::Error::other(error)))?;
        let draft = note.with_extension("draft");
        fs::write(&draft, text).map_err(io_error("writing a tag", &draft))?;
        fs::rename(&draft, &note).map_err(io_error("writing a tag", &note))?;
        // Known before the hooks are there: with the first of them its connections begin to come.
        self.numbers.learn(number, &tag.agent);
        let attached = self.attach(&tag);
        if let Err(error) = attached {
            let _ = self.take_away(&tag);
            return Err(error);
        }
        self.by_number.insert(number, tag.clone());
        Ok(tag)
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<Tag, KernelError> {
        let Some(tag) = self
            .by_number
            .values()
            .find(|tag| &*tag.agent.name == name)
            .cloned()
        else {
            let known: Vec<&str> = self
                .by_number
                .values()
                .map(|tag| &*tag.agent.name)
                .collect();
            let known = if known.is_empty() {
                "none is".to_owned()
            } else {
                format!("{} are", known.join(", "))
            };
            return Err(KernelError::Refused(format!(
                "no agent named `{name}` is tagged; {known}"
            )));
        };
        if tag.kind == TagKind::Launched {
            // Its processes end before its hooks do: none runs unwatched in between.
            cgroup::kill_and_remove(&tag.cgroup)?;
        }
        self.take_away(&tag)?;
        self.by_number.remove(&tag.number);
        Ok(tag)
    }

    pub(super) fn remove_folder(&self) -> Result<(), KernelError> {
        fs::remove_dir_all(&self.folder)
            .map_err(io_error("removing the folder of tags", &self.folder))?;
        // The instance's own folder too, unless somebody else keeps something there (a control socket).
        if let Some(parent) = self.folder.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    pub(super) fn numbers(&self) -> Arc<Numbers> {
        self.numbers.clone()
    }

    /// Launched agents of which nothing runs any more.
    pub(super) fn ended(&self) -> impl Iterator<Item = &Tag> {
        self.by_number
            .values()
            .filter(|tag| tag.kind == TagKind::Launched && !cgroup::is_populated(&tag.cgroup))
    }

    pub(super) fn list(&self) -> Vec<Tag> {
        let alive = self.by_number.values().filter(|tag| tag.is_alive());
        let mut tags: Vec<Tag> = alive.cloned().collect();
        tags.sort_by(|a, b| a.agent.name.cmp(&b.agent.name));
        tags
    }

    /// Tags whose cgroup somebody else has removed hold their name no longer.
    fn forget_gone(&mut self) {
        let gone: Vec<Tag> = self
            .by_number
            .values()
            .filter(|tag| !tag.is_alive())
            .cloned()
            .collect();
        for tag in gone {
            if self.take_away(&tag).is_ok() {
                self.by_number.remove(&tag.number);
            }
        }
    }

    fn attach(&self, tag: &Tag) -> Result<(), KernelError> {
        let links = self.links(tag.number);
        // Links without a note are left by a daemon that was killed while it removed them.
        let _ = fs::remove_dir_all(&links);
        fs::create_dir_all(&links).map_err(io_error("creating the folder of links", &links))?;
        let mut object = hooks::load(&self.pins, tag.number)?;
        hooks::attach_agent(&mut object, &tag.cgroup, &links)
    }

    /// Unpins the links of a tag, which detaches them, and removes its note.
    fn take_away(&self, tag: &Tag) -> Result<(), KernelError> {
        let links = self.links(tag.number);
        match fs::remove_dir_all(&links) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("removing the links", &links)(error));
            }
            _ => {}
        }
        self.numbers.forget(tag.number);
        let note = self.note(tag.number);
        match fs::remove_file(&note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("removing a tag", &note)(error))
            }
            _ => Ok(()),
        }
    }

    fn note(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number}.json"))
    }

    fn links(&self, number: u64) -> PathBuf {
        self.pins.join(format!("agent-{number}"))
    }
}
