//! One upper, one daemon: an exclusive flock(2) on the upper's root and on the workdir, held for the life of the process.
//!
//! The kernel gives it back whatever way the process ends, so nothing is ever left to clean up. What the kernel's overlayfs
//! uses is not locked in any way that can be asked for; it is recognized where this mount namespace shows it.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::daemon::resolve::{Checked, Id, Place, Resolved, Role, describe};
use crate::daemon::table::{MountLine, MountTable};

/// How long to wait in any case: for the daemon of a union that was unmounted a moment ago, since umount(2) returns before it
/// has ended.
const PATIENCE: Duration = Duration::from_millis(1200);

/// Takes the locks; the union is alone on its upper and its workdir until they are dropped. `wait`: how long whoever has
/// them may keep them (`lock_wait=`).
///
/// # Errors
/// A line, if another union has one of them then, or the directory cannot be read.
pub(crate) fn lock_all(resolved: &Resolved, wait: Option<Duration>) -> Checked<Vec<OwnedFd>> {
    let upper = resolved.branches.iter().find(|branch| branch.writable);
    let Some(upper) = upper else { return Ok(Vec::new()) };
    let workdir = resolved.workdir.as_ref().map(|workdir| (Role::Workdir, workdir));
    let start = Instant::now();
    let mut locks = Vec::new();
    let places: Vec<_> = [(Role::Upper, &upper.place)].into_iter().chain(workdir).collect();
    for &(role, place) in &places {
        locks.extend(lock(role, place, start, wait.unwrap_or_default().max(PATIENCE))?);
    }
    // Now, and not before: the wait may have been long.
    let table = MountTable::read_if_any();
    for (role, place) in places {
        if let Some(mountpoint) = overlayfs_on(&table, place) {
            return Err(format!("{role} {:?} is in use by the kernel's overlayfs on {mountpoint:?}", place.label));
        }
    }
    Ok(locks)
}

/// `None` where the filesystem knows no locks: logged, because then nobody guards the directory.
fn lock(role: Role, place: &Place, start: Instant, patience: Duration) -> Checked<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(&place.fd, ".", flags, Mode::empty())
        .map_err(|errno| format!("cannot open {role} {:?} for its lock: {}", place.label, describe(errno)))?;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(fd)),
            // Asking again and again, because a wait inside flock(2) has no end that one could set.
            Err(Errno::AGAIN) if start.elapsed() < PATIENCE.min(patience) => sleep(Duration::from_millis(20)),
            Err(Errno::AGAIN) if start.elapsed() < patience => sleep(Duration::from_millis(100)),
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

/// Where an overlayfs of this mount namespace is mounted that has `place` for its upper or its workdir.
fn overlayfs_on(table: &MountTable, place: &Place) -> Option<PathBuf> {
    let uses = |line: &MountLine<'_>| {
        let dirs = [&b"upperdir"[..], b"workdir"].into_iter().filter_map(|key| line.value(key));
        // Given by mount(8) it is shown with the backslashes that it was typed with.
        dirs.into_iter().any(|dir| leads_to(&dir, place) || leads_to(&without_backslashes(&dir), place))
    };
    table.lines().filter(|line| line.kind() == Some(b"overlay")).find(uses)?.point()
}

/// Only what the kernel has in memory is looked at, where a directory in use is: the path may lead over a server that does
/// not answer.
fn leads_to(path: &Path, place: &Place) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED)
        .and_then(|found| Id::of(found.as_fd()))
        .is_ok_and(|id| id == place.id)
}

fn without_backslashes(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        plain.extend(if byte == b'\\' { rest.next().copied() } else { Some(byte) });
    }
    OsString::from_vec(plain).into()
}
