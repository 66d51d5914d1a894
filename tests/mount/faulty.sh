#!/bin/bash
# Branches that fail: a name that cannot be looked up is listed all the same, as on its own filesystem; data that cannot be
# read or stored (EIO, EDQUOT) leave the old content, or the whole new one, and a retry works. In every format, after a remount too.
# timeout: 120
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

finish
