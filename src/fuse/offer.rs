//! What the kernel offers at the start of a connection, and what of it is taken.

use fuser::{InitFlags, KernelConfig};

use crate::fuse::reply::Settings;

/// The largest request of data that the kernel may send or ask for, in bytes; it has no larger ones.
const MAX_DATA: u32 = 1 << 20;

/// A union can still be a branch of overlayfs, which counts how deep filesystems lie on each other.
const STACK_DEPTH: u32 = 1;

/// Asked for where the kernel offers it.
///
/// Left out on purpose: locks (fuser cannot tell flock from POSIX locks, the kernel's own are right on one machine);
/// WRITEBACK_CACHE (excludes passthrough); SETXATTR_EXT (fuser 0.18 panics on it).
const WANTED: InitFlags = InitFlags::FUSE_PARALLEL_DIROPS
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

/// What was agreed on, as far as answers depend on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// The kernel takes files from the daemon.
    pub passthrough: bool,
    /// It will not ask for directories to be opened, if it is told so once.
    pub no_opendir: bool,
    /// It can be told to look a name up again without taking off what is mounted there.
    pub expires: bool,
}

/// Takes what is wanted of the kernel's offer.
pub(super) fn accept(config: &mut KernelConfig, settings: &Settings) -> Agreed {
    let mut wanted = WANTED;
    wanted.set(InitFlags::FUSE_POSIX_ACL, settings.acl);
    // Without it a shared map of a file opened for direct I/O is refused.
    wanted.set(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP, settings.direct_io);
    let wanted = wanted & config.capabilities();
    if let Err(missing) = config.add_capabilities(wanted) {
        log::warn!("the kernel offers {missing:?} and refuses it");
    }
    if let Err(nearest) = config.set_max_write(MAX_DATA) {
        log::warn!("writes of {MAX_DATA} bytes are refused; {nearest} would do");
    }
    let passthrough = settings.passthrough
        && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(STACK_DEPTH).is_ok();
    Agreed {
        passthrough,
        no_opendir: wanted.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        expires: config.capabilities().contains(InitFlags::FUSE_HAS_EXPIRE_ONLY),
    }
}
