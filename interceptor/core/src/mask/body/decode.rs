//! Taking content encodings off as a body streams, in bounded memory.

use std::{
    fmt,
    io::{self, Write},
};

use super::Unmaskable;

/// Bytes of input that are decoded at once: what comes of them is handed on before the next.
pub(super) const STEP_BYTES: usize = 256;

/// Bytes that one step may become: deflate can't do more than a fourth of it. Of br and zstd some bytes can
/// stand for gigabytes, and those of each of a connection's streams are there at once.
const GROWN_BYTES_MAX: usize = 1 << 20;

/// Largest window of zstd, as a power of two: 8 MiB, what RFC 9659 asks of clients.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A body whose encoding is taken off.
pub(super) struct Decoded {
    /// The decoder; for `deflate` unknown until the first byte.
    decoder: Decoder,
    decoded: u64,
}

enum Decoder {
    Gzip(flate2::write::MultiGzDecoder<Room>),
    /// `deflate` is zlib's format, or bare, as servers have it.
    Undecided,
    Zlib(flate2::write::ZlibDecoder<Room>),
    Deflate(flate2::write::DeflateDecoder<Room>),
    Brotli(Box<brotli::DecompressorWriter<Room>>),
    Zstd(zstd::stream::write::Decoder<'static, Room>),
}

impl fmt::Debug for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoded")
            .field("decoded", &self.decoded)
            .finish_non_exhaustive()
    }
}

/// Where a decoder puts what comes out: only so much at once.
#[derive(Default)]
struct Room(Vec<u8>);

impl Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > GROWN_BYTES_MAX {
            return Err(io::Error::other(
                "it grows without measure when it is decoded",
            ));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Decoded {
    pub(super) fn new(encoding: &str) -> Result<Self, Unmaskable> {
        let room = Room::default();
        let decoder = match &*encoding.to_ascii_lowercase() {
            "gzip" | "x-gzip" => Decoder::Gzip(flate2::write::MultiGzDecoder::new(room)),
            "deflate" => Decoder::Undecided,
            "br" => Decoder::Brotli(Box::new(brotli::DecompressorWriter::new(room, 4 << 10))),
            "zstd" => {
                let mut decoder =
                    zstd::stream::write::Decoder::new(room).map_err(|error| failed(&error))?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG_MAX)
                    .map_err(|error| failed(&error))?;
                Decoder::Zstd(decoder)
            }
            other => {
                return Err(Unmaskable(format!(
                    "the content encoding `{other}` isn't looked into; gzip, deflate, br and zstd are, one at a time"
                )));
            }
        };
        Ok(Self {
            decoder,
            decoded: 0,
        })
    }

    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        next: &mut dyn FnMut(&[u8]) -> Result<(), Unmaskable>,
    ) -> Result<(), Unmaskable> {
        for step in bytes.chunks(STEP_BYTES) {
            if matches!(self.decoder, Decoder::Undecided) {
                let is_zlib = step.first().is_some_and(|first| first & 0x0F == 8);
                self.decoder = if is_zlib {
                    Decoder::Zlib(flate2::write::ZlibDecoder::new(Room::default()))
                } else {
                    Decoder::Deflate(flate2::write::DeflateDecoder::new(Room::default()))
                };
            }
            let written = match &mut self.decoder {
                Decoder::Gzip(decoder) => decoder.write_all(step),
                Decoder::Zlib(decoder) => decoder.write_all(step),
                Decoder::Deflate(decoder) => decoder.write_all(step),
                Decoder::Brotli(decoder) => decoder.write_all(step),
                Decoder::Zstd(decoder) => decoder.write_all(step).and_then(|()| decoder.flush()),
                Decoder::Undecided => Ok(()),
            };
            written.map_err(|error| failed(&error))?;
            self.hand_on(next)?;
        }
        Ok(())
    }

    pub(super) fn finish(
        &mut self,
        next: &mut dyn FnMut(&[u8]) -> Result<(), Unmaskable>,
    ) -> Result<(), Unmaskable> {
        let finished = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.try_finish(),
            Decoder::Zlib(decoder) => decoder.try_finish(),
            Decoder::Deflate(decoder) => decoder.try_finish(),
            Decoder::Brotli(decoder) => decoder.close(),
            Decoder::Zstd(decoder) => decoder.flush(),
            Decoder::Undecided => Ok(()),
        };
        finished.map_err(|error| failed(&error))?;
        self.hand_on(next)
    }

    fn hand_on(
        &mut self,
        next: &mut dyn FnMut(&[u8]) -> Result<(), Unmaskable>,
    ) -> Result<(), Unmaskable> {
        let room = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zlib(decoder) => decoder.get_mut(),
            Decoder::Deflate(decoder) => decoder.get_mut(),
            Decoder::Brotli(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut(),
            Decoder::Undecided => return Ok(()),
        };
        self.decoded += room.0.len() as u64;
        let handed = if room.0.is_empty() {
            Ok(())
        } else {
            next(&room.0)
        };
        room.0.clear();
        handed
    }
}

fn failed(error: &io::Error) -> Unmaskable {
    Unmaskable(format!("it can't be decoded: {error}"))
}
