//! The listing of a directory of the union: the names of all layers, each once, without what marks hide.
//!
//! Difficulties, and what answers them:
//! 1. a name in several layers is listed once, with the topmost one's type and number: `Seen`, kept only if there is
//!    more than one layer;
//! 2. a mark hides a name in the layers below its own, never in its own: marks count when their layer is done.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::fs::FileType;

use crate::union::branch::{Aside, RealDir};
use crate::union::error::Result;
use crate::union::listing::Listing;
use crate::union::marks::Listed;
use crate::union::marks::beside::{HIDDEN, WH};
use crate::union::name::Name;
use crate::union::stack::Stack;
use crate::union::types::Ino;

/// Names that the layers above have decided.
#[derive(Default)]
struct Seen {
    names: HashSet<Box<[u8]>>,
    /// Marks of names too long to be spelled out.
    marks: HashSet<Box<[u8]>>,
}

impl Seen {
    fn contains(&self, name: &[u8]) -> Result<bool> {
        if self.names.contains(name) {
            return Ok(true);
        }
        if self.marks.is_empty() {
            return Ok(false);
        }
        let name = Name::new(name)?;
        Ok(self.marks.contains(WH.mark(&name)?.as_bytes()) || self.marks.contains(HIDDEN.mark(&name)?.as_bytes()))
    }
}

/// Tells the inode number shown for an entry, from its layer, its name and its number there.
pub type Number<'a> = dyn FnMut(&Arc<RealDir>, &[u8], u64) -> Result<Ino> + 'a;

/// Lists the directory made of `layers`. `number` tells the inode number of an entry from its layer, name and number
/// there.
///
/// # Errors
/// Those of reading the layers, and of `number`.
pub fn merge(stack: &Stack, layers: &[Arc<RealDir>], number: &mut Number<'_>) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut seen = Seen::default();
    for (at, dir) in layers.iter().enumerate() {
        let (first, last) = (at == 0, at + 1 == layers.len());
        let mut of_this_layer = Seen::default();
        stack.branch(dir.branch)?.reader.list(dir, &mut |entry| {
            match entry {
                Listed::Object(name, kind, ino) => {
                    if !first && seen.contains(name)? {
                        return Ok(());
                    }
                    if !last {
                        of_this_layer.names.insert(name.into());
                    }
                    let kind = match stack.branch(dir.branch)?.aside {
                        Some(aside) if matches!(kind, FileType::RegularFile | FileType::Unknown) => {
                            kind_aside(aside, dir, name)?
                        }
                        _ if kind == FileType::Unknown => kind_of(dir, name)?,
                        _ => kind,
                    };
                    listing.push(name, kind, number(dir, name, ino)?, at);
                }
                Listed::Hidden(name) if !last => drop(of_this_layer.names.insert(name.into())),
                Listed::HiddenLong(mark) if !last => drop(of_this_layer.marks.insert(mark.into())),
                Listed::Hidden(_) | Listed::HiddenLong(_) => {}
            }
            Ok(())
        })?;
        seen.names.extend(of_this_layer.names);
        seen.marks.extend(of_this_layer.marks);
    }
    Ok(listing)
}

fn kind_of(dir: &Arc<RealDir>, name: &[u8]) -> Result<FileType> {
    Ok(dir.find(&Name::new(name)?)?.map_or(FileType::Unknown, |stat| stat.kind()))
}

/// A plain file may stand for a device. What cannot be made sense of is told to who looks the name up.
fn kind_aside(aside: Aside, dir: &Arc<RealDir>, name: &[u8]) -> Result<FileType> {
    let name = Name::new(name)?;
    let Some(own) = dir.find(&name)? else { return Ok(FileType::Unknown) };
    Ok(aside.shown(&dir.at(&name)?, &own).unwrap_or(own).kind())
}
