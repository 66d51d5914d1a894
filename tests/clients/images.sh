#!/bin/bash
# Images as the lower: a zip by fuse-zip, squashfs and erofs by loop mounts. Written to through the union; the image is what it
# was, to the last byte, and free again when the union has gone.
# timeout: 360
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/work.bash"
need fuse-zip=fuse-zip zip=zip mksquashfs=squashfs-tools mkfs.erofs=erofs-utils setfattr=attr setcap=libcap2-bin

# ---- what is in the images ---------------------------------------------------------------------------------------------

make_tree tree
(cd tree && zip -q -r "$T/image.zip" .) || fail "a zip cannot be made"

# ---- a zip -------------------------------------------------------------------------------------------------------------

sha256sum image.zip >image.zip.sum
mkdir zip
check "fuse-zip mounts" fuse-zip -r image.zip zip
through_the_union zip zip
check "a union on it, once more" union -o cow,allow_other zip=RO:upper-zip=RW ufs
equal "of it all is deleted" "$(ls -A ufs)" ""
check "unmounts" unmount ufs

# Its daemon dies: what was there must not look deleted. What the upper has is served on.
mkdir upper-dead
check "a union on a zip" union -o cow,allow_other,entry_timeout=0,attr_timeout=0,negative_timeout=0 zip=RO:upper-dead=RW ufs
echo mine >ufs/mine
kill -KILL "$(pgrep -x fuse-zip)"
refuse "its daemon has died: a file of the zip" 'not connected|aborted' timeout 5 cat ufs/kept
refuse "a name that was never there is no less unsure" 'not connected|aborted' timeout 5 cat ufs/never
refuse "nothing can be made blindly" 'not connected|aborted' timeout 5 touch ufs/kept
equal "what the upper has is served" "$(timeout 5 cat ufs/mine)" mine
check "unmounts" unmount ufs
umount zip
check "mounted anew" fuse-zip -r image.zip zip
check "a union on it" union -o cow,allow_other zip=RO:upper-dead=RW ufs
equal "has it all" "$(cat ufs/mine ufs/kept | tr '\n' ' ')" "mine image kept "
check "unmounts" unmount ufs

# Writable itself: the union still changes nothing.
umount zip
check "a zip mounted for writing" fuse-zip image.zip zip
check "a union on it" union -o cow,allow_other zip=RO:upper-dead=RW ufs
check "is written to" work ufs
check "unmounts" unmount ufs
umount zip
for i in {1..300}; do pgrep -x fuse-zip >/dev/null || break; sleep 0.1; done
check "the zip is what it was, to the last byte" sha256sum -c --quiet image.zip.sum

# A user's zip, by whom root is kept out: that is said, and nothing looks deleted.
check "a user is made" make_user
mkdir home && chown "$TEST_UID:$TEST_UID" home && as_user mkdir home/zip home/upper home/ufs
as_user sh -c 'cp -r "$T/tree" "$T/home/tree" && cd "$T/home/tree" && zip -q -r ../image.zip .' || fail "the user cannot make a zip"
check "a user mounts a zip" as_user fuse-zip -r "$T/home/image.zip" "$T/home/zip"
refuse "root's union on it says why not" 'permission|denied' "$COWFS" -o cow home/zip=RO:upper-dead=RW ufs
equal "and mounts nothing" "$(is_mounted ufs && echo mounted)" ""
check "the user's own works" as_user timeout 20 "$COWFS" -o cow "$T/home/zip=RO:$T/home/upper=RW" "$T/home/ufs"
check "and is written to" as_user sh -c 'cd "$T/home/ufs" && echo more >>appended && rm -r dir && mkdir dir && mv swap/old swap/new && cat appended && ls dir'
equal "what is below stays" "$(as_user sh -c 'cd "$T/home/zip" && cat appended && ls dir swap | tr "\n" " "')" "image appended
dir: a sub  swap: old "
check "he unmounts it" as_user fusermount3 -u "$T/home/ufs"
check "the daemon goes" no_daemon_left
check "and the zip" as_user fusermount3 -u "$T/home/zip"
check "no daemon is left" no_daemon_left

# ---- squashfs and erofs ------------------------------------------------------------------------------------------------

# These hold what a zip cannot.
ln tree/kept tree/dir/link
ln -s ../kept tree/dir/symlink
mknod tree/null c 1 3
mkfifo tree/fifo
chown 1000:1001 tree/appended && chmod 2750 tree/away
setfattr -n user.note -v text tree/kept
cp /bin/true tree/capable && setcap cap_net_raw+ep tree/capable
truncate -s 5M tree/sparse
mksquashfs tree image.squashfs -quiet -no-progress >/dev/null || fail "a squashfs cannot be made"
mkfs.erofs image.erofs tree >/dev/null 2>&1 || fail "an erofs cannot be made"

for type in squashfs erofs; do
	sha256sum "image.$type" >"image.$type.sum"
	mkdir "$type"
	check "$type: is mounted by a loop device" mount -t "$type" -o loop,ro "image.$type" "$type"
	loop=$(findmnt -n -o SOURCE "$T/$type")
	through_the_union "$type" "$type"
	mkdir "upper-$type-2" ufs2 2>/dev/null
	check "$type: two unions share it" eval 'mkdir -p up1 && union -o cow,allow_other,suid,dev $type=RO:up1=RW ufs && union -o cow,allow_other,suid,dev $type=RO:upper-$type-2=RW ufs2'
	echo one >>ufs/dir/link
	equal "$type: hard links stay one file" "$(cat ufs/kept; stat -c %h ufs/kept)" "image kept
one
2"
	equal "$type: the other union sees nothing of it" "$(cat ufs2/kept)" "image kept"
	equal "$type: a copy keeps attributes, owner and mode" \
		"$(getfattr --only-values -n user.note ufs/kept; chmod g-w ufs/appended ufs/away; stat -c ' %u:%g %a' ufs/appended ufs/away | tr -d '\n')" "text 1000:1001 644 0:0 2750"
	touch ufs/capable ufs/sparse
	equal "$type: and capabilities" "$(getcap ufs/capable)" "ufs/capable cap_net_raw=ep"
	# erofs cannot tell its holes.
	[ "$type" = erofs ] || equal "$type: and holes" "$([ "$(stat -c %b ufs/sparse)" -lt 100 ] && stat -c %s ufs/sparse)" 5242880
	equal "$type: devices, symlinks, fifos" "$(stat -c '%F' ufs/null ufs/dir/symlink ufs/fifo | tr '\n' ' '; echo x >ufs/null; cat ufs/dir/symlink | head -n 1)" "character special file symbolic link fifo image kept"
	check "$type: the first unmounts" unmount ufs
	equal "$type: the second serves" "$(sha256sum <ufs2/big)" "$(sha256sum <"$type/big")"
	check "$type: the second unmounts" unmount ufs2
	check "$type: no daemon is left" no_daemon_left
	check "$type: the image unmounts" umount "$type"
	equal "$type: and its loop device is free" "$(losetup -n -O NAME -l | grep -x "$loop")" ""
	check "$type: it is what it was, to the last byte" sha256sum -c --quiet "image.$type.sum"
	rm -rf up1
done
finish
