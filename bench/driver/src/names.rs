//! The names of the tree, read from a list so that making it leaves the mount's caches cold.

use std::ffi::CString;
use std::io;
use std::path::Path;

/// Files and directories, parents before children, as prepared C strings.
#[derive(Default)]
pub(crate) struct Names {
    /// Every name, in the order of the list.
    pub(crate) all: Vec<CString>,
    /// The regular files among them.
    pub(crate) files: Vec<CString>,
}

impl Names {
    /// Reads a list of lines `f PATH` and `d PATH`.
    pub(crate) fn load(list: &Path) -> io::Result<Names> {
        let mut names = Names::default();
        for line in std::fs::read(list)?.split(|byte| *byte == b'\n').filter(|line| line.len() > 2) {
            let (kind, path) = line.split_at(2);
            let path = CString::new(path)?;
            if kind == b"f " {
                names.files.push(path.clone());
            }
            names.all.push(path);
        }
        Ok(names)
    }

    /// `count` files spread evenly over the list.
    pub(crate) fn spread(&self, count: u64) -> impl Iterator<Item = &CString> {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.files.len());
        (0..count).filter_map(move |n| self.files.get(n * self.files.len() / count))
    }
}

/// Numbered names `STEM0`, `STEM1`, ..
pub(crate) fn numbered(stem: &str, count: u64) -> io::Result<Vec<CString>> {
    (0..count).map(|n| CString::new(format!("{stem}{n}")).map_err(io::Error::other)).collect()
}

/// A small generator with a fixed seed: every peer sees the same offsets.
pub(crate) struct Random(u64);

impl Random {
    /// The one sequence.
    pub(crate) fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}
