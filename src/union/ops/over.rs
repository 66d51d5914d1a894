//! The same union over other lower branches: what becomes of the nodes that are known.
//!
//! Each is looked up once more by its names, parents before what is in them: a plan, which can fail, and nothing has changed
//! then. Carrying it out cannot fail.
//! - A directory that is one still keeps its node, whatever its layers are now: other filesystems may be mounted on it, and
//!   come off when its name leads to another node.
//! - Anything else keeps its node if one of its names leads to the same real object still, and so does all that is the upper's.
//! - What is left is as if it had been removed: who has it open goes on with it, and who asks for it is sent to look again.
//!
//! Invariant: no request is under way meanwhile, and none goes on with the union that was before.
//!
//! Not here: how that is brought about (`fuse::current`).

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use smallvec::SmallVec;

use crate::union::branch::at::keep_moved;
use crate::union::branch::list::list;
use crate::union::branch::{At, Presence};
use crate::union::engine::Union;
use crate::union::error::{Errno, Result, best_effort};
use crate::union::name::{Name, spelled};
use crate::union::node::{Body, Data, Link, Node, Seen};
use crate::union::ops::behind::Stale;
use crate::union::ops::branch_of_name;
use crate::union::ops::open::stat_of;
use crate::union::resolve::{Found, find};
use crate::union::stack::{Branch, Layers, Stack};
use crate::union::types::{BranchId, NodeId};

/// What becomes of a node.
enum Fate {
    /// A look-up comes to it.
    Stays(Stay),
    /// It is the upper's, but none of the names that are known lead to it; with the object itself if that is the only way.
    Unseen(Option<Arc<OwnedFd>>),
    /// It is left to who has it open, with the object itself.
    Leaves(Option<Arc<OwnedFd>>),
    /// It had no name before either.
    Nameless,
}

/// What a look-up of a node that stays finds.
struct Stay {
    seen: Seen,
    index: Option<At>,
    /// The names that lead to it.
    links: SmallVec<[Link; 1]>,
    /// Where its data are, if that has to be told.
    data: Option<Data>,
    /// They are others than before.
    other_data: bool,
}

/// The fates of all nodes.
struct Plan<'a> {
    old: &'a Union,
    new: &'a Union,
    /// What is open, by a descriptor if there is one.
    open: HashMap<NodeId, Option<Arc<OwnedFd>>>,
    /// What directories that stay are made of.
    layers: HashMap<NodeId, Layers>,
    fates: Vec<(Arc<Node>, Fate)>,
}

impl Union {
    /// Takes the place of `old`, which nobody asks meanwhile nor later. Returns what the kernel must not trust any more, and
    /// the directories that have other layers now (see `absent_until_now`).
    ///
    /// # Errors
    /// A complete sentence; nothing has changed, and `old` goes on.
    pub fn succeed(&self, old: &Self) -> std::result::Result<(Vec<Stale>, Vec<NodeId>), String> {
        let (open, layers, fates) = (self.handles.open_nodes(), HashMap::new(), Vec::with_capacity(self.table.len()));
        let mut plan = Plan { old, new: self, open, layers, fates };
        plan.make().map_err(|(node, errno)| {
            let path = spelled(&old.path_to(&node).unwrap_or_default());
            format!("the new branches cannot be read at {:?}: {errno}", String::from_utf8_lossy(&path))
        })?;
        Ok(plan.carry_out())
    }

    /// The names in these directories that nobody has been shown, though a lower has them: that one is absent is remembered by
    /// the kernel alone.
    pub fn absent_until_now(&self, dirs: &[NodeId]) -> Vec<Stale> {
        let dirs: HashSet<_> = dirs.iter().copied().collect();
        let mut told = HashSet::new();
        for node in self.table.all() {
            let body = node.body.read();
            let links = body.links.iter().filter(|link| dirs.contains(&link.parent.id));
            told.extend(links.map(|link| (link.parent.id, link.name.clone())));
        }
        let mut absent = Vec::new();
        for id in dirs {
            let layers = self.table.get(id).and_then(|node| node.layers()).unwrap_or_default();
            for layer in self.stack.lowers(&layers).iter().filter(|layer| layer.is_real()) {
                let listed = list(layer, |name, _, _| {
                    if let Ok(name) = Name::new(name)
                        && told.insert((id, name.clone()))
                    {
                        absent.push(Stale::Perhaps(id, name));
                    }
                    Ok(())
                });
                best_effort("look for names that came with other branches", listed);
            }
        }
        absent
    }
}

impl Plan<'_> {
    fn make(&mut self) -> std::result::Result<(), (Arc<Node>, Errno)> {
        let (dirs, files): (Vec<_>, Vec<_>) = self.new.table.all().into_iter().partition(|node| node.is_dir());
        let mut below: HashMap<NodeId, Vec<(Arc<Node>, Link)>> = HashMap::new();
        for node in dirs {
            match node.link() {
                Some(link) => below.entry(link.parent.id).or_default().push((node, link)),
                None if node.id == NodeId::ROOT => self.root(&node).map_err(|errno| (node, errno))?,
                None => self.fates.push((node, Fate::Nameless)),
            }
        }
        let mut todo = vec![NodeId::ROOT];
        while let Some(parent) = todo.pop() {
            for (node, link) in below.remove(&parent).unwrap_or_default() {
                todo.push(node.id);
                self.dir(&node, link).map_err(|errno| (node, errno))?;
            }
        }
        // Below a directory that was removed: there is nothing any more.
        self.fates.extend(below.into_values().flatten().map(|(node, _)| (node, Fate::Leaves(None))));
        for node in files {
            let fate = self.file(&node).map_err(|errno| (node.clone(), errno))?;
            self.fates.push((node, fate));
        }
        Ok(())
    }

    fn root(&mut self, node: &Arc<Node>) -> Result<()> {
        let layers = self.new.stack.roots();
        let stat = layers.first().ok_or(Errno::INVAL)?.itself()?.stat()?;
        self.dir_stays(node, Found::Dir(layers, stat), None)
    }

    /// A directory known by `link`, whose parent has been planned.
    fn dir(&mut self, node: &Arc<Node>, link: Link) -> Result<()> {
        let found = match self.layers.get(&link.parent.id) {
            Some(layers) => find(&self.new.stack, layers, &link.name)?,
            None => None,
        };
        match found {
            Some(found @ Found::Dir(..)) => self.dir_stays(node, found, Some(link))?,
            Some(Found::Leaf(..)) | None => self.fates.push((node.clone(), Fate::Leaves(None))),
        }
        Ok(())
    }

    fn dir_stays(&mut self, node: &Arc<Node>, found: Found, link: Option<Link>) -> Result<()> {
        let Found::Dir(layers, stat) = found else { return Err(Errno::NOTDIR) };
        let seen = self.new.seen_dir(layers.clone(), &stat, None)?;
        let links = link.into_iter().map(|link| Link { branch: seen.branch, ..link }).collect();
        self.layers.insert(node.id, layers);
        self.fates.push((node.clone(), Fate::Stays(Stay { seen, index: None, links, data: None, other_data: false })));
        Ok(())
    }

    /// Anything but a directory. All directories have been planned.
    fn file(&self, node: &Arc<Node>) -> Result<Fate> {
        let body = node.body.read();
        if body.links.is_empty() {
            return Ok(Fate::Nameless);
        }
        let mut found: Option<(Stay, At)> = None;
        for link in &body.links {
            let Some(layers) = self.layers.get(&link.parent.id) else { continue };
            let Some(Found::Leaf(dir, mut stat)) = find(&self.new.stack, layers, &link.name)? else { continue };
            let (seen, index) = self.new.seen_leaf(&dir, &link.name, &mut stat, None)?;
            if seen.kind != node.kind || seen.identity != body.identity {
                continue;
            }
            let link = Link { branch: branch_of_name(&seen, index.as_ref()), ..link.clone() };
            match &mut found {
                Some((stay, _)) => {
                    stay.links.push(link);
                    stay.index = stay.index.take().or(index);
                }
                None => {
                    let at = index.clone().map_or_else(|| dir.at(&link.name), Ok)?;
                    let links = SmallVec::from_iter([link]);
                    found = Some((Stay { seen, index, links, data: None, other_data: false }, at));
                }
            }
        }
        let hold = || self.hold(node, &body);
        match found {
            Some((mut stay, at)) => {
                stay.index = stay.index.or_else(|| body.index.clone());
                // Whoever has it open only reads: before a file is written, it gets data of its own.
                self.find_data(&body, &mut stay, &at)?;
                let reads_others = stay.other_data && self.open.contains_key(&node.id);
                Ok(if reads_others { Fate::Leaves(hold()) } else { Fate::Stays(stay) })
            }
            None if self.new.stack.is_upper(body.branch) && body.index.is_some() => Ok(Fate::Unseen(None)),
            None if self.new.stack.is_upper(body.branch) => Ok(Fate::Unseen(hold())),
            None => Ok(Fate::Leaves(hold())),
        }
    }

    /// Finds out where the data of a file will be, which is now `at`.
    fn find_data(&self, body: &Body, stay: &mut Stay, at: &At) -> Result<()> {
        let branch = stay.seen.branch;
        match (&body.data, stay.links.first()) {
            (Data::Elsewhere(known), Some(link)) => {
                let layers = self.layers.get(&link.parent.id).cloned().unwrap_or_default();
                let now = self.new.data_elsewhere(at, branch, (layers, link.name.clone()))?;
                stay.other_data = now.as_ref().is_none_or(|now| now.identity != known.identity);
                stay.data = Some(now.map_or(Data::Unknown, |now| Data::Elsewhere(Arc::new(now))));
            }
            // A mark that its data are elsewhere counts only where there is a branch below.
            (Data::Own, _) if self.old.stack.is_bottom(body.branch) != self.new.stack.is_bottom(branch) => {
                stay.data = Some(Data::Unknown);
            }
            _ => {}
        }
        Ok(())
    }

    /// The object itself, if somebody has it open. That it cannot be had any more (its branch may be why the branches are
    /// changed) keeps nothing from going on: who reads it has it, or never will.
    fn hold(&self, node: &Node, body: &Body) -> Option<Arc<OwnedFd>> {
        let open = self.open.get(&node.id)?;
        let by_name = || -> Result<OwnedFd> {
            stat_of(body)?;
            let at = body.at()?;
            at.open(OFlags::RDONLY | OFlags::NONBLOCK).or_else(|_| at.open(OFlags::PATH))
        };
        match by_name() {
            Ok(fd) => Some(Arc::new(fd)),
            Err(_) => open.clone().filter(|_| body.data_place().is_none()),
        }
    }

    /// Changes what is known. Nothing in here can fail.
    fn carry_out(self) -> (Vec<Stale>, Vec<NodeId>) {
        let Self { old, new, open, fates, .. } = self;
        let table = &new.table;
        let current = |node: &Node| !node.left_behind.load(Ordering::Acquire);
        for (node, fate) in fates.iter().filter(|(node, _)| current(node)) {
            if !matches!(fate, Fate::Nameless) {
                table.unfind(node.body.read().identity, node.id);
            }
        }
        let (mut stale, mut changed, mut parents) = (Vec::new(), Vec::new(), Vec::new());
        for (node, fate) in fates {
            let mut body = node.body.write();
            let names = std::mem::take(&mut body.links);
            let upper = new.stack.is_upper(body.branch);
            match fate {
                Fate::Stays(stay) => {
                    if node.is_dir() && read_as(&body.layers, old).ne(read_as(&stay.seen.layers, new)) {
                        changed.push(node.id);
                    }
                    if node.is_dir() || stay.other_data {
                        node.pages.store(0, Ordering::Release);
                        stale.push(Stale::Object(node.id));
                    }
                    if node.id != NodeId::ROOT {
                        table.find_as(node.id, &stay.seen);
                    }
                    body.stay(stay);
                }
                Fate::Unseen(held) => {
                    table.adopt(body.identity, node.id);
                    body.held = held;
                }
                Fate::Leaves(held) => {
                    node.left_behind.store(true, Ordering::Release);
                    stale.push(Stale::Object(node.id));
                    body.leave(held);
                }
                Fate::Nameless if upper && current(&node) && !node.is_dir() => table.adopt(body.identity, node.id),
                Fate::Nameless => body.layers.retain(|layer| new.stack.is_upper(layer.branch)),
            }
            // What it was copied from may lie elsewhere now, or be no more, and its number another's.
            body.before = None;
            if !upper && body.links.is_empty() && node.id != NodeId::ROOT {
                body.branch = moved(body.branch, old, new);
                if body.branch == Stack::NOWHERE {
                    // Its numbers may become another filesystem's.
                    let known = node.left_behind.swap(true, Ordering::AcqRel);
                    body.gone = u32::MAX;
                    if known && !open.contains_key(&node.id) {
                        body.let_go();
                    }
                }
            }
            for link in names {
                if !body.has_link(&link.parent, &link.name) {
                    stale.push(Stale::Name(link.parent.id, link.name));
                    parents.push(link.parent);
                }
            }
        }
        keep_moved(|device| new.stack.branches.iter().any(|branch| branch.root.identity().0 == device));
        new.readings.clear();
        table.note_again();
        parents.into_iter().for_each(|parent| table.release(parent));
        new.fds.sweep();
        (stale, changed)
    }
}

impl Body {
    fn stay(&mut self, stay: Stay) {
        let Stay { seen, index, links, data, .. } = stay;
        (self.branch, self.identity, self.made, self.layers) = (seen.branch, seen.identity, seen.made, seen.layers);
        (self.links, self.index, self.held) = (links, index, None);
        if let Some(data) = data {
            self.data = data;
        }
    }

    /// Nobody has it open any more. What was left gives its branch free.
    pub(super) fn let_go(&mut self) {
        if self.gone == u32::MAX {
            self.held = None;
        }
    }

    /// As if its last name had been removed.
    pub(super) fn leave(&mut self, held: Option<Arc<OwnedFd>>) {
        self.gone = u32::MAX;
        self.layers.clear();
        if held.is_none() || matches!(self.data, Data::Unknown) {
            self.data = Data::Own;
        }
        (self.held, self.index) = (held, None);
    }
}

/// The real directories, whether they are shown empty, and whether `.wh.` files count in them.
fn read_as(layers: &Layers, union: &Union) -> impl Iterator<Item = ((u64, u64), Presence, bool)> {
    let oci = |branch| union.stack.branch(branch).is_ok_and(|branch| branch.reader.oci);
    layers.iter().map(move |layer| (layer.identity(), layer.presence, oci(layer.branch)))
}

/// Where the branch that was `branch` is in the new stack.
fn moved(branch: BranchId, old: &Union, new: &Union) -> BranchId {
    let root = |branch: &Arc<Branch>| branch.root.identity();
    let was = old.stack.branch(branch).map(root);
    let now = new.stack.branches.iter().find(|branch| was == Ok(root(branch)));
    now.map_or(Stack::NOWHERE, |branch| branch.id)
}
