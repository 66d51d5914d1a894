//! All nodes that somebody knows: by the kernel (look-up counts), by an open file, or as parent of another node.
//!
//! Invariant: one object, one node. The id is the inode number shown; where two objects would share one (root, a number
//! that was used again while the old file is still open), the second gets an alias.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use rustix::fs::FileType;

use crate::union::branch::At;
use crate::union::error::{Errno, Result};
use crate::union::node::{Link, Node, Seen};
use crate::union::types::{Generation, Ino, NodeId};

/// Aliases have the 16 highest bits set: next to no number of a filesystem has, not even of one that draws them by lot from all
/// 64 bits (Gluster). One that has gets an alias, too.
const ALIAS: u64 = 0xffff << 48;
fn is_alias(number: u64) -> bool {
    number & ALIAS == ALIAS
}

/// After how many forgets the table is swept.
const SWEEP: u64 = 4096;

/// The nodes.
pub struct Table {
    root: Arc<Node>,
    nodes: DashMap<NodeId, Arc<Node>>,
    aliases: DashMap<(u64, u64), NodeId>,
    /// The nodes of real directories, by their identity; empty unless `follow` was called.
    dirs: DashMap<(u64, u64), NodeId>,
    follows: AtomicBool,
    next: AtomicU64,
    forgets: AtomicU64,
}

impl Table {
    /// A table that knows the root only.
    pub fn new(root: Arc<Node>) -> Self {
        let nodes = DashMap::new();
        nodes.insert(NodeId::ROOT, root.clone());
        Self {
            root,
            nodes,
            aliases: DashMap::new(),
            dirs: DashMap::new(),
            follows: AtomicBool::new(false),
            next: AtomicU64::new(0),
            forgets: AtomicU64::new(0),
        }
    }

    /// The root of the union.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// A look-up of the real object `identity` does not come to `node` any more.
    pub fn unfind(&self, identity: (u64, u64), node: NodeId) {
        self.aliases.remove_if(&identity, |_, known| *known == node);
    }

    /// A look-up that sees this comes to `node` from now on, and none comes to another one.
    pub fn find_as(&self, node: NodeId, seen: &Seen) {
        if seen.ino.0 == node.0 {
            self.aliases.remove(&seen.identity);
        } else {
            self.aliases.insert(seen.identity, node);
        }
    }

    /// The number that is shown for the real object `identity`, if it is known and shows another one than its own.
    pub fn number_of(&self, identity: (u64, u64)) -> Option<Ino> {
        self.alias_of(identity).and_then(|id| self.known(id)).map(|node| node.ino)
    }

    /// The node of the real object `identity`, the one that `made` says, of which it is known that it is one of `kind` and would show
    /// `own` if it had no origin. `None` also for one that shows another's number and that nobody has looked up since it does.
    pub fn node_of(&self, (identity, made): ((u64, u64), Generation), kind: FileType, own: Ino) -> Option<Arc<Node>> {
        let node = self.known(self.alias_of(identity).unwrap_or(NodeId(own.0)))?;
        let is = node.kind == kind && node.is_at(identity, made);
        is.then_some(node)
    }

    /// The node called `id`.
    ///
    /// # Errors
    /// `ESTALE` if nobody knows it.
    pub fn get(&self, id: NodeId) -> Result<Arc<Node>> {
        self.nodes.get(&id).map(|node| node.value().clone()).ok_or(Errno::STALE)
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node is known; never true, since the root is.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The node for what was seen, counted once more. `lose` is told of a node that is called alike and is another
    /// one: its real object may be gone for that.
    pub fn enter(&self, seen: Seen, index: Option<At>, link: Link, lose: impl Fn(&Arc<Node>, &Seen)) -> Arc<Node> {
        let mut id = self.id_of(&seen);
        loop {
            match self.nodes.entry(id) {
                Entry::Vacant(vacant) => {
                    let identity = seen.identity;
                    let node = Arc::new(Node::new(id, seen, index, Some(link)));
                    let own = id.0 == node.ino.0 && !is_alias(id.0);
                    vacant.insert(node.clone());
                    if !own {
                        // Once more: an alias that leads nowhere yet may have been swept away.
                        self.aliases.insert(identity, id);
                    }
                    self.note(&node);
                    return node;
                }
                Entry::Occupied(occupied) => {
                    let node = occupied.get().clone();
                    if node.is(&seen) {
                        node.lookups.fetch_add(1, Ordering::Relaxed);
                        drop(occupied);
                        node.seen_again(seen, index, link);
                        self.note(&node);
                        return node;
                    }
                    drop(occupied);
                    lose(&node, &seen);
                }
            }
            id = self.alias(&seen, Some(id));
        }
    }

    /// The alias of what was seen, another one than `tried`. Who sees it at the same time gets the same.
    fn alias(&self, seen: &Seen, tried: Option<NodeId>) -> NodeId {
        let fresh = || NodeId(ALIAS | self.next.fetch_add(1, Ordering::Relaxed));
        let mut alias = self.aliases.entry(seen.identity).or_insert_with(fresh);
        if Some(*alias) == tried {
            *alias = fresh();
        }
        *alias
    }

    /// By which other number the real object `identity` is known.
    fn alias_of(&self, identity: (u64, u64)) -> Option<NodeId> {
        // Mostly there are none, and no part of the map need be locked.
        if self.aliases.is_empty() { None } else { self.aliases.get(&identity).map(|alias| *alias) }
    }

    fn id_of(&self, seen: &Seen) -> NodeId {
        if let Some(id) = self.alias_of(seen.identity) {
            return id;
        }
        if seen.ino.0 > NodeId::ROOT.0 && !is_alias(seen.ino.0) {
            return NodeId(seen.ino.0);
        }
        self.alias(seen, None)
    }

    /// From now on `shown` finds nodes.
    pub fn follow(&self) {
        self.follows.store(true, Ordering::Release);
        self.note(&self.root);
    }

    /// The directories show other real ones than before.
    pub fn note_again(&self) {
        self.dirs.clear();
        self.all().iter().for_each(|node| self.note(node));
    }

    fn note(&self, node: &Arc<Node>) {
        if node.is_dir() && self.follows.load(Ordering::Acquire) {
            for dir in node.body.read().layers.iter().filter(|dir| dir.is_real()) {
                self.dirs.insert(dir.identity(), node.id);
            }
        }
    }

    /// The node that shows the real directory `identity`, if it is known.
    pub fn shown(&self, identity: (u64, u64)) -> Option<Arc<Node>> {
        let id = *self.dirs.get(&identity)?;
        self.known(id)
    }

    /// The nodes that may stand for a real object of this identity, shown under this number.
    pub fn numbered(&self, identity: (u64, u64), ino: Ino) -> Vec<NodeId> {
        let alias = self.alias_of(identity);
        let own = Some(NodeId(ino.0)).filter(|id| self.nodes.contains_key(id));
        alias.into_iter().chain(own).collect()
    }

    /// All nodes, as they are now.
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.nodes.iter().map(|node| node.value().clone()).collect()
    }

    /// `node` has got a real object, `identity`: it is found by that from now on, whether the object tells its number or not.
    pub fn adopt(&self, identity: (u64, u64), node: NodeId) {
        self.aliases.insert(identity, node);
    }

    /// The node that shows the number `id`, if it is known.
    pub fn known(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id).map(|node| node.value().clone())
    }

    /// The kernel has forgotten `count` look-ups of `id`. Returns, once in a while, that it is time for `sweep`.
    pub fn forget(&self, id: NodeId, count: u64) -> bool {
        let Some(node) = self.known(id) else { return false };
        node.forgotten(count);
        self.release(node);
        self.forgets.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1
    }

    /// Lets go of nodes that were in use when they were forgotten, and of the room that so many needed.
    pub fn sweep(&self) {
        self.nodes.retain(|&id, node| id == NodeId::ROOT || !unused(node));
        self.aliases.retain(|_, id| !self.surely_lacks(*id));
        self.dirs.retain(|_, id| !self.surely_lacks(*id));
        self.nodes.shrink_to_fit();
    }

    /// Whether there is no node `id`, without waiting for it: for who has one of the other maps locked. Those are asked while
    /// a node's `body` is locked, and a `body` while `nodes` is.
    fn surely_lacks(&self, id: NodeId) -> bool {
        self.nodes.try_get(&id).is_absent()
    }

    /// Gives a reference back; the node goes if it was the last, and its parents after it.
    pub fn release(&self, node: Arc<Node>) {
        let mut nodes = vec![node];
        while let Some(node) = nodes.pop() {
            let (id, identity) = (node.id, node.body.read().identity);
            drop(node);
            if id == NodeId::ROOT {
                continue;
            }
            let Some((_, node)) = self.nodes.remove_if(&id, |_, node| unused(node)) else { continue };
            // Unless somebody has entered it anew meanwhile.
            let gone = |known: &NodeId| *known == id && self.surely_lacks(id);
            self.aliases.remove_if(&identity, |_, alias| gone(alias));
            if self.follows.load(Ordering::Acquire) {
                for dir in &node.body.read().layers {
                    self.dirs.remove_if(&dir.identity(), |_, shown| gone(shown));
                }
            }
            nodes.extend(node.body.write().links.drain(..).map(|link| link.parent));
        }
    }
}

/// Whether only the table has it. The shard is locked when this is asked, so nobody can get it from there meanwhile.
fn unused(node: &Arc<Node>) -> bool {
    node.lookups.load(Ordering::Acquire) == 0 && Arc::strong_count(node) == 1
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::union::name::Name;
    use crate::union::stack::Layers;
    use crate::union::types::BranchId;

    fn seen(ino: u64, identity: (u64, u64)) -> Seen {
        let (generation, branch, layers) = (Generation(1), BranchId(0), Layers::new());
        Seen {
            ino: Ino(ino),
            generation,
            made: generation,
            kind: FileType::RegularFile,
            identity,
            branch,
            layers,
            lost: None,
        }
    }

    fn table() -> Table {
        Table::new(Arc::new(Node::new(NodeId::ROOT, seen(1, (1, 1)), None, None)))
    }

    fn link(table: &Table) -> Link {
        Link { parent: table.root().clone(), name: Name::new("n").unwrap(), branch: BranchId(0) }
    }

    /// The number is another object's: two who see this one at once must not know it by two names.
    #[test]
    fn two_who_see_an_object_at_once_get_one_node() {
        for _ in 0..500 {
            let table = table();
            table.enter(seen(7, (1, 7)), None, link(&table), |_, _| {});
            let (start, enter) = (Barrier::new(2), || table.enter(seen(7, (2, 7)), None, link(&table), |_, _| {}).id);
            let both = std::thread::scope(|threads| {
                let both = [0, 1].map(|_| {
                    threads.spawn(|| {
                        start.wait();
                        enter()
                    })
                });
                both.map(|one| one.join().unwrap())
            });
            assert_eq!(both, [enter(), enter()]);
        }
    }

    #[test]
    fn an_object_that_is_gone_is_not_what_has_its_number() {
        let table = table();
        let lost = std::cell::RefCell::new(Vec::new());
        let enter = |generation| {
            let seen = Seen { made: Generation(generation), ..seen(7, (1, 7)) };
            table.enter(seen, None, link(&table), |node, _| lost.borrow_mut().push(node.id)).id
        };
        assert_eq!([enter(1), enter(1)], [NodeId(7); 2]);
        // Nor is it asked whose number that shows.
        let known = |made| table.node_of(((1, 7), Generation(made)), FileType::RegularFile, Ino(7)).is_some();
        assert_eq!([0, 1, 2].map(known), [true, true, false]);
        // Nobody knows when it was made: the same, as far as anybody can tell.
        assert_eq!(enter(0), NodeId(7));
        let second = enter(2);
        assert!(is_alias(second.0) && *lost.borrow() == [NodeId(7)]);
        assert_eq!(enter(2), second);
    }

    /// A copy-up asks for aliases while it has the node's body, for which a look-up waits with a part of the nodes locked.
    #[test]
    fn sweeping_does_not_wait_for_a_node_that_is_copied_up() {
        let table = table();
        let node = table.enter(seen(7, (1, 7)), None, link(&table), |_, _| {});
        table.adopt((2, 7), node.id);
        let (asked, answered) = channel();
        std::thread::scope(|threads| {
            let body = node.body.write();
            threads.spawn(|| table.enter(seen(7, (1, 7)), None, link(&table), |_, _| {}));
            while table.nodes.try_get(&node.id).is_present() {
                std::thread::yield_now();
            }
            threads.spawn(|| asked.send(table.surely_lacks(node.id)).unwrap());
            assert_eq!(answered.recv_timeout(Duration::from_secs(1)), Ok(false));
            drop(body);
        });
    }
}
