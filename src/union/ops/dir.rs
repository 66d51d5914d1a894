//! Open directories: the listing is taken when reading starts, and stays as it is until it starts over.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::union::engine::Union;
use crate::union::error::Result;
use crate::union::handle::{Handle, OpenDir};
use crate::union::merge::{Listing, merge};
use crate::union::node::Node;
use crate::union::types::{DirEntry, HandleId, NodeId};

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
