//! A do-nothing relay: the ceiling that a proxy in user space can reach.
//!
//! Bytes are copied from socket to socket and nothing looks at them. One thread, no delay for small
//! segments, one buffer a direction: the best that reading and writing can do.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

/// Bytes read at once; as many as interceptor reads.
const BUFFER_BYTES: usize = 64 << 10;

/// Relays every connection to `listen` to `upstream`, until killed.
///
/// # Errors
/// Where `listen` can't be listened on.
pub(crate) fn relay(listen: SocketAddr, upstream: SocketAddr) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(async {
            let listener = TcpListener::bind(listen)
                .await
                .with_context(|| format!("can't listen on {listen}"))?;
            loop {
                let (client, _) = listener.accept().await?;
                tokio::spawn(async move {
                    // A connection that breaks is the client's to notice.
                    let _ = both_ways(client, upstream).await;
                });
            }
        })
}

async fn both_ways(mut client: TcpStream, upstream: SocketAddr) -> std::io::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        one_way(from_client, to_server),
        one_way(from_server, to_client)
    )?;
    Ok(())
}

async fn one_way(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        match buffer.get(..read) {
            None | Some([]) => return to.shutdown().await,
            Some(bytes) => to.write_all(bytes).await?,
        }
    }
}
