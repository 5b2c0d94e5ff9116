//! Policies: typed YAML, parsed, compiled, evaluated.

use std::sync::Arc;

use crate::origin::Origin;

pub mod decision;
pub mod scope;

/// A valid policy; one that exists can be evaluated.
#[derive(Debug)]
pub struct Policy {}

impl Policy {
    /// The part of the policy that can concern `origin`, ready to decide its operations.
    #[must_use]
    pub fn scope(policy: &Arc<Self>, origin: Arc<Origin>) -> scope::Scope {
        scope::Scope::new(policy.clone(), origin)
    }
}
