//! The terminal that a session is played on: keys one at a time, signals as they come, and as it was afterwards.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, raise},
        signalfd::{SfdFlags, SignalFd},
        termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr},
    },
    unistd::read,
};

use super::{
    super::{
        Outcome,
        display::{Style, paint, print},
        failed::Failed,
    },
    player::{Key, Next, Player},
    shown::fold,
};

/// Signals that would leave the terminal without its echo, and the one that says that its size changed.
const SIGNALS: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];

/// Columns where the terminal doesn't say.
const COLUMNS: usize = 80;

/// Removes what stands on the line.
const CLEAR: &str = "\r\x1b[K";

/// Plays until it is over or somebody has enough.
pub(super) fn play(mut player: Player, color: bool) -> Outcome {
    let mut screen = Screen::take()?;
    let mut last = Instant::now();
    loop {
        let timeout = match player.next(last.elapsed()) {
            Next::Show => {
                let text = fold(player.show(), columns());
                print(&format!("{CLEAR}{text}"))?;
                last = Instant::now();
                continue;
            }
            Next::Pause(pause) => Some(pause),
            Next::Key => None,
            Next::End => break,
        };
        let standing: String = player.standing().chars().take(columns() - 1).collect();
        print(&format!("{CLEAR}{}", paint(Style::Dim, &standing, color)))?;
        match screen.wait(timeout)? {
            Input::Nothing => {}
            Input::Keys(keys) => {
                for key in keys {
                    match key {
                        Key::Quit => {
                            print(CLEAR)?;
                            return Ok(ExitCode::SUCCESS);
                        }
                        Key::Suspend => screen.suspend()?,
                        key => {
                            if let Some(said) = player.key(key) {
                                print(&format!("{CLEAR}{}", paint(Style::Dim, &said, color)))?;
                            }
                        }
                    }
                }
            }
            Input::Signal(Signal::SIGTSTP) => screen.suspend()?,
            Input::Signal(Signal::SIGWINCH) => {}
            Input::Signal(signal) => {
                // As whoever waits for it expects of a process that a signal ended.
                let code = u8::try_from(128 + signal as i32).unwrap_or(1);
                // A terminal that is gone takes nothing.
                let _ = print(CLEAR);
                return Ok(ExitCode::from(code));
            }
            Input::Closed => break,
        }
    }
    print(CLEAR)?;
    Ok(ExitCode::SUCCESS)
}

/// What comes.
enum Input {
    Keys(Vec<Key>),
    Signal(Signal),
    /// Nothing in time.
    Nothing,
    /// The terminal is gone.
    Closed,
}

/// A terminal that gives keys as they are pressed, until this is dropped.
struct Screen {
    before: Termios,
    signals: SignalFd,
    blocked: SigSet,
}

impl Screen {
    fn take() -> Result<Self, Failed> {
        let before = tcgetattr(io::stdin()).map_err(Failed::because)?;
        let blocked: SigSet = SIGNALS.into_iter().collect();
        let signals =
            SignalFd::with_flags(&blocked, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
                .map_err(Failed::because)?;
        let screen = Self {
            before,
            signals,
            blocked,
        };
        screen.blocked.thread_block().map_err(Failed::because)?;
        screen.raw()?;
        Ok(screen)
    }

    /// Has it give keys one at a time, without showing them.
    fn raw(&self) -> Result<(), Failed> {
        let mut single = self.before.clone();
        single
            .local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &single).map_err(Failed::because)
    }

    /// What comes next, within `timeout`.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Input, Failed> {
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            // Rounded up, so that it isn't asked again and again for less than a millisecond.
            let milliseconds = timeout.as_millis().saturating_add(1);
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
        });
        let stdin = io::stdin();
        let mut ready = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Input::Nothing),
            Ok(_) => {}
            Err(error) => return Err(Failed::because(error)),
        }
        let has_keys = ready.get(1).is_some_and(|fd| fd.any() == Some(true));
        if let Some(told) = self.signals.read_signal().map_err(Failed::because)? {
            let signal = i32::try_from(told.ssi_signo).ok();
            let signal = signal.and_then(|signal| Signal::try_from(signal).ok());
            return Ok(signal.map_or(Input::Nothing, Input::Signal));
        }
        if !has_keys {
            return Ok(Input::Nothing);
        }
        let mut bytes = [0; 256];
        match read(stdin.as_fd(), &mut bytes) {
            Ok(0) | Err(Errno::EIO) => Ok(Input::Closed),
            Ok(count) => Ok(Input::Keys(Key::read(
                bytes.get(..count).unwrap_or_default(),
            ))),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(Input::Nothing),
            Err(error) => Err(Failed::because(error)),
        }
    }

    /// Stops the process as Ctrl-Z does, with the terminal as it was, and goes on when it is continued.
    fn suspend(&self) -> Result<(), Failed> {
        print(CLEAR)?;
        self.restore();
        raise(Signal::SIGSTOP).map_err(Failed::because)?;
        self.raw()
    }

    fn restore(&self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.restore();
        let _ = self.blocked.thread_unblock();
    }
}

/// How wide the terminal is, in columns.
fn columns() -> usize {
    let mut size = nix::pty::Winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request writes one `winsize`, which this is and which outlives the call.
    let said = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    match (said, size.ws_col) {
        (0, columns @ 1..) => columns.into(),
        _ => COLUMNS,
    }
}
