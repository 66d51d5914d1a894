#!/bin/bash
# An ordinary user: mounts through fusermount3, works, unmounts; the others stay out unless let in; a killed daemon is cleaned up after.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

make_user || fail "no user could be made"
mkdir lower home && chmod 755 lower
chown $TEST_UID:$TEST_UID home
as_user mkdir home/{up,mnt,low}
echo shared >lower/shared
mkdir lower/open lower/dir && chmod 777 lower/open
echo theirs >lower/open/theirs
echo hidden >lower/hidden && chmod 600 lower/hidden
as_user sh -c 'echo mine >home/low/mine; mkdir home/low/d home/low/e; echo a >home/low/d/a; echo b >home/low/e/b; ln -s mine home/low/link
	setfattr -n user.note -v kept home/low/mine; chmod 640 home/low/mine; touch -d 2001-02-03T04:05:06.7 home/low/mine'
tree lower exact >lower.before

mount_it() { as_user timeout 20 "$COWFS" "$@" "$T/home/low=RO:$T/lower=RO:$T/home/up=RW" "$T/home/mnt"; }
view() { as_user /usr/bin/python3 "$T/.test/lib.py" tree "$T/home/mnt" | tail -n +2; }

check "mounts" mount_it
equal "as fuse.cowfs, of that user" \
	"$(awk -v d="$T/home/mnt" '$5 == d { print ($0 ~ / fuse.cowfs /) ($0 ~ /user_id=47113/) ($6 ~ /nosuid/) ($6 ~ /nodev/) }' /proc/self/mountinfo)" 1111
equal "the daemon is that user's" "$(ps -o uid= -p "$(daemons)" | tr -d ' ')" $TEST_UID
equal "shows both lowers" "$(as_user cat home/mnt/mine home/mnt/shared | tr '\n' ' ')" "mine shared "
refuse "root may not look in" 'Permission denied' ls home/mnt
refuse "nor a third" 'Permission denied' setpriv --reuid=47114 --regid=47114 --clear-groups ls "$T/home/mnt"
check "append" as_user sh -c 'echo more >>home/mnt/mine'
equal "copied up with all it has" "$(as_user sh -c 'stat -c "%a %u" home/up/mine; getfattr --only-values -n user.note home/mnt/mine; cat home/mnt/mine' | tr '\n' ' ')" \
	"640 $TEST_UID kept$(printf 'mine\nmore\n' | tr '\n' ' ')"
check "create" as_user sh -c 'echo new >home/mnt/new && mkdir home/mnt/sub && ln -s new home/mnt/sub/link && mkfifo home/mnt/fifo'
equal "owned by him" "$(stat -c %u home/up/new home/up/sub home/up/fifo | sort -u)" $TEST_UID
check "delete" as_user rm home/mnt/link
# Without privilege nothing can be made another's: the copy of a directory that lets him in is his own.
check "delete in another's open directory" as_user rm home/mnt/open/theirs
equal "it is gone, and the copied directory is his" \
	"$(as_user sh -c 'ls -A home/mnt/open; stat -c %u home/up/open')" $TEST_UID
check "delete a tree and make it again" as_user sh -c 'rm -r home/mnt/d && mkdir home/mnt/d && echo x >home/mnt/d/x'
check "rename a directory" as_user sh -c 'mv home/mnt/e home/mnt/e2 && cat home/mnt/e2/b'
check "hard link" as_user ln home/mnt/new home/mnt/new2
equal "counts two" "$(as_user stat -c %h home/mnt/new home/mnt/new2 | sort -u)" 2
check "xattr" as_user sh -c 'setfattr -n user.x -v y home/mnt/new && getfattr -n user.x home/mnt/new'
refuse "another's file cannot be read" 'Permission denied' as_user cat home/mnt/hidden
refuse "nor another's file written" 'Permission denied' as_user sh -c 'echo x >>home/mnt/shared'
refuse "nor a file made in another's directory" 'Permission denied' as_user touch home/mnt/dir/x
refuse "nor a file given away" 'Operation not permitted' as_user chown 0 home/mnt/mine
view >view.before
check "he unmounts" as_user fusermount3 -u home/mnt
check "the daemon ends" no_daemon_left
check "mounts again" mount_it
view >view.after
same "a remount shows the same" view.before view.after
equal "the directory made again is opaque" "$(as_user ls home/mnt/d)" x

daemon=$(daemons)
kill -KILL "$daemon"
no_daemon_left
refuse "after kill -9 the mount is dead" 'not connected|abort' as_user ls home/mnt
check "and he can take it away" as_user fusermount3 -u home/mnt
check "and mount again" mount_it
view >view.killed
same "with everything there" view.before view.killed
check "root's umount works too" unmount "$T/home/mnt"
no_daemon_left

check "allow_other, with user_allow_other in fuse.conf" mount_it -o allow_other
equal "root looks in" "$(cat home/mnt/new)" new
equal "a third looks in" "$(setpriv --reuid=47114 --regid=47114 --clear-groups cat "$T/home/mnt/new")" new
refuse "and cannot write" 'Permission denied' setpriv --reuid=47114 --regid=47114 --clear-groups sh -c "echo x >>'$T/home/mnt/new'"
check "unmounts" as_user fusermount3 -u home/mnt
no_daemon_left

as_user mkdir home/up2
check "a read-only union" as_user "$COWFS" "$T/lower=RO:$T/home/low=RO" "$T/home/mnt"
refuse "is that" 'Read-only' as_user touch home/mnt/x
check "unmounts" as_user fusermount3 -u home/mnt
tree lower exact >lower.after
# Without privilege there is no read-only clone of the mount: a read may move an access time there.
sed -E -i 's/ a-?[0-9]+( |$)/\1/' lower.before lower.after
same "the lower is untouched" lower.before lower.after
finish
