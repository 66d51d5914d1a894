//! The only `unsafe` of the crate: system calls that rustix lacks, each behind a safe function.
#![allow(unsafe_code)]

pub mod creds;
pub mod fanotify;
pub mod handle;
pub mod ioctl;
pub mod mode;
pub mod mount;
pub mod peer;
pub mod process;
pub mod procfd;
pub mod sched;
pub mod writeback;
pub mod xattr;

use rustix::io::Errno;

/// Turns the result of a libc call into a value or its errno.
fn check(result: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| {
        let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Errno::from_raw_os_error(code)
    })
}
