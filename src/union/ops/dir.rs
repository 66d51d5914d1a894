//! Listing directories, a part at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;

use crate::union::branch::RealDir;
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result};
use crate::union::listing::{Listener, Listing};
use crate::union::merge::merge;
use crate::union::name::Name;
use crate::union::node::Node;
use crate::union::ops::open::{FIRST_STAMP, mix};
use crate::union::resolve::find_from;
use crate::union::types::{DirEntry, Entry, NodeId};

impl Union {
    /// As `readdir`, with what `lookup` would tell of each name, counted as by `lookup` if it is taken. Of `.` and `..`,
    /// and of a name whose look-up fails, nothing: getdents(2) lists such a name too, and who looks it up is told why.
    ///
    /// # Errors
    /// As `readdir`.
    pub fn readdir_plus(
        &self,
        node: NodeId,
        offset: u64,
        each: &mut dyn FnMut(DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let parent = self.table.get(node)?;
        self.readdir(node, offset, &mut |entry| {
            if matches!(entry.name, b"." | b"..") {
                return each(entry, None);
            }
            match self.look_entry(&parent, &entry) {
                Ok(known) => {
                    let taken = each(entry, Some(&known));
                    if !taken {
                        self.forget(known.node, 1);
                    }
                    taken
                }
                // Gone since the listing was taken.
                Err(Errno::NOENT) => true,
                failed => {
                    let _the_name_alone = failed.during("look up a listed name", entry.name.escape_ascii().to_string());
                    each(entry, None)
                }
            }
        })
    }

    fn look_entry(&self, parent: &Arc<Node>, entry: &DirEntry<'_>) -> Result<Entry> {
        let name = Name::new(entry.name)?;
        // A directory may have marks in layers that it is not in.
        let layer = if entry.kind.is_dir() { 0 } else { entry.layer.into() };
        let _shared = parent.children.read();
        match find_from(&self.stack, &parent.layers()?, &name, layer)? {
            Some(found) => Ok(self.entry(self.enter(parent, &name, found)?)),
            // An administrator may have moved it up.
            None => Ok(self.entry(self.look(parent, &name)?)),
        }
    }

    /// `listener` is told, before a request is answered, of each directory to which it has brought a name while somebody
    /// reads the directory's listing. To be called once.
    pub fn when_disturbed(&self, listener: Listener) {
        let _known_already = self.readings.listener.set(listener);
    }

    /// Lists from `offset` (0, or some entry's `next`) until `each` answers false ("no room").
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOENT` for a directory that was removed; those of reading the branches.
    pub fn readdir(&self, node: NodeId, offset: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let node = self.table.get(node)?;
        let begun = if offset > 0 { self.readings.begun(node.id) } else { None };
        let listing = match begun {
            Some(listing) => listing,
            None => {
                // Until it is kept: a listing from before a change must not come after one that was taken after it.
                let _shared = node.children.read();
                let listing = self.readings.begin(self.listing(&node)?);
                self.readings.keep(node.id, listing.clone());
                listing
            }
        };
        let mut rest = listing.after(offset).peekable();
        if rest.peek().is_none() {
            self.readings.end(&listing);
            return Ok(());
        }
        rest.all(each);
        Ok(())
    }

    /// To be called with the directory's `children` held.
    fn listing(&self, node: &Arc<Node>) -> Result<Listing> {
        let layers = node.layers()?;
        node.pages.store(self.listing_stamp(&layers)?, Ordering::Release);
        let mut number = |dir: &Arc<RealDir>, name: &[u8], ino| match self.table.number_of((dir.identity().0, ino)) {
            Some(shown) => Ok(shown),
            None => self.numbers.listed(&self.stack, dir, name, ino),
        };
        let mut listing = merge(&self.stack, &layers, &mut number)?;
        listing.push(b".", FileType::Directory, node.ino, 0);
        listing.push(b"..", FileType::Directory, node.parent_ino(), 0);
        Ok(listing)
    }

    /// Whether a directory was changed after it was listed where its attributes do not show it: in a branch below its
    /// topmost one. Told once for each listing; an error of a branch shows up when the directory is listed.
    pub fn has_stale_listing(&self, node: NodeId) -> bool {
        let Ok(node) = self.table.get(node) else { return false };
        let listed = node.pages.load(Ordering::Acquire);
        if !node.is_dir() || listed == 0 {
            return false;
        }
        let now = node.layers().and_then(|layers| self.listing_stamp(&layers));
        let stale = now.is_ok_and(|now| now != listed);
        stale && node.pages.compare_exchange(listed, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// One number for the state of all layers but the first, whose time of change the kernel sees itself; never 0.
    fn listing_stamp(&self, layers: &[Arc<RealDir>]) -> Result<u64> {
        let mut stamp = FIRST_STAMP;
        for dir in layers.iter().skip(1).filter(|dir| dir.is_real()) {
            let stat = dir.itself()?.stat()?;
            stamp = mix(stamp, &[stat.ino, stat.mtime.sec.cast_unsigned(), stat.mtime.nsec.into()]);
        }
        Ok(stamp.max(1))
    }

    /// As fsync(2) on a directory: what was created and removed in it is on disk.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsyncdir(&self, node: NodeId, datasync: bool) -> Result<()> {
        let node = self.table.get(node)?;
        let Some(dir) = node.upper_dir(&self.stack) else { return Ok(()) };
        if self.stack.upper()?.volatile {
            return Ok(());
        }
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let fd = dir.itself()?.open(flags)?;
        if datasync { rustix::fs::fdatasync(&fd) } else { rustix::fs::fsync(&fd) }
    }
}
