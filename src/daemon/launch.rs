//! Going into the background: a child serves, and the parent stays until the mount answers, or until it is clear that
//! it will not.
//!
//! Whoever starts cowfs may use the mount as soon as the parent has returned 0, and knows from any other status that
//! nothing is mounted. The child's messages reach the standard error that it inherited.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::daemon::resolve::describe;
use crate::sys::process::{Forked, exit_now, fork};

/// How long the first question to the new mount may take: every wait of a start is bounded.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// The way to say that the mount is ready.
#[derive(Debug)]
pub(crate) struct Ready(Option<OwnedFd>);

impl Ready {
    /// For a process without a waiting parent.
    pub(crate) fn nobody_waits() -> Self {
        Self(None)
    }

    /// Lets the parent go.
    ///
    /// # Errors
    /// `EPIPE` if the parent was ended: then whoever asked for the mount does not want it any more.
    pub(crate) fn tell(self) -> Result<(), Errno> {
        self.0.map_or(Ok(()), |pipe| rustix::io::write(&pipe, b"R").map(|_| ()))
    }
}

/// Runs `serve` in a child. Returns the exit status of whichever process returns.
///
/// The child is to leave the caller's session only when the mount is on its place: autofs lets none but processes of its
/// automounter's group, in which systemd starts mount(8), look at a mountpoint that somebody waits for.
///
/// `probe` is asked once the child is ready; nothing is asked if it is `None`.
pub(crate) fn in_background(probe: Option<PathBuf>, serve: impl FnOnce(Ready) -> u8) -> u8 {
    let forked = pipe_with(PipeFlags::CLOEXEC).and_then(|pipe| Ok((pipe, fork()?)));
    match forked {
        Ok(((reader, writer), Forked::Parent(child))) => {
            drop(writer);
            wait(reader, child, probe)
        }
        Ok(((reader, writer), Forked::Child)) => {
            drop(reader);
            serve(Ready(Some(writer)))
        }
        Err(errno) => {
            log::error!("cannot go into the background (fork): {}", describe(errno));
            1
        }
    }
}

/// The parent's part.
fn wait(reader: OwnedFd, child: Pid, probe: Option<PathBuf>) -> u8 {
    let mut word = Vec::new();
    let told = std::fs::File::from(reader).read_to_end(&mut word);
    if !(told.is_ok() && word == b"R") {
        return status_of(child);
    }
    let Some(path) = probe else { return 0 };
    let (sender, answer) = mpsc::channel();
    let question = path.clone();
    std::thread::spawn(move || sender.send(rustix::fs::stat(question).map(drop)));
    let problem = match answer.recv_timeout(FIRST_ANSWER) {
        // This user may not look: the daemon did its part.
        Ok(Ok(()) | Err(Errno::ACCESS | Errno::PERM)) => return 0,
        Ok(Err(errno)) => describe(errno),
        Err(_) => format!("no answer in {} seconds", FIRST_ANSWER.as_secs()),
    };
    log::error!("the union on {path:?} does not answer: {problem}");
    // SIGTERM lets it unmount. A daemon that hangs would not hear it, and its end frees the thread that waits above.
    let _ = kill_process(child, Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    let _ = kill_process(child, Signal::KILL);
    exit_now(1)
}

/// Waits for a child that did not get ready.
fn status_of(child: Pid) -> u8 {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            Ok(Some((_, status))) => {
                if let Some(signal) = status.terminating_signal() {
                    log::error!("the daemon died while starting (signal {signal})");
                }
                let code = status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                return code.max(1);
            }
            Ok(None) | Err(_) => {
                log::error!("the daemon died while starting");
                return 1;
            }
        }
    }
}
