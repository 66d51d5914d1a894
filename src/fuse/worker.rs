//! Threads for requests that take long: copying up a large file must not keep the threads that read requests.
//!
//! Started when needed, at most `MOST` at a time, gone when idle for a while; a job that finds none free waits in line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::fuse::near;
use crate::fuse::pulse::aside;

const MOST: usize = 8;
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// The threads and the line before them.
#[derive(Default)]
pub struct Workers {
    line: Mutex<Line>,
    arrived: Condvar,
}

impl Workers {
    /// Runs `job` on another thread; on this one if none can be had.
    pub fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut line = self.line.lock();
        line.jobs.push_back(Box::new(job));
        if line.idle >= line.jobs.len() {
            self.arrived.notify_one();
            return;
        }
        if line.threads >= MOST {
            return;
        }
        line.threads += 1;
        let workers = self.clone();
        if near::spawn("cowfs-worker", move || workers.serve()).is_err() {
            line.threads -= 1;
            // With others at work one of them will come to it; without, nobody would.
            let last = if line.threads == 0 { line.jobs.pop_back() } else { None };
            drop(line);
            if let Some(job) = last {
                job();
            }
        }
    }

    fn serve(&self) {
        aside();
        let mut line = self.line.lock();
        loop {
            if let Some(job) = line.jobs.pop_front() {
                drop(line);
                near::beside(job);
                line = self.line.lock();
                continue;
            }
            line.idle += 1;
            let waited = self.arrived.wait_for(&mut line, IDLE);
            line.idle -= 1;
            if waited.timed_out() && line.jobs.is_empty() {
                line.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn more_jobs_than_threads_are_all_done() {
        let workers = Arc::new(Workers::default());
        let (sender, receiver) = channel();
        for job in 0..100 {
            let sender = sender.clone();
            workers.run(move || sender.send(job).unwrap());
        }
        let mut done: Vec<i32> = receiver.iter().take(100).collect();
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
        assert!(workers.line.lock().threads <= MOST);
    }
}
