#!/bin/bash
# POSIX and Linux semantics, case by case (tests/semantics.py), on a mount; then forget and a remount must show the same tree.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=300

mkdir lower upper ufs
/usr/bin/python3 "$TEST_DIR/semantics.py" prepare lower || fail "the lower branch cannot be built"
tree lower exact >lower.before
check "mounts" union -o cow,allow_other,suid,dev lower=RO:upper=RW "$T/ufs"
timeout -k 5 300 /usr/bin/python3 "$TEST_DIR/semantics.py" run ufs "$@" || fail "the cases did not run to their end: $?"

# Everything but the access times, which a read may move.
view() { /usr/bin/python3 "$T/.test/lib.py" tree ufs exact | sed -E "s/ a-?[0-9]+( |$)/\1/; /^b'\.' /d"; }
view >view.before
echo 2 >/proc/sys/vm/drop_caches
view >view.forget
same "the same tree after forget: contents, metadata, inode numbers" view.before view.forget
check "unmounts" unmount "$T/ufs"
check "mounts again" union -o cow,allow_other,suid,dev lower=RO:upper=RW "$T/ufs"
view >view.after
same "the same tree after a remount" view.before view.after
check "unmounts" unmount "$T/ufs"
tree lower exact >lower.after
same "the lower is untouched" lower.before lower.after
finish
