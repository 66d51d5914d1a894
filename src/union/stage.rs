//! The private area of the upper: where objects are made ready before one step publishes them, and where removed ones
//! go to be taken apart.
//!
//! In `.cowfs` inside the upper, or in `workdir=`; on the upper's filesystem in either case, since publishing is a
//! rename or a link. Never visible in the union.
//!
//! Invariant: nothing in the stage is needed after a crash, so mounting begins by sweeping it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, RenameFlags};

use crate::union::branch::list::list_fd;
use crate::union::branch::{At, change};
use crate::union::error::{Errno, Result, best_effort};
use crate::union::name::Name;

/// The private area inside a positional upper; reserved in every union (`Name::is_reserved`).
pub const PRIVATE: &str = ".cowfs";

/// A file in the private area that is locked by whoever uses the upper, where locks of directories are not told to the
/// server (`daemon::lock`).
pub const LOCK: &str = "lock";

/// A whiteout in the private area whose further names are the whiteouts of the upper, as in overlayfs: they need no inode
/// each, so that files can be deleted on a full disk.
const WHITEOUT: &str = "whiteout";

/// The stage of one upper.
pub struct Stage {
    private: OwnedFd,
    dir: Arc<OwnedFd>,
    next: AtomicU64,
    /// Held while a whiteout gets a further name, or a successor.
    making: Mutex<()>,
    /// What the filesystem can do.
    pub can: Abilities,
}

/// What the upper's filesystem can do, found out by trying in the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// O_TMPFILE.
    pub unnamed: bool,
    /// RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT.
    pub rename_flags: bool,
    /// Character device 0:0.
    pub whiteout_device: bool,
    /// `trusted.*` attributes.
    pub trusted_xattr: bool,
    /// `user.*` attributes.
    pub user_xattr: bool,
}

impl Stage {
    /// Opens the private area, sweeps the stage and finds out what the filesystem can do.
    ///
    /// # Errors
    /// Those of mkdirat(2), openat(2) and of removing what a crash left behind.
    pub fn open(upper: BorrowedFd<'_>, workdir: Option<BorrowedFd<'_>>) -> Result<Self> {
        let (private, name) = match workdir {
            Some(workdir) => (rustix::io::fcntl_dupfd_cloexec(workdir, 0)?, "work"),
            None => {
                let name = Name::new(PRIVATE)?;
                (change::keeping_times(upper, || make_dir(upper, &name))?, "stage")
            }
        };
        let dir = Arc::new(make_dir(private.as_fd(), &Name::new(name)?)?);
        sweep(dir.as_fd())?;
        let mut stage = Self {
            private,
            dir,
            next: AtomicU64::new(0),
            making: Mutex::new(()),
            can: Abilities {
                unnamed: false,
                rename_flags: false,
                whiteout_device: false,
                trusted_xattr: false,
                user_xattr: false,
            },
        };
        stage.can = stage.probe()?;
        Ok(stage)
    }

    fn probe(&self) -> Result<Abilities> {
        let at = At::Fd(self.dir.clone());
        let xattr = |key| at.set_xattr(key, b"y", 0).and_then(|()| at.remove_xattr(key)).is_ok();
        let whiteout_device = self.new_whiteout().is_ok();
        Ok(Abilities {
            unnamed: change::unnamed(&self.dir, 0o600).is_ok(),
            rename_flags: self.probe_rename().is_ok(),
            whiteout_device,
            trusted_xattr: xattr(c"trusted.overlay.probe"),
            user_xattr: xattr(c"user.overlay.probe"),
        })
    }

    fn probe_rename(&self) -> Result<()> {
        let (a, b) = (self.temp()?, self.temp()?);
        change::mkdir(&self.dir, &a.name, 0o700)?;
        change::rename(&self.dir, &a.name, &self.dir, &b.name, RenameFlags::NOREPLACE)?;
        change::rename(&self.dir, &b.name, &self.dir, &a.name, RenameFlags::WHITEOUT)?;
        change::rename(&self.dir, &b.name, &self.dir, &a.name, RenameFlags::EXCHANGE)
    }

    /// Makes the whiteout that others are further names of; one that has as many as it can have is left to them.
    fn new_whiteout(&self) -> Result<()> {
        let name = Name::new(WHITEOUT)?;
        match change::unlink(&self.private, &name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        change::mknod(&self.private, &name, 0o020_000, (0, 0))
    }

    /// Puts a whiteout at `name` in `dir`, where nothing is.
    ///
    /// # Errors
    /// Those of linkat(2) and mknodat(2).
    pub fn whiteout(&self, dir: impl AsFd, name: &Name) -> Result<()> {
        let whiteout = Name::new(WHITEOUT)?;
        let _alone = self.making.lock();
        match change::link(&self.private, &whiteout, &dir, name) {
            Err(Errno::MLINK | Errno::NOENT) => {
                self.new_whiteout()?;
                change::link(&self.private, &whiteout, dir, name)
            }
            // A filesystem that allows one name only.
            Err(Errno::PERM | Errno::OPNOTSUPP) => change::mknod(dir, name, 0o020_000, (0, 0)),
            other => other,
        }
    }

    /// Replaces the object `name` in `dir` by a whiteout, without an inode of its own; the object is removed.
    ///
    /// # Errors
    /// Those of linkat(2) and renameat2(2).
    pub fn exchange_for_whiteout(&self, dir: impl AsFd, name: &Name) -> Result<()> {
        let staged = self.temp()?;
        self.whiteout(&self.dir, &staged.name)?;
        staged.publish(dir, name, RenameFlags::EXCHANGE)
    }

    /// The stage's directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The private area around the stage, where the index lives.
    pub fn private(&self) -> BorrowedFd<'_> {
        self.private.as_fd()
    }

    /// A name in the stage that nobody else uses; whatever bears it when the value is dropped is removed.
    ///
    /// # Errors
    /// None today; a `Name` is made.
    pub fn temp(&self) -> Result<Staged<'_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(Staged { stage: self, name: Name::new(format!("{number:x}"))?, published: false })
    }

    /// Moves `name` out of `dir` into the stage, where it is taken apart when the value is dropped. With
    /// `RenameFlags::WHITEOUT` the same step leaves a whiteout.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn take(&self, dir: impl AsFd, name: &Name, flags: RenameFlags) -> Result<Staged<'_>> {
        let staged = self.temp()?;
        change::rename(dir, name, &self.dir, &staged.name, flags)?;
        Ok(staged)
    }

    /// Removes the private area if nothing is left in it: an upper that holds nothing of cowfs's own can be handed to
    /// anybody.
    pub fn close(&self, upper: BorrowedFd<'_>, workdir: bool) {
        best_effort("sweep the stage", sweep(self.fd()));
        let whiteout = Name::new(WHITEOUT).and_then(|name| change::remove_tree(self.private(), &name));
        best_effort("remove the stage's whiteout", whiteout);
        let remove = |dir: BorrowedFd<'_>, name: &str| match Name::new(name).and_then(|name| change::rmdir(dir, &name))
        {
            Err(Errno::NOTEMPTY | Errno::NOENT) => Ok(()),
            other => other,
        };
        if !workdir {
            best_effort("remove the stage", remove(self.private(), "stage"));
        }
        // Last of all that others who wait for it would use.
        let lock = Name::new(LOCK).and_then(|name| change::remove_tree(self.private(), &name));
        best_effort("remove the lock", lock);
        if workdir {
            return;
        }
        best_effort("remove the private area", change::keeping_times(upper, || remove(upper, PRIVATE)));
    }
}

/// A name in the stage, and the object under it until it is published.
pub struct Staged<'a> {
    stage: &'a Stage,
    /// Its name in the stage.
    pub name: Name,
    published: bool,
}

impl Staged<'_> {
    /// The stage's directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.stage.fd()
    }

    /// The object, as long as it is in the stage.
    pub fn at(&self) -> At {
        At::Name(self.stage.dir.clone(), self.name.clone())
    }

    /// Moves the object to its place: the one step that shows it. See renameat2(2) for `flags`.
    ///
    /// With `EXCHANGE`, what stood there before is now in the stage and will be removed.
    ///
    /// # Errors
    /// Those of renameat2(2); the object is removed then.
    pub fn publish(mut self, dir: impl AsFd, name: &Name, flags: RenameFlags) -> Result<()> {
        change::rename(self.dir(), &self.name, dir, name, flags)?;
        self.published = !flags.contains(RenameFlags::EXCHANGE);
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.published {
            best_effort("clear the stage", change::remove_tree(self.stage.fd(), &self.name));
        }
    }
}

/// Opens the directory `name`, made with mode 0700 if it is not there.
pub(crate) fn make_dir(dir: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd> {
    match change::mkdir(dir, name, 0o700) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name.as_c_str(), flags, Mode::empty())
}

/// Removes everything in `dir`.
fn sweep(dir: BorrowedFd<'_>) -> Result<()> {
    let mut names = Vec::new();
    list_fd(dir, &mut |name, _, _| {
        names.push(Name::new(name)?);
        Ok(())
    })?;
    names.iter().try_for_each(|name| change::remove_tree(dir, name))
}
