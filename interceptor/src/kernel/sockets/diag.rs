//! What the kernel says of a network namespace's sockets, and its help in ending them: sock_diag.
//!
//! Each socket is told with the cgroup of its birth, which is the one whose hooks see it.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    thread,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, Nla as _,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
    unix::{self, UnixRequest},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike as _},
    },
};

/// A socket that the kernel has in its tables: connected, listening, or bound.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    /// The number under which processes hold it; 0 where none does any more.
    pub(super) inode: u64,
    /// The cgroup that it was born in.
    pub(super) cgroup: Option<u64>,
    /// Where it is.
    pub(super) local: SocketAddr,
    /// Whom it is connected to.
    pub(super) peer: Option<SocketAddr>,
    /// What it is, in the kernel's words.
    pub(super) protocol: &'static str,
    number: u8,
    family: u8,
    id: SocketId,
}

/// A socket's state of which nothing is left but that its ports are taken for a while.
const TIME_WAIT: u8 = 6;

/// INET_DIAG_CGROUP_ID, since Linux 5.8; the crate has no name for it.
const CGROUP_ID: u16 = 21;

/// What is asked for. UDP-Lite and raw sockets are left out by most kernels, which then say that there are none.
const PROTOCOLS: [(u8, &str); 4] = [
    (libc::IPPROTO_TCP as u8, "tcp"),
    (libc::IPPROTO_UDP as u8, "udp"),
    (libc::IPPROTO_UDPLITE as u8, "udplite"),
    (libc::IPPROTO_RAW as u8, "raw"),
];

const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

/// How long the kernel may take for an answer: it answers while it is asked.
const PATIENCE_SECONDS: i64 = 2;

/// Bytes of answers that are taken at once; the kernel fills up to 32 KiB.
const ANSWER_BYTES: usize = 64 << 10;

/// A line to the kernel about the sockets of one network namespace.
#[derive(Debug)]
pub(super) struct Diag(Socket);

impl Diag {
    /// One of the namespace `netns`.
    ///
    /// # Errors
    /// Where the namespace can't be entered, or the kernel has no sock_diag.
    pub(super) fn of(netns: &File) -> io::Result<Self> {
        // A thread of its own: the namespace is a thread's, and this one's stays what it is.
        let entered = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(netns, CloneFlags::CLONE_NEWNET)?;
                    Socket::new(NETLINK_SOCK_DIAG)
                })
                .join()
        });
        let socket = entered.unwrap_or_else(|_| Err(io::Error::other("the thread ended")))?;
        // SAFETY: the socket outlives the borrow, which ends with this function.
        let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        setsockopt(
            &descriptor,
            ReceiveTimeout,
            &TimeVal::seconds(PATIENCE_SECONDS),
        )?;
        Ok(Self(socket))
    }

    /// All of the namespace's sockets.
    ///
    /// # Errors
    /// Where the kernel doesn't answer.
    pub(super) fn list(&self) -> io::Result<Vec<Listed>> {
        let mut all = Vec::new();
        for (number, protocol) in PROTOCOLS {
            for family in FAMILIES {
                let request = SockDiagMessage::InetRequest(InetRequest {
                    family,
                    protocol: number,
                    extensions: ExtensionFlags::empty(),
                    states: StateFlags::from_bits_retain(!(1 << TIME_WAIT)),
                    socket_id: SocketId::new_v4(),
                });
                let mut take = |message| {
                    if let SockDiagMessage::InetResponse(response) = message {
                        all.push(listed(&response, number, protocol));
                    }
                };
                match self.ask(request, NLM_F_DUMP, &mut take) {
                    // This kernel has no such protocol, or no table of its sockets.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    answer => answer?,
                }
            }
        }
        Ok(all)
    }

    /// Whom each of the namespace's UNIX sockets is connected to, by their numbers.
    ///
    /// # Errors
    /// Where the kernel doesn't answer.
    pub(super) fn peers(&self) -> io::Result<HashMap<u64, u64>> {
        let mut all = HashMap::new();
        let request = SockDiagMessage::UnixRequest(UnixRequest {
            state_flags: unix::StateFlags::ESTABLISHED,
            inode: 0,
            // Names are not asked for: a path without an end, which the kernel allows, would spoil the whole answer.
            show_flags: unix::ShowFlags::PEER,
            cookie: [0xFF; 8],
        });
        self.ask(request, NLM_F_DUMP, &mut |message| {
            if let SockDiagMessage::UnixResponse(response) = message
                && let Some(peer) = response.peer()
            {
                all.insert(response.header.inode.into(), peer.into());
            }
        })?;
        Ok(all)
    }

    /// Ends `socket`: a connection is reset, a listener closes. Its holder can still use it anew.
    ///
    /// # Errors
    /// Where it is gone, or the kernel was built without CONFIG_INET_DIAG_DESTROY (EOPNOTSUPP).
    pub(super) fn destroy(&self, socket: &Listed) -> io::Result<()> {
        let request = SockDiagMessage::InetRequest(InetRequest {
            family: socket.family,
            protocol: socket.number,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::from_bits_retain(!0),
            socket_id: socket.id.clone(),
        });
        self.ask(SockDiagDestroy::new(request), NLM_F_ACK, &mut |_| {})
    }

    /// Sends a request and takes what answers it, until the kernel says that this was all.
    fn ask<T>(&self, request: T, flags: u16, take: &mut impl FnMut(T)) -> io::Result<()>
    where
        T: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug,
        NetlinkPayload<T>: From<T>,
    {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        loop {
            answer.clear();
            if self.0.recv(&mut answer, 0)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => take(inner),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(()),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    _ => {}
                }
                // Messages begin at multiples of four bytes.
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn listed(response: &InetResponse, number: u8, protocol: &'static str) -> Listed {
    let header = &response.header;
    let id = &header.socket_id;
    let cgroup = response.nlas.iter().find_map(|nla| match nla {
        Nla::Other(other) if other.kind() == CGROUP_ID => {
            let mut value = [0; 8];
            (other.value_len() == value.len()).then(|| {
                other.emit_value(&mut value);
                u64::from_ne_bytes(value)
            })
        }
        _ => None,
    });
    Listed {
        inode: header.inode.into(),
        cgroup,
        local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        peer: (id.destination_port != 0)
            .then(|| SocketAddr::new(id.destination_address.to_canonical(), id.destination_port)),
        protocol,
        number,
        family: header.family,
        id: id.clone(),
    }
}

/// The network namespace that a socket belongs to, whoever holds it.
///
/// # Errors
/// Where the kernel won't tell.
pub(super) fn netns_of(socket: BorrowedFd<'_>) -> io::Result<File> {
    /// `_IO(SOCK_IOC_TYPE, 4C)` of linux/sockios.h, since Linux 4.9.
    const SIOCGSKNS: libc::c_ulong = 0x894C;
    // SAFETY: the request takes no argument and answers with a new descriptor.
    let descriptor = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for this process; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }.into())
}
