//! File handles: a name for an object that survives renames and remounts. name_to_handle_at(2), open_by_handle_at(2).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

/// The longest handle the kernel makes, in bytes.
pub const MAX_HANDLE: usize = 128;

/// A handle as the filesystem made it; opaque but for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// The filesystem's own type of handle.
    pub kind: i32,
    /// The handle.
    pub bytes: Vec<u8>,
}

#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE],
}

/// The handle of `name` in `dir`; an empty name with `AT_EMPTY_PATH` means `dir` itself.
///
/// # Errors
/// `EOPNOTSUPP` where the filesystem has no handles; those of name_to_handle_at(2).
pub fn of(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<FileHandle, Errno> {
    let mut raw = Raw { bytes: MAX_HANDLE as u32, kind: 0, handle: [0; MAX_HANDLE] };
    let mut mount_id: libc::c_int = 0;
    // AT_SYMLINK_NOFOLLOW is this call's default, and refused as a flag.
    let flags = flags.difference(AtFlags::SYMLINK_NOFOLLOW);
    // SAFETY: `raw` has room for as many bytes as it says; both pointers are valid for the call.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw mut raw,
            &raw mut mount_id,
            flags.bits(),
        )
    })?;
    let length = (raw.bytes as usize).min(MAX_HANDLE);
    Ok(FileHandle { kind: raw.kind, bytes: raw.handle[..length].to_vec() })
}

/// Opens what `handle` means on the filesystem that `mount` lies on.
///
/// # Errors
/// `ESTALE` if the object is gone; `EPERM` without CAP_DAC_READ_SEARCH.
pub fn open(mount: BorrowedFd<'_>, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
    if handle.bytes.len() > MAX_HANDLE {
        return Err(Errno::INVAL);
    }
    let mut raw = Raw { bytes: handle.bytes.len() as u32, kind: handle.kind, handle: [0; MAX_HANDLE] };
    raw.handle[..handle.bytes.len()].copy_from_slice(&handle.bytes);
    let flags = flags | OFlags::CLOEXEC;
    // SAFETY: `raw` holds as many bytes as it says; the kernel only reads it.
    let fd = super::check(unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const raw, flags.bits() as libc::c_int)
    })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
