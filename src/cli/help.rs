//! What `--help` and `--version` print.

/// The help; it fits a screen.
pub fn help() -> &'static str {
    "\
Usage: cowfs [-o OPT[,OPT...]]... BRANCH[=RO|RW][:BRANCH...] MOUNTPOINT
       cowfs -o lowerdir=A[:B...][,upperdir=U,workdir=W] MOUNTPOINT

Shows branches as one tree at MOUNTPOINT. Changes go to the RW branch (one at
most, the top one wherever it is listed); RO branches (the default) are never
changed. A backslash before : , = or \\ makes it part of a path.

  -f  stay in the foreground        -d  the same, and log every request
  -s  serve with one thread         -h  this help        -V  the version

Branches
  chroot=DIR            branches are below DIR (the mountpoint is not)
  dirs=BRANCH[:...]     the branch list as an option
  whiteout=FORMAT       marks: overlay, oci, unionfs or unionfs-fuse
                        (default: what the RW branch holds, else overlay)
  redirect=on|off       rename lower directories without a copy (on)
  metacopy=on|off       change attributes of lower files without a copy (on)
Who may enter, and how the mount looks
  allow_other           everybody     allow_root      the owner and root
  relaxed_permissions   the kernel does not check permissions
  ro suid dev noexec noatime sync dirsync remount     as mount(8)
  private rprivate      the mount's parent, or all mounts, are made private
  fsname=NAME subtype=NAME                            as /proc/mounts shows
  lock_wait=S           wait until the RW branch is free (for a takeover)
  watchdog=S            end when a request has waited for so long
  auto_unmount          unmount when the daemon ends, however it ends
Speed and safety
  volatile              no fsync: faster, not safe against a power loss
  threads=N             threads that serve (2 to 4, by cores)
  awake                 idle processors stay awake while requests come in
  entry_timeout=S attr_timeout=S negative_timeout=S   kernel's cache, seconds
  direct_io             by-pass the kernel's page cache
  noacl                 ignore POSIX ACLs
  max_files=N           limit of open files
  debug_file=FILE       log there
Accepted for the sake of unionfs-fuse, fuse-overlayfs and mount(8): cow,
hide_meta_files, nonempty, use_ino, statfs_omit_ro, xino=, noauto, x-*, ...
"
}

/// The line that `-V` prints.
pub fn version() -> &'static str {
    concat!("cowfs ", env!("CARGO_PKG_VERSION"), "\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn help_fits_a_screen() {
        let lines: Vec<_> = super::help().lines().collect();
        assert!(lines.len() <= 40, "{} lines", lines.len());
        assert!(lines.iter().all(|line| line.len() <= 80));
    }
}
