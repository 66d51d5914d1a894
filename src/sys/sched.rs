//! Which processors a thread of this process runs on, and what it yields to. See sched(7).

use rustix::io::Errno;
use rustix::process::{getpid, getpriority_process, setpriority_process};

/// How a thread is scheduled among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `SCHED_OTHER`: as programs usually are.
    Usual,
    /// `SCHED_IDLE`: whoever else wants the processor has it, and a processor that runs nothing else passes for idle when
    /// a place is sought for somebody who wakes up.
    Yielding,
}

/// By what policy `thread` (0: this one) is scheduled; `None` where its user has asked for something else, and where there is
/// no such thread.
#[must_use]
pub fn policy(thread: i32) -> Option<Policy> {
    // SAFETY: plain integers go in and come out.
    match unsafe { libc::sched_getscheduler(thread) } {
        libc::SCHED_OTHER => Some(Policy::Usual),
        libc::SCHED_IDLE => Some(Policy::Yielding),
        _ => None,
    }
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

/// Ends the yielding of `thread` (0: this one). What the user has asked for stays: any other policy, and yielding, too, where
/// the first thread does.
///
/// # Errors
/// As `set_policy`.
pub fn yield_no_more(thread: i32) -> Result<(), Errno> {
    let yields = |thread| policy(thread) == Some(Policy::Yielding);
    if yields(thread) && !yields(first()) { set_policy(thread, Policy::Usual) } else { Ok(()) }
}

/// Whether a thread like this one that yields could be scheduled as usual again: the kernel asks for the same as for the way
/// back to this thread's nice value from the next one. So it is tried without yielding: who yields may not come to the second
/// step for a long time. Where the answer is no this thread is one nicer from now on.
///
/// # Errors
/// `EPERM`, or `EACCES`: it could not; `EPERM` also for the nicest, where it cannot be tried.
pub fn may_come_back() -> Result<(), Errno> {
    let nice = getpriority_process(None)?;
    if nice >= NICEST {
        return Err(Errno::PERM);
    }
    setpriority_process(None, nice + 1)?;
    setpriority_process(None, nice)
}

/// The largest nice value.
const NICEST: i32 = 19;

/// A set of processors; no kernel knows of more than 8192 (`rustix::thread::CpuSet` of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Processors([libc::c_ulong; 128]);

impl Processors {
    const ALL: Self = Self([!0; 128]);

    fn only(processor: usize) -> Option<Self> {
        let mut only = Self([0; 128]);
        let bits = libc::c_ulong::BITS as usize;
        *only.0.get_mut(processor / bits)? = 1 << (processor % bits);
        Some(only)
    }

    fn of(thread: i32) -> Result<Self, Errno> {
        let mut found = Self([0; 128]);
        let set = (&raw mut found).cast::<libc::cpu_set_t>();
        // SAFETY: the kernel writes so many bytes at most, which `found` has.
        super::check(unsafe { libc::sched_getaffinity(thread, size_of::<Self>(), set) }.into())?;
        Ok(found)
    }

    fn allow(self, thread: i32) -> Result<(), Errno> {
        let set = (&raw const self).cast::<libc::cpu_set_t>();
        // SAFETY: the kernel reads so many bytes at most, which `self` has.
        super::check(unsafe { libc::sched_setaffinity(thread, size_of::<Self>(), set) }.into()).map(|_| ())
    }
}

/// Keeps `thread` (0: this one) on one processor.
///
/// # Errors
/// As sched_setaffinity(2): `EINVAL` if this process may not use that one.
pub fn stay_on(thread: i32, processor: usize) -> Result<(), Errno> {
    Processors::only(processor).ok_or(Errno::INVAL)?.allow(thread)
}

/// Lets `thread` (0: this one) run wherever the first thread of this process may, which never stays anywhere.
///
/// # Errors
/// As sched_getaffinity(2) and sched_setaffinity(2).
pub fn roam(thread: i32) -> Result<(), Errno> {
    let anywhere = Processors::of(first())?;
    // Where nobody but the machine, or the cpuset, sets bounds, none are set: those may be widened.
    Processors::ALL.allow(thread)?;
    if Processors::of(thread)? == anywhere { Ok(()) } else { anywhere.allow(thread) }
}

/// The first thread of this process.
fn first() -> i32 {
    getpid().as_raw_nonzero().get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stayed_may_roam_again() {
        let anywhere = Processors::of(0).unwrap();
        let processor = (0..).find(|&processor| anywhere.0[processor / 64] >> (processor % 64) & 1 == 1).unwrap();
        let there = std::thread::spawn(move || {
            stay_on(0, processor).unwrap();
            let stayed = Processors::of(0).unwrap();
            roam(0).unwrap();
            (Some(stayed), Processors::of(0).unwrap())
        });
        assert_eq!(there.join().unwrap(), (Processors::only(processor), anywhere));
        assert_eq!(stay_on(0, 8191), Err(Errno::INVAL));
        assert_eq!(stay_on(0, 8192), Err(Errno::INVAL));
        assert_eq!(stay_on(0, usize::MAX), Err(Errno::INVAL));
    }

    #[test]
    fn who_may_yields_and_takes_it_back() {
        let there = std::thread::spawn(|| {
            assert_eq!(policy(0), Some(Policy::Usual));
            let may = may_come_back().is_ok();
            set_policy(0, Policy::Yielding).unwrap();
            assert_eq!(policy(0), Some(Policy::Yielding));
            (may, set_policy(0, Policy::Usual).is_ok(), policy(0) == Some(Policy::Usual))
        });
        let (may, back, usual) = there.join().unwrap();
        assert_eq!((may, may), (back, usual));
    }

    #[test]
    fn the_nicest_is_not_tried() {
        let there = std::thread::spawn(|| {
            setpriority_process(None, NICEST).unwrap();
            may_come_back()
        });
        assert_eq!(there.join().unwrap(), Err(Errno::PERM));
    }
}
