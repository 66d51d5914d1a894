//! Where the union appears: an opened directory before the mount, and the way to take exactly our own mount off again.
//!
//! A mount is named by the parent's descriptor and one name, because a descriptor of the mount itself would keep it
//! busy, and by its device number, because something else may lie there by then.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::daemon::resolve::{Checked, Place, Role, describe, open};

/// Where the union appears.
#[derive(Debug)]
pub(crate) enum Mountpoint {
    /// On a directory, and it is for us to mount it.
    Directory(Directory),
    /// Somebody mounted already, and this is its /dev/fuse.
    Device(OwnedFd),
}

/// The directory to mount on.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) place: Place,
    /// Absolute, without symlinks.
    pub(crate) path: PathBuf,
}

/// The number in `/dev/fd/N`.
pub(crate) fn device_number(path: &Path) -> Option<RawFd> {
    path.to_str()?.strip_prefix("/dev/fd/")?.parse().ok().filter(|&number| number >= 0)
}

/// Opens the mountpoint, after a dead union there (its daemon was killed) has been taken away by `clear`.
///
/// # Errors
/// A line that quotes the mountpoint.
pub(crate) fn resolve(path: &Path, clear: impl Fn(&Path) -> Result<(), Errno>) -> Checked<Mountpoint> {
    if let Some(number) = device_number(path) {
        return adopt_device(path, number).map(Mountpoint::Device);
    }
    // As many as anybody can have stacked by killing daemon after daemon.
    for _ in 0..64 {
        let Some(dead) = dead_union(path) else { break };
        log::info!("taking away the dead union on {dead:?}");
        clear(&dead).map_err(|errno| {
            format!("mountpoint {path:?} holds a dead union that cannot be unmounted: {}", describe(errno))
        })?;
    }
    let place = open(Role::Mountpoint, path, None)?;
    let path = std::fs::canonicalize(path).map_err(|error| format!("cannot resolve mountpoint {path:?}: {error}"))?;
    Ok(Mountpoint::Directory(Directory { place, path }))
}

fn adopt_device(path: &Path, number: RawFd) -> Checked<OwnedFd> {
    let refuse = |why: String| format!("mountpoint {path:?} is not an open /dev/fuse: {why}");
    let device = crate::sys::process::adopt(number).map_err(|errno| refuse(describe(errno)))?;
    let stat = rustix::fs::fstat(&device).map_err(|errno| refuse(describe(errno)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) != (10, 229)
    {
        return Err(refuse("it is something else".into()));
    }
    Ok(device)
}

/// The path of a union of ours on `path` whose daemon is gone.
///
/// Only what the mount table calls a cowfs: a dead mount of something else is not ours to remove.
fn dead_union(path: &Path) -> Option<PathBuf> {
    // Not stat(2): the kernel may answer that from its cache long after the daemon's death.
    if rustix::fs::statvfs(path).err()? != Errno::NOTCONN {
        return None;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let full = std::fs::canonicalize(parent).ok()?.join(path.file_name()?);
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let top =
        table.split(|&byte| byte == b'\n').rev().find(|line| mounted_at(line) == Some(full.as_os_str().as_bytes()))?;
    mount_type(top).is_some_and(|kind| kind == b"fuse.cowfs").then_some(full)
}

/// The mountpoint in a line of mountinfo, if it holds no escaped character.
fn mounted_at(line: &[u8]) -> Option<&[u8]> {
    line.split(|&byte| byte == b' ').nth(4)
}

/// The type in a line of mountinfo.
fn mount_type(line: &[u8]) -> Option<&[u8]> {
    let mut fields = line.split(|&byte| byte == b' ').skip_while(|field| field != b"-");
    fields.nth(1)
}

/// A mount of ours that root takes off.
#[derive(Debug)]
pub(crate) struct Attached {
    parent: OwnedFd,
    name: OsString,
    dev: (u32, u32),
}

impl Attached {
    /// Remembers how to take off the mount of device `dev` on `directory`; to be called before it is attached.
    ///
    /// # Errors
    /// `EBUSY` for `/`, which nobody can take off; else as openat(2).
    pub(crate) fn remember(directory: &Directory, dev: (u32, u32)) -> Result<Self, Errno> {
        let (Some(above), Some(name)) = (directory.path.parent(), directory.path.file_name()) else {
            return Err(Errno::BUSY);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(CWD, above, flags, Mode::empty())?;
        Ok(Self { parent, name: name.to_owned(), dev })
    }

    /// Whether our mount is still what lies there. Asks the kernel only, never the daemon.
    pub(crate) fn is_there(&self) -> bool {
        device_of(self.parent.as_fd(), &self.name).is_ok_and(|dev| dev == self.dev)
    }

    /// Takes the mount off its place; who has files open there keeps them. Moves the working directory.
    ///
    /// # Errors
    /// `ENOENT` if it is not there any more; else as umount2(2).
    pub(crate) fn detach(&self) -> Result<(), Errno> {
        if !self.is_there() {
            return Err(Errno::NOENT);
        }
        rustix::process::fchdir(&self.parent)?;
        unmount(&self.name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
    }

    /// The descriptor that must stay open for `detach`.
    pub(crate) fn parent(&self) -> &OwnedFd {
        &self.parent
    }
}

/// The device number that stat(2) shows for a file system object; a FUSE root is not asked.
pub(crate) fn device_of(dir: std::os::fd::BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<(u32, u32), Errno> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let stat = rustix::fs::statx(dir, name, flags, StatxFlags::INO)?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_mountpoints_are_descriptors() {
        for (path, number) in
            [("/dev/fd/3", Some(3)), ("/dev/fd/12", Some(12)), ("/dev/fd/", None), ("/dev/fd/-1", None), ("/mnt", None)]
        {
            assert_eq!(device_number(Path::new(path)), number, "{path}");
        }
    }

    #[test]
    fn lines_of_the_mount_table() {
        let line = b"40 28 0:35 / /tmp/m rw,nosuid,nodev shared:5 - fuse.cowfs /a=RO:/b=RW rw,user_id=0";
        assert_eq!((mounted_at(line), mount_type(line)), (Some(&b"/tmp/m"[..]), Some(&b"fuse.cowfs"[..])));
        assert_eq!(mount_type(b""), None);
    }
}
