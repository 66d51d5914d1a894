//! Workloads on names and attributes.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};

use crate::names::numbered;
use crate::{Job, measure};

pub(crate) fn stat_names<'a>(names: impl Iterator<Item = &'a CString>) -> io::Result<()> {
    for name in names {
        rustix::fs::statat(CWD, name, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

pub(crate) fn stat(job: &Job) -> io::Result<()> {
    measure("stat_first", || stat_names(job.names.all.iter()))?;
    measure("stat_again", || (0..5).try_for_each(|_| stat_names(job.names.all.iter())))
}

pub(crate) fn absent(job: &Job) -> io::Result<()> {
    let mut absent = Vec::new();
    for name in &job.names.all {
        let mut bytes = name.as_bytes().to_vec();
        bytes.extend_from_slice(b".absent");
        absent.push(CString::new(bytes)?);
    }
    let pass = || {
        for name in &absent {
            match rustix::fs::statat(CWD, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(io::Error::other("a name that should be absent is there")),
            }
        }
        Ok(())
    };
    measure("absent_first", pass)?;
    measure("absent_again", pass)
}

fn open_dir(parent: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Lists `dir`, stats every entry, and goes down; returns the number of entries seen.
fn walk_dir(dir: &OwnedFd) -> io::Result<u64> {
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut below = Vec::new();
    let mut seen = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        seen += 1;
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            below.push(name.to_owned());
        }
    }
    for name in below {
        seen += walk_dir(&open_dir(dir, &name)?)?;
    }
    Ok(seen)
}

pub(crate) fn walk(job: &Job) -> io::Result<()> {
    let top = CString::new(job.argument(0).unwrap_or("tree"))?;
    let mut counts = [0; 2];
    measure("walk_first", || walk_dir(&open_dir(CWD, &top)?).map(|n| counts[0] = n))?;
    measure("walk_again", || walk_dir(&open_dir(CWD, &top)?).map(|n| counts[1] = n))?;
    if counts[0] != counts[1] || counts[0] == 0 {
        return Err(io::Error::other("two walks saw different trees"));
    }
    println!("# names {}", counts[0]);
    Ok(())
}

fn list_once(name: &CStr) -> io::Result<u64> {
    let dir = open_dir(CWD, name)?;
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(&dir, &mut buffer);
    let mut seen = 0;
    while let Some(entry) = entries.next() {
        entry?;
        seen += 1;
    }
    Ok(seen - 2)
}

pub(crate) fn list(job: &Job) -> io::Result<()> {
    let want: u64 = job.argument(0)?.parse().map_err(io::Error::other)?;
    measure("list", || {
        for _ in 0..5 {
            if list_once(c"wide")? != want {
                return Err(io::Error::other("a listing is not complete"));
            }
        }
        Ok(())
    })
}

pub(crate) fn create(job: &Job) -> io::Result<()> {
    rustix::fs::mkdirat(CWD, c"made", Mode::from_raw_mode(0o755))?;
    let names = numbered("made/f", job.scaled(10_000))?;
    let content = [b'x'; 100];
    measure("create", || {
        for name in &names {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(CWD, name, flags, Mode::from_raw_mode(0o644))?;
            rustix::io::write(&file, &content)?;
        }
        Ok(())
    })?;
    measure("unlink", || unlink_names(names.iter()))
}

pub(crate) fn unlink_names<'a>(names: impl Iterator<Item = &'a CString>) -> io::Result<()> {
    for name in names {
        rustix::fs::unlinkat(CWD, name, AtFlags::empty())?;
    }
    Ok(())
}

pub(crate) fn rename(job: &Job) -> io::Result<()> {
    rustix::fs::mkdirat(CWD, c"moved", Mode::from_raw_mode(0o755))?;
    std::fs::write("moved/a", b"content")?;
    measure("rename", || {
        for n in 0..job.scaled(20_000) {
            let (old, new) = if n % 2 == 0 { (c"moved/a", c"moved/b") } else { (c"moved/b", c"moved/a") };
            rustix::fs::renameat(CWD, old, CWD, new)?;
        }
        Ok(())
    })
}

pub(crate) fn chmod(job: &Job) -> io::Result<()> {
    measure("chmod", || {
        for name in job.names.spread(job.scaled(3_000)) {
            rustix::fs::chmodat(CWD, name, Mode::from_raw_mode(0o600), AtFlags::empty())?;
        }
        Ok(())
    })
}

pub(crate) fn delete(job: &Job) -> io::Result<()> {
    measure("delete", || unlink_names(job.names.spread(job.scaled(3_000))))
}
