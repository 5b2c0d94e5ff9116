//! Landlock: abstract Unix sockets and processes outside have no path that a mount could cover.

use std::io;

use landlock::{
    ABI, Access as _, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, Scope,
};

/// What a kernel without it leaves open.
const OPEN: &str = "abstract Unix sockets of others stay within the command's reach, and so do signals to the process group that it is started in: this kernel has no Landlock, or one older than Linux 6.12's";

/// Keeps this process from connecting to abstract sockets, and from sending signals, to whoever isn't launched
/// by it. Tells where the kernel can't.
pub(super) fn enter() -> io::Result<Option<String>> {
    let Some(ruleset) = ruleset() else {
        return Ok(Some(OPEN.to_owned()));
    };
    ruleset
        .create()
        .and_then(|ruleset| ruleset.no_new_privs(false).restrict_self())
        .map_err(io::Error::other)?;
    Ok(None)
}

/// Why what is launched can reach abstract sockets of others on this kernel, where that is so.
pub(crate) fn unscoped() -> Option<&'static str> {
    ruleset().is_none().then_some(OPEN)
}

/// The rules, where the kernel knows all of them.
fn ruleset() -> Option<Ruleset> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .scope(Scope::from_all(ABI::V6))
        .ok()
}
