//! Names in memory: what a directory tree looks like, without its contents.
//!
//! Invariant: a node's number is its place in the table and is never used again; a name keeps its position in the listing
//! for as long as it is there. Who may see a tree at the same time as whom is for the caller to settle.

use std::collections::{HashMap, VecDeque};
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

/// A name as it stands in a directory.
pub(crate) type Name = Arc<[u8]>;

/// All nodes by number; nothing has the number 0.
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

/// A file or directory.
pub(crate) struct Node {
    /// As it is answered.
    pub(crate) attr: FileAttr,
    /// What is in it, if it is a directory.
    pub(crate) dir: Option<Dir>,
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
        let nobody = attr_of(&root.metadata()?, 0);
        let mut tree =
            Tree { nodes: vec![Node { attr: nobody, dir: None, made: false, sent: AtomicBool::new(false) }] };
        let first = tree.add(attr_of(&root.metadata()?, 1), 1);
        let mut todo: VecDeque<(PathBuf, u64)> = [(root.to_owned(), first)].into();
        while let Some((path, parent)) = todo.pop_front() {
            for entry in path.read_dir()? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_file() || metadata.is_dir() {
                    let node = tree.add(attr_of(&metadata, 0), parent);
                    tree.enter(parent, entry.file_name().as_bytes().into(), node);
                    if metadata.is_dir() {
                        todo.push_back((entry.path(), node));
                    }
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

    /// Adds a node without a name.
    fn add(&mut self, attr: FileAttr, parent: u64) -> u64 {
        let number = self.nodes.len() as u64;
        let dir = (attr.kind == FileType::Directory).then(|| Dir::below(parent));
        let attr = FileAttr { ino: INodeNo(number), ..attr };
        self.nodes.push(Node { attr, dir, made: false, sent: AtomicBool::new(false) });
        number
    }

    fn enter(&mut self, parent: u64, name: Name, node: u64) {
        if let Some(dir) = &mut self.node_mut(parent).dir {
            dir.insert(name, node);
        }
    }

    /// Makes an empty node.
    pub(crate) fn make(
        &mut self,
        parent: u64,
        name: &[u8],
        (kind, perm): (FileType, u16),
        (uid, gid): (u32, u32),
    ) -> FileAttr {
        let now = SystemTime::now();
        let (atime, mtime, ctime) = (now, now, now);
        let attr =
            FileAttr { size: 0, blocks: 0, atime, mtime, ctime, kind, perm, nlink: 1, uid, gid, ..self.nodes[0].attr };
        let number = self.add(attr, parent);
        self.enter(parent, name.into(), number);
        let node = self.node_mut(number);
        node.made = true;
        node.attr
    }

    /// Takes a name away; false if it is not there.
    pub(crate) fn remove(&mut self, parent: u64, name: &[u8]) -> bool {
        let dir = self.node_mut(parent).dir.as_mut();
        dir.and_then(|dir| dir.remove(name)).is_some()
    }

    /// Gives a node another name; false if the old one is not there.
    pub(crate) fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) -> bool {
        let Some((_, node)) = self.node_mut(from.0).dir.as_mut().and_then(|dir| dir.remove(from.1)) else {
            return false;
        };
        self.enter(to.0, to.1.into(), node);
        if let Some(dir) = &mut self.node_mut(node).dir {
            dir.parent = to.0;
        }
        true
    }
}

fn attr_of(metadata: &Metadata, number: u64) -> FileAttr {
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
    FileAttr {
        ino: INodeNo(number),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime()),
        mtime: time(metadata.mtime()),
        ctime: time(metadata.ctime()),
        crtime: UNIX_EPOCH,
        kind: if metadata.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
