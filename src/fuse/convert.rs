//! The engine's words in fuser's, and back; exact for every value that either side can hold.
//!
//! Nothing here fails or panics: the kernel passes on what a tenant typed, a branch what its disk holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileHandle, INodeNo};
use rustix::fs::FileType;

use crate::union::error::Errno;
use crate::union::types::{Attr, HandleId, NodeId, SetTime, Time};

const BILLION: u32 = 1_000_000_000;

/// The errno as fuser sends it.
///
/// Never `ENOSYS`: the kernel takes that for "not in this file system, never ask again", and one odd branch would
/// switch an operation off for the whole mount.
pub fn errno(errno: Errno) -> fuser::Errno {
    match errno {
        Errno::NOSYS => fuser::Errno::from_i32(Errno::OPNOTSUPP.raw_os_error()),
        errno => fuser::Errno::from_i32(errno.raw_os_error()),
    }
}

/// A time to be sent; fuser writes it out as the same seconds and nanoseconds.
pub fn system_time(time: Time) -> SystemTime {
    let nanoseconds = Duration::new(0, time.nsec.min(BILLION - 1));
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    // On Linux a SystemTime holds every i64 of seconds, so neither step can fail.
    whole.and_then(|whole| whole.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

/// A time that fuser 0.18 has read from a request.
///
/// Before 1970 fuser takes the nanoseconds, which count forward, for backward: -2 s + 0.5 s, meant as -1.5 s, arrives
/// as -2.5 s. What it read is still there, and is put together anew.
pub fn received_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            // 2^63 has no positive i64: it is i64::MIN.
            let sec = 0i64.checked_sub_unsigned(before.as_secs()).unwrap_or(i64::MIN);
            Time { sec, nsec: before.subsec_nanos() }
        }
    }
}

/// A time to set.
pub fn set_time(time: fuser::TimeOrNow) -> SetTime {
    match time {
        fuser::TimeOrNow::Now => SetTime::Now,
        fuser::TimeOrNow::SpecificTime(time) => SetTime::At(received_time(time)),
    }
}

/// (major, minor) as FUSE has it: the kernel's `new_encode_dev`, 12 bits of major and 20 of minor.
pub fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The reverse of `device_number`.
pub fn received_device(number: u32) -> (u32, u32) {
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

/// The type of a file. What a branch cannot name is shown as a regular file, because fuser has no word for it.
pub fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharacterDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::RegularFile | FileType::Unknown => fuser::FileType::RegularFile,
    }
}

/// Attributes to be sent, under the inode number that they carry.
pub fn file_attr(attr: &Attr) -> fuser::FileAttr {
    fuser::FileAttr {
        ino: fuser::INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind()),
        // The mask leaves 12 bits.
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// FS_*_FL and FS_XFLAG_*, one for the other, as the kernel's `fileattr_fill_flags` pairs them (linux/fs.h).
const FLAG_PAIRS: [(u32, u32); 7] = [
    (0x8, 0x20),          // SYNC
    (0x10, 0x8),          // IMMUTABLE
    (0x20, 0x10),         // APPEND
    (0x40, 0x80),         // NODUMP
    (0x80, 0x40),         // NOATIME
    (0x200_0000, 0x8000), // DAX
    (0x2000_0000, 0x200), // PROJINHERIT
];

/// A `struct fsxattr` that says what inode flags (FS_*_FL) say; no project, no extent size.
pub fn fsxattr(flags: u32) -> [u8; 28] {
    let pairs = FLAG_PAIRS.iter().filter(|(flag, _)| flags & flag != 0);
    let xflags = pairs.fold(0, |xflags, (_, xflag)| xflags | xflag);
    let mut fsxattr = [0; 28];
    fsxattr[..4].copy_from_slice(&u32::to_ne_bytes(xflags));
    fsxattr
}

/// What fuser calls an inode is a node's id.
pub(super) fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

/// A handle as fuser has it.
pub(super) fn handle(handle: FileHandle) -> HandleId {
    HandleId(handle.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::types::Ino;

    const TIMES: [(i64, u32); 14] = [
        (0, 0),
        (0, 1),
        (1, 999_999_999),
        (-1, 0),
        (-1, 999_999_999),
        (-2, 500_000_000),             // -1.5 s
        (-2_177_452_800, 123_456_789), // 1901
        (9_223_372_036, 854_775_807),  // 2262: the last that 64 bits of nanoseconds hold
        (9_223_372_036, 854_775_808),
        (16_725_225_600, 1), // 2500
        (i64::MAX, 0),
        (i64::MAX, 999_999_999),
        (i64::MIN, 0),
        (i64::MIN + 1, 7),
    ];

    /// fuser 0.18, src/time.rs, `system_time_from_time`.
    fn fuser_reads(sec: i64, nsec: u32) -> SystemTime {
        if sec >= 0 {
            UNIX_EPOCH + Duration::new(sec as u64, nsec)
        } else {
            UNIX_EPOCH - Duration::new(sec.unsigned_abs(), nsec)
        }
    }

    /// fuser 0.18, src/time.rs, `time_from_system_time`.
    fn fuser_writes(time: SystemTime) -> (i64, u32) {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (after.as_secs() as i64, after.subsec_nanos()),
            Err(before) => {
                let (secs, nanos) = (before.duration().as_secs(), before.duration().subsec_nanos());
                match nanos {
                    _ if secs > i64::MAX as u64 => (i64::MIN, 0),
                    0 => (-(secs as i64), 0),
                    _ => (-(secs as i64) - 1, BILLION - nanos),
                }
            }
        }
    }

    #[test]
    fn times_arrive_as_they_were_sent() {
        for (sec, nsec) in TIMES {
            assert_eq!(received_time(fuser_reads(sec, nsec)), Time { sec, nsec }, "{sec} {nsec}");
        }
    }

    #[test]
    fn times_leave_as_they_are() {
        for (sec, nsec) in TIMES.into_iter().chain([(i64::MIN, 1), (i64::MIN, 999_999_999)]) {
            assert_eq!(fuser_writes(system_time(Time { sec, nsec })), (sec, nsec), "{sec} {nsec}");
        }
    }

    #[test]
    fn odd_nanoseconds_do_no_harm() {
        assert_eq!(fuser_writes(system_time(Time { sec: i64::MAX, nsec: u32::MAX })), (i64::MAX, 999_999_999));
        assert_eq!(fuser_writes(system_time(Time { sec: -1, nsec: u32::MAX })), (-1, 999_999_999));
    }

    /// Rows: major, minor, as `new_encode_dev` writes it (what `stat -c %t:%T` and the kernel agree on).
    #[test]
    fn device_numbers() {
        for (major, minor, number) in [
            (0, 0, 0),
            (1, 3, 0x103),
            (8, 0x11, 0x811),
            (0xfff, 0xff, 0xfffff),
            (1, 0x100, 0x10_0100),
            (0x103, 0xf_ffff, 0xfff1_03ff),
            (0xfff, 0xf_ffff, 0xffff_ffff),
        ] {
            assert_eq!(device_number((major, minor)), number, "{major}:{minor}");
            assert_eq!(received_device(number), (major, minor), "{number:#x}");
        }
    }

    #[test]
    fn attributes() {
        let time = Time { sec: -2, nsec: 500_000_000 };
        let attr = Attr {
            ino: Ino(7),
            size: 1 << 40,
            blocks: 3,
            atime: time,
            mtime: Time::default(),
            ctime: Time { sec: 5, nsec: 6 },
            mode: 0o104_755,
            nlink: 2,
            uid: 1000,
            gid: u32::MAX - 1,
            rdev: (8, 1),
            blksize: 4096,
            settled: false,
        };
        let shown = file_attr(&attr);
        assert_eq!((shown.ino.0, shown.size, shown.blocks, shown.blksize), (7, 1 << 40, 3, 4096));
        assert_eq!((shown.kind, shown.perm, shown.nlink), (fuser::FileType::RegularFile, 0o4755, 2));
        assert_eq!((shown.uid, shown.gid, shown.rdev), (1000, u32::MAX - 1, 0x801));
        assert_eq!(fuser_writes(shown.atime), (-2, 500_000_000));
        assert_eq!(fuser_writes(shown.ctime), (5, 6));
        for (mode, expected) in [
            (0o010_000, fuser::FileType::NamedPipe),
            (0o020_000, fuser::FileType::CharDevice),
            (0o040_000, fuser::FileType::Directory),
            (0o060_000, fuser::FileType::BlockDevice),
            (0o120_000, fuser::FileType::Symlink),
            (0o140_000, fuser::FileType::Socket),
            (0, fuser::FileType::RegularFile),
        ] {
            assert_eq!(file_attr(&Attr { mode, ..attr }).kind, expected, "{mode:o}");
        }
    }

    #[test]
    fn extended_flags() {
        let xflags = |flags| u32::from_ne_bytes(*fsxattr(flags).first_chunk().unwrap());
        assert_eq!(xflags(0), 0);
        assert_eq!(xflags(0x8_0000), 0, "EXTENTS has no counterpart");
        assert_eq!(xflags(0x10 | 0x20 | 0x40), 0x8 | 0x10 | 0x80);
        assert!(fsxattr(u32::MAX)[4..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn errnos() {
        assert_eq!(errno(Errno::NOENT), fuser::Errno::ENOENT);
        assert_eq!(errno(Errno::NOSYS), fuser::Errno::ENOTSUP, "the kernel would never ask again");
        assert_eq!(errno(Errno::STALE), fuser::Errno::ESTALE);
    }
}
