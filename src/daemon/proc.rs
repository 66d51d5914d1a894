//! /proc as it is where a command was called, kept while it goes to another mount namespace.
//!
//! What is mounted on /proc there is the choice of whoever lives there: a tenant could show a process of his as the daemon.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, PROC_SUPER_MAGIC, StatxFlags};
use rustix::io::Errno;

use crate::daemon::attached::Device;
use crate::daemon::resolve::{Checked, describe};

/// The directory, opened.
#[derive(Debug)]
pub(crate) struct Proc(OwnedFd);

impl Proc {
    /// Opens it.
    ///
    /// # Errors
    /// A line, where /proc is not mounted.
    pub(crate) fn open() -> Checked<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open("/proc", flags, Mode::empty()).and_then(|proc| {
            let kind = rustix::fs::fstatfs(&proc)?.f_type;
            if kind == PROC_SUPER_MAGIC { Ok(proc) } else { Err(Errno::NODEV) }
        });
        opened.map(Self).map_err(|errno| format!("cannot look at /proc: {} (is it mounted?)", describe(errno)))
    }

    /// What the file `path` in it says.
    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let file = rustix::fs::openat(&self.0, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut text)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(text)
    }

    /// The value of `key:` in the file `path`.
    pub(crate) fn value(&self, path: &str, key: &str) -> Result<Option<String>, Errno> {
        let text = String::from_utf8_lossy(&self.read(path)?).into_owned();
        let mut values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        Ok(values.next().map(|value| value.trim().to_owned()))
    }

    /// What the link `path` in it says.
    pub(crate) fn link(&self, path: &str) -> Result<PathBuf, Errno> {
        use std::os::unix::ffi::OsStringExt;
        let link = rustix::fs::readlinkat(&self.0, path, Vec::new())?;
        Ok(std::ffi::OsString::from_vec(link.into_bytes()).into())
    }

    /// Whether what `path` in it leads to is the device of these numbers. Nobody is asked but the kernel.
    pub(crate) fn is_device(&self, path: &str, (major, minor): Device) -> bool {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(&self.0, path, flags, StatxFlags::TYPE).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.stx_mode.into()) == FileType::CharacterDevice
                && (stat.stx_rdev_major, stat.stx_rdev_minor) == (major, minor)
        })
    }

    /// The names in the directory `path` that are numbers.
    pub(crate) fn numbers(&self, path: &str) -> Result<Vec<i32>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.0, path, flags, Mode::empty())?;
        let mut numbers = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            numbers.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(numbers)
    }

    /// The path of a descriptor of this process, as the kernel knows it.
    pub(crate) fn path_of(&self, fd: &OwnedFd) -> Result<PathBuf, Errno> {
        self.link(&format!("self/fd/{}", fd.as_raw_fd()))
    }

    /// Makes it the working directory.
    pub(crate) fn go(&self) -> Result<(), Errno> {
        rustix::process::fchdir(&self.0)
    }
}
