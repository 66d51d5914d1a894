//! Changing attributes: chmod, chown, truncate, utimens, and the inode flags of chattr(1).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use crate::sys::ioctl;
use crate::union::branch::Stat;
use crate::union::branch::aside::{Change, set_id};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result, best_effort};
use crate::union::fault::step;
use crate::union::node::Node;
use crate::union::types::{Attr, Caller, HandleId, NodeId, SetAttr};

const OWNER_READ: u32 = 0o0400;

impl Union {
    /// Changes what `set` names and returns all attributes. A size cuts before a copy is made: what is cut off is not
    /// copied.
    ///
    /// # Errors
    /// Those of chmod(2), chown(2), truncate(2), utimensat(2) and of copying up.
    pub fn setattr(&self, node: NodeId, handle: Option<HandleId>, set: &SetAttr, caller: &Caller) -> Result<Attr> {
        let id = node;
        let node = self.table.get(id)?;
        match set.size {
            Some(size) => self.raise(&node, size)?,
            None => self.raise_attributes(&node)?,
        }
        // Data that are on their way put back the times when they are there.
        let without_data = node.body.read().data_place().is_some();
        let _lift = without_data.then(|| node.lift.lock());
        if let Some(size) = set.size {
            if node.is_dir() {
                return Err(Errno::ISDIR);
            }
            self.truncate(&node, handle, size, caller).during("truncate", id)?;
        }
        // Who brings something into the directory unseen puts its times back.
        let _names = node.is_dir().then(|| node.children.read());
        let of_nothing = *set == SetAttr::default() && self.is_chown_of_nothing(&node, caller)?;
        if *set == SetAttr::default() && !of_nothing {
            // Somebody is about to write: the kernel believes what it is answered now, and asks no more after the write.
            self.drop_set_id(&node, caller)?;
        }
        let chown = set.uid.is_some() || set.gid.is_some() || of_nothing;
        let change = Change { chown, uid: set.uid, gid: set.gid, mode: set.mode };
        self.change_owner(&node, &change).during("change attributes of", id)?;
        node.with(|at| {
            if set.atime.is_some() || set.mtime.is_some() {
                at.set_times(set.atime, set.mtime)?;
            }
            Ok(())
        })
        .during("change attributes of", id)?;
        if set.mode.is_some_and(|mode| mode & OWNER_READ == 0) {
            self.still_known(&node)?;
        }
        self.getattr(id, handle)
    }

    /// `user.*` attributes of a file that may not be read cannot be read either: memory has to tell where it came from.
    fn still_known(&self, node: &Node) -> Result<()> {
        let identity = node.body.read().identity;
        if self.stack.upper()?.writer.keys.user && self.numbers.number(identity.0, identity.1) != node.ino {
            self.table.adopt(identity, node.id);
        }
        Ok(())
    }

    /// Cuts or grows the upper's file, and takes set-id bits away as truncate(2) does. Through `handle` if it can write:
    /// the file's mode need not allow another open.
    pub(super) fn truncate(
        &self,
        node: &Arc<Node>,
        handle: Option<HandleId>,
        size: u64,
        caller: &Caller,
    ) -> Result<()> {
        self.drop_set_id(node, caller)?;
        let done = self.cut(node, handle, size);
        if done.is_err() && node.with(|at| at.stat())?.size == size {
            // Cut on its way up: it is what it shall be, and an error would say that it is what it was.
            best_effort("truncate what has the size", done);
            return Ok(());
        }
        done
    }

    fn cut(&self, node: &Arc<Node>, handle: Option<HandleId>, size: u64) -> Result<()> {
        let open = handle.and_then(|handle| self.handles.get(handle).ok()).filter(|file| file.may_write());
        let fd = match open {
            Some(file) => file.fd()?,
            None => Arc::new(node.with(|at| at.open(OFlags::WRONLY | OFlags::NONBLOCK))?),
        };
        step("truncate")?;
        rustix::fs::ftruncate(&fd, size)
    }

    /// Takes the set-id bits away from a file that an ordinary user changes, as the kernel does for its own filesystems
    /// (`setattr_should_drop_suidgid`). File capabilities go by themselves: the branch's filesystem sees the write.
    pub(super) fn drop_set_id(&self, node: &Arc<Node>, caller: &Caller) -> Result<()> {
        // Who is root may have CAP_FSETID, and nothing tells who else has.
        if caller.uid == 0 {
            return Ok(());
        }
        let mode = self.stat_shown(node)?.mode;
        let lost = set_id(mode);
        let change = Change { mode: Some(mode & !lost), ..Change::default() };
        if lost == 0 { Ok(()) } else { self.change_owner(node, &change) }
    }

    /// Changes owner, group and mode of the upper's object, as chown(2) and then chmod(2), which puts set-id bits back.
    fn change_owner(&self, node: &Arc<Node>, change: &Change) -> Result<()> {
        if let Some(aside) = self.stack.upper()?.aside {
            // Alone: what is there is read, changed and written.
            let body = node.body.write();
            return if change.chown || change.mode.is_some() { aside.change(&body.at()?, change) } else { Ok(()) };
        }
        node.with(|at| {
            if change.chown {
                at.chown(change.uid, change.gid)?;
            }
            change.mode.map_or(Ok(()), |mode| at.chmod(mode))
        })
    }

    fn stat_shown(&self, node: &Node) -> Result<Stat> {
        let body = node.body.read();
        self.shown(&body, &body.at()?.stat()?)
    }

    /// Whether a request that changes nothing is a chown(2) to nobody by the owner, which takes set-id bits away. The other
    /// such request comes before a write to a file with capabilities, which are gone by then.
    fn is_chown_of_nothing(&self, node: &Node, caller: &Caller) -> Result<bool> {
        if node.lost_capabilities.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        Ok(caller.uid == 0 || self.stat_shown(node)?.uid == caller.uid)
    }

    /// FS_IOC_GETFLAGS.
    ///
    /// # Errors
    /// `ENOTTY` where the branch has none, or for what is neither file nor directory.
    pub fn inode_flags(&self, node: NodeId) -> Result<u32> {
        let node = self.table.get(node)?;
        let fd = open_for_flags(&node)?;
        ioctl::inode_flags(std::os::fd::AsFd::as_fd(&fd)).map_err(no_flags)
    }

    /// FS_IOC_SETFLAGS.
    ///
    /// # Errors
    /// As `inode_flags`; those of copying up.
    pub fn set_inode_flags(&self, node: NodeId, flags: u32) -> Result<()> {
        let node = self.table.get(node)?;
        self.raise(&node, u64::MAX)?;
        let fd = open_for_flags(&node)?;
        step("set flags")?;
        ioctl::set_inode_flags(std::os::fd::AsFd::as_fd(&fd), flags).map_err(no_flags)
    }
}

fn open_for_flags(node: &Node) -> Result<std::os::fd::OwnedFd> {
    if !node.kind.is_file() && !node.is_dir() {
        return Err(Errno::NOTTY);
    }
    node.with(|at| at.open(OFlags::RDONLY | OFlags::NONBLOCK))
}

fn no_flags(errno: Errno) -> Errno {
    if errno == Errno::OPNOTSUPP { Errno::NOTTY } else { errno }
}
