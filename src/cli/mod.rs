//! Command lines: what was typed becomes a `MountRequest`, or one line that says what is wrong with it.
//!
//! Pure: nothing here looks at the system, so every form that mount(8), container engines and people use is a row in a
//! table of tests. Whether a directory exists is the daemon's question.

mod argv;
mod branches;
mod help;
mod mount;
mod options;
mod text;
mod values;

use std::ffi::OsString;

use crate::daemon::request::MountRequest;

pub use help::{help, version};

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Mount a union.
    Mount(Box<MountRequest>),
    /// Called as `mount.cowfs -f`: the line is in order, and nothing is to be mounted (`mount --fake`).
    Fake,
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// A command line that makes no sense: one line that quotes the offending text and says what would be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// The exit status for a `UsageError`.
pub const USAGE_STATUS: u8 = 2;

/// Reads a command line; `args` start with the program's own name, which mount(8) makes use of (`mount.cowfs`).
///
/// # Errors
/// What is wrong, ready to be printed.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    match argv::read(args)? {
        argv::Line::Help => Ok(Command::Help),
        argv::Line::Version => Ok(Command::Version),
        argv::Line::Words(words) => {
            let fake = words.fake;
            let request = mount::request(words)?;
            Ok(if fake { Command::Fake } else { Command::Mount(Box::new(request)) })
        }
    }
}
