//! A directory of a branch: where it lies there, and a descriptor for it while it is in use.
//!
//! The tree of `RealDir`s is the branch's own tree. A union directory that was renamed still refers to the same real
//! directories of the lower branches; in the upper, the `RealDir` itself moves (`moving`), and everything below with it.
//!
//! Invariant: a descriptor handed out is the directory that was seen at the look-up: reopening after eviction compares
//! device and inode number and answers `ESTALE` otherwise. It is opened where it is: who moves it and who opens it by its
//! name wait for each other.
//!
//! Not here: who is evicted (`fds`), what a directory means in the union (`node`).

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::union::branch::at::{At, Stat, stat};
use crate::union::branch::fds::DirFds;
use crate::union::error::{Errno, Result};
use crate::union::name::{Name, spelled};
use crate::union::types::BranchId;

/// What there is to a directory in its branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A real directory.
    Real,
    /// The branch has no such directory, only marks about names in it (unionfs formats keep marks elsewhere).
    MarksOnly,
    /// The union shows it empty: the mountpoint, or the root of another branch.
    Covered,
}

/// A directory of a branch.
pub struct RealDir {
    /// The branch it belongs to.
    pub branch: BranchId,
    /// What there is to it.
    pub presence: Presence,
    /// The branch uses `overlay.whiteout` attributes in it (overlayfs' opaque value `x`).
    pub xwhiteouts: bool,
    identity: (u64, u64),
    place: RwLock<Option<(Arc<RealDir>, Name)>>,
    fd: Mutex<Option<Arc<OwnedFd>>>,
    used: AtomicBool,
    pinned: OnceLock<Arc<OwnedFd>>,
    impure: Mutex<Option<bool>>,
    fds: Arc<DirFds>,
}

impl fmt::Debug for RealDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.place.read().as_ref().map(|(_, name)| name.clone());
        write!(f, "dir {:?} of branch {}", name, self.branch.0)
    }
}

impl RealDir {
    /// The root of a branch; its descriptor is held for life.
    pub fn root(branch: BranchId, fd: Arc<OwnedFd>, fds: Arc<DirFds>, xwhiteouts: bool) -> Result<Arc<Self>> {
        let stat = stat(fd.as_fd(), c"", AtFlags::EMPTY_PATH)?;
        Ok(Arc::new(Self {
            branch,
            presence: Presence::Real,
            xwhiteouts,
            identity: stat.identity(),
            place: RwLock::new(None),
            // Not told to `fds`, so nobody takes it away.
            fd: Mutex::new(Some(fd)),
            used: AtomicBool::new(false),
            pinned: OnceLock::new(),
            impure: Mutex::new(None),
            fds,
        }))
    }

    /// The directory `name` of this one, as `stat` saw it; opened when it is first needed.
    pub fn child(self: &Arc<Self>, name: &Name, stat: &Stat, presence: Presence, xwhiteouts: bool) -> Arc<Self> {
        self.descend(name, stat.identity(), presence, xwhiteouts)
    }

    /// The place `name` below this one where the branch has marks but no directory.
    pub fn marks_only(self: &Arc<Self>, name: &Name) -> Arc<Self> {
        self.descend(name, (0, 0), Presence::MarksOnly, false)
    }

    fn descend(self: &Arc<Self>, name: &Name, identity: (u64, u64), presence: Presence, xwhiteouts: bool) -> Arc<Self> {
        Arc::new(Self {
            branch: self.branch,
            presence,
            xwhiteouts,
            identity,
            place: RwLock::new(Some((self.clone(), name.clone()))),
            fd: Mutex::new(None),
            used: AtomicBool::new(false),
            pinned: OnceLock::new(),
            impure: Mutex::new(None),
            fds: self.fds.clone(),
        })
    }

    /// Device and inode number.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Whether entries can be looked up in it.
    pub fn is_real(&self) -> bool {
        self.presence == Presence::Real
    }

    /// A descriptor of it, `O_PATH` but for a root.
    ///
    /// # Errors
    /// `ESTALE` if something else has taken its place, `ENOENT` if it was never real; those of openat(2).
    pub fn fd(self: &Arc<Self>) -> Result<Arc<OwnedFd>> {
        loop {
            if let Some(fd) = self.reach()? {
                return Ok(fd);
            }
        }
    }

    /// As `fd`; `None` if a directory on the way has moved to another one meanwhile.
    fn reach(self: &Arc<Self>) -> Result<Option<Arc<OwnedFd>>> {
        if let Some(fd) = self.held() {
            return Ok(Some(fd));
        }
        // Up to the first that is open and down again; in a loop, since a chain of directories can be longer than a
        // thread's stack.
        let mut closed = vec![self.clone()];
        let (mut parent, mut fd) = loop {
            let Some(parent) = closed.last().and_then(|dir| dir.place()).map(|(parent, _)| parent) else {
                return Err(Errno::STALE);
            };
            if let Some(fd) = parent.held() {
                break (parent, fd);
            }
            closed.push(parent);
        };
        while let Some(dir) = closed.pop() {
            let Some(opened) = dir.open(&parent, &fd)? else { return Ok(None) };
            (parent, fd) = (dir, opened);
        }
        Ok(Some(fd))
    }

    /// Its descriptor, if it has one now.
    fn held(&self) -> Option<Arc<OwnedFd>> {
        if let Some(fd) = self.pinned.get() {
            return Some(fd.clone());
        }
        let fd = self.fd.lock().clone()?;
        self.used.store(true, Ordering::Relaxed);
        Some(fd)
    }

    /// Opens it below `at`, the descriptor of `parent`, and keeps it; `None` if it is somewhere else by now.
    fn open(self: &Arc<Self>, parent: &Arc<Self>, at: &OwnedFd) -> Result<Option<Arc<OwnedFd>>> {
        if self.presence == Presence::MarksOnly {
            return Err(Errno::NOENT);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match &*self.place.read() {
            Some((now, name)) if Arc::ptr_eq(now, parent) => {
                rustix::fs::openat(at, name.as_c_str(), flags, Mode::empty())?
            }
            _ => return Ok(None),
        };
        if stat(fd.as_fd(), c"", AtFlags::EMPTY_PATH)?.identity() != self.identity {
            return Err(Errno::STALE);
        }
        let opened = {
            let mut slot = self.fd.lock();
            if let Some(fd) = &*slot {
                return Ok(Some(fd.clone()));
            }
            slot.insert(Arc::new(fd)).clone()
        };
        self.fds.opened(Arc::downgrade(self));
        Ok(Some(opened))
    }

    /// Gives the descriptor back unless it was asked for since the last call; returns whether it is still held.
    pub(crate) fn spare(&self) -> bool {
        let used = self.used.swap(false, Ordering::Relaxed);
        if !used {
            self.fd.lock().take();
        }
        used
    }

    /// Its filesystem was mounted anew: `fd` is the same directory there.
    pub(crate) fn replace(&self, fd: Arc<OwnedFd>) {
        *self.fd.lock() = Some(fd);
    }

    /// Gives the descriptor back: it leads to a filesystem that nobody serves.
    pub(crate) fn close(&self) {
        self.fd.lock().take();
    }

    /// Keeps the descriptor for as long as the directory is known: it is about to lose its name.
    ///
    /// # Errors
    /// As `fd`.
    pub fn pin(self: &Arc<Self>) -> Result<()> {
        let fd = self.fd()?;
        self.pinned.get_or_init(|| fd);
        Ok(())
    }

    /// Renames it by `act`: it is `name` in `parent` from then on. Nobody sees it in between.
    ///
    /// # Errors
    /// Those of `act`; it has not moved then.
    pub fn moving(&self, parent: Arc<RealDir>, name: Name, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut place = self.place.write();
        act()?;
        *place = Some((parent, name));
        Ok(())
    }

    /// Parent and name in the branch; `None` for the branch's root.
    pub fn place(&self) -> Option<(Arc<RealDir>, Name)> {
        self.place.read().clone()
    }

    /// The names that lead from the branch's root to it.
    pub fn path(&self) -> Vec<Name> {
        let mut names = Vec::new();
        let mut place = self.place();
        while let Some((parent, name)) = place {
            names.push(name);
            place = parent.place();
        }
        names.reverse();
        names
    }

    /// The same as redirects spell it: a slash before each name.
    pub fn spelled_path(&self) -> Vec<u8> {
        spelled(&self.path())
    }

    /// The object `name` in it. Errors: as `fd`.
    pub fn at(self: &Arc<Self>, name: &Name) -> Result<At> {
        Ok(At::Name(self.fd()?, name.clone()))
    }

    /// The directory itself. Errors: as `fd`.
    pub fn itself(self: &Arc<Self>) -> Result<At> {
        Ok(At::Dir(self.fd()?))
    }

    /// stat of `name` in it; `None` if there is no such name.
    ///
    /// # Errors
    /// Every error of the branch but `ENOENT` and `ENOTDIR`: a sick branch must not look empty.
    pub fn find(self: &Arc<Self>, name: &Name) -> Result<Option<Stat>> {
        if !self.is_real() {
            return Ok(None);
        }
        match stat(self.fd()?.as_fd(), name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether it holds objects that show another inode number than their own, by the mark `key`. Read once.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn is_impure(self: &Arc<Self>, key: &CStr) -> Result<bool> {
        if let Some(&impure) = self.impure.lock().as_ref() {
            return Ok(impure);
        }
        let impure = self.itself()?.xattr(key)?.is_some();
        Ok(*self.impure.lock().get_or_insert(impure))
    }

    /// Marks it as impure, if it is not yet.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn make_impure(self: &Arc<Self>, key: &CStr) -> Result<()> {
        if !self.is_impure(key)? {
            self.itself()?.set_xattr(key, b"y", 0)?;
            *self.impure.lock() = Some(true);
        }
        Ok(())
    }
}

impl Drop for RealDir {
    /// Lets go of the chain of parents in a loop: by recursion a long one would need more stack than a thread has.
    fn drop(&mut self) {
        let mut place = self.place.get_mut().take();
        while let Some((parent, _)) = place {
            place = Arc::into_inner(parent).and_then(|mut parent| parent.place.get_mut().take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_directory_is_opened_where_it_is_while_it_moves() {
        let area = tempfile::tempdir().unwrap();
        for dir in ["a", "a/d", "b"] {
            std::fs::create_dir(area.path().join(dir)).unwrap();
        }
        let fds = Arc::new(DirFds::with_capacity(16));
        let fd = OwnedFd::from(std::fs::File::open(area.path()).unwrap());
        let root = RealDir::root(BranchId(0), Arc::new(fd), fds, false).unwrap();
        let child = |dir: &Arc<RealDir>, name: &str| {
            let name = Name::new(name).unwrap();
            let stat = dir.find(&name).unwrap().unwrap();
            dir.child(&name, &stat, Presence::Real, false)
        };
        let (a, b) = (child(&root, "a"), child(&root, "b"));
        let d = child(&a, "d");
        let (opened, seen) = channel();
        std::thread::scope(|threads| {
            let renamed = d.moving(b.clone(), Name::new("e").unwrap(), || {
                std::fs::rename(area.path().join("a/d"), area.path().join("b/e")).unwrap();
                threads.spawn(|| opened.send(d.fd().map(drop)).unwrap());
                assert!(seen.recv_timeout(Duration::from_millis(50)).is_err(), "opened by a name that it has not");
                Ok(())
            });
            assert_eq!(renamed, Ok(()));
            assert_eq!(seen.recv().unwrap(), Ok(()));
        });
        // On its way down it would be looked for in the wrong directory.
        assert!(d.open(&a, &a.fd().unwrap()).unwrap().is_none());
    }
}
