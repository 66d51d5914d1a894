//! How many names of a lower file have been deleted while it was not copied up: its own count of links goes on counting
//! them.
//!
//! An empty file in the private area for each such file, called as its entry in the index would be, and the number of
//! names; its time of change is when the last of them went.
//!
//! Invariant: it is written after the name is gone, and never in the way of that: after a crash, or on a full disk, a
//! count may be too high, as without any of this. What is copied up has its count in the index (`index`).

use std::os::fd::{BorrowedFd, OwnedFd};

use dashmap::DashMap;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, OFlags, RenameFlags};

use crate::union::branch::at::stat;
use crate::union::branch::change;
use crate::union::branch::list::list_fd;
use crate::union::error::{Errno, Result, best_effort};
use crate::union::name::Name;
use crate::union::stage::make_dir;
use crate::union::types::Time;

/// The directory in the private area.
const DIR: &str = "gone";

/// Deleted names of one lower file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub names: u32,
    /// When the last of them was deleted.
    pub touched: Time,
}

/// Deleted names of the lower files below one upper.
pub struct Gone {
    private: OwnedFd,
    dir: Mutex<Option<OwnedFd>>,
    known: DashMap<Name, Lost>,
}

impl Gone {
    /// Learns what is recorded in the private area.
    ///
    /// # Errors
    /// Those of openat(2), getdents(2) and statx(2).
    pub fn open(private: BorrowedFd<'_>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(private, DIR, flags, rustix::fs::Mode::empty()) {
            Ok(dir) => Some(dir),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        let known = DashMap::new();
        if let Some(dir) = &dir {
            let mut records = Vec::new();
            list_fd(dir, &mut |name, _, _| {
                records.push(Name::new(name)?);
                Ok(())
            })?;
            for record in records {
                let Some((name, names)) = parse(&record) else { continue };
                let touched = stat(std::os::fd::AsFd::as_fd(dir), record.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?.ctime;
                known.insert(name, Lost { names, touched });
            }
        }
        let private = rustix::io::fcntl_dupfd_cloexec(private, 0)?;
        Ok(Self { private, dir: Mutex::new(dir), known })
    }

    /// What is known of the lower file whose entry in the index would be `name`.
    pub fn of(&self, name: &Name) -> Option<Lost> {
        if self.known.is_empty() {
            return None;
        }
        self.known.get(name).map(|lost| *lost)
    }

    /// Records that so many names of the file are gone.
    pub fn set(&self, name: &Name, lost: Lost) {
        let mut dir = self.dir.lock();
        let before = self.known.insert(name.clone(), lost).map(|lost| lost.names);
        best_effort("record a deleted name", self.write(&mut dir, name, (before, lost.names)));
    }

    fn write(&self, dir: &mut Option<OwnedFd>, name: &Name, (before, now): (Option<u32>, u32)) -> Result<()> {
        let dir = match dir {
            Some(dir) => dir,
            None => {
                let made = make_dir(std::os::fd::AsFd::as_fd(&self.private), &Name::new(DIR)?)?;
                dir.insert(made)
            }
        };
        let record = record(name, now)?;
        if let Some(before) = before {
            match change::rename(&*dir, &self::record(name, before)?, &*dir, &record, RenameFlags::empty()) {
                // It could not be written then.
                Err(Errno::NOENT) => {}
                done => return done,
            }
        }
        change::create(&*dir, &record, 0o600, OFlags::WRONLY).map(drop)
    }

    /// The file has been copied up, or has no name left: nothing is to be told of it any more.
    pub fn clear(&self, name: &Name) {
        if self.known.is_empty() {
            return;
        }
        let dir = self.dir.lock();
        let Some((_, lost)) = self.known.remove(name) else { return };
        let Some(dir) = &*dir else { return };
        match record(name, lost.names).and_then(|record| change::unlink(dir, &record)) {
            Err(Errno::NOENT) => {}
            done => best_effort("forget deleted names", done),
        }
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Removes the directory if it is empty.
    pub fn close(&self) {
        if self.is_empty()
            && let Ok(name) = Name::new(DIR)
        {
            match change::rmdir(&self.private, &name) {
                Err(Errno::NOENT | Errno::NOTEMPTY) => {}
                done => best_effort("remove the list of deleted names", done),
            }
        }
    }
}

fn record(name: &Name, names: u32) -> Result<Name> {
    Name::new([name.as_bytes(), b".", names.to_string().as_bytes()].concat())
}

fn parse(record: &Name) -> Option<(Name, u32)> {
    let text = std::str::from_utf8(record.as_bytes()).ok()?;
    let (name, names) = text.rsplit_once('.')?;
    Some((Name::new(name).ok()?, names.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn counts_come_back() {
        let area = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(area.path()).unwrap();
        let (a, b) = (Name::new("a-1").unwrap(), Name::new("b-2").unwrap());
        let lost = |names| Lost { names, touched: Time { sec: 5, nsec: 6 } };
        let gone = Gone::open(fd.as_fd()).unwrap();
        assert!(gone.is_empty() && std::fs::read_dir(area.path()).unwrap().next().is_none());
        gone.set(&a, lost(1));
        gone.set(&a, lost(2));
        gone.set(&b, lost(1));
        gone.clear(&b);
        let again = Gone::open(fd.as_fd()).unwrap();
        assert_eq!(again.of(&a).unwrap().names, 2);
        assert!(again.of(&a).unwrap().touched.sec > 5);
        assert_eq!(again.of(&b), None);
        again.clear(&a);
        again.close();
        assert!(std::fs::read_dir(area.path()).unwrap().next().is_none());
    }
}
