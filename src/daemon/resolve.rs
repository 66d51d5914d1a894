//! From the paths of a request to opened directories: each exists, is a directory, and is called by its typed name.
//!
//! Branches are looked up below `chroot=` without a way out of it. Whether the directories go together is left to
//! `overlap`; nothing here changes anything.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::daemon::request::MountRequest;

/// What start-up steps return: the error is a whole line, without the program's name.
pub(crate) type Checked<T> = Result<T, String>;

/// An object of a filesystem by device and inode number, as st_dev and st_ino.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

impl Id {
    /// Which object a descriptor refers to.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(Self { dev: stat.st_dev, ino: stat.st_ino })
    }
}

/// An opened directory.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its path as typed.
    pub(crate) label: String,
    /// O_PATH|O_DIRECTORY.
    pub(crate) fd: OwnedFd,
    /// Which directory it is.
    pub(crate) id: Id,
}

/// What a directory is wanted for, as a message calls it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    Branch,
    Upper,
    Workdir,
    Chroot,
    Mountpoint,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Branch => "branch",
            Self::Upper => "writable branch",
            Self::Workdir => "workdir",
            Self::Chroot => "chroot directory",
            Self::Mountpoint => "mountpoint",
        })
    }
}

/// One branch.
#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) place: Place,
    pub(crate) writable: bool,
    pub(crate) oci_whiteouts: bool,
}

/// Everything a request names but the mountpoint, opened.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Top first.
    pub(crate) branches: Vec<Branch>,
    pub(crate) workdir: Option<Place>,
    pub(crate) chroot: Option<Place>,
}

/// Opens what the request names.
///
/// # Errors
/// A line that quotes the first path that cannot be used.
pub(crate) fn resolve(request: &MountRequest) -> Checked<Resolved> {
    if request.branches.is_empty() {
        return Err("no branch given: name at least one directory, as in /lower=RO:/upper=RW".into());
    }
    let chroot = request.chroot.as_deref().map(|path| open(Role::Chroot, path, None)).transpose()?;
    let mut branches = Vec::with_capacity(request.branches.len());
    for arg in &request.branches {
        let role = if arg.writable { Role::Upper } else { Role::Branch };
        let place = open(role, &arg.path, chroot.as_ref())?;
        branches.push(Branch { place, writable: arg.writable, oci_whiteouts: arg.oci_whiteouts });
    }
    let workdir = request.workdir.as_deref().map(|path| open(Role::Workdir, path, chroot.as_ref())).transpose()?;
    Ok(Resolved { branches, workdir, chroot })
}

/// Opens one directory, below `root` if that is given.
pub(crate) fn open(role: Role, path: &Path, root: Option<&Place>) -> Checked<Place> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match root {
        None => rustix::fs::openat(CWD, path, flags, Mode::empty()),
        Some(root) => open_in_root(root.fd.as_fd(), path, flags),
    };
    let found = opened.and_then(|fd| Ok((Id::of(fd.as_fd())?, fd)));
    let (id, fd) = found.map_err(|errno| refusal(role, path, root, errno))?;
    Ok(Place { label: path.display().to_string(), fd, id })
}

/// Looks `path` up as if `root` were `/`, so that a symlink or `..` inside cannot lead out.
fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    // EAGAIN: somebody renamed a directory on the way, and the kernel could not be sure about a `..`. See openat2(2).
    for _ in 0..64 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// The line for a directory that cannot be opened.
pub(crate) fn refusal(role: Role, path: &Path, root: Option<&Place>, errno: Errno) -> String {
    let below = root.map(|root| format!(" (below chroot={:?})", root.label)).unwrap_or_default();
    match errno {
        Errno::NOENT => format!("{role} {path:?}{below} does not exist: create it, or correct the path"),
        Errno::NOTDIR => format!("{role} {path:?}{below} is not a directory: name a directory"),
        Errno::ACCESS => format!(
            "no permission to enter {role} {path:?}{below}: run as a user who may, or change the directory's permissions"
        ),
        Errno::NOTCONN => {
            format!(
                "{role} {path:?}{below}: the filesystem there does not answer (its daemon is gone, or its servers are): mount it anew, or start them"
            )
        }
        Errno::NOSYS => format!("cannot open {role} {path:?}{below}: chroot= needs Linux 5.6 or newer (openat2)"),
        errno => format!("cannot open {role} {path:?}{below}: {}", describe(errno)),
    }
}

/// An errno in words, with its name's number, as strerror(3).
pub(crate) fn describe(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    if errno == Errno::MFILE { text + ": raise max_files=, or leave it out" } else { text }
}
