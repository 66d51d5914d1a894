//! One FUSE connection, from the kernel's first message to its end: who may enter, how many threads serve.
//!
//! Mounting and unmounting are not this file's business: the device comes in open, and the session ends when the mount
//! does.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use fuser::{Config, Filesystem, Session, SessionACL};

use crate::sys::sched::set_slice;

/// Who may use the mount; the kernel must have been told the same by `allow_other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Only who mounted.
    Owner,
    /// Who mounted, and root.
    OwnerAndRoot,
    /// Everybody.
    Everybody,
}

/// The most threads that pay off, as measured; see ARCHITECTURE.md.
const MOST_THREADS: usize = 4;

/// A request is done in less than this; who asked waits while the daemon waits for somebody else's slice to end.
const SLICE: Duration = Duration::from_micros(100);

/// A connection whose handshake is done; requests wait in the kernel until `run`.
pub struct Connection<F: Filesystem>(Session<F>);

/// Answers the kernel's INIT on `device`. `threads`: how many will serve; default min(cores, 4), at least 2.
///
/// Starts no thread: the caller may still change the process's root.
///
/// # Errors
/// As read(2) and write(2) on /dev/fuse, and what `filesystem.init` returns.
pub fn connect<F: Filesystem>(
    filesystem: F,
    device: OwnedFd,
    audience: Audience,
    threads: Option<usize>,
) -> io::Result<Connection<F>> {
    let acl = match audience {
        Audience::Owner => SessionACL::Owner,
        Audience::OwnerAndRoot => SessionACL::RootAndOwner,
        Audience::Everybody => SessionACL::All,
    };
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(threads.unwrap_or_else(default_threads).max(1));
    // A descriptor of its own for each thread made everything slower (fuse-facts), and opens /dev/fuse by its path.
    config.clone_fd = false;
    Session::from_fd(filesystem, device, acl, config).map(Connection)
}

impl<F: Filesystem + Send + Sync + 'static> Connection<F> {
    /// The way to tell the kernel something it has not asked for.
    pub fn notifier(&self) -> fuser::Notifier {
        self.0.notifier()
    }

    /// Serves until the mount is gone, in threads of its own; `Filesystem::destroy` has been called then.
    ///
    /// # Errors
    /// As read(2) on /dev/fuse; as thread creation.
    pub fn run(self) -> io::Result<()> {
        set_slice(SLICE);
        self.0.run()
    }
}

/// min(cores, 4), at least 2, so that one slow request never keeps all others waiting.
fn default_threads() -> usize {
    // Not available_parallelism: that reads files of /sys and /proc.
    let cores = rustix::thread::sched_getaffinity(None).map_or(2, |set| set.count() as usize);
    cores.clamp(2, MOST_THREADS)
}
