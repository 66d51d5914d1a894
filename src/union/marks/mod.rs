//! Marks: how a branch says that a name is deleted or that a directory hides what lies below it.
//!
//! `Reader` understands the marks of one branch, whatever formats may be found in it; `Writer` (in `write`) leaves
//! marks of one format in the upper. How a mark looks on disk is in `overlay` (kernel), `beside` (`.wh.NAME`,
//! `NAME_HIDDEN~`) and `mirror` (`.unionfs/`).
//!
//! Not here: what several branches together mean (`resolve`).

pub mod beside;
pub mod mirror;
pub mod origin;
pub mod overlay;
pub mod write;

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::FileType;

use crate::union::branch::list::{list, list_fd};
use crate::union::branch::{RealDir, Stat};
use crate::union::error::Result;
use crate::union::marks::beside::{HIDDEN, Marked, WH};
use crate::union::marks::mirror::Mirror;
use crate::union::marks::overlay::{DirMarks, Keys};
use crate::union::name::Name;

/// The file that makes the directory it lies in opaque (aufs, OCI).
pub(crate) const OPAQUE_FILE: &str = ".wh..wh..opq";

/// Which marks count in a branch.
pub struct Reader {
    /// Those of the kernel's overlayfs, under this prefix.
    pub overlay: Option<Arc<Keys>>,
    /// `.wh.` files.
    pub oci: bool,
    /// The trees of unionfs-fuse; a branch may hold both.
    pub mirrors: Vec<Arc<Mirror>>,
}

/// An entry of a branch's directory, marks understood.
#[derive(Debug)]
pub enum Listed<'a> {
    /// An object; its type may be unknown.
    Object(&'a [u8], FileType, u64),
    /// A mark: this name is hidden in the branches below.
    Hidden(&'a [u8]),
    /// A mark about a long name: the one whose mark this is.
    HiddenLong(&'a [u8]),
}

impl Reader {
    /// Whether the object `name` in `dir` is no object but stands for its absence.
    pub fn is_whiteout(&self, dir: &Arc<RealDir>, name: &Name, stat: &Stat) -> Result<bool> {
        let Some(keys) = &self.overlay else { return Ok(false) };
        if overlay::is_device(stat) {
            return Ok(true);
        }
        Ok(dir.xwhiteouts && overlay::has_whiteout_attribute(keys, &dir.at(name)?, stat)?)
    }

    /// Whether a mark beside `name` hides it in the branches below.
    pub fn hides(&self, dir: &Arc<RealDir>, name: &Name) -> Result<bool> {
        if self.oci && dir.is_real() && mirror::exists(dir.fd()?, &WH.mark(name)?)? {
            return Ok(true);
        }
        for mirror in &self.mirrors {
            if mirror.hides(dir, name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the marks in and beside the directory `name` of `dir` say about it.
    pub fn dir_marks(&self, dir: &Arc<RealDir>, name: &Name) -> Result<DirMarks> {
        let at = dir.at(name)?;
        let mut marks = match &self.overlay {
            Some(keys) => overlay::dir_marks(keys, &at)?,
            None => DirMarks::default(),
        };
        if !marks.opaque && self.oci {
            let inner = at.open(rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY)?;
            marks.opaque = mirror::exists(inner, &Name::new(OPAQUE_FILE)?)?;
        }
        marks.opaque = marks.opaque || self.hides(dir, name)?;
        Ok(marks)
    }

    /// Whether the branch with this root hides all that is below it. An attribute there means nothing to the kernel.
    pub fn hides_all_below(&self, root: &Arc<RealDir>) -> Result<bool> {
        Ok(self.oci && mirror::exists(root.fd()?, &Name::new(OPAQUE_FILE)?)?)
    }

    /// Whether the branch may have marks about names in the directory `name` of `dir`, though it has no such directory.
    pub fn reaches(&self, dir: &Arc<RealDir>, name: &Name) -> Result<bool> {
        for mirror in &self.mirrors {
            if mirror.reaches(dir, name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Calls `each` with every entry of `dir`; reserved names are left out.
    pub fn list(&self, dir: &Arc<RealDir>, each: &mut dyn FnMut(Listed<'_>) -> Result<()>) -> Result<()> {
        let root = dir.place().is_none();
        list(dir, |name, kind, ino| {
            if name.starts_with(b".") {
                if self.oci {
                    match WH.read(name) {
                        Some(Marked::Name(hidden)) => return each(Listed::Hidden(hidden)),
                        Some(Marked::Long) => return each(Listed::HiddenLong(name)),
                        None => {}
                    }
                }
                if Name::new(name)?.is_reserved(root) {
                    return Ok(());
                }
            }
            if self.may_be_whiteout(dir, kind) {
                let checked = Name::new(name)?;
                if let Some(stat) = dir.find(&checked)?
                    && self.is_whiteout(dir, &checked, &stat)?
                {
                    return each(Listed::Hidden(name));
                }
            }
            each(Listed::Object(name, kind, ino))
        })?;
        for mirror in &self.mirrors {
            if let Some(marks) = mirror.find(dir)? {
                list_fd(marks.as_fd(), &mut |mark, _, _| match HIDDEN.read(mark) {
                    Some(Marked::Name(hidden)) => each(Listed::Hidden(hidden)),
                    Some(Marked::Long) => each(Listed::HiddenLong(mark)),
                    None => Ok(()),
                })?;
            }
        }
        Ok(())
    }

    fn may_be_whiteout(&self, dir: &RealDir, kind: FileType) -> bool {
        self.overlay.is_some()
            && match kind {
                FileType::CharacterDevice | FileType::Unknown => true,
                FileType::RegularFile => dir.xwhiteouts,
                _ => false,
            }
    }
}
