//! Whose hands the data of an open file are in: the kernel's (passthrough) or the daemon's.
//!
//! The kernel's rule (fs/fuse/iomode.c): a node is idle, or has opens whose data it caches, or has opens that all pass
//! to one and the same real file; anything else it answers with EIO. So a node's mode is chosen by its first open and
//! kept until the last one is closed. The count here is never below the kernel's, which lets go before it says so.
//!
//! Invariants: a lower file is passed to the kernel for reading only, and only where its branch is read-only by its
//! mount; whoever opens for writing a node that is passed to its lower file is sent to look the name up again (ESTALE)
//! and finds another node there.
//!
//! Not here: what is worth passing (`ops::open`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use fuser::BackingId;
use parking_lot::Mutex;

use crate::union::types::NodeId;

/// Device and inode number of a real file.
pub type Identity = (u64, u64);

/// How a node's opens travel.
#[derive(Debug, Default)]
pub enum Mode {
    /// It is not open.
    #[default]
    Idle,
    /// That many opens go through the daemon.
    Cached(u32),
    /// All opens pass to one real file.
    Passed(Passed),
}

/// Opens that pass to one real file.
#[derive(Debug)]
pub struct Passed {
    opens: u32,
    backing: BackingId,
    /// The real file.
    pub identity: Identity,
    /// Its attributes may change without a request for this node: by a store through a map, or under another node.
    restless: bool,
}

/// The modes of all nodes that are open.
#[derive(Debug)]
pub struct Modes {
    nodes: DashMap<NodeId, Arc<Mutex<Mode>>>,
    offered: AtomicBool,
    coherent: bool,
}

/// What an open may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Through the daemon.
    Cached,
    /// Past it, to the real file that is passed already.
    Join,
    /// Past it, if the kernel takes the file.
    Pass,
    /// Neither: others have another file open under this node.
    Split,
}

impl Modes {
    /// No node is open. `coherent`: lower files are never passed.
    pub fn new(coherent: bool) -> Self {
        Self { nodes: DashMap::new(), offered: AtomicBool::new(false), coherent }
    }

    /// The kernel offers passthrough.
    pub fn offered(&self) {
        self.offered.store(true, Ordering::Relaxed);
    }

    /// The kernel refused a file for good (no privilege): it will not be asked again.
    pub fn refused(&self) {
        self.offered.store(false, Ordering::Relaxed);
    }

    /// Whether the kernel takes files at all.
    pub fn usable(&self) -> bool {
        self.offered.load(Ordering::Relaxed)
    }

    /// Whether lower files may be passed.
    pub fn lowers(&self) -> bool {
        self.usable() && !self.coherent
    }

    /// The mode of `node`, to be held locked over the whole open.
    pub fn of(&self, node: NodeId) -> Arc<Mutex<Mode>> {
        self.nodes.entry(node).or_default().clone()
    }

    /// Whether the attributes of `node` may change without a request for it, so that the kernel must not keep them.
    pub fn is_restless(&self, node: NodeId) -> bool {
        let restless = |mode: &Mode| matches!(mode, Mode::Passed(Passed { restless: true, .. }));
        // A mode that is locked is being changed; that may take a while, and asking again costs little.
        self.nodes.get(&node).is_some_and(|mode| mode.try_lock().is_none_or(|mode| restless(&mode)))
    }

    /// One open of `node` is closed, or failed before it was counted.
    pub fn closed(&self, node: NodeId) {
        let Some(mode) = self.nodes.get(&node).map(|mode| mode.value().clone()) else { return };
        mode.lock().leave();
        self.tidy(node, mode);
    }

    /// Forgets the mode of a node that is idle.
    pub fn tidy(&self, node: NodeId, mode: Arc<Mutex<Mode>>) {
        drop(mode);
        let idle = |mode: &Arc<Mutex<Mode>>| Arc::strong_count(mode) == 1 && matches!(*mode.lock(), Mode::Idle);
        self.nodes.remove_if(&node, |_, mode| idle(mode));
    }
}

impl Mode {
    /// What an open of the real file `identity` may do; `worthy`: it should pass if nothing stands against it.
    ///
    /// One that only reads joins whatever is passed: a copy has other data than the lower file only once it was opened
    /// for writing or cut, and then it has a node of its own. So nothing that leads to this node by another way than a
    /// name (/proc/self/exe of a program that was given other rights) is lost.
    pub fn choose(&self, identity: Identity, (reads, worthy): (bool, bool)) -> Choice {
        match self {
            Self::Passed(passed) if reads || passed.identity == identity => Choice::Join,
            Self::Passed(..) => Choice::Split,
            Self::Idle if worthy => Choice::Pass,
            Self::Idle | Self::Cached(_) => Choice::Cached,
        }
    }

    /// One more open goes through the daemon.
    pub fn cache(&mut self) {
        *self = Self::Cached(if let Self::Cached(opens) = self { *opens + 1 } else { 1 });
    }

    /// From now on opens pass to this file; `join` counts each.
    pub fn pass(&mut self, backing: BackingId, identity: Identity) {
        *self = Self::Passed(Passed { opens: 0, backing, identity, restless: false });
    }

    /// One more open passes to the same file; `writes`: it may store through a map, of which nobody hears.
    pub fn join(&mut self, writes: bool) -> Option<&BackingId> {
        match self {
            Self::Passed(passed) => {
                passed.opens += 1;
                passed.restless |= writes;
                Some(&passed.backing)
            }
            Self::Idle | Self::Cached(_) => None,
        }
    }

    /// The node is left to those who have it open.
    pub fn split(&mut self) {
        if let Self::Passed(passed) = self {
            passed.restless = true;
        }
    }

    /// One open less.
    pub fn leave(&mut self) {
        let left = match self {
            Self::Idle => return,
            Self::Cached(opens) | Self::Passed(Passed { opens, .. }) => {
                *opens = opens.saturating_sub(1);
                *opens
            }
        };
        if left == 0 {
            *self = Self::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_node_stays_cached_until_it_is_idle() {
        let modes = Modes::new(false);
        let node = NodeId(7);
        let mode = modes.of(node);
        assert_eq!(mode.lock().choose((1, 2), (true, true)), Choice::Pass);
        mode.lock().cache();
        mode.lock().cache();
        assert_eq!(mode.lock().choose((1, 2), (true, true)), Choice::Cached);
        modes.closed(node);
        assert_eq!(mode.lock().choose((1, 2), (true, true)), Choice::Cached);
        modes.closed(node);
        assert_eq!(mode.lock().choose((1, 2), (true, true)), Choice::Pass);
        assert_eq!(mode.lock().choose((1, 2), (true, false)), Choice::Cached);
        modes.tidy(node, mode);
        assert!(modes.nodes.is_empty());
    }
}
