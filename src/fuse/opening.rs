//! Answering opens: what is done with the data of a file, decided once for all that have it open together.
//!
//! The decision is `passthrough`'s and the engine's; here it is carried out and put into an answer.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};

use crate::fuse::convert::errno;
use crate::fuse::notify::Notices;
use crate::fuse::passthrough::{Choice, Identity, Mode, Modes};
use crate::fuse::reply::with_buffer;
use crate::union::Union;
use crate::union::error::{Errno, Result};
use crate::union::ops::behind::Stale;
use crate::union::ops::open::Facts;
use crate::union::types::{Attr, Caller, Entry, HandleId, NodeId, Opened, SetAttr};

/// The kernel's mark on the open(2) flags of an execve; no flag of open(2).
const FMODE_EXEC: i32 = 0x20;
/// Set-user-id, or set-group-id with group execute: the daemon has to see writes to such a file.
const SET_ID: u32 = 0o6000;
/// A file of up to so many bytes goes to the kernel with the first answer, which saves the request to read it.
const SENT_ALONG: u64 = 64 << 10;

/// Opens files for the adapter.
pub struct Opening {
    /// Which nodes are open, and how.
    pub modes: Arc<Modes>,
    notices: Arc<Notices>,
    direct_io: bool,
    report_close: bool,
}

impl Opening {
    /// `coherent`: old descriptors of lower files must see what is written later.
    pub fn new(union: &Union, notices: Arc<Notices>, coherent: bool, direct_io: bool) -> Self {
        let report_close = union.close_reports_errors();
        Self { modes: Arc::new(Modes::new(coherent)), notices, direct_io, report_close }
    }

    /// Opens `node` and answers.
    pub fn open(&self, union: &Union, node: NodeId, flags: i32, caller: &Caller, reply: ReplyOpen) {
        let executed = flags & FMODE_EXEC != 0;
        let flags = flags & !FMODE_EXEC;
        // Before the node's mode is locked: copying up may take long, and does not depend on it.
        let facts = match union.before_open(node, flags) {
            Ok(facts) => facts,
            Err(error) => return reply.error(errno(error)),
        };
        let shared = self.modes.of(node);
        {
            let mut mode = shared.lock();
            let ready = self.refresh(union, node, flags, facts, &mode).and_then(|facts| {
                self.open_as(union, node, (flags, executed), caller, (&facts, &mut mode), &reply)?;
                Ok(facts)
            });
            let facts = match ready {
                Ok(facts) => facts,
                Err(error) => {
                    drop(mode);
                    self.modes.tidy(node, shared);
                    return reply.error(errno(error));
                }
            };
            self.answer(union, node, flags, caller, (&facts, &mut mode), reply);
        }
        self.modes.tidy(node, shared);
    }

    /// Changes attributes of `node`, its length among them.
    ///
    /// # Errors
    /// Those of `Union::setattr`; `ESTALE` as `before_truncate`.
    pub fn set_attr(
        &self,
        union: &Union,
        node: NodeId,
        handle: Option<HandleId>,
        set: &SetAttr,
        caller: &Caller,
    ) -> Result<Attr> {
        // Who cuts by a descriptor has opened it for writing, which has split off what had to be.
        let by_name = set.size.is_some() && handle.is_none();
        if by_name {
            self.before_truncate(union, node)?;
        }
        let attr = union.setattr(node, handle, set, caller)?;
        if by_name {
            self.after_truncate(union, node)?;
        }
        Ok(attr)
    }

    /// A file has been cut: if its lower file was passed to somebody meanwhile, it is theirs alone from now on.
    ///
    /// # Errors
    /// Those of `leave_behind`.
    fn after_truncate(&self, union: &Union, node: NodeId) -> Result<()> {
        match self.before_truncate(union, node) {
            Err(Errno::STALE) => Ok(()),
            result => result,
        }
    }

    /// A file is about to be cut by its name: if it is passed to its lower file, the copy gets a node of its own first.
    ///
    /// # Errors
    /// `ESTALE` then: the kernel looks the name up again.
    fn before_truncate(&self, union: &Union, node: NodeId) -> Result<()> {
        let shared = self.modes.of(node);
        let passed = match &*shared.lock() {
            Mode::Passed(passed) => Some(passed.identity),
            Mode::Idle | Mode::Cached(_) => None,
        };
        self.modes.tidy(node, shared);
        let Some(identity) = passed else { return Ok(()) };
        if union.before_open(node, libc::O_RDWR)?.identity() == identity {
            return Ok(());
        }
        let shared = self.modes.of(node);
        shared.lock().split();
        self.modes.tidy(node, shared);
        union.leave_behind(node)?;
        Err(Errno::STALE)
    }

    /// The facts again, if another request may have copied the file up since they were found.
    fn refresh(&self, union: &Union, node: NodeId, flags: i32, facts: Facts, mode: &Mode) -> Result<Facts> {
        match mode {
            Mode::Passed(passed) if passed.identity != facts.identity() => union.before_open(node, flags),
            Mode::Passed(..) | Mode::Idle | Mode::Cached(_) => Ok(facts),
        }
    }

    /// Brings the node's mode to where this open can be counted: idle or cached, or passed to the right file.
    fn open_as(
        &self,
        union: &Union,
        node: NodeId,
        (flags, executed): (i32, bool),
        caller: &Caller,
        (facts, mode): (&Facts, &mut Mode),
        reply: &ReplyOpen,
    ) -> Result<()> {
        let worthy = self.is_worthy(union, node, flags, executed, facts)?;
        match mode.choose(facts.identity(), (only_reads(flags), worthy)) {
            Choice::Cached | Choice::Join => Ok(()),
            Choice::Split => {
                mode.split();
                union.leave_behind(node)?;
                Err(Errno::STALE)
            }
            Choice::Pass => {
                // The flags that change the file come with the open that is counted.
                let (handle, fd) = union.open_passed(node, 0, caller, (facts.identity(), true))?;
                union.release(handle);
                if let Some(backing) = fd.and_then(|fd| self.register(&fd, |fd| reply.open_backing(fd))) {
                    mode.pass(backing, facts.identity());
                }
                Ok(())
            }
        }
    }

    fn answer(
        &self,
        union: &Union,
        node: NodeId,
        flags: i32,
        caller: &Caller,
        (facts, mode): (&Facts, &mut Mode),
        reply: ReplyOpen,
    ) {
        if let Some(backing) = mode.join(!only_reads(flags)) {
            match union.open_passed(node, flags, caller, (facts.identity(), false)) {
                Ok((handle, _)) => reply.opened_passthrough(FileHandle(handle.0), self.noflush(flags), backing),
                Err(error) => {
                    mode.leave();
                    reply.error(errno(error));
                }
            }
            return;
        }
        match union.open_here(node, flags, caller) {
            Ok(opened) => {
                let sent =
                    opened.unread && matches!(mode, Mode::Idle) && self.send_along(union, node, flags, facts, &opened);
                mode.cache();
                if flags & libc::O_TRUNC != 0 && caller.uid != 0 && facts.stat.mode & SET_ID != 0 {
                    // They are gone, and the kernel, which has not cut the file itself, would let it run with them still.
                    self.notices.tell_first(Stale::Object(node));
                }
                let keep = if opened.unchanged || sent { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                reply.opened(FileHandle(opened.handle.0), self.noflush(flags) | keep | self.direct());
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Hands the kernel the data of a small file that is about to be read, and that nobody else has open.
    fn send_along(&self, union: &Union, node: NodeId, flags: i32, facts: &Facts, opened: &Opened) -> bool {
        let size = facts.stat.size;
        if !only_reads(flags) || self.direct_io || size == 0 || size > SENT_ALONG {
            return false;
        }
        with_buffer(SENT_ALONG as usize, |buffer| match union.read(opened.handle, 0, buffer) {
            // Not if it is growing: the kernel would take what is there for the whole.
            Ok(length) if length as u64 == size => self.notices.store(node, &buffer[..length]),
            // If it cannot be read, the reader will hear it.
            _ => false,
        })
    }

    /// Answers the creation of a file, whose data are passed if the kernel takes it.
    pub fn created(
        &self,
        union: &Union,
        (entry, handle): (Entry, HandleId),
        ttl: std::time::Duration,
        attr: &fuser::FileAttr,
        reply: ReplyCreate,
    ) {
        let shared = self.modes.of(entry.node);
        {
            let mut mode = shared.lock();
            let generation = Generation(entry.generation.0.into());
            if matches!(*mode, Mode::Idle)
                && let Some((fd, identity)) = self.created_file(union, handle, &entry.attr)
                && let Some(backing) = self.register(&fd, |fd| reply.open_backing(fd))
            {
                mode.pass(backing, identity);
            }
            let flags = self.noflush(0);
            match mode.join(true) {
                Some(backing) => {
                    reply.created_passthrough(&ttl, attr, generation, FileHandle(handle.0), flags, backing);
                }
                None => {
                    mode.cache();
                    reply.created(&ttl, attr, generation, FileHandle(handle.0), flags | self.direct());
                }
            }
        }
        self.modes.tidy(entry.node, shared);
    }

    fn created_file(&self, union: &Union, handle: HandleId, attr: &Attr) -> Option<(Arc<OwnedFd>, Identity)> {
        if !self.modes.usable() || self.direct_io || attr.mode & SET_ID != 0 {
            return None;
        }
        union.real_file(handle).ok()
    }

    fn is_worthy(&self, union: &Union, node: NodeId, flags: i32, executed: bool, facts: &Facts) -> Result<bool> {
        if !self.modes.usable() || self.direct_io {
            return Ok(false);
        }
        if facts.in_upper {
            return Ok(facts.stat.mode & SET_ID == 0);
        }
        // Whatever may write has been copied up; an access mode is looked at all the same.
        let may = only_reads(flags) && self.modes.lowers() && union.lowers_are_read_only();
        Ok(may && union.worth_passing(node, executed, facts)?)
    }

    /// Hands a file to the kernel; `None` if it does not take it, which only costs speed.
    fn register(
        &self,
        fd: &Arc<OwnedFd>,
        open: impl FnOnce(&OwnedFd) -> std::io::Result<BackingId>,
    ) -> Option<BackingId> {
        match open(fd) {
            Ok(backing) => Some(backing),
            Err(error) => {
                if error.raw_os_error() == Some(libc::EPERM) {
                    log::info!("the kernel takes no files from this daemon ({error}); all data go through it");
                    self.modes.refused();
                } else {
                    log::debug!("the kernel does not take a file: {error}");
                }
                None
            }
        }
    }

    fn noflush(&self, flags: i32) -> FopenFlags {
        let reads = flags & libc::O_ACCMODE == libc::O_RDONLY;
        if self.report_close && !reads { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH }
    }

    fn direct(&self) -> FopenFlags {
        if self.direct_io { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }
    }
}

/// Whether an open with these flags changes nothing.
fn only_reads(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDONLY && flags & libc::O_TRUNC == 0
}
