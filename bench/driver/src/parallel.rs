//! Workloads by four processes: each takes a quarter of the names, all start at one signal.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};

use crate::{Job, data, measure, meta};

const PROCESSES: usize = 4;

pub(crate) fn stat4(job: &Job) -> io::Result<()> {
    together("stat4", "stat", job)
}

pub(crate) fn read4(job: &Job) -> io::Result<()> {
    together("read4", "read", job)
}

/// Starts the processes, waits until each has its names, and times from the signal to the last one's answer.
fn together(name: &str, kind: &str, job: &Job) -> io::Result<()> {
    let list = job.argument(0)?;
    let mut children = Vec::new();
    for n in 0..PROCESSES {
        let mut command = Command::new("/proc/self/exe");
        command.args(["part", ".", "--list", list, kind]).arg(n.to_string());
        children.push(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    }
    children.iter_mut().try_for_each(await_byte)?;
    measure(name, || {
        for child in &mut children {
            child.stdin.as_mut().ok_or_else(no_pipe)?.write_all(b"g")?;
        }
        children.iter_mut().try_for_each(await_byte)
    })?;
    for mut child in children {
        if !child.wait()?.success() {
            return Err(io::Error::other("one of the processes failed"));
        }
    }
    Ok(())
}

fn no_pipe() -> io::Error {
    io::Error::other("a process has no pipe")
}

fn await_byte(child: &mut Child) -> io::Result<()> {
    child.stdout.as_mut().ok_or_else(no_pipe)?.read_exact(&mut [0])
}

/// One of the processes.
pub(crate) fn part(job: &Job) -> io::Result<()> {
    let n: usize = job.argument(1)?.parse().map_err(io::Error::other)?;
    let mut stdout = io::stdout().lock();
    let mut say = |byte: &[u8]| stdout.write_all(byte).and_then(|()| stdout.flush());
    say(b"r")?;
    io::stdin().read_exact(&mut [0])?;
    let quarter = |len: usize| len * n / PROCESSES..len * (n + 1) / PROCESSES;
    match job.argument(0)? {
        "stat" => meta::stat_names(job.names.all.get(quarter(job.names.all.len())).into_iter().flatten())?,
        _ => data::read_names(job.names.files.get(quarter(job.names.files.len())).into_iter().flatten())?,
    }
    say(b"d")
}
