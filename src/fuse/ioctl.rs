//! The ioctls that are answered: the inode flags of chattr(1) and lsattr(1).

use crate::fuse::convert::fsxattr;
use crate::union::Union;
use crate::union::error::{Errno, Result};
use crate::union::types::NodeId;

/// linux/fs.h; the forms of 32-bit programs, whose `long` is shorter, beside them.
const GETFLAGS: [u32; 2] = [0x8008_6601, 0x8004_6601];
const SETFLAGS: [u32; 2] = [0x4008_6602, 0x4004_6602];
/// Before SETFLAGS the kernel asks this one which flags there were; unanswered, chattr(1) would fail.
const FSGETXATTR: u32 = 0x801c_581f;

/// The largest answer, in bytes.
pub(super) const ANSWER: usize = 28;

/// Does what `command` says; returns the answer and how many bytes of it count.
///
/// # Errors
/// `ENOTTY` for every other command; those of the engine.
pub(super) fn ioctl(union: &Union, node: NodeId, command: u32, data: &[u8]) -> Result<([u8; ANSWER], usize)> {
    if GETFLAGS.contains(&command) {
        // The number says `long`, programs and file systems mean `int`: four bytes count.
        union.inode_flags(node).map(|flags| {
            let mut long = [0; 28];
            long[..4].copy_from_slice(&flags.to_ne_bytes());
            (long, 8)
        })
    } else if command == FSGETXATTR {
        union.inode_flags(node).map(|flags| (fsxattr(flags), 28))
    } else if SETFLAGS.contains(&command) {
        let flags = data.first_chunk().ok_or(Errno::INVAL);
        let result = flags.and_then(|flags| union.set_inode_flags(node, u32::from_ne_bytes(*flags)));
        result.map(|()| ([0; 28], 0))
    } else {
        Err(Errno::NOTTY)
    }
}
