//! A lower branch on FUSE whose server has ended, and which is mounted anew: what is open of it is opened again.
//!
//! Invariant: a branch comes back as the directory that it was, by its inode number, and its objects keep the device number by
//! which they are known. A server that numbers its files anew whenever it starts (sshfs, and most that libfuse serves by paths) would
//! make one file of another so: its objects are new ones, and what was open of it stays dead. The upper never comes back: with
//! its server its lock was lost, and another daemon may have had it.
//!
//! Not here: where the new mount is found (`daemon::door`).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::union::branch::At;
use crate::union::branch::at::device_moved;
use crate::union::engine::Union;
use crate::union::error::{Errno, Result};
use crate::union::name::Name;
use crate::union::stack::is_fuse;
use crate::union::types::BranchId;

/// How many of the objects that are known are looked at.
const SAMPLE: usize = 64;

impl Union {
    /// Whether nobody serves the filesystem of `branch`.
    pub fn is_cut(&self, branch: BranchId) -> bool {
        let asked = self.stack.branch(branch).and_then(|branch| branch.root.fd());
        asked.and_then(|root| rustix::fs::fstatfs(&root)).is_err_and(|errno| errno == Errno::NOTCONN)
    }

    /// Goes on with the lower `branch` in `root`, where its filesystem is mounted anew.
    ///
    /// # Errors
    /// `ESTALE` if that is not the directory that it was; those of openat(2) and fstat(2).
    pub fn come_back(&self, branch: BranchId, root: &OwnedFd) -> Result<()> {
        let known = self.stack.branch(branch)?;
        let (dev, ino) = known.root.identity();
        let found = rustix::fs::fstat(root)?;
        let mixed_up = self.stack.branches.iter().any(|other| other.root.identity().0 == found.st_dev);
        if self.stack.is_upper(branch) || found.st_ino != ino || mixed_up || !is_fuse(root.as_fd())? {
            return Err(Errno::STALE);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = Arc::new(rustix::fs::openat(root, c".", flags, Mode::empty())?);
        if !known.renumbered.load(Ordering::Acquire) && !self.has_kept_numbers(branch, &readable) {
            log::warn!(
                "branch {:?}: its files have other numbers than before; what is open of it stays lost",
                known.label
            );
            known.renumbered.store(true, Ordering::Release);
        }
        let dev = if known.renumbered.load(Ordering::Acquire) { found.st_dev } else { dev };
        device_moved(found.st_dev, dev, [known.root.fd()?, readable.clone()])?;
        for mirror in &known.reader.mirrors {
            mirror.reopen(&readable)?;
        }
        known.root.replace(readable);
        self.close_all(branch);
        Ok(())
    }

    /// Whether the objects that are known of `branch` have their numbers still, by a look at some of them below `root`. Others may
    /// have been replaced meanwhile, but not most of them.
    fn has_kept_numbers(&self, branch: BranchId, root: &OwnedFd) -> bool {
        let known = self.table.all().into_iter().filter_map(|node| {
            let body = node.body.read();
            let link = body.links.iter().find(|link| body.branch == branch && link.branch == branch)?;
            let mut path = link.parent.body.read().layer(branch)?.path();
            path.push(link.name.clone());
            Some((path, body.identity.1))
        });
        let now = known.filter_map(|(path, was)| Some(number_of(root, &path).ok()? == was));
        let (same, other): (Vec<bool>, Vec<bool>) = now.take(SAMPLE).partition(|same| *same);
        same.len() >= other.len()
    }

    /// Lets whatever is open of `branch` be opened again at its next use.
    pub fn close_all(&self, branch: BranchId) {
        self.fds.close(branch);
        for node in self.table.all() {
            let body = node.body.read();
            if body.branch == branch || body.data_place().is_some_and(|place| place.dir.branch == branch) {
                node.epoch.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}

/// The inode number of what is found below `root` by these names.
fn number_of(root: &OwnedFd, path: &[Name]) -> Result<u64> {
    let path = path.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/');
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
    Ok(At::stat_fd(&found)?.ino)
}
