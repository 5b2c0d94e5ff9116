//! The line between the two processes: messages with descriptors, whole and in order.
//!
//! A socket of the kernel's keeps messages apart and carries descriptors. What is too long for one message
//! goes in a file in memory beside it. Whoever receives trusts nothing: a message has to decode, a file in
//! memory has to be one.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _},
    marker::PhantomData,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Mutex, MutexGuard},
};

use crate::sync::lock;
use nix::{
    cmsg_space,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            recvmsg, sendmsg, socketpair,
        },
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};
use zeroize::Zeroize as _;

/// Longest message that goes by itself, in bytes; sockets take some more than 200 KiB.
const WHOLE_BYTES_MAX: usize = 64 << 10;

/// Longest one of all, in bytes: the largest message of a protocol, and what is said around it.
const BYTES_MAX: u64 = 80 << 20;

/// Descriptors that a message may have: the kernel's SCM_MAX_FD.
pub(super) const DESCRIPTORS_MAX: usize = 253;

/// What a message begins with: whether it is here or in the file that comes first.
const HERE: u8 = 0;
const IN_FILE: u8 = 1;

/// Two ends of a line.
///
/// # Errors
/// Where there can't be two more descriptors.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        flags,
    )?)
}

/// One end: `Out` is said here, `In` is heard.
#[derive(Debug)]
pub(super) struct Line<Out, In> {
    socket: AsyncFd<OwnedFd>,
    /// What the socket had no room for.
    waiting: Mutex<VecDeque<Packet>>,
    more: Notify,
    /// Where what is heard is put, from message to message.
    buffer: Mutex<Vec<u8>>,
    kinds: PhantomData<fn(Out) -> In>,
}

#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl<Out: Serialize, In: DeserializeOwned> Line<Out, In> {
    /// The end `socket`, watched by the runtime that this is called in.
    ///
    /// # Errors
    /// Where it can't be watched.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: a descriptor that is owned here, and stays open for as long as it is watched.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self {
            socket,
            waiting: Mutex::default(),
            more: Notify::new(),
            buffer: Mutex::default(),
            kinds: PhantomData,
        })
    }

    /// Says `message`, with `descriptors`; it goes on its way now, or as soon as there is room.
    ///
    /// # Errors
    /// Where nobody is at the other end any more, or there is no memory for it.
    pub(super) fn send(&self, message: &Out, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let packet = Packet::of(message, descriptors)?;
        let mut waiting = self.waiting();
        if waiting.is_empty() {
            match packet.send(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent,
            }
        }
        waiting.push_back(packet);
        drop(waiting);
        self.more.notify_one();
        Ok(())
    }

    /// Sends what had to wait, for as long as it is polled.
    ///
    /// # Errors
    /// Where nobody is at the other end any more.
    pub(super) async fn flush(&self) -> io::Result<()> {
        loop {
            self.more.notified().await;
            while !self.waiting().is_empty() {
                let mut ready = self.socket.writable().await?;
                let sent = ready.try_io(|socket| {
                    let mut waiting = self.waiting();
                    let Some(packet) = waiting.front() else {
                        return Ok(());
                    };
                    packet.send(socket.get_ref())?;
                    waiting.pop_front();
                    Ok(())
                });
                if let Ok(sent) = sent {
                    sent?;
                }
            }
        }
    }

    /// Waits for a message; `None` where the other end is gone. One at a time may.
    ///
    /// # Errors
    /// Where what came is none.
    pub(super) async fn receive(&self) -> io::Result<Option<(In, Vec<OwnedFd>)>> {
        let mut buffer = std::mem::take(&mut *lock(&self.buffer));
        buffer.resize(WHOLE_BYTES_MAX + 1, 0);
        let received = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                receive(socket.as_raw_fd(), &mut buffer)
            })
            .await;
        let (length, descriptors) = match received {
            Ok((0, _)) => return Ok(None),
            // It ended with something of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            received => received?,
        };
        let opened = open(buffer.get(..length).unwrap_or_default(), descriptors);
        // There may have been a secret in it.
        buffer.get_mut(..length).unwrap_or_default().zeroize();
        *lock(&self.buffer) = buffer;
        opened.map(Some)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Packet>> {
        lock(&self.waiting)
    }
}

impl Drop for Packet {
    /// There may be a secret in it.
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl Packet {
    fn of(message: &impl Serialize, mut descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let bytes = postcard::to_extend(message, vec![HERE]).map_err(io::Error::other)?;
        if bytes.len() <= WHOLE_BYTES_MAX {
            return Ok(Self { bytes, descriptors });
        }
        let mut file = File::from(memfd_create(c"message", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(bytes.get(1..).unwrap_or_default())?;
        descriptors.insert(0, file.into());
        Ok(Self {
            bytes: vec![IN_FILE],
            descriptors,
        })
    }

    fn send(&self, socket: &OwnedFd) -> io::Result<()> {
        let descriptors: Vec<RawFd> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() {
            &[]
        } else {
            &rights[..]
        };
        sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&self.bytes)],
            control,
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }
}

fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket, &mut slices, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            descriptors.extend(received.into_iter().map(own));
        }
    }
    if message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC)
    {
        return Err(invalid("a message is too long"));
    }
    Ok((message.bytes, descriptors))
}

/// A descriptor that the kernel has just made.
fn own(received: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: recvmsg made it for this process, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(received) }
}

/// What `bytes` say.
fn open<T: DeserializeOwned>(
    bytes: &[u8],
    mut descriptors: Vec<OwnedFd>,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let decode = |bytes: &[u8]| postcard::from_bytes(bytes).map_err(|_| invalid("no such message"));
    match bytes.split_first() {
        Some((&HERE, message)) => Ok((decode(message)?, descriptors)),
        Some((&IN_FILE, [])) if !descriptors.is_empty() => {
            let rest = descriptors.split_off(1);
            let file = descriptors.pop().ok_or_else(|| invalid("no file"))?;
            Ok((decode(&read(file)?)?, rest))
        }
        _ => Err(invalid("no such message")),
    }
}

/// What a file in memory holds. Another one could have whoever reads it wait for ever.
fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    fcntl(&file, FcntlArg::F_GET_SEALS)
        .map(SealFlag::from_bits_retain)
        .map_err(|_| invalid("what it is in is no file in memory"))?;
    let mut file = File::from(file);
    file.rewind()?;
    let mut bytes = Vec::new();
    (&mut file).take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(invalid("a message is too long"));
    }
    Ok(bytes)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::fd::{AsRawFd as _, OwnedFd},
    };

    use nix::sys::socket::{MsgFlags, send};

    use super::{Line, pair};

    type End = Line<String, String>;

    fn ends() -> (End, End) {
        let (a, b) = pair().unwrap();
        (End::new(a).unwrap(), End::new(b).unwrap())
    }

    fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
        std::io::pipe().unwrap()
    }

    #[tokio::test]
    async fn messages_of_every_length_come_whole_with_their_descriptors() {
        let (a, b) = ends();
        for length in [0, 1, 65_534, 65_535, 65_536, 300_000, 20 << 20] {
            let text = "x".repeat(length);
            let (reader, mut writer) = pipe();
            a.send(&text, vec![reader.into()]).unwrap();
            writer.write_all(b"through").unwrap();
            drop(writer);
            let (message, mut descriptors) = b.receive().await.unwrap().unwrap();
            assert!(message == text, "{length}");
            let mut said = String::new();
            let mut reader = File::from(descriptors.pop().unwrap());
            reader.read_to_string(&mut said).unwrap();
            assert_eq!((said.as_str(), descriptors.len()), ("through", 0));
        }
        drop(a);
        assert!(b.receive().await.unwrap().is_none());
        // Also where it leaves something unread.
        let (a, b) = ends();
        b.send(&"unread".to_owned(), Vec::new()).unwrap();
        drop(a);
        assert!(b.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_the_other_end_has_no_time_for_waits_in_order() {
        let (a, b) = ends();
        let a = std::sync::Arc::new(a);
        let flushing = a.clone();
        tokio::spawn(async move { flushing.flush().await });
        for number in 0..2_000 {
            a.send(&format!("{number:01000}"), Vec::new()).unwrap();
        }
        for number in 0..2_000 {
            let (message, _) = b.receive().await.unwrap().unwrap();
            assert_eq!(message, format!("{number:01000}"));
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_said_to_be_none() {
        let table: [(&[u8], bool); 6] = [
            (b"\x02", false),
            (b"\x00\xff\xff\xff\xff\xff\xff", false),
            (b"\x00\x05ab", false),
            (b"\x01", false),
            // A pipe that nobody ever writes to.
            (b"\x01", true),
            (b"\x01\x00", true),
        ];
        for (bytes, with_pipe) in table {
            let (a, b) = pair().unwrap();
            let b = End::new(b).unwrap();
            let (reader, _writer) = pipe();
            let packet = super::Packet {
                bytes: bytes.to_vec(),
                descriptors: if with_pipe {
                    vec![OwnedFd::from(reader)]
                } else {
                    Vec::new()
                },
            };
            packet.send(&a).unwrap();
            b.receive().await.unwrap_err();
            send(a.as_raw_fd(), b"\x00\x02ok", MsgFlags::empty()).unwrap();
            assert_eq!(b.receive().await.unwrap().unwrap().0, "ok");
        }
    }
}
