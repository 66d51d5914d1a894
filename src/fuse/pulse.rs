//! Which request each serving thread is at, and what is done when they get stuck, all of them or one for too long.
//!
//! A branch that does not answer (a dead file server) keeps every thread that asks it. When all threads have been at the same
//! request for a moment, more are started, so that requests which need not ask that branch are served; when one request has
//! taken longer than `watchdog=` allows, the daemon is given up.
//!
//! Invariant: a request costs two locks that nobody else wants, and no look at the clock. The thread that looks after the
//! others exists only while there is something to look after.

use std::cell::OnceCell;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fuse::near::Asker;
use crate::fuse::{awake, near};
use crate::sys::procfd;

/// How often the threads are looked at; who is at the same request twice is stuck.
const LOOK: Duration = Duration::from_millis(100);
/// How long the looking goes on when nobody is at work.
const IDLE: Duration = Duration::from_secs(5);
/// More threads than this do not help.
const MOST: usize = 64;

/// What one serving thread is at.
struct Server {
    thread: AtomicI32,
    beat: Mutex<Beat>,
}

#[derive(Clone, Copy, Default)]
struct Beat {
    /// How many requests it has begun.
    count: u64,
    request: Option<&'static str>,
}

/// What is to be done.
pub struct Watch {
    /// How long a request may take: `watchdog=`.
    pub patience: Option<Duration>,
    /// Starts so many more serving threads.
    pub more: Box<dyn Fn(usize) -> std::io::Result<()> + Send + Sync>,
    /// Ends the daemon, after a line in the log.
    pub give_up: Box<dyn Fn() + Send + Sync>,
}

static WATCH: OnceLock<Watch> = OnceLock::new();
static SERVERS: Mutex<Vec<Arc<Server>>> = Mutex::new(Vec::new());
/// How many threads serve, those included that have not had a request yet.
static THREADS: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Whoever is at what all requests wait for; one at a time.
static BESIDE: OnceLock<Arc<Server>> = OnceLock::new();
static BUSY: AtomicUsize = AtomicUsize::new(0);
static LOOKING: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// `None`: this thread serves nobody by itself.
    static SERVER: OnceCell<Option<Arc<Server>>> = const { OnceCell::new() };
}

/// From now on `threads` threads are looked after; once a process.
pub fn start(threads: usize, watch: Watch) {
    if WATCH.set(watch).is_ok() {
        THREADS.store(threads, Ordering::Relaxed);
    }
}

/// This thread works for those that serve: how long it takes for its work is nobody's business.
pub(super) fn aside() {
    SERVER.with(|server| server.set(None).unwrap_or_default());
}

/// Runs `body`, which answers `request`, of `from`.
pub(super) fn during(from: Asker, request: &'static str, body: impl FnOnce()) {
    SERVER.with(|server| match server.get_or_init(register) {
        None => body(),
        Some(server) => {
            let thread = server.thread.load(Ordering::Relaxed);
            awake::asked();
            near::asked(thread, from);
            let count = server.begin(request);
            let busy = BUSY.fetch_add(1, Ordering::Relaxed) + 1;
            if !LOOKING.load(Ordering::Relaxed) {
                look_if_needed(busy);
            }
            body();
            BUSY.fetch_sub(1, Ordering::Relaxed);
            *server.beat.lock() = Beat { count, request: None };
        }
    });
}

/// Runs `body`, for which all requests wait: the watchdog looks after it as after a request.
pub(super) fn beside<T>(request: &'static str, body: impl FnOnce() -> T) -> T {
    if WATCH.get().is_none() {
        return body();
    }
    let server = BESIDE.get_or_init(enlist);
    server.thread.store(this_thread(), Ordering::Relaxed);
    let count = server.begin(request);
    look_if_needed(0);
    let done = body();
    *server.beat.lock() = Beat { count, request: None };
    done
}

impl Server {
    fn begin(&self, request: &'static str) -> u64 {
        let mut beat = self.beat.lock();
        *beat = Beat { count: beat.count.wrapping_add(1), request: Some(request) };
        beat.count
    }
}

fn register() -> Option<Arc<Server>> {
    WATCH.get()?;
    Some(enlist())
}

fn enlist() -> Arc<Server> {
    let server = Arc::new(Server { thread: this_thread().into(), beat: Mutex::default() });
    SERVERS.lock().push(server.clone());
    server
}

fn this_thread() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

fn look_if_needed(busy: usize) {
    let Some(watch) = WATCH.get() else { return };
    let needed = watch.patience.is_some() || busy >= THREADS.load(Ordering::Relaxed);
    if needed && !LOOKING.swap(true, Ordering::Relaxed) {
        let looking = near::spawn("cowfs-watch", move || look(watch));
        if let Err(error) = looking {
            log::warn!("nobody looks after the serving threads: {error}");
            LOOKING.store(false, Ordering::Relaxed);
        }
    }
}

/// The life of the thread that looks.
fn look(watch: &Watch) {
    aside();
    let mut seen: Vec<(u64, Instant)> = Vec::new();
    let mut last_work = Instant::now();
    while last_work.elapsed() < IDLE {
        sleep(LOOK);
        let servers: Vec<_> =
            SERVERS.lock().iter().map(|server| (server.thread.load(Ordering::Relaxed), *server.beat.lock())).collect();
        let now = Instant::now();
        seen.resize(servers.len(), (0, now));
        let mut stuck = Vec::new();
        for ((count, since), (thread, beat)) in seen.iter_mut().zip(&servers) {
            match beat.request {
                Some(request) if *count == beat.count => stuck.push((*thread, request, now.duration_since(*since))),
                _ => (*count, *since) = (beat.count, now),
            }
            if beat.request.is_some() {
                last_work = now;
            }
        }
        if watch.patience.is_some_and(|patience| stuck.iter().any(|(.., waited)| *waited >= patience)) {
            log::error!("watchdog: requests are not answered ({}): giving up", describe(&stuck));
            (watch.give_up)();
        }
        let threads = THREADS.load(Ordering::Relaxed);
        if stuck.len() >= threads && threads < MOST {
            log::info!("all threads wait ({}): as many more", describe(&stuck));
            THREADS.store(threads * 2, Ordering::Relaxed);
            if let Err(error) = (watch.more)(threads) {
                log::warn!("no more threads: {error}");
            }
        }
    }
    LOOKING.store(false, Ordering::Relaxed);
}

/// What each waits for, in the kernel's words.
fn describe(stuck: &[(i32, &str, Duration)]) -> String {
    let mut text = String::new();
    for (thread, request, waited) in stuck {
        let place = procfd::waits_in(*thread).unwrap_or_else(|| "?".into());
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{request} for {:.1} s in {place}", waited.as_secs_f64());
    }
    text
}
