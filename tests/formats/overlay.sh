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

# Without redirects plain overlayfs reads cowfs's upper; with them (cowfs's default) its redirect_dir and metacopy do.
cowfs_writes kernel overlay redirect=off change change-renames
cowfs_writes kernel-redirect overlay "" change change-renames
ENGINE_FORM=yes cowfs_writes kernel overlay "" change change-renames

for seed in 1 2; do
	taking_turns kernel overlay redirect=off "$seed"
	taking_turns kernel-redirect overlay "" "$seed"
done
PEERS=kernel
for seed in 11 12; do against_plain overlay redirect=off "$seed"; done
PEERS=kernel-redirect
for seed in 13 14; do against_plain overlay "" "$seed"; done

finish
