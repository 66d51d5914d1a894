//! The mount calls that rustix lacks: mount_setattr(2).
//!
//! Only mounts named by a descriptor are changed, never one found by a path.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// What `set_attributes` switches on; see mount_setattr(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Nothing can be changed through this mount.
    pub read_only: bool,
    /// Reading leaves no time stamp.
    pub no_atime: bool,
    /// Reading a directory leaves none.
    pub no_dir_atime: bool,
    /// Mounts made below peers do not appear here, nor the reverse.
    pub private: bool,
}

/// Changes the mount whose root is `mount`; what is not asked for stays as it is.
///
/// # Errors
/// As mount_setattr(2): `EPERM` without privilege or where the attribute is locked, `EINVAL` where `mount` is no root
/// of a mount, `ENOSYS` before Linux 5.12.
pub fn set_attributes(mount: BorrowedFd<'_>, wanted: Attributes) -> Result<(), Errno> {
    let mut attr = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    if wanted.read_only {
        attr.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    if wanted.no_atime {
        attr.attr_set |= libc::MOUNT_ATTR_NOATIME;
        attr.attr_clr |= libc::MOUNT_ATTR__ATIME;
    }
    if wanted.no_dir_atime {
        attr.attr_set |= libc::MOUNT_ATTR_NODIRATIME;
    }
    if wanted.private {
        attr.propagation = libc::MS_PRIVATE;
    }
    // SAFETY: the descriptor is open for the whole call, the path is a NUL-terminated constant, `attr` is a valid
    // mount_attr of the size that is passed, and the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(super::process::last_errno()) }
}
