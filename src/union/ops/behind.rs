//! Changes of lower branches behind the union's back: which names and objects of the union they concern.
//!
//! Not here: how one hears of them (`daemon::watch`), what is done about it (`fuse::notify`).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, OFlags};

use crate::sys::handle::{self, FileHandle};
use crate::union::branch::at::stat;
use crate::union::engine::Union;
use crate::union::name::Name;
use crate::union::node::{Node, Seen};
use crate::union::types::{NodeId, Trust};

/// Something that the union may show in another way than it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// Attributes, and data or listing, of an object.
    Object(NodeId),
    /// A name in a directory that leads to another object now, or to none: what is mounted on it comes off.
    Name(NodeId, Name),
    /// A name in a directory that may, also one that was absent.
    Perhaps(NodeId, Name),
    /// A name in a directory that leads to a directory, and probably to the one that it led to.
    Dir(NodeId, Name),
}

impl Union {
    /// From now on `changed_behind` finds the nodes of lower directories. Returns a descriptor on each filesystem that has
    /// lower branches and can tell of all its changes: one of this machine that is not read-only by its nature.
    pub fn follow_lowers(&self) -> Vec<BorrowedFd<'_>> {
        self.table.follow();
        let mut devices = Vec::new();
        let mut fds = Vec::new();
        for branch in self.stack.branches.iter().filter(|branch| !self.stack.is_upper(branch.id)) {
            let device = branch.root.identity().0;
            if branch.trust == Trust::Local && !devices.contains(&device) {
                devices.push(device);
                fds.push(branch.readable.as_fd());
            }
        }
        fds
    }

    /// If the real object of `node` is gone, since what was seen has its number, nothing leads to the node any more. The kernel may know it
    /// for a while, by a name that it will look up anew when it hears `ESTALE`.
    pub(super) fn lose(&self, node: &Arc<Node>, seen: &Seen) {
        let names = {
            let mut body = node.body.write();
            if !node.is_gone_for(&body, seen) {
                return;
            }
            node.left_behind.store(true, Ordering::Release);
            body.lost = true;
            // Nobody has it open: it would have its number still.
            body.leave(None);
            std::mem::take(&mut body.links)
        };
        names.into_iter().for_each(|link| self.table.release(link.parent));
    }

    /// Something happened to `name` in the directory that `dir` means on one of the lowers' filesystems (`.`: to the
    /// directory itself).
    pub fn changed_behind(&self, dir: &FileHandle, name: &[u8], each: &mut dyn FnMut(Stale)) {
        for branch in self.stack.branches.iter().filter(|branch| !self.stack.is_upper(branch.id)) {
            // A handle of another filesystem, or of a directory that is gone: nobody can have its names any more.
            let Ok(fd) = handle::open(branch.readable.as_fd(), dir, OFlags::PATH) else { continue };
            let Ok(real) = stat(fd.as_fd(), c"", AtFlags::EMPTY_PATH) else { continue };
            let Some(node) = self.table.shown(real.identity()) else { continue };
            each(Stale::Object(node.id));
            let Ok(name) = Name::new(name) else { return };
            let mut known = None;
            if let Ok(child) = stat(fd.as_fd(), name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                let number = self.numbers.number(child.dev, child.ino);
                self.table.numbered(child.identity(), number).into_iter().for_each(|id| each(Stale::Object(id)));
                known = self.table.shown(child.identity());
            }
            let stays = known.is_some_and(|known| known.body.read().has_link(&node, &name));
            each(if stays { Stale::Dir(node.id, name) } else { Stale::Perhaps(node.id, name) });
            return;
        }
    }

    /// All that the union has shown and is still known: for when it cannot be told what happened.
    pub fn all_shown(&self, each: &mut dyn FnMut(Stale)) {
        for node in self.table.all() {
            each(Stale::Object(node.id));
            names(&node).into_iter().for_each(&mut *each);
        }
    }
}

fn names(node: &Arc<Node>) -> Vec<Stale> {
    let name = if node.is_dir() { Stale::Dir } else { Stale::Perhaps };
    node.body.read().links.iter().map(|link| name(link.parent.id, link.name.clone())).collect()
}
