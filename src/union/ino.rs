//! Which inode number an object of the union shows.
//!
//! The branches' own numbers are passed through. Objects of the first device keep theirs to the bit; those of further
//! devices get the device's index in the high bits, as overlayfs' xino, so that no two objects show the same number.
//! A copy shows the number of the lower object it was made from, by the origin mark.

use std::os::fd::AsFd;
use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::RwLock;
use rustix::fs::{AtFlags, OFlags};

use crate::sys;
use crate::sys::handle::FileHandle;
use crate::union::branch::at::stat;
use crate::union::branch::{At, RealDir};
use crate::union::error::{Errno, Result};
use crate::union::marks::origin;
use crate::union::stack::{Branch, Stack};
use crate::union::types::{Ino, Time};

/// Bits of a number that are the device's index; bit 63 stays free for programs that keep numbers signed.
const SHIFT: u32 = 56;
/// Index under which numbers are made anew, for devices that use the high bits themselves.
const FOLDED: u64 = 0x7f;

/// Numbers for the objects of all branches.
#[derive(Default)]
pub struct Numbers {
    devices: RwLock<Vec<u64>>,
    /// Whose numbers made anew are: device and its own number.
    folded: DashMap<u64, (u64, u64)>,
}

impl Numbers {
    /// The number shown for the object `ino` of device `dev`.
    pub fn number(&self, dev: u64, ino: u64) -> Ino {
        let index = self.index(dev);
        if index == 0 {
            return Ino(ino);
        }
        if index < FOLDED && ino >> SHIFT == 0 {
            return Ino(index << SHIFT | ino);
        }
        // Made of the device's index, so that it is the same after a remount; of two that come out the same, which hardly
        // ever happens, the second takes the next one.
        let mixed = (ino ^ index.rotate_right(8)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SHIFT);
        let mut number = mixed;
        while *self.folded.entry(number).or_insert((dev, ino)) != (dev, ino) {
            number = (number + 1) & ((1 << SHIFT) - 1);
        }
        Ino(FOLDED << SHIFT | number)
    }

    fn index(&self, dev: u64) -> u64 {
        if let Some(at) = self.devices.read().iter().position(|&known| known == dev) {
            return at as u64;
        }
        let mut devices = self.devices.write();
        let at = devices.iter().position(|&known| known == dev).unwrap_or_else(|| {
            devices.push(dev);
            devices.len() - 1
        });
        at as u64
    }

    /// The number shown for the object `at` of the branch that `dir` belongs to, whose own identity is `own`; if it is
    /// another one's, also when that one was made.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn shown(&self, stack: &Stack, dir: &RealDir, at: &At, own: (u64, u64)) -> Result<(Ino, Option<Time>)> {
        let origin = if stack.is_upper(dir.branch) { self.of_origin(stack, at)? } else { None };
        Ok(match origin {
            Some((ino, born)) => (ino, Some(born)),
            None => (self.number(own.0, own.1), None),
        })
    }

    /// The number of the lower object that the upper's `at` was copied from, and when that was made.
    ///
    /// By the kernel's mark, if its uuid is that of one filesystem only: on copies of an image one handle leads to different
    /// files, and those without a uuid cannot even be told from a new one in their place. Else by our own mark; without one,
    /// as the kernel has it, by the handle if there is only one filesystem that it can be of.
    fn of_origin(&self, stack: &Stack, at: &At) -> Result<Option<(Ino, Time)>> {
        let keys = &stack.upper()?.writer.keys;
        let lowers = || stack.branches.iter().filter(|branch| !stack.is_upper(branch.id));
        let found = match at.mark(&keys.origin)?.map(|value| origin::decode(&value)) {
            Some(None) => return Ok(None),
            // Written beside our own wherever there are handles.
            None if lowers().all(|branch| branch.handles) => return Ok(None),
            None => None,
            Some(found) => found,
        };
        let candidates = |uuid: [u8; 16]| lowers().filter(move |branch| branch.handles && branch.uuid == uuid);
        let of_handle = found.and_then(|(uuid, handle)| {
            let first = candidates(uuid).next()?;
            let dev = first.root.identity().0;
            candidates(uuid).all(|other| other.root.identity().0 == dev).then_some((first, handle))
        });
        if let Some((branch, handle)) = of_handle.as_ref().filter(|(branch, _)| branch.unique) {
            return self.by_handle(branch, handle);
        }
        if let Some(value) = at.mark(&keys.origin_number)? {
            let Some((tag, ino)) = origin::decode_number(&value) else { return Ok(None) };
            let branch = lowers().find(|branch| branch.tag == tag);
            return Ok(branch.map(|branch| (self.number(branch.root.identity().0, ino), Time::default())));
        }
        of_handle.map_or(Ok(None), |(branch, handle)| self.by_handle(branch, &handle))
    }

    fn by_handle(&self, branch: &Branch, handle: &FileHandle) -> Result<Option<(Ino, Time)>> {
        match sys::handle::open(branch.readable.as_fd(), handle, OFlags::PATH) {
            Ok(fd) => {
                let stat = stat(fd.as_fd(), c"", AtFlags::EMPTY_PATH)?;
                Ok(Some((self.number(stat.dev, stat.ino), stat.btime)))
            }
            Err(Errno::PERM) => {
                let dev = branch.root.identity().0;
                Ok(origin::number(handle).map(|ino| (self.number(dev, ino), Time::default())))
            }
            // Gone, or of a filesystem that was made anew: the copy has only its own number left.
            Err(_) => Ok(None),
        }
    }

    /// The number for an entry of a listing: `name` in `dir`, whose number there is `ino`.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn listed(&self, stack: &Stack, dir: &Arc<RealDir>, name: &[u8], ino: u64) -> Result<Ino> {
        let own = (dir.identity().0, ino);
        if !stack.is_upper(dir.branch) || !dir.is_impure(&stack.upper()?.writer.keys.impure)? {
            return Ok(self.number(own.0, own.1));
        }
        match self.shown(stack, dir, &dir.at(&crate::union::name::Name::new(name)?)?, own) {
            // Deleted while the listing was taken.
            Err(Errno::NOENT) => Ok(self.number(own.0, own.1)),
            other => Ok(other?.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_passed_through_and_never_meet() {
        let numbers = Numbers::default();
        for (dev, ino, shown) in
            [(10, 5, 5), (10, u64::MAX, u64::MAX), (20, 5, 1 << SHIFT | 5), (30, 5, 2 << SHIFT | 5), (10, 5, 5)]
        {
            assert_eq!(numbers.number(dev, ino), Ino(shown), "{dev} {ino}");
        }
    }

    #[test]
    fn numbers_made_anew_last_and_never_meet() {
        let (first, again) = (Numbers::default(), Numbers::default());
        for (numbers, device) in [(&first, 20), (&again, 21)] {
            numbers.number(10, 1);
            numbers.number(device, 1);
        }
        let high = |at: u64| (1 << 63) + at * 0x1_0000_0000_0001;
        let all: Vec<Ino> = (0..10_000).map(|at| first.number(20, high(at))).collect();
        // After a remount the device has another number, and others come first.
        let later: Vec<Ino> = (0..10_000).rev().map(|at| again.number(21, high(at))).collect();
        assert!(all.iter().eq(later.iter().rev()));
        assert!(all.iter().all(|ino| ino.0 >> SHIFT == FOLDED));
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());

        // Two that come out the same: the second gets another one, and keeps it.
        let taken = all[0].0 & ((1 << SHIFT) - 1);
        let numbers = Numbers::default();
        numbers.number(10, 1);
        numbers.number(20, 1);
        numbers.folded.insert(taken, (99, 99));
        let moved = numbers.number(20, high(0));
        assert_ne!(moved, all[0]);
        assert_eq!(numbers.number(20, high(0)), moved);
    }
}
