//! The open directories of all branches: few enough for RLIMIT_NOFILE, many enough that hot ones stay open.
//!
//! A directory keeps its descriptor in its own slot (`RealDir`); this file only decides who has to give his back.
//! Second chance instead of a strict LRU: a hit sets a flag and takes no lock.

use std::collections::VecDeque;
use std::sync::Weak;

use parking_lot::Mutex;

use crate::union::branch::real::RealDir;
use crate::union::types::BranchId;

/// Bounds how many directories hold a descriptor.
pub struct DirFds {
    capacity: usize,
    queue: Mutex<VecDeque<Weak<RealDir>>>,
}

impl DirFds {
    /// Room for half of the descriptors that this process may have beside the roots of so many branches: the other half
    /// is for open files.
    pub fn beside(branches: usize) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024);
        Self::with_capacity((limit.saturating_sub(branches as u64) / 2).clamp(16, 16384) as usize)
    }

    /// Room for `capacity` descriptors.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { capacity, queue: Mutex::new(VecDeque::new()) }
    }

    /// `dir` has just opened a descriptor: somebody who was not asked for lately gives his back if there are too many.
    pub(crate) fn opened(&self, dir: Weak<RealDir>) {
        let mut queue = self.queue.lock();
        queue.push_back(dir);
        // Each turn either shrinks the queue or clears a flag, so two rounds are enough.
        let mut turns = 2 * queue.len();
        while queue.len() > self.capacity && turns > 0 {
            turns -= 1;
            let Some(oldest) = queue.pop_front() else { break };
            if let Some(dir) = oldest.upgrade()
                && dir.spare()
            {
                queue.push_back(oldest);
            }
        }
        // Directories that were forgotten leave dead entries behind; they go before they outnumber the living.
        if queue.len() > 64 && queue.len() == queue.capacity() {
            queue.retain(|dir| dir.strong_count() > 0);
        }
    }

    /// The filesystem of `branch` was mounted anew: every directory of it is opened again when it is next needed.
    pub(crate) fn close(&self, branch: BranchId) {
        self.queue.lock().retain(|dir| {
            let dir = dir.upgrade();
            let dead = dir.as_ref().filter(|dir| dir.branch == branch);
            dead.inspect(|dir| dir.close());
            dir.is_some() && dead.is_none()
        });
    }

    /// Lets go of directories that were forgotten: each entry keeps its directory's memory.
    pub fn sweep(&self) {
        let mut queue = self.queue.lock();
        queue.retain(|dir| dir.strong_count() > 0);
        queue.shrink_to_fit();
    }
}
