//! The daemon's ear: a socket by which the lower branches of a mounted union are exchanged.
//!
//! Invariant: the socket has no name and no path, and both ends of it are this process's. So who may speak there is who may
//! take a descriptor out of this process (pidfd_getfd(2)), which is who may ptrace it, and nobody else. What is said is
//! checked all the same: a mistake must not get further than a refusal.
//!
//! Not here: finding the daemon, and what goes together (`exchange`); the exchange itself (`union::ops::over`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use crate::daemon::door::{Door, Doors, Way};
use crate::daemon::resolve::{Checked, Id, describe};
use crate::daemon::watch::Watch;
use crate::daemon::wire::{Ask, Facts, GREETING, pack_answer, receive, send};
use crate::fuse::{Current, Exchange};
use crate::sys::peer::{Peer, peer};
use crate::sys::process::give_memory_back;
use crate::union::{BranchSource, NewLowers};

/// How long whoever asks may keep silent, or another exchange take, until the conversation is over.
const PATIENCE: Duration = Duration::from_secs(30);

/// As many branches as a stack can have.
const MOST: usize = u16::MAX as usize;

/// What an exchange needs, and changes.
pub(crate) struct Office {
    pub(crate) facts: Facts,
    pub(crate) union: Arc<Current>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) doors: Arc<Doors>,
    pub(crate) watch: Option<Watch>,
    /// The lowers as they are, for the log; locked during an exchange, so that there is one at a time.
    pub(crate) lowers: Mutex<String>,
}

/// Where those who may change the branches are heard.
pub(crate) struct Control {
    ear: OwnedFd,
    /// The end that they take out of this process.
    _mouth: OwnedFd,
    office: Arc<Office>,
}

impl Control {
    /// Opens the socket; no process that is made from this one may have it.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub(crate) fn open(office: Arc<Office>) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ear, mouth) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // Who takes the wrong one of the two notices: nothing can be sent by it.
        shutdown(&mouth, Shutdown::Read)?;
        Ok(Self { ear, _mouth: mouth, office })
    }

    /// Where there is something to read when somebody asks.
    pub(crate) fn ear(&self) -> BorrowedFd<'_> {
        self.ear.as_fd()
    }

    /// Hears who asks now, and answers on a thread that lives as long as the conversation: branches may be slow, and the
    /// caller has signals to wait for.
    pub(crate) fn hear(&self) {
        let asker = match receive(self.ear.as_fd(), RecvFlags::DONTWAIT) {
            Ok((greeting, mut fds)) if greeting == GREETING && fds.len() == 1 => fds.pop(),
            Ok(_) => None,
            Err(errno) => {
                log::debug!("who asks for other branches cannot be heard: {}", describe(errno));
                None
            }
        };
        let Some(asker) = asker else { return };
        let office = self.office.clone();
        let talk = move || {
            if let Err(errno) = office.talk(asker.as_fd()) {
                log::debug!("who asked for other branches is not there any more: {}", describe(errno));
            }
            // It may be a year until the next one.
            drop(office);
            give_memory_back();
        };
        if let Err(error) = std::thread::Builder::new().name("cowfs-branches".into()).spawn(talk) {
            log::warn!("who asks for other branches cannot be answered: no thread: {error}");
        }
    }
}

/// What was asked for, as far as it was heard.
#[derive(Default)]
struct Asked {
    lowers: Vec<(BranchSource, Option<Way>)>,
    covered: Vec<Id>,
}

impl Office {
    /// One conversation.
    fn talk(&self, asker: BorrowedFd<'_>) -> Result<(), Errno> {
        for side in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(asker, side, Some(PATIENCE))?;
        }
        send(asker, &self.facts.pack(), &[], false)?;
        let mut asked = Asked::default();
        let answer = loop {
            let (message, fds) = receive(asker, RecvFlags::empty())?;
            if message.is_empty() {
                return Err(Errno::PIPE);
            }
            match asked.hear(&message, fds) {
                Ok(true) => break self.exchange(asked, peer(asker)?),
                Ok(false) => {}
                Err(refusal) => break Err(refusal),
            }
        };
        send(asker, &pack_answer(&answer), &[], false)
    }

    /// Exchanges the lowers, and all that goes with them.
    fn exchange(&self, asked: Asked, who: Peer) -> Checked<()> {
        let Asked { lowers, covered } = asked;
        let upper = self.facts.ground.upper.as_ref();
        if lowers.is_empty() && upper.is_none() {
            return Err("a union needs one branch at least".into());
        }
        if lowers.len() + 1 > MOST {
            return Err(format!("more than {MOST} branches"));
        }
        let busy = || "the union is busy with another exchange, or with a branch that does not answer".to_owned();
        let mut list = self.lowers.try_lock_for(PATIENCE).ok_or_else(busy)?;
        let held = self.doors.hold(PATIENCE).ok_or_else(busy)?;
        let upper_id = upper.map(|upper| upper.lineage.id);
        let (mut sources, mut doors) = (Vec::new(), Vec::new());
        for (at, (source, way)) in lowers.into_iter().enumerate() {
            let id = Id::of(source.root.as_fd())
                .map_err(|errno| format!("branch {:?} cannot be looked at: {}", source.label, describe(errno)))?;
            if Some(id) == upper_id {
                return Err(format!("branch {:?} is the writable branch: it stays what it is", source.label));
            }
            let at = at + usize::from(upper.is_some());
            doors.extend(way.map(|way| Door::new(at, source.label.clone(), id.dev, way)));
            sources.push(source);
        }
        let wanted = list_of(&sources);
        let roots = if self.watch.is_some() { readable(&sources)? } else { Vec::new() };
        let before = self.follow(&roots)?;
        let covered = covered.into_iter().map(|id| (id.dev, id.ino)).collect();
        let exchanged = (self.exchange)(NewLowers { lowers: sources, covered });
        self.unfollow(&before, &roots, exchanged.is_ok());
        exchanged?;
        let was = std::mem::replace(&mut *list, wanted);
        // At a level that the log holds by default: who changed what a tenant sees must be found there.
        log::warn!("branches changed by process {} of user {}: {was:?} is now {:?}", who.pid, who.uid, *list);
        if let Err(error) = held.exchange(doors) {
            log::warn!("lower branches that are mounted anew will not be found: no thread: {error}");
        }
        Ok(())
    }

    /// With `watch`: hears of the new filesystems before they are served, so that nothing is missed. Returns those that
    /// are heard of already.
    fn follow(&self, roots: &[OwnedFd]) -> Checked<Vec<OwnedFd>> {
        let Some(watch) = &self.watch else { return Ok(Vec::new()) };
        let copies =
            |fds: Vec<BorrowedFd<'_>>| fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<Result<_, _>>();
        let before: Vec<OwnedFd> = self.union.with(|union| copies(union.follow_lowers())).map_err(|e| e.to_string())?;
        if let Err(refusal) = roots.iter().try_for_each(|root| watch.add(root.as_fd())) {
            self.unfollow(&before, roots, false);
            return Err(refusal);
        }
        Ok(before)
    }

    /// Hears no more of the filesystems that have no lower: of those `before`, or of `roots` if those were refused.
    fn unfollow(&self, before: &[OwnedFd], roots: &[OwnedFd], exchanged: bool) {
        let Some(watch) = &self.watch else { return };
        let (gone, there) = if exchanged { (before, roots) } else { (roots, before) };
        let device = |on: &OwnedFd| rustix::fs::fstat(on).map(|stat| stat.st_dev);
        let stays: Vec<_> = there.iter().map(device).collect();
        // One that stays is heard of all the time: what was missed meanwhile would be trusted for a day.
        gone.iter().filter(|on| !stays.contains(&device(on))).for_each(|on| watch.remove(on.as_fd()));
        // One filesystem may have more than one device number (btrfs).
        for on in there {
            if let Err(refusal) = watch.add(on.as_fd()) {
                log::error!("{refusal}");
            }
        }
    }
}

impl Asked {
    /// Takes one message; whether it is the last.
    fn hear(&mut self, message: &[u8], fds: Vec<OwnedFd>) -> Checked<bool> {
        let mut fds = fds.into_iter();
        match (Ask::unpack(message), fds.next(), fds.next()) {
            (Some(Ask::Lower { label, oci_whiteouts, below }), Some(root), above) => {
                if self.lowers.len() >= MOST {
                    return Err(format!("more than {MOST} branches"));
                }
                for dir in std::iter::once(&root).chain(&above) {
                    let kind = rustix::fs::fstat(dir).map(|stat| FileType::from_raw_mode(stat.st_mode));
                    if kind != Ok(FileType::Directory) {
                        return Err(format!("branch {label:?} is not a directory"));
                    }
                }
                let way = above.zip(below).map(|(above, below)| Way { above, below });
                self.lowers.push((BranchSource { label, root, writable: false, oci_whiteouts }, way));
                Ok(false)
            }
            (Some(Ask::Covered(id)), None, None) if self.covered.len() <= MOST => {
                self.covered.push(id);
                Ok(false)
            }
            (Some(Ask::Go), None, None) => Ok(true),
            _ => Err("a request that makes no sense".into()),
        }
    }
}

/// A descriptor of each root that can be read.
fn readable(sources: &[BranchSource]) -> Checked<Vec<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = |source: &BranchSource| {
        rustix::fs::openat(&source.root, c".", flags, Mode::empty())
            .map_err(|errno| format!("branch {:?} cannot be read: {}", source.label, describe(errno)))
    };
    sources.iter().map(open).collect()
}

/// The lowers among `branches`, as the log shows them.
pub(crate) fn list_of(branches: &[BranchSource]) -> String {
    let shown =
        |branch: &BranchSource| format!("{}={}", branch.label, if branch.oci_whiteouts { "RO+wh" } else { "RO" });
    branches.iter().filter(|branch| !branch.writable).map(shown).collect::<Vec<_>>().join(":")
}
