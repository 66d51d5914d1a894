#!/bin/bash
# What fuse-overlayfs 1.x (Debian) writes, with overlay marks and with .wh. files, cowfs reads; and the reverse.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr fuse-overlayfs=fuse-overlayfs

LIST="--xattr --mtime" LIST_PLAIN=--xattr

# It opens a FIFO while it lists, and waits for ever; its hard links are copies.
PEER_LACKS="--no-mkfifo --no-link"

# It finds names by look-up that its own listing hides, so only cowfs's listings are held against look-ups.
peer_writes fuse-overlayfs overlay change change-renames
peer_writes fuse-overlayfs-wh oci change change-renames

# It follows neither redirects nor metadata-only copies, and shares the work directory: the form of a container engine.
export ENGINE_FORM=yes
cowfs_writes fuse-overlayfs overlay "" change change-renames
cowfs_writes fuse-overlayfs-wh oci "" change change-renames
for seed in 1 2; do
	taking_turns fuse-overlayfs overlay "" "$seed"
	taking_turns fuse-overlayfs-wh oci "" "$seed"
done
PEERS=fuse-overlayfs
against_plain overlay "" 11
PEERS=fuse-overlayfs-wh
against_plain oci "" 12

finish
