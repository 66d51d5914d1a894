//! The step hook: tests make the n-th change of a branch fail, let the process die there, or others go first.
//!
//! Every call that changes a branch asks `step` first (they all stand in `branch::dir` and `copyup`), so "at every
//! instant" can be tried one instant after the other. Armed per thread: tests run beside each other, and a daemon that
//! nobody armed pays one thread-local read.
//!
//! The same gate is shut for all threads while nobody knows whether the upper is still this union's own (`freeze`).

use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::union::error::{Errno, Result};

/// What happens at the step that was armed.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// The step is not done and returns this errno; later steps go through.
    Fail(Errno),
    /// The process ends with status 99 before the step, as by SIGKILL: no destructor runs.
    Die,
    /// The thread meets others here, twice: what they do in between happens just before the step. It may be a `look`, too.
    Meet(&'static Barrier),
}

/// The exit status of a process that died at a step.
pub const DIED: i32 = 99;

#[derive(Clone, Copy)]
struct Armed {
    left: usize,
    action: Option<Action>,
    seen: usize,
}

thread_local! {
    static ARMED: Cell<Option<Armed>> = const { Cell::new(None) };
}

/// From now on the steps of this thread are counted, and the one with index `at` (from 0) meets `action`.
/// `arm(usize::MAX, ...)` only counts.
pub fn arm(at: usize, action: Action) {
    ARMED.set(Some(Armed { left: at, action: Some(action), seen: 0 }));
}

/// Back to normal; returns how many steps this thread took since `arm`.
pub fn disarm() -> usize {
    ARMED.take().map_or(0, |armed| armed.seen)
}

/// One process has one union.
static FROZEN: AtomicBool = AtomicBool::new(false);

/// From now on every change fails with `ENOTCONN`, or none does.
pub fn freeze(frozen: bool) {
    FROZEN.store(frozen, Ordering::Release);
}

/// To be asked before data are written, which is no step.
///
/// # Errors
/// `ENOTCONN` while changes are frozen.
pub(crate) fn writable() -> Result<()> {
    if FROZEN.load(Ordering::Acquire) { Err(Errno::NOTCONN) } else { Ok(()) }
}

/// To be asked before each change of a branch; `what` names it for the log.
///
/// # Errors
/// What `arm` was told to let this step fail with; as `writable`.
pub(crate) fn step(what: &'static str) -> Result<()> {
    writable()?;
    let Some(armed) = ARMED.get() else { return Ok(()) };
    match count(armed) {
        None => Ok(()),
        Some(Action::Fail(errno)) => {
            log::debug!("fault: {what} fails with {errno}");
            Err(errno)
        }
        Some(Action::Meet(place)) => {
            meet(place);
            Ok(())
        }
        Some(Action::Die) => crate::sys::process::exit_now(DIED),
    }
}

/// To be asked where a request goes on with what it has seen and no longer holds: a step for those who want to meet only.
pub(crate) fn look() {
    let Some(armed) = ARMED.get() else { return };
    if matches!(armed.action, Some(Action::Meet(_)))
        && let Some(Action::Meet(place)) = count(armed)
    {
        meet(place);
    }
}

fn meet(place: &Barrier) {
    place.wait();
    place.wait();
}

fn count(mut armed: Armed) -> Option<Action> {
    armed.seen += 1;
    let now = armed.left == 0;
    armed.left = armed.left.saturating_sub(1);
    let action = if now { armed.action.take() } else { None };
    ARMED.set(Some(armed));
    action
}
