//! The three ways to a mount behind one face: by one's own privilege, through fusermount3, or made by somebody else.
//!
//! A `Mount` is taken off by `detach` at most once, and only if it is ours.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::daemon::attached::{Attached, Device, Spot};
use crate::daemon::auto_unmount;
use crate::daemon::fusermount::Fusermount;
use crate::daemon::mount::{self, Detached};
use crate::daemon::mountpoint::{Directory, Mountpoint, device_number};
use crate::daemon::request::MountRequest;
use crate::daemon::resolve::{Checked, describe};
use crate::daemon::stdio::Null;

/// How this process comes to a /dev/fuse.
#[derive(Debug)]
pub(crate) enum Means {
    /// By its own privilege; a file system context.
    Direct(OwnedFd),
    /// As an ordinary user.
    Helper(Fusermount),
    /// Somebody else mounted.
    Given,
}

/// A mount in one of its states.
#[derive(Debug)]
pub(crate) enum Mount {
    /// Made, but nowhere yet.
    Detached(Detached, Directory),
    /// On its place.
    Attached(Attached),
    /// Not ours to take off, or taken off already.
    Foreign,
}

impl Means {
    /// Chooses, and makes sure that what is needed exists.
    ///
    /// # Errors
    /// A line that says what is missing.
    pub(crate) fn find(request: &MountRequest) -> Checked<Self> {
        if device_number(&request.mountpoint).is_some() {
            if request.private.is_some() {
                return Err(
                    "option 'private': what is mounted already has been seen already; give it to the mounter".into()
                );
            }
            return Ok(Self::Given);
        }
        let means = match mount::begin()? {
            Some(context) => Self::Direct(context),
            None => match &request.chroot {
                Some(dir) => return Err(format!("chroot={dir:?}: only root can change its root directory")),
                None if request.private.is_some() => {
                    return Err("option 'private': only root can change how mounts are propagated".into());
                }
                None => Self::Helper(Fusermount::find()?),
            },
        };
        // It is opened once more for use; here so that nothing has been touched when it cannot be. fusermount3 opens it
        // with its caller's permissions too.
        mount::open_device()?;
        Ok(means)
    }

    /// Takes away a dead union of an earlier daemon.
    ///
    /// # Errors
    /// As umount2(2).
    pub(crate) fn clear(&self, path: &Path) -> Result<(), Errno> {
        match self {
            Self::Direct(_) => unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW),
            Self::Helper(program) => program.unmount(path),
            Self::Given => Ok(()),
        }
    }

    /// Makes the mount; returns the daemon's end of it too. Only fusermount3 lets it be seen before `attach`.
    ///
    /// # Errors
    /// A line.
    pub(crate) fn mount(self, request: &MountRequest, mountpoint: Mountpoint) -> Checked<(OwnedFd, Mount)> {
        match (self, mountpoint) {
            (_, Mountpoint::Device(device)) => Ok((device, Mount::Foreign)),
            (Self::Direct(context), Mountpoint::Directory(directory)) => {
                let (device, detached) = mount::prepare(&context, request)?;
                Ok((device, Mount::Detached(detached, directory)))
            }
            (Self::Helper(program), Mountpoint::Directory(directory)) => {
                let place = |errno| format!("cannot look at {:?}: {}", directory.place.label, describe(errno));
                let spot = Spot::of(&directory).map_err(place)?;
                let device = program.mount(request, &directory)?;
                let dev = spot.device().map_err(place)?;
                Ok((device, Mount::Attached(Attached::new(spot, dev, Some(program)))))
            }
            (Self::Given, Mountpoint::Directory(directory)) => {
                Err(format!("mountpoint {:?} is no /dev/fd/N", directory.place.label))
            }
        }
    }
}

impl Mount {
    /// Puts the mount on its place, if it is not there already.
    ///
    /// # Errors
    /// A line that quotes the mountpoint.
    pub(crate) fn attach(&mut self) -> Checked<()> {
        *self = match std::mem::replace(self, Self::Foreign) {
            Self::Detached(detached, directory) => detached.attach(&directory)?.map_or(Self::Foreign, Self::Attached),
            other => other,
        };
        Ok(())
    }

    /// Which mount it is, unless somebody else made it.
    pub(crate) fn device(&self) -> Option<Device> {
        match self {
            Self::Detached(detached, _) => Some(detached.device()),
            Self::Attached(attached) => Some(attached.device()),
            Self::Foreign => None,
        }
    }

    /// Takes the mount off, lazily.
    ///
    /// # Errors
    /// `ENOENT` if something else lies there by now; `EOPNOTSUPP` if it is not ours; else as umount2(2).
    pub(crate) fn detach(&mut self) -> Result<(), Errno> {
        match std::mem::replace(self, Self::Foreign) {
            Self::Detached(..) => Ok(()),
            Self::Attached(attached) => attached.detach(),
            Self::Foreign => Err(Errno::OPNOTSUPP),
        }
    }

    /// Starts the process that takes the mount off when this one has died; the result is to be kept for life.
    pub(crate) fn watch(&self, null: &Null) -> Result<Option<OwnedFd>, Errno> {
        match self {
            Self::Attached(attached) => auto_unmount::start(attached, null).map(Some),
            _ => Ok(None),
        }
    }
}
