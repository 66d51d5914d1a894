//! Layers whose owners and modes stand in an attribute instead of on the files: refused, because what the files themselves say
//! is not what their maker meant, and would let in others.
//!
//! podman's `force_mask` makes such layers, fuse-overlayfs reads and writes them (`xattr_permissions=`); both put the
//! attribute on the layer's root, too.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::AtFlags;

use crate::daemon::resolve::{Branch, Checked};
use crate::sys::xattr;

const KEYS: [&CStr; 3] =
    [c"user.containers.override_stat", c"user.fuseoverlayfs.override_stat", c"security.fuseoverlayfs.override_stat"];

/// Looks at the roots of all branches, as layers of a container engine.
///
/// # Errors
/// A line that quotes the layer and the attribute.
pub(crate) fn refuse(branches: &[Branch]) -> Checked<()> {
    for branch in branches {
        // Where it cannot be read nobody else reads it: there are no such attributes.
        let has = |key: &&CStr| xattr::get(branch.place.fd.as_fd(), c".", key, &mut [], AtFlags::empty()).is_ok();
        if let Some(key) = KEYS.iter().find(|key| has(key)) {
            return Err(format!(
                "branch {:?} keeps owners and modes in the attribute {key:?} (force_mask, xattr_permissions=), which is \
                 not supported: make the layer anew without",
                branch.place.label
            ));
        }
    }
    Ok(())
}
