//! Ending and splitting processes.

/// Ends the process at once, as SIGKILL would: no destructor, no `atexit`, no flushed buffer. See _exit(2).
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes a plain integer and does not return.
    unsafe { libc::_exit(status) }
}

/// Closes a copy of `fd`, for the error that close(2) may report.
///
/// # Errors
/// Those of dup(2) and close(2); `EINTR` is not one, the descriptor is closed all the same.
pub fn close_copy(fd: &std::os::fd::OwnedFd) -> Result<(), rustix::io::Errno> {
    use std::os::fd::IntoRawFd;
    let copy = rustix::io::fcntl_dupfd_cloexec(fd, 0)?.into_raw_fd();
    // SAFETY: the descriptor was made here and is closed once, here.
    match super::check(unsafe { libc::close(copy) }.into()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
