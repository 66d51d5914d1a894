//! The outer grammar: which words are flags, which are `-o` options, which are positionals, in any order.
//!
//! mount(8) puts options after the positionals, people before; `-oX` and `-o X` are the same.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::cli::UsageError;
use crate::cli::text::quote;

/// A command line, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// What is neither a flag nor an option, in order.
    pub positionals: Vec<Vec<u8>>,
    /// The argument of each `-o`, in order, not yet split.
    pub options: Vec<Vec<u8>>,
    /// `-f`.
    pub foreground: bool,
    /// `-d`.
    pub debug: bool,
    /// `-s`.
    pub single_thread: bool,
    /// `-f`, called as mount.cowfs.
    pub fake: bool,
    /// mount(8) calls, as mount.cowfs.
    pub helper: bool,
    /// `-N`: the mount namespace that mount(8) was asked to mount in; by hand only to remount.
    pub namespace: Option<Vec<u8>>,
}

/// What the words amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Help,
    Version,
    /// `--completions SHELL`.
    Completions(String),
    Words(Words),
}

/// Whether mount(8) calls us by this name: then `-f` and `-s` mean what mount(8) means by them.
fn is_mount_helper(program: &OsString) -> bool {
    let name = program.as_encoded_bytes();
    let base = name.rsplit(|&byte| byte == b'/').next().unwrap_or(name);
    base == b"mount.cowfs" || base == b"mount.fuse.cowfs"
}

/// Sorts the words of a command line, the program's name first.
pub(super) fn read(mut args: impl Iterator<Item = OsString>) -> Result<Line, UsageError> {
    let helper = args.next().is_some_and(|program| is_mount_helper(&program));
    let mut words = Words { helper, ..Words::default() };
    let mut args = args.map(OsString::into_vec);
    while let Some(arg) = args.next() {
        match &arg[..] {
            b"--" => {
                words.positionals.extend(args);
                break;
            }
            b"--help" => return Ok(Line::Help),
            b"--version" => return Ok(Line::Version),
            b"--foreground" => words.foreground = true,
            b"--debug" => words.debug = true,
            b"--completions" => {
                let shell = args.next().unwrap_or_default();
                return Ok(Line::Completions(String::from_utf8_lossy(&shell).into_owned()));
            }
            [b'-', b'-', ..] => return Err(unknown(&arg)),
            [b'-', letters @ ..] if !letters.is_empty() => {
                if let Some(line) = read_letters(&arg, helper, &mut words, &mut args)? {
                    return Ok(line);
                }
            }
            _ => words.positionals.push(arg),
        }
    }
    // To mount elsewhere is for mount(8) to ask, which does what else belongs to it.
    let remounts = || words.options.iter().any(|list| list.split(|&byte| byte == b',').any(|one| one == b"remount"));
    if words.namespace.is_some() && !helper && !remounts() {
        return Err(UsageError::new("'-N' goes with -o remount; to mount in another namespace: mount -N"));
    }
    Ok(Line::Words(words))
}

/// Reads `-abc`: letters up to one that takes the rest, or the next word, as its argument.
fn read_letters(
    arg: &[u8],
    helper: bool,
    words: &mut Words,
    args: &mut impl Iterator<Item = Vec<u8>>,
) -> Result<Option<Line>, UsageError> {
    for (at, letter) in arg.iter().enumerate().skip(1) {
        match (letter, helper) {
            (b'h', _) => return Ok(Some(Line::Help)),
            (b'V', _) => return Ok(Some(Line::Version)),
            (b'f', false) => words.foreground = true,
            (b'f', true) => words.fake = true,
            (b's', false) => words.single_thread = true,
            // mount(8) says "sloppy": put up with unknown options. A misspelt `chroot=` must not be put up with.
            (b's', true) => {}
            (b'd', _) => words.debug = true,
            // mount(8): do not write /etc/mtab; be verbose.
            (b'n' | b'v', _) => {}
            (b'o' | b'N', _) | (b't', true) => {
                let rest = &arg[at + 1..];
                let value = if rest.is_empty() { args.next() } else { Some(rest.to_vec()) };
                let Some(value) = value else {
                    return Err(UsageError::new(format!("{} needs an argument after it", quote(&[b'-', *letter]))));
                };
                match letter {
                    b'o' => words.options.push(value),
                    b'N' => words.namespace = Some(value),
                    // The type is known: it is in the name we were called by.
                    _ => {}
                }
                return Ok(None);
            }
            _ => return Err(unknown(arg)),
        }
    }
    Ok(None)
}

fn unknown(arg: &[u8]) -> UsageError {
    UsageError::new(format!("unknown flag {}: flags are -o OPTIONS -f -d -s -n -v -h -V, see cowfs --help", quote(arg)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(program: &str, args: &str) -> Result<Line, String> {
        let args = std::iter::once(program).chain(args.split_whitespace()).map(OsString::from);
        read(args).map_err(|error| error.to_string())
    }

    /// Rows: words => positionals | -o arguments | flags.
    #[test]
    fn words_in_any_order() {
        for (args, expected) in [
            ("", "||"),
            ("A M", "A M||"),
            ("-o x A M", "A M|x|"),
            ("-ox A M", "A M|x|"),
            ("A M -o x,y", "A M|x,y|"),
            ("A -ox M -oy -o z", "A M|x y z|"),
            ("-f -d -s A M", "A M||fds"),
            ("-fds A M", "A M||fds"),
            ("-fox A M", "A M|x|f"),
            ("-fo x A M", "A M|x|f"),
            ("-n -v -nv A M", "A M||"),
            ("--foreground --debug A M", "A M||fd"),
            ("-o x -- -A -o", "-A -o|x|"),
            ("-o -f A", "A|-f|"),
            ("- M", "- M||"),
        ] {
            let Ok(Line::Words(words)) = line("cowfs", args) else { panic!("{args}") };
            let text = |list: &[Vec<u8>]| {
                list.iter().map(|one| String::from_utf8_lossy(one).into_owned()).collect::<Vec<_>>().join(" ")
            };
            let flags: String = [('f', words.foreground), ('d', words.debug), ('s', words.single_thread)]
                .iter()
                .filter_map(|&(letter, set)| set.then_some(letter))
                .collect();
            let shown = format!("{}|{}|{flags}", text(&words.positionals), text(&words.options));
            assert_eq!(shown, expected, "{args}");
        }
    }

    #[test]
    fn help_and_version_need_nothing_else() {
        for args in ["-h", "--help", "-h --nonsense", "A -h", "-fh"] {
            assert_eq!(line("cowfs", args), Ok(Line::Help), "{args}");
        }
        for args in ["-V", "--version", "A M -V"] {
            assert_eq!(line("cowfs", args), Ok(Line::Version), "{args}");
        }
    }

    #[test]
    fn bad_flags_are_quoted() {
        for (args, quoted) in [("-x A M", "'-x'"), ("--fore A", "'--fore'"), ("-fq", "'-fq'"), ("A M -t x", "'-t'")] {
            assert!(line("cowfs", args).is_err_and(|error| error.contains(quoted)), "{args}");
        }
        assert_eq!(line("cowfs", "A M -o"), Err("'-o' needs an argument after it".into()));
    }

    #[test]
    fn called_by_mount() {
        for program in ["/sbin/mount.cowfs", "mount.cowfs", "/x/mount.fuse.cowfs"] {
            let Ok(Line::Words(words)) = line(program, "A M -s -n -v -f -t cowfs -o rw,cow") else { panic!() };
            assert_eq!((words.fake, words.foreground, words.single_thread), (true, false, false));
            assert_eq!(words.positionals, [b"A".to_vec(), b"M".to_vec()]);
            assert_eq!(words.namespace, None);
            let Ok(Line::Words(words)) = line(program, "A M -N /run/ns -o rw") else { panic!() };
            assert_eq!(words.namespace, Some(b"/run/ns".to_vec()));
            assert!(line("cowfs", "A M -N /run/ns").is_err_and(|error| error.contains("'-N'")));
            let Ok(Line::Words(words)) = line("cowfs", "-N/run/ns -o ro,remount M") else { panic!() };
            assert_eq!(words.namespace, Some(b"/run/ns".to_vec()));
        }
    }
}
