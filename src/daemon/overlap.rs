//! How the directories of a union lie to each other: which combinations are refused, what the union shows empty, which
//! branches must be reached through a clone of their mount.
//!
//! Decided by walking `..` up from each directory and comparing (device, inode), so that no spelling of a path, no
//! symlink and no bind mount of an ancestor can hide a relation. Changes nothing.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;

use crate::daemon::resolve::{Branch, Checked, Id, Place, Resolved, describe};

/// What came out.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Overlaps {
    /// Directories that the union shows empty.
    pub(crate) covered: Vec<Id>,
    /// Branches (by place in the stack) that must be cloned, each with the reason for a message.
    pub(crate) to_clone: Vec<(usize, String)>,
}

/// Deeper than any path can be: PATH_MAX / 2.
const DEEPEST: usize = 2048;

/// Checks the directories against each other; `mountpoint` is `None` for an already mounted /dev/fuse.
///
/// # Errors
/// A line that quotes the offender.
pub(crate) fn check(resolved: &Resolved, mountpoint: Option<&Place>) -> Checked<Overlaps> {
    let branches = &resolved.branches;
    refuse_twice(branches)?;
    let above = branches.iter().map(|branch| ancestors(&branch.place)).collect::<Checked<Vec<_>>>()?;
    let mut found = Overlaps::default();
    for (inner, branch) in branches.iter().enumerate() {
        for (outer, around) in branches.iter().enumerate() {
            if above[inner].contains(&around.place.id) {
                if around.writable {
                    return Err(format!(
                        "branch {:?} is inside the writable branch {:?}: a change of the one would change the other; \
                         take a writable branch elsewhere",
                        branch.place.label, around.place.label
                    ));
                }
                cover(&mut found, branch.place.id);
                need(&mut found, outer, format!("branch {:?} is inside it", branch.place.label));
            }
        }
    }
    if let Some(upper) = branches.iter().find(|branch| branch.writable) {
        refuse_read_only(&upper.place)?;
        if let Some(workdir) = &resolved.workdir {
            check_workdir(workdir, &upper.place)?;
        }
    }
    if let Some(workdir) = &resolved.workdir {
        let over = ancestors(workdir)?;
        for (index, branch) in branches.iter().enumerate() {
            if workdir.id == branch.place.id {
                return Err(format!(
                    "workdir {:?} is branch {:?} itself: give it a directory of its own",
                    workdir.label, branch.place.label
                ));
            }
            if over.contains(&branch.place.id) {
                cover(&mut found, workdir.id);
                if !branch.writable {
                    need(&mut found, index, format!("workdir {:?} is inside it", workdir.label));
                }
            }
        }
    }
    if let Some(mountpoint) = mountpoint {
        relate_mountpoint(&mut found, branches, &above, mountpoint)?;
    }
    Ok(found)
}

/// The union may lie over a branch, in one, or around one, as long as the branch is reached past it.
fn relate_mountpoint(found: &mut Overlaps, branches: &[Branch], above: &[Vec<Id>], mountpoint: &Place) -> Checked<()> {
    let over = ancestors(mountpoint)?;
    let mut is_branch = false;
    for (index, branch) in branches.iter().enumerate() {
        if branch.place.id == mountpoint.id {
            is_branch = true;
            need(found, index, "the union would be mounted over it".into());
        } else if over.contains(&branch.place.id) {
            need(found, index, format!("the mountpoint {:?} is inside it", mountpoint.label));
        } else if above[index].contains(&mountpoint.id) {
            need(found, index, format!("it is inside the mountpoint {:?}", mountpoint.label));
        }
    }
    if !is_branch {
        cover(found, mountpoint.id);
    }
    Ok(())
}

fn cover(found: &mut Overlaps, id: Id) {
    if !found.covered.contains(&id) {
        found.covered.push(id);
    }
}

fn need(found: &mut Overlaps, index: usize, reason: String) {
    if !found.to_clone.iter().any(|(known, _)| *known == index) {
        found.to_clone.push((index, reason));
    }
}

fn refuse_twice(branches: &[Branch]) -> Checked<()> {
    for (index, branch) in branches.iter().enumerate() {
        if let Some(other) = branches[..index].iter().find(|other| other.place.id == branch.place.id) {
            let (a, b) = (&other.place.label, &branch.place.label);
            return Err(if a == b {
                format!("branch {a:?} is given twice: name it once")
            } else {
                format!("branches {a:?} and {b:?} are the same directory: name it once")
            });
        }
    }
    Ok(())
}

fn refuse_read_only(upper: &Place) -> Checked<()> {
    let stat = rustix::fs::fstatvfs(&upper.fd)
        .map_err(|errno| format!("cannot look at writable branch {:?}: {}", upper.label, describe(errno)))?;
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(format!(
            "writable branch {:?} is on a read-only filesystem: remount that read-write, or take a directory elsewhere",
            upper.label
        ));
    }
    Ok(())
}

fn check_workdir(workdir: &Place, upper: &Place) -> Checked<()> {
    if workdir.id.dev != upper.id.dev {
        return Err(format!(
            "workdir {:?} is on another filesystem than upperdir {:?}: take a directory beside the upperdir",
            workdir.label, upper.label
        ));
    }
    if ancestors(upper)?.contains(&workdir.id) {
        return Err(format!(
            "upperdir {:?} is inside workdir {:?}: take a workdir beside it",
            upper.label, workdir.label
        ));
    }
    Ok(())
}

/// The directories above `place`, nearest first, without itself.
fn ancestors(place: &Place) -> Checked<Vec<Id>> {
    walk_up(place.fd.as_fd(), place.id)
        .map_err(|errno| format!("cannot look at the directories above {:?}: {}", place.label, describe(errno)))
}

fn walk_up(start: BorrowedFd<'_>, id: Id) -> Result<Vec<Id>, Errno> {
    let mut above = Vec::new();
    let (mut here, mut here_id) = (start.try_clone_to_owned().map_err(|_| Errno::MFILE)?, id);
    let mut mount = mount_id(here.as_fd())?;
    while above.len() < DEEPEST {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let parent = match rustix::fs::openat(&here, "..", flags, Mode::empty()) {
            Ok(parent) => parent,
            // An ordinary user need not be able to look all the way up, and what is above is not his to mount then.
            Err(Errno::ACCESS) => return Ok(above),
            Err(errno) => return Err(errno),
        };
        let parent_id = Id::of(parent.as_fd())?;
        let parent_mount = mount_id(parent.as_fd())?;
        if parent_id == here_id && parent_mount == mount {
            return Ok(above);
        }
        above.push(parent_id);
        (here, here_id, mount) = (parent, parent_id, parent_mount);
    }
    Err(Errno::LOOP)
}

/// Which mount a descriptor was reached through.
pub(crate) fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(fd, "", flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}
