#!/bin/bash
# Branches that real programs wrote, kept in fixtures/: cowfs shows of each what that program itself showed.
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr
FIXTURES=$TEST_DIR/../fixtures
LIST=--mtime

unpack() { tar --xattrs --xattrs-include='*' -C "$2" -xpzf "$FIXTURES/$1.tar.gz"; }

# What the metadata-only copies stand for: the same changes on a plain tree.
unpack_metacopy_plain() {
	[ -e want ] && return
	mkdir want && unpack lower want && (cd want && tree_py change . && tree_py change-renames .)
}

declare -A FORMAT=([kernel-overlay]=overlay [kernel-overlay-redirect]=overlay [kernel-overlay-index]=overlay [kernel-overlay-metacopy]=overlay
	[fuse-overlayfs]=overlay [fuse-overlayfs-wh]=oci [unionfs-fuse-1.0]=unionfs-fuse [unionfs]=unionfs)

for archive in "$FIXTURES"/*.tar.gz; do
	name=$(basename "$archive" .tar.gz)
	[ "$name" = lower ] && continue
	format=${FORMAT[$name]-}
	check "the format of fixture $name is known here" [ -n "$format" ] || continue
	fresh "$name"
	check "unpack the lower" unpack lower lower
	check "unpack $name" unpack "$name" upper
	tree_py list lower --mtime >lower.tree
	same "the lower is as listed" "$FIXTURES/lower.tree" lower.tree

	# As the writable branch, format found out and given; as a read-only branch under a fresh upper, as a whole and as a layer.
	declared=upper=RO
	[ $format = oci ] && declared=upper=RO+wh
	mkdir new work2
	marks upper >before.marks
	for how in "cow,allow_other upper=RW:lower=RO" "cow,allow_other,whiteout=$format lower=RO:upper=RW" \
		"cow,allow_other $declared:lower=RO" "cow,allow_other $declared:lower=RO:new=RW" \
		"lowerdir=upper:lower" "lowerdir=upper:lower,upperdir=new,workdir=work2" "lowerdir=lower,upperdir=upper,workdir=work"; do
		check "cowfs mounts $name: $how" union -o $how mnt || continue
		# cowfs need not find the data of a metadata-only copy, but says so then: those lines are compared without it.
		if [ "$name" = kernel-overlay-metacopy ]; then
			unpack_metacopy_plain
			check "$name shows its data: $how" contents_right want
			unmount mnt
			no_daemon_left
			continue
		fi
		check "its listing agrees with look-ups ($name: $how)" listing cowfs.tree $PROBE
		same "$name shows what its program showed: $how" "$FIXTURES/$name.tree" cowfs.tree
		check "cowfs unmounts" unmount mnt
		no_daemon_left
	done
	marks upper >after.marks
	# An upper's metadata-only copies get their data when they are first opened (ARCHITECTURE, copy-up).
	[ "$name" = kernel-overlay-metacopy ] || same "reading alone changed nothing in $name" before.marks after.marks

	# Life goes on in it: everything can be deleted, and then nothing is left, nor comes back.
	check "cowfs mounts $name to delete all" cowfs_mount || continue
	check "all of $name can be deleted" find mnt -mindepth 1 -delete
	equal "nothing is left of $name" "$(ls -A mnt)" ""
	check "a name of the lower is used anew" mkdir mnt/dir
	unmount mnt
	no_daemon_left
	check "cowfs mounts $name once more" cowfs_mount || continue
	equal "nothing comes back in $name" "$(cd mnt && find . -mindepth 1)" ./dir
	unmount mnt
	no_daemon_left
done
finish
