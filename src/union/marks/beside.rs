//! Names of marks that are kept beside a name: `.wh.NAME` and `NAME_HIDDEN~`.
//!
//! Invariant: every name of up to 255 bytes has a mark name of at most 255 bytes. One that is too long for prefix and
//! name is marked by its digest instead; other programs see that as the whiteout of a name that does not exist.

use sha2::{Digest, Sha256};

use crate::union::error::Result;
use crate::union::name::{NAME_MAX, Name};

/// How a format spells its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spelling {
    prefix: &'static str,
    suffix: &'static str,
}

/// aufs and OCI.
pub const WH: Spelling = Spelling { prefix: ".wh.", suffix: "" };
/// unionfs-fuse.
pub const HIDDEN: Spelling = Spelling { prefix: "", suffix: "_HIDDEN~" };

/// Begins the mark of a name that is too long for its own; the digest follows, 64 hexadecimal digits.
const LONG: &str = ".cowfs-long.";
/// Begins the mirrored name of a directory whose own would be a mark; the digest follows.
const MIRRORED: &str = ".cowfs-dir.";

/// What a mark says.
#[derive(Debug, PartialEq, Eq)]
pub enum Marked<'a> {
    /// This name is hidden.
    Name(&'a [u8]),
    /// The name whose `Spelling::mark` this is, is hidden.
    Long,
}

impl Spelling {
    /// The name of the mark that hides `name`.
    ///
    /// # Errors
    /// None: the result always fits.
    pub fn mark(self, name: &Name) -> Result<Name> {
        let mut mark = self.prefix.as_bytes().to_vec();
        if name.as_bytes().len() + self.prefix.len() + self.suffix.len() <= NAME_MAX {
            mark.extend_from_slice(name.as_bytes());
        } else {
            mark.extend_from_slice(LONG.as_bytes());
            mark.extend_from_slice(digest(name).as_bytes());
        }
        mark.extend_from_slice(self.suffix.as_bytes());
        Name::new(mark)
    }

    /// What the entry `entry` of a directory that holds marks says; `None` if it is not a mark.
    pub fn read(self, entry: &[u8]) -> Option<Marked<'_>> {
        let name = entry.strip_prefix(self.prefix.as_bytes())?.strip_suffix(self.suffix.as_bytes())?;
        if name.is_empty() || name == b"." || name == b".." || (self == WH && name.starts_with(b".wh.")) {
            return None;
        }
        if name.len() == LONG.len() + 64 && name.starts_with(LONG.as_bytes()) {
            return Some(Marked::Long);
        }
        Some(Marked::Name(name))
    }
}

/// What the directory `name` is called in a tree of marks. One called `x_HIDDEN~` would be the whiteout of `x` there.
///
/// # Errors
/// None: the result always fits.
pub fn mirrored(name: &Name) -> Result<Name> {
    if HIDDEN.read(name.as_bytes()).is_none() {
        return Ok(name.clone());
    }
    Name::new(format!("{MIRRORED}{}", digest(name)))
}

fn digest(name: &Name) -> String {
    Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_mark() {
        for spelling in [WH, HIDDEN] {
            for length in [1, 241, 242, 247, 248, 251, 252, 255] {
                let name = Name::new(vec![b'n'; length]).unwrap();
                let mark = spelling.mark(&name).unwrap();
                match spelling.read(mark.as_bytes()) {
                    Some(Marked::Name(read)) => assert_eq!(read, name.as_bytes()),
                    Some(Marked::Long) => assert!(length > 246, "{length}"),
                    None => panic!("{mark:?} is not read"),
                }
            }
        }
    }

    #[test]
    fn no_mirrored_directory_is_a_mark() {
        for (name, same) in [("d", true), ("_HIDDEN~", true), ("d_HIDDEN~", false), ("d_HIDDEN~_HIDDEN~", false)] {
            let name = Name::new(name).unwrap();
            let mirrored = mirrored(&name).unwrap();
            assert_eq!(HIDDEN.read(mirrored.as_bytes()), None, "{name:?}");
            assert_eq!(mirrored == name, same, "{name:?}");
        }
    }

    #[test]
    fn what_is_no_mark() {
        for (spelling, entry) in [
            (WH, &b"x"[..]),
            (WH, b".wh."),
            (WH, b".wh.."),
            (WH, b".wh..."),
            (WH, b".wh..wh..opq"),
            (WH, b".wh..wh.aufs"),
            (HIDDEN, b"x"),
            (HIDDEN, b"_HIDDEN~"),
        ] {
            assert_eq!(spelling.read(entry), None, "{entry:?}");
        }
        assert_eq!(HIDDEN.read(b"x_HIDDEN~_HIDDEN~"), Some(Marked::Name(b"x_HIDDEN~")));
    }
}
