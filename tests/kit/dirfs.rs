//! `DirFs`: an `Fs` on a directory of the machine: a plain one, a mounted overlayfs, a mounted cowfs.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{self, AtFlags, Dev, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::fs::{Fd, Fs, Listed, R, Stat, When, letter, split};

type Remount = Box<dyn Fn() + Sync + Send>;

pub struct DirFs {
    label: String,
    root_path: PathBuf,
    root: Mutex<Option<std::sync::Arc<OwnedFd>>>,
    files: Mutex<HashMap<usize, std::sync::Arc<OwnedFd>>>,
    next: AtomicUsize,
    remount: Option<Remount>,
    /// Reading leaves no trace (O_NOATIME).
    traceless: bool,
}

impl DirFs {
    pub fn new(label: &str, root: &Path) -> Self {
        let this = Self {
            label: label.to_owned(),
            root_path: root.to_owned(),
            root: Mutex::new(None),
            files: Mutex::default(),
            next: AtomicUsize::new(1),
            remount: None,
            traceless: false,
        };
        this.reopen();
        this
    }

    /// `remount` unmounts and mounts again what lies at the root.
    pub fn with_remount(mut self, remount: Remount) -> Self {
        self.remount = Some(remount);
        self
    }

    /// For branches, whose times are compared.
    pub fn traceless(mut self) -> Self {
        self.traceless = true;
        self
    }

    /// Lets go of the root, so that it can be unmounted.
    pub fn leave(&self) {
        self.files.lock().unwrap().clear();
        *self.root.lock().unwrap() = None;
    }

    fn reopen(&self) {
        let fd = fs::open(&self.root_path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        *self.root.lock().unwrap() = Some(std::sync::Arc::new(fd.expect("open the root of a DirFs")));
    }

    fn root(&self) -> std::sync::Arc<OwnedFd> {
        self.root.lock().unwrap().clone().expect("DirFs was left")
    }

    fn walk(&self, path: &[u8], flags: OFlags) -> R<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        fs::openat2(self.root(), OsStr::from_bytes(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The directory of `path`, and the last component ("." for the root).
    fn parent<'a>(&self, path: &'a [u8]) -> R<(OwnedFd, &'a OsStr)> {
        let (dir, name) = split(path);
        let fd = self.walk(dir, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok((fd, OsStr::from_bytes(if name.is_empty() { b"." } else { name })))
    }

    fn file(&self, fd: Fd) -> std::sync::Arc<OwnedFd> {
        self.files.lock().unwrap().get(&fd.0).cloned().expect("no such open file")
    }

    /// For the xattr calls, which know no directory descriptor on older kernels.
    fn by_proc(dir: &OwnedFd, name: &OsStr) -> CString {
        let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.as_bytes());
        CString::new(path).unwrap()
    }

    /// utimensat of rustix in the terms of the kit.
    fn stamps(atime: When, mtime: When) -> Timestamps {
        let spec = |when: When| Timespec { tv_sec: when.0, tv_nsec: i64::from(when.1) };
        Timestamps { last_access: spec(atime), last_modification: spec(mtime) }
    }
}

#[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
pub fn stat_of(stat: &fs::Stat) -> Stat {
    Stat {
        ino: stat.st_ino,
        mode: stat.st_mode,
        nlink: stat.st_nlink as u64,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: (fs::major(stat.st_rdev), fs::minor(stat.st_rdev)),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: (stat.st_atime as i64, stat.st_atime_nsec as u32),
        mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
        ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
    }
}

fn device(rdev: (u32, u32)) -> Dev {
    fs::makedev(rdev.0, rdev.1)
}

fn sized(call: impl Fn(&mut [u8]) -> R<usize>) -> R<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let len = call(&mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

pub fn names_of(list: &[u8]) -> Vec<String> {
    let mut names: Vec<String> = list
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    names
}

impl Fs for DirFs {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn remount(&self) {
        if let Some(remount) = &self.remount {
            self.leave();
            remount();
            self.reopen();
        }
    }

    fn forget(&self) {}

    fn open(&self, path: &[u8], flags: OFlags, mode: u32) -> R<Fd> {
        let (dir, name) = self.parent(path)?;
        // A fifo would wait for its other end, in vain.
        let waits = |stat: fs::Stat| stat_of(&stat).kind() == FileType::Fifo;
        if !flags.contains(OFlags::EXCL) && fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(waits) {
            return Err(Errno::NXIO);
        }
        let flags = if self.traceless && flags == OFlags::RDONLY { flags | OFlags::NOATIME } else { flags };
        let open = |flags| {
            fs::openat(&dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(mode & 0o7777))
        };
        let fd = match open(flags) {
            // fs.protected_regular: above every filesystem the kernel refuses O_CREAT of another's file in a sticky directory.
            Err(Errno::ACCESS) if flags.contains(OFlags::CREATE) => open(flags.difference(OFlags::CREATE))?,
            other => other?,
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.files.lock().unwrap().insert(number, std::sync::Arc::new(fd));
        Ok(Fd(number))
    }

    fn close(&self, fd: Fd) -> R<()> {
        self.files.lock().unwrap().remove(&fd.0).expect("no such open file");
        Ok(())
    }

    fn pread(&self, fd: Fd, offset: u64, len: usize) -> R<Vec<u8>> {
        let mut buffer = vec![0; len];
        let got = rustix::io::pread(&*self.file(fd), &mut buffer[..], offset)?;
        buffer.truncate(got);
        Ok(buffer)
    }

    fn pwrite(&self, fd: Fd, offset: u64, data: &[u8]) -> R<usize> {
        rustix::io::pwrite(&*self.file(fd), data, offset)
    }

    fn fstat(&self, fd: Fd) -> R<Stat> {
        Ok(stat_of(&fs::fstat(&*self.file(fd))?))
    }

    fn ftruncate(&self, fd: Fd, size: u64) -> R<()> {
        fs::ftruncate(&*self.file(fd), size)
    }

    fn fchmod(&self, fd: Fd, mode: u32) -> R<()> {
        fs::fchmod(&*self.file(fd), Mode::from_raw_mode(mode))
    }

    fn fchown(&self, fd: Fd, uid: u32, gid: u32) -> R<()> {
        fs::fchown(&*self.file(fd), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
    }

    fn futimens(&self, fd: Fd, atime: When, mtime: When) -> R<()> {
        fs::futimens(&*self.file(fd), &Self::stamps(atime, mtime))
    }

    fn fsetxattr(&self, fd: Fd, name: &str, value: &[u8]) -> R<()> {
        fs::fsetxattr(&*self.file(fd), name, value, fs::XattrFlags::empty())
    }

    fn fgetxattr(&self, fd: Fd, name: &str) -> R<Vec<u8>> {
        let file = self.file(fd);
        sized(|buffer| fs::fgetxattr(&*file, name, buffer))
    }

    fn fsync(&self, fd: Fd) -> R<()> {
        fs::fsync(&*self.file(fd))
    }

    fn fallocate(&self, fd: Fd, mode: u32, offset: u64, len: u64) -> R<()> {
        fs::fallocate(&*self.file(fd), fs::FallocateFlags::from_bits_retain(mode), offset, len)
    }

    fn lseek(&self, fd: Fd, offset: u64, whence: i32) -> R<u64> {
        let from = if whence == 3 { fs::SeekFrom::Data(offset) } else { fs::SeekFrom::Hole(offset) };
        fs::seek(&*self.file(fd), from)
    }

    fn mkdir(&self, path: &[u8], mode: u32) -> R<()> {
        let (dir, name) = self.parent(path)?;
        fs::mkdirat(&dir, name, Mode::from_raw_mode(mode))
    }

    fn mknod(&self, path: &[u8], mode: u32, rdev: (u32, u32)) -> R<()> {
        let (dir, name) = self.parent(path)?;
        fs::mknodat(&dir, name, FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o7777), device(rdev))
    }

    fn symlink(&self, target: &[u8], path: &[u8]) -> R<()> {
        let (dir, name) = self.parent(path)?;
        fs::symlinkat(OsStr::from_bytes(target), &dir, name)
    }

    fn link(&self, old: &[u8], new: &[u8]) -> R<()> {
        let (old_dir, old_name) = self.parent(old)?;
        let (new_dir, new_name) = self.parent(new)?;
        fs::linkat(&old_dir, old_name, &new_dir, new_name, AtFlags::empty())
    }

    fn unlink(&self, path: &[u8]) -> R<()> {
        let (dir, name) = self.parent(path)?;
        fs::unlinkat(&dir, name, AtFlags::empty())
    }

    fn rmdir(&self, path: &[u8]) -> R<()> {
        let (dir, name) = self.parent(path)?;
        fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)
    }

    fn rename(&self, old: &[u8], new: &[u8], flags: u32) -> R<()> {
        let (old_dir, old_name) = self.parent(old)?;
        let (new_dir, new_name) = self.parent(new)?;
        fs::renameat_with(&old_dir, old_name, &new_dir, new_name, fs::RenameFlags::from_bits_retain(flags))
    }

    fn readlink(&self, path: &[u8]) -> R<Vec<u8>> {
        let (dir, name) = self.parent(path)?;
        Ok(fs::readlinkat(&dir, name, Vec::new())?.into_bytes())
    }

    fn stat(&self, path: &[u8]) -> R<Stat> {
        let (dir, name) = self.parent(path)?;
        Ok(stat_of(&fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn list(&self, path: &[u8]) -> R<Vec<Listed>> {
        let dir = self.walk(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut buffer = [const { MaybeUninit::uninit() }; 1 << 15];
        let mut entries = RawDir::new(dir.as_fd(), &mut buffer);
        let mut all = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                all.push(Listed { name: name.to_vec(), kind: letter(entry.file_type()), ino: entry.ino() });
            }
        }
        Ok(all)
    }

    fn truncate(&self, path: &[u8], size: u64) -> R<()> {
        if !matches!(self.stat(path)?.kind(), FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            return Err(Errno::INVAL);
        }
        let fd = self.open(path, OFlags::WRONLY, 0)?;
        let done = self.ftruncate(fd, size);
        self.close(fd)?;
        done
    }

    fn chmod(&self, path: &[u8], mode: u32) -> R<()> {
        if self.stat(path)?.kind() == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        let (dir, name) = self.parent(path)?;
        fs::chmodat(&dir, name, Mode::from_raw_mode(mode), AtFlags::empty())
    }

    fn chown(&self, path: &[u8], uid: u32, gid: u32) -> R<()> {
        let (dir, name) = self.parent(path)?;
        fs::chownat(&dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn utimens(&self, path: &[u8], atime: When, mtime: When) -> R<()> {
        let (dir, name) = self.parent(path)?;
        fs::utimensat(&dir, name, &Self::stamps(atime, mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn setxattr(&self, path: &[u8], name: &str, value: &[u8]) -> R<()> {
        let (dir, last) = self.parent(path)?;
        fs::lsetxattr(Self::by_proc(&dir, last), name, value, fs::XattrFlags::empty())
    }

    fn getxattr(&self, path: &[u8], name: &str) -> R<Vec<u8>> {
        let (dir, last) = self.parent(path)?;
        let place = Self::by_proc(&dir, last);
        sized(|buffer| fs::lgetxattr(&place, name, buffer))
    }

    fn listxattr(&self, path: &[u8]) -> R<Vec<String>> {
        let (dir, last) = self.parent(path)?;
        let place = Self::by_proc(&dir, last);
        Ok(names_of(&sized(|buffer| fs::llistxattr(&place, buffer))?))
    }

    fn removexattr(&self, path: &[u8], name: &str) -> R<()> {
        let (dir, last) = self.parent(path)?;
        fs::lremovexattr(Self::by_proc(&dir, last), name)
    }

    fn statfs(&self) -> R<(u64, u64)> {
        let stat = fs::fstatvfs(&*self.root())?;
        Ok((stat.f_blocks, stat.f_frsize))
    }
}
