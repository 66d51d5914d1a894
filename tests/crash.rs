//! Every operation with the process dying at its n-th change of the disk, for every n: after a new mount each name shows
//! what it showed before or what it shows after, the stage is swept, the lower branches are untouched, and what did
//! not happen can be done again.
//!
//! The dying is done by a child (this same program, told what to do by its environment); the parent judges.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::process::Command;

use cowfs::union::fault::{self, Action, DIED};
use cowfs::union::options::{Format, Options};
use kit::enginefs::BranchPath;
use kit::stack::{ASIDE, OWNERS_ASIDE};
use kit::table::{Case, cases, trees};
use kit::{Dcache, EngineFs, Errno, Snapshot, Stack, Strict};

const JOB: &str = "COWFS_CRASH_JOB";
/// Set if the upper keeps owners in attributes.
const ASIDE_JOB: &str = "COWFS_CRASH_ASIDE";

/// What the child is told: which case, in which format, at which step, on which branches (top first).
fn job(stack: &Stack, case: usize, at: usize) -> String {
    let paths: Vec<_> = stack.branch_paths().iter().map(|branch| branch.path.display().to_string()).collect();
    format!("{case} {at} {} {}", stack.format.word(), paths.join(" "))
}

fn child(job: &str) {
    let mut words = job.split(' ');
    let mut number = || words.next().unwrap().parse::<usize>().unwrap();
    let (case, at) = (number(), number());
    let word = words.next().unwrap();
    let format = Format::ALL.into_iter().find(|(known, _)| *known == word).unwrap().1;
    let branch = |(place, path): (usize, &str)| BranchPath {
        path: path.into(),
        writable: place == 0,
        oci_whiteouts: place > 0 && format == Format::Oci,
    };
    let aside = std::env::var_os(ASIDE_JOB).map(|_| ASIDE.0);
    let options = Options { format: Some(format), volatile: false, aside, ..Options::default() };
    let engine = EngineFs::try_new(words.enumerate().map(branch).collect(), options, Dcache::Keep).unwrap();
    let case = cases(format).swap_remove(case);
    prepare(&engine, &case).unwrap();
    fault::arm(at, Action::Die);
    let answer = case.op.run(&engine);
    let steps = fault::disarm();
    // Still here, so there were no more steps: the parent stops counting.
    println!("survived {steps} steps: {answer:?}");
}

fn prepare(engine: &EngineFs, case: &Case) -> Result<(), String> {
    for op in &case.before {
        op.run(engine).map_err(|errno| format!("beforehand: {op:?}: {errno}"))?;
    }
    Ok(())
}

fn view(engine: &EngineFs) -> Result<Snapshot, String> {
    Ok(Snapshot::try_of(engine, false)?.without_directory_times())
}

fn one(format: Format, number: usize, at: usize, case: &Case, states: &[Snapshot; 2]) -> Result<(), String> {
    let stack = Stack::new(format, &trees());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_entry", "--nocapture", "--test-threads=1"])
        .env(JOB, job(&stack, number, at))
        .envs(OWNERS_ASIDE.get().then_some((ASIDE_JOB, "1")))
        .output()
        .map_err(|error| format!("start a child: {error}"))?;
    if output.status.code() != Some(DIED) {
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        return Err(format!("the child did not die at the step: {}\n{text}", output.status));
    }
    let engine = stack.engine(if at.is_multiple_of(2) { Dcache::Keep } else { Dcache::Nothing });
    let staged = stack.staged();
    if !staged.is_empty() {
        return Err(format!("not swept at mount: {staged:?}"));
    }
    let found = view(&engine)?;
    let strict = Strict { nlink: !case.loses_count(), ..Strict::TWINS };
    let before = states[0].diff(&found.clone().with_mtime_of(&states[0], case.fetches()), &strict);
    let after = states[1].diff(&found, &strict);
    if !before.is_empty() && !after.is_empty() {
        return Err(format!(
            "neither old nor new.\n to the old view (expected / found):\n{before} to the new:\n{after}"
        ));
    }
    if before.is_empty() && !after.is_empty() {
        if let Err(errno) = case.op.run(&engine) {
            return Err(format!("the retry answers {errno}"));
        }
        let diff = states[1].diff(&view(&engine)?, &strict);
        if !diff.is_empty() {
            return Err(format!("after the retry; expected / found:\n{diff}"));
        }
    }
    Ok(())
}

/// The views before and after, and how many steps lie between.
fn undisturbed(format: Format, case: &Case) -> Result<([Snapshot; 2], usize), String> {
    let mut stack = Stack::new(format, &trees());
    stack.options.volatile = false;
    let engine = stack.engine(Dcache::Keep);
    prepare(&engine, case)?;
    let before = view(&engine)?;
    fault::arm(usize::MAX, Action::Die);
    let answer = case.op.run(&engine);
    let steps = fault::disarm();
    match answer {
        Err(errno) if errno != Errno::XDEV || !case.may_be_xdev(format) => Err(format!("undisturbed: {errno}")),
        // Nothing may have happened, at whatever step the process dies.
        Err(_) => Ok(([before.clone(), before], steps)),
        Ok(_) => Ok(([before, view(&engine)?], steps)),
    }
}

fn run(format: Format) {
    if !kit::can_build() {
        return;
    }
    kit::in_memory();
    let only = std::env::var("COWFS_ONLY").unwrap_or_default();
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for (number, case) in cases(format).iter().enumerate() {
        if !format!("{case:?}").contains(&only) || (OWNERS_ASIDE.get() && !case.is_of_owners()) {
            continue;
        }
        let mut expected = None;
        let first = kit::guarded(|| undisturbed(format, case).map(|result| expected = Some(result)));
        let Some((states, steps)) = expected else {
            fault::disarm();
            wrong.push(format!("{case:?}: {}", first.unwrap_err()));
            continue;
        };
        for at in 0..steps {
            tried += 1;
            if let Err(text) = kit::guarded(|| one(format, number, at, case, &states)) {
                wrong.push(format!("{case:?}: died at step {at} of {steps}: {text}"));
            }
        }
    }
    println!("{}: {tried} deaths", format.word());
    kit::report(&wrong, tried);
    assert!(tried > 0, "no step of any operation was seen: is the hook asked?");
}

/// Where the child starts; without a job there is nothing to do, and nothing is skipped by that.
#[test]
fn child_entry() {
    if let Ok(text) = std::env::var(JOB) {
        child(&text);
    }
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
    run(Format::Oci);
}
