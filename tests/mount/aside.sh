#!/bin/bash
# xattr_permissions=: owner, group and mode stand in an attribute. What is shown, stored, copied up, passed on to new objects,
# taken away by a write; by root, and by a daemon that has no right to make anything another's.
# timeout: 120
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
need getfattr=attr setfacl=acl strace=strace

KEY=user.containers.override_stat
as() { setpriv --reuid="$1" --regid="$2" --clear-groups -- "${@:3}"; }
# What is shown, what the attribute says, what the inode says.
shown() { (cd ufs && stat -c '%n %u:%g %a' "$@" | tr '\n' ' '); }
stored() { (cd upper && for name; do echo -n "$name $(getfattr -h --only-values -n "${K-$KEY}" "$name" 2>/dev/null) "; done); }
inode() { (cd upper && stat -c '%n %u:%g %a' "$@" | tr '\n' ' '); }
mount_it() { union -o "cow,allow_other,suid,dev,xattr_permissions=${1-2}" upper=RW:layer=RO:lower=RO ufs; }

# `lower` is like any other; `layer` is as podman's force_mask makes them.
mkdir -p lower/dir layer upper ufs
echo five >lower/five && chown 5:6 lower/five && chmod 4751 lower/five && setfattr -n user.note -v kept lower/five
echo linked >lower/h1 && ln lower/h1 lower/h2
setfacl -m u:9:r,g:8:rw lower/dir && setfacl -d -m u:9:rwx lower/dir
ln -s five lower/link && chown -h 5:6 lower/link
mkfifo lower/fifo && chown 5:6 lower/fifo
setfattr -n $KEY -v 1:2:777 lower/h1
setfattr -n security.fuseoverlayfs.override_stat -v 1:2:777 lower/five
aside() { setfattr -n $KEY -v "$1" "layer/$2" && chmod 755 "layer/$2"; }
mkdir layer/private layer/group
for file in private/file secret tty disk pipe socket odd without; do echo "$file" >layer/$file; done
: >layer/tty
chmod 640 layer/without
aside 0:0:0755 . && aside 7:8:0700:dir private && aside 7:8:100600 private/file && aside 7:8:04711 secret && aside 0:50:42775 group
aside 0:5:0620:char-5-1 tty && aside 0:6:0660:block-8-0 disk && aside 1:1:0600:pipe pipe && aside 1:1:0600:socket socket
aside 0:0:nine odd
# More than one READDIR answers; the kernel asks for the attributes of the first ones only.
/usr/bin/python3 - $KEY <<'PY'
import os, sys
os.mkdir("layer/many")
for n in range(2000):
    os.close(os.open(f"layer/many/{n}", os.O_CREAT | os.O_WRONLY))
    os.setxattr(f"layer/many/{n}", sys.argv[1], b"0:0:600:pipe")
PY
tree lower exact >lower.before
tree layer exact >layer.before

# ---- reading -----------------------------------------------------------------------------------------------------------

check "mounts" mount_it
equal "a layer's attributes are shown" "$(shown private private/file secret group)" "private 7:8 700 private/file 7:8 600 secret 7:8 4711 group 0:50 2775 "
equal "without one, the inode's" "$(shown without five h1)" "without 0:0 640 five 5:6 4751 h1 0:0 644 "
equal "devices that are plain files" "$(cd ufs && stat -c '%n %F %t,%T %u:%g %a' tty disk pipe socket | tr '\n' ';')" \
	"tty character special file 5,1 0:5 620;disk block special file 8,0 0:6 660;pipe fifo 0,0 1:1 600;socket socket 0,0 1:1 600;"
equal "a listing says the same" "$(/usr/bin/python3 -c '
import os
kinds = {e.name: (e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False)) for e in os.scandir("ufs")}
print(*(kinds[name] for name in ("tty", "pipe", "secret", "group")))')" "(False, False) (False, False) (True, False) (False, True)"
equal "a long one too" "$(/usr/bin/python3 -c 'import os; print(sum(e.is_file(follow_symlinks=False) for e in os.scandir("ufs/many")))')" 0
refuse "an attribute that makes no sense is not guessed at" 'Input/output error' stat ufs/odd
check "and nothing else suffers" ls ufs
check "whose it is may read it" as 7 8 cat ufs/private/file
refuse "the others may not, whatever the inode says" 'Permission denied' as 9 9 cat ufs/private/file
equal "the attribute is not shown" "$(getfattr -d -m - ufs/secret ufs/h1 2>/dev/null)" ""
equal "and cannot be asked for" "$(getfattr --only-values -n $KEY ufs/secret 2>&1 | grep -c 'No such attribute')" 1
for key in $KEY user.fuseoverlayfs.override_stat security.fuseoverlayfs.override_stat; do
	refuse "$key cannot be set" 'not permitted' setfattr -n $key -v 0:0:4777 ufs/secret
	refuse "$key cannot be removed" 'not permitted|No such attribute' setfattr -x $key ufs/secret
done
refuse "ACLs are not honoured" 'not supported' setfacl -m u:9:r ufs/five
equal "and not shown" "$(getfacl -pnc ufs/dir | grep -c ':9:')" 0

# ---- changing what is there --------------------------------------------------------------------------------------------

check "changed" sh -c 'cd ufs && chown 1000:1001 without && chmod 1640 without && chgrp 60 private && touch secret && echo more >>five && chmod 700 tty'
equal "shown" "$(shown without private secret five tty)" "without 1000:1001 1640 private 7:60 700 secret 7:8 4711 five 5:6 4751 tty 0:5 700 "
equal "stored" "$(stored without private secret five tty)" "without 1000:1001:1640 private 7:60:700 secret 7:8:4711 five 5:6:4751 tty 0:5:700:char-5-1 "
equal "the inodes say nothing" "$(inode without private secret five)" "without 0:0 600 private 0:0 700 secret 0:0 600 five 0:0 600 "
equal "and no other such attribute comes with them" "$(getfattr -m override_stat upper/five 2>/dev/null | grep -c override_stat)" 1
equal "other attributes are carried" "$(getfattr --only-values -n user.note ufs/five)" kept
equal "symlinks and FIFOs keep theirs" "$(chown -h 3:4 ufs/link; chown 3:4 ufs/fifo; chmod 601 ufs/fifo; shown link fifo; inode link fifo)" \
	"link 3:4 777 fifo 3:4 601 link 3:4 777 fifo 3:4 601 "
equal "one name of two" "$(chown 8:9 ufs/h1; chmod 4700 ufs/h2; shown h1 h2; stat -c %h ufs/h1)" "h1 8:9 4700 h2 8:9 4700 2"
check "renamed" sh -c 'mv ufs/secret ufs/private/moved && mv ufs/private ufs/private2'
equal "with what they have" "$(shown private2 private2/moved private2/file)" "private2 7:60 700 private2/moved 7:8 4711 private2/file 7:8 600 "
check "a directory with ACLs is copied up" touch ufs/dir
equal "without them" "$(getfacl -pnc upper/dir | grep -c ':9:')" 0

# ---- set-id bits -------------------------------------------------------------------------------------------------------

cp /bin/true ufs/prog
equal "chown takes set-id bits away" "$(chmod 6755 ufs/prog; chown 1:1 ufs/prog; shown prog; chmod 2644 ufs/prog; chown 1:2 ufs/prog; shown prog)" \
	"prog 1:1 755 prog 1:2 2644 "
equal "chown to nobody too" "$(chmod 4755 ufs/prog; /usr/bin/python3 -c 'import os; os.chown("ufs/prog", -1, -1)'; shown prog)" "prog 1:2 755 "
check "a capability" setcap cap_net_raw+ep ufs/prog
equal "goes with its owner" "$(chown 1:1 ufs/prog; getcap ufs/prog)" ""
for change in 'echo x >>ufs/prog' 'truncate -s 10 ufs/prog' ': >ufs/prog'; do
	chown 0:0 ufs/prog && chmod 6777 ufs/prog
	as 9 9 sh -c "$change"
	equal "an ordinary user's write takes them away: $change" "$(shown prog)" "prog 0:0 777 "
done
check "unmounts" unmount ufs
mkdir plain
check "nor may a program run with them then, where owners are the inodes'" union -o cow,allow_other,suid plain=RW:lower=RO ufs
cp /bin/true ufs/prog
for change in 'echo x >>ufs/prog' 'truncate -s 10 ufs/prog' ': >ufs/prog' 'fallocate -l 9k ufs/prog'; do
	chown 0:0 ufs/prog && chmod 6777 ufs/prog
	as 9 9 sh -c "$change"
	# %a alone is what the kernel believes: it asks nobody.
	equal "$change" "$(shown prog)" "prog 0:0 777 "
done
check "unmounts" unmount ufs
check "mounts again" mount_it
equal "root's does not" "$(chmod 6777 ufs/prog; echo x >>ufs/prog; shown prog)" "prog 0:0 6777 "
equal "no set-id bit is on disk" "$(find upper -perm /6000)" ""

# ---- new objects -------------------------------------------------------------------------------------------------------

chmod 1777 ufs/.
check "an ordinary user makes some" as 1000 1001 sh -ec 'cd ufs; umask 027
	echo x >f; mkdir d; ln -s x l; mkfifo p; umask 0; echo x >open; mkdir open-d; umask 0777; echo x >closed; mkdir closed-d'
equal "they are his, with his umask" "$(shown f d p open open-d closed closed-d)" \
	"f 1000:1001 640 d 1000:1001 750 p 1000:1001 640 open 1000:1001 666 open-d 1000:1001 777 closed 1000:1001 0 closed-d 1000:1001 0 "
equal "symlinks too" "$(shown l)" "l 1000:1001 777 "
equal "what has an attribute is the daemon's on disk" "$(inode f d open closed closed-d)" "f 0:0 600 d 0:0 700 open 0:0 600 closed 0:0 600 closed-d 0:0 700 "
chmod 2777 ufs/open-d && chgrp 77 ufs/open-d && chmod 2777 ufs/open-d
check "in a set-group-id directory" as 1000 1001 sh -ec 'cd ufs/open-d; umask 022; echo x >f; mkdir d; ln -s x l; mkdir d/d'
equal "the group is handed on" "$(shown open-d/f open-d/d open-d/d/d open-d/l)" "open-d/f 1000:77 644 open-d/d 1000:77 2755 open-d/d/d 1000:77 2755 open-d/l 1000:77 777 "
equal "a deleted name made anew" "$(rm ufs/five && rmdir ufs/group && as 1000 1001 sh -c 'cd ufs; umask 022; echo x >five; mkdir group'; shown five group)" "five 1000:1001 644 group 1000:1001 755 "
check "devices" sh -c 'mknod -m 620 ufs/null c 1 3 && chown 0:5 ufs/null && echo x >ufs/null'
equal "are devices" "$(cd ufs && stat -c '%F %t,%T %u:%g %a' null)" "character special file 1,3 0:5 620"
equal "nothing lies in the stage" "$(ls -A upper/.cowfs/stage)" ""

# ---- a remount ---------------------------------------------------------------------------------------------------------

view() { tree ufs without odd | tail -n +2; }
chown 11:12 ufs/. && chmod 2755 ufs/.
rm ufs/closed && view >view.before
root=$(shown .)
check "unmounts" unmount ufs
check "mounts again" mount_it
view >view.after
same "shows the same" view.before view.after
equal "the root too" "$(shown .)" "$root"
check "unmounts" unmount ufs
mkdir work
refuse "not without the option" "branch \"upper\" keeps owners and modes in the attribute \"$KEY\".*xattr_permissions=2" \
	timeout 10 "$COWFS" -o lowerdir=lower,upperdir=upper,workdir=work ufs
refuse "nor as any other union: what its users would set there must not count one day" "upper: it keeps owners and modes in .*use xattr_permissions=2" \
	timeout 10 "$COWFS" -o cow upper=RW:lower=RO ufs
refuse "nor with the other one" "upper: it keeps owners and modes in .*use xattr_permissions=2" timeout 10 "$COWFS" -o cow,xattr_permissions=1 upper=RW:lower=RO ufs
tree lower exact >lower.after
tree layer exact >layer.after
same "the lower is as it was" lower.before lower.after
same "the layer too" layer.before layer.after

# ---- what an upper may hold --------------------------------------------------------------------------------------------

rm -rf upper && mkdir upper && echo x >upper/x
refuse "an upper in use is not made one" "upper: it holds objects whose owners and modes are in their inodes" timeout 10 "$COWFS" -o cow,xattr_permissions=2 upper=RW:lower=RO ufs
equal "and nothing is left in it" "$(getfattr -d -m override upper)" ""
# What fuse-overlayfs 2 leaves: no attribute on what it makes.
setfattr -n $KEY -v 0:0:755 upper && chown 5:5 upper/x && chmod 4755 upper/x
check "one that was made one is taken as it is" mount_it
equal "what has no attribute shows its inode's" "$(shown x)" "x 5:5 4755 "
equal "and gives it up at its first change" "$(chmod 644 ufs/x; shown x; inode x; stored x)" "x 5:5 644 x 0:0 600 x 5:5:644 "
check "unmounts" unmount ufs
rm -rf upper && mkdir upper
check "a union without" union -o cow,allow_other upper=RW:layer=RO:lower=RO ufs
equal "shows what the inodes say" "$(shown secret tty)" "secret 0:0 755 tty 0:0 755 "
check "there, the attribute is like any other" setfattr -n $KEY -v 1:1:4777 ufs/secret
refuse "but on the root, where it would count one day" 'not permitted' setfattr -n $KEY -v 0:0:755 ufs/.
check "unmounts" unmount ufs
refuse "so it never counts" "it holds objects whose owners" timeout 10 "$COWFS" -o cow,xattr_permissions=2 upper=RW:layer=RO ufs

# ---- by option 1, and what it costs -------------------------------------------------------------------------------------

rm -rf upper && mkdir upper
K=security.fuseoverlayfs.override_stat
check "xattr_permissions=1 mounts" mount_it 1
check "works" sh -c 'cd ufs && chown 1:2 without && echo x >new && chown 3:4 new && chmod 4711 new'
equal "is shown" "$(shown without new secret)" "without 1:2 640 new 3:4 4711 secret 7:8 4711 "
equal "and stored in its own attribute" "$(stored without new)" "without 1:2:640 new 3:4:4711 "
check "unmounts" unmount ufs
unset K
# asked OPTION: how often the daemon reads an attribute (getxattrat, which strace does not know yet) for each file looked up.
asked() {
	local files calls=()
	for files in 20 60; do
		rm -rf upper && mkdir upper
		[ -z "$1" ] || setfattr -n $KEY -v 0:0:755 upper
		touch $(seq -f upper/%g $files)
		strace -f -qq -o trace "$COWFS" -f -o "cow,allow_other$1" upper=RW:lower=RO ufs &
		for i in {1..100}; do is_mounted ufs && break; sleep 0.1; done
		stat $(seq -f ufs/%g $files) >/dev/null
		umount ufs
		wait
		calls+=("$(grep -c 'syscall_0x1d0\|getxattrat(' trace)")
	done
	# Rounded: a call that another thread interrupts takes up two lines.
	echo $(((calls[1] - calls[0] + 20) / 40))
}
off=$(asked "")
check "one attribute is read for each look-up" [ "$off" = 1 ]
equal "with the option one more" "$(asked ,xattr_permissions=2)" $((off + 1))

# ---- all the semantics -------------------------------------------------------------------------------------------------

CASES=$(/usr/bin/python3 "$TEST_DIR/semantics.py" list | grep -vxE 'acls|many|long_paths|handles|crowd')
mkdir semantics semantics-upper && /usr/bin/python3 "$TEST_DIR/semantics.py" prepare semantics $CASES || fail "the lower branch cannot be built"
check "mounts" union -o cow,allow_other,suid,dev,xattr_permissions=2 semantics-upper=RW:semantics=RO ufs
timeout -k 5 100 /usr/bin/python3 "$TEST_DIR/semantics.py" run ufs $CASES || fail "the cases did not run to their end: $?"
check "unmounts" unmount ufs

# ---- a daemon that can give nothing away -------------------------------------------------------------------------------

make_user || fail "no user could be made"
mkdir home && chown $TEST_UID:$TEST_UID home
as_user mkdir home/{low,up,mnt}
as_user sh -c 'echo mine >home/low/mine; mkdir home/low/d; ln -s x home/low/link'
user_mount() { as_user timeout 20 "$COWFS" -o allow_other,xattr_permissions=2 "$T/home/low=RO:$T/home/up=RW" "$T/home/mnt"; }
check "an ordinary user mounts" user_mount
check "root gives his files away" sh -ec 'cd home/mnt; chown 7:8 mine d; chmod 4711 mine; chmod 1777 d; chown -h 7:8 link; echo x >roots; mkdir rootd'
check "and another user makes some" as 7 8 sh -ec 'cd home/mnt/d; umask 027; echo x >f; mkdir s; ln -s x l; mkfifo p; echo y >>f'
home() { (cd home/mnt && stat -c '%n %u:%g %a' "$@" | tr '\n' ' '); }
seen="mine 7:8 4711 d 7:8 1777 roots 0:0 644 rootd 0:0 755 d/f 7:8 640 d/s 7:8 750 "
equal "which shows" "$(home mine d roots rootd d/f d/s)" "$seen"
equal "all is the user's own on disk" "$(find home/up ! -user $TEST_UID)" ""
equal "symlinks and FIFOs stay his" "$(home link d/l d/p)" "link $TEST_UID:$TEST_UID 777 d/l $TEST_UID:$TEST_UID 777 d/p $TEST_UID:$TEST_UID 640 "
refuse "he himself may not read another's" 'Permission denied' as_user cat home/mnt/d/f
refuse "nor give anything away" 'not permitted' as_user sh -c 'touch home/mnt/own && chown 0 home/mnt/own'
check "root unmounts" umount home/mnt
no_daemon_left
check "mounts again" user_mount
equal "and it is so still" "$(home mine d roots rootd d/f d/s)" "$seen"
check "unmounts" umount home/mnt
check "no daemon is left" no_daemon_left
finish
