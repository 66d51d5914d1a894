//! Where the daemon's own root and working directory are while it serves: never where the union may come to lie.
//!
//! pivot_root(2) moves every process whose root is the old root; a daemon moved into its own union waits for itself.
//! So its root is the directory that `chroot=` names, or an empty, read-only filesystem of its own that no path leads to.
//! Everything the daemon needs later must be open before `enter`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::process::{chdir, chroot, fchdir};

use crate::daemon::lineage::mount_id;
use crate::daemon::resolve::{Checked, Id, Place, describe};

/// A root to go to.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// The directory, and whether `chroot=` asked for it.
    root: Option<(OwnedFd, bool)>,
}

impl Sandbox {
    /// Chooses the root; takes over what `chroot=` named.
    pub(crate) fn prepare(wanted: Option<Place>) -> Self {
        // The root of old (chroot=/) would be moved by pivot_root, which is what all this is about.
        let wanted = wanted.filter(|place| !is_root(place).unwrap_or(false));
        let root = match wanted {
            Some(place) => Some((place.fd, true)),
            None => match empty_filesystem() {
                Ok(root) => Some((root, false)),
                Err(errno) => {
                    log::debug!("no private root directory: {}", describe(errno));
                    None
                }
            },
        };
        Self { root }
    }

    /// Moves the process there.
    ///
    /// # Errors
    /// A line, if `chroot=` cannot be honoured. Without it an unprivileged daemon stays where it is, but for its working
    /// directory.
    pub(crate) fn enter(self) -> Checked<()> {
        let Some((root, asked)) = self.root else { return away() };
        match fchdir(&root).and_then(|()| chroot(".")) {
            Ok(()) => away(),
            Err(errno) if asked => Err(format!("cannot change the root to the chroot= directory: {}", describe(errno))),
            Err(errno) => {
                log::debug!("staying in the old root: {}", describe(errno));
                away()
            }
        }
    }
}

fn away() -> Checked<()> {
    chdir("/").map_err(|errno| format!("cannot change the working directory to the root: {}", describe(errno)))
}

/// Whether this is the very directory that the process has for its root.
fn is_root(place: &Place) -> Result<bool, Errno> {
    let root = rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(Id::of(root.as_fd())? == place.id && mount_id(root.as_fd())? == mount_id(place.fd.as_fd())?)
}

/// A read-only filesystem without anything in it, mounted nowhere.
fn empty_filesystem() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
