//! SIGTERM, SIGINT and SIGHUP end the union: it is unmounted, and the session ends by that; a second one ends at once.
//!
//! Handlers only fill a pipe; a thread of its own does the work, so that a request in progress is never in the way.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::daemon::control::Control;
use crate::daemon::resolve::describe;
use crate::sys::process::exit_now;

/// How long those who still have files open keep their union after a signal.
const GRACE: Duration = Duration::from_secs(3);

/// Signals that came since `catch`, waiting for `watch`.
#[derive(Debug)]
pub(crate) struct Caught(SignalDelivery<UnixStream, SignalOnly>);

/// From now on the three signals wait instead of killing.
///
/// # Errors
/// As pipe(2) and sigaction(2).
pub(crate) fn catch() -> std::io::Result<Caught> {
    let (read, write) = UnixStream::pair()?;
    SignalDelivery::with_pipe(read, write, SignalOnly, [SIGTERM, SIGINT, SIGHUP]).map(Caught)
}

impl Caught {
    /// Starts the thread that acts on them; `detach` takes the union off its place. It hears at `control`, too: an idle
    /// thread more would cost memory in each of hundreds of daemons.
    ///
    /// # Errors
    /// `EAGAIN` if no thread can be started.
    pub(crate) fn watch(
        mut self,
        control: Control,
        detach: impl Fn() -> Result<(), Errno> + Send + 'static,
    ) -> std::io::Result<()> {
        let body = move || {
            let first = self.next(&control);
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
            exit_now(128 + self.next(&control));
        };
        std::thread::Builder::new().name("cowfs-signals".into()).spawn(body).map(|_| ())
    }

    /// Waits for the next signal, and hears who else speaks meanwhile.
    fn next(&mut self, control: &Control) -> i32 {
        loop {
            if let Some(signal) = self.0.pending().next() {
                return signal;
            }
            let ear = control.ear();
            let mut both = [PollFd::new(self.0.get_read(), PollFlags::IN), PollFd::new(&ear, PollFlags::IN)];
            match poll(&mut both, None) {
                Ok(_) if both[1].revents().contains(PollFlags::IN) => control.hear(),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    log::error!("signals cannot be waited for: {}", describe(errno));
                    std::thread::sleep(GRACE);
                }
            }
        }
    }
}
