#!/bin/bash
# A whole Debian as the lower: package manager, git, compiler, databases, cp, tar and rsync work in a chroot on the union.
# timeout: 500
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/programs/debian.bash"

# digest DIR: one line for each object: contents, metadata (change time and inode number too) and attributes.
digest() {
	(cd "$1" && find . -printf '%y %m %U:%G %s %n %i %T@ %C@ %l %p\n' | sort -k 10
		find . -type f -print0 | sort -z | xargs -0 sha256sum
		getfattr -hR -d -m - . 2>/dev/null)
}

# inside NAME COMMAND: a shell command in the chroot succeeds.
inside() { check "$1" in_debian mnt "$2"; }

enter() {
	check "cowfs mounts the Debian" union -o cow,allow_other,default_permissions,dev,suid "$T/debian=RO:$T/upper=RW" "$T/mnt" &&
		enter_debian mnt
}
leave_chroot() {
	leave_debian mnt
	check "cowfs unmounts" unmount mnt
	check "no daemon left" no_daemon_left
}

need getfattr=attr sqlite3=sqlite3
debian_root
mkdir upper mnt
prepare_debian debian
digest debian >lower.before

enter || finish

stories

# ---- after a remount ----
leave_chroot
enter || finish
inside "after a remount: packages" 'dpkg -s gcc >/dev/null && test -z "$(dpkg --verify gcc git make)" && ! test -e /usr/bin/hello'
inside "after a remount: git" 'cd /srv/clone && git fsck && test -z "$(git status --porcelain)"'
inside "after a remount: sqlite" 'test "$(sqlite3 /var/lib/lower.db "pragma integrity_check; select count(*) from t" | tr "\n" " ")" = "ok 241 "'
inside "after a remount: trees" 'test -e /usr/share/zoneinfo/doc && test "$(ls -A /usr/share/zoneinfo)" = doc && test -e /usr/share/common-licenses/GPL-3'
inside "after a remount: links" 'cmp /etc/hostname /etc/hostname-too && test /etc/hostname -ef /etc/hostname-too'
leave_chroot

digest debian >lower.after
same "the lower is what it was, to the last byte, time and attribute" lower.before lower.after
finish
