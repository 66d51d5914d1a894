//! What the process may use, and how the kernel treats it when memory is short: set once, before anything is served.
//!
//! What needs CAP_SYS_RESOURCE is done here, and the process gives it up.
//!
//! Best effort but for `max_files=`: an unprivileged daemon serves without the privileges of a privileged one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::daemon::resolve::describe;

/// The least that makes the OOM killer pass a process by; see proc_pid_oom_score_adj(5).
const NEVER_KILL: &str = "-1000";

/// Raises RLIMIT_NOFILE to its hard limit, or sets it to `max_files`; protects the process from reclaim and the OOM
/// killer, because who waits for memory may be waiting for this daemon.
pub(crate) fn set(max_files: Option<u64>) {
    set_max_files(max_files);
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", NEVER_KILL) {
        log::debug!("oom_score_adj stays as it is: {error}");
    }
    if let Err(errno) = rustix::process::configure_io_flusher_behavior(true) {
        log::debug!("not exempt from reclaim (PR_SET_IO_FLUSHER): {}", describe(errno));
    }
    forgo_others_room();
}

/// As many open files as the hard limit allows.
pub(crate) fn raise_max_files() {
    set_max_files(None);
}

/// What a daemon gives up of its capabilities.
pub(crate) const GIVEN_UP: CapabilitySet = CapabilitySet::SYS_RESOURCE;

/// Gives up the right to room that is not the caller's: what a branch's filesystem keeps for root, what is above a quota.
/// Who writes to a file by the kernel's hands has the rights of the daemon, too.
fn forgo_others_room() {
    let given_up = capabilities(None).and_then(|mut sets| {
        sets.effective -= GIVEN_UP;
        sets.permitted -= GIVEN_UP;
        sets.inheritable -= GIVEN_UP;
        set_capabilities(None, sets)
    });
    if let Err(errno) = given_up {
        log::warn!("CAP_SYS_RESOURCE stays: users may fill what is kept for root: {}", describe(errno));
    }
}

fn set_max_files(wanted: Option<u64>) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let Some(wanted) = wanted else {
        if let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            log::debug!("RLIMIT_NOFILE stays as it is: {}", describe(errno));
        }
        return;
    };
    let raised = maximum.map(|maximum| maximum.max(wanted));
    if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: raised }).is_ok() {
        return;
    }
    log::warn!("max_files={wanted} is above the hard limit, which is used instead");
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
