//! `interceptor console`: signing in there, and what its configuration is made of.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    process::ExitCode,
};

use argon2::{Argon2, PasswordHasher as _, password_hash::SaltString};
use aws_lc_rs::{digest, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Context, Outcome, display::print, failed::Failed};
use crate::control::ConsoleLink;

/// Shortest password, in characters: what is shorter is guessed, however slowly.
const PASSWORD_MIN: usize = 12;

/// The web console: sign in, and make what its configuration needs
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Examples:
  interceptor console link
  interceptor console password
  interceptor console token")]
pub(super) enum Command {
    /// Print a link that signs you in, once and within two minutes, as who you are on this host
    Link,
    /// Ask for a password and print what the configuration keeps of it (`console: {users: [{password: …}]}`)
    Password,
    /// Print a new token for a program, and what the configuration keeps of it (`console: {tokens: [{sha256: …}]}`)
    Token,
}

pub(super) fn run(context: &Context, command: &Command) -> Outcome {
    match command {
        Command::Link => {
            let link: ConsoleLink = context.client.post("/v1/console/links", &json!({}))?;
            if context.is_json() {
                return context.print_json(&json!(link));
            }
            print(&format!("{}\n", link.url))?;
        }
        Command::Password => {
            let password = password()?;
            let mut salt = [0; 16];
            rand::fill(&mut salt).map_err(|_| Failed::because("the system has no randomness"))?;
            let salt = SaltString::encode_b64(&salt).map_err(Failed::because)?;
            let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
            let hash = hash.map_err(Failed::because)?.to_string();
            if context.is_json() {
                return context.print_json(&json!({"password": hash}));
            }
            print(&format!("{hash}\n"))?;
        }
        Command::Token => {
            let mut bytes = [0; 32];
            rand::fill(&mut bytes).map_err(|_| Failed::because("the system has no randomness"))?;
            let token = format!("interceptor_{}", URL_SAFE_NO_PAD.encode(bytes));
            let sha256 = hex::encode(digest::digest(&digest::SHA256, token.as_bytes()));
            if context.is_json() {
                return context.print_json(&json!({"token": token, "sha256": sha256}));
            }
            print(&format!("token   {token}\nsha256  {sha256}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// From a terminal twice, unseen; from anything else the first line.
fn password() -> Result<Zeroizing<String>, Failed> {
    let stdin = io::stdin();
    let read = |prompt: &str| {
        super::display::prompt(prompt);
        let mut line = Zeroizing::new(String::new());
        stdin.lock().read_line(&mut line)?;
        let text = line.trim_end_matches(['\r', '\n']).to_owned();
        Ok::<_, io::Error>(Zeroizing::new(text))
    };
    let password = if stdin.is_terminal() {
        let before = tcgetattr(&stdin).map_err(Failed::because)?;
        let mut unseen = before.clone();
        unseen.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSANOW, &unseen).map_err(Failed::because)?;
        let twice = read("Password: ").and_then(|one| Ok((one, read("\nOnce more: ")?)));
        tcsetattr(&stdin, SetArg::TCSANOW, &before).map_err(Failed::because)?;
        super::display::prompt("\n");
        let (one, two) = twice?;
        if one != two {
            return Err(Failed::because("the two aren't the same; nothing was made"));
        }
        one
    } else {
        read("")?
    };
    if password.chars().count() < PASSWORD_MIN {
        return Err(Failed::because(format!(
            "a password has at least {PASSWORD_MIN} characters"
        )));
    }
    Ok(password)
}
