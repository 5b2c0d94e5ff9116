//! What can be said about the source without running it.

use anyhow::Result;
use interceptor_tests::paths;

use crate::{
    progress::{skip, step},
    shell::{answer, cargo},
};

/// Formatting, lints, walls, dependencies.
///
/// # Errors
/// The first that doesn't hold.
pub(crate) fn check() -> Result<()> {
    source()?;
    step("walls between modules", |step| {
        step.run(cargo().args([
            "test",
            "--locked",
            "--package",
            "interceptor-tests",
            "--test",
            "it",
            "walls::",
        ]))
    })?;
    if answer(cargo().args(["deny", "--version"])).is_none() {
        skip("dependencies", "cargo-deny isn't installed");
        return Ok(());
    }
    step("dependencies", |step| {
        step.run(cargo().args(["deny", "--locked", "check"]))
    })
}

/// Formatting and lints, which `cargo xtask test` checks too.
///
/// # Errors
/// The first that doesn't hold.
pub(crate) fn source() -> Result<()> {
    if answer(cargo().args(["fmt", "--version"])).is_none() {
        skip("formatting", "rustfmt isn't installed");
    } else {
        step("formatting", |step| {
            step.run(cargo().args(["fmt", "--all", "--check"]))?;
            // Not members of the workspace, so `--all` doesn't reach them.
            for manifest in [
                "interceptor-ebpf/Cargo.toml",
                "interceptor/core/fuzz/Cargo.toml",
            ] {
                if paths::root().join(manifest).exists() {
                    step.run(cargo().args(["fmt", "--check", "--manifest-path", manifest]))?;
                }
            }
            Ok(())
        })?;
    }
    if answer(cargo().args(["clippy", "--version"])).is_none() {
        skip("lints", "clippy isn't installed");
        return Ok(());
    }
    step("lints", |step| {
        step.run(cargo().args([
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    })
}
