#!/bin/bash
# Whose the files are: uidmapping, gidmapping, squash_to_*, in what is shown, stored, permitted, and in ACLs and capabilities; and
# fuse-overlayfs's other options that change what is seen: static_nlink, timeout, threaded.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

mkdir -p lower/dir/sub upper ufs
echo root >lower/root
echo five >lower/five && chown 5:6 lower/five && chmod 600 lower/five
echo far >lower/far && chown 70000:70000 lower/far
echo acl >lower/acl && chmod 600 lower/acl && setfacl -m u:9:r,g:8:r lower/acl
chmod 1777 lower/dir
tree lower exact >lower.before

# as UID GID COMMAND...
as() { setpriv --reuid="$1" --regid="$2" --clear-groups -- "${@:3}"; }
owner() { stat -c %u:%g "$@" | tr '\n' ' '; }

# ---- ids are mapped ----------------------------------------------------------------------------------------------------

MAP=uidmapping=:0:100000:65536,gidmapping=0:200000:10:10:300010:100
check "mounts" union -o "allow_other,suid,$MAP" lower=RO:upper=RW ufs
equal "ids of the branches are shown as others" "$(owner ufs/root ufs/five)" "100000:200000 100005:200006 "
equal "ids in no range are nobody's" "$(owner ufs/far)" "65534:65534 "
equal "a listing with attributes too" "$(ls -ln ufs | awk '$9 == "five" { print $3, $4 }')" "100005 200006"
check "the shown owner may read" as 100005 200006 cat ufs/five
refuse "the stored one may not" 'denied' as 5 6 cat ufs/five
check "he makes a file" as 100005 200006 sh -c 'echo x >ufs/dir/made && mkdir ufs/dir/madedir && ln -s x ufs/dir/madelink'
equal "it is shown as his" "$(owner ufs/dir/made ufs/dir/madedir ufs/dir/madelink)" "100005:200006 100005:200006 100005:200006 "
equal "and stored the other way round" "$(owner upper/dir/made upper/dir/madedir upper/dir/madelink)" "5:6 5:6 5:6 "
equal "copied-up directories keep their owner" "$(owner upper/dir)" "0:0 "
check "a second range" as 100000 300019 touch ufs/dir/second
equal "is stored" "$(owner upper/dir/second)" "0:19 "
check "root, in no range, makes a file" touch ufs/dir/roots
equal "it is nobody's" "$(owner upper/dir/roots)" "65534:65534 "
check "he gives it away" chown 100007:200007 ufs/dir/roots
equal "which is stored" "$(owner upper/dir/roots ufs/dir/roots)" "7:7 100007:200007 "
refuse "not to an id in no range" 'Invalid argument' chown 7 ufs/dir/roots
refuse "nor to a group in none" 'Invalid argument' chgrp 200010 ufs/dir/roots
equal "and nothing has changed" "$(owner upper/dir/roots)" "7:7 "
check "copied up" sh -c 'echo more >>ufs/five; touch ufs/far'
equal "with the owners of the lower" "$(owner upper/five upper/far)" "5:6 70000:70000 "

equal "ACLs have the ids shown" "$(getfacl -nc ufs/acl | grep -E '^(user|group):[0-9]' | tr '\n' ' ')" "user:100009:r-- group:200008:r-- "
check "and count" as 100009 200001 cat ufs/acl
refuse "for these only" 'denied' as 9 8 cat ufs/acl
check "an ACL is set" setfacl -m u:100011:rw ufs/acl
equal "and stored the other way round" "$(getfacl -nc upper/acl | grep -E '^(user|group):[0-9]' | tr '\n' ' ')" "user:9:r-- user:11:rw- group:8:r-- "
refuse "not for an id in no range" 'Invalid argument' setfacl -m u:11:rw ufs/acl
check "an ACL for what will be made" setfacl -d -m u:100012:rwx ufs/dir/madedir
check "is inherited" touch ufs/dir/madedir/heir
equal "in the upper's ids" "$(getfacl -nc upper/dir/madedir/heir | grep -E '^user:[0-9]')" "user:12:rwx	#effective:rw-"

cp /bin/true ufs/capable
check "a capability for a namespace's root" setcap -n 100000 cap_net_raw+ep ufs/capable
equal "is shown so" "$(getcap -n ufs/capable)" "ufs/capable cap_net_raw=ep [rootid=100000]"
equal "and stored for root" "$(getcap -n upper/capable)" "upper/capable cap_net_raw=ep"

# A container: root of a namespace that begins at 100000.
unshare -U sleep 60 &
inside=$!
for i in {1..300}; do [ "$(readlink "/proc/$inside/ns/user")" != "$(readlink /proc/self/ns/user)" ] && break; sleep 0.1; done
echo 0 100000 65536 >"/proc/$inside/uid_map" && echo 0 200000 10 >"/proc/$inside/gid_map"
equal "its root is root" "$(nsenter -t "$inside" -U -S 0 -G 0 -- \
	sh -c 'stat -c %u:%g ufs/root ufs/five; touch ufs/dir/contained && chown 3:4 ufs/dir/contained && stat -c %u:%g ufs/dir/contained' 2>&1 | tr '\n' ' ')" "0:0 5:6 3:4 "
equal "and stored as it says" "$(owner upper/dir/contained)" "3:4 "
nsenter -t "$inside" -U -S 0 -G 0 -- sh -c 'cp /bin/true ufs/dir/mine && setcap cap_net_raw+ep ufs/dir/mine'
equal "a capability that it gives is its own" "$(getcap -n ufs/dir/mine)" "ufs/dir/mine cap_net_raw=ep [rootid=100000]"
kill -KILL "$inside"
wait "$inside" 2>/dev/null
chmod 4755 ufs/capable && chown 100000 ufs/capable && chmod 4777 ufs/capable
check "an ordinary user's write" as 100005 200006 sh -c 'echo >>ufs/capable'
equal "takes set-id bits away" "$(stat -c %a upper/capable)" 777
check "unmounts" unmount ufs
check "mounts without a map" union -o allow_other lower=RO:upper=RW ufs
equal "the branches have their own ids" "$(owner ufs/five ufs/dir/made ufs/dir/roots)" "5:6 5:6 7:7 "
check "unmounts" unmount ufs
tree lower exact >lower.after
same "the lower is untouched" lower.before lower.after

# ---- squashed ----------------------------------------------------------------------------------------------------------

rm -rf upper && mkdir upper
check "squash_to_root" union -o allow_other,squash_to_root lower=RO:upper=RW ufs
equal "all is root's" "$(owner ufs/five ufs/far ufs/dir)" "0:0 0:0 0:0 "
refuse "so the owner may not" 'denied' as 5 6 cat ufs/five
refuse "and ACLs do not count" 'denied' as 9 8 cat ufs/acl
check "a user makes a file" as 1000 1001 sh -c ': >ufs/dir/his'
equal "it is stored as his, and shown as root's" "$(owner upper/dir/his ufs/dir/his)" "1000:1001 0:0 "
check "copied up" touch ufs/five
equal "with its owner" "$(owner upper/five)" "5:6 "
check "unmounts" unmount ufs
check "squash_to_uid, squash_to_gid" union -o allow_other,squash_to_uid=1000,squash_to_root,squash_to_gid=77 lower=RO:upper=RW ufs
equal "all is theirs" "$(owner ufs/five ufs/far ufs/dir/his)" "1000:77 1000:77 1000:77 "
check "who may" as 1000 1000 cat ufs/five
check "unmounts" unmount ufs

# ---- the others --------------------------------------------------------------------------------------------------------

mkdir work
check "static_nlink" union -o lowerdir=lower,upperdir=upper,workdir=work,static_nlink ufs
ln ufs/root ufs/root2
equal "a directory has one link, a file its number" "$(stat -c %h ufs ufs/dir ufs/root | tr '\n' ' ')" "1 1 2 "
check "unmounts" unmount ufs

check "timeout=0" union -o timeout=0,allow_other lower=RO:upper=RW ufs
stat ufs/later ufs/root ufs/far >/dev/null 2>&1
echo now >lower/later && rm lower/far
equal "a new name of the lower is seen at once" "$(cat ufs/later)" now
# far was not raised.
refuse "a deleted one is gone at once" 'No such file' cat ufs/far
check "unmounts" unmount ufs

check "threaded=1" union -o threaded=1 lower=RO:upper=RW ufs
serving() { cat "/proc/$(daemons)"/task/*/comm | grep -c "^fuser-"; }
many=$(serving)
check "unmounts" unmount ufs && no_daemon_left
check "threaded=0" union -o threaded=0 lower=RO:upper=RW ufs
check "threaded=1 is several threads, threaded=0 one" [ "$(serving) $((many > 1))" = "1 1" ]
equal "that serve" "$(cat ufs/later)" now
check "unmounts" unmount ufs
check "no daemon is left" no_daemon_left
finish
