//! Everything that CI runs.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, check,
    progress::{heading, step},
    setup,
    shell::{self, cargo},
};

/// Sets up, checks the source, builds and runs all tests; with `filters` only those they name.
///
/// # Errors
/// The first step that fails.
pub(crate) fn test(filters: &[OsString]) -> Result<()> {
    heading("Set-up");
    setup::setup()?;
    heading("Source");
    check::source()?;
    heading("Build");
    // The integration tests start the program itself, so it is built before them.
    build::build(false)?;
    step("build the tests", |step| {
        step.run(cargo().args(["test", "--locked", "--workspace", "--no-run"]))
    })?;
    heading("Tests: unit tests, then real kernel, real servers, unmodified clients");
    shell::run(
        cargo()
            .args(["test", "--locked", "--workspace", "--no-fail-fast", "--"])
            .args(filters),
    )
}
