//! The tree of marks that unionfs-fuse keeps at a branch's root: `.unionfs/PATH/NAME_HIDDEN~`.
//!
//! The path is mirrored in full, so a mark can exist for a directory that the branch does not have.
//! Walked anew each time: a cached descriptor would follow a renamed directory, and the marks do not.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::union::branch::at::stat;
use crate::union::branch::{RealDir, change};
use crate::union::error::{Errno, Result};
use crate::union::marks::beside::{HIDDEN, mirrored};
use crate::union::name::Name;

/// Mode of the mirrored directories, as unionfs-fuse makes them.
const PARENT_MODE: u32 = 0o770;

/// The marks' tree of one branch.
pub struct Mirror {
    /// `.unionfs` or `.unionfs-fuse`.
    root_name: Name,
    root: Mutex<Option<Arc<OwnedFd>>>,
}

fn open_dir(dir: impl AsFd, name: &Name) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name.as_c_str(), flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Mirror {
    /// The tree called `root_name` at the root of `branch`, which need not exist yet.
    ///
    /// # Errors
    /// Those of openat(2).
    pub fn new(branch: &Arc<RealDir>, root_name: &str) -> Result<Self> {
        let root_name = Name::new(root_name)?;
        let root = open_dir(branch.fd()?, &root_name)?.map(Arc::new);
        Ok(Self { root_name, root: Mutex::new(root) })
    }

    /// The branch's filesystem was mounted anew, with this root.
    ///
    /// # Errors
    /// As `new`.
    pub fn reopen(&self, branch: impl AsFd) -> Result<()> {
        *self.root.lock() = open_dir(branch, &self.root_name)?.map(Arc::new);
        Ok(())
    }

    /// Whether the branch has such a tree.
    pub fn exists(&self) -> bool {
        self.root.lock().is_some()
    }

    /// The directory that holds the marks of the names in `dir`, if there is one.
    pub fn find(&self, dir: &Arc<RealDir>) -> Result<Option<Arc<OwnedFd>>> {
        let Some(mut at) = self.root.lock().clone() else { return Ok(None) };
        for name in dir.path() {
            match open_dir(&at, &mirrored(&name)?)? {
                Some(fd) => at = Arc::new(fd),
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// As `find`, making what is missing.
    pub fn make(&self, branch: &Arc<RealDir>, dir: &Arc<RealDir>) -> Result<Arc<OwnedFd>> {
        let mut at = self.make_root(branch)?;
        for name in dir.path() {
            at = Arc::new(make_dir(&at, &mirrored(&name)?)?);
        }
        Ok(at)
    }

    fn make_root(&self, branch: &Arc<RealDir>) -> Result<Arc<OwnedFd>> {
        let mut root = self.root.lock();
        if let Some(fd) = &*root {
            return Ok(fd.clone());
        }
        let above = branch.fd()?;
        let fd = Arc::new(change::keeping_times(above.as_fd(), || make_dir(&above, &self.root_name))?);
        Ok(root.insert(fd).clone())
    }

    /// Whether `name` in `dir` is hidden in the branches below.
    pub fn hides(&self, dir: &Arc<RealDir>, name: &Name) -> Result<bool> {
        let Some(marks) = self.find(dir)? else { return Ok(false) };
        exists(&marks, &HIDDEN.mark(name)?)
    }

    /// Whether there may be marks about names in the directory `name` of `dir`.
    pub fn reaches(&self, dir: &Arc<RealDir>, name: &Name) -> Result<bool> {
        let Some(marks) = self.find(dir)? else { return Ok(false) };
        Ok(open_dir(&marks, &mirrored(name)?)?.is_some())
    }
}

fn make_dir(dir: impl AsFd, name: &Name) -> Result<OwnedFd> {
    if let Some(fd) = open_dir(&dir, name)? {
        return Ok(fd);
    }
    match change::mkdir(&dir, name, PARENT_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    open_dir(&dir, name)?.ok_or(Errno::NOTDIR)
}

/// Whether there is anything called `name` in `dir`.
pub(crate) fn exists(dir: impl AsFd, name: &Name) -> Result<bool> {
    match stat(dir.as_fd(), name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(errno),
    }
}
