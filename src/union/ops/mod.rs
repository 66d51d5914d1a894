//! The requests, one file a kind. Every one that changes something has the same five steps: lock, resolve, plan, act on
//! the disk, and only then change memory.
//!
//! Here: what all of them need, from a name to a node and from a real object's stat to the attributes shown.

mod again;
mod anew;
mod attr;
pub mod behind;
mod dir;
mod io;
mod lookup;
mod make;
mod metacopy;
pub mod open;
mod over;
mod raise;
mod remove;
mod rename;
mod xattr;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::union::branch::{At, Presence, RealDir, Stat};
use crate::union::engine::Union;
use crate::union::error::{Errno, Result, best_effort};
use crate::union::fault::look;
use crate::union::index::{Index, Record};
use crate::union::marks::overlay;
use crate::union::name::Name;
use crate::union::node::{Body, Link, Node, Seen};
use crate::union::ops::open::stat_of;
use crate::union::resolve::{Found, find};
use crate::union::stack::{Stack, topmost};
use crate::union::types::{Attr, BranchId, Entry, Generation, Ino};

/// A name as a program gives it.
fn name_of(name: &OsStr) -> Result<Name> {
    Name::new(name.as_bytes())
}

impl Union {
    /// Refuses a name that unions keep for themselves. `EPERM`, as aufs.
    fn checked_name(&self, parent: &Node, name: &OsStr) -> Result<Name> {
        let name = name_of(name)?;
        let root = Arc::as_ptr(self.table.root()) == std::ptr::from_ref(parent);
        if name.is_reserved(root) { Err(Errno::PERM) } else { Ok(name) }
    }

    /// Looks `name` up in `parent`, whose `children` lock is held, and counts the node.
    fn look(&self, parent: &Arc<Node>, name: &Name) -> Result<(Arc<Node>, Attr)> {
        let found = find(&self.stack, &parent.layers()?, name)?.ok_or(Errno::NOENT)?;
        self.enter(parent, name, found)
    }

    /// The node for what was found under `name` in `parent`.
    fn enter(&self, parent: &Arc<Node>, name: &Name, found: Found) -> Result<(Arc<Node>, Attr)> {
        let mut stat = *found.stat();
        let node = match found {
            Found::Dir(layers, stat) => {
                let known = topmost(&layers).and_then(|top| self.known(top, &stat));
                let seen = self.seen_dir(layers, &stat, known.as_deref())?;
                let link = Link { parent: parent.clone(), name: name.clone(), branch: seen.branch };
                self.count(seen, None, link)
            }
            Found::Leaf(dir, _) => self.enter_leaf(parent, name, &dir, &mut stat)?,
        };
        self.told(node, &stat)
    }

    /// The node for what was seen, counted once more.
    fn count(&self, seen: Seen, index: Option<At>, link: Link) -> Arc<Node> {
        self.table.enter(seen, index, link, |node, seen| self.lose(node, seen))
    }

    /// A node that has just been counted, and what it shows. If that cannot be told, nobody hears of it.
    fn told(&self, node: Arc<Node>, stat: &Stat) -> Result<(Arc<Node>, Attr)> {
        let attr = self.attr(&node, stat);
        let id = node.id;
        match attr {
            Ok(attr) => Ok((node, attr)),
            Err(errno) => {
                drop(node);
                self.forget(id, 1);
                Err(errno)
            }
        }
    }

    /// The node for the file `name` in `parent`, found in `dir` with the attributes `stat`.
    fn enter_leaf(&self, parent: &Arc<Node>, name: &Name, dir: &Arc<RealDir>, stat: &mut Stat) -> Result<Arc<Node>> {
        let lower = *stat;
        loop {
            let known = self.known(dir, stat);
            let (seen, in_index) = self.seen_leaf(dir, name, stat, known.as_deref())?;
            let branch = branch_of_name(&seen, in_index.as_ref());
            let link = Link { parent: parent.clone(), name: name.clone(), branch };
            let settled = in_index.is_some();
            look();
            let node = self.count(seen, in_index, link);
            if settled || !self.is_outrun(&node, dir, name, &lower)? {
                return Ok(node);
            }
            self.forget(node.id, 1);
        }
    }

    /// Whether the lower file `name` in `dir` was copied up under another of its names, and forgotten, after it was looked for
    /// in the index and before it had this node. Once it has, whoever copies it up finds it.
    fn is_outrun(&self, node: &Arc<Node>, dir: &Arc<RealDir>, name: &Name, stat: &Stat) -> Result<bool> {
        let Some((index, entry)) = self.index_entry(dir.branch, stat)? else { return Ok(false) };
        if self.stack.is_upper(node.body.read().branch) {
            return Ok(false);
        }
        if let Some(lost) = self.gone.as_ref().and_then(|gone| gone.of(&entry)) {
            node.body.write().has_lost(lost);
        }
        Ok(index.find(&self.stack.upper()?.writer.keys, &entry, &dir.at(name)?)?.is_some())
    }

    /// The node that has this object of the upper already, which need not be asked for its origin then: that is there before the
    /// object has a name, and stays.
    ///
    /// To be kept until the object is entered: else the node may be forgotten meanwhile, and another one come under a number that
    /// it alone showed (`over`).
    fn known(&self, dir: &RealDir, stat: &Stat) -> Option<Arc<Node>> {
        if !self.stack.is_upper(dir.branch) {
            return None;
        }
        let made = self.made(dir.branch, stat);
        self.table.node_of((stat.identity(), made), stat.kind(), self.numbers.number(stat.dev, stat.ino))
    }

    /// A directory made of `layers`; `known` is the node that has it, if that is known.
    fn seen_dir(&self, layers: crate::union::stack::Layers, stat: &Stat, known: Option<&Node>) -> Result<Seen> {
        let top = topmost(&layers).ok_or(Errno::IO)?;
        let (branch, identity) = (top.branch, top.identity());
        let (ino, generation) = match (known, top.place()) {
            (Some(known), _) => (known.ino, known.generation),
            (None, Some((parent, name))) => self.number(top, &parent.at(&name)?, stat)?,
            (None, None) => (self.numbers.number(identity.0, identity.1), Generation::of(stat.btime)),
        };
        let (kind, made) = (rustix::fs::FileType::Directory, self.made(branch, stat));
        Ok(Seen { ino, generation, kind, identity, made, branch, layers, lost: None })
    }

    /// Which object of its number the one with these attributes in `branch` is, if anybody knows.
    fn made(&self, branch: BranchId, stat: &Stat) -> Generation {
        let told = self.stack.branch(branch).is_ok_and(|branch| branch.births);
        if told { Generation::of(stat.btime) } else { Generation::default() }
    }

    /// The number that the object `at` of `dir`'s branch shows, and which object of that number it is.
    fn number(&self, dir: &RealDir, at: &At, stat: &Stat) -> Result<(Ino, Generation)> {
        let (ino, born) = self.numbers.shown(&self.stack, dir, at, stat.identity())?;
        Ok((ino, Generation::of(born.unwrap_or(stat.btime))))
    }

    /// A file found in `dir`; if it is one of several lower names of a file whose copy is in the index, the copy is
    /// seen (and `stat` becomes the copy's). `known` is the node that has the one found, if that is known.
    fn seen_leaf(
        &self,
        dir: &Arc<RealDir>,
        name: &Name,
        stat: &mut Stat,
        known: Option<&Node>,
    ) -> Result<(Seen, Option<At>)> {
        let at = dir.at(name)?;
        let (ino, generation) = match known {
            Some(known) => (known.ino, known.generation),
            None => self.number(dir, &at, stat)?,
        };
        let mut seen = Seen {
            ino,
            generation,
            kind: stat.kind(),
            identity: stat.identity(),
            made: self.made(dir.branch, stat),
            branch: dir.branch,
            layers: crate::union::stack::Layers::new(),
            lost: None,
        };
        let mut in_index = None;
        if let Some((index, entry)) = self.index_entry(dir.branch, stat)? {
            if let Some(copy) = index.find(&self.stack.upper()?.writer.keys, &entry, &at)? {
                *stat = copy;
                (seen.identity, seen.made) = (copy.identity(), self.made(Stack::UPPER, &copy));
                seen.branch = Stack::UPPER;
                in_index = Some(index.at(&entry));
            } else {
                seen.lost = self.gone.as_ref().and_then(|gone| gone.of(&entry));
            }
        }
        Ok((seen, in_index))
    }

    /// The index and the name that a lower file with these attributes would have there; `None` if it has one name only.
    fn index_entry(&self, branch: BranchId, stat: &Stat) -> Result<Option<(&Index, Name)>> {
        let Some(index) = self.index.as_deref() else { return Ok(None) };
        let is_upper = self.stack.is_upper(branch);
        let branch = self.stack.branch(branch)?;
        let same_device = branch.root.identity().0 == stat.dev;
        // `user.*` attributes, and so the index's records, are for regular files only.
        let recordable = stat.kind().is_file() || !self.stack.upper()?.writer.keys.user;
        if stat.nlink < 2 || !recordable || stat.is_dir() || is_upper || !same_device {
            return Ok(None);
        }
        Ok(Some((index, Index::name_for(branch.tag, stat.ino)?)))
    }

    /// A name that only a lower branch had was deleted of the object whose body is given; `was` are its attributes.
    fn lose_lower_name(&self, body: &mut Body, was: Option<&Stat>) {
        let lost = body.lost_lower_name();
        let (Some(gone), Some(was)) = (&self.gone, was) else { return };
        match self.index_entry(body.branch, was) {
            Ok(Some((_, entry))) if lost.names >= was.nlink => gone.clear(&entry),
            Ok(Some((_, entry))) => gone.set(&entry, lost),
            Ok(None) => {}
            Err(errno) => best_effort::<()>("record a deleted name", Err(errno)),
        }
    }

    /// What stat shows of `node`, whose real object has the attributes `stat`, or had when it was looked at.
    fn attr(&self, node: &Arc<Node>, stat: &Stat) -> Result<Attr> {
        let data = self.data_stat(node, stat);
        // Once: who waits to write it would keep a second look from coming to an end, and wait for the first.
        let body = node.body.read();
        let (stat, data) = if node.is_dir() || body.identity == stat.identity() {
            (*stat, data.unwrap_or(*stat))
        } else {
            // Copied up meanwhile, or before under another of its names: its names are counted otherwise.
            (stat_of(&body)?, body.data_at()?.0.stat()?)
        };
        let stat = self.shown(&body, &stat)?;
        Ok(Attr {
            ino: node.ino,
            size: data.size,
            blocks: data.blocks,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime.max(body.touched.unwrap_or(stat.ctime)),
            mode: stat.mode,
            nlink: self.nlink(node, &body, &stat)?,
            uid: stat.uid,
            gid: stat.gid,
            rdev: overlay::shown_number(&stat),
            blksize: stat.blksize,
            settled: self.is_settled(&body),
        })
    }

    /// `stat`, that of the object whose body is given, with the owner, group and mode that the union shows.
    fn shown(&self, body: &Body, stat: &Stat) -> Result<Stat> {
        // What was left behind when its branch went shows what its inode says.
        match self.stack.branch(body.branch).ok().and_then(|branch| branch.aside) {
            None => Ok(*stat),
            Some(aside) => aside.shown(&body.at()?, stat),
        }
    }

    /// Whether only requests change what `node` shows. A directory with lower parts shows their changes too.
    fn is_settled(&self, body: &Body) -> bool {
        self.stack.is_upper(body.branch) && body.layers.len() <= 1 && body.data_place().is_none()
    }

    /// How many names the union has for `node`.
    fn nlink(&self, node: &Node, body: &Body, stat: &Stat) -> Result<u32> {
        if node.is_dir() {
            let parts = body.layers.iter().filter(|dir| dir.presence != Presence::MarksOnly).count();
            return Ok(if body.links.is_empty() && body.held.is_some() {
                0
            } else if parts > 1 {
                1
            } else {
                stat.nlink
            });
        }
        if !self.stack.is_upper(body.branch) {
            return Ok(if body.links.is_empty() && body.held.is_some() && stat.nlink <= body.gone {
                0
            } else {
                stat.nlink.saturating_sub(body.gone)
            });
        }
        if self.index.as_deref().is_none_or(Index::is_empty) {
            return Ok(stat.nlink);
        }
        let at = body.at()?;
        let record = Record::read(&self.stack.upper()?.writer.keys, &at)?;
        let names = record.map_or(stat.nlink.into(), |record| record.names(stat.nlink));
        Ok(u32::try_from(names.max(0)).unwrap_or(u32::MAX))
    }

    /// The answer to a look-up or a creation.
    fn entry(&self, (node, attr): (Arc<Node>, Attr)) -> Entry {
        Entry { node: node.id, generation: node.generation, attr }
    }

    /// Makes the upper's directory `dir` look untouched again: names change in it that the union does not see change.
    fn keep_times<T>(&self, dir: &Arc<RealDir>, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let itself = dir.itself()?;
        let was = itself.stat()?;
        let done = act()?;
        best_effort("put back the times of a directory", crate::union::copyup::meta::copy_times(&was, &itself));
        Ok(done)
    }
}

/// The branch of a name under which something was seen. One that leads to the index is a lower branch's: the topmost lower
/// will do, since only "not the upper" matters.
fn branch_of_name(seen: &Seen, in_index: Option<&At>) -> BranchId {
    if in_index.is_some() { BranchId(seen.branch.0.saturating_add(1)) } else { seen.branch }
}
