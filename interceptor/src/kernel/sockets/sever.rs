//! Making a socket that somebody else holds useless, for good, through a descriptor of our own.
//!
//! SOCK_DESTROY is not enough: it ends a connection, and the socket can be connected anew, or go on
//! sending datagrams, still as a child of the cgroup it was born in, past the hooks of the one that
//! its holder is in now. What is done here instead lasts:
//!
//! - Datagrams: `shutdown` forbids sending, connected or not, and no call takes it back.
//! - TCP: the connection is reset, and the socket bound to a device that doesn't exist, from which only
//!   CAP_NET_RAW in its network namespace can free it, and to an address that nobody has, from which nothing
//!   can unless it had one before.
//! - UNIX sockets: `shutdown` as well, whether they are connected or not.
//! - Both of the former: a filter that drops everything, locked. Not even root unlocks it, and without an answer to its
//!   SYN a socket never connects again.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use interceptor_abi as abi;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        MsgFlags, Shutdown, SockaddrIn, SockaddrIn6, SockaddrStorage, UnixAddr, bind, connect,
        getpeername, getsockname, send, shutdown,
    },
};

/// A socket of another process.
#[derive(Debug)]
pub(super) struct Taken {
    socket: OwnedFd,
    family: i32,
    kind: i32,
    protocol: i32,
}

/// What a socket is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// Goes to the network, or takes from it.
    Inet,
    /// Leads to other processes of this host.
    Unix,
    /// Speaks to the kernel alone.
    Local,
    /// Leads out, and no hook sees it wherever it was born: packet, vsock, XDP and rarer ones.
    Unseen,
}

/// Why a socket can't be made useless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Uncut {
    /// There is no way to do it with this kind of socket.
    #[error("sockets of its kind can't be cut")]
    Kind,
    /// A step failed, or had no effect.
    #[error("{what}: {error}")]
    Step {
        /// Which.
        what: &'static str,
        /// The operating system's answer.
        error: Errno,
    },
    /// A step had no effect.
    #[error("{0}")]
    Still(&'static str),
}

/// A device that can't be: the kernel counts them from 1 upwards.
const NOWHERE: i32 = i32::MAX;

/// More than any datagram can carry.
static TOO_MUCH: [u8; 65_535] = [0; 65_535];

impl Taken {
    /// A descriptor for the socket that the process, or thread, `holder` has as `number`.
    ///
    /// # Errors
    /// Where it has closed it or ended, is no socket's, or this kernel can't take from a single thread.
    pub(super) fn from(holder: u32, is_thread: bool, number: i32) -> io::Result<Self> {
        // PIDFD_THREAD, Linux 6.9; older ones answer EINVAL.
        let flags: libc::c_int = if is_thread { libc::O_EXCL } else { 0 };
        // SAFETY: the call takes two numbers and answers with a new descriptor.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, holder, flags) };
        let process = owned(process)?;
        // SAFETY: as above; the first descriptor is open.
        let socket =
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
        let socket = owned(socket)?;
        Ok(Self {
            family: option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN)?,
            kind: option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE)?,
            protocol: option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL)?,
            socket,
        })
    }

    /// What it is.
    pub(super) fn sort(&self) -> Sort {
        match self.family {
            libc::AF_INET | libc::AF_INET6 => Sort::Inet,
            libc::AF_UNIX => Sort::Unix,
            libc::AF_NETLINK | libc::AF_ALG | libc::AF_KEY => Sort::Local,
            _ => Sort::Unseen,
        }
    }

    /// Whether the kernel lists it with its birth: TCP (MPTCP by its parts) and UDP.
    pub(super) fn is_listed(&self) -> bool {
        self.is_stream() || self.protocol == libc::IPPROTO_UDP
    }

    /// Its protocol, for people.
    pub(super) fn protocol(&self) -> &'static str {
        match (self.family, self.kind, self.protocol) {
            (libc::AF_PACKET, ..) => "packet",
            (libc::AF_VSOCK, ..) => "vsock",
            (libc::AF_UNIX, ..) => "unix",
            (libc::AF_XDP, ..) => "xdp",
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => "raw",
            (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_TCP) => "tcp",
            (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_MPTCP) => "mptcp",
            (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_UDP) => "udp",
            (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_UDPLITE) => "udplite",
            (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_SCTP) => "sctp",
            (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => {
                "icmp"
            }
            _ => "other",
        }
    }

    /// Where it is, and whom it is connected to.
    pub(super) fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let descriptor = self.socket.as_raw_fd();
        (
            getsockname(descriptor).ok().and_then(address),
            getpeername(descriptor).ok().and_then(address),
        )
    }

    /// The names of a UNIX socket's own side and of the other's, where they have some; empty where they have none.
    /// No other side where it isn't connected.
    pub(super) fn unix_names(&self) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let descriptor = self.socket.as_raw_fd();
        let bytes = |address: &UnixAddr| match (address.path(), address.as_abstract()) {
            (Some(path), _) => path.as_os_str().as_bytes().to_vec(),
            (_, Some(name)) => [&[0], name].concat(),
            _ => Vec::new(),
        };
        let own = getsockname::<UnixAddr>(descriptor).ok();
        let own = own.as_ref().map(bytes).filter(|name| !name.is_empty());
        let other = getpeername::<UnixAddr>(descriptor).ok();
        (own, other.as_ref().map(bytes))
    }

    /// Whether the hooks of the agent that holds this UNIX socket see it: whether it was born there. They refuse
    /// one name to all, which nobody has.
    pub(super) fn is_seen(&self) -> bool {
        let [_, name @ ..] = &abi::UnixName::TRIED;
        let tried = UnixAddr::new_abstract(name)
            .and_then(|address| connect(self.socket.as_raw_fd(), &address));
        tried == Err(Errno::EPERM)
    }

    /// Whether it waits for connections.
    pub(super) fn listens(&self) -> bool {
        self.get(libc::SO_ACCEPTCONN) == Some(1)
    }

    /// Whether it takes and sends datagrams, to whomever its holder names.
    pub(super) const fn is_datagrams(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
    }

    /// Makes it useless, and makes sure of it.
    pub(super) fn sever(&self) -> Result<(), Uncut> {
        match self.sort() {
            Sort::Inet => {}
            Sort::Unix => return self.sever_unix(),
            Sort::Local | Sort::Unseen => return Err(Uncut::Kind),
        }
        if self.is_stream() {
            self.sever_stream()
        } else if self.kind == libc::SOCK_DGRAM || self.kind == libc::SOCK_RAW {
            self.sever_datagrams()
        } else {
            // SCTP: neither of the ways below was seen to hold.
            Err(Uncut::Kind)
        }
    }

    fn sever_stream(&self) -> Result<(), Uncut> {
        // First: with the device gone the peer could not be told.
        self.disconnect("resetting it")?;
        // Before the device: with one that isn't there IPv6 has no addresses to be bound to.
        let strayed = self.bind_where_nobody_is();
        let device = self.set(libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &NOWHERE);
        let deaf = self.drop_everything();
        // Its holder may have been quicker than these.
        self.disconnect("resetting it again")?;
        device.map_err(step("binding it to no device"))?;
        // MPTCP takes no filter, and what its holder has bound keeps its address: one of the two has to do.
        if strayed.is_err() {
            deaf?;
        }
        if self.get(libc::SO_BINDTOIFINDEX) != Some(NOWHERE) {
            return Err(Uncut::Still("it is not bound to no device"));
        }
        if getpeername::<SockaddrStorage>(self.socket.as_raw_fd()).is_ok() {
            return Err(Uncut::Still("it is still connected"));
        }
        if self.get(libc::SO_ACCEPTCONN) != Some(0) {
            return Err(Uncut::Still("it still listens"));
        }
        Ok(())
    }

    /// Gives it an address that it can't connect from. A socket that is bound can't be bound anew.
    fn bind_where_nobody_is(&self) -> Result<(), Errno> {
        /// Reserved for ever: no host has it, and FREEBIND lets a socket have it all the same.
        const NOBODY: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 1);
        // An IPv6 socket may have an IPv4 address in its form unless it is told otherwise.
        const ONE_WITH_V6: Ipv6Addr = NOBODY.to_ipv6_mapped();
        self.set(libc::SOL_IP, libc::IP_FREEBIND, &1_i32)?;
        let descriptor = self.socket.as_raw_fd();
        if self.family == libc::AF_INET6 {
            self.set(libc::SOL_IPV6, libc::IPV6_V6ONLY, &0_i32)?;
            let address = SockaddrIn6::from(SocketAddrV6::new(ONE_WITH_V6, 0, 0, 0));
            bind(descriptor, &address)
        } else {
            let address = SockaddrIn::from(SocketAddrV4::new(NOBODY, 0));
            bind(descriptor, &address)
        }
    }

    fn sever_datagrams(&self) -> Result<(), Uncut> {
        match shutdown(self.socket.as_raw_fd(), Shutdown::Both) {
            // Said of one that isn't connected, and done all the same.
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(error) => return Err(step("shutting it down")(error)),
        }
        // What was begun with MSG_MORE or UDP_CORK could be added to and sent. A piece that makes it longer
        // than a datagram can be has the kernel drop all of it; where nothing was begun it is refused.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if send(self.socket.as_raw_fd(), &TOO_MUCH, flags).is_ok() {
            return Err(Uncut::Still("it still sends"));
        }
        self.drop_everything()?;
        let mut asked = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        let _ = poll(&mut asked, PollTimeout::ZERO);
        let hung_up = asked
            .first()
            .and_then(PollFd::revents)
            .is_some_and(|events| events.contains(PollFlags::POLLHUP));
        if hung_up {
            Ok(())
        } else {
            Err(Uncut::Still("it is not shut down"))
        }
    }

    /// Neither a connect nor anything else takes it back. What is bound and takes datagrams goes on taking them.
    fn sever_unix(&self) -> Result<(), Uncut> {
        let takes = self.kind == libc::SOCK_DGRAM && self.unix_names().0.is_some();
        let how = if takes {
            Shutdown::Write
        } else {
            Shutdown::Both
        };
        shutdown(self.socket.as_raw_fd(), how).map_err(step("shutting it down"))?;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.socket.as_raw_fd(), b"", flags) {
            Ok(_) => Err(Uncut::Still("it still sends")),
            Err(_) => Ok(()),
        }
    }

    /// Has the kernel drop all that comes in, with no way back.
    fn drop_everything(&self) -> Result<(), Uncut> {
        // BPF_RET | BPF_K: keep 0 bytes.
        let mut instruction = libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let program = libc::sock_fprog {
            len: 1,
            filter: &raw mut instruction,
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
            .map_err(step("dropping what comes in"))?;
        self.set(libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1_i32)
            .map_err(step("keeping it dropped"))
    }

    fn get(&self, name: i32) -> Option<i32> {
        option(self.socket.as_fd(), libc::SOL_SOCKET, name).ok()
    }

    /// Ends a connection, or listening, as `connect` to AF_UNSPEC does.
    fn disconnect(&self, what: &'static str) -> Result<(), Uncut> {
        let nobody = libc::sockaddr {
            sa_family: libc::AF_UNSPEC as libc::sa_family_t,
            sa_data: [0; 14],
        };
        // SAFETY: the address is a local of the size given, and the descriptor is open.
        let result = unsafe {
            libc::connect(
                self.socket.as_raw_fd(),
                &raw const nobody,
                size_of::<libc::sockaddr>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop).map_err(step(what))
    }

    fn set<T>(&self, level: i32, name: i32, value: &T) -> Result<(), Errno> {
        // SAFETY: the value is a reference to a T, whose size is given; the descriptor is open.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                (&raw const *value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop)
    }

    fn is_stream(&self) -> bool {
        self.kind == libc::SOCK_STREAM
            && [libc::IPPROTO_TCP, libc::IPPROTO_MPTCP].contains(&self.protocol)
    }
}

impl AsFd for Taken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn step(what: &'static str) -> impl FnOnce(Errno) -> Uncut {
    move |error| Uncut::Step { what, error }
}

fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = Errno::result(answer)?;
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for this process; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointers are to locals of the sizes given, and the descriptor is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(value)
}

fn address(storage: SockaddrStorage) -> Option<SocketAddr> {
    let address = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::from((v4.ip(), v4.port())),
        (_, Some(v6)) => SocketAddr::from((v6.ip().to_canonical(), v6.port())),
        _ => return None,
    };
    (address.port() != 0).then_some(address)
}
