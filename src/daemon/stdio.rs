//! Descriptors 0 to 2 of a daemon: on /dev/null, opened while there still is one.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

/// What 0 to 2 will be.
#[derive(Debug)]
pub(crate) struct Null(Option<OwnedFd>);

impl Null {
    /// Opens /dev/null; where there is none, a descriptor that can neither be read nor written serves.
    pub(crate) fn open() -> Self {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let null = null.or_else(|_| rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()));
        Self(null.ok())
    }

    /// Lets go of what the caller of the program gave us.
    pub(crate) fn put(&self) {
        if let Some(null) = &self.0 {
            // dup2(2) onto an open number cannot fail but by EBUSY, which closes nothing.
            let _ = rustix::stdio::dup2_stdin(null);
            let _ = rustix::stdio::dup2_stdout(null);
            let _ = rustix::stdio::dup2_stderr(null);
        }
    }
}
