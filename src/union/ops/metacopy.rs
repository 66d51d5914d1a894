//! Files that hold attributes only, their data being a lower file's: what overlayfs leaves with `metacopy=on`.
//!
//! Read as they lie there they would be zeros. In the upper such a file gets its data when it is first opened or copied
//! further; in a read-only branch it is refused.
//!
//! Invariant: the mark goes last, when the data are on disk, so an interruption leaves it as it was.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use crate::union::branch::At;
use crate::union::copyup::{data, meta};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result};
use crate::union::fault::step;
use crate::union::marks::overlay::Keys;
use crate::union::name::Name;
use crate::union::node::Node;
use crate::union::resolve::{Found, find, follow};

impl Union {
    /// Makes sure that the data of `node`, of which `bytes` bytes are wanted, are where its attributes are.
    ///
    /// # Errors
    /// `EIO` for such a file in a read-only branch, or if its data cannot be found; those of copying.
    pub(super) fn with_own_data(&self, node: &Arc<Node>, bytes: u64) -> Result<()> {
        if !node.kind.is_file() || node.has_data.load(Ordering::Acquire) {
            return Ok(());
        }
        let (at, branch) = {
            let body = node.body.read();
            (body.at()?, body.branch)
        };
        let marked = match &self.stack.branch(branch)?.reader.overlay {
            Some(keys) if keys.trusted() && !self.stack.is_bottom(branch) => at.xattr(&keys.metacopy)?.is_some(),
            _ => false,
        };
        if marked {
            if !self.stack.is_upper(branch) {
                if bytes == 0 {
                    return Ok(());
                }
                log::error!(
                    "{at:?}: its data are elsewhere (overlayfs with metacopy=on); not read from a lower branch"
                );
                return Err(Errno::IO);
            }
            self.fetch_data(node, &at).during("fetch the data of", &at)?;
        }
        node.has_data.store(true, Ordering::Release);
        Ok(())
    }

    fn fetch_data(&self, node: &Arc<Node>, at: &At) -> Result<()> {
        let upper = self.stack.upper()?;
        let keys = &upper.writer.keys;
        let _lift = node.lift.lock();
        if at.xattr(&keys.metacopy)?.is_none() {
            return Ok(());
        }
        let from = self.find_data(node, keys, at)?;
        let was = at.stat()?;
        let (source, target) = (from.open(OFlags::RDONLY | OFlags::NONBLOCK)?, at.open(OFlags::WRONLY)?);
        let size = was.size.min(from.stat()?.size);
        data::copy(source.as_fd(), target.as_fd(), size, (size == was.size, self.stack.upper()?.remote))?;
        step("set size")?;
        rustix::fs::ftruncate(&target, was.size)?;
        meta::copy_times(&was, at)?;
        if !upper.volatile {
            step("sync")?;
            rustix::fs::fsync(&target)?;
        }
        at.remove_xattr(&keys.metacopy)?;
        node.replaced();
        Ok(())
    }

    /// The lower file that has the data: under the same name, or where the mark of a renamed file says.
    fn find_data(&self, node: &Arc<Node>, keys: &Keys, at: &At) -> Result<At> {
        let link = node.link().ok_or(Errno::IO)?;
        let layers = link.parent.layers()?;
        let lowers = self.stack.lowers(&layers);
        let found = match at.xattr(&keys.redirect)? {
            None => find(&self.stack, lowers, &link.name)?.map(|found| (found, link.name)),
            Some(path) if path.first() != Some(&b'/') => {
                let name = Name::new(path)?;
                find(&self.stack, lowers, &name)?.map(|found| (found, name))
            }
            Some(path) => {
                let end = path.iter().rposition(|&b| b == b'/').ok_or(Errno::IO)?;
                let name = Name::new(&path[end + 1..])?;
                let dir = self.stack.branches.first().ok_or(Errno::IO)?.root.clone();
                find(&self.stack, &follow(&self.stack, &dir, &path[..end])?, &name)?.map(|found| (found, name))
            }
        };
        match found {
            Some((Found::Leaf(dir, stat), name)) if stat.kind().is_file() => dir.at(&name),
            _ => Err(Errno::IO),
        }
    }
}
