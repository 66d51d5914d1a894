//! What is asked of every kernel that offers it.
//!
//! Invariant: plain values, of nothing in this package: `bench/hollow` is built with this file too, so that it gets the requests that cowfs gets.
//! What depends on how a union is mounted is `offer`'s.

use fuser::InitFlags;

/// The largest request of data that the kernel may send or ask for, in bytes; it has no larger ones.
pub(super) const MAX_DATA: u32 = 1 << 20;

/// A union can still be a branch of overlayfs, which counts how deep filesystems lie on each other.
pub(super) const STACK_DEPTH: u32 = 1;

/// Asked for where the kernel offers it.
///
/// Left out on purpose: locks (fuser cannot tell flock from POSIX locks, the kernel's own are right on one machine);
/// WRITEBACK_CACHE (excludes passthrough); SETXATTR_EXT (fuser 0.18 panics on it).
pub(super) const WANTED: InitFlags = InitFlags::FUSE_PARALLEL_DIROPS
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_HAS_IOCTL_DIR)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO);
