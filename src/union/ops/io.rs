//! Data of open files: what pread(2), pwrite(2) and kin do, on the real file that the node has now.

use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use crate::union::engine::Union;
use crate::union::error::{Errno, Result};
use crate::union::fault;
use crate::union::types::{Caller, HandleId};

/// SEEK_DATA and SEEK_HOLE of lseek(2).
const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;

impl Union {
    fn file_fd(&self, handle: HandleId) -> Result<Arc<OwnedFd>> {
        self.handles.get(handle)?.fd()
    }

    /// Reads at `offset` until the buffer is full or the file ends; returns the number of bytes.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn read(&self, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let fd = self.file_fd(handle)?;
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&fd, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                // What was read is an answer; the error comes with the next request.
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Writes at `offset`; returns the number of bytes.
    ///
    /// # Errors
    /// Those of pwrite(2); if part of the data was written, that is the answer.
    pub fn write(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<usize> {
        fault::writable()?;
        let fd = self.file_fd(handle)?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&fd, &data[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// What close(2) may still have to tell: errors that the filesystem reports at close (NFS, quota).
    ///
    /// # Errors
    /// Those of close(2).
    pub fn flush(&self, handle: HandleId) -> Result<()> {
        let fd = self.file_fd(handle)?;
        crate::sys::process::close_copy(&fd)
    }

    /// As fsync(2), or fdatasync(2); nothing in a volatile union.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsync(&self, handle: HandleId, datasync: bool) -> Result<()> {
        if self.stack.upper.as_ref().is_some_and(|upper| upper.volatile) {
            return Ok(());
        }
        let file = self.handles.get(handle)?;
        let fd = if file.node.body.read().data_place().is_some() {
            // What can be lost are attributes: the data are a lower file's.
            Arc::new(file.node.with(|at| at.open(OFlags::RDONLY | OFlags::NONBLOCK))?)
        } else {
            file.fd()?
        };
        if datasync { rustix::fs::fdatasync(&fd) } else { rustix::fs::fsync(&fd) }
    }

    /// A user without CAP_FSETID is about to change the file: it loses its set-id bits.
    ///
    /// # Errors
    /// Those of chmod(2).
    pub fn before_change(&self, handle: HandleId, caller: &Caller) -> Result<()> {
        if caller.uid == 0 {
            return Ok(());
        }
        let handle = self.handles.get(handle)?;
        self.drop_set_id(&handle.node, caller)
    }

    /// As fallocate(2), in all its modes.
    ///
    /// # Errors
    /// Those of fallocate(2).
    pub fn fallocate(&self, handle: HandleId, mode: c_int, offset: u64, length: u64) -> Result<()> {
        fault::writable()?;
        let fd = self.file_fd(handle)?;
        rustix::fs::fallocate(&fd, FallocateFlags::from_bits_retain(mode.cast_unsigned()), offset, length)
    }

    /// SEEK_DATA and SEEK_HOLE of lseek(2); the kernel does the rest itself.
    ///
    /// # Errors
    /// `ENXIO` beyond the last data, `EINVAL` for another `whence`.
    pub fn lseek(&self, handle: HandleId, offset: i64, whence: c_int) -> Result<i64> {
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let from = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let found = rustix::fs::seek(self.file_fd(handle)?, from)?;
        i64::try_from(found).map_err(|_| Errno::OVERFLOW)
    }

    /// As copy_file_range(2).
    ///
    /// # Errors
    /// Those of copy_file_range(2).
    pub fn copy_file_range(
        &self,
        (from, mut from_offset): (HandleId, u64),
        (to, mut to_offset): (HandleId, u64),
        length: u64,
    ) -> Result<usize> {
        fault::writable()?;
        let (source, target) = (self.file_fd(from)?, self.file_fd(to)?);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        rustix::fs::copy_file_range(&source, Some(&mut from_offset), &target, Some(&mut to_offset), length)
    }
}
