//! Serving a program on the processor that it runs on (`near`).
//!
//! A program that asks one thing after the other sleeps while it is answered, and whoever answers sleeps while it runs:
//! between them they need one processor. The scheduler does not see that; it wakes each of them on whichever processor is
//! idle, and waking another processor takes longer than most answers. So while one program asks often
//!
//! - one thread serves alone: nobody else waits at /dev/fuse, to be woken in its stead;
//! - it stays on the processor of the program, which it looks up now and then;
//! - it yields (`SCHED_IDLE`): its processor passes for idle then, so the program is woken there, and goes on at once; by
//!   the time it sleeps again its next question is there, and the thread reads it without having slept.
//!
//! A thread that yields may be kept waiting by anybody. So a keeper looks at it every `LOOK`, and ends it as soon as requests are
//! not answered faster than they were by all threads: what it costs when it was a mistake is a few milliseconds, and it is
//! tried less and less often then.
//! A lock that the thread holds meanwhile is held so much longer, not more.
//!
//! Invariants: only the keeper makes a thread yield, and ends that; only the thread itself stays on a processor, and whoever
//! comes last lets it roam. A new thread is scheduled as the one that starts it: so serving threads start others by `spawn`
//! only. When nobody serves alone all threads are as the system made them. A thread that waits for its turn is at no request,
//! and holds nothing.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize};
use std::thread::{Builder, JoinHandle, Thread, park_timeout, sleep};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::sys::procfd;
use crate::sys::sched::{self, Policy};

/// The thread of a program that asks, by its number.
pub(super) type Asker = u32;
/// The kernel asks by itself.
pub(super) const NOBODY: Asker = 0;

/// So many requests in a `TICK` are worth a try: some thousand a second.
const BURST: u64 = 24;
const TICK: Duration = Duration::from_millis(4);
/// After so long without a request another burst begins.
const PAUSE: Duration = Duration::from_millis(1);
/// How often the keeper looks.
const LOOK: Duration = Duration::from_millis(2);
/// How often the thread looks where the program is.
const FOLLOW: Duration = Duration::from_micros(300);
/// How long not to try again: after the first try in vain, and at most.
const REST: (Duration, Duration) = (Duration::from_millis(16), Duration::from_secs(1));
/// How long the keeper waits for work before its thread ends.
const IDLE: Duration = Duration::from_secs(5);
/// A request for more data than this, in bytes, is better served while the program works on what it has.
const BULK: usize = 32 << 10;
const NOWHERE: usize = usize::MAX;

static NEAR: OnceLock<Near> = OnceLock::new();

thread_local! {
    /// This thread's number, if it serves.
    static SERVES: Cell<i32> = const { Cell::new(0) };
}

/// All times are in ns since `start`; what is only counted may be a little wrong.
struct Near {
    start: Instant,
    /// How many requests programs have made.
    asked: AtomicU64,
    /// What speaks against: how often it was somebody else who asked, or much data was asked for.
    against: AtomicU64,
    asker: AtomicU32,
    /// How many other threads are at work.
    jobs: AtomicUsize,
    /// When it was asked last, and where the present tick began.
    latest: AtomicU64,
    tick: Counts,
    /// What a request took, from one to the next, when all served.
    price: AtomicU64,
    not_before: AtomicU64,
    /// The thread that serves alone, or 0.
    alone: AtomicI32,
    /// On which processor it stays, and when it looked last.
    at: AtomicUsize,
    looked: AtomicU64,
    turn: Mutex<()>,
    over: Condvar,
    keeper: Mutex<Option<Thread>>,
}

#[derive(Default)]
struct Counts {
    time: AtomicU64,
    asked: AtomicU64,
    against: AtomicU64,
}

/// From now on who asks often is served nearby; once a process.
pub fn start() {
    let zero = || AtomicU64::new(0);
    NEAR.get_or_init(|| Near {
        start: Instant::now(),
        asked: zero(),
        against: zero(),
        asker: AtomicU32::new(NOBODY),
        jobs: AtomicUsize::new(0),
        latest: zero(),
        tick: Counts::default(),
        price: zero(),
        not_before: zero(),
        alone: AtomicI32::new(0),
        at: AtomicUsize::new(NOWHERE),
        looked: zero(),
        turn: Mutex::new(()),
        over: Condvar::new(),
        keeper: Mutex::new(None),
    });
}

/// `thread`, this one, has got a request of `from`.
pub(super) fn asked(thread: i32, from: Asker) {
    if let Some(near) = NEAR.get() {
        SERVES.set(thread);
        near.asked(thread, from);
    }
}

/// The request is for so many bytes of data.
pub(super) fn data(length: usize) {
    if let Some(near) = NEAR.get().filter(|_| length >= BULK) {
        near.against.fetch_add(1, Relaxed);
    }
}

/// Runs `job`, which takes long, on a thread that does not serve: two processors are wanted meanwhile.
pub(super) fn beside(job: impl FnOnce()) {
    let Some(near) = NEAR.get() else { return job() };
    near.jobs.fetch_add(1, Relaxed);
    job();
    near.jobs.fetch_sub(1, Relaxed);
}

/// Starts a thread for something else than serving, from one that may serve alone; it is scheduled as usual.
///
/// # Errors
/// As thread creation.
pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let alone = NEAR.get().map_or(0, |near| near.alone.load(Relaxed));
    if alone != 0 && alone == SERVES.get() {
        // A new thread that yields might not even begin for seconds. The keeper finds that this does not pay any more.
        complain(sched::yield_no_more(0));
    }
    Builder::new().name(name.into()).spawn(move || {
        if NEAR.get().is_some() {
            // The keeper may have come in between; and the processor is inherited, too.
            complain(sched::yield_no_more(0));
            complain(sched::roam(0));
        }
        body();
    })
}

/// The request is answered, and this thread holds nothing. Waits while another one serves alone.
pub(super) fn served() {
    let thread = SERVES.get();
    if let Some(near) = NEAR.get().filter(|_| thread != 0) {
        let must_wait = || ![0, thread].contains(&near.alone.load(Acquire));
        if must_wait() {
            near.over.wait_while(&mut near.turn.lock(), |()| must_wait());
        }
    }
}

impl Near {
    fn now(&self) -> u64 {
        ns(self.start.elapsed())
    }

    fn asked(&self, thread: i32, from: Asker) {
        // The kernel's own requests, and those of programs that this process cannot see, say nothing of who asks.
        if from == NOBODY {
            return;
        }
        let asked = self.asked.fetch_add(1, Relaxed) + 1;
        if self.asker.load(Relaxed) != from {
            self.asker.store(from, Relaxed);
            self.against.fetch_add(1, Relaxed);
        }
        match self.alone.load(Relaxed) {
            0 => self.consider(thread, asked),
            alone if alone == thread => self.follow(thread),
            _ => {}
        }
    }

    /// Begins to serve alone if many requests have come lately, and one program's.
    fn consider(&self, thread: i32, asked: u64) {
        let now = self.now();
        let (tick, against) = (&self.tick, self.against.load(Relaxed));
        let (time, requests) = (now - tick.time.load(Relaxed).min(now), asked - tick.asked.load(Relaxed).min(asked));
        // What comes after a pause is another burst: a pause is not what a request takes.
        let paused = now - self.latest.swap(now, Relaxed).min(now) > ns(PAUSE);
        if time > ns(TICK) || paused {
            tick.time.store(now, Relaxed);
            tick.asked.store(asked, Relaxed);
            tick.against.store(against, Relaxed);
        } else if requests >= BURST
            && is_one(requests, against - tick.against.load(Relaxed).min(against))
            && self.jobs.load(Relaxed) == 0
            && now >= self.not_before.load(Relaxed)
        {
            self.price.store(time / requests, Relaxed);
            self.at.store(NOWHERE, Relaxed);
            if self.alone.compare_exchange(0, thread, SeqCst, Relaxed).is_ok() {
                self.call_keeper();
            }
        }
    }

    fn call_keeper(&self) {
        let mut keeper = self.keeper.lock();
        if let Some(keeper) = &*keeper {
            return keeper.unpark();
        }
        match Builder::new().name("cowfs-near".into()).spawn(|| NEAR.get().map(Near::keep)) {
            Ok(handle) => *keeper = Some(handle.thread().clone()),
            Err(error) => {
                log::warn!("near: {error}: all threads serve as before");
                self.not_before.store(u64::MAX, Relaxed);
                self.all_serve();
            }
        }
    }

    /// Goes, with this thread, where the program is.
    fn follow(&self, thread: i32) {
        let now = self.now();
        if now - self.looked.load(Relaxed).min(now) < ns(FOLLOW) {
            return;
        }
        self.looked.store(now, Relaxed);
        let Ok(asker) = i32::try_from(self.asker.load(Relaxed)) else { return };
        let Some(processor) = procfd::processor_of(asker) else { return };
        // Where this process may not go the keeper finds that it does not pay.
        if processor != self.at.load(Relaxed) && sched::stay_on(0, processor).is_ok() {
            self.at.store(processor, Relaxed);
            if self.alone.load(SeqCst) != thread {
                complain(sched::roam(0));
            }
        }
    }

    /// The life of the keeper.
    fn keep(&self) {
        let mut rest = REST.0;
        let mut wait = IDLE;
        loop {
            let thread = self.alone.load(Acquire);
            if thread == 0 {
                park_timeout(wait);
                // Under the lock: who calls afterwards starts a keeper anew.
                let mut keeper = self.keeper.lock();
                if self.alone.load(SeqCst) == 0 {
                    *keeper = None;
                    return;
                }
                continue;
            }
            let pays = self.try_alone(thread);
            let not_before = match pays {
                Ok(true) => {
                    rest = REST.0;
                    0
                }
                Ok(false) => {
                    let not_before = self.now() + ns(rest);
                    rest = (rest * 2).min(REST.1);
                    not_before
                }
                Err(_) => u64::MAX,
            };
            self.not_before.store(not_before, Relaxed);
            self.all_serve();
            if let Err(error) = pays {
                // Not earlier: who reads the log may wait for an answer.
                log::info!("near: {error}: all threads serve as before");
                // There is nothing to wait for.
                wait = Duration::ZERO;
            }
        }
    }

    /// Lets `thread` serve alone for as long as that pays; whether it ever did.
    ///
    /// # Errors
    /// `EPERM` or `EACCES` where there is no way back from yielding, or the user has chosen a way of scheduling.
    fn try_alone(&self, thread: i32) -> Result<bool, Errno> {
        if sched::policy(thread) != Some(Policy::Usual) {
            return Err(Errno::PERM);
        }
        sched::may_come_back()?;
        sched::set_policy(thread, Policy::Yielding)?;
        let price = self.price.load(Relaxed);
        let mut looks = 0;
        let look = || (self.now(), self.asked.load(Relaxed), self.against.load(Relaxed));
        let (mut time, mut asked, mut against) = look();
        loop {
            sleep(LOOK);
            let next = look();
            let requests = next.1 - asked;
            let pays =
                next.0 - time <= requests * price && is_one(requests, next.2 - against) && self.jobs.load(Relaxed) == 0;
            (time, asked, against) = next;
            // The first time all have to find their places.
            if !pays && looks > 0 {
                break;
            }
            looks += 1;
        }
        complain(sched::yield_no_more(thread));
        Ok(looks > 1)
    }

    /// Ends the time of who served alone.
    fn all_serve(&self) {
        let thread = self.alone.swap(0, SeqCst);
        complain(sched::roam(thread));
        // It may have begun anew, and been on its processor, before that.
        self.at.store(NOWHERE, Relaxed);
        drop(self.turn.lock());
        self.over.notify_all();
    }
}

/// Whether so many requests are one program's, where so much speaks against it.
fn is_one(requests: u64, against: u64) -> bool {
    // One program after the other, each for a moment, as a shell script starts them, is not one.
    against <= requests / 16
}

fn ns(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// A thread that has ended needs nothing.
fn complain(result: Result<(), Errno>) {
    if let Err(error) = result
        && error != Errno::SRCH
    {
        log::warn!("near: a serving thread cannot be scheduled as usual again: {error}");
    }
}
