//! One workload on one directory: `bench-driver WORKLOAD ROOT [ARGUMENT..]`, a line `NAME SECONDS` for each thing measured.
//!
//! It owns the loops that are timed, and nothing else: every path is prepared before the clock starts, and no loop
//! allocates. Mounts, rounds and comparisons belong to scripts/bench.

mod data;
mod meta;
mod names;
mod parallel;
mod special;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use names::Names;

/// What a workload needs to know.
struct Job {
    /// The names of the tree, relative to the root; empty for workloads that need none.
    names: Names,
    /// Sizes and counts are divided by this (1: the sizes of the table).
    divide: u64,
    /// The remaining arguments.
    rest: Vec<String>,
}

impl Job {
    /// A count or size of the table, made smaller as asked.
    fn scaled(&self, full: u64) -> u64 {
        (full / self.divide).max(1)
    }

    /// The n-th of the remaining arguments.
    fn argument(&self, n: usize) -> io::Result<&str> {
        self.rest.get(n).map(String::as_str).ok_or_else(|| io::Error::other("an argument is missing"))
    }
}

/// Times `work` and prints the result under `name`.
fn measure(name: &str, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let start = Instant::now();
    work()?;
    println!("{name} {:.6}", start.elapsed().as_secs_f64());
    Ok(())
}

fn run(workload: &str, job: &Job) -> io::Result<()> {
    match workload {
        "stat" => meta::stat(job),
        "absent" => meta::absent(job),
        "walk" => meta::walk(job),
        "list" => meta::list(job),
        "create" => meta::create(job),
        "rename" => meta::rename(job),
        "chmod" => meta::chmod(job),
        "delete" => meta::delete(job),
        "read" => data::read(job),
        "append" => data::append(job),
        "firstwrite" => data::firstwrite(job),
        "seqread" => data::seqread(job),
        "randread" => data::randread(job),
        "mmap" => data::mmap(job),
        "write1m" => data::write1m(job),
        "write4k" => data::write4k(job),
        "stat4" => parallel::stat4(job),
        "read4" => parallel::read4(job),
        "part" => parallel::part(job),
        "fill" => special::fill(job),
        "churn" => special::churn(job),
        "stall" => special::stall(job),
        "exec" => special::exec(job),
        "wake" => special::wake(),
        "ask" => special::ask(job),
        _ => Err(io::Error::other("no such workload")),
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(workload), Some(root)) = (args.next(), args.next()) else {
        eprintln!("usage: bench-driver WORKLOAD ROOT [--list FILE] [--divide N] [ARGUMENT..]");
        return ExitCode::from(2);
    };
    let mut job = Job { names: Names::default(), divide: 1, rest: Vec::new() };
    let outcome = (|| {
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--list" => job.names = Names::load(Path::new(&args.next().unwrap_or_default()))?,
                "--divide" => {
                    let n = args.next().unwrap_or_default();
                    job.divide = n.parse().map_err(io::Error::other)?;
                }
                _ => job.rest.push(arg),
            }
        }
        // Everything after this is relative: the price of the path to the mount is not the mount's.
        rustix::process::chdir(root.as_str())?;
        run(&workload, &job)
    })();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-driver: {workload} {root}: {error}");
            ExitCode::FAILURE
        }
    }
}
