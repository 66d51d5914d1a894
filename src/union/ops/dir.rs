//! Open directories: the listing is taken when reading starts, and stays as it is until it starts over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::union::engine::Union;
use crate::union::error::{Errno, Result};
use crate::union::handle::{Handle, OpenDir};
use crate::union::merge::{Listing, merge};
use crate::union::name::Name;
use crate::union::node::Node;
use crate::union::ops::open::{FIRST_STAMP, mix};
use crate::union::types::{DirEntry, Entry, HandleId, NodeId, Opened};

impl Union {
    /// Opens a directory for listing.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOENT` for one that was removed.
    pub fn opendir(&self, node: NodeId) -> Result<HandleId> {
        let node = self.table.get(node)?;
        node.layers()?;
        Ok(self.handles.add(Handle::Dir(OpenDir { node, listing: Mutex::new(None) })))
    }

    /// As `opendir`, and whether the directory is what it was at the last such call: a listing kept from then is good.
    ///
    /// # Errors
    /// As `opendir`; those of statx(2).
    pub fn opendir_again(&self, node: NodeId) -> Result<Opened> {
        let handle = self.opendir(node)?;
        let node = self.table.get(node)?;
        let mut stamp = FIRST_STAMP;
        for dir in node.layers()?.iter().filter(|dir| dir.is_real()) {
            let stat = dir.itself()?.stat()?;
            stamp = mix(stamp, &[stat.ino, stat.mtime.sec.cast_unsigned(), stat.mtime.nsec.into()]);
        }
        let unchanged = node.pages.swap(stamp, Ordering::AcqRel) == stamp;
        Ok(Opened { handle, unchanged })
    }

    /// As `readdir`, with what `lookup` would tell of each name but `.` and `..`, each counted as by `lookup` if it is
    /// taken.
    ///
    /// # Errors
    /// As `readdir`.
    pub fn readdir_plus(
        &self,
        handle: HandleId,
        offset: u64,
        each: &mut dyn FnMut(DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let open = self.handles.get(handle)?;
        let node = open.dir()?.node.clone();
        let mut failed = None;
        self.readdir(handle, offset, &mut |entry| {
            if matches!(entry.name, b"." | b"..") {
                return each(entry, None);
            }
            match self.look_entry(&node, entry.name) {
                Ok(known) => {
                    let taken = each(entry, Some(&known));
                    if !taken {
                        self.forget(known.node, 1);
                    }
                    taken
                }
                // Gone since the listing was taken.
                Err(Errno::NOENT) => true,
                Err(errno) => {
                    failed = Some(errno);
                    false
                }
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn look_entry(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Entry> {
        let name = Name::new(name)?;
        let _shared = parent.children.read();
        Ok(self.entry(self.look(parent, &name)?))
    }

    /// Lists from `offset` (0, or some entry's `next`) until `each` answers false ("no room").
    ///
    /// # Errors
    /// Those of reading the branches.
    pub fn readdir(&self, handle: HandleId, offset: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let handle = self.handles.get(handle)?;
        let open = handle.dir()?;
        let listing = {
            let mut slot = open.listing.lock();
            match &*slot {
                Some(listing) if offset > 0 => listing.clone(),
                _ => slot.insert(Arc::new(self.listing(&open.node)?)).clone(),
            }
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for position in start.. {
            let Some((name, kind, ino)) = listing.get(position) else { break };
            if !each(DirEntry { ino, kind, name, next: position as u64 + 1 }) {
                break;
            }
        }
        Ok(())
    }

    fn listing(&self, node: &Arc<Node>) -> Result<Listing> {
        let _shared = node.children.read();
        let layers = node.layers()?;
        let mut number = |dir: &Arc<_>, name: &[u8], ino| self.numbers.listed(&self.stack, dir, name, ino);
        let mut listing = merge(&self.stack, &layers, &mut number)?;
        listing.push(b".", FileType::Directory, node.ino);
        listing.push(b"..", FileType::Directory, node.parent_ino());
        Ok(listing)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: HandleId) {
        self.release(handle);
    }

    /// As fsync(2) on a directory: what was created and removed in it is on disk.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsyncdir(&self, handle: HandleId, datasync: bool) -> Result<()> {
        let handle = self.handles.get(handle)?;
        let node = &handle.dir()?.node;
        let Some(dir) = node.upper_dir(&self.stack) else { return Ok(()) };
        if self.stack.upper()?.volatile {
            return Ok(());
        }
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let fd = dir.itself()?.open(flags)?;
        if datasync { rustix::fs::fdatasync(&fd) } else { rustix::fs::fsync(&fd) }
    }
}
