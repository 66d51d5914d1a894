//! Acting as the caller: file system user, group and umask of one thread, for one system call.
//!
//! All three belong to the thread: setfsuid(2) and setfsgid(2) do by themselves, the umask after unshare(CLONE_FS).
//! The capabilities that setfsuid(2) takes away come back at once, since the kernel has already checked what the
//! caller may do (`default_permissions`): what is wanted here is the ownership of the new object, not another check.
//!
//! Invariant: an `Assumed` puts everything back when it is dropped, so no request runs with another's identity.

use std::cell::Cell;
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

thread_local! {
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this process may take other users' identities.
pub fn privileged() -> bool {
    static PRIVILEGED: OnceLock<bool> = OnceLock::new();
    *PRIVILEGED.get_or_init(|| rustix::process::geteuid().is_root())
}

fn full() -> Option<CapabilitySets> {
    static FULL: OnceLock<Option<CapabilitySets>> = OnceLock::new();
    *FULL.get_or_init(|| {
        let mut sets = capabilities(None).ok()?;
        sets.effective = sets.permitted;
        Some(sets)
    })
}

/// Gives this thread a umask (and root and current directory) of its own.
fn own_umask() -> Result<(), Errno> {
    if OWN_UMASK.get() {
        return Ok(());
    }
    // SAFETY: unshare(CLONE_FS) only detaches this thread's root, current directory and umask; memory is not touched.
    super::check(unsafe { libc::unshare(libc::CLONE_FS) }.into())?;
    OWN_UMASK.set(true);
    Ok(())
}

/// While it lives, this thread creates files as the caller would.
#[derive(Debug)]
pub struct Assumed {
    uid: bool,
    gid: bool,
    umask: Mode,
}

impl Assumed {
    /// Takes the identity of user `uid`, group `gid` with `umask`; without privilege only the umask.
    ///
    /// # Errors
    /// `ENOMEM` if the thread cannot have a umask of its own.
    pub fn new(uid: u32, gid: u32, umask: u32) -> Result<Self, Errno> {
        own_umask()?;
        let mut assumed = Self { uid: false, gid: false, umask: rustix::process::umask(Mode::from_raw_mode(umask)) };
        if privileged() {
            if gid != 0 {
                // SAFETY: setfsgid takes a plain integer and changes this thread only.
                unsafe { libc::setfsgid(gid) };
                assumed.gid = true;
            }
            if uid != 0 {
                // SAFETY: as above.
                unsafe { libc::setfsuid(uid) };
                assumed.uid = true;
                if let Some(full) = full() {
                    set_capabilities(None, full)?;
                }
            }
        }
        Ok(assumed)
    }
}

impl Drop for Assumed {
    fn drop(&mut self) {
        if self.uid {
            // SAFETY: back to root, whose file system capabilities the kernel then restores.
            unsafe { libc::setfsuid(0) };
        }
        if self.gid {
            // SAFETY: as above.
            unsafe { libc::setfsgid(0) };
        }
        rustix::process::umask(self.umask);
    }
}

/// Whether this process may set `trusted.*` attributes: CAP_SYS_ADMIN in the initial user namespace. Root of another
/// namespace has the capability but not the right; the upper's probe finds that out, this is for read-only unions.
pub fn may_use_trusted_xattr() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}
