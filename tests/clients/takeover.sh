#!/bin/bash
# One upper, one daemon: the next one waits for the lock and takes over when the first is killed; no line that was synced is lost.
# timeout: 500
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
need mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs

M1=$T/m1 M2=$T/m2
mkdir low m1 m2
echo lower >low/f

# of DIR: the daemon that serves the union on DIR.
of() { pgrep -f -- " $1\$" | head -n 1; }
now() { date +%s%N; }
# free DIR: nothing is mounted there and its daemon is gone.
clear_off() { kill -KILL $(of "$1") 2>/dev/null; umount -l "$1" 2>/dev/null; }

# A program that appends numbered lines and syncs each; what it was told is safe goes to a file outside, which is synced too.
cat >writer.py <<'P'
import os, sys
log, acked = sys.argv[1:]
safe = os.open(acked, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = sum(1 for _ in open(acked))
file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    number += 1
    line = b"line %09d %s\n" % (number, b"x" * (number % 300))
    if os.write(file, line) != len(line):
        sys.exit("short")
    os.fsync(file)
    os.write(safe, line)
P
# Every line that was told to be safe is in the log, once, and every line of the log is whole: but for lines that were
# written and not told, of which there is one a writer at most.
cat >judge.py <<'P'
import re, sys
log, acked = (open(path, "rb").read() for path in sys.argv[1:])
lines, told = log.split(b"\n"), acked.splitlines()
if lines.pop() != b"": sys.exit("the last line is torn")
for line in lines:
    found = re.fullmatch(rb"line (\d{9}) (x*)", line)
    if not found or len(found[2]) != int(found[1]) % 300: sys.exit(f"damaged: {line[:60]}")
kept = set(lines)
for line in told:
    if line not in kept: sys.exit(f"lost: {line[:60]}")
print(len(told), "lines")
if not told: sys.exit("nothing was written")
P

# ---- on every filesystem -----------------------------------------------------------------------------------------------

ALL="ext4 xfs btrfs tmpfs"
[ -z "${SHORT-}" ] || ALL="ext4 tmpfs"
for fs in $ALL; do
	mkdir -p $fs
	case $fs in
	tmpfs) mount -t tmpfs none $fs ;;
	*) check "$fs" loop_fs $fs 512M "$T/$fs" || finish ;;
	esac
	mkdir $fs/up $fs/work
	B=$T/low=RO:$T/$fs/up=RW
	check "$fs: the first" union -o cow,allow_other "$B" "$M1"
	first=$(of "$M1")
	began=$(now)
	refuse "$fs: a second is refused" 'up.* in use by another union' timeout 60 "$COWFS" -o cow "$B" "$M2"
	refuse "$fs: also after its time" 'up.* in use by another union' timeout 60 "$COWFS" -o cow,lock_wait=2 "$B" "$M2"
	waited=$((($(now) - began) / 1000000))
	check "$fs: and not before ($waited ms)" [ $waited -ge 3100 -a $waited -lt 40000 ]
	timeout 150 "$COWFS" -o cow,lock_wait=120 "$B" "$M2" >waiting.log 2>&1 &
	waiting=$!
	sleep 1.5
	check "$fs: the next one waits" sh -c "kill -0 $waiting && ! grep -q ' $M2 ' /proc/self/mountinfo"
	echo 'written by the first' >"$M1/line"
	sync "$M1/line"
	began=$(now)
	kill -KILL "$first"
	wait $waiting
	equal "$fs: after kill -9 it takes over" "$? $(cat waiting.log)" "0 "
	took=$((($(now) - began) / 1000000))
	check "$fs: soon ($took ms)" [ $took -lt 30000 ]
	equal "$fs: with what the first left" "$(cat "$M2/line" "$M2/f")" $'written by the first\nlower'
	check "$fs: one daemon" [ "$(daemons | wc -w)" = 1 ]
	umount -l "$M1"
	check "$fs: umount" unmount "$M2"
	check "$fs: and the daemon is gone" no_daemon_left

	# umount(2), and at once the next mount: a hand-over without a pause.
	hand_over() {
		local i here=$M1
		union -o cow "$B" "$M1" || return 1
		for i in {1..12}; do
			umount "$here" || return 1
			[ "$here" = "$M1" ] && here=$M2 || here=$M1
			union -o cow "$B" "$here" || return 1
			echo "$i" >>"$here/handed" || return 1
		done
		umount "$here"
	}
	check "$fs: hand-over, twelve times at once" hand_over
	check "$fs: every daemon is gone" no_daemon_left
	equal "$fs: every line is there" "$(tail -n 1 $fs/up/handed) $(wc -l <$fs/up/handed)" "12 12"

	# Eight at once: one wins.
	for i in {1..8}; do
		mkdir -p "race/$i"
		(timeout 60 "$COWFS" -o cow "$B" "$T/race/$i" 2>/dev/null; echo $? >"race/$i.status") &
		racers[i]=$!
	done
	wait "${racers[@]}"
	equal "$fs: of eight at once one gets it" "$(cat race/*.status | sort | uniq -c | awk '{ printf "%s*%s ", $1, $2 }')" "1*0 7*1 "
	check "$fs: one daemon" [ "$(daemons | wc -w)" = 1 ]
	for i in {1..8}; do umount -l "race/$i" 2>/dev/null; done
	check "$fs: it goes" no_daemon_left
done

# ---- under load, again and again ---------------------------------------------------------------------------------------

for fs in ext4 tmpfs; do
	B=$T/low=RO:$T/$fs/up=RW
	rm -f "acked.$fs"
	touch "acked.$fs"
	check "$fs: mounts" union -o cow,allow_other "$B" "$M1" || finish
	here=$M1
	for turn in {1..10}; do
		[ "$here" = "$M1" ] && next=$M2 || next=$M1
		/usr/bin/python3 writer.py "$here/log" "acked.$fs" 2>/dev/null &
		writer=$!
		timeout 90 "$COWFS" -o cow,allow_other,lock_wait=60 "$B" "$next" 9>&- &
		waiting=$!
		sleep 0.4
		kill -KILL "$(of "$here")"
		wait $waiting || fail "$fs: take-over $turn failed"
		wait $writer
		[ "$(daemons | wc -w)" = 1 ] || fail "$fs: take-over $turn: daemons: $(daemons)"
		umount -l "$here"
		here=$next
	done
	check "$fs: ten daemons killed: every line that was synced is there, none is damaged" /usr/bin/python3 judge.py "$here/log" "acked.$fs"
	echo "# $fs: $(wc -l <"acked.$fs") lines"
	check "$fs: umount" unmount "$here"
	check "$fs: the daemon goes" no_daemon_left
done

# ---- the holder dies with its pid namespace ----------------------------------------------------------------------------

B=$T/low=RO:$T/ext4/up=RW
unshare -mpf --kill-child=KILL sh -c "'$COWFS' -o cow $B $M1 && sleep 60" &
holder=$!
check "a holder in a namespace of its own" until_true 60 sh -c "[ -n \"\$(pgrep -f ' $M1\$')\" ] && pgrep -x sleep >/dev/null"
timeout 90 "$COWFS" -o cow,lock_wait=60 "$B" "$M2" 9>&- &
waiting=$!
sleep 0.5
kill -KILL $holder
wait $waiting
equal "when its namespace is killed the next one takes over" "$? $(cat "$M2/f")" "0 lower"
check "umount" unmount "$M2"
check "the daemon goes" no_daemon_left

# ---- who waits in vain, and who gives up waiting -----------------------------------------------------------------------

check "a holder" union -o cow "$B" "$M1"
timeout 90 "$COWFS" -o cow,lock_wait=60 "$B" "$M2" 9>&- &
waiting=$!
until_true 30 pgrep -f -- " $M2\$"
sleep 0.5
kill -TERM $(pgrep -f -- " $M2\$")
wait $waiting
check "who waits can be ended" [ $? != 0 ]
check "umount" unmount "$M1"
check "and nothing comes up later" sh -c "sleep 0.5; ! grep -q ' $M2 ' /proc/self/mountinfo"
refuse "lock_wait=0" 'must be SECONDS' "$COWFS" -o lock_wait=0 "$B" "$M1"

# ---- the kernel's overlayfs on the same upper --------------------------------------------------------------------------

mkdir ov 'ext4/a b,c' ext4/owork
for up in up 'a b,c'; do
	escaped=${up//,/\\,}
	check "overlayfs on '$up'" mount -t overlay none -o "lowerdir=$T/low,upperdir=$T/ext4/$escaped,workdir=$T/ext4/owork" ov
	refuse "cowfs sees overlayfs on '$up'" "ext4/$up.* in use by the kernel's overlayfs on .*/ov" timeout 20 "$COWFS" "$T/low=RO:$T/ext4/$escaped=RW" "$M1"
	refuse "also by another way" "in use by the kernel's overlayfs" sh -c "mount --bind '$T/ext4/$up' race/1 && '$COWFS' low=RO:race/1=RW '$M1'"
	umount -l race/1
	umount ov
	check "and its end" union "$T/low=RO:$T/ext4/$escaped=RW" "$M1"
	check "umount" unmount "$M1"
done
check "overlayfs" mount -t overlay none -o "lowerdir=$T/low,upperdir=$T/ext4/up,workdir=$T/ext4/owork" ov
refuse "its workdir for a workdir" "in use by the kernel's overlayfs" timeout 20 "$COWFS" -o "lowerdir=low,upperdir=$T/ext4/a b\\,c,workdir=$T/ext4/owork" "$M1"
check "its upper as a lower is nobody's business" union "$T/ext4/up=RO" "$M1"
check "umount" unmount "$M1"
umount ov
check "no daemon is left" no_daemon_left
finish
