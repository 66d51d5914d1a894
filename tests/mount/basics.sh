#!/bin/bash
# The mission's own command line, in both orders: copy-up, deletion, creation, renames; the upper takes all, the lower nothing.
. "$(dirname "$0")/../lib.sh"

mkdir -p ns/precise/{etc,dir/sub,rel,old,empty} ns/cow ufs
(
	cd ns/precise || exit
	echo lower >etc/conf
	echo other >etc/other
	echo 1 >dir/a
	echo 2 >dir/sub/b
	echo release >rel/v1
	echo gone >old/file
	ln -s conf etc/link
	ln etc/other etc/hard
	mkfifo etc/fifo
	printf '#!/bin/sh\necho ran\n' >etc/script
	chmod 755 etc/script
	setfattr -n user.note -v kept etc/conf
	setfattr -n trusted.note -v "of root" etc/conf
	setfacl -m u:12:rw etc/conf
	chown 3:4 etc/conf
	touch -d '1961-02-03 04:05:06.789' etc/conf
	touch -d '1970-01-01 00:00:01' dir
	chmod 2750 dir
)
head -c 3000000 /dev/urandom >ns/precise/big
big=$(sha256sum <ns/precise/big)
tree ns/precise exact >lower.before

# One whole session on a union whose branch list is $2, upper ns/cow/$1.
session() {
	local upper=ns/cow/$1
	mkdir "$upper"
	check "$1: mounts" union -o "cow,chroot=$T/ns,default_permissions,allow_other" "$2" "$T/ufs"
	# The root's own attributes are the upper's.
	tree ufs | tail -n +2 >view
	tree ns/precise | tail -n +2 >wanted
	same "$1: a fresh union shows the lower, to the last attribute" view wanted

	check "$1: append" sh -c 'echo more >>ufs/etc/conf'
	equal "$1: the union shows old and new data" "$(cat ufs/etc/conf)" $'lower\nmore'
	equal "$1: the upper has the copy" "$(cat "$upper/etc/conf")" $'lower\nmore'
	equal "$1: the copy kept its owner" "$(stat -c %u:%g ufs/etc/conf)" 3:4
	equal "$1: the copy kept its xattr" "$(getfattr --only-values -n user.note ufs/etc/conf)" kept
	equal "$1: the copy kept its ACL" "$(getfacl -cE ufs/etc/conf | grep user:12)" "$(getfacl -cE ns/precise/etc/conf | grep user:12)"
	equal "$1: only that file was copied" "$(cd "$upper" && find . -path ./.cowfs -prune -o -type f -print)" ./etc/conf

	check "$1: delete a file" rm ufs/etc/other
	refuse "$1: it is gone" 'No such file' cat ufs/etc/other
	equal "$1: its other name stays" "$(cat ufs/etc/hard)" other
	check "$1: delete a tree" rm -r ufs/old
	check "$1: make the directory again" mkdir ufs/old
	equal "$1: it is empty" "$(ls -A ufs/old)" ""
	check "$1: create" sh -c 'echo new >ufs/etc/new'
	equal "$1: the new file is in the upper" "$(cat "$upper/etc/new")" new
	check "$1: a file takes a deleted name" sh -c 'echo again >ufs/etc/other'
	equal "$1: rmdir of a full directory" "$(rmdir ufs/dir 2>&1 | grep -c 'not empty')" 1
	check "$1: chmod of a big lower file" chmod 600 ufs/big
	equal "$1: big is still all there" "$(sha256sum <ufs/big)" "$big"
	equal "$1: a script runs" "$(ufs/etc/script)" ran
	check "$1: rename a lower file" mv ufs/etc/script ufs/etc/program
	equal "$1: it runs under its new name" "$(ufs/etc/program)" ran

	mkdir ufs/next && echo v2 >ufs/next/v2
	check "$1: the deploy swap, first half" mv ufs/rel ufs/rel.old
	check "$1: the deploy swap, second half" mv ufs/next ufs/rel
	equal "$1: the new release holds nothing of the old" "$(ls ufs/rel)" v2
	equal "$1: the old release is whole" "$(cat ufs/rel.old/v1)" release
	check "$1: rename a lower directory" mv ufs/dir ufs/etc/moved
	equal "$1: with what is below it" "$(cat ufs/etc/moved/sub/b)" 2

	# Not the link count of a lower file one of whose names was deleted: the lower's own is shown again after a remount
	# (README, limits).
	tree ufs | sed "/'\/etc\/hard'/s/ n[0-9]* / /" >view.before
	check "$1: unmounts" unmount "$T/ufs"
	check "$1: the daemon ends" no_daemon_left
	equal "$1: the mountpoint is empty again" "$(ls -A ufs)" ""
	check "$1: mounts again" union -o "cow,chroot=$T/ns,default_permissions,allow_other" "$2" "$T/ufs"
	tree ufs | sed "/'\/etc\/hard'/s/ n[0-9]* / /" >view.after
	same "$1: a remount shows the same" view.before view.after
	check "$1: unmounts again" unmount "$T/ufs"
	tree ns/precise exact >lower.after
	same "$1: the lower is as it was, inode for inode" lower.before lower.after
}

session ro-first /precise=RO:/cow/ro-first=RW
session rw-first /cow/rw-first=RW:/precise=RO
tree ns/cow/ro-first | cut -d' ' -f1-3 >upper.1
tree ns/cow/rw-first | cut -d' ' -f1-3 >upper.2
same "both orders leave the same upper" upper.1 upper.2

# No writable branch, several lowers, words in either case, no suffix.
mkdir -p l1 l2 'odd:na,me=x'
echo top >l1/both; echo bottom >l2/both; echo two >l2/two; echo odd >'odd:na,me=x/odd'
check "read-only union of two" union l1=ro:l2 "$T/ufs"
equal "the first listed is on top" "$(cat ufs/both ufs/two | tr '\n' ' ')" "top two "
refuse "it cannot be written" 'Read-only file system' touch ufs/new
check "read-only union unmounts" unmount "$T/ufs"
mkdir u2
check "escapes and lower-case words" union -o allow_other 'l1=ro:u2=rw:odd\:na\,me\=x:l2=RO' "$T/ufs"
equal "all branches are there" "$(cat ufs/both ufs/odd ufs/two | tr '\n' ' ')" "top odd two "
check "and the RW branch takes writes" sh -c 'echo x >ufs/x && test -e u2/x'
check "unmounts" unmount "$T/ufs"

# As a container engine calls it: empty options, a relative lower directory, a workdir.
mkdir u3 w3
check "lowerdir=, upperdir=, workdir= with empty options" union -o "lowerdir=l1:l2,upperdir=$T/u3,workdir=$T/w3,," "$T/ufs"
equal "the layers are in order" "$(cat ufs/both)" top
rm ufs/both ufs/two && mkdir ufs/d
check "unmounts" unmount "$T/ufs"
equal "the layer holds whiteouts and nothing of ours" \
	"$(cd u3 && stat -c '%n %F %t:%T' -- * .[!.]* 2>/dev/null | sort)" \
	"$(printf 'both character special file 0:0\nd directory 0:0\ntwo character special file 0:0\n')"
check "lowerdir= alone is read-only" union -o lowerdir=l1:l2 "$T/ufs"
refuse "indeed" 'Read-only file system' touch ufs/new
check "unmounts" unmount "$T/ufs"

# As mount(8) calls it from an fstab line.
mkdir u4
check "as from fstab" env -i HOME=/root "$COWFS" l1=RO:u4=RW "$T/ufs" -o rw,cow,allow_other,dev,suid
check "with dev" sh -c '! grep " $T/ufs " /proc/self/mountinfo | grep -q nodev'
check "with suid" sh -c '! grep " $T/ufs " /proc/self/mountinfo | grep -q nosuid'
equal "its type and length" "$(awk -v d="$T/ufs" '$5 == d { print ($0 ~ / - fuse.cowfs /), (length($0) < 1000) }' /proc/self/mountinfo)" "1 1"
check "unmounts" unmount "$T/ufs"
check "without them" union l1=RO:u4=RW "$T/ufs"
check "nosuid and nodev are the default" sh -c 'grep " $T/ufs " /proc/self/mountinfo | grep nodev | grep -q nosuid'
check "unmounts" unmount "$T/ufs"
check "no daemon is left" no_daemon_left
finish
