# The other union filesystems, each behind the same two words: what the format tests share. Sourced after lib.sh.

FORMATS=$TEST_DIR/formats

. "$TEST_DIR/programs/cache.bash"

tree_py() { timeout -k 5 "${TREE_LIMIT:-60}" /usr/bin/python3 "$FORMATS/tree.py" "$@"; }

# fresh NAME: lower, upper, work, plain (the oracle) and the mountpoint in a new directory, which becomes the current one.
fresh() {
	ROUND=$((${ROUND-0} + 1))
	mkdir "$T/$ROUND-$1" && cd "$T/$ROUND-$1" && mkdir lower upper work plain mnt
}

# peer_mount PEER: the union of ./lower and ./upper on ./mnt by another program.
peer_mount() {
	case $1 in
	kernel)
		mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=off,metacopy=off,index=off mnt ;;
	kernel-redirect)
		mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=on,metacopy=off,index=off mnt ;;
	kernel-metacopy)
		mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=on,metacopy=on,index=off mnt ;;
	kernel-index)
		mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work,redirect_dir=on,metacopy=off,index=on mnt ;;
	unionfs)
		# Every release but Debian's 1.0 keeps the same marks in `.unionfs`: 1.0 reads and writes them under its own name.
		[ ! -e upper/.unionfs ] || mv -T upper/.unionfs upper/.unionfs-fuse || return
		peer_mount unionfs-fuse; return ;;
	unionfs-fuse)
		unionfs-fuse -o cow,allow_other,suid,dev,use_ino,hide_meta_files upper=RW:lower=RO mnt ;;
	fuse-overlayfs)
		fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work mnt 2>/dev/null ;;
	fuse-overlayfs-wh)
		FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT=1 fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work mnt 2>/dev/null ;;
	esac || { fail "peer $1 does not mount"; return 1; }
	is_mounted "$PWD/mnt"
}

# cowfs_mount [OPTION]: the same union by cowfs. Container engines' form for a peer that shares the work directory.
cowfs_mount() {
	local options=allow_other,dev,suid${1:+,$1}
	if [ -n "${ENGINE_FORM-}" ]; then
		union -o "lowerdir=lower,upperdir=upper,workdir=work,$options" mnt
	else
		union -o "cow,$options" upper=RW:lower=RO mnt
	fi
}

# listing FILE [ARG...]: what the mount shows now.
listing() {
	local file=$1
	shift
	tree_py list mnt "$@" $LIST >"$file" 2>&1
}

# Names that can be looked up though no listing shows them are wrong, wherever they come from.
PROBE="--probe lower --probe upper"
LIST=
# Operations that a peer cannot do or trips over: left out of its random sequences.
PEER_LACKS=

# peer_writes PEER FORMAT CHANGE...: the peer changes the tree; then cowfs shows what the peer shows after a remount: found
# out by itself, with the format named, and with the marks in a RO branch under a fresh upper.
peer_writes() {
	local peer=$1 format=$2 change option
	shift 2
	for change in "$@"; do
		fresh "$peer-writes-$change"
		tree_py lower lower
		peer_mount "$peer" || return
		check "$peer does: $change" tree_py "$change" mnt
		check "$peer unmounts" unmount mnt
		settle_daemons
		peer_mount "$peer" && listing peer.tree
		unmount mnt
		settle_daemons
		marks upper >before.marks
		for option in "" "whiteout=$format"; do
			if check "cowfs mounts what $peer wrote ($change, ${option:-format found out})" cowfs_mount "$option"; then
				check "its listing agrees with look-ups" listing cowfs.tree $PROBE
				same "$peer wrote, cowfs reads: the same tree ($change, ${option:-format found out})" peer.tree cowfs.tree
				check "cowfs unmounts" unmount mnt
				check "no daemon left" no_daemon_left
			fi
		done
		marks upper >after.marks
		same "reading alone changed nothing in the upper ($peer, $change)" before.marks after.marks
	done
}

# peer_reads NAME PEER: the peer shows on the same branches what cowfs has shown (cowfs.tree).
peer_reads() {
	peer_mount "$2" || return
	listing peer.tree
	same "$1" cowfs.tree peer.tree
	unmount mnt
	settle_daemons
}

# cowfs_writes PEER FORMAT OPTION CHANGE...: cowfs changes the tree; it shows the right tree at once and after a remount, and
# then the peer shows it too.
cowfs_writes() {
	local peer=$1 format=$2 option=whiteout=$2${3:+,$3} change
	shift 3
	for change in "$@"; do
		fresh "cowfs-writes-$change-for-$peer"
		tree_py lower lower
		cp -a lower/. plain
		(cd plain && tree_py "$change" .)
		tree_py list plain $LIST_PLAIN >plain.tree
		tree "lower" exact >lower.before
		check "cowfs mounts a fresh upper ($option)" cowfs_mount "$option" || continue
		check "cowfs does: $change ($option)" tree_py "$change" mnt
		LIST=$LIST_PLAIN check "its listing agrees with look-ups" listing live.tree $PROBE
		same "cowfs is right at once ($change, $option)" plain.tree live.tree
		check "cowfs unmounts" unmount mnt
		check "no daemon left" no_daemon_left
		check "cowfs mounts again, format found out ($option)" cowfs_mount "${3:-}"
		listing cowfs.tree
		LIST=$LIST_PLAIN listing again.tree
		same "cowfs is right after a remount ($change, $option)" plain.tree again.tree
		unmount mnt
		no_daemon_left
		tree "lower" exact >lower.after
		same "cowfs left the lower as it was ($change, $option)" lower.before lower.after
		peer_reads "cowfs wrote, $peer reads: the same tree ($change, $option)" "$peer"
	done
}

# taking_turns PEER FORMAT OPTION SEED: random operations by the peer and by cowfs in turn on one upper; at each change of
# hands both show the same tree.
taking_turns() {
	local peer=$1 format=$2 option=whiteout=$2${3:+,$3} seed=$4 turn
	fresh "turns-$peer-$seed"
	tree_py random-lower lower "$seed" $PEER_LACKS
	for turn in 1 2 3 4 5 6; do
		if [ $((turn % 2)) = 1 ]; then
			peer_mount "$peer" || return
		else
			check "cowfs mounts in turn $turn (seed $seed)" cowfs_mount "$option" || return
		fi
		tree_py random mnt "$seed.$turn" 40 $PEER_LACKS >"operations.$turn"
		unmount mnt
		settle_daemons
		peer_mount "$peer" || return
		listing peer.tree
		unmount mnt
		settle_daemons
		check "cowfs mounts after turn $turn (seed $seed)" cowfs_mount "$option" || return
		check "its listing agrees with look-ups" listing cowfs.tree $PROBE
		unmount mnt
		no_daemon_left
		same "$peer and cowfs agree after turn $turn (seed $seed)" peer.tree cowfs.tree || return
	done
}

# against_plain FORMAT OPTION SEED: random operations on cowfs and on a plain directory: the same results, the same tree at
# once and after a remount; then each of PEERS shows that tree.
against_plain() {
	local format=$1 option=whiteout=$1${2:+,$2} seed=$3 turn peer
	fresh "plain-$format-$seed"
	tree_py random-lower lower "$seed" $PEER_LACKS
	cp -a lower/. plain
	for turn in 1 2 3; do
		check "cowfs mounts (random, $option, seed $seed, part $turn)" cowfs_mount "$option" || return
		check "70 random operations as on a plain filesystem ($option, seed $seed, part $turn)" \
			random_part "$seed.$turn" 70 || { unmount mnt; return; }
		tree_py list plain $LIST_PLAIN >plain.tree
		LIST=$LIST_PLAIN check "its listing agrees with look-ups" listing cowfs.tree $PROBE
		same "the same tree as a plain filesystem's ($option, seed $seed, part $turn)" plain.tree cowfs.tree
		listing cowfs.tree
		unmount mnt
		no_daemon_left
		for peer in $PEERS; do
			peer_mount "$peer" || continue
			listing peer.tree
			same "$peer shows it too (seed $seed, part $turn)" cowfs.tree peer.tree
			unmount mnt
			settle_daemons
		done
	done
}

# contents_right PLAIN: each file of ./mnt has the size that PLAIN's has, and its content.
contents_right() {
	timeout 60 /usr/bin/python3 - "$1" <<'PY'
import os, sys
wrong = []
for base, _, files in os.walk(sys.argv[1]):
    for path in (os.path.join(base, f) for f in files):
        other = os.path.join("mnt", os.path.relpath(path, sys.argv[1]))
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        if os.stat(path).st_size != os.stat(other).st_size:
            wrong.append(f"size of {other}")
        try:
            if open(path, "rb").read() != open(other, "rb").read():
                wrong.append(f"content of {other}")
        except OSError as error:
            wrong.append(f"{other}: {error}")
print("\n".join(wrong))
sys.exit(bool(wrong))
PY
}

# random_part SEED N: operations on ./mnt and ./plain; on a difference the last of them are shown.
random_part() {
	tree_py random mnt "$1" "$2" plain $PEER_LACKS >"operations.$1" && return
	tail -n 6 "operations.$1"
	return 1
}

# settle_daemons: waits until the peers' daemons of this test have ended (they may still hold the upper after umount).
settle_daemons() {
	local i
	for i in {1..600}; do
		pgrep -x unionfs-fuse >/dev/null || pgrep -x fuse-overlayfs >/dev/null || break
		sleep 0.05
	done
	[ -z "${MARKS_OF_37-}" ] || [ ! -e upper/.unionfs-fuse ] || mv -T upper/.unionfs-fuse upper/.unionfs
}

# marks DIR: everything in a branch that is content or mark, as text, without what a mount may keep at its root for itself.
marks() {
	(cd "$1" && find . -mindepth 1 \( -path ./.cowfs -prune -o -printf '%y %m %U:%G %s %T@ %l %p\n' \) | sort
		find . -mindepth 1 -path ./.cowfs -prune -o -print0 | xargs -0 -r getfattr -h -d -m '^(trusted|user)\.' 2>/dev/null)
}
