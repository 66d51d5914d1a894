//! Every stack of two and three branches of one name, beside the kernel's overlayfs: what is seen, what each single
//! operation answers, what is seen then, and what is seen after a remount.
//!
//! The kernel is the judge for the marks of the overlay format; `ACCEPTED` lists where we differ from it on purpose.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use cowfs::union::options::Format;
use kit::ops::Op;
use kit::{Dcache, Errno, Fs, Snapshot, Stack, Strict, Tree};

/// What one branch holds at the name `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Absent,
    File,
    Dir,
    Opaque,
    Whiteout,
    Symlink,
}

const KINDS: [Kind; 6] = [Kind::Absent, Kind::File, Kind::Dir, Kind::Opaque, Kind::Whiteout, Kind::Symlink];

/// Where cowfs answers otherwise than overlayfs, and why. Each has a line in the documentation.
fn accepted(_stack: &[Kind], _op: &Op, _kernel: &Answer, _ours: &Answer) -> bool {
    false
}

type Answer = Result<String, Errno>;

/// The branch `place` with `kind` at `n`, and one further file and directory to rename from and to.
fn branch(kind: Kind, place: usize) -> Tree {
    let tree = Tree::new(place as u64 + 1);
    let tree = match kind {
        Kind::Absent => tree,
        Kind::File => tree.file("n", format!("file of {place}")),
        Kind::Dir => tree.dir("n").file("n/both", format!("both {place}")).file(format!("n/c{place}"), "child"),
        Kind::Opaque => tree.opaque("n").file("n/both", format!("both {place}")).file(format!("n/c{place}"), "child"),
        Kind::Whiteout => tree.whiteout("n"),
        Kind::Symlink => tree.symlink("n", format!("target{place}")),
    };
    if place == 0 {
        return tree.file("upper-file", "u");
    }
    tree.file("lower-file", format!("l{place}"))
        .dir("lower-dir")
        .file(format!("lower-dir/k{place}"), "k")
        .file("lower-dir/both", format!("kb{place}"))
        .dir("lower-empty")
}

fn operations() -> Vec<Op> {
    let n = || b"n".to_vec();
    let p = |text: &str| text.as_bytes().to_vec();
    vec![
        Op::Unlink(n()),
        Op::Rmdir(n()),
        Op::Mkdir(n(), 0o750),
        Op::Create(n(), 0o640),
        Op::Write(n(), p("written")),
        Op::Symlink(p("elsewhere"), n()),
        Op::Mknod(n(), kit::fs::S_IFIFO | 0o600, (0, 0)),
        Op::Append(n(), p(" appended")),
        Op::OpenTrunc(n()),
        Op::ReadTrunc(n()),
        Op::Truncate(n(), 3),
        Op::Chmod(n(), 0o711),
        Op::Chown(n(), 7, 8),
        Op::Utimens(n(), (1_234_567_890, 987_654_321)),
        Op::SetXattr(n(), "user.k", p("v")),
        Op::Link(n(), p("linked")),
        Op::Link(p("lower-file"), n()),
        Op::Rename(n(), p("moved"), 0),
        Op::Rename(n(), p("lower-file"), 0),
        Op::Rename(n(), p("lower-dir"), 0),
        Op::Rename(n(), p("lower-empty"), 0),
        Op::Rename(p("lower-file"), n(), 0),
        Op::Rename(p("upper-file"), n(), 0),
        Op::Rename(p("lower-dir"), n(), 0),
        Op::Rename(p("lower-file"), n(), kit::fs::NOREPLACE),
        Op::Rename(p("lower-file"), n(), kit::fs::EXCHANGE),
        Op::Rename(p("lower-dir"), n(), kit::fs::EXCHANGE),
        Op::Unlink(p("n/both")),
        Op::Create(p("n/new"), 0o600),
        Op::Append(p("n/both"), p("+")),
        Op::Rename(p("n/both"), p("moved"), 0),
        Op::Rename(p("lower-file"), p("n/both"), 0),
    ]
}

/// One operation on one stack, on both; what is wrong, if anything.
fn compare(kinds: &[Kind], op: &Op, dcache: Dcache) -> Result<(), String> {
    let trees: Vec<_> = kinds.iter().enumerate().map(|(place, &kind)| branch(kind, place)).collect();
    let (ours, theirs) = (Stack::new(Format::Overlay, &trees), Stack::new(Format::Overlay, &trees));
    let (engine, overlay) = (ours.engine(dcache), theirs.overlay()?);
    same(&engine, &overlay.fs, "before")?;
    let (answer, kernel) = (op.run(&engine), op.run(&overlay.fs));
    if answer != kernel && !accepted(kinds, op, &kernel, &answer) {
        return Err(format!("answers {answer:?}, overlayfs {kernel:?}"));
    }
    same(&engine, &overlay.fs, "after")?;
    engine.remount();
    overlay.fs.remount();
    same(&engine, &overlay.fs, "after the remount")?;
    engine.unmount(true);
    // And what we left is what the kernel understands.
    let view = ours.overlay_with("redirect_dir=on,index=off,metacopy=on,xino=off")?;
    same(&view.fs, &overlay.fs, "ours seen through the kernel's overlayfs")
}

fn same(a: &dyn Fs, b: &dyn Fs, when: &str) -> Result<(), String> {
    let mut left = Snapshot::try_of(a, false)?;
    left.0.retain(|path, _| !kit::fs::within(path, b".cowfs"));
    let right = Snapshot::try_of(b, false)?;
    match left.diff(&right, &Strict::TWINS) {
        diff if diff.is_empty() => Ok(()),
        diff => Err(format!("{when}: {} / {}\n{diff}", a.label(), b.label())),
    }
}

fn possible() -> bool {
    kit::in_memory();
    if !kit::is_root() {
        kit::skip("kernel overlayfs as judge needs root");
        return false;
    }
    let probe = Stack::new(Format::Overlay, &[Tree::new(1), Tree::new(2)]);
    match probe.overlay() {
        Ok(_) => true,
        Err(text) => {
            kit::skip(&format!("no kernel overlayfs here: {text}"));
            false
        }
    }
}

/// All stacks of `depth` branches; every `step`th, from the `first` on. `COWFS_ONLY` names the cases to try. Of three
/// branches every fourth operation is tried, another one on each stack, and all of them with `COWFS_LONG=1`.
fn run(depth: u32, first: usize, step: usize) {
    if !possible() {
        return;
    }
    let (mut wrong, mut tried, ops) = (Vec::new(), 0, operations());
    let only = std::env::var("COWFS_ONLY").unwrap_or_default();
    let thin = depth > 2 && only.is_empty() && kit::env_number("COWFS_LONG", 0) == 0;
    for number in (first..6usize.pow(depth)).step_by(step) {
        let kinds: Vec<_> = (0..depth).map(|place| KINDS[number / 6usize.pow(place) % 6]).collect();
        for (index, op) in ops.iter().enumerate() {
            let name = format!("{kinds:?} {op:?}");
            if !name.contains(&only) || (thin && (number + index) % 4 != 0) {
                continue;
            }
            let dcache = if (number + index) % 2 == 0 { Dcache::Keep } else { Dcache::Nothing };
            tried += 1;
            if let Err(text) = kit::guarded(|| compare(&kinds, op, dcache)) {
                wrong.push(format!("{name} ({dcache:?}): {text}"));
            }
        }
    }
    kit::report(&wrong, tried);
}

#[test]
fn two_branches() {
    run(2, 0, 1);
}

// In two halves, so that two cores share them.

#[test]
fn three_branches_even() {
    run(3, 0, 2);
}

#[test]
fn three_branches_odd() {
    run(3, 1, 2);
}

/// Without an upper nothing can be changed, and what is seen is the same.
#[test]
fn read_only() {
    if !possible() {
        return;
    }
    for number in 0..36 {
        let kinds = [KINDS[number % 6], KINDS[number / 6]];
        let trees = [branch(kinds[0], 1), branch(kinds[1], 2)];
        let stack = Stack::read_only(Format::Overlay, &trees);
        let (engine, overlay) = (stack.engine(Dcache::Keep), stack.overlay().unwrap());
        same(&engine, &overlay.fs, "read-only").unwrap_or_else(|text| panic!("{kinds:?}: {text}"));
        for op in [
            Op::Unlink(b"lower-file".to_vec()),
            Op::Chmod(b"lower-file".to_vec(), 0o600),
            Op::Append(b"lower-file".to_vec(), b"x".to_vec()),
            Op::ReadTrunc(b"lower-file".to_vec()),
            Op::Rename(b"lower-file".to_vec(), b"moved".to_vec(), 0),
            Op::Mkdir(b"new".to_vec(), 0o755),
        ] {
            assert_eq!(op.run(&engine), Err(Errno::ROFS), "{kinds:?} {op:?}");
            assert_eq!(op.run(&overlay.fs), Err(Errno::ROFS), "{kinds:?} {op:?} on overlayfs");
        }
        same(&engine, &overlay.fs, "read-only, after attempts").unwrap_or_else(|text| panic!("{kinds:?}: {text}"));
    }
}

/// The judge's own test: the flat tree that the model test takes for the truth is what overlayfs shows.
#[test]
fn flat_tree_is_what_overlayfs_shows() {
    if !possible() {
        return;
    }
    for number in 0..216 {
        let kinds = [KINDS[number % 6], KINDS[number / 6 % 6], KINDS[number / 36]];
        let trees: Vec<_> = kinds.iter().enumerate().map(|(place, &kind)| branch(kind, place)).collect();
        let stack = Stack::new(Format::Overlay, &trees);
        let (plain, overlay) = (stack.plain(), stack.overlay().unwrap());
        same(&plain, &overlay.fs, "flat").unwrap_or_else(|text| panic!("{kinds:?}: {text}"));
    }
}
