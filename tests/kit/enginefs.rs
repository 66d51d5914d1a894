//! `EngineFs`: an `Fs` on the engine in this process, without a mount: it does what the kernel does between a system
//! call and a FUSE request, and no more.
//!
//! It walks paths by look-ups, keeps or forgets what it looked up (`Dcache`), and answers what the kernel's VFS answers
//! before a FUSE filesystem is asked (a directory moved into itself, an open of a symbolic link, ...).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cowfs::union::options::Options;
use cowfs::union::types::{Attr, Caller, Entry, HandleId, NodeId, SetAttr, SetTime, Time};
use cowfs::union::{BranchSource, Layout, NewLowers, Union};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::dirfs::names_of;
use super::fs::{EXCHANGE, Fd, Fs, Listed, NOREPLACE, R, Stat, When, letter, path as join, split, within};

/// What the kernel's cache of names is made to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dcache {
    /// Keeps every name until `forget`, and moves them on a rename without asking again: long time-outs.
    Keep,
    /// Forgets everything after each call: memory pressure, time-outs of 0.
    Nothing,
}

/// A branch as `EngineFs` opens it, top first.
#[derive(Clone, Debug)]
pub struct BranchPath {
    pub path: PathBuf,
    pub writable: bool,
    pub oci_whiteouts: bool,
}

impl BranchPath {
    pub fn open(&self) -> BranchSource {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        BranchSource {
            label: self.path.display().to_string(),
            root: rustix::fs::open(&self.path, flags, Mode::empty()).expect("open a branch"),
            writable: self.writable,
            oci_whiteouts: self.oci_whiteouts,
        }
    }
}

struct Open {
    chain: Vec<NodeId>,
    node: NodeId,
    handle: HandleId,
}

#[derive(Default)]
struct State {
    names: BTreeMap<Vec<u8>, (NodeId, FileType)>,
    refs: HashMap<NodeId, u64>,
    files: HashMap<usize, Open>,
    next: usize,
}

pub struct EngineFs {
    branches: Mutex<Vec<BranchPath>>,
    options: Options,
    dcache: Dcache,
    pub caller: Caller,
    union: Mutex<Option<Arc<Union>>>,
    state: Mutex<State>,
}

/// A walked path: the node at its end, and the references that are given back when it is done.
struct Walk<'a> {
    fs: &'a EngineFs,
    node: NodeId,
    kind: FileType,
    chain: Vec<NodeId>,
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        if self.fs.dcache == Dcache::Nothing {
            for node in self.chain.drain(..).rev() {
                self.fs.drop_one(node);
            }
        }
    }
}

impl EngineFs {
    /// Opens a union on these branches. The error is the engine's own text.
    pub fn try_new(branches: Vec<BranchPath>, options: Options, dcache: Dcache) -> Result<Self, String> {
        let (branches, union) = (Mutex::new(branches), Mutex::new(None));
        let this = Self { branches, options, dcache, caller: Caller::ROOT, union, state: Mutex::default() };
        this.open_union()?;
        Ok(this)
    }

    fn open_union(&self) -> Result<(), String> {
        let branches = self.branches.lock().unwrap().iter().map(BranchPath::open).collect();
        let layout = Layout { branches, workdir: None, covered: vec![] };
        let union = Union::open(layout, self.options.clone())?;
        *self.union.lock().unwrap() = Some(Arc::new(union));
        Ok(())
    }

    /// The engine itself.
    pub fn union(&self) -> Arc<Union> {
        self.union.lock().unwrap().clone().expect("mounted")
    }

    /// Exchanges the lowers while nobody asks anything, and looks up again what the kernel would: every name it keeps, which
    /// goes with all below it where it leads to another node, or nowhere.
    pub fn exchange(&self, lowers: &[BranchPath]) -> Result<(), String> {
        let old = self.union();
        let new = old.over(NewLowers { lowers: lowers.iter().map(BranchPath::open).collect(), covered: vec![] })?;
        new.succeed(&old)?;
        drop(old);
        *self.union.lock().unwrap() = Some(Arc::new(new));
        {
            let mut branches = self.branches.lock().unwrap();
            branches.retain(|branch| branch.writable);
            branches.extend_from_slice(lowers);
        }
        let known: Vec<_> =
            self.state.lock().unwrap().names.iter().map(|(path, known)| (path.clone(), *known)).collect();
        for (path, (node, _)) in known {
            let (dir, name) = split(&path);
            let parent = if dir.is_empty() { Some(NodeId::ROOT) } else { self.node_of(dir) };
            let (Some(parent), Some(_)) = (parent, self.node_of(&path)) else { continue };
            match self.union().lookup(parent, OsStr::from_bytes(name)) {
                Ok(found) => {
                    self.union().forget(found.node, 1);
                    if found.node != node {
                        self.gone(&path);
                    }
                }
                Err(Errno::NOENT) => self.gone(&path),
                Err(errno) => return Err(format!("look up {} again: {errno}", super::show(&path))),
            }
        }
        Ok(())
    }

    /// The node that a name leads to, if the kernel keeps it.
    pub fn node_of(&self, path: &[u8]) -> Option<NodeId> {
        self.state.lock().unwrap().names.get(path).map(|(node, _)| *node)
    }

    /// Gives the branches back as after a umount, or as after the daemon's death.
    pub fn unmount(&self, clean: bool) {
        {
            let mut state = self.state.lock().unwrap();
            assert!(!clean || state.files.is_empty(), "files are open at umount");
            *state = State { next: state.next, ..State::default() };
        }
        let union = self.union.lock().unwrap().take();
        if let (true, Some(union)) = (clean, &union) {
            union.close();
        }
        assert!(union.is_none_or(|union| Arc::into_inner(union).is_some()), "someone still holds the union");
    }

    fn drop_one(&self, node: NodeId) {
        let mut state = self.state.lock().unwrap();
        let count = state.refs.get_mut(&node).expect("a reference that was never taken");
        *count -= 1;
        if *count == 0 {
            state.refs.remove(&node);
        }
        drop(state);
        self.union().forget(node, 1);
    }

    /// Takes over the reference that came with an entry.
    fn take(&self, path: Option<&[u8]>, entry: &Entry) {
        assert_ne!(entry.node.0, 0, "node 0 in an answer");
        let mut state = self.state.lock().unwrap();
        *state.refs.entry(entry.node).or_default() += 1;
        if let (Some(path), Dcache::Keep) = (path, self.dcache) {
            state.names.insert(path.to_vec(), (entry.node, entry.attr.kind()));
        }
    }

    fn walk(&self, path: &[u8]) -> R<Walk<'_>> {
        let mut walk = Walk { fs: self, node: NodeId::ROOT, kind: FileType::Directory, chain: Vec::new() };
        if path.is_empty() {
            return Ok(walk);
        }
        let mut so_far = Vec::new();
        for name in path.split(|&byte| byte == b'/') {
            match walk.kind {
                FileType::Directory => {}
                FileType::Symlink => return Err(Errno::LOOP),
                _ => return Err(Errno::NOTDIR),
            }
            so_far = join(&so_far, name);
            let known = self.state.lock().unwrap().names.get(&so_far).copied();
            if let Some((node, kind)) = known {
                (walk.node, walk.kind) = (node, kind);
            } else {
                let entry = self.union().lookup(walk.node, OsStr::from_bytes(name))?;
                self.take(Some(&so_far), &entry);
                (walk.node, walk.kind) = (entry.node, entry.attr.kind());
            }
            walk.chain.push(walk.node);
        }
        Ok(walk)
    }

    fn parent<'p>(&self, path: &'p [u8]) -> R<(Walk<'_>, &'p OsStr)> {
        let (dir, name) = split(path);
        let walk = self.walk(dir)?;
        match walk.kind {
            FileType::Directory => Ok((walk, OsStr::from_bytes(name))),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// For calls that create: what they answer with is kept or forgotten as `Dcache` says.
    fn made(&self, path: &[u8], entry: &Entry) {
        self.take(Some(path), entry);
        if self.dcache == Dcache::Nothing {
            self.drop_one(entry.node);
        }
    }

    /// The kernel answers EEXIST itself when it knows the name.
    fn absent(&self, path: &[u8]) -> R<()> {
        match self.walk(path) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn gone(&self, path: &[u8]) {
        self.state.lock().unwrap().names.retain(|known, _| !within(known, path));
    }

    fn moved(&self, old: &[u8], new: &[u8], exchange: bool) {
        let mut state = self.state.lock().unwrap();
        let names = std::mem::take(&mut state.names);
        for (path, node) in names {
            let to = if within(&path, old) {
                [new, &path[old.len()..]].concat()
            } else if within(&path, new) {
                if !exchange {
                    continue;
                }
                [old, &path[new.len()..]].concat()
            } else {
                path
            };
            state.names.insert(to, node);
        }
    }

    fn open_of(&self, fd: Fd) -> (NodeId, HandleId) {
        let state = self.state.lock().unwrap();
        let open = state.files.get(&fd.0).expect("no such open file");
        (open.node, open.handle)
    }

    fn opened(&self, mut walk: Walk<'_>, node: NodeId, handle: HandleId) -> Fd {
        let chain = std::mem::take(&mut walk.chain);
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let number = state.next;
        state.files.insert(number, Open { chain, node, handle });
        Fd(number)
    }

    fn set(&self, path: &[u8], set: &SetAttr) -> R<()> {
        let walk = self.walk(path)?;
        self.union().setattr(walk.node, None, set, &self.caller).map(|_| ())
    }

    fn fset(&self, fd: Fd, with_handle: bool, set: &SetAttr) -> R<()> {
        let (node, handle) = self.open_of(fd);
        self.union().setattr(node, with_handle.then_some(handle), set, &self.caller).map(|_| ())
    }
}

fn time_of(time: Time) -> When {
    (time.sec, time.nsec)
}

fn at(when: When) -> Option<SetTime> {
    Some(SetTime::At(Time { sec: when.0, nsec: when.1 }))
}

fn stat_of(attr: &Attr) -> Stat {
    Stat {
        ino: attr.ino.0,
        mode: attr.mode,
        nlink: u64::from(attr.nlink),
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        size: attr.size,
        blocks: attr.blocks,
        atime: time_of(attr.atime),
        mtime: time_of(attr.mtime),
        ctime: time_of(attr.ctime),
    }
}

/// xattr(7): only files and directories have `user.` attributes; the VFS says so before the filesystem is asked.
fn user_xattr_refused(kind: FileType, name: &str) -> bool {
    name.starts_with("user.") && !matches!(kind, FileType::RegularFile | FileType::Directory)
}

/// How many entries a buffer of the kernel is said to hold: small, so that listings have many pieces.
const ROOM: usize = 13;

#[allow(clippy::cast_possible_wrap)]
impl Fs for EngineFs {
    fn label(&self) -> String {
        let format = self.options.format.map_or("default", |format| format.word());
        format!("cowfs engine ({format}, {:?})", self.dcache)
    }

    fn remount(&self) {
        self.unmount(true);
        self.open_union().expect("mount again");
    }

    fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        let pinned: HashSet<NodeId> =
            state.files.values().flat_map(|open| open.chain.iter().copied().chain([open.node])).collect();
        state.names.clear();
        let (keep, forget): (HashMap<_, _>, HashMap<_, _>) =
            std::mem::take(&mut state.refs).into_iter().partition(|(node, _)| pinned.contains(node));
        state.refs = keep;
        drop(state);
        for (node, count) in forget {
            self.union().forget(node, count);
        }
    }

    fn open(&self, path: &[u8], flags: OFlags, mode: u32) -> R<Fd> {
        let (parent, name) = self.parent(path)?;
        let raw = flags.bits() as i32;
        match self.walk(path) {
            Ok(_) if flags.contains(OFlags::CREATE | OFlags::EXCL) => Err(Errno::EXIST),
            Ok(walk) => {
                match walk.kind {
                    FileType::Symlink => return Err(Errno::LOOP),
                    FileType::Directory => return Err(Errno::ISDIR),
                    FileType::RegularFile => {}
                    // The kernel opens devices, fifos and sockets itself.
                    _ => return Err(Errno::NXIO),
                }
                let kept = flags - OFlags::CREATE - OFlags::EXCL - OFlags::NOCTTY;
                let handle = self.union().open_file(walk.node, kept.bits() as i32, &self.caller)?;
                let node = walk.node;
                Ok(self.opened(walk, node, handle))
            }
            Err(Errno::NOENT) if flags.contains(OFlags::CREATE) => {
                let kind_and_mode = super::fs::S_IFREG | (mode & 0o7777);
                let (entry, handle) = self.union().create(parent.node, name, kind_and_mode, raw, &self.caller)?;
                self.take(Some(path), &entry);
                let mut walk = parent;
                walk.chain.push(entry.node);
                Ok(self.opened(walk, entry.node, handle))
            }
            Err(errno) => Err(errno),
        }
    }

    fn close(&self, fd: Fd) -> R<()> {
        let open = self.state.lock().unwrap().files.remove(&fd.0).expect("no such open file");
        let flushed = self.union().flush(open.handle);
        self.union().release(open.handle);
        if self.dcache == Dcache::Nothing {
            for node in open.chain.into_iter().rev() {
                self.drop_one(node);
            }
        }
        flushed
    }

    fn pread(&self, fd: Fd, offset: u64, len: usize) -> R<Vec<u8>> {
        let (_, handle) = self.open_of(fd);
        let mut buffer = vec![0; len];
        let got = self.union().read(handle, offset, &mut buffer)?;
        buffer.truncate(got);
        Ok(buffer)
    }

    fn pwrite(&self, fd: Fd, offset: u64, data: &[u8]) -> R<usize> {
        self.union().write(self.open_of(fd).1, offset, data)
    }

    fn fstat(&self, fd: Fd) -> R<Stat> {
        let (node, handle) = self.open_of(fd);
        // Somebody else may change it in between, more than once.
        for _ in 0..100 {
            let plain = self.union().getattr(node, None)?;
            if plain == self.union().getattr(node, Some(handle))? {
                return Ok(stat_of(&plain));
            }
        }
        panic!("getattr with and without the handle differ");
    }

    fn ftruncate(&self, fd: Fd, size: u64) -> R<()> {
        self.fset(fd, true, &SetAttr { size: Some(size), ..SetAttr::default() })
    }

    fn fchmod(&self, fd: Fd, mode: u32) -> R<()> {
        self.fset(fd, false, &SetAttr { mode: Some(mode), ..SetAttr::default() })
    }

    fn fchown(&self, fd: Fd, uid: u32, gid: u32) -> R<()> {
        self.fset(fd, false, &SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() })
    }

    fn futimens(&self, fd: Fd, atime: When, mtime: When) -> R<()> {
        self.fset(fd, false, &SetAttr { atime: at(atime), mtime: at(mtime), ..SetAttr::default() })
    }

    fn fsetxattr(&self, fd: Fd, name: &str, value: &[u8]) -> R<()> {
        self.union().setxattr(self.open_of(fd).0, OsStr::new(name), value, 0)
    }

    fn fgetxattr(&self, fd: Fd, name: &str) -> R<Vec<u8>> {
        self.union().getxattr(self.open_of(fd).0, OsStr::new(name))
    }

    fn fsync(&self, fd: Fd) -> R<()> {
        self.union().fsync(self.open_of(fd).1, false)
    }

    fn fallocate(&self, fd: Fd, mode: u32, offset: u64, len: u64) -> R<()> {
        self.union().fallocate(self.open_of(fd).1, mode as i32, offset, len)
    }

    fn lseek(&self, fd: Fd, offset: u64, whence: i32) -> R<u64> {
        let to = self.union().lseek(self.open_of(fd).1, offset as i64, whence)?;
        Ok(u64::try_from(to).expect("a negative offset"))
    }

    fn mkdir(&self, path: &[u8], mode: u32) -> R<()> {
        let (parent, name) = self.parent(path)?;
        self.absent(path)?;
        let entry = self.union().mkdir(parent.node, name, mode, &self.caller)?;
        self.made(path, &entry);
        Ok(())
    }

    fn mknod(&self, path: &[u8], mode: u32, rdev: (u32, u32)) -> R<()> {
        let (parent, name) = self.parent(path)?;
        self.absent(path)?;
        let entry = self.union().mknod(parent.node, name, mode, rdev, &self.caller)?;
        self.made(path, &entry);
        Ok(())
    }

    fn symlink(&self, target: &[u8], path: &[u8]) -> R<()> {
        let (parent, name) = self.parent(path)?;
        self.absent(path)?;
        let entry = self.union().symlink(parent.node, name, OsStr::from_bytes(target), &self.caller)?;
        self.made(path, &entry);
        Ok(())
    }

    fn link(&self, old: &[u8], new: &[u8]) -> R<()> {
        let walk = self.walk(old)?;
        let (parent, name) = self.parent(new)?;
        self.absent(new)?;
        if walk.kind == FileType::Directory {
            return Err(Errno::PERM);
        }
        let entry = self.union().link(walk.node, parent.node, name)?;
        self.made(new, &entry);
        Ok(())
    }

    fn unlink(&self, path: &[u8]) -> R<()> {
        let (parent, name) = self.parent(path)?;
        let _victim = self.walk(path)?;
        self.union().unlink(parent.node, name)?;
        self.gone(path);
        Ok(())
    }

    fn rmdir(&self, path: &[u8]) -> R<()> {
        let (parent, name) = self.parent(path)?;
        let _victim = self.walk(path)?;
        self.union().rmdir(parent.node, name)?;
        self.gone(path);
        Ok(())
    }

    fn rename(&self, old: &[u8], new: &[u8], flags: u32) -> R<()> {
        let (old_parent, old_name) = self.parent(old)?;
        let (new_parent, new_name) = self.parent(new)?;
        if flags & NOREPLACE != 0 && flags & EXCHANGE != 0 {
            return Err(Errno::INVAL);
        }
        let source = self.walk(old)?;
        let target = match self.walk(new) {
            Ok(_) if flags & NOREPLACE != 0 => return Err(Errno::EXIST),
            Ok(walk) => Some(walk),
            Err(Errno::NOENT) if flags & EXCHANGE != 0 => return Err(Errno::NOENT),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        if new != old && within(new, old) {
            return Err(Errno::INVAL);
        }
        if new != old && within(old, new) {
            return Err(if flags & EXCHANGE != 0 { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if target.as_ref().is_some_and(|target| target.node == source.node) {
            return Ok(());
        }
        self.union().rename((old_parent.node, old_name), (new_parent.node, new_name), flags)?;
        self.moved(old, new, flags & EXCHANGE != 0);
        Ok(())
    }

    fn readlink(&self, path: &[u8]) -> R<Vec<u8>> {
        let walk = self.walk(path)?;
        if walk.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        self.union().readlink(walk.node)
    }

    fn stat(&self, path: &[u8]) -> R<Stat> {
        let walk = self.walk(path)?;
        let attr = self.union().getattr(walk.node, None)?;
        assert_eq!(attr.kind(), walk.kind, "{}: the type of a node changed", super::show(path));
        Ok(stat_of(&attr))
    }

    fn list(&self, path: &[u8]) -> R<Vec<Listed>> {
        let walk = self.walk(path)?;
        if walk.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let union = self.union();
        let (mut all, mut dots, mut offset) = (Vec::new(), 0, 0);
        let done = loop {
            let mut got = 0;
            let done = union.readdir(walk.node, offset, &mut |entry| {
                if got == ROOM {
                    return false;
                }
                got += 1;
                offset = entry.next;
                match entry.name {
                    b"." | b".." => dots += 1,
                    name => all.push(Listed { name: name.to_vec(), kind: letter(entry.kind), ino: entry.ino.0 }),
                }
                true
            });
            if got == 0 || done.is_err() {
                break done;
            }
        };
        done?;
        assert_eq!(dots, 2, "`.` and `..` in {}", super::show(path));
        Ok(all)
    }

    fn truncate(&self, path: &[u8], size: u64) -> R<()> {
        match self.walk(path)?.kind {
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            FileType::RegularFile => {}
            _ => return Err(Errno::INVAL),
        }
        self.set(path, &SetAttr { size: Some(size), ..SetAttr::default() })
    }

    fn chmod(&self, path: &[u8], mode: u32) -> R<()> {
        if self.walk(path)?.kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        self.set(path, &SetAttr { mode: Some(mode), ..SetAttr::default() })
    }

    fn chown(&self, path: &[u8], uid: u32, gid: u32) -> R<()> {
        self.set(path, &SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() })
    }

    fn utimens(&self, path: &[u8], atime: When, mtime: When) -> R<()> {
        self.set(path, &SetAttr { atime: at(atime), mtime: at(mtime), ..SetAttr::default() })
    }

    fn setxattr(&self, path: &[u8], name: &str, value: &[u8]) -> R<()> {
        let walk = self.walk(path)?;
        if user_xattr_refused(walk.kind, name) {
            return Err(Errno::PERM);
        }
        self.union().setxattr(walk.node, OsStr::new(name), value, 0)
    }

    fn getxattr(&self, path: &[u8], name: &str) -> R<Vec<u8>> {
        let walk = self.walk(path)?;
        if user_xattr_refused(walk.kind, name) {
            return Err(Errno::NODATA);
        }
        self.union().getxattr(walk.node, OsStr::new(name))
    }

    fn listxattr(&self, path: &[u8]) -> R<Vec<String>> {
        Ok(names_of(&self.union().listxattr(self.walk(path)?.node)?))
    }

    fn removexattr(&self, path: &[u8], name: &str) -> R<()> {
        let walk = self.walk(path)?;
        if user_xattr_refused(walk.kind, name) {
            return Err(Errno::PERM);
        }
        self.union().removexattr(walk.node, OsStr::new(name))
    }

    fn statfs(&self) -> R<(u64, u64)> {
        let stat = self.union().statfs()?;
        Ok((stat.blocks, u64::from(stat.frsize)))
    }
}
