//! What all of these tests share: one PostgreSQL.

use std::sync::OnceLock;

use interceptor_tests::cluster::Cluster;

/// The server that all tests of this process share, each with databases of its own.
///
/// It is never dropped; its keeper ends it with the process.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start().expect("a throw-away PostgreSQL"))
}
