//! A node: an object of the union that somebody knows, and where its real object is now.
//!
//! Locks, and the order in which one thread may take them:
//! 1. `lift` of a node, while it is copied up (data included; nobody else waits for it but who wants the same copy);
//!    of a child before those of its ancestors;
//! 2. `children` of directories: shared to look names up, exclusive to change which there are. Two of them: the
//!    ancestor first, else by `NodeId`, under the engine's `crossing` lock;
//! 3. `body`, shared while the real object is used by name, exclusive while its place changes; a child's before its
//!    parent's, so a file's before a directory's, else by `NodeId`. Held over short system calls only.
//!
//! The table's own locks come before `body` and are never held over a system call.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::fs::FileType;
use smallvec::SmallVec;

use crate::union::branch::{At, RealDir};
use crate::union::error::{Errno, Result};
use crate::union::gone::Lost;
use crate::union::name::Name;
use crate::union::stack::{Layers, Stack, topmost};
use crate::union::types::{BranchId, Generation, Ino, NodeId, Time};

/// How many names of one file a node remembers; one would do, a few save look-ups after an unlink.
const LINKS: usize = 8;

/// A name by which a node is known.
#[derive(Clone)]
pub struct Link {
    /// The directory.
    pub parent: Arc<Node>,
    /// The name in it.
    pub name: Name,
    /// The branch whose object this name leads to; a name that only a lower branch has stays there when the file it
    /// leads to is copied up under another name.
    pub branch: BranchId,
}

impl Link {
    fn is(&self, parent: &Arc<Node>, name: &Name) -> bool {
        Arc::ptr_eq(&self.parent, parent) && self.name == *name
    }
}

/// What a look-up has seen.
pub struct Seen {
    /// The number to show.
    pub ino: Ino,
    /// Which object of that number it is; the same before and after a copy-up.
    pub generation: Generation,
    /// Type.
    pub kind: FileType,
    /// Device and inode number of the real object.
    pub identity: (u64, u64),
    /// Which object of that number the real one is: nobody keeps a lower's from being deleted. 0 if nobody knows.
    pub made: Generation,
    /// The branch it is in.
    pub branch: BranchId,
    /// For a directory: its layers.
    pub layers: Layers,
    /// For a lower file: its names that have been deleted.
    pub lost: Option<Lost>,
}

/// Where a node's real object is.
pub struct Body {
    /// Names by which it is known; none once it is unlinked.
    pub links: SmallVec<[Link; 1]>,
    /// For a directory: its layers.
    pub layers: Layers,
    /// The branch of the real object (of a directory: the topmost real one).
    pub branch: BranchId,
    /// Device and inode number of the real object.
    pub identity: (u64, u64),
    /// As `Seen::made`.
    pub made: Generation,
    /// Those of the lower object it was copied from, if that happened while it was known.
    pub before: Option<(u64, u64)>,
    /// The object itself, once no name leads to it.
    pub held: Option<Arc<OwnedFd>>,
    /// Its name in the index, if it was found there.
    pub index: Option<At>,
    /// Names of the lower file that were deleted (`gone`).
    pub gone: u32,
    /// When the last of them was: a change of the file's attributes that the lower file cannot show.
    pub touched: Option<Time>,
    /// For a regular file: where its data are.
    pub data: Data,
    /// It was made in the upper: it has no origin.
    pub original: bool,
    /// Another one has its number, and the kernel may know it by a name still: who comes by that is to look again.
    pub lost: bool,
}

/// Where the data of a regular file are (`ops::metacopy`). What was unknown once never gets unknown again, and data that
/// are the object's own stay that.
#[derive(Clone)]
pub enum Data {
    /// Nobody has asked yet.
    Unknown,
    /// In the real object.
    Own,
    /// In a lower file; the real object has the attributes only.
    Elsewhere(Arc<Place>),
}

/// A lower file that has the data of another one.
#[derive(Clone)]
pub struct Place {
    /// The directory it is in.
    pub dir: Arc<RealDir>,
    /// Its name there.
    pub name: Name,
    /// Its device and inode number.
    pub identity: (u64, u64),
    /// A mark on the file without data says where this one is, whatever becomes of its own name.
    pub anchored: bool,
}

impl Place {
    /// The lower file.
    ///
    /// # Errors
    /// Those of opening its directory.
    pub fn at(&self) -> Result<At> {
        self.dir.at(&self.name)
    }
}

/// What the data of a file are, by a glance at their beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Substance {
    /// Text, which may be a log that somebody follows.
    Text = 1,
    /// Anything else.
    Data = 2,
}

/// An object of the union that somebody knows.
pub struct Node {
    /// What the kernel calls it.
    pub id: NodeId,
    /// The number that stat shows.
    pub ino: Ino,
    /// Which object of that number it is.
    pub generation: Generation,
    /// Type.
    pub kind: FileType,
    /// How often the kernel has been told of it and has not forgotten.
    pub lookups: AtomicU64,
    /// Raised by one whenever the real object is another one; open files compare it with what they opened.
    pub epoch: AtomicU32,
    /// The state of the data whose pages the kernel may still have (`ops::open`); 0: none that are good.
    pub pages: AtomicU64,
    /// Only old descriptors lead to it: a look-up of its former name finds another node.
    pub left_behind: AtomicBool,
    /// Its capabilities have been taken away, which the kernel does before it announces a write by changing nothing.
    pub lost_capabilities: AtomicBool,
    substance: AtomicU8,
    /// Held while it is copied up.
    pub lift: Mutex<()>,
    /// Held while its names are looked up or changed.
    pub children: RwLock<()>,
    /// Where it is.
    pub body: RwLock<Body>,
}

impl Node {
    /// A node for what was seen, known by `links`.
    pub fn new(id: NodeId, seen: Seen, index: Option<At>, link: Option<Link>) -> Self {
        Self {
            id,
            ino: seen.ino,
            generation: seen.generation,
            kind: seen.kind,
            lookups: AtomicU64::new(1),
            epoch: AtomicU32::new(0),
            pages: AtomicU64::new(0),
            left_behind: AtomicBool::new(false),
            lost_capabilities: AtomicBool::new(false),
            substance: AtomicU8::new(0),
            lift: Mutex::new(()),
            children: RwLock::new(()),
            body: RwLock::new(Body {
                links: link.into_iter().collect(),
                layers: seen.layers,
                branch: seen.branch,
                identity: seen.identity,
                made: seen.made,
                before: None,
                held: None,
                index,
                gone: seen.lost.map_or(0, |lost| lost.names),
                touched: seen.lost.map(|lost| lost.touched),
                data: Data::Unknown,
                original: false,
                lost: false,
            }),
        }
    }

    /// The kernel has given `count` look-ups back. More than it was given would be its mistake; the count stays at 0.
    pub fn forgotten(&self, count: u64) {
        let mut known = self.lookups.load(Ordering::Acquire);
        while let Err(other) =
            self.lookups.compare_exchange_weak(known, known.saturating_sub(count), Ordering::AcqRel, Ordering::Acquire)
        {
            known = other;
        }
    }

    /// What its data were found to be.
    pub fn substance(&self) -> Option<Substance> {
        match self.substance.load(Ordering::Relaxed) {
            1 => Some(Substance::Text),
            2 => Some(Substance::Data),
            _ => None,
        }
    }

    /// Remembers what its data are.
    pub fn set_substance(&self, substance: Substance) {
        self.substance.store(substance as u8, Ordering::Relaxed);
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind.is_dir()
    }

    /// Whether what was seen is this object.
    pub fn is(&self, seen: &Seen) -> bool {
        let body = self.body.read();
        let current = !self.left_behind.load(Ordering::Acquire);
        // When a lower object is deleted behind the union, a new one may have its number.
        let was = || body.before == Some(seen.identity) && self.generation == seen.generation;
        current && self.kind == seen.kind && (body.is_at(seen.identity, seen.made) || was())
    }

    /// Whether its real object, by its `body`, is gone, because what was seen has its number.
    pub fn is_gone_for(&self, body: &Body, seen: &Seen) -> bool {
        let current = self.id != NodeId::ROOT && !self.left_behind.load(Ordering::Acquire);
        let same = self.kind == seen.kind && body.is_at(seen.identity, seen.made);
        current && body.identity == seen.identity && !same
    }

    /// Whether its real object is `identity` now, the one that `made` says if anybody knows.
    pub fn is_at(&self, identity: (u64, u64), made: Generation) -> bool {
        !self.left_behind.load(Ordering::Acquire) && self.body.read().is_at(identity, made)
    }

    /// It was seen once more, under `link`.
    pub fn seen_again(&self, seen: Seen, index: Option<At>, link: Link) {
        {
            let body = self.body.read();
            if body.knows_best(&link) && !body.layers_differ(&seen.layers) && !body.moved(&seen) && body.held.is_none()
            {
                return;
            }
        }
        let mut body = self.body.write();
        if self.left_behind.load(Ordering::Acquire) {
            // Since the look-up: only its descriptor leads to it.
            return;
        }
        if self.is_dir() {
            if body.layers_differ(&seen.layers) {
                body.layers = seen.layers.iter().map(|dir| body.known_layer(dir)).collect();
                body.branch = seen.branch;
                (body.identity, body.made) = (seen.identity, seen.made);
            }
            body.links = SmallVec::from_iter([link]);
        } else {
            if body.moved(&seen) {
                body.branch = seen.branch;
            }
            body.remember(link);
            if index.is_some() {
                body.index = index;
            }
        }
        body.held = None;
    }

    /// Uses the real object; its place cannot change meanwhile, so `use_it` has to be short.
    ///
    /// # Errors
    /// `ESTALE` if no name leads to it any more; what `use_it` returns.
    pub fn with<T>(&self, use_it: impl FnOnce(&At) -> Result<T>) -> Result<T> {
        let body = self.body.read();
        use_it(&body.at()?)
    }

    /// As `with`, for what is done to read the file's data: they may be in another object.
    ///
    /// # Errors
    /// As `with`.
    pub fn with_data<T>(&self, use_it: impl FnOnce(&At) -> Result<T>) -> Result<T> {
        let body = self.body.read();
        use_it(&body.data_at()?.0)
    }

    /// The layers of a directory.
    ///
    /// # Errors
    /// `ENOTDIR`; `ENOENT` for a directory that was removed, `ESTALE` for one that is lost.
    pub fn layers(&self) -> Result<Layers> {
        if !self.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let body = self.body.read();
        if !body.links.is_empty() || self.id == NodeId::ROOT {
            return Ok(body.layers.clone());
        }
        Err(if body.lost { Errno::STALE } else { Errno::NOENT })
    }

    /// A directory's part in the upper, if it has one that can be written.
    pub fn upper_dir(&self, stack: &Stack) -> Option<Arc<RealDir>> {
        let body = self.body.read();
        body.layers.first().filter(|dir| stack.is_upper(dir.branch) && dir.is_real()).cloned()
    }

    /// The link by which a directory is known (a directory has one name).
    pub fn link(&self) -> Option<Link> {
        self.body.read().links.first().cloned()
    }

    /// The directory it is in, for `..`; the root is its own.
    pub fn parent_ino(&self) -> Ino {
        self.link().map_or(self.ino, |link| link.parent.ino)
    }

    /// Whether `other` is this directory or lies below it.
    pub fn is_ancestor_of(self: &Arc<Self>, other: &Arc<Node>) -> bool {
        let mut at = other.clone();
        loop {
            if Arc::ptr_eq(self, &at) {
                return true;
            }
            match at.link() {
                Some(link) => at = link.parent,
                None => return false,
            }
        }
    }

    /// Its real object is another one from now on; open files will notice.
    pub fn replaced(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

impl Drop for Node {
    /// Lets go of the chain of parents in a loop, as `RealDir` does.
    fn drop(&mut self) {
        let mut links = std::mem::take(&mut self.body.get_mut().links);
        while let Some(link) = links.pop() {
            if let Some(mut parent) = Arc::into_inner(link.parent) {
                links.append(&mut parent.body.get_mut().links);
            }
        }
    }
}

impl Body {
    /// Where the real object is.
    ///
    /// # Errors
    /// `ESTALE` if no name leads to it any more.
    pub fn at(&self) -> Result<At> {
        if let Some(fd) = &self.held {
            return Ok(At::Fd(fd.clone()));
        }
        if let Some(dir) = topmost(&self.layers) {
            return dir.itself();
        }
        for link in self.links.iter().filter(|link| link.branch == self.branch) {
            if let Some(dir) = link.parent.body.read().layer(self.branch) {
                return dir.at(&link.name);
            }
        }
        self.index.clone().ok_or(Errno::STALE)
    }

    /// Where the data are to be read, and the device and inode number of what is there.
    ///
    /// # Errors
    /// As `at`.
    pub fn data_at(&self) -> Result<(At, (u64, u64))> {
        match &self.data {
            Data::Elsewhere(place) => Ok((place.at()?, place.identity)),
            Data::Own | Data::Unknown => Ok((self.at()?, self.identity)),
        }
    }

    /// The lower file that has the data in the object's stead.
    pub fn data_place(&self) -> Option<&Arc<Place>> {
        match &self.data {
            Data::Elsewhere(place) => Some(place),
            Data::Own | Data::Unknown => None,
        }
    }

    /// Whether the data will be found under whatever name the object gets.
    pub fn is_anchored(&self) -> bool {
        match &self.data {
            Data::Own => true,
            Data::Elsewhere(place) => place.anchored,
            Data::Unknown => false,
        }
    }

    /// Whether the real object is `identity`, the one that `made` says if anybody knows.
    fn is_at(&self, identity: (u64, u64), made: Generation) -> bool {
        let unknown = [self.made, made].contains(&Generation::default());
        self.identity == identity && (unknown || self.made == made)
    }

    /// The layer that belongs to `branch`.
    pub fn layer(&self, branch: BranchId) -> Option<Arc<RealDir>> {
        self.layers.iter().find(|dir| dir.branch == branch).cloned()
    }

    /// Whether `link` is the name that is tried first.
    fn knows_best(&self, link: &Link) -> bool {
        self.links.first().is_some_and(|known| known.is(&link.parent, &link.name) && known.branch == link.branch)
    }

    /// Whether the real object is in another branch than it was: an administrator has moved it, or another one has got
    /// its number.
    fn moved(&self, seen: &Seen) -> bool {
        self.identity == seen.identity && self.branch != seen.branch
    }

    /// Adds a name, or corrects what is known of one, and prefers it from now on: the others may be gone behind our back.
    pub fn remember(&mut self, link: Link) {
        self.links.retain(|known| !known.is(&link.parent, &link.name));
        self.links.truncate(LINKS - 1);
        self.links.insert(0, link);
    }

    /// Forgets a name; returns what was known of it.
    pub fn unlink(&mut self, parent: &Arc<Node>, name: &Name) -> Option<Link> {
        let at = self.links.iter().position(|known| known.is(parent, name))?;
        Some(self.links.remove(at))
    }

    /// A name that only a lower branch has was deleted.
    pub fn lost_lower_name(&mut self) -> Lost {
        // Of one that is lost all are gone.
        self.gone = self.gone.saturating_add(1);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let touched = Time { sec: now.tv_sec, nsec: u32::try_from(now.tv_nsec).unwrap_or(0) };
        self.touched = Some(touched);
        Lost { names: self.gone, touched }
    }

    /// So many names were deleted, some perhaps before it was known.
    pub fn has_lost(&mut self, lost: Lost) {
        if lost.names > self.gone {
            self.gone = lost.names;
            self.touched = Some(lost.touched);
        }
    }

    /// Whether `name` in `parent` is one of its names.
    pub fn has_link(&self, parent: &Arc<Node>, name: &Name) -> bool {
        self.links.iter().any(|known| known.is(parent, name))
    }

    fn layers_differ(&self, seen: &Layers) -> bool {
        self.layers.len() != seen.len() || self.layers.iter().zip(seen).any(|(known, seen)| !same_layer(known, seen))
    }

    /// The layer already known for the same real directory, so that its descriptor and its children stay valid.
    fn known_layer(&self, seen: &Arc<RealDir>) -> Arc<RealDir> {
        self.layers.iter().find(|known| same_layer(known, seen)).unwrap_or(seen).clone()
    }
}

fn same_layer(a: &RealDir, b: &RealDir) -> bool {
    a.branch == b.branch && a.presence == b.presence && a.identity() == b.identity()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::types::BranchId;

    fn seen() -> Seen {
        Seen {
            ino: Ino(5),
            generation: Generation(1),
            kind: FileType::RegularFile,
            identity: (1, 5),
            made: Generation(1),
            branch: BranchId(0),
            layers: Layers::new(),
            lost: None,
        }
    }

    #[test]
    fn a_copy_is_what_it_was_made_from_and_not_what_has_its_number_later() {
        let node = Node::new(NodeId(5), seen(), None, None);
        {
            let mut body = node.body.write();
            body.before = Some(body.identity);
            body.identity = (2, 7);
        }
        assert!(node.is(&Seen { identity: (2, 7), ..seen() }) && node.is(&seen()));
        assert!(!node.is(&Seen { generation: Generation(2), ..seen() }));
    }

    #[test]
    fn what_was_copied_up_is_not_gone_with_the_lower_object() {
        let node = Node::new(NodeId(5), seen(), None, None);
        let other = Seen { made: Generation(2), ..seen() };
        assert!(node.is_gone_for(&node.body.read(), &other));
        assert!(!node.is_gone_for(&node.body.read(), &seen()));
        {
            let mut body = node.body.write();
            (body.identity, body.made) = ((2, 7), Generation::default());
        }
        assert!(!node.is_gone_for(&node.body.read(), &other));
    }

    #[test]
    fn what_is_lost_may_lose_a_name_still() {
        let node = Node::new(NodeId(5), seen(), None, None);
        node.body.write().gone = u32::MAX;
        assert_eq!(node.body.write().lost_lower_name().names, u32::MAX);
    }

    #[test]
    fn what_is_left_behind_gets_no_name_back() {
        let node = Arc::new(Node::new(NodeId(5), seen(), None, None));
        let link = || Link { parent: node.clone(), name: Name::new("n").unwrap(), branch: BranchId(0) };
        let held = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        node.body.write().held = Some(held);
        node.left_behind.store(true, Ordering::Release);
        node.seen_again(seen(), None, link());
        assert!(node.link().is_none() && node.body.read().held.is_some());
        node.left_behind.store(false, Ordering::Release);
        node.seen_again(seen(), None, link());
        assert!(node.link().is_some() && node.body.read().held.is_none());
        node.body.write().links.clear();
    }
}
