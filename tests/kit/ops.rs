//! `Op`: one call with its arguments as plain data, so that it can be listed in a table, generated, shrunk and printed.

use rustix::fs::OFlags;

use super::fs::{Fs, R, When, show};

type P = Vec<u8>;

#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    Create(P, u32),
    /// Opens with O_CREAT|O_TRUNC, writes.
    Write(P, P),
    Append(P, P),
    /// Writes at an offset, without O_TRUNC.
    Patch(P, u64, P),
    OpenTrunc(P),
    /// O_RDONLY|O_TRUNC.
    ReadTrunc(P),
    Truncate(P, u64),
    Read(P),
    Mkdir(P, u32),
    Rmdir(P),
    Unlink(P),
    Rename(P, P, u32),
    Link(P, P),
    Symlink(P, P),
    Mknod(P, u32, (u32, u32)),
    Chmod(P, u32),
    Chown(P, u32, u32),
    Utimens(P, When),
    SetXattr(P, &'static str, P),
    RemoveXattr(P, &'static str),
    Stat(P),
    /// How many names and bytes stat shows of a file.
    Counts(P),
    List(P),
    Fallocate(P, u32, u64, u64),
}

impl Op {
    /// Does it; the answer as text where there is one.
    pub fn run(&self, fs: &dyn Fs) -> R<String> {
        let done = match self {
            Self::Create(path, mode) => fs.create(path, *mode),
            Self::Write(path, data) => fs.write(path, data),
            Self::Append(path, data) => fs.append(path, data),
            Self::Patch(path, offset, data) => fs.write_at(path, OFlags::WRONLY, *offset, data),
            Self::OpenTrunc(path) => open_close(fs, path, OFlags::WRONLY | OFlags::TRUNC),
            Self::ReadTrunc(path) => open_close(fs, path, OFlags::RDONLY | OFlags::TRUNC),
            Self::Truncate(path, size) => fs.truncate(path, *size),
            Self::Read(path) => return fs.read(path).map(|data| show(&data)),
            Self::Mkdir(path, mode) => fs.mkdir(path, *mode),
            Self::Rmdir(path) => fs.rmdir(path),
            Self::Unlink(path) => fs.unlink(path),
            Self::Rename(old, new, flags) => fs.rename(old, new, *flags),
            Self::Link(old, new) => fs.link(old, new),
            Self::Symlink(target, path) => fs.symlink(target, path),
            Self::Mknod(path, mode, rdev) => fs.mknod(path, *mode, *rdev),
            Self::Chmod(path, mode) => fs.chmod(path, *mode),
            Self::Chown(path, uid, gid) => fs.chown(path, *uid, *gid),
            Self::Utimens(path, when) => fs.utimens(path, *when, *when),
            Self::SetXattr(path, name, value) => fs.setxattr(path, name, value),
            Self::RemoveXattr(path, name) => fs.removexattr(path, name),
            Self::Stat(path) => return fs.stat(path).map(|stat| format!("{:o}", stat.mode)),
            Self::Counts(path) => return fs.stat(path).map(|stat| format!("{} {}", stat.nlink, stat.size)),
            Self::List(path) => {
                fs.list(path)?;
                return Ok(fs.names(path).join(" "));
            }
            Self::Fallocate(path, mode, offset, len) => {
                let fd = fs.open(path, OFlags::RDWR, 0)?;
                let done = fs.fallocate(fd, *mode, *offset, *len);
                fs.close(fd)?;
                done
            }
        };
        done.map(|()| String::new())
    }
}

fn open_close(fs: &dyn Fs, path: &[u8], flags: OFlags) -> R<()> {
    let fd = fs.open(path, flags, 0)?;
    fs.close(fd)
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Create(p, m) => write!(f, "create {} {m:o}", show(p)),
            Self::Write(p, d) => write!(f, "write {} {}", show(p), show(d)),
            Self::Append(p, d) => write!(f, "append {} {}", show(p), show(d)),
            Self::Patch(p, o, d) => write!(f, "patch {} at {o} {}", show(p), show(d)),
            Self::OpenTrunc(p) => write!(f, "open(O_TRUNC) {}", show(p)),
            Self::ReadTrunc(p) => write!(f, "open(O_RDONLY|O_TRUNC) {}", show(p)),
            Self::Truncate(p, n) => write!(f, "truncate {} {n}", show(p)),
            Self::Read(p) => write!(f, "read {}", show(p)),
            Self::Mkdir(p, m) => write!(f, "mkdir {} {m:o}", show(p)),
            Self::Rmdir(p) => write!(f, "rmdir {}", show(p)),
            Self::Unlink(p) => write!(f, "unlink {}", show(p)),
            Self::Rename(a, b, 0) => write!(f, "rename {} {}", show(a), show(b)),
            Self::Rename(a, b, flags) => write!(f, "rename(flags {flags}) {} {}", show(a), show(b)),
            Self::Link(a, b) => write!(f, "link {} {}", show(a), show(b)),
            Self::Symlink(t, p) => write!(f, "symlink {} {}", show(t), show(p)),
            Self::Mknod(p, m, d) => write!(f, "mknod {} {m:o} {d:?}", show(p)),
            Self::Chmod(p, m) => write!(f, "chmod {} {m:o}", show(p)),
            Self::Chown(p, u, g) => write!(f, "chown {} {u}:{g}", show(p)),
            Self::Utimens(p, t) => write!(f, "utimens {} {}.{:09}", show(p), t.0, t.1),
            Self::SetXattr(p, n, v) => write!(f, "setxattr {} {n}={}", show(p), show(v)),
            Self::RemoveXattr(p, n) => write!(f, "removexattr {} {n}", show(p)),
            Self::Stat(p) => write!(f, "stat {}", show(p)),
            Self::Counts(p) => write!(f, "count {}", show(p)),
            Self::List(p) => write!(f, "list {}", show(p)),
            Self::Fallocate(p, m, o, n) => write!(f, "fallocate {} mode {m} {o}+{n}", show(p)),
        }
    }
}
