//! Keeps the lock of an upper that lies on other machines: asks for it again and again, because a server that was started anew
//! may have forgotten it, and another daemon may have taken it then.
//!
//! Invariant: while the lock cannot be asked for, nothing is changed through the union; once another daemon has had it, this
//! process ends, since what it knows of the upper is not true any more.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{Advice, FlockOperation};
use rustix::io::Errno;

use crate::daemon::resolve::{Checked, describe};
use crate::fuse::session::give_up;
use crate::union::fault::freeze;

/// How long between two questions: a server that fails and comes back takes longer.
const PERIOD: Duration = Duration::from_secs(1);

/// How long a network filesystem may believe what it has read of a file before: longer than Gluster's clients, which do not
/// know that they should ask again.
const MEMORY: Duration = Duration::from_secs(2);

/// What the lock is known to be.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Ours, and has been all the time.
    Ours,
    /// Nobody can tell.
    Unknown(Errno),
    /// Another daemon's, or it was.
    Lost,
}

/// Keeps a lock.
pub(crate) struct Keeper {
    file: OwnedFd,
    /// What this process has written into the file; another one would have written something else.
    token: [u8; 8],
    doubt: bool,
    memory: Duration,
}

impl Keeper {
    /// Signs the locked file.
    ///
    /// # Errors
    /// A line, if it cannot be written.
    pub(crate) fn sign(file: OwnedFd) -> Checked<Self> {
        let refused = |errno| format!("cannot sign the lock of the writable branch: {}", describe(errno));
        let mut token = RandomState::new().build_hasher().finish().to_ne_bytes();
        match rustix::io::pwrite(&file, &token, 0).and_then(|_| rustix::fs::fsync(&file)) {
            Ok(()) => {}
            // Whoever mounts a full branch wants to delete something. What others sign later is told from what is there now.
            Err(Errno::NOSPC | Errno::DQUOT) => {
                token = [0; 8];
                rustix::io::pread(&file, &mut token, 0).map_err(refused)?;
            }
            Err(errno) => return Err(refused(errno)),
        }
        Ok(Self { file, token, doubt: false, memory: MEMORY })
    }

    /// Keeps the lock on a thread of its own, as long as the process lives.
    ///
    /// # Errors
    /// As thread creation.
    pub(crate) fn start(mut self) -> std::io::Result<()> {
        let keep = move || {
            loop {
                sleep(PERIOD);
                self.tell();
            }
        };
        std::thread::Builder::new().name("cowfs-lock".into()).spawn(keep).map(drop)
    }

    fn tell(&mut self) {
        match self.look() {
            State::Ours if self.doubt => {
                log::warn!("the lock of the writable branch is ours still: changes are possible again");
                self.doubt = false;
                freeze(false);
            }
            State::Ours => {}
            State::Unknown(errno) => {
                if !self.doubt {
                    log::error!(
                        "the lock of the writable branch cannot be asked for ({}): no changes until then",
                        describe(errno)
                    );
                }
                self.doubt = true;
                freeze(true);
            }
            State::Lost => {
                freeze(true);
                log::error!("another union has taken the writable branch while its server was away: giving up");
                give_up();
            }
        }
    }

    fn look(&self) -> State {
        match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if !self.doubt => State::Ours,
            Ok(()) => {
                // From here on nobody else writes there.
                sleep(self.memory);
                let mut token = [0; 8];
                let forget = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
                if let Err(errno) = forget {
                    return State::Unknown(errno);
                }
                match rustix::io::pread(&self.file, &mut token, 0) {
                    Ok(_) if token == self.token => State::Ours,
                    Ok(_) => State::Lost,
                    Err(errno) => State::Unknown(errno),
                }
            }
            Err(Errno::AGAIN) => State::Lost,
            Err(errno) => State::Unknown(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_ours_until_another_has_had_it() {
        let scratch = tempfile::tempdir().unwrap();
        let open = || -> OwnedFd {
            let path = scratch.path().join("lock");
            std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap().into()
        };
        let lock = |fd: &OwnedFd| rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive);
        let unlock = |fd: &OwnedFd| rustix::fs::flock(fd, FlockOperation::Unlock).unwrap();
        let file = open();
        lock(&file).unwrap();
        let mut keeper = Keeper { memory: Duration::ZERO, ..Keeper::sign(file).unwrap() };
        assert_eq!(keeper.look(), State::Ours);

        // The server forgets it, and nobody else comes.
        unlock(&keeper.file);
        keeper.doubt = true;
        assert_eq!(keeper.look(), State::Ours);

        // Another one has it.
        unlock(&keeper.file);
        let other = Keeper::sign(open()).unwrap();
        lock(&other.file).unwrap();
        assert_eq!(keeper.look(), State::Lost);
        // Has had it.
        drop(other);
        assert_eq!(keeper.look(), State::Lost);
    }
}
