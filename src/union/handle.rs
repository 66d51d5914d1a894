//! Open files. (Directories need no handle: `listing`.)
//!
//! A file handle remembers which of its node's real objects it has open; when the node has been copied up since
//! (`Node::epoch`), the next use opens the copy in its stead, so that descriptors made before see what is written after.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::RwLock;
use rustix::fs::OFlags;

use crate::union::branch::{At, Stat};
use crate::union::error::{Errno, Result};
use crate::union::node::Node;
use crate::union::types::{HandleId, NodeId};

/// An open regular file.
pub struct OpenFile {
    /// What was opened.
    pub node: Arc<Node>,
    flags: OFlags,
    real: RwLock<Option<(u32, Arc<OwnedFd>)>>,
}

/// The flags of open(2) that mean something for the real file. O_APPEND only where nothing else is allowed (`open_real`):
/// the kernel sends offsets, and a program may take the flag away later. Not O_DIRECT: the daemon's buffers are not aligned. Not O_TRUNC: done once.
const KEPT: OFlags =
    OFlags::ACCMODE.union(OFlags::SYNC).union(OFlags::DSYNC).union(OFlags::NOATIME).union(OFlags::APPEND);

impl OpenFile {
    /// Opens the node's real object with what of `flags` matters; returns its attributes too.
    ///
    /// # Errors
    /// `ESTALE` if another object has taken its place in the branch; those of openat(2).
    pub fn open(node: Arc<Node>, flags: OFlags) -> Result<(Self, Stat)> {
        let flags = flags & KEPT;
        let (epoch, fd, stat) = open_real(&node, flags)?;
        Ok((Self { node, flags, real: RwLock::new(Some((epoch, fd))) }, stat))
    }

    /// A handle for a file that was just created.
    pub fn created(node: Arc<Node>, flags: OFlags, fd: OwnedFd) -> Self {
        let epoch = node.epoch.load(Ordering::Acquire);
        Self { node, flags: flags & KEPT, real: RwLock::new(Some((epoch, Arc::new(fd)))) }
    }

    /// A handle that opens the real file when it is first used.
    pub fn later(node: Arc<Node>, flags: OFlags) -> Self {
        Self { node, flags: flags & KEPT, real: RwLock::new(None) }
    }

    /// Whether it was opened for writing.
    pub fn may_write(&self) -> bool {
        self.flags & OFlags::ACCMODE != OFlags::RDONLY
    }

    /// The descriptor to use now.
    ///
    /// # Errors
    /// As `open`.
    pub fn fd(&self) -> Result<Arc<OwnedFd>> {
        let current = self.node.epoch.load(Ordering::Acquire);
        {
            let real = self.real.read();
            if let Some((epoch, fd)) = &*real
                && *epoch == current
            {
                return Ok(fd.clone());
            }
        }
        let (epoch, fd, _) = open_real(&self.node, self.flags)?;
        *self.real.write() = Some((epoch, fd.clone()));
        Ok(fd)
    }
}

fn open_real(node: &Node, flags: OFlags) -> Result<(u32, Arc<OwnedFd>, Stat)> {
    let body = node.body.read();
    let epoch = node.epoch.load(Ordering::Acquire);
    // Only for reading are data used where they lie: before a file is opened for writing, they have come.
    let (at, identity) =
        if flags & OFlags::ACCMODE == OFlags::RDONLY { body.data_at()? } else { (body.at()?, body.identity) };
    let fd = match at.open(flags.difference(OFlags::APPEND) | OFlags::NONBLOCK) {
        // An append-only file (chattr +a) can be opened for writing in no other way, and written nowhere else.
        Err(Errno::PERM) if flags.contains(OFlags::APPEND) => at.open(flags | OFlags::NONBLOCK)?,
        other => other?,
    };
    let stat = At::stat_fd(&fd)?;
    if stat.identity() != identity {
        return Err(Errno::STALE);
    }
    Ok((epoch, Arc::new(fd), stat))
}

/// All open files.
#[derive(Default)]
pub struct Handles {
    open: DashMap<HandleId, Arc<OpenFile>>,
    next: AtomicU64,
}

impl Handles {
    /// Remembers `file`.
    pub fn add(&self, file: OpenFile) -> HandleId {
        let id = HandleId(self.next.fetch_add(1, Ordering::Relaxed));
        self.open.insert(id, Arc::new(file));
        id
    }

    /// The file called `id`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, id: HandleId) -> Result<Arc<OpenFile>> {
        self.open.get(&id).map(|file| file.value().clone()).ok_or(Errno::BADF)
    }

    /// The nodes that are open, with a descriptor of the real file where there is one.
    pub fn open_nodes(&self) -> HashMap<NodeId, Option<Arc<OwnedFd>>> {
        let mut nodes = HashMap::new();
        for file in &self.open {
            let fd = file.real.read().as_ref().map(|(_, fd)| fd.clone());
            let known: &mut Option<_> = nodes.entry(file.node.id).or_default();
            *known = known.take().or(fd);
        }
        nodes
    }

    /// Whether `node` is open.
    pub fn has(&self, node: &Arc<Node>) -> bool {
        self.open.iter().any(|file| Arc::ptr_eq(&file.node, node))
    }

    /// Forgets `id`; returns the node it was for.
    pub fn remove(&self, id: HandleId) -> Option<Arc<Node>> {
        self.open.remove(&id).map(|(_, file)| file.node.clone())
    }
}
