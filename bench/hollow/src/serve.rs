//! Answering requests from the tree in memory.
//!
//! Invariants: what the kernel is told to keep is what cowfs tells it for static branches, and its answers are ready, so
//! that the same requests come and an answer is found and copied, once, and sent from one piece of memory; the tree is locked while an
//! answer is put together, never while it is sent.
//!
//! Requests that no workload makes are answered ENOSYS. The start of the connection is not here.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use libc::{ENODATA, ENOENT, ENOSYS, ENOTTY};
use rustix::io::Errno;

use crate::tree::{Dir, Tree};
use crate::wire::{ATTR, Asked, ENTRY, Entry, OUT_HEAD, TTL, put32, put64};

/// The largest request for data, in bytes.
const MAX_DATA: usize = crate::wanted::MAX_DATA as usize;
const PAGE: usize = 4096;

#[repr(align(4096))]
struct Zeros([u8; MAX_DATA]);
static ZEROS: Zeros = Zeros([0; MAX_DATA]);

/// The kernel's numbers for requests, and for the one notice.
mod code {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const READDIR: u32 = 28;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const IOCTL: u32 = 39;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const NOTIFY_STORE: u32 = 4;
}

/// FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_PASSTHROUGH.
const KEEP: u32 = 1 << 1;
const NOFLUSH: u32 = 1 << 5;
const PASSTHROUGH: u32 = 1 << 7;

/// What is served, by all threads.
pub(crate) struct Hollow {
    tree: RwLock<Tree>,
    /// The memory to which all files that are made are written, by the kernel itself.
    backing: Option<u32>,
}

/// What a request is answered.
enum Answer {
    /// So many bytes, which have been put behind the head of the answer.
    Bytes(usize),
    /// So many zeros.
    Zeros(usize),
    Error(i32),
    Nothing,
}

/// What is put into the answer.
type Out<'a> = &'a mut [u8];

impl Hollow {
    /// Serves this tree; `backing`: a file of memory, as the kernel knows it.
    pub(crate) fn new(tree: Tree, backing: Option<u32>) -> Hollow {
        Hollow { tree: RwLock::new(tree), backing }
    }

    fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(|poison| poison.into_inner())
    }

    fn change(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Answers what comes from the device until the mount is gone.
    pub(crate) fn serve(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        // Each begins with a page, so that a small one lies in one.
        let (mut asked, mut answer) = (vec![0; MAX_DATA + 2 * PAGE], vec![0; MAX_DATA + 2 * PAGE]);
        let (asked, answer) = (on_page(&mut asked), on_page(&mut answer));
        loop {
            match rustix::io::read(device, &mut *asked) {
                Ok(length) => self.reply(device, Asked(&asked[..length]), answer)?,
                Err(Errno::NODEV) => return Ok(()),
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn reply(&self, device: BorrowedFd<'_>, asked: Asked<'_>, out: Out<'_>) -> io::Result<()> {
        let (head, rest) = out.split_at_mut(OUT_HEAD);
        let (length, error, zeros) = match self.answer(device, asked, rest) {
            Answer::Bytes(length) => (length, 0, 0),
            Answer::Zeros(zeros) => (0, 0, zeros),
            Answer::Error(error) => (0, error, 0),
            Answer::Nothing => return Ok(()),
        };
        put32(head, 0, (OUT_HEAD + length + zeros) as u32);
        put32(head, 4, error.wrapping_neg() as u32);
        put64(head, 8, asked.u64(8));
        let sent = if zeros == 0 {
            rustix::io::write(device, &out[..OUT_HEAD + length])
        } else {
            rustix::io::writev(device, &[IoSlice::new(head), IoSlice::new(&ZEROS.0[..zeros])])
        };
        match sent {
            // Who asked is gone.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn answer(&self, device: BorrowedFd<'_>, asked: Asked<'_>, out: Out<'_>) -> Answer {
        let (node, body) = (asked.u64(16), asked.body());
        match asked.u32(4) {
            code::LOOKUP => self.lookup(node, body.name(0).0, out),
            code::GETATTR => put_attr(&self.tree().node(node).entry, out),
            code::SETATTR => self.set_attr(node, body, out),
            code::OPEN => self.open(device, node, body.u32(0), out),
            code::READ => {
                let left = self.tree().node(node).entry.size().saturating_sub(body.u64(8));
                Answer::Zeros(left.min(body.u32(16).into()) as usize)
            }
            code::RELEASE | code::FSYNC | code::DESTROY => Answer::Bytes(0),
            code::FORGET | code::BATCH_FORGET | code::INTERRUPT => Answer::Nothing,
            code::READDIR => self.list(node, body, out, put_name),
            code::READDIRPLUS => self.list(node, body, out, put_entry),
            code::CREATE => {
                let mode = libc::S_IFREG | body.u32(4) & !body.u32(8) & 0o7777;
                self.make(asked, mode, body.name(16).0, out);
                put_opened(&mut out[ENTRY..], NOFLUSH, self.backing);
                Answer::Bytes(ENTRY + 16)
            }
            code::MKDIR => {
                let mode = libc::S_IFDIR | body.u32(0) & !body.u32(4) & 0o7777;
                self.make(asked, mode, body.name(8).0, out)
            }
            code::WRITE => self.write(node, body, out),
            code::UNLINK | code::RMDIR => found(self.change().remove(node, body.name(0).0)),
            code::RENAME => self.rename(node, body, 8),
            code::RENAME2 => self.rename(node, body, 16),
            code::GETXATTR => Answer::Error(ENODATA),
            code::LISTXATTR => Answer::Bytes(put_no_names(body, out)),
            code::IOCTL => Answer::Error(ENOTTY),
            code::STATFS => put_space(out),
            _ => Answer::Error(ENOSYS),
        }
    }

    fn lookup(&self, parent: u64, name: &[u8], out: Out<'_>) -> Answer {
        let tree = self.tree();
        let node = tree.dir(parent).and_then(|dir| dir.get(name)).unwrap_or(0);
        out[..ENTRY].copy_from_slice(&tree.node(node).entry.0);
        Answer::Bytes(ENTRY)
    }

    fn set_attr(&self, node: u64, body: Asked<'_>, out: Out<'_>) -> Answer {
        let mut tree = self.change();
        let entry = &mut tree.node_mut(node).entry;
        // FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE.
        let given = |bit| body.u32(0) & bit != 0;
        if given(1) {
            entry.set_mode(body.u32(68));
        }
        entry.set_owner(given(2).then(|| body.u32(76)), given(4).then(|| body.u32(80)));
        if given(8) {
            entry.set_size(body.u64(16));
        }
        put_attr(entry, out)
    }

    fn open(&self, device: BorrowedFd<'_>, number: u64, flags: u32, out: Out<'_>) -> Answer {
        let reads = flags as i32 & (libc::O_ACCMODE | libc::O_TRUNC) == libc::O_RDONLY;
        let (made, unsent) = {
            let tree = self.tree();
            let node = tree.node(number);
            let size = node.entry.size() as usize;
            let unsent = reads && (1..=MAX_DATA).contains(&size) && !node.sent.swap(true, Relaxed);
            (node.made, unsent.then_some(size))
        };
        if let Some(size) = unsent {
            store(device, number, size, out);
        }
        put_opened(out, NOFLUSH | KEEP, self.backing.filter(|_| made));
        Answer::Bytes(16)
    }

    /// Puts what is made there.
    fn make(&self, asked: Asked<'_>, mode: u32, name: &[u8], out: Out<'_>) -> Answer {
        let mut tree = self.change();
        let made = tree.make(asked.u64(16), name, mode, (asked.u32(24), asked.u32(28)));
        out[..ENTRY].copy_from_slice(&tree.node(made).entry.0);
        Answer::Bytes(ENTRY)
    }

    fn write(&self, node: u64, body: Asked<'_>, out: Out<'_>) -> Answer {
        let mut tree = self.change();
        let entry = &mut tree.node_mut(node).entry;
        let end = body.u64(8).saturating_add(body.u32(16).into());
        entry.set_size(entry.size().max(end));
        put64(out, 0, body.u32(16).into());
        Answer::Bytes(8)
    }

    /// The names stand at `at`.
    fn rename(&self, parent: u64, body: Asked<'_>, at: usize) -> Answer {
        let (old, at) = body.name(at);
        found(self.change().rename((parent, old), (body.u64(0), body.name(at).0)))
    }

    /// Lists with `put`, which says how much room it took, or `None` for none left.
    fn list(&self, node: u64, body: Asked<'_>, out: Out<'_>, put: Put) -> Answer {
        let tree = self.tree();
        let Some(dir) = tree.dir(node) else { return Answer::Error(ENOENT) };
        let (from, room) = (body.u64(8), (body.u32(16) as usize).min(MAX_DATA));
        let mut length = 0;
        for (next, name, number) in names(node, dir, from) {
            match put(&mut out[length..room], &tree.node(number).entry, next, name) {
                Some(more) => length += more,
                None => break,
            }
        }
        Answer::Bytes(length)
    }
}

/// Names of a directory from a position on, each with the position after it.
fn names(node: u64, dir: &Dir, from: u64) -> impl Iterator<Item = (u64, &[u8], u64)> {
    let dots = [(1, &b"."[..], node), (2, b"..", dir.parent)].into_iter().skip(from as usize);
    let rest = dir.from(from.saturating_sub(2) as usize);
    dots.chain(rest.map(|(next, listed)| (next as u64 + 2, &*listed.name, listed.node)))
}

/// Puts a name of a listing, what it is, and the position after it.
type Put = fn(Out<'_>, &Entry, u64, &[u8]) -> Option<usize>;

/// A fuse_dirent.
fn put_name(out: Out<'_>, entry: &Entry, next: u64, name: &[u8]) -> Option<usize> {
    let length = (24 + name.len()).next_multiple_of(8);
    let out = out.get_mut(..length)?;
    put64(out, 0, entry.number());
    put64(out, 8, next);
    put32(out, 16, name.len() as u32);
    put32(out, 20, entry.mode() >> 12 & 0o17);
    out[24..24 + name.len()].copy_from_slice(name);
    out[24 + name.len()..].fill(0);
    Some(length)
}

/// A fuse_direntplus.
fn put_entry(out: Out<'_>, entry: &Entry, next: u64, name: &[u8]) -> Option<usize> {
    let (head, rest) = out.split_at_mut_checked(ENTRY)?;
    let length = put_name(rest, entry, next, name)?;
    head.copy_from_slice(&entry.0);
    Some(ENTRY + length)
}

/// A fuse_attr_out.
fn put_attr(entry: &Entry, out: Out<'_>) -> Answer {
    put64(out, 0, TTL);
    put64(out, 8, 0);
    out[16..16 + ATTR].copy_from_slice(entry.attr());
    Answer::Bytes(16 + ATTR)
}

/// A fuse_open_out.
fn put_opened(out: Out<'_>, flags: u32, backing: Option<u32>) {
    put64(out, 0, 0);
    // What the kernel reads and writes by itself it does not keep.
    put32(out, 8, if backing.is_some() { flags & !KEEP | PASSTHROUGH } else { flags });
    put32(out, 12, backing.unwrap_or(0));
}

/// A fuse_getxattr_out, or an empty list.
fn put_no_names(body: Asked<'_>, out: Out<'_>) -> usize {
    put64(out, 0, 0);
    if body.u32(0) == 0 { 8 } else { 0 }
}

/// A fuse_statfs_out.
fn put_space(out: Out<'_>) -> Answer {
    out[..80].fill(0);
    for at in [0, 8, 16, 24, 32] {
        put64(out, at, 1 << 30);
    }
    for (at, value) in [(40, PAGE as u32), (44, 255), (48, PAGE as u32)] {
        put32(out, at, value);
    }
    Answer::Bytes(80)
}

/// Gives the kernel the data of a file that is about to be read for the first time.
fn store(device: BorrowedFd<'_>, node: u64, size: usize, out: Out<'_>) {
    // A fuse_out_header and a fuse_notify_store_out.
    let head = &mut out[..OUT_HEAD + 24];
    head.fill(0);
    put32(head, 0, (OUT_HEAD + 24 + size) as u32);
    put32(head, 4, code::NOTIFY_STORE);
    put64(head, OUT_HEAD, node);
    put32(head, OUT_HEAD + 16, size as u32);
    // If it is not taken the kernel asks.
    let _ = rustix::io::writev(device.as_fd(), &[IoSlice::new(head), IoSlice::new(&ZEROS.0[..size])]);
}

fn found(found: bool) -> Answer {
    if found { Answer::Bytes(0) } else { Answer::Error(ENOENT) }
}

/// The rest of a buffer, from the first page that begins in it.
fn on_page(buffer: &mut [u8]) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(PAGE).min(buffer.len());
    &mut buffer[start..]
}
