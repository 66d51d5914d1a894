//! Command lines: what was typed becomes a `MountRequest`, or one line that says what is wrong with it.
//!
//! Pure: nothing here looks at the system, so every form that mount(8), container engines and people use is a row in a
//! table of tests. Whether a directory exists is the daemon's question.

mod argv;
mod branches;
mod completions;
mod help;
mod mount;
mod options;
mod text;
mod values;

use std::ffi::OsString;

use crate::daemon::request::{MountRequest, RemountRequest};

pub use help::{help, version};

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Mount a union.
    Mount(Box<MountRequest>),
    /// Change the flags of a mounted union.
    Remount(RemountRequest),
    /// Called as `mount.cowfs -f`: the line is in order, and nothing is to be mounted (`mount --fake`).
    Fake,
    /// Print the help.
    Help,
    /// Print the version.
    Version,
    /// Print a script for a shell.
    Completions(String),
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
        argv::Line::Completions(shell) => completions::completions(&shell)
            .map(Command::Completions)
            .ok_or_else(|| UsageError::new("--completions needs the name of a shell after it: bash, zsh or fish")),
        argv::Line::Words(words) => {
            let fake = words.fake;
            let command = mount::command(words)?;
            Ok(if fake { Command::Fake } else { command })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    /// Words that mean something, and what breaks them, in any order.
    fn word() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::sample::select(vec![
                "-o",
                "-",
                "--",
                ",",
                ":",
                "=",
                "\\",
                "\"",
                "=RW",
                "=RO+wh",
                "lowerdir=",
                "upperdir=",
                "workdir=",
                "dirs=",
                "chroot=",
                "context=\"",
                "uidmapping=",
                "threads=",
                "timeout=",
                "whiteout=",
                "/a",
                "b",
                "0",
                "18446744073709551616",
                "1e400",
                "-1",
                "x-",
                "allow_other",
                "remount",
                "branches=",
                "\u{1b}[2J",
                "\n",
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
            proptest::collection::vec(1u8.., 1..4),
        ];
        proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever is typed: a request that names a branch and a mountpoint, or one harmless line.
        #[test]
        fn any_words(words in proptest::collection::vec(word(), 0..6)) {
            let args = words.into_iter().map(OsString::from_vec);
            match parse(std::iter::once("cowfs".into()).chain(args)) {
                Ok(Command::Mount(request)) => {
                    prop_assert!(!request.branches.is_empty());
                    prop_assert!(!request.mountpoint.as_os_str().is_empty());
                    prop_assert!(request.branches.iter().skip(1).all(|branch| !branch.writable));
                    prop_assert!(request.branches.iter().all(|branch| !branch.path.as_os_str().is_empty()));
                }
                Ok(Command::Remount(request)) => prop_assert!(!request.mountpoint.as_os_str().is_empty()),
                Ok(Command::Fake | Command::Help | Command::Version | Command::Completions(_)) => {}
                Err(error) => {
                    let line = error.to_string();
                    prop_assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
                }
            }
        }

        /// Escaping every byte that means something gives the path back, wherever it stands.
        #[test]
        fn any_path_can_be_named(path in proptest::collection::vec(1u8.., 1..20)) {
            let mut escaped = Vec::new();
            for &byte in &path {
                if b":,=\\".contains(&byte) {
                    escaped.push(b'\\');
                }
                escaped.push(byte);
            }
            let option = |name: &[u8]| OsString::from_vec([b"-o", name, &escaped].concat());
            let plain = std::path::PathBuf::from(OsString::from_vec(path.clone()));
            let branches = OsString::from_vec([b"./", &escaped[..], b"=RW"].concat());
            let args = ["cowfs".into(), option(b"chroot="), branches, "/m".into()];
            let Ok(Command::Mount(request)) = parse(args.into_iter()) else { panic!() };
            prop_assert_eq!(request.chroot.as_ref(), Some(&plain));
            prop_assert_eq!(&request.branches[0].path, &OsString::from_vec([b"./", &path[..]].concat()));
            let args = ["cowfs".into(), option(b"workdir=w,upperdir=u,lowerdir="), "/m".into()];
            let Ok(Command::Mount(request)) = parse(args.into_iter()) else { panic!() };
            prop_assert_eq!(&request.branches[1].path, &plain);
        }
    }
}
