//! `watch`: hears of changes of the lower branches and tells the kernel what it must not trust any more.
//!
//! Needs the right to be told of everything that happens on a filesystem (CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH on the
//! machine itself). Changes of the upper arrive too, where it shares a lower's filesystem, and concern nobody: the engine
//! finds no lower directory for them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::daemon::resolve::{Checked, describe};
use crate::fuse::Current;
use crate::fuse::notify::Notices;
use crate::sys::fanotify::{self, Event};
use crate::union::Union;
use crate::union::stack::trust_of;
use crate::union::types::Trust;

/// Bytes of events taken at once.
const BUFFER: usize = 16 << 10;

/// A watch that has begun: from now on nothing is missed.
#[derive(Clone)]
pub(super) struct Watch(Arc<OwnedFd>);

/// The option, refused by the kernel.
fn refused(errno: Errno) -> String {
    format!(
        "option 'watch': the kernel does not report changes of the lower branches: {}; leave the option out: changes will \
         be seen after ten seconds",
        describe(errno)
    )
}

/// Begins to watch the lowers of `union`.
///
/// # Errors
/// A line that says why the kernel does not tell of changes.
pub(super) fn begin(union: &Union) -> Checked<Watch> {
    let events = fanotify::open().map_err(refused)?;
    for on in union.follow_lowers() {
        fanotify::mark(events.as_fd(), on).map_err(refused)?;
    }
    if union.trust() == Trust::Remote {
        log::warn!(
            "option 'watch': a lower branch is another machine's, which does not report changes: they are seen \
                    after a second, as without the option"
        );
    }
    Ok(Watch(Arc::new(events)))
}

impl Watch {
    /// Tells the kernel of every change, on a thread of its own, as long as the process lives.
    ///
    /// # Errors
    /// As thread creation.
    pub(super) fn start(self, union: Arc<Current>, notices: Arc<Notices>) -> std::io::Result<()> {
        let watch = move || self.serve(&union, &notices);
        std::thread::Builder::new().name("cowfs-lowers".into()).spawn(watch).map(drop)
    }

    /// Hears of changes on the filesystem that `on`, a readable directory, lies on, if it can tell of all.
    ///
    /// # Errors
    /// A line that says why the kernel does not tell of them.
    pub(super) fn add(&self, on: BorrowedFd<'_>) -> Checked<()> {
        if trust_of(on).map_err(refused)? != Trust::Local {
            return Ok(());
        }
        fanotify::mark(self.0.as_fd(), on).map_err(refused)
    }

    /// Hears no more of the filesystem that `on` lies on.
    pub(super) fn remove(&self, on: BorrowedFd<'_>) {
        if let Err(errno) = fanotify::unmark(self.0.as_fd(), on) {
            log::debug!("changes of a former lower branch are heard of still: {}", describe(errno));
        }
    }

    fn serve(&self, union: &Current, notices: &Notices) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let mut tell = |stale| notices.tell(stale);
            let done = fanotify::read(self.0.as_fd(), &mut buffer, &mut |event| match event {
                Event::Changed(dir, name) => union.with(|union| union.changed_behind(&dir, name, &mut tell)),
                Event::Overflow => union.with(|union| union.all_shown(&mut tell)),
            });
            if let Err(errno) = done {
                // The kernel trusts what it was told for a day: better to ask again for all of it than to be silent.
                log::error!("changes of the lower branches are not heard of any more: {}", describe(errno));
                union.with(|union| union.all_shown(&mut tell));
                return;
            }
        }
    }
}
