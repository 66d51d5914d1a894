//! Reading the names of one real directory.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RawDir};

use crate::union::branch::real::RealDir;
use crate::union::error::Result;

/// Calls `each` with name, type and inode number of every entry of `dir` but `.` and `..`. The type may be unknown.
///
/// # Errors
/// Those of openat(2) and getdents(2), and what `each` returns.
pub fn list(dir: &Arc<RealDir>, mut each: impl FnMut(&[u8], FileType, u64) -> Result<()>) -> Result<()> {
    if !dir.is_real() {
        return Ok(());
    }
    list_fd(dir.fd()?.as_fd(), &mut each)
}

/// What is done with each entry of a listing: name, type, inode number.
pub type EachEntry<'a> = dyn FnMut(&[u8], FileType, u64) -> Result<()> + 'a;

/// As `list`, for the directory behind a descriptor.
pub fn list_fd(dir: impl AsFd, each: &mut EachEntry<'_>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(32768);
    let mut entries = RawDir::new(open, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name, entry.file_type(), entry.ino())?;
        }
    }
    Ok(())
}
