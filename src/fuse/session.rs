//! One FUSE connection, from the kernel's first message to its end: who may enter, how many threads serve.
//!
//! Mounting and unmounting are not this file's business: the device comes in open, and the session ends when the mount
//! does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, Filesystem, Session, SessionACL};
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::fuse::pulse::{self, Watch};
use crate::sys::process;

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

/// A connection whose handshake is done; requests wait in the kernel until `run`.
pub struct Connection<F: Filesystem> {
    session: Session<F>,
    acl: SessionACL,
    threads: usize,
}

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
    let threads = threads.unwrap_or_else(default_threads).max(1);
    let session = Session::from_fd(filesystem, device, acl, config(acl, threads))?;
    Ok(Connection { session, acl, threads })
}

fn config(acl: SessionACL, threads: usize) -> Config {
    let mut config = Config::default();
    (config.acl, config.n_threads) = (acl, Some(threads));
    // A descriptor of its own for each thread made everything slower (fuse-facts), and opens /dev/fuse by its path.
    config.clone_fd = false;
    config
}

impl<F: Filesystem + Send + Sync + 'static> Connection<F> {
    /// The way to tell the kernel something it has not asked for: fuser's, and the device itself.
    ///
    /// # Errors
    /// As dup(2).
    pub fn notifier(&self) -> io::Result<(fuser::Notifier, OwnedFd)> {
        let device = self.session.as_fd().try_clone_to_owned()?;
        DEVICES.lock().push(device.as_raw_fd());
        Ok((self.session.notifier(), device))
    }

    /// Serves until the mount is gone, in threads of its own; `Filesystem::destroy` has been called then. `spare` serves when
    /// all of them wait; `patience` is how long a request may take before the process ends.
    ///
    /// # Errors
    /// As read(2) on /dev/fuse; as thread creation; as dup(2).
    pub fn run(self, spare: F, patience: Option<Duration>) -> io::Result<()>
    where
        F: Clone,
    {
        let device = self.session.as_fd().try_clone_to_owned()?;
        DEVICES.lock().extend([self.session.as_fd().as_raw_fd(), device.as_raw_fd()]);
        let acl = self.acl;
        let more = move |threads| serve_more(spare.clone(), device.as_fd(), acl, threads);
        pulse::start(self.threads, Watch { patience, more: Box::new(more), give_up: Box::new(give_up) });
        self.session.run()
    }
}

/// The numbers of all descriptors of /dev/fuse.
static DEVICES: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());
/// Those who serve beside the first.
static SPARES: Mutex<Vec<JoinHandle<io::Result<()>>>> = Mutex::new(Vec::new());

/// Starts more threads on a connection that is served already.
///
/// fuser can only begin a connection. So the new session begins one with a socket, on which the kernel's first message lies;
/// then the device takes the socket's place.
fn serve_more<F>(filesystem: F, device: BorrowedFd<'_>, acl: SessionACL, threads: usize) -> io::Result<()>
where
    F: Filesystem + Send + Sync + 'static,
{
    let (socket, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&other, &greeting())?;
    let session = Session::from_fd(filesystem, socket, acl, config(acl, threads))?;
    let number = session.as_fd().as_raw_fd();
    process::replace(number, device)?;
    DEVICES.lock().push(number);
    let thread = std::thread::Builder::new().name("cowfs-spare".into()).spawn(move || session.run())?;
    SPARES.lock().push(thread);
    Ok(())
}

/// FUSE_INIT of protocol 7.31: a fuse_in_header of 40 bytes, and a fuse_init_in of 64 that offers nothing.
fn greeting() -> [u8; 104] {
    let mut message = [0; 104];
    for (at, value) in [(0, 104_u32), (4, 26), (8, 1), (40, 7), (44, 31)] {
        message[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    message
}

/// Waits until the further threads have done what they are at; the mount is gone.
pub(super) fn join_spares() {
    let spares = std::mem::take(&mut *SPARES.lock());
    for spare in spares {
        match spare.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("a serving thread ended: {error}"),
            Err(_) => log::error!("a serving thread ended by a panic"),
        }
    }
}

/// Ends the process so that the kernel ends the connection at once: threads that wait in the kernel outlive the others, with
/// all that is open. So /dev/fuse is closed first, by putting something else in its place.
pub(crate) fn give_up() {
    for &number in &*DEVICES.lock() {
        if let Err(errno) = process::replace(number, rustix::stdio::stdin()) {
            log::error!("the connection cannot be ended: {errno}");
        }
    }
    process::exit_now(1);
}

/// min(cores, 4), at least 2, so that one slow request never keeps all others waiting.
fn default_threads() -> usize {
    // Not available_parallelism: that reads files of /sys and /proc.
    let cores = rustix::thread::sched_getaffinity(None).map_or(2, |set| set.count() as usize);
    cores.clamp(2, MOST_THREADS)
}
