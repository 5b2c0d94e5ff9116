//! Where things are: the built program, the clients that `cargo xtask setup` put there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Cargo's target folder.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The program under test: `INTERCEPTOR_BIN`, else what was built beside this executable.
///
/// # Errors
/// Where it has not been built.
pub fn interceptor() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("INTERCEPTOR_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("this executable's path is unknown")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("interceptor"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "there is no `interceptor` beside {}; build it with `cargo xtask build`",
                own.display()
            )
        })
}

/// A client script of `tests/clients`.
#[must_use]
pub fn client(name: &str) -> PathBuf {
    root().join("tests/clients").join(name)
}

/// The Python that has the clients that are packages of Python.
///
/// # Errors
/// Where `cargo xtask setup` has not been run.
pub fn python() -> Result<PathBuf> {
    set_up(target().join("clients/venv/bin/python"))
}

/// The Go toolchain.
///
/// # Errors
/// Where `cargo xtask setup` has not been run.
pub fn go() -> Result<PathBuf> {
    set_up(target().join("clients/venv/bin/go"))
}

/// The folder that has node-postgres in `node_modules`.
///
/// # Errors
/// Where `cargo xtask setup` has not been run.
pub fn node_modules() -> Result<PathBuf> {
    set_up(target().join("clients/node/node_modules"))
}

fn set_up(path: PathBuf) -> Result<PathBuf> {
    if !path.exists() {
        bail!(
            "{} is missing; `cargo xtask setup` puts it there",
            path.display()
        );
    }
    Ok(path)
}
