#!/bin/bash
# POSIX and Linux semantics, case by case (tests/semantics.py), on a mount; then forget and a remount must show the same tree.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=300

mkdir lower ufs
/usr/bin/python3 "$TEST_DIR/semantics.py" prepare lower || fail "the lower branch cannot be built"
tree lower exact >lower.before
# The 100,000 files are not worth a look after every session.
tree lower exact without many >lower.fewer

# Everything but the access times, which a read may move, and the root, which is the upper's own.
view() { tree ufs exact without many | sed -E "s/ a-?[0-9]+( |$)/\1/; /^b'\.' /d"; }

# session FORMAT[,OPTION] [CASE...]: all cases on a fresh upper of that format; forget and a remount must show the same.
session() {
	local format=$1
	shift
	mkdir "upper-$format"
	local options=cow,allow_other,suid,dev,whiteout=$format
	check "$format: mounts" union -o "$options" "lower=RO:upper-$format=RW" "$T/ufs"
	timeout -k 5 200 /usr/bin/python3 "$TEST_DIR/semantics.py" run ufs "$@" || fail "$format: the cases did not run to their end: $?"
	view >view.before
	echo 2 >/proc/sys/vm/drop_caches
	view >view.forget
	same "$format: the same tree after forget: contents, metadata, inode numbers" view.before view.forget
	check "$format: unmounts" unmount "$T/ufs"
	check "$format: mounts again" union -o "$options" "lower=RO:upper-$format=RW" "$T/ufs"
	view >view.after
	same "$format: the same tree after a remount" view.before view.after
	check "$format: unmounts" unmount "$T/ufs"
	tree lower exact without many >lower.after
	same "$format: the lower is untouched" lower.fewer lower.after
}

CASES=$(/usr/bin/python3 "$TEST_DIR/semantics.py" list)
session overlay ${*:-$CASES}
# A plain directory has no second session: the first one changed it.
[ "${STANDIN-}" != native ] || finish
# The long listing does not hang on the marks; the rest once more in each other format.
COHERENT=yes session overlay,coherent ${*:-$(grep -xE 'unlinked|old_descriptors|maps|truncation|sparse|allocate|copies|locks|opening|crowd' <<<"$CASES")}
CASES=$(grep -vx many <<<"$CASES")
export NO_REDIRECT=yes
for format in oci unionfs unionfs-fuse; do
	session $format ${*:-$CASES}
done
tree lower exact >lower.after
same "the lower is untouched, all of it" lower.before lower.after
finish
