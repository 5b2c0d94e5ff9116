//! The forwarder's sockets: each datagram with the token that it arrived at, each answer from there.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket as StdUdpSocket},
    os::fd::{AsRawFd, RawFd},
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use tokio::{io::Interest, net::UdpSocket};

/// A socket that takes the datagrams of all tokens on one port of the loopback device.
///
/// # Errors
/// Where the port is taken, or the host lacks the family.
pub fn listen(address: SocketAddr) -> io::Result<StdUdpSocket> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Datagram, flags, SockProtocol::Udp)?;
    // Tokens are addresses of this host; nobody outside of it has business here. With IPv6 answers couldn't
    // go to an address of another device then: there each datagram is asked for its device.
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from("lo"))?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        // Tokens lead here by a route; no device has them as its address.
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket.into())
}

/// The loopback device's number in every network namespace.
const LOOPBACK_DEVICE: u32 = 1;

/// A datagram that arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrived {
    /// Who sent it.
    pub(super) from: SocketAddr,
    /// The address that it was sent to.
    pub(super) token: IpAddr,
    /// How long it is, in bytes.
    pub(super) length: usize,
}

/// A socket of [`listen`], watched by the runtime that it was made in.
#[derive(Debug)]
pub(crate) struct Socket(UdpSocket);

impl Socket {
    pub(crate) fn new(socket: StdUdpSocket) -> io::Result<Self> {
        UdpSocket::from_std(socket).map(Self)
    }

    /// Waits for a datagram.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Arrived> {
        self.0
            .async_io(Interest::READABLE, || receive(self.0.as_raw_fd(), buffer))
            .await
    }

    /// Sends an answer as from `token`. Where there is no room for it now it is lost, as datagrams are.
    pub(super) fn answer(&self, to: SocketAddr, token: IpAddr, answer: &[u8]) -> io::Result<()> {
        let (v4, v6);
        let control = match token {
            IpAddr::V4(token) => {
                v4 = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(token.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(token) => {
                v6 = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: token.octets(),
                    },
                    ipi6_ifindex: 0,
                };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        sendmsg(
            self.0.as_raw_fd(),
            &[IoSlice::new(answer)],
            &[control],
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrStorage::from(to)),
        )?;
        Ok(())
    }
}

fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<Arrived> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket,
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let from = message.address.as_ref().and_then(|address| {
        let v4 = address
            .as_sockaddr_in()
            .map(|v4| SocketAddr::from(SocketAddrV4::from(*v4)));
        v4.or_else(|| Some(SocketAddrV6::from(*address.as_sockaddr_in6()?).into()))
    });
    let token = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) if info.ipi6_ifindex == LOOPBACK_DEVICE => {
            Some(IpAddr::from(info.ipi6_addr.s6_addr))
        }
        _ => None,
    });
    let missing = || io::Error::other("a datagram came without its addresses, or from elsewhere");
    Ok(Arrived {
        from: from.ok_or_else(missing)?,
        token: token.ok_or_else(missing)?,
        length: message.bytes,
    })
}
