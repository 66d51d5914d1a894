#!/bin/bash
# Death with process 1 of a pid namespace, under load: daemon and callers are all gone at once, none hangs, and the next
# union on the same upper shows each file whole. By root, pivoted with and without chroot=, and by a user in his namespaces.
# timeout: 480
. "$(dirname "$0")/../lib.sh"
command -v busybox >/dev/null || { fail "busybox is needed"; finish; }
check "a user is made" make_user

# A root for one namespace: busybox, files to copy up, files to read.
make_lower() {
	local n
	mkdir -p "$1"/{bin,big,dev,small,log,proc,tmp,old}
	# The shell gives it to what runs in the background.
	mknod -m 666 "$1/dev/null" c 1 3
	cp "$(command -v busybox)" "$1/bin/busybox"
	for n in sh cat dd rm mv mkdir find sleep sync true md5sum seq; do ln -s busybox "$1/bin/$n"; done
	for n in 1 2 3 4; do head -c 20000000 /dev/urandom >"$1/big/$n"; done
	for ((n = 0; n < 200; n++)); do echo "small $n" >"$1/small/$n"; done
}

# What runs in it, forever, from the union's root: copy-ups large and small, deletions, renames, readers, programs.
cat >load.sh <<'LOAD'
cd "$1" && PATH=$1/bin:/bin
# Where the one before was interrupted.
for file in tmp/[0-9]*; do [ -e "$file" ] && mv "$file" small/; done
(while true; do for n in 1 2 3 4; do echo more >>big/$n; rm -f big/$n.copy; cat big/$n >big/$n.copy; done; done) &
(i=0; while true; do i=$((i + 1)); echo "line $i" >>log/lines; done) &
(while true; do for n in $(busybox seq 0 99); do echo more >>small/$n; mv small/$n tmp/$n; mv tmp/$n small/$n; done; done) &
(while true; do for n in $(busybox seq 100 199); do rm -f small/$n; echo "small $n" >small/$n; done; done) &
(while true; do busybox find . -xdev -type f -exec busybox md5sum {} +; done >/dev/null 2>&1) &
(while true; do bin/busybox true; done) &
echo started >tmp/started
while true; do sleep 1; done
LOAD

# In its namespaces: mounts, pivots if asked to, works until it is killed. It says on descriptor 3 when it works.
cat >first.sh <<'FIRST'
sh -c "$MOUNT" || exit 1
if [ -n "$PIVOT" ]; then
	cd "$M" && pivot_root . old && exec /bin/sh -c 'PATH=/bin; busybox mount -t proc none /proc; busybox umount -l /old; exec sh /tmp/load.sh ""/' || exit 1
fi
exec sh "$T/load.sh" "$M"
FIRST

# living PID...: those that are not gone.
living() {
	local pid
	for pid; do
		[ -e "/proc/$pid" ] && echo "$pid $(awk '/^(Name|State)/ { printf "%s ", $2 }' "/proc/$pid/status" 2>/dev/null)"
	done
}

# whole UNION LOWER: each file of the union is an old or a new one, never a torn one.
whole() {
	local n size
	for n in 1 2 3 4; do
		cmp -s -n 20000000 "$1/big/$n" "$2/big/$n" || { echo "big/$n is torn"; return 1; }
		size=$(($(stat -c %s "$1/big/$n") - 20000000))
		[ $((size % 5)) = 0 ] && [ "$size" -ge 0 ] || { echo "big/$n: $size bytes more"; return 1; }
	done
	for ((n = 0; n < 100; n++)); do
		head -qn 1 "$1/small/$n" "$1/tmp/$n" 2>/dev/null | grep -qx "small $n" || { echo "small/$n is lost"; return 1; }
	done
}

# death NAME OPTIONS PIVOT PREFIX...: PREFIX runs the namespaces' first process.
death() {
	local name=$1 mount=$2 pivot=$3 first pids i
	shift 3
	env -i PATH="$PATH" T="$PWD" M="$PWD/ufs" MOUNT="$mount" PIVOT="$pivot" "$@" >"$T/first.out" 2>&1 &
	first=$!
	for i in {1..300}; do [ -e upper/tmp/started ] && break; sleep 0.1; done
	check "$name: works" test -e upper/tmp/started || cat "$T/first.out"
	sleep "0.$((RANDOM % 8 + 2))"
	# The first process in the new namespace, and all below it, the daemon among them.
	pids=$(descendants "$first" | grep -vx "$first")
	[ -n "$(daemons)" ] || fail "$name: no daemon"
	kill -KILL "$(pgrep -P "$first" | head -n 1)"
	for i in {1..300}; do
		[ -n "$(living $pids)" ] || break
		sleep 0.1
	done
	check "$name: under load" [ "$(wc -w <<<"$pids")" -gt 8 ]
	equal "$name: all are gone ($((i * 100)) ms, $(wc -w <<<"$pids") processes)" "$(living $pids | head -n 5)" ""
	wait "$first" 2>/dev/null
	rm -f upper/tmp/started
	check "$name: no daemon is left" no_daemon_left
}

# rounds NAME NUMBER OPTIONS PIVOT PREFIX...
rounds() {
	local name=$1 number=$2 round
	shift 2
	for ((round = 1; round <= number; round++)); do
		death "$name $round" "$@"
		check "$name $round: the next union mounts at once" "${AGAIN[@]}" "$COWFS" -o allow_other lower=RO:upper=RW ufs || return
		check "$name $round: each file is whole" whole ufs lower
		check "$name $round: unmounts" unmount ufs
	done
}

mkdir -p root/lower root/upper root/ufs && make_lower root/lower
cp load.sh root/lower/tmp/load.sh && cp first.sh load.sh root/
tree root/lower exact | sed -E "s/ a-?[0-9]+( |$)/\1/" >lower.before
cd root || exit
AGAIN=(timeout 60)
NEW=(unshare -mpf --mount-proc --propagation private --kill-child=KILL -- bash "$PWD/first.sh")
rounds "not pivoted" 2 "$COWFS -o cow,allow_other,suid,dev $PWD/lower=RO:$PWD/upper=RW $PWD/ufs" "" "${NEW[@]}"
rounds "pivoted" 4 "$COWFS -o cow,allow_other,suid,dev $PWD/lower=RO:$PWD/upper=RW $PWD/ufs" yes "${NEW[@]}"
rounds "pivoted, chroot=" 4 "$COWFS -o cow,chroot=$PWD,allow_other,suid,dev /lower=RO:/upper=RW $PWD/ufs" yes "${NEW[@]}"
rounds "pivoted, no passthrough" 2 "$COWFS -o cow,passthrough=off,threads=1,allow_other,suid,dev $PWD/lower=RO:$PWD/upper=RW $PWD/ufs" yes "${NEW[@]}"
cd "$T" || exit
tree root/lower exact | sed -E "s/ a-?[0-9]+( |$)/\1/" >lower.after
same "the lower is untouched" lower.before lower.after

rm -rf root/upper
mkdir user && mv root/* user/ && mkdir user/upper && chown -R "$TEST_UID:$TEST_UID" user && cd user || exit
AGAIN=(as_user timeout 60 unshare -Urm)
export -f as_user
# In a namespace of its own the next union is looked at from there.
rounds_of_user() {
	local round
	for round in 1 2 3 4; do
		death "a user's $round" "$COWFS -o cow $PWD/lower=RO:$PWD/upper=RW $PWD/ufs" "$1" \
			setpriv --reuid="$TEST_UID" --regid="$TEST_UID" --clear-groups -- unshare -Urmpf --mount-proc --kill-child=KILL -- bash "$PWD/first.sh"
		check "a user's $round: the next union shows each file whole" as_user timeout 90 unshare -Urm bash -c "
			$(declare -f whole)"'
			"$COWFS" lower=RO:upper=RW ufs && whole ufs lower && umount ufs'
	done
}
rounds_of_user ""
cd "$T" || exit
check "no daemon is left" no_daemon_left
finish
