//! `Stack`: branches on a real filesystem, and the ways to look at them: the engine, the kernel's overlayfs, the flat
//! tree on a plain directory.
//!
//! Invariant: when a `Stack` goes, its read-only branches are what they were, to the last attribute.

use std::cell::Cell;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use cowfs::union::options::{AsideKey, Format, Options};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use super::dirfs::DirFs;
use super::enginefs::{BranchPath, Dcache, EngineFs};
use super::snapshot::{Snapshot, Strict};
use super::tree::Tree;

pub struct Stack {
    dir: TempDir,
    trees: Vec<Tree>,
    upper: bool,
    pub format: Format,
    lower_format: Format,
    pub options: Options,
    guards: Vec<Snapshot>,
}

static IN_MEMORY: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The uppers of stacks made by this thread keep owners and modes in attributes.
    pub static OWNERS_ASIDE: Cell<bool> = const { Cell::new(false) };
}

/// How owners are kept, and in which attribute of an upper's root that stands.
pub const ASIDE: (AsideKey, &str) = (AsideKey::User, "user.containers.override_stat");

/// From now on this process puts its branches on tmpfs if there is one that can hold marks: for tables of thousands of
/// small trees. `COWFS_TEST_DIR` goes before.
pub fn in_memory() {
    let probe = || {
        let dir = tempfile::tempdir_in("/dev/shm").ok()?;
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.path(), "user.cowfs-test", b"", flags).ok()?;
        rustix::fs::setxattr(dir.path(), "trusted.cowfs-test", b"", flags).ok()
    };
    IN_MEMORY.store(probe().is_some(), Ordering::Relaxed);
}

/// A fresh directory, below `COWFS_TEST_DIR` if that is set.
pub fn fresh_dir() -> TempDir {
    rustix::process::umask(rustix::fs::Mode::empty());
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("cowfs-test-");
        builder
    };
    match std::env::var_os("COWFS_TEST_DIR") {
        Some(place) => builder().tempdir_in(place),
        None if IN_MEMORY.load(Ordering::Relaxed) => builder().tempdir_in("/dev/shm"),
        None => builder().tempdir(),
    }
    .expect("a directory for a test")
}

impl Stack {
    /// Trees top first; the first is the upper.
    pub fn new(format: Format, trees: &[Tree]) -> Self {
        Self::of(format, format, trees, true)
    }

    /// Lower branches alone.
    pub fn read_only(format: Format, trees: &[Tree]) -> Self {
        Self::of(format, format, trees, false)
    }

    pub fn of(format: Format, lower_format: Format, trees: &[Tree], upper: bool) -> Self {
        let dir = fresh_dir();
        let aside = (upper && OWNERS_ASIDE.get()).then_some(ASIDE.0);
        let options = Options { format: upper.then_some(format), volatile: true, aside, ..Options::default() };
        let mut stack = Self { dir, trees: trees.to_vec(), upper, format, lower_format, options, guards: vec![] };
        for (place, tree) in trees.iter().enumerate() {
            std::fs::create_dir(stack.path(place)).unwrap();
            tree.build(&stack.branch(place), stack.format_of(place));
        }
        if aside.is_some() {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(stack.path(0), ASIDE.1, b"0:0:755", flags).expect("mark the upper");
        }
        stack.guard();
        stack
    }

    /// Takes what the lower branches hold now as what they must hold in the end.
    pub fn guard(&mut self) {
        self.guards = self.lowers().map(|place| Snapshot::complete(&self.branch(place))).collect();
    }

    fn lowers(&self) -> std::ops::Range<usize> {
        usize::from(self.upper)..self.trees.len()
    }

    fn format_of(&self, place: usize) -> Format {
        if self.upper && place == 0 { self.format } else { self.lower_format }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, place: usize) -> PathBuf {
        self.dir.path().join(format!("branch{place}"))
    }

    /// One branch as it is on disk; 0 is on top.
    pub fn branch(&self, place: usize) -> DirFs {
        DirFs::new(&format!("branch {place}"), &self.path(place)).traceless()
    }

    pub fn branch_paths(&self) -> Vec<BranchPath> {
        let branch = |place| BranchPath {
            path: self.path(place),
            writable: self.upper && place == 0,
            oci_whiteouts: self.lowers().contains(&place) && self.lower_format == Format::Oci,
        };
        (0..self.trees.len()).map(branch).collect()
    }

    pub fn engine(&self, dcache: Dcache) -> EngineFs {
        EngineFs::try_new(self.branch_paths(), self.options.clone(), dcache)
            .unwrap_or_else(|text| panic!("open the union: {text}"))
    }

    /// What the union must show, on a plain directory.
    pub fn plain(&self) -> DirFs {
        let root = self.dir.path().join("plain");
        std::fs::create_dir(&root).unwrap();
        let fs = DirFs::new("plain directory", &root);
        Tree::flatten(&self.trees).build(&fs, self.format);
        fs
    }

    /// The kernel's overlayfs on these branches; needs root and trees in the overlay format.
    pub fn overlay(&self) -> Result<Overlay, String> {
        self.overlay_with("redirect_dir=on,index=off,metacopy=off,xino=off")
    }

    pub fn overlay_with(&self, settings: &str) -> Result<Overlay, String> {
        assert!(!self.upper || self.format == Format::Overlay);
        assert_eq!(self.lower_format, Format::Overlay);
        let root = self.dir.path().join("overlay");
        std::fs::create_dir(&root).map_err(|error| error.to_string())?;
        let lowers: Vec<_> = self.lowers().map(|place| self.path(place).display().to_string()).collect();
        let mut options = format!("lowerdir={},{settings}", lowers.join(":"));
        let work = self.dir.path().join("work");
        if self.upper {
            options = format!("{options},upperdir={},workdir={},volatile", self.path(0).display(), work.display());
        }
        let recipe = Recipe { root: root.clone(), work, options: CString::new(options).unwrap() };
        recipe.mount()?;
        let again = recipe.clone();
        let fs = DirFs::new("kernel overlayfs", &root).with_remount(Box::new(move || {
            again.unmount();
            again.mount().expect("mount overlayfs again");
        }));
        Ok(Overlay { fs, recipe })
    }

    /// Panics when a read-only branch is not what it was.
    pub fn check_lowers(&self) {
        for (place, guard) in self.lowers().zip(&self.guards) {
            let now = Snapshot::complete(&self.branch(place));
            guard.assert_same(&now, &Strict::UNTOUCHED, &format!("read-only branch {place} was changed"));
        }
    }

    /// What lies in the stage of the upper: nothing, between requests and after a mount.
    pub fn staged(&self) -> Vec<String> {
        match std::fs::read_dir(self.path(0).join(".cowfs/stage")) {
            Ok(entries) => entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(error) => panic!("stage: {error}"),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check_lowers();
        }
    }
}

#[derive(Clone)]
struct Recipe {
    root: PathBuf,
    work: PathBuf,
    options: CString,
}

impl Recipe {
    fn mount(&self) -> Result<(), String> {
        // A volatile overlay leaves a mark that forbids the next mount: nothing here outlives a power failure anyway.
        let _ = std::fs::remove_dir_all(&self.work);
        std::fs::create_dir(&self.work).map_err(|error| error.to_string())?;
        mount("cowfs-test", &self.root, "overlay", MountFlags::empty(), &*self.options)
            .map_err(|errno| format!("mount overlayfs ({:?}): {errno}", self.options))
    }

    fn unmount(&self) {
        unmount(&self.root, UnmountFlags::empty()).expect("unmount overlayfs");
    }
}

/// A mounted overlayfs; gone when dropped.
pub struct Overlay {
    pub fs: DirFs,
    recipe: Recipe,
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.fs.leave();
        if let Err(errno) = unmount(&self.recipe.root, UnmountFlags::DETACH) {
            eprintln!("unmount {}: {errno}", self.recipe.root.display());
        }
    }
}
