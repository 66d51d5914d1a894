//! Bringing a node into the upper: directories one by one from the top, a file when it is to be changed.
//!
//! Each node is lifted under its own `lift` lock: the data of one is copied while all others stay free. The parent's
//! `children` lock is taken only for the moment of publishing, and what was true before is looked at again then.

use std::sync::Arc;

use crate::union::branch::{At, RealDir, Stat, change};
use crate::union::copyup::meta::CAPABILITY;
use crate::union::copyup::{Copy, Source, Wanted};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result, best_effort};
use crate::union::index::Index;
use crate::union::name::Name;
use crate::union::node::{Body, Data, Link, Node, Place};
use crate::union::stack::{Stack, Upper};
use crate::union::types::BranchId;

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
        let copy = self.copy(upper, from.branch, (&at, &stat), (None, Wanted::Attributes))?;
        let _names = link.parent.children.write();
        if !node.body.read().has_link(&link.parent, &link.name) {
            // Renamed or removed meanwhile; whoever asked looks again.
            return Ok(());
        }
        let dir = link.parent.upper_dir(&self.stack).ok_or(Errno::STALE)?;
        let fresh = copy.at().stat()?;
        self.table.adopt(fresh.identity(), node.id);
        let unfind = |_: &Errno| self.table.unfind(fresh.identity(), node.id);
        self.publish(upper, copy, &dir, &link.name).inspect_err(unfind)?;
        let mut body = node.body.write();
        body.layers.retain(|layer| !self.stack.is_upper(layer.branch));
        body.layers.insert(0, dir.child(&link.name, &fresh, crate::union::branch::Presence::Real, false));
        body.before = Some(body.identity);
        self.comes_up(&mut body, &fresh);
        Ok(())
    }

    fn copy<'a>(
        &self,
        upper: &'a Upper,
        branch: BranchId,
        (at, stat): (&At, &Stat),
        (data, wanted): (Option<&At>, Wanted),
    ) -> Result<Copy<'a>> {
        // One that is gone has no file that the copy could be taken for.
        let branch = self.stack.branch(branch).ok();
        let shown = branch.and_then(|branch| branch.aside).map_or(Ok(*stat), |aside| aside.shown(at, stat))?;
        let uuid = branch.filter(|branch| branch.handles).map(|branch| branch.uuid);
        // Of another filesystem that is mounted inside the branch the tag is not known.
        let here = branch.filter(|branch| stat.dev == branch.root.identity().0);
        let tag = here.filter(|branch| !(branch.handles && branch.unique)).map(|branch| branch.tag);
        let source = Source { at, stat, shown: &shown, data, wanted, uuid, tag };
        upper.workshop().copy(&source).during("copy up", at)
    }

    /// Shows a copy under `name` in `dir`; the directory keeps its times, since nothing changed for the union.
    ///
    /// Nothing may fail once it is done: the node would go on as the lower object, and never be copied up again.
    fn publish(&self, upper: &Upper, copy: Copy<'_>, dir: &Arc<RealDir>, name: &Name) -> Result<()> {
        // Before the copy is seen: a listing that shows the name must show the right number.
        self.mark_impure(upper, dir)?;
        self.keep_times(dir, || copy.publish(&upper.stage, dir.fd()?, name)).during("publish a copy", name)
    }

    /// `dir` holds, or is about to hold, an object that shows another inode number than its own.
    pub(super) fn mark_impure(&self, upper: &Upper, dir: &Arc<RealDir>) -> Result<()> {
        match dir.make_impure(&upper.writer.keys.impure) {
            // Without attributes there are no origin marks either.
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    /// The real object of the node whose body is given is the copy with these attributes from now on.
    fn comes_up(&self, body: &mut Body, copy: &Stat) {
        body.branch = Stack::UPPER;
        (body.identity, body.made) = (copy.identity(), self.made(Stack::UPPER, copy));
    }

    /// The upper's object of `node`, whose body is given, is about to get a name in `dir`. It may show another number than its
    /// own; also one whose origin is in none of the lowers, once that lower is there again.
    pub(super) fn mark_arrival(&self, upper: &Upper, dir: &Arc<RealDir>, (node, body): (&Node, &Body)) -> Result<()> {
        let keys = &upper.writer.keys;
        let at = body.at()?;
        let is_copy = node.ino != self.numbers.number(body.identity.0, body.identity.1)
            || (!body.original && (at.mark(&keys.origin)?.is_some() || at.mark(&keys.origin_number)?.is_some()));
        if is_copy { self.mark_impure(upper, dir) } else { Ok(()) }
    }

    /// Brings a node into the upper; of a regular file the first `bytes` bytes.
    ///
    /// # Errors
    /// As `raise_dir`; `ESTALE` if the branch has another object in its place.
    pub(super) fn raise(&self, node: &Arc<Node>, bytes: u64) -> Result<()> {
        self.lift(node, Wanted::Bytes(bytes))?;
        self.with_own_data(node, bytes)
    }

    /// Brings a node into the upper; of a regular file the attributes alone, if that can be.
    ///
    /// # Errors
    /// As `raise`.
    pub(super) fn raise_attributes(&self, node: &Arc<Node>) -> Result<()> {
        self.lift(node, Wanted::Attributes)
    }

    fn lift(&self, node: &Arc<Node>, wanted: Wanted) -> Result<()> {
        if node.is_dir() {
            return self.raise_dir(node).map(drop);
        }
        let upper = self.stack.upper()?;
        match self.know_data(node) {
            // They are about to be cut off.
            Err(Errno::IO) if wanted == Wanted::Bytes(0) => {}
            known => known?,
        }
        if self.stack.is_upper(node.body.read().branch) {
            return Ok(());
        }
        let _lift = node.lift.lock();
        while !self.stack.is_upper(node.body.read().branch) {
            let link = node.link();
            match link {
                Some(link) => self.lift_leaf(upper, node, &link, wanted)?,
                None => self.lift_unlinked(upper, node, wanted)?,
            }
        }
        Ok(())
    }

    /// Copies up a file under one of its names. Does nothing if that name is lost meanwhile.
    fn lift_leaf(&self, upper: &Upper, node: &Arc<Node>, link: &Link, wanted: Wanted) -> Result<()> {
        let dir = match self.raise_dir(&link.parent) {
            // With the name, its directory may be gone by now.
            Err(Errno::NOENT) if !node.body.read().has_link(&link.parent, &link.name) => return Ok(()),
            done => done?,
        };
        let from = link.parent.body.read().layer(link.branch).ok_or(Errno::STALE)?;
        let at = from.at(&link.name)?;
        let stat = match at.stat() {
            Ok(stat) if stat.identity() == node.body.read().identity => stat,
            Ok(_) | Err(Errno::NOENT) => return self.lost(node, link),
            Err(errno) => return Err(errno),
        };
        let place = node.body.read().data_place().cloned();
        let data = place.as_ref().map(|place| place.at()).transpose()?;
        let wanted = feasible(upper, wanted, &at, &stat)?;
        let copy = self.copy(upper, from.branch, (&at, &stat), (data.as_ref(), wanted))?;
        let _names = link.parent.children.write();
        // From here on, since a look-up that finds the copy by the index has to find it in this node.
        let mut body = node.body.write();
        if !body.has_link(&link.parent, &link.name) {
            return Ok(());
        }
        let fresh = copy.at().stat()?;
        let entry = self.enter_index(upper, (from.branch, &stat), &copy, body.gone)?;
        self.table.adopt(fresh.identity(), node.id);
        self.publish(upper, copy, &dir, &link.name).inspect_err(|_| {
            self.table.unfind(fresh.identity(), node.id);
            self.leave_index(entry.as_ref());
        })?;
        self.settle_index(upper, &mut body, entry);
        body.remember(Link { branch: Stack::UPPER, ..link.clone() });
        body.before = Some(body.identity);
        self.comes_up(&mut body, &fresh);
        body.gone = 0;
        body.data = match wanted {
            Wanted::Bytes(_) => Data::Own,
            Wanted::Attributes => {
                let name = link.name.clone();
                let here = || Arc::new(Place { dir: from, name, identity: stat.identity(), anchored: false });
                Data::Elsewhere(place.unwrap_or_else(here))
            }
        };
        node.replaced();
        Ok(())
    }

    /// Enters the copy of a file with several lower names into the index; `gone` of the names have been deleted. Without
    /// room for the record the names go apart at the next mount, which is no reason to refuse the write.
    fn enter_index(
        &self,
        upper: &Upper,
        (from, stat): (BranchId, &Stat),
        copy: &Copy<'_>,
        gone: u32,
    ) -> Result<Option<Name>> {
        let Some((index, name)) = self.index_entry(from, stat)? else { return Ok(None) };
        match index.add(&upper.writer.keys, &name, copy, stat.nlink.saturating_sub(gone)) {
            Ok(()) => Ok(Some(name)),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
                log::debug!("{name:?}: not in the index");
                Ok(None)
            }
            Err(errno) => Err(errno).during("index", &name),
        }
    }

    /// The copy could not be brought where it shall be.
    fn leave_index(&self, entry: Option<&Name>) {
        if let (Some(index), Some(entry)) = (&self.index, entry) {
            self.tidy("take a copy out of the index", index.withdraw(entry));
        }
    }

    /// The copy of the object whose body is given is where it shall be: its names count from now on.
    fn settle_index(&self, upper: &Upper, body: &mut Body, entry: Option<Name>) {
        body.index = None;
        if let (Some(index), Some(entry)) = (&self.index, entry) {
            self.tidy("count names", index.settle(&upper.writer.keys, &entry));
            body.index = Some(index.at(&entry));
            if let Some(gone) = &self.gone {
                gone.clear(&entry);
            }
        }
    }

    /// A name that no longer leads to the node's file: forgotten, or `ESTALE` if the file is still said to be there.
    fn lost(&self, node: &Arc<Node>, link: &Link) -> Result<()> {
        let still = node.body.read().has_link(&link.parent, &link.name);
        if still { Err(Errno::STALE) } else { Ok(()) }
    }

    /// Copies up a file by none of its names: it has been opened, and has lost all that the node knows. The copy has none
    /// either; lower names that it still has lead to it by the index.
    fn lift_unlinked(&self, upper: &Upper, node: &Arc<Node>, wanted: Wanted) -> Result<()> {
        let (at, data, branch) = {
            let body = node.body.read();
            (body.at()?, body.data_at()?.0, body.branch)
        };
        let stat = at.stat()?;
        // The data of a file without a name could not be found again.
        let wanted = if wanted == Wanted::Attributes { Wanted::ALL } else { wanted };
        let copy = self.copy(upper, branch, (&at, &stat), (Some(&data), wanted))?;
        let mut body = node.body.write();
        let fresh = copy.at().stat()?;
        let entry = match body.gone < stat.nlink {
            true => self.enter_index(upper, (branch, &stat), &copy, body.gone)?,
            false => None,
        };
        let fd = copy.keep().inspect_err(|_| self.leave_index(entry.as_ref()))?;
        let by_index = entry.is_some();
        if by_index {
            self.table.adopt(fresh.identity(), node.id);
        }
        self.settle_index(upper, &mut body, entry);
        body.held = Some(fd);
        body.gone = 0;
        // Lower names that cannot lead to the copy show another file from now on.
        body.before = by_index.then_some(body.identity);
        self.comes_up(&mut body, &fresh);
        body.data = Data::Own;
        node.replaced();
        Ok(())
    }

    /// Makes sure that `name` in `parent` is the upper's own: a file with several lower names may be up under another.
    /// The caller holds `parent.children` exclusively.
    ///
    /// # Errors
    /// `EAGAIN` if the directory must be copied up first, which cannot be done under the lock; those of linkat(2).
    pub(super) fn own_name(&self, parent: &Arc<Node>, name: &Name, node: &Arc<Node>) -> Result<()> {
        let upper = self.stack.upper()?;
        let dir = parent.upper_dir(&self.stack).ok_or(Errno::AGAIN)?;
        if dir.find(name)?.is_some() {
            return Ok(());
        }
        // To the end of the link: until then the name that is linked must not become another file's.
        let body = node.body.read();
        match (&body.index, &self.index, body.at()?) {
            (Some(At::Name(_, entry)), Some(index), _) => self.link_up(upper, index, entry, (&dir, name))?,
            // The index could not take it; another of its names will do as well.
            (_, _, At::Name(from, other)) => {
                self.mark_impure(upper, &dir)?;
                self.keep_times(&dir, || change::link(&from, &other, dir.fd()?, name))?;
            }
            _ => return Err(Errno::STALE),
        }
        drop(body);
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

/// What can be had of what is wanted of the lower object `at`.
fn feasible(upper: &Upper, wanted: Wanted, at: &At, stat: &Stat) -> Result<Wanted> {
    let bare = upper.metacopy && stat.kind().is_file() && stat.size > 0;
    // The data, when they come, would take capabilities away.
    if wanted == Wanted::Attributes && (!bare || at.xattr(CAPABILITY)?.is_some()) {
        return Ok(Wanted::ALL);
    }
    Ok(wanted)
}
