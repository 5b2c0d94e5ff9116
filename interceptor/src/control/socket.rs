//! The control socket: where it is, who may open it, who is at the other end.

use std::{
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{FileTypeExt, PermissionsExt, chown},
            net as unix,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::serve::Listener;
use nix::{
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
    unistd::Group,
};
use tokio::net::{UnixListener, UnixStream};

use super::{host::Host, peer::Peer};

/// Members of this group may use the control socket beside root.
const GROUP: &str = "interceptor";

/// A bound control socket, removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    // The standard library's: it can be bound before there is a runtime.
    listener: Option<unix::UnixListener>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("another daemon answers at {}; stop it, or give this one its own --control", .0.display())]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{} is there and is not a socket; move it away, or choose another --control", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("{what} {}: {error}", .path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
}

impl ControlSocket {
    /// Binds `path` for root and the members of the group `interceptor`. Replaces a socket that a
    /// killed daemon left.
    ///
    /// # Errors
    /// Where another daemon answers there, or it can't be bound.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |what| {
            move |error| SocketError::Io {
                what,
                path: path.to_owned(),
                error,
            }
        };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("looking at")(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) => match unix::UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse(path.to_owned())),
                Err(_) => fs::remove_file(path).map_err(io("removing the old socket"))?,
            },
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io("creating the folder of"))?;
        }
        let listener = bound(path).map_err(|errno| io("binding")(errno.into()))?;
        let group = Group::from_name(GROUP).ok().flatten();
        if let Some(group) = group {
            chown(path, None, Some(group.gid.as_raw())).map_err(io("giving to its group"))?;
            let mode = fs::Permissions::from_mode(0o660);
            fs::set_permissions(path, mode).map_err(io("setting the mode of"))?;
        }
        Ok(Self {
            path: path.to_owned(),
            listener: Some(listener),
        })
    }

    /// Starts to accept, inside a runtime.
    pub(super) fn listen(mut self, host: Arc<dyn Host>) -> io::Result<Gate> {
        let listener = self.listener.take().ok_or(io::ErrorKind::NotConnected)?;
        listener.set_nonblocking(true)?;
        Ok(Gate {
            listener: UnixListener::from_std(listener)?,
            host,
            _socket: self,
        })
    }
}

/// A socket at `path` that nobody else could ever connect to: the mode that it has before it is bound is the
/// one that its file gets. The umask, which would do as well, is the whole process's.
fn bound(path: &Path) -> nix::Result<unix::UnixListener> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // It may have been removed with its folder.
        _ = fs::remove_file(&self.path);
    }
}

/// Accepts connections and notes at once who is at the other end.
pub(super) struct Gate {
    listener: UnixListener,
    host: Arc<dyn Host>,
    /// Removes the socket in the end.
    _socket: ControlSocket,
}

impl Listener for Gate {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) => {
                        let peer = Peer::new(&*self.host, peer.uid(), peer.pid());
                        return (stream, peer);
                    }
                    Err(error) => tracing::warn!(%error, "a peer of the control socket is unknown"),
                },
                Err(error) => {
                    // Out of file descriptors, as a rule: they come back.
                    tracing::error!(%error, "the control socket can't accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
