//! The command line: a file a subcommand.

use std::process::ExitCode;

/// Parses the command line and runs it.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
