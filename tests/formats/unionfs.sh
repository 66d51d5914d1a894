#!/bin/bash
# The marks of every unionfs-fuse but 1.0 (.unionfs): as 1.0 writes them but for the directory's name, and by hand.
# timeout: 300
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/formats/peers.bash"
need getfattr=attr unionfs-fuse=unionfs-fuse

LIST=--mtime LIST_PLAIN=
PEER_LACKS=--no-link
# Debian has 1.0 only; peers.bash gives it the marks under its name and takes them back.
MARKS_OF_37=yes

peer_writes unionfs unionfs change change-renames
cowfs_writes unionfs unionfs "" change change-renames
taking_turns unionfs unionfs "" 1
PEERS=unionfs
against_plain unionfs "" 11

# By hand: what formats.md section 2 says one by one.
fresh by-hand
mkdir -p lower/{a/b,d,e,stays} upper/.unionfs/{a,d} upper/{a,e}
touch lower/{f,g} lower/a/{x,y} lower/a/b/z lower/d/in lower/e/old lower/stays/s upper/e/new upper/own
touch lower/own lower/x_HIDDEN~ upper/real_HIDDEN~ lower/real lower/notes
install -m 600 /dev/null upper/.unionfs/f_HIDDEN~
install -m 600 /dev/null upper/.unionfs/a/x_HIDDEN~
install -m 600 /dev/null upper/.unionfs/own_HIDDEN~
install -m 600 /dev/null upper/.unionfs/x_HIDDEN~_HIDDEN~
mkdir -m 700 upper/.unionfs/d_HIDDEN~ upper/.unionfs/e_HIDDEN~ upper/.unionfs/a/b_HIDDEN~
touch upper/.unionfs/d/in_HIDDEN~ upper/.unionfs/notes upper/.unionfs/_HIDDEN~
cat >want <<'TXT'
a
a/y
e
e/new
g
notes
own
real
real_HIDDEN~
stays
stays/s
TXT
check "cowfs mounts a hand-made .unionfs" cowfs_mount
(cd mnt && find . -mindepth 1 | cut -c3- | sort) >got
same "each mark hides what it should, and nothing else" want got
refuse "the marks cannot be reached by name" "no such file" stat mnt/.unionfs
refuse "nor a mark in them" "no such file" cat mnt/.unionfs/f_HIDDEN~
check "a deleted file's name can be used" touch mnt/f
check "a directory is made on a hidden one" mkdir mnt/d
equal "and is empty" "$(ls -A mnt/d)" ""
check "a directory is deleted again" rmdir mnt/d
check "cowfs unmounts" unmount mnt
check "cowfs mounts again" cowfs_mount
equal "f is there, d is not" "$(cd mnt && ls -d f d 2>/dev/null)" f
check "cowfs unmounts" unmount mnt
finish
