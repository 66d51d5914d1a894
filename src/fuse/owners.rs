//! Which owners a union shows, and which ids of the branches they stand for: fuse-overlayfs's `uidmapping`,
//! `gidmapping` and `squash_to_*`.
//!
//! Ids are exchanged here, at the boundary, and nowhere else: the engine and the branches know stored ids, the kernel
//! and its callers know shown ones. Without an option both are the same and nothing is looked at.

use std::borrow::Cow;

use crate::union::error::{Errno, Result};
use crate::union::types::{Attr, Caller, SetAttr};

/// Shown for a stored id, and stored for a caller's id, that no range names: nobody, the kernel's overflowuid.
pub const NOBODY: u32 = 65534;

/// `length` ids from `stored` on are shown as those from `shown` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first id in the branches.
    pub stored: u32,
    /// The first id that callers see.
    pub shown: u32,
    /// How many.
    pub length: u32,
}

/// User ids, or group ids.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ids {
    /// `uidmapping=`, `gidmapping=`; none: every id stands for itself. The first that fits counts.
    pub ranges: Vec<Range>,
    /// `squash_to_*`: everything is shown as this one's.
    pub squash: Option<u32>,
}

/// Owners and groups.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Owners {
    /// User ids.
    pub users: Ids,
    /// Group ids.
    pub groups: Ids,
}

fn exchange(id: u32, from: u32, to: u32, length: u32) -> Option<u32> {
    id.checked_sub(from).filter(|&offset| offset < length).and_then(|offset| to.checked_add(offset))
}

impl Ids {
    fn shown(&self, stored: u32) -> u32 {
        if let Some(id) = self.squash {
            return id;
        }
        if self.ranges.is_empty() {
            return stored;
        }
        let shown = |range: &Range| exchange(stored, range.stored, range.shown, range.length);
        self.ranges.iter().find_map(shown).unwrap_or(NOBODY)
    }

    fn stored(&self, shown: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(shown);
        }
        self.ranges.iter().find_map(|range| exchange(shown, range.shown, range.stored, range.length))
    }
}

impl Owners {
    /// Whether every object is shown as one user's or group's: then ACLs, which tell users apart, mean nothing.
    pub fn squash(&self) -> bool {
        self.users.squash.is_some() || self.groups.squash.is_some()
    }

    /// Whether ids are mapped.
    pub fn map(&self) -> bool {
        !self.users.ranges.is_empty() || !self.groups.ranges.is_empty()
    }

    /// Owner and group as they are shown.
    pub fn shown_ids(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (self.users.shown(uid), self.groups.shown(gid))
    }

    /// What is shown of an object.
    pub fn shown(&self, attr: &Attr) -> Attr {
        let (uid, gid) = self.shown_ids((attr.uid, attr.gid));
        Attr { uid, gid, ..*attr }
    }

    /// Whoever asks, as an owner of what is stored. One that no range names is nobody, who owns what he makes: an
    /// engine works in a container's tree as its own root, and gives away afterwards what it has made.
    pub fn caller(&self, uid: u32, gid: u32, umask: u32) -> Caller {
        let (uid, gid) = (self.users.stored(uid).unwrap_or(NOBODY), self.groups.stored(gid).unwrap_or(NOBODY));
        Caller { uid, gid, umask }
    }

    /// What is to be stored for what a caller sets.
    ///
    /// # Errors
    /// `EINVAL` for an id that no range names, as chown(2) in a user namespace.
    pub fn to_store(&self, set: SetAttr) -> Result<SetAttr> {
        let stored = |ids: &Ids, id: Option<u32>| id.map(|id| ids.stored(id).ok_or(Errno::INVAL)).transpose();
        Ok(SetAttr { uid: stored(&self.users, set.uid)?, gid: stored(&self.groups, set.gid)?, ..set })
    }

    /// The value of an extended attribute as callers see it: ids stand in ACLs and capabilities too.
    pub fn shown_value(&self, name: &[u8], mut value: Vec<u8>) -> Vec<u8> {
        if self.map() {
            if name == CAPS && value.len() == CAPS_ROOT && value[CAPS_REVISION] == 2 {
                // Root's, without saying so. Shown to a machine where root is another, it must say whose it is, or what
                // a container's root grants would be granted by the machine's.
                value[CAPS_REVISION] = 3;
                value.extend([0; 4]);
            }
            each_id(name, &mut value, |ids, id| Some(ids.shown(id)), self);
        }
        value
    }

    /// The value of an extended attribute as it is to be stored.
    ///
    /// # Errors
    /// `EINVAL` for an id that no range names.
    pub fn value_to_store<'a>(&self, name: &[u8], value: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        if !self.map() {
            return Ok(Cow::Borrowed(value));
        }
        let mut stored = value.to_vec();
        if each_id(name, &mut stored, Ids::stored, self) { Ok(Cow::Owned(stored)) } else { Err(Errno::INVAL) }
    }
}

/// linux/posix_acl_xattr.h: a version, then entries of tag, permissions, id.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
const ACL_USER: [u8; 2] = 0x02_u16.to_le_bytes();
const ACL_GROUP: [u8; 2] = 0x08_u16.to_le_bytes();
const CAPS: &[u8] = b"security.capability";
/// linux/capability.h, `struct vfs_ns_cap_data`: flags with the revision on top, two pairs of sets, and since revision 3
/// the root of the namespace that grants them.
const CAPS_REVISION: usize = 3;
const CAPS_ROOT: usize = 20;

/// Exchanges each id in the value of an attribute of this name; false if there is none for one of them.
fn each_id(name: &[u8], value: &mut [u8], change: impl Fn(&Ids, u32) -> Option<u32>, owners: &Owners) -> bool {
    let exchange = |ids: &Ids, at: &mut [u8]| {
        let Some(id) = at.first_chunk_mut::<4>() else { return true };
        let changed = change(ids, u32::from_le_bytes(*id));
        *id = changed.map_or(*id, u32::to_le_bytes);
        changed.is_some()
    };
    match name {
        b"system.posix_acl_access" | b"system.posix_acl_default" => {
            let entries = value.get_mut(ACL_HEADER..).unwrap_or_default().chunks_exact_mut(ACL_ENTRY);
            let mut all = true;
            for entry in entries {
                let (tag, id) = entry.split_at_mut(ACL_ENTRY / 2);
                all &= match tag.first_chunk() {
                    Some(&ACL_USER) => exchange(&owners.users, id),
                    Some(&ACL_GROUP) => exchange(&owners.groups, id),
                    _ => true,
                };
            }
            all
        }
        CAPS => exchange(&owners.users, value.get_mut(CAPS_ROOT..).unwrap_or_default()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ranges: &[(u32, u32, u32)]) -> Ids {
        let range = |&(stored, shown, length): &(u32, u32, u32)| Range { stored, shown, length };
        Ids { ranges: ranges.iter().map(range).collect(), squash: None }
    }

    /// Rows: stored, shown, and whether the shown one leads back.
    #[test]
    fn ranges() {
        let users = ids(&[(0, 1000, 1), (1, 110_000, 65_536), (u32::MAX - 5, 7, 4)]);
        for (stored, shown, back) in [
            (0, 1000, true),
            (1, 110_000, true),
            (65_536, 175_535, true),
            (65_537, NOBODY, false),
            (u32::MAX - 5, 7, true),
            (u32::MAX - 2, 10, true),
            (u32::MAX - 1, NOBODY, false),
        ] {
            assert_eq!(users.shown(stored), shown, "{stored}");
            assert_eq!(users.stored(shown), back.then_some(stored), "{shown}");
        }
        assert_eq!((users.stored(0), users.stored(1001)), (None, None));
        let same = Ids::default();
        assert_eq!((same.shown(u32::MAX - 1), same.stored(5)), (u32::MAX - 1, Some(5)));
    }

    #[test]
    fn squashing_changes_what_is_shown_only() {
        let users = Ids { squash: Some(7), ..ids(&[(0, 1000, 10)]) };
        assert_eq!((users.shown(0), users.shown(5), users.shown(u32::MAX)), (7, 7, 7));
        assert_eq!((users.stored(1005), users.stored(7)), (Some(5), None));
        assert!(Owners { users, groups: Ids::default() }.squash());
        assert!(!Owners::default().squash());
    }

    #[test]
    fn callers_and_changes() {
        let owners = Owners { users: ids(&[(0, 1000, 10)]), groups: ids(&[(0, 2000, 10)]) };
        assert_eq!(owners.caller(1003, 2000, 0o22), Caller { uid: 3, gid: 0, umask: 0o22 });
        assert_eq!(owners.caller(0, 0, 0), Caller { uid: NOBODY, gid: NOBODY, umask: 0 });
        let set = |uid, gid| SetAttr { uid, gid, mode: Some(0o644), ..SetAttr::default() };
        assert_eq!(owners.to_store(set(Some(1001), None)), Ok(set(Some(1), None)));
        assert_eq!(owners.to_store(set(None, Some(2009))), Ok(set(None, Some(9))));
        assert_eq!(owners.to_store(set(Some(0), None)), Err(Errno::INVAL));
        assert_eq!(owners.to_store(set(None, Some(2010))), Err(Errno::INVAL));
    }

    #[test]
    fn ids_in_attributes() {
        let owners = Owners { users: ids(&[(0, 1000, 10)]), groups: ids(&[(0, 2000, 10)]) };
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[7, 0], &id.to_le_bytes()].concat();
        let acl = |user, group| {
            let mine = u32::MAX;
            [2u32.to_le_bytes().to_vec(), entry(1, mine), entry(2, user), entry(4, mine), entry(8, group)].concat()
        };
        let name = b"system.posix_acl_access";
        assert_eq!(owners.shown_value(name, acl(3, 4)), acl(1003, 2004));
        assert_eq!(owners.shown_value(name, acl(30, 4)), acl(NOBODY, 2004));
        assert_eq!(owners.value_to_store(name, &acl(1003, 2004)).as_deref(), Ok(&acl(3, 4)[..]));
        assert_eq!(owners.value_to_store(name, &acl(3, 2004)), Err(Errno::INVAL));
        assert_eq!(owners.value_to_store(b"user.x", &acl(3, 4)).as_deref(), Ok(&acl(3, 4)[..]));
        let sets = |revision| [&[1, 0, 0, revision][..], &[9; 16]].concat();
        let caps = |root: u32| [sets(3), root.to_le_bytes().to_vec()].concat();
        let name = b"security.capability";
        assert_eq!(owners.shown_value(name, caps(0)), caps(1000));
        assert_eq!(owners.value_to_store(name, &caps(1000)).as_deref(), Ok(&caps(0)[..]));
        assert_eq!(owners.value_to_store(name, &caps(0)), Err(Errno::INVAL));
        assert_eq!(owners.shown_value(name, sets(2)), caps(1000), "root's, and root is shown as 1000");
        assert_eq!(Owners::default().shown_value(name, sets(2)), sets(2));
        for odd in [0, 3, CAPS_ROOT, CAPS_ROOT + 3] {
            assert_eq!(owners.shown_value(name, vec![1; odd]), vec![1; odd], "no root in {odd} bytes");
            assert_eq!(owners.shown_value(b"system.posix_acl_default", vec![2; odd]).len(), odd);
        }
    }
}
