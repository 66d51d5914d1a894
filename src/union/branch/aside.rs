//! Owners aside: branches in which owner, group and mode of files and directories stand in an attribute, because the inode
//! belongs to whoever runs the daemon (fuse-overlayfs's `xattr_permissions=`, podman's `force_mask`).
//!
//! The value is `UID:GID:MODE`, the mode in octal, and where a plain file stands for a device, `:char-MAJOR-MINOR` and the like
//! behind it. A branch is such a one if its root has the attribute. Symlinks, devices, FIFOs and sockets cannot have it (the
//! kernel keeps `user.*` for files and directories); theirs are the inode's.
//!
//! Invariant: what the inode itself says of an object stored here lets nobody in but the daemon, and has no set-id bits.
//! What a value says is never mixed with what the inode says, and a value that cannot be read is an error, since the inode
//! would let in others.
//!
//! Not here: which attributes the union hides for this (`ops::xattr`), what becomes of new objects (`ops::make`).

use std::ffi::CStr;

use rustix::fs::FileType;

use crate::union::branch::at::{At, Stat};
use crate::union::error::{During, Errno, Result, best_effort};
use crate::union::options::AsideKey;

const PRIVILEGED: &CStr = c"security.fuseoverlayfs.override_stat";
const CONTAINERS: &CStr = c"user.containers.override_stat";
/// fuse-overlayfs 1.10's, and that of those before it.
const OLD: &CStr = c"user.fuseoverlayfs.override_stat";

/// In the order in which fuse-overlayfs looks for them.
const KEYS: [&CStr; 3] = [PRIVILEGED, CONTAINERS, OLD];

const PERMISSIONS: u32 = 0o7777;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o0010;

/// How one branch keeps owners and modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aside {
    key: &'static CStr,
}

/// What is to become of owner, group and mode; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// As chown(2), whatever the ids: set-id bits go. (Capabilities the kernel removes by a request of its own.)
    pub chown: bool,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permission bits.
    pub mode: Option<u32>,
}

/// Whether `key` is the name of such an attribute.
pub fn is_key(key: &[u8]) -> bool {
    let key = key.strip_suffix(b"\0").unwrap_or(key);
    KEYS.iter().any(|known| known.to_bytes() == key)
}

/// The names of such attributes that the directory `root` has, most important first.
///
/// # Errors
/// Those of getxattr(2).
pub fn keys_of(root: &At) -> Result<Vec<&'static CStr>> {
    let mut found = Vec::new();
    for key in KEYS {
        if root.xattr(key)?.is_some() {
            found.push(key);
        }
    }
    Ok(found)
}

/// The value of `xattr_permissions=` for an upper that has the attribute `key`.
pub fn option_for(key: &CStr) -> u8 {
    if key == PRIVILEGED { 1 } else { 2 }
}

/// Why an upper that has the attribute `key` cannot be used as was asked: the rest of a sentence about it.
pub fn to_be_named(key: &CStr) -> String {
    format!("it keeps owners and modes in the attribute {key:?}; use xattr_permissions={}", option_for(key))
}

impl Aside {
    /// How the lower with this root keeps them; `None`: in its inodes.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn of_lower(root: &At) -> Result<Option<Self>> {
        Ok(keys_of(root)?.first().map(|key| Self { key }))
    }

    /// How the upper with this root shall keep them. A new one is made so only while it is `empty`: through a union that
    /// keeps owners in inodes, whoever owns a file could have set its attribute.
    ///
    /// # Errors
    /// The rest of a sentence about the branch.
    pub fn of_upper(root: &At, wanted: AsideKey, empty: bool) -> std::result::Result<Self, String> {
        let candidates: &[&CStr] = match wanted {
            AsideKey::Privileged => &[PRIVILEGED],
            AsideKey::User => &[CONTAINERS, OLD],
        };
        let held = keys_of(root).map_err(|errno| format!("its attributes cannot be read: {errno}"))?;
        if let Some(key) = held.iter().find(|key| candidates.contains(key)) {
            return Ok(Self { key });
        }
        if let Some(key) = held.first() {
            return Err(to_be_named(key));
        }
        if !empty {
            return Err(
                "it holds objects whose owners and modes are in their inodes; xattr_permissions= needs an upper \
                        that is empty or was made with it"
                    .to_owned(),
            );
        }
        let aside = Self { key: candidates[0] };
        let begin = root.stat().and_then(|own| aside.write(root, own.kind(), &own));
        match begin {
            Ok(()) => Ok(aside),
            Err(errno) => Err(format!(
                "owners and modes cannot be kept in the attribute {:?}: {errno}; leave xattr_permissions out",
                aside.key
            )),
        }
    }

    /// `own`, the inode's attributes of `at`, with owner, group and mode as they are to be shown; of a plain file that stands
    /// for a device also its type and number.
    ///
    /// # Errors
    /// `EIO` for a value that makes no sense; those of getxattr(2).
    pub fn shown(self, at: &At, own: &Stat) -> Result<Stat> {
        Ok(self.stored(at, own)?.unwrap_or(*own))
    }

    fn stored(self, at: &At, own: &Stat) -> Result<Option<Stat>> {
        if !can_hold(own.kind()) {
            return Ok(None);
        }
        let value = at.xattr(self.key)?;
        value.map(|value| read(&value, own).ok_or(Errno::IO).during("read owner and mode of", at)).transpose()
    }

    /// Makes `at`, an object of type `kind` that nobody knows yet, one whose owner, group and mode are those of `shown`.
    ///
    /// # Errors
    /// Those of chmod(2) and setxattr(2).
    pub fn begin(self, at: &At, kind: FileType, shown: &Stat) -> Result<()> {
        if can_hold(kind) {
            at.chmod(closed(kind))?;
        }
        self.write(at, kind, shown)
    }

    /// Changes owner, group and mode of `at` as chown(2) and then chmod(2) do. Nobody else may do so meanwhile.
    ///
    /// # Errors
    /// As `shown`; those of setxattr(2).
    pub fn change(self, at: &At, change: &Change) -> Result<()> {
        let own = at.stat()?;
        let stored = self.stored(at, &own)?;
        let mut shown = stored.unwrap_or(own);
        if change.chown {
            if !own.is_dir() {
                shown.mode &= !set_id(shown.mode);
            }
            (shown.uid, shown.gid) = (change.uid.unwrap_or(shown.uid), change.gid.unwrap_or(shown.gid));
        }
        if let Some(mode) = change.mode {
            shown.mode = shown.mode & !PERMISSIONS | mode & PERMISSIONS;
        }
        self.write(at, own.kind(), &shown)?;
        if stored.is_none() && can_hold(own.kind()) {
            // From before the branch was one of these; shown is what is stored from here on.
            best_effort("take the inode over", claim(at, &own));
        }
        Ok(())
    }

    fn write(self, at: &At, kind: FileType, shown: &Stat) -> Result<()> {
        if can_hold(kind) {
            return at.set_xattr(self.key, value(kind, shown).as_bytes(), 0);
        }
        match at.chown(Some(shown.uid), Some(shown.gid)) {
            // Whose rights these are nobody asks of a symlink, and who unpacks an archive counts on giving it away.
            Err(Errno::PERM | Errno::INVAL) => log::debug!("{at:?}: cannot belong to {}:{}", shown.uid, shown.gid),
            done => done?,
        }
        if kind.is_symlink() { Ok(()) } else { at.chmod(shown.mode) }
    }
}

/// The bits that chown(2) and a write take away.
pub fn set_id(mode: u32) -> u32 {
    mode & SET_UID | if mode & GROUP_EXEC != 0 { mode & SET_GID } else { 0 }
}

/// The mode of an inode that lets in nobody but its owner.
fn closed(kind: FileType) -> u32 {
    if kind.is_dir() { 0o700 } else { 0o600 }
}

/// Makes the inode the daemon's alone, as if it had made it.
fn claim(at: &At, own: &Stat) -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if (own.uid, own.gid) != (uid, gid) {
        at.chown(Some(uid), Some(gid))?;
    }
    at.chmod(closed(own.kind()))
}

fn can_hold(kind: FileType) -> bool {
    kind.is_file() || kind.is_dir()
}

/// The value that makes an object of type `kind` show what `shown` says.
fn value(kind: FileType, shown: &Stat) -> String {
    let plain = format!("{}:{}:{:o}", shown.uid, shown.gid, shown.mode & PERMISSIONS);
    let (major, minor) = shown.rdev;
    match shown.kind() {
        same if same == kind => plain,
        FileType::CharacterDevice => format!("{plain}:char-{major}-{minor}"),
        FileType::BlockDevice => format!("{plain}:block-{major}-{minor}"),
        FileType::Fifo => format!("{plain}:pipe"),
        FileType::Socket => format!("{plain}:socket"),
        _ => plain,
    }
}

/// What is shown of an object with the attributes `own` and this value. The mode may have a type, too, which fuse-overlayfs
/// leaves in; no type but a file's can be another than the inode's.
fn read(value: &[u8], own: &Stat) -> Option<Stat> {
    let mut fields = std::str::from_utf8(value).ok()?.splitn(4, ':');
    let mut shown = *own;
    shown.uid = fields.next()?.parse().ok()?;
    shown.gid = fields.next()?.parse().ok()?;
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    let mut kind = own.kind();
    if let Some(word) = fields.next().filter(|_| kind.is_file()) {
        let (word, number) = word.split_once('-').unwrap_or((word, ""));
        kind = match word {
            "char" => FileType::CharacterDevice,
            "block" => FileType::BlockDevice,
            "pipe" => FileType::Fifo,
            "socket" => FileType::Socket,
            _ => kind,
        };
        if matches!(word, "char" | "block") {
            let (major, minor) = number.split_once('-')?;
            shown.rdev = (major.parse().ok()?, minor.parse().ok()?);
        }
    }
    shown.mode = kind.as_raw_mode() | mode & PERMISSIONS;
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(mode: u32) -> Stat {
        let file = tempfile::tempfile().unwrap();
        Stat { mode, uid: 1, gid: 2, ..At::stat_fd(&file.into()).unwrap() }
    }

    #[test]
    fn values_of_all_makers_are_read() {
        for (text, mode, shown, rdev) in [
            // fuse-overlayfs 1, with and without the type; containers/storage, old and new.
            ("7:8:100644", 0o100_600, 0o100_644, (0, 0)),
            ("7:8:755", 0o040_700, 0o040_755, (0, 0)),
            ("7:8:04711", 0o100_600, 0o104_711, (0, 0)),
            ("7:8:0644:file", 0o100_600, 0o100_644, (0, 0)),
            ("7:8:0755:dir", 0o040_700, 0o040_755, (0, 0)),
            ("7:8:0620:char-5-1", 0o100_600, 0o020_620, (5, 1)),
            ("7:8:0660:block-8-0", 0o100_600, 0o060_660, (8, 0)),
            ("7:8:0600:pipe", 0o100_600, 0o010_600, (0, 0)),
            ("7:8:0600:socket", 0o100_600, 0o140_600, (0, 0)),
            // A type that the object cannot have.
            ("7:8:0644:char-5-1", 0o040_700, 0o040_644, (0, 0)),
            ("7:8:0644:dir", 0o100_600, 0o100_644, (0, 0)),
        ] {
            let own = own(mode);
            let read = read(text.as_bytes(), &own).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((read.uid, read.gid, read.mode, read.rdev), (7, 8, shown, rdev), "{text}");
            let again = value(own.kind(), &read);
            assert_eq!(super::read(again.as_bytes(), &own), Some(read), "{text} -> {again}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_guessed_at() {
        for text in [
            "",
            "1",
            "1:2",
            "1:2:",
            "1:2:9",
            "-1:2:644",
            "1:2:644:char",
            "1:2:644:char-1",
            "4294967296:1:644",
            " 1:2:644",
        ] {
            assert_eq!(read(text.as_bytes(), &own(0o100_600)), None, "{text}");
        }
        assert_eq!(read(b"\xff:1:644", &own(0o100_600)), None);
    }
}
