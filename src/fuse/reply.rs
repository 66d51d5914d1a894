//! Answers: what is sent back for each kind of result, and how long the kernel may trust it.
//!
//! Not here: how values look in fuser's words (`convert`), answers to opens (`opening`).

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, ReplyXattr};

use crate::fuse::convert::{errno, file_attr};
use crate::fuse::near::Asker;
use crate::fuse::notify::Notices;
use crate::fuse::owners::Owners;
use crate::fuse::passthrough::Modes;
use crate::fuse::pulse::during;
use crate::union::Union;
use crate::union::error::Result;
use crate::union::name::NAME_MAX;
use crate::union::ops::behind::Stale;
use crate::union::types::{Attr, DirEntry, Entry, Ino, NodeId, StatFs, Time, Trust};

/// The longest value, and the longest list of names, of extended attributes, in bytes: XATTR_SIZE_MAX, XATTR_LIST_MAX.
const MAX_XATTR: usize = 64 << 10;

/// The size from which on a buffer is not kept, in bytes: no request of the kernel's is larger.
const KEPT_BUFFER: usize = 1 << 20;

/// How long the kernel may trust what only requests can change.
const SETTLED_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long it may trust a lower branch of this machine: an administrator's change is seen after this time.
const LOCAL_TTL: Duration = Duration::from_secs(10);
/// How long it may trust a branch of another machine.
const REMOTE_TTL: Duration = Duration::from_secs(1);

/// What the answers tell the kernel beside the facts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a name may be trusted; default: by what kind of branch it is in.
    pub entry_ttl: Option<Duration>,
    /// How long attributes may be trusted; default: likewise.
    pub attr_ttl: Option<Duration>,
    /// How long the absence of a name may be trusted (zero: not at all); default: likewise.
    pub negative_ttl: Option<Duration>,
    /// File data by-passes the page cache.
    pub direct_io: bool,
    /// Old descriptors of lower files see what is written later, whatever the files are.
    pub coherent: bool,
    /// Changes of lower branches of this machine are told to the kernel as they happen.
    pub watched: bool,
    /// Files may be handed to the kernel.
    pub passthrough: bool,
    /// POSIX ACLs are honoured (the kernel then checks all permissions, whatever else was asked).
    pub acl: bool,
    /// Whose objects are shown to be.
    pub owners: Arc<Owners>,
    /// Every directory is shown with one name (`static_nlink`).
    pub static_nlink: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            entry_ttl: None,
            attr_ttl: None,
            negative_ttl: None,
            direct_io: false,
            coherent: false,
            watched: false,
            passthrough: true,
            acl: true,
            owners: Arc::default(),
            static_nlink: false,
        }
    }
}

/// Knows how long what the union tells may be trusted.
#[derive(Clone)]
pub(super) struct Answers {
    settings: Settings,
    /// Whose attributes may change unheard.
    modes: Arc<Modes>,
    notices: Arc<Notices>,
}

impl Answers {
    pub(super) fn new(settings: Settings, modes: Arc<Modes>, notices: Arc<Notices>) -> Self {
        Self { settings, modes, notices }
    }

    /// How long to trust what was just told, `settled` or not, unless an option says otherwise.
    fn ttl(&self, union: &Union, asked: Option<Duration>, settled: bool) -> Duration {
        asked.unwrap_or_else(|| match union.trust() {
            _ if settled => SETTLED_TTL,
            Trust::Remote => REMOTE_TTL,
            Trust::Local if !self.settings.watched => LOCAL_TTL,
            Trust::Local | Trust::Immutable => SETTLED_TTL,
        })
    }

    /// What an entry's answer carries: attributes, and how long to trust them and the name.
    ///
    /// fuser sends `attr.ino` as the node id. Where the two differ (the root's other name, a split inode, two inodes
    /// of one number) the node id has to go there, and nothing of the attributes may be trusted: the kernel asks again
    /// before it shows them, and `getattr` tells the true number.
    pub(super) fn entry(&self, union: &Union, entry: &Entry) -> (fuser::FileAttr, Duration, Duration) {
        let attr = self.shown(&entry.attr);
        let ttl = self.ttl(union, self.settings.entry_ttl, entry.attr.settled);
        if entry.node.0 == entry.attr.ino.0 {
            (attr, self.attr_ttl(union, entry.node, &entry.attr), ttl)
        } else {
            (fuser::FileAttr { ino: INodeNo(entry.node.0), ..attr }, Duration::ZERO, ttl)
        }
    }

    /// What the kernel is told of an object.
    fn shown(&self, attr: &Attr) -> fuser::FileAttr {
        let mut shown = file_attr(&self.settings.owners.shown(attr));
        if self.settings.static_nlink && shown.kind == fuser::FileType::Directory {
            shown.nlink = 1;
        }
        shown
    }

    /// What is told of an entry of a listing, which was looked up or not.
    pub(super) fn listed(
        &self,
        union: &Union,
        entry: &DirEntry<'_>,
        known: Option<&Entry>,
    ) -> (fuser::FileAttr, Duration, Generation) {
        let Some(known) = known else {
            // The kernel neither enters nor counts `.` and `..`. Nor any other name called the root's number: it lists the
            // name, looks nothing up, and asks for it when somebody else does. (Node id 0 would say the same, and a number
            // 0 too, which readdir(3) leaves out.)
            let dots = matches!(entry.name, b"." | b"..");
            let ino = if dots { entry.ino } else { Ino(NodeId::ROOT.0) };
            let attr = Attr { ino, mode: entry.kind.as_raw_mode(), ..NOTHING };
            return (file_attr(&attr), Duration::ZERO, Generation(0));
        };
        let (attr, attr_ttl, ttl) = self.entry(union, known);
        (attr, attr_ttl.min(ttl), Generation(known.generation.0.into()))
    }

    pub(super) fn reply_entry(&self, union: &Union, result: Result<Entry>, reply: ReplyEntry) {
        match result {
            Ok(entry) => {
                let (attr, attr_ttl, ttl) = self.entry(union, &entry);
                reply.entry_with_ttls(&attr_ttl, &ttl, &attr, Generation(entry.generation.0.into()));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// How long to trust the attributes of `node`, which are about to be told.
    fn attr_ttl(&self, union: &Union, node: NodeId, attr: &Attr) -> Duration {
        // The kernel keeps a listing for as long as the time of change that it is told is the same.
        if attr.kind().is_dir() && union.has_stale_listing(node) {
            self.notices.tell(Stale::Object(node));
        }
        if self.modes.is_restless(node) {
            Duration::ZERO
        } else {
            self.ttl(union, self.settings.attr_ttl, attr.settled)
        }
    }

    pub(super) fn reply_attr(&self, union: &Union, node: NodeId, result: Result<Attr>, reply: ReplyAttr) {
        match result {
            Ok(attr) => reply.attr(&self.attr_ttl(union, node, &attr), &self.shown(&attr)),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// How long the kernel may trust that `parent` has no such name.
    pub(super) fn absence_ttl(&self, union: &Union, parent: NodeId) -> Duration {
        match self.settings.negative_ttl {
            Some(asked) => asked,
            None => self.ttl(union, None, union.absence_is_settled(parent)),
        }
    }
}

/// Runs the body of a request of `from`. If it panics its reply object is dropped, which makes fuser answer EIO.
pub(super) fn guard(from: Asker, request: &'static str, body: impl FnOnce()) {
    during(from, request, || caught(request, body).unwrap_or_default());
}

/// What `body` returns; `None`, and a line in the log, if it panics.
pub(super) fn caught<T>(request: &str, body: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(body));
    let logged = done.inspect_err(|panic| {
        let message = panic.downcast_ref::<&str>().copied();
        let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        log::error!("{request}: panic: {}; answered EIO", message.unwrap_or("(no message)"));
    });
    logged.ok()
}

pub(super) fn reply_empty(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn reply_written(result: Result<usize>, reply: ReplyWrite) {
    match result {
        // No request is longer than an u32, so no result is.
        Ok(length) => reply.written(u32::try_from(length).unwrap_or(u32::MAX)),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn reply_statfs(result: Result<StatFs>, reply: ReplyStatfs) {
    match result {
        Ok(fs) => {
            reply.statfs(fs.blocks, fs.bfree, fs.bavail, fs.files, fs.ffree, fs.bsize, NAME_MAX as u32, fs.frsize);
        }
        Err(error) => reply.error(errno(error)),
    }
}

/// `size` 0 asks for the length; a value that does not fit is ERANGE, as getxattr(2) and listxattr(2).
pub(super) fn reply_xattr(result: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if value.len() > MAX_XATTR => reply.error(fuser::Errno::E2BIG),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}

/// Lends a buffer of `size` bytes that the thread keeps, up to the size of the largest request.
pub(super) fn with_buffer<T>(size: usize, body: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    if size > KEPT_BUFFER {
        return body(&mut vec![0; size]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        body(&mut buffer[..size])
    })
}

/// The attributes of nothing: node id 0 means that the name is absent, and may be trusted to be.
pub(super) fn absent() -> fuser::FileAttr {
    file_attr(&NOTHING)
}

const NOTHING: Attr = Attr {
    ino: Ino(0),
    size: 0,
    blocks: 0,
    atime: Time { sec: 0, nsec: 0 },
    mtime: Time { sec: 0, nsec: 0 },
    ctime: Time { sec: 0, nsec: 0 },
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: (0, 0),
    blksize: 0,
    settled: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_in_the_guard() {
        guard(0, "test", || panic!("{}", "on purpose"));
        guard(0, "test", || std::panic::panic_any(7));
    }

    #[test]
    fn the_buffer_has_the_size_asked_for() {
        for size in [0, 1, 4096, 10, KEPT_BUFFER, KEPT_BUFFER + 1, 3] {
            with_buffer(size, |buffer| {
                assert_eq!(buffer.len(), size);
                buffer.fill(1);
            });
        }
    }
}
