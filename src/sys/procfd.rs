//! `/proc/self/fd`, opened once: the way back from a descriptor to what it names.
//!
//! Needed to open an `O_PATH` descriptor for I/O and to link an unnamed file. Opened before the daemon gives up its
//! root, and used relative to that descriptor only: an absolute path would lead into the union itself (fuse-facts 6).
//!
//! Invariant: the descriptor belongs to this process. After a fork it would show the parent's descriptors, so the pid
//! is remembered and a child opens its own.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

static FD: AtomicI32 = AtomicI32::new(-1);
static PID: AtomicI32 = AtomicI32::new(-1);

/// Opens `/proc/self/fd` for this process; to be called after the fork and before chroot.
///
/// # Errors
/// Those of openat(2), `ENOENT` where /proc is not mounted.
pub fn init() -> Result<(), Errno> {
    let fd = rustix::fs::open("/proc/self/fd", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // The descriptor is kept for the life of the process: it is published to all threads without a lock.
    FD.store(fd.into_raw_fd(), Ordering::Release);
    PID.store(rustix::process::getpid().as_raw_nonzero().get(), Ordering::Release);
    Ok(())
}

fn dir() -> Result<BorrowedFd<'static>, Errno> {
    if PID.load(Ordering::Acquire) != rustix::process::getpid().as_raw_nonzero().get() {
        init()?;
    }
    // SAFETY: the descriptor was opened by `init`, and nothing ever closes it.
    Ok(unsafe { BorrowedFd::borrow_raw(FD.load(Ordering::Acquire)) })
}

/// Where in the kernel a thread of this process waits, by the name of a function; see proc_pid_wchan(5).
pub fn waits_in(thread: i32) -> Option<String> {
    let mut text = [0; 64];
    let text = read(&format!("../task/{thread}/wchan"), &mut text)?;
    Some(String::from_utf8_lossy(text).into_owned()).filter(|place| !place.is_empty() && place != "0")
}

/// On which processor a thread of any process runs, or ran last, by its number where /proc was opened; see proc_pid_stat(5).
pub fn processor_of(thread: i32) -> Option<usize> {
    let mut text = [0; 1024];
    let text = read(&format!("../../{thread}/task/{thread}/stat"), &mut text)?;
    // The second of the 52 fields is the program's name, which may contain anything; the processor is the 39th.
    let name_ends = text.iter().rposition(|&byte| byte == b')')?;
    let field = text[name_ends + 1..].split(|&byte| byte == b' ').nth(39 - 2)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// The beginning of the file at `path` from `/proc/self/fd`, as much as `buffer` holds.
fn read<'a>(path: &str, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let file = rustix::fs::openat(dir().ok()?, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = rustix::io::read(&file, &mut *buffer).ok()?;
    Some(&buffer[..length])
}

fn name_of(fd: BorrowedFd<'_>) -> CString {
    CString::new(fd.as_raw_fd().to_string()).unwrap_or_default()
}

/// Opens what `fd` (often `O_PATH`) names once more, with `flags`.
///
/// # Errors
/// Those of openat(2).
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir()?, name_of(fd), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Gives the object behind `fd` (an unnamed file) the name `name` in `to`.
///
/// # Errors
/// Those of linkat(2); `EEXIST` if the name is taken.
pub fn link(fd: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<(), Errno> {
    rustix::fs::linkat(dir()?, name_of(fd), to, name, AtFlags::SYMLINK_FOLLOW)
}

/// Sets the permission bits of what `fd` (often `O_PATH`) names.
///
/// # Errors
/// Those of chmod(2).
pub fn chmod(fd: BorrowedFd<'_>, mode: Mode) -> Result<(), Errno> {
    rustix::fs::chmodat(dir()?, name_of(fd), mode, AtFlags::empty())
}
