//! Folders of certificates: as they are, and ours in them, under the name by which OpenSSL looks for it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Overlay, bundle, find, hash,
    reach::{Place, invalid},
    stage,
};

/// What such a folder has at most: the system's has 140 certificates under two or three names each.
const ENTRIES_MAX: usize = 8192;

/// Folders in it, and in those.
const DEPTH_MAX: u32 = 2;

impl Overlay<'_> {
    /// Shows a folder with our certificate in it. One that somebody `named` is looked at first: it has to
    /// be one, and the agent has to be able to read all of it.
    pub(super) fn folder(&mut self, path: &Path, named: bool) {
        let Some(place) = self.reach(path) else {
            return;
        };
        // It was seen under another name.
        if self.reach(&path.join(hash::FILE_NAME)).is_some() {
            return;
        }
        let shown = self.filled(&place, named).and_then(|new| {
            stage::show(&new, &place)?;
            Ok(())
        });
        match shown {
            Ok(()) if self.own.is_none() => self.own = Some(path.join(hash::FILE_NAME)),
            Ok(()) => {}
            Err(error) => self.problem(&path.display(), &error),
        }
    }

    fn filled(&mut self, place: &Place, named: bool) -> io::Result<PathBuf> {
        let entries = self.entries(place)?;
        if named && !entries.iter().any(|entry| is_hash(entry)) {
            return Err(invalid("no certificate is in it under its hash"));
        }
        let name = hash::of_subject(self.certificate)
            .ok_or_else(|| invalid("the certificate authority's name can't be read"))?;
        let new = self.stage.folder(place.metadata())?;
        self.copy(
            place,
            &entries,
            &new,
            if named { 0 } else { DEPTH_MAX },
            named,
        )?;
        stage::write_for_all(&new.join(hash::FILE_NAME), self.certificate.as_bytes())?;
        // Of certificates with one hash each has its number.
        let link = (0..100)
            .map(|number| new.join(format!("{name:08x}.{number}")))
            .find(|link| link.symlink_metadata().is_err())
            .ok_or_else(|| invalid("a hundred certificates have its hash"))?;
        std::os::unix::fs::symlink(hash::FILE_NAME, link)?;
        Ok(new)
    }

    /// The names in a folder that the agent can list.
    fn entries(&self, place: &Place) -> io::Result<Vec<PathBuf>> {
        let entries = self.identity.assume(|| {
            let entries = fs::read_dir(place.link())?.take(ENTRIES_MAX + 1);
            let names = entries.map(|entry| Ok(PathBuf::from(entry?.file_name())));
            names.collect::<io::Result<Vec<_>>>()
        })??;
        if entries.len() > ENTRIES_MAX {
            return Err(invalid("it has more entries than a folder of certificates"));
        }
        Ok(entries)
    }

    /// Links as links, files as copies, and bundles and key stores among them with our certificate. What
    /// the agent can't read stays unreadable, and is empty. `strict` is whether that is an error, as
    /// anything is that isn't a file or link.
    fn copy(
        &mut self,
        from: &Place,
        entries: &[PathBuf],
        to: &Path,
        depth: u32,
        strict: bool,
    ) -> io::Result<()> {
        for name in entries {
            let new = to.join(name);
            let Ok(entry) = self.identity.assume(|| from.within(name))? else {
                // It went meanwhile.
                continue;
            };
            let kind = entry.metadata().file_type();
            if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(from.link().join(name))?, &new)?;
            } else if kind.is_file() {
                let content = match self.content(&entry) {
                    Err(error) if strict => return Err(error),
                    content => content.unwrap_or_default(),
                };
                stage::write(&new, &content, entry.metadata())?;
            } else if strict {
                return Err(invalid("it holds other things than certificates"));
            } else if kind.is_dir() && depth > 0 {
                stage::folder(&new, entry.metadata())?;
                if let Ok(entries) = self.entries(&entry) {
                    self.copy(&entry, &entries, &new, depth - 1, strict)?;
                }
            }
        }
        Ok(())
    }

    /// What is seen in the place of a file in such a folder.
    fn content(&mut self, file: &Place) -> io::Result<Vec<u8>> {
        let name = file.path().file_name().unwrap_or_default();
        if find::is_bundle_name(name)
            && let Ok(Some(merged)) = self.merged(file)
        {
            return Ok(merged);
        }
        self.read(file, bundle::BYTES_MAX)
    }
}

/// Whether OpenSSL finds a certificate under this name: eight digits of its hash, and a number.
fn is_hash(name: &Path) -> bool {
    let name = name.to_str().unwrap_or_default();
    name.split_once('.').is_some_and(|(hash, number)| {
        hash.len() == 8
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            && number.parse::<u8>().is_ok()
    })
}
