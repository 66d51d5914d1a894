//! The branches in order, and what the upper needs to be written.
//!
//! Not here: what a name means (`resolve`).

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

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
    /// Tells its filesystem from others, over reboots where the filesystem can: f_fsid, or made of the branch's path where
    /// there is none (FUSE, 9p).
    pub tag: u64,
    /// Whether its filesystem has file handles that last: those of FUSE are places in its server's memory.
    pub handles: bool,
    /// Its mount is read-only.
    pub read_only: bool,
    /// Who may change it behind the union's back.
    pub trust: Trust,
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
        let (tag, flags) = (tag_of(filesystem.f_fsid, &label), filesystem.f_flag);
        let read_only = flags.contains(rustix::fs::StatVfsMountFlags::RDONLY);
        let uuid = sys::ioctl::filesystem_uuid(readable.as_fd());
        let xwhiteouts = match &reader.overlay {
            Some(keys) => At::Dir(readable.clone()).xattr(&keys.opaque)?,
            None => None,
        };
        let root = RealDir::root(id, readable.clone(), fds, xwhiteouts.as_deref() == Some(b"x"))?;
        let magic = rustix::fs::fstatfs(&readable)?.f_type as u32;
        let handles = magic != FUSE && root.itself()?.handle().is_ok();
        let trust = trust_in(magic);
        Ok(Self { id, label, root, readable, reader, uuid, tag, handles, read_only, trust, aside: None })
    }
}

/// What tells a filesystem from others: two without an f_fsid must not be taken for one.
fn tag_of(fsid: u64, label: &str) -> u64 {
    if fsid != 0 {
        return fsid;
    }
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

/// Whether `on` lies on FUSE, of which the server can end while it is mounted.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_fuse(on: BorrowedFd<'_>) -> Result<bool> {
    Ok(rustix::fs::fstatfs(on)?.f_type as u32 == FUSE)
}

/// Whether other machines may change the filesystem that `on` lies on.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_remote(on: BorrowedFd<'_>) -> Result<bool> {
    Ok(trust_in(rustix::fs::fstatfs(on)?.f_type as u32) == Trust::Remote)
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
    pub branches: Vec<Branch>,
    /// The upper's tools, if there is an upper.
    pub upper: Option<Upper>,
    /// Directories that the union shows empty.
    pub covered: HashSet<(u64, u64)>,
    /// Branches may keep owners and modes in attributes.
    pub aside: bool,
}

impl Stack {
    /// The upper is always the first branch.
    pub const UPPER: BranchId = BranchId(0);

    /// The branch called `id`.
    ///
    /// # Errors
    /// `EIO` if there is none, which no caller can bring about.
    pub fn branch(&self, id: BranchId) -> Result<&Branch> {
        self.branches.get(usize::from(id.0)).ok_or(Errno::IO)
    }

    /// The upper's tools.
    ///
    /// # Errors
    /// `EROFS` for a union without a writable branch.
    pub fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Errno::ROFS)
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
        }
    }

    #[test]
    fn filesystems_without_an_id_are_told_apart_by_their_paths() {
        assert_eq!(tag_of(7, "/a"), 7);
        assert_ne!(tag_of(0, "/a"), 0);
        assert_ne!(tag_of(0, "/a"), tag_of(0, "/b"));
        // On disk: another value would be another filesystem.
        assert_eq!(tag_of(0, "/precise"), tag_of(0, "/precise"));
    }
}
