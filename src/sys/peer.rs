//! Who made a socket: SO_PEERCRED. rustix's answer has no room for a process that this one's pid namespace does not show,
//! whose number is 0.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// The process that made the other end of a connected socket, as it was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number here; 0 if it is not seen here.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
}

/// Asks for the peer of `socket`.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer(socket: BorrowedFd<'_>) -> Result<Peer, Errno> {
    let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let place = (&raw mut found).cast();
    // SAFETY: `place` has room for `length` bytes, and any bytes make a valid ucred.
    let done =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length) };
    super::check(done.into())?;
    Ok(Peer { pid: found.pid, uid: found.uid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_pair_is_ones_own() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (pid, uid) = (std::process::id() as i32, rustix::process::geteuid().as_raw());
        assert_eq!(peer(one.as_fd()), Ok(Peer { pid, uid }));
        assert_eq!(peer(std::fs::File::open("/dev/null").unwrap().as_fd()), Err(Errno::NOTSOCK));
    }
}
