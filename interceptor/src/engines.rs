//! Sockets of container engines that launched agents are allowed: each gets one of ours in its place.
//!
//! An engine does whatever it is asked, as root and outside of every cgroup of an agent's. So an agent never sees
//! its socket, but one at the same path that is the agent's alone: whoever connects to it is that agent, and what
//! it asks is decided like anything else that it sends. Who may connect is for the file system to say, as it is
//! for the engine's own: ours has the same owner, group and mode, and both are looked at again at each connect.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{
            fs::{
                DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown,
            },
            net::UnixListener as StdUnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use interceptor_core::{
    origin::{Agent, Destination},
    record::Event,
};
use nix::{
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    runtime,
    task::AbortHandle,
};

use crate::{
    accept::{self, PAUSE},
    clock::now,
    confine::StandIn,
    journal::Journal,
    kernel::{Kernel, Tag},
    namespaces::Network,
    proxy::{Opening, Proxy},
    sync::lock,
};

/// How often it is tried to connect to an engine that has no room for one more, until whoever waits gives up.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// How long an engine may have no room.
const PATIENCE: Duration = Duration::from_secs(10);

/// The socket of a container engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Engine {
    path: Box<str>,
    rights: Rights,
}

/// Whose a socket is and who may connect to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Rights {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Engine {
    /// The one at `path`, which leads there by no link.
    ///
    /// # Errors
    /// The operating system's, or that no socket is there.
    fn at(path: &Path) -> io::Result<Self> {
        let (_, rights) = find(path)?;
        let path = path.to_str().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "its path isn't in UTF-8")
        })?;
        Ok(Self {
            path: path.into(),
            rights,
        })
    }

    pub(crate) fn destination(&self) -> Destination {
        Destination::Unix((&*self.path).into())
    }

    /// Connects to it.
    ///
    /// # Errors
    /// The operating system's, or that another one is there than was allowed.
    pub(crate) async fn connect(&self) -> io::Result<OwnedFd> {
        let connecting = async {
            loop {
                match self.try_connect().await {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(TRY_EVERY).await;
                    }
                    connected => return connected,
                }
            }
        };
        let connected = tokio::time::timeout(PATIENCE, connecting).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn try_connect(&self) -> io::Result<OwnedFd> {
        // Engines make theirs anew when they restart, so it is found by its path, in a folder that may be the
        // agent's: by a link, or another socket in its place, the agent would have us connect to what it can't.
        let (found, rights) = find(Path::new(&*self.path))?;
        if rights != self.rights {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "its owner, group or mode isn't the same any more as when it was allowed",
            ));
        }
        let link = format!("/proc/self/fd/{}", found.as_raw_fd());
        let stream = UnixStream::connect(link).await?.into_std()?;
        let own = i32::try_from(std::process::id());
        if getsockopt(&stream, PeerCredentials).is_ok_and(|peer| own == Ok(peer.pid())) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it is this daemon's",
            ));
        }
        Ok(stream.into())
    }
}

/// The socket at `path`, and the rights to it.
fn find(path: &Path) -> io::Result<(OwnedFd, Rights)> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let found = openat2(AT_FDCWD, path, how)?;
    let found = fs::File::from(found);
    let metadata = found.metadata()?;
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no socket",
        ));
    }
    let rights = Rights {
        uid: metadata.uid(),
        gid: metadata.gid(),
        mode: metadata.mode() & 0o7777,
    };
    Ok((found.into(), rights))
}

/// The sockets that stand in for engines'.
///
/// Those of an agent are in a folder, which it sees in a place of its own, under their places in the list of its
/// engines: what a daemon makes anew there when it starts, its agents reach as before. The list stands beside it.
pub(crate) struct Engines {
    /// Below it each agent's are, where root alone gets to.
    folder: PathBuf,
    shared: Arc<Shared>,
    runtime: runtime::Handle,
    /// What serves those of an agent, by its number.
    served: Mutex<HashMap<u64, Vec<AbortHandle>>>,
}

struct Shared {
    kernel: Arc<Kernel>,
    journal: Journal,
    proxy: Proxy,
}

impl Engines {
    /// Those of the agents that there are already, as the daemon before left them. What can't be opened again is
    /// told of; nobody answers there.
    pub(crate) fn new(
        instance: &str,
        kernel: Arc<Kernel>,
        journal: Journal,
        proxy: Proxy,
        runtime: runtime::Handle,
    ) -> Self {
        let agents = kernel.tags();
        let engines = Self {
            folder: Path::new("/run").join(instance).join("engines"),
            shared: Arc::new(Shared {
                kernel,
                journal,
                proxy,
            }),
            runtime,
            served: Mutex::default(),
        };
        engines.clear(|number| agents.iter().any(|tag| tag.number == number));
        for tag in &agents {
            if let Err(error) = engines.open_again(tag) {
                let agent = &tag.agent.name;
                tracing::error!(%agent, %error, "what stands in for its container engines can't be opened again: it has to be launched again to reach them");
            }
        }
        engines
    }

    /// Opens one for each of `paths`, for the agent of `tag`.
    ///
    /// # Errors
    /// Which one can't be had, and why. Then there are none.
    pub(crate) fn open(&self, tag: &Tag, paths: &[PathBuf]) -> io::Result<Vec<StandIn>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let find = |path: &PathBuf| {
            Engine::at(path).map_err(|error| {
                let what = format!(
                    "the engine's socket {} can't be met: {error}",
                    path.display()
                );
                io::Error::new(error.kind(), what)
            })
        };
        let engines: Vec<Engine> = paths.iter().map(find).collect::<io::Result<_>>()?;
        let opened = self.make(tag, &engines);
        if opened.is_err() {
            self.close(tag.number);
        }
        opened?;
        let stand_in = |(index, engine): (usize, &PathBuf)| StandIn {
            engine: engine.clone(),
            folder: self.folder_of(tag.number),
            name: index.to_string(),
        };
        Ok(paths.iter().enumerate().map(stand_in).collect())
    }

    fn make(&self, tag: &Tag, engines: &[Engine]) -> io::Result<()> {
        if let Some(instance) = self.folder.parent() {
            fs::create_dir_all(instance)?;
        }
        let private = fs::DirBuilder::new().mode(0o700).create(&self.folder);
        if let Err(error) = private
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let folder = self.folder_of(tag.number);
        fs::create_dir(&folder)?;
        // Its agent goes through it, whoever that is.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let list = serde_json::to_vec(engines)?;
        fs::write(self.list_of(tag.number), list)?;
        self.listen(tag, engines)
    }

    fn open_again(&self, tag: &Tag) -> io::Result<()> {
        let list = match fs::read(self.list_of(tag.number)) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let engines: Vec<Engine> = serde_json::from_slice(&list)?;
        self.listen(tag, &engines)
    }

    fn listen(&self, tag: &Tag, engines: &[Engine]) -> io::Result<()> {
        for (index, engine) in engines.iter().enumerate() {
            let socket = self.folder_of(tag.number).join(index.to_string());
            match fs::remove_file(&socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = StdUnixListener::bind(&socket)?;
            let Rights { uid, gid, mode } = engine.rights;
            // The owner first: a change of it takes rights away.
            chown(&socket, Some(uid), Some(gid))?;
            fs::set_permissions(&socket, fs::Permissions::from_mode(mode))?;
            listener.set_nonblocking(true)?;
            let entered = self.runtime.enter();
            let listener = UnixListener::from_std(listener)?;
            drop(entered);
            let (shared, engine) = (self.shared.clone(), Arc::new(engine.clone()));
            let whose = (tag.number, tag.agent.clone());
            let serving = self
                .runtime
                .spawn(async move { shared.serve(listener, whose, engine).await });
            let mut served = self.served();
            let of_agent = served.entry(tag.number).or_default();
            of_agent.push(serving.abort_handle());
        }
        Ok(())
    }

    /// Closes those of an agent that isn't one any more, by its number.
    pub(crate) fn close(&self, number: u64) {
        for serving in self.served().remove(&number).unwrap_or_default() {
            serving.abort();
        }
        // Most have none.
        let _ = fs::remove_file(self.list_of(number));
        let _ = fs::remove_dir_all(self.folder_of(number));
    }

    /// Serves none any more. They stay where they are, and nobody answers until the next daemon does.
    pub(crate) fn stop(&self) {
        for serving in self.served().drain().flat_map(|(_, served)| served) {
            serving.abort();
        }
    }

    /// Removes those of agents that aren't any more.
    pub(crate) fn clear(&self, is_agent: impl Fn(u64) -> bool) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.split('.').next());
            match number.and_then(|number| number.parse().ok()) {
                Some(number) if is_agent(number) => {}
                Some(number) => self.close(number),
                None => {}
            }
        }
    }

    fn folder_of(&self, number: u64) -> PathBuf {
        self.folder.join(number.to_string())
    }

    fn list_of(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number}.json"))
    }

    fn served(&self) -> MutexGuard<'_, HashMap<u64, Vec<AbortHandle>>> {
        lock(&self.served)
    }
}

impl Shared {
    /// Hands over who connects to `listener`, for as long as it is polled.
    async fn serve(&self, listener: UnixListener, agent: (u64, Arc<Agent>), engine: Arc<Engine>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(why) = self.meet(&stream, &agent, &engine).await {
                        self.refuse(&agent.1, &engine, &why);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "can't accept connections to a container engine");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn meet(
        &self,
        stream: &UnixStream,
        (number, agent): &(u64, Arc<Agent>),
        engine: &Arc<Engine>,
    ) -> Result<(), Cow<'static, str>> {
        let peer = stream
            .peer_cred()
            .map_err(|error| format!("who connects can't be told: {error}"))?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let (kernel, number) = (self.kernel.clone(), *number);
        // Somebody may be tagging just now, which takes a moment.
        let process = tokio::task::spawn_blocking(move || {
            let pid = pid?;
            let is_agent = kernel.agent_of(pid).is_some_and(|tag| tag.number == number);
            is_agent.then(|| kernel.describe_process(pid))
        });
        // Nobody else sees the socket. Who does all the same, and who is gone by now, is nobody's agent.
        let Ok(Some(mut process)) = process.await else {
            return Err("who connects isn't the agent, or not any more".into());
        };
        process.uid = peer.uid();
        let network = Network::Host {
            cookie: self.kernel.own_netns(),
        };
        let opening = |line| Opening {
            agent: (number, agent.clone()),
            process: process.clone(),
            destination: engine.destination(),
            engine: Some(engine.clone()),
            network: network.clone(),
            tally: None,
            line,
        };
        accept::hand_over(&self.proxy, stream.as_fd(), opening).await
    }

    fn refuse(&self, agent: &Agent, engine: &Engine, why: &str) {
        tracing::warn!(why, "a connection to a container engine is refused");
        let facts = [
            ("destination", engine.destination().to_string()),
            ("reason", why.to_owned()),
        ];
        let event = Event::notice("engine_refused", facts);
        let agent: Arc<str> = Arc::from(&*agent.name);
        // What can't be recorded is refused as well.
        let _ = self.journal.append(None, &agent, now(), [event]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn what_takes_an_engine_s_place_is_not_connected_to() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (path, other) = (folder.join("docker.sock"), folder.join("other.sock"));
        let _other = StdUnixListener::bind(&other).unwrap();
        mode(&other, 0o600);
        let before = StdUnixListener::bind(&path).unwrap();
        mode(&path, 0o660);
        let engine = Engine::at(&path).unwrap();
        assert_eq!(
            engine.destination().to_string(),
            format!("unix:{}", path.display())
        );
        // It is this process that listens, and that is as bad as any other.
        let error = engine.connect().await.unwrap_err().to_string();
        assert!(error.contains("this daemon"), "{error}");
        drop(before);
        let error = engine.connect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        fs::remove_file(&path).unwrap();
        fs::hard_link(&other, &path).unwrap();
        let error = engine.connect().await.unwrap_err().to_string();
        assert!(error.contains("owner"), "{error}");
        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        let error = engine.connect().await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        let error = engine.connect().await.unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
    }
}
