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

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::daemon::clone::clone_lower;
use crate::daemon::lineage::{mount_id, path_of};
use crate::daemon::resolve::{Branch, Id, Place, Resolved, describe};
use crate::fuse::Current;
use crate::union::branch::at::was_cut;
use crate::union::stack::is_fuse;
use crate::union::types::BranchId;

/// How long between two looks whether a branch has gone, or come again.
const PERIOD: Duration = Duration::from_secs(1);

/// The directory above a branch's mount, and the names from there.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) above: OwnedFd,
    pub(crate) below: PathBuf,
}

/// The way to one branch.
pub(crate) struct Door {
    branch: BranchId,
    label: String,
    way: Way,
    /// The device that the branch is now.
    device: u64,
    /// It has come again: what others have opened of it at that moment may still lead to where nobody is.
    again: bool,
}

/// The doors of the lowers that can go away. To be called before their mounts are cloned.
pub(crate) fn find_all(resolved: &Resolved) -> Vec<Door> {
    let of = |(index, branch): (usize, &Branch)| {
        let way = if branch.writable { None } else { way_to(&branch.place) }?;
        Some(Door::new(index, branch.place.label.clone(), branch.place.id.dev, way))
    };
    resolved.branches.iter().enumerate().filter_map(of).collect()
}

/// The way to a lower that can go away; `None` for one that cannot. To be called before its mount is cloned.
pub(crate) fn way_to(lower: &Place) -> Option<Way> {
    if !is_fuse(lower.fd.as_fd()).unwrap_or(false) {
        return None;
    }
    above(&lower.fd).unwrap_or_else(|errno| {
        log::debug!("{:?} cannot be found again: {}", lower.label, describe(errno));
        None
    })
}

/// The directory above the mount that `dir` lies on, and the names from there; `None` if nothing is above.
fn above(dir: &OwnedFd) -> Result<Option<Way>, Errno> {
    let mount = mount_id(dir.as_fd())?;
    let path = path_of(dir.as_fd())?;
    let mut here = dir.try_clone().map_err(|_| Errno::MFILE)?;
    for up in path.ancestors().skip(1) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(&here, c"..", flags, Mode::empty())?;
        if mount_id(parent.as_fd())? != mount {
            return Ok(path.strip_prefix(up).ok().map(|below| Way { above: parent, below: below.to_owned() }));
        }
        here = parent;
    }
    Ok(None)
}

impl Door {
    /// The door of the branch that is the `index`th of the stack.
    pub(crate) fn new(index: usize, label: String, device: u64, way: Way) -> Self {
        // A union has no more branches.
        let branch = BranchId(u16::try_from(index).unwrap_or(u16::MAX));
        Self { branch, label, way, device, again: false }
    }

    /// What stands in the branch's place now, if that is another filesystem than before.
    fn open(&self) -> Result<Option<(OwnedFd, u64)>, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let found = rustix::fs::openat2(&self.way.above, &self.way.below, flags, Mode::empty(), resolve)?;
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
    fn look(&mut self, union: &Current) -> bool {
        if !union.with(|union| union.is_cut(self.branch)) {
            if self.again {
                union.with(|union| union.close_all(self.branch));
            }
            return false;
        }
        let found = self.open().and_then(|found| {
            let Some((root, device)) = found else { return Ok(None) };
            union.with(|union| union.come_back(self.branch, &root)).map(|()| Some(device))
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

/// The doors of a union that is served. They are looked after by a thread, as long as there are any.
pub(crate) struct Doors {
    union: Arc<Current>,
    doors: Mutex<(Vec<Door>, bool)>,
}

/// The doors while the branches change: nobody looks at them.
pub(crate) struct Held<'a> {
    of: &'a Arc<Doors>,
    doors: MutexGuard<'a, (Vec<Door>, bool)>,
}

impl Doors {
    /// The doors of the lowers of `union`.
    pub(crate) fn new(doors: Vec<Door>, union: Arc<Current>) -> Arc<Self> {
        Arc::new(Self { union, doors: Mutex::new((doors, false)) })
    }

    /// Starts to look after them: only when a branch has refused to answer.
    ///
    /// # Errors
    /// As thread creation.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        self.watch(&mut self.doors.lock())
    }

    fn watch(self: &Arc<Self>, (doors, watched): &mut (Vec<Door>, bool)) -> std::io::Result<()> {
        if !doors.is_empty() && !*watched {
            let all = Arc::clone(self);
            std::thread::Builder::new().name("cowfs-doors".into()).spawn(move || all.serve())?;
            *watched = true;
        }
        Ok(())
    }

    /// Waits so long until nobody looks at them; `None` if that takes longer.
    pub(crate) fn hold(self: &Arc<Self>, patience: Duration) -> Option<Held<'_>> {
        self.doors.try_lock_for(patience).map(|doors| Held { of: self, doors })
    }

    fn serve(&self) {
        let mut away = false;
        loop {
            sleep(PERIOD);
            let (doors, watched) = &mut *self.doors.lock();
            if doors.is_empty() {
                *watched = false;
                return;
            }
            if was_cut() || away {
                // Each of them, whatever the others are.
                away = doors.iter_mut().fold(false, |away, door| door.look(&self.union) | away);
            }
        }
    }
}

impl Held<'_> {
    /// From now on these are looked after, and no others.
    ///
    /// # Errors
    /// As thread creation.
    pub(crate) fn exchange(mut self, doors: Vec<Door>) -> std::io::Result<()> {
        self.doors.0 = doors;
        self.of.watch(&mut self.doors)
    }
}
