//! Leaving marks in the upper, in one format.
//!
//! Invariant, for every function: at no step does a name show something that it showed neither before nor after. The
//! order of the steps follows from where a format keeps its marks: overlayfs puts a whiteout in the name's own place,
//! so object and mark change in one rename; the others keep it beside the name, where an object of the same branch
//! outweighs it, so the mark comes before the object goes and goes after the object has come.
//!
//! Not here: whether a mark is needed (`ops`).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, RenameFlags};

use crate::union::branch::at::stat;
use crate::union::branch::list::list_fd;
use crate::union::branch::{At, RealDir, change};
use crate::union::error::{Errno, Result, best_effort};
use crate::union::marks::OPAQUE_FILE;
use crate::union::marks::beside::{HIDDEN, WH};
use crate::union::marks::mirror::Mirror;
use crate::union::marks::overlay::Keys;
use crate::union::name::Name;
use crate::union::options::Format;
use crate::union::stage::Stage;
use crate::union::types::SetTime;

/// Leaves marks in the upper.
pub struct Writer {
    /// The format of the marks.
    pub format: Format,
    /// The names of attributes, used by every format for what it has no mark of its own for.
    pub keys: Arc<Keys>,
    /// Root of the upper.
    pub root: Arc<RealDir>,
    /// The marks' tree, for the unionfs formats.
    pub mirror: Option<Arc<Mirror>>,
}

impl Writer {
    /// Whether a whiteout takes the place of the name it hides, so that nothing can be created beside it.
    pub fn in_place(&self) -> bool {
        self.format == Format::Overlay
    }

    /// Hides `name`, for which the upper's `dir` has no object, in the branches below.
    ///
    /// # Errors
    /// Those of linkat(2), mknodat(2), mkdirat(2) and openat(2).
    pub fn hide(&self, stage: &Stage, dir: &Arc<RealDir>, name: &Name, is_dir: bool) -> Result<()> {
        if self.in_place() { stage.whiteout(dir.fd()?, name) } else { self.mark(dir, name, is_dir) }
    }

    /// Makes the mark beside `name`, which hides it in the branches below.
    fn mark(&self, dir: &Arc<RealDir>, name: &Name, is_dir: bool) -> Result<()> {
        let done = match &self.mirror {
            None => change::create(dir.fd()?, &WH.mark(name)?, 0o600, OFlags::WRONLY).map(drop),
            Some(mirror) => {
                let marks = mirror.make(&self.root, dir)?;
                let mark = HIDDEN.mark(name)?;
                if is_dir {
                    change::mkdir(&marks, &mark, 0o700)
                } else {
                    change::create(&marks, &mark, 0o600, OFlags::WRONLY).map(drop)
                }
            }
        };
        match done {
            // Hidden already: by a mark that outlived its object.
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// As `hide`, for a name that the union loses by it: its directory's time of change moves, wherever the mark is.
    ///
    /// # Errors
    /// As `hide`.
    pub fn hide_lower(&self, stage: &Stage, dir: &Arc<RealDir>, name: &Name, is_dir: bool) -> Result<()> {
        self.hide(stage, dir, name, is_dir)?;
        if self.mirror.is_some() {
            best_effort("move a directory's time", dir.itself()?.set_times(None, Some(SetTime::Now)));
        }
        Ok(())
    }

    /// Removes the upper's object `name` where nothing lies below it.
    ///
    /// # Errors
    /// Those of unlinkat(2) and renameat(2).
    pub fn remove(&self, stage: &Stage, dir: &Arc<RealDir>, name: &Name, is_dir: bool) -> Result<()> {
        if !is_dir {
            return change::unlink(dir.fd()?, name);
        }
        match change::rmdir(dir.fd()?, name) {
            // Empty in the union, but it holds marks.
            Err(Errno::NOTEMPTY | Errno::EXIST) => stage.take(dir.fd()?, name, RenameFlags::empty()).map(drop),
            other => other,
        }
    }

    /// Removes the upper's object `name` and hides what lies below it.
    ///
    /// # Errors
    /// Those of `remove` and `hide`.
    pub fn remove_and_hide(&self, stage: &Stage, dir: &Arc<RealDir>, name: &Name, is_dir: bool) -> Result<()> {
        if self.in_place() {
            return match stage.take(dir.fd()?, name, RenameFlags::WHITEOUT) {
                // A whiteout of its own needs an inode; one that is there already needs none.
                Err(Errno::NOSPC | Errno::DQUOT) => stage.exchange_for_whiteout(dir.fd()?, name),
                other => other.map(drop),
            };
        }
        self.hide(stage, dir, name, is_dir)?;
        self.remove(stage, dir, name, is_dir)
    }

    /// An object that is no directory has come to stand at `name`: a mark beside it says nothing any more.
    pub fn uncover(&self, dir: &Arc<RealDir>, name: &Name) {
        best_effort("remove a whiteout", self.remove_mark(dir, name));
    }

    fn remove_mark(&self, dir: &Arc<RealDir>, name: &Name) -> Result<()> {
        let (marks, mark) = match (self.format, &self.mirror) {
            (Format::Overlay, _) => return Ok(()),
            (Format::Oci, _) | (_, None) => (dir.fd()?, WH.mark(name)?),
            (Format::Unionfs | Format::UnionfsFuse, Some(mirror)) => match mirror.find(dir)? {
                Some(marks) => (marks, HIDDEN.mark(name)?),
                None => return Ok(()),
            },
        };
        let is_dir = match stat(marks.as_fd(), mark.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat.is_dir(),
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if is_dir { change::rmdir(&marks, &mark) } else { change::unlink(&marks, &mark) }
    }

    /// Makes the directory behind `object` opaque for the time when it stands at `name` in `dir`: before it is moved
    /// there, where it may still show what is below its present place only if nothing is.
    ///
    /// # Errors
    /// Those of setxattr(2), openat(2) and `hide`.
    pub fn seal(&self, object: BorrowedFd<'_>, dir: &Arc<RealDir>, name: &Name) -> Result<()> {
        match self.format {
            Format::Overlay => {
                let object = At::Fd(Arc::new(rustix::io::fcntl_dupfd_cloexec(object, 0)?));
                object.set_xattr(&self.keys.opaque, b"y", 0)
            }
            Format::Oci => {
                let mark = Name::new(OPAQUE_FILE)?;
                match change::keeping_times(object, || change::create(object, &mark, 0o600, OFlags::WRONLY)) {
                    Ok(_) | Err(Errno::EXIST) => Ok(()),
                    Err(errno) => Err(errno),
                }
            }
            Format::Unionfs | Format::UnionfsFuse => self.mark(dir, name, true),
        }
    }

    /// A directory that was sealed has come to stand at `name`.
    pub fn sealed_in_place(&self, dir: &Arc<RealDir>, name: &Name) {
        // In the unionfs formats the mark beside a directory is what makes it opaque.
        if self.format == Format::Oci {
            self.uncover(dir, name);
        }
    }

    /// Makes the upper's directory `name`, which is empty in the union, opaque where it stands.
    ///
    /// # Errors
    /// Those of setxattr(2) and `hide`.
    pub fn cover(&self, dir: &Arc<RealDir>, name: &Name) -> Result<()> {
        if self.in_place() { dir.at(name)?.set_xattr(&self.keys.opaque, b"y", 0) } else { self.mark(dir, name, true) }
    }

    /// Makes the upper's directory `name` really empty, which is covered and holds nothing but marks, so that another one
    /// can be renamed onto it.
    ///
    /// # Errors
    /// Those of openat(2), getdents(2) and unlinkat(2).
    pub fn clear(&self, dir: &Arc<RealDir>, name: &Name) -> Result<()> {
        let inner = dir.at(name)?.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut marks = Vec::new();
        list_fd(&inner, &mut |entry, _, _| {
            marks.push(Name::new(entry)?);
            Ok(())
        })?;
        marks.iter().try_for_each(|mark| change::unlink(&inner, mark))
    }
}
