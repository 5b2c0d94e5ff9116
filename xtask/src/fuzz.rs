//! Feeding hostile input to what reads it, until something breaks or the time is up.

use std::fs;

use anyhow::{Context as _, Result, bail};
use interceptor_tests::paths;

use crate::{
    progress::{heading, step},
    shell::{self, answer, cargo, command, find},
};

/// The version that works with the nightly toolchains of this compiler's year.
const CARGO_FUZZ: &str = "0.13.2";

/// Fuzzes `target`, or every target in turn, for `seconds` each.
///
/// # Errors
/// Where the tools can't be had, there is no such target, or an input was found.
pub(crate) fn fuzz(target: Option<&str>, seconds: u32) -> Result<()> {
    let folder = paths::root().join("interceptor/core/fuzz");
    let mut targets = fs::read_dir(folder.join("targets"))?
        .map(|entry| {
            let path = entry?.path();
            let stem = path.file_stem().context("a target without a name")?;
            Ok(stem.to_string_lossy().into_owned())
        })
        .collect::<Result<Vec<_>>>()?;
    targets.sort();
    if let Some(target) = target {
        if !targets.iter().any(|known| known == target) {
            bail!(
                "there is no target `{target}`; there are {}",
                targets.join(", ")
            );
        }
        targets = vec![target.to_owned()];
    }
    tools()?;
    for target in targets {
        heading(&format!("{target}, {seconds} s"));
        let corpus = folder.join("corpus").join(&target);
        fs::create_dir_all(&corpus)?;
        shell::run(
            command("cargo")
                .args(["+nightly", "fuzz", "run", "--fuzz-dir"])
                .arg(&folder)
                .arg(&target)
                // What is found goes to the first folder; the seeds stay as they are.
                .arg(&corpus)
                .arg(folder.join("seeds").join(&target))
                .arg("--")
                .arg(format!("-max_total_time={seconds}"))
                .args(["-timeout=10", "-rss_limit_mb=4096"]),
        )?;
    }
    Ok(())
}

fn tools() -> Result<()> {
    if answer(command("cargo").args(["+nightly", "--version"])).is_none() {
        if find("rustup").is_none() {
            bail!("fuzzing needs a nightly toolchain, and there is no rustup to install one");
        }
        step("nightly toolchain", |step| {
            step.run(command("rustup").args([
                "toolchain",
                "install",
                "nightly",
                "--profile=minimal",
            ]))
        })?;
    }
    if answer(cargo().args(["fuzz", "--version"])).is_none() {
        step(&format!("cargo-fuzz {CARGO_FUZZ}"), |step| {
            step.run(cargo().args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked"]))
        })?;
    }
    Ok(())
}
