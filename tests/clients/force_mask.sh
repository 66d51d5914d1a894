#!/bin/bash
# podman with `force_mask` in storage.conf: owners and modes are in attributes, and cowfs is told so (xattr_permissions=2). By root
# and by an ordinary user: containers change owners, are committed, and show the same; images made before the setting, and after.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/podman.bash"

KEY=user.containers.override_stat
# What a container does, and what it must see of it.
CHANGES='
set -e
cd /data
umask 027
echo new >new; mkdir newd; chown 7:8 new; chmod 4751 new; chown 100:1000 newd; chmod 2775 newd; echo x >newd/x; mkdir newd/sub
chown 5:6 kept; chmod 600 kept; echo more >>appended; chown 9:9 dir; mv tree tree2; ln new hard; ln -s new soft; chown -h 3:4 soft
rm gone
echo x >setid; chmod 6777 setid; chown 1:1 setid
'
SEEN="kept 5:6 600;new 7:8 4751;hard 7:8 4751;newd 100:1000 2775;newd/x 0:1000 640;newd/sub 0:1000 2750;appended 0:0 644;dir 9:9 755;owned 20:30 640;tree2 0:0 755;soft 3:4 777;setid 1:1 777;"
see='cd /data && stat -c "%n %u:%g %a" kept new hard newd newd/x newd/sub appended dir owned tree2 soft setid'

scenario() {
	local who=$1 upper base owner=root
	[ -z "$ENGINE_USER" ] || owner=$TEST_USER
	check "$who: an image is imported" import_as base "$T/rootfs" || return
	equal "$who: its files say nothing of their owners" "$(find "$STORE"/graph/overlay/*/diff/data ! -type l -printf '%u %m\n' | sort -u)" "$owner 755"
	base=$(layer_dirs)
	lowers_digest "$base" >"lowers.$who"
	equal "$who: a container sees them" "$(run base sh -c 'head -n 1000 /proc/mounts | grep -c " / fuse.cowfs "; stat -c "%u:%g %a" /data/owned /data/kept' | tr '\n' ' ')" "1 20:30 640 0:0 644 "
	check "$who: it changes owners and modes" podman_ run --name changed base sh -c "$CHANGES"
	upper=$(podman_ inspect --format '{{.GraphDriver.Data.UpperDir}}' changed)
	equal "$who: they stand in attributes" "$(getfattr --absolute-names --only-values -n $KEY "$upper/data/new"; echo; getfattr --absolute-names --only-values -n $KEY "$upper/data/newd")" $'7:8:4751\n100:1000:2775'
	equal "$who: and no inode says it" "$(find "$upper" -perm /6077 ! -type l ! -type p -path '*/data/*')" ""
	podman_ diff changed | grep ' /data' | sort >"diff.$who"
	same "$who: podman diff lists the changes" diff.wanted "diff.$who"
	check "$who: commit" podman_ commit -q changed committed
	top_layer committed | grep '^data/' >"layer.$who"
	same "$who: the layer has owners, modes and set-id bits, and no attribute of ours" layer.wanted "layer.$who"
	equal "$who: and what is in it afterwards" "$(run committed sh -c "$see" | without_set_id)" "$(tr ';' '\n' <<<"$SEEN" | without_set_id)"
	check "$who: removed" remove changed
	equal "$who: one container, all that it did" "$(run base sh -c "$CHANGES $see" | tr '\n' ';')" "$SEEN"
	equal "$who: whose files they are counts" "$(run --user 20:30 base sh -c 'cat /data/owned; cat /data/secret 2>/dev/null || echo denied' | tr '\n' ' ')" "base owned denied "
	equal "$who: an ordinary user's write takes set-id bits away" \
		"$(run base sh -c 'cp /bin/busybox /tmp/b; chmod 6777 /tmp/b; busybox su nobody -s /bin/sh -c "echo x >>/tmp/b"; stat -c %a /tmp/b')" 777
	lowers_digest "$base" >"lowers.$who.after"
	same "$who: no layer of the image has changed" "lowers.$who" "lowers.$who.after"
	equal "$who: nothing stays mounted" "$(in_engine podman ps -q; engine_mounts)" ""
	check "$who: no daemon is left" no_daemon_left
}
# podman 4.3 itself cannot unpack a FIFO with force_mask (it wants to give it the attribute), and leaves out
# set-id bits and the owners of symlinks when it unpacks a layer.
without_set_id() { sed -E '/^$/d; s/^soft .*/soft/; s/ [246]([0-7]{3})$/ \1/'; }

cat >diff.wanted <<'LIST'
A /data/hard
A /data/new
A /data/newd
A /data/newd/sub
A /data/newd/x
A /data/setid
A /data/soft
A /data/tree2
A /data/tree2/deep
A /data/tree2/deep/two
A /data/tree2/kept-too
A /data/tree2/one
C /data
C /data/appended
C /data/dir
C /data/kept
D /data/gone
D /data/tree
LIST
cat >layer.wanted <<'LIST'
data/.wh.gone 0 0 0:0
data/.wh.tree 0 0 0:0
data/appended 0 644 0:0
data/dir 5 755 9:9
data/hard 0 4751 7:8
data/kept 0 600 5:6
data/new 1 4751 7:8 -> data/hard
data/newd 5 2775 100:1000
data/newd/sub 5 2750 0:1000
data/newd/x 0 640 0:1000
data/setid 0 777 1:1
data/soft 2 777 3:4 -> new
data/tree2 5 755 0:0
data/tree2/deep 5 755 0:0
data/tree2/deep/two 0 644 0:0
data/tree2/kept-too 0 600 5:6
data/tree2/one 0 644 0:0
LIST
make_rootfs rootfs || fail "a root file system cannot be made"
echo "base owned" >rootfs/data/owned && chown 20:30 rootfs/data/owned && chmod 640 rootfs/data/owned
echo "base secret" >rootfs/data/secret && chmod 600 rootfs/data/secret
echo 'nobody:x:65534:65534::/:/bin/sh' >>rootfs/etc/passwd

FORCE_MASK=shared
engine "$T/root-store"
scenario root
check "a user with further ids" make_rootless_user
engine "$T/home/store" rootless
scenario user
finish
