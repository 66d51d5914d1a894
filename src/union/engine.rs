//! The union as a whole: what it is made of, and what it knows.
//!
//! The requests are in `ops`, one file a kind; this file only puts the parts together and takes them apart.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::union::branch::fds::DirFds;
use crate::union::branch::list::list_fd;
use crate::union::error::{Errno, Result};
use crate::union::handle::Handles;
use crate::union::index::Index;
use crate::union::ino::Numbers;
use crate::union::marks::Reader;
use crate::union::marks::beside::WH;
use crate::union::marks::mirror::Mirror;
use crate::union::marks::overlay::{Keys, is_device};
use crate::union::marks::write::Writer;
use crate::union::name::Name;
use crate::union::node::{Node, Seen};
use crate::union::options::{Format, Options};
use crate::union::stack::{Branch, Stack, Upper};
use crate::union::stage::{Abilities, Stage};
use crate::union::table::Table;
use crate::union::types::{BranchId, NodeId};

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

/// A union of branches, ready to answer requests from any number of threads.
pub struct Union {
    pub(crate) stack: Stack,
    pub(crate) numbers: Numbers,
    pub(crate) table: Table,
    pub(crate) handles: Handles,
    pub(crate) index: Option<Index>,
    /// Held by a rename from one directory to another, so that "ancestor first" is the same for all meanwhile.
    pub(crate) crossing: Mutex<()>,
    workdir: bool,
}

/// `.unionfs` and `.unionfs-fuse`, with the formats whose marks they hold.
const MIRRORS: [(&str, Format); 2] = [(".unionfs", Format::Unionfs), (".unionfs-fuse", Format::UnionfsFuse)];

/// The file in the private area that says which format the upper has.
const FORMAT_FILE: &str = "format";

impl Union {
    /// Puts a union together, sweeps what a crash has left in the upper's stage.
    ///
    /// # Errors
    /// A complete sentence that quotes the offending branch and says what to do.
    pub fn open(layout: Layout, options: Options) -> std::result::Result<Self, String> {
        let fds = Arc::new(DirFds::new());
        let workdir = layout.workdir.is_some();
        let mut branches = Vec::with_capacity(layout.branches.len());
        let mut upper = None;
        let mut user = options.userxattr.unwrap_or(!crate::sys::creds::may_use_trusted_xattr());
        for (at, source) in layout.branches.into_iter().enumerate() {
            let label = source.label.clone();
            let fail = |errno: Errno| format!("{label}: the branch cannot be used: {errno}");
            let id = BranchId(u16::try_from(at).map_err(|_| "more than 65535 branches".to_owned())?);
            if !source.writable {
                let keys = Arc::new(Keys::new(user));
                branches.push(lower(id, source, fds.clone(), keys).map_err(fail)?);
                continue;
            }
            let stage = Stage::open(source.root.as_fd(), layout.workdir.as_ref().map(AsFd::as_fd))
                .map_err(|errno| format!("{label}: the upper's private area cannot be set up: {errno}"))?;
            user = options.userxattr.unwrap_or(!stage.can.trusted_xattr);
            let (branch, tools) = writable(id, source, fds.clone(), (stage, user), &options)?;
            branches.push(branch);
            upper = Some(tools);
        }
        let stack = Stack { branches, upper, covered: layout.covered.into_iter().collect() };
        Self::put_together(stack, workdir).map_err(|errno| format!("the union cannot be set up: {errno}"))
    }

    fn put_together(stack: Stack, workdir: bool) -> Result<Self> {
        let numbers = Numbers::default();
        for branch in &stack.branches {
            let (dev, ino) = branch.root.identity();
            numbers.number(dev, ino);
        }
        let layers = stack.roots();
        let top = layers.first().ok_or(Errno::INVAL)?;
        let (branch, identity) = (top.branch, top.identity());
        let ino = numbers.shown(&stack, top, &top.itself()?, identity)?;
        let kind = rustix::fs::FileType::Directory;
        let seen = Seen { ino, kind, identity, branch, layers, index: None };
        let table = Table::new(Arc::new(Node::new(NodeId::ROOT, seen, None, None)));
        let index = match &stack.upper {
            Some(upper) => Some(Index::open(upper.stage.private())?),
            None => None,
        };
        Ok(Self { stack, numbers, table, handles: Handles::default(), index, crossing: Mutex::new(()), workdir })
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
        if let Some(index) = &self.index {
            index.close(upper.stage.private());
            if !index.is_empty() {
                return;
            }
        }
        upper.stage.close(branch.readable.as_fd(), self.workdir);
    }
}

fn lower(id: BranchId, source: BranchSource, fds: Arc<DirFds>, keys: Arc<Keys>) -> Result<Branch> {
    let reader = Reader { overlay: Some(keys), oci: source.oci_whiteouts, mirrors: Vec::new() };
    let mut branch = Branch::new(id, source.label, source.root, fds, reader)?;
    for (name, _) in MIRRORS {
        let mirror = Mirror::new(&branch.root, name)?;
        if mirror.exists() {
            branch.reader.mirrors.push(Arc::new(mirror));
        }
    }
    Ok(branch)
}

fn writable(
    id: BranchId,
    source: BranchSource,
    fds: Arc<DirFds>,
    (stage, user): (Stage, bool),
    options: &Options,
) -> std::result::Result<(Branch, Upper), String> {
    let label = source.label.clone();
    let fail = |errno: Errno| format!("{label}: the branch cannot be used: {errno}");
    let reader = Reader { overlay: None, oci: false, mirrors: Vec::new() };
    let mut branch = Branch::new(id, source.label, source.root, fds, reader).map_err(fail)?;
    let format = choose(&branch, &stage, options.format)?;
    let keys = Arc::new(Keys::new(user));
    let mut mirror = None;
    match format {
        Format::Overlay => branch.reader.overlay = Some(keys.clone()),
        Format::Oci => branch.reader.oci = true,
        Format::Unionfs | Format::UnionfsFuse => {
            let name = if format == Format::Unionfs { MIRRORS[0].0 } else { MIRRORS[1].0 };
            let found = Arc::new(Mirror::new(&branch.root, name).map_err(fail)?);
            branch.reader.mirrors.push(found.clone());
            mirror = Some(found);
        }
    }
    if format == Format::Overlay {
        let marks = branch.reader.root_marks(&branch.root).map_err(fail)?;
        if marks.xwhiteouts {
            log::warn!("{label}: overlay.whiteout attributes in an upper are not honoured");
        }
    }
    let writer = Writer { format, keys, root: branch.root.clone(), mirror };
    let redirect = options.redirect && format == Format::Overlay && !user;
    Ok((branch, Upper { stage, writer, volatile: options.volatile, redirect }))
}

/// The format of an upper: what it holds, what was asked for, what its filesystem can do; in this order.
fn choose(branch: &Branch, stage: &Stage, asked: Option<Format>) -> std::result::Result<Format, String> {
    let label = &branch.label;
    let held = held_formats(branch, stage).map_err(|errno| format!("{label}: {errno}"))?;
    let words = |formats: &[Format]| formats.iter().map(|format| format.word()).collect::<Vec<_>>().join(" and ");
    let able = can_overlay(stage.can);
    let format = match (held.as_slice(), asked) {
        ([], Some(asked)) => asked,
        ([], None) if able => Format::Overlay,
        ([], None) => Format::Oci,
        ([one], None) => *one,
        ([one], Some(asked)) if *one == asked => asked,
        ([one], Some(asked)) => {
            return Err(format!(
                "{label}: holds whiteouts in the format {}, but whiteout={} was asked for; leave the option out",
                one.word(),
                asked.word()
            ));
        }
        (several, _) => {
            return Err(format!(
                "{label}: holds whiteouts in the formats {}; a writable branch can have one only",
                words(several)
            ));
        }
    };
    if format == Format::Overlay && !able {
        return Err(format!(
            "{label}: its filesystem cannot hold overlay whiteouts (character device 0:0, extended attributes, \
             RENAME_WHITEOUT); use -o whiteout=oci"
        ));
    }
    record_format(stage, format).map_err(|errno| format!("{label}: {errno}"))?;
    Ok(format)
}

fn can_overlay(can: Abilities) -> bool {
    can.whiteout_device && can.rename_flags && (can.trusted_xattr || can.user_xattr)
}

/// The formats of which the upper's root or the record in its private area shows traces.
fn held_formats(branch: &Branch, stage: &Stage) -> Result<Vec<Format>> {
    let mut held = Vec::new();
    let mut add = |format| {
        if !held.contains(&format) {
            held.push(format);
        }
    };
    let record = Name::new(FORMAT_FILE)?;
    match rustix::fs::openat(stage.private(), record.as_c_str(), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
    {
        Ok(file) => {
            let mut word = [0; 32];
            let length = rustix::io::read(&file, &mut word)?;
            let word = String::from_utf8_lossy(&word[..length]).trim().to_owned();
            Format::ALL.iter().filter(|(known, _)| *known == word).for_each(|(_, format)| add(*format));
        }
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let mut names = Vec::new();
    list_fd(&branch.readable, &mut |name, kind, _| {
        if let Some((_, format)) = MIRRORS.iter().find(|(mirror, _)| mirror.as_bytes() == name) {
            add(*format);
        }
        // Only files are marks: fuse-overlayfs leaves devices with such names beside its overlay marks.
        if kind.is_file() && WH.read(name).is_some() {
            add(Format::Oci);
        }
        if kind.is_char_device() {
            names.push(Name::new(name)?);
        }
        Ok(())
    })?;
    let root = branch.root.itself()?;
    // Copy-up leaves these marks whatever the format of the whiteouts: they tell only where nothing else does.
    for keys in [Keys::new(false), Keys::new(true)] {
        if held.is_empty() && root.xattr(&keys.impure)?.is_some() {
            held.push(Format::Overlay);
        }
    }
    for name in names {
        if branch.root.find(&name)?.is_some_and(|stat| is_device(&stat)) && !held.contains(&Format::Overlay) {
            held.push(Format::Overlay);
        }
    }
    Ok(held)
}

/// Remembers a format that is not the default: the root of an upper need not show which one is used further down.
fn record_format(stage: &Stage, format: Format) -> Result<()> {
    if format == Format::Overlay {
        return Ok(());
    }
    let name = Name::new(FORMAT_FILE)?;
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::TRUNC;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let file = rustix::fs::openat(stage.private(), name.as_c_str(), flags | rustix::fs::OFlags::CLOEXEC, mode)?;
    rustix::io::write(&file, format.word().as_bytes())?;
    Ok(())
}
