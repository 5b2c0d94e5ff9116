//! The daemon's side: starts the console's process, and again whenever it ends.

use std::{
    io,
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, waitid},
    unistd::Pid,
};
use tokio::sync::mpsc;

use super::{COMMAND, config::ConsoleConfig, setup::Setup};
use crate::{
    config::Config,
    sandbox::{self, Which},
    sync::lock,
};

/// Pause before it is started again, doubled each time up to the longest.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long one has to have run to have done well.
const WELL: Duration = Duration::from_secs(10);

/// The console's process, kept running until this is stopped.
#[derive(Debug)]
pub(crate) struct Console {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    /// The process that runs, 0 while none does.
    pid: AtomicU32,
    child: Mutex<Option<Child>>,
}

impl Console {
    /// Listens, and starts the process. Its lines to the daemon come by `lines`.
    ///
    /// # Errors
    /// Where the address is taken, a file that the configuration names can't be read, or nothing can be started.
    pub(crate) fn start(
        config: &Config,
        console: &ConsoleConfig,
        lines: mpsc::UnboundedSender<UnixStream>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(console.listen).map_err(|error| {
            io::Error::other(format!(
                "can't listen on {} (`console: {{listen: …}}`): {error}",
                console.listen
            ))
        })?;
        let user = sandbox::user(Which::Console, config)?;
        let setup = Setup::read(config, console, user)?;
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            pid: AtomicU32::new(0),
            child: Mutex::new(None),
        });
        let keeping = shared.clone();
        // The process ends with the thread that starts it: that one lives as long as the daemon.
        let thread = thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || keeping.keep(&listener, &setup, &lines))?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Its process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        Some(self.shared.pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// Ends it.
    pub(crate) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(child) = &mut *lock(&self.shared.child) {
            // It may have ended by itself.
            let _ = child.kill();
        }
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn keep(
        &self,
        listener: &TcpListener,
        setup: &Setup,
        lines: &mpsc::UnboundedSender<UnixStream>,
    ) {
        let mut pause = PAUSE;
        while !self.stopping.load(Ordering::Acquire) {
            let started = Instant::now();
            let how = match self.run(listener, setup, lines) {
                Ok(how) => how,
                Err(error) => error.to_string(),
            };
            self.pid.store(0, Ordering::Release);
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            tracing::error!("the console's process ended ({how}); it is started again");
            if started.elapsed() > WELL {
                pause = PAUSE;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Starts it and waits until it ends; how it did.
    fn run(
        &self,
        listener: &TcpListener,
        setup: &Setup,
        lines: &mpsc::UnboundedSender<UnixStream>,
    ) -> io::Result<String> {
        let (mut own, its) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0("interceptor")
            .arg(COMMAND)
            .env_clear()
            .current_dir("/")
            // Ctrl-C is for the daemon.
            .process_group(0)
            // As inetd would: sockets in the place of files, and nothing else is passed on.
            .stdin(Stdio::from(OwnedFd::from(its)))
            .stdout(Stdio::from(OwnedFd::from(listener.try_clone()?)))
            .spawn()?;
        let pid = child.id();
        *lock(&self.child) = Some(child);
        setup.send(&mut own)?;
        self.pid.store(pid, Ordering::Release);
        // Where nobody takes it the daemon stops, and the process is ended.
        let _ = lines.send(own);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let id = || Id::Pid(Pid::from_raw(pid.cast_signed()));
        while waitid(id(), flags) == Err(Errno::EINTR) {}
        let ended = lock(&self.child).take().map(|mut child| child.wait());
        Ok(match ended {
            Some(status) => status?.to_string(),
            None => "it is gone".to_owned(),
        })
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.stop();
    }
}
