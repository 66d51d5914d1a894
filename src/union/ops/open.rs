//! Opening and closing files.

use std::ffi::c_int;

use rustix::fs::OFlags;

use crate::union::engine::Union;
use crate::union::error::{Errno, Result};
use crate::union::handle::{Handle, OpenFile};
use crate::union::node::Node;
use crate::union::types::{Caller, HandleId, NodeId};

impl Union {
    /// As open(2) of an existing file; `flags` as there. One that may write is copied up first; with O_TRUNC no byte is.
    ///
    /// # Errors
    /// `EISDIR`, `EROFS`, `ENXIO` for what is no regular file; those of copying up and of openat(2).
    pub fn open_file(&self, node: NodeId, flags: c_int, _caller: &Caller) -> Result<HandleId> {
        let node = self.table.get(node)?;
        if node.is_dir() {
            return Err(Errno::ISDIR);
        }
        if !node.kind.is_file() {
            return Err(Errno::NXIO);
        }
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let truncate = flags.contains(OFlags::TRUNC);
        if truncate || flags & OFlags::ACCMODE != OFlags::RDONLY {
            self.raise(&node, if truncate { 0 } else { u64::MAX })?;
        }
        self.check_data(&node)?;
        let file = OpenFile::open(node.clone(), flags)?;
        if truncate {
            self.truncate(&node, 0)?;
        }
        Ok(self.handles.add(Handle::File(file)))
    }

    /// `EIO` for a file whose data lie elsewhere (the kernel's `metacopy=on`): its own would read as zeros.
    fn check_data(&self, node: &Node) -> Result<()> {
        let body = node.body.read();
        let Some(keys) = &self.stack.branch(body.branch)?.reader.overlay else { return Ok(()) };
        if self.stack.is_bottom(body.branch) || body.at()?.xattr(&keys.metacopy)?.is_none() {
            return Ok(());
        }
        log::error!("{:?}: made by overlayfs with metacopy=on, which is not read yet", body.at()?);
        Err(Errno::IO)
    }

    /// Closes a file.
    pub fn release(&self, handle: HandleId) {
        if let Some(node) = self.handles.remove(handle) {
            self.table.release(node);
        }
    }
}
