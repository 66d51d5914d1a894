//! The cheapest FUSE filesystem that can take the place of a union in scripts/bench: `hollow LOWER MOUNTPOINT`.
//!
//! It has the names and sizes of LOWER in memory, all files hold zeros, and no request touches a disk. It asks the kernel for
//! what cowfs asks for, so that it gets the same requests. Returns when the mount is ready; serves with a thread on each of the
//! processors that it may use, at most 4.
//!
//! Invariant: nothing is done for an answer but finding it. So fuser only mounts and begins the connection: it needs a
//! thread more, and two pieces of memory an answer. Which processors, and what to yield to, is for who starts it to say
//! (taskset(1), chrt(1)): ground.py does. Several programs are served fastest by threads that stay where they are: a third less time
//! than by threads that roam.

mod serve;
mod tree;
#[path = "../../../src/fuse/wanted.rs"]
mod wanted;
mod wire;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use rustix::thread::CpuSet;

use fuser::{BackingId, Config, Filesystem, InitFlags, KernelConfig, MountOption, Request, Session, SessionACL};

use serve::Hollow;
use tree::Tree;
use wanted::{MAX_DATA, STACK_DEPTH, WANTED};

/// The most threads, as cowfs has.
const MOST_THREADS: usize = 4;

/// What cowfs asks for by default beside that, `src/fuse/offer.rs`.
const BY_DEFAULT: InitFlags = InitFlags::FUSE_POSIX_ACL.union(InitFlags::FUSE_PASSTHROUGH);

/// The start of the connection.
struct Greeter;

impl Filesystem for Greeter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |what: &str| io::Error::other(format!("the kernel refuses {what}"));
        let wanted = WANTED.union(BY_DEFAULT) & config.capabilities();
        config.add_capabilities(wanted).map_err(|flags| refused(&format!("{flags:?}")))?;
        config.set_max_write(MAX_DATA).map_err(|_| refused("large writes"))?;
        config.set_max_stack_depth(STACK_DEPTH).map_err(|_| refused("to lie under another filesystem"))?;
        Ok(())
    }
}

/// Begins anew in the background, and waits until the mount is ready.
fn start(lower: &str, point: &str) -> io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    let mut child = command.args(["--serve", lower, point]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let ready = child.stdout.take().map(|mut line| line.read_exact(&mut [0]));
    ready.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
}

/// Mounts, says so, and serves until the mount is gone.
fn serve(lower: &str, point: &str) -> io::Result<()> {
    let tree = Tree::of(Path::new(lower))?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("hollow".into()), MountOption::DefaultPermissions];
    config.acl = SessionACL::All;
    let session = Session::new(Greeter, point, &config)?;
    let device = session.as_fd();
    let memory = rustix::fs::memfd_create("hollow", rustix::fs::MemfdFlags::CLOEXEC)?;
    let backing =
        BackingId::create_raw(device, &memory).inspect_err(|error| eprintln!("hollow: no passthrough: {error}"));
    let hollow = Hollow::new(tree, backing.ok());
    io::stdout().write_all(b"r")?;
    io::stdout().flush()?;
    thread::scope(|scope| {
        let processors = processors()?;
        let each = |processor| {
            rustix::thread::sched_setaffinity(None, &processor)?;
            hollow.serve(device)
        };
        let others: Vec<_> = processors.iter().skip(1).map(|&processor| scope.spawn(move || each(processor))).collect();
        let mut ends: Vec<_> = processors.iter().take(1).map(|&processor| each(processor)).collect();
        ends.extend(others.into_iter().map(|other| other.join().unwrap_or_else(|_| Err(io::Error::other("a panic")))));
        ends.into_iter().collect()
    })
}

/// Each of the processors that this process may use, up to `MOST_THREADS`.
fn processors() -> io::Result<Vec<CpuSet>> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let one = |processor| {
        let mut only = CpuSet::new();
        only.set(processor);
        only
    };
    Ok((0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).take(MOST_THREADS).map(one).collect())
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
