//! Which cgroups are tagged as which agents, kept so that a restarted daemon finds them again.
//!
//! A tag is a note in /run and a folder of pinned links. The note is written first and removed last,
//! so a daemon that is killed between the two leaves something that the next one can clean up. Of a container or a
//! unit that doesn't run just now there is a note alone, by another name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use interceptor_core::origin::Agent;
use serde::{Deserialize, Serialize};

use super::{
    KernelError, cgroup,
    counts::{self, Counts},
    hooks, io_error,
    unix::{self, UnixAccess},
};
use crate::sync::{read, write};

/// Containers and units that are waited for. Each is a note of a kilobyte; an engine's host has some hundred at the
/// most that are tagged one by one.
const AWAY_MAX: usize = 1_000;

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
    /// Numbers of sockets from before the tag that may be used until they are closed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allowed: BTreeSet<u64>,
    /// What it may do with UNIX sockets.
    #[serde(default)]
    pub unix: UnixAccess,
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
    /// It was there, and is a container's or a unit's. Whenever it is made again, it is the agent's again.
    Followed,
    /// It was made for a launched command; untagging removes it.
    Launched,
}

/// Who the agents' numbers are. Asked for every connection, so it has a lock of its own: making or
/// ending an agent may take seconds.
#[derive(Debug, Default)]
pub(super) struct Numbers(RwLock<BTreeMap<u64, Arc<Agent>>>);

impl Numbers {
    pub(super) fn find(&self, number: u64) -> Option<Arc<Agent>> {
        let known = read(&self.0);
        known.get(&number).cloned()
    }

    fn learn(&self, number: u64, agent: &Arc<Agent>) {
        let mut known = write(&self.0);
        known.insert(number, agent.clone());
    }

    fn forget(&self, number: u64) {
        let mut known = write(&self.0);
        known.remove(&number);
    }
}

/// All tags of an instance.
#[derive(Debug)]
pub(super) struct Tags {
    folder: PathBuf,
    pins: PathBuf,
    by_number: BTreeMap<u64, Tag>,
    /// Containers and units that don't run just now, by the numbers that they had.
    away: BTreeMap<u64, Tag>,
    numbers: Arc<Numbers>,
    counts: Arc<Counts>,
    names: unix::Names,
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
    pub(super) fn adopt(
        instance: &str,
        pins: &Path,
        counts: &Arc<Counts>,
        names: unix::Names,
    ) -> Result<Self, KernelError> {
        let folder = Path::new("/run").join(instance).join("agents");
        fs::create_dir_all(&folder).map_err(io_error("creating the folder of tags", &folder))?;
        let mut tags = Self {
            folder,
            pins: pins.to_owned(),
            by_number: BTreeMap::new(),
            away: BTreeMap::new(),
            numbers: Arc::default(),
            counts: counts.clone(),
            names,
        };
        let entries =
            fs::read_dir(&tags.folder).map_err(io_error("reading the tags", &tags.folder))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let tag = fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice::<Tag>(&text).ok());
            let tag = match tag {
                Some(tag) if path == tags.note_away(tag.number) => {
                    tags.away.insert(tag.number, tag);
                    continue;
                }
                tag => tag.filter(|tag| path == tags.note(tag.number)),
            };
            let Some(tag) = tag else {
                tracing::warn!(path = %path.display(), "a note of a tag can't be read and is removed");
                let _ = fs::remove_file(&path);
                continue;
            };
            if !tag.is_alive() {
                tracing::warn!(agent = %tag.agent.name, "a tag whose cgroup is gone is removed");
                tags.part_with(&tag)?;
                continue;
            }
            let links = tags.links(tag.number);
            let whole = hooks::names().all(|name| links.join(name).exists());
            if !whole || tags.counts.begin(pins, tag.number).is_err() {
                // Half made when the daemon was killed, or taken away since: an agent is either guarded or
                // none, and nobody has said that this is none any more.
                tracing::warn!(agent = %tag.agent.name, "hooks are missing and are attached again");
                tags.attach(&tag)?;
            }
            tags.numbers.learn(tag.number, &tag.agent);
            tags.by_number.insert(tag.number, tag);
        }
        let by_number = &tags.by_number;
        tags.counts
            .keep_only(|number| by_number.contains_key(&number));
        tags.names
            .keep_only(|number| by_number.contains_key(&number));
        Ok(tags)
    }

    pub(super) fn add(
        &mut self,
        cgroup: PathBuf,
        agent: Agent,
        kind: TagKind,
        unix: UnixAccess,
        now_ns: u64,
    ) -> Result<Tag, KernelError> {
        self.set_aside();
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
            allowed: BTreeSet::new(),
            unix,
        };
        self.write(&tag)?;
        // Known before the hooks are there: with the first of them its connections begin to come.
        self.numbers.learn(number, &tag.agent);
        let attached = self.attach(&tag);
        if let Err(error) = attached {
            let _ = self.take_away(&tag);
            return Err(error);
        }
        // It is here again, or they are part of it when they come again.
        self.expect_no_longer(|away| {
            away.agent.name == tag.agent.name || away.cgroup.starts_with(&tag.cgroup)
        });
        self.by_number.insert(number, tag.clone());
        Ok(tag)
    }

    /// Keeps in mind which sockets from before its tag an agent may use.
    pub(super) fn keep_allowed(
        &mut self,
        number: u64,
        allowed: BTreeSet<u64>,
    ) -> Result<(), KernelError> {
        let Some(tag) = self.by_number.get_mut(&number) else {
            return Ok(());
        };
        tag.allowed = allowed;
        let tag = tag.clone();
        self.write(&tag)
    }

    fn write(&self, tag: &Tag) -> Result<(), KernelError> {
        self.write_to(&self.note(tag.number), tag)
    }

    fn write_to(&self, note: &Path, tag: &Tag) -> Result<(), KernelError> {
        let text = serde_json::to_vec(tag)
            .map_err(|error| io_error("writing a tag", note)(io::Error::other(error)))?;
        let draft = note.with_extension("draft");
        fs::write(&draft, text).map_err(io_error("writing a tag", &draft))?;
        fs::rename(&draft, note).map_err(io_error("writing a tag", note))
    }

    /// The agent of that name.
    pub(super) fn named(&self, name: &str) -> Result<Tag, KernelError> {
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
        Ok(tag)
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<Tag, KernelError> {
        self.set_aside();
        if let Some(tag) = self.expect_no_longer(|away| &*away.agent.name == name) {
            return Ok(tag);
        }
        let tag = self.named(name)?;
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

    /// Containers and units that don't run just now.
    pub(super) fn away(&self) -> impl Iterator<Item = &Tag> {
        self.away.values()
    }

    /// Tags whose cgroup somebody else has removed are none any more; containers and units are away.
    pub(super) fn set_aside(&mut self) {
        let all = self.by_number.values();
        let gone: Vec<Tag> = all.filter(|tag| !tag.is_alive()).cloned().collect();
        for tag in gone {
            match self.part_with(&tag) {
                Ok(()) => drop(self.by_number.remove(&tag.number)),
                Err(error) => {
                    tracing::error!(agent = %tag.agent.name, %error, "a tag whose cgroup is gone can't be removed");
                }
            }
        }
    }

    /// Removes a tag whose cgroup is gone; one that may come again is kept in mind.
    fn part_with(&mut self, tag: &Tag) -> Result<(), KernelError> {
        if tag.kind == TagKind::Followed {
            // First, so that whatever happens in between it isn't forgotten.
            self.write_to(&self.note_away(tag.number), tag)?;
            self.away.insert(tag.number, tag.clone());
            while self.away.len() > AWAY_MAX {
                let Some((_, oldest)) = self.away.pop_first() else {
                    break;
                };
                tracing::warn!(agent = %oldest.agent.name, "too many containers and units are waited for: if this one starts again, it is no agent");
                let _ = fs::remove_file(self.note_away(oldest.number));
            }
        }
        self.take_away(tag)
    }

    /// Those of which this is true aren't tagged when they come again; one of them.
    fn expect_no_longer(&mut self, is: impl Fn(&Tag) -> bool) -> Option<Tag> {
        let expected = std::mem::take(&mut self.away);
        let mut last = None;
        for (number, tag) in expected {
            if is(&tag) {
                // An error means that it is gone.
                let _ = fs::remove_file(self.note_away(number));
                last = Some(tag);
            } else {
                self.away.insert(number, tag);
            }
        }
        last
    }

    /// Attaches the hooks of an agent whose hooks somebody has taken away.
    pub(super) fn attach_again(&mut self, tag: &Tag) -> Result<(), KernelError> {
        self.attach(tag)
    }

    fn attach(&mut self, tag: &Tag) -> Result<(), KernelError> {
        let links = self.links(tag.number);
        // Links without a note are left by a daemon that was killed while it removed them.
        let _ = fs::remove_dir_all(&links);
        fs::create_dir_all(&links).map_err(io_error("creating the folder of links", &links))?;
        self.counts.prepare(&self.pins, tag.number)?;
        // Before the hooks that look there.
        self.names.set(tag.number, &tag.unix.allowed)?;
        let bearer = hooks::Bearer {
            agent: tag.number,
            cgroup_id: tag.cgroup_id,
            unix: tag.unix.otherwise(),
        };
        let mut object = hooks::load(&self.pins, bearer)?;
        self.counts.begin(&self.pins, tag.number)?;
        hooks::attach_agent(&mut object, &tag.cgroup, &links)
    }

    /// Unpins the links of a tag, which detaches them, and removes its note.
    fn take_away(&mut self, tag: &Tag) -> Result<(), KernelError> {
        let links = self.links(tag.number);
        match fs::remove_dir_all(&links) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("removing the links", &links)(error));
            }
            _ => {}
        }
        self.numbers.forget(tag.number);
        self.names.keep_only(|number| number != tag.number);
        // Whoever has it open can still read what was counted.
        let _ = fs::remove_file(counts::pin(&self.pins, tag.number));
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

    fn note_away(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number}.away"))
    }

    fn links(&self, number: u64) -> PathBuf {
        self.pins.join(format!("agent-{number}"))
    }
}
