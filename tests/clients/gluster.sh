#!/bin/bash
# Branches on GlusterFS, three copies, read-only and writable: a brick killed under load costs nothing; without a quorum every
# answer is an error and none is "no such file"; when the bricks are back the same daemon serves on; two clients of the volume are
# kept from one upper; a client that was killed and mounted anew serves the lowers again. In full it takes three minutes, with SHORT=1
# one. NFS is not tested: the kernel this was written on has none.
# timeout: 600
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/work.bash"
. "$TEST_DIR/clients/gluster.bash"
need glusterd=glusterfs-server ip=iproute2 getfattr=attr
own_network

grep -qw nfs /proc/filesystems || echo "# this kernel has no NFS: nothing of it is tested"
G=$T/gl A=$T/away # The volume, by two clients: the branches' machine, and another one.
check "a volume" gluster_up || finish
check "is mounted" gluster_mount "$G" || finish
check "twice" gluster_mount "$A" || finish
# of DIR: the daemon of the union on DIR.
of() { pgrep -f -- " $1\$" | head -n 1; }

make_tree "$A/tree"
ln "$A/tree/kept" "$A/tree/away/link"
mkdir m m2 up ref && cp -a "$A/tree/." ref/
# numbers DIR: the inode number of each object.
numbers() { (cd "$1" && find . -mindepth 1 -printf '%p %i\n' | sort); }

# ---- everyday work -----------------------------------------------------------------------------------------------------

through_the_union both "$G/tree" "$G/up-both"
if long "only one of the branches on Gluster"; then
	through_the_union ro "$G/tree"
	through_the_union rw ref "$G/up-rw"
fi
equal "the upper has .wh. files, and nothing of the daemon is left" "$(find "$A/up-both" -type c; ls -A "$A/up-both" | grep -v '^\.wh\.')" ""
equal "it says so" "$(getfattr --absolute-names --only-values -n trusted.overlay.cowfs.format "$A/up-both")" oci

check "a union read-only" union -o allow_other "$G/tree=RO" m
numbers m >m.list && numbers "$A/tree" >tree.list
same "shows Gluster's own inode numbers" tree.list m.list
check "some of which have the highest bit" grep -qE ' 9[3-9][0-9]{17}$| 1[0-9]{19}$' m.list
check "umount" unmount m
check "a union with a local upper" union -o cow,allow_other "$G/tree=RO:up=RW" m
numbers m >before.list
check "has no number twice" [ -z "$(grep -v -e '^./kept ' before.list | awk '{ print $2 }' | sort | uniq -d)" ]
equal "but that of a file with two names" "$(stat -c '%i %h' m/kept)" "$(stat -c '%i %h' m/away/link)"
echo more | tee -a m/appended m/away/link m/many/5 >/dev/null
numbers m >after.list
same "copies keep theirs" before.list after.list
check "umount" unmount m
check "again" union -o cow,allow_other "$G/tree=RO:up=RW" m
numbers m >after.list
same "and keep it over a remount" before.list after.list
equal "names linked together stay so" "$(tail -n 1 m/kept) $(stat -c %h m/kept)" "more 2"

# ---- what another machine changes --------------------------------------------------------------------------------------

cat m/swap/old >/dev/null
stat m/swap/later m/swap/old >/dev/null 2>&1
echo changed >"$A/tree/swap/old"
echo new >"$A/tree/swap/later"
until_true 20 eval '[ "$(cat m/swap/old m/swap/later)" = $'"'changed\\nnew'"' ]' # Gluster's own second, and ours.
equal "is seen after a second or two, without an option" "$(cat m/swap/old m/swap/later)" $'changed\nnew'
check "umount" unmount m
check "longer times" union -o cow,allow_other,entry_timeout=30,attr_timeout=30,negative_timeout=30 "$G/tree=RO:up=RW" m
exec 6<m/swap/old # So the kernel keeps it, whatever else this machine drops from its caches meanwhile.
stat m/swap/old >/dev/null
echo 'image swap/old' >"$A/tree/swap/old"
sleep 2.5
equal "are trusted if asked for" "$(stat -c %s m/swap/old)" 8
exec 6<&-
check "umount" unmount m
rm -r up && mkdir up
rm "$A/tree/swap/later"

# ---- bricks ------------------------------------------------------------------------------------------------------------

if [ -z "${SHORT-}" ]; then
	for i in 1 2; do cp -r ref/many "$A/tree/many-$i" && cp -r ref/many "ref/many-$i"; done
fi
LOAD=()
# load_begins WHERE; load_ends WHERE: two programs at work, each in a directory of its own; see load.py.
load_begins() {
	local i
	rm -f stop told-*
	mkdir m/made
	for i in 1 2; do
		/usr/bin/python3 "$TEST_DIR/clients/load.py" m ref "told-$i" stop >"load.$i" 2>&1 &
		LOAD[i]=$!
	done
	sleep 1.5
}
load_ends() {
	local i
	sleep 1
	touch stop
	for i in 1 2; do
		wait "${LOAD[i]}"
		equal "$1: the load $i meets no error, and nothing is lost" "$? $(grep -v steps "load.$i")" "0 "
		sed 's/^/# /' "load.$i"
	done
}
answers() { /usr/bin/python3 "$TEST_DIR/clients/answers.py" m "$@"; }
# Both clients have found the bricks again.
clients_back() { until_true 40 ls -l "$G/tree" "$A/tree"; }

KINDS="ro rw"
[ -z "${SHORT-}" ] || KINDS=rw
mkdir "$A/up-load"
for kind in $KINDS; do
	case $kind in
	ro) upper=$T/up ;;
	rw) upper=$G/up-load ;;
	esac
	check "$kind: a union" union -o cow,allow_other "$G/tree=RO:$upper=RW" m
	daemon=$(of m)
	if long "a brick killed under load"; then
		load_begins
		check "$kind: a brick is killed" kill_brick 2
		sleep 3
		check "$kind: and comes back" bricks_back
		load_ends "$kind"
		clients_back
	fi
	names_and_data m >before.list

	echo mine >m/mine
	ls m/many >/dev/null
	check "$kind: two bricks are killed" kill_brick 1 3
	# Gluster itself needs a moment to know, and so do the names that were asked for a second ago.
	sleep 2.5
	check "$kind: no answer is wrong" answers kept dir dir/a dir/sub many many/7 away/deep/two never! dir/never! many/7/x!
	[ $kind = rw ] || equal "$kind: what the upper has is served" "$(cat m/mine)" mine
	check "$kind: statfs is answered" timeout 20 stat -f m
	[ $kind = ro ] || refuse "$kind: nothing is written" 'not connected|input/output|bad state' sh -c 'echo x >>m/mine'
	check "$kind: the bricks are back" bricks_back
	check "$kind: for both clients" clients_back
	check "$kind: it can be changed again" until_true 40 rm m/mine
	names_and_data m >after.list
	same "$kind: everything is served again" before.list after.list
	equal "$kind: by the same daemon" "$(of m)" "$daemon"
	check "$kind: in every way" sh -c 'echo new >m/away/new && cat m/away/new && rm m/kept && ! test -e m/kept && mkdir m/dir/new'
	check "$kind: umount" unmount m
	check "$kind: the daemon goes" no_daemon_left
done

# ---- one upper, one daemon ---------------------------------------------------------------------------------------------

mkdir "$A/up-lock" "$A/up-work" "$A/work"
check "a union" union -o cow,allow_other "ref=RO:$G/up-lock=RW" m
refuse "a second one is refused" 'in use by another union' timeout 20 "$COWFS" -o cow "ref=RO:$G/up-lock=RW" m2
refuse "on another machine, too" 'in use by another union' timeout 20 "$COWFS" -o cow "ref=RO:$A/up-lock=RW" m2
timeout 40 "$COWFS" -o cow,lock_wait=30 "ref=RO:$A/up-lock=RW" "$T/m2" 9>&- &
waiting=$!
sleep 1.5
echo synced >m/line && sync m/line
began=$(date +%s%N)
kill -KILL "$(of m)"
wait $waiting
equal "after kill -9 the other machine takes over" "$? $(cat m2/line)" "0 synced"
took=$((($(date +%s%N) - began) / 1000000))
check "at once ($took ms)" [ $took -lt 15000 ]
umount -l m
check "umount" unmount m2
check "and at once on the first machine" union -o cow,allow_other "ref=RO:$G/up-lock=RW" m
check "umount" unmount m
check "the daemons go" no_daemon_left
equal "nothing of them is left" "$(ls -A "$A/up-lock")" line
W="lowerdir=ref,upperdir=$G/up-work,workdir=$G/work"
check "with a workdir" union -o "$W" m
refuse "likewise" 'in use by another union' timeout 20 "$COWFS" -o "${W//"$G"/"$A"}" m2
check "umount" unmount m
check "the daemon goes" no_daemon_left
equal "nothing is left in the upper, nor in the workdir but its work" "$(ls -A "$A/up-work" "$A/work" | tr '\n' ' ')" "$A/up-work:  $A/work: work "

# The servers forget the lock.
# steal FILE: locks it, signs it as a daemon does, and gives it back.
cat >steal.py <<'P'
import fcntl, os, sys, time
for _ in range(600):
    try:
        file = os.open(sys.argv[1], os.O_RDWR)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except OSError:
        time.sleep(0.05)
else:
    sys.exit("never free")
os.pwrite(file, b"stranger", 0)
P
if long "servers that forget the lock"; then
	check "a union" union -o cow,allow_other,debug_file="$T/keeper.log" "ref=RO:$G/up-lock=RW" m
	kill_brick 1 2 3
	sleep 1.5
	refuse "all bricks are away: nothing is written" 'not connected' touch m/none
	check "they come again" bricks_back
	check "and are found" clients_back
	check "the lock is taken again, and the union can be written to" until_true 40 touch m/again
	check "which is said" grep -q 'ours still: changes are possible again' keeper.log
	refuse "nobody else gets it" 'in use by another union' timeout 20 "$COWFS" -o cow "ref=RO:$A/up-lock=RW" m2
	/usr/bin/python3 steal.py "$A/up-lock/.cowfs/lock" &
	thief=$!
	stop "$(of m)" # A machine that is slow to come back.
	kill_brick 1 2 3
	sleep 1.5
	kill -CONT "$(of m)"
	sleep 1.5
	stop "$(of m)"
	check "the bricks come again" bricks_back
	wait $thief
	equal "another one gets the lock meanwhile" $? 0
	kill -CONT "$(of m)"
	check "the first ends" no_daemon_left
	check "and says why" grep -q 'another union has taken the writable branch' keeper.log
	refuse "which can be seen" 'not connected' stat -f m
	umount -l m
	clients_back
fi

# ---- the client is killed, and the volume mounted anew -----------------------------------------------------------------

rm -r up && mkdir up
check "a union" union -o cow,allow_other "$G/tree=RO:up=RW" m
daemon=$(of m)
names_and_data m >before.list && numbers m >numbers.list
cat m/many/7 >/dev/null
exec 6<m/many/8 7<m/dir
TURNS="1 2"
[ -z "${SHORT-}" ] || TURNS=1
for turn in $TURNS; do
	kill -KILL "$(client_of "$G")"
	sleep 1.5
	check "$turn: no answer is wrong" answers kept dir many/9 never! dir/never!
	check "$turn: it is mounted anew" sh -c "umount -l '$G'; mount -t glusterfs '$ADDRESS:/$VOLUME' '$G' 6<&- 7<&- 9>&-"
	check "$turn: and served again" until_true 40 ls m/away/deep
	sleep 1.1
	names_and_data m >after.list && numbers m >numbers.after
	same "$turn: all of it" before.list after.list
	same "$turn: with the same numbers" numbers.list numbers.after
	equal "$turn: also to who had it open" "$(/usr/bin/python3 -c 'import os; print(len(os.pread(6, 9999, 0)), len(os.listdir(7)))')" "2000 2"
	equal "$turn: by the same daemon" "$(of m)" "$daemon"
done
exec 6<&- 7<&-
check "it can be changed" sh -c 'echo more >>m/appended && cat m/appended && echo more >>m/away/link && rm m/many/1'
numbers m >numbers.list
check "umount" unmount m
check "the volume is mounted anew" sh -c "umount '$G' && mount -t glusterfs '$ADDRESS:/$VOLUME' '$G' 9>&-"
check "a union on it" union -o cow,allow_other "$G/tree=RO:up=RW" m
numbers m >numbers.after
same "copies keep their numbers" numbers.list numbers.after
equal "and names linked together stay so" "$(tail -n 1 m/kept) $(stat -c %h m/kept)" "more 2"
mount -t tmpfs none "$G" && mkdir "$G/tree"
kill -KILL "$(client_of "$G")"
sleep 2.5
refuse "something else in its place is not taken for it" 'not connected' ls m/dir/sub
umount "$G"
check "umount" unmount m
check "no daemon is left" no_daemon_left
finish
