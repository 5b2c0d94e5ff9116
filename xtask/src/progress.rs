//! Saying what is being done: a spinner for people, plain lines for logs.

use std::{
    io::{BufRead as _, BufReader, IsTerminal as _, Read},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Lines of a failed command that are shown.
const TAIL_LINES: usize = 60;

/// Something that takes a while and is being shown.
#[derive(Debug)]
pub(crate) struct Step {
    bar: ProgressBar,
}

/// Does `work`, showing `what` while it goes on and how long it took.
///
/// # Errors
/// The error of `work`, saying at what.
pub(crate) fn step<T>(what: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let step = Step::begin(what);
    let result = work(&step);
    step.bar.finish_and_clear();
    let took = start.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("{} {what} {}", green("✓"), dim(&format!("({took:.1} s)"))),
        Err(_) => eprintln!("{} {what} {}", red("✗"), dim(&format!("({took:.1} s)"))),
    }
    result.with_context(|| format!("{what} failed"))
}

/// Says that nothing had to be done.
pub(crate) fn skip(what: &str, why: &str) {
    eprintln!("{} {what} {}", green("✓"), dim(&format!("({why})")));
}

/// Says something that people should know.
pub(crate) fn note(text: &str) {
    eprintln!("{} {text}", yellow("!"));
}

/// Says what comes now.
pub(crate) fn heading(text: &str) {
    eprintln!("\n{}", bold(text));
}

impl Step {
    fn begin(what: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            // The template is a constant; where it can't be had, the default does.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {wide_msg:.dim}") {
                bar.set_style(style);
            }
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        } else {
            eprintln!("… {what}");
            ProgressBar::hidden()
        };
        Self { bar }
    }

    /// Shows `text` beside what is being done.
    pub(crate) fn say(&self, text: &str) {
        self.bar.set_message(text.trim().to_owned());
    }

    /// Runs `command` to its end, showing its last line and, where it fails, its last lines.
    ///
    /// # Errors
    /// Where it can't be started or fails.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let text = describe(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start `{text}`"))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let readers: Vec<_> = [
            child
                .stdout
                .take()
                .map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child
                .stderr
                .take()
                .map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ]
        .into_iter()
        .flatten()
        .map(|pipe| self.follow(pipe, Arc::clone(&lines)))
        .collect();
        let status = child.wait()?;
        for reader in readers {
            // A reader only copies lines; were it to panic, the status still counts.
            let _ = reader.join();
        }
        if !status.success() {
            let lines = lines.lock().map(|lines| lines.clone()).unwrap_or_default();
            let tail = lines.len().saturating_sub(TAIL_LINES);
            let shown = lines.get(tail..).unwrap_or_default().join("\n");
            bail!("`{text}` ended with {status}:\n{shown}");
        }
        Ok(())
    }

    fn follow(
        &self,
        pipe: Box<dyn Read + Send>,
        lines: Arc<Mutex<Vec<String>>>,
    ) -> thread::JoinHandle<()> {
        let bar = self.bar.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                bar.set_message(line.trim().to_owned());
                if let Ok(mut lines) = lines.lock() {
                    lines.push(line);
                }
            }
        })
    }
}

/// `command` as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| {
            let part = part.to_string_lossy();
            if part.is_empty()
                || part.contains(|c: char| c.is_whitespace() || "'\"$;&|".contains(c))
            {
                format!("'{}'", part.replace('\'', "'\\''"))
            } else {
                part.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// `text` in green, where colour is wanted.
pub(crate) fn green(text: &str) -> String {
    paint("32", text)
}

/// `text` in red, where colour is wanted.
pub(crate) fn red(text: &str) -> String {
    paint("31", text)
}

/// `text` in yellow, where colour is wanted.
pub(crate) fn yellow(text: &str) -> String {
    paint("33", text)
}

/// `text` in bold, where colour is wanted.
pub(crate) fn bold(text: &str) -> String {
    paint("1", text)
}

/// `text` dimmed, where colour is wanted.
pub(crate) fn dim(text: &str) -> String {
    paint("2", text)
}

fn paint(code: &str, text: &str) -> String {
    if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
