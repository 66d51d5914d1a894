#!/bin/bash
# podman with cowfs as its mount program, by root and by an ordinary user: run, diff, commit, volumes, id maps, image mounts;
# a layer has exactly the changes, and nothing of cowfs's own.
# timeout: 900
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/podman.bash"

# What a container does to the base image.
CHANGES='
set -e
echo more >>/data/appended
rm /data/gone
chmod 600 /data/chmodded
rm -r /data/dir; mkdir /data/dir; echo new >/data/dir/new
mv /data/tree /data/tree2
mv /data/swap /data/old; mkdir /data/swap; echo s >/data/swap/new; mv /data/old/old /data/swap/old; rmdir /data/old
echo one >/data/one; ln /data/one /data/two; chown 7:8 /data/one
echo linked >>/data/link-a; cat /data/link-b
echo x >/tmp/x; rm /tmp/x
test "$(stat -c %h /data/link-b)" = 2
test "$(cat /data/link-b)" = "base links
linked"
'
cat >diff.wanted <<'LIST'
A /data/dir/new
A /data/one
A /data/swap/new
A /data/tree2
A /data/tree2/deep
A /data/tree2/deep/two
A /data/tree2/kept-too
A /data/tree2/one
A /data/two
C /data
C /data/appended
C /data/chmodded
C /data/dir
C /data/link-a
C /data/link-b
C /data/swap
D /data/dir/a
D /data/dir/sub
D /data/gone
D /data/tree
LIST
cat >layer.wanted <<'LIST'
data 5 755 0:0
data/.wh.gone 0 0 0:0
data/.wh.tree 0 0 0:0
data/appended 0 644 0:0
data/chmodded 0 600 0:0
data/dir 5 755 0:0
data/dir/.wh.a 0 0 0:0
data/dir/.wh.sub 0 0 0:0
data/dir/new 0 644 0:0
data/link-a 0 644 0:0
data/link-b 1 644 0:0 -> data/link-a
data/one 0 644 7:8
data/swap 5 755 0:0
data/swap/new 0 644 0:0
data/tree2 5 755 0:0
data/tree2/deep 5 755 0:0
data/tree2/deep/two 0 644 0:0
data/tree2/kept-too 0 644 0:0
data/tree2/one 0 644 0:0
data/two 1 644 7:8 -> data/one
LIST

# scenarios WHO: all of it, with the engine that was chosen last.
scenarios() {
	local who=$1 merged base n
	check "$who: an image is imported" import_base "$T/rootfs" || return
	base=$(layer_dirs)
	lowers_digest "$base" >"lowers.$who"
	equal "$who: a container runs on cowfs" "$(run base sh -c 'head -n 1000 /proc/mounts' | awk '$2 == "/" { print $3 }')" fuse.cowfs
	equal "$who: and is root there" "$(run base sh -c 'id -u; stat -c %u:%g:%a /data/big /tmp' | tr '\n' ' ')" "0 0:0:644 0:0:1777 "

	check "$who: it changes the tree" podman_ run --name changed base sh -c "$CHANGES"
	podman_ diff changed | grep -v '^[AC] /\(etc\|dev\|proc\|sys\|run\|tmp\)' | sort >"diff.$who"
	same "$who: podman diff lists exactly the changes" diff.wanted "diff.$who"
	check "$who: commit" podman_ commit -q changed committed
	top_layer committed >"layer.$who"
	same "$who: the layer has exactly the changes, and no attribute of ours" layer.wanted "layer.$who"
	equal "$who: the committed image shows what the container showed" \
		"$(run committed sh -c 'cd /data; cat appended dir/* link-b swap/*; ls dir; ls swap; ls tree2; stat -c "%h %u:%g %n" one two link-a; test ! -e gone -a ! -e tree' | tr '\n' ' ')" \
		"base appended more new base links linked s base swap/old new new old deep kept-too one 2 7:8 one 2 7:8 two 2 0:0 link-a "

	check "$who: a container that has ended" podman_ run --name twice base sh -c 'echo x >>/data/appended'
	check "$who: is started once more" podman_ start -a twice
	equal "$who: with what it had" "$(podman_ cp twice:/data/appended - | tar -xO | tr '\n' ' ')" "base appended x x "
	check "$who: a container is removed" remove twice
	check "$who: a container is removed" remove changed

	# :O, a volume that swallows what is written to it.
	mkdir -p "$STORE/volume" && echo v >"$STORE/volume/file"
	[ -z "$ENGINE_USER" ] || chown -R "$TEST_UID:$TEST_UID" "$STORE/volume"
	tree "$STORE/volume" >"volume.$who"
	equal "$who: a volume with :O is written to" \
		"$(run -v "$STORE/volume:/v:O" base sh -c 'echo w >>/v/file; echo n >/v/new; cat /v/*' | tr '\n' ' ')" "v w n "
	tree "$STORE/volume" >"volume.$who.after"
	same "$who: and is what it was" "volume.$who" "volume.$who.after"

	# The same, kept: what one container has written the next one has.
	mkdir -p "$STORE/kept.up" "$STORE/kept.work"
	[ -z "$ENGINE_USER" ] || chown -R "$TEST_UID:$TEST_UID" "$STORE"/kept.*
	for n in 1 2; do
		run -v "$STORE/volume:/v:O,upperdir=$STORE/kept.up,workdir=$STORE/kept.work" base sh -c 'echo w >>/v/file; cat /v/file' >"kept.$n"
	done
	equal "$who: a volume with :O and an upper of its own keeps it" "$(cat kept.2 | tr '\n' ' ')" "v w w "
	tree "$STORE/volume" >"volume.$who.after"
	same "$who: and the volume is what it was" "volume.$who" "volume.$who.after"

	# A directory for the root, and what is written to it swallowed.
	mkdir "$STORE/plain" && cp -a "$T/rootfs/." "$STORE/plain"
	[ -z "$ENGINE_USER" ] || chown -R "$TEST_UID:$TEST_UID" "$STORE/plain"
	tree "$STORE/plain" >"plain.$who"
	equal "$who: --rootfs with :O" "$(run --rootfs "$STORE/plain:O" sh -c 'echo x >/data/kept; rm -r /data/dir; cat /data/kept; grep -c " / fuse.cowfs " /proc/mounts; ls /data | wc -l' | tr '\n' ' ')" "x 1 9 "
	tree "$STORE/plain" >"plain.$who.after"
	same "$who: and the directory is what it was" "plain.$who" "plain.$who.after"
	equal "$who: --read-only" "$(run --read-only base sh -c 'cat /data/kept; echo x 2>/dev/null >/data/y || echo no; echo t >/tmp/t && cat /tmp/t' 2>/dev/null | tr '\n' ' ')" "base kept no t "
	check "$who: an image is saved" podman_ save -q -o "$STORE/base-image.tar" base

	# Ids of the container's own: stored from 0 up, shown shifted.
	equal "$who: --uidmap: root of a namespace of its own" \
		"$(run --uidmap "$IDS" --gidmap "$IDS" base sh -c 'id -u; stat -c %u:%g /data/big; echo x >/data/new; chown 3:4 /data/new; stat -c %u:%g /data/new /data' | tr '\n' ' ')" \
		"0 0:0 3:4 0:0 "
	check "$who: --uidmap: commits" eval 'podman_ run --name mapped --uidmap "$IDS" --gidmap "$IDS" base sh -c "echo x >/data/mapped; chown 3:4 /data/mapped; echo y >>/data/appended" && podman_ commit -q mapped mapped-image'
	equal "$who: --uidmap: the layer has the container's ids" "$(top_layer mapped-image | tr '\n' ';')" \
		"data 5 755 0:0;data/appended 0 644 0:0;data/mapped 0 644 3:4;"
	check "$who: --uidmap: removed" remove mapped

	# An image as a tree, read-only.
	equal "$who: an image as a volume" \
		"$(run --mount type=image,source=committed,destination=/i base sh -c 'cat /i/data/appended; echo x 2>/dev/null >/i/data/y || echo no' | tr '\n' ' ')" "base appended more no "
	# Several ranges: the user is himself inside, and everybody else is moved.
	[ -z "$ENGINE_USER" ] || equal "$who: --userns=keep-id" \
		"$(run --userns=keep-id base sh -c 'id -u; stat -c %u:%g /data/kept; echo x >/tmp/mine && stat -c %u:%g /tmp/mine; echo y 2>/dev/null >>/data/kept || echo denied' 2>/dev/null | tr '\n' ' ')" \
		"$TEST_UID 0:0 $TEST_UID:$TEST_UID denied "
	if [ -z "$ENGINE_USER" ]; then
		merged=$(podman_ image mount base)
		equal "$who: podman image mount" "$(cat "$merged/data/kept")" "base kept"
		refuse "$who: is read-only" 'read-only' touch "$merged/data/x"
		check "$who: podman image unmount" podman_ image unmount base
	fi

	# Five at once, of one image.
	for n in 1 2 3 4 5; do
		run base sh -c "i=0; while [ \$i -lt 200 ]; do i=\$((i + 1)); echo $n >>/data/appended; echo \$i >/data/n.\$i; done; rm -r /data/tree; tail -n 1 /data/appended" >"five.$n" 2>&1 &
	done
	wait
	equal "$who: five at once" "$(cat five.? | tr '\n' ' ')" "1 2 3 4 5 "

	# In the background, twice the same, killed.
	check "$who: in the background" podman_ run -d --name busy base sh -c 'i=0; while true; do i=$((i+1)); echo $i >/data/n.$((i % 7)); done'
	check "$who: exec" podman_ exec busy sh -c 'until ls /data/n.1; do sleep 0.1; done && rm /data/gone'
	check "$who: killed under load" podman_ rm -f -t 0 busy

	lowers_digest "$base" >"lowers.$who.after"
	same "$who: no layer of the image has changed" "lowers.$who" "lowers.$who.after"
	equal "$who: nothing stays mounted" "$(in_engine podman ps -q; engine_mounts)" ""
	check "$who: no daemon is left" no_daemon_left
}

# debian WHO: apt-get in a container, with owners, set-id bits and capabilities, and the same in the image of it.
debian() {
	local who=$1
	check "$who: Debian is imported" import_as debian "$T/debian" || return
	ENGINE_LIMIT=300 check "$who: Debian: packages are installed" podman_ run --name apt -e DEBIAN_FRONTEND=noninteractive debian sh -ec '
		apt-get -q update
		apt-get -q -y install --no-install-recommends openssh-client dbus iputils-ping
		test -z "$(dpkg --verify)"'
	check "$who: Debian: commit" podman_ commit -q apt debian-more
	equal "$who: Debian: the image verifies" "$(run debian-more dpkg --verify)" ""
	equal "$who: Debian: owners and set-id bits" "$(run debian-more stat -c '%U:%G %a' /usr/lib/dbus-1.0/dbus-daemon-launch-helper /usr/bin/ssh-agent | tr '\n' ' ')" \
		"root:messagebus 4754 root:_ssh 2755 "
	equal "$who: Debian: a capability is in the layer" "$(layers debian-more | grep '^usr/bin/ping ')" "usr/bin/ping 0 755 0:0 SCHILY.xattr.security.capability"
	equal "$who: Debian: and nothing else of the kind" "$(layers debian-more | grep SCHILY | grep -v '^usr/bin/ping ')" ""
	check "$who: Debian: removed" remove apt
	check "$who: Debian: its image too" podman_ rmi -f debian-more debian
}

make_rootfs rootfs || fail "a root file system cannot be made"
engine "$T/root-store"
IDS=0:100000:65536
scenarios root
if long "apt-get in a container"; then
	debian_root
	cp -a "$CACHE/bookworm" debian && cp /etc/resolv.conf debian/etc/resolv.conf
	DEBIAN=yes
	debian root
fi

check "a user with further ids" make_rootless_user
engine "$T/home/store" rootless
# Of the user's own ids.
IDS=0:100:1000
scenarios user
[ -z "${DEBIAN-}" ] || debian user
finish
