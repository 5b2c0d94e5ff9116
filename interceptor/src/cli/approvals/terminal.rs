//! The terminal behind [`Desk`]: keys one at a time, changes as they come.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    process::ExitCode,
    sync::mpsc::{Sender, channel},
    thread,
};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::{
    super::{
        Context, Outcome,
        client::{Client, Reading},
        display::print,
        failed::Failed,
    },
    Vote, asked_in_words, cast,
    desk::{Desk, Effect},
    opened,
};
use crate::approval::Change;

/// What comes.
enum Input {
    Keys(String),
    Changed(Box<Change>),
    /// The daemon tells no more, and why.
    Over(Result<(), Failed>),
}

/// Whether there is somebody to press keys.
pub(super) fn is_there() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// A terminal that gives keys as they are pressed, until this is dropped.
struct Keys(Termios);

impl Keys {
    fn take() -> Result<Self, Failed> {
        let before = tcgetattr(io::stdin()).map_err(Failed::because)?;
        let mut single = before.clone();
        single
            .local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &single).map_err(Failed::because)?;
        Ok(Self(before))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Has whoever sits there answer questions, until they have enough or the daemon stops.
pub(super) fn run(context: &Context) -> Outcome {
    let (tell, inputs) = channel();
    // Its own connection, and its own thread: votes are cast meanwhile.
    let client = Client::new(context.config.control.clone())?;
    let changes = tell.clone();
    thread::spawn(move || {
        let over = client.lines("/v1/approvals/watch", |line| {
            let change = serde_json::from_slice(line).map_err(Failed::because)?;
            Ok(match changes.send(Input::Changed(Box::new(change))) {
                Ok(()) => Reading::On,
                Err(_) => Reading::Done,
            })
        });
        let _ = changes.send(Input::Over(over));
    });
    let _keys = Keys::take()?;
    thread::spawn(move || read_keys(&tell));
    let mut desk = Desk::new(context.color);
    carry_out(context, vec![Desk::greeting()])?;
    for input in inputs {
        // The prompt goes, and comes back below what is printed.
        print("\r\x1b[K")?;
        let now = crate::clock::now();
        let goes_on = match input {
            Input::Keys(keys) => {
                let mut goes_on = true;
                for key in keys.chars() {
                    let effects = desk.key(key, now);
                    goes_on = goes_on && carry_out(context, effects)?;
                }
                goes_on
            }
            Input::Changed(change) => {
                let effects = desk.change(&change, now);
                let goes_on = carry_out(context, effects)?;
                print(&asked_in_words(context, &change))?;
                goes_on
            }
            Input::Over(over) => {
                over?;
                false
            }
        };
        if !goes_on {
            break;
        }
        print(&desk.prompt())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Does what the desk wants; whether it goes on.
fn carry_out(context: &Context, effects: Vec<Effect>) -> Result<bool, Failed> {
    for effect in effects {
        match effect {
            Effect::Print(text) => print(&text)?,
            Effect::Bell => {
                let mut stdout = io::stdout();
                stdout.write_all(b"\x07")?;
                stdout.flush()?;
            }
            Effect::Open(id) => said(opened(context, id).and_then(|text| Ok(print(&text)?)))?,
            Effect::Vote(id, choice, reason) => {
                let vote = Vote { id, reason };
                said(cast(context, vote, choice, None).map(drop))?;
            }
            Effect::Quit => return Ok(false),
        }
    }
    Ok(true)
}

/// What one answer failed by is said, and the others go on.
fn said(result: Result<(), Failed>) -> Result<(), Failed> {
    match result {
        Err(failed @ Failed::Said { .. }) => {
            failed.report();
            Ok(())
        }
        other => other,
    }
}

/// Keys as they are pressed. What a key sends as a sequence (an arrow) isn't one of ours.
fn read_keys(tell: &Sender<Input>) {
    let mut read = [0; 256];
    let mut held = Vec::new();
    while let Ok(count @ 1..) = io::stdin().read(&mut read) {
        let bytes = read.get(..count).unwrap_or_default();
        if let [0x1b, _, ..] = bytes {
            continue;
        }
        held.extend_from_slice(bytes);
        // A character may come in two reads.
        let whole = match std::str::from_utf8(&held) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => {
                held.clear();
                continue;
            }
        };
        let rest = held.split_off(whole);
        let keys = String::from_utf8(std::mem::replace(&mut held, rest)).unwrap_or_default();
        if tell.send(Input::Keys(keys)).is_err() {
            return;
        }
    }
    let _ = tell.send(Input::Over(Ok(())));
}
