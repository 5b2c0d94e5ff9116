//! NSS: its roots are compiled into a module, in the place of which p11-kit's can be seen, where that is
//! installed: it reads the system's bundle or anchors, which have ours.

use std::{io, os::unix::fs::MetadataExt as _};

use super::{Overlay, find, reach::Place, stage};

/// The part of an ELF header that says which processors and systems a library is for.
const HEADER: u64 = 20;

impl Overlay<'_> {
    pub(super) fn nss(&mut self) {
        let (modules, replacements) = find::nss_modules();
        for module in &modules {
            // Where there is none, NSS keeps its own, and the documentation says what helps.
            let Some(place) = self.reach(module) else {
                continue;
            };
            let shown = replacements.iter().find_map(|path| {
                let new = self.reach(path)?;
                match self.fits(&new, &place) {
                    Ok(true) => Some(stage::show(&new.link(), &place)),
                    _ => None,
                }
            });
            if let Some(Err(error)) = shown {
                self.problem(&module.display(), &error);
            }
        }
    }

    /// Whether one library is for the same processor as another, and isn't it.
    fn fits(&self, new: &Place, old: &Place) -> io::Result<bool> {
        let file = |place: &Place| (place.metadata().dev(), place.metadata().ino());
        let header = |place: &Place| self.identity.assume(|| place.start(HEADER))?;
        Ok(file(new) != file(old) && header(new)? == header(old)?)
    }
}
