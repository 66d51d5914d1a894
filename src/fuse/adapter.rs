//! Each request of fuser's: unpack it, ask the engine, pack the answer.
//!
//! Invariants: every request is answered exactly once; a panic below ends in EIO and a line in the log, never in the
//! end of a thread, because a dead daemon is a dead machine for its tenant.
//!
//! Not here: any notion of branches (the engine), values in the two sides' words (`convert`), threads and the life of
//! the connection (`session`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::fuse::convert::{errno, handle, kind, node, received_device, set_time};
use crate::fuse::current::{Current, Exchange};
use crate::fuse::ioctl::ioctl;
use crate::fuse::near::{self, Asker, NOBODY};
use crate::fuse::notify::Notices;
use crate::fuse::offer::{self, Agreed};
use crate::fuse::opening::Opening;
use crate::fuse::reply::{
    Answers, Settings, absent, guard, reply_empty, reply_statfs, reply_written, reply_xattr, with_buffer,
};
use crate::fuse::session::join_spares;
use crate::fuse::space::Space;
use crate::fuse::worker::Workers;
use crate::union::Union;
use crate::union::error::{Errno, Result};
use crate::union::types::{Caller, Entry, NodeId, SetAttr};

/// Somebody without CAP_FSETID: the kernel has found the caller to be one.
const ORDINARY: Caller = Caller { uid: u32::MAX, gid: u32::MAX, umask: 0 };

/// The engine as fuser sees it.
#[derive(Clone)]
pub struct Adapter {
    /// The union that is served.
    pub current: Arc<Current>,
    answers: Answers,
    settings: Settings,
    opening: Arc<Opening>,
    workers: Arc<Workers>,
    /// Where the connection's notifier has to be put, once there is one.
    pub notices: Arc<Notices>,
    agreed: Arc<OnceLock<Agreed>>,
    space: Arc<Space>,
    /// One of further threads': the connection's beginning and end are not its business.
    spare: bool,
}

impl Adapter {
    /// Serves this union.
    pub fn new(union: impl Into<Arc<Union>>, settings: Settings) -> Self {
        let union = union.into();
        let (workers, agreed) = (Arc::default(), Arc::<OnceLock<_>>::default());
        let notices = Arc::new(Notices::new(agreed.clone()));
        notices.follow(&union);
        let opening = Arc::new(Opening::new(&union, notices.clone(), settings.coherent, settings.direct_io));
        let answers = Answers::new(settings.clone(), opening.modes.clone(), notices.clone());
        let space = Arc::new(Space::of(&union));
        let current = Arc::new(Current::new(union));
        Self { current, answers, settings, opening, workers, notices, agreed, space, spare: false }
    }

    /// The same for further threads of the same connection.
    pub fn spare(&self) -> Self {
        Self { spare: true, ..self.clone() }
    }

    /// Exchanges the lower branches. To be called by a thread that answers no requests.
    pub fn exchange(&self) -> Arc<Exchange> {
        self.current.clone().exchange(self.notices.clone())
    }

    fn caller(&self, request: &Request, umask: u32) -> Caller {
        self.settings.owners.caller(request.uid(), request.gid(), umask)
    }

    /// Answers a request by the union as it is now; it stays as it is meanwhile.
    fn serve(&self, from: Asker, request: &'static str, body: impl FnOnce(&Union)) {
        self.current.with(|union| guard(from, request, || body(union)));
        near::served();
    }

    /// Answers a request that ends in an entry.
    fn entry(&self, from: Asker, request: &'static str, reply: ReplyEntry, act: impl FnOnce(&Union) -> Result<Entry>) {
        self.serve(from, request, |union| self.answers.reply_entry(union, act(union), reply));
    }

    /// As `serve`, on another thread if a large file has to be copied up first.
    fn heavy(
        &self,
        from: Asker,
        request: &'static str,
        node: NodeId,
        body: impl FnOnce(&Self, &Union) + Send + 'static,
    ) {
        let body = self.current.with(|union| {
            if union.is_heavy(node) {
                return Some(body);
            }
            guard(from, request, || body(self, union));
            None
        });
        if let Some(body) = body {
            let adapter = self.clone();
            self.workers.run(move || adapter.serve(from, request, |union| body(&adapter, union)));
        }
        near::served();
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if !self.spare && self.agreed.get_or_init(|| offer::accept(config, &self.settings)).passthrough {
            self.opening.modes.offered();
        }
        Ok(())
    }

    fn destroy(&mut self) {
        if !self.spare {
            join_spares();
            self.serve(NOBODY, "destroy", Union::close);
        }
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if matches!(name.as_bytes(), b"." | b"..") {
            // By a file handle of something that was forgotten.
            let (adapter, asker, up) = (self.clone(), request.pid(), name.as_bytes() == b"..");
            return self.workers.run(move || {
                adapter.entry(asker, "lookup by number", reply, |union| union.look_again(node(parent), up));
            });
        }
        self.serve(request.pid(), "lookup", |union| match union.lookup(node(parent), name) {
            Err(Errno::NOENT) => match self.answers.absence_ttl(union, node(parent)) {
                Duration::ZERO => reply.error(fuser::Errno::ENOENT),
                ttl => reply.entry(&ttl, &absent(), Generation(0)),
            },
            result => self.answers.reply_entry(union, result, reply),
        });
    }

    fn forget(&self, request: &Request, ino: INodeNo, count: u64) {
        // Many come at once: this is no place to wait for one's turn.
        self.current.with(|union| guard(request.pid(), "forget", || union.forget(node(ino), count)));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(request.pid(), "getattr", |union| {
            self.answers.reply_attr(union, node(ino), union.getattr(node(ino), fh.map(handle)), reply);
        });
    }

    // The change time is never set: the kernel sends one only with a write-back cache, which is off.
    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let caller = self.caller(request, 0);
        let set = self.settings.owners.to_store(set);
        self.heavy(request.pid(), "setattr", node(ino), move |adapter, union| {
            let done = set.and_then(|set| adapter.opening.set_attr(union, node(ino), fh.map(handle), &set, &caller));
            adapter.answers.reply_attr(union, node(ino), done, reply);
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(request.pid(), "readlink", |union| match union.readlink(node(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (rdev, caller) = (received_device(rdev), self.caller(request, umask));
        self.entry(request.pid(), "mknod", reply, |union| union.mknod(node(parent), name, mode, rdev, &caller));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let caller = self.caller(request, umask);
        self.entry(request.pid(), "mkdir", reply, |union| union.mkdir(node(parent), name, mode, &caller));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(request.pid(), "unlink", |union| reply_empty(union.unlink(node(parent), name), reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(request.pid(), "rmdir", |union| reply_empty(union.rmdir(node(parent), name), reply));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let caller = self.caller(request, 0);
        self.entry(request.pid(), "symlink", reply, |union| {
            union.symlink(node(parent), name, target.as_os_str(), &caller)
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(request.pid(), "rename", |union| {
            reply_empty(union.rename((node(parent), name), (node(newparent), newname), flags.bits()), reply);
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.entry(request.pid(), "link", reply, |union| union.link(node(ino), node(newparent), newname));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = self.caller(request, 0);
        let open = move |adapter: &Self, union: &Union| {
            adapter.opening.open(union, node(ino), flags.0, &caller, reply);
        };
        if flags.0 & (libc::O_ACCMODE | libc::O_TRUNC) == libc::O_RDONLY {
            self.serve(request.pid(), "open", |union| open(self, union));
        } else {
            self.heavy(request.pid(), "open", node(ino), open);
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = self.caller(request, umask);
        self.serve(request.pid(), "create", |union| match union.create(node(parent), name, mode, flags, &caller) {
            Ok((entry, handle)) => {
                // This answer has one time for both; the shorter one is right for both.
                let (attr, attr_ttl, ttl) = self.answers.entry(union, &entry);
                self.opening.created(union, (entry, handle), attr_ttl.min(ttl), &attr, reply);
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        near::data(size as usize);
        let read = |union: &Union, buffer: &mut [u8]| match union.read(handle(fh), offset, buffer) {
            Ok(length) => reply.data(&buffer[..length]),
            Err(error) => reply.error(errno(error)),
        };
        self.serve(request.pid(), "read", |union| with_buffer(size as usize, |buffer| read(union, buffer)));
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        near::data(data.len());
        self.serve(request.pid(), "write", |union| {
            let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let ready = if kill { union.before_change(handle(fh), &ORDINARY) } else { Ok(()) };
            reply_written(ready.and_then(|()| union.write(handle(fh), offset, data)), reply);
        });
    }

    fn flush(&self, request: &Request, _: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.serve(request.pid(), "flush", |union| reply_empty(union.flush(handle(fh)), reply));
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(request.pid(), "release", |union| {
            self.opening.modes.closed(node(ino));
            union.release(handle(fh));
            reply.ok();
        });
    }

    fn fsync(&self, request: &Request, _: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.serve(request.pid(), "fsync", |union| reply_empty(union.fsync(handle(fh), datasync), reply));
    }

    // Listings are read by node and position alone, so a directory need not be opened: told so, the kernel never asks
    // again, keeps listings, and takes them anew when the directory's time of change is another.
    fn opendir(&self, _: &Request, _: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.agreed.get().is_some_and(|agreed| agreed.no_opendir) {
            reply.error(fuser::Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.serve(request.pid(), "readdir", |union| {
            let result = union.readdir(node(ino), offset, &mut |entry| {
                !reply.add(INodeNo(entry.ino.0), entry.next, kind(entry.kind), OsStr::from_bytes(entry.name))
            });
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.serve(request.pid(), "readdirplus", |union| {
            let result = union.readdir_plus(node(ino), offset, &mut |entry, known| {
                let (attr, ttl, generation) = self.answers.listed(union, &entry, known);
                !reply.add(attr.ino, entry.next, OsStr::from_bytes(entry.name), &ttl, &attr, generation)
            });
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.serve(request.pid(), "fsyncdir", |union| reply_empty(union.fsyncdir(node(ino), datasync), reply));
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let asker = request.pid();
        guard(asker, "statfs", || reply_statfs(self.space.figures(&self.current, &self.workers), reply));
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.serve(request.pid(), "setxattr", |union| {
            let value = self.settings.owners.value_to_store(name.as_bytes(), value);
            reply_empty(value.and_then(|value| union.setxattr(node(ino), name, &value, flags)), reply);
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(request.pid(), "getxattr", |union| {
            let value = union.getxattr(node(ino), name);
            reply_xattr(value.map(|value| self.settings.owners.shown_value(name.as_bytes(), value)), size, reply);
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(request.pid(), "listxattr", |union| reply_xattr(union.listxattr(node(ino)), size, reply));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(request.pid(), "removexattr", |union| reply_empty(union.removexattr(node(ino), name), reply));
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.serve(request.pid(), "ioctl", |union| match ioctl(union, node(ino), command, data) {
            Ok((out, length)) => reply.ioctl(0, &out[..(out_size as usize).min(length)]),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve(request.pid(), "fallocate", |union| {
            let ready = union.before_change(handle(fh), &self.caller(request, 0));
            reply_empty(ready.and_then(|()| union.fallocate(handle(fh), mode, offset, length)), reply);
        });
    }

    fn lseek(&self, request: &Request, _: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.serve(request.pid(), "lseek", |union| match union.lseek(handle(fh), offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.serve(request.pid(), "copy_file_range", |union| {
            // The answer has 32 bits for the length; copying less is allowed.
            let length = length.min(u64::from(u32::MAX));
            let (from, to) = ((handle(from), from_offset), (handle(to), to_offset));
            let ready = union.before_change(to.0, &self.caller(request, 0));
            reply_written(ready.and_then(|()| union.copy_file_range(from, to, length)), reply);
        });
    }

    // Below: what the kernel does by itself once it has heard ENOSYS.

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _blocksize: u32, _block: u64, reply: ReplyBmap) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }
}
