//! Splitting and ending processes, and what a process inherits: descriptors, signal dispositions.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

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

/// Which of the two processes one is after `fork`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The one that called; the new one has this id.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Splits the process in two, as fork(2).
///
/// # Errors
/// As fork(2); `EBUSY` if this process has a second thread: its locks would stay locked in the child for ever.
pub fn fork() -> Result<Forked, Errno> {
    if threads() > 1 {
        return Err(Errno::BUSY);
    }
    // SAFETY: there is one thread (checked above), so no lock is held by somebody else and the child may go on with
    // all that the parent had.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        id => Pid::from_raw(id).filter(|_| id > 0).map(Forked::Parent).ok_or_else(last_errno),
    }
}

/// How many threads this process has; 1 where /proc cannot tell.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Closes every descriptor from 3 up, but for those in `keep`.
///
/// For a process at its beginning, when it owns nothing yet, or one that will never return to what it owned.
pub fn close_others(keep: &[RawFd]) {
    let mut kept: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).filter(|&fd| fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        close_range(first, fd - 1);
        first = fd + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    if first <= last {
        // SAFETY: no memory is passed; what the descriptors were owned by is not used again (`close_others` says so).
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Takes over a descriptor that the caller of the program left open under a number that it passed on.
///
/// # Errors
/// `EBADF` if nothing is open there, or if it is one of 0 to 2.
pub fn adopt(number: RawFd) -> Result<OwnedFd, Errno> {
    if number <= 2 {
        return Err(Errno::BADF);
    }
    // SAFETY: fcntl with F_SETFD takes a number and a flag and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(last_errno());
    }
    // SAFETY: the descriptor is open (just checked), and it came in from outside, so nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets an open descriptor, whose owner is elsewhere and uses it on, stand for what `with` stands for, in one step; see
/// dup3(2).
///
/// # Errors
/// As dup3(2).
pub fn replace(number: RawFd, with: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no memory is passed. The number stays open, and whoever owns it goes on with another file.
    super::check(unsafe { libc::dup3(with.as_raw_fd(), number, libc::O_CLOEXEC) }.into()).map(drop)
}

/// Puts signals back to what a program may count on: none blocked, children waited for.
///
/// Both are inherited over execve(2), and a caller that blocks SIGTERM or ignores SIGCHLD would make the daemon deaf.
pub fn reset_signals() {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills in the set it is given before sigprocmask reads it; SIG_DFL is a valid disposition.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// Lets ended children disappear without being waited for. For a process 1, which inherits strangers' children.
pub fn ignore_children() {
    // SAFETY: SIG_IGN is a valid disposition; no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Makes this process deaf to the signals that ask a program to end; SIGKILL stays.
pub fn ignore_termination() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: SIG_IGN is a valid disposition; no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The errno that the last call of libc left behind.
pub(super) fn last_errno() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Lets the allocator have so many arenas and no more. With a bound given it need not ask how many processors there are when
/// the ninth thread comes, which it does by paths below /sys and /proc.
pub fn bound_arenas(most: libc::c_int) {
    // SAFETY: mallopt takes two integers and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, most);
    }
}

/// Gives memory that the allocator has no use for back to the kernel, as malloc_trim(3).
pub fn give_memory_back() {
    // SAFETY: malloc_trim takes an integer and may be called at any time, from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
