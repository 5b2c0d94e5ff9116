//! `interceptor journal`: what is done to the journal as a whole.

use std::process::ExitCode;

use super::{
    Context, Outcome,
    display::{message, print},
};
use crate::{control::Reason, journal::Rotated};

/// Replace the key that the journal is signed with
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    RotateKey(Rotation),
}

/// Have the journal be signed with a new key from now on
///
/// The old key signs that the new one follows, which is on record with the reason; then it is destroyed. Whoever kept
/// any earlier public key goes on checking with that one: `interceptor verify` follows the records. After a theft keep
/// the new one: whoever has a stolen key can sign another history up to where it was replaced.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  interceptor journal rotate-key --reason 'yearly'
  interceptor -o json journal rotate-key --reason 'case 2026-117: the host was taken over'")]
pub(super) struct Rotation {
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(super) fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::RotateKey(rotation) => rotate(context, rotation),
    }
}

fn rotate(context: &Context, Rotation { reason }: Rotation) -> Outcome {
    let rotated: Rotated = context.client.post("/v1/journal/key", &Reason { reason })?;
    if context.is_json() {
        return context.print_json(&rotated);
    }
    print(&format!("old: {}\nnew: {}\n", rotated.old, rotated.new))?;
    message(&format!(
        "record {} says so; the old key vouches for what is up to record {}. Keep the new one (journal.pub) apart from this host",
        rotated.seq, rotated.up_to
    ));
    Ok(ExitCode::SUCCESS)
}
