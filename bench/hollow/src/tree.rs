//! Names in memory: what a directory tree looks like, without its contents.
//!
//! Invariant: a node's number is its place in the table and is never used again; a name keeps its position in the listing
//! for as long as it is there. Who may see a tree at the same time as whom is for the caller to settle.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::wire::Entry;

/// A name as it stands in a directory.
pub(crate) type Name = Arc<[u8]>;

/// The number of the first directory.
const ROOT: u64 = 1;

/// All nodes by number; by 0 what is not there.
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

/// A file or directory.
pub(crate) struct Node {
    /// As it is answered.
    pub(crate) entry: Entry,
    /// What is in it, if it is a directory.
    dir: Option<Dir>,
    /// It was made by a request, and is written to.
    pub(crate) made: bool,
    /// The kernel has been given its data.
    pub(crate) sent: AtomicBool,
}

/// The names of a directory.
pub(crate) struct Dir {
    pub(crate) parent: u64,
    /// Where a name stands, and its node.
    places: HashMap<Name, (usize, u64)>,
    listing: Vec<Option<Listed>>,
    free: Vec<usize>,
}

/// A name of a listing.
pub(crate) struct Listed {
    pub(crate) name: Name,
    pub(crate) node: u64,
}

impl Dir {
    fn below(parent: u64) -> Dir {
        Dir { parent, places: HashMap::new(), listing: Vec::new(), free: Vec::new() }
    }

    /// The node of a name.
    pub(crate) fn get(&self, name: &[u8]) -> Option<u64> {
        self.places.get(name).map(|&(_, node)| node)
    }

    /// The names from a position on, each with the position after it.
    pub(crate) fn from(&self, position: usize) -> impl Iterator<Item = (usize, &Listed)> {
        let rest = self.listing.get(position..).unwrap_or_default();
        rest.iter().enumerate().filter_map(move |(n, listed)| Some((position + n + 1, listed.as_ref()?)))
    }

    /// Adds a name, or gives it to another node.
    fn insert(&mut self, name: Name, node: u64) {
        let place = self.places.get(&name).map(|&(place, _)| place).or_else(|| self.free.pop());
        let place = place.unwrap_or_else(|| {
            self.listing.push(None);
            self.listing.len() - 1
        });
        self.listing[place] = Some(Listed { name: name.clone(), node });
        self.places.insert(name, (place, node));
    }

    fn remove(&mut self, name: &[u8]) -> Option<(Name, u64)> {
        let (place, _) = self.places.remove(name)?;
        self.free.push(place);
        self.listing[place].take().map(|listed| (listed.name, listed.node))
    }
}

impl Tree {
    /// The tree below `root`, as it is now; neither symbolic links nor special files.
    pub(crate) fn of(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree { nodes: Vec::new() };
        tree.add(Entry::absent(), None);
        tree.add(Entry::of(ROOT, &root.metadata()?), Some(Dir::below(ROOT)));
        let mut todo: VecDeque<(PathBuf, u64)> = [(root.to_owned(), ROOT)].into();
        while let Some((path, parent)) = todo.pop_front() {
            for entry in path.read_dir()? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if !metadata.is_file() && !metadata.is_dir() {
                    continue;
                }
                let number = tree.next();
                tree.add(Entry::of(number, &metadata), metadata.is_dir().then(|| Dir::below(parent)));
                tree.enter(parent, entry.file_name().as_bytes().into(), number);
                if metadata.is_dir() {
                    todo.push_back((entry.path(), number));
                }
            }
        }
        Ok(tree)
    }

    /// The node of this number, which the kernel has been told of.
    pub(crate) fn node(&self, number: u64) -> &Node {
        &self.nodes[number as usize]
    }

    /// The same, to change it.
    pub(crate) fn node_mut(&mut self, number: u64) -> &mut Node {
        &mut self.nodes[number as usize]
    }

    /// The directory of this number, if it is one.
    pub(crate) fn dir(&self, number: u64) -> Option<&Dir> {
        self.node(number).dir.as_ref()
    }

    fn dir_mut(&mut self, number: u64) -> Option<&mut Dir> {
        self.node_mut(number).dir.as_mut()
    }

    /// The number of the next node.
    fn next(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// Adds a node without a name, by the next number.
    fn add(&mut self, entry: Entry, dir: Option<Dir>) {
        self.nodes.push(Node { entry, dir, made: false, sent: AtomicBool::new(false) });
    }

    fn enter(&mut self, parent: u64, name: Name, node: u64) {
        if let Some(dir) = self.dir_mut(parent) {
            dir.insert(name, node);
        }
    }

    /// Makes an empty file, or a directory, of `mode`; its number.
    pub(crate) fn make(&mut self, parent: u64, name: &[u8], mode: u32, owner: (u32, u32)) -> u64 {
        let number = self.next();
        let dir = (mode & libc::S_IFMT == libc::S_IFDIR).then(|| Dir::below(parent));
        self.add(Entry::new(number, mode, owner, 0), dir);
        self.node_mut(number).made = true;
        self.enter(parent, name.into(), number);
        number
    }

    /// Takes a name away; false if it is not there.
    pub(crate) fn remove(&mut self, parent: u64, name: &[u8]) -> bool {
        self.dir_mut(parent).and_then(|dir| dir.remove(name)).is_some()
    }

    /// Gives a node another name; false if the old one is not there.
    pub(crate) fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) -> bool {
        let Some((_, node)) = self.dir_mut(from.0).and_then(|dir| dir.remove(from.1)) else { return false };
        self.enter(to.0, to.1.into(), node);
        if let Some(dir) = self.dir_mut(node) {
            dir.parent = to.0;
        }
        true
    }
}
