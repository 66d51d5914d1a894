//! A lower branch on FUSE whose server has ended, and which is mounted anew: what is open of it is opened again.
//!
//! Invariant: a branch comes back as the directory that it was, by its inode number, and its objects keep the device number by
//! which they are known. The upper never comes back: with its server its lock was lost, and another daemon may have had it.
//!
//! Not here: where the new mount is found (`daemon::door`).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags};

use crate::union::branch::at::device_moved;
use crate::union::engine::Union;
use crate::union::error::{Errno, Result};
use crate::union::stack::is_fuse;
use crate::union::types::BranchId;

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
        let readable = rustix::fs::openat(root, c".", flags, Mode::empty())?;
        device_moved(found.st_dev, dev);
        known.root.replace(Arc::new(readable));
        self.close_all(branch);
        Ok(())
    }

    /// Lets whatever is open of `branch` be opened again at its next use.
    pub fn close_all(&self, branch: BranchId) {
        self.fds.close(branch);
        for node in self.table.all() {
            if node.body.read().branch == branch {
                node.epoch.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}
