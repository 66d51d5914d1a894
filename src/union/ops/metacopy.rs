//! Files that hold attributes only, their data being a lower file's: what a change of attributes alone leaves in the
//! upper (`raise`), and what overlayfs leaves with `metacopy=on`, in any branch.
//!
//! Read as they lie there they would be zeros. Who reads is given the lower file; who is about to write first gets the
//! data into the upper's file. Before such a file gets another name, a mark on it says where its data are.
//!
//! Invariants: the mark that the data are elsewhere goes last, when they are on disk. Until then all that is shown of the
//! data, their size included, is the lower file's, so an interruption leaves the file as it was. Names move while data are
//! copied: whatever takes longer than a look is done by a descriptor, and the rest while the body is locked.
//!
//! Not here: making such a file (`copyup`), and when (`raise`).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use crate::union::branch::{At, Stat};
use crate::union::copyup::{data, meta};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result, best_effort};
use crate::union::fault::{look, step};
use crate::union::marks::overlay::Keys;
use crate::union::name::Name;
use crate::union::node::{Body, Data, Link, Node, Place};
use crate::union::resolve::{Found, find, follow};
use crate::union::stack::Layers;
use crate::union::types::{BranchId, SetTime};

impl Union {
    /// Finds out where the data of `node` are, if nobody has yet or if they are there no more.
    ///
    /// # Errors
    /// `EIO` if they cannot be found.
    pub(super) fn know_data(&self, node: &Arc<Node>) -> Result<()> {
        if !node.kind.is_file() {
            return Ok(());
        }
        let (bare, before) = {
            let body = node.body.read();
            match &body.data {
                Data::Own => return Ok(()),
                Data::Elsewhere(place) if is_there(place) => return Ok(()),
                Data::Elsewhere(_) | Data::Unknown => (self.bare(&body)?, body.data_place().cloned()),
            }
        };
        let data = match bare {
            None => Data::Own,
            Some(bare) => Data::Elsewhere(Arc::new(self.find_data(&bare).inspect_err(|_| {
                let name = &bare.link.name;
                log::error!("{name:?}: its data are elsewhere (metacopy), and no lower branch has them");
            })?)),
        };
        look();
        let mut body = node.body.write();
        let same = match (&body.data, &before) {
            (Data::Unknown, None) => true,
            (Data::Elsewhere(now), Some(before)) => Arc::ptr_eq(now, before),
            _ => false,
        };
        if same {
            body.data = data;
            if before.is_some() {
                node.replaced();
            }
        }
        Ok(())
    }

    /// Before a node may lose its last name, by which its data are found: whoever has it open will want them.
    pub(super) fn remember_data(&self, node: &Arc<Node>) {
        // One look-up is the request's own.
        if node.lookups.load(std::sync::atomic::Ordering::Acquire) > 1 {
            best_effort("find the data of a file", self.know_data(node));
        }
    }

    /// The attributes of the lower file that has the data of `node`, whose own are `stat`; `None` if that is the same.
    pub(super) fn data_stat(&self, node: &Arc<Node>, stat: &Stat) -> Option<Stat> {
        if !node.kind.is_file() {
            return None;
        }
        if matches!(node.body.read().data, Data::Unknown) {
            // A file that takes up its size has its data; and if it looks so for its marks' sake, it shows the same.
            if stat.blocks.saturating_mul(512) >= stat.size {
                return None;
            }
            // Who opens it will hear of it; who lists or deletes it need not.
            best_effort("find the data of a file", self.know_data(node));
        }
        let place = node.body.read().data_place()?.clone();
        place.at().and_then(|at| at.stat()).ok()
    }

    /// Whether the file `at` without data is an empty one. Cutting data off was interrupted then, or somebody has made a
    /// mark for nothing; in the upper it goes, since the file may grow.
    fn is_empty(&self, at: &At, branch: BranchId) -> Result<bool> {
        if at.stat()?.size > 0 {
            return Ok(false);
        }
        if self.stack.is_upper(branch) {
            at.remove_xattr(&self.stack.upper()?.writer.keys.metacopy)?;
        }
        Ok(true)
    }

    /// Makes sure that the data of a node in the upper are where its attributes are; if no byte of them is wanted, that
    /// the file is empty.
    ///
    /// # Errors
    /// `EIO` if they cannot be found; those of copying.
    pub(super) fn with_own_data(&self, node: &Arc<Node>, bytes: u64) -> Result<()> {
        if !node.kind.is_file() {
            return Ok(());
        }
        let known = self.know_data(node);
        if known.is_err() && bytes > 0 {
            return known;
        }
        if matches!(node.body.read().data, Data::Own) {
            return Ok(());
        }
        look();
        let _lift = node.lift.lock();
        let (at, target, place) = {
            let body = node.body.read();
            if matches!(body.data, Data::Own) || !self.stack.is_upper(body.branch) {
                return Ok(());
            }
            let at = body.at()?;
            let target = Arc::new(at.open(OFlags::WRONLY)?);
            (at, target, body.data_place().cloned())
        };
        match place {
            _ if bytes == 0 => self.fetch(&target, None),
            Some(place) => self.fetch(&target, Some(&place)),
            None => Err(Errno::IO),
        }
        .during("fetch the data of", &at)?;
        node.body.write().data = Data::Own;
        node.replaced();
        Ok(())
    }

    /// Gives the upper's file `target` the data that are in `place`, or empties it.
    fn fetch(&self, target: &Arc<OwnedFd>, place: Option<&Place>) -> Result<()> {
        let upper = self.stack.upper()?;
        let at = &At::Fd(target.clone());
        let was = at.stat()?;
        let capability = at.xattr(meta::CAPABILITY)?;
        let filled = || -> Result<()> {
            clear(target)?;
            let Some(place) = place else {
                set_size(target, 0)?;
                at.set_times(None, Some(SetTime::Now))?;
                return at.remove_xattr(&upper.writer.keys.metacopy);
            };
            let source = place.at()?.open(OFlags::RDONLY | OFlags::NONBLOCK)?;
            let size = At::stat_fd(&source)?.size;
            let how = data::How { whole: true, remote: upper.remote, synced: !upper.volatile };
            data::copy(source.as_fd(), target.as_fd(), size, how)?;
            set_size(target, size)?;
            if let Some(capability) = &capability {
                at.set_xattr(meta::CAPABILITY, capability, 0)?;
            }
            meta::copy_times(&was, at)?;
            if !upper.volatile {
                step("sync")?;
                rustix::fs::fsync(target)?;
            }
            at.remove_xattr(&upper.writer.keys.metacopy)
        };
        filled().inspect_err(|_| {
            best_effort("put back the size of a file", set_size(target, was.size));
            best_effort("take back the data of a file", clear(target));
            if let Some(capability) = &capability {
                best_effort("put back capabilities", at.set_xattr(meta::CAPABILITY, capability, 0));
            }
            best_effort("put back the times of a file", meta::copy_times(&was, at));
        })
    }

    /// Makes sure that the data of a node in the upper will be found whatever names it gets: by a mark that says where
    /// they are; where that cannot be, by fetching them.
    ///
    /// # Errors
    /// As `with_own_data`; those of setxattr(2).
    pub(super) fn anchor(&self, node: &Arc<Node>) -> Result<()> {
        let upper = self.stack.upper()?;
        loop {
            self.know_data(node)?;
            let place = {
                let body = node.body.read();
                match body.data_place() {
                    Some(place) if !place.anchored && self.stack.is_upper(body.branch) => place.clone(),
                    _ => return Ok(()),
                }
            };
            let path = if upper.redirect { self.path_of(&place)? } else { None };
            let Some(path) = path else { break };
            let mut body = node.body.write();
            if !body.data_place().is_some_and(|now| Arc::ptr_eq(now, &place)) {
                continue;
            }
            match body.at()?.set_xattr(&upper.writer.keys.redirect, &path, 0) {
                Ok(()) => {
                    body.data = Data::Elsewhere(Arc::new(Place { anchored: true, ..(*place).clone() }));
                    return Ok(());
                }
                // Too long for an attribute; some filesystems call that a full disk.
                Err(Errno::TOOBIG | Errno::RANGE | Errno::NOSPC) => break,
                Err(errno) => return Err(errno),
            }
        }
        self.with_own_data(node, u64::MAX)
    }

    /// What the object of `body` says of its data, if it has none. Where it is cannot change meanwhile.
    fn bare(&self, body: &Body) -> Result<Option<Bare>> {
        let (at, branch) = (body.at()?, body.branch);
        if !self.lacks_data(&at, branch)? || self.is_empty(&at, branch)? {
            return Ok(None);
        }
        let link = body.links.first().cloned().ok_or(Errno::IO)?;
        Ok(Some(Bare { branch, link, redirect: self.redirect(&at, branch)? }))
    }

    /// Whether the file `at` in `branch` has attributes only.
    fn lacks_data(&self, at: &At, branch: BranchId) -> Result<bool> {
        Ok(match self.metacopy_keys(branch)? {
            Some(keys) => at.xattr(&keys.metacopy)?.is_some(),
            None => false,
        })
    }

    /// The names of the marks that count in `branch`; none where nothing lies below, or where whoever owns a file could
    /// set them.
    fn metacopy_keys(&self, branch: BranchId) -> Result<Option<&Keys>> {
        let keys = self.stack.branch(branch)?.reader.overlay.as_deref();
        Ok(keys.filter(|keys| keys.trusted() && !self.stack.is_bottom(branch)))
    }

    /// The lower file that has the data.
    fn find_data(&self, bare: &Bare) -> Result<Place> {
        let seen_as = (bare.link.parent.layers()?, bare.link.name.clone());
        let (layers, name, anchored) = self.below(bare.redirect.as_deref(), bare.branch, seen_as)?;
        let place = self.chase(layers, name)?.ok_or(Errno::IO)?;
        Ok(Place { anchored, ..place })
    }

    /// Where a mark on the file `at` in `branch` says that its data are, if it says more than that they are elsewhere.
    fn redirect(&self, at: &At, branch: BranchId) -> Result<Option<Vec<u8>>> {
        let keys = self.metacopy_keys(branch)?.ok_or(Errno::IO)?;
        Ok(at.xattr(&keys.redirect)?.filter(|path| !path.is_empty()))
    }

    /// Where the data of a file are to be looked for, which is in `branch` and is seen as the name given in the directory of
    /// these layers: there, in the branches below, or where a mark says; and whether one says so for whatever name.
    fn below(
        &self,
        redirect: Option<&[u8]>,
        branch: BranchId,
        (layers, name): (Layers, Name),
    ) -> Result<(Layers, Name, bool)> {
        let lower = || layers.iter().filter(|dir| dir.branch > branch).cloned().collect();
        let Some(path) = redirect else { return Ok((lower(), name, false)) };
        match path.strip_prefix(b"/").and(path.iter().rposition(|&b| b == b'/')) {
            None => Ok((lower(), Name::new(path)?, false)),
            Some(end) => {
                let root = &self.stack.branch(branch)?.root;
                Ok((follow(&self.stack, root, &path[..end])?, Name::new(&path[end + 1..])?, true))
            }
        }
    }

    /// The file with data that `name` leads to in the directory of these layers, from file to file without.
    fn chase(&self, mut layers: Layers, mut name: Name) -> Result<Option<Place>> {
        loop {
            let Some(Found::Leaf(dir, stat)) = find(&self.stack, &layers, &name)? else { return Ok(None) };
            if !stat.kind().is_file() {
                return Ok(None);
            }
            let at = dir.at(&name)?;
            if !self.lacks_data(&at, dir.branch)? {
                return Ok(Some(Place { dir, name, identity: stat.identity(), anchored: false }));
            }
            let redirect = self.redirect(&at, dir.branch)?;
            (layers, name, _) = self.below(redirect.as_deref(), dir.branch, (layers, name))?;
        }
    }

    /// The path from the union's root by which the data in `place` are found in the lower branches; `None` if there is none
    /// (redirects among the lowers themselves).
    fn path_of(&self, place: &Place) -> Result<Option<Vec<u8>>> {
        let mut path = place.dir.spelled_path();
        let upper = &self.stack.branches.first().ok_or(Errno::IO)?.root;
        let found = self.chase(follow(&self.stack, upper, &path)?, place.name.clone())?;
        path.push(b'/');
        path.extend_from_slice(place.name.as_bytes());
        Ok(found.filter(|found| found.identity == place.identity).map(|_| path))
    }
}

/// What a file without data was found to say of them, and where.
struct Bare {
    branch: BranchId,
    /// A name by which the union shows it.
    link: Link,
    redirect: Option<Vec<u8>>,
}

fn is_there(place: &Place) -> bool {
    place.at().and_then(|at| at.stat()).is_ok_and(|stat| stat.identity() == place.identity)
}

/// Takes away what an interruption has left in a file whose data are elsewhere.
fn clear(file: &OwnedFd) -> Result<()> {
    match rustix::fs::seek(file, SeekFrom::Data(0)) {
        Ok(_) => {}
        Err(Errno::NXIO | Errno::INVAL) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    step("punch a hole")?;
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, how, 0, At::stat_fd(file)?.size) {
        // Then it will be written over, but for what are holes in a file that has changed since.
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn set_size(file: &OwnedFd, size: u64) -> Result<()> {
    if At::stat_fd(file)?.size == size {
        return Ok(());
    }
    step("set size")?;
    rustix::fs::ftruncate(file, size)
}
