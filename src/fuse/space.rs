//! What statfs(2) is told: the branch's figures, or the last known ones if it does not answer soon.
//!
//! Whoever looks after a mount asks by statfs (uWSGI's `mountpoint-check`, once a second), and must not hang when a branch
//! does. Invariant: at most one question to the branch is under way, on a thread that serves nobody.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::fuse::current::Current;
use crate::fuse::worker::Workers;
use crate::union::Union;
use crate::union::error::Result;
use crate::union::types::StatFs;

/// How long the branch has; a local one answers in microseconds.
const PATIENCE: Duration = Duration::from_millis(200);

struct Known {
    figures: Result<StatFs>,
    asking: bool,
    /// How many questions were answered.
    answers: u64,
}

/// The last known figures.
pub(super) struct Space {
    known: Mutex<Known>,
    answered: Condvar,
}

impl Space {
    /// Asks once, and waits for it.
    pub(super) fn of(union: &Union) -> Self {
        let known = Known { figures: union.statfs(), asking: false, answers: 0 };
        Self { known: Mutex::new(known), answered: Condvar::new() }
    }

    /// The figures. Not to be called by who uses the union.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub(super) fn figures(self: &Arc<Self>, current: &Arc<Current>, workers: &Arc<Workers>) -> Result<StatFs> {
        let mut known = self.known.lock();
        let before = known.answers;
        if !std::mem::replace(&mut known.asking, true) {
            drop(known);
            let (space, current) = (self.clone(), current.clone());
            workers.run(move || current.with(|union| space.renew(union)));
            known = self.known.lock();
        }
        if known.answers == before {
            self.answered.wait_for(&mut known, PATIENCE);
        }
        known.figures
    }

    fn renew(&self, union: &Union) {
        let figures = union.statfs();
        let mut known = self.known.lock();
        (known.figures, known.asking) = (figures, false);
        known.answers += 1;
        self.answered.notify_all();
    }
}
