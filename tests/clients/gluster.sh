#!/bin/bash
# Branches on GlusterFS, three copies: read-only and writable; a brick killed under load costs nothing; without a quorum every
# answer is an error and none is "no such file"; when the bricks are back the same daemon serves on.
# timeout: 600
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
. "$TEST_DIR/clients/work.bash"
. "$TEST_DIR/clients/gluster.bash"
need glusterd=glusterfs-server ip=iproute2
own_network

G=$T/gl # The volume, as the branches see it.
A=$T/away # The volume, by another client: another machine.
check "a volume" gluster_up || finish
check "is mounted" gluster_mount "$G" || finish
check "twice" gluster_mount "$A" || finish
# of DIR: the daemon of the union on DIR.
of() { pgrep -f -- " $1\$" | head -n 1; }

make_tree "$A/tree"
mkdir -p m up ref && cp -a "$A/tree/." ref/

through_the_union ro "$G/tree"
through_the_union rw ref "$G/up-rw"
through_the_union both "$G/tree" "$G/up-both"
grep gluster /proc/self/mountinfo
finish
