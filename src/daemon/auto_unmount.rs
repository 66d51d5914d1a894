//! `auto_unmount`: a tiny process that takes the mount off when the daemon has ended, however it ended.
//!
//! It holds one end of a pipe and the mountpoint's parent, nothing else; above all no /dev/fuse, which would keep the
//! connection alive.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::daemon::attached::Attached;
use crate::daemon::stdio::Null;
use crate::sys::process::{Forked, close_others, exit_now, fork, ignore_termination};

/// Starts the watcher. It acts when the returned descriptor is closed, which the kernel does for a dead daemon.
///
/// # Errors
/// As fork(2) and pipe2(2).
pub(crate) fn start(mount: &Attached, null: &Null) -> Result<OwnedFd, Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    match fork()? {
        Forked::Parent(_) => Ok(writer),
        Forked::Child => watch(&reader, mount, null),
    }
}

fn watch(reader: &OwnedFd, mount: &Attached, null: &Null) -> ! {
    ignore_termination();
    let _ = rustix::process::setsid();
    null.put();
    // This process never returns, so nothing will use what is closed here.
    close_others(&[reader.as_raw_fd(), mount.parent().as_raw_fd()]);
    let mut byte = [0];
    while matches!(rustix::io::read(reader, &mut byte), Err(Errno::INTR)) {}
    let _ = mount.detach();
    exit_now(0)
}
