//! What the kernel offers at the start of a connection, and what of it is taken.

use fuser::{InitFlags, KernelConfig};

use crate::fuse::reply::Settings;
use crate::fuse::wanted::{MAX_DATA, STACK_DEPTH, WANTED};

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
