//! Which processor a thread of this process runs on, and what it yields to. See sched(7).

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How a thread is scheduled among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `SCHED_OTHER`: as programs usually are.
    Usual,
    /// `SCHED_IDLE`: whoever else wants the processor has it, and a processor that runs nothing else passes for idle when
    /// a place is sought for somebody who wakes up.
    Yielding,
}

/// Whether `thread` (0: this one) is scheduled as programs usually are; not where its user has asked for something else.
#[must_use]
pub fn is_usual(thread: i32) -> bool {
    // SAFETY: plain integers go in and come out.
    unsafe { libc::sched_getscheduler(thread) == libc::SCHED_OTHER }
}

/// Schedules `thread` (0: this one) by `policy`; its nice value stays.
///
/// # Errors
/// As sched_setscheduler(2): `EPERM` for a way back to `Usual` without `CAP_SYS_NICE` and with `RLIMIT_NICE` as it usually is.
pub fn set_policy(thread: i32, policy: Policy) -> Result<(), Errno> {
    let policy = match policy {
        Policy::Usual => libc::SCHED_OTHER,
        Policy::Yielding => libc::SCHED_IDLE,
    };
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the parameters, which outlive the call.
    super::check(unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) }.into()).map(|_| ())
}

/// Keeps `thread` on one processor.
///
/// # Errors
/// As sched_setaffinity(2): `EINVAL` if this process may not use that one.
pub fn stay_on(thread: i32, processor: usize) -> Result<(), Errno> {
    if processor >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL);
    }
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(Pid::from_raw(thread), &only)
}

/// Lets `thread` run wherever the first thread of this process may.
///
/// # Errors
/// As sched_setaffinity(2).
pub fn roam(thread: i32) -> Result<(), Errno> {
    let anywhere = sched_getaffinity(Some(rustix::process::getpid()))?;
    sched_setaffinity(Pid::from_raw(thread), &anywhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stayed_may_roam_again() {
        let anywhere = sched_getaffinity(None).unwrap();
        let processor = (0..CpuSet::MAX_CPU).find(|&processor| anywhere.is_set(processor)).unwrap();
        let there = std::thread::spawn(move || {
            stay_on(0, processor).unwrap();
            let stayed = sched_getaffinity(None).unwrap();
            roam(0).unwrap();
            (stayed.count(), stayed.is_set(processor), sched_getaffinity(None).unwrap())
        });
        assert_eq!(there.join().unwrap(), (1, true, anywhere));
        assert_eq!(stay_on(0, CpuSet::MAX_CPU), Err(Errno::INVAL));
    }

    #[test]
    fn who_may_yields_and_takes_it_back() {
        let there = std::thread::spawn(|| {
            assert!(is_usual(0));
            set_policy(0, Policy::Yielding).unwrap();
            let yielding = !is_usual(0);
            (yielding, set_policy(0, Policy::Usual).is_ok(), is_usual(0))
        });
        let (yielding, back, usual) = there.join().unwrap();
        assert!(yielding);
        assert_eq!(back, usual);
    }
}
