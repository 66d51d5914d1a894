//! Hearing of changes on a filesystem: fanotify(7).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::sys::handle::FileHandle;

/// What is reported: every change of names, data and attributes.
const CHANGES: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_ONDIR;

/// Bytes of a struct fanotify_event_metadata, and where in it what is read here stands.
const METADATA: usize = 24;
const MASK: usize = 8;
/// Bytes of a record's header with its fsid, and of a handle's header.
const RECORD: usize = 12;
const HANDLE: usize = 8;

/// Something that happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// To a name in a directory, or to what it names; the name `.` means the directory itself.
    Changed(FileHandle, &'a [u8]),
    /// More than the kernel could remember.
    Overflow,
}

/// A place where events arrive; none are asked for yet.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN in the first user namespace; those of fanotify_init(2).
pub fn open() -> Result<OwnedFd, Errno> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_DFID_NAME | libc::FAN_UNLIMITED_QUEUE | libc::FAN_CLOEXEC;
    // SAFETY: no memory is passed.
    let fd = super::check(unsafe { libc::syscall(libc::SYS_fanotify_init, flags, libc::O_RDONLY | libc::O_CLOEXEC) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Asks for all changes on the filesystem that `on` lies on.
///
/// # Errors
/// `EOPNOTSUPP`, `ENODEV`, `EXDEV` where a filesystem cannot report so; those of fanotify_mark(2).
pub fn mark(events: BorrowedFd<'_>, on: BorrowedFd<'_>) -> Result<(), Errno> {
    change_mark(libc::FAN_MARK_ADD, events, on)
}

/// Asks no more for changes on the filesystem that `on` lies on.
///
/// # Errors
/// `ENOENT` if they were not asked for; those of fanotify_mark(2).
pub fn unmark(events: BorrowedFd<'_>, on: BorrowedFd<'_>) -> Result<(), Errno> {
    change_mark(libc::FAN_MARK_REMOVE, events, on)
}

fn change_mark(how: libc::c_uint, events: BorrowedFd<'_>, on: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = how | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: the path is null, which means `on` itself; nothing else is passed by address.
    super::check(unsafe {
        let nothing = std::ptr::null::<libc::c_char>();
        libc::syscall(libc::SYS_fanotify_mark, events.as_raw_fd(), flags, CHANGES, on.as_raw_fd(), nothing)
    })?;
    Ok(())
}

/// Waits for events and hands over each.
///
/// # Errors
/// Those of read(2).
pub fn read(events: BorrowedFd<'_>, buffer: &mut [u8], each: &mut dyn FnMut(Event<'_>)) -> Result<(), Errno> {
    let length = rustix::io::retry_on_intr(|| rustix::io::read(events, &mut *buffer))?;
    let mut rest = &buffer[..length];
    while let Some((event, after)) = split_event(rest) {
        if number::<8>(event, MASK).map(u64::from_ne_bytes).is_some_and(|mask| mask & libc::FAN_Q_OVERFLOW != 0) {
            each(Event::Overflow);
        }
        let mut records = &event[METADATA..];
        while let Some((record, others)) = split_record(records) {
            if record[0] == libc::FAN_EVENT_INFO_TYPE_DFID_NAME
                && let Some((handle, name)) = named(record)
            {
                each(Event::Changed(handle, name));
            }
            records = others;
        }
        rest = after;
    }
    Ok(())
}

/// The first of the events that follow each other in `bytes`, each beginning with its length; and what follows it.
fn split_event(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(number(bytes, 0)?) as usize;
    if length < METADATA { None } else { bytes.split_at_checked(length) }
}

/// The same for the records of an event, whose length has 2 bytes, after their type.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(number(bytes, 2)?));
    if length < RECORD + HANDLE { None } else { bytes.split_at_checked(length) }
}

/// The handle and the name in a record.
fn named(record: &[u8]) -> Option<(FileHandle, &[u8])> {
    let length = u32::from_ne_bytes(number(record, RECORD)?) as usize;
    let kind = i32::from_ne_bytes(number(record, RECORD + 4)?);
    let rest = record.get(RECORD + HANDLE..)?;
    let (bytes, name) = rest.split_at_checked(length)?;
    let end = name.iter().position(|&byte| byte == 0)?;
    Some((FileHandle { kind, bytes: bytes.to_vec() }, &name[..end]))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_change_is_heard_of_and_torn_records_are_not_read() {
        let Ok(events) = open() else { return println!("SKIP: fanotify needs CAP_SYS_ADMIN") };
        let dir = tempfile::tempdir().unwrap();
        let on = std::fs::File::open(dir.path()).unwrap();
        mark(events.as_fd(), on.as_fd()).unwrap();
        std::fs::write(dir.path().join("a name of its own"), "").unwrap();
        let (mut buffer, mut heard) = ([0; 4096], false);
        while !heard {
            let mut each = |event: Event<'_>| heard |= matches!(event, Event::Changed(_, b"a name of its own"));
            read(events.as_fd(), &mut buffer, &mut each).unwrap();
        }
        assert!(named(&[0; 3]).is_none() && split_event(&[9, 0, 0, 0]).is_none() && split_record(&[0; 4]).is_none());
    }
}
