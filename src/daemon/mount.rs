//! Mounting as one who may: a /dev/fuse, and a detached mount of it that is attached when everything else is ready.
//!
//! Until `attach` nothing can be seen anywhere, and dropping a `Detached` leaves no trace. Needs neither libfuse nor
//! fusermount3.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
};

use crate::daemon::attached::{Attached, Device, Spot, device_of};
use crate::daemon::lineage::mount_root;
use crate::daemon::mountpoint::Directory;
use crate::daemon::request::{MountFlags, MountRequest, Private};
use crate::daemon::resolve::{Checked, describe};
use crate::sys::mount::{Attributes, set_attributes};

/// The kernel cuts nothing: a longer source is EINVAL (256 with its NUL).
const LONGEST_SOURCE: usize = 255;

/// The default source: longer ones trouble programs that read the mount table with small buffers.
const LONGEST_DEFAULT: usize = 200;

/// How far the kernel reads ahead, in KiB: as much as one request can carry.
const READ_AHEAD_KB: &str = "1024";

/// A mount that is nowhere yet.
#[derive(Debug)]
pub(crate) struct Detached {
    root: OwnedFd,
    dev: Device,
    /// No other mount namespace is to see it.
    private: Option<Private>,
}

/// Whether this process may mount by itself: the file system context to go on with, or `None` where only fusermount3
/// can help.
///
/// # Errors
/// A line, if nobody could mount here.
pub(crate) fn begin() -> Checked<Option<OwnedFd>> {
    match fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => Ok(Some(context)),
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(None),
        Err(Errno::PERM) => {
            Err("no permission to mount: root needs CAP_SYS_ADMIN over its mount namespace (in a user \
                                 namespace: unshare -m too)"
                .into())
        }
        Err(Errno::NODEV) => Err("the kernel knows no FUSE: load the module (modprobe fuse)".into()),
        Err(errno) => Err(format!("cannot prepare a mount: fsopen: {}", describe(errno))),
    }
}

/// Opens /dev/fuse.
///
/// # Errors
/// A line that says what to do.
pub(crate) fn open_device() -> Checked<OwnedFd> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => "/dev/fuse does not exist: load the kernel's module (modprobe fuse), or make the device \
                         (mknod /dev/fuse c 10 229)"
            .into(),
        Errno::ACCESS | Errno::PERM => format!(
            "cannot open /dev/fuse: {}: run as root, or let its users in (chmod 666 /dev/fuse)",
            describe(errno)
        ),
        Errno::NODEV | Errno::NXIO => {
            "cannot open /dev/fuse: the kernel knows no FUSE: load the module (modprobe fuse)".into()
        }
        errno => format!("cannot open /dev/fuse: {}", describe(errno)),
    })
}

/// Makes the mount, without attaching it. Returns the daemon's end of it too.
///
/// # Errors
/// A line with the kernel's own word on it.
pub(crate) fn prepare(context: &OwnedFd, request: &MountRequest) -> Checked<(OwnedFd, Detached)> {
    let device = open_device()?;
    let root = configure(context, &device, request).map_err(|(what, errno)| {
        let said = kernel_message(context).map(|text| format!(" ({text})")).unwrap_or_default();
        format!("cannot prepare the mount: {what}: {}{said}", describe(errno))
    })?;
    let dev =
        device_of(root.as_fd(), "").map_err(|errno| format!("cannot look at the new mount: {}", describe(errno)))?;
    Ok((device, Detached { root, dev, private: request.private }))
}

fn configure(context: &OwnedFd, device: &OwnedFd, request: &MountRequest) -> Result<OwnedFd, (&'static str, Errno)> {
    let set = |key: &'static str, value: &str| fsconfig_set_string(context, key, value).map_err(|errno| (key, errno));
    let flag = |key: &'static str| fsconfig_set_flag(context, key).map_err(|errno| (key, errno));
    set("source", &source(request))?;
    set("subtype", cut(request.subtype.as_deref().unwrap_or("cowfs"), LONGEST_SOURCE))?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &rustix::process::geteuid().as_raw().to_string())?;
    set("group_id", &rustix::process::getegid().as_raw().to_string())?;
    if request.default_permissions {
        flag("default_permissions")?;
    }
    // The kernel knows no allow_root: the session keeps the others out.
    if request.allow_other || request.allow_root {
        flag("allow_other")?;
    }
    let MountFlags { read_only, sync, dirsync, .. } = request.flags;
    for key in [read_only.then_some("ro"), sync.then_some("sync"), dirsync.then_some("dirsync")].into_iter().flatten() {
        flag(key)?;
    }
    fsconfig_create(context).map_err(|errno| ("fsconfig", errno))?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(request.flags)).map_err(|errno| ("fsmount", errno))
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    for (wanted, attribute) in [
        (flags.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (!flags.suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (!flags.dev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (flags.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (flags.noatime, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (flags.nodiratime, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ] {
        if wanted {
            attributes |= attribute;
        }
    }
    attributes
}

/// What the kernel has to say about a failed fsconfig(2), which is often more than the errno.
fn kernel_message(context: &OwnedFd) -> Option<String> {
    let mut text = [0; 512];
    let length = rustix::io::read(context, &mut text).ok()?;
    // "e fuse: Bad value for 'fd'": the first letter is the level.
    Some(String::from_utf8_lossy(&text[..length]).trim_start_matches(['e', 'w', 'i']).trim().to_owned())
}

/// The source that the mount table shows: `fsname=`, else the branches.
pub(crate) fn source(request: &MountRequest) -> String {
    if let Some(name) = request.fsname.as_deref().filter(|name| !name.is_empty()) {
        return cut(name, LONGEST_SOURCE).to_owned();
    }
    let branches: Vec<_> = request
        .branches
        .iter()
        .map(|branch| format!("{}={}", branch.path.display(), if branch.writable { "RW" } else { "RO" }))
        .collect();
    cut(&branches.join(":"), LONGEST_DEFAULT).to_owned()
}

/// The start of `text` that fits into `length` bytes.
fn cut(text: &str, length: usize) -> &str {
    let mut end = text.len().min(length);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Detached {
    /// Which mount it is.
    pub(crate) fn device(&self) -> Device {
        self.dev
    }

    /// Puts the mount on its directory; from now on everybody sees it. Returns what takes it off again, if anything can.
    ///
    /// # Errors
    /// A line that quotes the mountpoint.
    pub(crate) fn attach(self, directory: &Directory) -> Checked<Option<Attached>> {
        let label = &directory.place.label;
        let spot = Spot::of(directory)
            .inspect_err(|errno| log::info!("the union on {label:?} is to be unmounted from outside: {errno}"));
        if let Some(which) = self.private {
            make_private(which, directory)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.root, "", &directory.place.fd, "", flags)
            .map_err(|errno| format!("cannot mount on {label:?}: {}", describe(errno)))?;
        widen_readahead(self.dev);
        Ok(spot.ok().map(|spot| Attached::new(spot, self.dev, None)))
    }
}

/// Makes the mount that holds `directory` private, or all. What is mounted on a shared one appears at once in every namespace
/// that shares it, so afterwards is too late.
fn make_private(which: Private, directory: &Directory) -> Checked<()> {
    let label = &directory.place.label;
    let (done, what) = match which {
        Private::Parent => {
            let private = Attributes { private: true, ..Attributes::default() };
            let root = mount_root(directory.place.fd.as_fd());
            let done = root.and_then(|root| set_attributes(root.as_fd(), private));
            (done, format!("option 'private': the mount that holds {label:?}"))
        }
        Private::All => {
            let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            (mount_change("/", flags), "option 'rprivate': the mounts of this namespace".to_owned())
        }
    };
    done.map_err(|errno| {
        let advice = match errno {
            Errno::INVAL => " (this process's root directory is not the root of a mount)",
            _ => "",
        };
        format!("{what} cannot be made private: {}{advice}", describe(errno))
    })
}

/// Lets the kernel read further ahead than a FUSE server may ask for (128 KiB); cold reads gain a tenth.
fn widen_readahead((major, minor): Device) {
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KB) {
        log::debug!("{setting} stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::request::BranchArg;

    #[test]
    fn the_source_is_short() {
        let branch = |path: &str, writable| BranchArg { path: path.into(), writable, oci_whiteouts: false };
        let mut request =
            MountRequest { branches: vec![branch("/u", true), branch("/l", false)], ..Default::default() };
        assert_eq!(source(&request), "/u=RW:/l=RO");
        request.branches.push(branch(&"é".repeat(200), false));
        assert!(source(&request).len() <= 200);
        request.fsname = Some("overlay".into());
        assert_eq!(source(&request), "overlay");
        request.fsname = Some("n".repeat(1000));
        assert_eq!(source(&request).len(), 255);
    }
}
