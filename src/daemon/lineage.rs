//! What a directory lies in: by walking `..` up from it, and by its path inside its filesystem.
//!
//! The first finds what lies above on the way that it was reached; the second also finds what lies above on any other
//! way (one of the two is a bind mount), where /proc can tell.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::daemon::resolve::{Checked, Id, Place, describe};
use crate::daemon::table::MountTable;

/// Deeper than any path can be: PATH_MAX / 2.
const DEEPEST: usize = 2048;

/// What one directory lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lineage {
    pub(crate) id: Id,
    /// The directories above, nearest first.
    pub(crate) above: Vec<Id>,
    /// Its path from the root of its filesystem.
    pub(crate) inner: Option<PathBuf>,
}

impl Lineage {
    /// Looks at `place`, which `table` has the mount of.
    ///
    /// # Errors
    /// A line that quotes it.
    pub(crate) fn of(place: &Place, table: &MountTable) -> Checked<Self> {
        let above = walk_up(place.fd.as_fd(), place.id)
            .map_err(|errno| format!("cannot look at the directories above {:?}: {}", place.label, describe(errno)))?;
        Ok(Self { id: place.id, above, inner: inner_path(place.fd.as_fd(), table) })
    }

    /// Whether this directory lies in `other`, at whatever depth; no directory lies in itself.
    pub(crate) fn is_in(&self, other: &Self) -> bool {
        if self.above.contains(&other.id) {
            return true;
        }
        match (&self.inner, &other.inner) {
            (Some(inner), Some(outer)) => self.id.dev == other.id.dev && inner != outer && inner.starts_with(outer),
            _ => false,
        }
    }
}

/// The directories above, nearest first, up to the root of the process.
fn walk_up(start: BorrowedFd<'_>, id: Id) -> Result<Vec<Id>, Errno> {
    let mut above = Vec::new();
    let (mut here, mut here_id) = (rustix::io::fcntl_dupfd_cloexec(start, 3)?, id);
    let mut mount = mount_id(here.as_fd())?;
    while above.len() < DEEPEST {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let parent = match rustix::fs::openat(&here, "..", flags, Mode::empty()) {
            Ok(parent) => parent,
            // An ordinary user need not be able to look all the way up, and what is above is not his to mount then.
            Err(Errno::ACCESS) => return Ok(above),
            Err(errno) => return Err(errno),
        };
        let parent_id = Id::of(parent.as_fd())?;
        let parent_mount = mount_id(parent.as_fd())?;
        if parent_id == here_id && parent_mount == mount {
            return Ok(above);
        }
        above.push(parent_id);
        (here, here_id, mount) = (parent, parent_id, parent_mount);
    }
    Err(Errno::LOOP)
}

/// Which mount a descriptor was reached through.
pub(crate) fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(fd, "", flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// The root of the mount that `dir` was reached through.
///
/// # Errors
/// `EINVAL` if it lies above the root of this process; `ESTALE` if other mounts hide the way to it; else as openat(2).
pub(crate) fn mount_root(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut here = rustix::io::fcntl_dupfd_cloexec(dir, 3)?;
    let (mount, mut id) = (mount_id(dir)?, Id::of(dir)?);
    for _ in 0..DEEPEST {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        if rustix::fs::statx(&here, "", flags, StatxFlags::INO)?.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(here);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let parent = rustix::fs::openat(&here, "..", flags, Mode::empty())?;
        let above = Id::of(parent.as_fd())?;
        if mount_id(parent.as_fd())? != mount {
            return Err(Errno::STALE);
        }
        if above == id {
            return Err(Errno::INVAL);
        }
        (here, id) = (parent, above);
    }
    Err(Errno::LOOP)
}

/// The absolute path of a descriptor, as the kernel knows it.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
    let link = rustix::fs::readlinkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(link.into_bytes())))
}

/// The path from the root of the filesystem, which is the same whatever mounts it was reached through.
fn inner_path(fd: BorrowedFd<'_>, table: &MountTable) -> Option<PathBuf> {
    let path = path_of(fd).ok()?;
    let line = table.of(mount_id(fd).ok()?)?;
    Some(line.root()?.join(path.strip_prefix(line.point()?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_what() {
        let at = |ino, above: &[u64], inner: Option<&str>| Lineage {
            id: Id { dev: 1, ino },
            above: above.iter().map(|&ino| Id { dev: 1, ino }).collect(),
            inner: inner.map(PathBuf::from),
        };
        let top = at(2, &[], Some("/"));
        let up = at(10, &[5, 2], Some("/cow/up"));
        let sub = at(11, &[10, 5, 2], Some("/cow/up/sub"));
        // Reached through a bind mount elsewhere.
        let bound = at(11, &[7, 2], Some("/cow/up/sub"));
        let beside = at(12, &[5, 2], Some("/cow/up2"));
        assert!(sub.is_in(&up) && bound.is_in(&up) && up.is_in(&top));
        assert!(!up.is_in(&sub) && !beside.is_in(&up) && !up.is_in(&up));
        assert!(!at(11, &[7], None).is_in(&up));
    }
}
