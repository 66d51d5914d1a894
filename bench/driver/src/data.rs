//! Workloads on contents.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{CWD, Mode, OFlags};

use crate::names::Random;
use crate::{Job, measure};

const MIB: u64 = 1024 * 1024;

fn open(name: &CStr, flags: OFlags) -> io::Result<File> {
    Ok(rustix::fs::openat(CWD, name, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?.into())
}

pub(crate) fn read_names<'a>(names: impl Iterator<Item = &'a CString>) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    for name in names {
        let file = open(name, OFlags::RDONLY)?;
        while rustix::io::read(&file, &mut buffer)? == buffer.len() {}
    }
    Ok(())
}

pub(crate) fn read(job: &Job) -> io::Result<()> {
    measure("read_first", || read_names(job.names.files.iter()))?;
    measure("read_again", || read_names(job.names.files.iter()))
}

pub(crate) fn append(job: &Job) -> io::Result<()> {
    measure("append", || {
        for name in job.names.spread(job.scaled(3_000)) {
            let file = open(name, OFlags::WRONLY | OFlags::APPEND)?;
            rustix::io::write(&file, b"x")?;
        }
        Ok(())
    })
}

/// Uses as much memory as a copy of the large file and what it lies on will need, and gives it back: a virtual machine's host takes
/// memory away that has been free for a while, and each page of it costs 2 us when it is used again.
fn warm_memory() {
    drop(std::hint::black_box(vec![1_u8; 1 << 30]));
}

pub(crate) fn firstwrite(job: &Job) -> io::Result<()> {
    let name = CString::new(job.argument(0).unwrap_or("large"))?;
    warm_memory();
    measure("firstwrite", || open(&name, OFlags::WRONLY)?.write_all_at(b"x", 4096))
}

/// Reads the whole of a file, 1 MiB a call; fails when it has not the size expected.
fn read_through(name: &CStr, size: u64) -> io::Result<()> {
    let file = open(name, OFlags::RDONLY)?;
    let mut buffer = vec![0; MIB as usize];
    let mut seen = 0;
    loop {
        match rustix::io::read(&file, &mut buffer)? {
            0 if seen == size => return Ok(()),
            0 => return Err(io::Error::other(format!("{seen} bytes read of {size}"))),
            n => seen += n as u64,
        }
    }
}

pub(crate) fn seqread(job: &Job) -> io::Result<()> {
    let name = CString::new(job.argument(0).unwrap_or("large"))?;
    let size = rustix::fs::statat(CWD, &name, rustix::fs::AtFlags::empty())?.st_size as u64;
    measure("seqread_first", || read_through(&name, size))?;
    measure("seqread_again", || read_through(&name, size))
}

pub(crate) fn randread(job: &Job) -> io::Result<()> {
    let file = open(c"large", OFlags::RDONLY)?;
    let pages = file.metadata()?.len() / 4096;
    let mut random = Random::new();
    let mut buffer = [0; 4096];
    measure("randread", || {
        (0..job.scaled(100_000)).try_for_each(|_| file.read_exact_at(&mut buffer, random.below(pages) * 4096))
    })
}

/// Maps a file and reads one byte of every page.
pub(crate) fn mmap(job: &Job) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags};
    let name = CString::new(job.argument(0).unwrap_or("large"))?;
    measure("mmap", || {
        let file = open(&name, OFlags::RDONLY)?;
        let size = file.metadata()?.len() as usize;
        // SAFETY: a fresh mapping at an address of the kernel's choice, read only within its length, before munmap.
        let sum = unsafe {
            let map = rustix::mm::mmap(std::ptr::null_mut(), size, ProtFlags::READ, MapFlags::SHARED, &file, 0)?;
            let bytes = std::slice::from_raw_parts(map.cast::<u8>(), size);
            let sum = bytes.iter().step_by(4096).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            rustix::mm::munmap(map, size)?;
            sum
        };
        std::hint::black_box(sum);
        Ok(())
    })
}

pub(crate) fn write1m(job: &Job) -> io::Result<()> {
    let buffer = vec![b'w'; MIB as usize];
    measure("write1m", || {
        let file = open(c"written", OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        (0..job.scaled(256)).try_for_each(|n| file.write_all_at(&buffer, n * MIB))
    })
}

pub(crate) fn write4k(job: &Job) -> io::Result<()> {
    let buffer = [b'w'; 4096];
    let pages = job.scaled(128 * MIB) / 4096;
    measure("write4k", || {
        let file = open(c"written", OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        (0..pages).try_for_each(|n| file.write_all_at(&buffer, n * 4096))
    })?;
    // The write-back of the first half is not to be paid by the second.
    File::open(".")
        .and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
        .or_else(|_| open(c"written", OFlags::WRONLY)?.sync_all())?;
    let mut random = Random::new();
    measure("randwrite", || {
        let file = open(c"written", OFlags::WRONLY)?;
        (0..job.scaled(32_768)).try_for_each(|_| file.write_all_at(&buffer, random.below(pages) * 4096))
    })
}
