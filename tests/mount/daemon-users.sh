#!/bin/bash
# The daemon of an ordinary user: through fusermount3, and in a user namespace.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

check "a user is made" make_user
mkdir -p home/l home/u home/m home/other elsewhere
echo lower >home/l/file
chown -R "$TEST_UID:$TEST_UID" home
H=$T/home
M=$H/m
mounted() { awk -v dir="$1" '$5 == dir' /proc/self/mountinfo; }
user_union() { as_user timeout -k 2 20 "$COWFS" "$@"; }
refused() {
	local name=$1 text=$2
	shift 2
	user_union "$@" >out 2>err
	equal "$name: status" $? 1
	if grep -qE -- "$text" err; then pass "$name: says so"; else fail "$name: says \`$(cat err)'"; fi
	equal "$name: nothing is mounted" "$(mounted "$M")" ""
}

# ---- through fusermount3 -----------------------------------------------------------------------------------------------

check "mounts" user_union -o cow "$H/l=RO:$H/u=RW" "$M"
P=$(daemons)
check "the type, nosuid and nodev" grep -q 'nosuid,nodev.* fuse.cowfs .*user_id=47113' <<<"$(mounted "$M")"
equal "reads" "$(as_user cat "$M/file")" lower
as_user sh -c "echo upper >$M/file"
equal "writes" "$(as_user cat "$M/file" "$H/l/file" "$H/u/file")" $'upper\nlower\nupper'
equal "working directory" "$(readlink "/proc/$P/cwd")" /
equal "nothing inherited is open" "$(readlink "/proc/$P"/fd/* | grep -c -e results -e pipe:)" 0
equal "fusermount3 is not left over" "$(pgrep -c fusermount3)" 0
refuse "root is kept out" 'denied' stat "$M/file"
refuse "the upper is taken" 'in use by another union' user_union "$H/l=RO:$H/u=RW" "$H/other"
check "fusermount3 -u" as_user fusermount3 -u "$M"
check "ends by it" gone "$P"

user_union "$H/l=RO:$H/u=RW" "$M"
P=$(daemons)
as_user kill "$P"
check "SIGTERM ends it" gone "$P"
equal "SIGTERM unmounts" "$(mounted "$M")" ""

user_union "$H/l=RO:$H/u=RW" "$M"
P=$(daemons)
as_user kill -KILL "$P"
gone "$P"
check "after SIGKILL a new mount just works" user_union "$H/l=RO:$H/u=RW" "$M"
equal "and the dead one is gone" "$(mounted "$M" | wc -l)" 1
equal "it answers" "$(as_user cat "$M/file")" upper
check "unmounts" as_user fusermount3 -u "$M"
check "ends" no_daemon_left

user_union -o auto_unmount "$H/l=RO:$H/u=RW" "$M"
for P in $(daemons); do readlink "/proc/$P"/fd/* | grep -q /dev/fuse && D=$P || W=$P; done
as_user kill -KILL "$D"
check "auto_unmount: the watcher ends" gone "$W"
equal "auto_unmount: after SIGKILL nothing is left" "$(mounted "$M")" ""

check "allow_other, where fuse.conf permits it" user_union -o 'allow_other,fsname=a\,b\\c' "$H/l=RO:$H/u=RW" "$M"
check "allow_other: others may enter" stat "$M/file"
check "allow_other: the source with its comma" grep -qF ' a,b\134c ' <<<"$(mounted "$M")"
check "allow_other: unmounts" unmount "$M"
check "allow_root" user_union -o allow_root "$H/l=RO:$H/u=RW" "$M"
check "allow_root: root may enter" stat "$M/file"
refuse "allow_root: nobody else" 'denied' setpriv --reuid=65534 --regid=65534 --clear-groups stat "$M/file"
check "allow_root: unmounts" unmount "$M"
no_daemon_left

# ---- what is refused ---------------------------------------------------------------------------------------------------

find home -printf '%p %m %s %T@ %C@\n' | sort >before
refused "mountpoint inside a branch" "\"$H\": the mountpoint \"$M\" is inside it.*run as root" "$H=RO" "$M"
refused "upper inside a lower" "branch \"$H/u\" is inside it" "/=RO:$H/u=RW" "$M"
refused "chroot=" 'chroot="/": only root' -o chroot=/ "$H/l=RO" "$M"
refused "over its own branch" "would be mounted over it" "$M=RO:$H/u=RW" "$M"
refused "a mountpoint of somebody else" 'fusermount3.*(write access|permission).*|refused, see its message above' \
	"$H/l=RO" "$T/elsewhere"
user_union() { setpriv --reuid=47999 --regid=47999 --clear-groups -- env -i PATH="$PATH" timeout -k 2 20 "$COWFS" "$@"; }
mkdir -m 777 "$T/open"
refused "a user without a name" 'fusermount3.*could not determine username' "$H/l=RO" "$T/open"
user_union() { as_user timeout -k 2 20 "$COWFS" "$@"; }
echo >"$T/.test/fuse.conf"
user_union -o allow_other "$H/l=RO" "$M" 2>err
equal "allow_other without user_allow_other: status" $? 1
check "allow_other without user_allow_other: fusermount3's message comes through" grep -q user_allow_other err
check "allow_other without user_allow_other: and ours" grep -q "^cowfs: cannot mount on \"$M\"" err
chmod 600 /dev/fuse
refused "unreadable /dev/fuse" '^cowfs: cannot open /dev/fuse: Permission denied.*chmod 666' "$H/l=RO:$H/u=RW" "$M"
chmod 666 /dev/fuse
mount --bind /dev/null "$(readlink -f "$(command -v fusermount3)")"
refused "fusermount3 missing" '^cowfs: fusermount3 is missing.*package fuse3' "$H/l=RO:$H/u=RW" "$M"
umount "$(readlink -f "$(command -v fusermount3)")"
find home -printf '%p %m %s %T@ %C@\n' | sort >after
same "refusals change nothing" before after
check "no daemon is left" no_daemon_left

# ---- in a user namespace -----------------------------------------------------------------------------------------------

cat >inside.sh <<'INSIDE'
cd "$T/home"
"$COWFS" -o allow_other l=RO:u=RW m || exit 1
grep -q ' fuse.cowfs .*user_id=0' /proc/self/mountinfo || { echo not mounted by itself; exit 1; }
[ "$(cat m/file)" = upper ] || { echo wrong content; exit 1; }
mkdir m/dir && touch m/dir/new && rm m/file || exit 1
umount m || exit 1
"$COWFS" l=RO:u=RW m || { echo no second mount; exit 1; }
[ -e m/file ] && { echo not deleted; exit 1; }
[ -e m/dir/new ] || { echo not made; exit 1; }
umount m
mkdir c c/l c/u
"$COWFS" -o "chroot=$T/home/c" /l=RO:/u=RW m || { echo no chroot; exit 1; }
umount m
"$COWFS" -f l=RO:u=RW m &
i=0
until grep -q " $T/home/m .* fuse.cowfs " /proc/self/mountinfo || [ $i = 300 ]; do i=$((i + 1)); sleep 0.1; done
kill $!
wait $! || { echo SIGTERM gave status $?; exit 1; }
INSIDE
chmod 644 inside.sh
check "in a user namespace" as_user timeout -k 2 90 unshare -Urmpf --mount-proc sh "$T/inside.sh"
check "in a user namespace, without a pid namespace" as_user timeout -k 2 90 unshare -Urm sh -c '
	cd "$T/home" && rm -rf c u && mkdir u && echo upper >u/file && . "$T/inside.sh"'
check "no daemon is left" no_daemon_left
as_user timeout 10 unshare -Ur "$COWFS" "$H/l=RO:$H/u=RW" "$M" 2>err
equal "a user namespace without a mount namespace: status" $? 1
check "a user namespace without a mount namespace: says what to do" grep -q '^cowfs: no permission to mount.*unshare -m' err
finish
