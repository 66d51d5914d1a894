//! The union that requests are made to now, and its exchange for the same union over other lower branches.
//!
//! Invariants: who uses the union has the slot locked for reading for as long as that takes, once (a second time on the same
//! thread could wait for who waits for the first); so whoever has it locked for writing has no request beside him. Nobody
//! keeps the union itself to ask it something. Nothing is told to the kernel while the slot is locked for writing.
//!
//! Not here: what becomes of nodes and open files (`ops::over`).

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockWriteGuard};

use crate::fuse::notify::Notices;
use crate::fuse::pulse;
use crate::fuse::reply::caught;
use crate::union::ops::behind::Stale;
use crate::union::{NewLowers, Union};

/// How long requests are kept waiting for those that are under way, at a time.
const TRY: Duration = Duration::from_millis(20);
/// How long they are let through then.
const PAUSE: Duration = Duration::from_millis(80);
/// After how long it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Exchanges the lowers of a union that is served.
///
/// # Errors
/// A line that says why not; nothing has changed then.
pub type Exchange = dyn Fn(NewLowers) -> Result<(), String> + Send + Sync;

/// The slot.
pub struct Current(RwLock<Arc<Union>>);

impl Current {
    pub(super) fn new(union: Arc<Union>) -> Self {
        Self(RwLock::new(union))
    }

    /// Exchanges the lowers and tells the kernel by `notices`.
    pub(super) fn exchange(self: Arc<Self>, notices: Arc<Notices>) -> Arc<Exchange> {
        Arc::new(move |lowers| {
            notices.tell_all(caught("exchange", || self.put(lowers)).ok_or_else(mistake)??);
            Ok(())
        })
    }

    /// Returns what the kernel must not trust any more.
    fn put(&self, lowers: NewLowers) -> Result<Vec<Stale>, String> {
        // Opening the branches may take long, or for ever, and is in nobody's way.
        let now = self.0.read().clone();
        let new = now.over(lowers)?;
        drop(now);
        let Some(mut slot) = self.alone() else {
            let seconds = PATIENCE.as_secs();
            return Err(format!("busy: requests have been under way for {seconds} s; nothing has changed"));
        };
        let (mut stale, changed) =
            pulse::beside("exchange", || caught("exchange", || new.succeed(&slot)).ok_or_else(mistake))??;
        let old = std::mem::replace(&mut *slot, Arc::new(new));
        drop(slot);
        // With the last descriptors of branches that are not there any more.
        drop(old);
        stale.extend(self.with(|union| union.absent_until_now(&changed)));
        Ok(stale)
    }

    /// Locks the slot when no request is under way. New ones are not kept waiting for a long one.
    fn alone(&self) -> Option<RwLockWriteGuard<'_, Arc<Union>>> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.0.try_write_for(TRY) {
                None => sleep(PAUSE),
                slot => return slot,
            }
        }
        None
    }

    /// Uses the union. Not to be called by who uses it already.
    pub fn with<T>(&self, body: impl FnOnce(&Union) -> T) -> T {
        body(&self.0.read())
    }
}

fn mistake() -> String {
    "a mistake of the daemon: see the log".to_owned()
}
