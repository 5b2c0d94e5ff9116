//! Which DNS server is asked in place of the one that an agent means.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

/// The servers of the configuration, if there are any.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<SocketAddr>,
    /// Which of them answers.
    current: AtomicUsize,
}

impl Servers {
    /// `servers` are asked in place of those that agents mean, if there are any.
    #[must_use]
    pub const fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            current: AtomicUsize::new(0),
        }
    }

    /// The server that is asked where an agent means `meant`.
    #[must_use]
    pub fn server(&self, meant: SocketAddr) -> SocketAddr {
        let turn = self.current.load(Ordering::Relaxed) % self.servers.len().max(1);
        self.servers.get(turn).copied().unwrap_or(meant)
    }

    /// Whether servers of the configuration are asked in place of those that agents mean.
    #[must_use]
    pub const fn is_configured(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Whether there is another server to ask where one doesn't answer.
    #[must_use]
    pub const fn has_others(&self) -> bool {
        self.servers.len() > 1
    }

    /// Has another one of the configured servers asked from now on, where `server` is the one that was.
    pub fn failed(&self, server: SocketAddr) {
        let current = self.current.load(Ordering::Relaxed);
        if self.servers.get(current % self.servers.len().max(1)) == Some(&server) {
            let next = current.wrapping_add(1);
            // Of many that find out at once one moves on.
            let _ =
                self.current
                    .compare_exchange(current, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Servers;

    #[test]
    fn a_configured_server_that_fails_gives_way_to_the_next() {
        let meant = "192.0.2.1:53".parse().unwrap();
        let none = Servers::new(Vec::new());
        assert_eq!(none.server(meant), meant);
        none.failed(meant);
        assert_eq!(none.server(meant), meant);
        let servers = ["192.0.2.53:53", "192.0.2.54:5353"].map(|server| server.parse().unwrap());
        let given = Servers::new(servers.to_vec());
        assert_eq!(given.server(meant), servers[0]);
        given.failed(servers[1]);
        assert_eq!(given.server(meant), servers[0]);
        given.failed(servers[0]);
        assert_eq!(given.server(meant), servers[1]);
        given.failed(servers[1]);
        assert_eq!(given.server(meant), servers[0]);
    }
}
