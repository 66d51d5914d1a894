#!/bin/bash
# Lower filesystems that tell nothing of themselves, or the same (copies of one image): files of one are never taken for files
# of the other, neither by a copy's inode number nor by its other names, also when they are mounted in another order.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

# Inode numbers and generations are the same in both: what is `one` on the first is `two` on the second.
mkdir image first second ufs
# image KIND: makes first.img and second.img.
image() {
	local size=64M
	rm -f first.img second.img
	[ "$1" != xfs ] || size=320M
	truncate -s $size first.img
	case $1 in
	ext4 | nameless) mkfs.ext4 -q -m 0 first.img ;;
	xfs) mkfs.xfs -q first.img ;;
	esac || return 1
	mount -o loop first.img image || return 1
	mkdir image/{a,b}
	echo data >image/a/one
	ln image/a/one image/a/uno
	ln image/a/one image/b/two
	ln image/a/one image/b/due
	echo single >image/a/alone
	ln image/a/alone image/b/single
	echo sole >image/a/sole
	umount image
	[ "$1" != nameless ] || tune2fs -U clear first.img >/dev/null
	cp first.img second.img
}
# attach IMAGE...: in this order, so that the devices have other numbers when it is another one.
attach() {
	local i options=loop,ro,noatime
	[ $kind != xfs ] || options+=,nouuid
	for i; do mount -o $options "$i.img" "$i" || return 1; done
}
shown() { stat -c '%n %i %h' one uno two due alone single; }
numbers() { (cd ufs && shown | awk '{ print $1, $2 }'); }
both() { union -o cow,allow_other,entry_timeout=0,attr_timeout=0 "$T/first/a=RO:$T/second/b=RO:$T/up=RW" "$T/ufs"; }
off() { unmount ufs && no_daemon_left && umount first second; }

for kind in ext4 nameless xfs; do
	rm -rf up && mkdir up
	check "$kind: an image and its copy" image $kind
	check "$kind: are mounted" attach first second
	check "$kind: a union of both" both
	numbers >before
	equal "$kind: four files, two with two names" "$(awk '{ print $2 }' before | sort | uniq -c | awk '{ print $1 }' | sort | tr '\n' ' ')" "1 1 2 2 "
	for name in alone one; do echo "$name changed" >>ufs/$name; done
	numbers >now
	same "$kind: copies keep their numbers" before now
	equal "$kind: the other name shows the copy" "$(tail -n 1 ufs/uno)" "one changed"
	equal "$kind: the files of the other image are what they were" "$(cat ufs/two ufs/due ufs/single | tr '\n' ' ')" "data data single "
	echo "single changed" >>ufs/single
	echo 2 >/proc/sys/vm/drop_caches
	numbers >now
	same "$kind: so do those of the other image" before now
	for order in "first second" "second first"; do
		check "$kind: it goes" off
		check "$kind: mounted as $order" attach $order
		check "$kind: a union of both" both
		numbers >now
		same "$kind, $order: the numbers are the same" before now
		equal "$kind, $order: copies and their other names" "$(cat ufs/alone ufs/one ufs/uno ufs/single | tr '\n' ' ')" \
			"single alone changed data one changed data one changed single single changed "
		equal "$kind, $order: what was not changed is not" "$(cat ufs/two ufs/due | tr '\n' ' ')" "data data "
	done
	echo "two changed" >>ufs/two
	rm ufs/uno
	equal "$kind: each has its own names" "$(cat ufs/one ufs/due | tr '\n' ' ') $(stat -c %h ufs/one ufs/two | tr '\n' ' ')" \
		"data one changed data two changed  3 4 "
	numbers 2>/dev/null >now
	same "$kind: and numbers" <(grep -v uno before) now
	check "$kind: it goes" off
done

# A mark of the kernel's own, of a filesystem without a uuid: there is only one that it can be of.
kind=nameless
image nameless && attach first && rm -rf up work && mkdir up work
mount -t overlay ov -o "lowerdir=first/a,upperdir=up,workdir=work,xino=on" ufs && echo more >>ufs/sole && umount ufs
check "the kernel has marked a copy" eval 'getfattr -n trusted.overlay.origin up/sole && ! getfattr -n trusted.overlay.cowfs.origin up/sole'
check "a union of one image" union -o cow "$T/first/a=RO:$T/up=RW" "$T/ufs"
wanted=$(stat -c %i first/a/sole)
index() { echo $(($1 & 0xffffffffffffff)); }
equal "the kernel's mark counts" "$(index "$(stat -c %i ufs/sole)")" "$wanted"
unmount ufs
no_daemon_left
attach second
check "of two, nobody knows" union -o cow "$T/first/a=RO:$T/second/b=RO:$T/up=RW" "$T/ufs"
equal "it shows its own number" "$(stat -c %i ufs/sole)" "$(stat -c %i up/sole)"
check "and serves" grep -qx more ufs/sole
check "it goes" off
check "no daemon is left" no_daemon_left
finish
