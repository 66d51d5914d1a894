//! What a mount is asked to be: the plain result of a command line, and all that the daemon needs to start.
//!
//! Nothing here touches the system; paths are as typed, branches already in stack order.

use std::path::PathBuf;
use std::time::Duration;

use crate::fuse::owners::Owners;
use crate::union::options::Options;

/// One branch as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchArg {
    /// Path, unescaped; below `chroot` if that is given.
    pub path: PathBuf,
    /// `=RW`, or `upperdir=`.
    pub writable: bool,
    /// `.wh.NAME` counts in this read-only branch: `=RO+wh`, or from `lowerdir=`.
    pub oci_whiteouts: bool,
}

/// The kernel's own mount flags; each as mount(8) describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MountFlags {
    /// MS_RDONLY: `ro`, or a union without a writable branch.
    pub read_only: bool,
    /// `suid` given; off: MS_NOSUID.
    pub suid: bool,
    /// `dev` given; off: MS_NODEV.
    pub dev: bool,
    /// `noexec`.
    pub noexec: bool,
    /// `noatime`.
    pub noatime: bool,
    /// `nodiratime`.
    pub nodiratime: bool,
    /// `sync`.
    pub sync: bool,
    /// `dirsync`.
    pub dirsync: bool,
}

/// Which mounts of this mount namespace stop sharing with others, see mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Private {
    /// The one that holds the mountpoint.
    Parent,
    /// All below the root directory.
    All,
}

/// A change of a mounted union's flags.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RemountRequest {
    /// Where the union is mounted.
    pub mountpoint: PathBuf,
    /// All flags that it is to have from now on, as mount(8) hands them over: those it has, and what is asked for.
    pub flags: MountFlags,
    /// `allow_other` was named: cannot be given to a mounted union.
    pub allow_other: bool,
    /// `subtype=`: the type in the mount table is `fuse.SUBTYPE`; default `cowfs`.
    pub subtype: Option<String>,
    /// `-N`: as in a `MountRequest`. Branches are looked up before it is entered.
    pub namespace: Option<PathBuf>,
    /// `branches=`.
    pub exchange: Option<ExchangeRequest>,
}

/// Other lowers for a mounted union.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ExchangeRequest {
    /// All branches from now on, as in a `MountRequest`; the upper may be missing, and stays in any case.
    pub branches: Vec<BranchArg>,
    /// `chroot=`: branch paths are below it.
    pub chroot: Option<PathBuf>,
    /// No flag was named: they stay as they are.
    pub keep_flags: bool,
}

/// All that the daemon needs to start.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MountRequest {
    /// Branches in stack order: the upper first if there is one, then the lowers, top first.
    pub branches: Vec<BranchArg>,
    /// `workdir=`: on the upper's filesystem; stage and index live there.
    pub workdir: Option<PathBuf>,
    /// Where the union appears; resolved outside `chroot`. May be `/dev/fd/N`: an already mounted /dev/fuse.
    pub mountpoint: PathBuf,
    /// `chroot=`: branch paths are below it, and the daemon's root after the mount.
    pub chroot: Option<PathBuf>,
    /// `-N` of mount(8): the mount namespace to go to before any other path is looked at.
    pub namespace: Option<PathBuf>,
    /// Called as a container engine's mount program (`lowerdir=`). Engines do not spell out what they count on: for
    /// root this means `allow_other` too (fuse-overlayfs's default); `flags.suid` already says `suid`.
    pub container: bool,
    /// `-f`: stay in the foreground.
    pub foreground: bool,
    /// `-d`, `debug`: log every request; stays in the foreground too.
    pub debug: bool,
    /// `debug_file=`: log there; opened before `chroot`.
    pub debug_file: Option<PathBuf>,
    /// The kernel's flags.
    pub flags: MountFlags,
    /// `allow_other`: every user may enter, not only the one who mounted.
    pub allow_other: bool,
    /// `allow_root`: the one who mounted and root.
    pub allow_root: bool,
    /// The kernel checks permissions (on unless `relaxed_permissions`).
    pub default_permissions: bool,
    /// `noacl`: the kernel is not told that POSIX ACLs are honoured. So it must be with `relaxed_permissions`, because
    /// ACLs make the kernel check permissions whatever was asked.
    pub noacl: bool,
    /// `uidmapping=`, `gidmapping=`, `squash_to_*`: whose objects are shown to be.
    pub owners: Owners,
    /// `static_nlink`: every directory is shown with one name.
    pub static_nlink: bool,
    /// `private`, `rprivate`: what is made private first, so that the union appears in no other mount namespace.
    pub private: Option<Private>,
    /// `auto_unmount`: the mount goes away with the daemon, however that ends.
    pub auto_unmount: bool,
    /// `fsname=`, or the branch list as typed if it is short: the source shown in the mount table; default: the branch
    /// list, cut at 200 bytes.
    pub fsname: Option<String>,
    /// `subtype=`: the type is shown as `fuse.SUBTYPE`; default `cowfs`.
    pub subtype: Option<String>,
    /// `lock_wait=`: how long to wait until the upper is free.
    pub lock_wait: Option<Duration>,
    /// `watchdog=`: how long a request may take before the daemon is given up.
    pub watchdog: Option<Duration>,
    /// `max_files=`: RLIMIT_NOFILE.
    pub max_files: Option<u64>,
    /// `threads=`: threads that serve requests; default min(cores, 4), at least 2.
    pub threads: Option<usize>,
    /// `entry_timeout=`: how long the kernel may trust a name.
    pub entry_timeout: Option<Duration>,
    /// `attr_timeout=`: how long the kernel may trust attributes.
    pub attr_timeout: Option<Duration>,
    /// `negative_timeout=`: how long the kernel may trust the absence of a name.
    pub negative_timeout: Option<Duration>,
    /// `coherent`: descriptors and maps of a lower file see what is written after it was copied up, whatever it is.
    pub coherent: bool,
    /// `awake`: idle processors are kept from sleeping while requests come in.
    pub awake: bool,
    /// `near=off`: programs are not served on the processor that they run on.
    pub no_near: bool,
    /// `watch`: changes of the lower branches are seen at once.
    pub watch: bool,
    /// `passthrough=off`: all data go through the daemon.
    pub no_passthrough: bool,
    /// `direct_io`: file data by-passes the kernel's page cache.
    pub direct_io: bool,
    /// Settings of the engine.
    pub engine: Options,
}
