//! Branches by a way of their own: a private, non-recursive clone of each branch's mount, read-only for a lower.
//!
//! What the union is mounted over, or other mounts inside a branch, cannot be reached through the clone, and a lower
//! cannot be changed through it, whatever the engine does. Where the kernel permits no clone the plain descriptor
//! serves, and directories that lie inside each other are refused.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::daemon::lineage::{mount_id, path_of};
use crate::daemon::overlap::Overlaps;
use crate::daemon::request::MountFlags;
use crate::daemon::resolve::{Checked, Id, Place, Resolved, describe};
use crate::sys::mount::{Attributes, set_attributes};

/// Replaces the descriptors in `resolved` by such of clones.
///
/// Reading through the upper's leaves no access times where `flags` say so.
///
/// # Errors
/// A line, if a branch that must be cloned (`overlaps.to_clone`) could not be.
pub(crate) fn clone_all(resolved: &mut Resolved, overlaps: &Overlaps, flags: &MountFlags) -> Checked<()> {
    let mut failed = Vec::new();
    // Who reads is the daemon, or the kernel in its stead: the union's own mount does not keep them from it.
    let quiet = Attributes { no_atime: flags.noatime, no_dir_atime: flags.nodiratime, ..Attributes::default() };
    let mut with_workdir = resolved.workdir.as_mut();
    for (index, branch) in resolved.branches.iter_mut().enumerate() {
        let cloned = match (branch.writable, with_workdir.take()) {
            (true, Some(workdir)) => clone_together(&mut branch.place, workdir, quiet),
            (_, unused) => {
                with_workdir = unused;
                clone_one(&mut branch.place, if branch.writable { quiet } else { LOWER })
            }
        };
        if let Err(errno) = cloned {
            log::debug!("cannot clone the mount of {:?}: {}", branch.place.label, describe(errno));
            failed.push((index, errno));
        }
    }
    for (index, errno) in failed {
        let label = &resolved.branches[index].place.label;
        overlaps.refuse_without_clone(index, label, errno)?;
    }
    Ok(())
}

/// Puts a clone in the place of a lower that was opened by its path.
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2); `ESTALE` if something else lies there by now. Then it stays as it is.
pub(crate) fn clone_place(lower: &mut Place) -> Result<(), Errno> {
    clone_one(lower, LOWER)
}

/// What nothing can be changed through.
const LOWER: Attributes = Attributes { read_only: true, no_atime: true, no_dir_atime: false, private: false };

/// A clone of the mount of a lower that is opened while the union is served.
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2).
pub(crate) fn clone_lower(root: &OwnedFd) -> Result<OwnedFd, Errno> {
    clone_tree(root, LOWER)
}

fn clone_one(place: &mut Place, wanted: Attributes) -> Result<(), Errno> {
    let tree = clone_tree(&place.fd, wanted)?;
    if Id::of(tree.as_fd())? != place.id {
        return Err(Errno::STALE);
    }
    place.fd = tree;
    Ok(())
}

/// Clones the mount that holds both once: rename(2) and link(2) do not cross mounts, not even of one filesystem.
fn clone_together(upper: &mut Place, workdir: &mut Place, wanted: Attributes) -> Result<(), Errno> {
    let (up, work) = (path_of(upper.fd.as_fd())?, path_of(workdir.fd.as_fd())?);
    let common: PathBuf = up.components().zip(work.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let around = rustix::fs::openat(CWD, &common, flags, Mode::empty())?;
    let mount = mount_id(around.as_fd())?;
    if mount_id(upper.fd.as_fd())? != mount || mount_id(workdir.fd.as_fd())? != mount {
        return Err(Errno::XDEV);
    }
    let tree = clone_tree(&around, wanted)?;
    let inside = |path: &Path, id: Id| {
        let below = path.strip_prefix(&common).map_err(|_| Errno::XDEV)?;
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd = rustix::fs::openat2(&tree, below, flags, Mode::empty(), resolve)?;
        if Id::of(fd.as_fd())? == id { Ok(fd) } else { Err(Errno::STALE) }
    };
    let cloned = (inside(&up, upper.id)?, inside(&work, workdir.id)?);
    (upper.fd, workdir.fd) = cloned;
    Ok(())
}

fn clone_tree(root: &OwnedFd, wanted: Attributes) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(root, "", flags)?;
    let needed = Attributes { private: true, read_only: wanted.read_only, ..Attributes::default() };
    set_attributes(tree.as_fd(), needed)?;
    if (wanted.no_atime || wanted.no_dir_atime)
        && let Err(errno) = set_attributes(tree.as_fd(), wanted)
    {
        // A user namespace may not touch a locked atime setting; a read-only mount writes no atime anyway.
        log::debug!("the atime setting of a branch stays as it is: {}", describe(errno));
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::resolve::{Role, open};

    /// Makes sure that no error of the engine could change a lower.
    #[test]
    fn a_clone_keeps_the_promise() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: cloning a mount needs root");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        for dir in ["lower", "work/up", "work/dir"] {
            std::fs::create_dir_all(scratch.path().join(dir)).unwrap();
        }
        let place = |dir: &str| open(Role::Branch, &scratch.path().join(dir), None).unwrap();
        let create = |dir: &OwnedFd, name: &str| {
            rustix::fs::openat(dir, name, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        };
        let mut lower = place("lower");
        create(&lower.fd, "before").unwrap();
        clone_one(&mut lower, Attributes { read_only: true, no_atime: true, ..Attributes::default() }).unwrap();
        assert_eq!(create(&lower.fd, "after").unwrap_err(), Errno::ROFS);
        assert_eq!(create(&lower.fd, "before").unwrap_err(), Errno::ROFS);
        let parent = rustix::fs::openat(&lower.fd, "..", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(Id::of(parent.as_fd()).unwrap(), lower.id, "nothing lies above a clone");

        let (mut up, mut work) = (place("work/up"), place("work/dir"));
        clone_together(&mut up, &mut work, Attributes::default()).unwrap();
        create(&work.fd, "file").unwrap();
        rustix::fs::renameat(&work.fd, "file", &up.fd, "file").unwrap();
        rustix::fs::linkat(&up.fd, "file", &work.fd, "link", rustix::fs::AtFlags::empty()).unwrap();
    }
}
