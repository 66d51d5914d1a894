//! What the engine is told at start: the settings that change what it does, not how it is mounted or served.

/// How a branch says that a lower name is deleted, that a directory hides the one below, and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The kernel's overlayfs: character device 0:0 and extended attributes.
    Overlay,
    /// aufs and OCI image layers: files called `.wh.NAME`.
    Oci,
    /// unionfs-fuse, every release but 1.0: `.unionfs/PATH_HIDDEN~`.
    Unionfs,
    /// unionfs-fuse 1.0: `.unionfs-fuse/PATH_HIDDEN~`.
    UnionfsFuse,
}

impl Format {
    /// All formats with the word that `-o whiteout=` knows each by.
    pub const ALL: [(&'static str, Self); 4] = [
        ("overlay", Self::Overlay),
        ("oci", Self::Oci),
        ("unionfs", Self::Unionfs),
        ("unionfs-fuse", Self::UnionfsFuse),
    ];

    /// The word that `-o whiteout=` knows this format by.
    pub fn word(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Oci => "oci",
            Self::Unionfs => "unionfs",
            Self::UnionfsFuse => "unionfs-fuse",
        }
    }
}

/// In which attribute owners and modes are kept instead of in the inodes (`xattr_permissions=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsideKey {
    /// 1: in one that only a privileged daemon can set.
    Privileged,
    /// 2: in one that every owner can set.
    User,
}

/// Settings of one union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Marks to write in the upper (`whiteout=`); default: what the upper already holds, else overlay where it can
    /// hold them, else `.wh.` files.
    pub format: Option<Format>,
    /// `volatile`: copies are not synced before they are published, and fsync does nothing. Faster; after a power loss
    /// the upper may be incomplete. Default: off.
    pub volatile: bool,
    /// `redirect=on|off`: a renamed lower directory is recorded by a redirect mark (overlay format only); off: EXDEV.
    /// Default: on, off in a container engine's call.
    pub redirect: bool,
    /// `metacopy=on|off`: what changes only attributes of a lower file copies these alone; the data follow when the file
    /// is opened for writing. Only where `redirect` is. Default: on, off in a container engine's call.
    pub metacopy: bool,
    /// The marks' extended attributes are `user.overlay.*`, for a daemon that may not set `trusted.*` (in a user
    /// namespace). Default: found out at start.
    pub userxattr: Option<bool>,
    /// Owners and modes are kept in attributes: the upper's, and those of each lower that was made so. Default: in the
    /// inodes, for all branches.
    pub aside: Option<AsideKey>,
}

impl Default for Options {
    fn default() -> Self {
        Self { format: None, volatile: false, redirect: true, metacopy: true, userxattr: None, aside: None }
    }
}
