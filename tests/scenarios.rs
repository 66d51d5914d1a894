//! What programs rely on, one story a test, written once and told on the engine in every mark format, on a plain directory
//! and (as root) on the kernel's overlayfs.
//!
//! The plain directory keeps the stories honest: what it does not do, nobody may be asked for. Where overlayfs or a
//! format differs, the test says so and why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::os::unix::fs::MetadataExt;

use cowfs::union::options::{Format, Options};
use cowfs::union::types::{Caller, NodeId};
use kit::fs::{EXCHANGE, NOREPLACE, S_IFBLK, S_IFCHR, S_IFIFO, WHITEOUT};
use kit::{Dcache, DirFs, EngineFs, Errno, Fs, Item, OFlags, Snapshot, Stack, Strict, Tree, path, show};

/// Whom a story is told on beside the engine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judges {
    /// The plain directory and overlayfs.
    All,
    /// The plain directory alone: overlayfs is known not to do this.
    Plain,
    /// Nobody else can.
    None,
}

/// An upper with nothing in it.
fn empty() -> Tree {
    Tree::new(1)
}

fn lower() -> Tree {
    Tree::new(2)
}

/// Tells the story everywhere; all failures are reported, each with where it was.
#[track_caller]
fn tell(judges: Judges, trees: &[Tree], story: impl Fn(&dyn Fs)) {
    if !kit::can_build() {
        return;
    }
    let mut wrong = Vec::new();
    let mut tried = 0;
    let mut on = |fs: &dyn Fs| {
        tried += 1;
        let result = kit::guarded(|| {
            story(fs);
            Ok(())
        });
        if let Err(text) = result {
            wrong.push(format!("on {}: {text}", fs.label()));
        }
    };
    if judges != Judges::None {
        let stack = Stack::new(Format::Overlay, trees);
        on(&stack.plain());
    }
    if judges == Judges::All {
        let stack = Stack::new(Format::Overlay, trees);
        match (kit::is_root(), stack.overlay()) {
            (true, Ok(overlay)) => on(&overlay.fs),
            (_, result) => kit::skip(&format!("overlayfs as a judge: {:?}", result.err())),
        }
    }
    for (_, format) in Format::ALL {
        for dcache in [Dcache::Keep, Dcache::Nothing] {
            let stack = Stack::new(format, trees);
            let engine = stack.engine(dcache);
            on(&engine);
            drop(engine);
            assert!(stack.staged().is_empty(), "left in the stage: {:?}", stack.staged());
        }
    }
    kit::report(&wrong, tried);
}

/// A story about the engine alone, in each format.
#[track_caller]
fn tell_of_engine(trees: &[Tree], story: impl Fn(&EngineFs, &Stack)) {
    if !kit::can_build() {
        return;
    }
    for (word, format) in Format::ALL {
        let stack = Stack::new(format, trees);
        let engine = stack.engine(Dcache::Keep);
        let result = kit::guarded(|| {
            story(&engine, &stack);
            Ok(())
        });
        assert!(result.is_ok(), "{word}: {}", result.unwrap_err());
    }
}

/// As mv(1): a rename, and where that is EXDEV a copy.
fn mv(fs: &dyn Fs, old: &[u8], new: &[u8]) {
    match fs.rename(old, new, 0) {
        Err(Errno::XDEV) => {
            copy(fs, old, new);
            remove(fs, old);
        }
        done => done.unwrap_or_else(|errno| panic!("mv {} {}: {errno}", show(old), show(new))),
    }
}

fn copy(fs: &dyn Fs, old: &[u8], new: &[u8]) {
    if fs.stat(old).unwrap().kind() != kit::FileType::Directory {
        return fs.write(new, &fs.read(old).unwrap()).unwrap();
    }
    fs.mkdir(new, 0o755).unwrap();
    for entry in fs.list(old).unwrap() {
        copy(fs, &path(old, &entry.name), &path(new, &entry.name));
    }
}

/// As rm -r.
fn remove(fs: &dyn Fs, victim: &[u8]) {
    if fs.stat(victim).unwrap().kind() != kit::FileType::Directory {
        return fs.unlink(victim).unwrap();
    }
    for entry in fs.list(victim).unwrap() {
        remove(fs, &path(victim, &entry.name));
    }
    fs.rmdir(victim).unwrap();
}

/// Checks now, after everything was forgotten, and after a remount.
fn lasting(fs: &dyn Fs, check: impl Fn(&str)) {
    check("at once");
    fs.forget();
    check("after forget");
    fs.remount();
    check("after the remount");
}

// Names, deleted and used again.

#[test]
fn deploy_swap() {
    let release =
        |tree: Tree, name: &str| tree.file(format!("{name}/index"), name).file(format!("{name}/{name}-only"), "");
    let both_below = [empty(), release(release(lower(), "cur"), "new")];
    let new_above = [release(empty(), "new"), release(lower(), "cur")];
    let merged = [release(empty(), "cur").file("cur/added", "x"), release(release(lower(), "cur"), "new")];
    for trees in [&both_below, &new_above, &merged] {
        tell(Judges::All, trees, |fs| {
            mv(fs, b"cur", b"old");
            mv(fs, b"new", b"cur");
            lasting(fs, |when| {
                assert_eq!(fs.names(b""), ["cur", "old"], "{when}");
                assert_eq!(fs.names(b"cur"), ["index", "new-only"], "{when}");
                assert_eq!(fs.read(b"cur/index").unwrap(), b"new", "{when}");
                assert_eq!(fs.read(b"old/cur-only").unwrap(), b"", "{when}");
                assert!(!fs.exists(b"new"), "{when}");
                assert!(!fs.exists(b"cur/cur-only"), "{when}");
            });
            // And once more, back again.
            mv(fs, b"cur", b"new");
            mv(fs, b"old", b"cur");
            lasting(fs, |when| {
                assert_eq!(fs.read(b"cur/index").unwrap(), b"cur", "{when}");
                assert_eq!(fs.names(b"new"), ["index", "new-only"], "{when}");
                assert!(!fs.exists(b"cur/new-only"), "{when}");
            });
        });
    }
}

#[test]
fn long_lower_names_can_be_deleted_and_made_again() {
    let name = |len: usize| vec![b'n'; len];
    let mut tree = lower();
    for len in 240..=255 {
        tree = tree.file(name(len), "lower").file(path(b"dir", &name(len)), "lower");
    }
    tell(Judges::All, &[empty(), tree], |fs| {
        for len in 240..=255 {
            for file in [name(len), path(b"dir", &name(len))] {
                fs.unlink(&file).unwrap_or_else(|errno| panic!("{len}: {errno}"));
                assert!(!fs.exists(&file), "{len}");
            }
        }
        lasting(fs, |when| {
            assert_eq!(fs.names(b""), ["dir"], "{when}");
            assert_eq!(fs.names(b"dir"), [""; 0], "{when}");
            assert!(!fs.exists(&name(255)), "{when}");
        });
        fs.write(&name(255), b"again").unwrap();
        fs.mkdir(&name(254), 0o700).unwrap();
        fs.rename(&name(255), &name(253), 0).unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.list(b"").unwrap().len(), 3, "{when}");
            assert_eq!(fs.read(&name(253)).unwrap(), b"again", "{when}");
            assert_eq!(fs.names(&name(254)), [""; 0], "{when}");
        });
        fs.rmdir(b"dir").unwrap();
        fs.unlink(&name(253)).unwrap();
        lasting(fs, |when| assert_eq!(fs.list(b"").unwrap().len(), 1, "{when}"));
    });
}

#[test]
fn a_directory_deleted_and_made_again_is_empty() {
    let trees = [empty(), lower().file("d/a", "1").file("d/b/c", "2").file("other/d/x", "3")];
    tell(Judges::All, &trees, |fs| {
        for dir in [&b"d"[..], b"other/d"] {
            remove(fs, dir);
            fs.mkdir(dir, 0o711).unwrap();
            lasting(fs, |when| {
                assert_eq!(fs.names(dir), [""; 0], "{when}");
                assert_eq!(fs.stat(dir).unwrap().perm(), 0o711, "{when}");
            });
            fs.write(&path(dir, b"a"), b"new").unwrap();
            fs.mkdir(&path(dir, b"b"), 0o755).unwrap();
            lasting(fs, |when| {
                assert_eq!(fs.names(dir), ["a", "b"], "{when}");
                assert_eq!(fs.read(&path(dir, b"a")).unwrap(), b"new", "{when}");
                assert_eq!(fs.names(&path(dir, b"b")), [""; 0], "{when}");
            });
            remove(fs, dir);
            lasting(fs, |when| assert!(!fs.exists(dir), "{when}"));
        }
    });
}

#[test]
fn a_file_replaces_a_directory_and_the_reverse() {
    let trees = [empty(), lower().file("d/a", "1").file("f", "file")];
    tell(Judges::All, &trees, |fs| {
        remove(fs, b"d");
        fs.write(b"d", b"now a file").unwrap();
        fs.unlink(b"f").unwrap();
        fs.mkdir(b"f", 0o755).unwrap();
        fs.write(b"f/in", b"x").unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.read(b"d").unwrap(), b"now a file", "{when}");
            assert_eq!(fs.stat(b"d/a").err(), Some(Errno::NOTDIR), "{when}");
            assert_eq!(fs.names(b"f"), ["in"], "{when}");
        });
        // And each back to what it was.
        fs.unlink(b"d").unwrap();
        fs.mkdir(b"d", 0o755).unwrap();
        remove(fs, b"f");
        fs.symlink(b"d", b"f").unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.names(b"d"), [""; 0], "{when}");
            assert_eq!(fs.readlink(b"f").unwrap(), b"d", "{when}");
        });
    });
}

#[test]
fn a_rename_onto_a_deleted_name_brings_nothing_back() {
    let trees = [
        empty().file("mine/new", "1").file("file", "2"),
        lower().file("d/old", "x").file("e/theirs", "y").file("g", "z").file("deep/d/old", "x"),
    ];
    tell(Judges::All, &trees, |fs| {
        remove(fs, b"d");
        fs.rename(b"mine", b"d", 0).unwrap();
        fs.unlink(b"g").unwrap();
        fs.rename(b"file", b"g", 0).unwrap();
        remove(fs, b"deep/d");
        mv(fs, b"e", b"deep/d");
        lasting(fs, |when| {
            assert_eq!(fs.names(b"d"), ["new"], "{when}");
            assert_eq!(fs.read(b"g").unwrap(), b"2", "{when}");
            assert_eq!(fs.names(b"deep/d"), ["theirs"], "{when}");
            assert_eq!(fs.names(b""), ["d", "deep", "g"], "{when}");
        });
        // A directory emptied, not removed: what comes in its place shows nothing of it either.
        fs.unlink(b"deep/d/theirs").unwrap();
        fs.mkdir(b"fresh", 0o755).unwrap();
        fs.write(b"fresh/f", b"").unwrap();
        fs.rename(b"fresh", b"deep/d", 0).unwrap();
        lasting(fs, |when| assert_eq!(fs.names(b"deep/d"), ["f"], "{when}"));
    });
}

#[test]
fn directories_that_are_not_empty_stay() {
    let trees = [empty().file("m/up", "").dir("mine"), lower().file("m/down", "").file("l/x", "").dir("l/e")];
    tell(Judges::All, &trees, |fs| {
        assert_eq!(fs.rmdir(b"m"), Err(Errno::NOTEMPTY));
        assert_eq!(fs.rmdir(b"l"), Err(Errno::NOTEMPTY));
        fs.unlink(b"m/up").unwrap();
        assert_eq!(fs.rmdir(b"m"), Err(Errno::NOTEMPTY));
        assert_eq!(fs.rename(b"mine", b"l", 0), Err(Errno::NOTEMPTY));
        assert_eq!(fs.unlink(b"l"), Err(Errno::ISDIR));
        assert_eq!(fs.rmdir(b"l/x"), Err(Errno::NOTDIR));
        assert_eq!(fs.rename(b"l/x", b"m", 0), Err(Errno::ISDIR));
        assert_eq!(fs.rename(b"mine", b"l/x", 0), Err(Errno::NOTDIR));
        fs.unlink(b"m/down").unwrap();
        fs.rmdir(b"m").unwrap();
        fs.rename(b"mine", b"l/e", 0).unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.names(b""), ["l"], "{when}");
            assert_eq!(fs.names(b"l"), ["e", "x"], "{when}");
        });
    });
}

#[test]
fn renamed_directories_keep_what_is_in_them() {
    let trees = [
        empty().file("m/up", "u").whiteout("m/gone"),
        lower().file("m/down", "d").file("m/gone", "g").file("m/sub/deep/file", "f").file("n/other", "o"),
    ];
    tell(Judges::All, &trees, |fs| {
        mv(fs, b"m", b"n/moved");
        fs.write(b"n/moved/sub/deep/file2", b"2").unwrap();
        fs.append(b"n/moved/sub/deep/file", b"+").unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.names(b"n/moved"), ["down", "sub", "up"], "{when}");
            assert_eq!(fs.read(b"n/moved/sub/deep/file").unwrap(), b"f+", "{when}");
        });
        mv(fs, b"n/moved/sub", b"sub");
        mv(fs, b"n", b"m");
        lasting(fs, |when| {
            assert_eq!(fs.names(b""), ["m", "sub"], "{when}");
            assert_eq!(fs.names(b"m"), ["moved", "other"], "{when}");
            assert_eq!(fs.names(b"m/moved"), ["down", "up"], "{when}");
            assert_eq!(fs.names(b"sub/deep"), ["file", "file2"], "{when}");
            assert_eq!(fs.read(b"sub/deep/file").unwrap(), b"f+", "{when}");
        });
        remove(fs, b"m");
        remove(fs, b"sub");
        lasting(fs, |when| assert_eq!(fs.names(b""), [""; 0], "{when}"));
    });
}

#[test]
fn rename_flags() {
    let trees = [empty().file("uf", "uf").file("ud/u", ""), lower().file("lf", "lf").file("ld/l", "").file("lf2", "2")];
    tell(Judges::All, &trees, |fs| {
        assert_eq!(fs.rename(b"uf", b"lf", NOREPLACE), Err(Errno::EXIST));
        assert_eq!(fs.rename(b"uf", b"none", EXCHANGE), Err(Errno::NOENT));
        assert_eq!(fs.rename(b"uf", b"lf", EXCHANGE | NOREPLACE), Err(Errno::INVAL));
        fs.rename(b"uf", b"lf", EXCHANGE).unwrap();
        let dirs = fs.rename(b"ud", b"ld", EXCHANGE);
        assert!(dirs == Ok(()) || dirs == Err(Errno::XDEV), "{dirs:?}");
        let mixed = fs.rename(b"lf2", b"ld", EXCHANGE);
        assert!(mixed == Ok(()) || (mixed == Err(Errno::XDEV) && dirs == Err(Errno::XDEV)), "{mixed:?}");
        fs.rename(b"uf", b"free", NOREPLACE).unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.read(b"lf").unwrap(), b"uf", "{when}");
            assert_eq!(fs.read(b"free").unwrap(), b"lf", "{when}");
            if dirs.is_ok() {
                assert_eq!(fs.names(b"ud"), ["l"], "{when}");
                assert_eq!(fs.read(b"ld").unwrap(), b"2", "{when}");
                assert_eq!(fs.names(b"lf2"), ["u"], "{when}");
            }
            assert_eq!(fs.names(b"").len(), 5, "{when}");
        });
    });
}

/// Only overlayfs' own format has redirects; there a directory moves at any depth without a copy.
#[test]
fn a_lower_directory_is_renamed_without_copying_it() {
    if !kit::can_build() {
        return;
    }
    let trees = [empty(), lower().file("a/b/c/file", vec![7; 3 << 20]).file("a/b/small", "s")];
    let stack = Stack::new(Format::Overlay, &trees);
    let engine = stack.engine(Dcache::Keep);
    engine.rename(b"a/b", b"moved", 0).unwrap();
    engine.rename(b"moved/c", b"a/c2", 0).unwrap();
    lasting(&engine, |when| {
        assert_eq!(engine.read(b"a/c2/file").unwrap().len(), 3 << 20, "{when}");
        assert_eq!(engine.names(b"moved"), ["small"], "{when}");
    });
    let files = stack.branch(0).names(b"moved");
    assert_eq!(files, ["c"], "the upper holds a whiteout for c, and no copy: {files:?}");
    let view = stack.overlay();
    engine.unmount(true);
    if let Ok(view) = view {
        assert_eq!(view.fs.read(b"a/c2/file").unwrap().len(), 3 << 20);
        assert_eq!(view.fs.names(b"moved"), ["small"]);
    }
}

// Open files.

#[test]
fn a_file_opened_before_copy_up_sees_what_is_written_after() {
    let trees = [empty(), lower().file("f", "old content").file("d/g", vec![b'g'; 300_000])];
    tell(Judges::All, &trees, |fs| {
        for (file, len) in [(&b"f"[..], 11), (b"d/g", 300_000)] {
            let before = fs.open(file, OFlags::RDONLY, 0).unwrap();
            assert_eq!(fs.pread(before, 0, 1 << 20).unwrap().len(), len);
            let ino = fs.fstat(before).unwrap().ino;
            fs.append(file, b"appended").unwrap();
            assert_eq!(fs.fstat(before).unwrap().size, len as u64 + 8);
            assert_eq!(fs.pread(before, len as u64, 100).unwrap(), b"appended");
            fs.write(file, b"whole").unwrap();
            assert_eq!(fs.pread(before, 0, 100).unwrap(), b"whole");
            fs.chmod(file, 0o751).unwrap();
            let stat = fs.fstat(before).unwrap();
            assert_eq!((stat.size, stat.perm(), stat.ino), (5, 0o751, ino));
            fs.close(before).unwrap();
            assert_eq!(fs.ino(file), ino);
        }
    });
}

#[test]
fn two_writers_of_one_lower_file_write_the_same_file() {
    let trees = [empty(), lower().file("f", "0123456789")];
    tell(Judges::All, &trees, |fs| {
        let reader = fs.open(b"f", OFlags::RDONLY, 0).unwrap();
        let one = fs.open(b"f", OFlags::RDWR, 0).unwrap();
        fs.forget();
        let two = fs.open(b"f", OFlags::WRONLY, 0).unwrap();
        fs.pwrite(one, 0, b"AA").unwrap();
        fs.pwrite(two, 2, b"BB").unwrap();
        fs.forget();
        assert_eq!(fs.pread(reader, 0, 20).unwrap(), b"AABB456789");
        assert_eq!(fs.pread(one, 0, 20).unwrap(), b"AABB456789");
        for fd in [reader, one, two] {
            fs.close(fd).unwrap();
        }
        lasting(fs, |when| assert_eq!(fs.read(b"f").unwrap(), b"AABB456789", "{when}"));
    });
}

/// What dpkg, sqlite and editors do with files that have no name any more.
#[test]
fn unlinked_open_files_work_in_every_way() {
    let trees = [empty().file("d/upper", "content"), lower().file("d/lower", "content").file("d/shared", "content")];
    for flags in [OFlags::RDWR, OFlags::RDONLY] {
        // Overlayfs answers EEXIST to an fchmod of a deleted lower file, and goes on showing its link count.
        tell(Judges::Plain, &trees, |fs| {
            for name in [&b"d/upper"[..], b"d/lower", b"d/shared"] {
                let fd = fs.open(name, flags, 0).unwrap();
                let ino = fs.fstat(fd).unwrap().ino;
                fs.unlink(name).unwrap();
                assert!(!fs.exists(name));
                fs.forget();
                let stat = fs.fstat(fd).unwrap();
                assert_eq!((stat.nlink, stat.size, stat.ino), (0, 7, ino), "{}", show(name));
                assert_eq!(fs.pread(fd, 0, 100).unwrap(), b"content");
                fs.fchmod(fd, 0o4711).unwrap();
                fs.fchown(fd, 5, 6).unwrap();
                fs.futimens(fd, (5, 6), (7, 8)).unwrap();
                fs.fsetxattr(fd, "user.k", b"v").unwrap();
                assert_eq!(fs.fgetxattr(fd, "user.k").unwrap(), b"v");
                if flags == OFlags::RDWR {
                    fs.pwrite(fd, 5, b"---").unwrap();
                    fs.ftruncate(fd, 6).unwrap();
                    assert_eq!(fs.pread(fd, 0, 100).unwrap(), b"conte-");
                    fs.fallocate(fd, 0, 0, 10_000).unwrap();
                    assert_eq!(fs.fstat(fd).unwrap().size, 10_000);
                    fs.fsync(fd).unwrap();
                }
                let stat = fs.fstat(fd).unwrap();
                assert_eq!((stat.uid, stat.gid, stat.nlink, stat.ino), (5, 6, 0, ino));
                // The name is free for another file.
                fs.write(name, b"another").unwrap();
                assert_ne!(fs.pread(fd, 0, 7).unwrap(), b"another");
                assert_ne!(fs.ino(name), ino);
                fs.close(fd).unwrap();
                assert_eq!(fs.read(name).unwrap(), b"another");
                fs.unlink(name).unwrap();
            }
            // Nothing is left that stands in the way of this.
            fs.rmdir(b"d").unwrap();
            lasting(fs, |when| assert_eq!(fs.names(b""), [""; 0], "{when}"));
        });
    }
}

#[test]
fn replaced_open_files_stay_what_they_were() {
    let trees = [empty().file("u", "upper").file("new1", "n1"), lower().file("l", "lower").file("new2", "n2")];
    tell(Judges::All, &trees, |fs| {
        for (old, new) in [(&b"l"[..], &b"new1"[..]), (b"u", b"new2")] {
            let was = fs.read(old).unwrap();
            let fd = fs.open(old, OFlags::RDWR, 0).unwrap();
            let reader = fs.open(old, OFlags::RDONLY, 0).unwrap();
            let content = fs.read(new).unwrap();
            fs.rename(new, old, 0).unwrap();
            fs.forget();
            assert_eq!(fs.pread(fd, 0, 99).unwrap(), was);
            assert_eq!(fs.fstat(fd).unwrap().nlink, 0);
            fs.pwrite(fd, 0, b"OLD").unwrap();
            assert_eq!(&fs.pread(reader, 0, 3).unwrap(), b"OLD");
            assert_eq!(fs.read(old).unwrap(), content);
            fs.close(fd).unwrap();
            fs.close(reader).unwrap();
            lasting(fs, |when| assert_eq!(fs.read(old).unwrap(), content, "{when}"));
        }
    });
}

#[test]
fn open_files_follow_their_file_through_renames() {
    let trees = [empty(), lower().file("a/b/f", "content").file("x", "x")];
    tell(Judges::All, &trees, |fs| {
        let fd = fs.open(b"a/b/f", OFlags::RDONLY, 0).unwrap();
        fs.rename(b"a/b/f", b"g", 0).unwrap();
        fs.forget();
        fs.append(b"g", b"+").unwrap();
        assert_eq!(fs.pread(fd, 0, 99).unwrap(), b"content+");
        fs.fchmod(fd, 0o600).unwrap();
        assert_eq!(fs.stat(b"g").unwrap().perm(), 0o600);
        fs.rename(b"g", b"x", EXCHANGE).unwrap();
        assert_eq!(fs.pread(fd, 0, 99).unwrap(), b"content+");
        fs.rmdir(b"a/b").unwrap();
        assert_eq!(fs.fstat(fd).unwrap().ino, fs.ino(b"x"));
        fs.close(fd).unwrap();
    });
}

// Copy-up.

const ACL_DEFAULT: &str = "system.posix_acl_default";
const ACL_ACCESS: &str = "system.posix_acl_access";

/// An ACL as the kernel stores it: user::rwx, user:1000:rw-, group::r-x, mask::rwx, other::---.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 7u16, u32::MAX), (2, 6, 1000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// cap_net_raw=ep.
fn capability() -> Vec<u8> {
    [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn copy_up_keeps_everything() {
    let odd = (-86_400, 123_456_789);
    let furnish = |tree: Tree, name: &str| {
        tree.file(name, "content")
            .mode(0o6751)
            .owner(1234, 4321)
            .time(odd)
            .xattr("user.a", "1")
            .xattr("user.empty", "")
            .xattr("user.binary", b"\x00\xff\n")
            .xattr("user.large", vec![b'x'; 1800])
            .xattr("trusted.t", "2")
    };
    let tree = furnish(lower(), "f").file("cap", "c").xattr("security.capability", capability());
    let tree = tree.file("acl", "a").mode(0o670).xattr(ACL_ACCESS, acl());
    let tree = tree.dir("d").mode(0o2700).owner(7, 8).xattr(ACL_DEFAULT, acl()).xattr("user.d", "3").file("d/e/f", "x");
    let tree = tree.symlink("s", "to").owner(9, 10).xattr("trusted.s", "4");
    let tree = tree.add("fifo", Item::Fifo).mode(0o620).owner(3, 4).add("sock", Item::Socket).mode(0o770);
    let tree = tree.add("dev", Item::CharDevice(1, 5)).mode(0o604);
    tell(Judges::All, &[empty(), tree], |fs| {
        let mut expected = Snapshot::of(fs);
        let inos: Vec<_> = expected.0.values().map(|object| object.ino).collect();
        // What changes nothing but one time copies all of them up.
        for name in [&b"f"[..], b"cap", b"acl", b"d", b"d/e", b"d/e/f", b"s", b"fifo", b"sock", b"dev"] {
            let time = (1_000_000_001, 9);
            fs.utimens(name, time, time).unwrap_or_else(|errno| panic!("{}: {errno}", show(name)));
            expected.0.get_mut(name).unwrap().mtime = time;
        }
        lasting(fs, |when| {
            let found = Snapshot::of(fs);
            expected.assert_same(&found, &Strict::TWINS, &format!("{when}, before / after copy-up"));
            let now: Vec<_> = found.0.values().map(|object| object.ino).collect();
            assert_eq!(now, inos, "{when}: inode numbers");
        });
    });
}

#[test]
fn copy_up_leaves_the_times_of_directories_alone() {
    let trees = [empty(), lower().file("a/b/f", "x").file("a/b/g", "x").file("a/b/h", "y")];
    tell(Judges::All, &trees, |fs| {
        let times = |fs: &dyn Fs| [&b""[..], b"a", b"a/b"].map(|dir| fs.stat(dir).unwrap().mtime);
        let before = times(fs);
        fs.append(b"a/b/f", b"y").unwrap();
        fs.chmod(b"a/b/g", 0o600).unwrap();
        lasting(fs, |when| assert_eq!(times(fs), before, "{when}"));
        // A change of names is a change of the directory, and of that one alone.
        fs.unlink(b"a/b/h").unwrap();
        let [root, outer, inner] = times(fs);
        assert_eq!([root, outer], [before[0], before[1]]);
        assert!(inner.0 > 1_600_000_000, "{inner:?}");
    });
}

#[test]
fn times_of_all_ages() {
    let ages = [(-2_177_452_800, 1), (-1, 999_999_999), (0, 0), (5_000_000_000, 5), (15_032_385_534, 7)];
    let mut tree = lower();
    for (index, age) in ages.iter().enumerate() {
        tree = tree.file(format!("f{index}"), "").time(*age).file(format!("g{index}"), "x");
    }
    tell(Judges::All, &[empty(), tree], |fs| {
        for (index, age) in ages.iter().enumerate() {
            let (born, set) = (format!("f{index}").into_bytes(), format!("g{index}").into_bytes());
            assert_eq!(fs.stat(&born).unwrap().mtime, *age);
            fs.chmod(&born, 0o600).unwrap();
            fs.utimens(&set, *age, *age).unwrap();
            lasting(fs, |when| {
                for name in [&born, &set] {
                    let stat = fs.stat(name).unwrap();
                    assert_eq!((stat.mtime, stat.atime), (*age, *age), "{when} {}", show(name));
                }
            });
        }
    });
}

/// Bytes that this thread read and wrote, as the kernel counts them.
fn io_of_this_thread() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let count = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    count("rchar:") + count("wchar:")
}

#[test]
fn what_needs_no_data_copies_none() {
    let big = vec![b'b'; 8 << 20];
    let mut tree = lower();
    for name in ["trunc", "zero", "rdtrunc", "unlink", "over", "chmod"] {
        tree = tree.file(name, &big);
    }
    tell_of_engine(&[empty().file("small", "s"), tree], |fs, stack| {
        let costs = |what: &str, act: &dyn Fn()| {
            let before = io_of_this_thread();
            act();
            let bytes = io_of_this_thread() - before;
            assert!(bytes < 1 << 20, "{what} moved {bytes} bytes");
        };
        let open_close = |name: &[u8], flags| fs.close(fs.open(name, flags, 0).unwrap()).unwrap();
        costs("O_TRUNC", &|| open_close(b"trunc", OFlags::WRONLY | OFlags::TRUNC));
        costs("O_RDONLY|O_TRUNC", &|| open_close(b"rdtrunc", OFlags::RDONLY | OFlags::TRUNC));
        costs("truncate(0)", &|| fs.truncate(b"zero", 0).unwrap());
        costs("unlink", &|| fs.unlink(b"unlink").unwrap());
        costs("rename over", &|| fs.rename(b"small", b"over", 0).unwrap());
        for name in ["trunc", "zero", "rdtrunc"] {
            let file = std::fs::symlink_metadata(stack.path(0).join(name)).unwrap();
            assert_eq!((file.len(), file.blocks()), (0, 0), "{name}");
        }
    });
}

#[test]
fn a_change_of_metadata_keeps_the_data() {
    let big = vec![b'b'; 8 << 20];
    tell(Judges::All, &[empty(), lower().file("big", &big)], |fs| {
        fs.chmod(b"big", 0o600).unwrap();
        lasting(fs, |when| assert!(fs.read(b"big").unwrap() == big, "{when}"));
        fs.append(b"big", b"!").unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.stat(b"big").unwrap().size, big.len() as u64 + 1, "{when}");
            assert_eq!(fs.stat(b"big").unwrap().perm(), 0o600, "{when}");
        });
    });
}

/// The data of the upper's file `name`, in blocks.
fn data_in_upper(stack: &Stack, name: &str) -> u64 {
    // An attribute may take a block of its own.
    std::fs::symlink_metadata(stack.path(0).join(name)).unwrap().blocks().saturating_sub(8)
}

#[test]
fn attributes_names_and_links_of_a_lower_file_copy_no_data() {
    let big: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 977) as u8).collect();
    let names = ["mode", "owner", "time", "attribute", "moved", "linked", "both"];
    let mut tree = lower().dir("d");
    for name in names {
        tree = tree.file(name, &big);
    }
    tell_of_engine(&[empty().dir("own"), tree.file("h1", &big).link("h1", "h2")], |fs, stack| {
        let reader = fs.open(b"mode", OFlags::RDONLY, 0).unwrap();
        fs.chmod(b"mode", 0o751).unwrap();
        fs.chown(b"owner", 5, 6).unwrap();
        fs.utimens(b"time", (-1, 5), (-1, 5)).unwrap();
        fs.setxattr(b"attribute", "user.shape", b"round").unwrap();
        fs.rename(b"moved", b"own/moved", 0).unwrap();
        fs.link(b"linked", b"d/link").unwrap();
        fs.chown(b"both", 5, 6).unwrap();
        fs.rename(b"both", b"mode", EXCHANGE).unwrap();
        fs.chown(b"h1", 5, 6).unwrap();
        fs.rename(b"h2", b"own/h2", 0).unwrap();
        assert!(fs.pread(reader, 0, 2 << 20).unwrap() == big, "a descriptor from before");
        fs.close(reader).unwrap();
        let all = ["mode", "owner", "time", "attribute", "own/moved", "linked", "d/link", "both", "h1", "own/h2"];
        lasting(fs, |when| {
            for name in all {
                let (stat, data) = (fs.stat(name.as_bytes()).unwrap(), fs.read(name.as_bytes()).unwrap());
                assert!(data == big, "{when}: {name}");
                assert!(stat.size == 1 << 20 && stat.blocks >= 2048, "{when}: {name}: {stat:?}");
                if stack.format == Format::Overlay {
                    assert_eq!(data_in_upper(stack, name), 0, "{when}: {name}");
                }
            }
        });
        // A file of which more has been changed has its data, all of them, and they are its own.
        fs.write_at(b"own/moved", OFlags::WRONLY, 977, b"!").unwrap();
        fs.write_at(b"own/h2", OFlags::WRONLY, 977, b"!").unwrap();
        fs.truncate(b"linked", 978).unwrap();
        lasting(fs, |when| {
            for name in ["own/moved", "h1"] {
                let data = fs.read(name.as_bytes()).unwrap();
                assert!(data[..977] == big[..977] && data[977] == b'!' && data[978..] == big[978..], "{when}: {name}");
                assert!(data_in_upper(stack, name) >= 2048 - 8, "{when}: {name}");
            }
            assert!(fs.read(b"d/link").unwrap() == big[..978], "{when}");
            assert_eq!(fs.stat(b"h1").unwrap().nlink, 2, "{when}");
        });
    });
}

/// A descriptor of a file that has a name no more, whose data are still the lower's.
#[test]
fn data_come_to_a_deleted_file() {
    tell(Judges::All, &[empty(), lower().file("f", "0123456789")], |fs| {
        fs.chmod(b"f", 0o600).unwrap();
        let fd = fs.open(b"f", OFlags::RDONLY, 0).unwrap();
        fs.unlink(b"f").unwrap();
        assert_eq!(fs.pread(fd, 0, 20).unwrap(), b"0123456789");
        fs.fchmod(fd, 0o640).unwrap();
        assert_eq!(fs.pread(fd, 2, 3).unwrap(), b"234");
        fs.close(fd).unwrap();
    });
}

#[test]
fn sparse_files_stay_sparse() {
    if !kit::can_build() {
        return;
    }
    let trees = [empty(), lower().file("sparse", "").file("end", "").file("hole", "")];
    let plant = |root: &DirFs| {
        for offset in [0u64, 3 << 20, 7 << 20] {
            root.write_at(b"sparse", OFlags::WRONLY, offset, &[b's'; 4096]).unwrap();
        }
        root.truncate(b"sparse", 8 << 20).unwrap();
        root.write_at(b"end", OFlags::WRONLY, 4 << 20, b"end").unwrap();
        root.truncate(b"hole", 3 << 20).unwrap();
    };
    for (word, format) in Format::ALL {
        let mut stack = Stack::new(format, &trees);
        plant(&stack.branch(1));
        stack.guard();
        let fs = stack.engine(Dcache::Keep);
        let fd = fs.open(b"sparse", OFlags::RDONLY, 0).unwrap();
        assert_eq!(fs.lseek(fd, 4096, 3), Ok(3 << 20), "{word}: SEEK_DATA of the lower file");
        assert_eq!(fs.lseek(fd, 0, 4), Ok(4096), "{word}: SEEK_HOLE of the lower file");
        for name in [&b"sparse"[..], b"end", b"hole"] {
            let before = fs.read(name).unwrap();
            fs.write_at(name, OFlags::WRONLY, 0, b"!").unwrap();
            assert!(fs.stat(name).unwrap().blocks < 128, "{word}: {} has its holes filled", show(name));
            let after = fs.read(name).unwrap();
            assert!(before.len() == after.len() && before[1..] == after[1..] && after[0] == b'!', "{word}");
        }
        assert_eq!(fs.lseek(fd, 4096, 3), Ok(3 << 20), "{word}: SEEK_DATA after copy-up");
        assert_eq!(fs.lseek(fd, 8 << 20, 3), Err(Errno::NXIO), "{word}: SEEK_DATA at the end");
        fs.close(fd).unwrap();
    }
}

#[test]
fn fallocate_in_all_its_modes() {
    let trees = [empty(), lower().file("f", vec![b'f'; 65_536]).file("g", vec![b'g'; 65_536])];
    tell(Judges::Plain, &trees, |fs| {
        const KEEP_SIZE: u32 = 1;
        const PUNCH: u32 = 2;
        const ZERO: u32 = 16;
        for name in [&b"f"[..], b"g"] {
            let fd = fs.open(name, OFlags::RDWR, 0).unwrap();
            fs.fallocate(fd, KEEP_SIZE, 0, 200_000).unwrap();
            assert_eq!(fs.fstat(fd).unwrap().size, 65_536);
            fs.fallocate(fd, PUNCH | KEEP_SIZE, 4096, 8192).unwrap();
            let zeroed = fs.fallocate(fd, ZERO, 16_384, 4096);
            assert!(matches!(zeroed, Ok(()) | Err(Errno::OPNOTSUPP)), "{zeroed:?}");
            fs.fallocate(fd, 0, 65_536, 1000).unwrap();
            let data = fs.pread(fd, 0, 100_000).unwrap();
            assert_eq!(data.len(), 66_536);
            assert!(
                data[4096..12_288].iter().all(|&byte| byte == 0) && data[..4096].iter().all(|&byte| byte == name[0])
            );
            assert_eq!(zeroed.is_ok(), data[16_384] == 0);
            fs.close(fd).unwrap();
        }
    });
}

// Inode numbers and hard links.

#[test]
fn inode_numbers_are_the_branches_own_and_last() {
    let trees = [
        empty().file("up", "").file("m/u", ""),
        lower().file("f", "1").file("d/g", "2").file("m/l", "").symlink("s", "t"),
    ];
    tell_of_engine(&trees, |fs, stack| {
        for (place, name) in [(0, &b"up"[..]), (1, b"f"), (1, b"d/g"), (1, b"d"), (1, b"s"), (0, b"m/u"), (1, b"m/l")] {
            assert_eq!(fs.ino(name), stack.branch(place).ino(name), "{}", show(name));
        }
        let all =
            |fs: &EngineFs| Snapshot::of(fs).0.into_iter().map(|(path, object)| (path, object.ino)).collect::<Vec<_>>();
        let before = all(fs);
        for name in [&b"f"[..], b"d/g", b"m/l"] {
            fs.append(name, b"+").unwrap();
        }
        fs.chmod(b"d", 0o700).unwrap();
        fs.chmod(b"m", 0o700).unwrap();
        fs.chown(b"s", 1, 2).unwrap();
        lasting(fs, |when| assert_eq!(all(fs), before, "{when}"));
        let ino = fs.ino(b"f");
        fs.rename(b"f", b"d/renamed", 0).unwrap();
        lasting(fs, |when| assert_eq!(fs.ino(b"d/renamed"), ino, "{when}"));
    });
}

/// Overlayfs needs index=on for this; unionfs-fuse and fuse-overlayfs cannot at all.
#[test]
fn hard_links_of_a_lower_branch_stay_links() {
    let trees = [empty(), lower().file("h1", "one").link("h1", "d/h2").link("h1", "h3").file("x", "")];
    tell(Judges::Plain, &trees, |fs| {
        let check = |when: &str, content: &[u8]| {
            let inos = [&b"h1"[..], b"d/h2", b"h3"].map(|name| fs.ino(name));
            assert!(inos.iter().all(|ino| *ino == inos[0]), "{when}: {inos:?}");
            for name in [&b"h1"[..], b"d/h2", b"h3"] {
                assert_eq!(fs.read(name).unwrap(), content, "{when} {}", show(name));
                assert_eq!(fs.stat(name).unwrap().nlink, 3, "{when} {}", show(name));
            }
        };
        lasting(fs, |when| check(when, b"one"));
        let ino = fs.ino(b"h1");
        let reader = fs.open(b"h3", OFlags::RDONLY, 0).unwrap();
        fs.append(b"d/h2", b"+").unwrap();
        assert_eq!(fs.pread(reader, 0, 9).unwrap(), b"one+");
        fs.close(reader).unwrap();
        lasting(fs, |when| check(when, b"one+"));
        fs.append(b"h1", b"+").unwrap();
        lasting(fs, |when| check(when, b"one++"));
        assert_eq!(fs.ino(b"h1"), ino);
        fs.chmod(b"h3", 0o604).unwrap();
        assert_eq!(fs.stat(b"h1").unwrap().perm(), 0o604);
        fs.unlink(b"h1").unwrap();
        lasting(fs, |when| {
            assert!(!fs.exists(b"h1"), "{when}");
            assert_eq!(fs.read(b"h3").unwrap(), b"one++", "{when}");
            assert_eq!(fs.stat(b"h3").unwrap().nlink, 2, "{when}");
        });
        fs.link(b"h3", b"h4").unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.ino(b"h4"), fs.ino(b"d/h2"), "{when}");
            assert_eq!(fs.stat(b"h4").unwrap().nlink, 3, "{when}");
        });
        for name in [&b"h3"[..], b"h4", b"d/h2"] {
            fs.unlink(name).unwrap();
        }
        lasting(fs, |when| assert_eq!(fs.names(b""), ["d", "x"], "{when}"));
    });
}

/// Names deleted before their file is copied up are counted no more: for the kernel that forgot them, after a remount, in a
/// later copy, and nothing is left behind when the last of them goes.
#[test]
fn deleted_names_of_a_lower_file_stay_uncounted() {
    let link = |tree: Tree, name: &str| {
        (1..5).fold(tree.file(format!("{name}1"), name), |tree, n| {
            tree.link(format!("{name}1"), format!("{name}{}", n + 1))
        })
    };
    let trees = [empty().file("over", "over"), link(link(link(lower(), "a"), "b"), "c")];
    tell(Judges::Plain, &trees, |fs| {
        let count = |when: &str, names: &[&str], nlink: u64| {
            for name in names {
                assert_eq!(fs.stat(name.as_bytes()).unwrap().nlink, nlink, "{when} {name}");
            }
        };
        fs.unlink(b"a1").unwrap();
        lasting(fs, |when| count(when, &["a2", "a3", "a4", "a5"], 4));
        fs.unlink(b"a2").unwrap();
        lasting(fs, |when| {
            count(when, &["a3", "a4", "a5"], 3);
            assert!(fs.stat(b"a4").unwrap().ctime > kit::tree::NOW_FROM, "{when}");
        });
        fs.append(b"a3", b"!").unwrap();
        lasting(fs, |when| count(when, &["a3", "a4", "a5"], 3));
        fs.unlink(b"a4").unwrap();
        lasting(fs, |when| count(when, &["a3", "a5"], 2));
        fs.unlink(b"b1").unwrap();
        fs.rename(b"over", b"b2", 0).unwrap();
        lasting(fs, |when| count(when, &["b3", "b4", "b5"], 3));
        fs.link(b"b3", b"b6").unwrap();
        lasting(fs, |when| count(when, &["b3", "b4", "b5", "b6"], 4));
        for n in 1..6 {
            fs.unlink(format!("c{n}").as_bytes()).unwrap();
            let left: Vec<_> = (n + 1..6).map(|n| format!("c{n}")).collect();
            lasting(fs, |when| count(when, &left.iter().map(String::as_str).collect::<Vec<_>>(), 5 - n));
        }
        for name in ["a3", "a5", "b2", "b3", "b4", "b5", "b6"] {
            fs.unlink(name.as_bytes()).unwrap();
        }
        lasting(fs, |when| assert_eq!(fs.names(b""), [""; 0], "{when}"));
    });
}

#[test]
fn a_link_to_a_lower_file_is_the_same_file() {
    let trees = [empty().file("u", "u"), lower().file("f", "f").symlink("s", "t").dir("d")];
    tell(Judges::All, &trees, |fs| {
        for old in [&b"f"[..], b"u", b"s"] {
            let new = path(b"d", old);
            let ino = fs.ino(old);
            fs.link(old, &new).unwrap();
            lasting(fs, |when| {
                assert_eq!((fs.ino(old), fs.ino(&new)), (ino, ino), "{when}");
                assert_eq!((fs.stat(old).unwrap().nlink, fs.stat(&new).unwrap().nlink), (2, 2), "{when}");
            });
        }
        fs.append(b"d/f", b"+").unwrap();
        assert_eq!(fs.read(b"f").unwrap(), b"f+");
        assert_eq!(fs.rename(b"f", b"d/f", 0), Ok(()), "two names of one file: nothing happens");
        assert!(fs.exists(b"f"));
        fs.unlink(b"f").unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.stat(b"d/f").unwrap().nlink, 1, "{when}");
            assert_eq!(fs.read(b"d/f").unwrap(), b"f+", "{when}");
        });
        assert_eq!(fs.link(b"d", b"dir-link"), Err(Errno::PERM));
    });
}

/// A branch uses an inode number again as soon as it is free; the kernel may still know the old one.
#[test]
fn reused_inode_numbers_do_not_mix_up_two_objects() {
    tell(Judges::All, &[empty(), lower().file("l", "")], |fs| {
        for round in 0..40 {
            let name = format!("n{}", round % 3).into_bytes();
            fs.write(&name, b"file").unwrap();
            let fd = fs.open(&name, OFlags::RDWR, 0).unwrap();
            fs.unlink(&name).unwrap();
            fs.mkdir(&name, 0o755).unwrap();
            assert_eq!(fs.stat(&name).unwrap().kind(), kit::FileType::Directory);
            assert_eq!(fs.pread(fd, 0, 9).unwrap(), b"file");
            fs.close(fd).unwrap();
            fs.rmdir(&name).unwrap();
            fs.symlink(b"t", &name).unwrap();
            fs.write(b"other", b"other").unwrap();
            assert_eq!(fs.readlink(&name).unwrap(), b"t");
            assert_eq!(fs.read(b"other").unwrap(), b"other");
            fs.unlink(b"other").unwrap();
            fs.unlink(&name).unwrap();
        }
        assert_eq!(fs.names(b""), ["l"]);
    });
}

// Creation.

#[test]
fn set_group_id_directories_hand_on_their_group() {
    let trees = [empty().dir("u").mode(0o2775).owner(0, 50), lower().dir("l").mode(0o2775).owner(0, 50).dir("plain")];
    tell(Judges::All, &trees, |fs| {
        for dir in [&b"u"[..], b"l"] {
            fs.create(&path(dir, b"file"), 0o644).unwrap();
            fs.mkdir(&path(dir, b"dir"), 0o755).unwrap();
            fs.symlink(b"t", &path(dir, b"sym")).unwrap();
            fs.mknod(&path(dir, b"fifo"), S_IFIFO | 0o644, (0, 0)).unwrap();
            for name in [&b"file"[..], b"dir", b"sym", b"fifo"] {
                assert_eq!(fs.stat(&path(dir, name)).unwrap().gid, 50, "{} {}", show(dir), show(name));
            }
            assert_eq!(fs.stat(&path(dir, b"dir")).unwrap().perm(), 0o2755);
            assert_eq!(fs.stat(&path(dir, b"file")).unwrap().perm(), 0o644);
        }
        fs.create(b"plain/f", 0o644).unwrap();
        assert_eq!(fs.stat(b"plain/f").unwrap().gid, 0);
    });
}

#[test]
fn default_acls_are_handed_on() {
    let dir = |tree: Tree, name: &str| tree.dir(name).mode(0o777).xattr(ACL_DEFAULT, acl());
    let trees = [dir(empty(), "u"), dir(dir(lower(), "l"), "gone").whiteout("nothing")];
    tell(Judges::All, &trees, |fs| {
        for dir in [&b"u"[..], b"l"] {
            fs.create(&path(dir, b"f"), 0o666).unwrap();
            fs.mkdir(&path(dir, b"d"), 0o777).unwrap();
            let stat = fs.stat(&path(dir, b"f")).unwrap();
            // The mask (rwx) is cut to what create asked for its group (rw-); others get nothing, says the ACL.
            assert_eq!(stat.perm(), 0o660, "{}", show(dir));
            assert!(fs.getxattr(&path(dir, b"f"), ACL_ACCESS).is_ok());
            assert_eq!(fs.getxattr(&path(dir, b"d"), ACL_DEFAULT).unwrap(), acl());
            assert_eq!(fs.stat(&path(dir, b"d")).unwrap().perm(), 0o770);
        }
    });
}

/// The caller's ids and umask count, as for any filesystem; the engine is told them, the kernel knows them.
#[test]
fn new_objects_belong_to_the_caller() {
    if !kit::can_build() {
        return;
    }
    let trees = [
        empty().dir("open").mode(0o1777).dir("acl").mode(0o777).xattr(ACL_DEFAULT, acl()),
        lower().dir("l").mode(0o2777).owner(3, 50),
    ];
    for (word, format) in Format::ALL {
        let stack = Stack::new(format, &trees);
        let mut fs = stack.engine(Dcache::Keep);
        fs.caller = Caller { uid: 1000, gid: 0, umask: 0o027 };
        fs.create(b"open/f", 0o666).unwrap();
        fs.mkdir(b"open/d", 0o777).unwrap();
        fs.symlink(b"t", b"open/s").unwrap();
        fs.mknod(b"open/p", S_IFIFO | 0o666, (0, 0)).unwrap();
        fs.mkdir(b"l/d", 0o777).unwrap();
        fs.create(b"acl/f", 0o666).unwrap();
        let stat = |name: &[u8]| {
            let stat = fs.stat(name).unwrap();
            (stat.uid, stat.gid, stat.perm())
        };
        assert_eq!(stat(b"open/f"), (1000, 0, 0o640), "{word}");
        assert_eq!(stat(b"open/d"), (1000, 0, 0o750), "{word}");
        assert_eq!(stat(b"open/s"), (1000, 0, 0o777), "{word}");
        assert_eq!(stat(b"open/p"), (1000, 0, 0o640), "{word}");
        assert_eq!(stat(b"l/d"), (1000, 50, 0o2750), "{word}");
        assert_eq!(stat(b"acl/f"), (1000, 0, 0o660), "{word}: with a default ACL no umask");
        // What the daemon makes on the way (the copy of `l`) is not the caller's.
        let l = fs.stat(b"l").unwrap();
        assert_eq!((l.uid, l.gid, l.perm()), (3, 50, 0o2777), "{word}");
    }
}

// What no union shows or takes.

#[test]
fn marks_can_be_neither_seen_nor_made() {
    let trees = [empty().file("f", "").dir("d"), lower().file("l", "").file("d/x", "")];
    tell_of_engine(&trees, |fs, stack| {
        let upper = Snapshot::complete(&stack.branch(0));
        let never = [
            &b".wh.x"[..],
            b".wh.",
            b"d/.wh.l",
            b"d/.wh..wh..opq",
            b".cowfs",
            b".unionfs",
            b".unionfs-fuse",
            b".cowfs/stage",
        ];
        for name in never {
            assert_eq!(fs.stat(name).err(), Some(Errno::NOENT), "{}", show(name));
            assert_eq!(fs.unlink(name), Err(Errno::NOENT), "{}", show(name));
            if name == b".cowfs/stage" {
                continue;
            }
            let refused = |result: Result<(), Errno>, what: &str| {
                assert_eq!(result, Err(Errno::PERM), "{what} {}", show(name));
            };
            refused(fs.create(name, 0o644), "create");
            refused(fs.mkdir(name, 0o755), "mkdir");
            refused(fs.symlink(b"t", name), "symlink");
            refused(fs.mknod(name, S_IFIFO | 0o644, (0, 0)), "mknod");
            refused(fs.link(b"f", name), "link");
            refused(fs.rename(b"f", name, 0), "rename");
            refused(fs.rename(b"l", name, 0), "rename");
        }
        assert_eq!(fs.mknod(b"c", S_IFCHR | 0o600, (0, 255)), Err(Errno::PERM), "the number that stands for 0:0");
        assert!(fs.rename(b"f", b"g", WHITEOUT).is_err());
        for name in ["trusted.overlay.opaque", "user.overlay.opaque", "trusted.overlay.redirect", "user.overlay.x"] {
            for path in [&b"d"[..], b"f", b"l"] {
                assert_eq!(fs.setxattr(path, name, b"y"), Err(Errno::PERM), "{name}");
                assert_eq!(fs.getxattr(path, name).err(), Some(Errno::NODATA), "{name}");
                assert!(matches!(fs.removexattr(path, name), Err(Errno::PERM | Errno::NODATA)), "{name}");
            }
        }
        let now = Snapshot::complete(&stack.branch(0));
        let strict = Strict { mtime_before: None, identity: false, ..Strict::UNTOUCHED };
        let private = |mut tree: Snapshot| {
            tree.0.retain(|path, _| !kit::fs::within(path, b".cowfs"));
            tree
        };
        private(upper).assert_same(&private(now), &strict, "the upper");
        // And what the engine itself leaves is not shown.
        fs.unlink(b"l").unwrap();
        remove(fs, b"d");
        fs.mkdir(b"d", 0o755).unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.names(b""), ["d", "f"], "{when}");
            assert_eq!(fs.names(b"d"), [""; 0], "{when}");
            for path in [&b""[..], b"d", b"f"] {
                let names = fs.listxattr(path).unwrap();
                assert!(!names.iter().any(|name| name.contains("overlay")), "{when} {names:?}");
            }
        });
    });
}

/// Overlayfs makes none: EPERM.
#[test]
fn a_character_device_0_0_is_a_device_and_no_whiteout() {
    let trees = [empty(), lower().file("gone", "").file("l", "").dir("d")];
    tell(Judges::Plain, &trees, |fs| {
        let make = |name: &[u8]| fs.mknod(name, S_IFCHR | 0o600, (0, 0));
        assert_eq!(make(b"l"), Err(Errno::EXIST));
        make(b"new").unwrap();
        fs.unlink(b"gone").unwrap();
        make(b"gone").unwrap();
        fs.link(b"new", b"d/link").unwrap();
        fs.rename(b"gone", b"l", 0).unwrap();
        fs.mknod(b"block", S_IFBLK | 0o600, (0, 0)).unwrap();
        lasting(fs, |when| {
            assert_eq!(fs.names(b""), ["block", "d", "l", "new"], "{when}");
            assert_eq!(fs.stat(b"block").unwrap().rdev, (0, 0), "{when}");
            for name in [&b"new"[..], b"l", b"d/link"] {
                let stat = fs.stat(name).unwrap();
                assert_eq!((stat.mode, stat.rdev), (S_IFCHR | 0o600, (0, 0)), "{when}: {}", show(name));
            }
        });
        fs.unlink(b"l").unwrap();
        fs.unlink(b"new").unwrap();
        lasting(fs, |when| assert_eq!(fs.names(b""), ["block", "d"], "{when}"));
    });
}

#[test]
fn a_character_device_0_0_stays_one_when_its_upper_becomes_a_lower() {
    let trees = [empty(), lower().add("dev", Item::CharDevice(0, 255)), lower().file("dev", "")];
    tell_of_engine(&trees, |fs, stack| {
        lasting(fs, |when| assert_eq!(fs.stat(b"dev").unwrap().rdev, (0, 0), "{when}"));
        fs.chmod(b"dev", 0o640).unwrap();
        lasting(fs, |when| assert_eq!(fs.stat(b"dev").unwrap().rdev, (0, 0), "{when}, copied up"));
        assert_eq!(stack.branch(0).stat(b"dev").unwrap().rdev, (0, 255), "what the branch holds is no whiteout");
    });
}

#[test]
fn names_of_256_bytes_are_too_long() {
    tell(Judges::All, &[empty().file("f", ""), lower().dir("d")], |fs| {
        for name in [vec![b'n'; 256], path(b"d", &[b'n'; 256]), vec![b'n'; 1000]] {
            let long = |result: Result<(), Errno>, what: &str| {
                assert_eq!(result, Err(Errno::NAMETOOLONG), "{what} with {} bytes", name.len());
            };
            long(fs.stat(&name).map(|_| ()), "stat");
            long(fs.create(&name, 0o644), "create");
            long(fs.mkdir(&name, 0o755), "mkdir");
            long(fs.symlink(b"t", &name), "symlink");
            long(fs.link(b"f", &name), "link");
            long(fs.rename(b"f", &name, 0), "rename");
            long(fs.unlink(&name), "unlink");
        }
    });
}

#[test]
fn a_missing_name_is_enoent_and_a_file_is_no_directory() {
    let trees = [empty().file("u", ""), lower().file("l", "").whiteout("w").file("d/x", "")];
    tell(Judges::All, &trees, |fs| {
        for missing in [&b"none"[..], b"w", b"d/none", b"none/none"] {
            assert_eq!(fs.stat(missing).err(), Some(Errno::NOENT));
            assert_eq!(fs.unlink(missing), Err(Errno::NOENT));
            assert_eq!(fs.rmdir(missing), Err(Errno::NOENT));
            assert_eq!(fs.rename(missing, b"x", 0), Err(Errno::NOENT));
            assert_eq!(fs.link(missing, b"x"), Err(Errno::NOENT));
            assert_eq!(fs.chmod(missing, 0o600), Err(Errno::NOENT));
            assert_eq!(fs.open(missing, OFlags::RDWR, 0).err(), Some(Errno::NOENT));
        }
        for file in [&b"u"[..], b"l"] {
            assert_eq!(fs.stat(&path(file, b"x")).err(), Some(Errno::NOTDIR));
            assert_eq!(fs.create(&path(file, b"x"), 0o644), Err(Errno::NOTDIR));
            assert_eq!(fs.list(file).err(), Some(Errno::NOTDIR));
            assert_eq!(fs.rmdir(file), Err(Errno::NOTDIR));
            assert_eq!(fs.mkdir(file, 0o755), Err(Errno::EXIST));
            assert_eq!(fs.create(file, 0o755), Err(Errno::EXIST));
            assert_eq!(fs.getxattr(file, "user.none").err(), Some(Errno::NODATA));
            assert_eq!(fs.removexattr(file, "user.none"), Err(Errno::NODATA));
        }
        assert_eq!(fs.rename(b"d", b"d/x/y", 0).err(), Some(Errno::NOTDIR));
        assert_eq!(fs.rename(b"d", b"d/y", 0), Err(Errno::INVAL));
        assert_eq!(fs.rename(b"d/x", b"d", 0), Err(Errno::NOTEMPTY));
    });
}

/// A branch that cannot be asked has not said "absent": what lies below it must not show.
#[test]
fn an_error_of_a_branch_is_not_an_absent_name() {
    if !kit::is_root() {
        return kit::skip("a directory that cannot be searched, for a daemon without CAP_DAC_*, needs root to build");
    }
    let locked = lower().dir("d").mode(0o700).owner(1234, 1234).file("d/hidden", "");
    let trees = [empty(), locked, Tree::new(3).dir("d").file("d/below", "below")];
    tell_of_engine(&trees, |fs, _| {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
                let mut sets = capabilities(None).unwrap();
                sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
                set_capabilities(None, sets).unwrap();
                assert_eq!(fs.stat(b"d/below").err(), Some(Errno::ACCESS));
                assert_eq!(fs.stat(b"d/none").err(), Some(Errno::ACCESS));
                assert_eq!(fs.list(b"d").err(), Some(Errno::ACCESS));
                assert_eq!(fs.create(b"d/new", 0o644), Err(Errno::ACCESS));
            });
            thread.join().unwrap();
        });
        assert_eq!(fs.names(b"d"), ["below", "hidden"]);
    });
}

// Start.

#[test]
fn the_format_of_an_upper_is_found_out() {
    if !kit::can_build() {
        return;
    }
    for (word, format) in Format::ALL {
        let trees = [
            empty().whiteout("w").opaque("o").file("o/up", ""),
            lower().file("w", "").file("o/down", "").file("l", ""),
        ];
        let mut stack = Stack::new(format, &trees);
        stack.options.format = None;
        let fs = stack.engine(Dcache::Keep);
        let check = |names: &[&str]| {
            assert_eq!(fs.names(b""), names, "{word}");
            assert_eq!(fs.names(b"o"), ["up"], "{word}");
        };
        check(&["l", "o"]);
        fs.unlink(b"l").unwrap();
        fs.remount();
        check(&["o"]);
        fs.unmount(true);
        // Another format is refused, and both are named.
        for (other, wanted) in Format::ALL {
            let options = Options { format: Some(wanted), volatile: true, ..Options::default() };
            let result = EngineFs::try_new(stack.branch_paths(), options, Dcache::Keep);
            match result {
                Ok(fs) => assert_eq!((wanted, fs.names(b"")), (format, vec!["o".to_owned()]), "{word} as {other}"),
                Err(text) => {
                    assert_ne!(wanted, format, "{word}: {text}");
                    assert!(text.contains(word) && text.contains(other), "{text:?} names neither {word} nor {other}");
                }
            }
        }
    }
}

#[test]
fn statfs_is_the_uppers() {
    tell_of_engine(&[empty(), lower()], |fs, stack| {
        assert_eq!(fs.statfs().unwrap(), stack.branch(0).statfs().unwrap());
    });
}

// Many, and at once.

#[test]
fn a_long_listing_stays_whole_while_names_are_deleted() {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    const COUNT: usize = 100_000;
    let mut stack = Stack::new(Format::Overlay, &[empty().file("d/upper", ""), lower().dir("d")]);
    let below = stack.path(1).join("d");
    for number in 0..COUNT {
        std::fs::write(below.join(format!("file-{number:06}")), "").unwrap();
    }
    stack.guard();
    let fs = stack.engine(Dcache::Keep);
    let union = fs.union();
    let dir = union.lookup(NodeId::ROOT, "d".as_ref()).unwrap().node;
    let (mut seen, mut offset, mut deleted) = (std::collections::HashSet::new(), 0, std::collections::HashSet::new());
    loop {
        let mut batch = Vec::new();
        union
            .readdir(dir, offset, &mut |entry| {
                if batch.len() == 500 {
                    return false;
                }
                offset = entry.next;
                batch.push(entry.name.to_vec());
                true
            })
            .unwrap();
        if batch.is_empty() {
            break;
        }
        for name in &batch {
            assert!(seen.insert(name.clone()), "{} is listed twice", show(name));
        }
        // As `rm -rf` does: what was listed goes, while the rest is still to come.
        for name in batch.iter().filter(|name| name.starts_with(b"file-") && name.last() == Some(&b'7')) {
            fs.unlink(&path(b"d", name)).unwrap();
            deleted.insert(name.clone());
        }
    }
    union.forget(dir, 1);
    assert_eq!(seen.len(), COUNT + 3, "with `.`, `..` and `upper`");
    assert_eq!(deleted.len(), COUNT / 10);
    drop(union);
    lasting(&fs, |when| {
        let names: std::collections::HashSet<_> = fs.list(b"d").unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), COUNT + 1 - deleted.len(), "{when}");
        assert!(names.is_disjoint(&deleted), "{when}");
    });
}

/// Content that differs from block to block and from file to file.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(seed).unwrap(); len];
    for (number, block) in bytes.chunks_exact_mut(512).enumerate() {
        block[..8].copy_from_slice(&(seed << 32 | number as u64).to_le_bytes());
    }
    bytes
}

#[test]
fn sixteen_copy_ups_at_once() {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    const LEN: usize = 24 << 20;
    let mut tree = lower().file("same", pattern(99, LEN));
    for number in 0..16 {
        tree = tree.file(format!("f{number}"), pattern(number, LEN));
    }
    let stack = Stack::new(Format::Overlay, &[empty(), tree]);
    let fs = stack.engine(Dcache::Keep);
    let start = std::sync::Barrier::new(16);
    std::thread::scope(|scope| {
        for number in 0..16usize {
            let (fs, start) = (&fs, &start);
            scope.spawn(move || {
                start.wait();
                let own = format!("f{number}").into_bytes();
                fs.write_at(&own, OFlags::WRONLY, number as u64, b"!").unwrap();
                fs.write_at(b"same", OFlags::RDWR, number as u64 * 4096, b"!").unwrap();
            });
        }
    });
    lasting(&fs, |when| {
        let mut same = pattern(99, LEN);
        for number in 0..16usize {
            let mut expected = pattern(number as u64, LEN);
            expected[number] = b'!';
            same[number * 4096] = b'!';
            assert!(fs.read(format!("f{number}").as_bytes()).unwrap() == expected, "{when}: f{number} is not right");
        }
        assert!(fs.read(b"same").unwrap() == same, "{when}: the shared file is not right");
    });
    fs.unmount(true);
    assert_eq!(stack.staged(), [""; 0]);
}

/// Threads that rename, make, delete and list in the same directories: every answer is one that some order gives, and
/// nothing is lost.
#[test]
fn many_threads_in_the_same_directories() {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    let mut tree = lower();
    for number in 0..8 {
        tree = tree.file(format!("a/f{number}"), format!("{number}")).file(format!("b/g{number}"), "");
    }
    for (word, format) in Format::ALL {
        let stack = Stack::new(format, &[empty(), tree.clone()]);
        // Nothing is kept: the kernel's locks around names are not here to keep such a cache right.
        let fs = &stack.engine(Dcache::Nothing);
        std::thread::scope(|scope| {
            for number in 0..8u32 {
                scope.spawn(move || {
                    let file = |dir: &str| format!("{dir}/f{number}").into_bytes();
                    for round in 0..30 {
                        fs.rename(&file("a"), &file("b"), 0).unwrap();
                        fs.list(b"a").unwrap();
                        fs.append(&file("b"), b"+").unwrap();
                        fs.rename(&file("b"), &file("a"), 0).unwrap();
                        // All of them want this one.
                        let _ = fs.mkdir(b"a/shared", 0o755);
                        let _ = fs.write(b"a/shared/x", b"x");
                        let _ = fs.rename(b"a/shared", format!("b/s{round}").as_bytes(), NOREPLACE);
                        let _ = fs.unlink(b"a/shared/x");
                        let _ = fs.rmdir(b"a/shared");
                    }
                });
            }
        });
        lasting(fs, |when| {
            Snapshot::of(fs);
            for number in 0..8 {
                let content = fs.read(format!("a/f{number}").as_bytes()).unwrap();
                assert_eq!(content, format!("{number}{}", "+".repeat(30)).into_bytes(), "{word} {when}");
            }
        });
        assert_eq!(stack.staged(), [""; 0]);
    }
}
