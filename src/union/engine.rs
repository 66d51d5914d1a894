//! The union as a whole: what it is made of, and what it knows.
//!
//! The requests are in `ops`, one file a kind; this file only puts the parts together and takes them apart.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::AtFlags;

use crate::union::branch::aside::{keys_of, to_be_named};
use crate::union::branch::at::stat;
use crate::union::branch::fds::DirFds;
use crate::union::branch::list::list_fd;
use crate::union::branch::{Aside, At};
use crate::union::copyup::meta::copy_times;
use crate::union::error::{Errno, Result, best_effort};
use crate::union::gone::Gone;
use crate::union::handle::Handles;
use crate::union::index::Index;
use crate::union::ino::Numbers;
use crate::union::listing::Readings;
use crate::union::marks::Reader;
use crate::union::marks::beside::WH;
use crate::union::marks::mirror::Mirror;
use crate::union::marks::overlay::{Keys, is_device};
use crate::union::marks::write::Writer;
use crate::union::name::Name;
use crate::union::node::{Node, Seen};
use crate::union::options::{Format, Options};
use crate::union::stack::{Branch, Stack, Upper};
use crate::union::stage::{Abilities, Stage, make_dir};
use crate::union::table::Table;
use crate::union::types::{BranchId, Generation, NodeId, Trust};

/// One branch as the daemon hands it over: opened, and where privileged a private clone of its mount
/// (read-only for a lower), so that nothing the engine does can reach around it.
pub struct BranchSource {
    /// The path as typed, for messages.
    pub label: String,
    /// `O_PATH|O_DIRECTORY` descriptor of the branch's root.
    pub root: OwnedFd,
    /// Whether this is the upper (at most one).
    pub writable: bool,
    /// Honour `.wh.NAME` in this read-only branch (`=RO+wh`, or from `lowerdir=`).
    pub oci_whiteouts: bool,
}

/// What the union is made of.
pub struct Layout {
    /// Branches, top first; the upper, if any, is the first.
    pub branches: Vec<BranchSource>,
    /// `workdir=`: where stage and index live; `None`: in `.cowfs` inside the upper.
    pub workdir: Option<OwnedFd>,
    /// Directories that the union shows empty, as (st_dev, st_ino): the mountpoint, and roots of branches that lie
    /// inside others.
    pub covered: Vec<(u64, u64)>,
}

/// What a union that is served gets below its upper in place of the lowers it has (`ops::over`).
pub struct NewLowers {
    /// The lower branches, top first; none is writable.
    pub lowers: Vec<BranchSource>,
    /// As in `Layout`.
    pub covered: Vec<(u64, u64)>,
}

/// A union of branches, ready to answer requests from any number of threads.
///
/// All but the stack is shared with the same union over other lowers.
pub struct Union {
    pub(crate) stack: Stack,
    pub(crate) fds: Arc<DirFds>,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) table: Arc<Table>,
    pub(crate) handles: Arc<Handles>,
    pub(crate) readings: Arc<Readings>,
    pub(crate) index: Option<Arc<Index>>,
    pub(crate) gone: Option<Arc<Gone>>,
    /// Held by a rename from one directory to another, so that "ancestor first" is the same for all meanwhile.
    pub(crate) crossing: Arc<Mutex<()>>,
    workdir: bool,
    /// Lowers may keep owners aside.
    aside: bool,
}

/// `.unionfs` and `.unionfs-fuse`, with the formats whose marks they hold.
const MIRRORS: [(&str, Format); 2] = [(".unionfs", Format::Unionfs), (".unionfs-fuse", Format::UnionfsFuse)];

impl Union {
    /// Puts a union together, sweeps what a crash has left in the upper's stage.
    ///
    /// # Errors
    /// A complete sentence that quotes the offending branch and says what to do.
    pub fn open(layout: Layout, options: Options) -> std::result::Result<Self, String> {
        let fds = Arc::new(DirFds::beside(layout.branches.len()));
        let workdir = layout.workdir.is_some();
        let mut lowers = Vec::with_capacity(layout.branches.len());
        let mut upper = None;
        let mut user = options.userxattr.unwrap_or(!crate::sys::creds::may_use_trusted_xattr());
        for (at, source) in layout.branches.into_iter().enumerate() {
            if !source.writable {
                lowers.push(lower(at, source, fds.clone(), (user, options.aside.is_some()))?);
                continue;
            }
            let workdir = layout.workdir.as_ref().map(AsFd::as_fd);
            let (branch, tools) = writable(id_of(at)?, source, fds.clone(), workdir, &options)?;
            user = tools.writer.keys.user;
            upper = Some((Arc::new(branch), Arc::new(tools)));
        }
        Stack::new(upper, lowers, layout.covered)
            .and_then(|stack| Self::put_together(stack, fds, (workdir, options.aside.is_some())))
            .map_err(|errno| format!("the union cannot be set up: {errno}"))
    }

    fn put_together(stack: Stack, fds: Arc<DirFds>, (workdir, aside): (bool, bool)) -> Result<Self> {
        let numbers = Arc::<Numbers>::default();
        numbers.meet(&stack);
        let layers = stack.roots();
        let top = layers.first().ok_or(Errno::INVAL)?;
        let (branch, identity) = (top.branch, top.identity());
        let (ino, _) = numbers.shown(&stack, top, &top.itself()?, identity)?;
        // The kernel has no other for a root.
        let generation = Generation::default();
        let kind = rustix::fs::FileType::Directory;
        let seen = Seen { ino, generation, kind, identity, made: Generation::default(), branch, layers, lost: None };
        let table = Arc::new(Table::new(Arc::new(Node::new(NodeId::ROOT, seen, None, None))));
        let (index, gone) = match &stack.upper {
            Some(upper) => {
                let private = upper.stage.private();
                let (index, gone) = (Index::open(private, &upper.writer.keys)?, Gone::open(private)?);
                (Some(Arc::new(index)), Some(Arc::new(gone)))
            }
            None => (None, None),
        };
        let (handles, readings, crossing) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Self { stack, fds, numbers, table, handles, readings, index, gone, crossing, workdir, aside })
    }

    /// The same union over other lowers: what is known, and the upper, are shared. Changes nothing. It is not to be asked anything
    /// before it has succeeded this one (`ops::over`).
    ///
    /// # Errors
    /// A complete sentence that quotes the offending branch.
    pub fn over(&self, new: NewLowers) -> std::result::Result<Self, String> {
        let uppers = usize::from(self.stack.upper.is_some());
        let mut lowers = Vec::with_capacity(new.lowers.len());
        for (at, source) in new.lowers.into_iter().enumerate() {
            if source.writable {
                return Err(format!("{}: the writable branch of a union cannot be exchanged", source.label));
            }
            lowers.push(lower(uppers + at, source, self.fds.clone(), (self.stack.reads_user_marks(), self.aside))?);
        }
        if uppers + lowers.len() == 0 {
            return Err("a union cannot be without branches".to_owned());
        }
        let upper = self.stack.branches.first().cloned().zip(self.stack.upper.clone());
        let stack = Stack::new(upper, lowers, new.covered)
            .map_err(|errno| format!("the new branches cannot be read: {errno}"))?;
        self.numbers.meet(&stack);
        Ok(Self {
            stack,
            fds: self.fds.clone(),
            numbers: self.numbers.clone(),
            table: self.table.clone(),
            handles: self.handles.clone(),
            readings: self.readings.clone(),
            index: self.index.clone(),
            gone: self.gone.clone(),
            crossing: self.crossing.clone(),
            workdir: self.workdir,
            aside: self.aside,
        })
    }

    /// How many nodes are known: for statistics, and for tests that look for leaks.
    pub fn known_nodes(&self) -> usize {
        self.table.len()
    }

    /// The format in which the upper's marks are written; `None` for a read-only union.
    pub fn format(&self) -> Option<Format> {
        self.stack.upper.as_ref().map(|upper| upper.writer.format)
    }

    /// Tidies the private area; called once after the mount is gone.
    pub fn close(&self) {
        let (Some(upper), Some(branch)) = (&self.stack.upper, self.stack.branches.first()) else { return };
        if let (Some(index), Some(gone)) = (&self.index, &self.gone) {
            index.close(upper.stage.private());
            gone.close();
            if !index.is_empty() || !gone.is_empty() {
                return;
            }
        }
        let root = branch.root.itself().and_then(|root| Ok((root.stat()?, root)));
        upper.stage.close(branch.readable.as_fd(), self.workdir);
        best_effort("put back the times of the upper", root.and_then(|(was, root)| copy_times(&was, &root)));
    }
}

fn id_of(at: usize) -> std::result::Result<BranchId, String> {
    // The last number is nobody's (`Stack::NOWHERE`).
    u16::try_from(at)
        .ok()
        .filter(|at| *at < u16::MAX)
        .map(BranchId)
        .ok_or_else(|| "more than 65535 branches".to_owned())
}

/// The lower branch at this place of the stack. Whether its marks are `user.*` attributes, and whether it may keep owners aside.
fn lower(
    at: usize,
    source: BranchSource,
    fds: Arc<DirFds>,
    (user, aside): (bool, bool),
) -> std::result::Result<Branch, String> {
    let label = source.label.clone();
    let id = id_of(at)?;
    let open = || -> Result<Branch> {
        let keys = Arc::new(Keys::new(user));
        let reader = Reader { overlay: Some(keys), oci: source.oci_whiteouts, mirrors: Vec::new() };
        let mut branch = Branch::new(id, source.label, source.root, fds, reader)?;
        for (name, _) in MIRRORS {
            let mirror = Mirror::new(&branch.root, name)?;
            if mirror.exists() {
                branch.reader.mirrors.push(Arc::new(mirror));
            }
        }
        if aside {
            branch.aside = branch.root.itself().and_then(|root| Aside::of_lower(&root))?;
        }
        Ok(branch)
    };
    open().map_err(|errno| format!("{label}: the branch cannot be used: {errno}"))
}

fn writable(
    id: BranchId,
    source: BranchSource,
    fds: Arc<DirFds>,
    workdir: Option<BorrowedFd<'_>>,
    options: &Options,
) -> std::result::Result<(Branch, Upper), String> {
    let label = source.label.clone();
    let fail = |errno: Errno| format!("{label}: the branch cannot be used: {errno}");
    let held = held_formats(source.root.as_fd()).map_err(fail)?;
    let wanted = wanted_format(&label, &held, options.format)?;
    let root = At::Dir(Arc::new(source.root.try_clone().map_err(|error| format!("{label}: {error}"))?));
    // Whoever owns a file here could set its attribute, which would count again the next time.
    if let (None, Some(key)) = (options.aside, keys_of(&root).unwrap_or_default().first()) {
        return Err(format!("{label}: {}", to_be_named(key)));
    }
    let was = root.stat().map_err(fail)?;
    let stage = Stage::open(source.root.as_fd(), workdir).map_err(|errno| {
        format!("{label}: the upper's private area cannot be set up there: {errno}; take a directory elsewhere")
    })?;
    let format = match able_format(&label, wanted, stage.can) {
        Ok(format) => format,
        Err(refusal) => {
            stage.close(source.root.as_fd(), workdir.is_some());
            return Err(refusal);
        }
    };
    let user = options.userxattr.unwrap_or(!stage.can.trusted_xattr);
    let keys = Arc::new(Keys::new(user));
    let aside = match options.aside {
        Some(wanted) => {
            let empty = is_empty(source.root.as_fd()).map_err(fail)?;
            Some(Aside::of_upper(&root, wanted, empty).map_err(|rest| format!("{label}: {rest}"))?)
        }
        None => None,
    };
    record_format(source.root.as_fd(), format, stage.can).map_err(fail)?;
    best_effort("put back the times of the upper", copy_times(&was, &root));
    let mut reader = Reader { overlay: None, oci: false, mirrors: Vec::new() };
    match format {
        Format::Overlay => reader.overlay = Some(keys.clone()),
        Format::Oci => reader.oci = true,
        Format::Unionfs | Format::UnionfsFuse => {}
    }
    let mut branch = Branch::new(id, source.label, source.root, fds, reader).map_err(fail)?;
    let mut mirror = None;
    if let Some((name, _)) = MIRRORS.iter().find(|(_, of)| *of == format) {
        let found = Arc::new(Mirror::new(&branch.root, name).map_err(fail)?);
        branch.reader.mirrors.push(found.clone());
        mirror = Some(found);
    }
    let writer = Writer { format, keys, root: branch.root.clone(), mirror };
    let redirect = options.redirect && format == Format::Overlay && !user;
    let metacopy = options.metacopy && redirect;
    let remote = branch.trust == Trust::Remote;
    branch.aside = aside;
    Ok((branch, Upper { stage, writer, volatile: options.volatile, remote, redirect, metacopy, aside }))
}

/// The format that an upper holds, or that was asked for; `None` leaves the choice to what its filesystem can do.
fn wanted_format(label: &str, held: &[Format], asked: Option<Format>) -> std::result::Result<Option<Format>, String> {
    match (held, asked) {
        ([], asked) => Ok(asked),
        ([one], None) => Ok(Some(*one)),
        ([one], Some(asked)) if *one == asked => Ok(Some(asked)),
        ([one], Some(asked)) => Err(format!(
            "{label}: holds whiteouts in the format {}, but whiteout={} was asked for; leave the option out",
            one.word(),
            asked.word()
        )),
        (several, _) => Err(format!(
            "{label}: holds whiteouts in the formats {}; a writable branch can have one only",
            several.iter().map(|format| format.word()).collect::<Vec<_>>().join(" and ")
        )),
    }
}

/// The format to use, if the upper's filesystem can hold it.
fn able_format(label: &str, wanted: Option<Format>, can: Abilities) -> std::result::Result<Format, String> {
    match wanted {
        None if can_overlay(can) => Ok(Format::Overlay),
        None => Ok(Format::Oci),
        Some(Format::Overlay) if !can_overlay(can) => Err(format!(
            "{label}: its filesystem cannot hold overlay whiteouts (character device 0:0, extended attributes, \
             RENAME_WHITEOUT); use -o whiteout=oci"
        )),
        Some(format) => Ok(format),
    }
}

fn can_overlay(can: Abilities) -> bool {
    can.whiteout_device && can.rename_flags && (can.trusted_xattr || can.user_xattr)
}

/// The attribute on an upper's root that says it has `.wh.` files: they may all lie further down.
const FORMAT_KEYS: [&CStr; 2] = [c"trusted.overlay.cowfs.format", c"user.overlay.cowfs.format"];

/// The formats of which the upper's root shows traces.
fn held_formats(upper: BorrowedFd<'_>) -> Result<Vec<Format>> {
    let root = At::Dir(Arc::new(rustix::io::fcntl_dupfd_cloexec(upper, 0)?));
    let mut held = Vec::new();
    let mut add = |format| {
        if !held.contains(&format) {
            held.push(format);
        }
    };
    for key in FORMAT_KEYS {
        if root.xattr(key)?.is_some() {
            add(Format::Oci);
        }
    }
    let mut devices = Vec::new();
    list_fd(upper, &mut |name, kind, _| {
        if let Some((_, format)) = MIRRORS.iter().find(|(mirror, _)| mirror.as_bytes() == name) {
            add(*format);
        }
        // Only files are marks: fuse-overlayfs leaves devices with such names beside its overlay marks.
        if kind.is_file() && WH.read(name).is_some() {
            add(Format::Oci);
        }
        if kind.is_char_device() {
            devices.push(Name::new(name)?);
        }
        Ok(())
    })?;
    for name in devices {
        if is_device(&stat(upper, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?) {
            add(Format::Overlay);
        }
    }
    Ok(held)
}

/// Whether the upper holds nothing but what unions keep for themselves.
fn is_empty(upper: BorrowedFd<'_>) -> Result<bool> {
    let mut empty = true;
    list_fd(upper, &mut |name, _, _| {
        empty &= Name::new(name)?.is_reserved(true);
        Ok(())
    })?;
    Ok(empty)
}

/// Remembers a format that is not the default, since the root need not show which one is used further down: the unionfs
/// formats by their directory, `.wh.` files by an attribute (without attributes they are the default).
fn record_format(upper: BorrowedFd<'_>, format: Format, can: Abilities) -> Result<()> {
    if let Some((name, _)) = MIRRORS.iter().find(|(_, of)| *of == format) {
        return make_dir(upper, &Name::new(name)?).map(drop);
    }
    let key = FORMAT_KEYS[usize::from(!can.trusted_xattr)];
    if format == Format::Oci && (can.trusted_xattr || can.user_xattr) {
        let root = At::Dir(Arc::new(rustix::io::fcntl_dupfd_cloexec(upper, 0)?));
        if root.xattr(key)?.is_none() {
            root.set_xattr(key, b"oci", 0)?;
        }
    }
    Ok(())
}
