//! Renaming.
//!
//! Difficulties, and what answers them:
//! 1. the object may be a lower branch's: it is copied up first, without the locks; then all is looked at again
//!    (`Union::rename` goes round until nothing is missing);
//! 2. something may lie below the old name and must not come to light: a whiteout, left by the rename itself
//!    (overlay) or put there before (`Move::act`);
//! 3. something may lie below the new name and must not be merged into a directory that comes to stand there:
//!    the directory is sealed before it moves (`Move::seal`);
//! 4. a directory with lower parts cannot leave them behind: a redirect mark remembers where they are, or `EXDEV`;
//! 5. a directory at the new name that is empty in the union may hold marks: it is really emptied first.
//!
//! Not here: how marks look and in which order they appear (`marks::write`).

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use rustix::fs::{OFlags, RenameFlags};

use crate::union::branch::{Presence, RealDir, change};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result};
use crate::union::name::Name;
use crate::union::node::{Body, Link, Node};
use crate::union::ops::name_of;
use crate::union::ops::remove::{hold, lose_name};
use crate::union::resolve::{Found, InUpper, find, follow, in_upper, lies_below};
use crate::union::stack::{Layers, Stack, Upper};
use crate::union::types::NodeId;

/// Longer paths, in bytes, are more than every filesystem can take for an attribute's value.
const LONG_PATH: usize = 1024;

/// One end of a rename.
struct End<'a> {
    parent: &'a Arc<Node>,
    name: &'a Name,
}

/// A node that was looked up for the length of a request.
struct Counted<'a> {
    union: &'a Union,
    node: Option<Arc<Node>>,
    /// The upper itself has it under the name that was looked up.
    own: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            let id = node.id;
            drop(node);
            self.union.forget(id, 1);
        }
    }
}

/// A rename whose objects are all in the upper, with both directories' names locked.
struct Move<'a> {
    upper: &'a Upper,
    from: (Arc<RealDir>, &'a Name),
    to: (Arc<RealDir>, &'a Name),
    node: &'a Arc<Node>,
    /// Something lies below the old name.
    hide_old: bool,
    /// Something lies below the new name.
    below_new: bool,
    /// What the upper has at the new name.
    at_new: InUpper,
}

impl Union {
    /// As renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE.
    ///
    /// # Errors
    /// Those of rename(2); `EXDEV` for a directory with lower parts where no redirect can be left.
    pub fn rename(
        &self,
        (parent, name): (NodeId, &OsStr),
        (newparent, newname): (NodeId, &OsStr),
        flags: u32,
    ) -> Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        if flags.difference(both) != RenameFlags::empty() || flags == both {
            return Err(Errno::INVAL);
        }
        self.stack.upper()?;
        let (parent, newparent) = (self.table.get(parent)?, self.table.get(newparent)?);
        let (name, newname) = (name_of(name)?, self.checked_name(&newparent, newname)?);
        let (old, new) = (End { parent: &parent, name: &name }, End { parent: &newparent, name: &newname });
        // What was found stays known: else a node that only this request knows would have to be made ready again.
        let mut kept = Vec::new();
        while !self.try_rename(&old, &new, flags, &mut kept).during("rename", (&name, &newname))? {}
        Ok(())
    }

    /// Goes through with the rename, or brings into the upper what has to be there and returns false.
    fn try_rename<'a>(
        &'a self,
        old: &End<'_>,
        new: &End<'_>,
        flags: RenameFlags,
        kept: &mut Vec<Counted<'a>>,
    ) -> Result<bool> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let crossing = (!Arc::ptr_eq(old.parent, new.parent)).then(|| self.crossing.lock());
        let locks = lock_names(old.parent, new.parent);
        let source = self.counted(old)?.ok_or(Errno::NOENT)?;
        let target = self.counted(new)?;
        let Some(node) = &source.node else { return Err(Errno::NOENT) };
        let victim = target.as_ref().and_then(|target| target.node.as_ref());
        if flags.contains(RenameFlags::NOREPLACE) && victim.is_some() {
            return Err(Errno::EXIST);
        }
        if victim.is_some_and(|victim| Arc::ptr_eq(victim, node)) {
            return Ok(true);
        }
        check(old, new, node, (victim, exchange))?;
        let lifted = [Some(node), victim.filter(|_| exchange)];
        for node in lifted.into_iter().flatten() {
            self.check_movable(node)?;
        }
        let own = target.as_ref().is_some_and(|target| target.own);
        if !self.is_ready(old, node, source.own)?
            || new.parent.upper_dir(&self.stack).is_none()
            || (exchange && !victim.map_or(Ok(true), |victim| self.is_ready(new, victim, own))?)
        {
            // Others must not wait while data are copied.
            drop((locks, crossing));
            lifted.into_iter().flatten().try_for_each(|node| {
                self.raise_attributes(node)?;
                self.anchor(node)
            })?;
            self.raise_dir(old.parent)?;
            self.raise_dir(new.parent)?;
            kept.extend([Some(source), target].into_iter().flatten());
            return Ok(false);
        }
        if let Some(bared) = self.bared(node, victim)? {
            drop((locks, crossing));
            self.raise_dir(bared)?;
            kept.extend([Some(source), target].into_iter().flatten());
            return Ok(false);
        }
        let done = match victim {
            Some(victim) if exchange => self.exchange(old, new, (node, victim)),
            victim => self.replace(old, new, node, victim),
        };
        self.readings.changed(new.parent.id, true);
        self.readings.changed(old.parent.id, exchange);
        done.map(|()| true)
    }

    fn counted(&self, end: &End<'_>) -> Result<Option<Counted<'_>>> {
        let Some(found) = find(&self.stack, &end.parent.layers()?, end.name)? else { return Ok(None) };
        let own = matches!(&found, Found::Leaf(dir, _) if self.stack.is_upper(dir.branch));
        match self.enter(end.parent, end.name, found) {
            Ok((node, _)) => Ok(Some(Counted { union: self, node: Some(node), own })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether the upper itself has the node under this name, as was found, or has it now.
    fn is_ready(&self, end: &End<'_>, node: &Arc<Node>, own: bool) -> Result<bool> {
        if node.is_dir() {
            return Ok(node.upper_dir(&self.stack).is_some());
        }
        // The mark of a file without data of its own counts under its old name only, unless it says more.
        if node.kind.is_file() && !node.body.read().is_anchored() {
            return Ok(false);
        }
        if end.parent.upper_dir(&self.stack).is_none() || !self.stack.is_upper(node.body.read().branch) {
            return Ok(false);
        }
        if own {
            return Ok(true);
        }
        match self.own_name(end.parent, end.name, node) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// The lower directory `victim`, where sealing `node` before it takes that place would show nothing there for a
    /// moment: in formats that seal by a mark beside the name. A copy in the upper fills the moment.
    fn bared<'a>(&self, node: &Node, victim: Option<&'a Arc<Node>>) -> Result<Option<&'a Arc<Node>>> {
        let mirrored = self.stack.upper()?.writer.mirror.is_some();
        let lower = |victim: &&Arc<Node>| victim.is_dir() && victim.upper_dir(&self.stack).is_none();
        let lower = victim.filter(|_| mirrored && node.is_dir()).filter(lower);
        if let Some(victim) = lower {
            // A refusal is no reason to copy up a directory.
            self.check_empty(victim)?;
        }
        Ok(lower)
    }

    /// `EBUSY` for a directory that only looks empty, `EXDEV` for one whose lower parts cannot be remembered.
    fn check_movable(&self, node: &Arc<Node>) -> Result<()> {
        if !node.is_dir() {
            return Ok(());
        }
        let layers = node.layers()?;
        if layers.iter().any(|dir| dir.presence == Presence::Covered) {
            return Err(Errno::BUSY);
        }
        if self.has_lower_parts(&layers) && !self.stack.upper()?.redirect {
            return Err(Errno::XDEV);
        }
        Ok(())
    }

    fn has_lower_parts(&self, layers: &Layers) -> bool {
        !self.stack.lowers(layers).is_empty()
    }

    fn replace(&self, old: &End<'_>, new: &End<'_>, node: &Arc<Node>, victim: Option<&Arc<Node>>) -> Result<()> {
        let inner = victim.filter(|victim| victim.is_dir()).map(|victim| victim.children.write());
        if let (Some(_), Some(victim)) = (&inner, victim) {
            self.check_empty(victim)?;
        }
        let (from, to) = (self.upper_of(old)?, self.upper_of(new)?);
        let step = Move {
            upper: self.stack.upper()?,
            hide_old: lies_below(&self.stack, &old.parent.layers()?, old.name)?,
            below_new: lies_below(&self.stack, &new.parent.layers()?, new.name)?,
            at_new: in_upper(&self.stack, &to, new.name)?,
            from: (from, old.name),
            to: (to, new.name),
            node,
        };
        let victim_in_upper = matches!(step.at_new, InUpper::Leaf(_) | InUpper::Dir(_));
        self.mark_arrival(step.upper, &step.to.0, (node, &node.body.read()))?;
        if node.is_dir() {
            self.prepare_dir(&step)?;
        }
        if let Some(victim) = victim {
            self.remember_data(victim);
        }
        let (mut body, mut lost) = write_both(node, victim);
        let entry = lost.as_ref().map_or(Ok(None), |lost| self.indexed(lost))?;
        let held = match (victim, &lost) {
            (Some(victim), Some(lost)) => hold(victim, lost)?,
            _ => None,
        };
        let was = match &lost {
            Some(lost) if !victim_in_upper && lost.layers.is_empty() => Some(lost.at()?.stat()?),
            _ => None,
        };
        if let (InUpper::Dir(_), Some(lost)) = (&step.at_new, &mut lost)
            && change_needs_empty(&step.to.0, new.name)?
        {
            step.upper.writer.cover(&step.to.0, new.name)?;
            lost.layers.retain(|layer| self.stack.is_upper(layer.branch));
            step.upper.writer.clear(&step.to.0, new.name)?;
        }
        step.act(body.layers.first())?;
        relink(&mut body, old, new);
        if let Some(lost) = &mut lost {
            lose_name(lost, new.parent, new.name, held);
            if !victim_in_upper && entry.is_none() {
                self.lose_lower_name(lost, was.as_ref());
            }
        }
        let named = lost.as_ref().is_some_and(|lost| !lost.links.is_empty());
        drop((body, lost));
        self.uncount(entry, victim_in_upper, named);
        Ok(())
    }

    fn upper_of(&self, end: &End<'_>) -> Result<Arc<RealDir>> {
        end.parent.upper_dir(&self.stack).ok_or(Errno::STALE)
    }

    /// What a directory needs before it moves: a redirect if it has lower parts, else a seal if something lies below
    /// its new name.
    fn prepare_dir(&self, step: &Move<'_>) -> Result<()> {
        let layers = step.node.layers()?;
        let object = layers.first().ok_or(Errno::STALE)?.itself()?;
        if self.has_lower_parts(&layers) {
            let path = self.redirect_path(&layers)?;
            return match object.set_xattr(&step.upper.writer.keys.redirect, &path, 0) {
                // ext4 calls an attribute that is too long for it a full disk.
                Err(Errno::TOOBIG | Errno::RANGE) => Err(Errno::XDEV),
                Err(Errno::NOSPC) if path.len() > LONG_PATH => Err(Errno::XDEV),
                done => done,
            };
        }
        if step.below_new {
            let object = object.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
            step.upper.writer.seal(object.as_fd(), &step.to.0, step.to.1)?;
        }
        Ok(())
    }

    /// The path from the union's root under which the lower branches have the lower parts of a directory.
    ///
    /// # Errors
    /// `EXDEV` if following it would not lead there again (redirects among the lowers themselves).
    fn redirect_path(&self, layers: &Layers) -> Result<Vec<u8>> {
        let lowers = self.stack.lowers(layers);
        let first = lowers.first().ok_or(Errno::STALE)?;
        let path = first.spelled_path();
        let upper = &self.stack.branches.first().ok_or(Errno::STALE)?.root;
        let at = follow(&self.stack, upper, &path)?;
        let same = at.len() == lowers.len()
            && at.iter().zip(lowers).all(|(a, b)| a.branch == b.branch && a.identity() == b.identity());
        if same { Ok(path) } else { Err(Errno::XDEV) }
    }

    fn exchange(&self, old: &End<'_>, new: &End<'_>, (node, other): (&Arc<Node>, &Arc<Node>)) -> Result<()> {
        let (from, to) = (self.upper_of(old)?, self.upper_of(new)?);
        let upper = self.stack.upper()?;
        let there = |node, from: &Arc<RealDir>, to: &Arc<RealDir>, ends: (&End<'_>, &End<'_>)| -> Result<()> {
            let (from_name, to_name, parent) = (ends.0.name, ends.1.name, ends.1.parent);
            let step = Move {
                upper,
                from: (from.clone(), from_name),
                to: (to.clone(), to_name),
                node,
                hide_old: false,
                below_new: lies_below(&self.stack, &parent.layers()?, to_name)?,
                at_new: InUpper::Nothing,
            };
            self.mark_arrival(step.upper, &step.to.0, (node, &node.body.read()))?;
            if node.is_dir() { self.prepare_dir(&step) } else { Ok(()) }
        };
        there(node, &from, &to, (old, new))?;
        there(other, &to, &from, (new, old))?;
        let (mut body, other_body) = write_both(node, Some(other));
        let mut other_body = other_body.ok_or(Errno::STALE)?;
        let (from_fd, to_fd) = (from.fd()?, to.fd()?);
        let swap = || change::rename(&from_fd, old.name, &to_fd, new.name, RenameFlags::EXCHANGE);
        moving(body.layers.first(), (&to, new.name), || moving(other_body.layers.first(), (&from, old.name), swap))?;
        relink(&mut body, old, new);
        relink(&mut other_body, new, old);
        for (dir, name, arrived) in [(&to, new.name, node), (&from, old.name, other)] {
            if arrived.is_dir() {
                upper.writer.sealed_in_place(dir, name);
            } else {
                upper.writer.uncover(dir, name);
            }
        }
        Ok(())
    }
}

impl Move<'_> {
    /// The steps on the disk; `dir` is what moves, if that is a directory.
    fn act(&self, dir: Option<&Arc<RealDir>>) -> Result<()> {
        let writer = &self.upper.writer;
        let (from, to) = (&self.from.0, &self.to.0);
        if writer.in_place() {
            return self.act_in_place(dir);
        }
        if self.hide_old {
            writer.hide(&self.upper.stage, from, self.from.1, self.node.is_dir())?;
        }
        self.rename(dir, RenameFlags::empty())?;
        if !self.node.is_dir() {
            writer.uncover(to, self.to.1);
        } else {
            writer.sealed_in_place(to, self.to.1);
        }
        Ok(())
    }

    /// Whiteouts take names' places: one rename moves the object and leaves or takes away a whiteout.
    fn act_in_place(&self, dir: Option<&Arc<RealDir>>) -> Result<()> {
        if self.node.is_dir() && matches!(self.at_new, InUpper::Whiteout) {
            // A directory cannot be renamed onto a device, so they change places; the whiteout is then where it is
            // needed, or in the way.
            self.rename(dir, RenameFlags::EXCHANGE)?;
            if !self.hide_old {
                let gone = self.from.0.fd().and_then(|from| change::unlink(from, self.from.1));
                crate::union::error::best_effort("remove a whiteout", gone);
            }
            return Ok(());
        }
        let flags = if self.hide_old { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
        self.rename(dir, flags)
    }

    fn rename(&self, dir: Option<&Arc<RealDir>>, flags: RenameFlags) -> Result<()> {
        let (from, to) = (self.from.0.fd()?, self.to.0.fd()?);
        moving(dir, (&self.to.0, self.to.1), || change::rename(&from, self.from.1, &to, self.to.1, flags))
    }
}

/// Does `act`, which moves what `dir` stands for, if that is a directory, to the place given.
fn moving(
    dir: Option<&Arc<RealDir>>,
    (parent, name): (&Arc<RealDir>, &Name),
    act: impl FnOnce() -> Result<()>,
) -> Result<()> {
    match dir {
        Some(dir) => dir.moving(parent.clone(), name.clone(), act),
        None => act(),
    }
}

/// Whether the directory `name`, empty in the union, has entries in the upper.
fn change_needs_empty(dir: &Arc<RealDir>, name: &Name) -> Result<bool> {
    let inner = dir.at(name)?.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut any = false;
    crate::union::branch::list::list_fd(&inner, &mut |_, _, _| {
        any = true;
        Ok(())
    })?;
    Ok(any)
}

/// What rename(2) refuses.
fn check(old: &End<'_>, new: &End<'_>, node: &Arc<Node>, (victim, exchange): (Option<&Arc<Node>>, bool)) -> Result<()> {
    if node.is_dir() && node.is_ancestor_of(new.parent) {
        return Err(Errno::INVAL);
    }
    let Some(victim) = victim else { return if exchange { Err(Errno::NOENT) } else { Ok(()) } };
    if victim.is_dir() && victim.is_ancestor_of(old.parent) {
        return Err(if exchange { Errno::INVAL } else { Errno::NOTEMPTY });
    }
    match (node.is_dir(), victim.is_dir()) {
        (true, false) if !exchange => Err(Errno::NOTDIR),
        (false, true) if !exchange => Err(Errno::ISDIR),
        _ => Ok(()),
    }
}

/// Takes `children` of both directories, in the order written down in `node`.
fn lock_names<'a>(a: &'a Arc<Node>, b: &'a Arc<Node>) -> (RwLockWriteGuard<'a, ()>, Option<RwLockWriteGuard<'a, ()>>) {
    if Arc::ptr_eq(a, b) {
        return (a.children.write(), None);
    }
    let a_first = a.is_ancestor_of(b) || (!b.is_ancestor_of(a) && a.id < b.id);
    let (first, second) = if a_first { (a, b) } else { (b, a) };
    (first.children.write(), Some(second.children.write()))
}

/// Takes `body` of both nodes: a file's before a directory's, in which it may have a name too, else the lower id's first.
fn write_both<'a>(
    node: &'a Arc<Node>,
    other: Option<&'a Arc<Node>>,
) -> (RwLockWriteGuard<'a, Body>, Option<RwLockWriteGuard<'a, Body>>) {
    match other {
        Some(other) if (other.is_dir(), other.id) < (node.is_dir(), node.id) => {
            let other = other.body.write();
            (node.body.write(), Some(other))
        }
        other => {
            let body = node.body.write();
            (body, other.map(|other| other.body.write()))
        }
    }
}

/// The node is known by its new name from now on.
fn relink(body: &mut Body, old: &End<'_>, new: &End<'_>) {
    body.unlink(old.parent, old.name);
    let link = Link { parent: new.parent.clone(), name: new.name.clone(), branch: Stack::UPPER };
    body.remember(link);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::node::Seen;
    use crate::union::types::{BranchId, Generation, Ino};
    use rustix::fs::FileType;

    /// Whoever uses a file asks the directory of one of its names, which may be the directory that changes places with it.
    #[test]
    fn a_file_is_locked_before_a_directory() {
        let node = |id: u64, kind| {
            let (ino, generation, branch, layers) = (Ino(id), Generation(1), BranchId(0), Layers::new());
            let seen = Seen { ino, generation, kind, identity: (1, id), made: generation, branch, layers, lost: None };
            Arc::new(Node::new(NodeId(id), seen, None, None))
        };
        let (dir, file) = (node(2, FileType::Directory), node(3, FileType::RegularFile));
        std::thread::scope(|threads| {
            let used = file.body.read();
            let swap = threads.spawn(|| drop(write_both(&dir, Some(&file))));
            // Until it waits for the file.
            while file.body.try_read().is_some() {
                std::thread::yield_now();
            }
            assert!(dir.body.try_read().is_some());
            drop(used);
            swap.join().unwrap();
        });
    }
}
