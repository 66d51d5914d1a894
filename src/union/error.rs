//! What goes wrong: an errno for the caller, and a line in the log that names the place.
//!
//! The kernel takes one errno and nothing else, so that is what travels; what was being done is logged where it is
//! known (`During::during`), because the caller of a filesystem can never ask.

use std::fmt::Debug;

/// The errno that a request is answered with, as errno(3).
pub use rustix::io::Errno;

/// What every request of the engine returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// Puts what was being done into the log when it failed.
pub trait During {
    /// Logs `what` and `place` if this is an error that an administrator should hear of, and passes the error on.
    ///
    /// An errno that programs provoke every day (`ENOENT`, `EEXIST`, ...) is an answer, not a fault: debug level only.
    #[must_use]
    fn during(self, what: &str, place: impl Debug) -> Self;
}

impl<T> During for Result<T> {
    fn during(self, what: &str, place: impl Debug) -> Self {
        if let Err(errno) = &self {
            match *errno {
                Errno::IO
                | Errno::STALE
                | Errno::NOTCONN
                | Errno::TIMEDOUT
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOMEM
                | Errno::UCLEAN => log::error!("{what} {place:?}: {errno}"),
                Errno::NOSPC | Errno::DQUOT | Errno::ROFS => log::warn!("{what} {place:?}: {errno}"),
                _ => log::debug!("{what} {place:?}: {errno}"),
            }
        }
        self
    }
}

/// For a step whose failure changes nothing that was promised (a time stamp put back, a leftover removed): logged, and
/// the request goes on.
pub fn best_effort<T>(what: &str, result: Result<T>) {
    if let Err(errno) = result {
        log::warn!("{what}: {errno} (went on without)");
    }
}
