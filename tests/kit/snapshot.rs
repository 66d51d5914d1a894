//! `Snapshot`: a whole tree at one moment, and how two of them differ.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};

use rustix::fs::FileType;

use super::fs::{Fs, R, When, letter, path as join, show};

/// One object as a program sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub kind: char,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: (u32, u32),
    pub nlink: u64,
    pub ino: u64,
    /// Bytes; 0 for a directory.
    pub size: u64,
    pub mtime: When,
    pub ctime: When,
    /// What is in it, shortened, with a hash of the whole.
    pub content: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// Times from here on (the year 2400) were set on purpose.
const FAR: i64 = 13_569_465_600;

/// What two snapshots are compared by beside type, permissions, owner, device, size, content and xattrs.
#[derive(Clone, Copy, Debug)]
pub struct Strict {
    /// Modification times; those at or after this moment count as "now" and equal each other.
    pub mtime_before: Option<When>,
    /// Link counts of everything but directories.
    pub nlink: bool,
    /// Which paths share an inode number.
    pub groups: bool,
    /// Inode numbers, and times of status change.
    pub identity: bool,
}

impl Strict {
    /// For two trees that were built and changed in the same way, one after the other.
    pub const TWINS: Self =
        Self { mtime_before: Some(super::tree::NOW_FROM), nlink: true, groups: true, identity: false };
    /// For one tree that nobody may have touched.
    pub const UNTOUCHED: Self = Self { mtime_before: Some((i64::MAX, 0)), nlink: true, groups: true, identity: true };
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(pub BTreeMap<Vec<u8>, Object>);

fn digest(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    format!("{:?} #{:08x}", show(content), hasher.finish() as u32)
}

impl Snapshot {
    /// Everything below the root of `fs`, and the root; xattrs without marks (`*.overlay.*`).
    ///
    /// Panics where a listing and a stat disagree, or a listing names something twice: nothing is compared yet.
    pub fn of(fs: &dyn Fs) -> Self {
        Self::try_of(fs, false).unwrap_or_else(|text| panic!("{}: {text}", fs.label()))
    }

    /// With every extended attribute: for a branch that may not change by one byte.
    pub fn complete(fs: &dyn Fs) -> Self {
        Self::try_of(fs, true).unwrap_or_else(|text| panic!("{}: {text}", fs.label()))
    }

    pub fn try_of(fs: &dyn Fs, all_xattrs: bool) -> Result<Self, String> {
        let mut snapshot = Self::default();
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let object = Object::of(fs, &path, all_xattrs)?;
            if object.kind == 'd' {
                snapshot.list(fs, &path, &mut todo)?;
            }
            snapshot.0.insert(path, object);
        }
        Ok(snapshot)
    }

    /// The same, but for the times of these files, which are as in `other`.
    pub fn with_mtime_of(mut self, other: &Self, paths: &[&[u8]]) -> Self {
        for path in paths {
            if let (Some(object), Some(other)) = (self.0.get_mut(*path), other.0.get(*path)) {
                object.mtime = other.mtime;
            }
        }
        self
    }

    fn list(&self, fs: &dyn Fs, path: &[u8], todo: &mut Vec<Vec<u8>>) -> Result<(), String> {
        let mut listed = fs.list(path).map_err(|errno| format!("list {:?}: {errno}", show(path)))?;
        listed.sort();
        for pair in listed.windows(2) {
            if pair[0].name == pair[1].name {
                return Err(format!("{:?} is listed twice in {:?}", show(&pair[0].name), show(path)));
            }
        }
        for entry in listed {
            let child = join(path, &entry.name);
            let stat = fs.stat(&child).map_err(|errno| format!("stat of listed {:?}: {errno}", show(&child)))?;
            let seen = (entry.kind, entry.ino);
            let real = (letter(stat.kind()), stat.ino);
            // On the kernel's overlayfs without xino the numbers of a listing may be others.
            if seen != real && !(seen.0 == real.0 && fs.label().starts_with("kernel overlay")) {
                return Err(format!("{:?} is listed as {seen:?}, stat says {real:?}", show(&child)));
            }
            todo.push(child);
        }
        Ok(())
    }

    /// What differs, one line each; empty when nothing does.
    pub fn diff(&self, other: &Self, strict: &Strict) -> String {
        let mut text = String::new();
        let groups = [self.groups(), other.groups()];
        let mut paths: Vec<_> = self.0.keys().chain(other.0.keys()).collect();
        paths.sort();
        paths.dedup();
        for path in paths {
            let name = if path.is_empty() { "(root)".to_owned() } else { show(path) };
            match (self.0.get(path), other.0.get(path)) {
                (Some(a), None) => writeln!(text, "  {name}: only left: {}", a.brief()).unwrap(),
                (None, Some(b)) => writeln!(text, "  {name}: only right: {}", b.brief()).unwrap(),
                (Some(a), Some(b)) => {
                    for line in a.differs(b, strict) {
                        writeln!(text, "  {name}: {line}").unwrap();
                    }
                    if strict.groups && groups[0].get(path) != groups[1].get(path) {
                        let shown = groups.each_ref().map(|g| g.get(path).map_or("nobody".into(), |p| show(p)));
                        writeln!(text, "  {name}: shares its inode with {} / {}", shown[0], shown[1]).unwrap();
                    }
                }
                (None, None) => unreachable!(),
            }
        }
        text
    }

    /// For each path whose inode number another one has as well: the first of them.
    fn groups(&self) -> BTreeMap<&Vec<u8>, &Vec<u8>> {
        let mut first: BTreeMap<u64, Vec<&Vec<u8>>> = BTreeMap::new();
        for (path, object) in &self.0 {
            first.entry(object.ino).or_default().push(path);
        }
        first.values().filter(|paths| paths.len() > 1).flat_map(|paths| paths.iter().map(|&p| (p, paths[0]))).collect()
    }

    #[track_caller]
    pub fn assert_same(&self, other: &Self, strict: &Strict, what: &str) {
        let diff = self.diff(other, strict);
        assert!(diff.is_empty(), "{what}; left / right:\n{diff}");
    }

    /// Without the times of directories: for after a crash, where the one name that was being changed may already have
    /// moved its directory's time, or may not have put it back.
    #[must_use]
    pub fn without_directory_times(mut self) -> Self {
        for object in self.0.values_mut().filter(|object| object.kind == 'd') {
            object.mtime = (0, 0);
        }
        self
    }

    /// The tree as text, for messages.
    pub fn show(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (path, object)| {
            writeln!(text, "  {}: {}", show(path), object.brief()).unwrap();
            text
        })
    }
}

impl Object {
    fn of(fs: &dyn Fs, path: &[u8], all_xattrs: bool) -> Result<Self, String> {
        let wrap = |what: &'static str| move |errno| format!("{what} {:?}: {errno}", show(path));
        let stat = fs.stat(path).map_err(wrap("stat"))?;
        let content = match stat.kind() {
            FileType::RegularFile => digest(&fs.read(path).map_err(wrap("read"))?),
            FileType::Symlink => digest(&fs.readlink(path).map_err(wrap("readlink"))?),
            _ => String::new(),
        };
        Ok(Self {
            kind: letter(stat.kind()),
            perm: stat.perm(),
            uid: stat.uid,
            gid: stat.gid,
            rdev: stat.rdev,
            nlink: stat.nlink,
            ino: stat.ino,
            size: if stat.kind() == FileType::Directory { 0 } else { stat.size },
            mtime: stat.mtime,
            ctime: stat.ctime,
            content,
            xattrs: xattrs_of(fs, path, all_xattrs).map_err(wrap("xattrs of"))?,
        })
    }

    fn brief(&self) -> String {
        let Self { kind, perm, uid, gid, size, content, nlink, ino, .. } = self;
        format!("{kind}{perm:04o} {uid}:{gid} links {nlink} ino {ino} size {size} {content}")
    }

    fn differs(&self, other: &Self, strict: &Strict) -> Vec<String> {
        let mut lines = Vec::new();
        let mut field = |name: &str, a: String, b: String| {
            if a != b {
                lines.push(format!("{name}: {a} / {b}"));
            }
        };
        field("type", self.kind.to_string(), other.kind.to_string());
        field("mode", format!("{:04o}", self.perm), format!("{:04o}", other.perm));
        field("owner", format!("{}:{}", self.uid, self.gid), format!("{}:{}", other.uid, other.gid));
        field("device", format!("{:?}", self.rdev), format!("{:?}", other.rdev));
        field("size", self.size.to_string(), other.size.to_string());
        field("content", self.content.clone(), other.content.clone());
        field("xattrs", show_xattrs(&self.xattrs), show_xattrs(&other.xattrs));
        if let Some(start) = strict.mtime_before {
            let now = |when: When| when >= start && when.0 < FAR;
            let time = |when: When| if now(when) { "now".to_owned() } else { format!("{}.{:09}", when.0, when.1) };
            field("mtime", time(self.mtime), time(other.mtime));
        }
        if strict.nlink && self.kind != 'd' && other.kind != 'd' {
            field("links", self.nlink.to_string(), other.nlink.to_string());
        }
        if strict.identity {
            field("inode", self.ino.to_string(), other.ino.to_string());
            field("ctime", format!("{:?}", self.ctime), format!("{:?}", other.ctime));
        }
        lines
    }
}

fn show_xattrs(xattrs: &BTreeMap<String, Vec<u8>>) -> String {
    xattrs.iter().map(|(name, value)| format!("{name}={}", show(value))).collect::<Vec<_>>().join(" ")
}

fn xattrs_of(fs: &dyn Fs, path: &[u8], all: bool) -> R<BTreeMap<String, Vec<u8>>> {
    let names = fs.listxattr(path)?.into_iter().filter(|name| all || !name.contains(".overlay."));
    names.map(|name| fs.getxattr(path, &name).map(|value| (name, value))).collect()
}
