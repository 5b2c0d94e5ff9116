//! Dials the true destination.

use std::{io, time::Duration};

use interceptor_core::origin::Destination;
use tokio::net::TcpStream;

/// Connects to `destination`, for `patience` at the most.
///
/// The daemon's own cgroup carries no redirect, so this reaches the real address.
///
/// # Errors
/// The operating system's, or a time-out.
pub async fn dial(destination: Destination, patience: Duration) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(patience, TcpStream::connect(destination.0)).await;
    let stream = connected.map_err(|_| {
        let text = format!(
            "no answer from {destination} within {} s",
            patience.as_secs()
        );
        io::Error::new(io::ErrorKind::TimedOut, text)
    })??;
    stream.set_nodelay(true)?;
    if destination.0.ip().to_canonical().is_loopback() {
        spare(&stream);
    }
    Ok(stream)
}

/// Whether this host's resolver knows `address` as one of `name`'s.
pub async fn is_address_of(name: &str, address: std::net::SocketAddr) -> bool {
    const PATIENCE: Duration = Duration::from_secs(5);
    let ip = address.ip().to_canonical();
    if let Ok(literal) = name.parse::<std::net::IpAddr>() {
        return literal.to_canonical() == ip;
    }
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name, address.port()))).await {
        Ok(Ok(mut known)) => known.any(|known| known.ip().to_canonical() == ip),
        _ => false,
    }
}

/// Has a socket whose bytes never leave this host go without pacing and its timers.
///
/// There is nothing on the way that could be congested, and BBR, where it is the system's default, sets
/// a timer for every segment. Where the kernel lacks Reno its default has to do.
pub fn spare(stream: &TcpStream) {
    let _ = nix::sys::socket::setsockopt(
        stream,
        nix::sys::socket::sockopt::TcpCongestion,
        &std::ffi::OsString::from("reno"),
    );
}
