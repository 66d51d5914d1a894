//! Workloads outside the table: filling directories, long runs, stalls, process starts.

use std::ffi::CString;
use std::io::{self, IsTerminal};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::names::numbered;
use crate::{Job, measure, meta};

fn make(name: &CString) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, name, flags, Mode::from_raw_mode(0o644))?;
    Ok(())
}

/// `fill ROOT COUNT PER_DIR`: empty files, in directories `dN` of so many, or all in the root with 0.
pub(crate) fn fill(job: &Job) -> io::Result<()> {
    let count: u64 = job.argument(0)?.parse().map_err(io::Error::other)?;
    let per_dir: u64 = job.argument(1)?.parse().map_err(io::Error::other)?;
    for n in 0..count {
        if per_dir > 0 && n % per_dir == 0 {
            std::fs::create_dir(format!("d{}", n / per_dir))?;
        }
        let name = n.checked_div(per_dir).map_or(format!("entry{n}"), |dir| format!("d{dir}/entry{n}"));
        make(&CString::new(name)?)?;
    }
    Ok(())
}

/// `churn ROOT COUNT`: creates and deletes so many files, at most 1,000 at a time.
pub(crate) fn churn(job: &Job) -> io::Result<()> {
    let count: u64 = job.argument(0)?.parse().map_err(io::Error::other)?;
    rustix::fs::mkdirat(CWD, c"churn", Mode::from_raw_mode(0o755))?;
    measure("churn", || {
        for batch in 0..count.div_ceil(1_000) {
            let names = numbered(&format!("churn/b{batch}-"), 1_000.min(count - batch * 1_000))?;
            names.iter().try_for_each(make)?;
            meta::unlink_names(names.iter())?;
        }
        Ok(())
    })
}

/// `stall ROOT FILE`: the worst and the 99th percentile of `stat` on unrelated names never asked for before, while
/// the first write to FILE copies it up.
pub(crate) fn stall(job: &Job) -> io::Result<()> {
    let file = job.argument(0)?.to_owned();
    let done = AtomicBool::new(false);
    let mut delays = Vec::with_capacity(1 << 20);
    let copying = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let start = Instant::now();
            let result = std::fs::OpenOptions::new().write(true).open(&file).and_then(|f| f.write_all_at(b"x", 4096));
            done.store(true, Ordering::Release);
            result.map(|()| start.elapsed())
        });
        let mut n = 0usize;
        while !done.load(Ordering::Acquire) {
            let known = job.names.all.get(n).cloned();
            let name = known.map_or_else(|| CString::new(format!("absent{n}")), Ok).map_err(io::Error::other)?;
            let start = Instant::now();
            let _ = rustix::fs::statat(CWD, &name, AtFlags::SYMLINK_NOFOLLOW);
            delays.push(start.elapsed());
            n += 1;
            std::thread::sleep(Duration::from_micros(100));
        }
        writer.join().map_err(|_| io::Error::other("the writer died"))?
    })?;
    delays.sort_unstable();
    let at = |part: usize| delays.get(delays.len().saturating_sub(1) * part / 100).map_or(0.0, Duration::as_secs_f64);
    println!("copyup {:.6}\nstall_worst {:.6}\nstall_p99 {:.6}", copying.as_secs_f64(), at(100), at(99));
    println!("# stats {}", delays.len());
    Ok(())
}

/// `exec ROOT COUNT PROGRAM [ARGUMENT..]`: enters ROOT by chroot and starts a program so many times.
pub(crate) fn exec(job: &Job) -> io::Result<()> {
    let count: u64 = job.argument(0)?.parse().map_err(io::Error::other)?;
    let program = job.argument(1)?;
    let arguments = job.rest.get(2..).unwrap_or_default();
    rustix::process::chroot(".")?;
    measure("exec", || {
        for _ in 0..count {
            let mut command = Command::new(program);
            let status = command.args(arguments).stdin(Stdio::inherit()).stdout(Stdio::inherit()).status()?;
            if !status.success() {
                return Err(io::Error::other(format!("{program} ended with {status}")));
            }
        }
        Ok(())
    })
}

/// `wake ROOT`: the price of a question and its answer between two threads that sleep meanwhile, in seconds: what every
/// FUSE request pays before anything is done.
pub(crate) fn wake() -> io::Result<()> {
    const TURNS: u32 = 20_000;
    let (question, asked) = rustix::pipe::pipe()?;
    let (answer, answered) = rustix::pipe::pipe()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || -> io::Result<()> {
            for _ in 0..TURNS {
                rustix::io::read(&question, &mut [0; 1])?;
                rustix::io::write(&answered, b"x")?;
            }
            Ok(())
        });
        for _ in 0..TURNS {
            rustix::io::write(&asked, b"x")?;
            rustix::io::read(&answer, &mut [0; 1])?;
        }
        server.join().map_err(|_| io::Error::other("the other thread panicked"))?
    })?;
    println!("wake {:.9}", start.elapsed().as_secs_f64() / f64::from(TURNS));
    Ok(())
}

/// `ask ROOT`: what a request costs for which nothing is done, in seconds: whether an open file is a terminal, which the
/// kernel's FUSE asks each time, and no filesystem need look up.
pub(crate) fn ask(job: &Job) -> io::Result<()> {
    let name = job.names.files.first().ok_or_else(|| io::Error::other("no file to ask about"))?;
    let file = rustix::fs::openat(CWD, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let questions = job.scaled(40_000);
    let start = Instant::now();
    for _ in 0..questions {
        if file.is_terminal() {
            return Err(io::Error::other("a file is a terminal"));
        }
    }
    println!("ask {:.9}", start.elapsed().as_secs_f64() / questions as f64);
    Ok(())
}
