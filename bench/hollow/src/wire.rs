//! The bytes of the kernel's protocol (linux/fuse.h, 7.41) that the others need: where a value stands in a request, and answers made
//! ready beforehand.
//!
//! Invariant: nothing here knows what is asked or answered, only where it is written.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// fuse_in_header, fuse_out_header, fuse_entry_out, and fuse_attr at its end, in bytes.
pub(crate) const IN_HEAD: usize = 40;
pub(crate) const OUT_HEAD: usize = 16;
pub(crate) const ENTRY: usize = 128;
pub(crate) const ATTR: usize = 88;

/// How long the kernel may trust everything, in seconds.
pub(crate) const TTL: u64 = 24 * 3600;

/// A request, `bytes` as read from the device.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a>(pub(crate) &'a [u8]);

impl<'a> Asked<'a> {
    /// What follows the head.
    pub(crate) fn body(self) -> Asked<'a> {
        Asked(self.0.get(IN_HEAD..).unwrap_or_default())
    }

    pub(crate) fn u32(self, at: usize) -> u32 {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    pub(crate) fn u64(self, at: usize) -> u64 {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// The name that begins at `at`, and where the next one would.
    pub(crate) fn name(self, at: usize) -> (&'a [u8], usize) {
        let rest = self.0.get(at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
        (&rest[..length], at + length + 1)
    }
}

/// Writes 32 bits at `at`.
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

/// Writes 64 bits at `at`.
pub(crate) fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

/// A fuse_entry_out: what is told of a node.
#[derive(Clone, Copy)]
pub(crate) struct Entry(pub(crate) [u8; ENTRY]);

/// Where fuse_attr begins in it, and what in that is changed later.
const AT: usize = ENTRY - ATTR;
const SIZE: usize = AT + 8;
const MODE: usize = AT + 60;
const UID: usize = AT + 68;
const GID: usize = AT + 72;

impl Entry {
    /// A name that is not there, and may be trusted not to be.
    pub(crate) fn absent() -> Entry {
        let mut entry = Entry([0; ENTRY]);
        put64(&mut entry.0, 16, TTL);
        put64(&mut entry.0, 24, TTL);
        entry
    }

    /// The node `number`, as empty as can be, last changed at `time`.
    pub(crate) fn new(number: u64, mode: u32, owner: (u32, u32), time: u64) -> Entry {
        let mut entry = Entry::absent();
        for at in [0, AT] {
            put64(&mut entry.0, at, number);
        }
        for at in [AT + 24, AT + 32, AT + 40] {
            put64(&mut entry.0, at, time);
        }
        for (at, value) in [(MODE, mode), (AT + 64, 1), (UID, owner.0), (GID, owner.1), (AT + 80, 4096)] {
            put32(&mut entry.0, at, value);
        }
        entry
    }

    /// The node `number` as it is on disk.
    pub(crate) fn of(number: u64, metadata: &Metadata) -> Entry {
        let owner = (metadata.uid(), metadata.gid());
        let mut entry = Entry::new(number, metadata.mode(), owner, metadata.mtime().unsigned_abs());
        put64(&mut entry.0, AT + 16, metadata.blocks());
        entry.set_size(metadata.size());
        entry
    }

    fn asked(&self) -> Asked<'_> {
        Asked(&self.0)
    }

    pub(crate) fn number(&self) -> u64 {
        self.asked().u64(0)
    }

    pub(crate) fn size(&self) -> u64 {
        self.asked().u64(SIZE)
    }

    pub(crate) fn mode(&self) -> u32 {
        self.asked().u32(MODE)
    }

    /// The fuse_attr in it.
    pub(crate) fn attr(&self) -> &[u8] {
        &self.0[AT..]
    }

    pub(crate) fn set_size(&mut self, size: u64) {
        put64(&mut self.0, SIZE, size);
    }

    /// Sets the permissions; the type stays.
    pub(crate) fn set_mode(&mut self, mode: u32) {
        let mode = self.mode() & !0o7777 | mode & 0o7777;
        put32(&mut self.0, MODE, mode);
    }

    pub(crate) fn set_owner(&mut self, uid: Option<u32>, gid: Option<u32>) {
        for (at, id) in [(UID, uid), (GID, gid)] {
            if let Some(id) = id {
                put32(&mut self.0, at, id);
            }
        }
    }
}
