//! The words of the engine: who asks, what is named, what is answered.
//!
//! No behaviour but conversions; every value is plain data, so that a test can write it down.

use rustix::fs::FileType;

/// What the kernel knows an object of the union by; 1 is the root, as in the FUSE protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the union.
    pub const ROOT: Self = Self(1);
}

/// The inode number that stat(2) shows for an object of the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

/// A branch by its place in the stack: 0 is on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchId(pub u16);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// File system user id of the caller.
    pub uid: u32,
    /// File system group id of the caller.
    pub gid: u32,
    /// Mask of mode bits that creation takes away, as umask(2).
    pub umask: u32,
}

impl Caller {
    /// Root without a umask: the caller of the daemon's own work and of most tests.
    pub const ROOT: Self = Self { uid: 0, gid: 0, umask: 0 };
}

/// A point in time; `sec` may be negative (before 1970), `nsec` counts forward from it, as in timespec(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

/// What stat(2) shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Size in bytes.
    pub size: u64,
    /// Space used, in blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// Type and permissions, as st_mode.
    pub mode: u32,
    /// Names of this object; 1 for a merged directory (unknown, as in overlayfs).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    /// Preferred size of an I/O request in bytes.
    pub blksize: u32,
    /// The object is the upper's: only requests change it, so the kernel may trust what it knows of it.
    pub settled: bool,
}

/// What the branches below the upper are, as far as it matters for how long the kernel may trust what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Some branch is on another machine, or in another process: it may change at any time.
    Remote,
    /// An administrator may change them.
    Local,
    /// Of filesystems that never change (squashfs, erofs, ...), or there are none.
    Immutable,
}

/// An open file, and what the kernel may keep of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub handle: HandleId,
    /// The file is what it was when it was last opened: pages read then are still good.
    pub unchanged: bool,
    /// The kernel has no good page of it.
    pub unread: bool,
}

impl Attr {
    /// The type in `mode`.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
}

/// Tells an object from others that have had its number before: made of when it was made, 0 if nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Generation(pub u32);

impl Generation {
    /// That of an object made at `born`. The kernel keeps 32 bits.
    pub fn of(born: Time) -> Self {
        let mixed =
            (born.sec.cast_unsigned() ^ u64::from(born.nsec).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self((mixed >> 32) as u32)
    }
}

/// The answer to a look-up: a node, with one reference counted for the kernel until `forget`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What to call the object from now on.
    pub node: NodeId,
    /// Which object of that number it is.
    pub generation: Generation,
    /// Its attributes.
    pub attr: Attr,
}

/// A time to set, as in utimensat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present (UTIME_NOW).
    Now,
    /// That time.
    At(Time),
}

/// Which attributes to change, and to what; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes, as truncate(2).
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the data.
    pub mtime: Option<SetTime>,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Inode number, the same that stat shows.
    pub ino: Ino,
    /// Type.
    pub kind: FileType,
    /// Name; `.` and `..` are listed too.
    pub name: &'a [u8],
    /// Where the next entry starts (telldir).
    pub next: u64,
    /// The directory's layer, counted from 0, that it was found in; 0 for those too far down to be counted.
    pub layer: u8,
}

/// What statfs(2) shows: the upper's, or the top lower's where there is no upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of `frsize` bytes in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Blocks free for ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred size of an I/O request in bytes.
    pub bsize: u32,
    /// Size of a block in bytes.
    pub frsize: u32,
}
