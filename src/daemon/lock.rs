//! One upper, one daemon: an exclusive flock(2) on the upper's root and on the workdir, held for the life of the process.
//!
//! The kernel gives it back whatever way the process ends, so nothing is ever left to clean up.

use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::daemon::resolve::{Checked, Place, Resolved, Role, describe};

/// How long to wait for the daemon of a union that was unmounted a moment ago.
const PATIENCE: Duration = Duration::from_millis(1200);

/// Takes the locks; the union is alone on its upper and its workdir until they are dropped.
///
/// # Errors
/// A line, if another union has one of them or the directory cannot be read.
pub(crate) fn lock_all(resolved: &Resolved) -> Checked<Vec<OwnedFd>> {
    let upper = resolved.branches.iter().find(|branch| branch.writable);
    let Some(upper) = upper else { return Ok(Vec::new()) };
    let mut locks = Vec::new();
    locks.extend(lock(Role::Upper, &upper.place)?);
    if let Some(workdir) = &resolved.workdir {
        locks.extend(lock(Role::Workdir, workdir)?);
    }
    Ok(locks)
}

/// `None` where the filesystem knows no locks: logged, because then nobody guards the directory.
fn lock(role: Role, place: &Place) -> Checked<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(&place.fd, ".", flags, Mode::empty())
        .map_err(|errno| format!("cannot open {role} {:?} for its lock: {}", place.label, describe(errno)))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(fd)),
            Err(Errno::AGAIN) if Instant::now() < deadline => sleep(Duration::from_millis(20)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                return Err(format!(
                    "{role} {:?} is in use by another union: unmount that one, or take another directory",
                    place.label
                ));
            }
            // NFS wants a descriptor open for writing and says EBADF.
            Err(errno @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::BADF)) => {
                log::warn!(
                    "{role} {:?} cannot be locked ({}): make sure that no second union uses it",
                    place.label,
                    describe(errno)
                );
                return Ok(None);
            }
            Err(errno) => return Err(format!("cannot lock {role} {:?}: {}", place.label, describe(errno))),
        }
    }
}
