//! Hard links over copy-up: which upper object stands for a lower one that has several names.
//!
//! When a lower file with several names is copied up under one of them, its copy gets a further name here, made of the
//! lower filesystem's tag and inode number. A look-up that finds another of the lower names asks here and gets the copy.
//! An attribute of the copy holds that name and by how much the union's count of names differs from the inode's.
//!
//! Invariant: the entry outlives every name of the union that leads to it. Counts are lowered after the name is gone,
//! so a crash leaves a count too high and an entry too many, never one too few: with the entry go the data, and a name
//! that is left would show the lower file again.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::union::branch::list::list_fd;
use crate::union::branch::{At, Stat, change};
use crate::union::copyup::Copy;
use crate::union::error::{Errno, Result, best_effort};
use crate::union::marks::origin;
use crate::union::marks::overlay::Keys;
use crate::union::name::Name;
use crate::union::stage::make_dir;

/// The directory in the private area.
const DIR: &str = "index";

/// The index of one upper.
pub struct Index {
    dir: Arc<OwnedFd>,
    known: RwLock<HashSet<Name>>,
    /// Held while a count is read and written: two names may go at once.
    counting: Mutex<()>,
}

/// What the attribute of an indexed copy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name in the index.
    pub name: Name,
    /// How many names the union shows.
    pub count: Count,
}

/// How many names the union shows for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// So many more than the inode has (the index's own name counts among the inode's).
    Extra(i64),
    /// So many, whether the copy has been published yet or not.
    Names(i64),
}

impl Record {
    /// Reads the attribute of `at`; `None` if it is not in the index.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn read(keys: &Keys, at: &At) -> Result<Option<Self>> {
        let Some(value) = at.mark(&keys.index)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&value);
        let parsed = text.split_once(' ').and_then(|(count, name)| {
            let count = match count.strip_prefix('=') {
                Some(names) => Count::Names(names.parse().ok()?),
                None => Count::Extra(count.parse().ok()?),
            };
            Some(Self { name: Name::new(name).ok()?, count })
        });
        Ok(parsed)
    }

    /// Writes the attribute of `at`.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn write(&self, keys: &Keys, at: &At) -> Result<()> {
        let count = match self.count {
            Count::Extra(extra) => format!("{extra}"),
            Count::Names(names) => format!("={names}"),
        };
        at.set_xattr(&keys.index, format!("{count} {}", self.name.as_os_str().display()).as_bytes(), 0)
    }

    /// How many names the union shows, the inode having `nlink`.
    pub fn names(&self, nlink: u32) -> i64 {
        match self.count {
            Count::Extra(extra) => extra.saturating_add(nlink.into()),
            Count::Names(names) => names,
        }
    }
}

impl Index {
    /// Opens the index in the private area, learns its entries and settles the counts that a crash has left open.
    ///
    /// # Errors
    /// Those of mkdirat(2), openat(2), getdents(2), getxattr(2) and setxattr(2).
    pub fn open(private: BorrowedFd<'_>, keys: &Keys) -> Result<Self> {
        let dir = make_dir(private, &Name::new(DIR)?)?;
        let mut known = HashSet::new();
        list_fd(&dir, &mut |name, _, _| {
            known.insert(Name::new(name)?);
            Ok(())
        })?;
        let index = Self { dir: Arc::new(dir), known: RwLock::new(known), counting: Mutex::new(()) };
        index.known.read().iter().try_for_each(|name| index.settle(keys, name))?;
        Ok(index)
    }

    /// Whether no copy is indexed.
    pub fn is_empty(&self) -> bool {
        self.known.read().is_empty()
    }

    /// The name of the entry for inode `ino` on the lower filesystem with `tag`.
    ///
    /// # Errors
    /// None: the name is always valid.
    pub fn name_for(tag: u64, ino: u64) -> Result<Name> {
        Name::new(format!("{tag:016x}-{ino:016x}"))
    }

    /// The entry called `name`.
    pub fn at(&self, name: &Name) -> At {
        At::Name(self.dir.clone(), name.clone())
    }

    /// The copy that stands for the lower object `lower`, whose entry would be `name`.
    ///
    /// # Errors
    /// Those of statx(2) and getxattr(2).
    pub fn find(&self, keys: &Keys, name: &Name, lower: &At) -> Result<Option<Stat>> {
        if !self.known.read().contains(name) {
            return Ok(None);
        }
        let at = self.at(name);
        // An inode number can come back with another file: the handle tells them apart.
        if let (Ok(handle), Some(value)) = (lower.handle(), at.mark(&keys.origin)?)
            && origin::decode(&value).is_none_or(|(_, of)| of != handle)
        {
            log::warn!("index entry {name:?} is of a file that is gone; ignored");
            return Ok(None);
        }
        match at.stat() {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Enters a finished copy, which the union shows under `names` names from now on. `settle` once it is published.
    ///
    /// # Errors
    /// Those of linkat(2) and setxattr(2).
    pub fn add(&self, keys: &Keys, name: &Name, copy: &Copy<'_>, names: u32) -> Result<()> {
        Record { name: name.clone(), count: Count::Names(names.into()) }.write(keys, &copy.at())?;
        match copy.link(&self.dir, name) {
            // Left by a crash before the copy was published, or of a lower file that is gone: nobody's.
            Err(Errno::EXIST) => {
                change::unlink(&self.dir, name)?;
                copy.link(&self.dir, name)?;
            }
            other => other?,
        }
        self.known.write().insert(name.clone());
        Ok(())
    }

    /// The copy `entry` has been published, or never will be: from now on its names are counted by the inode.
    ///
    /// # Errors
    /// Those of statx(2), getxattr(2) and setxattr(2).
    pub fn settle(&self, keys: &Keys, entry: &Name) -> Result<()> {
        let _counting = self.counting.lock();
        let at = self.at(entry);
        let Some(Record { name, count: Count::Names(names) }) = Record::read(keys, &at)? else { return Ok(()) };
        let extra = names.saturating_sub(at.stat()?.nlink.into());
        Record { name, count: Count::Extra(extra) }.write(keys, &at)
    }

    /// Takes out a copy that could not be published.
    ///
    /// # Errors
    /// Those of unlinkat(2).
    pub fn withdraw(&self, name: &Name) -> Result<()> {
        change::unlink(&self.dir, name)?;
        self.known.write().remove(name);
        Ok(())
    }

    /// Gives the indexed copy `entry` the name `name` in the upper's `dir`, where so far only the lower one stood.
    ///
    /// # Errors
    /// Those of linkat(2) and setxattr(2).
    pub fn link_up(&self, keys: &Keys, entry: &Name, dir: impl AsFd, name: &Name) -> Result<()> {
        {
            let _counting = self.counting.lock();
            let at = self.at(entry);
            if let Some(record) = Record::read(keys, &at)? {
                // The inode is about to count a name that the union counts already.
                let count = Count::Names(record.names(at.stat()?.nlink));
                Record { count, ..record }.write(keys, &at)?;
            }
        }
        let linked = change::link(&self.dir, entry, dir, name);
        best_effort("count names", self.settle(keys, entry));
        linked
    }

    /// A name that only the lower had is gone (or has become the upper's): one extra name less.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn lower_count(&self, keys: &Keys, entry: &Name) -> Result<()> {
        let _counting = self.counting.lock();
        let at = self.at(entry);
        let Some(Record { name, count }) = Record::read(keys, &at)? else { return Ok(()) };
        let count = match count {
            Count::Extra(extra) => Count::Extra(extra.saturating_sub(1)),
            Count::Names(names) => Count::Names(names.saturating_sub(1)),
        };
        Record { name, count }.write(keys, &at)
    }

    /// Removes the entry if the union has no name left that leads to it.
    ///
    /// # Errors
    /// Those of statx(2) and unlinkat(2).
    pub fn remove_if_last(&self, keys: &Keys, entry: &Name) -> Result<()> {
        let at = self.at(entry);
        let Some(record) = Record::read(keys, &at)? else { return Ok(()) };
        if record.names(at.stat()?.nlink) <= 0 {
            change::unlink(&self.dir, entry)?;
            self.known.write().remove(entry);
        }
        Ok(())
    }

    /// Removes the index's directory if it is empty.
    pub fn close(&self, private: BorrowedFd<'_>) {
        if self.is_empty()
            && let Ok(name) = Name::new(DIR)
        {
            match change::rmdir(private, &name) {
                Err(Errno::NOENT) => {}
                done => best_effort("remove the index", done),
            }
        }
    }
}
