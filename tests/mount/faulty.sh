#!/bin/bash
# Branches that fail: a name that cannot be looked up is listed all the same, as on its own filesystem; data that cannot be
# read or stored (EIO, EDQUOT) leave the old content, or the whole new one, and a retry works. In every format, after a remount too.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

mkdir ufs
formats="overlay oci unionfs unionfs-fuse"

# ---- a name whose inode is damaged -------------------------------------------------------------------------------------

check "a disk" loop_fs ext4 32M "$T/damaged"
mkdir damaged/{only,first,many} && echo bad >damaged/only/bad && echo bad >damaged/first/bad
for n in {1..300}; do echo "$n" >"damaged/many/f$n"; done
echo good >damaged/first/good
victims=$(stat -c %i damaged/only/bad damaged/first/bad damaged/many/f{1,99,200,300})
umount damaged
for inode in $victims; do debugfs -w -R "clri <$inode>" .test/damaged.img 2>/dev/null; done
check "it mounts" mount -o loop,errors=continue .test/damaged.img damaged

# listed DIR: what getdents(2) shows, and what each name answers, asked as ls(1) -l asks: while the listing is read.
listed() {
	/usr/bin/python3 - "$1" <<'PY'
import errno, os, sys
for top in ("only", "first", "many"):
    names = []
    for entry in os.scandir(f"{sys.argv[1]}/{top}"):
        try:
            names.append((entry.name, entry.stat(follow_symlinks=False).st_size))
        except OSError as error:
            names.append((entry.name, errno.errorcode[error.errno]))
    print(top, sorted(names))
    print("fails:", sum(isinstance(what, str) for _, what in names))
PY
}
listed damaged >damaged.list
check "the disk itself lists names that it cannot look up" [ "$(grep fails: damaged.list | tr '\n' ' ')" = "fails: 1 fails: 1 fails: 4 " ]
for format in $formats; do
	mkdir "upper-d-$format"
	for round in "at first" "after a remount"; do
		check "$format: mounts, $round" union -o "cow,whiteout=$format" "damaged=RO:upper-d-$format=RW" ufs
		listed ufs >ufs.list
		same "$format: every name is listed, each look-up fails as on the disk, $round" damaged.list ufs.list
		listed ufs >ufs.list
		same "$format: and again, from the kernel's listing, $round" damaged.list ufs.list
		check "$format: new names come and go beside it, $round" sh -c 'echo n >ufs/first/new && [ "$(ls ufs/first | wc -l)" = 3 ] && rm ufs/first/new'
		equal "$format: what is not damaged can be read, $round" "$(cat ufs/first/good ufs/many/f2)" $'good\n2'
		check "$format: unmounts, $round" unmount ufs
		no_daemon_left
	done
done
umount damaged

# ---- data that cannot be read -------------------------------------------------------------------------------------------

sum() { sha256sum | cut -d' ' -f1; }
mkdir keep
head -c 3000000 /dev/urandom >keep/torn
for format in $formats; do
	truncate -s 32M .test/whole.img && mkfs.ext4 -q -b 4096 -O ^has_journal .test/whole.img
	mkdir -p ending && mount -o loop .test/whole.img ending && cp keep/torn ending/whole && sync && cp keep/torn ending/torn && chmod 666 ending/*
	umount ending && cp --sparse=always .test/whole.img .test/ending.img && mount -o loop,ro .test/ending.img ending
	# The disk will end behind the first 1.2 MB of the file, the last on it.
	read -r whole start torn < <(echo $(for place in "whole 0" "torn 0" "torn 300"; do debugfs -R "bmap $place" .test/ending.img 2>/dev/null; done))
	check "$format: the file is the last on its disk" test "$torn" -gt "$((whole + 1000))"
	mkdir "upper-e-$format"
	check "$format: mounts" union -o "cow,whiteout=$format" "ending=RO:upper-e-$format=RW" ufs
	truncate -s $((torn * 4096)) .test/ending.img
	echo 3 >/proc/sys/vm/drop_caches
	refuse "$format: a copy-up that cannot read its data fails" 'Input/output error' timeout 20 sh -c 'echo x >>ufs/torn'
	refuse "$format: so does truncate(2)" 'Input/output error' timeout 20 truncate -s 2900000 ufs/torn
	equal "$format: nothing of it is in the upper" "$(find "upper-e-$format" -name torn -o -type f -size +8k)" ""
	equal "$format: what can be read is" "$(head -c 1000000 ufs/torn | sum)" "$(head -c 1000000 keep/torn | sum)"
	truncate -s $((start * 4096)) .test/ending.img
	echo 3 >/proc/sys/vm/drop_caches
	for top in ending ufs; do
		/usr/bin/python3 -c 'import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
try:
    os.pread(fd, 100, 0)
except OSError as error:
    print(os.fstat(fd).st_size, error.strerror)' $top/torn
	done >"read.$format" 2>&1
	equal "$format: a file that cannot be read can be opened, as on the disk" "$(cat "read.$format")" $'3000000 Input/output error\n3000000 Input/output error'
	check "$format: cut to nothing it needs none of them, and can be deleted" sh -c ': >ufs/torn && rm ufs/torn'
	check "$format: unmounts" unmount ufs
	no_daemon_left
	umount ending && mount -o loop,ro .test/whole.img ending
	check "$format: mounts again, with the disk whole" union -o "cow,whiteout=$format" "ending=RO:upper-e-$format=RW" ufs
	refuse "$format: the deleted one stays so" 'No such file' stat ufs/torn
	check "$format: the other is copied up" sh -c 'echo x >>ufs/whole'
	equal "$format: and right" "$(sum <ufs/whole)" "$({ cat keep/torn; echo x; } | sum)"
	check "$format: unmounts" unmount ufs
	no_daemon_left
	umount ending
done

# ---- data that may not be stored ----------------------------------------------------------------------------------------

# A limit of 8 MiB for the upper, by btrfs's quota groups.
mkdir large && for n in 1 2 3 4; do head -c 3000000 /dev/urandom >large/f$n; done
for format in $formats; do
	check "$format: a disk with quotas" loop_fs btrfs 256M "$T/quota"
	check "$format: a limit" sh -c 'btrfs quota enable quota && btrfs subvolume create quota/upper && btrfs qgroup limit 8M quota/upper'
	check "$format: mounts" union -o "cow,whiteout=$format" "large=RO:quota/upper=RW" ufs
	for n in 1 2 3 4; do sh -c "echo x >>ufs/f$n" 2>>message.$format || echo "f$n" >>over; done
	check "$format: a copy-up above the limit is EDQUOT" grep -q 'Disk quota exceeded' "message.$format"
	bad=$(tail -n 1 over)
	equal "$format: the lower content is shown" "$(sum <"ufs/$bad")" "$(sum <"large/$bad")"
	equal "$format: nothing torn is in the upper" "$(find quota/upper -name "$bad")" ""
	equal "$format: what was copied up before is right" "$(sum <ufs/f1)" "$({ cat large/f1; echo x; } | sum)"
	check "$format: unmounts" unmount ufs
	no_daemon_left
	check "$format: mounts again" union -o "cow,whiteout=$format" "large=RO:quota/upper=RW" ufs
	equal "$format: after a remount too" "$(sum <"ufs/$bad") $(sum <ufs/f1)" "$(sum <"large/$bad") $({ cat large/f1; echo x; } | sum)"
	btrfs qgroup limit none quota/upper
	check "$format: with room a retry works" sh -c "echo x >>ufs/$bad"
	equal "$format: and is right" "$(sum <"ufs/$bad")" "$({ cat "large/$bad"; echo x; } | sum)"
	check "$format: unmounts" unmount ufs
	no_daemon_left
	umount quota
done

# Quotas of users, as ext4 and xfs have them (this kernel need not), do not hold for who has CAP_SYS_RESOURCE: no thread has it.
mkdir upper-c
check "mounts" union -o cow,allow_other large=RO:upper-c=RW ufs
make_user && chmod 666 large/* && chmod 777 ufs && check "a user writes" as_user sh -c 'echo x >>ufs/f1 && echo y >ufs/new'
# The sets of capabilities of $1 that have number $2.
has() { for set in CapPrm CapEff; do [ $((0x$(sed -n "s/^$set:\t//p" "$1") >> $2 & 1)) = 0 ] || echo "${1#/proc/} $set"; done; }
[ -n "$(has /proc/self/status 24)" ] || echo "# root has no CAP_SYS_RESOURCE here, so the next check cannot fail"
capable= privileged=
for status in $(for pid in $(daemons); do echo /proc/$pid/task/*/status; done); do
	capable+=$(has "$status" 24) privileged+=$(has "$status" 21)
done
check "its threads have other capabilities" test -n "$privileged"
equal "no thread of the daemon stands above quotas" "$capable" ""
check "unmounts" unmount ufs

finish
