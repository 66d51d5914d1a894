//! `mount -o remount`: changes the flags of a mounted union, and starts no daemon.
//!
//! Invariant: the daemon is never asked, so that a hung or dead one does not matter, and the mount that is changed is
//! the one that was looked at. FUSE takes no new options of its own; what else was named stays as it was mounted.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags as Flags, mount_remount};

use crate::daemon::lineage::path_of;
use crate::daemon::logger;
use crate::daemon::namespace;
use crate::daemon::request::{MountFlags, RemountRequest};
use crate::daemon::resolve::{Checked, Role, describe, refusal};
use crate::daemon::table::MountTable;

/// Does what `request` says. Returns 0, or 1 with the reason on standard error; then nothing has changed.
pub fn run(request: &RemountRequest) -> ExitCode {
    logger::start(false);
    match namespace::enter(request.namespace.as_deref()).and_then(|()| remount(request)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            log::error!("{line}");
            ExitCode::FAILURE
        }
    }
}

fn remount(request: &RemountRequest) -> Checked<()> {
    let path = &request.mountpoint;
    // O_PATH asks nobody for the root of a mount.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| refusal(Role::Mountpoint, path, None, errno))?;
    let kind = format!("fuse.{}", request.subtype.as_deref().unwrap_or("cowfs"));
    let Look { open_to_all, noatime, nodiratime } = look(path, &root, &kind)?;
    if request.allow_other && !open_to_all {
        log::warn!("{path:?} stays without allow_other: unmount it, and mount it again with that option");
    }
    if (request.flags.noatime, request.flags.nodiratime) != (noatime, nodiratime) {
        log::warn!(
            "{path:?}: the access times of its branch go on as they were mounted: unmount it, and mount it again with \
             noatime, nodiratime or neither"
        );
    }
    change(&root, flags_of(request.flags)).map_err(|errno| {
        let advice = match errno {
            Errno::BUSY => " (a file is open for writing, or open and deleted: see fuser -vm)",
            Errno::PERM => " (root may, and in a user namespace only what was mounted there)",
            _ => "",
        };
        format!("cannot remount {path:?}: {}{advice}", describe(errno))
    })
}

/// For how long a union that is busy is tried again.
const PATIENCE: Duration = Duration::from_millis(500);

/// Changes the flags. The kernel lets go of a closed file of a FUSE mount only when the daemon has been told, a moment after
/// close(2): on other filesystems it would be free by now.
fn change(root: &OwnedFd, flags: Flags) -> Result<(), Errno> {
    let start = Instant::now();
    loop {
        match mount_remount(format!("/proc/self/fd/{}", root.as_raw_fd()), flags, "") {
            Err(Errno::BUSY) if start.elapsed() < PATIENCE => sleep(Duration::from_millis(20)),
            result => return result,
        }
    }
}

/// How a union is mounted, where a remount cannot change it.
struct Look {
    open_to_all: bool,
    /// The daemon's own mount of the upper has it, which nobody else can reach.
    noatime: bool,
    nodiratime: bool,
}

/// Makes sure that the root of a mount of type `kind` is open, and looks how it is mounted.
fn look(path: &Path, root: &OwnedFd, kind: &str) -> Checked<Look> {
    let trouble = |what: &str, why: String| format!("cannot remount {path:?}: {what}: {why} (is /proc mounted?)");
    let table = MountTable::read().map_err(|e| trouble("/proc/self/mountinfo", e.to_string()))?;
    let id = mount_id(root).map_err(|errno| trouble("/proc/self/fdinfo", describe(errno)))?;
    let full = path_of(root.as_fd()).map_err(|errno| trouble("/proc/self/fd", describe(errno)))?;
    let Some(line) = table.of(id).filter(|line| line.point().as_ref() == Some(&full)) else {
        return Err(format!("cannot remount {path:?}: nothing is mounted there"));
    };
    let found = line.kind().unwrap_or_default();
    if found != kind.as_bytes() {
        let found = String::from_utf8_lossy(found);
        return Err(format!("cannot remount {path:?}: what is mounted there is no union ({found}, not {kind})"));
    }
    Ok(Look {
        open_to_all: line.has(b"allow_other"),
        noatime: line.mounted_with(b"noatime"),
        nodiratime: line.mounted_with(b"nodiratime"),
    })
}

/// Which mount a descriptor was reached through. Not by statx(2), which FUSE refuses to all but the mount's owner.
fn mount_id(fd: &OwnedFd) -> Result<u64, Errno> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()).ok_or(Errno::NODATA)
}

/// As mount(2) takes them: what is not named is off, in the filesystem and in this mount of it.
fn flags_of(flags: MountFlags) -> Flags {
    let words = [
        (flags.read_only, Flags::RDONLY),
        (!flags.suid, Flags::NOSUID),
        (!flags.dev, Flags::NODEV),
        (flags.noexec, Flags::NOEXEC),
        (flags.noatime, Flags::NOATIME),
        // If nothing is said of access times the kernel keeps what is there, and `atime` could never be asked for.
        (!flags.noatime, Flags::RELATIME),
        (flags.nodiratime, Flags::NODIRATIME),
        (flags.sync, Flags::SYNCHRONOUS),
        (flags.dirsync, Flags::DIRSYNC),
    ];
    words.into_iter().filter(|(wanted, _)| *wanted).fold(Flags::empty(), |all, (_, flag)| all | flag)
}
