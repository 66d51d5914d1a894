//! The attributes of a copy-up: owner, extended attributes (ACLs and capabilities among them), mode, times; in that
//! order, because each step may undo a later one (chown drops capabilities and set-id bits, all of them move times).

use std::ffi::{CStr, CString};

use crate::sys::creds::privileged;
use crate::union::branch::aside::is_key;
use crate::union::branch::{Aside, At, Stat};
use crate::union::error::{Errno, Result};
use crate::union::marks::overlay::is_private;
use crate::union::types::SetTime;

/// The bits of a mode that let a program act for its file's owner or group.
const SET_ID: u32 = 0o6000;

/// File capabilities: the one attribute that a write takes away, whoever writes.
pub const CAPABILITY: &CStr = c"security.capability";

/// Gives `to` the attributes of `from`, whose stat is `was`, but for the times. Marks are not copied: they belong to a
/// branch.
///
/// # Errors
/// Those of chown(2), setxattr(2) and chmod(2).
pub fn copy(from: &At, was: &Stat, to: &At) -> Result<()> {
    let is = to.stat()?;
    let mut mode = was.mode;
    if (is.uid, is.gid) != (was.uid, was.gid) {
        match to.chown(Some(was.uid), Some(was.gid)) {
            // An ordinary user's daemon cannot give files away: they become its own, for they are that user's alone to
            // see; but then they must not act for whom they were.
            Err(Errno::PERM) if !privileged() => {
                log::debug!("{to:?}: cannot belong to {}:{}", was.uid, was.gid);
                mode &= !SET_ID;
            }
            done => done?,
        }
    }
    copy_xattrs(from, to, |key| !is_private(key))?;
    if !was.kind().is_symlink() {
        to.chmod(mode)?;
    }
    Ok(())
}

/// As `copy`, where the upper keeps owner and mode `aside`: `shown` are those of `from`, whose own stat is `own`. ACLs, which would be about the inode's owner, are left out.
///
/// # Errors
/// Those of setxattr(2) and chmod(2).
pub fn copy_aside(from: &At, (own, shown): (&Stat, &Stat), to: &At, aside: Aside) -> Result<()> {
    copy_xattrs(from, to, |key| !is_private(key) && !is_key(key) && !key.starts_with(ACL))?;
    aside.begin(to, own.kind(), shown)
}

/// Gives `to` the times of `was`.
///
/// # Errors
/// Those of utimensat(2).
pub fn copy_times(was: &Stat, to: &At) -> Result<()> {
    to.set_times(Some(SetTime::At(was.atime)), Some(SetTime::At(was.mtime)))
}

/// How the names of POSIX ACLs begin.
pub const ACL: &[u8] = b"system.posix_acl_";

fn copy_xattrs(from: &At, to: &At, counts: impl Fn(&[u8]) -> bool) -> Result<()> {
    for key in from.xattr_names()?.split(|&b| b == 0).filter(|key| !key.is_empty() && counts(key)) {
        let key = CString::new(key).map_err(|_| Errno::INVAL)?;
        let Some(value) = from.xattr(&key)? else { continue };
        match to.set_xattr(&key, &value, 0) {
            // A filesystem without room for this kind. Rights must not get lost with it; anything else may.
            Err(Errno::OPNOTSUPP) if !is_right(key.to_bytes()) => {
                log::warn!("{to:?}: the upper cannot hold the extended attribute {key:?}; it was not copied");
            }
            other => other?,
        }
    }
    Ok(())
}

fn is_right(key: &[u8]) -> bool {
    key.starts_with(b"security.") || key.starts_with(ACL)
}
