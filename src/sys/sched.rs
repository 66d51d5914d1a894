//! How soon a thread gets a processor that others use: sched_setattr(2).

use std::time::Duration;

/// struct sched_attr, as first published: 48 bytes.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks for time in slices of `slice` (100 us to 100 ms; zero: the system's own) for this thread and those it starts.
///
/// Who asks for short slices gets no more time, but gets it sooner: it need not wait until another one's longer slice is
/// over. Kernels before 6.12 know nothing of it, and where it is forbidden nothing is lost but that.
pub fn set_slice(slice: Duration) {
    // SAFETY: gets the nice value of the calling thread; no memory is passed.
    let nice = 20 - unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: 0,
        // Whoever chose another policy for the daemon has his way: real-time ones refuse this.
        flags: libc::SCHED_FLAG_KEEP_POLICY as u64,
        nice: nice.clamp(-20, 19) as i32,
        priority: 0,
        runtime: slice.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the structure is as long as it says, and only read.
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0;
    if refused {
        log::debug!("no time slices of one's own: {}", std::io::Error::last_os_error());
    }
}
