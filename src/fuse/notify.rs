//! What the kernel is told without having asked: that something it keeps is not good any more.
//!
//! Invariant: notices are given by the thread of this file, never by one that answers requests. The kernel may need locks
//! for them that it gives back only when a request is answered. The one exception is `store`, for a file that nobody has
//! open: it needs the locks of that file's pages only, and whoever held one would have it open.
//!
//! Not here: how one knows that something changed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use crate::union::Union;
use crate::union::ops::behind::Stale;
use crate::union::types::NodeId;

/// How long a request is held up for a notice that should reach the kernel first. A tenant who holds the locks that the
/// notice needs may wait for the answer himself.
const PATIENCE: Duration = Duration::from_millis(20);

/// A notice, and who waits until it has been given.
type Told = (Stale, Option<Sender<()>>);

/// The way to the kernel; its thread is started by the first notice.
#[derive(Debug, Default)]
pub struct Notices {
    notifier: OnceLock<Notifier>,
    line: Mutex<Option<Sender<Told>>>,
}

impl Notices {
    /// From now on there is somebody to tell.
    pub fn connect(&self, notifier: Notifier) {
        if self.notifier.set(notifier).is_err() {
            log::debug!("a connection has one notifier");
        }
    }

    /// Tells the kernel, before the request is answered, of names that come to a directory while somebody lists it. It puts
    /// the parts it is given into one listing, whoever asked for them, and would go on with what was there before.
    pub fn follow(self: &Arc<Self>, union: &Union) {
        let notices = self.clone();
        union.when_disturbed(Box::new(move |node| notices.tell_first(Stale::Object(node))));
    }

    /// Tells the kernel, soon, that it should ask again.
    pub fn tell(&self, notice: Stale) {
        self.send((notice, None));
    }

    /// Tells the kernel and waits, for a moment, until it has heard.
    pub fn tell_first(&self, notice: Stale) {
        let (given, heard) = channel();
        self.send((notice, Some(given)));
        // Too late is no harm: the kernel learns of it after the answer then.
        let _in_time = heard.recv_timeout(PATIENCE);
    }

    fn send(&self, notice: Told) {
        let Some(notifier) = self.notifier.get() else { return };
        let mut line = self.line.lock();
        let notice = match &*line {
            None => notice,
            Some(line) => match line.send(notice) {
                Ok(()) => return,
                Err(SendError(notice)) => notice,
            },
        };
        let (sender, receiver) = channel();
        let notifier = notifier.clone();
        let serve = move || {
            for (notice, waiting) in receiver {
                speak(&notifier, &notice);
                // Its end tells who waits.
                drop(waiting);
            }
        };
        match std::thread::Builder::new().name("cowfs-notify".into()).spawn(serve) {
            Ok(_) => {
                if sender.send(notice).is_ok() {
                    *line = Some(sender);
                }
            }
            // The kernel will ask by itself when its trust has run out.
            Err(error) => log::warn!("a change cannot be told to the kernel: no thread: {error}"),
        }
    }

    /// Puts `data` into the kernel's page cache, from the beginning of a file that nobody has open; whether it did.
    pub fn store(&self, node: NodeId, data: &[u8]) -> bool {
        self.notifier.get().is_some_and(|notifier| notifier.store(INodeNo(node.0), 0, data).is_ok())
    }
}

fn speak(notifier: &Notifier, notice: &Stale) {
    let told = match notice {
        Stale::Object(node) => notifier.inval_inode(INodeNo(node.0), 0, 0),
        Stale::Name(parent, name) => notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name.as_bytes())),
    };
    if let Err(error) = told
        && error.raw_os_error() != Some(libc::ENOENT)
    {
        // ENOENT: the kernel has forgotten it already.
        log::debug!("{notice:?} cannot be told to the kernel: {error}");
    }
}
