//! The union that requests are made to now, and its exchange for the same union over other lower branches.
//!
//! Invariants: who uses the union has the slot locked for reading for as long as that takes, once (a second time on the same
//! thread could wait for who waits for the first); so whoever has it locked for writing has no request beside him. Nobody
//! keeps the union itself. Nothing is told to the kernel while the slot is locked for writing.
//!
//! Not here: what becomes of nodes and open files (`ops::over`).

use std::sync::Arc;

use parking_lot::RwLock;

use crate::fuse::notify::Notices;
use crate::union::{NewLowers, Union};

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
    pub(super) fn exchange(self: Arc<Self>, _notices: Arc<Notices>) -> Arc<Exchange> {
        Arc::new(|_| Err("the branches cannot be changed yet".to_owned()))
    }

    /// Uses the union. Not to be called by who uses it already.
    pub fn with<T>(&self, body: impl FnOnce(&Union) -> T) -> T {
        body(&self.0.read())
    }
}
