//! A mount of ours on its place, and the way to take off exactly that one.
//!
//! It is named by its parent's descriptor and one name, because a descriptor of the mount itself would keep it busy, and
//! by its device number, because something else may lie there by then.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::daemon::fusermount::Fusermount;
use crate::daemon::mountpoint::Directory;

/// A device number as (major, minor): each FUSE mount has one of its own while it lives.
pub(crate) type Device = (u32, u32);

/// Where a mount lies or will lie.
#[derive(Debug)]
pub(crate) struct Spot {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
}

/// A mount of ours.
#[derive(Debug)]
pub(crate) struct Attached {
    spot: Spot,
    dev: Device,
    /// Who takes it off: ourselves if `None`.
    helper: Option<Fusermount>,
}

impl Spot {
    /// Remembers the place of `directory`; to be called before something is mounted on it.
    ///
    /// # Errors
    /// `EBUSY` for `/`, which has no parent; else as openat(2).
    pub(crate) fn of(directory: &Directory) -> Result<Self, Errno> {
        let path = &directory.path;
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::BUSY) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(CWD, above, flags, Mode::empty())?;
        Ok(Self { parent, name: name.to_owned(), path: path.clone() })
    }

    /// The device that lies there now.
    pub(crate) fn device(&self) -> Result<Device, Errno> {
        device_of(self.parent.as_fd(), &self.name)
    }
}

impl Attached {
    /// The mount of device `dev`, which now lies on `spot`.
    pub(crate) fn new(spot: Spot, dev: Device, helper: Option<Fusermount>) -> Self {
        Self { spot, dev, helper }
    }

    /// Takes the mount off its place; who has files open there keeps them. Moves the working directory.
    ///
    /// # Errors
    /// `ENOENT` if it is not there any more; `EPERM` if fusermount3 would not; else as umount2(2).
    pub(crate) fn detach(&self) -> Result<(), Errno> {
        if self.spot.device()? != self.dev {
            return Err(Errno::NOENT);
        }
        if let Some(helper) = &self.helper {
            return helper.unmount(&self.spot.path);
        }
        rustix::process::fchdir(&self.spot.parent)?;
        unmount(&self.spot.name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
    }

    /// Which mount it is.
    pub(crate) fn device(&self) -> Device {
        self.dev
    }

    /// The descriptor that must stay open for `detach`.
    pub(crate) fn parent(&self) -> &OwnedFd {
        &self.spot.parent
    }
}

/// The number of a mount's connection, as /proc/PID/fdinfo shows it: the kernel's own of its device.
pub(crate) fn connection((major, minor): Device) -> u64 {
    u64::from(major) << 20 | u64::from(minor)
}

/// The device that an object is on. Only the kernel is asked, never the daemon behind it.
pub(crate) fn device_of(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<Device, Errno> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let stat = rustix::fs::statx(dir, name, flags, StatxFlags::INO)?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}
