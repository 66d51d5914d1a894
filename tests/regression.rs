//! What was once wrong, one test a mistake; each says what went wrong and for whom.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::ffi::OsStr;
use std::sync::Arc;

use cowfs::union::Union;
use cowfs::union::fault::{self, Action};
use cowfs::union::options::Format;
use cowfs::union::types::{Caller, NodeId};
use kit::stack::{ASIDE, OWNERS_ASIDE};
use kit::{Dcache, EngineFs, Errno, Fs, OFlags, Stack, Tree};

fn empty() -> Tree {
    Tree::new(1)
}

fn lower() -> Tree {
    Tree::new(2)
}

fn engine(stack: &Stack) -> EngineFs {
    stack.engine(Dcache::Keep)
}

fn each_format(trees: &[Tree], story: impl Fn(&EngineFs, &Stack)) {
    for (word, format) in Format::ALL {
        let stack = Stack::new(format, trees);
        println!("{word}");
        story(&engine(&stack), &stack);
    }
}

/// A tenant's chain of directories, each in the one before, once cost the daemon its stack: when a directory's
/// descriptors had been given back it opened its parents by recursion, and forgetting the chain dropped them so.
#[test]
fn a_chain_of_directories_deeper_than_the_stack() {
    const DEPTH: usize = 10_000;
    let stack = Stack::new(Format::Overlay, &[empty(), lower()]);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let fewer = rustix::process::Rlimit { current: Some(2048), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, fewer).unwrap();
    let fs = engine(&stack);
    let union = fs.union();
    let dive = |union: Arc<Union>| {
        let name = OsStr::new("d");
        let mut at = NodeId::ROOT;
        for _ in 0..DEPTH {
            at = union.mkdir(at, name, 0o755, &Caller::ROOT).unwrap().node;
        }
        // More than there may be open directories.
        for number in 0..2_000 {
            let node = union.mkdir(NodeId::ROOT, OsStr::new(&format!("{number}")), 0o755, &Caller::ROOT).unwrap().node;
            assert_eq!(union.lookup(node, OsStr::new("no")), Err(Errno::NOENT));
        }
        union.mkdir(at, name, 0o755, &Caller::ROOT).unwrap();
        assert_eq!(union.lookup(at, OsStr::new("no")), Err(Errno::NOENT));
    };
    // An eighth of what the daemon's threads have.
    let small = || std::thread::Builder::new().stack_size(256 << 10);
    small().spawn(move || dive(union)).unwrap().join().unwrap();
    small().spawn(move || fs.unmount(false)).unwrap().join().unwrap();
    let removed = std::process::Command::new("rm").arg("-rf").arg(stack.path(0)).status().unwrap();
    assert!(removed.success());
}

/// overlayfs with metacopy=on leaves files without data. Opened for writing, such a file of a lower branch was copied up
/// as zeros, which hid the data for good. Where nobody has the data it is EIO; the file can still be cut and deleted.
#[test]
fn a_file_without_its_data_is_not_copied_up() {
    let mark = "trusted.overlay.metacopy";
    let middle = Tree::new(2).file("f", "????????????").xattr(mark, "").file("g", "????").xattr(mark, "");
    let stack = Stack::new(Format::Overlay, &[empty(), middle, Tree::new(3).file("other", "twelve bytes")]);
    let fs = engine(&stack);
    assert_eq!(fs.open(b"f", OFlags::RDONLY, 0).err(), Some(Errno::IO));
    assert_eq!(fs.open(b"f", OFlags::RDWR, 0).err(), Some(Errno::IO));
    assert_eq!(fs.chmod(b"f", 0o600), Err(Errno::IO));
    assert_eq!(fs.truncate(b"f", 3), Err(Errno::IO));
    assert!(!stack.path(0).join("f").exists());
    fs.write_at(b"f", OFlags::WRONLY | OFlags::TRUNC, 0, b"new").unwrap();
    assert_eq!(fs.read(b"f").unwrap(), b"new");
    fs.unlink(b"g").unwrap();
    assert_eq!(fs.stat(b"g").err(), Some(Errno::NOENT));
}

/// When an indexed file could not be published after its cut copy was in the index, the next mount found the copy there:
/// a failed O_TRUNC had emptied the file under all of its names.
#[test]
fn a_failed_truncation_of_a_linked_file_changes_nothing() {
    each_format(&[empty(), lower().file("h1", "linked").link("h1", "h2")], |_, stack| {
        for at in 0.. {
            let stack = Stack::new(stack.format, &[empty(), lower().file("h1", "linked").link("h1", "h2")]);
            let fs = engine(&stack);
            fault::arm(at, Action::Fail(Errno::NOSPC));
            let done = fs.open(b"h1", OFlags::WRONLY | OFlags::TRUNC, 0);
            let steps = fault::disarm();
            if let Ok(fd) = done {
                fs.close(fd).unwrap();
            } else {
                for name in [&b"h1"[..], b"h2"] {
                    assert_eq!(fs.read(name).unwrap(), b"linked", "step {at}, at once");
                }
                fs.remount();
                for name in [&b"h1"[..], b"h2"] {
                    assert_eq!(fs.read(name).unwrap(), b"linked", "step {at}, after a remount");
                }
            }
            if steps <= at {
                break;
            }
        }
    });
}

/// A crash between the index and the publishing of a copy left a count of names that was too low by one: when one of two
/// names was deleted later, the copy went with it and the other name showed the old lower file again.
#[test]
fn a_crash_while_indexing_loses_no_name() {
    let trees = [empty(), lower().file("h1", "old").link("h1", "h2")];
    for (_, format) in Format::ALL {
        let stack = Stack::new(format, &trees);
        let fs = engine(&stack);
        // Stands for the crash: everything up to the publishing has happened, and nothing was tidied after it.
        let child = |at| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "crash_while_indexing_child", "--nocapture"])
                .env("COWFS_REGRESSION_JOB", format!("{at} {} {}", format.word(), stack.dir().display()))
                .status()
                .unwrap()
        };
        drop(fs);
        for at in 0.. {
            let _ = std::fs::remove_dir_all(stack.path(0));
            std::fs::create_dir(stack.path(0)).unwrap();
            let status = child(at);
            if status.code() != Some(fault::DIED) {
                assert!(status.success(), "{status}");
                break;
            }
            let fs = engine(&stack);
            fs.write_at(b"h1", OFlags::WRONLY, 0, b"new").unwrap();
            fs.remount();
            fs.unlink(b"h1").unwrap();
            assert_eq!(fs.read(b"h2").unwrap(), b"new", "died at step {at}");
            fs.remount();
            assert_eq!(fs.read(b"h2").unwrap(), b"new", "died at step {at}, remounted");
            fs.unmount(true);
        }
    }
}

#[test]
fn crash_while_indexing_child() {
    let Ok(job) = std::env::var("COWFS_REGRESSION_JOB") else { return };
    let [at, word, dir] = *job.split(' ').collect::<Vec<_>>() else { panic!() };
    let format = Format::ALL.into_iter().find(|(known, _)| *known == word).unwrap().1;
    let branch = |place: usize| kit::enginefs::BranchPath {
        path: std::path::Path::new(dir).join(format!("branch{place}")),
        writable: place == 0,
        oci_whiteouts: false,
    };
    let options = cowfs::union::options::Options { format: Some(format), volatile: true, ..Default::default() };
    let fs = EngineFs::try_new(vec![branch(0), branch(1)], options, Dcache::Keep).unwrap();
    fault::arm(at.parse().unwrap(), Action::Die);
    fs.chmod(b"h1", 0o600).unwrap();
}

/// A name that ends as the marks of unionfs-fuse do: deleting in such a directory made a directory in the marks' tree that
/// was the whiteout of another one.
#[test]
fn a_directory_named_like_a_mark() {
    let trees = [empty(), lower().file("d/kept", "1").file("d_HIDDEN~/x", "2").file("f", "3").file("f_HIDDEN~/x", "4")];
    each_format(&trees, |fs, _| {
        fs.unlink(b"d_HIDDEN~/x").unwrap();
        fs.unlink(b"f").unwrap();
        fs.unlink(b"f_HIDDEN~/x").unwrap();
        for _ in 0..2 {
            assert_eq!(fs.names(b""), ["d", "d_HIDDEN~", "f_HIDDEN~"]);
            assert_eq!(fs.read(b"d/kept").unwrap(), b"1");
            assert_eq!(fs.names(b"d_HIDDEN~"), [""; 0]);
            assert_eq!(fs.names(b"f_HIDDEN~"), [""; 0]);
            assert_eq!(fs.read(b"d_HIDDEN~/x"), Err(Errno::NOENT));
            fs.remount();
        }
    });
}

/// Names of one lower file that the index could not take (`user.*` attributes are for files and directories): once one of
/// them was copied up, renaming another went round for ever.
#[test]
fn links_that_are_not_in_the_index() {
    let mut stack = Stack::new(Format::Overlay, &[empty(), lower().symlink("h1", "t").link("h1", "h2").file("x", "")]);
    stack.options.userxattr = Some(true);
    let fs = engine(&stack);
    fs.chown(b"h1", 5, 6).unwrap();
    assert_eq!(fs.stat(b"h2").unwrap().uid, 5, "the same file as long as it is known");
    fs.rename(b"h2", b"x", 0).unwrap();
    assert_eq!(fs.readlink(b"x").unwrap(), b"t");
    for _ in 0..2 {
        assert_eq!(fs.names(b""), ["h1", "x"]);
        assert_eq!(fs.stat(b"h1").unwrap().ino, fs.stat(b"x").unwrap().ino);
        fs.remount();
    }
}

/// The path that a renamed directory's mark remembers may be longer than an attribute can be: that is a rename that cannot
/// be done here, which programs know to answer, and not a full disk.
#[test]
fn a_redirect_too_long_for_an_attribute() {
    let long = "n".repeat(250);
    let deep = vec![long.as_str(); 300].join("/");
    let stack = Stack::new(Format::Overlay, &[empty(), lower()]);
    let mut at = rustix::fs::open(stack.path(1), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for name in deep.split('/').chain(["end"]) {
        rustix::fs::mkdirat(&at, name, 0o755.into()).unwrap();
        at = rustix::fs::openat(&at, name, OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    let fs = engine(&stack);
    let union = fs.union();
    let mut at = NodeId::ROOT;
    for name in deep.split('/') {
        at = union.lookup(at, OsStr::new(name)).unwrap().node;
    }
    let (end, moved) = (OsStr::new("end"), OsStr::new("moved"));
    assert_eq!(union.rename((at, end), (at, moved), 0), Err(Errno::XDEV));
    assert_eq!(union.lookup(at, moved), Err(Errno::NOENT));
    union.lookup(at, end).unwrap();
    // Nothing that walks trees by paths can look at it.
    std::mem::forget(fs);
    let removed = std::process::Command::new("rm").arg("-rf").arg(stack.dir()).status().unwrap();
    assert!(removed.success());
    std::mem::forget(stack);
}

/// To tell attributes, a node's place was looked at twice at a time; who waited between the two to note another name of the
/// file kept both from coming to an end, and the daemon with all its threads stood still.
#[test]
fn attributes_of_a_file_with_two_names_told_to_many_at_once() {
    if !kit::can_build() {
        return;
    }
    let stack = Stack::new(Format::Overlay, &[empty(), lower().file("a", "text").link("a", "b")]);
    let union = engine(&stack).union();
    let (done, all) = std::sync::mpsc::channel();
    for _ in 0..8 {
        let (union, done) = (union.clone(), done.clone());
        std::thread::spawn(move || {
            for name in ["a", "b"].iter().cycle().take(20_000) {
                let entry = union.lookup(NodeId::ROOT, OsStr::new(name)).unwrap();
                union.getattr(entry.node, None).unwrap();
                union.forget(entry.node, 1);
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..8 {
        all.recv_timeout(std::time::Duration::from_secs(120)).expect("the threads wait for each other");
    }
}

/// A rename whose file the kernel knows under a node that was left behind found a node of its own, made it ready, forgot
/// it, and began again, for ever.
#[test]
fn a_rename_of_what_nobody_else_knows() {
    let stack = Stack::new(Format::Overlay, &[empty(), lower().file("f", "lower")]);
    let fs = engine(&stack);
    let union = fs.union();
    let (f, g) = (OsStr::new("f"), OsStr::new("g"));
    let node = union.lookup(NodeId::ROOT, f).unwrap().node;
    fs.append(b"f", b"+").unwrap();
    union.leave_behind(node).unwrap();
    union.rename((NodeId::ROOT, f), (NodeId::ROOT, g), 0).unwrap();
    let moved = union.lookup(NodeId::ROOT, g).unwrap().node;
    assert_ne!(moved, node);
    for node in [node, moved] {
        union.forget(node, 1);
    }
}

/// The daemon of an ordinary user: it may not read the attributes of files that their owner may not read, search
/// directories that he may not search, open for writing what is read-only, or give files away. Listings failed, a
/// directory without rights could never get them back, and nothing below a directory of root's could be changed.
#[test]
fn the_union_of_an_ordinary_user() {
    if !kit::is_root() {
        return kit::skip("only root can become somebody else");
    }
    let theirs = |path: &str| lower().file(path, "x").owner(65534, 65534);
    let tree = theirs("f").file("d/x", "y").owner(65534, 65534).file("roots/theirs", "z").owner(65534, 65534);
    let tree = tree.file("suid", "s").mode(0o4777).dir("shut").mode(0o555).owner(65534, 65534);
    let stack = Stack::new(Format::Overlay, &[empty(), tree]);
    let open = |path: &std::path::Path| {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    [stack.dir(), &stack.path(0), &stack.path(1), &stack.path(1).join("d")].into_iter().for_each(open);
    let mut stack = stack;
    stack.guard();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ordinary_user_child", "--nocapture"])
        .env("COWFS_REGRESSION_USER", stack.dir())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn ordinary_user_child() {
    let Some(dir) = std::env::var_os("COWFS_REGRESSION_USER") else { return };
    let nobody = (rustix::fs::Uid::from_raw(65534), rustix::fs::Gid::from_raw(65534));
    rustix::thread::set_thread_res_gid(nobody.1, nobody.1, nobody.1).unwrap();
    rustix::thread::set_thread_res_uid(nobody.0, nobody.0, nobody.0).unwrap();
    let branch = |place: usize| kit::enginefs::BranchPath {
        path: std::path::Path::new(&dir).join(format!("branch{place}")),
        writable: place == 0,
        oci_whiteouts: false,
    };
    let options = cowfs::union::options::Options { volatile: true, ..Default::default() };
    let mut fs = EngineFs::try_new(vec![branch(0), branch(1)], options, Dcache::Keep).unwrap();
    fs.caller = Caller { uid: 65534, gid: 65534, umask: 0 };
    for when in ["at once", "after a remount"] {
        fs.chmod(b"f", 0).unwrap();
        fs.chmod(b"d", 0).unwrap();
        assert_eq!(fs.names(b""), ["d", "f", "roots", "shut", "suid"], "{when}");
        assert_eq!((fs.stat(b"d").unwrap().perm(), fs.stat(b"f").unwrap().perm()), (0, 0), "{when}");
        fs.forget();
        assert_eq!((fs.stat(b"d").unwrap().perm(), fs.stat(b"f").unwrap().perm()), (0, 0), "{when}, forgotten");
        fs.chmod(b"d", 0o700).unwrap();
        fs.chmod(b"f", 0o600).unwrap();
        assert_eq!(fs.names(b"d"), ["x"]);
        fs.remount();
    }
    fs.setxattr(b"shut", "user.a", b"").map_or_else(|errno| assert_eq!(errno, Errno::ACCESS), |()| panic!("shut"));
    fs.chmod(b"shut", 0o500).unwrap();
    assert_eq!(fs.stat(b"shut").unwrap().perm(), 0o500);
    fs.unlink(b"d/x").unwrap();
    fs.rmdir(b"d").unwrap();
    fs.mkdir(b"d", 0).unwrap();
    fs.remount();
    fs.chmod(b"d", 0o700).unwrap();
    assert_eq!(fs.names(b"d"), [""; 0], "the lower directory stays hidden");
    let fd = fs.open(b"read-only", OFlags::CREATE | OFlags::RDWR, 0o444).unwrap();
    assert_eq!(fs.pwrite(fd, 0, b"hello"), Ok(5));
    fs.ftruncate(fd, 2).unwrap();
    fs.close(fd).unwrap();
    assert_eq!(fs.stat(b"read-only").unwrap().size, 2);
    fs.write(b"roots/theirs", b"changed").unwrap();
    assert_eq!(fs.read(b"roots/theirs").unwrap(), b"changed");
    fs.append(b"suid", b"!").unwrap();
    let suid = fs.stat(b"suid").unwrap();
    assert_eq!((suid.perm(), suid.uid), (0o777, 65534), "it must not act for another now");
    fs.unmount(true);
}

/// Who was going on with an old listing of a directory put it in the place of the one that somebody else had begun
/// meanwhile, who then did not see a name that was created before: `ls` beside other readers of a large directory.
#[test]
fn a_listing_is_not_gone_on_with_in_an_older_one() {
    let stack = Stack::new(Format::Overlay, &[empty(), lower().file("a", "").file("b", "").file("c", "")]);
    let fs = engine(&stack);
    let union = fs.union();
    let mut old = 0;
    union.readdir(NodeId::ROOT, 0, &mut |entry| std::mem::replace(&mut old, entry.next) == 0).unwrap();
    let mut seen = Vec::new();
    let mut at = 0;
    let created: Vec<String> = (0..64).map(|number| format!("created{number}")).collect();
    union
        .readdir(NodeId::ROOT, old, &mut |_| {
            for name in &created {
                let new = union.mkdir(NodeId::ROOT, OsStr::new(name), 0o755, &Caller::ROOT).unwrap();
                union.forget(new.node, 1);
            }
            let mut one = |entry: cowfs::union::types::DirEntry<'_>| {
                if seen.is_empty() {
                    seen.push(entry.name.to_vec());
                    at = entry.next;
                    return true;
                }
                false
            };
            union.readdir(NodeId::ROOT, 0, &mut one).unwrap();
            false
        })
        .unwrap();
    let mut rest = |entry: cowfs::union::types::DirEntry<'_>| {
        seen.push(entry.name.to_vec());
        true
    };
    union.readdir(NodeId::ROOT, at, &mut rest).unwrap();
    assert!(created.iter().all(|name| seen.contains(&name.clone().into_bytes())), "{} names", seen.len());
    drop(union);
    fs.unmount(true);
}

/// Who went on with a listing after a change was given what was there before it. The kernel took that into the listing it
/// had begun to keep for another reader, and showed it until the next change: a name was missing, or one was there still.
#[test]
fn who_goes_on_with_a_listing_sees_what_was_changed() {
    let stack = Stack::new(Format::Overlay, &[empty(), lower()]);
    let fs = engine(&stack);
    let union = fs.union();
    let names = |at: u64| {
        let mut names = Vec::new();
        let mut add = |entry: cowfs::union::types::DirEntry<'_>| {
            names.push(entry.name.to_vec());
            true
        };
        union.readdir(NodeId::ROOT, at, &mut add).unwrap();
        names
    };
    let begin = || {
        let mut at = 0;
        union.readdir(NodeId::ROOT, 0, &mut |entry| std::mem::replace(&mut at, entry.next) == 0).unwrap();
        at
    };
    // Behind the dots; all others are still to come.
    let after = begin();
    fs.mkdir(b"made", 0o755).unwrap();
    assert_eq!(names(after), [b"made"]);
    let after = begin();
    fs.rename(b"made", b"moved", 0).unwrap();
    assert_eq!(names(after), [b"moved"]);
    let after = begin();
    fs.rmdir(b"moved").unwrap();
    assert_eq!(names(after), [b""; 0]);
    drop(union);
    fs.unmount(true);
}

/// A file without a name was copied up and could not be entered in the index: a look-up of another of its lower names took
/// that for the copy's, and nobody found anything there.
#[test]
fn a_copy_without_a_name_or_an_index_entry_leaves_the_other_names_alone() {
    for at in 0.. {
        let stack = Stack::new(Format::Overlay, &[empty(), lower().file("a", "data").link("a", "b")]);
        let fs = engine(&stack);
        let file = fs.open("a".as_ref(), OFlags::RDONLY, 0).unwrap();
        fs.unlink("a".as_ref()).unwrap();
        fault::arm(at, Action::Fail(Errno::OPNOTSUPP));
        let done = fs.fchmod(file, 0o600);
        let met = fault::disarm() > at;
        if done.is_ok() {
            fs.stat("b".as_ref()).unwrap();
            assert_eq!(fs.fstat(file).unwrap().mode & 0o777, 0o600);
        }
        fs.close(file).unwrap();
        if !met {
            break;
        }
    }
}

/// A node was counted for whoever looked it up, and its attributes could not be told: nobody could forget it.
#[test]
fn a_look_up_that_fails_is_not_counted() {
    OWNERS_ASIDE.set(true);
    let mut stack = Stack::new(Format::Overlay, &[empty(), lower().file("d/odd", "data")]);
    for (path, value) in [("", &b"0:0:755"[..]), ("d", b"0:0:755"), ("d/odd", b"nonsense")] {
        let path = stack.path(1).join(path);
        rustix::fs::setxattr(path, ASIDE.1, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    stack.guard();
    let union = engine(&stack).union();
    let dir = union.lookup(NodeId::ROOT, "d".as_ref()).unwrap().node;
    assert_eq!(union.lookup(dir, "odd".as_ref()).err(), Some(Errno::IO));
    union.forget(dir, 1);
    assert_eq!(union.known_nodes(), 1);
}

/// What the kernel knew of a lower file led to another file, which got its number when it was deleted in its branch: until the
/// name was looked up again, it showed that one's data, and what was appended to it went there.
#[test]
fn what_has_the_number_of_a_lower_file_that_is_gone() {
    let mut stack = Stack::new(Format::Overlay, &[empty(), lower().file("f", "lower").file("d/in", "lower")]);
    let fs = engine(&stack);
    let known: [&[u8]; 2] = [b"f", b"d/in"];
    for name in known {
        assert_eq!(fs.read(name).unwrap(), b"lower");
    }
    std::fs::remove_file(stack.path(1).join("f")).unwrap();
    std::fs::remove_dir_all(stack.path(1).join("d")).unwrap();
    let (files, dirs): (Vec<_>, Vec<_>) = (0..20).map(|n| (format!("g{n}"), format!("e{n}"))).unzip();
    for (file, dir) in files.iter().zip(&dirs) {
        std::fs::write(stack.path(1).join(file), "other").unwrap();
        std::fs::create_dir(stack.path(1).join(dir)).unwrap();
        std::fs::write(stack.path(1).join(dir).join("in"), "other").unwrap();
    }
    stack.guard();
    for turn in 0..2 {
        for (file, dir) in files.iter().zip(&dirs) {
            assert_eq!(fs.read(file.as_bytes()).unwrap(), b"other");
            assert_eq!(fs.read(format!("{dir}/in").as_bytes()).unwrap(), b"other");
        }
        for name in known {
            let gone = if turn == 0 { Errno::STALE } else { Errno::NOENT };
            assert_eq!(fs.read(name).map(|data| String::from_utf8(data).unwrap()), Err(gone));
            assert_eq!(fs.append(name, b"+"), Err(gone));
            assert_eq!(fs.chmod(name, 0o600), Err(gone));
        }
        fs.forget();
    }
}

/// Likewise what was made in the union, where the upper lies on the same filesystem.
#[test]
fn what_is_made_with_the_number_of_a_lower_file_that_is_gone() {
    let mut stack = Stack::new(Format::Overlay, &[empty(), lower().file("f", "lower")]);
    let fs = engine(&stack);
    assert_eq!(fs.read(b"f").unwrap(), b"lower");
    std::fs::remove_file(stack.path(1).join("f")).unwrap();
    stack.guard();
    for n in 0..20 {
        fs.write(format!("g{n}").as_bytes(), b"other").unwrap();
    }
    assert_eq!(fs.append(b"f", b"+"), Err(Errno::STALE));
    assert_eq!(fs.read(b"f"), Err(Errno::STALE));
    for n in 0..20 {
        assert_eq!(fs.read(format!("g{n}").as_bytes()).unwrap(), b"other");
    }
}

/// In such a directory nothing was found, though its name led to another one by then: nobody looked the name up again.
#[test]
fn in_a_lower_directory_that_is_gone_one_is_sent_to_look_again() {
    let mut stack = Stack::new(Format::Overlay, &[empty(), lower().file("d/in", "lower")]);
    let fs = engine(&stack);
    let union = fs.union();
    let dir = union.lookup(NodeId::ROOT, "d".as_ref()).unwrap().node;
    std::fs::remove_dir_all(stack.path(1).join("d")).unwrap();
    let others: Vec<_> = (0..20).map(|n| format!("e{n}")).collect();
    for other in &others {
        std::fs::create_dir(stack.path(1).join(other)).unwrap();
    }
    std::fs::create_dir(stack.path(1).join("d")).unwrap();
    std::fs::write(stack.path(1).join("d/in"), "other").unwrap();
    stack.guard();
    for other in &others {
        union.lookup(NodeId::ROOT, other.as_ref()).unwrap();
    }
    assert_eq!(union.lookup(dir, "in".as_ref()).err(), Some(Errno::STALE));
    assert_eq!(union.mkdir(dir, "made".as_ref(), 0o777, &Caller::ROOT).err(), Some(Errno::STALE));
    assert_eq!(union.unlink(dir, "in".as_ref()), Err(Errno::STALE));
    assert_eq!(fs.read(b"d/in").unwrap(), b"other");
}

/// A lower file was copied up and deleted in its branch, and its number used again, which ext4 does at once: the new file was
/// taken for the copy while that was known. In a lower it showed the copy's data, and what was written to it went there; one
/// made in the union was ESTALE, and a new directory took the place of the copied one.
#[test]
fn what_has_the_number_of_a_lower_file_that_was_copied_up() {
    for made_in in [1, 0] {
        let mut stack = Stack::new(Format::Overlay, &[empty(), lower().file("f", "lower").file("d/in", "d")]);
        let fs = engine(&stack);
        fs.append(b"f", b"+").unwrap();
        fs.chmod(b"d", 0o700).unwrap();
        std::fs::remove_file(stack.path(1).join("f")).unwrap();
        std::fs::remove_dir_all(stack.path(1).join("d")).unwrap();
        for n in 0..20 {
            let (file, dir) = (format!("g{n}"), format!("e{n}"));
            if made_in == 1 {
                std::fs::write(stack.path(1).join(&file), "other").unwrap();
                std::fs::create_dir(stack.path(1).join(&dir)).unwrap();
            } else {
                fs.write(file.as_bytes(), b"other").unwrap();
                fs.mkdir(dir.as_bytes(), 0o777).unwrap();
            }
        }
        stack.guard();
        for _ in 0..2 {
            for n in 0..20 {
                let (file, dir) = (format!("g{n}"), format!("e{n}"));
                assert_eq!(fs.read(file.as_bytes()).unwrap(), b"other");
                fs.write(file.as_bytes(), b"other").unwrap();
                assert_eq!(fs.stat(dir.as_bytes()).unwrap().perm(), 0o777);
            }
            assert_eq!(fs.read(b"f").unwrap(), b"lower+");
            assert_eq!(fs.stat(b"d").unwrap().perm(), 0o700);
            fs.forget();
        }
    }
}
