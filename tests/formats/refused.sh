#!/bin/bash
# A writable branch that holds marks of another format than asked for, or of two, is refused with both named; nothing changes.
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr

# marked FORMAT DIR: DIR holds the marks of that format and a file.
marked() {
	touch "$2/file"
	case $1 in
	overlay) mknod "$2/gone" c 0 0 ;;
	overlay-opaque) mkdir "$2/dir" && setfattr -n trusted.overlay.opaque -v y "$2/dir" ;;
	oci) touch "$2/.wh.gone" ;;
	oci-opaque) mkdir "$2/dir" && touch "$2/dir/.wh..wh..opq" ;;
	unionfs) mkdir "$2/.unionfs" && touch "$2/.unionfs/gone_HIDDEN~" ;;
	unionfs-fuse) mkdir "$2/.unionfs-fuse" && touch "$2/.unionfs-fuse/gone_HIDDEN~" ;;
	esac
}

# A branch of one format, another asked for: refused, both named. The same asked for: taken.
for held in overlay oci unionfs unionfs-fuse; do
	for asked in overlay oci unionfs unionfs-fuse; do
		fresh "$held-$asked"
		touch lower/gone lower/there
		marked "$held" upper
		marks upper >before.marks
		if [ "$held" = "$asked" ]; then
			check "whiteout=$asked on an upper that holds $held marks" cowfs_mount "whiteout=$asked" || continue
			equal "its marks count ($held)" "$(cd mnt && ls -d gone there 2>/dev/null)" there
			check "cowfs unmounts" unmount mnt
			no_daemon_left
		else
			refuse "whiteout=$asked is refused on an upper that holds $held marks, with both named" \
				"(\b$held\b.*\b$asked\b)|(\b$asked\b.*\b$held\b)" cowfs_mount "whiteout=$asked"
			check "nothing is mounted" bash -c '! mountpoint -q mnt'
			no_daemon_left
		fi
		marks upper >after.marks
		same "the upper is as it was ($held, $asked asked for)" before.marks after.marks
	done
done

# Two formats in one writable branch.
for pair in "unionfs unionfs-fuse" "overlay unionfs" "oci unionfs-fuse"; do
	read -r one other <<<"$pair"
	fresh "both-$one-$other"
	touch lower/gone lower/there
	marked "$one" upper
	marked "$other" upper
	marks upper >before.marks
	refuse "an upper with both $one and $other marks is refused, with both named" \
		"(\b$one\b.*\b$other\b)|(\b$other\b.*\b$one\b)" cowfs_mount
	check "nothing is mounted" bash -c '! mountpoint -q mnt'
	marks upper >after.marks
	same "the upper is as it was ($one and $other)" before.marks after.marks
done

# The same as a read-only branch, both sets of marks count: it is not written, so nothing can go wrong.
fresh both-read-only
mkdir middle
touch lower/{gone-a,gone-b,there} && mkdir middle/.unionfs middle/.unionfs-fuse
touch middle/.unionfs/gone-a_HIDDEN~ middle/.unionfs-fuse/gone-b_HIDDEN~
check "a read-only branch with .unionfs and .unionfs-fuse mounts" union -o cow,allow_other upper=RW:middle=RO:lower=RO mnt
equal "the marks of both count" "$(ls -A mnt)" there
check "cowfs unmounts" unmount mnt

# Marks deep down decide as those at the root do; a directory of that name is no mark.
fresh deep
mkdir -p lower/a/b upper/a/b
touch lower/a/b/gone
touch upper/a/b/.wh.gone
if cowfs_mount whiteout=oci >out 2>&1; then
	equal "a .wh. file deep in a branch is a mark" "$(ls -A mnt/a/b)" ""
	unmount mnt
else
	fail "whiteout=oci with a mark deep down: $(cat out)"
fi

# A word that is no format.
fresh word
refuse "whiteout=aufs is refused and quoted" "aufs" cowfs_mount whiteout=aufs
finish
