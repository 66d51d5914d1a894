//! The bytes of a copy-up: reflink, else a copy by the filesystem or its server, else read and write; holes stay holes.
//!
//! Not here: attributes (`meta`), which object goes where (`mod`).

use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;

use crate::sys::writeback;
use crate::union::error::{Errno, Result};
use crate::union::fault::step;

/// Bytes per call of copy_file_range(2): large enough to cost nothing, small enough to be interrupted by a full disk.
const RANGE: u64 = 16 << 20;
/// Bytes per read and write: few enough to stay in a processor's cache. The page cache takes pages that lie together for more, and
/// on a virtual machine those are the ones that the host has taken back, and gives again one by one.
const BUFFER: usize = 64 << 10;
/// Bytes that the disk is given at once while the next are copied.
const WINDOW: u64 = 16 << 20;

/// What is known of a copy.
#[derive(Clone, Copy)]
pub struct How {
    /// It is the whole file.
    pub whole: bool,
    /// A server might make it.
    pub remote: bool,
    /// It will be synced.
    pub synced: bool,
}

/// Copies the first `size` bytes of `from` into the empty file `to`.
///
/// # Errors
/// `ENOSPC`, `EDQUOT`, `EIO`; those of the calls named above.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64, how: How) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    if how.whole {
        step("reflink")?;
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => return Ok(()),
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC),
            // Any other refusal only says that this filesystem cannot share extents here.
            Err(_) => {}
        }
    }
    // First: a filesystem that sees a file grow puts aside more room than it will need (xfs).
    step("set size")?;
    rustix::fs::ftruncate(to, size)?;
    // A local filesystem that cannot share whole files has nothing better than splicing, which is slower than reading
    // and writing. A part of a file may still be shared.
    let by_filesystem = !how.whole || how.remote;
    let mut at = 0;
    while let Some((start, end)) = next_extent(from, at, size)? {
        let at_once = if by_filesystem { copy_range(from, to, start, end)? } else { start };
        read_and_write(from, to, at_once, end, how.synced)?;
        at = end;
    }
    Ok(())
}

/// The next range of `from` that holds data, at or after `at` and before `size`.
fn next_extent(from: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // No knowledge of holes: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(errno) => return Err(errno),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(size))))
}

/// Lets the filesystem copy. Returns the place from which on it will not.
fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64> {
    let mut at = start;
    while at < end {
        step("copy data")?;
        let (mut source, mut target) = (at, at);
        let length = usize::try_from((end - at).min(RANGE)).unwrap_or(BUFFER);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            // The file has become shorter under us, or its filesystem cannot do this and does not say so (FUSE, SMB):
            // reading tells.
            Ok(0) => return Ok(at),
            Ok(copied) => at += copied as u64,
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::BADF) => {
                return Ok(at);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(end)
}

/// Copies by hand; if the copy will be `synced`, the disk writes a window of it while the next is copied.
fn read_and_write(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64, synced: bool) -> Result<()> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(end - start).unwrap_or(BUFFER))];
    let (mut at, mut given) = (start, start);
    while at < end {
        step("write data")?;
        let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(BUFFER));
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut buffer[..wanted], at))?;
        if read == 0 {
            // The file has become shorter under us; what is gone reads as zeros, as in a truncated file grown again.
            return Ok(());
        }
        let mut done = 0;
        while done < read {
            let offset = at + done as u64;
            done += rustix::io::retry_on_intr(|| rustix::io::pwrite(to, &buffer[done..read], offset))?;
        }
        at += read as u64;
        if synced && at - given >= WINDOW {
            writeback::begin(to, given, at - given);
            given = at;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use super::How;

    const WHOLE: How = How { whole: true, remote: false, synced: true };

    #[test]
    fn holes_stay_holes() {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(&[7; 8192]).unwrap();
        from.seek(std::io::SeekFrom::Start(64 << 20)).unwrap();
        from.write_all(b"end").unwrap();
        let mut to = tempfile::tempfile().unwrap();
        let size = from.metadata().unwrap().len();
        super::copy(from.as_fd(), to.as_fd(), size, WHOLE).unwrap();
        assert_eq!(to.metadata().unwrap().len(), size);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&to.metadata().unwrap());
        assert!(blocks < 2048, "{blocks} blocks");
        let mut head = [0; 8193];
        to.rewind().unwrap();
        to.read_exact(&mut head).unwrap();
        assert_eq!((head[8191], head[8192]), (7, 0));
    }

    #[test]
    fn a_prefix_is_copied_to_the_byte() {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(b"0123456789").unwrap();
        let mut to = tempfile::tempfile().unwrap();
        super::copy(from.as_fd(), to.as_fd(), 4, How { whole: false, ..WHOLE }).unwrap();
        let mut text = String::new();
        to.rewind().unwrap();
        to.read_to_string(&mut text).unwrap();
        assert_eq!(text, "0123");
    }
}
