//! Where a secret stands, and reading it from there: a file, the environment, a command's output.
//!
//! The configuration names the place and never holds the secret itself. Errors name the place too.

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStringExt as _,
            fs::{MetadataExt as _, OpenOptionsExt as _},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use interceptor_core::{limits, login::Secret};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;
use zeroize::Zeroizing;

/// How long a command may take; the agent waits meanwhile, and its own patience is some ten seconds.
const COMMAND_PATIENCE: Duration = Duration::from_secs(8);

/// How long a command's answer is good unless said otherwise.
const TTL: Duration = Duration::from_secs(60);

/// Where a secret stands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub enum Source {
    /// In a file that only its owner and group can read.
    File(PathBuf),
    /// In a variable of the daemon's environment.
    Environment(Box<str>),
    /// In what a command prints, run without a shell.
    Command {
        /// The program's path.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<Box<str>>,
        /// How long its answer is good.
        ttl: Duration,
    },
}

impl Source {
    /// The file that it stands in, if that is where.
    #[must_use]
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            Self::File(path) => Some(path),
            Self::Environment(_) | Self::Command { .. } => None,
        }
    }

    /// The secret that stands there now. Blocks, for a few seconds at the most.
    ///
    /// # Errors
    /// Where there is none, or one that others could have read.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let bytes = match self {
            Self::File(path) => read_file(path),
            Self::Environment(name) => read_environment(name),
            Self::Command {
                program, arguments, ..
            } => run(program, arguments),
        };
        bytes.and_then(trimmed).map_err(|problem| SecretError {
            place: self.to_string(),
            problem,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file `{}`", path.display()),
            Self::Environment(name) => write!(f, "the environment variable `{name}`"),
            // Its arguments may say more than is good for a log.
            Self::Command { program, .. } => write!(f, "the command `{}`", program.display()),
        }
    }
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
#[error("{place} {problem}")]
pub struct SecretError {
    place: String,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("can't be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is not a regular file; a secret has to stand in one")]
    Irregular,
    #[error("can be read or changed by everybody (mode {mode:04o}); `chmod o= {}` mends that", path.display())]
    Open { mode: u32, path: PathBuf },
    #[error("is not set in the daemon's environment")]
    Unset,
    #[error("can't be run: {0}")]
    Unrunnable(io::Error),
    #[error("failed: {0}; run it by hand to see why")]
    Failed(ExitStatus),
    #[error("took longer than {} s", COMMAND_PATIENCE.as_secs())]
    Slow,
    #[error("gives more than {} bytes", limits::SECRET_BYTES_MAX)]
    Long,
    #[error("gives nothing")]
    Empty,
    #[error("gives a NUL byte, which no password can have")]
    Nul,
}

impl SecretError {
    /// Reading `source` was broken off.
    pub(crate) fn interrupted(source: &Source) -> Self {
        Self {
            place: source.to_string(),
            problem: io::Error::from(io::ErrorKind::Interrupted).into(),
        }
    }
}

type Bytes = Zeroizing<Vec<u8>>;

/// Without the end of line that editors and `echo` leave.
fn trimmed(bytes: Bytes) -> Result<Secret, Problem> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.contains(&0) {
        return Err(Problem::Nul);
    }
    Ok(Secret::new(text.to_vec()))
}

fn read_file(path: &Path) -> Result<Bytes, Problem> {
    let file = File::options()
        .read(true)
        // To open a FIFO would wait for its writer.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    // Of what was opened, not of what stands there a moment before.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Problem::Irregular);
    }
    if metadata.mode() & 0o007 != 0 {
        return Err(Problem::Open {
            mode: metadata.mode() & 0o7777,
            path: path.to_owned(),
        });
    }
    let mut bytes = buffer();
    file.take(limits::SECRET_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    bounded(bytes)
}

fn read_environment(name: &str) -> Result<Bytes, Problem> {
    let value = std::env::var_os(name).ok_or(Problem::Unset)?;
    bounded(Zeroizing::new(OsString::into_vec(value)))
}

fn run(program: &Path, arguments: &[Box<str>]) -> Result<Bytes, Problem> {
    let deadline = Instant::now() + COMMAND_PATIENCE;
    let mut child = Command::new(program)
        .args(arguments.iter().map(|argument| &**argument))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // What it says there may hold the secret as well.
        .stderr(Stdio::null())
        // So that what it starts ends with it.
        .process_group(0)
        .spawn()
        .map_err(Problem::Unrunnable)?;
    let output = output(&mut child, deadline);
    let status = output.and_then(|bytes| Ok((bytes, ended(&mut child, deadline)?)));
    match status {
        Ok((bytes, status)) if status.success() => Ok(bytes),
        Ok((_, status)) => Err(Problem::Failed(status)),
        Err(problem) => {
            if let Ok(pid) = i32::try_from(child.id()) {
                let group = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            }
            let _ = child.wait();
            Err(problem)
        }
    }
}

/// All that `child` prints until `deadline`.
fn output(child: &mut Child, deadline: Instant) -> Result<Bytes, Problem> {
    let mut bytes = buffer();
    let Some(mut pipe) = child.stdout.take() else {
        return Ok(bytes);
    };
    let mut chunk = Zeroizing::new([0; 4_096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut pipes = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut pipes, left) {
            Ok(0) => return Err(Problem::Slow),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let count = pipe.read(&mut *chunk)?;
        if count == 0 {
            return Ok(bytes);
        }
        if bytes.len() + count > limits::SECRET_BYTES_MAX {
            return Err(Problem::Long);
        }
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}

/// How `child`, which prints nothing more, ends.
fn ended(child: &mut Child, deadline: Instant) -> Result<ExitStatus, Problem> {
    const EVERY: Duration = Duration::from_millis(5);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(Problem::Slow);
        }
        std::thread::sleep(EVERY);
    }
}

/// Room for any secret, so that none is left behind where a smaller buffer was.
fn buffer() -> Bytes {
    Zeroizing::new(Vec::with_capacity(limits::SECRET_BYTES_MAX + 1))
}

fn bounded(bytes: Bytes) -> Result<Bytes, Problem> {
    if bytes.len() > limits::SECRET_BYTES_MAX {
        Err(Problem::Long)
    } else {
        Ok(bytes)
    }
}

/// A source as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    file: Option<PathBuf>,
    env: Option<Box<str>>,
    command: Option<Vec<Box<str>>>,
    ttl: Option<Box<str>>,
}

impl TryFrom<Fields> for Source {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let absolute = |path: &Path| {
            if path.is_absolute() {
                Ok(())
            } else {
                Err(format!(
                    "`{}` depends on where the daemon is started: give the whole path",
                    path.display()
                ))
            }
        };
        if fields.ttl.is_some() && fields.command.is_none() {
            return Err(
                "`ttl` belongs to a `command`; files and variables are read anew".to_owned(),
            );
        }
        match (fields.file, fields.env, fields.command) {
            (Some(path), None, None) => {
                absolute(&path)?;
                Ok(Self::File(path))
            }
            (None, Some(name), None) => {
                if name.is_empty() || name.contains(['=', '\0']) {
                    return Err(format!("`{}` names no variable", name.escape_debug()));
                }
                Ok(Self::Environment(name))
            }
            (None, None, Some(command)) => {
                let mut words = command.into_iter();
                let program = PathBuf::from(
                    words
                        .next()
                        .ok_or("`command` is empty: `[/path/to/program, argument, …]` belongs here")?
                        .into_string(),
                );
                absolute(&program)?;
                let ttl = match fields.ttl {
                    None => TTL,
                    Some(text) => duration(&text).ok_or_else(|| {
                        format!(
                            "`ttl` is `{}`; `90s`, `15m` and `2h` are durations",
                            text.escape_debug()
                        )
                    })?,
                };
                Ok(Self::Command {
                    program,
                    arguments: words.collect(),
                    ttl,
                })
            }
            _ => Err(
                "a secret stands in one place: `{file: /path}`, `{env: NAME}` or `{command: [/path, …]}`"
                    .to_owned(),
            ),
        }
    }
}

/// `90s`, `15m`, `2h`, as in policies.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "s" => number,
        "m" => number.checked_mul(60)?,
        "h" => number.checked_mul(3_600)?,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn command(words: &[&str]) -> Source {
        let mut words = words.iter();
        Source::Command {
            program: words.next().unwrap().into(),
            arguments: words.map(|word| (*word).into()).collect(),
            ttl: TTL,
        }
    }

    fn error(source: &Source) -> String {
        source.read().unwrap_err().to_string()
    }

    #[test]
    fn a_file_gives_its_line_and_only_where_others_can_not_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let source = Source::File(path.clone());
        let place = format!("the file `{}`", path.display());
        assert_eq!(
            error(&source),
            format!("{place} can't be read: No such file or directory (os error 2)")
        );
        for (written, expected) in [
            ("s3cret\n", Ok("s3cret")),
            ("s3cret\r\n", Ok("s3cret")),
            (" two words \n\n", Ok(" two words \n")),
            ("\n", Err("gives nothing")),
            ("a\0b", Err("gives a NUL byte, which no password can have")),
        ] {
            fs::write(&path, written).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            match expected {
                Ok(secret) => assert_eq!(source.read().unwrap().expose(), secret.as_bytes()),
                Err(problem) => assert_eq!(error(&source), format!("{place} {problem}")),
            }
        }
        fs::write(&path, "x".repeat(limits::SECRET_BYTES_MAX + 1)).unwrap();
        assert_eq!(
            error(&source),
            format!("{place} gives more than 16384 bytes")
        );
        for mode in [0o604, 0o602, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(
                error(&source),
                format!(
                    "{place} can be read or changed by everybody (mode {mode:04o}); `chmod o= {}` mends that",
                    path.display()
                )
            );
        }
        assert_eq!(
            error(&Source::File(folder.path().to_owned())),
            format!(
                "the file `{}` is not a regular file; a secret has to stand in one",
                folder.path().display()
            )
        );
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(error(&Source::File(fifo)).ends_with("has to stand in one"));
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        assert_eq!(
            error(&Source::Environment("INTERCEPTOR_NO_SUCH_SECRET".into())),
            "the environment variable `INTERCEPTOR_NO_SUCH_SECRET` is not set in the daemon's environment"
        );
    }

    #[test]
    fn a_command_is_no_shell_and_its_failure_is_not_its_output() {
        // Whoever is started stays in the cgroup that this process is in, which other tests remove.
        let _turn = crate::kernel::tests::turn();
        let source = command(&["/bin/echo", "$HOME;", "a b"]);
        assert_eq!(source.read().unwrap().expose(), b"$HOME; a b");
        assert_eq!(
            error(&command(&["/bin/sh", "-c", "echo s3cret; exit 3"])),
            "the command `/bin/sh` failed: exit status: 3; run it by hand to see why"
        );
        assert_eq!(
            error(&command(&["/nonexistent/program", "s3cret"])),
            "the command `/nonexistent/program` can't be run: No such file or directory (os error 2)"
        );
        assert_eq!(
            error(&command(&["/bin/cat", "/dev/zero"])),
            "the command `/bin/cat` gives more than 16384 bytes"
        );
    }

    #[test]
    fn a_command_that_does_not_end_is_ended() {
        // Whoever is started stays in the cgroup that this process is in, which other tests remove.
        let _turn = crate::kernel::tests::turn();
        let mut child = Command::new("/bin/sleep")
            .arg("60")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let soon = Instant::now() + Duration::from_millis(50);
        assert!(matches!(output(&mut child, soon), Err(Problem::Slow)));
        assert!(matches!(ended(&mut child, soon), Err(Problem::Slow)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
