#!/bin/bash
# The marks of unionfs-fuse 1.0 (.unionfs-fuse) both ways with Debian's unionfs-fuse.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr unionfs-fuse=unionfs-fuse

# It has no extended attributes and copies no times of a copied-up file's parents: contents, types, owners, modes, times of files.
LIST=--mtime LIST_PLAIN=
PEER_LACKS=--no-link

peer_writes unionfs-fuse unionfs-fuse change change-renames
cowfs_writes unionfs-fuse unionfs-fuse "" change change-renames
for seed in 1 2 3; do taking_turns unionfs-fuse unionfs-fuse "" "$seed"; done
PEERS=unionfs-fuse
for seed in 11 12; do against_plain unionfs-fuse "" "$seed"; done

finish
