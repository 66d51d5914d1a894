//! What the kernel is told without having asked: that something it keeps is not good any more.
//!
//! Invariant: notices are given by the thread of this file, never by one that answers requests. The kernel may need locks
//! for them that it gives back only when a request is answered. The one exception is `store`, for a file that nobody has
//! open: it needs the locks of that file's pages only, and whoever held one would have it open.
//!
//! Not here: how one knows that something changed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use crate::union::ops::behind::Stale;
use crate::union::types::NodeId;

/// The way to the kernel; its thread is started by the first notice.
#[derive(Debug, Default)]
pub struct Notices {
    notifier: OnceLock<Notifier>,
    line: Mutex<Option<Sender<Stale>>>,
}

impl Notices {
    /// From now on there is somebody to tell.
    pub fn connect(&self, notifier: Notifier) {
        if self.notifier.set(notifier).is_err() {
            log::debug!("a connection has one notifier");
        }
    }

    /// Tells the kernel, soon, that it should ask again.
    pub fn tell(&self, notice: Stale) {
        let Some(notifier) = self.notifier.get() else { return };
        let mut line = self.line.lock();
        if let Some(line) = &*line
            && line.send(notice.clone()).is_ok()
        {
            return;
        }
        let (sender, receiver) = channel();
        let notifier = notifier.clone();
        let serve = move || receiver.into_iter().for_each(|notice| speak(&notifier, &notice));
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
