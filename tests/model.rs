//! Random operations on random stacks, beside the flat tree on a plain directory: every answer, the whole tree and its
//! attributes are equal, at any time, also after the kernel forgot everything and after a remount.
//!
//! Targets are picked by index among what exists, so that no operation is wasted. What this finds becomes a named
//! `regression_*` test below.
//!
//! `COWFS_MODEL_CASES` (a format; default 80) and `COWFS_MODEL_OPS` (default 40) make it longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::atomic::{AtomicUsize, Ordering};

use cowfs::union::options::Format;
use kit::fs::{EXCHANGE, NOREPLACE, S_IFIFO};
use kit::ops::Op;
use kit::{Dcache, DirFs, EngineFs, Errno, Fd, Fs, Item, OFlags, R, Snapshot, Stack, Strict, Tree, path, show};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One thing in one branch, by indexes.
#[derive(Clone, Copy, Debug)]
struct Seed {
    branch: u8,
    dir: u16,
    name: u16,
    item: u8,
}

/// One step, by indexes: `what` picks the operation, the others its arguments.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: u8,
    a: u16,
    b: u16,
    c: u16,
}

#[derive(Clone, Debug)]
struct Plan {
    branches: u8,
    /// Files of the lower branches may have several names, too; then link counts are not compared: how many names a lower
    /// file has is the lower's own affair until it is copied up.
    lower_links: bool,
    eager_forget: bool,
    seeds: Vec<Seed>,
    steps: Vec<Step>,
}

fn plans(steps: usize) -> impl Strategy<Value = Plan> {
    let seed = (0..3u8, any::<u16>(), any::<u16>(), any::<u8>()).prop_map(|(branch, dir, name, item)| Seed {
        branch,
        dir,
        name,
        item,
    });
    let step =
        (any::<u8>(), any::<u16>(), any::<u16>(), any::<u16>()).prop_map(|(what, a, b, c)| Step { what, a, b, c });
    let flags = (any::<bool>(), any::<bool>());
    (2..4u8, flags, prop::collection::vec(seed, 0..24), prop::collection::vec(step, 1..steps)).prop_map(
        |(branches, (lower_links, eager_forget), seeds, steps)| Plan {
            branches,
            lower_links,
            eager_forget,
            seeds,
            steps,
        },
    )
}

/// The names there are: few, so that they meet.
fn name(pick: u16) -> Vec<u8> {
    match pick % 9 {
        6 => vec![b'x'; 255],
        7 => vec![b'y'; 250],
        8 => b"\xff\xfe odd\n".to_vec(),
        n => vec![b'a' + u8::try_from(n).unwrap()],
    }
}

fn pick<T>(from: &[T], index: u16) -> &T {
    &from[index as usize % from.len()]
}

/// Branch trees from seeds; a seed that does not fit where it falls is dropped.
fn trees(plan: &Plan, format: Format) -> Vec<Tree> {
    let mut trees: Vec<_> = (0..plan.branches).map(|place| Tree::new(u64::from(place) + 1)).collect();
    for seed in &plan.seeds {
        let place = seed.branch % plan.branches;
        let tree = &trees[place as usize];
        let dirs: Vec<_> = tree
            .entries
            .iter()
            .filter(|(path, planted)| {
                matches!(planted.item, Item::Dir | Item::Opaque) && path.split(|&b| b == b'/').count() < 3
            })
            .map(|(path, _)| path.clone())
            .collect();
        let name = name(seed.name);
        let target = path(pick(&dirs, seed.dir).as_slice(), &name);
        // No format but overlay's has room beside such a name; what the engine does instead is its own affair.
        let markable = format == Format::Overlay || name.len() < 200;
        if tree.entries.contains_key(&target) {
            continue;
        }
        let tree = trees[place as usize].clone();
        trees[place as usize] = match seed.item % 12 {
            0..=2 => tree.file(&target, format!("file {} of {place}", show(&name))).mode(0o600 + u32::from(seed.item)),
            3..=6 => tree.dir(&target).owner(u32::from(seed.item), 3),
            7 => tree.symlink(&target, "there"),
            8 => tree.file(&target, vec![seed.item; 9_000]).xattr("user.n", [seed.item]),
            9 if markable => tree.opaque(&target),
            10 if markable => tree.whiteout(&target),
            11 if place == 0 || plan.lower_links => match first_file(&tree) {
                Some(old) => tree.link(old, &target),
                None => tree.file(&target, "alone"),
            },
            _ => tree.file(&target, ""),
        };
    }
    trees
}

fn first_file(tree: &Tree) -> Option<Vec<u8>> {
    let is_file = |item: &Item| matches!(item, Item::File(_));
    tree.entries.iter().find(|(_, planted)| is_file(&planted.item)).map(|(path, _)| path.clone())
}

/// What a step does, once it is known what exists.
#[derive(Debug)]
enum Act {
    Op(Op),
    Remount,
    Forget,
    Open(Vec<u8>, OFlags),
    Close(usize),
    FdRead(usize),
    FdWrite(usize, u64, Vec<u8>),
    FdTruncate(usize, u64),
    FdChmod(usize, u32),
    FdXattr(usize, Vec<u8>),
}

/// What exists, for picking.
struct Existing {
    files: Vec<Vec<u8>>,
    dirs: Vec<Vec<u8>>,
    /// All but the root.
    all: Vec<Vec<u8>>,
}

impl Existing {
    fn of(tree: &Snapshot) -> Self {
        let paths = |kinds: &str| -> Vec<Vec<u8>> {
            tree.0.iter().filter(|(_, object)| kinds.contains(object.kind)).map(|(path, _)| path.clone()).collect()
        };
        let mut all: Vec<_> = tree.0.keys().filter(|path| !path.is_empty()).cloned().collect();
        if all.is_empty() {
            all.push(b"nothing".to_vec());
        }
        let mut files = paths("-");
        if files.is_empty() {
            files.push(b"nothing".to_vec());
        }
        Self { files, dirs: paths("d"), all }
    }

    /// A name in a directory: mostly one that does not exist.
    fn fresh(&self, dir: u16, pick_name: u16) -> Vec<u8> {
        path(pick(&self.dirs, dir).as_slice(), &name(pick_name))
    }
}

#[allow(clippy::too_many_lines)]
fn act(step: Step, there: &Existing, open: usize) -> Act {
    let Step { what, a, b, c } = step;
    let file = || pick(&there.files, a).clone();
    let any = || pick(&there.all, a).clone();
    let fresh = || there.fresh(a, b);
    let fd = usize::from(a) % open.max(1);
    let data = || vec![b'0' + (c % 64) as u8; usize::from(c % 300) + 1];
    let times = [(-2_177_452_800, 1), (-1, 999_999_999), (1_000_000_000, 5), (16_725_225_600, 7), (0, 0)];
    if open > 0 && what >= 200 {
        return match what % 8 {
            0 | 1 => Act::FdRead(fd),
            2 | 3 => Act::FdWrite(fd, u64::from(b % 5_000), data()),
            4 => Act::FdTruncate(fd, u64::from(b % 5_000)),
            5 => Act::FdChmod(fd, u32::from(b) & 0o7777),
            6 => Act::FdXattr(fd, data()),
            _ => Act::Close(fd),
        };
    }
    Act::Op(match what % 40 {
        0 => return Act::Remount,
        1 => return Act::Forget,
        2 => return Act::Open(file(), OFlags::RDWR),
        3 => return Act::Open(file(), OFlags::RDONLY),
        4 => return Act::Open(file(), OFlags::RDWR | OFlags::TRUNC),
        5 => Op::Create(fresh(), u32::from(c) & 0o777),
        6 => Op::Write(fresh(), data()),
        7 => Op::Write(file(), data()),
        8 => Op::Append(file(), data()),
        9 => Op::Patch(file(), u64::from(b % 12_000), data()),
        10 => Op::OpenTrunc(file()),
        11 => Op::ReadTrunc(file()),
        12 => Op::Truncate(any(), u64::from(b % 12_000)),
        13 | 14 => Op::Mkdir(fresh(), 0o700 + (u32::from(c) & 0o77)),
        15 => Op::Rmdir(pick(&there.dirs, a).clone()),
        16..=19 => Op::Unlink(any()),
        20 => Op::Rmdir(any()),
        21 => Op::Link(any(), there.fresh(b, c)),
        22 => Op::Symlink(data(), fresh()),
        23 => Op::Mknod(fresh(), S_IFIFO | 0o644, (0, 0)),
        24 => Op::Chmod(any(), u32::from(b) & 0o7777),
        25 => Op::Chown(any(), u32::from(b), u32::from(c)),
        26 => Op::Utimens(any(), *pick(&times, b)),
        27 => Op::SetXattr(any(), "user.n", data()),
        28 => Op::SetXattr(any(), "trusted.t", data()),
        29 => Op::RemoveXattr(any(), "user.n"),
        30..=32 => Op::Rename(any(), there.fresh(b, c), 0),
        33 => Op::Rename(any(), pick(&there.all, b).clone(), 0),
        34 => Op::Rename(any(), there.fresh(b, c), NOREPLACE),
        35 | 36 => Op::Rename(any(), pick(&there.all, b).clone(), EXCHANGE),
        37 => Op::Rename(pick(&there.dirs, a).clone(), there.fresh(b, c), 0),
        38 => Op::Rename(pick(&there.dirs, a).clone(), pick(&there.dirs, b).clone(), 0),
        _ => Op::Fallocate(file(), u32::from(b % 2), u64::from(c % 3_000), 1_000),
    })
}

struct Pair {
    engine: EngineFs,
    oracle: DirFs,
    /// Here, there, and whether it may be written.
    open: Vec<(Fd, Fd, bool)>,
    format: Format,
    /// Whether link counts are compared.
    links: bool,
}

/// Operations that were tried, and those that succeeded, in all formats.
static TRIED: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);

type Check = Result<(), String>;

impl Pair {
    fn same<T: PartialEq + std::fmt::Debug>(ours: &T, theirs: &T) -> Check {
        if ours == theirs { Ok(()) } else { Err(format!("answers {ours:?}, the flat tree {theirs:?}")) }
    }

    fn both(&self, fd: usize, call: impl Fn(&dyn Fs, Fd) -> R<Vec<u8>>) -> Check {
        let (ours, theirs, _) = self.open[fd];
        Self::same(&call(&self.engine, ours), &call(&self.oracle, theirs))
    }

    fn op(&self, op: &Op, tree: &Snapshot) -> Check {
        let kind = |path: &Vec<u8>| tree.0.get(path).map(|object| object.kind);
        let dir_moved = match op {
            Op::Rename(old, new, flags) => kind(old) == Some('d') || (flags & EXCHANGE != 0 && kind(new) == Some('d')),
            _ => false,
        };
        // The root itself cannot be an argument of a rename, and the kernel never asks to remove it.
        if matches!(op, Op::Rmdir(path) | Op::Unlink(path) if path.is_empty())
            || matches!(op, Op::Rename(old, new, _) if old.is_empty() || new.is_empty())
        {
            return Ok(());
        }
        let ours = op.run(&self.engine);
        if ours == Err(Errno::XDEV) && dir_moved && self.format != Format::Overlay {
            return Ok(());
        }
        TRIED.fetch_add(1, Ordering::Relaxed);
        DONE.fetch_add(usize::from(ours.is_ok()), Ordering::Relaxed);
        Self::same(&ours, &op.run(&self.oracle))
    }

    fn act(&mut self, act: &Act, tree: &Snapshot) -> Check {
        match act {
            Act::Op(op) => self.op(op, tree),
            Act::Forget => {
                self.engine.forget();
                Ok(())
            }
            Act::Remount => {
                while !self.open.is_empty() {
                    self.close(0);
                }
                self.engine.remount();
                Ok(())
            }
            Act::Open(path, flags) => {
                if self.open.len() > 5 {
                    return Ok(());
                }
                let (ours, theirs) = (self.engine.open(path, *flags, 0), self.oracle.open(path, *flags, 0));
                if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                    self.open.push((ours, theirs, flags.contains(OFlags::RDWR)));
                    return Ok(());
                }
                Self::same(&ours.map(|_| ()), &theirs.map(|_| ()))
            }
            Act::Close(fd) => {
                self.close(*fd);
                Ok(())
            }
            Act::FdRead(fd) => self.both(*fd, |fs, fd| fs.pread(fd, 0, 20_000)),
            // Whether it may be written is checked by the kernel, not by a FUSE daemon.
            Act::FdWrite(fd, ..) | Act::FdTruncate(fd, _) if !self.open[*fd].2 => Ok(()),
            Act::FdWrite(fd, offset, data) => self.both(*fd, |fs, fd| done(fs.pwrite(fd, *offset, data))),
            Act::FdTruncate(fd, size) => self.both(*fd, |fs, fd| done(fs.ftruncate(fd, *size))),
            Act::FdChmod(fd, mode) => self.both(*fd, |fs, fd| done(fs.fchmod(fd, *mode))),
            Act::FdXattr(fd, value) => self.both(*fd, |fs, fd| {
                fs.fsetxattr(fd, "user.fd", value)?;
                fs.fgetxattr(fd, "user.fd")
            }),
        }
    }

    fn close(&mut self, fd: usize) {
        let (ours, theirs, _) = self.open.remove(fd);
        self.engine.close(ours).expect("close");
        self.oracle.close(theirs).expect("close");
    }

    /// The whole tree, and what is open, are equal.
    fn check(&self) -> Result<Snapshot, String> {
        let tree = Snapshot::try_of(&self.oracle, false)?;
        let ours = Snapshot::try_of(&self.engine, false)?;
        let diff = ours.diff(&tree, &Strict { nlink: self.links, ..Strict::TWINS });
        if !diff.is_empty() {
            return Err(format!("engine / flat tree:\n{diff}"));
        }
        for fd in 0..self.open.len() {
            self.both(fd, |fs, fd| {
                let stat = fs.fstat(fd)?;
                let nlink = if self.links { stat.nlink } else { 0 };
                Ok(format!("{:o} {}:{} size {} links {nlink}", stat.mode, stat.uid, stat.gid, stat.size).into_bytes())
            })
            .map_err(|text| format!("fstat of open file {fd}: {text}"))?;
        }
        Ok(tree)
    }
}

fn done<T>(result: R<T>) -> R<Vec<u8>> {
    result.map(|_| vec![])
}

/// Runs a plan; what was done so far goes into `trace`.
fn run(plan: &Plan, format: Format, trace: &mut Vec<String>) -> Check {
    let trees = trees(plan, format);
    for (place, tree) in trees.iter().enumerate() {
        for (path, planted) in &tree.entries {
            trace.push(format!("  branch {place}: {} {:?}", show(path), short(&planted.item)));
        }
    }
    let stack = Stack::new(format, &trees);
    let dcache = if plan.eager_forget { Dcache::Nothing } else { Dcache::Keep };
    let mut pair = Pair { engine: stack.engine(dcache), oracle: stack.plain(), open: vec![], format, links: true };
    pair.links = !plan.lower_links;
    let mut tree = pair.check().map_err(|text| format!("at the start: {text}"))?;
    for step in &plan.steps {
        let act = act(*step, &Existing::of(&tree), pair.open.len());
        trace.push(format!("  {act:?}"));
        pair.act(&act, &tree)?;
        tree = pair.check()?;
    }
    trace.push("  (close, remount)".to_owned());
    pair.act(&Act::Remount, &tree)?;
    pair.check()?;
    pair.engine.unmount(true);
    match stack.staged() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("left in the stage: {left:?}")),
    }
}

fn short(item: &Item) -> String {
    match item {
        Item::File(content) => format!("file of {} bytes", content.len()),
        other => format!("{other:?}"),
    }
}

fn model(format: Format) {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    let cases = u32::try_from(kit::env_number("COWFS_MODEL_CASES", 80)).unwrap();
    let steps = usize::try_from(kit::env_number("COWFS_MODEL_OPS", 40)).unwrap();
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 600, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let result = runner.run(&plans(steps), |plan| {
        let mut trace = Vec::new();
        kit::guarded(|| run(&plan, format, &mut trace))
            .map_err(|text| TestCaseError::fail(format!("{text}\nafter:\n{}", trace.join("\n"))))
    });
    if let Err(error) = result {
        panic!("{}: {error}", format.word());
    }
    let (tried, done) = (TRIED.load(Ordering::Relaxed), DONE.load(Ordering::Relaxed));
    println!("{tried} operations so far, {done} of them successful");
    assert!(done * 3 > tried, "most operations are refused: {done} of {tried} succeeded");
}

#[test]
fn overlay() {
    model(Format::Overlay);
}

#[test]
fn oci() {
    model(Format::Oci);
}

#[test]
fn unionfs() {
    model(Format::Unionfs);
}

#[test]
fn unionfs_fuse() {
    model(Format::UnionfsFuse);
}

#[test]
fn owners_in_attributes() {
    kit::stack::OWNERS_ASIDE.set(true);
    model(Format::Overlay);
}

/// The harness itself: two plain directories under the same plans never differ.
#[test]
fn the_flat_tree_equals_itself() {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    let mut runner = TestRunner::new(Config { cases: 10, failure_persistence: None, ..Config::default() });
    let result = runner.run(&plans(30), |plan| {
        let stack = Stack::new(Format::Overlay, &trees(&plan, Format::Overlay));
        let (left, twin) = (stack.plain(), Stack::new(Format::Overlay, &trees(&plan, Format::Overlay)));
        let right = twin.plain();
        for step in &plan.steps {
            let tree = Snapshot::of(&left);
            let Act::Op(op) = act(*step, &Existing::of(&tree), 0) else { continue };
            prop_assert_eq!(op.run(&left), op.run(&right), "{:?}", op);
            let diff = Snapshot::of(&left).diff(&Snapshot::of(&right), &Strict::TWINS);
            prop_assert!(diff.is_empty(), "{op:?}: {diff}");
        }
        Ok(())
    });
    result.unwrap();
}

/// Runs `ops` on a stack in every format beside the flat tree, with a remount at the end.
fn replay(trees: &[Tree], ops: &[Op]) {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    let mut wrong = Vec::new();
    for (word, format) in Format::ALL {
        for dcache in [Dcache::Keep, Dcache::Nothing] {
            let result = kit::guarded(|| {
                let stack = Stack::new(format, trees);
                let mut pair =
                    Pair { engine: stack.engine(dcache), oracle: stack.plain(), open: vec![], format, links: true };
                let mut tree = pair.check().map_err(|text| format!("at the start: {text}"))?;
                for op in ops {
                    pair.op(op, &tree).map_err(|text| format!("{op:?}: {text}"))?;
                    tree = pair.check().map_err(|text| format!("after {op:?}: {text}"))?;
                }
                pair.act(&Act::Remount, &tree)?;
                pair.check().map(drop).map_err(|text| format!("after the remount: {text}"))
            });
            wrong.extend(result.err().map(|text| format!("{word} {dcache:?}: {text}")));
        }
    }
    kit::report(&wrong, 8);
}

fn p(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

#[test]
fn regression_exchange_of_an_upper_directory_and_a_file() {
    let trees = [Tree::new(1).dir("a").file("c", "x"), Tree::new(2)];
    replay(&trees, &[Op::Rename(p("a"), p("c"), EXCHANGE), Op::Rename(p("a"), p("c"), EXCHANGE)]);
}

#[test]
fn regression_exchange_with_a_lower_symlink() {
    let trees = [Tree::new(1).dir("b"), Tree::new(2).symlink("y", "there")];
    replay(&trees, &[Op::Rename(p("b"), p("y"), EXCHANGE)]);
}

/// A whiteout that is kept elsewhere moves no time by itself.
#[test]
fn regression_unlink_moves_the_time_of_the_directory() {
    let trees = [Tree::new(1), Tree::new(2).file("a", "").file("d/a", "")];
    replay(&trees, &[Op::Unlink(p("a")), Op::Unlink(p("d/a"))]);
}
