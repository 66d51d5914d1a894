//! Ending and splitting processes.

/// Ends the process at once, as SIGKILL would: no destructor, no `atexit`, no flushed buffer. See _exit(2).
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes a plain integer and does not return.
    unsafe { libc::_exit(status) }
}
