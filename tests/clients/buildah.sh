#!/bin/bash
# buildah and podman build with cowfs as the mount program, by root and by an ordinary user: from scratch, working containers
# mounted again and again, images of many layers.
# timeout: 1200
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/podman.bash"

# containerfile LAYERS: each adds, changes, replaces and deletes something of the one before.
containerfile() {
	local n
	echo "FROM base"
	for ((n = 1; n <= $1; n++)); do
		echo "RUN echo $n >/data/n.$n; echo $n >>/data/appended; rm -f /data/n.$((n - 2)); rm -rf /data/dir; mkdir /data/dir; echo $n >/data/dir/$n; ln /data/n.$n /data/dir/link"
	done
}

# build LAYERS NAME: and what it shows must be what its commands amount to.
build() {
	local who=$1 layers=$2 image=built-$2 began=$SECONDS
	mkdir -p "$STORE/context" && containerfile "$layers" >"$STORE/context/Containerfile"
	[ -z "$ENGINE_USER" ] || chown -R "$TEST_UID:$TEST_UID" "$STORE/context"
	ENGINE_LIMIT=500 check "$who: $layers layers are built" \
		podman_ build -q --layers --isolation chroot --network host -t "$image" "$STORE/context" || return
	echo "# in $((SECONDS - began)) s"
	equal "$who: the image of $layers layers has them all" "$(layers "$image" | grep -c '^--$')" $((layers + 1))
	equal "$who: the topmost has its changes only" "$(top_layer "$image" | grep -v '^etc 5 ' | tr '\n' ';')" \
		"data 5 755 0:0;data/.wh.n.$((layers - 2)) 0 0 0:0;data/appended 0 644 0:0;data/dir 5 755 0:0;data/dir/.wh.$((layers - 1)) 0 0 0:0;data/dir/$layers 0 644 0:0;data/dir/link 0 644 0:0;data/n.$layers 1 644 0:0 -> data/dir/link;"
	equal "$who: a container of $layers layers shows the sum" \
		"$(run "$image" sh -c 'cd /data; ls; cat dir/*; tail -n 2 appended; stat -c %h dir/link' | tr '\n' ' ')" \
		"appended big chmodded dir gone kept link-a link-b n.$((layers - 1)) n.$layers swap tree $layers $layers $((layers - 1)) $layers 2 "
	check "$who: and changes it" run "$image" sh -c 'rm -r /data && mkdir /data && echo x >/data/x && test "$(ls /data)" = x'
}

scenarios() {
	local who=$1 container merged n
	check "$who: an image is imported" import_base "$T/rootfs" || return

	container=$(buildah_ from scratch)
	check "$who: from scratch: a tree is added" buildah_ add -q "$container" "$STORE/base.tar" /
	check "$who: from scratch: and used" buildah_ run --isolation chroot --network host "$container" -- sh -c 'rm -r /data/tree; ln /data/kept /data/kept2; mkdir /data/tree; mv /data/gone /data/tree/'
	check "$who: from scratch: committed" buildah_ commit -q "$container" scratched
	check "$who: from scratch: removed" buildah_ rm "$container"
	equal "$who: from scratch: it runs" "$(run scratched sh -c 'cd /data; find tree | sort; stat -c %h kept kept2' | tr '\n' ' ')" "tree tree/gone 2 2 "

	# Mounted and unmounted within milliseconds, by the same upper each time.
	container=$(buildah_ from base)
	if [ -z "$ENGINE_USER" ]; then
		for n in 1 2 3 4 5 6 7 8; do
			merged=$(buildah_ mount "$container") && echo "$n" >>"$merged/data/times" && rm -f "$merged/data/gone" && buildah_ umount "$container" >/dev/null || break
		done
	else
		for n in 1 2 3 4 5 6 7 8; do
			buildah_ unshare sh -c 'm=$(buildah mount "$0") && echo "$1" >>"$m/data/times" && rm -f "$m/data/gone" && buildah umount "$0" >/dev/null' "$container" "$n" || break
		done
	fi
	check "$who: mounted eight times in a row: committed" buildah_ commit -q "$container" times
	equal "$who: mounted eight times in a row: nothing lost" "$(top_layer times | tr '\n' ';'; run times cat /data/times | tr -d '\n')" \
		"data 5 755 0:0;data/.wh.gone 0 0 0:0;data/times 0 644 0:0;12345678"
	check "$who: removed" buildah_ rm "$container"

	build "$who" 6
	! long "$who: an image of 120 layers" || build "$who" 120
	equal "$who: nothing stays mounted" "$(engine_mounts)" ""
	check "$who: no daemon is left" no_daemon_left
}

make_rootfs rootfs || fail "a root file system cannot be made"
engine "$T/root-store"
scenarios root

check "a user with further ids" make_rootless_user
engine "$T/home/store" rootless
scenarios user
finish
