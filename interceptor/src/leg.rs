//! One side of an intercepted connection: a socket, in plain text or with TLS on it.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read, Write},
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use interceptor_core::limits;
use nix::sys::socket::{MsgFlags, recv};
use rustls::Connection;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, Interest, ReadBuf};

use crate::socket::Socket;

/// One side of an intercepted connection.
#[derive(Debug)]
pub struct Leg {
    socket: Socket,
    tls: Option<Box<Connection>>,
    /// What was read and given back, to be read again.
    unread: BytesMut,
    /// Bytes that h2 read from it, in plain text.
    received: Option<Arc<AtomicU64>>,
    /// Bytes that h2 read from it since it last waited.
    at_once: usize,
    /// Bytes that the socket took, as far as [`Leg::write`] gave them to it.
    taken: u64,
    /// Nothing more will be written.
    finished: bool,
}

/// What waits to be written to one peer.
#[derive(Debug, Default)]
pub struct Queue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

/// Room for the first read of a connection, in bytes: most statements and results are smaller.
const FIRST_READ_BYTES: usize = 8 << 10;

/// Bytes that h2 reads before its session has another turn. It reads for as long as there is something: of a peer
/// that floods it with frames of nine bytes, more than a second's work, while the other side isn't looked at.
const H2_READ_AT_ONCE: usize = 64 << 10;

/// Encrypted bytes that wait for the socket before more is encrypted: four full records.
const ENCRYPTED_BYTES_MAX: usize = 64 << 10;

impl Leg {
    /// A side in plain text.
    #[must_use]
    pub fn plain(socket: impl Into<Socket>) -> Self {
        Self {
            socket: socket.into(),
            tls: None,
            unread: BytesMut::new(),
            received: None,
            at_once: 0,
            taken: 0,
            finished: false,
        }
    }

    /// A side whose handshake is done.
    #[must_use]
    pub fn secure(socket: Socket, mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(ENCRYPTED_BYTES_MAX));
        Self {
            socket,
            tls: Some(Box::new(tls)),
            unread: BytesMut::new(),
            received: None,
            at_once: 0,
            taken: 0,
            finished: false,
        }
    }

    /// The socket below.
    #[must_use]
    pub const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The socket, of a side on which nothing has been encrypted.
    #[must_use]
    pub fn into_socket(self) -> Socket {
        self.socket
    }

    /// Gives back what was read, to be read again by h2.
    pub fn unread(&mut self, bytes: BytesMut) {
        self.unread = bytes;
    }

    /// Has what h2 reads counted.
    pub fn count_received(&mut self) -> Arc<AtomicU64> {
        self.received.get_or_insert_default().clone()
    }

    /// Bytes that the peer's socket took so far: it stands still while the peer does.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether TLS is on it.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Reads what is there to the end of `buffer`; 0 is the end of what the peer sends.
    ///
    /// # Errors
    /// The operating system's, and those of a peer that breaks TLS or ends without saying so.
    pub fn poll_read(
        &mut self,
        buffer: &mut BytesMut,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if buffer.capacity() == buffer.len() {
            buffer.reserve(FIRST_READ_BYTES);
        }
        let Some(tls) = &mut self.tls else {
            let read = std::pin::pin!(self.socket.read_buf(buffer));
            let count = ready!(read.poll(context))?;
            if buffer.len() == buffer.capacity() {
                // It was full: the next one may be as well.
                buffer.reserve(limits::READ_BYTES);
            }
            return Poll::Ready(Ok(count));
        };
        loop {
            match decrypted(tls, buffer) {
                Ok(0) => {}
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Keys that were updated, and the like.
                    let _ = flush(&self.socket, tls);
                    ready!(self.socket.poll_read_ready(context))?;
                    match tls.read_tls(&mut Nonblocking(&self.socket)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(error) => return Poll::Ready(Err(error)),
                        Ok(_) => {}
                    }
                    if let Err(error) = tls.process_new_packets() {
                        // The alert that says why.
                        let _ = flush(&self.socket, tls);
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                    }
                    continue;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            return Poll::Ready(Ok(0));
        }
    }

    /// Writes as much of `queue` as the socket takes now.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&mut self, queue: &mut Queue) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            while !queue.is_empty() {
                let mut slices = [IoSlice::new(&[]); BATCH];
                let count = queue.slices(&mut slices);
                let slices = slices.get(..count).unwrap_or_default();
                match Nonblocking(&self.socket).write_vectored(slices) {
                    Ok(count) => {
                        self.taken += count as u64;
                        queue.advance(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        };
        loop {
            while !queue.is_empty() {
                let mut slices = [IoSlice::new(&[]); BATCH];
                let count = queue.slices(&mut slices);
                // Of several slices rustls makes as few records as it can.
                match tls
                    .writer()
                    .write_vectored(slices.get(..count).unwrap_or_default())?
                {
                    0 => break,
                    count => queue.advance(count),
                }
            }
            let (count, flushed) = flush_counted(&self.socket, tls)?;
            self.taken += count;
            if !flushed || queue.is_empty() {
                return Ok(());
            }
        }
    }

    /// Whether encrypted bytes wait for the socket.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Waits until the socket takes more. An error shows in the write that follows.
    pub fn poll_writable(&self, context: &mut Context<'_>) -> Poll<()> {
        self.socket.poll_write_ready(context).map(|_| ())
    }

    /// Says that nothing more will be written: close_notify, then the end of the stream.
    pub fn finish(&mut self) {
        if self.finished {
            return;
        }
        self.finished = true;
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = flush(&self.socket, tls);
        }
        let _ =
            nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Write);
    }

    /// Has the peer see a reset rather than an orderly end.
    pub fn reset(&self) {
        self.socket.reset_on_close();
    }

    /// Writes all of `queue`, for a farewell that may not wait for ever.
    pub async fn drain(&mut self, queue: &mut Queue) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let all = async {
            self.write(queue)?;
            while !queue.is_empty() || self.has_backlog() {
                self.socket.writable().await?;
                self.write(queue)?;
            }
            Ok::<_, io::Error>(())
        };
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }
}

/// Moves what has been decrypted to the end of `buffer`.
fn decrypted(tls: &mut Connection, buffer: &mut BytesMut) -> io::Result<usize> {
    let mut reader = tls.reader();
    let mut total = 0;
    loop {
        let chunk = match reader.into_first_chunk() {
            Ok(chunk) => chunk,
            Err(_) if total > 0 => return Ok(total),
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok(total);
        }
        let count = chunk.len();
        buffer.put_slice(chunk);
        total += count;
        reader = tls.reader();
        io::BufRead::consume(&mut reader, count);
    }
}

/// Hands encrypted bytes to the socket; whether it took all of them.
pub(crate) fn flush(socket: &Socket, tls: &mut Connection) -> io::Result<bool> {
    flush_counted(socket, tls).map(|(_, flushed)| flushed)
}

/// As [`flush`], with how many it took.
fn flush_counted(socket: &Socket, tls: &mut Connection) -> io::Result<(u64, bool)> {
    let mut taken = 0;
    while tls.wants_write() {
        match tls.write_tls(&mut Nonblocking(socket)) {
            Ok(count) => taken += count as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((taken, false)),
            Err(error) => return Err(error),
        }
    }
    Ok((taken, true))
}

/// Carries a handshake until it is done. On failure the alert that says why has been sent.
/// `after_each_step` is called on the thread that worked on what was read.
///
/// # Errors
/// [`rustls::Error`] in an [`io::Error`] where TLS is why, else the operating system's.
pub async fn handshake(
    socket: &Socket,
    tls: &mut Connection,
    mut after_each_step: impl FnMut(),
) -> io::Result<()> {
    loop {
        let flushed = flush(socket, tls)?;
        if !tls.is_handshaking() && flushed {
            return Ok(());
        }
        let interest = if flushed {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let ready = socket.ready(interest).await?;
        if !ready.is_readable() || !tls.wants_read() {
            continue;
        }
        let read = read_once(socket, tls);
        after_each_step();
        read?;
    }
}

/// Reads and works on what is there, if anything is.
///
/// # Errors
/// As [`handshake`].
pub fn read_once(socket: &Socket, tls: &mut Connection) -> io::Result<()> {
    match tls.read_tls(&mut Nonblocking(socket)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error),
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => {}
    }
    if let Err(error) = tls.process_new_packets() {
        let _ = flush(socket, tls);
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok(())
}

/// The socket as something that answers at once.
struct Nonblocking<'a>(&'a Socket);

impl Read for Nonblocking<'_> {
    /// What didn't fill `buffer` has emptied the socket, whose next bytes will be an event of their own: not to
    /// ask again spares half of all reads, as in tokio's own.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut emptied = None;
        let read = self.0.try_io(Interest::READABLE, || {
            let count = recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())?;
            if count > 0 && count < buffer.len() {
                emptied = Some(count);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        });
        emptied.map_or(read, Ok)
    }
}

impl Write for Nonblocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    /// One slice, as of most answers, goes by `send`: `writev` takes the longer way through the kernel.
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            [slice] => self.0.try_write(slice),
            slices => self.0.try_write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// For h2, which frames by itself.
impl AsyncRead for Leg {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at_once >= H2_READ_AT_ONCE {
            self.at_once = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = self.as_mut().poll_read_plain(context, buffer);
        let count = buffer.filled().len().saturating_sub(before);
        self.at_once = match read {
            Poll::Ready(_) => self.at_once + count,
            Poll::Pending => 0,
        };
        if let Some(received) = &self.received {
            received.fetch_add(count as u64, Ordering::Relaxed);
        }
        read
    }
}

impl Leg {
    fn poll_read_plain(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.unread.is_empty() {
            let count = this.unread.len().min(buffer.remaining());
            buffer.put_slice(&this.unread.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let Some(tls) = &mut this.tls else {
            return Pin::new(&mut this.socket).poll_read(context, buffer);
        };
        loop {
            match tls.reader().read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = flush(&this.socket, tls);
                    ready!(this.socket.poll_read_ready(context))?;
                    match tls.read_tls(&mut Nonblocking(&this.socket)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(error) => return Poll::Ready(Err(error)),
                        Ok(_) => {}
                    }
                    if let Err(error) = tls.process_new_packets() {
                        let _ = flush(&this.socket, tls);
                        let error = io::Error::new(io::ErrorKind::InvalidData, error);
                        return Poll::Ready(Err(error));
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.as_mut()
            .poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(tls) = &mut this.tls else {
            return Pin::new(&mut this.socket).poll_write_vectored(context, slices);
        };
        loop {
            // Sent when h2 flushes: after all frames that it has, not after each.
            let count = tls.writer().write_vectored(slices)?;
            if count > 0 || slices.iter().all(|slice| slice.is_empty()) {
                return Poll::Ready(Ok(count));
            }
            if !flush(&this.socket, tls)? {
                ready!(this.socket.poll_write_ready(context))?;
            }
        }
    }

    /// Not so in TLS, where it has h2 gather small frames before it flushes.
    fn is_write_vectored(&self) -> bool {
        self.tls.is_none()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(tls) = &mut this.tls {
            while !flush(&this.socket, tls)? {
                ready!(this.socket.poll_write_ready(context))?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        self.finish();
        Poll::Ready(Ok(()))
    }
}

// === impl Queue ===

/// Chunks handed to one system call; more rarely wait.
const BATCH: usize = 16;

impl Queue {
    /// Puts `bytes` at its end.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        self.chunks.push_back(bytes);
    }

    /// How many chunks it has.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Keeps the oldest `chunks` only.
    pub fn truncate(&mut self, chunks: usize) {
        for dropped in self.chunks.drain(chunks.min(self.chunks.len())..) {
            self.bytes -= dropped.len();
        }
    }

    /// Whether so much waits that no more should come.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.bytes >= limits::QUEUED_BYTES_MAX
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; BATCH]) -> usize {
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
        }
        self.chunks.len().min(BATCH)
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count.min(self.bytes);
        while let Some(chunk) = self.chunks.front_mut() {
            if count < chunk.len() {
                chunk.advance(count);
                return;
            }
            count -= chunk.len();
            self.chunks.pop_front();
        }
    }
}
