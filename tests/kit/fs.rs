//! `Fs`: a tree of files as a program sees it, by paths and open files.
//!
//! Paths are relative byte strings; the empty path is the root. No path leads through a symbolic link.

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

pub type R<T> = Result<T, Errno>;

/// An open file of an `Fs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fd(pub usize);

/// Seconds and nanoseconds since 1970, the latter counting forward.
pub type When = (i64, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub ino: u64,
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: (u32, u32),
    pub size: u64,
    pub blocks: u64,
    pub atime: When,
    pub mtime: When,
    pub ctime: When,
}

impl Stat {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
    pub fn perm(&self) -> u32 {
        self.mode & 0o7777
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub name: Vec<u8>,
    pub kind: char,
    pub ino: u64,
}

/// One letter for a type, as `ls -l` has it.
pub fn letter(kind: FileType) -> char {
    match kind {
        FileType::RegularFile => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Unknown => '?',
    }
}

pub const NOREPLACE: u32 = 1;
pub const EXCHANGE: u32 = 2;
pub const WHITEOUT: u32 = 4;

pub const S_IFREG: u32 = 0o100_000;
pub const S_IFIFO: u32 = 0o010_000;
pub const S_IFCHR: u32 = 0o020_000;
pub const S_IFBLK: u32 = 0o060_000;
pub const S_IFSOCK: u32 = 0o140_000;

pub trait Fs: Sync {
    /// What this is, for messages.
    fn label(&self) -> String;
    /// Unmounts and mounts again, where there is something to mount. No file may be open.
    fn remount(&self);
    /// The kernel forgets every node that nobody has open, as under memory pressure.
    fn forget(&self);

    fn open(&self, path: &[u8], flags: OFlags, mode: u32) -> R<Fd>;
    fn close(&self, fd: Fd) -> R<()>;
    fn pread(&self, fd: Fd, offset: u64, len: usize) -> R<Vec<u8>>;
    fn pwrite(&self, fd: Fd, offset: u64, data: &[u8]) -> R<usize>;
    fn fstat(&self, fd: Fd) -> R<Stat>;
    fn ftruncate(&self, fd: Fd, size: u64) -> R<()>;
    fn fchmod(&self, fd: Fd, mode: u32) -> R<()>;
    fn fchown(&self, fd: Fd, uid: u32, gid: u32) -> R<()>;
    fn futimens(&self, fd: Fd, atime: When, mtime: When) -> R<()>;
    fn fsetxattr(&self, fd: Fd, name: &str, value: &[u8]) -> R<()>;
    fn fgetxattr(&self, fd: Fd, name: &str) -> R<Vec<u8>>;
    fn fsync(&self, fd: Fd) -> R<()>;
    /// `mode` as fallocate(2).
    fn fallocate(&self, fd: Fd, mode: u32, offset: u64, len: u64) -> R<()>;
    /// SEEK_DATA (3) and SEEK_HOLE (4).
    fn lseek(&self, fd: Fd, offset: u64, whence: i32) -> R<u64>;

    fn mkdir(&self, path: &[u8], mode: u32) -> R<()>;
    fn mknod(&self, path: &[u8], mode: u32, rdev: (u32, u32)) -> R<()>;
    fn symlink(&self, target: &[u8], path: &[u8]) -> R<()>;
    fn link(&self, old: &[u8], new: &[u8]) -> R<()>;
    fn unlink(&self, path: &[u8]) -> R<()>;
    fn rmdir(&self, path: &[u8]) -> R<()>;
    /// `flags` as renameat2(2).
    fn rename(&self, old: &[u8], new: &[u8], flags: u32) -> R<()>;
    fn readlink(&self, path: &[u8]) -> R<Vec<u8>>;
    /// lstat(2).
    fn stat(&self, path: &[u8]) -> R<Stat>;
    /// Without `.` and `..`, in the order of the listing.
    fn list(&self, path: &[u8]) -> R<Vec<Listed>>;
    fn truncate(&self, path: &[u8], size: u64) -> R<()>;
    fn chmod(&self, path: &[u8], mode: u32) -> R<()>;
    /// lchown(2).
    fn chown(&self, path: &[u8], uid: u32, gid: u32) -> R<()>;
    /// Does not follow a symbolic link.
    fn utimens(&self, path: &[u8], atime: When, mtime: When) -> R<()>;
    fn setxattr(&self, path: &[u8], name: &str, value: &[u8]) -> R<()>;
    fn getxattr(&self, path: &[u8], name: &str) -> R<Vec<u8>>;
    fn listxattr(&self, path: &[u8]) -> R<Vec<String>>;
    fn removexattr(&self, path: &[u8], name: &str) -> R<()>;
    /// Blocks in all, bytes of one block.
    fn statfs(&self) -> R<(u64, u64)>;

    // What is made of the above.

    fn create(&self, path: &[u8], mode: u32) -> R<()> {
        let fd = self.open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)?;
        self.close(fd)
    }

    /// Opens with `flags`, writes everything at `offset`, closes.
    fn write_at(&self, path: &[u8], flags: OFlags, offset: u64, data: &[u8]) -> R<()> {
        let fd = self.open(path, flags, 0o644)?;
        let done = write_all(self, fd, offset, data);
        self.close(fd)?;
        done
    }

    /// As a shell's `>`: creates or truncates.
    fn write(&self, path: &[u8], data: &[u8]) -> R<()> {
        self.write_at(path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC, 0, data)
    }

    /// As a shell's `>>`, but for creation.
    fn append(&self, path: &[u8], data: &[u8]) -> R<()> {
        let fd = self.open(path, OFlags::WRONLY | OFlags::APPEND, 0)?;
        // The kernel turns the end of the file into an offset before it asks a FUSE daemon to write.
        let done = self.fstat(fd).and_then(|stat| write_all(self, fd, stat.size, data));
        self.close(fd)?;
        done
    }

    fn read(&self, path: &[u8]) -> R<Vec<u8>> {
        let fd = self.open(path, OFlags::RDONLY, 0)?;
        let all = read_all(self, fd);
        self.close(fd)?;
        all
    }

    fn exists(&self, path: &[u8]) -> bool {
        match self.stat(path) {
            Ok(_) => true,
            Err(Errno::NOENT) => false,
            Err(errno) => panic!("{}: stat {}: {errno}", self.label(), show(path)),
        }
    }

    fn names(&self, path: &[u8]) -> Vec<String> {
        let mut names: Vec<_> = self.list(path).expect("list").iter().map(|entry| show(&entry.name)).collect();
        names.sort();
        names
    }

    fn ino(&self, path: &[u8]) -> u64 {
        self.stat(path).unwrap_or_else(|errno| panic!("{}: stat {}: {errno}", self.label(), show(path))).ino
    }
}

fn write_all<F: Fs + ?Sized>(fs: &F, fd: Fd, offset: u64, data: &[u8]) -> R<()> {
    let mut done = 0;
    while done < data.len() {
        let chunk = &data[done..data.len().min(done + (1 << 20))];
        done += fs.pwrite(fd, offset + done as u64, chunk)?;
    }
    Ok(())
}

fn read_all<F: Fs + ?Sized>(fs: &F, fd: Fd) -> R<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let chunk = fs.pread(fd, all.len() as u64, 1 << 20)?;
        if chunk.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&chunk);
    }
}

/// A path or content as readable text; long ones shortened.
pub fn show(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    if text.len() > 60 { format!("{}..({} bytes)", &text[..24], bytes.len()) } else { text }
}

/// `dir` and `name` joined; the empty path is the root.
pub fn path(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The directory and the last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Whether `path` is `dir` or lies below it.
pub fn within(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path == dir || (path.starts_with(dir) && path[dir.len()] == b'/')
}
