#!/bin/bash
# A branch that does not answer: statfs(2) is answered all the same, what needs only the other branches is done, and with
# watchdog= the daemon ends in time, so that whoever looks after the mount sees it.
# timeout: 400
. "$(dirname "$0")/../lib.sh"

mkdir -p base/d far up m m2
for i in {1..60}; do echo "$i" >"base/d/$i"; done
now() { date +%s%N; }
# of DIR: the daemon of the union on DIR.
of() { pgrep -f -- " $1\$" | head -n 1; }
# The lower is a filesystem of another daemon, which can be stopped: as a file server that is gone.
far_away() { union -o allow_other,entry_timeout=0,attr_timeout=0 base=RO "$T/far"; FAR=$(of "$T/far"); }
# answered NAME COMMAND...: it succeeds, though the branch that has stopped says nothing, however long one waits.
answered() {
	local name=$1
	shift
	check "$name" timeout -k 1 20 "$@"
}
# readers N: that many processes, each at a name of its own.
readers() { local i; READERS=(); for ((i = 1; i <= $1; i++)); do cat "m/d/$i" >"out.$i" 2>&1 & READERS+=($!); done; }
# How many of them have no answer yet.
unanswered() { local p n=0; for p in "${READERS[@]}"; do kill -0 "$p" 2>/dev/null && n=$((n + 1)); done; echo $n; }

# ---- statfs, and all that needs not ask the branch ---------------------------------------------------------------------

check "a far branch" far_away
check "a union over it" union -o cow,allow_other "$T/far=RO:$T/up=RW" "$T/m"
D=$(of "$T/m")
mkdir m/mine
exec 6<m/mine 7<m/d # So the kernel keeps them, whatever else this machine drops from its caches meanwhile.
ls m/d >/dev/null
resting=$(ls "/proc/$D/task" | wc -l)
sleep 1.2 # What the kernel knows of the far branch is old then.
stop "$FAR"
readers 20
sleep 1.5
equal "all readers wait" "$(unanswered)" 20
for i in 1 2 3; do answered "statfs is answered, $i" stat -f m; done
answered "df is" df m
answered "a change of what is in the upper alone" sh -c 'cd /proc/self/fd/6 && echo mine >file && mv file other && cat other'
equal "all readers still wait" "$(unanswered)" 20
threads() { ls "/proc/$D/task" | wc -l; }
check "there are more threads" until_true 30 eval '[ "$(threads)" -gt $((resting + 15)) ]'
kill -CONT "$FAR"
wait "${READERS[@]}"
equal "when the branch is back every reader gets its own" "$(cat out.{1..20} | tr '\n' ' ')" "$(echo {1..20}) "
equal "and all goes on" "$(cat m/d/60 && echo more >>m/d/1 && cat m/d/1)" $'60\n1\nmore'
check "many at once" bash -c 'for i in {1..60}; do cat m/d/$i >/dev/null & done; wait'
exec 6<&- 7<&-
check "umount" unmount m
check "the daemon ends" gone "$D"

# ---- a stopped upper ---------------------------------------------------------------------------------------------------

mkdir fup fwork far2
check "a far upper" fuse-overlayfs -o "lowerdir=$T/base,upperdir=$T/fup,workdir=$T/fwork" far2
UP=$(pgrep -x fuse-overlayfs)
check "a union with it" union -o cow,allow_other,whiteout=unionfs,entry_timeout=0,attr_timeout=0 "$T/base=RO:$T/far2=RW" "$T/m"
before=$(stat -f -c '%b %S' m)
stop "$UP"
touch m/x 2>/dev/null &
sleep 0.5
equal "the last known figures are told" "$(timeout 20 stat -f -c '%b %S' m)" "$before"
kill -CONT "$UP"
wait $!
check "and it goes on" [ -e m/x ]
check "umount" unmount m
check "umount" unmount far2

# ---- watchdog= ---------------------------------------------------------------------------------------------------------

# watched NAME COMMAND...: the union that COMMAND mounts is given up when its branch stops.
watched() {
	local name=$1 began D took
	shift
	rm -f log
	check "$name: mounts" "$@" || return
	D=$(of "$T/m")
	for i in {1..30}; do cat "m/d/$i" >/dev/null; done
	sleep 3
	check "$name: it lives while all is answered" kill -0 "$D"
	stop "$FAR"
	began=$(now)
	readers 1
	for i in {1..400}; do
		timeout 1 stat -f m >/dev/null 2>stderr || { grep -q 'not connected' stderr && break; }
		sleep 0.1
	done
	took=$((($(now) - began) / 1000000))
	check "$name: a check sees that it is dead ($took ms)" [ $took -ge 1800 -a $took -lt 40000 ]
	wait "${READERS[@]}"
	check "$name: who waited is told so" grep -qE 'connect|abort' out.1
	check "$name: the log says what was waited for" grep -qE 'watchdog: .*(lookup|open|read|getattr) for [0-9.]+ s in [a-z_?]+' log
	kill -CONT "$FAR"
	check "$name: the daemon is gone" gone "$D"
	umount m
}
O=cow,allow_other,watchdog=2,entry_timeout=0,attr_timeout=0
watched "watchdog" union -o "$O,debug_file=$T/log" "$T/far=RO:$T/up=RW" "$T/m"
watched "one thread" union -s -o "$O,debug_file=$T/log" "$T/far=RO:$T/up=RW" "$T/m"
mkdir -p ns
watched "chroot" union -o "$O,chroot=$T,debug_file=$T/log" "/far=RO:/up=RW" "$T/m"
check "the union is mounted anew" union -o "$O" "$T/far=RO:$T/up=RW" "$T/m"
equal "with all that it had" "$(cat m/d/1)" $'1\nmore'
check "umount" unmount m

# In a user namespace there is no /sys/fs/fuse/connections; and nobody needs it.
kill -CONT "$FAR"
unshare -Urm --propagation unchanged bash -c '
	mkdir -p uup && "$COWFS" -o cow,watchdog=1,entry_timeout=0,attr_timeout=0 far=RO:uup=RW m2 && cat m2/d/1 >/dev/null &&
	echo ready >ready && until [ -e stopped ]; do sleep 0.1; done
	cat m2/d/2 >uout 2>&1
	stat -f m2 >uend 2>&1; echo done >finished' &
for i in {1..300}; do [ -e ready ] && break; sleep 0.1; done
stop "$FAR"
touch stopped
for i in {1..300}; do [ -e finished ] && break; sleep 0.1; done
check "in a user namespace too" grep -q 'not connected' uend
kill -CONT "$FAR"
wait $!

# A long copy is no reason.
check "a union with watchdog=1" union -o cow,watchdog=1 base=RO:up=RW "$T/m"
D=$(of "$T/m")
sleep 2
check "who is idle is not given up" kill -0 "$D"
check "nor, after a while, is anybody looking after it" until_true 30 sh -c "! grep -qx cowfs-watch /proc/$D/task/*/comm"
check "umount" unmount m
check "umount" unmount far
check "no daemon left" no_daemon_left
finish
