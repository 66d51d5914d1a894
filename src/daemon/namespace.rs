//! `mount --namespace`: mount(8) leaves it to its helper, by `-N`, to go where the union is to be.
//!
//! To be done before anything else is looked at: as with mount(2), branches and mountpoint are paths of that namespace.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::daemon::resolve::{Checked, describe};

/// Moves this process, which has one thread, into the mount namespace that `path` names, and to its root.
///
/// # Errors
/// A line that quotes the path.
pub(crate) fn enter(path: Option<&Path>) -> Checked<()> {
    let Some(path) = path else { return Ok(()) };
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|namespace| move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)))
        .map_err(|errno| format!("cannot go to the mount namespace {path:?} (-N): {}", describe(errno)))
}
