#!/bin/bash
# Branches, upper and mountpoint inside each other: the inner directory shows empty, and nothing recurses.
# timeout: 360
. "$(dirname "$0")/../lib.sh"

# The walk ends, and meets no path longer than any there is.
walks() {
	local longest
	longest=$(timeout 60 find "$1" -xdev -printf '%d\n' | sort -n | tail -n 1)
	[ -n "$longest" ] && [ "$longest" -lt "${2:-12}" ] || { echo "depth ${longest:-unknown (the walk hung)}"; return 1; }
}

# The whole machine as a lower: /=RO:/var/tmp/up=RW /mnt.
mkdir up mnt
check "/ as a lower" union -o allow_other,suid,dev "/=RO:$T/up=RW" "$T/mnt"
equal "it shows the machine" "$(timeout 10 cat mnt/etc/passwd | sha256sum)" "$(sha256sum </etc/passwd)"
equal "the mountpoint inside it is empty" "$(timeout 10 ls -A "mnt$T/mnt")" ""
equal "the upper inside it is empty" "$(timeout 10 ls -A "mnt$T/up")" ""
equal "they are directories" "$(stat -c %F "mnt$T/mnt" "mnt$T/up" | sort -u)" directory
equal "other filesystems are not taken along" "$(ls -A mnt/proc)" ""
check "a walk around the inner mountpoint ends" walks "mnt$T"
check "a walk of all the top ends" timeout 60 find mnt -maxdepth 2 -fprintf /dev/null %p
check "write" sh -c "echo changed >mnt/etc/cowfs-test && test -e up/etc/cowfs-test && ! test -e /etc/cowfs-test"
cp /etc/hostname hostname.before
check "copy up" sh -c 'echo more >>mnt/etc/hostname'
equal "the machine's own is untouched" "$(cat /etc/hostname)" "$(cat hostname.before)"
echo x >beside
check "a file beside the mountpoint is deleted in the union only" rm "mnt$T/beside"
equal "and still there" "$(cat beside)" x
check "programs run" chroot mnt /bin/sh -c 'test -d /etc && /bin/ls / >/dev/null'
check "unmounts" unmount "$T/mnt"
no_daemon_left

# Over its own lower, and over its own upper.
mkdir -p low/sub up2
echo l >low/l
echo s >low/sub/s
check "over its own lower" union low=RO:up2=RW "$T/low"
equal "shows it" "$(cat low/l low/sub/s | tr '\n' ' ')" "l s "
check "takes writes" sh -c 'echo new >low/new && echo + >>low/l && rm low/sub/s'
check "walk" walks low
check "unmounts" unmount "$T/low"
equal "the lower is as it was" "$(cat low/l low/sub/s | tr '\n' ' ')$(ls low)" "l s l
sub"
equal "the upper has the changes" "$(cat up2/new up2/l | tr '\n' ' ')" "new l + "
mkdir up3
check "over its own upper" union low=RO:up3=RW "$T/up3"
check "takes writes" sh -c 'echo new >up3/new && rm up3/l'
equal "shows both" "$(ls up3)" "new
sub"
check "unmounts" unmount "$T/up3"
equal "the upper has them" "$(cat up3/new)" new

# All in one tree.
mkdir -p tree/{up,mnt,sub/deep}
echo x >tree/sub/deep/x
check "upper and mountpoint inside the lower" union tree=RO:tree/up=RW "$T/tree/mnt"
equal "both show empty" "$(ls -A tree/mnt/mnt tree/mnt/up)" "tree/mnt/mnt:

tree/mnt/up:"
check "walk" walks tree/mnt
echo + >>tree/mnt/sub/deep/x
mkdir tree/mnt/sub/new
echo y >tree/mnt/sub/new/y
equal "work goes on inside" "$(cat tree/mnt/sub/deep/x tree/mnt/sub/new/y | tr '\n' ' ')" "x + y "
timeout 5 touch tree/mnt/up/inside tree/mnt/mnt/inside 2>/dev/null
check "a file in the inner upper brings nothing to life" walks tree/mnt
check "unmounts" unmount "$T/tree/mnt"
equal "the lower's own file is untouched" "$(cat tree/sub/deep/x)" x
check "again" union tree=RO:tree/up=RW "$T/tree/mnt"
equal "a remount shows the changes" "$(cat tree/mnt/sub/deep/x | tr '\n' ' ')$(ls tree/mnt/sub)" "x + deep
new"
check "walk" walks tree/mnt
check "unmounts" unmount "$T/tree/mnt"

mkdir -p up4/mnt
echo l >low/l
check "the mountpoint inside the upper" union low=RO:up4=RW "$T/up4/mnt"
equal "shows empty" "$(ls -A up4/mnt/mnt)" ""
check "takes writes" sh -c 'echo z >up4/mnt/z && test -e up4/z'
check "walk" walks up4/mnt
check "unmounts" unmount "$T/up4/mnt"

mkdir -p outer/inner
echo o >outer/o
echo i >outer/inner/i
mkdir up5
check "a lower inside another lower" union outer/inner=RO:outer=RO:up5=RW "$T/mnt"
equal "both are there" "$(cat mnt/o mnt/i | tr '\n' ' ')" "o i "
check "walk" walks mnt
check "unmounts" unmount "$T/mnt"
mkdir -p outer/inner/mnt
check "over a directory inside the inner one" union outer/inner=RO:outer=RO:up5=RW "$T/outer/inner/mnt"
check "walk" walks outer/inner/mnt
check "unmounts" unmount "$T/outer/inner/mnt"

# Something mounted below a lower belongs to the machine, not to the union.
mkdir -p low/other
mount -t tmpfs none low/other
echo t >low/other/t
mkdir up6
check "a mount below a lower" union low=RO:up6=RW "$T/mnt"
equal "its place shows empty" "$(ls -A mnt/other)" ""
check "unmounts" unmount "$T/mnt"
umount low/other

# Who cannot clone mounts is refused, with a reason; never a hang.
make_user
mkdir -p theirs/{up,mnt,sub}
chown -R $TEST_UID theirs
refuse "a user's mountpoint inside a lower" "$T/theirs/mnt.*(inside|below)" \
	timeout 20 "$T/.test/as_user" "$COWFS" "$T/theirs=RO" "$T/theirs/mnt"
refuse "a user's upper inside a lower" "$T/theirs/up.*(inside|below)" \
	timeout 20 "$T/.test/as_user" "$COWFS" "$T/theirs=RO:$T/theirs/up=RW" "$T/mnt"
refuse "nothing was mounted" '' eval 'is_mounted "$T/theirs/mnt" || is_mounted "$T/mnt"'
finish
