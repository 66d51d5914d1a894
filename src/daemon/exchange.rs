//! `mount -o remount,branches=`: asks the daemon of a mounted union to go on with other lower branches.
//!
//! Invariant: descriptors are given to nobody who could not have opened them himself. What lies at a mountpoint, and which
//! process serves it, may be the choice of a tenant, so a process gets them only if it is of this user namespace, of this
//! user, and has every capability that this process has; and only by a socket that it has made as that user.
//!
//! Branches are looked up, and their mounts cloned, where the command was called; the union may lie elsewhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_domain, socket_type};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::daemon::attached::{Device, connection};
use crate::daemon::clone::clone_place;
use crate::daemon::door::{Way, way_to};
use crate::daemon::limits::GIVEN_UP;
use crate::daemon::lineage::mount_id;
use crate::daemon::overlap::{Ground, Standing, refuse_twice, relate, standings};
use crate::daemon::owners_aside;
use crate::daemon::proc::Proc;
use crate::daemon::request::ExchangeRequest;
use crate::daemon::resolve::{Branch, Checked, Role, describe, open};
use crate::daemon::table::MountTable;
use crate::daemon::wire::{Ask, Facts, GREETING, receive, send, unpack_answer};
use crate::sys::peer::{Peer, peer};

/// /dev/fuse.
const FUSE: (u32, u32) = (10, 229);

/// How long a daemon may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// A lower that is asked for, with what only its path could tell.
struct Lower {
    branch: Branch,
    way: Option<Way>,
    /// Its mount could not be cloned.
    uncloned: Option<Errno>,
    /// Its mount shows other owners than are stored.
    id_mapped: bool,
}

/// The branches that are asked for, opened.
pub(crate) struct Wanted {
    lowers: Vec<Lower>,
    /// Top first, as the lowers.
    standings: Vec<Standing>,
    upper: Option<Standing>,
}

impl Wanted {
    /// Opens what `request` names; to be called before another mount namespace is entered.
    ///
    /// # Errors
    /// A line that quotes the first path that cannot be used.
    pub(crate) fn resolve(request: &ExchangeRequest) -> Checked<Self> {
        let chroot = request.chroot.as_deref().map(|path| open(Role::Chroot, path, None)).transpose()?;
        let open = |arg: &crate::daemon::request::BranchArg| {
            let role = if arg.writable { Role::Upper } else { Role::Branch };
            let place = open(role, &arg.path, chroot.as_ref())?;
            Ok(Branch { place, writable: arg.writable, oci_whiteouts: arg.oci_whiteouts })
        };
        let branches = request.branches.iter().map(open).collect::<Checked<Vec<_>>>()?;
        refuse_twice(&branches)?;
        let table = MountTable::read_if_any();
        let (upper, standings) = standings(&branches, &table)?.into_iter().partition::<Vec<_>, _>(|one| one.writable);
        let lowers = branches.into_iter().filter(|branch| !branch.writable).map(|mut branch| {
            let mount = mount_id(branch.place.fd.as_fd()).ok().and_then(|id| table.of(id));
            let id_mapped = mount.is_some_and(|mount| mount.mounted_with(b"idmapped"));
            let way = way_to(&branch.place);
            let uncloned = clone_place(&mut branch.place).err();
            Lower { branch, way, uncloned, id_mapped }
        });
        Ok(Self { lowers: lowers.collect(), standings, upper: upper.into_iter().next() })
    }

    /// Checks how all goes together, and has it done.
    ///
    /// # Errors
    /// A line that says why not; nothing has changed then.
    pub(crate) fn exchange(mut self, daemon: &Daemon) -> Checked<()> {
        let facts = &daemon.facts;
        let ground = self.ground(&facts.ground)?;
        let branches: Vec<_> = ground.upper.iter().chain(&self.standings).cloned().collect();
        let overlaps = relate(&branches, &ground)?;
        for (at, lower) in self.lowers.iter_mut().enumerate() {
            let label = &lower.branch.place.label;
            if let Some(errno) = lower.uncloned {
                overlaps.refuse_without_clone(at + usize::from(ground.upper.is_some()), label, errno)?;
            }
            if facts.maps_owners && lower.id_mapped {
                return Err(format!(
                    "branch {label:?} is on an ID-mapped mount, and the union maps owners itself: name the directory as it \
                     is on a mount without a mapping, or mount the union anew"
                ));
            }
            if facts.container {
                if !facts.owners_aside {
                    owners_aside::refuse(std::slice::from_ref(&lower.branch))?;
                }
                // As it was with lowerdir=.
                lower.branch.oci_whiteouts = true;
            }
        }
        for lower in &self.lowers {
            let Branch { place, oci_whiteouts, .. } = &lower.branch;
            let below = lower.way.as_ref().map(|way| way.below.clone());
            let ask = Ask::Lower { label: place.label.clone(), oci_whiteouts: *oci_whiteouts, below };
            let fds: Vec<_> = std::iter::once(&place.fd).chain(lower.way.as_ref().map(|way| &way.above)).collect();
            daemon.say(&ask, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        }
        for id in overlaps.covered {
            daemon.say(&Ask::Covered(id), &[])?;
        }
        daemon.say(&Ask::Go, &[])?;
        daemon.answer()
    }

    /// What stays: the upper, if it is named, where it is now.
    fn ground(&self, known: &Ground) -> Checked<Ground> {
        let upper = match (&self.upper, &known.upper) {
            (Some(named), Some(known)) if named.lineage.id == known.lineage.id => Some(named.clone()),
            (Some(named), Some(known)) => {
                return Err(format!(
                    "{:?} is not the writable branch of this union, which is {:?} and stays: name that one, or none \
                     with =RW",
                    named.label, known.label
                ));
            }
            (Some(named), None) => {
                return Err(format!(
                    "writable branch {:?}: this union has none, and gets none while it is mounted; leave it out, or \
                     mark it =RO",
                    named.label
                ));
            }
            (None, known) => known.clone(),
        };
        if let Some(upper) = &upper
            && let Some(same) = self.standings.iter().find(|lower| lower.lineage.id == upper.lineage.id)
        {
            return Err(format!(
                "branch {:?} is the writable branch of this union: mark it =RW, or leave it out",
                same.label
            ));
        }
        if upper.is_none() && self.standings.is_empty() {
            return Err("no branch is left: name one at least".into());
        }
        Ok(Ground { upper, ..known.clone() })
    }
}

/// The daemon of a union, listening.
pub(crate) struct Daemon {
    pid: i32,
    socket: OwnedFd,
    facts: Facts,
}

/// A process that serves the union and cannot be asked.
enum Trouble {
    /// It is not seen that it does, or it has ended.
    Nobody,
    /// It does.
    Refused(String),
}

impl From<Errno> for Trouble {
    fn from(_: Errno) -> Self {
        Self::Nobody
    }
}

impl Daemon {
    /// Finds who serves the mount of number `device` on `path`, among the processes that `proc` shows.
    ///
    /// # Errors
    /// A line.
    pub(crate) fn find(proc: &Proc, device: Device, path: &Path) -> Checked<Self> {
        let trouble = |errno| format!("cannot look for the daemon of {path:?}: /proc: {}", describe(errno));
        let mut refusal = None;
        for pid in proc.numbers(".").map_err(trouble)? {
            match ask(proc, pid, connection(device)) {
                Ok(daemon) => return Ok(daemon),
                Err(Trouble::Refused(why)) => refusal = Some(format!("the daemon of {path:?} (process {pid}) {why}")),
                Err(Trouble::Nobody) => {}
            }
        }
        Err(refusal.unwrap_or_else(|| {
            format!(
                "no process that you may control serves {path:?}: run this as the user who mounted it (or as root, if that \
                 was root), where its daemon is seen"
            )
        }))
    }

    fn say(&self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Checked<()> {
        send(self.socket.as_fd(), &ask.pack(), fds, false).map_err(|errno| self.lost(errno))
    }

    fn lost(&self, errno: Errno) -> String {
        format!("the daemon (process {}) does not listen any more: {}", self.pid, describe(errno))
    }

    /// Waits for the end, however long it takes: while it may still be done nobody can say that it was not.
    fn answer(&self) -> Checked<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, None).map_err(|errno| self.lost(errno))?;
        let (message, _) = receive(self.socket.as_fd(), RecvFlags::empty()).map_err(|errno| self.lost(errno))?;
        unpack_answer(&message).unwrap_or_else(|| Err(self.lost(Errno::PIPE)))
    }
}

/// Begins to speak with process `pid` if it serves that connection.
fn ask(proc: &Proc, pid: i32, connection: u64) -> Result<Daemon, Trouble> {
    let (mut serves, mut sure, mut sockets) = (false, false, Vec::new());
    // As long as this is open and the process lives, the number is its.
    let process = pidfd_open(Pid::from_raw(pid).ok_or(Trouble::Nobody)?, PidfdFlags::empty())?;
    for number in proc.numbers(&format!("{pid}/fd"))? {
        let Ok(link) = proc.link(&format!("{pid}/fd/{number}")) else { continue };
        if link.as_os_str().as_encoded_bytes().starts_with(b"socket:") {
            sockets.push(number);
        } else if !serves && proc.is_device(&format!("{pid}/fd/{number}"), FUSE) {
            let shown = proc.value(&format!("{pid}/fdinfo/{number}"), "fuse_connection")?;
            // Older kernels do not say: then it is asked.
            sure = shown.as_ref().is_some_and(|shown| shown.parse() == Ok(connection));
            serves = sure || shown.is_none();
        }
    }
    if !serves {
        return Err(Trouble::Nobody);
    }
    let refused = |why: String| Err(Trouble::Refused(why));
    if let Some(less) = less_than_us(proc, pid)? {
        return refused(less);
    }
    let us = rustix::process::geteuid().as_raw();
    let mut last = Trouble::Refused("has no ear for other branches (it may be of another version)".to_owned());
    for number in sockets {
        let socket = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            Err(Errno::BADF) => continue,
            Err(errno) => return refused(format!("may not be controlled by you: {}", describe(errno))),
        };
        let ours = socket_domain(&socket) == Ok(AddressFamily::UNIX)
            && socket_type(&socket) == Ok(SocketType::SEQPACKET)
            && peer(socket.as_fd()) == Ok(Peer { pid, uid: us });
        if !ours {
            continue;
        }
        match greet(&socket) {
            Ok(None) => {}
            // One that was handed its device does not know which mount it serves.
            Ok(Some((socket, facts))) if facts.device.map_or(sure, |device| device == connection) => {
                return Ok(Daemon { pid, socket, facts });
            }
            Ok(Some(_)) => return Err(Trouble::Nobody),
            Err(why) => last = Trouble::Refused(why),
        }
    }
    Err(last)
}

/// Whether process `pid` has less power than this one, in words.
fn less_than_us(proc: &Proc, pid: i32) -> Result<Option<String>, Errno> {
    let user = |whom: &str| proc.link(&format!("{whom}/ns/user"));
    let value = |whom: &str, key| proc.value(&format!("{whom}/status"), key)?.ok_or(Errno::NODATA);
    let us = rustix::process::geteuid().as_raw().to_string();
    let (whom, them) = (pid.to_string(), value(&pid.to_string(), "Uid")?);
    // Real, effective, saved. The fourth is that of whom it works for at the moment.
    if them.split_whitespace().take(3).filter(|uid| *uid == us).count() < 3 {
        return Ok(Some(format!("is of another user than you (user {us}): run this as its user")));
    }
    if user("self")? != user(&whom)? {
        return Ok(Some("is in another user namespace than you: run this there".into()));
    }
    let all = |whom: &str| u64::from_str_radix(&value(whom, "CapPrm")?, 16).map_err(|_| Errno::INVAL);
    // A daemon gives up one, and who has all others could have that as well.
    if all("self")? & !all(&whom)? & !GIVEN_UP.bits() != 0 {
        return Ok(Some(
            "has fewer capabilities than you, and must not be handed what it could not open: run this with no more than it \
             has (setpriv)"
                .into(),
        ));
    }
    Ok(None)
}

/// Asks by `socket` for a conversation, and who it is with; `None` if it is the end that nothing can be sent by.
fn greet(socket: &OwnedFd) -> Result<Option<(OwnedFd, Facts)>, String> {
    let fault = |errno| format!("cannot be asked: {}", describe(errno));
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(fault)?;
    for side in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&ours, side, Some(PATIENCE)).map_err(fault)?;
    }
    match send(socket.as_fd(), GREETING, &[theirs.as_fd()], true) {
        Ok(()) => {}
        Err(Errno::PIPE) => return Ok(None),
        Err(Errno::AGAIN) => return Err("does not answer".into()),
        Err(errno) => return Err(fault(errno)),
    }
    drop(theirs);
    match receive(ours.as_fd(), RecvFlags::empty()) {
        Ok((message, _)) => match Facts::unpack(&message) {
            Some(facts) => Ok(Some((ours, facts))),
            None => Err("is of another version than this program: mount the union anew".into()),
        },
        Err(Errno::AGAIN) => Err("does not answer".into()),
        Err(errno) => Err(fault(errno)),
    }
}
