//! `Tree`: what is to stand in one branch, written down; laid out on disk in any mark format, or flattened with the
//! trees below it into what the union of them must show.

use std::collections::{BTreeMap, HashMap};

use cowfs::union::options::Format;
use rustix::fs::{FileType, OFlags};

use super::dirfs::DirFs;
use super::fs::{Fs, When, path as join, split, within};

/// Everything that a `Tree` builds carries a time before this one; what is later was changed by a test.
pub const NOW_FROM: When = (1_600_000_000, 0);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Dir,
    /// A directory that hides the one below.
    Opaque,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    CharDevice(u32, u32),
    Whiteout,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planted {
    pub item: Item,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: When,
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Those with the same number are one file with several names.
    pub group: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Tree {
    pub entries: BTreeMap<Vec<u8>, Planted>,
    salt: u64,
    last: Vec<u8>,
}

/// The name of a branch's own directory for whiteouts, in the formats that have one.
pub fn metadata_dir(format: Format) -> Option<&'static [u8]> {
    match format {
        Format::Overlay | Format::Oci => None,
        Format::Unionfs => Some(b".unionfs"),
        Format::UnionfsFuse => Some(b".unionfs-fuse"),
    }
}

impl Tree {
    /// `salt` sets the times of this tree apart from those of other trees.
    pub fn new(salt: u64) -> Self {
        let mut tree = Self { entries: BTreeMap::new(), salt, last: Vec::new() };
        tree.put(b"", Item::Dir, 0o755);
        tree
    }

    fn put(&mut self, path: &[u8], item: Item, mode: u32) {
        if !path.is_empty() {
            let (dir, _) = split(path);
            if !self.entries.contains_key(dir) {
                self.put(dir, Item::Dir, 0o755);
            }
        }
        let seconds = 1_000_000_000 + self.salt * 100_000 + self.entries.len() as u64;
        self.last = path.to_vec();
        self.entries.insert(
            path.to_vec(),
            Planted {
                item,
                mode,
                owner: (0, 0),
                mtime: (i64::try_from(seconds).unwrap(), 123_456_789),
                xattrs: vec![],
                group: None,
            },
        );
    }

    pub fn add(mut self, path: impl AsRef<[u8]>, item: Item) -> Self {
        let mode = if matches!(item, Item::Dir | Item::Opaque) { 0o755 } else { 0o644 };
        self.put(path.as_ref(), item, mode);
        self
    }
    pub fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path, Item::Dir)
    }
    pub fn opaque(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path, Item::Opaque)
    }
    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.add(path, Item::File(content.as_ref().to_vec()))
    }
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.add(path, Item::Symlink(target.as_ref().to_vec()))
    }
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path, Item::Whiteout)
    }
    /// One more name for a file.
    pub fn link(mut self, old: impl AsRef<[u8]>, new: impl AsRef<[u8]>) -> Self {
        let number = self.entries.len() as u64 + (self.salt << 32);
        let file = self.entries.get_mut(old.as_ref()).expect("link to what is not there");
        let group = *file.group.get_or_insert(number);
        let twin = Planted { group: Some(group), ..file.clone() };
        self.put(new.as_ref(), Item::Dir, 0);
        self.entries.insert(new.as_ref().to_vec(), twin);
        self
    }

    fn last(&mut self) -> &mut Planted {
        self.entries.get_mut(&self.last).unwrap()
    }
    pub fn mode(mut self, mode: u32) -> Self {
        self.last().mode = mode;
        self
    }
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.last().owner = (uid, gid);
        self
    }
    pub fn time(mut self, mtime: When) -> Self {
        self.last().mtime = mtime;
        self
    }
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.last().xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// What the union of `trees` (top first) shows.
    pub fn flatten(trees: &[Self]) -> Self {
        let mut flat = Self::new(0);
        for tree in trees.iter().rev() {
            for (path, planted) in &tree.entries {
                let was = flat.entries.get(path).map(|known| known.item.clone());
                let merges = was == Some(Item::Dir) && planted.item == Item::Dir;
                if !merges {
                    flat.entries.retain(|known, _| !within(known, path) || path.is_empty());
                }
                let mut planted = planted.clone();
                match planted.item {
                    Item::Whiteout => continue,
                    Item::Opaque => planted.item = Item::Dir,
                    _ => {}
                }
                flat.entries.insert(path.clone(), planted);
            }
        }
        flat
    }

    /// Lays the tree out below `root`, which must be empty.
    pub fn build(&self, root: &DirFs, format: Format) {
        let mut groups: HashMap<u64, &[u8]> = HashMap::new();
        for (path, planted) in &self.entries {
            if let Some(first) = planted.group.and_then(|group| groups.insert(group, path)) {
                root.link(first, path).expect("link");
                continue;
            }
            plant(root, path, planted, format);
        }
        for (path, planted) in self.entries.iter().rev() {
            if planted.item != Item::Whiteout {
                root.utimens(path, planted.mtime, planted.mtime).expect("utimens");
            }
        }
    }
}

fn plant(root: &DirFs, path: &[u8], planted: &Planted, format: Format) {
    let make = |kind: FileType, rdev| root.mknod(path, kind.as_raw_mode() | 0o600, rdev);
    match &planted.item {
        Item::Dir if path.is_empty() => Ok(()),
        Item::Dir => root.mkdir(path, 0o700),
        Item::Opaque => {
            root.mkdir(path, 0o700).expect("mkdir");
            opaque(root, path, format);
            Ok(())
        }
        Item::File(content) => root.write_at(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0, content),
        Item::Symlink(target) => root.symlink(target, path),
        Item::Fifo => make(FileType::Fifo, (0, 0)),
        Item::Socket => make(FileType::Socket, (0, 0)),
        Item::CharDevice(major, minor) => make(FileType::CharacterDevice, (*major, *minor)),
        Item::Whiteout => return whiteout(root, path, format),
    }
    .unwrap_or_else(|errno| panic!("build {}: {errno}", super::show(path)));
    if planted.owner != (0, 0) {
        root.chown(path, planted.owner.0, planted.owner.1).expect("chown");
    }
    if !matches!(planted.item, Item::Symlink(_)) {
        root.chmod(path, planted.mode).expect("chmod");
    }
    for (name, value) in &planted.xattrs {
        root.setxattr(path, name, value).unwrap_or_else(|errno| panic!("setxattr {name}: {errno}"));
    }
}

fn whiteout(root: &DirFs, path: &[u8], format: Format) {
    let (dir, name) = split(path);
    match format {
        Format::Overlay => root.mknod(path, FileType::CharacterDevice.as_raw_mode(), (0, 0)).expect("mknod 0:0"),
        Format::Oci => root.create(&join(dir, &[b".wh.", name].concat()), 0o644).expect("create .wh."),
        Format::Unionfs | Format::UnionfsFuse => {
            let mirror = mirror(root, dir, format);
            root.create(&join(&mirror, &[name, b"_HIDDEN~"].concat()), 0o600).expect("create _HIDDEN~");
        }
    }
}

fn opaque(root: &DirFs, path: &[u8], format: Format) {
    match format {
        Format::Overlay => root.setxattr(path, "trusted.overlay.opaque", b"y").expect("set opaque"),
        Format::Oci => root.create(&join(path, b".wh..wh..opq"), 0o644).expect("create .wh..wh..opq"),
        Format::Unionfs | Format::UnionfsFuse => {
            let (dir, name) = split(path);
            let mirror = mirror(root, dir, format);
            root.mkdir(&join(&mirror, &[name, b"_HIDDEN~"].concat()), 0o700).expect("mkdir _HIDDEN~");
        }
    }
}

/// The directory that holds the whiteouts of `dir`, made where it is missing.
fn mirror(root: &DirFs, dir: &[u8], format: Format) -> Vec<u8> {
    let mut mirror = metadata_dir(format).expect("a format with a metadata directory").to_vec();
    let _ = root.mkdir(&mirror, 0o770);
    for part in dir.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
        mirror = join(&mirror, part);
        let _ = root.mkdir(&mirror, 0o770);
    }
    mirror
}
