# A GlusterFS volume of three copies within a test: server, bricks and clients in a network namespace of its own, with private
# state directories. Sourced after lib.sh and cache.bash.

ADDRESS=10.98.0.1 # Gluster refuses 127.0.0.1.
VOLUME=cowfstest

# own_network: this script goes on in a network namespace of its own.
own_network() {
	[ -z "${OWN_NETWORK-}" ] || return 0
	OWN_NETWORK=yes COWFS_TEST_INSIDE=$T exec unshare -n bash "$TEST_SCRIPT"
}

volume() { timeout 60 gluster --mode=script volume "$@"; }

# gluster_up: glusterd runs, the volume is started; its bricks are $T/brick1 to 3.
gluster_up() {
	local dir bricks=() i
	for dir in /var/lib/glusterd /var/log/glusterfs /run/gluster; do
		mkdir -p "$dir" && mount -t tmpfs none "$dir" || return 1
	done
	ip link set lo up && ip address add "$ADDRESS/32" dev lo || return 1
	timeout 30 glusterd --pid-file="$T/.test/glusterd.pid" 9>&- || return 1
	until_true 20 timeout 5 gluster --mode=script pool list || return 1
	for i in 1 2 3; do
		mkdir "$T/brick$i"
		bricks+=("$ADDRESS:$T/brick$i")
	done
	# `force`: the bricks are no filesystems of their own.
	volume create $VOLUME replica 3 "${bricks[@]}" force && volume set $VOLUME network.ping-timeout 3 &&
		volume start $VOLUME 9>&-
}

# gluster_mount DIR [OPTIONS]
gluster_mount() { mkdir -p "$1" && timeout 30 mount -t glusterfs -o "${2:-rw}" "$ADDRESS:/$VOLUME" "$1" 9>&-; }

# client_of DIR: the process that serves the volume there.
client_of() { pgrep -f -- "glusterfs .*$VOLUME $1\$"; }

# kill_brick N...
kill_brick() {
	local i
	for i; do kill -KILL "$(cat /run/gluster/vols/$VOLUME/*-brick"$i".pid)" || return 1; done
}

bricks_connected() { [ "$(volume heal $VOLUME info | grep -c '^Status: Connected')" = 3 ]; }
healed() { [ "$(volume heal $VOLUME info | grep -c '^Number of entries: 0$')" = 3 ]; }

# bricks_back: those that were killed run again, and have what was written without them.
bricks_back() {
	volume start $VOLUME force 9>&- || return 1
	until_true 40 bricks_connected || { echo "not connected"; volume heal $VOLUME info; return 1; }
	volume heal $VOLUME >/dev/null
	until_true 90 healed || { echo "not healed"; volume heal $VOLUME info; return 1; }
}
