#!/bin/bash
# Lower branches on FUSE whose servers are killed and mounted anew: served again, open files too; what is known of one file is
# never taken for another one's, whatever numbers devices and files have then.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

mkdir -p base up m {one,two}.base
# serve DIR BASE...: another daemon's union of these, as a server's filesystem. All data go through the daemons: what is in the
# kernel's own hands outlives them.
serve() {
	local dir=$1 list
	shift
	list=$(printf ':%s=RO' "$@")
	mkdir -p "$dir" && union -o "allow_other,passthrough=off,entry_timeout=0,attr_timeout=0" "${list#:}" "$T/$dir"
}
server_of() { pgrep -f -- " $T/$1\$"; }
# lose DIR: its server is killed, and its mount taken off.
lose() {
	local server
	server=$(server_of "$1")
	kill -KILL "$server" && gone "$server" && umount -l "$1"
}
over() { union -o cow,allow_other,passthrough=off,entry_timeout=0,attr_timeout=0,negative_timeout=0 "$@" "$T/m"; }

# ---- all that may be open ----------------------------------------------------------------------------------------------

# The marks are in the middle of what the server shows: at its own root it would hide them.
mkdir -p base/tree/dir/deep base/tree/.unionfs/dir below/dir
head -c 3000000 /dev/urandom >base/tree/large && echo text >base/tree/dir/text && echo more >base/tree/dir/deep/more
head -c 9000000 /dev/urandom >base/tree/bare
echo hidden | tee below/dir/hidden >below/shown
touch 'base/tree/.unionfs/dir/hidden_HIDDEN~'
check "a server" serve far base
check "a union over it" over "$T/far/tree=RO:$T/below=RO:$T/up=RW"
D=$(pgrep -f -- " $T/m\$")
chmod 600 m/bare # Its data are the server's still.
numbers() { (cd m && stat -c '%n %i' bare dir dir/deep dir/deep/more dir/text large shown); }
numbers >before
exec 5<m/large 6<m/bare 7<m/dir/text 8<m/dir
head -c 10 <&5 >/dev/null && head -c 2 <&6 >/dev/null
for turn in 1 2 3; do
	check "$turn: the server is lost" lose far
	refuse "$turn: nothing looks deleted" 'not connected' cat m/dir/text
	refuse "$turn: nor absent" 'not connected' stat m/dir/never
	check "$turn: it is mounted anew" serve far base
	check "$turn: and served again" until_true 30 cat m/dir/deep/more
	numbers >now
	same "$turn: with the same numbers" before now
	equal "$turn: open files are read on" "$(python3 -c 'import os, hashlib; print(hashlib.sha256(b"".join(os.pread(5, 1 << 16, at << 16) for at in range(60))).hexdigest(), os.pread(7, 9, 0), sorted(os.listdir(8)))')" \
		"$(sha256sum <base/tree/large | cut -d' ' -f1) b'text\n' ['deep', 'text']"
	equal "$turn: and one that has attributes of its own only" "$(python3 -c 'import os, sys; print(os.pread(6, 99, int(sys.argv[1])).hex())' "${turn}000000")" "$(tail -c +"${turn}000001" base/tree/bare | head -c 99 | xxd -p -c 99)"
	echo 2 >/proc/sys/vm/drop_caches
	equal "$turn: its marks count" "$(ls m/dir m | tr '\n' ' ') $(cat m/dir/hidden 2>&1 | grep -c 'No such')" "m: bare dir large shown  m/dir: deep text  1"
done
exec 5<&- 6<&- 7<&- 8<&-
check "by the same daemon" kill -0 "$D"
check "umount" unmount m
check "umount" unmount far
check "no daemon is left" no_daemon_left

# ---- devices' numbers that another one gets ----------------------------------------------------------------------------

# Copies of one image: their files have the same numbers.
truncate -s 32M one.img && mkfs.ext4 -q -m 0 one.img && mount -o loop one.img one.base && mkdir one.base/data
for n in 1 2 3 4; do echo "$n of one" >"one.base/data/$n.one"; done
umount one.base && cp one.img two.img && mount -o loop one.img one.base && mount -o loop two.img two.base
for n in 1 2 3 4; do echo "$n of two" >"two.base/data/$n.one" && mv "two.base/data/$n.one" "two.base/data/$n.two"; done
check "two servers" eval 'serve one one.base && serve two two.base'
check "a union over both" over "$T/one=RO:$T/two=RO:$T/up=RW"
content() { (cd m/data && timeout 20 cat *.one *.two 2>&1 | tr '\n' ' '); }
ALL=$(for which in one two; do for n in 1 2 3 4; do printf '%s of %s ' $n $which; done; done)
equal "both are shown" "$(content)" "$ALL"
exec 5<m/data/2.one 6<m/data/2.two
device() { stat -c %d "$1"; }
for turn in 1 2; do
	lose one
	check "$turn: one is mounted anew" serve one one.base
	[ $turn = 1 ] && free=$(device one)
	check "$turn: and served again" until_true 30 eval '[ "$(content)" = "$ALL" ]'
done
# The number that nobody has any more, if there is one, becomes the next that the kernel gives.
for n in {1..100}; do
	mkdir -p "fill/$n" && mount -t tmpfs none "fill/$n"
	[ "$(device "fill/$n")" -lt "$(device one)" ] || break
done
for n in fill/*; do [ "$(device "$n")" != "$free" ] || umount "$n"; done
lose two
check "two is mounted anew" serve two two.base
echo "# one was device $free, and is $(device one); two is $(device two)"
check "and served again" until_true 30 eval '[ "$(content)" = "$ALL" ]'
equal "each file by its name" "$(content)" "$ALL"
equal "and each that was open" "$(python3 -c 'import os; print(os.pread(5, 99, 0), os.pread(6, 99, 0))')" "b'2 of one\n' b'2 of two\n'"
equal "with a number of its own" "$(stat -c %i m/data/* | sort -u | wc -l)" 8
exec 5<&- 6<&-
check "umount" unmount m
check "umount" eval 'unmount one && unmount two'
check "no daemon is left" no_daemon_left
umount one.base two.base
for n in fill/*; do umount "$n" 2>/dev/null; done

# ---- a server that numbers its files anew ------------------------------------------------------------------------------

rm -rf base && mkdir -p base/d
for n in a b c d e f; do echo "this is $n" >base/d/$n; done
check "a server" serve far base
check "a union over it" over "$T/far=RO:$T/up=RW"
cat m/d/* >all.before
exec 5<m/d/a 6<m/d/b
lose far
# Each has the number that another one had, and what it holds.
mv base/d/a base/d/t && mv base/d/b base/d/a && mv base/d/c base/d/b && mv base/d/d base/d/c && mv base/d/e base/d/d && mv base/d/f base/d/e && mv base/d/t base/d/f
for n in a b c d e f; do echo "this is $n" >base/d/$n; done
check "it is mounted anew" serve far base
check "and served again" until_true 30 cat m/d/a
cat m/d/* >all.after
same "each name shows its own" all.before all.after
read -r old <&5 2>/dev/null
equal "who had one open is not given another one" "$(for fd in 5 6; do python3 -c 'import os, sys
try: print(os.pread(int(sys.argv[1]), 99, 0))
except OSError as error: print("refused")' $fd; done | sed "s/b'this is a.n'/own/; s/b'this is b.n'/own/; s/refused/own/" | tr '\n' ' ')" "own own "
echo "# what was open: ${old:-refused}"
check "it can be changed" sh -c 'echo more >>m/d/c && [ "$(cat m/d/c)" = "this is c
more" ]'
cat m/d/a m/d/b >now
same "nothing else has" <(head -n 2 all.before) now
exec 5<&- 6<&-
check "umount" unmount m
check "umount" unmount far
check "no daemon is left" no_daemon_left
finish
