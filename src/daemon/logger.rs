//! Where the daemon's messages go: standard error while somebody reads it, afterwards syslog or `debug_file=`.
//!
//! Every target is opened before the daemon changes its root, and writing to syslog never waits: a logger that opens a
//! path, or waits for a program that waits for the union, would hang the machine.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use crate::daemon::resolve::Checked;

/// LOG_DAEMON of syslog(3).
const FACILITY: u8 = 3;

/// Longer lines are cut: a datagram must fit.
const LONGEST: usize = 2000;

/// Where lines go.
#[derive(Debug)]
enum Sink {
    Stderr,
    File(File),
    Syslog(UnixDatagram),
    Nowhere,
}

/// In a second, syslog gets no more lines than this: tenants can provoke errors, and the log is the machine's.
const MOST_LINES: u32 = 40;

/// How many lines went to syslog in this second, and how many did not.
#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    lines: u32,
    lost: u32,
}

impl Rate {
    /// Whether one more may go, and how many were lost since the last one that did.
    fn pass(&mut self, now: Instant) -> Option<u32> {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= MOST_LINES {
            self.lost = self.lost.saturating_add(1);
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.lost))
    }
}

struct Logger(Mutex<(Sink, Rate)>);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// What `switch` will change to, already open.
#[derive(Debug)]
pub(crate) struct Later(Sink);

/// Starts logging to standard error, warnings and worse, or everything if `debug`.
pub(crate) fn start(debug: bool) {
    let logger = LOGGER.get_or_init(|| Logger(Mutex::new((Sink::Stderr, Rate::default()))));
    // A second start in one process (tests) keeps the first logger, which is the same.
    let _ = log::set_logger(logger);
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Warn });
    std::panic::set_hook(Box::new(|info| log::error!("bug: {info}")));
}

/// Opens what is logged to after start-up: `debug_file=`, else syslog, unless in the foreground.
///
/// # Errors
/// A line, if `debug_file=` cannot be opened.
pub(crate) fn prepare(file: Option<&Path>, foreground: bool) -> Checked<Later> {
    if let Some(path) = file {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| format!("cannot open debug_file {path:?}: {error}"))?;
        return Ok(Later(Sink::File(file)));
    }
    if foreground {
        return Ok(Later(Sink::Stderr));
    }
    Ok(Later(syslog().map_or(Sink::Nowhere, Sink::Syslog)))
}

/// Changes over to what `prepare` opened. A `debug_file=` was asked for to hold everything.
pub(crate) fn switch(later: Later) {
    if matches!(later.0, Sink::File(_)) {
        log::set_max_level(LevelFilter::Debug);
    }
    if let Some(logger) = LOGGER.get() {
        logger.0.lock().0 = later.0;
    }
}

fn syslog() -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect("/dev/log")?;
    Ok(socket)
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = one_line(&record.args().to_string());
        let (sink, rate) = &mut *self.0.lock();
        // A line that cannot be written is lost: there is nobody else to tell.
        let _ = match sink {
            Sink::Stderr => std::io::stderr().write_all(format!("cowfs: {text}\n").as_bytes()),
            Sink::File(file) => file.write_all(format!("{} {text}\n", record.level()).as_bytes()),
            Sink::Syslog(socket) => {
                let Some(lost) = rate.pass(Instant::now()) else { return };
                let lost =
                    if lost > 0 { format!(" ({lost} lines were left out before this one)") } else { String::new() };
                let line = format!("<{}>cowfs[{}]: {text}{lost}", priority(record.level()), std::process::id());
                socket.send(line.as_bytes()).map(|_| ())
            }
            Sink::Nowhere => Ok(()),
        };
    }

    fn flush(&self) {}
}

/// Facility and severity in one number, as syslog(3).
fn priority(level: Level) -> u8 {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    FACILITY * 8 + severity
}

/// A tenant chooses file names, and must not choose what the log says next.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if line.len() >= LONGEST {
            line.push_str("...");
            break;
        }
        line.push(if char.is_control() { ' ' } else { char });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_lines() {
        assert_eq!(one_line("a\nb\x1b[m"), "a b [m");
        assert_eq!(one_line(&"x".repeat(5000)).len(), LONGEST + 3);
    }

    #[test]
    fn floods_are_cut() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let passed = (0..1000).filter(|_| rate.pass(start).is_some()).count();
        assert_eq!(passed, MOST_LINES as usize);
        let later = start + Duration::from_secs(2);
        assert_eq!((rate.pass(later), rate.pass(later)), (Some(1000 - MOST_LINES), Some(0)));
    }

    #[test]
    fn priorities_of_syslog() {
        assert_eq!((priority(Level::Error), priority(Level::Warn), priority(Level::Debug)), (27, 28, 31));
    }
}
