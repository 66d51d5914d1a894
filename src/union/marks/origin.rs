//! The origin mark: which lower object an upper one was copied from, so that its inode number stays the same.
//!
//! The value is the kernel's (`struct ovl_fb` in fs/overlayfs/overlayfs.h): a header, the uuid of the filesystem, the
//! file handle. For filesystems without handles a mark of our own holds device tag and inode number.

use crate::sys::handle::FileHandle;

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const HEADER: usize = 21;
#[cfg(target_endian = "big")]
const CPU_FLAGS: u8 = 1;
#[cfg(target_endian = "little")]
const CPU_FLAGS: u8 = 0;
const ANY_ENDIAN: u8 = 2;

/// The value of an origin mark; `None` if the handle is too long for the format.
pub fn encode(handle: &FileHandle, uuid: [u8; 16]) -> Option<Vec<u8>> {
    let length = u8::try_from(HEADER + handle.bytes.len()).ok()?;
    let mut value = vec![VERSION, MAGIC, length, CPU_FLAGS, u8::try_from(handle.kind).ok()?];
    value.extend_from_slice(&uuid);
    value.extend_from_slice(&handle.bytes);
    Some(value)
}

/// What an origin mark says; `None` for an empty one ("origin unknown") and for any that is not well formed.
pub fn decode(value: &[u8]) -> Option<([u8; 16], FileHandle)> {
    let (header, bytes) = value.split_at_checked(HEADER)?;
    let well_formed = header[0] == VERSION
        && header[1] == MAGIC
        && usize::from(header[2]) == value.len()
        && (header[3] & ANY_ENDIAN != 0 || header[3] & 1 == CPU_FLAGS);
    let uuid = header[5..HEADER].try_into().ok()?;
    well_formed.then(|| (uuid, FileHandle { kind: header[4].into(), bytes: bytes.to_vec() }))
}

/// The inode number inside a handle of a type that is known, for those who may not open handles.
///
/// ext4, xfs and tmpfs have type 1 (32-bit number and generation; tmpfs generation first, then a 64-bit number), xfs
/// 0x81 and btrfs 0x4d begin with a 64-bit number. See include/linux/exportfs.h.
pub fn number(handle: &FileHandle) -> Option<u64> {
    let word = |at: usize| handle.bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    match (handle.kind, handle.bytes.len()) {
        (1, 8) => word(0).map(u64::from),
        (1, 12) => Some(u64::from(word(4)?) | (u64::from(word(8)?) << 32)),
        (0x81 | 0x4d, 12..) => Some(u64::from_ne_bytes(handle.bytes[..8].try_into().ok()?)),
        _ => None,
    }
}

/// The value of cowfs's own mark, for filesystems without handles.
pub fn encode_number(tag: u64, ino: u64) -> Vec<u8> {
    [tag.to_le_bytes(), ino.to_le_bytes()].concat()
}

/// What cowfs's own mark says: device tag and inode number.
pub fn decode_number(value: &[u8]) -> Option<(u64, u64)> {
    let (tag, ino) = value.split_at_checked(8)?;
    Some((u64::from_le_bytes(tag.try_into().ok()?), u64::from_le_bytes(ino.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back() {
        let handle = FileHandle { kind: 1, bytes: vec![7, 0, 0, 0, 9, 0, 0, 0] };
        let value = encode(&handle, [3; 16]).unwrap();
        assert_eq!(decode(&value), Some(([3; 16], handle)));
        assert_eq!(decode_number(&encode_number(5, 6)), Some((5, 6)));
    }

    #[test]
    fn hostile_marks_are_none() {
        for value in [&b""[..], b"\0", &[0; 21], &[0, 0xfb, 30, 0, 1], &[0xff; 64]] {
            assert_eq!(decode(value), None, "{value:?}");
        }
        assert_eq!(decode_number(b"short"), None);
        assert_eq!(number(&FileHandle { kind: 1, bytes: vec![1] }), None);
    }
}
