#!/bin/bash
# A full upper: a copy-up fails with ENOSPC and the lower content stays, deleting works, and after making room all of it works.
# timeout: 300
. "$(dirname "$0")/../lib.sh"

mkdir -p lower/dir ufs
python <<'EOF2'
for n in range(6):
    write_file(f"lower/f{n}", pattern(n, 20 << 20))
write_file("lower/small", pattern("small", 5000))
write_file("lower/dir/f", pattern("dir", 20 << 20))
write_file("lower/dir/g", b"g")
for n in range(50):
    write_file(f"lower/d{n}", b"x" * 100_000)
EOF2
tree lower exact >lower.before

# The blocks that anybody may still have.
free() { stat -f -c %a "$1"; }
session() {
	local type=$1
	loop_fs "$type" "$2" "$T/disk" || { fail "$type: no disk"; return; }
	mkdir disk/upper
	check "$type: mounts" union -o cow,allow_other lower=RO:disk/upper=RW "$T/ufs"
	check "$type: a first copy-up" sh -c 'echo + >>ufs/dir/g'
	head -c 1000000 /dev/urandom >ufs/ballast1
	dd if=/dev/zero of=ufs/ballast bs=1M 2>/dev/null
	check "$type: statfs shows a full disk" test "$(free ufs)" -lt 3000
	dd if=/dev/zero of=ufs/ballast2 bs=4k 2>/dev/null
	sync -f disk
	refuse "$type: a copy-up fails" 'No space left' sh -c 'echo x >>ufs/f0'
	refuse "$type: so does truncate(2) to half" 'No space left' truncate -s 10M ufs/f1
	refuse "$type: and one below a directory that is up" 'No space left' sh -c 'echo x >>ufs/dir/f'
	refuse "$type: and a new file's data" 'No space left' dd if=lower/f5 of=ufs/new bs=1M count=3
	equal "$type: the lower content is shown" "$(sha256sum <ufs/f0) $(sha256sum <ufs/f1) $(sha256sum <ufs/dir/f)" \
		"$(sha256sum <lower/f0) $(sha256sum <lower/f1) $(sha256sum <lower/dir/f)"
	equal "$type: nothing torn is in the upper" "$(cd disk/upper && find . -name 'f[0-9]*' -o -path './dir/f')" ""
	check "$type: a lower file can be deleted" rm ufs/f4
	refuse "$type: it is gone" 'No such file' stat ufs/f4
	if [ "$type" = ext4 ]; then
		# Many marks need room in the directory; a fresh one of ext4 has it, of xfs not.
		check "$type: so can many" sh -c 'rm ufs/d*[0-4]'
	fi
	rm -f ufs/new
	check "$type: a file of the upper can be deleted" rm ufs/ballast ufs/ballast2
	sync -f disk
	before=$(settled free disk)
	check "$type: with room, the copy-up works" sh -c 'echo x >>ufs/f0'
	equal "$type: with the right content" "$(sha256sum <ufs/f0)" "$({ cat lower/f0; echo x; } | sha256sum)"
	check "$type: and truncate" truncate -s 10M ufs/f1
	equal "$type: with the right content" "$(sha256sum <ufs/f1)" "$(head -c 10M lower/f1 | sha256sum)"
	sync -f disk
	taken=$(((before - $(settled free disk)) * $(stat -f -c %S disk) >> 20))
	check "$type: it took the room of these two ($taken MiB), no more" test "$taken" -le 45
	check "$type: unmounts" unmount "$T/ufs"
	no_daemon_left
	equal "$type: no leftover of the failures" "$(find disk/upper/.cowfs -type f -size +8k 2>/dev/null)" ""
	check "$type: mounts again" union -o cow,allow_other lower=RO:disk/upper=RW "$T/ufs"
	refuse "$type: what was deleted stays so" 'No such file' stat ufs/f4
	equal "$type: what failed is whole" "$(sha256sum <ufs/dir/f)" "$(sha256sum <lower/dir/f)"
	check "$type: unmounts" unmount "$T/ufs"
	no_daemon_left
	umount disk
}
session ext4 80M
session xfs 320M

# No inode left: a deletion needs one for its whiteout, and must fail cleanly when it cannot have it, or work by a link.
truncate -s 32M inodes.img && mkfs.ext4 -q -m 0 -N 64 inodes.img && mkdir -p few && mount -o loop inodes.img few
mkdir few/upper
check "few inodes: mounts" union -o cow,allow_other lower=RO:few/upper=RW "$T/ufs"
rm ufs/d0
i=0
while touch "few/fill$i" 2>/dev/null; do i=$((i + 1)); done
refuse "no inode: a copy-up fails" 'No space left' sh -c 'echo x >>ufs/d1'
equal "no inode: the lower is shown" "$(sha256sum <ufs/d1)" "$(sha256sum <lower/d1)"
if rm ufs/d2 2>message; then
	refuse "no inode: a deletion works" 'No such file' stat ufs/d2
else
	check "no inode: a deletion fails with ENOSPC" grep -q 'No space left' message
	check "no inode: and the file stays" test -s ufs/d2
fi
rm few/fill0 few/fill1 few/fill2
check "with inodes all works" sh -c 'echo x >>ufs/d1 && rm -f ufs/d2 ufs/d3 && ! test -e ufs/d2'
check "unmounts" unmount "$T/ufs"
# The sums read the lower itself, which moves its access times.
tree lower exact | sed -E "s/ a-?[0-9]+( |$)/\1/" >lower.after
sed -E -i "s/ a-?[0-9]+( |$)/\1/" lower.before
same "the lower is untouched" lower.before lower.after
finish
