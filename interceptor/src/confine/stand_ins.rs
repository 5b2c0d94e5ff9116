//! Container engines' sockets as an agent sees them: links to sockets of the daemon's, in a folder that the daemon
//! fills anew when it starts again.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
};

use super::{
    StandIn, context,
    found::{self, Found},
    mountinfo::{self, Mount},
    mounts, runtime,
};

/// Where the folder with the daemon's is seen.
const PLACE: &str = "/run/.interceptor";

/// The folder with the daemon's, while it is in sight.
pub(super) fn find(stand_ins: &[StandIn]) -> io::Result<Option<Found>> {
    let Some(first) = stand_ins.first() else {
        return Ok(None);
    };
    let found = Found::named(&first.folder).map_err(|error| {
        let what = format!(
            "what stands in for {} isn't there: run this where the daemon's /run is seen",
            first.engine.display()
        );
        context(&what, &error)
    })?;
    Ok(Some(found))
}

/// Covers the folders that engines' sockets are in, when /run is the agent's own: an engine makes its socket anew
/// when it starts again, and a mount on the one before goes with that.
pub(super) fn cover(stand_ins: &[StandIn], mounts: &[Mount]) -> io::Result<()> {
    let mut folders = BTreeSet::new();
    for one in stand_ins {
        let Some(folder) = one.engine.parent().filter(|it| it.parent().is_some()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{} is in no folder that could be covered",
                    one.engine.display()
                ),
            ));
        };
        folders.extend(mountinfo::others(mounts, folder));
        folders.insert(folder.to_owned());
    }
    for folder in folders.iter().filter(|folder| !runtime::is(folder)) {
        if let Some(found) = found::if_there(Found::named(folder))?
            && found.is_dir()
        {
            let like = found.metadata();
            mounts::own(&found, like.uid(), like.gid(), like.mode() & 0o7777)?;
        }
    }
    Ok(())
}

/// Shows `folder` to the agent, and leads there from where engines' sockets are.
pub(super) fn show(folder: Option<&Found>, stand_ins: &[StandIn]) -> io::Result<()> {
    let Some(folder) = folder else {
        return Ok(());
    };
    let place = Path::new(PLACE);
    fs::create_dir(place)?;
    mounts::bind(folder, place)?;
    let shown = Found::at(place)?;
    mounts::set(
        &shown.link(),
        libc::MOUNT_ATTR_RDONLY,
        0,
        mounts::Depth::Here,
    )?;
    for one in stand_ins {
        if let Some(folder) = one.engine.parent() {
            fs::create_dir_all(folder)?;
        }
        let link = symlink(place.join(&one.name), &one.engine);
        link.map_err(|error| context(&format!("{} can't be shown", one.engine.display()), &error))?;
    }
    Ok(())
}
