//! Mounting as an ordinary user, with the setuid program fusermount3: it mounts and hands the /dev/fuse over a socket.
//!
//! Its messages become part of ours. Used during start-up and after the last request only. Its own
//! `auto_unmount` is not used: without allow_other it cannot tell that the mount is dead, and leaves it.

use std::ffi::OsString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use crate::daemon::mount::source;
use crate::daemon::mountpoint::Directory;
use crate::daemon::request::MountRequest;
use crate::daemon::resolve::{Checked, describe};

/// Where a machine keeps it when PATH does not say.
const PLACES: [&str; 5] = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"];

/// The program, found.
#[derive(Clone, Debug)]
pub(crate) struct Fusermount(PathBuf);

impl Fusermount {
    /// Looks for the program.
    ///
    /// # Errors
    /// A line that says what to install.
    pub(crate) fn find() -> Checked<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
        places.extend(PLACES.iter().map(PathBuf::from));
        places
            .into_iter()
            .map(|dir| dir.join("fusermount3"))
            .find(|program| {
                std::fs::metadata(program).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
            })
            .map(Self)
            .ok_or_else(|| {
                "fusermount3 is missing, and only root mounts without it: install it (package fuse3), or run as root"
                    .into()
            })
    }

    /// Mounts on `directory`. Returns the daemon's end.
    ///
    /// # Errors
    /// A line with fusermount3's own message in it.
    pub(crate) fn mount(&self, request: &MountRequest, directory: &Directory) -> Checked<OwnedFd> {
        let fault = |what: &str, errno: Errno| format!("cannot run {:?}: {what}: {}", self.0, describe(errno));
        let pair = |flags| socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        // No second thread runs yet, so nobody else's child can inherit the end without CLOEXEC.
        let (ours, theirs) = pair(SocketFlags::empty()).map_err(|errno| fault("socketpair", errno))?;
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).map_err(|errno| fault("fcntl", errno))?;
        let child = Command::new(&self.0)
            .arg("-o")
            .arg(options(request))
            .arg("--")
            .arg(&directory.path)
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot run {:?}: {error}", self.0))?;
        drop(theirs);
        let device = match receive(&ours) {
            Ok(Some(device)) => device,
            got => {
                drop(ours);
                let ended = child.wait_with_output();
                let ended = ended.map_err(|error| format!("cannot wait for {:?}: {error}", self.0))?;
                let why = got.err().map(|errno| format!(" ({})", describe(errno))).unwrap_or_default();
                return Err(format!(
                    "cannot mount on {:?}: {}{why}",
                    directory.place.label,
                    message(&ended.stderr, ended.status)
                ));
            }
        };
        drop(ours);
        // The mount stands, whatever the program says now.
        match child.wait_with_output() {
            Ok(ended) if ended.stderr.is_empty() => {}
            Ok(ended) => log::warn!("{}", message(&ended.stderr, ended.status)),
            Err(error) => log::debug!("cannot wait for {:?}: {error}", self.0),
        }
        Ok(device)
    }

    /// Takes a mount off, lazily.
    ///
    /// # Errors
    /// `EPERM` if fusermount3 would not.
    pub(crate) fn unmount(&self, path: &Path) -> Result<(), Errno> {
        let status = Command::new(&self.0)
            .args(["-u", "-z", "-q", "--"])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|_| Errno::NOENT)?;
        if status.success() { Ok(()) } else { Err(Errno::PERM) }
    }
}

/// What fusermount3 said, in one line; how it ended if it said nothing.
fn message(said: &[u8], status: std::process::ExitStatus) -> String {
    let said = String::from_utf8_lossy(said);
    let line = said.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    if line.is_empty() { format!("fusermount3 refused without a word ({status})") } else { line }
}

/// The options that fusermount3 knows, in its own spelling.
fn options(request: &MountRequest) -> OsString {
    let flags = request.flags;
    let mut list = vec![if flags.read_only { "ro" } else { "rw" }.to_owned()];
    let words = [
        (!flags.suid, "nosuid"),
        (!flags.dev, "nodev"),
        (flags.noexec, "noexec"),
        (flags.noatime, "noatime"),
        (flags.sync, "sync"),
        (flags.dirsync, "dirsync"),
        (request.default_permissions, "default_permissions"),
        (request.allow_other || request.allow_root, "allow_other"),
    ];
    list.extend(words.into_iter().filter(|(wanted, _)| *wanted).map(|(_, word)| word.to_owned()));
    list.push(format!("fsname={}", escape(&source(request))));
    list.push(format!("subtype={}", escape(request.subtype.as_deref().unwrap_or("cowfs"))));
    list.join(",").into()
}

/// fusermount3 splits at commas, and takes a backslash for an escape.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

/// Waits for the descriptor; `None` if the other end was closed without one.
fn receive(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut data = [IoSliceMut::new(&mut byte)];
        match recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
            Ok(_) => {}
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                return Ok(fds.next());
            }
        }
        return Ok(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_its_spelling() {
        let request = MountRequest { fsname: Some("a,b\\c".into()), default_permissions: true, ..Default::default() };
        assert_eq!(
            options(&request),
            std::ffi::OsStr::new("rw,nosuid,nodev,default_permissions,fsname=a\\,b\\\\c,subtype=cowfs")
        );
    }
}
