//! The lowers of a union that is served are exchanged: what stays, what comes, what goes, and what is open goes on.
//!
//! The judge is a union that is opened anew over the same branches, with a copy of the upper.
//!
//! `COWFS_LIVE_CASES` (a format; default 40) makes the random part longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use cowfs::union::fault::{self, Action};
use cowfs::union::name::Name;
use cowfs::union::ops::behind::Stale;
use cowfs::union::options::Format;
use cowfs::union::types::{Caller, NodeId};
use cowfs::union::{NewLowers, Union};
use kit::enginefs::BranchPath;
use kit::fs::{EXCHANGE, NOREPLACE};
use kit::ops::Op;
use kit::{Dcache, EngineFs, Errno, Fd, Fs, OFlags, Snapshot, Stack, Strict, Tree};
use parking_lot::RwLock;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A union over the upper and some of the lowers of a stack, by their places.
struct Live {
    stack: Stack,
    fs: EngineFs,
}

impl Live {
    fn new(format: Format, trees: &[Tree], lowers: &[usize], dcache: Dcache) -> Self {
        Self::with(Stack::new(format, trees), lowers, dcache)
    }

    fn with(stack: Stack, lowers: &[usize], dcache: Dcache) -> Self {
        let branches = [vec![stack.branch_paths()[0].clone()], paths(&stack, lowers)].concat();
        let fs = EngineFs::try_new(branches, stack.options.clone(), dcache).unwrap();
        Self { stack, fs }
    }

    fn over(&self, lowers: &[usize]) {
        self.fs.exchange(&paths(&self.stack, lowers)).unwrap();
    }

    /// What is shown is what a union shows that is opened anew over these lowers.
    #[track_caller]
    fn check(&self, lowers: &[usize]) {
        let text = self.differs(lowers);
        assert!(text.is_empty(), "over {lowers:?}; ours / opened anew:\n{text}");
    }

    fn differs(&self, lowers: &[usize]) -> String {
        let copy = self.stack.dir().join("copy");
        let copied =
            Command::new("cp").args(["-a", "--sparse=always"]).arg(self.stack.path(0)).arg(&copy).status().unwrap();
        assert!(copied.success());
        let upper = BranchPath { path: copy.clone(), ..self.stack.branch_paths()[0].clone() };
        let branches = [vec![upper], paths(&self.stack, lowers)].concat();
        let judge = EngineFs::try_new(branches, self.stack.options.clone(), Dcache::Keep).unwrap();
        let shown = Snapshot::try_of(&judge, false);
        drop(judge);
        std::fs::remove_dir_all(&copy).unwrap();
        match (Snapshot::try_of(&self.fs, false), shown) {
            // Not which share a number: what is known keeps the one it has, and a copy whose origin comes back gets that one's.
            (Ok(ours), Ok(shown)) => ours.diff(&shown, &Strict { groups: false, ..Strict::TWINS }),
            // A copy that was given its own number while the lower it is from was away: a further name of that lower is listed
            // with the lower's.
            (Err(ours), Ok(_)) if ours.contains("is listed as ('-'") => String::new(),
            // A file whose data no lower has: neither can be read.
            (ours, shown) if ours.as_ref().err() == shown.as_ref().err() => String::new(),
            (ours, shown) => format!("{:?} / {:?}", ours.err(), shown.err()),
        }
    }

    /// Whether anything of the lower at this place is open.
    fn holds(&self, place: usize) -> bool {
        holds(&self.stack.path(place))
    }
}

fn holds(below: &Path) -> bool {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).any(|to| to.starts_with(below))
}

fn paths(stack: &Stack, places: &[usize]) -> Vec<BranchPath> {
    places.iter().map(|place| stack.branch_paths()[*place].clone()).collect()
}

/// In every format.
#[track_caller]
fn tell(trees: &[Tree], lowers: &[usize], story: impl Fn(&Live)) {
    if !kit::can_build() {
        return;
    }
    for (word, format) in Format::ALL {
        for dcache in [Dcache::Keep, Dcache::Nothing] {
            let told = kit::guarded(|| {
                story(&Live::new(format, trees, lowers, dcache));
                Ok(())
            });
            assert!(told.is_ok(), "{word}, {dcache:?}: {}", told.unwrap_err());
        }
    }
}

fn upper() -> Tree {
    Tree::new(1).file("own", "own").file("d/own", "own").whiteout("d/hidden").opaque("sealed").file("sealed/own", "own")
}

fn lower(salt: u64) -> Tree {
    let text = format!("of {salt}");
    Tree::new(salt)
        .file("d/f", &text)
        .file("d/hidden", &text)
        .file("d/sub/g", &text)
        .file("sealed/f", &text)
        .file(format!("only-{salt}"), &text)
        .file(format!("dir-{salt}/f"), &text)
}

fn read(fs: &dyn Fs, path: &[u8]) -> String {
    fs.read(path).map_or_else(|errno| errno.to_string(), |data| String::from_utf8(data).unwrap())
}

#[test]
fn add_remove_reorder_swap() {
    tell(&[upper(), lower(2), lower(3), lower(4)], &[1], |live| {
        Snapshot::of(&live.fs);
        for lowers in [&[1, 2][..], &[2, 1], &[2], &[3], &[3, 2, 1], &[], &[1, 2, 3], &[2], &[2], &[1]] {
            live.over(lowers);
            live.check(lowers);
        }
        assert!(!live.holds(2) && !live.holds(3));
        live.fs.forget();
        assert_eq!(live.fs.union().known_nodes(), 1);
        live.check(&[1]);
    });
}

#[test]
fn directories_keep_their_nodes_and_other_objects_only_if_they_are_the_same() {
    tell(&[upper(), lower(2), lower(3)], &[1], |live| {
        let fs = &live.fs;
        Snapshot::of(fs);
        if fs.node_of(b"d").is_none() {
            // Forgotten at once.
            return;
        }
        let node = |path: &str| fs.node_of(path.as_bytes());
        let ino = |path: &str| fs.stat(path.as_bytes()).unwrap().ino;
        let dirs = ["d", "d/sub", "sealed"];
        let before = dirs.map(|dir| (node(dir), ino(dir)));
        let (own, f) = (node("d/own"), node("d/f"));
        for (lowers, same) in [(&[1, 2][..], true), (&[2, 1], false), (&[2], false)] {
            live.over(lowers);
            Snapshot::of(fs);
            assert_eq!(dirs.map(|dir| (node(dir), ino(dir))), before, "{lowers:?}");
            assert_eq!(node("d/own"), own);
            assert!(same == (node("d/f") == f) || f.is_none(), "{lowers:?}");
        }
    });
}

#[test]
fn what_is_open_goes_on() {
    tell(&[upper(), lower(2), lower(3)], &[1], |live| {
        let fs = &live.fs;
        let one = fs.open(b"only-2", OFlags::RDONLY, 0).unwrap();
        let two = fs.open(b"d/f", OFlags::RDONLY, 0).unwrap();
        let own = fs.open(b"d/own", OFlags::RDWR, 0).unwrap();
        let unlinked = fs.open(b"dir-2/f", OFlags::RDONLY, 0).unwrap();
        fs.unlink(b"dir-2/f").unwrap();
        for lowers in [&[2][..], &[], &[2, 1], &[1, 2], &[2]] {
            live.over(lowers);
            for fd in [one, two, unlinked] {
                assert_eq!(fs.pread(fd, 0, 100).unwrap(), b"of 2");
                assert_eq!(fs.fstat(fd).unwrap().size, 4);
            }
            fs.pwrite(own, 0, b"OWN").unwrap();
            assert_eq!(read(fs, b"d/own"), "OWN");
            live.check(lowers);
        }
        assert_eq!(fs.fstat(one).unwrap().nlink, 0);
        assert!(live.holds(1));
        // Nothing of it may be changed where it lies.
        fs.fchmod(one, 0o640).unwrap();
        fs.fchmod(unlinked, 0o640).unwrap();
        assert_eq!(fs.fstat(one).unwrap().perm(), 0o640);
        assert_eq!(fs.pread(one, 0, 100).unwrap(), b"of 2");
        for fd in [one, two, own, unlinked] {
            fs.close(fd).unwrap();
        }
        fs.forget();
        assert_eq!(fs.union().known_nodes(), 1);
        assert!(!live.holds(1));
        live.check(&[2]);
    });
}

/// A file with two lower names that was copied up under one of them: the other leads to the copy as long as that lower is there.
#[test]
fn hard_links_over_copy_up() {
    let linked = lower(2).file("l/a", "two names").link("l/a", "l/b");
    tell(&[upper(), linked, lower(3).file("l/b", "another")], &[1], |live| {
        let fs = &live.fs;
        fs.append(b"l/a", b", one file").unwrap();
        let by_b = fs.open(b"l/b", OFlags::RDWR, 0).unwrap();
        for lowers in [&[1, 2][..], &[2], &[], &[2, 1], &[1]] {
            live.over(lowers);
            fs.pwrite(by_b, 0, b"TWO").unwrap();
            assert_eq!(read(fs, b"l/a"), "TWO names, one file", "{lowers:?}");
            let b = match lowers {
                [] => Errno::NOENT.to_string(),
                [2, ..] => "another".to_owned(),
                _ => "TWO names, one file".to_owned(),
            };
            assert_eq!(read(fs, b"l/b"), b, "{lowers:?}");
            live.check(lowers);
        }
        assert_eq!(fs.stat(b"l/a").unwrap().ino, fs.stat(b"l/b").unwrap().ino);
        fs.close(by_b).unwrap();
        fs.forget();
        assert_eq!(fs.union().known_nodes(), 1);
    });
}

/// Its attributes are the upper's, its data whatever lower file has that name.
#[test]
fn files_whose_data_are_a_lowers() {
    let with = |salt: u64| lower(salt).file("d/m", format!("data of {salt}")).file("d/same", "the same");
    tell(&[upper(), with(2), with(3)], &[1], |live| {
        let fs = &live.fs;
        for name in [&b"d/m"[..], b"d/same"] {
            fs.chmod(name, 0o600).unwrap();
        }
        let open = fs.open(b"d/m", OFlags::RDONLY, 0).unwrap();
        for lowers in [&[1, 2][..], &[2, 1], &[2], &[2, 1], &[1]] {
            live.over(lowers);
            assert_eq!(fs.pread(open, 0, 100).unwrap(), b"data of 2", "{lowers:?}");
            assert_eq!(fs.fstat(open).unwrap().perm(), 0o600, "{lowers:?}");
            live.check(lowers);
        }
        live.over(&[2]);
        let before = read(fs, b"d/m");
        fs.append(b"d/m", b"+").unwrap();
        assert_eq!(read(fs, b"d/m"), before + "+");
        live.check(&[2]);
        fs.close(open).unwrap();
        live.over(&[]);
        // No lower has the data any more, where they were not copied.
        let lost = Errno::IO.to_string();
        assert!(read(fs, b"d/same") == lost || fs.stat(b"d/same").unwrap().size == 8);
        fs.forget();
        assert_eq!(fs.union().known_nodes(), 1);
        assert!(!live.holds(1) && !live.holds(2));
    });
}

#[test]
fn renamed_directories() {
    tell(&[upper(), lower(2), lower(3)], &[1, 2], |live| {
        let fs = &live.fs;
        let renamed = fs.rename(b"d", b"moved", 0);
        if renamed == Err(Errno::XDEV) {
            return;
        }
        renamed.unwrap();
        fs.mkdir(b"d", 0o755).unwrap();
        fs.write(b"moved/sub/new", b"new").unwrap();
        Snapshot::of(fs);
        for lowers in [&[2, 1][..], &[2], &[1], &[], &[1, 2]] {
            live.over(lowers);
            live.check(lowers);
            fs.rename(b"moved/sub", b"moved/again", 0).unwrap();
            assert_eq!(read(fs, b"moved/again/new"), "new");
            fs.rename(b"moved/again", b"moved/sub", 0).unwrap();
            live.check(lowers);
        }
    });
}

#[test]
fn removed_directories_stay_removed_and_gone_ones_come_again() {
    tell(&[upper(), lower(2), lower(3)], &[1], |live| {
        let fs = &live.fs;
        Snapshot::of(fs);
        fs.unlink(b"dir-2/f").unwrap();
        fs.rmdir(b"dir-2").unwrap();
        let union = fs.union();
        let sub = union.lookup(NodeId::ROOT, "d".as_ref()).and_then(|d| union.lookup(d.node, "sub".as_ref())).unwrap();
        drop(union);
        for lowers in [&[2][..], &[], &[1], &[1, 2]] {
            live.over(lowers);
            let union = fs.union();
            let known = union.getattr(sub.node, None).map(|attr| attr.ino);
            let listed = union.readdir(sub.node, 0, &mut |_| true);
            let there = !lowers.is_empty();
            // A node that is gone does not come again.
            let gone = lowers.contains(&1);
            assert!(known == Ok(sub.attr.ino) || !there || gone, "{lowers:?}: {known:?}");
            assert!(there && !gone || listed == Err(Errno::NOENT), "{lowers:?}: {listed:?}");
            live.check(lowers);
        }
        assert_eq!(fs.stat(b"dir-2"), Err(Errno::NOENT));
    });
}

/// A name that is deleted while the lower that has it is away comes again with it, and then the copy has a name more than are
/// counted: it must not go with the last that is.
#[test]
fn a_copy_does_not_go_while_a_name_leads_to_it() {
    let linked = lower(2).file("l/a", "two names").link("l/a", "l/b");
    for by_rename in [false, true] {
        tell(&[upper(), linked.clone(), lower(3)], &[1], |live| {
            let fs = &live.fs;
            fs.write(b"l/a", b"mine").unwrap();
            live.over(&[2]);
            fs.unlink(b"l/a").unwrap();
            live.over(&[1]);
            let open = fs.open(b"l/b", OFlags::RDONLY, 0).unwrap();
            assert_eq!((read(fs, b"l/a"), read(fs, b"l/b")), ("mine".into(), "mine".into()));
            if by_rename {
                fs.write(b"l/c", b"another").unwrap();
                fs.rename(b"l/c", b"l/b", 0).unwrap();
            } else {
                fs.unlink(b"l/b").unwrap();
            }
            assert_eq!(read(fs, b"l/a"), "mine");
            assert_eq!((fs.pread(open, 0, 100).unwrap(), fs.fstat(open).unwrap().size), (b"mine".into(), 4));
            fs.close(open).unwrap();
            live.check(&[1]);
        });
    }
}

/// What was copied up, and deleted while somebody had it, is not what later has the number of the lower object it was copied from:
/// by a move from one lower to another, or because the number of a filesystem, or of a file, is used again.
#[test]
fn what_was_deleted_is_not_what_has_its_number_later() {
    tell(&[upper(), lower(2)], &[], |live| {
        let fs = &live.fs;
        // Of their own: they are changed while no union has them.
        let [old, new] = ["old", "new"].map(|name| live.stack.dir().join(name));
        let over =
            |path: &Path| fs.exchange(&[BranchPath { path: path.into(), ..paths(&live.stack, &[1])[0].clone() }]);
        let copied = Command::new("cp").arg("-a").arg(live.stack.path(1)).arg(&old).status().unwrap();
        assert!(copied.success());
        std::fs::create_dir(&new).unwrap();
        over(&old).unwrap();
        let file = fs.open(b"only-2", OFlags::RDWR, 0).unwrap();
        fs.pwrite(file, 0, b"mine").unwrap();
        fs.unlink(b"only-2").unwrap();
        let dir = fs.union().lookup(NodeId::ROOT, "dir-2".as_ref()).unwrap().node;
        fs.chmod(b"dir-2", 0o700).unwrap();
        fs.unlink(b"dir-2/f").unwrap();
        fs.rmdir(b"dir-2").unwrap();
        live.over(&[]);
        for (from, to) in [("only-2", "moved"), ("dir-2", "moved-dir")] {
            std::fs::rename(old.join(from), new.join(to)).unwrap();
        }
        over(&new).unwrap();
        assert_eq!(read(fs, b"moved"), "of 2");
        assert_eq!(read(fs, b"moved-dir/f"), "of 2");
        assert_eq!(fs.pread(file, 0, 100).unwrap(), b"mine");
        assert_eq!(fs.fstat(file).unwrap().nlink, 0);
        assert_eq!(fs.union().readdir(dir, 0, &mut |_| true), Err(Errno::NOENT));
        fs.close(file).unwrap();
        fs.union().forget(dir, 1);
        fs.forget();
        assert_eq!(fs.union().known_nodes(), 1);
        live.over(&[]);
        live.check(&[]);
    });
}

/// Something in a new lower cannot be read: nothing has changed then.
#[test]
fn a_refusal_changes_nothing() {
    let bad = lower(3).dir("dir-2").xattr("trusted.overlay.redirect", vec![b'x'; 300]);
    tell(&[upper(), lower(2), bad, lower(4)], &[1], |live| {
        let fs = &live.fs;
        let before = Snapshot::of(fs);
        let known = fs.union().known_nodes();
        let refused = fs.exchange(&paths(&live.stack, &[2, 3]));
        if fs.node_of(b"dir-2").is_some() {
            let text = refused.unwrap_err();
            assert!(text.contains("/dir-2"), "{text}");
            assert_eq!(fs.union().known_nodes(), known);
            before.assert_same(&Snapshot::of(fs), &Strict::UNTOUCHED, "after the refusal");
            live.check(&[1]);
        }
        let mut writable = paths(&live.stack, &[3]);
        writable[0].writable = true;
        assert!(fs.exchange(&writable).unwrap_err().contains("branch3"));
        assert!(!live.holds(2) && !live.holds(3) || fs.node_of(b"dir-2").is_none());
    });
}

/// Nothing is known any more of directories that only what has gone was in.
#[test]
fn nothing_is_kept_for_what_has_gone() {
    tell(&[upper(), lower(2), lower(3)], &[1], |live| {
        let union = live.fs.union();
        let dir = union.lookup(NodeId::ROOT, "dir-2".as_ref()).unwrap().node;
        let file = union.lookup(dir, "f".as_ref()).unwrap().node;
        let open = union.open_file(file, libc::O_RDONLY, &Caller::ROOT).unwrap();
        union.forget(dir, 1);
        union.forget(file, 1);
        assert_eq!(union.known_nodes(), 3);
        drop(union);
        live.over(&[2]);
        let union = live.fs.union();
        assert_eq!(union.known_nodes(), 2);
        union.release(open);
        assert_eq!(union.known_nodes(), 1);
    });
}

/// Who goes on with a listing is not given what was there before.
#[test]
fn listings_are_taken_anew() {
    tell(&[upper(), lower(2), lower(3)], &[1], |live| {
        let (fs, old) = (&live.fs, live.fs.union());
        let mut position = 0;
        let read = |union: &Union, position: &mut u64, most: usize| {
            let mut names = Vec::new();
            union
                .readdir(NodeId::ROOT, *position, &mut |entry| {
                    names.push(String::from_utf8_lossy(entry.name).into_owned());
                    *position = entry.next;
                    names.len() < most
                })
                .unwrap();
            names
        };
        read(&old, &mut position, 2);
        drop(old);
        live.over(&[2]);
        let rest = read(&fs.union(), &mut position, 100);
        assert!(!rest.iter().any(|name| name.ends_with("-2")), "{rest:?}");
    });
}

/// A directory of the upper that is known is the one that moves when it is renamed, and all below it with it.
#[test]
fn directories_of_the_upper_move_as_before() {
    let deep = upper().file("p/q/r/own", "own");
    tell(&[deep, lower(2), lower(3)], &[1], |live| {
        let fs = &live.fs;
        Snapshot::of(fs);
        let open = fs.open(b"p/q/r/own", OFlags::RDONLY, 0).unwrap();
        for lowers in [&[2][..], &[1, 2]] {
            live.over(lowers);
            fs.rename(b"p", b"moved", 0).unwrap();
            fs.write(b"moved/q/r/new", b"new").unwrap();
            assert_eq!(fs.fstat(open).unwrap().size, 3);
            fs.rename(b"moved/q", b"q", 0).unwrap();
            assert_eq!((read(fs, b"q/r/new"), read(fs, b"q/r/own")), ("new".into(), "own".into()));
            fs.mkdir(b"p", 0o755).unwrap();
            fs.rename(b"q", b"p/q", 0).unwrap();
            fs.rmdir(b"moved").unwrap();
            live.check(lowers);
        }
        fs.close(open).unwrap();
    });
}

/// A listing asks for copies' numbers only in directories that know of copies.
#[test]
fn a_copy_whose_lower_is_away_is_a_copy_where_it_comes() {
    tell(&[upper(), lower(2)], &[1], |live| {
        let fs = &live.fs;
        fs.append(b"only-2", b"+").unwrap();
        let number = fs.ino(b"only-2");
        live.over(&[]);
        fs.forget();
        fs.mkdir(b"to", 0o755).unwrap();
        fs.create(b"to/made", 0o644).unwrap();
        fs.rename(b"only-2", b"to/copy", 0).unwrap();
        live.over(&[1]);
        for _ in 0..2 {
            let listed =
                |name: &[u8]| fs.list(b"to").unwrap().into_iter().find(|entry| entry.name == name).unwrap().ino;
            assert_eq!([listed(b"copy"), listed(b"made")], [fs.ino(b"to/copy"), fs.ino(b"to/made")]);
            fs.forget();
        }
        assert_eq!(fs.ino(b"to/copy"), number);
    });
}

/// A look-up took the number of a node that it found known, and somebody forgot the node before it was counted. Where that was
/// no more the number that the file shows, the file came back under it, and whoever had found it by another name meanwhile had it
/// under the right one: two nodes for one file.
#[test]
fn a_node_that_is_forgotten_while_it_is_found() {
    if !kit::can_build() {
        return;
    }
    let live = Live::new(Format::Overlay, &[upper(), lower(2)], &[1], Dcache::Keep);
    let (name, other) = (OsStr::new("only-2"), OsStr::new("other"));
    live.fs.append(b"only-2", b"+").unwrap();
    live.fs.link(b"only-2", b"other").unwrap();
    let number = live.fs.ino(b"only-2");
    live.over(&[]);
    live.fs.forget();
    assert_ne!(live.fs.ino(b"only-2"), number);
    live.over(&[1]);
    let union = live.fs.union();
    let place: &'static Barrier = Box::leak(Box::new(Barrier::new(2)));
    let (one, two) = std::thread::scope(|threads| {
        let one = threads.spawn(|| {
            fault::arm(0, Action::Meet(place));
            let found = union.lookup(NodeId::ROOT, name).unwrap().node;
            assert!(fault::disarm() > 0);
            found
        });
        place.wait();
        live.fs.forget();
        let two = union.lookup(NodeId::ROOT, other).unwrap().node;
        place.wait();
        (one.join().unwrap(), two)
    });
    assert_eq!(one, two);
    union.forget(one, 2);
    assert_eq!(union.known_nodes(), 1);
    drop(union);
    assert_eq!(live.fs.ino(b"only-2"), number);
}

/// What was looked for in vain is known to the kernel alone, so it is told of every name that comes.
#[test]
fn names_that_come_are_told() {
    if !kit::can_build() {
        return;
    }
    let marked = lower(3).file(".wh.only-4", "").file("d/.wh.new", "");
    let stack = Stack::new(Format::Overlay, &[upper(), lower(2), marked, lower(4).file("d/new", "new")]);
    let live = Live::with(stack, &[1], Dcache::Keep);
    Snapshot::of(&live.fs);
    let mut union = live.fs.union();
    let d = live.fs.node_of(b"d").unwrap();
    let mut over = |lowers: &[usize], marks: bool| {
        let mut lowers = paths(&live.stack, lowers);
        lowers.iter_mut().for_each(|lower| lower.oci_whiteouts = marks);
        let lowers = lowers.iter().map(BranchPath::open).collect();
        let next = union.over(NewLowers { lowers, covered: vec![] }).unwrap();
        let (_, changed) = next.succeed(&union).unwrap();
        let told = next.absent_until_now(&changed);
        union = Arc::new(next);
        [(NodeId::ROOT, "only-4"), (d, "new")]
            .map(|(dir, name)| told.contains(&Stale::Perhaps(dir, Name::new(name).unwrap())))
    };
    assert_eq!(over(&[1, 2], false), [false; 2]);
    assert_eq!(over(&[1, 2, 3], true), [true; 2]);
    // The same directories, in which the marks do not count any more.
    assert_eq!(over(&[1, 2, 3], false), [true; 2]);
    assert_eq!(over(&[1, 2, 3], false), [false; 2]);
}

/// So is what is in a directory that was shown empty, because another branch lay there.
#[test]
fn names_that_are_uncovered_are_told() {
    if !kit::can_build() {
        return;
    }
    let stack = Stack::new(Format::Overlay, &[upper(), lower(2)]);
    let live = Live::with(stack, &[1], Dcache::Keep);
    let dir = std::fs::metadata(live.stack.path(1).join("dir-2")).unwrap();
    let mut union = live.fs.union();
    let node = union.lookup(NodeId::ROOT, "dir-2".as_ref()).unwrap().node;
    let mut over = |covered| {
        let lowers = paths(&live.stack, &[1]).iter().map(BranchPath::open).collect();
        let next = union.over(NewLowers { lowers, covered }).unwrap();
        let (_, changed) = next.succeed(&union).unwrap();
        let there = next.lookup(node, "f".as_ref()).map(|entry| next.forget(entry.node, 1)).is_ok();
        union = Arc::new(next);
        (there, changed.contains(&node))
    };
    assert_eq!(over(vec![(dir.dev(), dir.ino())]), (false, true));
    assert_eq!(over(vec![]), (true, true));
    assert_eq!(over(vec![]), (true, false));
    union.forget(node, 1);
}

#[test]
fn without_an_upper() {
    if !kit::can_build() {
        return;
    }
    for (_, format) in Format::ALL {
        let stack = Stack::read_only(format, &[lower(2), lower(3), lower(4)]);
        let fs = EngineFs::try_new(paths(&stack, &[0]), stack.options.clone(), Dcache::Keep).unwrap();
        Snapshot::of(&fs);
        let (root, d) = (fs.stat(b"").unwrap().ino, fs.stat(b"d").unwrap().ino);
        for lowers in [&[0, 1][..], &[1, 0], &[2, 1], &[2], &[0]] {
            fs.exchange(&paths(&stack, lowers)).unwrap();
            let anew = EngineFs::try_new(paths(&stack, lowers), stack.options.clone(), Dcache::Keep).unwrap();
            Snapshot::of(&fs).assert_same(&Snapshot::of(&anew), &Strict::TWINS, "over other lowers");
            assert_eq!((fs.stat(b"").unwrap().ino, fs.stat(b"d").unwrap().ino), (root, d));
        }
        assert!(fs.exchange(&[]).is_err());
    }
}

/// Any lowers in any order, between any operations.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: u8,
    a: u16,
    b: u16,
}

#[derive(Clone, Debug)]
struct Plan {
    seeds: Vec<(u8, u16, u8)>,
    steps: Vec<Step>,
    eager_forget: bool,
}

const LOWERS: usize = 3;

fn plans() -> impl Strategy<Value = Plan> {
    let step = (any::<u8>(), any::<u16>(), any::<u16>()).prop_map(|(what, a, b)| Step { what, a, b });
    let seeds = prop::collection::vec((0..=LOWERS as u8, any::<u16>(), any::<u8>()), 4..40);
    (seeds, prop::collection::vec(step, 4..40), any::<bool>()).prop_map(|(seeds, steps, eager_forget)| Plan {
        seeds,
        steps,
        eager_forget,
    })
}

/// Few names, so that they meet, up to three deep.
fn some_path(pick: u16) -> Vec<u8> {
    let depth = usize::from(pick % 3) + 1;
    let letters = [pick / 3 % 4, pick / 12 % 4, pick / 48 % 4].map(|n| [b"abcd"[usize::from(n)]]);
    letters[..depth].join(&b'/')
}

fn planted(plan: &Plan) -> Vec<Tree> {
    let mut trees: Vec<_> = (0..=LOWERS as u64).map(|place| Tree::new(place + 1)).collect();
    for &(place, pick, item) in &plan.seeds {
        let (tree, target) = (trees[usize::from(place)].clone(), some_path(pick));
        let is_dir = |path: &[u8]| {
            tree.entries.get(path).is_none_or(|known| matches!(known.item, kit::Item::Dir | kit::Item::Opaque))
        };
        let parts: Vec<_> = target.split(|&b| b == b'/').collect();
        if tree.entries.contains_key(&target) || !(1..parts.len()).all(|depth| is_dir(&parts[..depth].join(&b'/'))) {
            continue;
        }
        let file = tree.entries.iter().find(|(_, known)| matches!(known.item, kit::Item::File(_)));
        let file = file.map(|(path, _)| path.clone());
        trees[usize::from(place)] = match item % 10 {
            0 | 1 => tree.file(&target, format!("{} of {place}", kit::show(&target))),
            2..=5 => tree.dir(&target).owner(u32::from(item), 3),
            6 => tree.symlink(&target, "there"),
            7 => tree.opaque(&target),
            8 => tree.whiteout(&target),
            _ => match file {
                Some(old) => tree.link(old, &target),
                None => tree.file(&target, vec![item; 9_000]),
            },
        };
    }
    trees
}

fn lowers_of(pick: u16) -> Vec<usize> {
    let mut all: Vec<usize> = (1..=LOWERS).collect();
    all.rotate_left(usize::from(pick % 3));
    if pick / 3 % 2 == 1 {
        all.reverse();
    }
    all.truncate(usize::from(pick / 6) % (LOWERS + 1));
    all
}

fn run(plan: &Plan, format: Format) -> Result<(), String> {
    let dcache = if plan.eager_forget { Dcache::Nothing } else { Dcache::Keep };
    let mut lowers = vec![1];
    let mut stack = Stack::new(format, &planted(plan));
    stack.options.metacopy = plan.steps.len().is_multiple_of(2);
    let live = Live::with(stack, &lowers, dcache);
    let fs = &live.fs;
    let mut open: Vec<Fd> = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        let (one, other) = (some_path(step.a), some_path(step.b));
        let data = || vec![b'0' + (step.b % 64) as u8; usize::from(step.b % 300) + 1];
        let op = match step.what % 24 {
            0 => Op::Write(one, data()),
            1 => Op::Append(one, data()),
            2 => Op::Mkdir(one, 0o755),
            3 => Op::Unlink(one),
            4 => Op::Rmdir(one),
            5 | 6 => Op::Rename(one, other, 0),
            7 => Op::Rename(one, other, EXCHANGE),
            8 => Op::Rename(one, other, NOREPLACE),
            9 => Op::Link(one, other),
            10 | 11 => Op::Chmod(one, 0o600 + u32::from(step.b % 8)),
            12 | 13 => Op::List(one),
            14 | 15 => {
                let flags = if step.b % 3 == 0 { OFlags::RDWR } else { OFlags::RDONLY };
                open.extend(fs.open(&one, flags, 0));
                continue;
            }
            16 if !open.is_empty() => {
                let number = usize::from(step.a) % open.len();
                fs.close(open.swap_remove(number)).unwrap();
                continue;
            }
            17 => {
                fs.forget();
                continue;
            }
            18 => {
                let text = live.differs(&lowers);
                if !text.is_empty() {
                    return Err(format!("before step {number}, over {lowers:?}; ours / opened anew:\n{text}"));
                }
                continue;
            }
            _ => {
                let dirs: Vec<_> = known_dirs(fs);
                lowers = lowers_of(step.a);
                fs.exchange(&paths(&live.stack, &lowers)).map_err(|text| format!("step {number}: {text}"))?;
                for (path, node) in dirs {
                    let now = fs.stat(&path).is_ok_and(|stat| stat.kind().is_dir()).then(|| fs.node_of(&path));
                    if dcache == Dcache::Keep && now.is_some_and(|now| now != Some(node)) {
                        return Err(format!("step {number}: {} has another node", kit::show(&path)));
                    }
                }
                let text = live.differs(&lowers);
                if !text.is_empty() {
                    return Err(format!("step {number}, over {lowers:?}; ours / opened anew:\n{text}"));
                }
                for fd in &open {
                    let now = fs.pread(*fd, 0, 20_000).and_then(|_| fs.fstat(*fd));
                    now.map_err(|errno| format!("step {number}: what is open: {errno}"))?;
                }
                continue;
            }
        };
        let _refused = op.run(fs);
    }
    for fd in open {
        fs.close(fd).unwrap();
    }
    fs.exchange(&[]).map_err(|text| format!("in the end: {text}"))?;
    fs.forget();
    match fs.union().known_nodes() {
        1 => {}
        known => return Err(format!("{known} nodes in the end")),
    }
    match (1..=LOWERS).find(|place| live.holds(*place)) {
        None => Ok(()),
        Some(place) => Err(format!("branch {place} is held")),
    }
}

fn known_dirs(fs: &EngineFs) -> Vec<(Vec<u8>, NodeId)> {
    let mut known = Vec::new();
    let Ok(tree) = Snapshot::try_of(fs, false) else { return known };
    for (path, object) in tree.0 {
        if let (true, Some(node)) = (object.kind == 'd', fs.node_of(&path)) {
            known.push((path, node));
        }
    }
    known
}

#[test]
fn any_exchange_between_any_operations() {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    for (word, format) in Format::ALL {
        let cases = kit::env_number("COWFS_LIVE_CASES", 40) as u32;
        let mut runner = TestRunner::new(Config { cases, max_shrink_iters: 2_000, ..Config::default() });
        let result = runner.run(&plans(), |plan| kit::guarded(|| run(&plan, format)).map_err(TestCaseError::fail));
        if let Err(error) = result {
            panic!("{word}: {error}");
        }
    }
}

/// Requests go on while the lowers are exchanged, as `fuse::current` has it: a request has the union to itself and its like,
/// and the exchange has it alone.
#[test]
fn exchanged_while_others_are_at_work() {
    if !kit::can_build() {
        return;
    }
    let rounds = kit::env_number("COWFS_LIVE_ROUNDS", 300);
    for (word, format) in Format::ALL {
        let stack = Stack::new(format, &[upper(), lower(2), lower(3), lower(4)]);
        let fs = EngineFs::try_new(stack.branch_paths(), stack.options.clone(), Dcache::Keep).unwrap();
        let slot = RwLock::new(fs.union());
        let (done, stack) = (AtomicBool::new(false), &stack);
        std::thread::scope(|threads| {
            let (slot, done) = (&slot, &done);
            let mut workers = Vec::new();
            for worker in 0..6 {
                workers.push(threads.spawn(move || {
                    let mut turns = 0;
                    while !done.load(Ordering::Relaxed) {
                        work(slot, worker, turns);
                        turns += 1;
                    }
                    turns
                }));
            }
            for round in 0..rounds {
                let lowers = lowers_of(round as u16 * 7 + 6);
                let lowers = lowers.iter().map(|place| stack.branch_paths()[*place].open()).collect();
                let new = slot.read().over(NewLowers { lowers, covered: vec![] }).unwrap();
                let mut slot = slot.write();
                new.succeed(&slot).unwrap();
                *slot = Arc::new(new);
                drop(slot);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            done.store(true, Ordering::Relaxed);
            let turns: Vec<u64> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
            assert!(turns.iter().all(|turns| *turns > 5), "{word}: {turns:?}");
        });
        let union = slot.into_inner();
        assert_eq!(union.known_nodes(), 1, "{word}");
        drop(fs);
        union.close();
    }
}

/// One look at a file from end to end, request by request. What is outside the lowers never fails.
fn work(slot: &RwLock<Arc<Union>>, worker: u64, turn: u64) {
    let mut path: &[&str] =
        [&["d", "f"][..], &["d", "own"], &["d", "sub", "g"], &["own"], &["dir-3", "f"]][(turn % 5) as usize];
    let ours = path.ends_with(&["own"]);
    let mut nodes = vec![NodeId::ROOT];
    let found = loop {
        let Some((name, rest)) = path.split_first() else { break true };
        match slot.read().lookup(*nodes.last().unwrap(), name.as_ref()) {
            Ok(entry) => nodes.push(entry.node),
            // Gone; or its directory was, between two requests.
            Err(Errno::NOENT | Errno::STALE) if !ours => break false,
            Err(errno) => panic!("look up {name}: {errno}"),
        }
        path = rest;
    };
    let node = *nodes.last().unwrap();
    if found {
        let caller = Caller::ROOT;
        let writes = ours || worker == 0 && turn.is_multiple_of(7);
        let flags = if writes { libc::O_RDWR } else { libc::O_RDONLY };
        let opened = slot.read().open_file(node, flags, &caller);
        match opened {
            Ok(handle) => {
                let mut buffer = [0; 16];
                for _ in 0..3 {
                    assert!(slot.read().read(handle, 0, &mut buffer).unwrap() > 0);
                    if writes {
                        slot.read().write(handle, 0, b"of any").unwrap();
                    }
                    slot.read().getattr(node, Some(handle)).unwrap();
                }
                slot.read().release(handle);
            }
            Err(Errno::STALE | Errno::NOENT) if !ours => {}
            Err(errno) => panic!("open: {errno}"),
        }
    }
    let listed = slot.read().readdir(nodes[nodes.len() / 2], 0, &mut |_| true);
    assert!(matches!(listed, Ok(()) | Err(Errno::NOENT | Errno::NOTDIR)), "{listed:?}");
    for node in nodes.into_iter().skip(1).rev() {
        slot.read().forget(node, 1);
    }
}
