//! What all of these tests share: one PostgreSQL, the plainest policies.

use std::sync::OnceLock;

use interceptor_tests::cluster::Cluster;

/// Everything may pass; everything is still decoded, decided and recorded.
pub(crate) const ALLOW_ALL: &str = "default: {action: allow}\n";

/// The server that all tests of this process share, each with databases of its own.
///
/// It is never dropped; its keeper ends it with the process.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start().expect("a throw-away PostgreSQL"))
}
