//! `interceptor completions` and the hidden `man`.

use std::{path::PathBuf, process::ExitCode};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Outcome, display::print, failed::Failed};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  interceptor completions bash > /usr/share/bash-completion/completions/interceptor")]
pub(super) struct Arguments {
    shell: Shell,
}

/// Write a manual page for every subcommand
#[derive(Debug, clap::Args)]
pub(super) struct ManArguments {
    /// Where to
    folder: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Cli::command(),
        "interceptor",
        &mut text,
    );
    print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(arguments: &ManArguments) -> Outcome {
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .map_err(|error| {
            Failed::because(format!(
                "manual pages can't be written to {}: {error}",
                folder.display()
            ))
        })?;
    Ok(ExitCode::SUCCESS)
}
