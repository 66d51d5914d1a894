//! SIGTERM, SIGINT and SIGHUP end the union: it is unmounted, and the session ends by that; a second one ends at once.
//!
//! Handlers only fill a pipe; a thread of its own does the work, so that a request in progress is never in the way.

use std::time::Duration;

use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::daemon::resolve::describe;
use crate::sys::process::exit_now;

/// How long those who still have files open keep their union after a signal.
const GRACE: Duration = Duration::from_secs(3);

/// Signals that came since `catch`, waiting for `watch`.
#[derive(Debug)]
pub(crate) struct Caught(Signals);

/// From now on the three signals wait instead of killing.
///
/// # Errors
/// As pipe(2) and sigaction(2).
pub(crate) fn catch() -> std::io::Result<Caught> {
    Signals::new([SIGTERM, SIGINT, SIGHUP]).map(Caught)
}

impl Caught {
    /// Starts the thread that acts on them; `detach` takes the union off its place.
    ///
    /// # Errors
    /// `EAGAIN` if no thread can be started.
    pub(crate) fn watch(mut self, detach: impl Fn() -> Result<(), Errno> + Send + 'static) -> std::io::Result<()> {
        let body = move || {
            let mut signals = self.0.forever();
            let Some(first) = signals.next() else { return };
            log::info!("signal {first}: unmounting");
            if let Err(errno) = detach() {
                // In a namespace that was pivoted into the union it cannot be taken off. Ending answers everybody.
                log::warn!("cannot unmount: {}: ending all the same", describe(errno));
                exit_now(0);
            }
            let patience = std::thread::Builder::new().name("cowfs-grace".into()).spawn(|| {
                std::thread::sleep(GRACE);
                log::warn!("the union is still in use somewhere: ending all the same");
                exit_now(0);
            });
            if patience.is_err() {
                exit_now(0);
            }
            if let Some(second) = signals.next() {
                exit_now(128 + second);
            }
        };
        std::thread::Builder::new().name("cowfs-signals".into()).spawn(body).map(|_| ())
    }
}
