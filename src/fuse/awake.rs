//! Keeping the machine's idle processors from sleeping while requests come in (`awake`).
//!
//! A request is a question to a thread that sleeps, by one that sleeps until it is answered: where an idle processor is slow
//! to wake, as in a virtual machine, that is most of what a request costs. The kernel's way to ask for better is
//! Documentation/power/pm_qos_interface.rst: the longest wake-up that anybody can bear, for all processors.
//!
//! Invariant: the machine is held awake only while requests follow each other closely, and `LINGER` longer; by nobody once
//! the descriptor is closed, so not after the daemon's end, however that comes.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, Thread, park, sleep};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// No processor may need any time to wake.
const AWAKE: [u8; 4] = 0_i32.to_ne_bytes();
/// No wish.
const ANY: [u8; 4] = (-1_i32).to_ne_bytes();

/// So many requests in a `TICK` are worth it: a few thousand a second.
const BURST: u64 = 16;
/// In ms; the coarse clock's own ticks are as long, or shorter.
const TICK: u64 = 4;
/// How long to wait for more when fewer come.
const LINGER: Duration = Duration::from_millis(20);

static WISH: OnceLock<Wish> = OnceLock::new();

struct Wish {
    device: OwnedFd,
    /// How many requests there were.
    asked: AtomicU64,
    /// How many of them before the present tick, and which tick that is.
    before: AtomicU64,
    tick: AtomicU64,
    /// Somebody has asked the machine to be awake, and the thread that takes it back is at work.
    held: AtomicBool,
    release: Thread,
}

/// From now on requests keep the machine awake, by what they write to `device` (open, /dev/cpu_dma_latency or the like: 4
/// bytes, microseconds); once a process.
///
/// # Errors
/// As thread creation.
pub fn start(device: OwnedFd) -> std::io::Result<()> {
    let release = Builder::new().name("cowfs-awake".into()).spawn(|| {
        loop {
            park();
            if let Some(wish) = WISH.get().filter(|wish| wish.held.load(Ordering::Acquire)) {
                wish.release();
            }
        }
    })?;
    let (asked, before, tick) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (held, release) = (AtomicBool::new(false), release.thread().clone());
    WISH.get_or_init(|| Wish { device, asked, before, tick, held, release });
    Ok(())
}

/// A request has come.
pub(super) fn asked() {
    if let Some(wish) = WISH.get() {
        wish.count();
    }
}

impl Wish {
    fn count(&self) {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if self.held.load(Ordering::Relaxed) {
            return;
        }
        let now = clock_gettime(ClockId::MonotonicCoarse);
        let tick = (now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000) / TICK;
        if self.tick.swap(tick, Ordering::Relaxed) != tick {
            self.before.store(asked, Ordering::Relaxed);
        } else if asked.saturating_sub(self.before.load(Ordering::Relaxed)) >= BURST
            && !self.held.swap(true, Ordering::AcqRel)
            && self.write(AWAKE)
        {
            self.release.unpark();
        }
    }

    /// Waits until few requests come, and lets the processors sleep again.
    fn release(&self) {
        loop {
            let before = self.asked.load(Ordering::Relaxed);
            sleep(LINGER);
            if self.asked.load(Ordering::Relaxed) - before < BURST {
                break;
            }
        }
        if self.write(ANY) {
            self.held.store(false, Ordering::Release);
        }
    }

    /// Whether it could be said. If not, `held` stays, so that nobody tries, and complains, again.
    fn write(&self, wish: [u8; 4]) -> bool {
        let written = rustix::io::write(&self.device, &wish);
        written.inspect_err(|error| log::warn!("awake: {error}: left as it is from now on")).is_ok()
    }
}
