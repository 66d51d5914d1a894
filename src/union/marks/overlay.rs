//! The marks of the kernel's overlayfs: a character device 0:0 in a name's place, and extended attributes.
//!
//! The names and values are a format on disk (Documentation/filesystems/overlayfs.rst): changing one breaks every
//! branch written before.

use std::ffi::{CStr, CString};

use rustix::fs::FileType;

use crate::union::branch::{At, Stat};
use crate::union::error::{Errno, Result};

/// The attributes' names under one prefix: `trusted.overlay.` or, where that cannot be written, `user.overlay.`.
#[derive(Debug)]
pub struct Keys {
    /// The prefix is `user.overlay.`.
    pub user: bool,
    /// On a file: it holds attributes only, the data are a lower file's.
    pub metacopy: CString,
    /// On a directory: `y` hides what lies below, `x` says that attributes mark whiteouts in it.
    pub opaque: CString,
    /// On a directory: where its lower parts are found.
    pub redirect: CString,
    /// On anything copied up: the file handle of the lower object.
    pub origin: CString,
    /// On anything copied up from a filesystem without handles: device tag and inode number, ours.
    pub origin_number: CString,
    /// On a directory: it holds objects that show another inode number than their own.
    pub impure: CString,
    /// On an empty regular file: a whiteout.
    pub whiteout: CString,
    /// On a copy with several names, ours: its name in the index, and how many more names the union shows than the inode
    /// has.
    pub index: CString,
}

impl Keys {
    /// The keys under `user.overlay.` or `trusted.overlay.`.
    pub fn new(user: bool) -> Self {
        let prefix = if user { "user.overlay." } else { "trusted.overlay." };
        let key = |name: &str| CString::new(format!("{prefix}{name}")).unwrap_or_default();
        Self {
            user,
            metacopy: key("metacopy"),
            opaque: key("opaque"),
            redirect: key("redirect"),
            origin: key("origin"),
            origin_number: key("cowfs.origin"),
            impure: key("impure"),
            whiteout: key("whiteout"),
            index: key("cowfs.index"),
        }
    }

    /// Whether redirects may be followed: never from attributes that whoever owns a file can set.
    pub fn trusted(&self) -> bool {
        !self.user
    }
}

/// Whether no union shows or takes the attribute `key`: it is, or would be, a mark.
pub fn is_private(key: &[u8]) -> bool {
    [&b"trusted.overlay."[..], b"user.overlay.", b"user.fuseoverlayfs.", b"trusted.cowfs."]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

/// The number of a whiteout device.
const WHITEOUT: (u32, u32) = (0, 0);

/// The number that a branch keeps for a character device 0:0 of the union, where that would be a whiteout.
///
/// No driver has it (major 0), every filesystem can hold it (8 bits), and unions that know nothing of this show a device
/// just as dead.
const KEPT: (u32, u32) = (0, 255);

/// Whether `stat` is that of a whiteout device.
pub fn is_device(stat: &Stat) -> bool {
    stat.kind().is_char_device() && stat.rdev == WHITEOUT
}

/// The number with which a branch keeps the union's device `rdev`.
///
/// # Errors
/// `EPERM` for the number that stands for another.
pub fn kept_number(kind: FileType, rdev: (u32, u32)) -> Result<(u32, u32)> {
    match rdev {
        WHITEOUT if kind.is_char_device() => Ok(KEPT),
        KEPT if kind.is_char_device() => Err(Errno::PERM),
        other => Ok(other),
    }
}

/// The number that the union shows of a branch's object.
pub fn shown_number(stat: &Stat) -> (u32, u32) {
    if stat.kind().is_char_device() && stat.rdev == KEPT { WHITEOUT } else { stat.rdev }
}

/// Whether the empty regular file `at` carries the whiteout attribute.
pub fn has_whiteout_attribute(keys: &Keys, at: &At, stat: &Stat) -> Result<bool> {
    Ok(stat.kind().is_file() && stat.size == 0 && at.xattr(&keys.whiteout)?.is_some())
}

/// What the attributes of a directory say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirMarks {
    /// What lies below is not part of it.
    pub opaque: bool,
    /// Whiteouts in it may be attributes.
    pub xwhiteouts: bool,
    /// Its lower parts lie there: a path from the root of the union (with `/`), or a name beside its own.
    pub redirect: Option<Vec<u8>>,
}

/// Reads the marks of the directory `at`.
///
/// # Errors
/// Those of listxattr(2) and getxattr(2).
pub fn dir_marks(keys: &Keys, at: &At) -> Result<DirMarks> {
    let names = at.xattr_names()?;
    let has = |key: &CStr| names.split(|&b| b == 0).any(|name| name == key.to_bytes());
    let mut marks = DirMarks::default();
    if has(&keys.opaque) {
        match at.xattr(&keys.opaque) {
            // The name can be seen, the value cannot be read (see `At::mark`); cowfs writes no other there.
            Err(Errno::ACCESS) => marks.opaque = true,
            value => match value?.as_deref() {
                Some(b"y") => marks.opaque = true,
                Some(b"x") => marks.xwhiteouts = true,
                _ => {}
            },
        }
    }
    if keys.trusted() && has(&keys.redirect) {
        marks.redirect = at.xattr(&keys.redirect)?.filter(|path| !path.is_empty());
    }
    Ok(marks)
}
