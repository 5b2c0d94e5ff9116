//! Reading the ClientHello off a socket, without answering it.

use std::{io, time::Duration};

use bytes::BytesMut;
use interceptor_core::protocol::tls::{ClientHello, Reading};
use tokio::io::AsyncReadExt as _;

use crate::socket::Socket;

/// Why there is no ClientHello.
#[derive(Debug)]
pub enum NoHello {
    /// It is none that has one meaning.
    Malformed(&'static str),
    /// The client went away, or took too long.
    Gone(String),
}

/// Reads from `client` to the end of `first` until the ClientHello in it is whole, for `patience`.
///
/// # Errors
/// When it never is.
pub async fn read_hello(
    client: &mut Socket,
    first: &mut BytesMut,
    patience: Duration,
) -> Result<ClientHello, NoHello> {
    let reading = async {
        loop {
            match ClientHello::read(first) {
                Reading::Complete(hello) => return Ok(hello),
                Reading::Malformed(why) => return Err(NoHello::Malformed(why)),
                Reading::More => {}
            }
            match client.read_buf(first).await {
                Ok(1..) => {}
                Ok(0) => return Err(gone(&io::ErrorKind::UnexpectedEof.into())),
                Err(error) => return Err(gone(&error)),
            }
        }
    };
    tokio::time::timeout(patience, reading)
        .await
        .unwrap_or_else(|_| {
            Err(NoHello::Gone(format!(
                "no whole ClientHello within {} s",
                patience.as_secs()
            )))
        })
}

fn gone(error: &io::Error) -> NoHello {
    NoHello::Gone(format!("client: {error}"))
}
