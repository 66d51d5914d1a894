//! What `--help` and `--version` print.

/// The help, what is used most first; it fits the smallest screen, with the next prompt below it.
pub fn help() -> &'static str {
    "\
Usage: cowfs [-o OPT[,OPT...]]... BRANCH[=RO|RW][:BRANCH...] MOUNTPOINT
       cowfs -o lowerdir=A[:B...][,upperdir=U,workdir=W] MOUNTPOINT
Shows branches as one tree. Changes go to the RW branch (one at most, the top
one wherever it is listed); RO ones (the default) never change. End: umount(8).
  cowfs -o cow,allow_other /precise=RO:/cow/u1=RW /ufs
-f foreground   -d log each request   -s one thread   -h help   -V version
allow_other  allow_root   let everybody in; let root in
chroot=DIR                branches are below DIR (the mountpoint is not)
ro suid dev noexec noatime sync dirsync remount      as mount(8)
branches=LIST [-N NS]     with remount: other RO branches, while it is mounted
private  rprivate         make the mount's parent, or all mounts, private
fsname=NAME subtype=NAME  as /proc/mounts shows it
lock_wait=S               wait until the RW branch is free (for a takeover)
watchdog=S                end when a request has waited for so long
watch                     see an administrator's changes of RO branches at once
timeout=S                 how long the kernel trusts names and attributes
coherent  volatile        old maps see copies; fsync does nothing (risky)
awake                     keep idle processors from sleeping: faster; power
whiteout=FORMAT           marks: overlay, oci, unionfs, unionfs-fuse
redirect=off metacopy=off no marks but whiteouts: copy instead
uidmapping= gidmapping= squash_to_root squash_to_uid= static_nlink noacl
xattr_permissions=1|2 threads=N max_files=N debug_file=FILE auto_unmount
All options, and those taken for unionfs-fuse's sake and others': man 8 cowfs
"
}

/// The line that `-V` prints.
pub fn version() -> &'static str {
    concat!("cowfs ", env!("CARGO_PKG_VERSION"), "\n")
}

#[cfg(test)]
mod tests {
    /// The first word of a line of options, and each with a value, is one that has an effect.
    #[test]
    fn help_names_options_only() {
        let known: Vec<_> = crate::cli::options::offered().map(|(name, _)| name).collect();
        for line in super::help()
            .lines()
            .skip_while(|line| !line.starts_with('-'))
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        {
            let valued = line.split_whitespace().filter(|word| word.contains('='));
            for word in line.split_whitespace().take(1).chain(valued) {
                let name = word.split('=').next().unwrap_or_default();
                assert!(known.contains(&name), "{name} in {line}");
            }
        }
    }

    #[test]
    fn help_fits_a_screen() {
        let lines: Vec<_> = super::help().lines().collect();
        assert!(lines.len() <= 23, "{} lines", lines.len());
        assert!(lines.iter().all(|line| line.len() < 80));
    }
}
