//! Who is at the other end: signed in by a password, an OpenID provider or a link, or a program with a token.

mod limits;
mod oidc;
mod passwords;
mod sessions;
mod tokens;

pub(super) use self::{
    limits::Limits,
    oidc::{Callback, Oidc},
    passwords::Passwords,
    sessions::{Session, Sessions},
    tokens::Tokens,
};

use aws_lc_rs::{digest, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// 256 bits that nobody can guess, to be handed out.
///
/// # Errors
/// Where the system has no randomness.
pub(super) fn secret() -> Result<String, &'static str> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| "the system has no randomness")?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// What is kept of something that was handed out: what it is can't be told from this, and how long a wrong one takes
/// to look up says nothing of the right one.
pub(super) fn hashed(secret: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref());
    hash
}
