//! The calls that change which names a directory of a branch has; each is a step of its own.
//!
//! They take a descriptor of the directory and one name (`*at`), so none can reach outside. Attributes of objects are
//! changed in `at`.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};

use crate::union::branch::at::stat;
use crate::union::error::{Errno, Result, best_effort};
use crate::union::fault::step;
use crate::union::name::Name;
use crate::union::types::Time;

/// Creates and opens a regular file; fails with `EEXIST` if the name is taken. As open(2) with O_CREAT|O_EXCL.
pub fn create(dir: impl AsFd, name: &Name, mode: u32, flags: OFlags) -> Result<OwnedFd> {
    step("create")?;
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::openat(dir, name.as_c_str(), flags, Mode::from_raw_mode(mode))
}

/// An unnamed regular file on the filesystem of `dir`, open for reading and writing. As open(2) with O_TMPFILE.
pub fn unnamed(dir: impl AsFd, mode: u32) -> Result<OwnedFd> {
    step("tmpfile")?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(dir, c".", flags, Mode::from_raw_mode(mode))
}

/// Gives the unnamed file `fd` a name. As linkat(2).
pub fn link_unnamed(fd: BorrowedFd<'_>, dir: impl AsFd, name: &Name) -> Result<()> {
    step("link unnamed")?;
    crate::sys::procfd::link(fd, dir.as_fd(), name.as_c_str())
}

/// Does `act`, and puts the times of `dir` back if it moved them: what a branch keeps for itself is no change that a
/// program should see.
///
/// # Errors
/// Those of statx(2) and of `act`.
pub fn keeping_times<T>(dir: BorrowedFd<'_>, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let look = || stat(dir, c".", AtFlags::empty());
    let was = look()?;
    let done = act();
    if look().is_ok_and(|is| is.mtime != was.mtime) {
        let spec = |time: Time| Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() };
        let times = Timestamps { last_access: spec(was.atime), last_modification: spec(was.mtime) };
        let put_back = || rustix::fs::utimensat(dir, c".", &times, AtFlags::empty());
        best_effort("put back the times of a directory", step("utimens").and_then(|()| put_back()));
    }
    done
}

/// As mkdir(2).
pub fn mkdir(dir: impl AsFd, name: &Name, mode: u32) -> Result<()> {
    step("mkdir")?;
    rustix::fs::mkdirat(dir, name.as_c_str(), Mode::from_raw_mode(mode))
}

/// As mknod(2); `mode` holds type and permissions.
pub fn mknod(dir: impl AsFd, name: &Name, mode: u32, rdev: (u32, u32)) -> Result<()> {
    step("mknod")?;
    let dev = rustix::fs::makedev(rdev.0, rdev.1);
    rustix::fs::mknodat(dir, name.as_c_str(), FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o7777), dev)
}

/// As symlink(2).
pub fn symlink(target: &CStr, dir: impl AsFd, name: &Name) -> Result<()> {
    step("symlink")?;
    rustix::fs::symlinkat(target, dir, name.as_c_str())
}

/// Another name for the object `from_name`. As link(2), following no symlink.
pub fn link(from: impl AsFd, from_name: &Name, to: impl AsFd, to_name: &Name) -> Result<()> {
    step("link")?;
    rustix::fs::linkat(from, from_name.as_c_str(), to, to_name.as_c_str(), AtFlags::empty())
}

/// As unlink(2).
pub fn unlink(dir: impl AsFd, name: &Name) -> Result<()> {
    step("unlink")?;
    rustix::fs::unlinkat(dir, name.as_c_str(), AtFlags::empty())
}

/// As rmdir(2).
pub fn rmdir(dir: impl AsFd, name: &Name) -> Result<()> {
    step("rmdir")?;
    rustix::fs::unlinkat(dir, name.as_c_str(), AtFlags::REMOVEDIR)
}

/// As renameat2(2); without flags by renameat(2), which every filesystem has.
pub fn rename(from: impl AsFd, from_name: &Name, to: impl AsFd, to_name: &Name, flags: RenameFlags) -> Result<()> {
    step("rename")?;
    if flags.is_empty() {
        return rustix::fs::renameat(from, from_name.as_c_str(), to, to_name.as_c_str());
    }
    rustix::fs::renameat_with(from, from_name.as_c_str(), to, to_name.as_c_str(), flags)
}

/// Removes an entry of whatever type, with everything below it. For private directories only: the names are walked
/// without a lock.
///
/// # Errors
/// The first error met; what was removed by then stays removed.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &Name) -> Result<()> {
    match unlink(dir, name) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    // Depth first with an explicit stack: a tenant can nest deeper than a thread's stack is long.
    let mut chain = vec![(open_listing(dir, name)?, name.clone())];
    while let Some((fd, own_name)) = chain.last() {
        match first_entry(fd.as_fd())? {
            Some(child) => match unlink(fd, &child) {
                Ok(()) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    let opened = open_listing(fd.as_fd(), &child)?;
                    chain.push((opened, child));
                }
                Err(errno) => return Err(errno),
            },
            None => {
                let own_name = own_name.clone();
                chain.pop();
                match chain.last() {
                    Some((parent, _)) => rmdir(parent, &own_name)?,
                    None => rmdir(dir, &own_name)?,
                }
            }
        }
    }
    Ok(())
}

fn open_listing(dir: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name.as_c_str(), flags, Mode::empty())
}

/// Some entry of the open directory `fd` but `.` and `..`, read from its start.
fn first_entry(fd: BorrowedFd<'_>) -> Result<Option<Name>> {
    rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(1024);
    let mut entries = rustix::fs::RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            return Name::new(name).map(Some);
        }
    }
    Ok(None)
}
