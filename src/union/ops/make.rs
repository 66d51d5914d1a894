//! New names: files, directories, devices, symlinks, further links.
//!
//! The creating call runs with the caller's user, group and umask in the directory where the object is to be, so that
//! set-group-id directories, default ACLs and quotas come right by themselves. Where a whiteout takes up the name
//! (overlay format), the object is made in a nursery instead: a directory in the stage that passes on the same group
//! and ACLs, and replaces the whiteout in one rename. Where the upper keeps owners aside, the object is the daemon's, and
//! always made in the stage: what the call cannot give it (owner, group, mode) is stored before anybody sees it.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, RenameFlags};

use crate::sys::creds::{Assumed, privileged};
use crate::union::branch::{Aside, At, RealDir, Stat, change};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result, best_effort};
use crate::union::handle::OpenFile;
use crate::union::marks::overlay;
use crate::union::name::Name;
use crate::union::node::{Data, Link, Node, Seen};
use crate::union::resolve::{Found, InUpper, in_upper, lies_below};
use crate::union::stack::{Layers, Stack, Upper};
use crate::union::stage::Staged;
use crate::union::types::{Attr, Caller, Entry, Generation, HandleId, NodeId};

const DEFAULT_ACL: &std::ffi::CStr = c"system.posix_acl_default";

const OWNER_ALL: u32 = 0o0700;
const SET_GID: u32 = 0o2000;

/// A free name in the upper, with the lock on its directory's names.
struct Free<'a> {
    upper: &'a Upper,
    parent: &'a Arc<Node>,
    dir: Arc<RealDir>,
    name: &'a Name,
    /// The name is free because a mark hides what lies below it.
    hidden: bool,
}

impl Union {
    /// As mknod(2); `mode` holds type and permissions, `rdev` major and minor number.
    ///
    /// # Errors
    /// `EPERM` for the one number that is kept for others; those of mknod(2) and of copying up the directory.
    pub fn mknod(&self, parent: NodeId, name: &OsStr, mode: u32, rdev: (u32, u32), caller: &Caller) -> Result<Entry> {
        let rdev = overlay::kept_number(FileType::from_raw_mode(mode), rdev)?;
        self.make(parent, name, caller, |dir, name| change::mknod(dir, name, mode, rdev))
    }

    /// As symlink(2).
    ///
    /// # Errors
    /// Those of symlink(2) and of copying up the directory.
    pub fn symlink(&self, parent: NodeId, name: &OsStr, target: &OsStr, caller: &Caller) -> Result<Entry> {
        let target = CString::new(target.as_bytes()).map_err(|_| Errno::INVAL)?;
        self.make(parent, name, caller, |dir, name| change::symlink(&target, dir, name))
    }

    /// As open(2) with O_CREAT; `flags` as there.
    ///
    /// # Errors
    /// Those of open(2) and of copying up the directory.
    pub fn create(
        &self,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: i32,
        caller: &Caller,
    ) -> Result<(Entry, HandleId)> {
        let oflags = OFlags::from_bits_retain(flags.cast_unsigned());
        let access = oflags & (OFlags::ACCMODE | OFlags::SYNC | OFlags::DSYNC);
        let mut fd: Option<OwnedFd> = None;
        let made = self.make(parent, name, caller, |dir, name| {
            fd = Some(change::create(dir, name, mode & 0o7777, access)?);
            Ok(())
        });
        match (made, fd) {
            (Ok(entry), Some(fd)) => {
                let node = self.table.get(entry.node)?;
                Ok((entry, self.handles.add(OpenFile::created(node, access, fd))))
            }
            (Err(Errno::EXIST), _) if !oflags.contains(OFlags::EXCL) => {
                let entry = self.lookup(parent, name)?;
                match self.open_file(entry.node, flags, caller) {
                    Ok(handle) => Ok((entry, handle)),
                    Err(errno) => {
                        self.forget(entry.node, 1);
                        Err(errno)
                    }
                }
            }
            (Err(errno), _) => Err(errno),
            (Ok(_), None) => Err(Errno::IO),
        }
    }

    /// Makes an object that is no directory.
    fn make(
        &self,
        parent: NodeId,
        name: &OsStr,
        caller: &Caller,
        mut act: impl FnMut(BorrowedFd<'_>, &Name) -> Result<()>,
    ) -> Result<Entry> {
        let parent = self.table.get(parent)?;
        let name = self.checked_name(&parent, name)?;
        self.in_free(&parent, &name, |free| {
            let in_place = free.hidden && free.upper.writer.in_place();
            if let Some(aside) = free.upper.aside {
                let replacing = if in_place { RenameFlags::empty() } else { free.replacing_nothing() };
                free.made_aside(aside, caller, &mut act)?.publish(free.dir.fd()?, free.name, replacing)?;
            } else {
                let mut as_caller = |dir: BorrowedFd<'_>, name: &Name| {
                    let _assumed = Assumed::new(caller.uid, caller.gid, caller.umask)?;
                    act(dir, name)
                };
                if in_place {
                    let nursery = free.nursery()?;
                    let inner = nursery.open_dir()?;
                    as_caller(inner.as_fd(), &nursery.name)?;
                    change::rename(&inner, &nursery.name, free.dir.fd()?, &free.name.clone(), RenameFlags::empty())?;
                } else {
                    as_caller(free.dir.fd()?.as_fd(), free.name)?;
                }
            }
            if free.hidden && !in_place {
                free.upper.writer.uncover(&free.dir, free.name);
            }
            self.enter_made(free)
        })
    }

    /// As mkdir(2).
    ///
    /// # Errors
    /// Those of mkdir(2) and of copying up the directory.
    pub fn mkdir(&self, parent: NodeId, name: &OsStr, mode: u32, caller: &Caller) -> Result<Entry> {
        let parent = self.table.get(parent)?;
        let name = self.checked_name(&parent, name)?;
        self.in_free(&parent, &name, |free| {
            let make = |dir: BorrowedFd<'_>, name: &Name| change::mkdir(dir, name, mode & 0o7777);
            let as_caller = |dir: BorrowedFd<'_>, name: &Name| {
                let _assumed = Assumed::new(caller.uid, caller.gid, caller.umask)?;
                make(dir, name)
            };
            let writer = &free.upper.writer;
            let in_place = free.hidden && writer.in_place();
            match free.upper.aside {
                Some(aside) => {
                    let staged = free.made_aside(aside, caller, make)?;
                    if in_place {
                        writer.seal(staged.open_dir()?.as_fd(), &free.dir, free.name)?;
                    }
                    let replacing = if in_place { RenameFlags::EXCHANGE } else { free.replacing_nothing() };
                    staged.publish(free.dir.fd()?, free.name, replacing)?;
                }
                None if in_place => {
                    let nursery = free.nursery()?;
                    let inner = nursery.open_dir()?;
                    as_caller(inner.as_fd(), &nursery.name)?;
                    let made = At::Name(Arc::new(rustix::io::fcntl_dupfd_cloexec(&inner, 0)?), nursery.name.clone());
                    let mode = made.stat()?.mode;
                    // A daemon without privilege needs an owner's rights to leave the mark and to move the directory.
                    let lacking = !privileged() && mode & OWNER_ALL != OWNER_ALL;
                    if lacking {
                        made.chmod(mode | OWNER_ALL)?;
                    }
                    writer.seal(open_dir(inner.as_fd(), &nursery.name)?.as_fd(), &free.dir, free.name)?;
                    change::rename(&inner, &nursery.name, free.dir.fd()?, free.name, RenameFlags::EXCHANGE)?;
                    if lacking {
                        best_effort("give a directory its mode", free.dir.at(free.name).and_then(|at| at.chmod(mode)));
                    }
                }
                None => as_caller(free.dir.fd()?.as_fd(), free.name)?,
            }
            if free.hidden && !in_place {
                // The mark beside the name makes the new directory opaque from its first moment on.
                let object = open_dir(free.dir.fd()?.as_fd(), free.name);
                let sealed = object.and_then(|object| writer.seal(object.as_fd(), &free.dir, free.name));
                if sealed.is_err() {
                    best_effort("take back a directory", change::rmdir(free.dir.fd()?, free.name));
                }
                sealed?;
                writer.sealed_in_place(&free.dir, free.name);
            }
            self.enter_made(free)
        })
    }

    /// As link(2).
    ///
    /// # Errors
    /// `EPERM` for a directory, `ENOENT` for a file without a name; those of link(2) and of copying up.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let (node, parent) = (self.table.get(node)?, self.table.get(parent)?);
        if node.is_dir() {
            return Err(Errno::PERM);
        }
        let name = self.checked_name(&parent, name)?;
        self.raise_attributes(&node)?;
        self.anchor(&node)?;
        // Before the inode gets a further name: its count of names may have to follow from here on.
        self.indexed(&node.body.read())?;
        self.in_free(&parent, &name, |free| {
            let body = node.body.read();
            let At::Name(from_dir, from_name) = body.at()? else { return Err(Errno::NOENT) };
            self.mark_arrival(free.upper, &free.dir, (&node, &body))?;
            if free.hidden && free.upper.writer.in_place() {
                let staged = free.upper.stage.temp()?;
                change::link(&from_dir, &from_name, staged.dir(), &staged.name)?;
                staged.publish(free.dir.fd()?, free.name, RenameFlags::empty())?;
            } else {
                change::link(&from_dir, &from_name, free.dir.fd()?, free.name)?;
                if free.hidden {
                    free.upper.writer.uncover(&free.dir, free.name);
                }
            }
            drop(body);
            let stat = free.dir.find(free.name)?.ok_or(Errno::STALE)?;
            self.enter(free.parent, free.name, Found::Leaf(free.dir.clone(), stat))
        })
    }

    /// Runs `act` while `name` in `parent` is free and nobody else can take it.
    fn in_free(
        &self,
        parent: &Arc<Node>,
        name: &Name,
        act: impl FnOnce(&Free<'_>) -> Result<(Arc<Node>, Attr)>,
    ) -> Result<Entry> {
        let upper = self.stack.upper()?;
        if parent.upper_dir(&self.stack).is_none() {
            // A name that is taken is no reason to copy up a directory.
            let _shared = parent.children.read();
            if crate::union::resolve::find(&self.stack, &parent.layers()?, name)?.is_some() {
                return Err(Errno::EXIST);
            }
        }
        self.raise_dir(parent)?;
        let _names = parent.children.write();
        let layers = parent.layers()?;
        let dir = parent.upper_dir(&self.stack).ok_or(Errno::STALE)?;
        let hidden = match in_upper(&self.stack, &dir, name)? {
            InUpper::Leaf(_) | InUpper::Dir(_) => return Err(Errno::EXIST),
            InUpper::Whiteout => true,
            InUpper::Nothing if layers.len() == 1 => false,
            InUpper::Nothing => {
                let hidden = self.stack.branch(dir.branch)?.reader.hides(&dir, name)?;
                if !hidden && lies_below(&self.stack, &layers, name)? {
                    return Err(Errno::EXIST);
                }
                hidden
            }
        };
        let free = Free { upper, parent, dir, name, hidden };
        let made = act(&free).during("create", name);
        self.readings.changed(parent.id, true);
        Ok(self.entry(made?))
    }

    /// The node for the object that has just been made.
    fn enter_made(&self, free: &Free<'_>) -> Result<(Arc<Node>, Attr)> {
        let stat = free.dir.find(free.name)?.ok_or(Errno::STALE)?;
        let layers = if stat.is_dir() {
            Layers::from_iter([self.stack.child(&free.dir, free.name, &stat, false)])
        } else {
            Layers::new()
        };
        let identity = stat.identity();
        // New, so it has no origin: its number is its own.
        let ino = self.numbers.number(identity.0, identity.1);
        let generation = Generation::of(stat.btime);
        let (kind, branch, made) = (stat.kind(), Stack::UPPER, self.made(Stack::UPPER, &stat));
        let seen = Seen { ino, generation, kind, identity, made, branch, layers, lost: None };
        let link = Link { parent: free.parent.clone(), name: free.name.clone(), branch: Stack::UPPER };
        let node = self.count(seen, None, link);
        {
            let mut body = node.body.write();
            if body.identity == identity {
                body.original = true;
                body.data = Data::Own;
            }
        }
        self.told(node, &stat)
    }
}

impl Free<'_> {
    /// A directory in the stage in which an object is born as it would be in `dir`.
    fn nursery(&self) -> Result<Staged<'_>> {
        let staged = self.upper.stage.temp()?;
        change::mkdir(staged.dir(), &staged.name, 0o700)?;
        let nursery = staged.at();
        let model = self.dir.itself()?;
        let stat = model.stat()?;
        nursery.chown(Some(stat.uid), Some(stat.gid))?;
        nursery.chmod(stat.mode)?;
        if let Some(acl) = model.xattr(DEFAULT_ACL)? {
            nursery.set_xattr(DEFAULT_ACL, &acl, 0)?;
        }
        Ok(staged)
    }
}

impl<'a> Free<'a> {
    /// An object made by `act` in the stage, owned by the caller for all but the branch's filesystem.
    fn made_aside(
        &self,
        aside: Aside,
        caller: &Caller,
        mut act: impl FnMut(BorrowedFd<'_>, &Name) -> Result<()>,
    ) -> Result<Staged<'a>> {
        let staged = self.upper.stage.temp()?;
        act(staged.dir(), &staged.name)?;
        let at = At::Name(Arc::new(rustix::io::fcntl_dupfd_cloexec(staged.dir(), 0)?), staged.name.clone());
        let own = at.stat()?;
        let parent = self.dir.itself()?;
        let parent = aside.shown(&parent, &parent.stat()?)?;
        let mut shown = Stat { uid: caller.uid, gid: caller.gid, ..own };
        if own.is_dir() {
            // The stage's.
            shown.mode &= !SET_GID;
        }
        if !own.kind().is_symlink() {
            shown.mode &= !(caller.umask & 0o777);
        }
        if parent.mode & SET_GID != 0 {
            shown.gid = parent.gid;
            shown.mode |= if own.is_dir() { SET_GID } else { 0 };
        }
        aside.begin(&at, own.kind(), &shown)?;
        Ok(staged)
    }

    /// How an object is renamed to the name.
    fn replacing_nothing(&self) -> RenameFlags {
        if self.upper.stage.can.rename_flags { RenameFlags::NOREPLACE } else { RenameFlags::empty() }
    }
}

fn open_dir(dir: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name.as_c_str(), flags, rustix::fs::Mode::empty())
}

impl Staged<'_> {
    /// Opens the staged directory.
    fn open_dir(&self) -> Result<OwnedFd> {
        open_dir(self.dir(), &self.name)
    }
}
