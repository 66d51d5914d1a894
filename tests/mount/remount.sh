#!/bin/bash
# `mount -o remount` changes the flags of a mounted union as it does those of ext4, and starts no second daemon.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

# mount(8) finds cowfs for the types fuse.cowfs and cowfs.
mkdir .test/bin && cp .test/cowfs .test/bin && mount --bind .test/bin /usr/local/bin
mkdir .test/sbin .test/sbin.work
mount -t overlay sbin -o "lowerdir=/usr/sbin,upperdir=$T/.test/sbin,workdir=$T/.test/sbin.work" /usr/sbin
ln -s /usr/local/bin/cowfs /usr/sbin/mount.cowfs

# flags DIR: the mount's own, then the filesystem's.
flags() { awk -v dir="$1" '$5 == dir { split($0, half, " - "); split(half[2], all, " "); print $6 " | " all[3] }' /proc/self/mountinfo; }
table() { cat /proc/self/mountinfo; }
running() { pgrep -x cowfs | sort | tr '\n' ' '; }

mkdir low up mnt
M=$T/mnt
echo lower >low/f
echo other >low/g

# ---- a union and ext4, side by side ------------------------------------------------------------------------------------

check "an ext4 to compare with" loop_fs ext4 64M ext
echo lower >ext/f
echo other >ext/g
check "mounts" mount -t fuse.cowfs -o cow,allow_other "$T/low=RO:$T/up=RW" "$M"
D=$(running)
equal "one daemon" "$(wc -w <<<"$D")" 1

for dir in ext mnt; do
	check "$dir: remount,ro" timeout 60 mount -o remount,ro "$T/$dir"
	equal "$dir: mount and filesystem are read-only" "$(flags "$T/$dir" | sed -E 's/^(ro),.* \| (ro).*/\1 \2/')" "ro ro"
	equal "$dir: reads" "$(cat $dir/f)" lower
	refuse "$dir: no write" 'read-only file system' sh -c "echo x >$dir/f"
	refuse "$dir: no append" 'read-only file system' sh -c "echo x >>$dir/g"
	refuse "$dir: no new file" 'read-only file system' touch "$dir/new"
	refuse "$dir: no new directory" 'read-only file system' mkdir "$dir/newdir"
	refuse "$dir: no delete" 'read-only file system' rm "$dir/g"
	refuse "$dir: no chmod" 'read-only file system' chmod 600 "$dir/f"
	refuse "$dir: no rename" 'read-only file system' mv "$dir/f" "$dir/h"
	refuse "$dir: no link" 'read-only file system' ln "$dir/f" "$dir/h"
	refuse "$dir: no xattr" 'read-only file system' setfattr -n user.a -v b "$dir/f"
	check "$dir: remount,ro once more" timeout 60 mount -o remount,ro "$T/$dir"
	check "$dir: remount,rw" timeout 60 mount -o remount,rw "$T/$dir"
	check "$dir: writes again" sh -c "echo more >>$dir/f && rm $dir/g && touch $dir/new"
	equal "$dir: content" "$(cat $dir/f)" $'lower\nmore'

	exec 7>>$dir/f
	refuse "$dir: a file open for writing makes it busy" 'busy' timeout 60 mount -o remount,ro "$T/$dir"
	check "$dir: and it stays writable" sh -c "echo 7 >>$dir/f"
	exec 7>&-
	check "$dir: closed, it is free" timeout 60 mount -o remount,ro "$T/$dir"
	check "$dir: back" timeout 60 mount -o remount,rw "$T/$dir"
	exec 7<$dir/new
	rm $dir/new
	refuse "$dir: a file open and deleted makes it busy" 'busy' timeout 60 mount -o remount,ro "$T/$dir"
	exec 7<&-
	check "$dir: closed, it is free" timeout 60 mount -o remount,ro "$T/$dir"
	check "$dir: back" timeout 60 mount -o remount,rw "$T/$dir"
done
equal "the same daemon serves" "$(running)" "$D"
equal "the lower is as it was" "$(cat low/f low/g)" $'lower\nother'

# ---- flags -------------------------------------------------------------------------------------------------------------

equal "mount.fuse: suid and dev" "$(flags "$M")" "rw,relatime | rw,user_id=0,group_id=0,default_permissions,allow_other"
for row in "noexec:rw,noexec,relatime" "nosuid:rw,nosuid,noexec,relatime" "exec,ro:ro,nosuid,relatime" \
	"rw,nodev:rw,nosuid,nodev,relatime" "suid,dev:rw,relatime" "noatime,nodiratime:rw,noatime,nodiratime" \
	"diratime:rw,noatime" "atime:rw,relatime"; do
	check "remount,${row%%:*}" timeout 60 mount -o "remount,${row%%:*}" "$M"
	equal "remount,${row%%:*}: flags" "$(flags "$M" | cut -d' ' -f1)" "${row#*:}"
done
mount -o remount,noatime "$M" 2>said
equal "remount,noatime: what it cannot reach it says" "$(grep -c 'access times of its branch go on as they were mounted' said)" 1
mount -o remount,ro "$M" 2>said
equal "and says it no more when it is so" "$(cat said)" ""
mount -o remount,rw,atime "$M" 2>/dev/null
check "remount,sync" timeout 60 mount -o remount,sync "$M"
check "remount,sync: it is" grep -q 'rw,sync,' <(flags "$M")
check "remount,async" timeout 60 mount -o remount,async "$M"
equal "remount,async: it is" "$(flags "$M")" "rw,relatime | rw,user_id=0,group_id=0,default_permissions,allow_other"
cp /bin/true mnt/prog
mount -o remount,noexec "$M"
refuse "noexec holds" 'permission denied' mnt/prog
mount -o remount,exec "$M"
check "exec again" mnt/prog
check "remount,bind,ro changes this mount only" timeout 60 mount -o remount,bind,ro "$M"
equal "remount,bind,ro: flags" "$(flags "$M")" "ro,relatime | rw,user_id=0,group_id=0,default_permissions,allow_other"
check "remount,rw" timeout 60 mount -o remount,rw "$M"
equal "still the same daemon" "$(running)" "$D"

# ---- called in other ways ----------------------------------------------------------------------------------------------

check "with a source and a type" timeout 60 mount -t fuse.cowfs -o remount,ro,nosuid some:thing "$M"
equal "with a source and a type: flags" "$(flags "$M" | cut -d' ' -f1)" ro,nosuid,relatime
check "as mount.cowfs" timeout 60 mount -t cowfs -o remount,rw some:thing "$M"
equal "as mount.cowfs: flags" "$(flags "$M" | cut -d' ' -f1)" rw,relatime
check "by hand" timeout 60 "$COWFS" x mnt -o ro,relatime,remount,user_id=0,group_id=0,rootmode=40000,fd=3,max_read=4096,blksize=512,default_permissions,allow_other
equal "by hand: what is not named is off" "$(flags "$M" | cut -d' ' -f1)" ro,nosuid,nodev,relatime
ln -s mnt link
check "through a symlink, from inside" sh -c "cd mnt && timeout 60 '$COWFS' -o remount,rw,suid,dev ../link"
equal "through a symlink: flags" "$(flags "$M" | cut -d' ' -f1)" rw,relatime
echo "$T/low=RO:$T/up=RW $M fuse.cowfs cow,allow_other,nosuid,chroot=/ 0 0" >.test/fstab
mount --bind .test/fstab /etc/fstab
check "a line of /etc/fstab" timeout 60 mount -o remount,ro "$M"
equal "a line of /etc/fstab: flags" "$(flags "$M" | cut -d' ' -f1)" ro,nosuid,relatime
check "and back" timeout 60 mount -o remount,rw,suid "$M"
umount /etc/fstab
equal "mount -f changes nothing" "$(flags "$M"; /usr/sbin/mount.cowfs x "$M" -f -o ro,remount; flags "$M")" "$(flags "$M"; flags "$M")"
equal "nothing was started" "$(running)" "$D"

# ---- refusals: one line, and nothing changes ---------------------------------------------------------------------------

mkdir mnt/sub plain
touch file
mount -t tmpfs none "$T/plain"
table >before
refuse "not a mount" "'?/?.*mnt/sub\"?: nothing is mounted there" "$COWFS" x mnt/sub -o remount,ro
refuse "not a union" 'no union \(tmpfs' "$COWFS" x plain -o remount,ro
refuse "an ordinary directory" 'nothing is mounted there' "$COWFS" x low -o remount,ro
refuse "missing" 'does not exist' "$COWFS" x nowhere -o remount,ro
refuse "a file" 'not a directory' "$COWFS" x file -o remount,ro
refuse "another type" 'fuse.cowfs, not fuse.other' "$COWFS" x mnt -o remount,ro,subtype=other
refuse "an unknown option" "unknown option 'rx'" "$COWFS" x mnt -o remount,rx
refuse "no mountpoint" 'no mountpoint given' "$COWFS" -o remount,ro
make_user || fail "no user could be made"
refuse "an ordinary user" 'not permitted' as_user "$COWFS" x "$M" -o remount,ro
table >after
sed -i '/\.test\/\(passwd\|group\|fuse.conf\|dev\)/d; / \/etc\/\| \/dev\/fuse /d' before after
same "nothing has changed" before after
equal "nothing was started by what was refused" "$(running)" "$D"
umount plain

# ---- other unions ------------------------------------------------------------------------------------------------------

check "unmounts" unmount "$M"
no_daemon_left
check "a union without an upper" union -o allow_other low=RO "$M"
check "a union without an upper: remount,rw" timeout 60 mount -o remount,rw "$M"
refuse "a union without an upper: nothing is written" 'read-only file system' touch mnt/x
refuse "a union without an upper: nothing is deleted" 'read-only file system' rm mnt/f
check "unmounts" unmount "$M"
check "mounted with ro" union -o ro low=RO:up=RW "$M"
check "mounted with ro: remount,rw" timeout 60 mount -o remount,rw "$M"
check "mounted with ro: written" touch mnt/x
D=$(daemons)
stop $D
# mount(8) itself looks at the mountpoint, and waits.
check "a stopped daemon does not matter" timeout -k 1 30 "$COWFS" x "$M" -o remount,ro
kill -CONT $D
refuse "a stopped daemon: it took effect" 'read-only file system' touch mnt/y
kill -KILL $D
no_daemon_left
check "nor does a dead one" timeout 30 "$COWFS" x "$M" -o remount,rw
check "unmounts" unmount "$M"
check "a union of a user" as_user sh -c 'mkdir /tmp/cowfs-remount.$$ && cd /tmp/cowfs-remount.$$ && mkdir l u m && "$COWFS" l=RO:u=RW m && pwd >"$T/.test/where"'
U=$(cat .test/where)
check "a union of a user: root remounts it" timeout 30 mount -o remount,ro "$U/m"
refuse "a union of a user: it is read-only" 'read-only file system' as_user touch "$U/m/x"
equal "a union of a user: stays nosuid, nodev" "$(flags "$U/m" | cut -d' ' -f1)" ro,nosuid,nodev,relatime
umount "$U/m"
rm -rf "$U"
check "in a user namespace" unshare -Urm sh -c "'$COWFS' low=RO:up=RW mnt && '$COWFS' x mnt -o remount,ro && ! touch mnt/z && '$COWFS' x mnt -o remount,rw && touch mnt/z && umount mnt"

# ---- mount.cowfs: suid and dev, as mount(8) mounts everything ----------------------------------------------------------

for row in "rw:rw,relatime" "nosuid:rw,nosuid,relatime" "nodev:rw,nodev,relatime" "nosuid,nodev,noexec:rw,nosuid,nodev,noexec,relatime"; do
	check "mount -t cowfs -o ${row%%:*}" mount -t cowfs -o "${row%%:*}" "$T/low=RO:$T/up=RW" "$M"
	equal "mount -t cowfs -o ${row%%:*}: flags" "$(flags "$M" | cut -d' ' -f1)" "${row#*:}"
	check "unmounts" unmount "$M"
done
check "called by name" union low=RO:up=RW "$M"
equal "called by name: nosuid, nodev" "$(flags "$M" | cut -d' ' -f1)" rw,nosuid,nodev,relatime
check "unmounts" unmount "$M"

check "no daemon left" no_daemon_left
finish
