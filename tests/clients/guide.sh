#!/bin/bash
# Every command of GUIDE.md is run, block by block, in a root of the test's own.
# timeout: 480
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/hosting.bash"
. "$TEST_DIR/clients/podman.bash"
GUIDE=$TEST_DIR/../GUIDE.md

# A root of this test's own: the machine's directories, bound; what the guide changes is the test's.
own_root() {
	local entry root=$T/.test/root
	mkdir "$root" && mount -t tmpfs -o mode=755 none "$root" || return 1
	for entry in /* /.[!.]*; do
		[ "$entry" = /srv ] && continue
		if [ -L "$entry" ]; then
			cp -a "$entry" "$root/"
		elif [ -d "$entry" ]; then
			mkdir "$root$entry" && mount --rbind "$entry" "$root$entry" || return 1
		fi
	done
	mkdir "$root/.old" "$root/srv" "$root/ns" "$root/ufs"
	mkdir srv ns etc etc.work log run
	mount --bind srv "$root/srv" && mount --bind ns "$root/ns" && mount --bind log "$root/var/log" && mount --bind run "$root/run" || return 1
	mount -t overlay etc -o "lowerdir=/etc,upperdir=$T/etc,workdir=$T/etc.work" "$root/etc" || return 1
	: >"$root/etc/fstab"
	mkdir -p containers "$root/var/lib/containers" && mount --bind containers "$root/var/lib/containers" || return 1
	cd "$root" && pivot_root . .old && cd "$T" && umount -l /.old && rmdir /.old
}

hosting
need unionfs-fuse=unionfs-fuse mount.fuse3=fuse3 useradd=passwd
check "a root of the test's own" own_root || finish
mkdir .test/bin && cp .test/cowfs .test/bin
# debootstrap is what takes a minute and the network: its result is at hand.
cat >.test/bin/debootstrap <<D
#!/bin/sh
[ "\$*" = "--variant=minbase --include=uwsgi-core,uwsgi-plugin-python3 bookworm /ns/precise" ] || exit 1
cp -a $CACHE/uwsgi-root /ns/precise
D
chmod 755 .test/bin/debootstrap
mount --bind .test/bin /usr/local/bin
if [ -e /sys/module/haltpoll/parameters ]; then
	mkdir .test/haltpoll && echo 0 >.test/haltpoll/guest_halt_poll_ns
	mount --bind .test/haltpoll /sys/module/haltpoll/parameters
fi
# What podman needs beside its configuration.
mkdir -p /etc/containers
containers_conf >/etc/containers/containers.conf
mount -t tmpfs -o mode=1777 none /dev/shm
mkdir .test/cgroup
[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || { mount -t cgroup2 none .test/cgroup && mount --bind .test/cgroup /sys/fs/cgroup; }
mount --make-rshared /

awk -v dir="$T/.test" '
	/^```sh$/ { n++; on = 1; printf "" >(dir "/block." n); next }
	/^```/ { on = 0; next }
	on { print >(dir "/block." n) }' "$GUIDE"
blocks=$(ls .test/block.* | wc -l)
check "there are blocks" [ "$blocks" -ge 12 ]
# One shell runs them all, one after the other, as a reader would. What a block leaves in variables the next one has.
exec 8>blocks.done
{
	for ((n = 1; n <= blocks; n++)); do printf 'set -e; . %s 8>&-; echo %s >&8\n' "$T/.test/block.$n" "$n"; done
} >.test/all
timeout 150 env PATH="/usr/local/bin:$PATH" setsid bash .test/all >guide.log 2>&1 9>&-
status=$?
for ((n = 1; n <= blocks; n++)); do
	check "block $n: $(head -n 1 ".test/block.$n" | cut -c1-70)" grep -qx "$n" blocks.done
done
[ $status = 0 ] || { fail "the guide stops"; tail -n 20 guide.log /var/log/emperor.log; }

# What the guide says comes out.
check "both customers answered, each as its own user" bash -c 'grep -qx "47101 1" guide.log && grep -qx "47102 1" guide.log'
equal "the shared root has no visits" "$(ls /ns/precise/srv)" app.py
equal "each customer has" "$(stat -c %u /ns/cow/u1/srv/visits /ns/cow/u2/srv/visits | tr '\n' ' ')" "47101 47102 "
check "original and changed" bash -c 'grep -qx original guide.log && grep -qx changed guide.log'
check "findmnt shows the type" grep -q 'fuse.cowfs' guide.log
check "a container's root is a union" grep -q '^[^ ]* / fuse.cowfs ' guide.log
equal "podman's list of changes" "$(grep -E '^[ACD] /srv' guide.log | sort | tr '\n' ' ')" "A /srv/shop C /srv D /srv/app.py "
equal "the image of what it changed" "$(grep -cx sold guide.log)" 1
check "overlayfs reads what cowfs wrote" grep -qx by-cowfs guide.log
check "no process is left" bash -c 'for i in {1..300}; do [ -z "$(pgrep -x uwsgi)" ] && exit 0; sleep 0.1; done; pgrep -ax uwsgi; exit 1'
check "no union is left" bash -c '! grep -E " (/srv|/ufs).*fuse.cowfs" /proc/self/mountinfo'
check "no daemon is left" bash -c 'for i in {1..300}; do [ -z "$(pgrep -x cowfs)" ] && exit 0; sleep 0.1; done; pgrep -ax cowfs; exit 1'
finish
