//! Everything that CI runs.

use std::ffi::OsString;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    check,
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
    // All targets at once, so that the program that the integration tests start and the tests share
    // their dependencies, built with one set of features.
    step("build interceptor and the tests", |step| {
        step.run(cargo().args(["build", "--locked", "--workspace", "--all-targets"]))
    })?;
    // Tests have thousands of connections at once, and many systems begin with 1,024 descriptors.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    heading("Tests: unit tests, then real kernel, real servers, unmodified clients");
    shell::run(
        cargo()
            .args(["test", "--locked", "--workspace", "--no-fail-fast", "--"])
            .args(filters),
    )
}
