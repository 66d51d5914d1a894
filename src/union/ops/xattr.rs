//! Extended attributes, ACLs among them. Marks are neither shown nor taken.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::union::branch::aside::is_key;
use crate::union::copyup::meta::{ACL, CAPABILITY};
use crate::union::engine::Union;
use crate::union::error::{Errno, Result};
use crate::union::marks::overlay::is_private;
use crate::union::node::Node;
use crate::union::types::NodeId;

impl Union {
    /// Whether the attribute `key` says something about the branch and not about the object, so that nobody sees it.
    fn is_hidden(&self, key: &[u8]) -> bool {
        is_private(key) || self.stack.aside && (is_key(key) || key.starts_with(ACL))
    }

    fn key_of(&self, name: &OsStr, private: Errno) -> Result<CString> {
        let name = name.as_bytes();
        // They would be about the inode's owner and mode, which are not those shown.
        if self.stack.aside && name.starts_with(ACL) {
            return Err(Errno::OPNOTSUPP);
        }
        if self.is_hidden(name) {
            return Err(private);
        }
        CString::new(name).map_err(|_| Errno::INVAL)
    }

    /// As getxattr(2).
    ///
    /// # Errors
    /// `ENODATA`, for marks too, and for ACLs where the branch knows none; those of getxattr(2).
    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let key = self.key_of(name, Errno::NODATA)?;
        match self.table.get(node)?.with(|at| at.xattr_value(&key)) {
            // A branch that knows no ACLs (squashfs, a FUSE filesystem) has none. The kernel asks for them to check
            // permissions, and would refuse everybody but the owner with any other answer.
            Err(Errno::OPNOTSUPP) if name.as_bytes().starts_with(ACL) => Err(Errno::NODATA),
            value => value,
        }
    }

    /// NUL-terminated names, as listxattr(2), without marks.
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        let names = self.table.get(node)?.with(|at| at.xattr_names())?;
        let mut shown = Vec::with_capacity(names.len());
        for key in names.split_inclusive(|&b| b == 0).filter(|key| !self.is_hidden(key)) {
            shown.extend_from_slice(key);
        }
        Ok(shown)
    }

    /// As setxattr(2); `flags` as there.
    ///
    /// # Errors
    /// `EPERM` for marks; those of setxattr(2) and of copying up.
    pub fn setxattr(&self, node: NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let key = self.key_of(name, Errno::PERM)?;
        let node = self.table.get(node)?;
        self.spare_root(&node, &key)?;
        self.raise_for(&node, &key)?;
        node.with(|at| at.set_xattr(&key, value, flags.cast_unsigned()))
    }

    /// As removexattr(2).
    ///
    /// # Errors
    /// `ENODATA`; `EPERM` for marks; those of removexattr(2) and of copying up.
    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> {
        let key = self.key_of(name, Errno::PERM)?;
        let node = self.table.get(node)?;
        self.spare_root(&node, &key)?;
        // An attribute that is not there is no reason to copy up a file.
        node.with(|at| at.xattr_value(&key))?;
        self.raise_for(&node, &key)?;
        node.with(|at| at.remove_xattr(&key))?;
        if *key == *CAPABILITY {
            node.lost_capabilities.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// What says of a branch that its owners and modes stand in attributes is for its maker to say, so that nobody can get
    /// the attributes counted that everybody may set meanwhile.
    fn spare_root(&self, node: &Arc<Node>, key: &CStr) -> Result<()> {
        if Arc::ptr_eq(node, self.table.root()) && is_key(key.to_bytes()) { Err(Errno::PERM) } else { Ok(()) }
    }

    /// Brings a node into the upper whose attribute `key` is to be changed. With its data if these, coming later, would
    /// take the attribute away.
    fn raise_for(&self, node: &Arc<Node>, key: &CStr) -> Result<()> {
        if key == CAPABILITY { self.raise(node, u64::MAX) } else { self.raise_attributes(node) }
    }
}
