//! Lowers that come on an ID-mapped mount to a union that maps ids itself: no id is to be mapped twice.
//!
//! podman 4 hands over both: `uidmapping=` and lowers whose mount already shows the mapped owners. Such a lower is
//! looked up again on the upper's own mount, which shows owners as they are stored. One that shows other owners than
//! the options ask for is somebody else's idea, and stays as it is.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::daemon::lineage::mount_id;
use crate::daemon::resolve::{Id, Place, Resolved};
use crate::fuse::owners::Owners;
use crate::sys::handle;

/// Replaces the descriptors of such lowers. Where that cannot be done they stay, with a warning.
pub(crate) fn look_below_id_maps(resolved: &mut Resolved, owners: &Owners) {
    if !owners.map() {
        return;
    }
    let Some(upper) = resolved.branches.iter().position(|branch| branch.writable) else { return };
    let (upper, lowers) = match resolved.branches.split_at_mut(upper) {
        ([], [upper, lowers @ ..]) => (upper, lowers),
        // The upper is always the first.
        _ => return,
    };
    for lower in lowers {
        match stored(&lower.place, &upper.place, owners) {
            Ok(Some(fd)) => lower.place.fd = fd,
            Ok(None) => {}
            Err(errno) => log::warn!("branch {:?} may show other owners: {errno}", lower.place.label),
        }
    }
}

/// The directory `lower`, reached through the mount of `upper`, if its own mount does what `owners` would do again.
fn stored(lower: &Place, upper: &Place, owners: &Owners) -> Result<Option<OwnedFd>, Errno> {
    if lower.id.dev != upper.id.dev || mount_id(lower.fd.as_fd())? == mount_id(upper.fd.as_fd())? {
        return Ok(None);
    }
    let handle = match handle::of(lower.fd.as_fd(), c"", AtFlags::EMPTY_PATH) {
        Err(Errno::OPNOTSUPP) => return Ok(None),
        handle => handle?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::openat(&upper.fd, ".", flags, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let plain = match handle::open(mount.as_fd(), &handle, flags) {
        // Only root has the right, and only root can make such mounts.
        Err(Errno::PERM) => return Ok(None),
        plain => plain?,
    };
    let (shown, kept) = (rustix::fs::fstat(&lower.fd)?, rustix::fs::fstat(&plain)?);
    let (shown, kept) = ((shown.st_uid, shown.st_gid), (kept.st_uid, kept.st_gid));
    let same = Id::of(plain.as_fd())? == lower.id;
    Ok((same && shown != kept && owners.shown_ids(kept) == shown).then_some(plain))
}
