#!/bin/bash
# The life of a daemon: what it refuses, what it says, what it holds on to, how it ends.
# timeout: 480
. "$(dirname "$0")/../lib.sh"

mkdir -p l u m
M=$T/m

# lines TEXT FILE: how many lines of the file match.
lines() { grep -cE -- "$1" "$2"; }
# mounts DIR: how many mounts lie on it.
mounts() { awk -v dir="$1" '$5 == dir' /proc/self/mountinfo | wc -l; }
# field DIR N: a field of the mountinfo line, counted from 1; from the dash on if N is like -1.
kind() { awk -v dir="$1" '$5 == dir { for (i = 1; i <= NF; i++) if ($i == "-") print $(i + 1) }' /proc/self/mountinfo; }
source_of() { awk -v dir="$1" '$5 == dir { for (i = 1; i <= NF; i++) if ($i == "-") print $(i + 2) }' /proc/self/mountinfo; }
flags_of() { awk -v dir="$1" '$5 == dir { print $6 }' /proc/self/mountinfo; }
# no_change NAME: none of the directories changed since `find` wrote them to `before`.
snapshot() { find l u m o bad -printf '%p %y %m %s %T@ %C@ %l\n' 2>/dev/null | sort; }
# answers DIR: asked past the kernel's cache.
answers() { timeout 30 stat -c %F "$1" >/dev/null; }
alone() { equal "$1: no mount is left" "$(mounts "$M")" 0 && check "$1: no daemon is left" no_daemon_left; }

# ---- what is refused: one line that quotes the offender, status 1, nothing changed ------------------------------------

mkdir -p o/low/in/up o/low/mp o/up/sub o/work bad
touch bad/file
ln -s /etc bad/away
snapshot >before
refused() {
	local name=$1 text=$2 status
	shift 2
	timeout 60 "$COWFS" "$@" >out 2>err
	status=$?
	equal "$name: status" "$status" 1
	equal "$name: one line" "$(wc -l <err)" 1
	if grep -qE "^cowfs: .*$text" err; then pass "$name: says so"; else fail "$name: says \`$(cat err)'"; fi
	equal "$name: nothing on standard output" "$(cat out)" ""
}
refused "missing branch" '"nope" does not exist' nope=RO:u=RW m
refused "missing upper" '"nope" does not exist' l=RO:nope=RW m
refused "branch is a file" '"bad/file" is not a directory' bad/file=RO:u=RW m
refused "same directory twice" '"\./l" are the same' l=RO:./l=RO:u=RW m
refused "upper is also a lower" 'same directory' "l=RO:$T/l=RW" m
refused "lower inside the upper" '"o/up/sub" is inside the writable branch "o/up"' o/up/sub=RO:o/up=RW m
refused "missing mountpoint" 'mountpoint "nope" does not exist' l=RO:u=RW nope
refused "mountpoint is a file" 'mountpoint "bad/file" is not a directory' l=RO:u=RW bad/file
refused "missing chroot" 'chroot directory "/nope" does not exist' -o chroot=/nope /l=RO:/u=RW m
refused "missing below chroot" "\"/nope\" \\(below chroot=\"$T\"\\) does not exist" -o "chroot=$T" /l=RO:/nope=RW m
refused "symlink out of chroot" '"/away/init.d" \(below' -o "chroot=$T/bad" /away/init.d=RO m
refused "no such descriptor" '"/dev/fd/77" is not an open /dev/fuse' l=RO:u=RW /dev/fd/77
refused "debug_file" '"/nope/log"' -o debug_file=/nope/log l=RO:u=RW m
refused "not a fuse device" 'it is something else' l=RO:u=RW /dev/fd/9 9>/dev/null
snapshot >after
same "refusals change nothing" before after

mkdir ro && mount --bind ro ro && mount -o remount,bind,ro ro
refused "upper on a read-only mount" '"ro" is on a read-only filesystem' l=RO:ro=RW m
umount ro
mount --bind o/up/sub ro
refused "lower is a bind mount from inside the upper" 'is inside the writable branch "o/up"' ro=RO:o/up=RW m
umount ro
mkdir nodev && mount -t tmpfs none nodev
(
	mount --bind nodev /dev
	refused "no /dev/fuse" '/dev/fuse does not exist.*modprobe' l=RO:u=RW m
	umount /dev
)
alone "refusals"

# ---- overlaps that are allowed -----------------------------------------------------------------------------------------

touch o/low/in/up/seen o/low/mp/seen o/low/seen u/seen
for case in "o/low=RO:o/low/in/up=RW $M" "o/low=RO:u=RW $T/o/low/mp" "o/low=RO:u=RW $T/o/low" "o/low=RO:u=RW $T/u" \
	"/=RO:u=RW $M" "/=RO:o/low/in/up=RW $T/o/low/mp" "u=RW:o/low/in=RO:o/low=RO $T/o"; do
	check "overlap $case" union -o cow $case
	check "overlap $case: answers" answers "${case#* }"
	check "overlap $case: unmounts" unmount "${case#* }"
done
union "/=RO:o/low/in/up=RW" "$T/o/low/mp"
V=$T/o/low/mp$T/o/low
equal "the machine as a lower: the upper in it, the mountpoint in it" \
	"$(timeout 30 ls -A "$V/in/up"; timeout 30 ls -A "$V/mp"; timeout 30 ls -A "$V")" $'in\nmp\nseen'
check "the machine as a lower: unmounts" unmount "$T/o/low/mp"
union "o/low=RO:u=RW" "$T/o/low"
equal "over its own lower: the lower is seen" "$(ls -A o/low)" $'in\nmp\nseen'
touch o/low/new
check "over its own lower: unmounts" unmount "$T/o/low"
equal "over its own lower: the lower is as it was" "$(ls -A o/low)" $'in\nmp\nseen'
equal "over its own lower: the upper has it" "$(ls -A u)" $'new\nseen'
rm u/new
alone "overlaps"

# ---- what a daemon holds on to -----------------------------------------------------------------------------------------

exec 7</etc/passwd 8>/dev/null
printed=$(env -i "$COWFS" l=RO:u=RW m)
equal "an empty environment, and the pipe is let go" "$?:$printed" "0:"
exec 7<&- 8>&-
P=$(daemons)
equal "one process serves" "$(wc -w <<<"$P")" 1
check "the mount answers" answers m
for fd in 0 1 2; do equal "descriptor $fd" "$(readlink "/proc/$P/fd/$fd")" /dev/null; done
equal "nothing inherited is open" "$(readlink "/proc/$P"/fd/* | grep -c -e passwd -e results -e pipe:)" 0
equal "working directory" "$(readlink "/proc/$P/cwd")" /
check "an empty root of its own" test -z "$(ls -A "/proc/$P/root")"
equal "leads a session" "$(awk '{ print $6 }' "/proc/$P/stat")" "$P"
equal "no terminal" "$(awk '{ print $7 }' "/proc/$P/stat")" 0
equal "open files: as many as permitted" "$(awk '/Max open files/ { print $4 == $5 }' "/proc/$P/limits")" 1
equal "the type is shown" "$(kind "$M")" fuse.cowfs
equal "the source is shown as typed" "$(source_of "$M")" l=RO:u=RW
check "nosuid and nodev by default" grep -q 'nosuid,nodev' <<<"$(flags_of "$M")"
refuse "the upper is taken" 'writable branch "u" is in use by another union' timeout 60 "$COWFS" l=RO:u=RW o
check "another upper is free" union l=RO:o/up=RW "$T/o/work"
check "and goes" unmount "$T/o/work"
check "the first is still there" answers m
check "unmounts" unmount "$M"
check "ends by umount" gone "$P"

mkdir -p ns/lower ns/cow/u1
check "chroot=" union -ocow,chroot="$T/ns",default_permissions,allow_other /lower=RO:/cow/u1=RW "$M"
P=$(daemons)
equal "chroot=: root" "$(readlink "/proc/$P/root")" "$T/ns"
equal "chroot=: working directory" "$(readlink "/proc/$P/cwd")" "$T/ns"
check "chroot=: unmounts" unmount "$M"
check "chroot=/" union -ochroot=/ "$T/l=RO:$T/u=RW" "$M"
check "chroot=/: not the machine's root" test -z "$(ls -A "/proc/$(daemons)/root")"
check "chroot=/: unmounts" unmount "$M"

check "flags" union -o ro,noexec,noatime,nodiratime,suid,dev,fsname=some,subtype=cowfs l=RO:u=RW "$M"
equal "flags in the table" "$(flags_of "$M")" ro,noexec,noatime,nodiratime
equal "fsname in the table" "$(source_of "$M")" some
check "flags: unmounts" unmount "$M"
long=$(printf '/%.0s' {1..300})
check "a long branch list" union "$long$T/l=RO:u=RW" "$M"
equal "the source is cut" "$(source_of "$M" | wc -c)" 201
check "a long branch list: unmounts" unmount "$M"
check "a workdir beside the upper" union -o "lowerdir=l,upperdir=o/up,workdir=o/work" "$M"
refuse "the workdir is taken" 'workdir "o/work" is in use' timeout 60 "$COWFS" -o "lowerdir=l,upperdir=u,workdir=o/work" o/low
echo one >m/made && mv m/made m/moved && ln m/moved m/linked && rm m/moved
equal "a workdir: serves" "$(cat m/linked)" one
rm m/linked
check "a workdir: unmounts" unmount "$M"
alone "holding on"

# ---- how it ends -------------------------------------------------------------------------------------------------------

for signal in TERM INT HUP; do
	rm -f ending
	union -o debug_file=ending l=RO:u=RW "$M"
	P=$(daemons)
	kill -s $signal "$P"
	check "SIG$signal ends it" gone "$P"
	equal "SIG$signal: at once, for nobody is in it" "$(lines 'signal [0-9]+: unmounting' ending) $(lines 'still in use' ending)" "1 0"
	equal "SIG$signal unmounts" "$(mounts "$M")" 0
done
(
	trap '' TERM INT HUP CHLD
	exec python3 -c 'import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
os.execv(sys.argv[1], sys.argv[1:])' "$COWFS" l=RO:u=RW "$M"
)
equal "starts with signals blocked and ignored" $? 0
P=$(daemons)
kill "$P"
check "and still hears SIGTERM" gone "$P"

for i in {1..20}; do
	union l=RO:u=RW "$M" && umount "$M" || fail "mount right after umount, time $i"
done
check "no daemon is left over" no_daemon_left

union l=RO:u=RW "$M"
P=$(daemons)
(cd "$M" && exec sleep 100) &
S=$!
until_true 30 eval '[ "$(readlink "/proc/$S/cwd")" = "$M" ]'
refuse "busy: umount refuses" busy umount "$M"
kill "$P"
check "busy: SIGTERM ends it after a while" gone "$P"
equal "busy: unmounted" "$(mounts "$M")" 0
kill $S
wait $S 2>/dev/null

"$COWFS" -f l=RO:u=RW m >out 2>err &
P=$!
for i in {1..1500}; do is_mounted "$M" && break; sleep 0.02; done
check "foreground: answers" answers m
umount "$M"
wait $P
equal "foreground: status after umount" $? 0
equal "foreground: says nothing" "$(cat out err)" ""
"$COWFS" -f l=RO:u=RW m >out 2>err &
P=$!
for i in {1..1500}; do is_mounted "$M" && break; sleep 0.02; done
kill -INT $P
wait $P
equal "foreground: status after SIGINT" $? 0

union l=RO:u=RW "$M"
P=$(daemons)
kill -KILL "$P"
gone "$P"
refuse "SIGKILL leaves a dead mount" 'not connected' stat -f m
check "a new mount just works" union l=RO:u=RW "$M"
equal "and the dead one is gone" "$(mounts "$M")" 1
check "it answers" answers m
check "unmounts" unmount "$M"

union -o auto_unmount l=RO:u=RW "$M"
equal "auto_unmount: daemon and watcher" "$(daemons | wc -w)" 2
for P in $(daemons); do
	[ "$(ls "/proc/$P/fd" | wc -l)" = 5 ] && W=$P || D=$P
done
equal "auto_unmount: the watcher holds two descriptors, and no device" \
	"$(readlink "/proc/$W"/fd/* | grep -c -e /dev/fuse)" 0
kill -KILL "$D"
check "auto_unmount: the watcher ends" gone "$W"
equal "auto_unmount: after SIGKILL nothing is left" "$(mounts "$M")" 0
union -o auto_unmount l=RO:u=RW "$M"
umount "$M"
check "auto_unmount: both end by umount" no_daemon_left
union -o auto_unmount l=RO:u=RW "$M"
for P in $(daemons); do
	[ "$(ls "/proc/$P/fd" | wc -l)" = 5 ] && W=$P || D=$P
done
mount -t tmpfs other "$M"
kill -KILL "$D"
gone "$W"
equal "auto_unmount: what others mounted stays" "$(source_of "$M" | tail -n 1)" other
umount "$M"
umount "$M"
alone "endings"

# ---- starting that is disturbed ----------------------------------------------------------------------------------------

exec 6<u
flock -x 6
timeout 60 "$COWFS" l=RO:u=RW m 2>err &
W=$!
# The child of a cowfs.
child() {
	local p
	for p in $(daemons); do
		[ "$(readlink "/proc/$(awk '{ print $4 }' "/proc/$p/stat")/exe")" = "$COWFS" ] && echo "$p" && return
	done
}
until_true 30 eval '[ -n "$(child)" ]'
kill -KILL "$(child)"
wait $W
equal "child killed while starting: status" $? 1
equal "child killed while starting: message" "$(cat err)" "cowfs: the daemon died while starting (signal 9)"
"$COWFS" l=RO:u=RW m 2>err &
W=$!
until_true 30 eval '[ -n "$(child)" ]'
kill -KILL $W
exec 6<&-
check "parent killed while starting: the daemon gives up" no_daemon_left
equal "parent killed while starting: nothing is mounted" "$(mounts "$M")" 0

# ---- messages ----------------------------------------------------------------------------------------------------------

python <<'PY'
import socket, subprocess, os, signal
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind('notify')
log.settimeout(60)
done = subprocess.run([os.environ['COWFS'], 'l=RO:u=RW', 'm'], env={'NOTIFY_SOCKET': os.path.abspath('notify')})
assert done.returncode == 0
assert log.recv(100).strip() == b'READY=1'
subprocess.run(['umount', 'm'], check=True)
PY
check "tells the service manager" no_daemon_left

mkdir fakedev && for d in null fuse; do touch fakedev/$d; mount --bind /dev/$d fakedev/$d; done
ln -s /proc/self/fd fakedev/fd
(
	mount --rbind fakedev /dev
	python <<'PY'
import socket, subprocess, os, time
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind('/dev/log')
log.settimeout(60)
cowfs = os.environ['COWFS']
def daemon():
    return [int(p) for p in os.listdir('/proc') if p.isdigit() and os.path.realpath(f'/proc/{p}/exe') == cowfs]
subprocess.run([cowfs, 'l=RO:u=RW', 'm'], check=True)
pid, = daemon()
inside = os.open('m', os.O_PATH)
os.kill(pid, 15)
line = log.recv(4096)
assert line.startswith(b'<28>cowfs[%d]: the union is still in use' % pid), line
os.close(inside)
while daemon(): time.sleep(0.05)
# A syslog that nobody reads must not keep the daemon.
log.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
subprocess.run([cowfs, 'l=RO:u=RW', 'm'], check=True)
pid, = daemon()
filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
filler.connect('/dev/log')
filler.setblocking(False)
try:
    while True: filler.send(b'x' * 1000)
except BlockingIOError:
    pass
inside = os.open('m', os.O_PATH)
start = time.time()
os.kill(pid, 15)
while daemon() and time.time() < start + 60: time.sleep(0.05)
assert time.time() < start + 50, 'the daemon waited for syslog'
PY
)
umount -R /dev 2>/dev/null
pass "syslog is told, and never waited for"

check "debug_file" union -o debug_file=debug.log l=RO:u=RW "$M"
answers m
check "debug_file: unmounts" unmount "$M"
check "debug_file: holds something" test -s debug.log
check "debug_file: is private" test "$(stat -c %a debug.log)" = 600
no_daemon_left
timeout 60 "$COWFS" -d l=RO:u=RW m 2>err &
W=$!
for i in {1..1500}; do is_mounted "$M" && break; sleep 0.02; done
answers m
umount "$M"
wait $W
equal "-d: stays in the foreground" $? 0
check "-d: shows requests" grep -q 'FUSE' err
finish
