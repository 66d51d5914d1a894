//! Two operations at once: one stands still before its n-th change of the disk, or where it goes on with what it has only
//! seen, for every n, while the other one is done or waits for it. What they answer, and what the union shows then and after a remount, is what one after the other gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kit;

use std::sync::mpsc::channel;
use std::sync::{Barrier, Mutex};
use std::thread::scope;
use std::time::Duration;

use cowfs::union::fault::{self, Action};
use cowfs::union::options::Format;
use kit::fs::EXCHANGE;
use kit::ops::Op;
use kit::{Dcache, EngineFs, Errno, Snapshot, Stack, Strict, Tree};

/// How long the second one has until it counts as waiting for the first.
const HEAD_START: Duration = Duration::from_millis(4);

type Answer = Result<String, Errno>;

/// Two operations have answered this, and the union shows that.
struct Outcome {
    answers: [Answer; 2],
    shown: Snapshot,
}

fn trees() -> Vec<Tree> {
    let lower = Tree::new(2).file("a", "the data of a").file("b", "of b").file("h1", "linked").link("h1", "d/h2");
    vec![Tree::new(1), lower.file("d/x", "of x").file("d/e/y", "of y").file("other", "o")]
}

fn with_three_names() -> Vec<Tree> {
    let lower = Tree::new(2).file("three", "3").link("three", "d/three").link("three", "e/three");
    vec![Tree::new(1), lower]
}

/// In what state the files are that the operations meet.
struct State {
    word: &'static str,
    trees: fn() -> Vec<Tree>,
    beforehand: Vec<Op>,
}

fn states() -> Vec<State> {
    let renamed = |path: &str| [Op::Rename(p(path), p("t"), 0), Op::Rename(p("t"), p(path), 0)];
    let both = |op: fn(Vec<u8>) -> Op| vec![op(p("a")), op(p("b"))];
    let state = |word, beforehand| State { word, trees, beforehand };
    vec![
        state("in the lower", vec![]),
        state("without data", both(|path| Op::Chmod(path, 0o640))),
        state("without data, whatever their names", ["a", "b"].into_iter().flat_map(renamed).collect()),
        state("in the upper", both(|path| Op::Append(path, p("!")))),
    ]
}

fn p(path: &str) -> Vec<u8> {
    path.into()
}

/// Writes at fixed places: appending asks for the size first, between which and the writing the kernel lets nobody write.
fn operations() -> Vec<Op> {
    vec![
        Op::Patch(p("a"), 4, p("+")),
        Op::OpenTrunc(p("a")),
        Op::Chmod(p("a"), 0o600),
        Op::SetXattr(p("a"), "user.k", p("v")),
        Op::Read(p("a")),
        Op::Rename(p("a"), p("c"), 0),
        Op::Rename(p("a"), p("b"), 0),
        Op::Rename(p("b"), p("a"), 0),
        Op::Rename(p("a"), p("b"), EXCHANGE),
        Op::Rename(p("a"), p("d/e/z"), 0),
        Op::Rename(p("d"), p("n"), 0),
        Op::Link(p("a"), p("d/l")),
        Op::Unlink(p("a")),
        Op::Patch(p("h1"), 1, p("+")),
        Op::Rename(p("h1"), p("a"), 0),
        Op::Unlink(p("h1")),
        Op::Patch(p("d/h2"), 2, p("-")),
        Op::Rename(p("d/h2"), p("d/h3"), 0),
        Op::Unlink(p("d/h2")),
        Op::Utimens(p("d"), (5, 6)),
        Op::Patch(p("d/e/y"), 3, p("+")),
        Op::Write(p("d/e/w"), p("new")),
        Op::Mkdir(p("c"), 0o755),
    ]
}

/// Whether it matters in what state `a` and `b` are.
fn concerns_data(op: &Op) -> bool {
    match op {
        Op::Rename(old, new, _) => [old, new].iter().any(|name| name.len() == 1),
        Op::Link(..) => true,
        Op::Patch(name, ..) | Op::OpenTrunc(name) | Op::Chmod(name, _) => *name == b"a",
        Op::SetXattr(name, ..) | Op::Read(name) | Op::Unlink(name) => *name == b"a",
        _ => false,
    }
}

/// What the kernel locks for an operation on names: the directories it changes, and the files.
fn locked(op: &Op) -> Vec<Vec<u8>> {
    let names = match op {
        Op::Rename(old, new, _) | Op::Link(old, new) => vec![old, new],
        Op::Unlink(name) | Op::Mkdir(name, _) | Op::Write(name, _) => vec![name],
        _ => vec![],
    };
    let inode = |name: &Vec<u8>| if *name == b"d/h2" { p("h1") } else { name.clone() };
    let parent = |name: &Vec<u8>| [b"in ", &name[..name.iter().rposition(|&b| b == b'/').unwrap_or(0)]].concat();
    names.into_iter().flat_map(|name| [parent(name), inode(name)]).collect()
}

/// Whether the kernel would let both run at once.
fn may_meet(one: &Op, other: &Op) -> bool {
    let of_one = locked(one);
    locked(other).iter().all(|lock| !of_one.contains(lock))
}

fn start(format: Format, state: &State) -> (Stack, EngineFs) {
    let stack = Stack::new(format, &(state.trees)());
    let engine = stack.engine(Dcache::Nothing);
    for op in &state.beforehand {
        op.run(&engine).unwrap_or_else(|errno| panic!("beforehand: {op:?}: {errno}"));
    }
    (stack, engine)
}

fn one_after_the_other(format: Format, state: &State, ops: [&Op; 2], order: [usize; 2]) -> Outcome {
    let (_stack, engine) = start(format, state);
    let mut answers = [Ok(String::new()), Ok(String::new())];
    for n in order {
        answers[n] = ops[n].run(&engine);
    }
    Outcome { answers, shown: Snapshot::of(&engine) }
}

/// `None`: the first has fewer steps.
fn at_once(engine: &EngineFs, ops: [&Op; 2], at: usize) -> Option<[Answer; 2]> {
    let place: &'static Barrier = Box::leak(Box::new(Barrier::new(2)));
    scope(|threads| {
        let (arrived, first) = channel();
        let waiting = threads.spawn(move || {
            fault::arm(at, Action::Meet(place));
            let answer = ops[0].run(engine);
            let met = fault::disarm() > at;
            if !met {
                place.wait();
                place.wait();
            }
            (answer, met)
        });
        place.wait();
        let other = threads.spawn(move || {
            let answer = ops[1].run(engine);
            // Nobody listens if it took long.
            let _ = arrived.send(());
            answer
        });
        let _in_time = first.recv_timeout(HEAD_START);
        place.wait();
        let (answer, met) = waiting.join().unwrap();
        let answers = [answer, other.join().unwrap()];
        met.then_some(answers)
    })
}

fn same(one: &Outcome, answers: &[Answer; 2], shown: &Snapshot) -> Result<(), String> {
    if one.answers != *answers {
        return Err(format!("  answers {answers:?} instead of {:?}\n", one.answers));
    }
    match one.shown.diff(shown, &Strict::TWINS) {
        differs if differs.is_empty() => Ok(()),
        differs => Err(differs),
    }
}

/// All that is wrong with these two, at whatever step.
fn quarrel(format: Format, state: &State, ops: [&Op; 2]) -> String {
    let word = state.word;
    let serial = [[0, 1], [1, 0]].map(|order| one_after_the_other(format, state, ops, order));
    let mut wrong = String::new();
    for at in 0.. {
        let (stack, engine) = start(format, state);
        let Some(answers) = at_once(&engine, ops, at) else { break };
        for when in ["at once", "after a remount"] {
            match Snapshot::try_of(&engine, false) {
                Err(text) => wrong += &format!("{format:?}, {word}, {ops:?}, step {at}, {when}: {text}\n"),
                Ok(shown) => {
                    let found = serial.each_ref().map(|one| same(one, &answers, &shown));
                    if let [Err(one), Err(other)] = found {
                        wrong += &format!("{format:?}, {word}, {ops:?}, step {at}, {when}:\n{one} or\n{other}");
                    }
                }
            }
            kit::Fs::remount(&engine);
        }
        stack.check_lowers();
    }
    wrong
}

fn all_pairs(format: Format, states: &[State]) {
    kit::in_memory();
    let operations = operations();
    let jobs: Vec<_> = states.iter().flat_map(|state| operations.iter().map(move |op| (state, op))).collect();
    let (jobs, wrong) = (Mutex::new(jobs), Mutex::new(String::new()));
    scope(|threads| {
        // Most of the time one of two waits.
        for _ in 0..4 {
            threads.spawn(|| {
                loop {
                    let Some((state, first)) = jobs.lock().unwrap().pop() else { break };
                    let matters = |op: &Op| state.beforehand.is_empty() || concerns_data(op);
                    if !matters(first) {
                        continue;
                    }
                    for second in operations.iter().filter(|second| matters(second) && may_meet(first, second)) {
                        let found = quarrel(format, state, [first, second]);
                        wrong.lock().unwrap().push_str(&found);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{wrong}");
}

/// Not among the others: looking a name up and asking for its attributes are two requests, and a file may lose names meanwhile.
#[test]
fn names_are_counted_beside_a_copy_up() {
    kit::in_memory();
    let state = State { word: "in the lower", trees: with_three_names, beforehand: vec![] };
    let changes =
        [Op::Patch(p("three"), 0, p("+")), Op::Patch(p("d/three"), 0, p("+")), Op::Chmod(p("e/three"), 0o600)];
    for (format, change) in
        [Format::Overlay, Format::Oci].into_iter().flat_map(|format| changes.iter().map(move |op| (format, op)))
    {
        let wrong = quarrel(format, &state, [&Op::Counts(p("d/three")), change]);
        assert!(wrong.is_empty(), "{wrong}");
    }
}

#[test]
fn overlay() {
    all_pairs(Format::Overlay, &states());
}

#[test]
fn marks_beside_names() {
    let states = states();
    for format in [Format::Oci, Format::UnionfsFuse] {
        all_pairs(format, &states[..1]);
    }
}
