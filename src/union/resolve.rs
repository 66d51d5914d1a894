//! What a name means in the union: which branches' objects make it up.
//!
//! Branches are asked from the top; the first object decides. A file ends the search, a directory goes on to collect
//! the directories below it, and a whiteout or an opaque directory stops it. One statx a branch, and for a directory
//! that others may lie below one look at its marks.
//!
//! Invariant: only absence (`ENOENT`, `ENOTDIR`) lets the search go on; every other error of a branch is the answer.
//!
//! Not here: nodes and their numbers (`node`), listings (`merge`).

use std::sync::Arc;

use crate::union::branch::{Presence, RealDir, Stat};
use crate::union::error::Result;
use crate::union::marks::overlay::DirMarks;
use crate::union::name::Name;
use crate::union::stack::{Layers, Stack};

/// What was found under a name.
#[derive(Debug)]
pub enum Found {
    /// An object that is no directory, and the real directory it lies in.
    Leaf(Arc<RealDir>, Stat),
    /// A directory: its layers, and the attributes of the topmost real one.
    Dir(Layers, Stat),
}

impl Found {
    /// The attributes of the topmost object.
    pub fn stat(&self) -> &Stat {
        match self {
            Self::Leaf(_, stat) | Self::Dir(_, stat) => stat,
        }
    }
}

/// Looks `name` up in the directory made of `layers`; `None` if the union has no such name.
///
/// # Errors
/// Every error of a branch but absence.
pub fn find(stack: &Stack, layers: &[Arc<RealDir>], name: &Name) -> Result<Option<Found>> {
    find_from(stack, layers, name, 0)
}

/// As `find`, where it is known that the layers before number `from` have neither the name nor a mark for it. The first
/// one is asked all the same: it may be the upper, in which a request can have changed that.
///
/// # Errors
/// As `find`.
pub fn find_from(stack: &Stack, layers: &[Arc<RealDir>], name: &Name, from: usize) -> Result<Option<Found>> {
    let root = layers.first().is_some_and(|dir| dir.place().is_none());
    if name.is_reserved(root) {
        return Ok(None);
    }
    let mut found = Layers::new();
    let mut top = None;
    let mut name = name.clone();
    for (at, dir) in layers.iter().enumerate().filter(|(at, _)| *at == 0 || *at >= from) {
        let last = at + 1 == layers.len();
        let reader = &stack.branch(dir.branch)?.reader;
        match dir.find(&name)? {
            Some(stat) if reader.is_whiteout(dir, &name, &stat)? => break,
            Some(stat) if !stat.is_dir() => {
                if top.is_none() {
                    return Ok(Some(Found::Leaf(dir.clone(), stat)));
                }
                break;
            }
            Some(stat) => {
                // A redirect may lead to branches that the parent has nothing in, so what counts is the stack's end.
                let bottom = stack.is_bottom(dir.branch);
                let marks = if bottom { DirMarks::default() } else { reader.dir_marks(dir, &name)? };
                let child = stack.child(dir, &name, &stat, marks.xwhiteouts);
                let covered = child.presence == Presence::Covered;
                found.push(child);
                top.get_or_insert(stat);
                match marks.redirect {
                    _ if covered || marks.opaque => break,
                    Some(path) if path.first() == Some(&b'/') => {
                        found.extend(follow(stack, dir, &path)?);
                        break;
                    }
                    Some(other) => name = Name::new(other)?,
                    None => {}
                }
            }
            None if last => {}
            None if reader.hides(dir, &name)? => break,
            None if reader.reaches(dir, &name)? => found.push(dir.marks_only(&name)),
            None => {}
        }
    }
    Ok(top.map(|stat| Found::Dir(found, stat)))
}

/// The directories that an absolute redirect found in `dir`'s branch leads to, in the branches below that one.
///
/// # Errors
/// As `find`.
pub fn follow(stack: &Stack, dir: &RealDir, path: &[u8]) -> Result<Layers> {
    let mut layers: Layers =
        stack.branches.iter().filter(|branch| branch.id > dir.branch).map(|branch| branch.root.clone()).collect();
    for component in path.split(|&b| b == b'/').filter(|component| !component.is_empty()) {
        match find(stack, &layers, &Name::new(component)?)? {
            Some(Found::Dir(next, _)) => layers = next,
            Some(Found::Leaf(..)) | None => return Ok(Layers::new()),
        }
    }
    Ok(layers)
}

/// What the upper itself has under a name.
#[derive(Debug)]
pub enum InUpper {
    /// Nothing.
    Nothing,
    /// A whiteout in the name's place (overlay format).
    Whiteout,
    /// An object that is no directory.
    Leaf(Stat),
    /// A directory.
    Dir(Stat),
}

/// Looks at `name` in the upper's directory `dir` alone.
///
/// # Errors
/// As `find`.
pub fn in_upper(stack: &Stack, dir: &Arc<RealDir>, name: &Name) -> Result<InUpper> {
    let reader = &stack.branch(dir.branch)?.reader;
    Ok(match dir.find(name)? {
        None => InUpper::Nothing,
        Some(stat) if reader.is_whiteout(dir, name, &stat)? => InUpper::Whiteout,
        Some(stat) if stat.is_dir() => InUpper::Dir(stat),
        Some(stat) => InUpper::Leaf(stat),
    })
}

/// Whether `name` would show something if the upper had neither object nor mark there.
///
/// # Errors
/// As `find`.
pub fn lies_below(stack: &Stack, layers: &[Arc<RealDir>], name: &Name) -> Result<bool> {
    Ok(find(stack, stack.lowers(layers), name)?.is_some())
}
