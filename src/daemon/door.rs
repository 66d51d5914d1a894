//! The way to a lower branch on FUSE that is mounted anew, after its server has ended (Gluster's client, sshfs): the directory
//! above its mount, opened at the start, and the names from there.
//!
//! No path is opened: the names are walked from that directory, through no symlink. Where the daemon's namespace has lost the
//! machine's mounts (a customer's, after pivot_root and umount) the new mount is not found there, and the branch stays away.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::daemon::clone::clone_lower;
use crate::daemon::lineage::{mount_id, path_of};
use crate::daemon::resolve::{Id, Resolved, describe};
use crate::fuse::Current;
use crate::union::Union;
use crate::union::branch::at::was_cut;
use crate::union::stack::is_fuse;
use crate::union::types::BranchId;

/// How long between two looks whether a branch has gone, or come again.
const PERIOD: Duration = Duration::from_secs(1);

/// The way to one branch.
pub(crate) struct Door {
    branch: BranchId,
    label: String,
    above: OwnedFd,
    below: PathBuf,
    /// The device that the branch is now.
    device: u64,
    /// It has come again: what others have opened of it at that moment may still lead to where nobody is.
    again: bool,
}

/// The doors of the lowers that can go away. To be called before their mounts are cloned.
pub(crate) fn find_all(resolved: &Resolved) -> Vec<Door> {
    let mut doors = Vec::new();
    for (index, branch) in resolved.branches.iter().enumerate() {
        let fuse = is_fuse(branch.place.fd.as_fd()).unwrap_or(false);
        if branch.writable || !fuse {
            continue;
        }
        match above(&branch.place.fd) {
            Ok(Some((above, below))) => {
                let (label, device) = (branch.place.label.clone(), branch.place.id.dev);
                let Ok(index) = u16::try_from(index) else { continue };
                doors.push(Door { branch: BranchId(index), label, above, below, device, again: false });
            }
            Ok(None) => {}
            Err(errno) => log::debug!("{:?} cannot be found again: {}", branch.place.label, describe(errno)),
        }
    }
    doors
}

/// The directory above the mount that `dir` lies on, and the names from there; `None` if nothing is above.
fn above(dir: &OwnedFd) -> Result<Option<(OwnedFd, PathBuf)>, Errno> {
    let mount = mount_id(dir.as_fd())?;
    let path = path_of(dir.as_fd())?;
    let mut here = dir.try_clone().map_err(|_| Errno::MFILE)?;
    for up in path.ancestors().skip(1) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(&here, c"..", flags, Mode::empty())?;
        if mount_id(parent.as_fd())? != mount {
            return Ok(path.strip_prefix(up).ok().map(|below| (parent, below.to_owned())));
        }
        here = parent;
    }
    Ok(None)
}

impl Door {
    /// What stands in the branch's place now, if that is another filesystem than before.
    fn open(&self) -> Result<Option<(OwnedFd, u64)>, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let found = rustix::fs::openat2(&self.above, &self.below, flags, Mode::empty(), resolve)?;
        let device = Id::of(found.as_fd())?.dev;
        if device == self.device {
            return Ok(None);
        }
        match clone_lower(&found) {
            Ok(clone) => Ok(Some((clone, device))),
            // As at the start: without the privilege the plain descriptor serves.
            Err(Errno::PERM) => Ok(Some((found, device))),
            Err(errno) => Err(errno),
        }
    }

    /// Looks after the branch; returns whether it is away still.
    fn look(&mut self, union: &Union) -> bool {
        if !union.is_cut(self.branch) {
            if self.again {
                union.close_all(self.branch);
            }
            return false;
        }
        let found = self.open().and_then(|found| {
            let Some((root, device)) = found else { return Ok(None) };
            union.come_back(self.branch, &root).map(|()| Some(device))
        });
        match found {
            Ok(Some(device)) => {
                log::warn!("branch {:?} was mounted anew, and is served again", self.label);
                (self.device, self.again) = (device, true);
                false
            }
            Ok(None) => true,
            Err(errno) => {
                log::debug!("branch {:?} has not come again: {}", self.label, describe(errno));
                true
            }
        }
    }
}

/// Looks after the branches on a thread of its own, as long as the process lives: only when one has refused to answer.
///
/// # Errors
/// As thread creation.
pub(crate) fn watch(mut doors: Vec<Door>, current: Arc<Current>) -> std::io::Result<()> {
    if doors.is_empty() {
        return Ok(());
    }
    let watch = move || {
        let mut away = false;
        loop {
            sleep(PERIOD);
            if was_cut() || away {
                // Each of them, whatever the others are.
                away = doors.iter_mut().fold(false, |away, door| current.with(|union| door.look(union)) | away);
            }
        }
    };
    std::thread::Builder::new().name("cowfs-doors".into()).spawn(watch).map(drop)
}
