//! Whether the hooks of an agent are still the ones that were attached, and the maps still pinned.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use nix::errno::Errno;

/// What was pinned where, as it was first seen.
#[derive(Debug, Default)]
pub(super) struct Pinned(BTreeMap<PathBuf, u32>);

impl Pinned {
    /// What is wrong with the links `names` in `folder`, which belong on the cgroup of that id.
    pub(super) fn links<'a>(
        &mut self,
        folder: &Path,
        names: impl IntoIterator<Item = &'a str>,
        cgroup_id: u64,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in names {
            let pin = folder.join(name);
            match link(&pin) {
                Err(_) => wrong.push(format!("the pin of {name} is gone")),
                Ok(link) if link.cgroup_id != cgroup_id => {
                    wrong.push(format!("{name} is detached"));
                }
                Ok(link) if !self.is_the_same(pin, link.program) => {
                    wrong.push(format!("{name} is another program now"));
                }
                Ok(_) => {}
            }
        }
        wrong
    }

    /// What is wrong with the maps `names` in `folder`.
    pub(super) fn maps<'a>(
        &mut self,
        folder: &Path,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in names {
            let pin = folder.join(name);
            match map(&pin) {
                Err(_) => wrong.push(format!("the pin of the map {name} is gone")),
                Ok(id) if !self.is_the_same(pin, id) => {
                    wrong.push(format!("the pin of {name} is another map's now"));
                }
                Ok(_) => {}
            }
        }
        wrong
    }

    /// Forgets what was pinned in `folder`, which is made anew.
    pub(super) fn forget(&mut self, folder: &Path) {
        self.0.retain(|pin, _| !pin.starts_with(folder));
    }

    fn is_the_same(&mut self, pin: PathBuf, id: u32) -> bool {
        *self.0.entry(pin).or_insert(id) == id
    }
}

struct Link {
    program: u32,
    /// 0 where it is detached.
    cgroup_id: u64,
}

/// `struct bpf_link_info` of linux/bpf.h as far as it is read, and room for what the kernel adds.
#[repr(C)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _padding: u32,
    cgroup_id: u64,
    _rest: [u64; 13],
}

/// `struct bpf_map_info` likewise.
#[repr(C)]
struct MapInfo {
    kind: u32,
    id: u32,
    _rest: [u64; 15],
}

fn link(pin: &Path) -> io::Result<Link> {
    /// BPF_LINK_TYPE_CGROUP.
    const OF_CGROUP: u32 = 3;
    let mut info = LinkInfo {
        kind: 0,
        id: 0,
        program: 0,
        _padding: 0,
        cgroup_id: 0,
        _rest: [0; 13],
    };
    // SAFETY: LinkInfo is integers only, any of which the kernel may write.
    unsafe { describe(pin, &mut info)? };
    if info.kind != OF_CGROUP {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Link {
        program: info.program,
        cgroup_id: info.cgroup_id,
    })
}

fn map(pin: &Path) -> io::Result<u32> {
    let mut info = MapInfo {
        kind: 0,
        id: 0,
        _rest: [0; 15],
    };
    // SAFETY: MapInfo is integers only, any of which the kernel may write.
    unsafe { describe(pin, &mut info)? };
    Ok(info.id)
}

/// Has the kernel describe what is pinned at `pin`.
///
/// # Safety
/// Every bit pattern has to be a value of `T`.
unsafe fn describe<T>(pin: &Path, info: &mut T) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    #[repr(C)]
    struct Get {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    #[repr(C)]
    struct GetInfo {
        descriptor: u32,
        length: u32,
        info: u64,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = Get {
        path: path.as_ptr() as u64,
        descriptor: 0,
        flags: 0,
    };
    // SAFETY: the attributes are a local of the size given, and the path outlives the call.
    let object =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const get, size_of::<Get>()) };
    let object = i32::try_from(Errno::result(object)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for this process; nobody else has it.
    let object = unsafe { OwnedFd::from_raw_fd(object) };
    let get_info = GetInfo {
        descriptor: object.as_raw_fd().try_into().map_err(io::Error::other)?,
        length: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the kernel writes at most as many bytes as the T has, whose bit patterns are all values.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const get_info,
            size_of::<GetInfo>(),
        )
    };
    Errno::result(answer)?;
    Ok(())
}
