//! The cheapest FUSE filesystem that can take the place of a union in scripts/bench: `hollow LOWER MOUNTPOINT`.
//!
//! It has the names and sizes of LOWER in memory, all files hold zeros, and no request touches a disk. It asks the kernel for
//! what cowfs asks for, so that it gets the same requests. Returns when the mount is ready; serves with as many threads as
//! processors that it may use, at most 4.
//!
//! Invariant: nothing is done for an answer but finding it. Which processors, and what to yield to, is for who starts it
//! to say (taskset(1), chrt(1)): ground.py does.

mod serve;
mod tree;

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use fuser::{Config, MountOption, Session, SessionACL};

use serve::Hollow;
use tree::Tree;

/// The most threads, as cowfs has.
const MOST_THREADS: usize = 4;

/// Begins anew in the background, and waits until the mount is ready.
fn start(lower: &str, point: &str) -> io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    let mut child = command.args(["--serve", lower, point]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let ready = child.stdout.take().map(|mut line| line.read_exact(&mut [0]));
    ready.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
}

/// Mounts, says so, and serves until the mount is gone.
fn serve(lower: &str, point: &str) -> io::Result<()> {
    let hollow = Hollow::new(Tree::of(Path::new(lower))?)?;
    let notifier = hollow.notifier.clone();
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("hollow".into()), MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    config.n_threads = Some(std::thread::available_parallelism()?.get().min(MOST_THREADS));
    let session = Session::new(hollow, point, &config)?;
    // Nobody has set it before.
    let _ = notifier.set(session.notifier());
    io::stdout().write_all(b"r")?;
    io::stdout().flush()?;
    session.run()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", lower, point] => serve(lower, point),
        [lower, point] => start(lower, point),
        _ => Err(io::Error::other("usage: hollow LOWER MOUNTPOINT")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hollow: {error}");
            ExitCode::FAILURE
        }
    }
}
