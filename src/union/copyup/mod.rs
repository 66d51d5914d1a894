//! ONE object from a lower branch into the upper: made in the stage, then published by one link or rename.
//!
//! It takes no locks and knows no nodes: whoever calls decides what is copied where, and keeps others away from the
//! name while it is published.
//!
//! Invariant: until `publish` the union shows the lower object; from then on a whole copy, already on disk unless the
//! union is `volatile`.

pub mod data;
pub mod meta;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, RenameFlags};

use crate::sys::creds::privileged;
use crate::union::branch::{Aside, At, Stat, change};
use crate::union::error::{Errno, Result, best_effort};
use crate::union::fault::step;
use crate::union::marks::origin;
use crate::union::marks::overlay::Keys;
use crate::union::name::Name;
use crate::union::stage::{Stage, Staged};
use crate::union::types::SetTime;

const OWNER_WRITE: u32 = 0o0200;

/// What is copied.
pub struct Source<'a> {
    /// The lower object.
    pub at: &'a At,
    /// Its attributes.
    pub stat: &'a Stat,
    /// The same with the owner, group and mode that the union shows.
    pub shown: &'a Stat,
    /// The lower file that has its data, if it has none of its own.
    pub data: Option<&'a At>,
    /// What of a regular file is wanted.
    pub wanted: Wanted,
    /// Uuid of its filesystem, for the origin mark; `None` if the filesystem has no handles that last.
    pub uuid: Option<[u8; 16]>,
    /// Tag of its filesystem, for our own origin mark, if the other one is not enough.
    pub tag: Option<u64>,
}

/// What of a regular file is copied, beside its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing: a mark says that the data are the lower file's still.
    Attributes,
    /// So many bytes from its beginning; the rest is about to be cut off.
    Bytes(u64),
}

impl Wanted {
    /// All there is.
    pub const ALL: Self = Self::Bytes(u64::MAX);
}

/// Where and how copies are made.
pub struct Workshop<'a> {
    /// The upper's stage.
    pub stage: &'a Stage,
    /// The names of marks.
    pub keys: &'a Keys,
    /// Do not sync before publishing.
    pub volatile: bool,
    /// The upper is another machine's.
    pub remote: bool,
    /// How the upper keeps owners and modes, if not in its inodes.
    pub aside: Option<Aside>,
}

/// A finished copy that nobody sees yet.
pub enum Copy<'a> {
    /// A regular file without a name.
    Unnamed(Arc<OwnedFd>),
    /// Any object in the stage.
    Staged(Staged<'a>),
}

impl Source<'_> {
    fn is_cut(&self) -> bool {
        matches!(self.wanted, Wanted::Bytes(bytes) if bytes < self.stat.size) && self.stat.kind().is_file()
    }
}

impl<'a> Workshop<'a> {
    /// Makes a copy of `source`.
    ///
    /// # Errors
    /// Those of reading the lower and writing the upper; nothing is left behind then.
    pub fn copy(&self, source: &Source<'_>) -> Result<Copy<'a>> {
        match source.stat.kind() {
            FileType::RegularFile => self.copy_file(source),
            _ => self.copy_other(source),
        }
    }

    fn copy_file(&self, source: &Source<'_>) -> Result<Copy<'a>> {
        let (fd, staged) = if self.stage.can.unnamed {
            (change::unnamed(self.stage.fd(), 0o600)?, None)
        } else {
            let staged = self.stage.temp()?;
            (change::create(staged.dir(), &staged.name, 0o600, OFlags::RDWR)?, Some(staged))
        };
        let bytes = match source.wanted {
            Wanted::Bytes(bytes) => bytes.min(source.stat.size),
            Wanted::Attributes => 0,
        };
        if bytes > 0 {
            let from = source.data.unwrap_or(source.at).open(OFlags::RDONLY | OFlags::NONBLOCK)?;
            let whole = bytes == source.stat.size;
            let how = data::How { whole, remote: self.remote, synced: !self.volatile };
            data::copy(from.as_fd(), fd.as_fd(), bytes, how)?;
        }
        let fd = Arc::new(fd);
        if source.wanted == Wanted::Attributes {
            step("set size")?;
            rustix::fs::ftruncate(&fd, source.stat.size)?;
            At::Fd(fd.clone()).set_xattr(&self.keys.metacopy, b"", 0)?;
        }
        self.finish(source, &At::Fd(fd.clone()))?;
        // What must not be lost behind a name that is there are data. Size, marks and name of a file without are changes
        // of its filesystem's own records, which keep their order over a loss of power.
        if !self.volatile && bytes > 0 {
            step("sync")?;
            rustix::fs::fsync(&fd)?;
        }
        Ok(staged.map_or(Copy::Unnamed(fd), Copy::Staged))
    }

    fn copy_other(&self, source: &Source<'_>) -> Result<Copy<'a>> {
        let staged = self.stage.temp()?;
        let (dir, name) = (staged.dir(), &staged.name);
        match source.stat.kind() {
            FileType::Directory => change::mkdir(dir, name, 0o700)?,
            FileType::Symlink => {
                let target = std::ffi::CString::new(source.at.readlink()?).map_err(|_| Errno::IO)?;
                change::symlink(&target, dir, name)?;
            }
            kind => change::mknod(dir, name, kind.as_raw_mode() | 0o600, source.stat.rdev)?,
        }
        self.finish(source, &staged.at())?;
        Ok(Copy::Staged(staged))
    }

    fn finish(&self, source: &Source<'_>, copy: &At) -> Result<()> {
        self.mark_origin(source, copy)?;
        match self.aside {
            Some(aside) => meta::copy_aside(source.at, (source.stat, source.shown), copy, aside)?,
            None => meta::copy(source.at, source.shown, copy)?,
        }
        if source.is_cut() {
            // What shows up is the file after it was cut, whatever happens next.
            return copy.set_times(None, Some(SetTime::Now));
        }
        meta::copy_times(source.stat, copy)
    }

    /// Records where the copy comes from. Without room for the mark the inode number changes at the next mount, which
    /// is no reason to refuse the write.
    fn mark_origin(&self, source: &Source<'_>, copy: &At) -> Result<()> {
        let handle = source.uuid.and_then(|uuid| origin::encode(&source.at.handle().ok()?, uuid));
        let number = source.tag.map(|tag| origin::encode_number(tag, source.stat.ino));
        for (key, value) in [(&self.keys.origin, handle), (&self.keys.origin_number, number)] {
            match value.map(|value| copy.set_xattr(key, &value, 0)) {
                Some(Err(Errno::OPNOTSUPP | Errno::PERM)) => log::debug!("{copy:?}: no origin mark"),
                done => done.unwrap_or(Ok(()))?,
            }
        }
        Ok(())
    }
}

impl Copy<'_> {
    /// The copy, wherever it is now.
    pub fn at(&self) -> At {
        match self {
            Self::Unnamed(fd) => At::Fd(fd.clone()),
            Self::Staged(staged) => staged.at(),
        }
    }

    /// Gives the copy its name in the upper.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken; those of linkat(2) and renameat2(2).
    pub fn publish(self, stage: &Stage, dir: impl AsFd, name: &Name) -> Result<()> {
        let Self::Staged(staged) = &self else { return self.publish_as_it_is(stage, dir, name) };
        if privileged() {
            return self.publish_as_it_is(stage, dir, name);
        }
        let here = staged.at();
        let stat = here.stat()?;
        if !stat.is_dir() || stat.mode & OWNER_WRITE != 0 {
            return self.publish_as_it_is(stage, dir, name);
        }
        // Without privilege only a directory that may be written can be moved to another one.
        here.chmod(stat.mode | OWNER_WRITE)?;
        let there = At::Name(Arc::new(rustix::io::fcntl_dupfd_cloexec(&dir, 0)?), name.clone());
        self.publish_as_it_is(stage, dir, name)?;
        best_effort("give a directory its mode", there.chmod(stat.mode));
        Ok(())
    }

    fn publish_as_it_is(self, stage: &Stage, dir: impl AsFd, name: &Name) -> Result<()> {
        match self {
            Self::Unnamed(fd) => change::link_unnamed(fd.as_fd(), dir, name),
            Self::Staged(staged) if stage.can.rename_flags => staged.publish(dir, name, RenameFlags::NOREPLACE),
            Self::Staged(staged) => staged.publish(dir, name, RenameFlags::empty()),
        }
    }

    /// Keeps the copy without a name: for an object that has lost its own.
    ///
    /// # Errors
    /// Those of openat(2).
    pub fn keep(self) -> Result<Arc<OwnedFd>> {
        match self {
            Self::Unnamed(fd) => Ok(fd),
            Self::Staged(staged) => staged.at().open(OFlags::PATH).map(Arc::new),
        }
    }

    /// Gives the copy a further name in the index before it is published.
    ///
    /// # Errors
    /// Those of linkat(2).
    pub fn link(&self, dir: impl AsFd, name: &Name) -> Result<()> {
        match self {
            Self::Unnamed(fd) => change::link_unnamed(fd.as_fd(), dir, name),
            Self::Staged(staged) => change::link(staged.dir(), &staged.name, dir, name),
        }
    }
}
