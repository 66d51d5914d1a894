#!/bin/bash
# systemd: the example mount and automount units, and lines of /etc/fstab, in a Debian of the test's own that systemd has started.
# timeout: 500
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
EXAMPLES=$TEST_DIR/../examples
R=$T/machine

make_systemd_root() {
	cp -a "$CACHE/bookworm/." "$1" && cp /etc/resolv.conf "$1/etc/resolv.conf" &&
		chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
		chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends systemd-sysv fuse3 &&
		chroot "$1" apt-get clean
}
debian_root
cached systemd-root make_systemd_root

# A machine of its own: root, devices, processes, and a group of processes of its own. systemd sees nothing of the machine's: it
# empties /tmp, writes to /etc and rules over all processes of its group.
cp -a "$CACHE/systemd-root" "$R"
cp .test/cowfs "$R/usr/bin/cowfs"
ln -s ../bin/cowfs "$R/usr/sbin/mount.fuse.cowfs"
mkdir -p "$R"/precise "$R"/cow/u{1,2,3,4} "$R"/srv/u{1,2,3,4}
echo lower >"$R/precise/f"
cp "$EXAMPLES"/systemd/* "$R/etc/systemd/system/"
cat >"$R/etc/fstab" <<F
/precise=RO:/cow/u2=RW /srv/u2 fuse.cowfs cow,allow_other,nofail,x-systemd.requires-mounts-for=/precise 0 0
/precise=RO:/cow/u3=RW /srv/u3 fuse.cowfs cow,allow_other,noauto,x-systemd.automount,x-systemd.idle-timeout=2 0 0
F
# As GUIDE.md says of a Legion's node: KillMode=control-group, which is the default.
cat >"$R/etc/systemd/system/node.service" <<U
[Service]
ExecStart=/bin/sh -c 'cowfs -o cow,allow_other /precise=RO:/cow/u4=RW /srv/u4 && exec sleep 1000'
U
mkdir groups && mount -t cgroup2 none groups || { fail "no cgroup2"; finish; }
G=$T/groups/cowfs-test-$$-$RANDOM
mkdir "$G" || { fail "no cgroup"; finish; }
cat >.test/boot <<B
echo \$\$ >"$G/cgroup.procs"
exec unshare -mpfC --propagation private --kill-child=KILL bash -c '
	mount --bind $R $R && cd $R && mount -t proc proc proc && mount -t tmpfs tmpfs dev && mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs sys &&
	mkdir -p sys/fs/cgroup dev/shm && mount -t cgroup2 none sys/fs/cgroup || exit 1
	while read -r name major minor; do mknod -m 666 dev/\$name c \$major \$minor; done <<D
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
fuse 10 229
autofs 10 235
D
	mkdir -p .old && pivot_root . .old && cd / && umount -l /.old && rmdir /.old || exit 1
	exec env -i container=cowfs-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/lib/systemd/systemd --system --unit=multi-user.target --show-status=no --log-target=console </dev/null'
B
bash .test/boot >boot.log 2>&1 9>&- &
BOOT=$!
end() {
	kill -KILL $BOOT 2>/dev/null
	sleep 0.3
	echo 1 >"$G/cgroup.kill" 2>/dev/null
	local i
	for i in {1..300}; do find "$G" -depth -type d -exec rmdir {} + 2>/dev/null && break; sleep 0.1; done
	[ ! -d "$G" ]
}
for i in {1..300}; do PID1=$(pgrep -P $BOOT -x systemd | head -n 1); [ -n "$PID1" ] && break; sleep 0.1; done
# in COMMAND...: on that machine
on() { timeout -k 1 30 nsenter -t "$PID1" -m -p -C env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@" </dev/null; }
# A look at the machine's root must not be one from outside: it would keep mounts busy.
for i in {1..300}; do case $(on systemctl is-system-running 2>/dev/null) in running | degraded) break ;; esac; sleep 0.1; done
case $(on systemctl is-system-running 2>&1) in
running | degraded) pass "systemd runs" ;;
*)
	fail "systemd does not run: $(tail -n 20 boot.log)"
	end
	finish
	;;
esac
daemons_of() { pgrep -f "/cow/$1=[R]W"; }
ends() { local i; for i in {1..300}; do [ -z "$(daemons_of "$1")" ] && return; sleep 0.1; done; return 1; }

check "the units are well-formed" on systemd-analyze verify --man=no srv-u1.mount srv-u1.automount
# ---- the mount unit ----------------------------------------------------------------------------------------------------
check "start" on systemctl start srv-u1.mount
equal "it is active, and mounted" "$(on systemctl is-active srv-u1.mount) $(on findmnt -n -o FSTYPE,SOURCE /srv/u1)" "active fuse.cowfs /precise=RO:/cow/u1=RW"
check "it is a union" on sh -c 'grep -qx lower /srv/u1/f && echo more >>/srv/u1/f && [ -e /cow/u1/f ]'
equal "its daemon belongs to it" "$(on systemctl show -P ControlGroup srv-u1.mount)" "/system.slice/srv-u1.mount"
check "restart" on systemctl restart srv-u1.mount
equal "with its content" "$(on cat /srv/u1/f)" $'lower\nmore'
kill -KILL $(daemons_of u1)
sleep 0.5
check "after its daemon was killed it is restarted" on systemctl restart srv-u1.mount
equal "and serves" "$(on cat /srv/u1/f)" $'lower\nmore'
check "stop" on systemctl stop srv-u1.mount
check "the daemon ends" ends u1
refuse "nothing is mounted" '' on mountpoint /srv/u1
# ---- the automount unit ------------------------------------------------------------------------------------------------
check "automount: start" on systemctl start srv-u1.automount
equal "automount: nothing yet" "$(daemons_of u1)" ""
equal "automount: mounted at the first access" "$(on cat /srv/u1/f)" $'lower\nmore'
check "automount: by a daemon" [ -n "$(daemons_of u1)" ]
check "automount: stop" on systemctl stop srv-u1.automount srv-u1.mount
check "automount: the daemon ends" ends u1
# ---- /etc/fstab --------------------------------------------------------------------------------------------------------
equal "fstab: mounted at boot" "$(on cat /srv/u2/f) $(on systemctl is-active srv-u2.mount)" "lower active"
equal "fstab: the automount waits" "$(daemons_of u3)" ""
equal "fstab: and mounts" "$(on cat /srv/u3/f)" lower
check "fstab: idle, it is unmounted" ends u3
equal "fstab: and mounts again" "$(on cat /srv/u3/f)" lower
# ---- a service that dies takes the union that it has mounted with it ---------------------------------------------------
check "service: start" on systemctl start node.service
for i in {1..300}; do on mountpoint -q /srv/u4 && break; sleep 0.1; done
equal "service: it has a union" "$(on cat /srv/u4/f)" lower
check "service: kill -9 of its program" on sh -c 'kill -KILL "$(systemctl show -P MainPID node.service)"'
check "service: the daemon ends with it" ends u4
refuse "service: and the union is off" '' on mountpoint /srv/u4
check "nothing else failed that names a union" bash -c '! grep -i "cowfs.*fail" boot.log'
# ---- shutdown ----------------------------------------------------------------------------------------------------------
began=$(date +%s)
on systemctl poweroff --force >/dev/null 2>&1
for i in {1..600}; do kill -0 "$PID1" 2>/dev/null || break; sleep 0.1; done
check "it shuts down soon" [ $(($(date +%s) - began)) -lt 50 ]
check "its group of processes goes" end
check "no daemon is left" bash -c '[ -z "$(pgrep -x cowfs)" ]'
finish
