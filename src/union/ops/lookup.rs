//! From a name to a node, and forgetting it again.

use std::ffi::OsStr;

use crate::sys::process::give_memory_back;
use crate::union::engine::Union;
use crate::union::error::{Errno, Result};
use crate::union::fault::look;
use crate::union::ops::name_of;
use crate::union::ops::open::stat_of;
use crate::union::types::{Attr, Entry, HandleId, NodeId, StatFs, Trust};

impl Union {
    /// Looks `name` up in `parent` and counts one reference for the caller, until `forget`.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`; every error of a branch but absence.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let parent = self.table.get(parent)?;
        if !parent.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let name = name_of(name)?;
        let _shared = parent.children.read();
        Ok(self.entry(self.look(&parent, &name)?))
    }

    /// Whether only requests can make a name appear in `parent`: nothing but the upper is looked at there.
    pub fn absence_is_settled(&self, parent: NodeId) -> bool {
        let layers = self.table.get(parent).and_then(|parent| parent.layers());
        layers.is_ok_and(|layers| matches!(layers.as_slice(), [only] if self.stack.is_upper(only.branch)))
    }

    /// What the branches below the upper are: the least trustworthy counts.
    pub fn trust(&self) -> Trust {
        let lowers = self.stack.branches.iter().filter(|branch| !self.stack.is_upper(branch.id));
        lowers.map(|branch| branch.trust).min().unwrap_or(Trust::Immutable)
    }

    /// Whether closing a file of the upper can still report an error: on a filesystem of another machine.
    pub fn close_reports_errors(&self) -> bool {
        self.stack.upper.is_some() && self.stack.branches.first().is_some_and(|top| top.trust == Trust::Remote)
    }

    /// Gives `count` references back.
    pub fn forget(&self, node: NodeId, count: u64) {
        if self.table.forget(node, count) {
            // A walk over a large tree must not leave its memory behind in every tenant's daemon.
            self.table.sweep();
            self.fds.sweep();
            give_memory_back();
        }
    }

    /// What stat(2) shows. `handle`, if the caller has one, changes nothing: a node keeps what is open.
    ///
    /// # Errors
    /// `ESTALE` if the branch has another object in its place; those of statx(2).
    pub fn getattr(&self, node: NodeId, _handle: Option<HandleId>) -> Result<Attr> {
        let node = self.table.get(node)?;
        let stat = stat_of(&node.body.read())?;
        look();
        self.attr(&node, &stat)
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// `EINVAL` if it is none; those of readlinkat(2).
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        self.table.get(node)?.with(|at| at.readlink())
    }

    /// What statfs(2) shows: the upper's figures, or the top branch's without an upper.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn statfs(&self) -> Result<StatFs> {
        let top = self.stack.branches.first().ok_or(Errno::IO)?;
        let fs = rustix::fs::fstatvfs(&*top.root.fd()?)?;
        let size = |size: u64| u32::try_from(size).unwrap_or(4096);
        Ok(StatFs {
            blocks: fs.f_blocks,
            bfree: fs.f_bfree,
            bavail: fs.f_bavail,
            files: fs.f_files,
            ffree: fs.f_ffree,
            bsize: size(fs.f_bsize),
            frsize: size(fs.f_frsize),
        })
    }
}
