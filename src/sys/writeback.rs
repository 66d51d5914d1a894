//! Writing dirty pages back before anybody waits for it.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Lets the disk begin to write `length` bytes of `file` from `start`; waits for none of them. Only a hint: what fails is told by
/// the fsync(2) that has to follow. sync_file_range(2).
pub fn begin(file: BorrowedFd<'_>, start: u64, length: u64) {
    let (Ok(start), Ok(length)) = (i64::try_from(start), i64::try_from(length)) else { return };
    // SAFETY: takes numbers only; the descriptor is borrowed for the length of the call.
    unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
}
