#!/bin/bash
# -o private: on a machine whose mounts are shared, as under systemd, a union stays in the mount namespace that mounts it.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

# A machine: shared mounts, and below them what customers' unions are made of.
mkdir host
mount -t tmpfs machine host && mount --make-shared host
mkdir -p host/{low,ufs,other,jail/{low,up,mnt,dev},a/b/ufs} host/cow/{1,2,3}
echo lower >host/low/f
H=$T/host
export H

# seen WHOSE DIR: how many mounts that process's namespace has there.
seen() { awk -v dir="$2" '$5 == dir { n++ } END { print n + 0 }' "/proc/$1/mountinfo"; }
# spread WHOSE DIR: "shared" or "private", of the topmost mount there.
spread() { awk -v dir="$2" '$5 == dir { how = $7 ~ /^shared/ ? "shared" : $7 ~ /^master/ ? "slave" : "private" } END { print how }' "/proc/$1/mountinfo"; }
export -f seen spread
# customer COMMAND: a shell in a mount namespace of its own, mounts still shared with the machine.
customer() { timeout -k 2 90 unshare -m --propagation unchanged bash -c "$1"; }

# ---- what it is for ----------------------------------------------------------------------------------------------------

equal "without it a union appears on the machine" \
	"$(customer '"$COWFS" -ocow $H/low=RO:$H/cow/1=RW $H/ufs 2>&1; seen 1 $H/ufs; umount $H/ufs')" 1
no_daemon_left
equal "with it the union is the customer's alone" \
	"$(customer '"$COWFS" -ocow,private $H/low=RO:$H/cow/1=RW $H/ufs 2>&1; seen 1 $H/ufs; seen self $H/ufs; cat $H/ufs/f; umount $H/ufs')" $'0\n1\nlower'
no_daemon_left
equal "the customer's parent mount and the union are private, the machine's is shared as before" \
	"$(customer '"$COWFS" -oprivate $H/low=RO:$H/cow/1=RW $H/ufs; spread self $H; spread self $H/ufs; spread 1 $H; umount $H/ufs')" $'private\nprivate\nshared'
no_daemon_left
equal "what others mount does not come in, what the customer mounts does not go out" \
	"$(customer '"$COWFS" -oprivate $H/low=RO:$H/cow/1=RW $H/ufs; mkdir $H/ufs/d; mount -t tmpfs t $H/ufs/d; nsenter -t 1 -m mount -t tmpfs t $H/other
		seen 1 $H/ufs/d; seen self $H/other; nsenter -t 1 -m umount $H/other; umount $H/ufs/d $H/ufs')" $'0\n0'
no_daemon_left
equal "rprivate is for all mounts of the customer's" \
	"$(customer 'mount --make-rshared /; mount -t tmpfs t $H/other; "$COWFS" -orprivate $H/low=RO:$H/cow/1=RW $H/ufs; seen 1 $H/ufs
		grep -c shared: /proc/self/mountinfo; umount $H/ufs $H/other; seen 1 $H/other')" $'0\n0\n1'
umount "$H/other"
no_daemon_left
check "two customers on one mountpoint" customer '
	"$COWFS" -oprivate $H/low=RO:$H/cow/1=RW $H/ufs && echo one >$H/ufs/f &&
	unshare -m --propagation unchanged sh -c "nsenter -t 1 -m unshare -m --propagation unchanged sh -c \"
		\\\"$COWFS\\\" -oprivate $H/low=RO:$H/cow/2=RW $H/ufs && grep -qx lower $H/ufs/f && umount $H/ufs\"" &&
	grep -qx one $H/ufs/f && umount $H/ufs'
no_daemon_left
equal "nothing is left on the machine" "$(seen self "$H/ufs")" 0
equal "the machine still shares" "$(spread self "$H")" shared

# ---- which mount is the parent -----------------------------------------------------------------------------------------

equal "a mountpoint far below its mount" \
	"$(customer '"$COWFS" -oprivate $H/low=RO:$H/cow/1=RW $H/a/b/ufs; seen 1 $H/a/b/ufs; seen self $H/a/b/ufs; umount $H/a/b/ufs')" $'0\n1'
no_daemon_left
mount -t tmpfs inner "$H/a" && mkdir "$H/a/ufs"
equal "the nearest mount, and no other" \
	"$(customer '"$COWFS" -oprivate $H/low=RO:$H/cow/1=RW $H/a/ufs; seen 1 $H/a/ufs; spread self $H/a; spread self $H; umount $H/a/ufs')" $'0\nprivate\nshared'
no_daemon_left
equal "a mountpoint that is a mount itself" \
	"$(customer '"$COWFS" -oprivate $H/low=RO:$H/cow/1=RW $H/a; seen 1 $H/a; seen self $H/a; umount $H/a')" $'1\n2'
no_daemon_left
umount "$H/a"
equal "a parent that is private already" \
	"$(customer 'mount --make-rprivate /; "$COWFS" -oprivate $H/low=RO:$H/cow/1=RW $H/ufs; seen 1 $H/ufs; seen self $H/ufs; umount $H/ufs')" $'0\n1'
no_daemon_left
equal "a parent that only receives" \
	"$(customer 'mount --make-slave $H; "$COWFS" -oprivate $H/low=RO:$H/cow/1=RW $H/ufs; seen 1 $H/ufs; seen self $H/ufs; spread self $H; umount $H/ufs')" $'0\n1\nprivate'
no_daemon_left

# ---- the recipe: pivot where / is shared -------------------------------------------------------------------------------

cat >recipe <<'R'
mount --make-rshared /
before=$(wc -l </proc/self/mountinfo)
mkdir -p $H/ns/precise/bin $H/ns/cow/1000 && cp /bin/busybox $H/ns/precise/bin && mkdir -p $H/ns/precise/.old_root
unshare -mpf --propagation unchanged --kill-child=KILL bash -c '
	"$COWFS" -ocow,rprivate,chroot=$H/ns,default_permissions,allow_other /precise=RO:/cow/1000=RW $H/ufs || exit 1
	cd $H/ufs && pivot_root . .old_root && cd / && exec /bin/busybox sh -c "echo inside >/made; /bin/busybox umount -l /.old_root; /bin/busybox cat /made"'
echo "$? $(seen self $H/ufs) $(($(wc -l </proc/self/mountinfo) - before)) $(cat $H/ns/cow/1000/made)"
R
equal "pivot_root into it, and the old root off: the machine loses no mount" "$(timeout -k 2 90 unshare -m --propagation private bash recipe 2>&1)" $'inside\n0 0 0 inside'
no_daemon_left

# ---- where it means nothing, or cannot be ------------------------------------------------------------------------------

equal "a container engine means its own mount by it" \
	"$(customer '"$COWFS" -o lowerdir=$H/low,private $H/ufs; seen 1 $H/ufs; spread self $H; umount $H/ufs')" $'1\nshared'
no_daemon_left
cp "$COWFS" host/jail/cowfs && mknod host/jail/dev/fuse c 10 229
refuse "a root directory inside a mount" "private.*\"/mnt\" cannot be made private.*root directory" \
	timeout 10 chroot host/jail /cowfs -o private /low=RO:/up=RW /mnt
refuse "a root directory inside a mount: rprivate" "rprivate.*cannot be made private.*root directory" \
	timeout 10 chroot host/jail /cowfs -o rprivate /low=RO:/up=RW /mnt
equal "a root directory inside a mount: nothing is mounted" "$(seen self "$H/jail/mnt")" 0
equal "a root directory inside a mount: nothing is left in the upper" "$(ls -A host/jail/up)" ""
check "a root directory inside a mount: without the option it mounts" timeout 10 chroot host/jail /cowfs /low=RO:/up=RW /mnt
check "unmounts" unmount "$H/jail/mnt"
exec 5<>/dev/fuse
refuse "a mount of somebody else's" "option 'private': what is mounted already" timeout 10 "$COWFS" -o private "$H/low=RO" /dev/fd/5
exec 5>&-
make_user || fail "no user could be made"
mkdir mine && chown $TEST_UID mine
refuse "an ordinary user" "option 'private': only root" as_user "$COWFS" -o private "$H/low=RO" "$T/mine"
check "in a user namespace: rprivate" unshare -Urm --propagation unchanged sh -c '"$COWFS" -o rprivate $H/low=RO $H/ufs && umount $H/ufs'
check "in a user namespace" unshare -Urm --propagation unchanged sh -c '"$COWFS" -o private $H/low=RO $H/ufs && [ $(grep -c " $H/ufs " /proc/self/mountinfo) = 1 ] && umount $H/ufs'
check "no daemon left" no_daemon_left
equal "the lower is as it was" "$(cat host/low/f)" lower
finish
