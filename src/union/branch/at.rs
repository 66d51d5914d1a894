//! One object of a branch, by its name in a directory or by a descriptor: the calls that look at it and those that
//! change its attributes.
//!
//! Invariant: nothing here follows a symlink or leaves the directory given. Every change is a step (`fault::step`).

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, Timespec, Timestamps};

use crate::sys;
use crate::sys::handle::FileHandle;
use crate::union::error::{Errno, Result};
use crate::union::fault::step;
use crate::union::name::Name;
use crate::union::types::{SetTime, Time};

/// What statx(2) tells of an object in a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device that the object lies on.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// When it was made; 0 where the filesystem does not know.
    pub btime: Time,
}

impl Stat {
    /// Which object of the machine this is: device and inode number.
    pub fn identity(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// The type in `mode`.
    pub fn kind(&self) -> rustix::fs::FileType {
        rustix::fs::FileType::from_raw_mode(self.mode)
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind().is_dir()
    }
}

/// Filesystems that were mounted anew: the device each is now, and the one it was at the start. One process has one union.
static MOVED: RwLock<Vec<(u64, u64)>> = RwLock::new(Vec::new());
static ANY_MOVED: AtomicBool = AtomicBool::new(false);
/// A filesystem has said that nobody serves it.
static CUT: AtomicBool = AtomicBool::new(false);

/// From now on objects of the device `is` are seen on the device `was`, which the same filesystem has been.
pub fn device_moved(is: u64, was: u64) {
    MOVED.write().push((is, was));
    ANY_MOVED.store(true, Ordering::Release);
}

/// Whether another filesystem than the one on the device `dev` is seen on it.
pub fn is_taken(dev: u64) -> bool {
    MOVED.read().iter().any(|(_, was)| *was == dev)
}

/// Only these devices are still to be seen: the numbers of others may become other filesystems'.
pub fn keep_moved(seen: impl Fn(u64) -> bool) {
    MOVED.write().retain(|(_, was)| seen(*was));
}

/// The number by which a device was known from the start.
fn device_known_as(dev: u64) -> u64 {
    if !ANY_MOVED.load(Ordering::Acquire) {
        return dev;
    }
    MOVED.read().iter().find(|(is, _)| *is == dev).map_or(dev, |(_, was)| *was)
}

/// Whether a filesystem has said, since this was asked before, that nobody serves it (`ENOTCONN`).
pub fn was_cut() -> bool {
    CUT.swap(false, Ordering::Relaxed)
}

/// stat of `name` in `dir`, as statx(2).
///
/// # Errors
/// Those of statx(2).
pub fn stat(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<Stat> {
    let flags = flags | AtFlags::NO_AUTOMOUNT;
    let x = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME).inspect_err(|errno| {
        if *errno == Errno::NOTCONN {
            CUT.store(true, Ordering::Relaxed);
        }
    })?;
    let time = |t: rustix::fs::StatxTimestamp| Time { sec: t.tv_sec, nsec: t.tv_nsec };
    Ok(Stat {
        dev: device_known_as(rustix::fs::makedev(x.stx_dev_major, x.stx_dev_minor)),
        ino: x.stx_ino,
        mode: u32::from(x.stx_mode),
        nlink: x.stx_nlink,
        uid: x.stx_uid,
        gid: x.stx_gid,
        size: x.stx_size,
        blocks: x.stx_blocks,
        rdev: (x.stx_rdev_major, x.stx_rdev_minor),
        blksize: x.stx_blksize,
        atime: time(x.stx_atime),
        mtime: time(x.stx_mtime),
        ctime: time(x.stx_ctime),
        btime: time(x.stx_btime),
    })
}

/// An object of a branch.
#[derive(Clone)]
pub enum At {
    /// The object that this directory has under this name.
    Name(Arc<OwnedFd>, Name),
    /// This directory itself.
    Dir(Arc<OwnedFd>),
    /// The object behind this descriptor; possibly `O_PATH`, possibly without a name.
    Fd(Arc<OwnedFd>),
}

impl fmt::Debug for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(_, name) => name.fmt(f),
            Self::Dir(fd) | Self::Fd(fd) => fd.fmt(f),
        }
    }
}

impl At {
    fn parts(&self) -> (BorrowedFd<'_>, &CStr, AtFlags) {
        match self {
            Self::Name(dir, name) => (dir.as_fd(), name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW),
            // By the name `.`, since some calls refuse an `O_PATH` descriptor with an empty name.
            Self::Dir(fd) => (fd.as_fd(), c".", AtFlags::SYMLINK_NOFOLLOW),
            Self::Fd(fd) => (fd.as_fd(), c"", AtFlags::EMPTY_PATH),
        }
    }

    /// As `parts`, for the calls that take a descriptor of any kind: the name `.` needs the right to search.
    fn bare(&self) -> (BorrowedFd<'_>, &CStr, AtFlags) {
        match self {
            Self::Dir(fd) => (fd.as_fd(), c"", AtFlags::EMPTY_PATH),
            Self::Name(..) | Self::Fd(_) => self.parts(),
        }
    }

    /// Its attributes. Errors: those of statx(2).
    pub fn stat(&self) -> Result<Stat> {
        let (dir, name, flags) = self.bare();
        stat(dir, name, flags)
    }

    /// The attributes of what `fd` has open. Errors: those of statx(2).
    pub fn stat_fd(fd: &OwnedFd) -> Result<Stat> {
        stat(fd.as_fd(), c"", AtFlags::EMPTY_PATH)
    }

    /// Opens it with `flags`, never following a symlink. Errors: those of openat(2).
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        match self {
            Self::Name(..) | Self::Dir(_) => {
                let (dir, name, _) = self.parts();
                let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
                rustix::fs::openat(dir, name, flags, Mode::empty())
            }
            Self::Fd(fd) if flags.contains(OFlags::PATH) => rustix::io::fcntl_dupfd_cloexec(fd, 0),
            Self::Fd(fd) => sys::procfd::reopen(fd.as_fd(), flags | OFlags::NOCTTY),
        }
    }

    /// The target of a symlink. Errors: those of readlinkat(2).
    pub fn readlink(&self) -> Result<Vec<u8>> {
        let (dir, name, _) = self.parts();
        Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
    }

    /// Its file handle. Errors: those of name_to_handle_at(2).
    pub fn handle(&self) -> Result<FileHandle> {
        let (dir, name, flags) = self.parts();
        sys::handle::of(dir, name, flags)
    }

    /// The value of attribute `key`; `None` if it has none (or the filesystem has no attributes).
    ///
    /// # Errors
    /// Those of getxattr(2) but `ENODATA` and `EOPNOTSUPP`.
    pub fn xattr(&self, key: &CStr) -> Result<Option<Vec<u8>>> {
        match self.xattr_value(key) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The value of the mark `key`; `None` if there is none, or none that can be read: `user.*` attributes of a file that
    /// its owner may not read are beyond a daemon without privilege, and no reason not to show the file.
    ///
    /// # Errors
    /// As `xattr`, but `EACCES`.
    pub fn mark(&self, key: &CStr) -> Result<Option<Vec<u8>>> {
        match self.xattr(key) {
            Err(Errno::ACCESS) => Ok(None),
            other => other,
        }
    }

    /// The value of attribute `key`. Errors: those of getxattr(2).
    pub fn xattr_value(&self, key: &CStr) -> Result<Vec<u8>> {
        let (dir, name, flags) = self.parts();
        grow(|buffer| sys::xattr::get(dir, name, key, buffer, flags))
    }

    /// The names of its attributes, each with a NUL behind it; empty where the filesystem has none.
    ///
    /// # Errors
    /// Those of listxattr(2) but `EOPNOTSUPP`.
    pub fn xattr_names(&self) -> Result<Vec<u8>> {
        let (dir, name, flags) = self.parts();
        match grow(|buffer| sys::xattr::list(dir, name, buffer, flags)) {
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Sets attribute `key`; `how` as the flags of setxattr(2). Errors: those of setxattr(2).
    pub fn set_xattr(&self, key: &CStr, value: &[u8], how: u32) -> Result<()> {
        step("setxattr")?;
        let (dir, name, flags) = self.parts();
        sys::xattr::set(dir, name, key, value, how, flags)
    }

    /// Removes attribute `key`. Errors: those of removexattr(2).
    pub fn remove_xattr(&self, key: &CStr) -> Result<()> {
        step("removexattr")?;
        let (dir, name, flags) = self.parts();
        sys::xattr::remove(dir, name, key, flags)
    }

    /// Sets the permission bits. Errors: those of chmod(2).
    pub fn chmod(&self, mode: u32) -> Result<()> {
        step("chmod")?;
        let (dir, name, flags) = self.bare();
        sys::mode::chmod(dir, name, mode & 0o7777, flags)
    }

    /// Sets owner and group, `None` leaves one as it is. Errors: those of chown(2).
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        step("chown")?;
        let (dir, name, flags) = self.bare();
        let (uid, gid) = (uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
        rustix::fs::chownat(dir, name, uid, gid, flags)
    }

    /// Sets the times, `None` leaves one as it is. Errors: those of utimensat(2).
    pub fn set_times(&self, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
        step("utimens")?;
        let time = |t| match t {
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            Some(SetTime::At(Time { sec, nsec })) => Timespec { tv_sec: sec, tv_nsec: nsec.into() },
        };
        let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
        let (dir, name, flags) = self.bare();
        rustix::fs::utimensat(dir, name, &times, flags)
    }
}

/// Calls `read` with a larger buffer until the value fits: attributes may grow between two calls.
fn grow(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0; 256];
    match read(&mut small) {
        Ok(size) => return Ok(small[..size].to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    // 64 KiB is the kernel's limit for a value and for a list of names.
    let mut large = vec![0; 65536];
    let size = read(&mut large)?;
    large.truncate(size);
    Ok(large)
}
