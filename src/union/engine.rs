//! STUB (being replaced): the engine's public face, for those who build around it.
#![allow(missing_docs, unused_variables, clippy::too_many_arguments)]
use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use crate::union::error::{Errno, Result};
use crate::union::options::Options;
use crate::union::types::*;

/// One branch as the daemon hands it over: opened, and where privileged a private clone of its mount
/// (read-only for a lower), so that nothing the engine does can reach around it.
pub struct BranchSource {
    /// The path as typed, for messages.
    pub label: String,
    /// `O_PATH|O_DIRECTORY` descriptor of the branch's root.
    pub root: OwnedFd,
    /// Whether this is the upper (at most one).
    pub writable: bool,
    /// Honour `.wh.NAME` in this read-only branch (`=RO+wh`, or from `lowerdir=`).
    pub oci_whiteouts: bool,
}

/// What the union is made of.
pub struct Layout {
    /// Branches, top first; the upper, if any, is the first.
    pub branches: Vec<BranchSource>,
    /// `workdir=`: where stage and index live; `None`: in `.cowfs` inside the upper.
    pub workdir: Option<OwnedFd>,
    /// Directories that the union shows empty, as (st_dev, st_ino): the mountpoint, and roots of branches that lie inside others.
    pub covered: Vec<(u64, u64)>,
}

pub struct Union;

/// What an open file's or directory's request is answered with.
impl Union {
    /// The error text is complete: it quotes the offending branch and says what to do.
    pub fn open(layout: Layout, options: Options) -> std::result::Result<Self, String> { Ok(Self) }
    /// ENOENT when absent. Counts one reference until `forget`.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry> { Err(Errno::NOSYS) }
    pub fn forget(&self, node: NodeId, count: u64) {}
    pub fn getattr(&self, node: NodeId, handle: Option<HandleId>) -> Result<Attr> { Err(Errno::NOSYS) }
    pub fn setattr(&self, node: NodeId, handle: Option<HandleId>, set: &SetAttr, caller: &Caller) -> Result<Attr> { Err(Errno::NOSYS) }
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> { Err(Errno::NOSYS) }
    /// `mode` as st_mode with type; `rdev` = (major, minor). Creation calls count one reference, as lookup does.
    pub fn mknod(&self, parent: NodeId, name: &OsStr, mode: u32, rdev: (u32, u32), caller: &Caller) -> Result<Entry> { Err(Errno::NOSYS) }
    pub fn mkdir(&self, parent: NodeId, name: &OsStr, mode: u32, caller: &Caller) -> Result<Entry> { Err(Errno::NOSYS) }
    pub fn symlink(&self, parent: NodeId, name: &OsStr, target: &OsStr, caller: &Caller) -> Result<Entry> { Err(Errno::NOSYS) }
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> { Err(Errno::NOSYS) }
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> { Err(Errno::NOSYS) }
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> { Err(Errno::NOSYS) }
    /// `flags` as renameat2(2).
    pub fn rename(&self, parent: NodeId, name: &OsStr, newparent: NodeId, newname: &OsStr, flags: u32) -> Result<()> { Err(Errno::NOSYS) }
    /// `flags` as open(2): access mode, O_TRUNC, O_APPEND, ...
    pub fn open_file(&self, node: NodeId, flags: i32, caller: &Caller) -> Result<HandleId> { Err(Errno::NOSYS) }
    pub fn create(&self, parent: NodeId, name: &OsStr, mode: u32, flags: i32, caller: &Caller) -> Result<(Entry, HandleId)> { Err(Errno::NOSYS) }
    pub fn read(&self, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> { Err(Errno::NOSYS) }
    pub fn write(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<usize> { Err(Errno::NOSYS) }
    pub fn flush(&self, handle: HandleId) -> Result<()> { Err(Errno::NOSYS) }
    pub fn release(&self, handle: HandleId) {}
    pub fn fsync(&self, handle: HandleId, datasync: bool) -> Result<()> { Err(Errno::NOSYS) }
    /// `mode` as fallocate(2).
    pub fn fallocate(&self, handle: HandleId, mode: i32, offset: u64, length: u64) -> Result<()> { Err(Errno::NOSYS) }
    /// SEEK_DATA and SEEK_HOLE (the kernel does the rest).
    pub fn lseek(&self, handle: HandleId, offset: i64, whence: i32) -> Result<i64> { Err(Errno::NOSYS) }
    pub fn copy_file_range(&self, from: HandleId, from_offset: u64, to: HandleId, to_offset: u64, length: u64) -> Result<usize> { Err(Errno::NOSYS) }
    /// FS_IOC_GETFLAGS; ENOTTY where the branch has none.
    pub fn inode_flags(&self, node: NodeId) -> Result<u32> { Err(Errno::NOSYS) }
    /// FS_IOC_SETFLAGS.
    pub fn set_inode_flags(&self, node: NodeId, flags: u32) -> Result<()> { Err(Errno::NOSYS) }
    pub fn opendir(&self, node: NodeId) -> Result<HandleId> { Err(Errno::NOSYS) }
    /// Lists from `offset` (0 or some entry's `next`) until `each` answers false ("no room").
    pub fn readdir(&self, handle: HandleId, offset: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> { Err(Errno::NOSYS) }
    pub fn releasedir(&self, handle: HandleId) {}
    pub fn fsyncdir(&self, handle: HandleId, datasync: bool) -> Result<()> { Err(Errno::NOSYS) }
    /// Never blocks on a branch longer than one statfs(2) of the upper.
    pub fn statfs(&self) -> Result<StatFs> { Err(Errno::NOSYS) }
    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> { Err(Errno::NOSYS) }
    /// `flags` as setxattr(2).
    pub fn setxattr(&self, node: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()> { Err(Errno::NOSYS) }
    /// NUL-terminated names, as listxattr(2).
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> { Err(Errno::NOSYS) }
    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> { Err(Errno::NOSYS) }
    /// Called once after the mount is gone: tidies the private area.
    pub fn close(&self) {}
}
