//! How the directories of a union lie to each other: which combinations are refused, what the union shows empty, which
//! branches must be reached through a clone of their mount.
//!
//! Decided by what the directories are, never by how a path is spelled. Changes nothing.

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;

use crate::daemon::lineage::Lineage;
use crate::daemon::resolve::{Branch, Checked, Id, Place, Resolved, describe};
use crate::daemon::table::MountTable;

/// What came out.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Overlaps {
    /// Directories that the union shows empty.
    pub(crate) covered: Vec<Id>,
    /// Branches (by place in the stack) that must be cloned, each with the reason for a message.
    pub(crate) to_clone: Vec<(usize, String)>,
}

impl Overlaps {
    /// # Errors
    /// A line, if the branch at `index` cannot be reached past what lies in it without the clone that failed by `errno`.
    pub(crate) fn refuse_without_clone(&self, index: usize, label: &str, errno: Errno) -> Checked<()> {
        let Some((_, reason)) = self.to_clone.iter().find(|(needed, _)| *needed == index) else { return Ok(()) };
        Err(format!(
            "branch {label:?}: {reason}, which needs a private clone of its mount, and that failed: {} (run as root, or \
             take directories that do not lie inside each other)",
            describe(errno)
        ))
    }
}

/// A directory, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Its path as typed.
    pub(crate) label: String,
    pub(crate) lineage: Lineage,
    /// It is the upper.
    pub(crate) writable: bool,
}

impl Standing {
    /// Looks at `place`, which `table` has the mount of.
    ///
    /// # Errors
    /// A line that quotes it.
    pub(crate) fn of(place: &Place, writable: bool, table: &MountTable) -> Checked<Self> {
        Ok(Self { label: place.label.clone(), lineage: Lineage::of(place, table)?, writable })
    }
}

/// The directories of a union that stay as long as it is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Ground {
    pub(crate) upper: Option<Standing>,
    pub(crate) workdir: Option<Standing>,
    /// `None` for an already mounted /dev/fuse.
    pub(crate) mountpoint: Option<Standing>,
}

/// Checks the directories against each other; `mountpoint` is `None` for an already mounted /dev/fuse.
///
/// # Errors
/// A line that quotes the offender.
pub(crate) fn check(
    resolved: &Resolved,
    mountpoint: Option<&Place>,
    table: &MountTable,
) -> Checked<(Overlaps, Ground)> {
    refuse_twice(&resolved.branches)?;
    let branches = standings(&resolved.branches, table)?;
    let stands = |place: Option<&Place>| place.map(|place| Standing::of(place, false, table)).transpose();
    let ground = Ground {
        upper: branches.iter().find(|branch| branch.writable).cloned(),
        workdir: stands(resolved.workdir.as_ref())?,
        mountpoint: stands(mountpoint)?,
    };
    let found = relate(&branches, &ground)?;
    if let Some(upper) = resolved.branches.iter().find(|branch| branch.writable) {
        refuse_read_only(&upper.place)?;
    }
    Ok((found, ground))
}

/// Where branches stand.
///
/// # Errors
/// A line that quotes the one that cannot be looked at.
pub(crate) fn standings(branches: &[Branch], table: &MountTable) -> Checked<Vec<Standing>> {
    branches.iter().map(|branch| Standing::of(&branch.place, branch.writable, table)).collect()
}

/// How the branches of a union on this ground lie to each other and to it.
///
/// # Errors
/// A line that quotes the offender.
pub(crate) fn relate(branches: &[Standing], ground: &Ground) -> Checked<Overlaps> {
    let mut found = Overlaps::default();
    relate_branches(&mut found, branches)?;
    if let Some(workdir) = &ground.workdir {
        relate_workdir(&mut found, branches, workdir)?;
    }
    if let Some(mountpoint) = &ground.mountpoint {
        relate_mountpoint(&mut found, branches, mountpoint);
    }
    Ok(found)
}

/// A branch may lie in a lower, where the union shows it empty; not in the upper.
fn relate_branches(found: &mut Overlaps, branches: &[Standing]) -> Checked<()> {
    for branch in branches {
        for (index, around) in branches.iter().enumerate() {
            if !branch.lineage.is_in(&around.lineage) {
                continue;
            }
            if around.writable {
                return Err(format!(
                    "branch {:?} is inside the writable branch {:?}: a change of the one would change the other; take \
                     a writable branch elsewhere",
                    branch.label, around.label
                ));
            }
            cover(found, branch.lineage.id);
            need(found, index, format!("branch {:?} is inside it", branch.label));
        }
    }
    Ok(())
}

/// The workdir is a directory of its own beside the upper; in a branch it is shown empty.
fn relate_workdir(found: &mut Overlaps, branches: &[Standing], workdir: &Standing) -> Checked<()> {
    let (lineage, id) = (&workdir.lineage, workdir.lineage.id);
    for (index, branch) in branches.iter().enumerate() {
        let (label, outer) = (&branch.label, &branch.lineage);
        if id == outer.id {
            return Err(format!(
                "workdir {:?} is branch {label:?} itself: give it a directory of its own",
                workdir.label
            ));
        }
        if branch.writable && id.dev != outer.id.dev {
            return Err(format!(
                "workdir {:?} is on another filesystem than upperdir {label:?}: take a directory beside the upperdir",
                workdir.label
            ));
        }
        if branch.writable && outer.is_in(lineage) {
            return Err(format!("upperdir {label:?} is inside workdir {:?}: take a workdir beside it", workdir.label));
        }
        if lineage.is_in(outer) {
            cover(found, id);
            if !branch.writable {
                need(found, index, format!("workdir {:?} is inside it", workdir.label));
            }
        }
    }
    Ok(())
}

/// The union may lie over a branch, in one, or around one, as long as the branch is reached past it.
fn relate_mountpoint(found: &mut Overlaps, branches: &[Standing], mountpoint: &Standing) {
    let (lineage, id) = (&mountpoint.lineage, mountpoint.lineage.id);
    let mut is_branch = false;
    for (index, outer) in branches.iter().map(|branch| &branch.lineage).enumerate() {
        if outer.id == id {
            is_branch = true;
            need(found, index, "the union would be mounted over it".into());
        } else if lineage.is_in(outer) {
            need(found, index, format!("the mountpoint {:?} is inside it", mountpoint.label));
        } else if outer.is_in(lineage) {
            need(found, index, format!("it is inside the mountpoint {:?}", mountpoint.label));
        }
    }
    if !is_branch {
        cover(found, id);
    }
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

/// # Errors
/// A line, if two branches are one directory.
pub(crate) fn refuse_twice(branches: &[Branch]) -> Checked<()> {
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
