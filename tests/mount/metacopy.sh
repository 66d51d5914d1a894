#!/bin/bash
# A change of attributes, names or links copies no data of a lower file (`metacopy`): whole trees, on a mount, by real
# programs; read and written on by the kernel's overlayfs, both ways; passed and cached files; off where nobody could read it.
# timeout: 360
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
need getfattr=attr setcap=libcap2-bin

blocks() { find "$@" -type f -printf '%b\n' | awk '{ sum += $1 } END { print sum + 0 }'; }
# Blocks that an upper spends on data: an attribute may take a block of its own in each file.
data_blocks() { find "$@" -type f -printf '%b\n' | awk '{ sum += $1 > 8 ? $1 - 8 : 0 } END { print sum + 0 }'; }
marked() { getfattr -R -h -m '^trusted.overlay.metacopy$' "$1" 2>/dev/null | grep -c '^# file'; }
sums() { (cd "$1" && find . -path ./.cowfs -prune -o -type f -print | sort | xargs -d '\n' sha256sum); }
# All attributes but the sizes of directories; times that somebody has moved are the present.
facts() {
	(cd "$1" && find . -mindepth 1 -path ./.cowfs -prune -o -mindepth 1 -printf '%p\t%y %m %U:%G %l\t%y%s\t%T@\n') |
		awk -F'\t' '{ print $1, $2, ($3 ~ /^d/ ? "" : $3), ($4 > 1500000000 ? "now" : $4) }' | sort
}
# What reading, by whomever, may move is the time of access.
untouched() { tree lower exact | sed -E 's/ a-?[0-9]+( |$)/\1/' >"$1"; }
overlay_on() { mount -t overlay none -o "lowerdir=$1,upperdir=$2,workdir=work,redirect_dir=on,metacopy=on,index=off" mnt; }

mkdir lower upper work mnt
mkdir -p lower/tree/{a,b/c} lower/other
for name in tree/{big,a/big,b/big,b/c/big,run} other/{one,two,three,four}; do
	dd if=/dev/urandom of="lower/$name" bs=64k count=16 status=none
done
chmod 755 lower/tree/run
for n in $(seq 40); do seq $((n * 200)) >"lower/tree/b/text$n"; done
: >lower/tree/empty
cp /bin/true lower/tree/capable && setcap cap_net_raw+ep lower/tree/capable
ln lower/other/one lower/other/link
truncate -s 5M lower/other/sparse
find lower -exec touch -h -d '2010-11-12 13:14:15.123456789' {} +
cp -a lower plain
untouched lower.before

check "mounts" union -o cow,allow_other,dev,suid lower=RO:upper=RW mnt
exec 5<mnt/tree/big
chown -R 1234:77 mnt/tree plain/tree
chmod -R u+r,g-w,o= mnt/tree plain/tree
check "chown -R and chmod -R copied no data" [ "$(data_blocks upper/tree -not -name capable)" = 0 ]
check "but for a file with capabilities, which are dropped by chown as on ext4" [ -z "$(getcap mnt/tree/capable)" ]
check "every other file with data is marked" [ "$(marked upper/tree)" = 45 ]
check "du shows what the files are" [ "$(blocks mnt/tree/big)" -ge 2048 ]
equal "an old descriptor reads on" "$(sha256sum <&5)" "$(sha256sum <plain/tree/big)"
exec 5<&-

# The rest of what changes names and attributes.
for d in mnt plain; do
	(
		cd $d
		mv other/two other/second
		mv other/three tree/a/third
		ln other/four tree/four
		touch -d 2001-02-03 other/sparse
		chown 5 other/one
		mv tree/b/c tree/moved-directory
		setfattr -n user.shape -v round tree/run
	)
done
check "renames, links and attributes neither" [ "$(data_blocks upper -not -name capable)" = 0 ]
same_as_plain() {
	sums mnt >sums.now && sums plain >sums.plain && same "contents ($1)" sums.plain sums.now
	facts mnt >facts.now && facts plain >facts.plain && same "attributes ($1)" facts.plain facts.now
}
same_as_plain "at once"
check "reading copied nothing either" [ "$(data_blocks upper -not -name capable)" = 0 ]
echo 2 >/proc/sys/vm/drop_caches
same_as_plain "after drop_caches"
check "a hard link shows the new owner" [ "$(stat -c %u mnt/other/link)" = 5 ]
check "a marked program runs" eval '(cp /bin/true mnt/tree/a/true; chmod 700 mnt/tree/a/true; mnt/tree/a/true)'
rm mnt/tree/a/true
check "unmounts" unmount mnt
no_daemon_left

# The kernel reads it, and goes on.
check "overlayfs mounts it" overlay_on lower upper
# Of cowfs's index it knows nothing.
cp -p --remove-destination plain/other/one plain/other/link && chown 0 plain/other/link
same_as_plain "as overlayfs shows them"
for d in mnt plain; do
	(
		cd $d
		chmod 600 tree/b/text7
		echo more >>tree/b/big
		mv tree/b/text8 other/text
		ln tree/b/text9 tree/a/nine
		chown 9:9 tree/a/nine
	)
done
umount mnt
# cowfs does.
ln -f plain/other/one plain/other/link
check "overlayfs added marks of its own" [ "$(marked upper)" -ge 40 ]

check "mounts again" union -o cow,allow_other,dev,suid lower=RO:upper=RW mnt
same_as_plain "after overlayfs has changed it"
data=$(data_blocks upper)
for d in mnt plain; do
	(
		cd $d
		# Every way of writing.
		echo more >>tree/big
		printf XX | dd of=tree/a/big bs=1 seek=70000 conv=notrunc status=none
		truncate -s 1000 tree/b/text10
		: >tree/b/text11
		/usr/bin/python3 -c '
import mmap, os
fd = os.open("other/second", os.O_RDWR)
mmap.mmap(fd, 0)[5:8] = b"map"' 
		fallocate -n -l 4096 -o 1048576 tree/a/third
		echo linked >>tree/four
		mv tree/a/nine tree/a/ten
	)
done
same_as_plain "after writing"
check "written files are marked no more" [ -z "$(getfattr -h -m '^trusted.overlay.metacopy$' upper/tree/{big,a/big,four,a/third} upper/other/second upper/tree/b/text1{0,1} 2>/dev/null)" ]
check "a shared map and old descriptor of an unwritten copy agree" /usr/bin/python3 - <<-'PY'
	import mmap, os
	old = os.open("mnt/tree/b/text12", os.O_RDONLY)
	view = mmap.mmap(old, 0, prot=mmap.PROT_READ)
	new = os.open("mnt/tree/b/text12", os.O_RDWR)
	os.pwrite(new, b"Z", 0)
	assert os.pread(old, 1, 0) == b"Z", os.pread(old, 1, 0)
	assert view[0:1] == b"Z", view[0:1]
	os.pwrite(new, b"1", 0)
PY
echo >>plain/tree/b/text12; echo >>mnt/tree/b/text12
check "deletes" rm -r mnt/other plain/other
same_as_plain "after deleting"
check "unmounts" unmount mnt
no_daemon_left
check "mounts once more" union -o cow,allow_other,dev,suid lower=RO:upper=RW mnt
same_as_plain "after a remount"
check "unmounts" unmount mnt
no_daemon_left
check "overlayfs mounts that too" overlay_on lower upper
same_as_plain "as overlayfs shows them in the end"
umount mnt

# As a layer under a fresh upper: the data come from further down.
mkdir upper2
check "mounts on top of it" union -o cow,allow_other,dev,suid "lower=RO:upper=RO:upper2=RW" mnt && unmount mnt
no_daemon_left
check "mounts in the right order" union -o cow,allow_other,dev,suid "upper2=RW:upper=RO:lower=RO" mnt
same_as_plain "from a read-only branch"
for d in mnt plain; do (cd $d && chmod 640 tree/b/text20 && echo end >>tree/b/text21 && mv tree/b/text22 tree/a); done
same_as_plain "changed over a read-only branch"
check "unmounts" unmount mnt
no_daemon_left
check "overlayfs mounts these layers" overlay_on upper:lower upper2
same_as_plain "as overlayfs shows all layers"
umount mnt

# A lower file that an administrator replaces: never a mix of new data and an old size.
mkdir upper3
check "mounts" union -o cow,allow_other,dev,suid,attr_timeout=0,entry_timeout=0 "upper3=RW:lower=RO" mnt
untouched lower.after
same "the lower was left as it was" lower.before lower.after
chmod 600 mnt/tree/b/text30
unmount mnt
no_daemon_left
cp lower/tree/b/text30 kept
echo "a new release, larger by far" | cat - lower/tree/b/text40 >new && mv new lower/tree/b/text30
check "mounts" union -o cow,allow_other,dev,suid "upper3=RW:lower=RO" mnt
check "all of the new content is there" cmp mnt/tree/b/text30 lower/tree/b/text30
check "with the size it has" [ "$(stat -c %s mnt/tree/b/text30)" = "$(stat -c %s lower/tree/b/text30)" ]
check "and can be written" eval 'echo more >>mnt/tree/b/text30'
equal "to its end" "$(cat lower/tree/b/text30; echo more)" "$(cat mnt/tree/b/text30)"
unmount mnt
no_daemon_left
cp -p kept lower/tree/b/text30

# Where nobody could read it, it is not made.
for form in metacopy=off redirect=off whiteout=oci whiteout=unionfs userxattr; do
	mkdir "upper-$form"
	check "mounts ($form)" union -o "cow,allow_other,$form" "lower=RO:upper-$form=RW" mnt
	chown 5 mnt/tree/big
	unmount mnt
	no_daemon_left
	check "$form copies the data" cmp lower/tree/big "upper-$form/tree/big"
	check "$form leaves no mark" [ "$(marked "upper-$form")" = 0 ]
done
mkdir upper-engine work-engine
for form in "" ,metacopy=on; do
	check "mounts as an engine does ($form)" union -o "lowerdir=lower,upperdir=upper-engine,workdir=work-engine$form" mnt
	chown 5 mnt/tree/big
	unmount mnt
	no_daemon_left
	check "an engine's upper has the data ($form)" cmp lower/tree/big upper-engine/tree/big
	rm -rf upper-engine/*
done
finish
