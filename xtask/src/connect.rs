//! A client that does nothing but connect, and the server that it connects to.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, socket, sockopt::Linger,
    },
};
use serde::{Deserialize, Serialize};

/// Descriptors that somebody needs who holds ten thousand connections, on both of their sides.
const DESCRIPTORS: u64 = 32_768;

/// A connection ends with a reset.
const AT_ONCE: nix::libc::linger = nix::libc::linger {
    l_onoff: 1,
    l_linger: 0,
};

/// What to connect to, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to
    #[arg(long)]
    to: SocketAddr,
    /// Connections that are open meanwhile
    #[arg(long)]
    open: usize,
    /// Connects that are measured
    #[arg(long)]
    count: usize,
    /// Microseconds from one to the next: after a thousand, what the one before has set in motion is over
    #[arg(long)]
    pause_us: u64,
    /// Make all sockets, then connect all, then end all: wait for a line before each step, and print one after it
    #[arg(long)]
    by_steps: bool,
}

/// What came of it, printed as JSON.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Microseconds that the middle connect took.
    pub(crate) p50_us: f64,
    /// Microseconds that all but a hundredth took at the most.
    pub(crate) p99_us: f64,
    /// Microseconds that one took in the mean.
    pub(crate) mean_us: f64,
}

/// Has this process, and what it starts, have as many descriptors as it is let; how many.
///
/// # Errors
/// Where the limit can't be read.
pub(crate) fn raise_descriptor_limit() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.max(DESCRIPTORS);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
        return Ok(wanted);
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Connects, and prints how long that took.
///
/// # Errors
/// Where a connect fails.
pub(crate) fn connect(arguments: &Arguments) -> Result<()> {
    raise_descriptor_limit()?;
    if arguments.by_steps {
        return by_steps(arguments);
    }
    let mut held = Vec::with_capacity(arguments.open);
    for _ in 0..arguments.open {
        let mut stream = TcpStream::connect(arguments.to)?;
        // A server that waits for its client has something to look at.
        stream.write_all(b"held\n")?;
        held.push(stream);
    }
    // Who accepts them is done with it.
    thread::sleep(Duration::from_secs(1));
    let mut took: Vec<f64> = Vec::with_capacity(arguments.count);
    for _ in 0..arguments.count {
        let begun = Instant::now();
        let stream = TcpStream::connect(arguments.to)?;
        took.push(begun.elapsed().as_secs_f64() * 1e6);
        // No port is kept back for a minute, or the next ones would have to look for theirs.
        setsockopt(&stream, Linger, &AT_ONCE)?;
        drop(stream);
        if arguments.pause_us > 0 {
            thread::sleep(Duration::from_micros(arguments.pause_us));
        }
    }
    let mean_us = took.iter().sum::<f64>() / took.len().max(1) as f64;
    took.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (took.len().saturating_sub(1)) as f64 * share;
        took.get(index as usize).copied().unwrap_or(f64::NAN)
    };
    let outcome = Outcome {
        p50_us: at(0.5),
        p99_us: at(0.99),
        mean_us,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    drop(held);
    Ok(())
}

/// The steps of a connection, all of one before the first of the next.
fn by_steps(arguments: &Arguments) -> Result<()> {
    let pause = Duration::from_micros(arguments.pause_us);
    let to = SockaddrStorage::from(arguments.to);
    let mut lines = std::io::stdin().lines();
    let mut next = || -> Result<()> {
        println!();
        std::io::stdout().flush()?;
        lines.next().transpose()?;
        Ok(())
    };
    next()?;
    let mut sockets = Vec::with_capacity(arguments.count);
    for _ in 0..arguments.count {
        let flags = SockFlag::SOCK_CLOEXEC;
        sockets.push(socket(AddressFamily::Inet, SockType::Stream, flags, None)?);
        thread::sleep(pause);
    }
    next()?;
    for socket in &sockets {
        nix::sys::socket::connect(socket.as_raw_fd(), &to)?;
        thread::sleep(pause);
    }
    next()?;
    for socket in sockets {
        setsockopt(&socket, Linger, &AT_ONCE)?;
        drop(socket);
        thread::sleep(pause);
    }
    next()
}

/// Accepts connections on a free port of loopback, which it prints, and holds each until its client ends it.
///
/// # Errors
/// Where it can't listen.
pub(crate) fn hold() -> Result<()> {
    raise_descriptor_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(4_096)?;
        println!("{}", listener.local_addr()?.port());
        std::io::stdout().flush()?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            });
        }
    })
}
