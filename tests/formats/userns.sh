#!/bin/bash
# In a user namespace marks are user.overlay.* attributes: what the kernel's overlayfs writes there (userxattr) cowfs reads,
# and the reverse; outside, where anyone could have set them, they are no marks.
# timeout: 400
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr
check "a user, and /dev/fuse for all" make_user || finish

# A user namespace with 65536 ids that are none of the host's, and a mount namespace of its own.
unshare -Um sleep 1000 9>&- &
SPACE=$!
for i in {1..300}; do [ "$(readlink "/proc/$SPACE/ns/user")" != "$(readlink /proc/self/ns/user)" ] && break; sleep 0.1; done
echo "0 300000 65536" >"/proc/$SPACE/uid_map" && echo "0 300000 65536" >"/proc/$SPACE/gid_map"
chmod 755 "$T"
cat >inner <<'INNER'
cd "$T/$1" || exit 1
peer() { mount -t overlay none -o "lowerdir=lower,upperdir=upper,workdir=work,userxattr" mnt; }
cowfs() { timeout 20 "$COWFS" -o "cow,allow_other${1:+,$1}" upper=RW:lower=RO mnt; }
list() { timeout 60 /usr/bin/python3 "$TREE" list mnt "$@"; }
end() { umount mnt && for i in {1..300}; do pgrep -x cowfs >/dev/null || break; sleep 0.1; done; }
eval "$2"
INNER
# within DIR COMMANDS: in the namespaces, as their root.
within() {
	timeout -k 5 100 nsenter -t "$SPACE" -U -m -S 0 -G 0 -- env T="$T" COWFS="$COWFS" TREE="$FORMATS/tree.py" PATH="$PATH" \
		bash "$T/inner" "$1" "set -e; $2"
}
# territory NAME: a fresh directory that belongs to the namespace's root.
territory() {
	fresh "$1"
	chown 300000:300000 . lower upper work plain mnt
	HERE=$(basename "$PWD")
}

for change in change change-renames; do
	territory "kernel-$change"
	check "a lower" within "$HERE" 'python3 $TREE lower lower'
	check "the kernel does: $change" within "$HERE" "peer; python3 \$TREE $change mnt; end; peer; list --mtime >peer.tree; end"
	check "cowfs lists what it wrote" within "$HERE" 'cowfs; list --mtime --probe lower --probe upper >cowfs.tree; end'
	same "the kernel wrote, cowfs reads: the same tree ($change, user namespace)" peer.tree cowfs.tree

	territory "cowfs-$change"
	check "a lower" within "$HERE" "python3 \$TREE lower lower; cp -a lower/. plain; python3 \$TREE $change plain; python3 \$TREE list plain >plain.tree"
	check "cowfs does: $change" within "$HERE" "cowfs; python3 \$TREE $change mnt; list --probe lower --probe upper >live.tree; end"
	same "cowfs is right at once ($change, user namespace)" plain.tree live.tree
	check "cowfs lists it after a remount" within "$HERE" 'cowfs; list >again.tree; end'
	same "cowfs is right after a remount ($change, user namespace)" plain.tree again.tree
	check "the kernel lists it" within "$HERE" 'peer; list >peer.tree; end'
	same "cowfs wrote, the kernel reads: the same tree ($change, user namespace)" plain.tree peer.tree
	equal "no trusted marks were needed" "$(getfattr -hR -d -m '^trusted' upper 2>/dev/null)" ""
done

# Outside, user.overlay.* is what any user may write: hidden, but no mark.
territory outside
mkdir -p lower/d upper/d lower/elsewhere && touch lower/d/old lower/elsewhere/x
setfattr -n user.overlay.opaque -v y upper/d
setfattr -n user.overlay.redirect -v /elsewhere upper/d
check "cowfs mounts, as root, an upper with user.overlay.* attributes" cowfs_mount whiteout=overlay
equal "they are no marks" "$(ls mnt/d)" old
equal "and cannot be seen" "$(getfattr -d -m - mnt/d 2>/dev/null)" ""
check "cowfs unmounts" unmount mnt
kill "$SPACE"
finish
