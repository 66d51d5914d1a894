//! What the kernel is told without having asked: that something it keeps is not good any more.
//!
//! Invariant: notices are given by the thread of this file, never by one that answers requests. The kernel may need locks
//! for them that it gives back only when a request is answered. The one exception is `store`, for a file that nobody has
//! open: it needs the locks of that file's pages only, and whoever held one would have it open.
//!
//! Not here: how one knows that something changed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{RecvTimeoutError, SendError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use crate::fuse::near;
use crate::fuse::offer::Agreed;
use crate::union::Union;
use crate::union::name::Name;
use crate::union::ops::behind::Stale;
use crate::union::types::NodeId;

/// How long a request is held up for a notice that should reach the kernel first. A tenant who holds the locks that the
/// notice needs may wait for the answer himself.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long whoever has changed all is held up.
const LONG_PATIENCE: Duration = Duration::from_secs(10);

/// FUSE_NOTIFY_INVAL_ENTRY of linux/fuse.h. Not FUSE_NOTIFY_INC_EPOCH, by which each name would be found invalid when it is next
/// used, and lose what is mounted on it.
const INVAL_ENTRY: i32 = 3;
/// FUSE_EXPIRE_ONLY: the name is looked up again when it is next used; what is mounted on it stays if it leads there still.
const EXPIRE_ONLY: u32 = 1;

/// A notice, or nothing, and who waits until it has been given.
type Told = (Option<Stale>, Option<Sender<()>>);

/// The way to the kernel: fuser's, and the device for what fuser does not know.
#[derive(Debug)]
struct Kernel {
    notifier: Notifier,
    device: OwnedFd,
}

/// The way to the kernel; its thread is started by the first notice.
#[derive(Debug, Default)]
pub struct Notices {
    kernel: OnceLock<Arc<Kernel>>,
    agreed: Arc<OnceLock<Agreed>>,
    line: Mutex<Option<Sender<Told>>>,
}

impl Notices {
    pub(super) fn new(agreed: Arc<OnceLock<Agreed>>) -> Self {
        Self { agreed, ..Self::default() }
    }

    /// From now on there is somebody to tell.
    pub fn connect(&self, (notifier, device): (Notifier, OwnedFd)) {
        if self.kernel.set(Arc::new(Kernel { notifier, device })).is_err() {
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
        self.send((Some(notice), None));
    }

    /// Tells the kernel and waits, for a moment, until it has heard.
    pub fn tell_first(&self, notice: Stale) {
        // Too late is no harm: the kernel learns of it after the answer then.
        let _in_time = self.wait(Some(notice), PATIENCE);
    }

    /// Tells the kernel all of this, and waits until it has heard.
    pub fn tell_all(&self, stale: Vec<Stale>) {
        stale.into_iter().for_each(|one| self.tell(one));
        if !self.wait(None, LONG_PATIENCE) {
            log::warn!("the kernel takes long to hear of changes; it may show what was before for a while");
        }
    }

    /// Tells the kernel and waits for so long until it has heard; whether it has.
    fn wait(&self, notice: Option<Stale>, patience: Duration) -> bool {
        let (given, heard) = channel::<()>();
        self.send((notice, Some(given)));
        // The end of the other side is the sign.
        heard.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }

    fn send(&self, notice: Told) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut line = self.line.lock();
        let notice = match &*line {
            None => notice,
            Some(line) => match line.send(notice) {
                Ok(()) => return,
                Err(SendError(notice)) => notice,
            },
        };
        let (sender, receiver) = channel();
        let (kernel, expires) = (kernel.clone(), self.agreed.get().is_some_and(|agreed| agreed.expires));
        let serve = move || {
            for (notice, waiting) in receiver {
                if let Some(notice) = notice {
                    kernel.speak(&notice, expires);
                }
                // Its end tells who waits.
                drop(waiting);
            }
        };
        match near::spawn("cowfs-notify", serve) {
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
        self.kernel.get().is_some_and(|kernel| kernel.notifier.store(INodeNo(node.0), 0, data).is_ok())
    }
}

impl Kernel {
    /// `expires`: the kernel can be told to look a name up again, and no more.
    fn speak(&self, notice: &Stale, expires: bool) {
        let told = match notice {
            Stale::Object(node) => self.notifier.inval_inode(INodeNo(node.0), 0, 0),
            Stale::Perhaps(parent, name) | Stale::Dir(parent, name) if expires => self.expire(*parent, name),
            Stale::Name(parent, name) | Stale::Perhaps(parent, name) => {
                self.notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name.as_bytes()))
            }
            // Layers that have come to it or gone are seen when trust in it has run out.
            Stale::Dir(..) => Ok(()),
        };
        if let Err(error) = told
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            // ENOENT: the kernel has forgotten it already.
            log::debug!("{notice:?} cannot be told to the kernel: {error}");
        }
    }

    fn expire(&self, parent: NodeId, name: &Name) -> io::Result<()> {
        let name = name.as_bytes();
        let length = name.len() as u32;
        let head = [&parent.0.to_ne_bytes()[..], &length.to_ne_bytes(), &EXPIRE_ONLY.to_ne_bytes()].concat();
        self.write(INVAL_ENTRY, &[&head, name, b"\0"].concat())
    }

    /// Sends a notice: a fuse_out_header of 16 bytes without a request, whose error is the notice's code, and `body`.
    fn write(&self, code: i32, body: &[u8]) -> io::Result<()> {
        let length = 16 + body.len() as u32;
        let message = [&length.to_ne_bytes()[..], &code.to_ne_bytes(), &0_u64.to_ne_bytes(), body].concat();
        rustix::io::write(&self.device, &message)?;
        Ok(())
    }
}
