//! Building the program.

use std::path::PathBuf;

use anyhow::Result;
use interceptor_tests::paths;

use crate::{progress::step, shell::cargo};

/// Builds `interceptor` and says where it is.
///
/// # Errors
/// The compiler's.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    let (what, folder) = if release {
        ("build interceptor (release)", "release")
    } else {
        ("build interceptor", "debug")
    };
    step(what, |step| {
        let mut cargo = cargo();
        cargo.args(["build", "--locked", "--package", "interceptor"]);
        if release {
            cargo.arg("--release");
        }
        step.run(&mut cargo)
    })?;
    Ok(paths::target().join(folder).join("interceptor"))
}
