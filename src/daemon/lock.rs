//! One upper, one daemon: an exclusive flock(2) on the upper's root and on the workdir, held for the life of the process.
//!
//! NFS and FUSE (Gluster) keep locks of directories to themselves, and only tell the server of those of files. So where other
//! machines may have the upper, too, a file in the private area is locked besides. A server that was started anew may have
//! forgotten that lock; `keeper` sees to it.
//!
//! The kernel gives it back whatever way the process ends, so nothing is ever left to clean up. What the kernel's overlayfs
//! uses is not locked in any way that can be asked for; it is recognized where this mount namespace shows it.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::daemon::resolve::{Checked, Id, Place, Resolved, Role, describe};
use crate::daemon::table::{MountLine, MountTable};
use crate::union::branch::change;
use crate::union::name::Name;
use crate::union::stack::is_remote;
use crate::union::stage::{LOCK, PRIVATE, make_dir};

/// How long to wait in any case: for the daemon of a union that was unmounted a moment ago, since umount(2) returns before it
/// has ended.
const PATIENCE: Duration = Duration::from_millis(1200);

/// The locks of a union; it is alone on its upper and its workdir until they are dropped.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    dirs: Vec<OwnedFd>,
    /// The file that is locked for other machines to see.
    pub(crate) file: Option<OwnedFd>,
}

/// Takes the locks. `wait`: how long whoever has them may keep them (`lock_wait=`).
///
/// # Errors
/// A line, if another union has one of them then, or the directory cannot be read.
pub(crate) fn lock_all(resolved: &Resolved, wait: Option<Duration>) -> Checked<Locks> {
    let upper = resolved.branches.iter().find(|branch| branch.writable);
    let Some(upper) = upper else { return Ok(Locks::default()) };
    let workdir = resolved.workdir.as_ref().map(|workdir| (Role::Workdir, workdir));
    let patience = Patience { start: Instant::now(), limit: wait.unwrap_or_default().max(PATIENCE) };
    let mut locks = Locks::default();
    let places: Vec<_> = [(Role::Upper, &upper.place)].into_iter().chain(workdir).collect();
    for &(role, place) in &places {
        locks.dirs.extend(lock_dir(role, place, patience)?);
    }
    // Now, and not before: the wait may have been long.
    let table = MountTable::read_if_any();
    for (role, place) in places {
        if let Some(mountpoint) = overlayfs_on(&table, place) {
            return Err(format!("{role} {:?} is in use by the kernel's overlayfs on {mountpoint:?}", place.label));
        }
    }
    let refused = |errno| format!("cannot lock {} {:?}: {}", Role::Upper, upper.place.label, describe(errno));
    if is_remote(upper.place.fd.as_fd()).map_err(refused)? {
        locks.file = lock_file(&upper.place, resolved.workdir.as_ref(), patience)?;
    }
    Ok(locks)
}

/// How long to ask for a lock.
#[derive(Clone, Copy)]
struct Patience {
    start: Instant,
    limit: Duration,
}

fn lock_dir(role: Role, place: &Place, patience: Patience) -> Checked<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(&place.fd, ".", flags, Mode::empty())
        .map_err(|errno| format!("cannot open {role} {:?} for its lock: {}", place.label, describe(errno)))?;
    match take(role, place, fd.as_fd(), patience)? {
        Taken::Ours => Ok(Some(fd)),
        Taken::Unguarded => Ok(None),
        Taken::Gone => Err(format!("{role} {:?} was removed", place.label)),
    }
}

fn lock_file(upper: &Place, workdir: Option<&Place>, patience: Patience) -> Checked<Option<OwnedFd>> {
    let refused = |errno| format!("cannot make the lock of {} {:?}: {}", Role::Upper, upper.label, describe(errno));
    loop {
        let fd = match open_file(upper.fd.as_fd(), workdir.map(|workdir| workdir.fd.as_fd())) {
            Ok((dir, fd)) => {
                // Whoever had it may have removed the file with the rest of what was his.
                let named = || rustix::fs::statat(&dir, LOCK, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_ino);
                match take(Role::Upper, upper, fd.as_fd(), patience)? {
                    Taken::Unguarded => return Ok(None),
                    Taken::Ours if named() == Id::of(fd.as_fd()).map(|id| id.ino) => Some(fd),
                    Taken::Ours | Taken::Gone => None,
                }
            }
            // Another machine has removed it, and this one still knew it.
            Err(Errno::NOENT | Errno::STALE) => None,
            Err(errno) => return Err(refused(errno)),
        };
        match fd {
            Some(fd) => return Ok(Some(fd)),
            None if patience.start.elapsed() > patience.limit => return Err(refused(Errno::BUSY)),
            None => sleep(Duration::from_millis(20)),
        }
    }
}

fn open_file(upper: BorrowedFd<'_>, workdir: Option<BorrowedFd<'_>>) -> Result<(OwnedFd, OwnedFd), Errno> {
    let dir = match workdir {
        Some(workdir) => rustix::io::fcntl_dupfd_cloexec(workdir, 0)?,
        None => {
            let name = Name::new(PRIVATE)?;
            change::keeping_times(upper, || make_dir(upper, &name))?
        }
    };
    // NFS locks for writing only what is open for writing.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&dir, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
    Ok((dir, fd))
}

/// What has become of a try to lock something.
enum Taken {
    /// It is locked.
    Ours,
    /// The filesystem knows no locks: logged, because then nobody guards the directory.
    Unguarded,
    /// It is no more.
    Gone,
}

fn take(role: Role, place: &Place, fd: BorrowedFd<'_>, patience: Patience) -> Checked<Taken> {
    let Patience { start, limit } = patience;
    loop {
        match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Taken::Ours),
            Err(Errno::STALE | Errno::NOENT) => return Ok(Taken::Gone),
            // Asking again and again, because a wait inside flock(2) has no end that one could set.
            Err(Errno::AGAIN) if start.elapsed() < PATIENCE.min(limit) => sleep(Duration::from_millis(20)),
            Err(Errno::AGAIN) if start.elapsed() < limit => sleep(Duration::from_millis(100)),
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
                return Ok(Taken::Unguarded);
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
