#!/bin/bash
# A user namespace: an ordinary user (and root) mounts directly, without fusermount3; all cases that do not need real root hold.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
PYTHON_LIMIT=200

make_user || fail "no user could be made"
# No setuid program helps here.
: >"$T/.test/nothing"
for program in /usr/bin/fusermount3 /usr/bin/fusermount; do
	[ -e "$program" ] && mount --bind "$T/.test/nothing" "$program"
done
mkdir home && chown $TEST_UID:$TEST_UID home
cp "$TEST_DIR/semantics.py" "$T/.test/"

# What runs inside: all functions of lib.sh, then the text on standard input.
inside() {
	{ declare -f pass fail check refuse equal same tree union unmount is_mounted daemons no_daemon_left no_daemon until_true python; cat; } >"$T/.test/inside.sh"
	"$@" unshare -Urmpf --mount-proc -- timeout -k 5 240 bash -u "$T/.test/inside.sh"
	local status=$?
	[ $status = 0 ] || fail "the part inside ended with status $status"
}

inside as_user <<'EOS'
cd "$T/home"
# Marks of a user namespace (user.overlay.*) have no redirects, as in the kernel.
export NO_REDIRECT=yes
mkdir lower upper ufs
/usr/bin/python3 "$T/.test/semantics.py" prepare lower $(/usr/bin/python3 "$T/.test/semantics.py" list | grep -vxE 'many|long_paths')
mkdir lower/d lower/e
echo a >lower/d/a; echo b >lower/e/b
check "mounts" union -o cow,allow_other lower=RO:upper=RW "$T/home/ufs"
equal "type" "$(awk -v d="$T/home/ufs" '$5 == d { print ($0 ~ / fuse.cowfs /) }' /proc/self/mountinfo)" 1
timeout -k 5 200 /usr/bin/python3 "$T/.test/semantics.py" run ufs \
	$(/usr/bin/python3 "$T/.test/semantics.py" list | grep -vxE 'many|long_paths') || fail "the cases did not run to their end"
check "a tree deleted and made again" sh -c 'rm -r ufs/d && mkdir ufs/d'
check "a directory moved" mv ufs/e ufs/e2
tree ufs | tail -n +2 >view.before
check "unmounts" unmount "$T/home/ufs"
check "the daemon ends" no_daemon_left
equal "marks are user.overlay.*" "$(getfattr -d -m - upper/d 2>/dev/null | grep -c '^user.overlay.opaque=')" 1
check "mounts again" union -o cow,allow_other lower=RO:upper=RW "$T/home/ufs"
tree ufs | tail -n +2 >view.after
same "a remount shows the same" view.before view.after
equal "the directory made again is opaque" "$(ls ufs/d)" ""
check "unmounts" unmount "$T/home/ufs"
mkdir -p ns/precise ns/cow
echo c >ns/precise/c
check "chroot=" union -o "cow,chroot=$T/home/ns" /precise=RO:/cow=RW "$T/home/ufs"
check "works" sh -c 'echo + >>ufs/c && cat ns/cow/c'
kill -KILL $(daemons)
no_daemon_left
refuse "a killed daemon frees" 'not connected|abort' timeout 5 ls ufs
umount -l ufs
check "and a new mount just works" union -o "cow,chroot=$T/home/ns" /precise=RO:/cow=RW "$T/home/ufs"
equal "with everything there" "$(cat ufs/c | tr '\n' ' ')" "c + "
EOS
equal "nothing is left of it" "$(daemons)" ""

mkdir rootns
inside env <<'EOS'
cd "$T/rootns"
mkdir lower upper ufs
echo x >lower/x
check "root in a user namespace mounts" union -o cow,allow_other lower=RO:upper=RW "$T/rootns/ufs"
check "writes" sh -c 'echo y >>ufs/x && rm ufs/x && mkdir ufs/x'
check "unmounts" unmount "$T/rootns/ufs"
# The machine's root, whose inner mounts are locked here: a clone may be refused, and then the mount must be. Never a hang.
mkdir upper2
if timeout 20 "$COWFS" -o allow_other "/=RO:$T/rootns/upper2=RW" "$T/rootns/ufs" 2>message; then
	check "/ as a lower: a look around ends" timeout 20 find ufs -maxdepth 2 -fprintf /dev/null %p
	check "unmounts" unmount "$T/rootns/ufs"
else
	equal "/ as a lower is refused with one line" "$(wc -l <message)" 1
fi
EOS
finish
