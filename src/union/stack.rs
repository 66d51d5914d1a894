//! The branches in order, and what the upper needs to be written.
//!
//! Not here: what a name means (`resolve`).

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::sys;
use crate::union::branch::fds::DirFds;
use crate::union::branch::{Aside, At, Presence, RealDir, Stat};
use crate::union::copyup::Workshop;
use crate::union::error::{Errno, Result};
use crate::union::marks::Reader;
use crate::union::marks::write::Writer;
use crate::union::name::Name;
use crate::union::stage::Stage;
use crate::union::types::{BranchId, Trust};

/// The real directories that make up a directory of the union, top first.
pub type Layers = SmallVec<[Arc<RealDir>; 2]>;

/// The first of `layers` that is there, though it may be shown empty.
pub fn topmost(layers: &[Arc<RealDir>]) -> Option<&Arc<RealDir>> {
    layers.iter().find(|dir| dir.presence != Presence::MarksOnly)
}

/// One branch.
pub struct Branch {
    /// Its place in the stack.
    pub id: BranchId,
    /// As typed, for messages.
    pub label: String,
    /// Its root.
    pub root: Arc<RealDir>,
    /// The root's descriptor, open for reading: file handles and ioctls refuse `O_PATH`. The only one held for it, since
    /// an image has hundreds of layers.
    pub readable: Arc<OwnedFd>,
    /// Which marks count in it.
    pub reader: Reader,
    /// Uuid of its filesystem, zeros if unknown.
    pub uuid: [u8; 16],
    /// The uuid is that of no other lower's filesystem: it says where a file handle in a mark is to be opened.
    pub unique: bool,
    /// Tells its filesystem from the other lowers', over reboots where anything can; `tell_apart`.
    pub tag: u64,
    /// Whether its filesystem has file handles that last: those of FUSE are places in its server's memory.
    pub handles: bool,
    /// Its mount is read-only.
    pub read_only: bool,
    /// Who may change it behind the union's back.
    pub trust: Trust,
    /// Its filesystem tells no other birth time of an object later.
    pub births: bool,
    /// Its filesystem was mounted anew, and has given its files other numbers then.
    pub renumbered: AtomicBool,
    /// How it keeps owners and modes, if not in its inodes.
    pub aside: Option<Aside>,
}

impl Branch {
    /// Opens what is needed beside the root.
    ///
    /// # Errors
    /// Those of openat(2) and fstatfs(2).
    pub fn new(id: BranchId, label: String, root: OwnedFd, fds: Arc<DirFds>, reader: Reader) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = Arc::new(rustix::fs::openat(&root, c".", flags, Mode::empty())?);
        let filesystem = rustix::fs::fstatvfs(&readable)?;
        let read_only = filesystem.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
        let uuid = sys::ioctl::filesystem_uuid(readable.as_fd());
        let xwhiteouts = match &reader.overlay {
            Some(keys) => At::Dir(readable.clone()).xattr(&keys.opaque)?,
            None => None,
        };
        let root = RealDir::root(id, readable.clone(), fds, xwhiteouts.as_deref() == Some(b"x"))?;
        let tag = tag_of(filesystem.f_fsid, root.identity().0, uuid);
        let magic = rustix::fs::fstatfs(&readable)?.f_type as u32;
        let handles = magic != FUSE && root.itself()?.handle().is_ok();
        let trust = trust_in(magic);
        Ok(Self {
            id,
            label,
            root,
            readable,
            reader,
            uuid,
            unique: false,
            tag,
            handles,
            read_only,
            trust,
            births: tells_births(magic),
            renumbered: AtomicBool::new(false),
            aside: None,
        })
    }

    /// Whether nothing below it can be seen.
    fn hides_all_below(&self) -> Result<bool> {
        let opaque = self.reader.hides_all_below(&self.root)?;
        if opaque {
            log::info!("branch {:?} is opaque: what is below it does not show", self.label);
        }
        Ok(opaque)
    }

    fn known(&self) -> Known<'_> {
        Known { dev: self.root.identity().0, uuid: self.uuid, tag: self.tag, label: &self.label }
    }
}

/// What a filesystem itself tells of which one it is, 0 if nothing: f_fsid, but where that is the number of its device
/// (squashfs, xfs, iso9660), which another one may have tomorrow; then its uuid.
fn tag_of(fsid: u64, dev: u64, uuid: [u8; 16]) -> u64 {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    // As the kernel encodes it: `new_encode_dev`.
    let device = u64::from((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
    if fsid == device {
        let (high, low) = (u128::from_be_bytes(uuid) >> 64, u128::from_be_bytes(uuid));
        return high as u64 ^ low as u64;
    }
    fsid
}

/// Which filesystem a branch is on, as far as can be seen.
struct Known<'a> {
    dev: u64,
    uuid: [u8; 16],
    tag: u64,
    label: &'a str,
}

/// The tag of each lower's filesystem, and whether its uuid is its own. Filesystems that tell nothing of themselves (FUSE, 9p,
/// squashfs), and those that tell the same, as the copies of one image do, are known by the path of one of their branches: the
/// first in the alphabet, so that it does not depend on the order of the branches.
fn tell_apart(lowers: &[Known<'_>]) -> Vec<(u64, bool)> {
    let told = |of: &Known<'_>| {
        let first = lowers.iter().filter(|other| other.dev == of.dev).min_by_key(|other| other.label).unwrap_or(of);
        let shared = |same: &dyn Fn(&Known<'_>) -> bool| lowers.iter().any(|other| other.dev != of.dev && same(other));
        let tag = match first.tag {
            0 => tag_of_path(first.label),
            tag if shared(&|other| other.tag == tag) => tag_of_path(first.label),
            tag => tag,
        };
        (tag, of.uuid != [0; 16] && !shared(&|other| other.uuid == of.uuid))
    };
    lowers.iter().map(told).collect()
}

fn tag_of_path(label: &str) -> u64 {
    let digest = Sha256::digest(label);
    digest.iter().take(8).fold(0, |tag, byte| tag << 8 | u64::from(*byte))
}

/// FUSE: Gluster, sshfs, virtiofs and many more.
const FUSE: u32 = 0x6573_5546;

/// What to think of a filesystem of this type, by statfs(2)'s magic numbers.
fn trust_in(magic: u32) -> Trust {
    match magic {
        // squashfs, erofs, iso9660, cramfs, romfs
        0x7371_7368 | 0xe0f5_e1e2 | 0x9660 | 0x28cd_3d45 | 0x7275 => Trust::Immutable,
        // Served by a machine: NFS, SMB1, CIFS, SMB2, Ceph, 9p, AFS twice, Coda, Lustre, OrangeFS, GPFS, BeeGFS, NCP, vboxsf, HGFS
        FUSE | 0x6969 | 0x517b | 0xff53_4d42 | 0xfe53_4d42 | 0x00c3_6400 | 0x0102_1997 | 0x5346_414f | 0x6b41_4653
        | 0x7375_7245 | 0x0bd0_0bd0 | 0x2003_0528 | 0x4750_4653 | 0x1983_0326 | 0x564c | 0x786f_4256 | 0xbacb_acbc => {
            Trust::Remote
        }
        // On a disk that several machines write to: GFS2, OCFS2
        0x0116_1970 | 0x7461_636f => Trust::Remote,
        _ => Trust::Local,
    }
}

/// The kernel's overlayfs.
const OVERLAYFS: u32 = 0x794c_7630;

/// Whether a filesystem of this type tells one birth time of an object for good. Overlayfs tells the copy's once it has copied it; a
/// server may make one up of the other times, as Samba does of files that others have made.
fn tells_births(magic: u32) -> bool {
    magic != OVERLAYFS && trust_in(magic) != Trust::Remote
}

/// Whether `on` lies on FUSE, of which the server can end while it is mounted.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_fuse(on: BorrowedFd<'_>) -> Result<bool> {
    Ok(rustix::fs::fstatfs(on)?.f_type as u32 == FUSE)
}

/// What to think of the filesystem that `on` lies on.
///
/// # Errors
/// Those of fstatfs(2).
pub fn trust_of(on: BorrowedFd<'_>) -> Result<Trust> {
    Ok(trust_in(rustix::fs::fstatfs(on)?.f_type as u32))
}

/// Whether other machines may change the filesystem that `on` lies on.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_remote(on: BorrowedFd<'_>) -> Result<bool> {
    Ok(trust_of(on)? == Trust::Remote)
}

/// What the upper needs to be written.
pub struct Upper {
    /// Where objects are made ready.
    pub stage: Stage,
    /// Leaves the marks.
    pub writer: Writer,
    /// Nothing is synced.
    pub volatile: bool,
    /// It is another machine's.
    pub remote: bool,
    /// A lower directory may be renamed: its new place remembers the old one by a mark.
    pub redirect: bool,
    /// A change of attributes copies no data of a lower file.
    pub metacopy: bool,
    /// How it keeps owners and modes, if not in its inodes.
    pub aside: Option<Aside>,
}

impl Upper {
    /// Where copies are made.
    pub fn workshop(&self) -> Workshop<'_> {
        let (volatile, remote, aside) = (self.volatile, self.remote, self.aside);
        Workshop { stage: &self.stage, keys: &self.writer.keys, volatile, remote, aside }
    }
}

/// All branches.
pub struct Stack {
    /// Top first; the upper, if any, is the first.
    pub branches: Vec<Arc<Branch>>,
    /// The upper's tools, if there is an upper.
    pub upper: Option<Arc<Upper>>,
    /// Directories that the union shows empty.
    pub covered: HashSet<(u64, u64)>,
    /// What the branches below the upper are: the least trustworthy counts.
    pub trust: Trust,
    /// Some branch keeps owners and modes in attributes.
    pub aside: bool,
}

impl Stack {
    /// The upper is always the first branch.
    pub const UPPER: BranchId = BranchId(0);

    /// A branch that is not in the stack any more.
    pub const NOWHERE: BranchId = BranchId(u16::MAX);

    /// The upper, if there is one, and the lowers down to the first branch that is opaque as a whole: nothing below that can be
    /// seen. Marks tell the filesystems of these lowers apart from now on.
    ///
    /// # Errors
    /// Those of openat(2) and statx(2).
    pub fn new(
        upper: Option<(Arc<Branch>, Arc<Upper>)>,
        lowers: Vec<Branch>,
        covered: Vec<(u64, u64)>,
    ) -> Result<Self> {
        let (top, upper) = upper.unzip();
        let mut opaque = top.as_deref().map_or(Ok(false), Branch::hides_all_below)?;
        let mut shown = Vec::with_capacity(lowers.len());
        for branch in lowers {
            if opaque {
                break;
            }
            opaque = branch.hides_all_below()?;
            shown.push(branch);
        }
        let told = tell_apart(&shown.iter().map(Branch::known).collect::<Vec<_>>());
        for (branch, (tag, unique)) in shown.iter_mut().zip(told) {
            (branch.tag, branch.unique) = (tag, unique);
        }
        let trust = shown.iter().map(|branch| branch.trust).min().unwrap_or(Trust::Immutable);
        let branches: Vec<_> = top.into_iter().chain(shown.into_iter().map(Arc::new)).collect();
        let aside = branches.iter().any(|branch| branch.aside.is_some());
        Ok(Self { branches, upper, covered: covered.into_iter().collect(), trust, aside })
    }

    /// Whether the lowers' marks are `user.*` attributes.
    pub fn reads_user_marks(&self) -> bool {
        match &self.upper {
            Some(upper) => upper.writer.keys.user,
            None => self.branches.iter().any(|branch| branch.reader.overlay.as_ref().is_some_and(|keys| keys.user)),
        }
    }

    /// The branch called `id`.
    ///
    /// # Errors
    /// `EIO` if there is none, which no caller can bring about.
    pub fn branch(&self, id: BranchId) -> Result<&Arc<Branch>> {
        self.branches.get(usize::from(id.0)).ok_or(Errno::IO)
    }

    /// The upper's tools.
    ///
    /// # Errors
    /// `EROFS` for a union without a writable branch.
    pub fn upper(&self) -> Result<&Upper> {
        self.upper.as_deref().ok_or(Errno::ROFS)
    }

    /// Whether no branch lies below `id`.
    pub fn is_bottom(&self, id: BranchId) -> bool {
        usize::from(id.0) + 1 >= self.branches.len()
    }

    /// Whether `id` is the upper.
    pub fn is_upper(&self, id: BranchId) -> bool {
        self.upper.is_some() && id == Self::UPPER
    }

    /// The roots of all branches: the layers of the union's root.
    pub fn roots(&self) -> Layers {
        self.branches.iter().map(|branch| branch.root.clone()).collect()
    }

    /// The layers of `layers` that do not belong to the upper.
    pub fn lowers<'a>(&self, layers: &'a [Arc<RealDir>]) -> &'a [Arc<RealDir>] {
        match layers.first() {
            Some(first) if self.is_upper(first.branch) => &layers[1..],
            _ => layers,
        }
    }

    /// The directory `name` of `dir`, as `stat` saw it.
    pub fn child(&self, dir: &Arc<RealDir>, name: &Name, stat: &Stat, xwhiteouts: bool) -> Arc<RealDir> {
        let covered = !self.covered.is_empty() && self.covered.contains(&stat.identity());
        dir.child(name, stat, if covered { Presence::Covered } else { Presence::Real }, xwhiteouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_are_known_by_their_numbers() {
        for (magic, trust) in [
            (0x6969, Trust::Remote),
            (FUSE, Trust::Remote),
            (0xfe53_4d42, Trust::Remote),
            (0x00c3_6400, Trust::Remote),
            (0x0116_1970, Trust::Remote),
            (0x7461_636f, Trust::Remote),
            (0x7371_7368, Trust::Immutable),
            (0xef53, Trust::Local),
            (0x0102_1994, Trust::Local),
        ] {
            assert_eq!(trust_in(magic), trust, "{magic:x}");
            assert_eq!(tells_births(magic), trust != Trust::Remote, "{magic:x}");
        }
        assert!(trust_in(OVERLAYFS) == Trust::Local && !tells_births(OVERLAYFS));
    }

    #[test]
    fn filesystems_tell_of_themselves_what_lasts() {
        let (dev, uuid) = (rustix::fs::makedev(7, 0x123), [1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(tag_of(9, dev, uuid), 9);
        assert_eq!(tag_of(0, dev, uuid), 0);
        assert_eq!(tag_of(0x0010_0723, dev, uuid), 0x0100_0000_0000_0006);
        assert_eq!(tag_of(0x0010_0723, dev, [0; 16]), 0);
    }

    #[test]
    fn filesystems_are_told_apart() {
        let known = |dev: u64, uuid: u8, tag: u64, label| Known { dev, uuid: [uuid; 16], tag, label };
        // On disk: another value would be another filesystem.
        let (a, b) = (4_910_503_397_497_204_712, tag_of_path("/b"));
        assert_eq!(tag_of_path("/precise"), a);
        for (lowers, told) in [
            (vec![known(1, 1, 7, "/precise"), known(2, 2, 8, "/b")], vec![(7, true), (8, true)]),
            // Two branches of one.
            (vec![known(1, 1, 7, "/precise"), known(1, 1, 7, "/b")], vec![(7, true), (7, true)]),
            (vec![known(1, 0, 0, "/precise"), known(1, 0, 0, "/b")], vec![(b, false), (b, false)]),
            (vec![known(1, 0, 0, "/b"), known(1, 0, 0, "/precise")], vec![(b, false), (b, false)]),
            // Nothing is known of them.
            (vec![known(1, 0, 0, "/precise"), known(2, 0, 0, "/b")], vec![(a, false), (b, false)]),
            // Copies of one image; subvolumes; an overlay of one of two.
            (vec![known(1, 1, 7, "/precise"), known(2, 1, 7, "/b")], vec![(a, false), (b, false)]),
            (vec![known(1, 1, 7, "/precise"), known(2, 1, 8, "/b")], vec![(7, false), (8, false)]),
            (vec![known(1, 1, 7, "/precise"), known(2, 0, 7, "/b")], vec![(a, true), (b, false)]),
        ] {
            assert_eq!(tell_apart(&lowers), told);
        }
    }
}
