//! One component of a path, checked once so that nobody has to check it again.
//!
//! Invariant: a `Name` is 1 to 255 bytes, holds neither `/` nor NUL, and is neither `.` nor `..`; so
//! `*at(dirfd, name)` can never leave the directory it is given.
//!
//! Also the names that no union has, because branches keep marks and private data under them (`Name::is_reserved`).

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;

use crate::union::error::{Errno, Result};

/// The longest name a union has, in bytes, as NAME_MAX on Linux.
pub const NAME_MAX: usize = 255;

/// A valid name of a directory entry; stored with its terminating NUL so that a syscall needs no copy.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Checks `bytes` and makes a name of them.
    ///
    /// # Errors
    /// `ENAMETOOLONG` above 255 bytes; `EINVAL` for what is not a name at all (empty, `.`, `..`, with `/` or NUL).
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
        if bytes.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Errno::INVAL);
        }
        let mut owned = Vec::with_capacity(bytes.len() + 1);
        owned.extend_from_slice(bytes);
        owned.push(0);
        Ok(Self(owned.into_boxed_slice()))
    }

    /// The name without its NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0[..self.0.len() - 1]
    }

    /// The name as the standard library likes it.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(self.as_bytes())
    }

    /// The name as a syscall likes it.
    pub fn as_c_str(&self) -> &CStr {
        // The constructor let in no NUL but the last byte, so this cannot fail; an empty string is refused by the kernel.
        CStr::from_bytes_with_nul(&self.0).unwrap_or(c"")
    }

    /// Whether no union shows this name: marks and private data of branches live under such names.
    ///
    /// `.wh.*` anywhere (aufs, OCI), and at the root of a branch the directories of unionfs-fuse and of cowfs. They are
    /// reserved whatever format the branches use: else a tenant could leave a name that another format, or another
    /// union filesystem, takes for a mark at the next mount.
    pub fn is_reserved(&self, in_root: bool) -> bool {
        let name = self.as_bytes();
        name.starts_with(b".wh.") || (in_root && matches!(name, b".unionfs" | b".unionfs-fuse" | b".cowfs"))
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_os_str().fmt(f)
    }
}

/// A path from some root as redirects spell it: a slash before each name.
pub fn spelled(path: &[Name]) -> Vec<u8> {
    path.iter().flat_map(|name| [b"/", name.as_bytes()].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_name() {
        for (bytes, result) in [
            (&b"a"[..], Ok(())),
            (b"...", Ok(())),
            (b"\xff\xfe", Ok(())),
            (&[b'x'; 255], Ok(())),
            (&[b'x'; 256], Err(Errno::NAMETOOLONG)),
            (b"", Err(Errno::INVAL)),
            (b".", Err(Errno::INVAL)),
            (b"..", Err(Errno::INVAL)),
            (b"a/b", Err(Errno::INVAL)),
            (b"a\0", Err(Errno::INVAL)),
        ] {
            assert_eq!(Name::new(bytes).map(|n| assert_eq!(n.as_bytes(), bytes)), result, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_reserved() {
        for (name, root, inner) in [
            (".wh.x", true, true),
            (".wh.", true, true),
            (".wh", false, false),
            (".unionfs", true, false),
            (".unionfs-fuse", true, false),
            (".cowfs", true, false),
            ("cowfs", false, false),
        ] {
            let n = Name::new(name).unwrap();
            assert_eq!((n.is_reserved(true), n.is_reserved(false)), (root, inner), "{name}");
        }
    }
}
