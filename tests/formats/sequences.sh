#!/bin/bash
# Random sequences of operations, more than a thousand, each in a directory of its own: what a peer writes cowfs shows as that
# peer, what cowfs writes is right at once and after a remount, and the peer shows it too. In every format, both ways.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr unionfs-fuse=unionfs-fuse fuse-overlayfs=fuse-overlayfs
TREE_LIMIT=120
# Sequences a peer and direction, operations a sequence, and where the dice begin.
MANY=${1:-100} LONG=${2:-12} SEED=${3:-1}

# both_ways PEER FORMAT OPTION: the sequences by the peer, read by cowfs; others by cowfs, read by the peer.
both_ways() {
	local peer=$1 format=$2 option=whiteout=$2${3:+,$3}
	fresh "$peer-writes"
	tree_py sequences-lower lower "$SEED" "$MANY" $PEER_LACKS
	peer_mount "$peer" || return
	check "$peer: $MANY sequences of $LONG operations" tree_py sequences mnt "$SEED" "$MANY" "$LONG" $PEER_LACKS
	unmount mnt
	settle_daemons
	peer_mount "$peer" && listing peer.tree
	unmount mnt
	settle_daemons
	for round in "at first" "after a remount"; do
		check "$peer wrote: cowfs mounts, $round" cowfs_mount "whiteout=$format" || return
		check "$peer wrote: listings agree with look-ups, $round" listing cowfs.tree $PROBE
		same "$peer wrote, cowfs reads the same $(wc -l <peer.tree) objects, $round" peer.tree cowfs.tree
		unmount mnt
		no_daemon_left
	done

	fresh "for-$peer"
	tree_py sequences-lower lower "$SEED" "$MANY" $PEER_LACKS
	cp -a lower/. plain
	tree lower exact | sed -E 's/ a-?[0-9]+( |$)/\1/' >lower.before
	check "cowfs mounts ($option)" cowfs_mount "$option" || return
	check "cowfs: $MANY sequences of $LONG operations answer as on a plain filesystem ($option)" \
		sh -c 'timeout 120 /usr/bin/python3 "$@" >operations || { tail -n 8 operations; exit 1; }' sh "$FORMATS/tree.py" sequences mnt "$SEED-ours" "$MANY" "$LONG" plain $PEER_LACKS
	tree_py list plain $LIST_PLAIN >plain.tree
	LIST=$LIST_PLAIN check "listings agree with look-ups" listing cowfs.tree $PROBE
	same "the same $(wc -l <plain.tree) objects as on a plain filesystem ($option)" plain.tree cowfs.tree
	unmount mnt
	no_daemon_left
	check "cowfs mounts again ($option)" cowfs_mount "${3:-}" || return
	LIST=$LIST_PLAIN listing cowfs.tree
	same "and after a remount ($option)" plain.tree cowfs.tree
	listing cowfs.tree
	unmount mnt
	no_daemon_left
	tree lower exact | sed -E 's/ a-?[0-9]+( |$)/\1/' >lower.after
	same "the lower is untouched ($option)" lower.before lower.after
	peer_reads "cowfs wrote, $peer reads the same ($option)" "$peer"
}

LIST="--xattr --mtime" LIST_PLAIN=--xattr
both_ways kernel overlay redirect=off
both_ways kernel-redirect overlay metacopy=off
both_ways kernel-metacopy overlay ""
PEER_LACKS="--no-mkfifo --no-link"
export ENGINE_FORM=yes
both_ways fuse-overlayfs overlay ""
both_ways fuse-overlayfs-wh oci ""
unset ENGINE_FORM
LIST=--mtime LIST_PLAIN=
PEER_LACKS=--no-link
both_ways unionfs-fuse unionfs-fuse ""
MARKS_OF_37=yes
both_ways unionfs unionfs ""
finish
