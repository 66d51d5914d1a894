#!/bin/bash
# Overlay marks both ways with the kernel's overlayfs: what it writes cowfs reads, what cowfs writes it reads.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr

# The kernel shows contents, owners, times and attributes exactly.
LIST="--xattr --mtime" LIST_PLAIN=--xattr

peer_writes kernel overlay change change-renames
peer_writes kernel-redirect overlay change change-renames
peer_writes kernel-index overlay change

# Metadata-only copies hold no data: cowfs shows those of the files below; zeros it shows never, nor makes them real.
for round in upper layer; do
	fresh metacopy
	tree_py lower lower
	cp -a lower/. plain
	peer_mount kernel-metacopy && tree_py change mnt && unmount mnt
	(cd plain && tree_py change .)
	check "the kernel left metadata-only copies" [ -n "$(getfattr -R -n trusted.overlay.metacopy upper 2>/dev/null)" ]
	branches=upper=RW:lower=RO
	[ $round = upper ] || { mkdir new && branches=new=RW:upper=RO:lower=RO; }
	check "cowfs mounts metadata-only copies ($round)" union -o cow,allow_other,dev,suid $branches mnt || continue
	check "their files are right ($round)" contents_right plain
	for change in "chmod 600 mnt/chmod" "mv mnt/renamed mnt/moved" "chown 5 mnt/chown" "dd if=/dev/null of=mnt/onto-gone-file conv=notrunc" \
		"mv mnt/moved mnt/renamed"; do
		timeout 10 $change 2>/dev/null
	done
	check "nor do changes make zeros of them ($round)" contents_right plain
	unmount mnt
	no_daemon_left
	check "cowfs mounts them again ($round)" union -o cow,allow_other,dev,suid $branches mnt || continue
	check "nor does a remount ($round)" contents_right plain
	check "a new content is a content ($round)" bash -c 'echo new >mnt/chmod && grep -qx new mnt/chmod'
	check "they can be deleted ($round)" rm mnt/chmod mnt/chown mnt/onto-gone-file mnt/renamed
	unmount mnt
	no_daemon_left
done

# Without redirects plain overlayfs reads cowfs's upper; with them it needs redirect_dir, and for files without data
# (cowfs's default) metacopy too.
cowfs_writes kernel overlay redirect=off change change-renames
cowfs_writes kernel-redirect overlay metacopy=off change change-renames
cowfs_writes kernel-metacopy overlay "" change change-renames
ENGINE_FORM=yes cowfs_writes kernel overlay "" change change-renames

for seed in 1 2; do
	taking_turns kernel overlay redirect=off "$seed"
	taking_turns kernel-redirect overlay metacopy=off "$seed"
	taking_turns kernel-metacopy overlay "" "$seed"
done
PEERS=kernel
for seed in 11 12; do against_plain overlay redirect=off "$seed"; done
PEERS=kernel-redirect
against_plain overlay metacopy=off 13
PEERS=kernel-metacopy
for seed in 13 14; do against_plain overlay "" "$seed"; done

finish
