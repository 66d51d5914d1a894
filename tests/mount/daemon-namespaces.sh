#!/bin/bash
# The daemon in a customer's namespaces: as process 1, as a child of process 1, and when the union becomes the root.
# timeout: 360
. "$(dirname "$0")/../lib.sh"

command -v busybox >/dev/null || { fail "busybox is missing: apt-get install busybox"; finish; }
mkdir -p ns/lower/{bin,old,etc,tmp} ns/cow/u1 ns/cow/u2 ufs
B=$(command -v busybox)
for file in "$B" $(ldd "$B" 2>/dev/null | grep -o '/[^ ]*'); do
	mkdir -p "ns/lower/$(dirname "$file")" && cp -L "$file" "ns/lower/$file"
done
cp -L "$B" ns/lower/bin/busybox
for tool in sh cat ls rm mkdir mv chmod echo ps umount touch stat readlink true; do ln -sf busybox "ns/lower/bin/$tool"; done
echo lower >ns/lower/etc/file
chmod 1777 ns/lower/tmp
tree ns/lower exact | sed -E "s/ a-?[0-9]+( |$)/\1/" >lower.before

# As process 1 of its own pid namespace it must not go into the background: its end would end everything there.
timeout -k 2 90 unshare -mpf --mount-proc --propagation private "$COWFS" "$T/ns/lower=RO:$T/ns/cow/u1=RW" "$T/ufs" &
W=$!
# Its own root shows no mounts.
until_true 30 eval 'D=$(daemons | head -n 1) && nsenter -t "$D" -m -p grep -q " $T/ufs .* fuse.cowfs " /proc/self/mountinfo'
equal "as process 1: it is" "$(awk '/NSpid/ { print $NF }' "/proc/$D/status")" 1
equal "as process 1: answers" "$(timeout 30 nsenter -t "$D" -m -p cat "$T/ufs/etc/file")" lower
nsenter -t "$D" -p --mount -- sh -c 'sleep 0.1 & exit' # an orphan that process 1 inherits
check "as process 1: no zombies" until_true 30 eval '[ -z "$(ps -o stat= --ppid "$D")" ]'
kill "$D"
wait $W
equal "as process 1: SIGTERM ends it with status" $? 0

# The customer's recipe, clients.md section 2: an empty environment, sh -c, then the pivot.
cat >customer.sh <<'CUSTOMER'
exec 2>&1
/bin/sh -c "$MOUNT" || { echo "the mount failed: $?"; exit 1; }
cd ufs && pivot_root . old || exit 1
exec /bin/sh -c '
	PATH=/bin
	mkdir -p /proc; /bin/busybox mount -t proc none /proc
	/bin/busybox umount -l /old || echo no umount
	[ "$(cat /etc/file)" = lower ] || echo wrong content
	echo upper >/etc/file && [ "$(cat /etc/file)" = upper ] || echo no write
	mkdir /etc/d && mv /etc/d /etc/e && touch /etc/e/f && chmod 700 /etc/e/f || echo no changes
	rm /etc/e/f /bin/stat || echo no deletion
	[ -e /bin/stat ] && echo still there
	for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true || echo no exec; done
	echo "#!/bin/sh" >/tmp/script && echo "echo script" >>/tmp/script && chmod 755 /tmp/script
	[ "$(/tmp/script)" = script ] || echo no script
	/bin/busybox ls / >/tmp/list || echo no listing
	echo 3 >/proc/sys/vm/drop_caches
	[ "$(cat /etc/file)" = upper ] || echo wrong content after forget
	echo end'
CUSTOMER
pivot() {
	local name=$1 root=$2
	shift 2
	(
		cd "$root" 2>/dev/null || cd "$T" || exit
		env -i PATH="$PATH" MOUNT="$*" timeout -k 2 120 \
			unshare -mpf --mount-proc --propagation private --kill-child=KILL bash "$T/customer.sh"
	) >customer.out 2>&1 </dev/null
	equal "$name" "$(cat customer.out)" end
	check "$name: the daemon ends with its namespace" no_daemon_left
}
for threads in 1 2 4; do
	rm -rf ns/cow/u1 && mkdir ns/cow/u1
	pivot "pivot with chroot=, threads=$threads" "$T" \
		"$COWFS -ocow,chroot=$T/ns,default_permissions,allow_other,dev,suid,threads=$threads /lower=RO:/cow/u1=RW $T/ufs"
	equal "pivot with chroot=: the upper has it" "$(cat ns/cow/u1/etc/file)" upper
	rm -rf ns/cow/u2 && mkdir ns/cow/u2
	pivot "pivot without chroot=, threads=$threads" "$T" \
		"$COWFS -o cow,allow_other,dev,suid,threads=$threads $T/ns/lower=RO:$T/ns/cow/u2=RW $T/ufs"
	equal "pivot without chroot=: the upper has it" "$(cat ns/cow/u2/etc/file)" upper
done
tree ns/lower exact | sed -E "s/ a-?[0-9]+( |$)/\1/" >lower.after
same "the lower is untouched" lower.before lower.after

# /dev/fuse mounted by somebody else, as mount.fuse3 does with drop_privileges.
cat >given.py <<'PY'
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open('/dev/fuse', os.O_RDWR)
data = f'fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions'
assert libc.mount(b'given', sys.argv[2].encode(), b'fuse.given', 0, data.encode()) == 0, os.strerror(ctypes.get_errno())
sys.exit(subprocess.run([sys.argv[1], *sys.argv[3:], f'/dev/fd/{fd}'], pass_fds=[fd]).returncode)
PY
check "/dev/fd/N: starts" timeout 60 /usr/bin/python3 given.py "$COWFS" "$T/ufs" ns/lower=RO:ns/cow/u1=RW
equal "/dev/fd/N: answers" "$(timeout 30 cat ufs/etc/file)" upper
check "/dev/fd/N: unmounts" unmount "$T/ufs"
check "/dev/fd/N: ends" no_daemon_left

# After start-up: no absolute path, no AT_FDCWD.
if command -v strace >/dev/null; then
	union -o cow ns/lower=RO:ns/cow/u1=RW "$T/ufs"
	strace -f -qq -o trace -p "$(daemons)" &
	S=$!
	D=$(daemons)
	until_true 30 eval '! grep -hx "TracerPid:	0" /proc/$D/task/*/status'
	for i in 1 2 3; do
		ls -lR ufs >/dev/null
		cp ufs/bin/busybox "ufs/copy$i" && mv "ufs/copy$i" "ufs/moved$i" && rm "ufs/moved$i"
		touch ufs/etc/file && setfattr -n user.x -v y ufs/etc/file && getfattr -d ufs/etc/file >/dev/null
		ln -s x ufs/link && rm ufs/link && mkdir ufs/dir && rmdir ufs/dir
		echo 2 >/proc/sys/vm/drop_caches
	done
	umount "$T/ufs"
	wait $S
	check "traced: something happened" test "$(wc -l <trace)" -gt 200
	equal "traced: no AT_FDCWD, no absolute path" "$(grep -E 'AT_FDCWD|\((.*, )?"/[^"]*"' trace |
		grep -vE '^[0-9]+ +(readlinkat|writev|write|read|pread64|pwrite64|<|\+\+\+)' | head -n 5)" ""
else
	fail "strace is missing: apt-get install strace"
fi
finish
