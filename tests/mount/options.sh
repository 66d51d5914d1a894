#!/bin/bash
# What fuse-overlayfs's options noacl, fsync, volatile and its whole list mean: who may read, what is synced and when.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

mkdir lower upper ufs work
echo five >lower/five && chown 5:6 lower/five && chmod 600 lower/five
setfacl -m u:9:r lower/five
as() { setpriv --reuid="$1" --regid="$1" --clear-groups -- "${@:2}"; }

# ---- noacl -------------------------------------------------------------------------------------------------------------

check "mounts" union -o allow_other lower=RO:upper=RW ufs
check "an ACL counts" as 9 cat ufs/five
check "unmounts" unmount ufs
check "noacl" union -o allow_other,noacl lower=RO:upper=RW ufs
refuse "an ACL does not count" 'denied' as 9 cat ufs/five
check "the owner may" as 5 cat ufs/five
check "copied up" as 5 sh -c 'echo more >>ufs/five'
check "unmounts" unmount ufs
equal "the copy has the ACL" "$(getfacl -nc upper/five | grep '^user:9')" "user:9:r--"
check "mounts" union -o allow_other lower=RO:upper=RW ufs
check "and where ACLs are honoured it counts" as 9 cat ufs/five
check "unmounts" unmount ufs

# ---- fsync, volatile ---------------------------------------------------------------------------------------------------

# traced OPTION: copies a file up, writes, syncs, all under strace; the calls are in the file `calls`.
traced() {
	local i
	rm -rf upper work && mkdir upper work
	echo lower >lower/log
	strace -f -qq -o calls -e trace=fsync,fdatasync,syncfs,sync_file_range,linkat,renameat2 "$COWFS" -f -o "lowerdir=lower,upperdir=upper,workdir=work,$1" ufs 9>&- &
	for i in {1..300}; do is_mounted ufs && break; sleep 0.1; done
	/usr/bin/python3 - <<'P' || fail "$1: written and synced"
import os
file = os.open("ufs/log", os.O_RDWR | os.O_APPEND)
os.write(file, b"more\n")
os.fsync(file)
os.fdatasync(file)
new = os.open("ufs/new", os.O_RDWR | os.O_CREAT)
os.fsync(new)
dir = os.open("ufs", os.O_RDONLY)
os.fsync(dir)
P
	equal "$1: content" "$(cat ufs/log)" $'lower\nmore'
	check "$1: unmounts" unmount ufs
	wait $!
	no_daemon_left
}
synced() { grep -cE 'f(data)?sync\(|syncfs\(|sync_file_range\(' calls; }
for option in fsync=1 threaded=1; do
	traced $option
	check "$option: the copy, and four times by request" [ "$(synced)" -ge 5 ]
	equal "$option: the copy is synced before it hides the original" \
		"$(grep -oE 'fsync\(|(linkat|renameat2)\(.*"log"' calls | cut -d'(' -f1 | head -n 2 | tr '\n' ' ')" "fsync linkat "
done
for option in fsync=0 volatile; do
	traced $option
	equal "$option: nothing is synced" "$(synced)" 0
done

# ---- all of them -------------------------------------------------------------------------------------------------------

rm -rf upper work && mkdir upper work
check "fuse-overlayfs's whole list" union -o "lowerdir=lower,upperdir=upper,workdir=work,uidmapping=0:0:65536,gidmapping=0:0:65536,timeout=3600,threaded=1,fsync=1,fast_ino=1,writeback=1,noxattrs=0,xattr_permissions=0,static_nlink,noacl,xino=auto,context=\"system_u:object_r:container_file_t:s0:c1,c2\"," ufs
equal "serves" "$(cat ufs/log && echo x >ufs/x && cat upper/x)" $'lower\nx'
check "unmounts" unmount ufs

# Layers whose owners are not those of the files, as podman's force_mask makes them: not shown with the files' own (aside.sh has
# what is shown when it is asked for).
rm -rf upper work && mkdir upper work
for key in user.containers.override_stat user.fuseoverlayfs.override_stat security.fuseoverlayfs.override_stat; do
	mkdir -p aside
	setfattr -n $key -v 0:0:0755 aside
	refuse "a layer with $key" "branch \"aside\" keeps owners and modes in the attribute \"$key\".*force_mask.*xattr_permissions=" \
		timeout 10 "$COWFS" -o "lowerdir=lower:aside,upperdir=upper,workdir=work" ufs
	refuse "an upper with $key" "branch \"aside\" keeps owners" timeout 10 "$COWFS" -o "lowerdir=lower,upperdir=aside,workdir=work" ufs
	check "a plain branch with it is what it is" union aside=RO:upper=RW ufs
	check "unmounts" unmount ufs
	rm -rf aside upper && mkdir upper
done
check "no daemon is left" no_daemon_left
equal "the lower is as it was" "$(cat lower/five lower/log)" $'five\nlower'
finish
