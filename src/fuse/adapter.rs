//! STUB until the real one lands: a root directory and nothing in it.
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, ReplyAttr, Request};

use crate::union::Union;

/// Serves a union.
pub struct Adapter {
    _union: Arc<Union>,
}

/// How.
#[derive(Clone, Debug, Default)]
pub struct Settings {}

impl Adapter {
    /// Makes one.
    pub fn new(union: Arc<Union>, _settings: Settings) -> Self {
        Self { _union: union }
    }
}

impl Filesystem for Adapter {
    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOENT);
        }
        let attr = FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::Directory,
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::from_secs(1), &attr);
    }
}
