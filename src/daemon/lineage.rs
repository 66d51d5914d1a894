//! What a directory lies in: by walking `..` up from it, and by its path inside its filesystem.
//!
//! The first finds what lies above on the way that it was reached; the second also finds what lies above on any other
//! way (one of the two is a bind mount), where /proc can tell.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::daemon::resolve::{Checked, Id, Place, describe};

/// Deeper than any path can be: PATH_MAX / 2.
const DEEPEST: usize = 2048;

/// What one directory lies in.
#[derive(Debug)]
pub(crate) struct Lineage {
    id: Id,
    above: Vec<Id>,
    inner: Option<PathBuf>,
}

impl Lineage {
    /// Looks at `place`.
    ///
    /// # Errors
    /// A line that quotes it.
    pub(crate) fn of(place: &Place) -> Checked<Self> {
        let above = walk_up(place.fd.as_fd(), place.id)
            .map_err(|errno| format!("cannot look at the directories above {:?}: {}", place.label, describe(errno)))?;
        Ok(Self { id: place.id, above, inner: inner_path(place.fd.as_fd()) })
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
fn inner_path(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    let path = path_of(fd).ok()?;
    let id = mount_id(fd).ok()?;
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let line = MountLine::all(&table).find(|line| line.id() == Some(id))?;
    let (root, point) = (unescape(line.field(3)?), unescape(line.field(4)?));
    Some(root.join(path.strip_prefix(point).ok()?))
}

/// A line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountLine<'a>(&'a [u8]);

impl<'a> MountLine<'a> {
    /// The lines of a table; a mount that lies over another comes after it.
    pub(crate) fn all(table: &'a [u8]) -> impl DoubleEndedIterator<Item = Self> {
        table.split(|&byte| byte == b'\n').map(Self)
    }

    /// The mount's number, as in statx(2) and /proc/PID/fdinfo.
    pub(crate) fn id(self) -> Option<u64> {
        std::str::from_utf8(self.field(0)?).ok()?.parse().ok()
    }

    fn field(self, index: usize) -> Option<&'a [u8]> {
        self.0.split(|&byte| byte == b' ').nth(index)
    }

    /// Where it is mounted.
    pub(crate) fn point(self) -> Option<PathBuf> {
        self.field(4).map(unescape)
    }

    /// What is mounted, by the name that the mounter chose.
    pub(crate) fn source(self) -> Option<PathBuf> {
        self.after_dash(2).map(unescape)
    }

    /// The type of the filesystem.
    pub(crate) fn kind(self) -> Option<&'a [u8]> {
        self.after_dash(1)
    }

    /// Whether the filesystem, not only this mount of it, has the option `word`.
    pub(crate) fn has(self, word: &[u8]) -> bool {
        self.after_dash(3).is_some_and(|options| options.split(|&byte| byte == b',').any(|one| one == word))
    }

    /// What the filesystem's option `key` says.
    pub(crate) fn value(self, key: &[u8]) -> Option<PathBuf> {
        let options = self.after_dash(3)?.split(|&byte| byte == b',');
        let mut values = options.filter_map(|one| one.strip_prefix(key)?.strip_prefix(b"="));
        values.next().map(unescape)
    }

    /// Optional fields end with a dash of their own.
    fn after_dash(self, index: usize) -> Option<&'a [u8]> {
        self.0.split(|&byte| byte == b' ').skip_while(|field| field != b"-").nth(index)
    }
}

/// Undoes the kernel's `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    Path::new(std::ffi::OsStr::from_bytes(&bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table() {
        let table = b"40 28 0:35 /a\\040b /tmp/m\\134 rw,nosuid shared:5 - fuse.cowfs /a=RO:/b=RW rw,user_id=0\n";
        let line = MountLine::all(table).next().unwrap();
        assert_eq!(line.point().unwrap(), Path::new("/tmp/m\\"));
        assert_eq!(line.field(3).map(unescape).unwrap(), Path::new("/a b"));
        assert_eq!(line.kind(), Some(&b"fuse.cowfs"[..]));
        assert_eq!((line.id(), line.source().as_deref()), (Some(40), Some(Path::new("/a=RO:/b=RW"))));
        assert_eq!((line.value(b"user_id"), line.value(b"user"), line.value(b"rw")), (Some("0".into()), None, None));
        assert!(line.has(b"user_id=0") && line.has(b"rw") && !line.has(b"nosuid") && !line.has(b"user_id"));
        assert_eq!((MountLine(b"").kind(), MountLine(b"").id()), (None, None));
    }

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
