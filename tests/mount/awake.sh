#!/bin/bash
# awake: idle processors are kept from sleeping while requests come in, not longer, and not after the daemon's end.
. "$(dirname "$0")/../lib.sh"

D=/dev/cpu_dma_latency
mkdir low up m
for i in {1..3000}; do echo "$i" >"low/$i"; done
# What the machine's processors may take to wake at present, in microseconds.
latency() { od -An -t d4 -N 4 $D | tr -d ' '; }
# soon VALUE: it becomes that.
soon() { local i; for i in {1..3000}; do [ "$(latency)" != "$1" ] || return 0; sleep 0.01; done; return 1; }
# for_a_second VALUE: it is that all the time.
for_a_second() { local i; for i in {1..50}; do [ "$(latency)" = "$1" ] || return 1; sleep 0.02; done; }
# Names that are asked for, again and again, until somebody ends it; each is absent, and nobody remembers that.
asking() { python3 -c '
import os, sys
while True:
    for n in range(1000):
        os.path.exists(f"{sys.argv[1]}/absent{n}")' "$1" & ASKING=$!; }
quiet() { kill $ASKING; wait $ASKING 2>/dev/null; }

check "the device is there" test -c $D
FREE=$(latency)
check "nobody else holds the machine awake" [ "$FREE" -gt 0 ]

check "a union without it" union -o cow,negative_timeout=0 low=RO:up=RW m
asking m
check "keeps nobody awake" for_a_second "$FREE"
quiet
check "umount" unmount m

check "a union with it" union -o cow,awake,negative_timeout=0 low=RO:up=RW m
equal "asks for nothing by itself" "$(latency)" "$FREE"
for i in {1..5}; do stat m/$i >/dev/null; sleep 0.02; done
equal "nor for a request now and then" "$(latency)" "$FREE"
asking m
check "many requests keep the machine awake" soon 0
# Where others are at work, requests may not come for a moment.
check "as long as they come" until_true 30 eval '[ "$(for i in {1..50}; do latency; sleep 0.02; done | grep -cx 0)" -ge 25 ]'
quiet
check "then it may sleep again" soon "$FREE"
asking m
check "the same once more" soon 0
kill -KILL "$(daemons)"
check "a dead daemon asks for nothing" soon "$FREE"
quiet
umount -l m
check "and a third time, in another union" union -o cow,awake,negative_timeout=0 low=RO:up=RW m
asking m
check "awake" soon 0
quiet
check "umount" unmount m
check "an ended one asks for nothing" soon "$FREE"

check "a device that may not be opened" bash -c "mount --bind $D $D && mount -o remount,bind,nodev $D"
"$COWFS" -o cow,awake low=RO:up=RW m 2>err
equal "stops the mount" $? 1
check "the option, the device and the way out are named" grep -q "option 'awake': $D: .*leave the option out" err
umount $D
check "and nothing is mounted" bash -c "! mountpoint -q m"
finish
