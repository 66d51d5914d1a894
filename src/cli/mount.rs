//! From words to a mount: which positional is what, and what follows from who calls.
//!
//! Three ways to name branches, never mixed: a positional list, `dirs=`, or `lowerdir=` with `upperdir=`. With the
//! latter two a positional before the mountpoint is the mere source name of an fstab line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::cli::Command;
use crate::cli::UsageError;
use crate::cli::argv::Words;
use crate::cli::branches::branches;
use crate::cli::options::{self, Typed};
use crate::cli::text::quote;
use crate::daemon::request::{BranchArg, ExchangeRequest, MountRequest, RemountRequest};

const FORM: &str = "cowfs [-o OPTIONS] BRANCH[=RO|RW][:BRANCH...] MOUNTPOINT";
const REMOUNT_FORM: &str = "mount -o remount,ro|rw|branches=LIST[,FLAG...] MOUNTPOINT";

/// What these words ask for.
pub(super) fn command(words: Words) -> Result<Command, UsageError> {
    let mut typed = Typed::default();
    typed.request.default_permissions = true;
    if words.single_thread {
        typed.request.threads = Some(1);
    }
    for argument in &words.options {
        for option in options::read(argument) {
            options::apply(&option, &mut typed)?;
        }
    }
    // mount(8) says every flag that it wants off; another caller gets what is safe.
    let default = words.helper;
    typed.request.flags.dev = typed.dev.unwrap_or(default);
    typed.request.flags.suid = typed.suid.unwrap_or(default);
    typed.request.namespace = words.namespace.map(|path| OsString::from_vec(path).into());
    if typed.remount {
        return remount(typed, words.positionals).map(Command::Remount);
    }
    if typed.branches.is_some() {
        let message = "option 'branches' is for a mounted union, with 'remount'; to mount one, list the branches before \
                       the mountpoint";
        return Err(UsageError::new(message));
    }
    if let Some(text) = &typed.fd {
        let message = "give /dev/fd/N as the mountpoint to hand over a mounted /dev/fuse";
        return Err(UsageError::new(format!("option {}: {message}", quote(text))));
    }
    typed.request.foreground = words.foreground;
    typed.request.debug |= words.debug;
    if typed.request.allow_other && typed.request.allow_root {
        return Err(UsageError::new("options 'allow_other' and 'allow_root' exclude each other: give one"));
    }
    place(&mut typed, words.positionals)?;
    Ok(Command::Mount(Box::new(conclude(typed))))
}

/// `[SOURCE] MOUNTPOINT` with `remount`. mount(8) hands over the mount table's source and options, and those of
/// /etc/fstab, of which only the flags and `chroot=` mean something here.
fn remount(typed: Typed, mut positionals: Vec<Vec<u8>>) -> Result<RemountRequest, UsageError> {
    if let Some(extra) = positionals.get(2) {
        return Err(UsageError::new(format!("{} is one word too many: {REMOUNT_FORM}", quote(extra))));
    }
    let mountpoint = positionals.pop().filter(|mountpoint| !mountpoint.is_empty());
    let mountpoint = mountpoint.ok_or_else(|| UsageError::new(format!("no mountpoint given: {REMOUNT_FORM}")))?;
    let request = typed.request;
    let keep_flags = !typed.names_flags;
    let exchange = typed.branches.map(|branches| ExchangeRequest { branches, chroot: request.chroot, keep_flags });
    Ok(RemountRequest {
        mountpoint: OsString::from_vec(mountpoint).into(),
        flags: request.flags,
        allow_other: request.allow_other,
        subtype: request.subtype,
        namespace: request.namespace,
        exchange,
    })
}

/// Puts branches and mountpoint in place.
fn place(typed: &mut Typed, mut positionals: Vec<Vec<u8>>) -> Result<(), UsageError> {
    let listed = named_branches(typed)?;
    if positionals.len() > 2 {
        return Err(too_many(&positionals));
    }
    let Some(mountpoint) = positionals.pop() else {
        let missing = if listed.is_some() { "no mountpoint given" } else { "no branches and no mountpoint given" };
        return Err(UsageError::new(format!("{missing}: {FORM}")));
    };
    if mountpoint.is_empty() {
        return Err(UsageError::new(format!("the mountpoint is an empty word: {FORM}")));
    }
    let first = positionals.pop();
    typed.request.branches = match (listed, first) {
        (Some(listed), None) => listed,
        (Some(listed), Some(source)) => {
            name_source(&mut typed.request, source);
            listed
        }
        (None, Some(list)) => {
            let branches = branches(&list)?;
            name_source(&mut typed.request, list);
            branches
        }
        (None, None) => {
            let message = format!("only {} given, of branches and mountpoint: {FORM}", quote(&mountpoint));
            return Err(UsageError::new(message));
        }
    };
    typed.request.mountpoint = OsString::from_vec(mountpoint).into();
    Ok(())
}

/// Says what is wrong with more than two positionals: mostly a blank where something else belongs.
fn too_many(positionals: &[Vec<u8>]) -> UsageError {
    if let Some(word) = positionals.iter().find(|word| options::is_list(word)) {
        return UsageError::new(format!(
            "{} stands alone: options follow -o, separated by ',' only: {FORM}",
            quote(word)
        ));
    }
    if let [_, second, ..] = positionals
        && [&b"=RO"[..], b"=RW", b"=ro", b"=rw"].iter().any(|mode| second.ends_with(mode))
    {
        return UsageError::new(format!("{} stands alone: branches are separated by ':' only: {FORM}", quote(second)));
    }
    let mountpoint = positionals.get(1).map_or(&[][..], |mountpoint| mountpoint);
    let extra = positionals.get(2).map_or(&[][..], |extra| extra);
    UsageError::new(format!("{} is one word too many after the mountpoint {}", quote(extra), quote(mountpoint)))
}

/// The longest source name taken over, in bytes: programs read /proc/self/mounts by lines of bounded length.
const SOURCE_MAX: usize = 200;

/// Lets the mount table show the source as it was typed: `mount -a` mounts a line of /etc/fstab a second time unless
/// it finds just that there.
fn name_source(request: &mut MountRequest, source: Vec<u8>) {
    if source.len() <= SOURCE_MAX
        && let Ok(source) = String::from_utf8(source)
    {
        request.fsname.get_or_insert(source);
    }
}

/// The branches that options name, in stack order; `None`: the first positional lists them.
fn named_branches(typed: &mut Typed) -> Result<Option<Vec<BranchArg>>, UsageError> {
    match (typed.dirs.take(), typed.lower.take(), typed.upper.take()) {
        (Some(_), Some(_), _) => Err(UsageError::new("options 'dirs' and 'lowerdir' exclude each other: give one")),
        (_, None, Some(upper)) => Err(UsageError::new(format!(
            "upperdir={} without lowerdir=: name what lies below it, lowerdir=DIR[:DIR...]",
            quote(upper.as_os_str().as_encoded_bytes())
        ))),
        (Some(dirs), None, None) => Ok(Some(dirs)),
        (None, None, None) => Ok(None),
        (None, Some(lower), upper) => {
            typed.request.container = true;
            if let Some(upper) = &upper
                && typed.request.workdir.is_none()
            {
                return Err(UsageError::new(format!(
                    "upperdir={} needs workdir=DIR, an empty directory on the same filesystem",
                    quote(upper.as_os_str().as_encoded_bytes())
                )));
            }
            let upper = upper.map(|path| BranchArg { path, writable: true, oci_whiteouts: false });
            let lower = lower.into_iter().map(|path| BranchArg { path, writable: false, oci_whiteouts: true });
            Ok(Some(upper.into_iter().chain(lower).collect()))
        }
    }
}

/// Fills in what follows from the rest.
fn conclude(typed: Typed) -> MountRequest {
    let mut request = typed.request;
    if !request.branches.iter().any(|branch| branch.writable) {
        // As in overlayfs: nothing is ever written, so nothing is staged.
        request.flags.read_only = true;
        request.workdir = None;
    }
    // A container's programs count on set-uid without its engine's saying so; its engine reads the upper itself and
    // knows neither redirects nor files without data.
    request.flags.suid |= typed.suid.is_none() && request.container;
    request.engine.redirect = typed.redirect.unwrap_or(!request.container);
    request.engine.metacopy = request.engine.redirect && typed.metacopy.unwrap_or(!request.container);
    if typed.squash_to_root {
        request.owners.users.squash.get_or_insert(0);
        request.owners.groups.squash.get_or_insert(0);
    }
    // ACLs are the branches' filesystems', and are about inodes whose owner and mode nobody is shown.
    request.noacl |= !request.default_permissions || request.owners.squash() || request.engine.aside.is_some();
    if typed.unthreaded {
        request.threads.get_or_insert(1);
    }
    // An engine means the new mount by it, and mounts where the machine's own tree is the parent.
    request.private.take_if(|_| request.container);
    request
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::parse;
    use crate::daemon::request::{MountFlags, Private};
    use crate::fuse::owners::{Ids, Range};
    use crate::union::options::{AsideKey, Format, Options};

    fn parsed(args: &[&str]) -> Result<MountRequest, String> {
        match parse(std::iter::once(&"cowfs").chain(args).map(OsString::from)) {
            Ok(Command::Mount(mut request)) => {
                // A word of its own stands for itself (`the_source_is_shown_as_typed`).
                request.fsname.take_if(|source| args.contains(&source.as_str()));
                Ok(*request)
            }
            Ok(other) => panic!("{args:?}: {other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    fn ro(path: &str) -> BranchArg {
        BranchArg { path: path.into(), writable: false, oci_whiteouts: false }
    }
    fn rw(path: &str) -> BranchArg {
        BranchArg { writable: true, ..ro(path) }
    }
    fn wh(path: &str) -> BranchArg {
        BranchArg { oci_whiteouts: true, ..ro(path) }
    }

    fn ids(ranges: &[(u32, u32, u32)]) -> Ids {
        let range = |&(stored, shown, length): &(u32, u32, u32)| Range { stored, shown, length };
        Ids { ranges: ranges.iter().map(range).collect(), squash: None }
    }

    /// A plain union of these branches on /m.
    fn plain(branches: &[BranchArg]) -> MountRequest {
        MountRequest {
            branches: branches.to_vec(),
            mountpoint: "/m".into(),
            default_permissions: true,
            flags: MountFlags { read_only: !branches.iter().any(|b| b.writable), ..MountFlags::default() },
            ..MountRequest::default()
        }
    }

    /// The same, as a container engine asks for it.
    fn container(branches: &[BranchArg]) -> MountRequest {
        let mut request = plain(branches);
        request.container = true;
        request.flags.suid = true;
        (request.engine.redirect, request.engine.metacopy) = (false, false);
        request
    }

    /// The forms that real programs use, word for word (clients.md 2, 4, 5; the issue).
    #[test]
    fn forms_of_real_callers() {
        let recipe = || MountRequest {
            chroot: Some("/ns".into()),
            allow_other: true,
            ..plain(&[rw("/cow/1000"), ro("/precise")])
        };
        let fstab = |branches: &[BranchArg]| {
            let mut request = MountRequest { allow_other: true, ..plain(branches) };
            (request.flags.dev, request.flags.suid) = (true, true);
            request
        };
        let podman = container(&[rw("U"), wh("/l/A"), wh("/l/B")]);
        let podman = MountRequest { workdir: Some("W".into()), ..podman };
        let volatile = || Options { volatile: true, redirect: false, metacopy: false, ..Options::default() };
        let rows: [(&[&str], MountRequest); 17] = [
            // uWSGI, RO branch first and last
            (&["-ocow,chroot=/ns,default_permissions,allow_other", "/precise=RO:/cow/1000=RW", "/m"], recipe()),
            (&["-ocow,chroot=/ns,default_permissions,allow_other", "/cow/1000=RW:/precise=RO", "/m"], recipe()),
            // mount(8), through mount.fuse
            (&["X=RO:Y=RW", "/m", "-o", "rw,cow,allow_other,dev,suid"], fstab(&[rw("Y"), ro("X")])),
            (&["X:Y Z=RW", "/m", "-o", "rw,allow_other,lazytime,dev,suid"], fstab(&[rw("Y Z"), ro("X")])),
            (
                &["overlay", "/m", "-o", "rw,lowerdir=A,upperdir=U,workdir=W,dev,suid"],
                MountRequest {
                    workdir: Some("W".into()),
                    flags: MountFlags { dev: true, suid: true, ..MountFlags::default() },
                    ..container(&[rw("U"), wh("A")])
                },
            ),
            (&["unionfs", "/m", "-odirs=A=RO:B=RW"], plain(&[rw("B"), ro("A")])),
            (&["-o", "dirs=A:B", "/m"], plain(&[ro("A"), ro("B")])),
            // podman, buildah
            (&["-o", "lowerdir=/l/A:/l/B,upperdir=U,workdir=W,", "/m"], podman.clone()),
            (&["-o", "lowerdir=/l/A:/l/B,upperdir=U,workdir=W,,volatile", "/m"], {
                MountRequest { engine: volatile(), ..podman.clone() }
            }),
            (&["-o", "lowerdir=/l/A:/l/B,upperdir=U,workdir=W,private", "/m"], podman.clone()),
            (&["-o", "lowerdir=/l/A:/l/B,upperdir=U,workdir=W,context=\"u:r:t:s0:c1,c2\"", "/m"], podman.clone()),
            (&["-o", "context=\"u:c1,c2\",lowerdir=/l/A:/l/B,upperdir=U,workdir=W", "/m"], podman.clone()),
            (&["-o", "lowerdir+=/l/A,lowerdir+=/l/B,upperdir=U,workdir=W", "/m"], podman.clone()),
            (
                &[
                    "-olowerdir=/l/A:/l/B,upperdir=U",
                    "-oworkdir=W,xattr_permissions=0",
                    "-oredirect_dir=off,xino=auto,threaded=1,index=off,metacopy=on,nfs_export=off",
                    "/m",
                ],
                podman,
            ),
            (&["-o", r"lowerdir=/a\:b:/c\,d", "/m"], container(&[wh("/a:b"), wh("/c,d")])),
            (&["-o", "lowerdir=A,workdir=W,nosuid,redirect=on", "/m"], {
                let mut request = container(&[wh("A")]);
                (request.flags.suid, request.engine.redirect) = (false, true);
                request
            }),
            (&["-o", "lowerdir=A,fsync=0", "/m"], MountRequest { engine: volatile(), ..container(&[wh("A")]) }),
        ];
        for (args, expected) in rows {
            assert_eq!(parsed(args), Ok(expected), "{args:?}");
        }
    }

    /// What mount(8) and the peers hand over without a meaning for us.
    #[test]
    fn accepted_without_effect() {
        for option in [
            "",
            ",,",
            "cow",
            "hide_meta_files",
            "hide_meta_dir",
            "default_permissions",
            "statfs_omit_ro",
            "rw",
            "preserve_branch",
            "nonempty",
            "use_ino",
            "noinitgroups",
            "near=auto",
            "passthrough=auto",
            "nosuid",
            "nodev",
            "exec",
            "async",
            "atime",
            "relatime",
            "strictatime",
            "lazytime",
            "defaults",
            "noauto",
            "nofail",
            "_netdev",
            "user",
            "user=joe",
            "users",
            "x-systemd.automount",
            "x-a=b",
            "comment=x",
            "max_read=1",
            "blksize=512",
            "clone_fd",
            "kernel_cache",
            "auto_cache",
            "max_idle_threads=3",
            "intr",
            "big_writes",
            "noatime,atime",
            "sync,async",
            "dev,nodev",
            "ro,rw",
            "user_id=0,group_id=0,rootmode=40000",
            "fsync=1",
            "volatile,fsync=0",
        ] {
            let mut expected = plain(&[rw("A")]);
            expected.engine.volatile = option.starts_with("volatile");
            assert_eq!(parsed(&["A=RW", "/m", "-o", option]), Ok(expected), "{option}");
        }
    }

    #[test]
    fn each_option_with_an_effect() {
        type Change = fn(&mut MountRequest);
        let rows: [(&str, Change); 51] = [
            ("allow_other", |r| r.allow_other = true),
            ("allow_root", |r| r.allow_root = true),
            ("auto_unmount", |r| r.auto_unmount = true),
            ("lock_wait=2.5", |r| r.lock_wait = Some(Duration::from_millis(2500))),
            ("watchdog=10", |r| r.watchdog = Some(Duration::from_secs(10))),
            ("relaxed_permissions", |r| (r.default_permissions, r.noacl) = (false, true)),
            ("noacl", |r| r.noacl = true),
            ("ro", |r| r.flags.read_only = true),
            ("suid", |r| r.flags.suid = true),
            ("private", |r| r.private = Some(Private::Parent)),
            ("rprivate", |r| r.private = Some(Private::All)),
            ("dev", |r| r.flags.dev = true),
            ("noexec", |r| r.flags.noexec = true),
            ("noatime,nodiratime", |r| (r.flags.noatime, r.flags.nodiratime) = (true, true)),
            ("sync,dirsync", |r| (r.flags.sync, r.flags.dirsync) = (true, true)),
            ("direct_io", |r| r.direct_io = true),
            ("coherent", |r| r.coherent = true),
            ("watch", |r| r.watch = true),
            ("awake", |r| r.awake = true),
            ("near=off", |r| r.no_near = true),
            ("passthrough=off", |r| r.no_passthrough = true),
            ("debug", |r| r.debug = true),
            ("debug_file=/var/log/x", |r| r.debug_file = Some("/var/log/x".into())),
            (r"fsname=a\,b=c", |r| r.fsname = Some("a,b=c".into())),
            ("subtype=x", |r| r.subtype = Some("x".into())),
            ("max_files=4096,max_files=1", |r| r.max_files = Some(1)),
            ("threads=8", |r| r.threads = Some(8)),
            ("entry_timeout=0.5", |r| r.entry_timeout = Some(Duration::from_millis(500))),
            ("attr_timeout=2", |r| r.attr_timeout = Some(Duration::from_secs(2))),
            ("negative_timeout=0", |r| r.negative_timeout = Some(Duration::ZERO)),
            ("timeout=1e9", |r| {
                r.entry_timeout = Some(Duration::from_secs(1_000_000_000));
                (r.attr_timeout, r.negative_timeout) = (r.entry_timeout, r.entry_timeout);
            }),
            ("uidmapping=:0:100000:65536", |r| r.owners.users = ids(&[(0, 100_000, 65_536)])),
            ("gidmapping=0:1000:1:1:110000:65536", |r| r.owners.groups = ids(&[(0, 1000, 1), (1, 110_000, 65_536)])),
            ("squash_to_uid=7,squash_to_root", |r| {
                (r.owners.users.squash, r.owners.groups.squash, r.noacl) = (Some(7), Some(0), true);
            }),
            ("squash_to_gid=8", |r| (r.owners.groups.squash, r.noacl) = (Some(8), true)),
            ("static_nlink", |r| r.static_nlink = true),
            ("xattr_permissions=1", |r| (r.engine.aside, r.noacl) = (Some(AsideKey::Privileged), true)),
            ("xattr_permissions=2", |r| (r.engine.aside, r.noacl) = (Some(AsideKey::User), true)),
            ("threaded=0", |r| r.threads = Some(1)),
            ("threaded=0,threads=3", |r| r.threads = Some(3)),
            ("whiteout=overlay", |r| r.engine.format = Some(Format::Overlay)),
            ("whiteout=oci", |r| r.engine.format = Some(Format::Oci)),
            ("whiteout=unionfs", |r| r.engine.format = Some(Format::Unionfs)),
            ("whiteout=unionfs-fuse", |r| r.engine.format = Some(Format::UnionfsFuse)),
            ("redirect=off", |r| (r.engine.redirect, r.engine.metacopy) = (false, false)),
            ("redirect=off,redirect_dir=on", |r| r.engine.redirect = true),
            ("metacopy=off", |r| r.engine.metacopy = false),
            ("userxattr", |r| r.engine.userxattr = Some(true)),
            ("volatile", |r| r.engine.volatile = true),
            (r"chroot=/n\,s", |r| r.chroot = Some("/n,s".into())),
            ("workdir=/w", |r| r.workdir = Some("/w".into())),
        ];
        for (option, change) in rows {
            let mut expected = plain(&[rw("A")]);
            change(&mut expected);
            assert_eq!(parsed(&["-o", option, "A=RW", "/m"]), Ok(expected), "{option}");
        }
        let flags: [(&str, Change); 3] =
            [("-f", |r| r.foreground = true), ("-d", |r| r.debug = true), ("-s", |r| r.threads = Some(1))];
        for (flag, change) in flags {
            let mut expected = plain(&[rw("A")]);
            change(&mut expected);
            assert_eq!(parsed(&["A=RW", "/m", flag]), Ok(expected), "{flag}");
        }
    }

    /// Rows: the arguments, and what the message holds.
    #[test]
    fn refusals() {
        let rows: [(&[&str], &str); 56] = [
            (&[], "no branches and no mountpoint given: cowfs [-o"),
            (&["-o", "allow_other"], "no branches and no mountpoint given"),
            (&["/m"], "only '/m' given, of branches and mountpoint"),
            (&["-olowerdir=A"], "no mountpoint given"),
            (&["A", ""], "the mountpoint is an empty word"),
            (&["A", "/m", "x y"], "'x y' is one word too many after the mountpoint '/m'"),
            (&["A=RO", "B=RW", "/m"], "'B=RW' stands alone: branches are separated by ':' only"),
            (
                &["-ocow,", "allow_other,chroot=/ns", "A", "/m"],
                "'allow_other,chroot=/ns' stands alone: options follow -o",
            ),
            (&["A", "/m", "allow_other"], "'allow_other' stands alone: options follow -o"),
            (&["A", "/m", "-othreads=257"], "'threads=257': the value must be NUMBER, 1 to 256"),
            (&["A", "/m", "-olock_wait=0"], "'lock_wait=0': the value must be SECONDS, more than 0"),
            (&["A", "/m", "-otimeout=-1"], "the value must be SECONDS, 0 or more"),
            (&["A=RW:B=RW", "/m"], "two writable branches, 'A' and 'B'"),
            (&["A=rx", "/m"], "not 'rx'"),
            (&["A", "/m", "-q"], "unknown flag '-q'"),
            (&["A", "/m", "-oalow_other"], "unknown option 'alow_other'; did you mean 'allow_other'?"),
            (&["A", "/m", "-ocow,chrot=/ns"], "unknown option 'chrot=/ns'; did you mean 'chroot'?"),
            (&["A", "/m", "-ozzzzzzzz"], "unknown option 'zzzzzzzz'; see cowfs --help"),
            (&["-odirs=/a=RW,/b=RO", "/m"], "unknown option '/b=RO'; branches are separated by ':'"),
            (&["A", "/m", "-oallow_other=1"], "option 'allow_other=1': 'allow_other' takes no value"),
            (&["A", "/m", "-ochroot"], "option 'chroot' needs a value: chroot=DIR"),
            (&["A", "/m", "-ochroot="], "option 'chroot=' needs a value: chroot=DIR"),
            (&["A", "/m", "-ochroot=/a,chroot=/b"], "option 'chroot=/b': given twice"),
            (&["-olowerdir=A,lowerdir=B", "/m"], "option 'lowerdir=B': given twice"),
            (&["A", "/m", "-othreads=0"], "option 'threads=0': the value must be NUMBER"),
            (&["A", "/m", "-omax_files=-1"], "option 'max_files=-1'"),
            (&["A", "/m", "-oattr_timeout=-1"], "option 'attr_timeout=-1': the value must be SECONDS"),
            (&["A", "/m", "-oentry_timeout=nan"], "option 'entry_timeout=nan'"),
            (&["A", "/m", "-owhiteout=aufs"], "the value must be overlay|oci|unionfs|unionfs-fuse"),
            (&["A", "/m", "-oredirect=yes"], "option 'redirect=yes': the value must be on|off"),
            (&["A", "/m", "-ometacopy=yes"], "option 'metacopy=yes': the value must be on|off"),
            (&["A", "/m", "-oallow_other,allow_root"], "exclude each other"),
            (&["-odirs=A,lowerdir=B", "/m"], "'dirs' and 'lowerdir' exclude each other"),
            (&["A", "/m", "-oupperdir=U"], "upperdir='U' without lowerdir="),
            (&["-olowerdir=A,upperdir=U", "/m"], "upperdir='U' needs workdir=DIR"),
            (&["-olowerdir=A::B", "/m"], "'::', are not supported"),
            (&["A", "/m", "-ouidmapping=0:0"], "the value must be STORED:SHOWN:LENGTH"),
            (&["A", "/m", "-ouidmapping=:"], "the value must be STORED:SHOWN:LENGTH"),
            (&["A", "/m", "-ogidmapping=0:0:0"], "the value must be STORED:SHOWN:LENGTH"),
            (&["A", "/m", "-ogidmapping=0:1:4294967295"], "the value must be STORED:SHOWN:LENGTH"),
            (&["A", "/m", "-osquash_to_uid=-1"], "option 'squash_to_uid=-1': the value must be UID"),
            (&["A", "/m", "-osquash_to_gid=4294967295"], "the value must be GID"),
            (&["A", "/m", "-othreaded=2"], "the value must be 0|1"),
            (&["A", "/m", "-oxattr_permissions=3"], "the value must be 0|1|2"),
            (&["A", "/m", "-oumask=022"], "option 'umask=022': owners and modes"),
            (&["A", "/m", "-ofd=3"], "option 'fd=3': give /dev/fd/N as the mountpoint"),
            (&["-oremount,ro"], "no mountpoint given: mount -o remount"),
            (&["A", "", "-oremount,ro"], "no mountpoint given: mount -o remount"),
            (&["A", "/m", "B", "-oremount,ro"], "'B' is one word too many"),
            (&["A", "/m", "-oremount,rx"], "unknown option 'rx'"),
            (&["A", "/m", "-obranches=A"], "option 'branches' is for a mounted union, with 'remount'"),
            (&["/m", "-oremount,branches="], "option 'branches=' needs a value: branches=BRANCH[=RO|RW]"),
            (&["/m", "-oremount,branches=A=RX"], "branch 'A=RX': after '=' comes RO, RW or RO+wh, not 'RX'"),
            (&["/m", "-oremount,branches=A=RW:B=RW"], "two writable branches, 'A' and 'B'"),
            (&["/m", "-oremount,branches=A,branches=B"], "option 'branches=B': given twice"),
            (&["A", "/m", "-o", "bad\u{1b}[2J"], r"unknown option 'bad\u{1b}[2J'"),
        ];
        for (args, expected) in rows {
            let result = parsed(args);
            assert!(result.as_ref().is_err_and(|error| error.contains(expected)), "{args:?}: {result:?}");
            assert!(result.is_err_and(|error| error.lines().count() == 1), "{args:?}");
        }
    }

    /// As mount(8) calls, word for word.
    #[test]
    fn remounts() {
        let flags = MountFlags { read_only: true, ..MountFlags::default() };
        let all = MountFlags { suid: true, dev: true, ..flags };
        let request =
            |flags, allow_other| RemountRequest { mountpoint: "/m".into(), flags, allow_other, ..Default::default() };
        let table = "user_id=0,group_id=0,default_permissions,allow_other,max_read=131072,blksize=4096";
        let rows: [(&[&str], RemountRequest); 9] = [
            (&["cowfs", "a=RO:b=RW", "/m", "-o", &format!("ro,relatime,remount,{table},dev,suid")], request(all, true)),
            (&["cowfs", "a=RO:b=RW", "/m", "-o", &format!("ro,nosuid,nodev,remount,{table}")], request(flags, true)),
            (&["cowfs", "a", "/m", "-o", "rw,remount,cow,chroot=/ns,dev,suid"], {
                request(MountFlags { read_only: false, ..all }, false)
            }),
            (&["cowfs", "overlay", "/m", "-o", "ro,remount,lowerdir=A,upperdir=B,workdir=C,rootmode=40000,fd=3"], {
                request(flags, false)
            }),
            (&["cowfs", "cut off=RO:/b=X:", "/m", "-o", "remount,ro"], request(flags, false)),
            (&["cowfs", "-oremount,ro,rw,noexec,noatime,nodiratime,sync,dirsync", "/m"], {
                let noexec = MountFlags { noexec: true, noatime: true, nodiratime: true, ..flags };
                request(MountFlags { read_only: false, sync: true, dirsync: true, ..noexec }, false)
            }),
            (&["mount.cowfs", "a", "/m", "-o", "ro,remount"], request(all, false)),
            (&["mount.cowfs", "a", "/m", "-o", "ro,nosuid,nodev,remount"], request(flags, false)),
            (&["cowfs", "a", "/m", "-oremount,ro,subtype=x"], {
                RemountRequest { subtype: Some("x".into()), ..request(flags, false) }
            }),
        ];
        for (args, expected) in rows {
            assert_eq!(parse(args.iter().map(OsString::from)), Ok(Command::Remount(expected)), "{args:?}");
        }
        let exchange = |branches: &[BranchArg], chroot: Option<&str>, keep_flags| {
            let chroot = chroot.map(Into::into);
            Some(ExchangeRequest { branches: branches.to_vec(), chroot, keep_flags })
        };
        let rows: [(&[&str], RemountRequest); 3] = [
            (&["cowfs", "-oremount,branches=/b:/a=RO+wh:/u=RW", "/m"], {
                let exchange = exchange(&[rw("/u"), ro("/b"), wh("/a")], None, true);
                RemountRequest { exchange, ..request(MountFlags::default(), false) }
            }),
            (&["cowfs", "x", "/m", "-oremount,chroot=/ns,branches=a\\:b,user_id=0,group_id=0,allow_other"], {
                RemountRequest {
                    exchange: exchange(&[ro("a:b")], Some("/ns"), true),
                    ..request(MountFlags::default(), true)
                }
            }),
            (&["mount.cowfs", "a", "/m", "-o", &format!("ro,relatime,{table},remount,branches=b")], {
                RemountRequest { exchange: exchange(&[ro("b")], None, false), ..request(all, true) }
            }),
        ];
        for (args, expected) in rows {
            assert_eq!(parse(args.iter().map(OsString::from)), Ok(Command::Remount(expected)), "{args:?}");
        }
        let fake = parse(["mount.cowfs", "a", "/m", "-f", "-o", "ro,remount"].iter().map(OsString::from));
        assert_eq!(fake, Ok(Command::Fake));
    }

    /// What mount(8) leaves out it wants on; what another caller leaves out stays off.
    #[test]
    fn suid_and_dev() {
        for (program, option, suid, dev) in [
            ("cowfs", "cow", false, false),
            ("cowfs", "suid,dev", true, true),
            ("mount.cowfs", "rw", true, true),
            ("/sbin/mount.fuse.cowfs", "rw", true, true),
            ("mount.cowfs", "rw,nosuid", false, true),
            ("mount.cowfs", "nodev,rw", true, false),
            ("mount.cowfs", "rw,noexec,nosuid,nodev", false, false),
            ("mount.cowfs", "rw,nosuid,suid", true, true),
        ] {
            let args = [program, "A=RW", "/m", "-o", option].map(OsString::from);
            let Ok(Command::Mount(request)) = parse(args.into_iter()) else { panic!("{program} {option}") };
            assert_eq!((request.flags.suid, request.flags.dev), (suid, dev), "{program} {option}");
        }
    }

    #[test]
    fn the_source_is_shown_as_typed() {
        let long = format!("/{}", "x".repeat(SOURCE_MAX));
        let rows: [(&[&str], Option<&str>); 6] = [
            (&[r"/a\,b=RO:/c d=RW", "/m"], Some(r"/a\,b=RO:/c d=RW")),
            (&["overlay", "/m", "-olowerdir=A"], Some("overlay")),
            (&["-olowerdir=A", "/m"], None),
            (&["A", "/m", "-ofsname=x"], Some("x")),
            (&[&long, "/m"], None),
            (&[&long[1..], "/m"], Some(&long[1..])),
        ];
        for (args, expected) in rows {
            let Ok(Command::Mount(request)) = parse(std::iter::once(&"cowfs").chain(args).map(OsString::from)) else {
                panic!("{args:?}")
            };
            assert_eq!(request.fsname.as_deref(), expected, "{args:?}");
        }
    }

    #[test]
    fn paths_are_bytes() {
        let args = [&b"cowfs"[..], b"-ochroot=/\xff", b"/\xfe=RW", b"/m\\:\xfd"];
        let Ok(Command::Mount(request)) = parse(args.iter().map(|arg| OsString::from_vec(arg.to_vec()))) else {
            panic!()
        };
        let bytes = |path: &std::path::Path| path.as_os_str().as_encoded_bytes().to_vec();
        assert_eq!(request.chroot.as_deref().map(bytes), Some(b"/\xff".to_vec()));
        assert_eq!(bytes(&request.branches[0].path), b"/\xfe");
        assert_eq!(bytes(&request.mountpoint), b"/m\\:\xfd", "a mountpoint is taken as it is");
    }

    #[test]
    fn hundreds_of_layers() {
        let layers: Vec<String> = (0..500).map(|n| format!("/var/lib/containers/storage/overlay/l/{n:026}")).collect();
        let option = format!("lowerdir={},upperdir=U,workdir=W", layers.join(":"));
        let request = parsed(&["-o", &option, "/m"]).unwrap();
        assert_eq!(request.branches.len(), 501);
        assert_eq!(request.branches[500], wh(&layers[499]));
    }
}
