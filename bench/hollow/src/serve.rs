//! Answering requests from the tree in memory.
//!
//! Invariants: what the kernel is offered and told to keep is what cowfs tells it for static branches, so that both get the same
//! requests; the tree is locked while an answer is sought, never while it is sent.
//!
//! Requests that no workload makes are left to fuser, which says ENOSYS.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::tree::Tree;

/// How long the kernel may trust everything.
const TTL: Duration = Duration::from_secs(24 * 3600);
const FIRST: Generation = Generation(0);
const NO_HANDLE: FileHandle = FileHandle(0);
/// The largest request for data, in bytes.
const MAX_DATA: u32 = 1 << 20;
static ZEROS: [u8; MAX_DATA as usize] = [0; MAX_DATA as usize];
/// cowfs's, `src/fuse/offer.rs`, as it is by default.
const WANTED: InitFlags = InitFlags::FUSE_PARALLEL_DIROPS
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_HAS_IOCTL_DIR)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_PASSTHROUGH);

/// The filesystem as fuser sees it.
pub(crate) struct Hollow {
    tree: RwLock<Tree>,
    /// The answer for a name that is not there.
    absent: FileAttr,
    /// By which the kernel is given the data of small files; set when there is a connection.
    pub(crate) notifier: Arc<OnceLock<Notifier>>,
    /// What all files that are made are written to: the kernel does it by itself.
    memory: OwnedFd,
    backing: OnceLock<Option<BackingId>>,
}

impl Hollow {
    /// Serves this tree.
    pub(crate) fn new(tree: Tree) -> io::Result<Hollow> {
        let absent = tree.node(0).attr;
        let memory = rustix::fs::memfd_create("hollow", rustix::fs::MemfdFlags::CLOEXEC)?;
        Ok(Hollow { tree: RwLock::new(tree), absent, notifier: Arc::default(), memory, backing: OnceLock::new() })
    }

    fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(|poison| poison.into_inner())
    }

    fn change(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The memory as the kernel knows it; registered once, by `register`.
    fn backing(&self, register: impl FnOnce(&OwnedFd) -> io::Result<BackingId>) -> Option<&BackingId> {
        let backing =
            self.backing.get_or_init(|| register(&self.memory).inspect_err(|error| eprintln!("hollow: {error}")).ok());
        backing.as_ref()
    }

    /// Gives the kernel the data of a file of `size` that is about to be read for the first time.
    fn send_along(&self, ino: INodeNo, size: u64) {
        if let Some(notifier) = self.notifier.get()
            && let Some(data) = ZEROS.get(..size as usize)
        {
            // If it is not taken the kernel asks.
            let _ = notifier.store(ino, 0, data);
        }
    }

    fn make(&self, from: &Request, (parent, name): (INodeNo, &OsStr), kind: FileType, mode: u32) -> FileAttr {
        let perm = (mode & 0o7777) as u16;
        self.change().make(parent.0, name.as_bytes(), (kind, perm), (from.uid(), from.gid()))
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.change().remove(parent.0, name.as_bytes());
        if removed { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    /// Lists from `offset` on, until `each` (number, next, name, attributes) says that it is full.
    fn list(&self, ino: INodeNo, offset: u64, mut each: impl FnMut(u64, &[u8], &FileAttr) -> bool) {
        let tree = self.tree();
        let Some(dir) = tree.dir(ino.0) else { return };
        for (position, name, node) in [(0, &b"."[..], ino.0), (1, b"..", dir.parent)] {
            if position >= offset && each(position + 1, name, &tree.node(node).attr) {
                return;
            }
        }
        let names = dir.from(offset.saturating_sub(2) as usize);
        for (next, listed) in names {
            if each(next as u64 + 2, &listed.name, &tree.node(listed.node).attr) {
                return;
            }
        }
    }
}

impl Filesystem for Hollow {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = WANTED & config.capabilities();
        let refused = |what: &str| io::Error::other(format!("the kernel refuses {what}"));
        config.add_capabilities(wanted).map_err(|flags| refused(&format!("{flags:?}")))?;
        config.set_max_write(MAX_DATA).map_err(|_| refused("large writes"))?;
        config.set_max_stack_depth(1).map_err(|_| refused("a stack of filesystems"))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = {
            let tree = self.tree();
            let node = tree.dir(parent.0).and_then(|dir| dir.get(name.as_bytes()));
            node.map_or(self.absent, |node| tree.node(node).attr)
        };
        reply.entry(&TTL, &found, FIRST);
    }

    fn forget(&self, _: &Request, _: INodeNo, _count: u64) {}

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.tree().node(ino.0).attr;
        reply.attr(&TTL, &attr);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let attr = {
            let mut tree = self.change();
            let attr = &mut tree.node_mut(ino.0).attr;
            attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
            attr.size = size.unwrap_or(attr.size);
            *attr
        };
        reply.attr(&TTL, &attr);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let attr = self.make(request, (parent, name), FileType::Directory, mode & !umask);
        reply.entry(&TTL, &attr, FIRST);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((parent.0, name.as_bytes()), (newparent.0, newname.as_bytes()));
        let renamed = self.change().rename(from, to);
        if renamed { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (made, size, sent) = {
            let tree = self.tree();
            let node = tree.node(ino.0);
            let reads = flags.0 & (libc::O_ACCMODE | libc::O_TRUNC) == libc::O_RDONLY;
            (node.made, node.attr.size, !reads || node.sent.swap(true, Relaxed))
        };
        if made && let Some(backing) = self.backing(|memory| reply.open_backing(memory)) {
            return reply.opened_passthrough(NO_HANDLE, FopenFlags::FOPEN_NOFLUSH, backing);
        }
        if !sent && size > 0 {
            self.send_along(ino, size);
        }
        reply.opened(NO_HANDLE, FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let attr = self.make(request, (parent, name), FileType::RegularFile, mode & !umask);
        match self.backing(|memory| reply.open_backing(memory)) {
            Some(backing) => {
                reply.created_passthrough(&TTL, &attr, FIRST, NO_HANDLE, FopenFlags::FOPEN_NOFLUSH, backing);
            }
            None => reply.created(&TTL, &attr, FIRST, NO_HANDLE, FopenFlags::FOPEN_NOFLUSH),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.tree().node(ino.0).attr.size.saturating_sub(offset);
        reply.data(&ZEROS[..left.min(size.min(MAX_DATA).into()) as usize]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        {
            let mut tree = self.change();
            let size = &mut tree.node_mut(ino.0).attr.size;
            *size = (*size).max(offset + data.len() as u64);
        }
        reply.written(data.len() as u32);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    // Directories need not be opened.
    fn opendir(&self, _: &Request, _: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.list(ino, offset, |next, name, attr| reply.add(attr.ino, next, attr.kind, OsStr::from_bytes(name)));
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.list(ino, offset, |next, name, attr| {
            reply.add(attr.ino, next, OsStr::from_bytes(name), &TTL, attr, FIRST)
        });
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (blocks, files) = (1 << 30, 1 << 30);
        reply.statfs(blocks, blocks, blocks, files, files, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, size: u32, reply: ReplyXattr) {
        if size == 0 { reply.size(0) } else { reply.data(&[]) }
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
