//! What is shipped: a file of the journal as it stands here, with what proves at the other end that it is whole.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest;
use bytes::Bytes;

use futures_util::StreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use md5::{Digest as _, Md5};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::fetch::Body;

/// How much of a file is in memory at once, in bytes; as many parts again wait for the network.
const PART_BYTES: usize = 256 << 10;

/// Parts that wait for the network.
const PARTS: usize = 2;

/// How long a target may let nothing move before it is given up.
const STALLED: Duration = Duration::from_secs(30);

/// SHA-256.
pub(super) type Sha256 = [u8; 32];

/// A file that is to be at a target, under the name that it has here.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// `segments/00000000000000000001.seg`, `checkpoint`.
    pub(super) name: String,
    content: Content,
    pub(super) bytes: u64,
    pub(super) sha256: Sha256,
    /// For stores that ask for it.
    pub(super) md5: [u8; 16],
}

#[derive(Debug, Clone)]
enum Content {
    /// The first bytes of a file that nobody adds to.
    File(PathBuf),
    Text(Bytes),
}

impl Piece {
    /// The first `bytes` bytes of the file at `path`. Reads all of them.
    ///
    /// # Errors
    /// Where it can't be read, or is shorter.
    pub(super) fn file(name: String, path: PathBuf, bytes: u64) -> io::Result<Self> {
        let (mut sha256, mut md5) = (digest::Context::new(&digest::SHA256), Md5::new());
        parts(&path, bytes, |part| {
            sha256.update(&part);
            md5.update(&part);
            true
        })?;
        Ok(Self {
            name,
            content: Content::File(path),
            bytes,
            sha256: fixed(&sha256.finish()),
            md5: md5.finalize().into(),
        })
    }

    /// `text`, which is small.
    pub(super) fn text(name: &str, text: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            bytes: text.len() as u64,
            sha256: fixed(&digest::digest(&digest::SHA256, &text)),
            md5: Md5::digest(&text).into(),
            content: Content::Text(text.into()),
        }
    }

    /// Hands all of it to `each`, part by part, until that says that it wants no more.
    ///
    /// # Errors
    /// Where it can't be read.
    pub(super) fn read(&self, mut each: impl FnMut(Bytes) -> bool) -> io::Result<()> {
        match &self.content {
            Content::File(path) => parts(path, self.bytes, each),
            Content::Text(text) => {
                each(text.clone());
                Ok(())
            }
        }
    }

    /// All of it, read as it is taken; `moved` counts the bytes that were.
    pub(super) fn parts(&self, moved: Arc<AtomicU64>) -> mpsc::Receiver<io::Result<Bytes>> {
        let (piece, (give, take)) = (self.clone(), mpsc::channel(PARTS));
        tokio::task::spawn_blocking(move || {
            let read = piece.read(|part| {
                moved.fetch_add(part.len() as u64, Ordering::Relaxed);
                // Who takes nothing more has given up.
                give.blocking_send(Ok(part)).is_ok()
            });
            if let Err(error) = read {
                let _ = give.blocking_send(Err(error));
            }
        });
        take
    }

    /// All of it as the body of a request.
    pub(super) fn body(&self, moved: Arc<AtomicU64>) -> Body {
        let parts = ReceiverStream::new(self.parts(moved));
        BodyExt::boxed(StreamBody::new(parts.map(|part| part.map(Frame::data))))
    }
}

/// Hands the first `bytes` bytes of a file to `each`.
fn parts(path: &Path, bytes: u64, mut each: impl FnMut(Bytes) -> bool) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut left = bytes;
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(PART_BYTES).min(PART_BYTES);
        let mut part = vec![0; size];
        file.read_exact(&mut part)?;
        left -= size as u64;
        if !each(part.into()) {
            return Ok(());
        }
    }
    Ok(())
}

/// SHA-256 of what `file` still holds.
///
/// # Errors
/// Where it can't be read.
pub(super) fn sha256_of(file: &mut File) -> io::Result<Sha256> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut part = vec![0; PART_BYTES];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(fixed(&context.finish())),
            count => context.update(part.get(..count).unwrap_or_default()),
        }
    }
}

/// A digest of that length.
pub(super) fn fixed(digest: &digest::Digest) -> Sha256 {
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Does `work` for as long as `moved` grows, however slowly.
///
/// # Errors
/// Where nothing moves for half a minute.
pub(super) async fn while_moving<T>(
    moved: &AtomicU64,
    work: impl Future<Output = T>,
) -> Result<T, String> {
    let mut work = std::pin::pin!(work);
    let mut before = moved.load(Ordering::Relaxed);
    loop {
        if let Ok(done) = timeout(STALLED, &mut work).await {
            return Ok(done);
        }
        let now = moved.load(Ordering::Relaxed);
        if now == before {
            return Err(format!("nothing moved for {} s", STALLED.as_secs()));
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_as_far_as_it_is_on_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"on recordleft behind").unwrap();
        let piece = Piece::file("a".to_owned(), path.clone(), 9).unwrap();
        let text = Piece::text("a", b"on record".to_vec());
        assert_eq!((piece.sha256, piece.md5), (text.sha256, text.md5));
        let mut read = Vec::new();
        piece
            .read(|part| {
                read.extend_from_slice(&part);
                true
            })
            .unwrap();
        assert_eq!(read, b"on record");
        assert!(Piece::file("a".to_owned(), path, 99).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_slow_goes_on_and_what_stands_still_does_not() {
        let moved = AtomicU64::new(0);
        let slow = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                moved.fetch_add(1, Ordering::Relaxed);
            }
        };
        while_moving(&moved, slow).await.unwrap();
        let stands = while_moving(&moved, std::future::pending::<()>()).await;
        assert_eq!(stands.unwrap_err(), "nothing moved for 30 s");
    }
}
