//! Layers whose owners and modes stand in an attribute instead of on the files, where nobody has said that attributes count:
//! refused, because what the files themselves say is not what their maker meant, and would let in others.
//!
//! podman's `force_mask` makes such layers, fuse-overlayfs reads and writes them; both put the attribute on the layer's root,
//! too, and podman says `xattr_permissions=2`. Reading them by themselves would let whoever owns a file of another upper
//! say whose it is: there, the attributes are like any others, and everybody's to set.

use std::sync::Arc;

use crate::daemon::resolve::{Branch, Checked};
use crate::union::branch::At;
use crate::union::branch::aside::{keys_of, option_for};

/// Looks at the roots of all branches, as layers of a container engine.
///
/// # Errors
/// A line that quotes the layer and the attribute.
pub(crate) fn refuse(branches: &[Branch]) -> Checked<()> {
    for branch in branches {
        let root = branch.place.fd.try_clone().map_err(|error| format!("{:?}: {error}", branch.place.label))?;
        // Where it cannot be read nobody else reads it: there are no such attributes.
        if let Some(key) = keys_of(&At::Dir(Arc::new(root))).unwrap_or_default().first() {
            return Err(format!(
                "branch {:?} keeps owners and modes in the attribute {key:?} (force_mask): mount it with \
                 xattr_permissions={}",
                branch.place.label,
                option_for(key)
            ));
        }
    }
    Ok(())
}
