//! chmod(2) by directory and name that follows no symlink: fchmodat2(2), Linux 6.6.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

const SYS_FCHMODAT2: libc::c_long = 452;

/// Sets the permission bits of `name` in `dir`; an empty name with `AT_EMPTY_PATH` means `dir` itself.
///
/// # Errors
/// Those of fchmodat2(2); `EOPNOTSUPP` for a symlink.
pub fn chmod(dir: BorrowedFd<'_>, name: &CStr, mode: u32, flags: AtFlags) -> Result<(), Errno> {
    // SAFETY: `dir` is open and `name` is a C string; the call keeps neither.
    let done =
        super::check(unsafe { libc::syscall(SYS_FCHMODAT2, dir.as_raw_fd(), name.as_ptr(), mode, flags.bits()) });
    match done {
        Err(Errno::NOSYS) => chmod_by_descriptor(dir, name, mode, flags),
        other => other.map(drop),
    }
}

/// For kernels before 6.6: `fchmod` on an `O_PATH` descriptor is refused, but chmod through /proc/self/fd is not.
fn chmod_by_descriptor(dir: BorrowedFd<'_>, name: &CStr, mode: u32, flags: AtFlags) -> Result<(), Errno> {
    let opened;
    let object = if flags.contains(AtFlags::EMPTY_PATH) {
        dir
    } else {
        opened = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        opened.as_fd()
    };
    super::procfd::chmod(object, Mode::from_raw_mode(mode))
}
