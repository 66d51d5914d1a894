//! The words after `-o`: every option that cowfs knows, and what each does to the request.
//!
//! One table holds them all: our own and unionfs-fuse's, mount(8)'s, libfuse's, fuse-overlayfs's and overlayfs's. An
//! option that would change what programs see, and that we cannot honour, is refused with the reason: ignored, it
//! would be a lie. One whose absence nobody can notice is accepted.

use std::path::PathBuf;

use crate::cli::UsageError;
use crate::cli::branches::{branches, lower_dirs};
use crate::cli::text::{path, positions, quote};
use crate::cli::values::{
    Given, aside, bounded_seconds, format, id, is_off, number, on_off, redirect_dir, seconds, threads, utf8, zero_one,
};
use crate::daemon::request::{BranchArg, MountRequest, Private};

/// What the options said; what it amounts to together with the positionals is `mount`'s to say.
#[derive(Default)]
pub(super) struct Typed {
    /// All that stands for itself.
    pub request: MountRequest,
    /// `dirs=`.
    pub dirs: Option<Vec<BranchArg>>,
    /// `lowerdir=`, `lowerdir+=`: top first.
    pub lower: Option<Vec<PathBuf>>,
    /// `upperdir=`.
    pub upper: Option<PathBuf>,
    /// `redirect=`, `redirect_dir=`; the default depends on who calls.
    pub redirect: Option<bool>,
    /// `metacopy=`; the default depends on who calls.
    pub metacopy: Option<bool>,
    /// `suid`, `nosuid`; likewise.
    pub suid: Option<bool>,
    /// `dev`, `nodev`; likewise.
    pub dev: Option<bool>,
    /// `squash_to_root`; `squash_to_uid=` and `squash_to_gid=` outweigh it.
    pub squash_to_root: bool,
    /// `threaded=0`; `threads=` outweighs it.
    pub unthreaded: bool,
    /// `remount`: nothing is to be mounted, the flags of what is mounted are to be changed.
    pub remount: bool,
    /// `fd=`, as typed; only a remount may have it.
    pub fd: Option<Vec<u8>>,
    /// `branches=`; only a remount may have it.
    pub branches: Option<Vec<BranchArg>>,
    /// One of mount(8)'s flags that the kernel keeps.
    pub names_flags: bool,
}

/// One option as typed, escapes and all.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opt<'a> {
    text: &'a [u8],
    name: &'a [u8],
    value: Option<&'a [u8]>,
}

/// What an option does.
#[derive(Clone, Copy)]
enum Effect {
    /// Stands alone.
    Switch(fn(&mut Typed)),
    /// Needs a value, which the text describes.
    Value(&'static str, fn(&mut Typed, Given<'_>) -> Result<(), UsageError>),
    /// Accepted, with or without a value.
    Nothing,
    /// Cannot be honoured, for this reason.
    Refused(&'static str),
}
use Effect::{Nothing, Refused, Switch, Value};

/// The flags that a remount changes; those it is not told of are off then.
const FLAGS: [&[u8]; 17] = [
    b"ro",
    b"rw",
    b"suid",
    b"nosuid",
    b"dev",
    b"nodev",
    b"exec",
    b"noexec",
    b"async",
    b"sync",
    b"dirsync",
    b"atime",
    b"noatime",
    b"relatime",
    b"strictatime",
    b"diratime",
    b"nodiratime",
];

const FOREIGN_ATTR: &str = "owners and modes are always those of the branches";

/// Every option, by name.
const KNOWN: &[(&str, Effect)] = &[
    // cowfs and unionfs-fuse. Always so, whatever is said: cow, hide_meta_*, default_permissions.
    ("cow", Nothing),
    ("dirs", Value("BRANCH[=RO|RW][:BRANCH...]", |t, v| v.once(&mut t.dirs, branches))),
    ("chroot", Value("DIR", |t, v| v.once(&mut t.request.chroot, |dir| Ok(path(dir))))),
    ("hide_meta_files", Nothing),
    ("hide_meta_dir", Nothing),
    ("max_files", Value("NUMBER, 1 or more", |t, v| v.set(&mut t.request.max_files, |text| number(text, 1, u64::MAX)))),
    ("relaxed_permissions", Switch(|t| t.request.default_permissions = false)),
    ("default_permissions", Nothing),
    ("statfs_omit_ro", Nothing),
    ("preserve_branch", Nothing),
    ("noinitgroups", Nothing),
    ("direct_io", Switch(|t| t.request.direct_io = true)),
    ("debug", Switch(|t| t.request.debug = true)),
    ("debug_file", Value("FILE", |t, v| v.set(&mut t.request.debug_file, |file| Some(path(file))))),
    ("whiteout", Value("overlay|oci|unionfs|unionfs-fuse", |t, v| v.set(&mut t.request.engine.format, format))),
    ("redirect", Value("on|off", |t, v| v.set(&mut t.redirect, on_off))),
    ("metacopy", Value("on|off", |t, v| v.set(&mut t.metacopy, on_off))),
    ("volatile", Switch(|t| t.request.engine.volatile = true)),
    ("coherent", Switch(|t| t.request.coherent = true)),
    ("watch", Switch(|t| t.request.watch = true)),
    ("awake", Switch(|t| t.request.awake = true)),
    ("near", Value("auto|off", |t, v| v.read(is_off).map(|off| t.request.no_near = off))),
    ("passthrough", Value("auto|off", |t, v| v.read(is_off).map(|off| t.request.no_passthrough = off))),
    ("threads", Value("NUMBER, 1 to 256", |t, v| v.set(&mut t.request.threads, threads))),
    ("lock_wait", Value("SECONDS, more than 0", |t, v| v.set(&mut t.request.lock_wait, bounded_seconds))),
    ("watchdog", Value("SECONDS, more than 0", |t, v| v.set(&mut t.request.watchdog, bounded_seconds))),
    ("noacl", Switch(|t| t.request.noacl = true)),
    // libfuse: who may enter, how the mount is called, how long the kernel may remember.
    ("allow_other", Switch(|t| t.request.allow_other = true)),
    ("allow_root", Switch(|t| t.request.allow_root = true)),
    ("auto_unmount", Switch(|t| t.request.auto_unmount = true)),
    ("fsname", Value("NAME", |t, v| v.set(&mut t.request.fsname, utf8))),
    ("subtype", Value("NAME", |t, v| v.set(&mut t.request.subtype, utf8))),
    ("entry_timeout", Value("SECONDS, 0 or more", |t, v| v.set(&mut t.request.entry_timeout, seconds))),
    ("attr_timeout", Value("SECONDS, 0 or more", |t, v| v.set(&mut t.request.attr_timeout, seconds))),
    ("negative_timeout", Value("SECONDS, 0 or more", |t, v| v.set(&mut t.request.negative_timeout, seconds))),
    // libfuse: the size and number of buffers, and what libfuse 2 needed to be told. Nobody sees a difference.
    ("ac_attr_timeout", Nothing),
    ("async_read", Nothing),
    ("atomic_o_trunc", Nothing),
    ("auto_cache", Nothing),
    ("big_writes", Nothing),
    ("blksize", Nothing),
    ("clone_fd", Nothing),
    ("congestion_threshold", Nothing),
    ("hard_remove", Nothing),
    ("intr", Nothing),
    ("intr_signal", Nothing),
    ("kernel_cache", Nothing),
    ("large_read", Nothing),
    ("max_background", Nothing),
    ("max_idle_threads", Nothing),
    ("max_read", Nothing),
    ("max_readahead", Nothing),
    ("max_threads", Nothing),
    ("max_write", Nothing),
    ("no_remote_flock", Nothing),
    ("no_remote_lock", Nothing),
    ("no_remote_posix_lock", Nothing),
    ("no_splice_move", Nothing),
    ("no_splice_read", Nothing),
    ("no_splice_write", Nothing),
    ("noauto_cache", Nothing),
    ("noforget", Nothing),
    ("nonempty", Nothing),
    ("readdir_ino", Nothing),
    ("remember", Nothing),
    ("splice_move", Nothing),
    ("splice_read", Nothing),
    ("splice_write", Nothing),
    ("sync_read", Nothing),
    ("use_ino", Nothing),
    ("drop_privileges", Refused("mount.fuse3 does that, before it calls cowfs: use it in /etc/fstab")),
    ("gid", Refused(FOREIGN_ATTR)),
    ("modules", Refused("libfuse's modules are not there; for a subdirectory, name it as the branch")),
    ("setuid", Refused("mount.fuse does that, before it calls cowfs: use it in /etc/fstab")),
    ("uid", Refused(FOREIGN_ATTR)),
    ("umask", Refused(FOREIGN_ATTR)),
    // mount(8). The time-stamp words mean nothing here: access times are the branch's own business.
    ("ro", Switch(|t| t.request.flags.read_only = true)),
    ("rw", Switch(|t| t.request.flags.read_only = false)),
    ("suid", Switch(|t| t.suid = Some(true))),
    ("nosuid", Switch(|t| t.suid = Some(false))),
    ("dev", Switch(|t| t.dev = Some(true))),
    ("nodev", Switch(|t| t.dev = Some(false))),
    ("exec", Switch(|t| t.request.flags.noexec = false)),
    ("noexec", Switch(|t| t.request.flags.noexec = true)),
    ("async", Switch(|t| t.request.flags.sync = false)),
    ("sync", Switch(|t| t.request.flags.sync = true)),
    ("dirsync", Switch(|t| t.request.flags.dirsync = true)),
    ("atime", Switch(|t| t.request.flags.noatime = false)),
    ("noatime", Switch(|t| t.request.flags.noatime = true)),
    ("diratime", Switch(|t| t.request.flags.nodiratime = false)),
    ("nodiratime", Switch(|t| t.request.flags.nodiratime = true)),
    ("relatime", Nothing),
    ("norelatime", Nothing),
    ("strictatime", Nothing),
    ("nostrictatime", Nothing),
    ("lazytime", Nothing),
    ("nolazytime", Nothing),
    ("iversion", Nothing),
    ("noiversion", Nothing),
    ("mand", Nothing),
    ("nomand", Nothing),
    ("silent", Nothing),
    ("loud", Nothing),
    ("symfollow", Nothing),
    ("nosymfollow", Refused("not supported")),
    ("auto", Nothing),
    ("noauto", Nothing),
    ("comment", Nothing),
    ("defaults", Nothing),
    ("group", Nothing),
    ("nogroup", Nothing),
    ("nofail", Nothing),
    ("owner", Nothing),
    ("noowner", Nothing),
    ("user", Nothing),
    ("nouser", Nothing),
    ("users", Nothing),
    ("nousers", Nothing),
    ("_netdev", Nothing),
    ("private", Switch(|t| t.request.private = Some(Private::Parent))),
    ("rprivate", Switch(|t| t.request.private = Some(Private::All))),
    ("shared", Nothing),
    ("rshared", Nothing),
    ("slave", Nothing),
    ("rslave", Nothing),
    ("remount", Switch(|t| t.remount = true)),
    ("branches", Value("BRANCH[=RO|RW][:BRANCH...]", |t, v| v.once(&mut t.branches, branches))),
    // What the kernel shows in the mount table, and mount(8) hands back.
    ("group_id", Nothing),
    ("rootmode", Nothing),
    ("user_id", Nothing),
    ("fd", Value("NUMBER", |t, v| v.set(&mut t.fd, |_| Some(v.text.to_vec())))),
    // Container engines: fuse-overlayfs's and the kernel's overlayfs's options.
    ("lowerdir", Value("DIR[:DIR...]", |t, v| v.once(&mut t.lower, lower_dirs))),
    (
        "lowerdir+",
        Value("DIR", |t, v| {
            t.lower.get_or_insert_default().push(path(v.value));
            Ok(())
        }),
    ),
    ("upperdir", Value("DIR", |t, v| v.once(&mut t.upper, |dir| Ok(path(dir))))),
    ("workdir", Value("DIR", |t, v| v.once(&mut t.request.workdir, |dir| Ok(path(dir))))),
    ("timeout", Value("SECONDS, 0 or more", |t, v| v.all_timeouts(&mut t.request))),
    ("fsync", Value("0|1", |t, v| v.read(zero_one).map(|on| t.request.engine.volatile |= !on))),
    ("userxattr", Switch(|t| t.request.engine.userxattr = Some(true))),
    ("redirect_dir", Value("on|off|follow|nofollow", |t, v| v.set(&mut t.redirect, redirect_dir))),
    ("uidmapping", Value("STORED:SHOWN:LENGTH[:...]", |t, v| v.mapping(&mut t.request.owners.users))),
    ("gidmapping", Value("STORED:SHOWN:LENGTH[:...]", |t, v| v.mapping(&mut t.request.owners.groups))),
    ("squash_to_root", Switch(|t| t.squash_to_root = true)),
    ("squash_to_uid", Value("UID, a number", |t, v| v.set(&mut t.request.owners.users.squash, id))),
    ("squash_to_gid", Value("GID, a number", |t, v| v.set(&mut t.request.owners.groups.squash, id))),
    ("static_nlink", Switch(|t| t.request.static_nlink = true)),
    ("threaded", Value("0|1", |t, v| v.read(zero_one).map(|on| t.unthreaded = !on))),
    ("xattr_permissions", Value("0|1|2", |t, v| v.read(aside).map(|aside| t.request.engine.aside = aside))),
    ("noxattrs", Value("0", |_, v| v.only(b"0", "extended attributes cannot be switched off"))),
    ("nfs_export", Value("off", |_, v| v.only(b"off", "export over NFS is not supported yet"))),
    ("verity", Value("off", |_, v| v.only(b"off", "fs-verity digests are not supported"))),
    ("ino32_t", Refused("inode numbers cannot be cut to 32 bits")),
    ("datadir+", Refused("data-only layers are not supported")),
    ("plugins", Refused("layers made by plugins are not supported")),
    ("context", Nothing),
    ("defcontext", Nothing),
    ("fscontext", Nothing),
    ("rootcontext", Nothing),
    ("seclabel", Nothing),
    ("fast_ino", Nothing),
    ("fast_ino_check", Nothing),
    ("index", Nothing),
    ("uuid", Nothing),
    ("writeback", Nothing),
    ("xino", Nothing),
];

/// The options that have an effect, with the form of the value if they take one.
pub(super) fn offered() -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    KNOWN.iter().filter_map(|&(name, effect)| match effect {
        Switch(_) => Some((name, None)),
        Value(form, _) => Some((name, Some(form))),
        Nothing | Refused(_) => None,
    })
}

/// Splits the argument of one `-o`; empty options are skipped, container engines write them.
///
/// A comma between quotes in an SELinux context is part of it: `context="u:r:t:s0:c1,c2"`.
pub(super) fn read(argument: &[u8]) -> Vec<Opt<'_>> {
    let mut options = Vec::new();
    let mut start = 0;
    for end in positions(argument, b',').into_iter().chain([argument.len()]) {
        let text = &argument[start..end];
        let option = split_option(text);
        if option.name.ends_with(b"context")
            && let Some([b'"', quoted @ ..]) = option.value
            && !quoted.ends_with(b"\"")
            && argument[end..].contains(&b'"')
        {
            continue;
        }
        start = end + 1;
        if !text.is_empty() {
            options.push(option);
        }
    }
    options
}

fn split_option(text: &[u8]) -> Opt<'_> {
    match positions(text, b'=').first() {
        Some(&at) => Opt { text, name: &text[..at], value: Some(&text[at + 1..]) },
        None => Opt { text, name: text, value: None },
    }
}

/// Notes what one option says.
pub(super) fn apply(option: &Opt<'_>, typed: &mut Typed) -> Result<(), UsageError> {
    // x-* are comments for other programs (x-systemd.automount), in mount(8)'s words.
    if option.name.starts_with(b"x-") || option.name.starts_with(b"X-") {
        return Ok(());
    }
    let Some((name, effect)) = KNOWN.iter().find(|(name, _)| name.as_bytes() == option.name) else {
        return Err(unknown(option));
    };
    typed.names_flags |= FLAGS.contains(&option.name);
    match (effect, option.value) {
        (Nothing, _) => Ok(()),
        (Refused(reason), _) => Err(UsageError::new(format!("option {}: {reason}", quote(option.text)))),
        (Switch(set), None) => {
            set(typed);
            Ok(())
        }
        (Switch(_), Some(_)) => Err(UsageError::new(format!("option {}: '{name}' takes no value", quote(option.text)))),
        (Value(form, set), Some(value)) if !value.is_empty() => set(typed, Given { value, text: option.text, form }),
        (Value(form, _), _) => {
            Err(UsageError::new(format!("option {} needs a value: {name}={form}", quote(option.text))))
        }
    }
}

/// Whether this reads as a list of known options, and as nothing else.
pub(super) fn is_list(word: &[u8]) -> bool {
    let options = read(word);
    let known = |option: &Opt<'_>| KNOWN.iter().any(|(name, _)| name.as_bytes() == option.name);
    !options.is_empty() && options.iter().all(known)
}

/// Names the nearest known option, if one is near.
fn unknown(option: &Opt<'_>) -> UsageError {
    let name = String::from_utf8_lossy(option.name);
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(&name, known);
    let nearest = KNOWN.iter().map(|(known, _)| (likeness(known), *known)).max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        _ if option.name.starts_with(b"/") => "; branches are separated by ':', a comma in a path is '\\,'".into(),
        Some((score, known)) if score >= 0.5 => format!("; did you mean '{known}'?"),
        _ => "; see cowfs --help".into(),
    };
    UsageError::new(format!("unknown option {}{hint}", quote(option.text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_stands_twice_in_the_table() {
        for (at, (name, _)) in KNOWN.iter().enumerate() {
            assert!(!KNOWN[..at].iter().any(|(other, _)| other == name), "{name}");
        }
    }

    const PAGE: &str = include_str!("../../man/cowfs.8");

    /// The bold text of a line of the page, without escapes.
    fn bold(line: &str) -> String {
        let plain = line.replace("\\-", "-").replace("\\(dq", "\"");
        if let Some(words) = plain.strip_prefix(".B ") {
            return words.replace(['"', ','], " ");
        }
        if let Some((".BI" | ".BR", words)) = plain.split_once(' ') {
            return words.split([' ', '"']).next().unwrap_or_default().to_owned();
        }
        plain
            .split("\\fB")
            .skip(1)
            .map(|rest| rest.split("\\f").next().unwrap_or_default())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The options that a bold text names.
    fn named(text: &str) -> Vec<String> {
        let name = |word: &str| word.split('=').next().unwrap_or_default().trim_end_matches(['.', ':', ';']).to_owned();
        text.split_whitespace().map(name).filter(|name| !name.is_empty()).collect()
    }

    /// The lines of the page from one section's heading to the next section's.
    fn section(heading: &str) -> Vec<&'static str> {
        let from = PAGE.split_once(&format!(".SH {heading}\n")).unwrap().1;
        from.split("\n.SH ").next().unwrap().lines().collect()
    }

    #[test]
    fn every_option_is_in_the_man_page() {
        let told: Vec<String> = section("OPTIONS").iter().flat_map(|line| named(&bold(line))).collect();
        for (name, effect) in KNOWN {
            assert!(told.iter().any(|word| word == name), "{name}: not in man/cowfs.8");
            // Those with an effect have a paragraph of their own.
            let heads = section("OPTIONS")
                .windows(2)
                .filter(|pair| matches!(pair[0], ".TP" | ".TQ"))
                .any(|pair| named(&bold(pair[1])).first().is_some_and(|word| word == name));
            assert_eq!(heads, matches!(effect, Switch(_) | Value(..)), "{name}: its paragraph in man/cowfs.8");
        }
    }

    #[test]
    fn the_man_page_names_no_other_option() {
        let lines = section("OPTIONS");
        for (at, line) in lines.iter().enumerate() {
            let head = at > 0 && matches!(lines[at - 1], ".TP" | ".TQ");
            let list = line.starts_with(".B ") && line.contains(", ");
            if !head && !list {
                continue;
            }
            for name in named(&bold(line)) {
                assert!(KNOWN.iter().any(|(known, _)| *known == name), "man/cowfs.8 has {name:?}, in: {line}");
            }
        }
    }

    /// groff is not everywhere; what it would complain about is this.
    #[test]
    fn man_pages_are_well_formed() {
        let known = [
            "\\\"", "TH", "SH", "SS", "PP", "TP", "TQ", "IP", "B", "I", "BR", "BI", "IB", "IR", "RB", "nf", "fi", "in",
            "EX", "EE",
        ];
        for page in [PAGE, include_str!("../../man/cowfs-formats.5")] {
            for (before, line) in page.lines().zip(page.lines().skip(1)) {
                if let Some(request) = line.strip_prefix('.') {
                    assert!(known.contains(&request.split(' ').next().unwrap()), "{line}");
                }
                assert!(!line.is_empty() && !line.ends_with(' '), "after {before}");
                assert!(!line.starts_with('\''), "a request to roff: {line}");
            }
            for pair in [("nf", "fi"), ("EX", "EE")] {
                let count = |word| page.lines().filter(|line| line.strip_prefix('.') == Some(word)).count();
                assert_eq!(count(pair.0), count(pair.1), "{pair:?}");
            }
        }
    }

    #[test]
    fn splitting_an_argument() {
        let rows: [(&str, &[&str]); 7] = [
            ("", &[]),
            (",a,,b,", &["a", "b"]),
            (r"a=x\,y,b", &[r"a=x\,y", "b"]),
            (r"a=x\\,b", &[r"a=x\\", "b"]),
            (r#"context="a,b",c"#, &[r#"context="a,b""#, "c"]),
            (r#"context="a,c"#, &[r#"context="a"#, "c"]),
            (r#"upperdir="a,b""#, &[r#"upperdir="a"#, r#"b""#]),
        ];
        for (argument, expected) in rows {
            let texts: Vec<_> = read(argument.as_bytes()).iter().map(|o| String::from_utf8_lossy(o.text)).collect();
            assert_eq!(texts, expected, "{argument}");
        }
    }
}
