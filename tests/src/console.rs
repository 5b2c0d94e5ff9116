//! A console with people in it, and a browser that goes there.

use std::{
    io::Write as _,
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{paths, run};

/// Everybody's password.
pub const PASSWORD: &str = "correct horse battery";

/// How long a console may take to listen.
const START: Duration = Duration::from_secs(20);

/// A configuration with a console at `port`, `more` in its section, and four people: alice, an administrator who
/// reviews for `dba`; bob, who reviews; otto, who operates; vera, who looks.
///
/// # Errors
/// Where the program can't hash a password.
pub fn configuration(port: u16, more: &str) -> Result<String> {
    let hash = hash()?;
    let people = [
        ("alice", "admins"),
        ("bob", "dba"),
        ("vera", "staff"),
        ("otto", "sre"),
    ];
    let people = people.map(|(name, group)| {
        format!("    - {{name: {name}, password: '{hash}', groups: [{group}]}}\n")
    });
    Ok(format!(
        "roles: {{administrator: [admins], operator: [sre], reviewer: [dba, on-call], viewer: [staff]}}\n\
         reviewers: {{dba: [alice, bob, carol@example.com]}}\n\
         console:\n  listen: 127.0.0.1:{port}\n  users:\n{}{more}",
        people.concat()
    ))
}

/// What the program keeps of the password.
fn hash() -> Result<String> {
    let mut child = Command::new(paths::interceptor()?)
        .args(["console", "password"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("its stdin is a pipe")?;
    stdin.write_all(PASSWORD.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "a password can't be hashed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Waits until somebody listens at `port`.
///
/// # Errors
/// Where nobody does in time.
pub fn listens(port: u16) -> Result<()> {
    let connect = || Ok(TcpStream::connect(("127.0.0.1", port)).ok());
    run::wait_for("somebody to listen", START, connect).map(drop)
}

/// `script` of `tests/clients` under Node.
///
/// # Errors
/// Where the clients have not been set up.
pub fn node(script: &str) -> Result<Command> {
    let mut command = Command::new("node");
    command
        .env("NODE_PATH", paths::node_modules()?)
        // Browsers keep things there.
        .env("HOME", "/tmp")
        .arg(paths::client(script));
    Ok(command)
}
