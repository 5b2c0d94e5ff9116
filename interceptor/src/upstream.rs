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
    Ok(stream)
}
