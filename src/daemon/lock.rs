//! One upper, one daemon: an exclusive flock(2) on the upper's root, held for the life of the process.
//!
//! The kernel gives it back whatever way the process ends, so nothing is ever left to clean up.

use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::daemon::resolve::{Checked, Place, describe};

/// How long to wait for the daemon of a union that was unmounted a moment ago.
const PATIENCE: Duration = Duration::from_millis(1200);

/// Takes the lock; the union is alone on this upper until the descriptor is dropped. `None` where the filesystem knows
/// no locks: logged, because then nobody guards the upper.
///
/// # Errors
/// A line, if another union has it or the directory cannot be read.
pub(crate) fn lock(upper: &Place) -> Checked<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(&upper.fd, ".", flags, Mode::empty())
        .map_err(|errno| format!("cannot open writable branch {:?} for its lock: {}", upper.label, describe(errno)))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(fd)),
            Err(Errno::AGAIN) if Instant::now() < deadline => sleep(Duration::from_millis(20)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                return Err(format!(
                    "writable branch {:?} is in use by another union: unmount that one, or take another directory",
                    upper.label
                ));
            }
            // NFS wants a descriptor open for writing and says EBADF.
            Err(errno @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::BADF)) => {
                log::warn!(
                    "writable branch {:?} cannot be locked ({}): make sure that no second union uses it",
                    upper.label,
                    describe(errno)
                );
                return Ok(None);
            }
            Err(errno) => return Err(format!("cannot lock writable branch {:?}: {}", upper.label, describe(errno))),
        }
    }
}
