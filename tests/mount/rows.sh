#!/bin/bash
# What makes a union better than its peers (tests/rows.py), in all four formats of marks: while it is done, after forget, after a
# remount, and done once more after it; and what only a shell can do: kill, fill, pivot, measure.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
FORMATS="overlay oci unionfs unionfs-fuse"

mkdir lower ufs
/usr/bin/python3 "$TEST_DIR/rows.py" prepare lower || fail "the lower branch cannot be built"
tree lower exact | sed -E 's/ a-?[0-9]+( |$)/\1/' >lower.before

# rows DO|SHOW PHASE...
rows() {
	FORMAT=$format DAEMON=$(daemons) timeout -k 5 100 /usr/bin/python3 "$TEST_DIR/rows.py" "$1" ufs lower "${@:2}" >rows.out 2>&1 ||
		fail "$format: $* did not run to its end: $?"
	sed "s/^\(ok\|FAIL\) - /\1 - $format: /" rows.out
}
again() {
	check "$format: unmounts" unmount ufs
	no_daemon_left
	check "$format: mounts again" union -o "$options" "lower=RO:upper-$format=RW" ufs
}
for format in $FORMATS; do
	mkdir "upper-$format"
	options=cow,allow_other,suid,dev,whiteout=$format
	check "$format: mounts" union -o "$options" "lower=RO:upper-$format=RW" ufs
	rows do first
	rows show first
	echo 2 >/proc/sys/vm/drop_caches
	rows show first
	again
	rows show first
	rows do second
	rows show first second
	again
	rows show first second
	check "$format: unmounts" unmount ufs
	no_daemon_left
	tree lower exact | sed -E 's/ a-?[0-9]+( |$)/\1/' >lower.after
	same "$format: the lower is untouched" lower.before lower.after
done
finish
