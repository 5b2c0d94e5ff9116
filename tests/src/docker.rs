//! A throw-away Docker: its engine in network, mount and cgroup namespaces of its own, with a bridge of its own and an
//! image that holds busybox. Nothing of it reaches this host's network, folders or cgroups.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    keeper::{self, Keeper},
    run, scratch,
};

/// How long the engine may take to come up.
const START: Duration = Duration::from_secs(30);

/// The image that there is.
pub const IMAGE: &str = "it:1";

/// The engine, in its own network, as its containers reach it.
pub const GATEWAY: &str = "198.51.100.1";

/// As root of cgroups that are its own, with a /run of its own for what shims put there.
const ENGINE: &str = concat!(
    "set -e; echo $$ >\"$2/cgroup.procs\"; exec unshare --net --mount --cgroup sh -ec '",
    "mount --make-rprivate /; mount -t cgroup2 none /sys/fs/cgroup; mount -t tmpfs tmpfs /run; ",
    "ip link set lo up; exec dockerd --host \"unix://$1/socket/docker.sock\" --group root ",
    "--data-root \"$1/data\" --exec-root \"$1/exec\" --pidfile \"$1/pid\" ",
    "--iptables=false --ip6tables=false --userland-proxy=false --bip 198.51.100.1/24 ",
    "--storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs",
    "' sh \"$1\"",
);

/// Kills what is in the cgroup `$1` and below, and removes it and the folder `$2`.
const REMOVE: &str = concat!(
    "echo 1 >\"$1/cgroup.kill\"; n=0; while [ -d \"$1\" ] && [ $n -lt 250 ]; do ",
    "find \"$1\" -depth -type d -exec rmdir {} ';'; sleep 0.02; n=$((n+1)); done; rm -rf -- \"$2\"",
);

/// What busybox is called in the image.
const NAMES: [&str; 11] = [
    "sh", "cat", "echo", "head", "ls", "md5sum", "nc", "sleep", "touch", "true", "tty",
];

/// A running engine.
#[derive(Debug)]
pub struct Docker {
    folder: PathBuf,
    cgroup: PathBuf,
    engine: Child,
    keeper: Option<Keeper>,
}

impl Docker {
    /// Starts it and makes [`IMAGE`].
    ///
    /// # Errors
    /// Where Debian's `docker.io` is missing or it doesn't come up, with what it said.
    pub fn start() -> Result<Self> {
        let folder = scratch::folder("docker")?;
        let cgroup = keeper::cgroup2()?.join(scratch::name("it-docker"));
        let keeper = Keeper::of_command(REMOVE, [cgroup.as_os_str(), folder.as_os_str()])?;
        fs::create_dir(&cgroup).context("no cgroup for the engine")?;
        fs::create_dir(folder.join("socket"))?;
        let log = fs::File::create(folder.join("log"))?;
        let engine = Command::new("sh")
            .args(["-c", ENGINE, "sh"])
            .args([&folder, &cgroup])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut docker = Self {
            folder,
            cgroup,
            engine,
            keeper: Some(keeper),
        };
        let socket = docker.socket();
        let up = run::wait_for("the engine to answer", START, || {
            if let Some(status) = docker.engine.try_wait()? {
                bail!("the engine ended with {status}");
            }
            Ok(UnixStream::connect(&socket).ok())
        });
        up.with_context(|| {
            format!(
                "is docker.io installed? The engine's log:\n{}",
                docker.log()
            )
        })?;
        docker.make_image()?;
        Ok(docker)
    }

    fn make_image(&self) -> Result<()> {
        let root = self.folder.join("rootfs");
        for folder in ["bin", "tmp"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is missing")?;
        for name in NAMES {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
        }
        let archive = self.folder.join("rootfs.tar");
        run::output(
            Command::new("tar")
                .arg("-C")
                .arg(&root)
                .arg("-cf")
                .arg(&archive)
                .arg("."),
        )?;
        run::output(self.client().arg("import").arg(&archive).arg(IMAGE))?;
        Ok(())
    }

    /// Docker's own client, which speaks to it.
    #[must_use]
    pub fn client(&self) -> Command {
        self.command("/usr/bin/docker")
    }

    /// `program`, to whose environment it is that clients speak to it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", self.host());
        command
    }

    /// What its client has to be told: `DOCKER_HOST`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// `program`, to be started in the network of the engine itself.
    #[must_use]
    pub fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.engine.id()))
            .arg(program);
        command
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket/docker.sock")
    }

    /// The cgroup that its containers are below.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.cgroup.join("docker")
    }

    /// A folder for a test's own files, removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the engine said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!(
                "--- the end of the engine's log, backwards\n{}",
                last.join("\n")
            );
        }
        let _ = self.engine.kill();
        let _ = self.engine.wait();
        self.keeper = None;
    }
}
