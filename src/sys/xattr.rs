//! Extended attributes by directory and name that follow no symlink: getxattrat(2) and kin, Linux 6.13.
//!
//! Older kernels get the same through a descriptor of the object, which works for regular files and directories; on
//! other objects they answer `EOPNOTSUPP` there.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// Whether the kernel turned out to lack the calls; asked once, by the first call.
static MISSING: AtomicBool = AtomicBool::new(false);

/// `struct xattr_args` of the kernel.
#[repr(C)]
struct Args {
    value: u64,
    size: u32,
    flags: u32,
}

/// `None` if the object has to be reached through a descriptor of its own: the calls are missing, or `O_PATH`
/// descriptors are refused.
fn by_name(result: libc::c_long, flags: AtFlags) -> Option<Result<usize, Errno>> {
    match super::check(result) {
        Err(Errno::BADF) if flags.contains(AtFlags::EMPTY_PATH) => None,
        Err(Errno::NOSYS) => {
            MISSING.store(true, Ordering::Relaxed);
            None
        }
        other => Some(other),
    }
}

/// A call of getxattrat(2) or setxattrat(2), with the value that it fills or reads: made by the constructors only, so the
/// pointer, the size and the call always belong together.
struct Call<'a> {
    number: libc::c_long,
    args: Args,
    value: PhantomData<&'a mut [u8]>,
}

impl<'a> Call<'a> {
    fn get(buffer: &'a mut [u8]) -> Self {
        let args = Args { value: buffer.as_mut_ptr() as u64, size: buffer.len() as u32, flags: 0 };
        Self { number: SYS_GETXATTRAT, args, value: PhantomData }
    }

    fn set(value: &'a [u8], how: u32) -> Self {
        let args = Args { value: value.as_ptr() as u64, size: value.len() as u32, flags: how };
        Self { number: SYS_SETXATTRAT, args, value: PhantomData }
    }

    /// `None` as `by_name`.
    fn on(&self, (dir, name, flags): (BorrowedFd<'_>, &CStr, AtFlags), key: &CStr) -> Option<Result<usize, Errno>> {
        if MISSING.load(Ordering::Relaxed) {
            return None;
        }
        let (fd, args) = (dir.as_raw_fd(), &raw const self.args);
        // SAFETY: name and key are C strings; the value is borrowed, as long as `args` says, and writable for
        // getxattrat(2) (see the constructors); the kernel keeps none of them.
        let done = unsafe {
            libc::syscall(self.number, fd, name.as_ptr(), flags.bits(), key.as_ptr(), args, size_of::<Args>())
        };
        by_name(done, flags)
    }
}

/// A descriptor that f*xattr(2) takes, for kernels without the calls by name.
fn open(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<OwnedFd, Errno> {
    let how = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if flags.contains(AtFlags::EMPTY_PATH) {
        return super::procfd::reopen(dir, how.difference(OFlags::NOFOLLOW));
    }
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    if !kind.is_file() && !kind.is_dir() {
        return Err(Errno::OPNOTSUPP);
    }
    rustix::fs::openat(dir, name, how, Mode::empty())
}

/// Reads attribute `key` of `name` in `dir` into `buffer`; returns its size. An empty buffer asks for the size only.
///
/// # Errors
/// Those of getxattr(2): `ENODATA`, `ERANGE` (buffer too small), `EOPNOTSUPP`.
pub fn get(dir: BorrowedFd<'_>, name: &CStr, key: &CStr, buffer: &mut [u8], flags: AtFlags) -> Result<usize, Errno> {
    if let Some(done) = Call::get(buffer).on((dir, name, flags), key) {
        return done;
    }
    rustix::fs::fgetxattr(open(dir, name, flags)?, key, buffer)
}

/// Sets attribute `key` of `name` in `dir`; `how` is 0, XATTR_CREATE or XATTR_REPLACE.
///
/// # Errors
/// Those of setxattr(2).
pub fn set(dir: BorrowedFd<'_>, name: &CStr, key: &CStr, value: &[u8], how: u32, flags: AtFlags) -> Result<(), Errno> {
    if let Some(done) = Call::set(value, how).on((dir, name, flags), key) {
        return done.map(drop);
    }
    rustix::fs::fsetxattr(open(dir, name, flags)?, key, value, rustix::fs::XattrFlags::from_bits_retain(how))
}

/// Lists the attribute names of `name` in `dir`, each with a NUL behind it; an empty buffer asks for the size only.
///
/// # Errors
/// Those of listxattr(2).
pub fn list(dir: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8], flags: AtFlags) -> Result<usize, Errno> {
    if !MISSING.load(Ordering::Relaxed) {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to the buffer.
        let done = by_name(
            unsafe {
                libc::syscall(
                    SYS_LISTXATTRAT,
                    dir.as_raw_fd(),
                    name.as_ptr(),
                    flags.bits(),
                    buffer.as_mut_ptr().cast::<c_void>(),
                    buffer.len(),
                )
            },
            flags,
        );
        if let Some(done) = done {
            return done;
        }
    }
    rustix::fs::flistxattr(open(dir, name, flags)?, buffer)
}

/// Removes attribute `key` of `name` in `dir`.
///
/// # Errors
/// Those of removexattr(2): `ENODATA`.
pub fn remove(dir: BorrowedFd<'_>, name: &CStr, key: &CStr, flags: AtFlags) -> Result<(), Errno> {
    if !MISSING.load(Ordering::Relaxed) {
        // SAFETY: all pointers are valid for the call; the kernel only reads them.
        let done = by_name(
            unsafe { libc::syscall(SYS_REMOVEXATTRAT, dir.as_raw_fd(), name.as_ptr(), flags.bits(), key.as_ptr()) },
            flags,
        );
        if let Some(done) = done {
            return done.map(drop);
        }
    }
    rustix::fs::fremovexattr(open(dir, name, flags)?, key)
}
