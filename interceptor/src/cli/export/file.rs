//! The file that an export goes to: with a hash, with progress, and gone on with where an earlier attempt ended.

use std::{
    fs,
    io::{self, Read as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aws_lc_rs::digest;

use crate::cli::{display::size, progress::Progress};

/// A file in the making.
pub(super) struct Target {
    file: fs::File,
    hash: digest::Context,
    bytes: u64,
    /// Bytes of an earlier attempt that what is written has to be, from here on.
    there: u64,
    progress: Progress,
}

impl Target {
    /// A file for its owner alone: with nothing in it, or where `resumes` with what an earlier attempt has left, which
    /// then has to be the beginning of what is written.
    pub(super) fn open(path: &Path, resumes: bool) -> io::Result<Self> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(!resumes)
            .truncate(!resumes)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            there: file.metadata()?.len(),
            file,
            hash: digest::Context::new(&digest::SHA256),
            bytes: 0,
            progress: Progress::new(),
        })
    }

    /// Brings it to disk: how many bytes it has, and their SHA-256.
    pub(super) fn finish(self) -> io::Result<(u64, [u8; 32])> {
        if self.there > 0 {
            return Err(another());
        }
        self.file.sync_all()?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.hash.finish().as_ref());
        Ok((self.bytes, sha256))
    }

    /// Holds the beginning of `bytes` to what is there already: how much of it that is.
    fn compare(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut part = [0; 16 << 10];
        let left = usize::try_from(self.there).unwrap_or(usize::MAX);
        let length = bytes.len().min(left).min(part.len());
        let (part, _) = part.split_at_mut(length);
        self.file.read_exact(part)?;
        if bytes.get(..length) != Some(part) {
            return Err(another());
        }
        self.there -= length as u64;
        Ok(length)
    }

    fn tell(&mut self) {
        let what = match self.there {
            0 => "written",
            _ => "as they were",
        };
        let bytes = self.bytes;
        self.progress.tell(|| format!("{} {what}", size(bytes)));
    }
}

/// Where what is there isn't the beginning of what is written.
fn another() -> io::Error {
    io::Error::other(
        "what an earlier attempt has left is not the beginning of this: ask for the same, with times instead of how long ago, or begin anew without --resume",
    )
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self.there {
            0 => self.file.write(bytes)?,
            _ => self.compare(bytes)?,
        };
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        self.tell();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path, resumes: bool, text: &[u8]) -> io::Result<(u64, [u8; 32])> {
        let mut target = Target::open(path, resumes)?;
        target.write_all(text)?;
        target.finish()
    }

    #[test]
    fn it_goes_on_where_it_ended_and_with_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.partial");
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let whole = written(&path, false, &text).unwrap();
        for left in [0, 1, 70_000, text.len()] {
            fs::write(&path, &text[..left]).unwrap();
            assert_eq!(written(&path, true, &text).unwrap(), whole);
            assert!(fs::read(&path).unwrap() == text, "{left} bytes");
        }
        // More than there is, other bytes, and nothing to go on with.
        let mut longer = text.clone();
        longer.push(0);
        fs::write(&path, &longer).unwrap();
        written(&path, true, &text).unwrap_err();
        longer[70_000] ^= 1;
        fs::write(&path, &longer[..80_000]).unwrap();
        let error = written(&path, true, &text).unwrap_err().to_string();
        assert!(error.contains("not the beginning"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), &longer[..80_000]);
        fs::remove_file(&path).unwrap();
        let error = written(&path, true, &text).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(written(&path, false, &text).unwrap(), whole);
    }
}
