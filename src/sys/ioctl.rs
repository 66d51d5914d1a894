//! ioctls on files and filesystems: the inode flags of chattr(1), the uuid of a filesystem.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
const FS_IOC_SETFLAGS: libc::c_ulong = 0x4008_6602;
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;

/// The inode flags (FS_*_FL) of an open file or directory.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` where the filesystem has none.
pub fn inode_flags(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the kernel writes an int (some filesystems a long) to `flags`, which holds either.
    super::check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFLAGS as _, &raw mut flags) }.into())?;
    Ok(flags as u32)
}

/// Sets the inode flags of an open file or directory.
///
/// # Errors
/// As `inode_flags`, and `EPERM` for flags that need privilege.
pub fn set_inode_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    let flags = libc::c_long::from(flags);
    // SAFETY: the kernel only reads an int (or long) from `flags`.
    super::check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_SETFLAGS as _, &raw const flags) }.into()).map(drop)
}

/// The uuid of the filesystem that the open file or directory lies on (Linux 6.9), all zeros if it does not tell.
pub fn filesystem_uuid(fd: BorrowedFd<'_>) -> [u8; 16] {
    #[repr(C)]
    struct Uuid {
        len: u8,
        uuid: [u8; 16],
    }
    let mut out = Uuid { len: 0, uuid: [0; 16] };
    // SAFETY: the kernel writes at most the 17 bytes of `struct fsuuid2` to `out`.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID as _, &raw mut out) };
    if done == 0 && out.len == 16 { out.uuid } else { [0; 16] }
}
