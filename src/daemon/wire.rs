//! What the daemon and whoever changes its branches say to each other: messages of numbers and texts, with descriptors.
//!
//! Whoever reads believes nothing: every length is checked, and a message that does not fit is no message.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::daemon::lineage::Lineage;
use crate::daemon::overlap::{Ground, Standing};
use crate::daemon::resolve::Id;

/// What opens a conversation, on the daemon's own socket; with it comes the other end of one that is its asker's.
pub(crate) const GREETING: &[u8] = b"cowfs: branches";

/// Of the messages that follow. Both sides must be of one.
const VERSION: u64 = 1;

/// Longer than any message: a path is 4096 bytes at most, and the directories above one are 2048.
const LONGEST: usize = 160 << 10;

/// Descriptors in one message, at most.
const MOST_FDS: usize = 2;

/// Sends one message; waits for nobody if `at_once`.
///
/// # Errors
/// As sendmsg(2).
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], at_once: bool) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MOST_FDS || !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let flags = if at_once { SendFlags::NOSIGNAL | SendFlags::DONTWAIT } else { SendFlags::NOSIGNAL };
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)).map(drop)
}

/// Receives one message with its descriptors; an empty one is the end.
///
/// # Errors
/// `EAGAIN` when the socket's time is up; `EMSGSIZE` for more than a message can be; else as recvmsg(2).
pub(crate) fn receive(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = rustix::io::retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags))?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    bytes.truncate(got.bytes);
    Ok((bytes, fds))
}

/// A message in the making.
#[derive(Debug, Default)]
pub(crate) struct Packed(pub(crate) Vec<u8>);

impl Packed {
    fn number(&mut self, number: u64) {
        self.0.extend(number.to_ne_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.0.extend(text);
    }

    fn id(&mut self, id: Id) {
        self.number(id.dev);
        self.number(id.ino);
    }

    fn optional<T>(&mut self, value: Option<&T>, pack: impl FnOnce(&mut Self, &T)) {
        self.number(u64::from(value.is_some()));
        if let Some(value) = value {
            pack(self, value);
        }
    }

    fn standing(&mut self, standing: &Standing) {
        self.text(standing.label.as_bytes());
        self.number(u64::from(standing.writable));
        self.id(standing.lineage.id);
        self.number(standing.lineage.above.len() as u64);
        for &id in &standing.lineage.above {
            self.id(id);
        }
        self.optional(standing.lineage.inner.as_ref(), |to, path| to.text(path.as_os_str().as_bytes()));
    }
}

/// What is left to read of a message.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*number))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }

    fn string(&mut self) -> Option<String> {
        String::from_utf8(self.text()?.to_vec()).ok()
    }

    fn path(&mut self) -> Option<PathBuf> {
        Some(Path::new(OsStr::from_bytes(self.text()?)).to_owned())
    }

    fn truth(&mut self) -> Option<bool> {
        match self.number()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn id(&mut self) -> Option<Id> {
        Some(Id { dev: self.number()?, ino: self.number()? })
    }

    fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.truth()? { read(self).map(Some) } else { Some(None) }
    }

    fn standing(&mut self) -> Option<Standing> {
        let (label, writable, id) = (self.string()?, self.truth()?, self.id()?);
        let mut above = Vec::new();
        for _ in 0..self.number()? {
            above.push(self.id()?);
        }
        let inner = self.optional(Self::path)?;
        Some(Standing { label, lineage: Lineage { id, above, inner }, writable })
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// What whoever exchanges the lowers of a union must know of it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    /// The device number of the mount, if the daemon knows it.
    pub(crate) device: Option<u64>,
    pub(crate) ground: Ground,
    /// Mounted by a container engine: see `MountRequest`.
    pub(crate) container: bool,
    /// Lowers may keep owners and modes in attributes: `xattr_permissions=`.
    pub(crate) owners_aside: bool,
    /// The union shows other owners than the branches.
    pub(crate) maps_owners: bool,
}

impl Facts {
    /// As a message.
    pub(crate) fn pack(&self) -> Vec<u8> {
        let mut to = Packed::default();
        to.number(VERSION);
        to.optional(self.device.as_ref(), |to, &device| to.number(device));
        for standing in [&self.ground.upper, &self.ground.workdir, &self.ground.mountpoint] {
            to.optional(standing.as_ref(), Packed::standing);
        }
        to.number(u64::from(self.container));
        to.number(u64::from(self.owners_aside));
        to.number(u64::from(self.maps_owners));
        to.0
    }

    /// From a message; `None` if it is none of this version.
    pub(crate) fn unpack(message: &[u8]) -> Option<Self> {
        let mut from = Rest(message);
        if from.number()? != VERSION {
            return None;
        }
        let device = from.optional(Rest::number)?;
        let [upper, workdir, mountpoint] =
            [from.optional(Rest::standing)?, from.optional(Rest::standing)?, from.optional(Rest::standing)?];
        let ground = Ground { upper, workdir, mountpoint };
        let (container, owners_aside, maps_owners) = (from.truth()?, from.truth()?, from.truth()?);
        let facts = Self { device, ground, container, owners_aside, maps_owners };
        from.end()?;
        Some(facts)
    }
}

/// What is asked for, piece by piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The next lower below those before. Its root comes with it; with `below` the directory above its mount, too, and
    /// the names from there.
    Lower { label: String, oci_whiteouts: bool, below: Option<PathBuf> },
    /// A directory that the union is to show empty.
    Covered(Id),
    /// That is all: exchange them.
    Go,
}

impl Ask {
    /// As a message.
    pub(crate) fn pack(&self) -> Vec<u8> {
        let mut to = Packed::default();
        match self {
            Self::Lower { label, oci_whiteouts, below } => {
                to.number(0);
                to.text(label.as_bytes());
                to.number(u64::from(*oci_whiteouts));
                to.optional(below.as_ref(), |to, below| to.text(below.as_os_str().as_bytes()));
            }
            Self::Covered(id) => {
                to.number(1);
                to.id(*id);
            }
            Self::Go => to.number(2),
        }
        to.0
    }

    /// From a message.
    pub(crate) fn unpack(message: &[u8]) -> Option<Self> {
        let mut from = Rest(message);
        let ask = match from.number()? {
            0 => Self::Lower { label: from.string()?, oci_whiteouts: from.truth()?, below: from.optional(Rest::path)? },
            1 => Self::Covered(from.id()?),
            2 => Self::Go,
            _ => return None,
        };
        from.end()?;
        Some(ask)
    }
}

/// The last message: done, or why not.
pub(crate) fn pack_answer(answer: &Result<(), String>) -> Vec<u8> {
    let mut to = Packed::default();
    to.optional(answer.as_ref().err(), |to, refusal| to.text(refusal.as_bytes()));
    to.0
}

/// From a message; `None` if it is none.
pub(crate) fn unpack_answer(message: &[u8]) -> Option<Result<(), String>> {
    let mut from = Rest(message);
    let refusal = from.optional(Rest::string)?;
    from.end()?;
    Some(refusal.map_or(Ok(()), Err))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn facts() -> Facts {
        let standing = |ino, inner: Option<&str>| Standing {
            label: format!("/a {ino}"),
            lineage: Lineage {
                id: Id { dev: 7, ino },
                above: (0..ino).map(|ino| Id { dev: u64::MAX, ino }).collect(),
                inner: inner.map(PathBuf::from),
            },
            writable: ino == 3,
        };
        let ground =
            Ground { upper: Some(standing(3, Some("/up"))), workdir: None, mountpoint: Some(standing(0, None)) };
        Facts { device: Some(42), ground, container: false, owners_aside: true, maps_owners: true }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        assert_eq!(Facts::unpack(&facts().pack()), Some(facts()));
        let lower = |below: Option<&str>| Ask::Lower {
            label: "/l\u{e4}".into(),
            oci_whiteouts: below.is_some(),
            below: below.map(PathBuf::from),
        };
        for ask in [lower(None), lower(Some("a/b")), Ask::Covered(Id { dev: 1, ino: u64::MAX }), Ask::Go] {
            assert_eq!(Ask::unpack(&ask.pack()), Some(ask));
        }
        for answer in [Ok(()), Err("busy".to_owned())] {
            assert_eq!(unpack_answer(&pack_answer(&answer)), Some(answer));
        }
    }

    #[test]
    fn what_is_torn_or_longer_is_none() {
        type Reads = fn(&[u8]) -> bool;
        let rows: [(Vec<u8>, Reads); 4] = [
            (facts().pack(), |message| Facts::unpack(message).is_some()),
            (Ask::Covered(Id { dev: 1, ino: 2 }).pack(), |message| Ask::unpack(message).is_some()),
            (Ask::Go.pack(), |message| Ask::unpack(message).is_some()),
            (pack_answer(&Err("x".into())), |message| unpack_answer(message).is_some()),
        ];
        for (whole, reads) in rows {
            assert!(reads(&whole) && !reads(&[&whole[..], &[0]].concat()));
            assert!((0..whole.len()).all(|end| !reads(&whole[..end])));
        }
        let mut other = facts().pack();
        other[0] += 1;
        assert_eq!(Facts::unpack(&other), None);
    }

    proptest! {
        /// Nothing panics, and no length that is only claimed is believed.
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..100)) {
            let _ = (Facts::unpack(&bytes), Ask::unpack(&bytes), unpack_answer(&bytes));
        }
    }

    #[test]
    fn descriptors_come_along_and_too_many_are_refused() {
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (one, other) = pair();
        send(one.as_fd(), b"x", &[one.as_fd(), other.as_fd()], true).unwrap();
        let (bytes, fds) = receive(other.as_fd(), RecvFlags::empty()).unwrap();
        assert_eq!((&bytes[..], fds.len()), (&b"x"[..], 2));
        assert!(send(one.as_fd(), b"x", &[one.as_fd(); 3], true).is_err());
        send(one.as_fd(), &vec![0; LONGEST + 1], &[], true).unwrap();
        assert_eq!(receive(other.as_fd(), RecvFlags::empty()).unwrap_err(), Errno::MSGSIZE);
        drop((one, fds));
        assert_eq!(receive(other.as_fd(), RecvFlags::empty()).unwrap().0, b"");
    }
}
