#!/bin/bash
# POSIX and Linux semantics, case by case (tests/semantics.py), on a mount; then forget and a remount must show the same tree,
# and after the remount the same cases hold once more, on what nobody has touched yet.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=300

mkdir lower ufs
CASES=$(/usr/bin/python3 "$TEST_DIR/semantics.py" list)
# What takes long, or looks at nothing of its own, once.
AGAIN=$(grep -vxE 'many|crowd|handles|tmpfile' <<<"$CASES")
/usr/bin/python3 "$TEST_DIR/semantics.py" prepare lower || fail "the lower branch cannot be built"
mkdir lower/again && /usr/bin/python3 "$TEST_DIR/semantics.py" prepare lower/again $AGAIN || fail "nor what is left for the second time"
tree lower exact >lower.before
# The 100,000 files are not worth a look after every session.
tree lower exact without many >lower.fewer

# Everything but the access times, which a read may move, and the root, which is the upper's own. $1 more that may differ.
view() { tree ufs exact without many | sed -E "s/ a-?[0-9]+( |$)/\1/; /^b'\.' /d; ${1-}"; }

# lasts NAME OPTIONS [SED]: forget and a remount show the tree that is there now.
lasts() {
	view "${3-}" >view.before
	echo 2 >/proc/sys/vm/drop_caches
	view "${3-}" >view.forget
	same "$1: the same tree after forget: contents, metadata, inode numbers" view.before view.forget
	check "$1: unmounts" unmount "$T/ufs"
	check "$1: mounts again" union -o "$2" "lower=RO:upper-$format=RW" "$T/ufs"
	view "${3-}" >view.after
	same "$1: the same tree after a remount" view.before view.after
}

# session FORMAT[,OPTION] [CASE...]: all cases on a fresh upper of that format; forget and a remount must show the same.
session() {
	local format=$1
	shift
	mkdir "upper-$format"
	local options=cow,allow_other,suid,dev,whiteout=$format
	check "$format: mounts" union -o "$options" "lower=RO:upper-$format=RW" "$T/ufs"
	timeout -k 5 200 /usr/bin/python3 "$TEST_DIR/semantics.py" run ufs "$@" || fail "$format: the cases did not run to their end: $?"
	lasts "$format" "$options"
	timeout -k 5 200 /usr/bin/python3 "$TEST_DIR/semantics.py" run ufs/again $(grep -xFf <(printf '%s\n' "$@") <<<"$AGAIN") ||
		fail "$format: the cases did not run to their end after the remount: $?"
	# A copy-up moves its directory's time of change and makes it one of two branches, whose links are not counted; the kernel,
	# which may trust for ten seconds what it was told, is not told.
	lasts "$format, the second time" "$options" "/^b'\/again/s/ (dir .*) c-?[0-9]+/ \1/; /^b'\/again/s/ (dir .*) n[0-9]+/ \1/"
	check "$format: unmounts" unmount "$T/ufs"
	tree lower exact without many >lower.after
	same "$format: the lower is untouched" lower.fewer lower.after
}

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
