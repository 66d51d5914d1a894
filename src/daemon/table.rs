//! The mount table of this mount namespace: what is mounted where, read once for all who ask.
//!
//! With hundreds of mounts on a machine it is long. It is as old as its reading: who must know what came later reads anew.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::daemon::attached::Device;
use crate::daemon::proc::Proc;

/// The text of /proc/self/mountinfo.
#[derive(Debug, Default)]
pub(crate) struct MountTable(Vec<u8>);

impl MountTable {
    /// The table as it is now.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub(crate) fn read() -> std::io::Result<Self> {
        std::fs::read("/proc/self/mountinfo").map(Self)
    }

    /// The table of the namespace that this process is in now, whatever is mounted on /proc there.
    ///
    /// # Errors
    /// Those of openat(2) and read(2).
    pub(crate) fn read_in(proc: &Proc) -> Result<Self, Errno> {
        proc.read("self/mountinfo").map(Self)
    }

    /// The table as it is now; empty where there is none to read, and then nothing is known of any mount.
    pub(crate) fn read_if_any() -> Self {
        Self::read().unwrap_or_else(|error| {
            log::debug!("/proc/self/mountinfo: {error}");
            Self::default()
        })
    }

    /// The mounts; one that lies over another comes after it.
    pub(crate) fn lines(&self) -> impl DoubleEndedIterator<Item = MountLine<'_>> {
        self.0.split(|&byte| byte == b'\n').map(MountLine)
    }

    /// The mount of this number.
    pub(crate) fn of(&self, id: u64) -> Option<MountLine<'_>> {
        self.lines().find(|line| line.id() == Some(id))
    }

    /// What is seen at `point`, an absolute path without symlinks, if something is mounted just there.
    pub(crate) fn top(&self, point: &Path) -> Option<MountLine<'_>> {
        self.lines().rev().find(|line| line.point().as_deref() == Some(point))
    }
}

/// A line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountLine<'a>(&'a [u8]);

impl<'a> MountLine<'a> {
    /// The mount's number, as in statx(2) and /proc/PID/fdinfo.
    pub(crate) fn id(self) -> Option<u64> {
        std::str::from_utf8(self.field(0)?).ok()?.parse().ok()
    }

    fn field(self, index: usize) -> Option<&'a [u8]> {
        self.0.split(|&byte| byte == b' ').nth(index)
    }

    /// Which device it is.
    pub(crate) fn device(self) -> Option<Device> {
        let (major, minor) = std::str::from_utf8(self.field(2)?).ok()?.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// What of the filesystem is mounted.
    pub(crate) fn root(self) -> Option<PathBuf> {
        self.field(3).map(unescape)
    }

    /// Where it is mounted.
    pub(crate) fn point(self) -> Option<PathBuf> {
        self.field(4).map(unescape)
    }

    /// What is mounted, by the name that the mounter chose.
    pub(crate) fn source(self) -> Option<PathBuf> {
        self.after_dash(2).map(unescape)
    }

    /// The type of the filesystem.
    pub(crate) fn kind(self) -> Option<&'a [u8]> {
        self.after_dash(1)
    }

    /// Whether this mount has the option `word`.
    pub(crate) fn mounted_with(self, word: &[u8]) -> bool {
        self.field(5).is_some_and(|options| options.split(|&byte| byte == b',').any(|one| one == word))
    }

    /// Whether the filesystem, not only this mount of it, has the option `word`.
    pub(crate) fn has(self, word: &[u8]) -> bool {
        self.after_dash(3).is_some_and(|options| options.split(|&byte| byte == b',').any(|one| one == word))
    }

    /// What the filesystem's option `key` says.
    pub(crate) fn value(self, key: &[u8]) -> Option<PathBuf> {
        let options = self.after_dash(3)?.split(|&byte| byte == b',');
        let mut values = options.filter_map(|one| one.strip_prefix(key)?.strip_prefix(b"="));
        values.next().map(unescape)
    }

    /// Optional fields end with a dash of their own.
    fn after_dash(self, index: usize) -> Option<&'a [u8]> {
        self.0.split(|&byte| byte == b' ').skip_while(|field| field != b"-").nth(index)
    }
}

/// Undoes the kernel's `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    Path::new(OsStr::from_bytes(&bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table() {
        let table = b"40 28 0:35 /a\\040b /tmp/m\\134 rw,nosuid shared:5 - fuse.cowfs /a=RO:/b=RW rw,user_id=0\n";
        let table = MountTable(table.to_vec());
        let line = table.of(40).unwrap();
        assert_eq!(line.point().unwrap(), Path::new("/tmp/m\\"));
        assert_eq!(line.root().unwrap(), Path::new("/a b"));
        assert_eq!((line.kind(), line.device()), (Some(&b"fuse.cowfs"[..]), Some((0, 35))));
        assert_eq!((line.id(), line.source().as_deref()), (Some(40), Some(Path::new("/a=RO:/b=RW"))));
        assert_eq!((line.value(b"user_id"), line.value(b"user"), line.value(b"rw")), (Some("0".into()), None, None));
        assert!(line.has(b"user_id=0") && line.has(b"rw") && !line.has(b"nosuid") && !line.has(b"user_id"));
        assert!(line.mounted_with(b"nosuid") && !line.mounted_with(b"user_id=0"));
        assert!(table.top(Path::new("/tmp/m\\")).is_some() && table.top(Path::new("/tmp")).is_none());
        assert_eq!((MountLine(b"").kind(), MountLine(b"").id()), (None, None));
    }
}
