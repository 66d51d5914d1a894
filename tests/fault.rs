//! Every operation with an error at its n-th change of the disk, for every n: the error is answered and the union is what
//! it was, or the change was one that may fail and the union is what it shall be; either way a retry works, the stage
//! is empty and the lower branches are untouched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::cell::Cell;

use cowfs::union::fault::{self, Action};
use cowfs::union::options::Format;
use kit::stack::OWNERS_ASIDE;
use kit::table::{Case, cases, trees};
use kit::{Dcache, EngineFs, Errno, Fs, Snapshot, Stack, Strict};

/// What a case does when nothing fails.
struct Expected {
    before: Snapshot,
    after: Snapshot,
    answer: Result<String, Errno>,
    steps: usize,
}

fn start(format: Format, case: &Case, dcache: Dcache) -> Result<(Stack, EngineFs), String> {
    let mut stack = Stack::new(format, &trees());
    stack.options.volatile = false;
    let engine = stack.engine(dcache);
    for op in &case.before {
        op.run(&engine).map_err(|errno| format!("beforehand: {op:?}: {errno}"))?;
    }
    Ok((stack, engine))
}

fn undisturbed(format: Format, case: &Case) -> Result<Expected, String> {
    let (_stack, engine) = start(format, case, Dcache::Keep)?;
    let before = Snapshot::try_of(&engine, false)?;
    fault::arm(usize::MAX, Action::Die);
    let answer = case.op.run(&engine);
    let steps = fault::disarm();
    let after = Snapshot::try_of(&engine, false)?;
    if let Err(errno) = answer {
        if errno != Errno::XDEV || !case.may_be_xdev(format) {
            return Err(format!("undisturbed: {errno}"));
        }
        same(&before, &after, "EXDEV, yet changed")?;
    }
    Ok(Expected { before, after, answer, steps })
}

thread_local! {
    /// Whether link counts are compared in the case at hand (`Case::loses_count`).
    static COUNTED: Cell<bool> = const { Cell::new(true) };
}

/// As `same`, but for the times of directories, where a step has failed: a copy-up puts its directory's time back if it
/// can, and goes on if it cannot, as the kernel's overlayfs does; and a mark that was made beside a name for nothing has
/// moved the time of its directory.
fn same_but_times(left: &Snapshot, right: &Snapshot, what: &str) -> Result<(), String> {
    same(&left.clone().without_directory_times(), &right.clone().without_directory_times(), what)
}

fn same(left: &Snapshot, right: &Snapshot, what: &str) -> Result<(), String> {
    match left.diff(right, &Strict { nlink: COUNTED.get(), ..Strict::TWINS }) {
        diff if diff.is_empty() => Ok(()),
        diff => Err(format!("{what}; expected / found:\n{diff}")),
    }
}

fn one(format: Format, case: &Case, at: usize, errno: Errno, expected: &Expected) -> Result<(), String> {
    let dcache = if at.is_multiple_of(2) { Dcache::Keep } else { Dcache::Nothing };
    let (stack, engine) = start(format, case, dcache)?;
    fault::arm(at, Action::Fail(errno));
    let answer = case.op.run(&engine);
    let steps = fault::disarm();
    if steps <= at {
        return Err(format!("only {steps} steps this time, {} before", expected.steps));
    }
    let live = Snapshot::try_of(&engine, false)?;
    if answer == expected.answer {
        same_but_times(&expected.after, &live, "went on without, but the view is not the new one")?;
    } else {
        if answer != Err(errno) {
            return Err(format!("answer {answer:?} instead of {errno}"));
        }
        same_but_times(&expected.before, &live, "failed, but the view is not the old one")?;
        if at % 4 > 1 {
            engine.remount();
            same_but_times(
                &expected.before,
                &Snapshot::try_of(&engine, false)?,
                "failed and remounted: not the old view",
            )?;
        }
        let retry = case.op.run(&engine);
        if retry != expected.answer {
            return Err(format!("the retry answers {retry:?}"));
        }
        same_but_times(&expected.after, &Snapshot::try_of(&engine, false)?, "after the retry")?;
    }
    engine.remount();
    same_but_times(&expected.after, &Snapshot::try_of(&engine, false)?, "after the remount")?;
    let staged = stack.staged();
    if staged.is_empty() { Ok(()) } else { Err(format!("left in the stage: {staged:?}")) }
}

fn run(format: Format) {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    let only = std::env::var("COWFS_ONLY").unwrap_or_default();
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for case in cases(format) {
        if !format!("{case:?}").contains(&only) || (OWNERS_ASIDE.get() && !case.is_of_owners()) {
            continue;
        }
        let mut expected = None;
        COUNTED.set(!case.loses_count());
        let first = kit::guarded(|| undisturbed(format, &case).map(|result| expected = Some(result)));
        let Some(expected) = expected else {
            fault::disarm();
            wrong.push(format!("{case:?}: {}", first.unwrap_err()));
            continue;
        };
        for at in 0..expected.steps {
            for errno in [Errno::NOSPC, Errno::IO] {
                tried += 1;
                if let Err(text) = kit::guarded(|| one(format, &case, at, errno, &expected)) {
                    fault::disarm();
                    wrong.push(format!("{case:?}: {errno:?} at step {at} of {}: {text}", expected.steps));
                }
            }
        }
    }
    println!("{}: {tried} faults", format.word());
    kit::report(&wrong, tried);
    assert!(tried > 0, "no step of any operation was seen: is the hook asked?");
}

#[test]
fn overlay() {
    run(Format::Overlay);
}

#[test]
fn oci() {
    run(Format::Oci);
}

#[test]
fn unionfs() {
    run(Format::Unionfs);
}

#[test]
fn unionfs_fuse() {
    run(Format::UnionfsFuse);
}

#[test]
fn owners_in_attributes() {
    OWNERS_ASIDE.set(true);
    run(Format::Overlay);
}
