//! Bringing a node into the upper: directories one by one from the top, a file when it is to be changed.
//!
//! Each node is lifted under its own `lift` lock: the data of one is copied while all others stay free. The parent's
//! `children` lock is taken only for the moment of publishing, and what was true before is looked at again then.

use std::sync::Arc;

use crate::union::branch::{At, RealDir, Stat};
use crate::union::copyup::{Copy, Source};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result, best_effort};
use crate::union::index::Index;
use crate::union::name::Name;
use crate::union::node::{Link, Node};
use crate::union::stack::{Stack, Upper};

impl Union {
    /// The upper's part of the directory `node`, made with those of its ancestors if it is missing.
    ///
    /// # Errors
    /// `EROFS` without an upper, `ENOENT` if the directory was removed, `EBUSY` for one that the union shows empty;
    /// those of copying up.
    pub(super) fn raise_dir(&self, node: &Arc<Node>) -> Result<Arc<RealDir>> {
        self.stack.upper()?;
        if !node.is_dir() {
            return Err(Errno::NOTDIR);
        }
        loop {
            if let Some(dir) = node.upper_dir(&self.stack) {
                let gone = node.link().is_none() && !Arc::ptr_eq(node, self.table.root());
                return if gone { Err(Errno::NOENT) } else { Ok(dir) };
            }
            let mut lowest = node.clone();
            let link = loop {
                let link = lowest.link().ok_or(Errno::NOENT)?;
                if link.parent.upper_dir(&self.stack).is_some() {
                    break link;
                }
                lowest = link.parent;
            };
            self.lift_dir(&lowest, &link)?;
        }
    }

    /// Copies up one directory whose parent is up.
    fn lift_dir(&self, node: &Arc<Node>, link: &Link) -> Result<()> {
        let upper = self.stack.upper()?;
        let _lift = node.lift.lock();
        if node.upper_dir(&self.stack).is_some() {
            return Ok(());
        }
        let from = node.layers()?.into_iter().find(|dir| dir.is_real()).ok_or(Errno::BUSY)?;
        if self.stack.is_upper(from.branch) {
            return Err(Errno::BUSY);
        }
        let at = from.itself()?;
        let stat = at.stat()?;
        let copy = self.copy(upper, &from, &at, &stat, 0)?;
        let _names = link.parent.children.write();
        if !node.body.read().has_link(&link.parent, &link.name) {
            // Renamed or removed meanwhile; whoever asked looks again.
            return Ok(());
        }
        let dir = link.parent.upper_dir(&self.stack).ok_or(Errno::STALE)?;
        let fresh = self.publish(upper, copy, &dir, &link.name)?;
        let mut body = node.body.write();
        body.layers.retain(|layer| !self.stack.is_upper(layer.branch));
        body.layers.insert(0, dir.child(&link.name, &fresh, crate::union::branch::Presence::Real, false));
        body.before = Some(body.identity);
        body.branch = Stack::UPPER;
        body.identity = fresh.identity();
        Ok(())
    }

    fn copy<'a>(&self, upper: &'a Upper, dir: &RealDir, at: &At, stat: &Stat, bytes: u64) -> Result<Copy<'a>> {
        let branch = self.stack.branch(dir.branch)?;
        let source = Source { at, stat, bytes, uuid: branch.uuid, tag: branch.tag };
        upper.workshop().copy(&source).during("copy up", at)
    }

    /// Shows a copy under `name` in `dir`; the directory keeps its times, since nothing changed for the union.
    fn publish(&self, upper: &Upper, copy: Copy<'_>, dir: &Arc<RealDir>, name: &Name) -> Result<Stat> {
        // Before the copy is seen: a listing that shows the name must show the right number.
        self.mark_impure(upper, dir)?;
        self.keep_times(dir, || copy.publish(&upper.stage, dir.fd()?, name)).during("publish a copy", name)?;
        dir.at(name)?.stat()
    }

    /// Without an origin mark (`user.*` attributes are for files and directories only), memory has to tell that this is
    /// the same object still.
    fn adopt(&self, upper: &Upper, node: &Node, at: &At, identity: (u64, u64)) -> Result<()> {
        if upper.writer.keys.user && at.xattr(&upper.writer.keys.origin)?.is_none() {
            self.table.adopt(identity, node.id);
        }
        Ok(())
    }

    /// `dir` holds, or is about to hold, an object that shows another inode number than its own.
    pub(super) fn mark_impure(&self, upper: &Upper, dir: &Arc<RealDir>) -> Result<()> {
        match dir.make_impure(&upper.writer.keys.impure) {
            // Without attributes there are no origin marks either.
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    /// Brings a node into the upper; of a regular file the first `bytes` bytes.
    ///
    /// # Errors
    /// As `raise_dir`; `ESTALE` if the branch has another object in its place.
    pub(super) fn raise(&self, node: &Arc<Node>, bytes: u64) -> Result<()> {
        if node.is_dir() {
            return self.raise_dir(node).map(drop);
        }
        let upper = self.stack.upper()?;
        self.with_own_data(node)?;
        if self.stack.is_upper(node.body.read().branch) {
            return Ok(());
        }
        let _lift = node.lift.lock();
        while !self.stack.is_upper(node.body.read().branch) {
            let link = node.link();
            match link {
                Some(link) => self.lift_leaf(upper, node, &link, bytes)?,
                None => self.lift_unlinked(upper, node, bytes)?,
            }
        }
        Ok(())
    }

    /// Copies up a file under one of its names. Does nothing if that name is lost meanwhile.
    fn lift_leaf(&self, upper: &Upper, node: &Arc<Node>, link: &Link, bytes: u64) -> Result<()> {
        let dir = self.raise_dir(&link.parent)?;
        let from = link.parent.body.read().layer(link.branch).ok_or(Errno::STALE)?;
        let at = from.at(&link.name)?;
        let stat = match at.stat() {
            Ok(stat) if stat.identity() == node.body.read().identity => stat,
            Ok(_) | Err(Errno::NOENT) => return self.lost(node, link),
            Err(errno) => return Err(errno),
        };
        let copy = self.copy(upper, &from, &at, &stat, bytes)?;
        let _names = link.parent.children.write();
        if !node.body.read().has_link(&link.parent, &link.name) {
            return Ok(());
        }
        let mut entry = None;
        if let Some((index, name)) = self.index_entry(&from, &stat)? {
            let names = stat.nlink.saturating_sub(node.body.read().gone);
            index.add(&upper.writer.keys, &name, &copy, names).during("index", &name)?;
            entry = Some(index.at(&name));
        }
        let fresh = self.publish(upper, copy, &dir, &link.name)?;
        self.adopt(upper, node, &dir.at(&link.name)?, fresh.identity())?;
        if let (Some(At::Name(_, entry)), Some(index)) = (&entry, &self.index) {
            // Left undone it is done before the next change of names.
            self.tidy("settle the count of names", index.settle(&upper.writer.keys, entry));
        }
        let mut body = node.body.write();
        body.remember(Link { branch: Stack::UPPER, ..link.clone() });
        body.index = entry;
        body.before = Some(body.identity);
        body.branch = Stack::UPPER;
        body.identity = fresh.identity();
        body.gone = 0;
        node.replaced();
        Ok(())
    }

    /// A name that no longer leads to the node's file: forgotten, or `ESTALE` if the file is still said to be there.
    fn lost(&self, node: &Arc<Node>, link: &Link) -> Result<()> {
        let still = node.body.read().has_link(&link.parent, &link.name);
        if still { Err(Errno::STALE) } else { Ok(()) }
    }

    /// Copies up a file that has no name any more but is still open: the copy has none either.
    fn lift_unlinked(&self, upper: &Upper, node: &Arc<Node>, bytes: u64) -> Result<()> {
        let (at, branch) = {
            let body = node.body.read();
            (body.at()?, body.branch)
        };
        let stat = at.stat()?;
        let branch = self.stack.branch(branch)?;
        let source = Source { at: &at, stat: &stat, bytes, uuid: branch.uuid, tag: branch.tag };
        let fd = upper.workshop().copy(&source)?.keep()?;
        let fresh = At::stat_fd(&fd)?;
        let mut body = node.body.write();
        body.held = Some(fd);
        body.before = Some(body.identity);
        body.branch = Stack::UPPER;
        body.identity = fresh.identity();
        node.replaced();
        Ok(())
    }

    /// Makes sure that `name` in `parent` is the upper's own: a file with several lower names may be up under another.
    /// The caller holds `parent.children` exclusively.
    ///
    /// # Errors
    /// `EAGAIN` if the file must be copied up first, which cannot be done under the lock; those of linkat(2).
    pub(super) fn own_name(&self, parent: &Arc<Node>, name: &Name, node: &Arc<Node>) -> Result<()> {
        let upper = self.stack.upper()?;
        let dir = parent.upper_dir(&self.stack).ok_or(Errno::AGAIN)?;
        if dir.find(name)?.is_some() {
            return Ok(());
        }
        let (Some(index), Some(At::Name(_, entry))) = (&self.index, node.body.read().index.clone()) else {
            return Err(Errno::AGAIN);
        };
        self.link_up(upper, index, &entry, (&dir, name))?;
        let link = Link { parent: parent.clone(), name: name.clone(), branch: Stack::UPPER };
        node.body.write().remember(link);
        Ok(())
    }

    fn link_up(&self, upper: &Upper, index: &Index, entry: &Name, to: (&Arc<RealDir>, &Name)) -> Result<()> {
        self.mark_impure(upper, to.0)?;
        self.keep_times(to.0, || index.link_up(&upper.writer.keys, entry, to.0.fd()?, to.1))
    }

    /// Logs what could not be tidied after a request that is done.
    pub(super) fn tidy(&self, what: &str, done: Result<()>) {
        best_effort(what, done);
    }
}
