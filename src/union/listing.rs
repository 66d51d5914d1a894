//! Listings: the names of a directory at one moment, kept between the requests of one reading.
//!
//! A position (telldir) is a number made of the name, with a key drawn when the union starts, and a listing is ordered by
//! it. So whoever goes on from a position meets every name that stays there exactly once, in a listing taken anew too:
//! nobody has to be known as a reader, nothing has to be opened or closed, and what is kept here may be dropped any time.
//! Positions fit into 31 bits, as programs of 32 bits want them.
//!
//! Not here: what is listed (`merge`).

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::union::types::{DirEntry, Ino, NodeId};

/// `.` and `..` come first; then there is room to make numbers unequal; those of names go up to 2^31.
const FIRST: u32 = 1 << 24;
const NUMBERS: u64 = (1 << 31) - (1 << 24);

/// How many listings are kept while they are read.
const KEPT: usize = 8;
/// A listing of more names than this is not taken anew because some of them have been deleted.
const MANY: usize = 16 << 10;

/// The names of a directory.
#[derive(Debug, Default)]
pub struct Listing {
    names: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    ino: Ino,
    position: u32,
    length: u16,
    kind: FileType,
    layer: u8,
}

impl Listing {
    /// Adds a name found in the layer of this number.
    pub fn push(&mut self, name: &[u8], kind: FileType, ino: Ino, layer: usize) {
        let start = self.names.len();
        self.names.extend_from_slice(name);
        let layer = u8::try_from(layer).unwrap_or(0);
        self.entries.push(Entry { start, ino, position: 0, length: name.len() as u16, kind, layer });
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Gives each name its position and brings them into that order.
    fn arrange(&mut self, key: &RandomState) {
        let Self { names, entries } = self;
        let name = |entry: &Entry| &names[entry.start..entry.start + usize::from(entry.length)];
        for entry in entries.iter_mut() {
            entry.position = match name(entry) {
                b"." => 1,
                b".." => 2,
                name => FIRST + (key.hash_one(name) % NUMBERS) as u32,
            };
        }
        entries.sort_unstable_by(|a, b| a.position.cmp(&b.position).then_with(|| name(a).cmp(name(b))));
        // Of names with one number the last keeps it. So it stays where it is when those before it go, as they do when
        // somebody deletes what he has listed.
        let mut next = u32::MAX;
        for entry in entries.iter_mut().rev() {
            next = entry.position.min(next.saturating_sub(1));
            entry.position = next;
        }
    }

    /// The names after `position` (0: all).
    pub fn after(&self, position: u64) -> impl Iterator<Item = DirEntry<'_>> {
        let start = self.entries.partition_point(|entry| u64::from(entry.position) <= position);
        self.from(start)
    }

    /// All names, though they have no positions yet.
    pub fn all(&self) -> impl Iterator<Item = DirEntry<'_>> {
        self.from(0)
    }

    fn from(&self, start: usize) -> impl Iterator<Item = DirEntry<'_>> {
        self.entries[start..].iter().map(|entry| DirEntry {
            ino: entry.ino,
            kind: entry.kind,
            name: &self.names[entry.start..entry.start + usize::from(entry.length)],
            next: entry.position.into(),
            layer: entry.layer,
        })
    }
}

/// Is told that names have come to a directory while somebody reads its listing.
pub type Listener = Box<dyn Fn(NodeId) + Send + Sync>;

/// The listings that are being read.
#[derive(Default)]
pub struct Readings {
    key: RandomState,
    kept: Mutex<VecDeque<(NodeId, Arc<Listing>)>>,
    /// Whoever keeps parts of listings elsewhere.
    pub listener: OnceLock<Listener>,
}

impl Readings {
    /// Puts a listing that was just taken into order.
    pub fn begin(&self, mut listing: Listing) -> Arc<Listing> {
        listing.arrange(&self.key);
        Arc::new(listing)
    }

    /// The listing of `node` that somebody has begun to read, if it is still here.
    pub fn begun(&self, node: NodeId) -> Option<Arc<Listing>> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|(of, _)| *of == node)?;
        let one = kept.remove(at)?;
        let listing = one.1.clone();
        kept.push_front(one);
        Some(listing)
    }

    /// A listing of `node` has been taken now. An older one must never take its place: who began with this one would miss
    /// the names that came in between.
    pub fn keep(&self, node: NodeId, listing: Arc<Listing>) {
        let mut kept = self.kept.lock();
        kept.retain(|(of, _)| *of != node);
        kept.truncate(KEPT - 1);
        kept.push_front((node, listing));
    }

    /// A request has changed which names `node` has; `added`: some came.
    ///
    /// The kernel puts the parts that it is given at one time into one listing of its own, whoever asked for them, and
    /// keeps that until the next change. So who goes on must not be given what was there before a change. Only where very
    /// many names are deleted while they are listed would that cost too much.
    pub fn changed(&self, node: NodeId, added: bool) {
        let read = {
            let mut kept = self.kept.lock();
            let before = kept.len();
            kept.retain(|(of, listing)| *of != node || (!added && listing.len() > MANY));
            kept.len() < before
        };
        if let Some(listener) = self.listener.get().filter(|_| read && added) {
            listener(node);
        }
    }

    /// All directories may list something else now.
    pub fn clear(&self) {
        *self.kept.lock() = VecDeque::new();
    }

    /// This listing has been read to its end; somebody else may still read a newer one.
    pub fn end(&self, listing: &Arc<Listing>) {
        let mut kept = self.kept.lock();
        kept.retain(|(_, one)| !Arc::ptr_eq(one, listing));
        if kept.is_empty() {
            kept.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let mut listing = Listing::default();
        for name in names {
            listing.push(name.as_bytes(), FileType::RegularFile, Ino(1), 0);
        }
        listing
    }

    #[test]
    fn a_position_means_the_same_in_a_listing_taken_anew() {
        let readings = Readings::default();
        let names: Vec<String> = (0..1000).map(|n| format!("name-{n}")).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let before = readings.begin(listing(&all));
        let read: Vec<Vec<u8>> = before.after(0).take(500).map(|one| one.name.to_vec()).collect();
        let position = before.after(0).nth(499).unwrap().next;
        // Half of what was read goes, and something new comes.
        let left: Vec<&str> = all
            .iter()
            .copied()
            .filter(|name| !read[..250].contains(&name.as_bytes().to_vec()))
            .chain(["new"])
            .collect();
        let after = readings.begin(listing(&left));
        let mut rest: Vec<Vec<u8>> = after.after(position).map(|one| one.name.to_vec()).collect();
        rest.retain(|name| name != b"new");
        assert!(rest.iter().all(|name| !read.contains(name)), "nothing twice");
        assert_eq!(read.len() + rest.len(), 1000, "nothing left out");
    }

    #[test]
    fn a_name_stays_in_place_when_another_one_of_its_number_goes() {
        let readings = Readings::default();
        let mut seen = std::collections::HashMap::new();
        let (first, second) = (0..)
            .find_map(|n: u32| {
                let name = n.to_string();
                let number = readings.key.hash_one(name.as_bytes()) % NUMBERS;
                seen.insert(number, name.clone()).map(|other| (other, name))
            })
            .unwrap();
        let both = readings.begin(listing(&[&first, &second]));
        let read = both.after(0).next().map(|one| (one.name.to_vec(), one.next)).unwrap();
        let left = if read.0 == first.as_bytes() { &second } else { &first };
        // What was read is deleted, and the listing taken anew.
        let after = readings.begin(listing(&[left]));
        assert_eq!(after.after(read.1).map(|one| one.name.to_vec()).collect::<Vec<_>>(), [left.as_bytes()]);
    }

    #[test]
    fn positions_differ_fit_into_31_bits_and_begin_with_the_dots() {
        let readings = Readings::default();
        let names: Vec<String> = (0..200_000).map(|n| n.to_string()).collect();
        let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
        all.extend(["..", "."]);
        let listing = readings.begin(listing(&all));
        let positions: Vec<u64> = listing.after(0).map(|one| one.next).collect();
        assert!(positions.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(positions.last().is_some_and(|last| *last < 1 << 31));
        assert_eq!(listing.after(0).map(|one| one.name.to_vec()).take(2).collect::<Vec<_>>(), [&b"."[..], b".."]);
    }

    #[test]
    fn few_listings_are_kept() {
        let readings = Readings::default();
        for node in 0..100 {
            readings.keep(NodeId(node), readings.begin(listing(&["a"])));
        }
        assert_eq!(readings.kept.lock().len(), KEPT);
        assert!(readings.begun(NodeId(99)).is_some() && readings.begun(NodeId(0)).is_none());
        let last = readings.begun(NodeId(99)).unwrap();
        readings.end(&last);
        assert!(readings.begun(NodeId(99)).is_none());
    }
}
