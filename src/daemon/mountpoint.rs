//! Where the union is to appear: an opened directory, freed of dead unions, or a /dev/fuse that is mounted already.

use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::daemon::resolve::{Checked, Place, Role, describe, open};
use crate::daemon::table::MountTable;

/// Where the union appears.
#[derive(Debug)]
pub(crate) enum Mountpoint {
    /// On a directory, and it is for us to mount it.
    Directory(Directory),
    /// Somebody mounted already, and this is its /dev/fuse.
    Device(OwnedFd),
}

/// The directory to mount on.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) place: Place,
    /// Absolute, without symlinks.
    pub(crate) path: PathBuf,
}

/// The number in `/dev/fd/N`.
pub(crate) fn device_number(path: &Path) -> Option<RawFd> {
    path.to_str()?.strip_prefix("/dev/fd/")?.parse().ok().filter(|&number| number >= 0)
}

/// Opens the mountpoint, after a dead union there (its daemon was killed) has been taken away by `clear`.
///
/// # Errors
/// A line that quotes the mountpoint.
pub(crate) fn resolve(path: &Path, clear: impl Fn(&Path) -> Result<(), Errno>) -> Checked<Mountpoint> {
    if let Some(number) = device_number(path) {
        return adopt_device(path, number).map(Mountpoint::Device);
    }
    // As many as anybody can have stacked by killing daemon after daemon.
    for _ in 0..64 {
        let Some(dead) = dead_union(path) else { break };
        log::info!("taking away the dead union on {dead:?}");
        clear(&dead).map_err(|errno| {
            format!("mountpoint {path:?} holds a dead union that cannot be unmounted: {}", describe(errno))
        })?;
    }
    let place = open(Role::Mountpoint, path, None)?;
    let path = std::fs::canonicalize(path).map_err(|error| format!("cannot resolve mountpoint {path:?}: {error}"))?;
    Ok(Mountpoint::Directory(Directory { place, path }))
}

fn adopt_device(path: &Path, number: RawFd) -> Checked<OwnedFd> {
    let refuse = |why: String| format!("mountpoint {path:?} is not an open /dev/fuse: {why}");
    let device = crate::sys::process::adopt(number).map_err(|errno| refuse(describe(errno)))?;
    let stat = rustix::fs::fstat(&device).map_err(|errno| refuse(describe(errno)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
        || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) != (10, 229)
    {
        return Err(refuse("it is something else".into()));
    }
    Ok(device)
}

/// The path of a union of ours on `path` whose daemon is gone.
///
/// Only what the mount table calls a cowfs: a dead mount of something else is not ours to remove.
fn dead_union(path: &Path) -> Option<PathBuf> {
    // Not stat(2): the kernel may answer that from its cache long after the daemon's death.
    if rustix::fs::statvfs(path).err()? != Errno::NOTCONN {
        return None;
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let full = std::fs::canonicalize(parent).ok()?.join(path.file_name()?);
    let ours = MountTable::read().ok()?.top(&full)?.kind()? == b"fuse.cowfs";
    ours.then_some(full)
}

impl Directory {
    /// Refuses to lay a union over its like: `mount -a` knows what is mounted by its source, and not every form of a line
    /// in /etc/fstab shows the source that is in it.
    ///
    /// # Errors
    /// A line, if what is mounted here by the same type has the same source.
    pub(crate) fn no_second(&self, table: &MountTable, source: &str, subtype: &str) -> Checked<()> {
        let same = table.top(&self.path).is_some_and(|line| {
            line.kind() == Some(format!("fuse.{subtype}").as_bytes())
                && line.source().is_some_and(|mounted| mounted.as_os_str() == source)
        });
        if same { Err(format!("{source:?} is mounted on {:?} already", self.place.label)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_mountpoints_are_descriptors() {
        for (path, number) in
            [("/dev/fd/3", Some(3)), ("/dev/fd/12", Some(12)), ("/dev/fd/", None), ("/dev/fd/-1", None), ("/mnt", None)]
        {
            assert_eq!(device_number(Path::new(path)), number, "{path}");
        }
    }
}
