//! `mount -o remount`: changes the flags of a mounted union, and its lower branches if `branches=` is there; starts no daemon.
//!
//! Invariant: for flags alone the daemon is never asked, so that a hung or dead one does not matter; the mount that is changed
//! is the one that was looked at; whatever fails, all is as it was. FUSE takes no new options of its own; what else was named
//! stays as it was mounted.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags as Flags, mount_remount};

use crate::daemon::attached::Device;
use crate::daemon::exchange::{Daemon, Wanted};
use crate::daemon::logger;
use crate::daemon::proc::Proc;
use crate::daemon::request::{MountFlags, RemountRequest};
use crate::daemon::resolve::{Checked, Role, describe, refusal};
use crate::daemon::table::MountTable;
use crate::daemon::{limits, namespace};

/// Does what `request` says. Returns 0, or 1 with the reason on standard error; then nothing has changed.
pub fn run(request: &RemountRequest) -> ExitCode {
    logger::start(false);
    match remount(request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            log::error!("{line}");
            ExitCode::FAILURE
        }
    }
}

fn remount(request: &RemountRequest) -> Checked<()> {
    let path = &request.mountpoint;
    let proc = Proc::open().map_err(|why| format!("cannot remount {path:?}: {why}"))?;
    limits::raise_max_files();
    let wanted = request.exchange.as_ref().map(Wanted::resolve).transpose()?;
    namespace::enter(request.namespace.as_deref())?;
    // O_PATH asks nobody for the root of a mount.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| refusal(Role::Mountpoint, path, None, errno))?;
    let kind = format!("fuse.{}", request.subtype.as_deref().unwrap_or("cowfs"));
    let look = look(&proc, path, &root, &kind)?;
    proc.go().map_err(|errno| format!("cannot go to /proc: {}", describe(errno)))?;
    let change_flags = |wanted| {
        change(&root, flags_of(wanted)).map_err(|errno| {
            let advice = match errno {
                Errno::BUSY => " (a file is open for writing, or open and deleted: see fuser -vm)",
                Errno::PERM => " (root may, and in a user namespace only what was mounted there)",
                _ => "",
            };
            format!("cannot remount {path:?}: {}{advice}", describe(errno))
        })
    };
    let Some(wanted) = wanted else {
        warn(request, &look);
        return change_flags(request.flags);
    };
    let daemon = Daemon::find(&proc, look.device, path)?;
    // What is as it should be is left alone: only root may set even that.
    let keep = request.exchange.as_ref().is_some_and(|exchange| exchange.keep_flags) || request.flags == look.flags;
    if !keep {
        warn(request, &look);
        change_flags(request.flags)?;
    }
    wanted.exchange(&daemon).map_err(|why| {
        let back = if keep { Ok(()) } else { change_flags(look.flags) };
        let stay = back.map_or_else(|why| format!("; the flags stay changed: {why}"), |()| String::new());
        format!("cannot change the branches of {path:?}: {why}{stay}")
    })
}

/// Says what was asked for and cannot be had.
fn warn(request: &RemountRequest, look: &Look) {
    let path = &request.mountpoint;
    if request.allow_other && !look.open_to_all {
        log::warn!("{path:?} stays without allow_other: unmount it, and mount it again with that option");
    }
    if (request.flags.noatime, request.flags.nodiratime) != (look.flags.noatime, look.flags.nodiratime) {
        log::warn!(
            "{path:?}: the access times of its branch go on as they were mounted: unmount it, and mount it again with \
             noatime, nodiratime or neither"
        );
    }
}

/// For how long a union that is busy is tried again.
const PATIENCE: Duration = Duration::from_millis(500);

/// Changes the flags; the working directory is a true /proc. The kernel lets go of a closed file of a FUSE mount only when
/// the daemon has been told, a moment after close(2): on other filesystems it would be free by now.
fn change(root: &OwnedFd, flags: Flags) -> Result<(), Errno> {
    let start = Instant::now();
    loop {
        match mount_remount(format!("self/fd/{}", root.as_raw_fd()), flags, "") {
            Err(Errno::BUSY) if start.elapsed() < PATIENCE => sleep(Duration::from_millis(20)),
            result => return result,
        }
    }
}

/// How a union is mounted.
struct Look {
    device: Device,
    /// A remount cannot change it.
    open_to_all: bool,
    flags: MountFlags,
}

/// Makes sure that the root of a mount of type `kind` is open, and looks how it is mounted.
fn look(proc: &Proc, path: &Path, root: &OwnedFd, kind: &str) -> Checked<Look> {
    let trouble = |errno| format!("cannot remount {path:?}: /proc: {}", describe(errno));
    let table = MountTable::read_in(proc).map_err(trouble)?;
    let id = mount_id(proc, root).map_err(trouble)?;
    let full = proc.path_of(root).map_err(trouble)?;
    let Some(line) = table.of(id).filter(|line| line.point().as_ref() == Some(&full)) else {
        return Err(format!("cannot remount {path:?}: nothing is mounted there"));
    };
    let found = line.kind().unwrap_or_default();
    if found != kind.as_bytes() {
        let found = String::from_utf8_lossy(found);
        return Err(format!("cannot remount {path:?}: what is mounted there is no union ({found}, not {kind})"));
    }
    let on = |word: &[u8]| line.mounted_with(word);
    Ok(Look {
        device: line.device().ok_or_else(|| trouble(Errno::NODATA))?,
        open_to_all: line.has(b"allow_other"),
        flags: MountFlags {
            read_only: on(b"ro") || line.has(b"ro"),
            suid: !on(b"nosuid"),
            dev: !on(b"nodev"),
            noexec: on(b"noexec"),
            noatime: on(b"noatime"),
            nodiratime: on(b"nodiratime"),
            sync: line.has(b"sync"),
            dirsync: line.has(b"dirsync"),
        },
    })
}

/// Which mount a descriptor was reached through. Not by statx(2), which FUSE refuses to all but the mount's owner.
fn mount_id(proc: &Proc, fd: &OwnedFd) -> Result<u64, Errno> {
    let id = proc.value(&format!("self/fdinfo/{}", fd.as_raw_fd()), "mnt_id")?;
    id.and_then(|id| id.parse().ok()).ok_or(Errno::NODATA)
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
