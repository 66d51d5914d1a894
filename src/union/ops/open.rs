//! Opening and closing files.
//!
//! Two ways for the data: through the daemon, by a descriptor opened now; or past it, by a descriptor that whoever
//! calls gives to the kernel, and a handle that opens its own only if it is needed.

use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use crate::union::branch::{At, Stat};
use crate::union::engine::Union;
use crate::union::error::{During, Errno, Result};
use crate::union::handle::OpenFile;
use crate::union::node::{Body, Substance};
use crate::union::types::{Caller, HandleId, NodeId, Opened};

/// From this size in bytes on, a lower file may be passed to the kernel (design: "old descriptors").
const PASSED_SIZE: u64 = 64 << 10;
/// How much of a file is looked at to tell data from text, in bytes.
const SAMPLE: usize = 4096;

/// What an open finds before it is decided how the data travel.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The file that has the data is the upper's.
    pub in_upper: bool,
    /// Its attributes; the mode is the union's.
    pub stat: Stat,
}

impl Facts {
    /// Device and inode number of the real file.
    pub fn identity(&self) -> (u64, u64) {
        self.stat.identity()
    }
}

impl Union {
    /// As open(2) of an existing file; `flags` as there. One that may write is copied up first; with O_TRUNC no byte is.
    ///
    /// # Errors
    /// `EISDIR`, `EROFS`, `ENXIO` for what is no regular file; those of copying up and of openat(2).
    pub fn open_file(&self, node: NodeId, flags: c_int, caller: &Caller) -> Result<HandleId> {
        self.before_open(node, flags)?;
        self.open_here(node, flags, caller).map(|opened| opened.handle)
    }

    /// Does what has to be done before a file is opened with `flags`: copies it up if it may be written.
    ///
    /// # Errors
    /// As `open_file`; `ESTALE` for a file that another one has replaced for all but its old descriptors.
    pub fn before_open(&self, node: NodeId, flags: c_int) -> Result<Facts> {
        let node = self.table.get(node)?;
        if node.is_dir() {
            return Err(Errno::ISDIR);
        }
        if !node.kind.is_file() {
            return Err(Errno::NXIO);
        }
        if node.left_behind.load(Ordering::Acquire) {
            return Err(Errno::STALE);
        }
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        if may_write(flags) {
            self.raise(&node, if flags.contains(OFlags::TRUNC) { 0 } else { u64::MAX })?;
        } else {
            self.know_data(&node)?;
        }
        let body = node.body.read();
        let stat = self.shown(&body, &stat_of(&body)?)?;
        Ok(match body.data_place() {
            Some(place) => Facts { in_upper: false, stat: Stat { mode: stat.mode, ..place.at()?.stat()? } },
            None => Facts { in_upper: self.stack.is_upper(body.branch), stat },
        })
    }

    /// Opens a file whose data go through the daemon.
    ///
    /// # Errors
    /// As `open_file`.
    pub fn open_here(&self, node: NodeId, flags: c_int, caller: &Caller) -> Result<Opened> {
        let node = self.table.get(node)?;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let (file, mut stat) = OpenFile::open(node.clone(), flags)?;
        if flags.contains(OFlags::TRUNC) {
            self.truncate(&node, None, 0, caller)?;
            stat = At::stat_fd(&*file.fd()?)?;
        }
        let stamp = stamp(&stat);
        let before = node.pages.swap(stamp, Ordering::AcqRel);
        Ok(Opened { handle: self.handles.add(file), unchanged: before == stamp, unread: before == 0 })
    }

    /// Opens a file whose data go past the daemon; returns a handle and, if `wanted`, an `O_PATH` descriptor of the real
    /// file for the kernel.
    ///
    /// # Errors
    /// As `open_file`; `ESTALE` if the real file is not `identity` any more.
    pub fn open_passed(
        &self,
        node: NodeId,
        flags: c_int,
        caller: &Caller,
        (identity, wanted): ((u64, u64), bool),
    ) -> Result<(HandleId, Option<Arc<OwnedFd>>)> {
        let node = self.table.get(node)?;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let fd = if wanted {
            let fd = node.with_data(|at| at.open(OFlags::PATH))?;
            if At::stat_fd(&fd)?.identity() != identity {
                return Err(Errno::STALE);
            }
            Some(Arc::new(fd))
        } else {
            None
        };
        if flags.contains(OFlags::TRUNC) {
            self.truncate(&node, None, 0, caller)?;
        }
        // What the kernel has cached of the file until now will not be what is in it.
        node.pages.store(0, Ordering::Release);
        Ok((self.handles.add(OpenFile::later(node, flags)), fd))
    }

    /// Whether a lower file's data should go past the daemon, for one page cache shared by all unions.
    ///
    /// Its old descriptors will not see what is written after a copy-up, so it must be a file that nobody follows:
    /// large, with one name, and a program or binary data. Text may be a log.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn worth_passing(&self, node: NodeId, executed: bool, facts: &Facts) -> Result<bool> {
        let stat = &facts.stat;
        if stat.nlink != 1 || stat.size < PASSED_SIZE {
            return Ok(false);
        }
        if executed || stat.mode & 0o111 != 0 {
            return Ok(true);
        }
        let node = self.table.get(node)?;
        if let Some(known) = node.substance() {
            return Ok(known == Substance::Data);
        }
        let mut sample = [0; SAMPLE];
        let fd = node.with_data(|at| at.open(OFlags::RDONLY | OFlags::NONBLOCK))?;
        // Who cannot read can open: it is the reader who hears of it.
        let Ok(length) = rustix::io::pread(&fd, &mut sample, 0).during("look at the data of", node.id) else {
            return Ok(false);
        };
        let data = sample[..length].contains(&0);
        node.set_substance(if data { Substance::Data } else { Substance::Text });
        Ok(data)
    }

    /// Leaves `node`, which has been copied up, to those who have its lower file open in the kernel's hands: no name
    /// leads to it any more, and a look-up finds the copy under another node. Its attributes stay the copy's.
    ///
    /// # Errors
    /// `ESTALE` if nobody knows it; those of openat(2).
    pub fn leave_behind(&self, node: NodeId) -> Result<()> {
        let node = self.table.get(node)?;
        let links = {
            let mut body = node.body.write();
            let at = body.at()?;
            let held = at.open(OFlags::RDONLY | OFlags::NONBLOCK).or_else(|_| at.open(OFlags::PATH))?;
            node.left_behind.store(true, Ordering::Release);
            body.held = Some(Arc::new(held));
            std::mem::take(&mut body.links)
        };
        for link in links {
            self.table.release(link.parent);
        }
        Ok(())
    }

    /// Whether the lower branches cannot be written even by a mistake: their mounts are read-only.
    pub fn lowers_are_read_only(&self) -> bool {
        self.stack.branches.iter().all(|branch| self.stack.is_upper(branch.id) || branch.read_only)
    }

    /// The real file that `handle` has open, and which one it is.
    ///
    /// # Errors
    /// `EBADF`; those of opening it again.
    pub fn real_file(&self, handle: HandleId) -> Result<(Arc<OwnedFd>, (u64, u64))> {
        let file = self.handles.get(handle)?;
        let fd = file.fd()?;
        let identity = file.node.body.read().identity;
        Ok((fd, identity))
    }

    /// Whether copying `node` up would take so long that others should not wait for it.
    pub fn is_heavy(&self, node: NodeId) -> bool {
        const HEAVY: u64 = 1 << 20;
        let Ok(node) = self.table.get(node) else { return false };
        let body = node.body.read();
        let complete = self.stack.is_upper(body.branch) && body.data_place().is_none();
        node.kind.is_file() && !complete && stat_of(&body).is_ok_and(|stat| stat.size >= HEAVY)
    }

    /// Closes a file.
    pub fn release(&self, handle: HandleId) {
        if let Some(node) = self.handles.remove(handle) {
            // Of a branch that is not there any more. The kernel may remember it for long, and nobody comes to it again.
            if node.left_behind.load(Ordering::Acquire) && !self.handles.has(&node) {
                node.body.write().let_go();
            }
            self.table.release(node);
        }
    }
}

/// Whether an open with these flags may change the file.
fn may_write(flags: OFlags) -> bool {
    flags.contains(OFlags::TRUNC) || flags & OFlags::ACCMODE != OFlags::RDONLY
}

/// The attributes of the real object; `ESTALE` if another one is in its place.
pub(super) fn stat_of(body: &Body) -> Result<Stat> {
    let stat = body.at()?.stat().map_err(|errno| if errno == Errno::NOENT { Errno::STALE } else { errno })?;
    if stat.identity() == body.identity { Ok(stat) } else { Err(Errno::STALE) }
}

/// Where a stamp begins; any number but 0 would do.
pub(super) const FIRST_STAMP: u64 = 0xcbf2_9ce4_8422_2325;

/// Goes on with a stamp: one number for all parts, FNV-1a over whole words.
pub(super) fn mix(stamp: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(stamp, |stamp, part| (stamp ^ part).wrapping_mul(0x0100_0000_01b3))
}

/// One number for a state of a file's data; never 0.
fn stamp(stat: &Stat) -> u64 {
    let mtime = [stat.mtime.sec.cast_unsigned(), stat.mtime.nsec.into()];
    mix(FIRST_STAMP, &[stat.ino, stat.size, mtime[0], mtime[1], stat.ctime.nsec.into()]).max(1)
}
