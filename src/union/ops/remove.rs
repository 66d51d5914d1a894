//! Taking names away: `unlink` and `rmdir`.
//!
//! A name may exist in several branches at once, so "remove" means: take the object out of the upper, if it is there,
//! and leave a whiteout if anything remains visible beneath. A lower object is never copied up in order to be deleted.
//!
//! Invariant: at no moment does the name show something it did not show before or after; the order of the steps is the
//! format's (`marks::write`).
//!
//! A file that loses its last name may still be open: its node keeps a descriptor from before.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::union::branch::{At, Presence, RealDir, Stat};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result};
use crate::union::index::Record;
use crate::union::merge::merge;
use crate::union::name::Name;
use crate::union::node::{Body, Node};
use crate::union::ops::name_of;
use crate::union::resolve::{Found, find, lies_below};
use crate::union::types::NodeId;

/// What has to happen in the branches for a name to be gone. Computed without changing anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Removal {
    /// The upper has an object to take away.
    pub take: bool,
    /// Something must be hidden.
    pub hide: bool,
}

impl Removal {
    /// For an object found in the upper or not, with something `below` it or not.
    pub(super) fn plan(in_upper: bool, below: bool) -> Self {
        // An object of a lower branch is itself "beneath": with nothing to take, it must be hidden.
        Self { take: in_upper, hide: below || !in_upper }
    }
}

impl Union {
    /// As unlink(2).
    ///
    /// # Errors
    /// `EISDIR`, `ENOENT`, `EROFS`; those of leaving a mark and of copying up the directory.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.take_away(parent, name, false)
    }

    /// As rmdir(2).
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOENT`, `ENOTEMPTY`, `EBUSY` (a directory shown empty because a branch or the mount is there);
    /// those of leaving a mark.
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.take_away(parent, name, true)
    }

    fn take_away(&self, parent: NodeId, name: &OsStr, want_dir: bool) -> Result<()> {
        self.stack.upper()?;
        let parent = self.table.get(parent)?;
        let name = name_of(name)?;
        if parent.upper_dir(&self.stack).is_none() {
            // A refusal is no reason to copy up a directory.
            let _shared = parent.children.read();
            let found = find(&self.stack, &parent.layers()?, &name)?.ok_or(Errno::NOENT)?;
            check_kind(&found, want_dir)?;
        }
        let dir = self.raise_dir(&parent)?;
        let names = parent.children.write();
        let found = find(&self.stack, &parent.layers()?, &name)?.ok_or(Errno::NOENT)?;
        check_kind(&found, want_dir)?;
        let in_upper = match &found {
            Found::Leaf(at, _) => self.stack.is_upper(at.branch),
            Found::Dir(layers, _) => layers.first().is_some_and(|top| self.stack.is_upper(top.branch) && top.is_real()),
        };
        // Without an object in the upper, what was found is what lies below.
        let below = !in_upper || lies_below(&self.stack, &parent.layers()?, &name)?;
        let was = *found.stat();
        let (node, _) = self.enter(&parent, &name, found)?;
        let done = self.remove_node(&parent, &dir, &name, (&node, &was, Removal::plan(in_upper, below)));
        self.readings.changed(parent.id, false);
        drop(names);
        let id = node.id;
        drop(node);
        self.forget(id, 1);
        done.during("remove", &name)
    }

    fn remove_node(
        &self,
        parent: &Arc<Node>,
        dir: &Arc<RealDir>,
        name: &Name,
        (node, was, removal): (&Arc<Node>, &Stat, Removal),
    ) -> Result<()> {
        let inner = node.is_dir().then(|| node.children.write());
        if inner.is_some() {
            self.check_empty(node)?;
        }
        self.remember_data(node);
        let mut body = node.body.write();
        let entry = self.indexed(&body)?;
        let held = hold(node, &body)?;
        self.act(dir, name, node.is_dir(), removal)?;
        let lost_upper = removal.take;
        lose_name(&mut body, parent, name, held);
        if !lost_upper && entry.is_none() {
            self.lose_lower_name(&mut body, Some(was));
        }
        let named = !body.links.is_empty();
        drop(body);
        self.uncount(entry, lost_upper, named);
        Ok(())
    }

    /// Does in the upper's `dir` what `removal` says.
    fn act(&self, dir: &Arc<RealDir>, name: &Name, is_dir: bool, removal: Removal) -> Result<()> {
        let upper = self.stack.upper()?;
        match (removal.take, removal.hide) {
            (true, true) => upper.writer.remove_and_hide(&upper.stage, dir, name, is_dir),
            (true, false) => upper.writer.remove(&upper.stage, dir, name, is_dir),
            (false, _) => upper.writer.hide_lower(&upper.stage, dir, name, is_dir),
        }
    }

    /// `ENOTEMPTY` unless the directory shows no name; `EBUSY` if it is one that only looks empty.
    pub(super) fn check_empty(&self, node: &Arc<Node>) -> Result<()> {
        let layers = node.layers()?;
        if layers.iter().any(|dir| dir.presence == Presence::Covered) {
            return Err(Errno::BUSY);
        }
        let listing = merge(&self.stack, &layers, &mut |_, _, ino| Ok(crate::union::types::Ino(ino)))?;
        if listing.is_empty() { Ok(()) } else { Err(Errno::NOTEMPTY) }
    }

    /// The name in the index of a file whose body is given, if it is there.
    pub(super) fn indexed(&self, body: &Body) -> Result<Option<Name>> {
        let Some(index) = &self.index else { return Ok(None) };
        if index.is_empty() || !self.stack.is_upper(body.branch) || !body.layers.is_empty() {
            return Ok(None);
        }
        let keys = &self.stack.upper()?.writer.keys;
        let entry = match &body.index {
            Some(At::Name(_, entry)) => Some(entry.clone()),
            _ => Record::read(keys, &body.at()?)?.map(|record| record.name),
        };
        if let Some(entry) = &entry {
            index.settle(keys, entry)?;
        }
        Ok(entry)
    }

    /// A name of an indexed file is gone: the upper's own, or one that only the lower had. Whether others are known that lead to
    /// it: the count may be too low, if a name was deleted while the lower that has it was away.
    pub(super) fn uncount(&self, entry: Option<Name>, was_in_upper: bool, named: bool) {
        let (Some(entry), Some(index), Ok(upper)) = (entry, &self.index, self.stack.upper()) else { return };
        let keys = &upper.writer.keys;
        if !was_in_upper {
            self.tidy("lower the count of names", index.lower_count(keys, &entry));
        }
        if !named {
            self.tidy("remove an index entry", index.remove_if_last(keys, &entry));
        }
    }
}

fn check_kind(found: &Found, want_dir: bool) -> Result<()> {
    match (found, want_dir) {
        (Found::Dir(..), false) => Err(Errno::ISDIR),
        (Found::Leaf(..), true) => Err(Errno::NOTDIR),
        _ => Ok(()),
    }
}

/// A descriptor that keeps the object of a node which is about to lose its last name, if somebody else still has the
/// node. Also keeps the branch from using its inode number again meanwhile.
pub(super) fn hold(node: &Node, body: &Body) -> Result<Option<Arc<std::os::fd::OwnedFd>>> {
    let last = body.links.len() <= 1;
    // One look-up is the request's own.
    let wanted = node.lookups.load(std::sync::atomic::Ordering::Acquire) > 1;
    if !last || !wanted || body.held.is_some() {
        return Ok(body.held.clone());
    }
    for dir in body.layers.iter().filter(|dir| dir.presence != Presence::MarksOnly) {
        dir.pin()?;
    }
    let at = body.at()?;
    let fd = if node.kind.is_file() {
        // Attributes of an unlinked file can only be read through a descriptor that is no `O_PATH`.
        at.open(OFlags::RDONLY | OFlags::NONBLOCK).or_else(|_| at.open(OFlags::PATH))?
    } else {
        at.open(OFlags::PATH)?
    };
    Ok(Some(Arc::new(fd)))
}

/// The name is gone from the branches; `held` is what `hold` gave.
pub(super) fn lose_name(body: &mut Body, parent: &Arc<Node>, name: &Name, held: Option<Arc<std::os::fd::OwnedFd>>) {
    body.unlink(parent, name);
    if body.links.is_empty() {
        body.held = held;
    }
}

#[cfg(test)]
mod tests {
    use super::Removal;

    /// Rows: is the object in the upper, does anything lie below => take, hide.
    #[test]
    fn removal_plans() {
        for (in_upper, below, take, hide) in [
            (true, false, true, false),
            (true, true, true, true),
            (false, true, false, true),
            (false, false, false, true),
        ] {
            assert_eq!(Removal::plan(in_upper, below), Removal { take, hide });
        }
    }
}
