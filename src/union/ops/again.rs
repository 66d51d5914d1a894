//! Finding an object again by its node id alone: what a file handle is to the kernel, once it has forgotten the object.
//!
//! Nothing else is told of it: neither its name nor its directory. A branch's filesystem may find objects by their numbers,
//! but also such as lie outside the branch, or as are deleted in the union. So the union is walked, names and numbers
//! only, until the object turns up. That takes long, and nobody but a privileged process can ask for it.

use std::sync::Arc;

use crate::union::engine::Union;
use crate::union::error::{Errno, Result};
use crate::union::merge::merge;
use crate::union::name::Name;
use crate::union::node::Node;
use crate::union::resolve::{Found, find};
use crate::union::stack::Layers;
use crate::union::types::{Entry, NodeId};

impl Union {
    /// The object that the kernel called `node`, or the directory it is in, counted as by `lookup`.
    ///
    /// # Errors
    /// `ESTALE` if it is no more, or was called by another number than it shows; those of reading the branches.
    pub fn look_again(&self, node: NodeId, up: bool) -> Result<Entry> {
        let path = match self.table.known(node) {
            Some(node) => self.path_to(&node)?,
            None => self.search(node)?.ok_or(Errno::STALE)?,
        };
        let found = self.walk(if up && !path.is_empty() { &path[..path.len() - 1] } else { &path })?;
        if !up && found.node != node {
            self.forget(found.node, 1);
            return Err(Errno::STALE);
        }
        Ok(found)
    }

    /// The names that lead to a node from the root.
    pub(super) fn path_to(&self, node: &Arc<Node>) -> Result<Vec<Name>> {
        let mut path = Vec::new();
        let mut at = node.clone();
        while at.id != NodeId::ROOT {
            let link = at.link().ok_or(Errno::STALE)?;
            path.push(link.name);
            at = link.parent;
        }
        path.reverse();
        Ok(path)
    }

    /// Looks the names up one after the other; only the last stays counted.
    fn walk(&self, path: &[Name]) -> Result<Entry> {
        let root = self.table.root();
        let mut at = Entry { node: NodeId::ROOT, generation: root.generation, attr: self.getattr(NodeId::ROOT, None)? };
        root.lookups.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        for name in path {
            let next = self.lookup(at.node, name.as_os_str());
            self.forget(at.node, 1);
            at = next.map_err(|errno| if errno == Errno::NOENT { Errno::STALE } else { errno })?;
        }
        Ok(at)
    }

    /// The names that lead to the object that shows the number `node`.
    fn search(&self, node: NodeId) -> Result<Option<Vec<Name>>> {
        let mut todo: Vec<(Layers, Vec<Name>)> = vec![(self.stack.roots(), Vec::new())];
        while let Some((layers, path)) = todo.pop() {
            let mut number = |dir: &Arc<_>, name: &[u8], ino| self.numbers.listed(&self.stack, dir, name, ino);
            let listing = merge(&self.stack, &layers, &mut number)?;
            for entry in listing.all() {
                let below = || Ok([path.as_slice(), &[Name::new(entry.name)?]].concat());
                if entry.ino.0 == node.0 {
                    return below().map(Some);
                }
                // Deleted or changed meanwhile: then it is not what is looked for.
                if entry.kind.is_dir()
                    && let Some(Found::Dir(layers, _)) = find(&self.stack, &layers, &Name::new(entry.name)?)?
                {
                    todo.push((layers, below()?));
                }
            }
        }
        Ok(None)
    }
}
