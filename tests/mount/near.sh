#!/bin/bash
# near: while one program asks, one thread serves it on its processor, and yields; not longer, and it keeps nobody waiting.
. "$(dirname "$0")/../lib.sh"

mkdir low other up m
for i in {1..100}; do echo "$i" >"low/$i"; done
truncate -s 256M low/large
echo other >other/other

# A program that asks for absent names, which nobody remembers, until it is ended.
asking() { ${ON-} python3 -c '
import os, sys
while True:
    for n in range(1000):
        os.path.exists(f"{sys.argv[1]}/absent{n}")' "$1" & ASKING=$!; }
quiet() { kill "$@" && wait "$@" 2>/dev/null; true; }
# The daemon's threads, each with how it is scheduled (0 usual, 3 batch, 5 idle), where it may run and its name.
threads() {
	local task
	for task in "/proc/$(daemons)/task/"*; do
		echo "$(awk '{ sub(/.*\) /, ""); print $39 }' "$task/stat") $(awk '/^Cpus_allowed_list/ { print $2 }' "$task/status") $(cat "$task/comm")"
	done 2>/dev/null
}
# A thread yields on one processor / on that of process $1 / none yields, and all may run where $1 says.
yields() { threads | grep -q "^5 [0-9]* "; }
is_near() { [ "$(threads | awk '$1 == 5 { print $2 }')" = "$(awk '{ sub(/.*\) /, ""); print $37 }' "/proc/$1/stat")" ]; }
usual() { not grep -vq "^${2-0} $1 " <(threads); }
# For a second nobody yields.
all_serve() { local i; for i in {1..50}; do not grep -q "^5 " <(threads) || return 1; sleep 0.02; done; }
ALL=$(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status)
CPU=${ALL%%[,-]*}

check "a union" union -o cow,negative_timeout=0 low=RO:up=RW m
check "threads are as usual" usual "$ALL"
for i in {1..20}; do stat "m/$i" >/dev/null; sleep 0.005; done
check "also where there is a request now and then" usual "$ALL"
asking m
check "for a program that asks often a thread yields" until_true 10 yields
check "on the program's processor" until_true 10 is_near $ASKING
check "others are answered, too" timeout 10 bash -c 'for i in {1..100}; do cat m/$i; done >/dev/null'
check "also while a large file is copied up" timeout 60 bash -c 'echo >>m/large & cat m/{1..50} >/dev/null && wait $!'
check "a listing" [ "$(ls m | wc -l)" = 101 ]
quiet $ASKING
check "then all are as usual again" until_true 10 usual "$ALL"
sleep 6
check "and nobody looks after that" [ "$(threads | grep -c cowfs-near)" = 0 ]

# Of the moments at which a thread yields: where may it run, when the program does not move?
ON="taskset -c $CPU" asking m
check "a thread yields for a program that stays" until_true 10 eval 'threads | grep -q "^5 "'
check "and stays with it" eval '[ "$(for i in {1..100}; do threads; sleep 0.01; done | grep "^5 " | awk -v at="$CPU" "\$2 != at { lost++ } END { print lost * 10 < NR }")" = 1 ]'
quiet $ASKING
sleep 6

# Threads that are started by who serves alone: here for statfs, after the first one's has ended.
cat >ask.py <<'EOF'
import glob, os, sys, time
def yields():
    for path in glob.glob(f"/proc/{sys.argv[2]}/task/*/stat"):
        with open(path) as file:
            if file.read().rpartition(") ")[2].split()[38] == "5":
                return True
until = time.monotonic() + 20
while not yields():
    assert time.monotonic() < until
    for n in range(300):
        os.path.exists(f"{sys.argv[1]}/absent{n}")
os.statvfs(sys.argv[1])
EOF
check "a program asks, then for space" python3 ask.py m "$(daemons)"
check "a thread was started" eval 'threads | grep -q cowfs-worker'
check "all, old and new, are as usual" until_true 3 usual "$ALL"

asking m
check "the same once more" until_true 10 yields
FIRST=$ASKING
asking m
check "two programs are served by all" until_true 10 not yields
check "but for moments" eval '[ "$(for i in {1..100}; do yields; echo $?; sleep 0.01; done | grep -cx 0)" -lt 50 ]'
quiet $FIRST $ASKING

# ---- processors that are wanted
asking m
check "a thread yields" until_true 10 yields
BUSY=()
for i in $(seq 2 "$(nproc)") 1 2; do bash -c 'while :; do :; done' & BUSY+=($!); done
check "requests are answered" timeout 60 bash -c 'for i in {1..100}; do cat m/$i; done >/dev/null'
quiet "${BUSY[@]}" $ASKING
check "all are as usual" until_true 10 usual "$ALL"

# ---- what ends meanwhile
asking m
check "a thread yields" until_true 10 yields
check "other lowers" timeout 20 "$COWFS" -o remount,branches="$T/up=RW:$T/low=RO:$T/other=RO" "$T/m"
equal "are there" "$(cat m/other)" other
check "the mount" umount -l m
check "its daemon ends, though the program asks" until_true 10 no_daemon
quiet $ASKING

check "a union" union -o cow,negative_timeout=0 low=RO:up=RW m
asking m
check "a thread yields" until_true 10 yields
quiet $ASKING
check "umount" unmount m
check "a union with one thread" union -o cow,negative_timeout=0,threads=1 low=RO:up=RW m
asking m
check "it yields" until_true 10 yields
check "and answers" timeout 10 cat m/1
quiet $ASKING
check "it is as usual" until_true 10 usual "$ALL"
check "umount" unmount m

# ---- more processors, meanwhile: a cpuset grows
mkdir group
GROUP=$T/group/near.$$
if mount -t cgroup -o cpuset none group 2>/dev/null; then
	mkdir "$GROUP" && cat group/cpuset.mems >"$GROUP/cpuset.mems"
else
	mount -t cgroup2 none group && echo +cpuset >group/cgroup.subtree_control && mkdir "$GROUP"
fi
check "a cpuset of one processor" eval 'echo "$CPU" >"$GROUP/cpuset.cpus"'
check "a union in it" bash -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' - "$GROUP" "$COWFS" -o cow,negative_timeout=0 low=RO:up=RW m
asking m
check "a thread yields" until_true 10 yields
quiet $ASKING
check "all may run there" until_true 10 usual "$CPU"
check "more processors" eval 'echo "$ALL" >"$GROUP/cpuset.cpus"'
check "are everybody's" until_true 5 usual "$ALL"
check "umount" unmount m
check "its daemon ends" no_daemon_left
rmdir "$GROUP"
umount group

# ---- programs whose numbers the daemon does not see
unshare -pf --kill-child "$COWFS" -f -o cow,negative_timeout=0 low=RO:up=RW m &
APART=$!
check "a union of another pid namespace" until_true 10 is_mounted m
asking m
FIRST=$ASKING
asking m
check "two programs that it cannot tell apart are served by all" all_serve
quiet $FIRST $ASKING
check "umount" unmount m
wait $APART

# ---- where it is not wanted, or not allowed
check "a union with near=off" union -o cow,negative_timeout=0,near=off low=RO:up=RW m
asking m
check "all serve" all_serve
quiet $ASKING
check "umount" unmount m

check "a union that may use one processor" taskset -c "$CPU" "$COWFS" -o cow,negative_timeout=0 low=RO:up=RW m
asking m
check "serves" timeout 10 cat m/1
sleep 1
quiet $ASKING
check "and stays there" until_true 10 usual "$CPU"
check "umount" unmount m

check "a union of batch policy" chrt -b 0 "$COWFS" -o cow,negative_timeout=0 low=RO:up=RW m
asking m
check "all serve" all_serve
check "as they were told" usual "$ALL" 3
quiet $ASKING
check "umount" unmount m

check "a union without the right" setpriv --inh-caps=-sys_nice --bounding-set=-sys_nice "$COWFS" -o cow,negative_timeout=0 low=RO:up=RW m
asking m
check "a request is answered" timeout 10 cat m/1
sleep 1
check "all serve" all_serve
quiet $ASKING
check "umount" unmount m
finish
