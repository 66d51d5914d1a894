//! How the directories of a union lie to each other: which combinations are refused, what the union shows empty, which
//! branches must be reached through a clone of their mount.
//!
//! Decided by what the directories are, never by how a path is spelled. Changes nothing.

use rustix::fs::StatVfsMountFlags;

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

/// Checks the directories against each other; `mountpoint` is `None` for an already mounted /dev/fuse.
///
/// # Errors
/// A line that quotes the offender.
pub(crate) fn check(resolved: &Resolved, mountpoint: Option<&Place>, table: &MountTable) -> Checked<Overlaps> {
    let branches = &resolved.branches;
    refuse_twice(branches)?;
    let lineages = branches.iter().map(|branch| Lineage::of(&branch.place, table)).collect::<Checked<Vec<_>>>()?;
    let mut found = Overlaps::default();
    relate_branches(&mut found, branches, &lineages)?;
    if let Some(upper) = branches.iter().find(|branch| branch.writable) {
        refuse_read_only(&upper.place)?;
    }
    if let Some(workdir) = &resolved.workdir {
        relate_workdir(&mut found, branches, &lineages, workdir, &Lineage::of(workdir, table)?)?;
    }
    if let Some(mountpoint) = mountpoint {
        relate_mountpoint(&mut found, branches, &lineages, mountpoint, &Lineage::of(mountpoint, table)?);
    }
    Ok(found)
}

/// A branch may lie in a lower, where the union shows it empty; not in the upper.
fn relate_branches(found: &mut Overlaps, branches: &[Branch], lineages: &[Lineage]) -> Checked<()> {
    for (branch, lineage) in branches.iter().zip(lineages) {
        for (index, (around, outer)) in branches.iter().zip(lineages).enumerate() {
            if !lineage.is_in(outer) {
                continue;
            }
            if around.writable {
                return Err(format!(
                    "branch {:?} is inside the writable branch {:?}: a change of the one would change the other; take \
                     a writable branch elsewhere",
                    branch.place.label, around.place.label
                ));
            }
            cover(found, branch.place.id);
            need(found, index, format!("branch {:?} is inside it", branch.place.label));
        }
    }
    Ok(())
}

/// The workdir is a directory of its own beside the upper; in a branch it is shown empty.
fn relate_workdir(
    found: &mut Overlaps,
    branches: &[Branch],
    lineages: &[Lineage],
    workdir: &Place,
    lineage: &Lineage,
) -> Checked<()> {
    for (index, (branch, outer)) in branches.iter().zip(lineages).enumerate() {
        let label = &branch.place.label;
        if workdir.id == branch.place.id {
            return Err(format!(
                "workdir {:?} is branch {label:?} itself: give it a directory of its own",
                workdir.label
            ));
        }
        if branch.writable && workdir.id.dev != branch.place.id.dev {
            return Err(format!(
                "workdir {:?} is on another filesystem than upperdir {label:?}: take a directory beside the upperdir",
                workdir.label
            ));
        }
        if branch.writable && outer.is_in(lineage) {
            return Err(format!("upperdir {label:?} is inside workdir {:?}: take a workdir beside it", workdir.label));
        }
        if lineage.is_in(outer) {
            cover(found, workdir.id);
            if !branch.writable {
                need(found, index, format!("workdir {:?} is inside it", workdir.label));
            }
        }
    }
    Ok(())
}

/// The union may lie over a branch, in one, or around one, as long as the branch is reached past it.
fn relate_mountpoint(
    found: &mut Overlaps,
    branches: &[Branch],
    lineages: &[Lineage],
    mountpoint: &Place,
    lineage: &Lineage,
) {
    let mut is_branch = false;
    for (index, (branch, outer)) in branches.iter().zip(lineages).enumerate() {
        if branch.place.id == mountpoint.id {
            is_branch = true;
            need(found, index, "the union would be mounted over it".into());
        } else if lineage.is_in(outer) {
            need(found, index, format!("the mountpoint {:?} is inside it", mountpoint.label));
        } else if outer.is_in(lineage) {
            need(found, index, format!("it is inside the mountpoint {:?}", mountpoint.label));
        }
    }
    if !is_branch {
        cover(found, mountpoint.id);
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
