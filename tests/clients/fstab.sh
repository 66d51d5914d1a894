#!/bin/bash
# /etc/fstab and mount(8): every form of a line, through mount.fuse3 and through mount.cowfs, comes up once, shows what it is, and goes.
# timeout: 360
. "$(dirname "$0")/../lib.sh"
. "$TEST_DIR/programs/cache.bash"
need mount.fuse3=fuse3 findmnt=util-linux
EXAMPLES=$TEST_DIR/../examples

# mount(8) finds cowfs for the types fuse.cowfs and cowfs.
mkdir .test/bin && cp .test/cowfs .test/bin && mount --bind .test/bin /usr/local/bin
mkdir .test/sbin .test/sbin.work
mount -t overlay sbin -o "lowerdir=/usr/sbin,upperdir=$T/.test/sbin,workdir=$T/.test/sbin.work" /usr/sbin
ln -s /usr/local/bin/cowfs /usr/sbin/mount.cowfs
: >.test/fstab
mount --bind .test/fstab /etc/fstab

running() { pgrep -x cowfs | sort | tr '\n' ' '; }
mounts_on() { awk -v dir="${1// /\\\\040}" '$5 == dir { n++ } END { print n + 0 }' /proc/self/mountinfo; }
all_gone() { local i; for i in {1..600}; do [ -z "$(running)" ] && return; sleep 0.05; done; running; return 1; }

mkdir low up up.work mnt 'a low' 'an up' 'a mnt'
echo lower >low/f
echo lower >'a low/f'
M=$T/mnt

# round NAME SOURCE TYPE: what is in /etc/fstab for $M comes up, is what it says, is not mounted twice, and goes.
round() {
	local name=$1 source=$2 dir=${4:-$M}
	check "$name: mount DIR" timeout 20 mount "$dir"
	equal "$name: findmnt" "$(findmnt -n -r -o SOURCE,FSTYPE "$dir")" "$source $3"
	check "$name: the source is short" [ "$(findmnt -n -o SOURCE "$dir" | wc -c)" -le 201 ]
	check "$name: it is a union" sh -c 'grep -qx lower "$1/f" && echo more >>"$1/f" && echo new >"$1/new" && rm "$1/new"' sh "$dir"
	local pids
	pids=$(running)
	if [ -z "${HIDDEN-}" ]; then
		check "$name: mount -a" timeout 20 mount -a
		check "$name: mount -a again" timeout 20 mount -a
	else # mount(8) cannot see that it is mounted, and cowfs does.
		refuse "$name: mount -a" 'mounted on .* already' timeout 20 mount -a
	fi
	equal "$name: it is mounted once" "$(mounts_on "$dir") $(running)" "1 $pids"
	check "$name: remount,ro" timeout 20 mount -o remount,ro "$dir"
	refuse "$name: it is read-only" 'read-only file system' touch "$dir/x"
	check "$name: remount,rw" timeout 20 mount -o remount,rw "$dir"
	check "$name: it is writable" touch "$dir/x"
	equal "$name: the same daemon" "$(running)" "$pids"
	check "$name: umount" timeout 20 umount "$dir"
	check "$name: the daemon goes" all_gone
	rm -rf up/* up/.cowfs an\ up/*
	mkdir -p up.work
}

# ---- every form --------------------------------------------------------------------------------------------------------

echo "$T/low=RO:$T/up=RW $M fuse.cowfs cow,allow_other 0 0" >.test/fstab
round "fuse.cowfs" "$T/low=RO:$T/up=RW" fuse.cowfs
echo "cowfs#$T/low=RO:$T/up=RW $M fuse cow,allow_other 0 0" >.test/fstab
HIDDEN=yes round "cowfs#, type fuse" "$T/low=RO:$T/up=RW" fuse.cowfs
echo "$T/low=RO:$T/up=RW $M cowfs cow,allow_other 0 0" >.test/fstab
round "mount.cowfs" "$T/low=RO:$T/up=RW" fuse.cowfs
echo "overlay $M fuse.cowfs lowerdir=$T/low,upperdir=$T/up,workdir=$T/up.work 0 0" >.test/fstab
round "overlay" overlay fuse.cowfs
echo "overlay $M cowfs lowerdir=$T/low,upperdir=$T/up,workdir=$T/up.work 0 0" >.test/fstab
round "overlay, mount.cowfs" overlay fuse.cowfs
echo "any $M fuse.cowfs dirs=$T/low=RO:$T/up=RW,allow_other 0 0" >.test/fstab
round "dirs=" any fuse.cowfs
echo "shop $M fuse.cowfs lowerdir=$T/low,upperdir=$T/up,workdir=$T/up.work,fsname=shop 0 0" >.test/fstab
round "fsname=" shop fuse.cowfs
options=defaults,nofail,_netdev,x-systemd.automount,x-systemd.requires-mounts-for=/,comment=c,auto,nouser,lazytime,strictatime,allow_other
echo "$T/low=RO:$T/up=RW $M fuse.cowfs $options 0 0" >.test/fstab
round "mount(8)'s own words" "$T/low=RO:$T/up=RW" fuse.cowfs
echo "$T/low=RO:$T/up=RW $M cowfs $options 0 0" >.test/fstab
round "mount(8)'s own words, mount.cowfs" "$T/low=RO:$T/up=RW" fuse.cowfs
for type in fuse.cowfs cowfs; do
	echo "$T/a\\040low=RO:$T/an\\040up=RW $T/a\\040mnt $type cow,allow_other 0 0" >.test/fstab
	round "blanks, $type" "$T/a\\x20low=RO:$T/an\\x20up=RW" fuse.cowfs "$T/a mnt"
done

# A source that is too long for programs that read the table by lines: cut, and still mounted once.
long=$(printf 'l%.0s' {1..120})
mkdir -p "$long/a" "$long/b"
echo lower >"$long/a/f"
echo "$T/$long/a=RO:$T/$long/b=RW $M fuse.cowfs cow,allow_other 0 0" >.test/fstab
check "a long source: mount -a" timeout 20 mount -a
refuse "a long source: mount -a again" 'mounted on .* already' timeout 20 mount -a
equal "a long source: it is mounted once" "$(mounts_on "$M") $(running | wc -w)" "1 1"
check "a long source: it is cut" [ "$(findmnt -n -o SOURCE "$M" | wc -c)" -le 201 ]
check "a long source: umount" timeout 20 umount "$M"
check "a long source: the daemon goes" all_gone

# umount, and at once mount: each comes up, and has what the one before left.
echo "$T/low=RO:$T/up=RW $M fuse.cowfs cow,allow_other 0 0" >.test/fstab
again() {
	local i
	mount "$M" || return 1
	for i in {1..10}; do echo "$i" >>"$M/again" && umount "$M" && mount "$M" || return 1; done
	[ "$(tail -n 1 "$M/again") $(wc -l <"$M/again")" = "10 10" ] && umount "$M"
}
check "umount and at once mount, ten times" timeout 60 bash -c "$(declare -f again); M=$M again"
check "the daemons go" all_gone
equal "nothing is mounted" "$(mounts_on "$M")" 0

# One line that fails keeps no other from coming up, and says what is wrong.
cat >.test/fstab <<F
$T/nowhere=RO:$T/up=RW $T/a\\040mnt fuse.cowfs cow,nofail,_netdev 0 0
$T/low=RO:$T/up=RW $M cowfs cow,nofail,x-systemd.device-timeout=3 0 0
F
timeout 20 mount -a >said 2>&1
check "mount -a with a line that fails: it is named" grep -q 'nowhere.*does not exist' said
equal "mount -a with a line that fails: the other one is mounted" "$(mounts_on "$M") $(mounts_on "$T/a mnt")" "1 0"
check "umount" timeout 20 umount "$M"
check "the daemon goes" all_gone
rm -f up/again

# ---- flags that mount(8) hands to mount.cowfs --------------------------------------------------------------------------

: >.test/fstab
B=$T/low=RO:$T/up=RW
for flags in -s -n -v "-s -n -v"; do
	check "mount $flags" timeout 20 mount $flags -t cowfs -o cow,allow_other "$B" "$M"
	equal "mount $flags: it is there" "$(cat mnt/f)" lower
	check "mount $flags: umount" timeout 20 umount "$M"
	check "mount $flags: the daemon goes" all_gone
done
check "mount -f mounts nothing" timeout 20 mount -f -t cowfs -o cow,allow_other "$B" "$M"
equal "mount -f mounted nothing" "$(mounts_on "$M") $(running)" "0 "
check "as mount(8) calls it" timeout 20 /usr/sbin/mount.cowfs "$B" "$M" -s -n -v -o rw,cow,nofail,_netdev,x-a.b -t cowfs
equal "as mount(8) calls it: one mount" "$(mounts_on "$M")" 1
check "as mount(8) calls it: umount" timeout 20 umount "$M"
refuse "an unknown option" "unknown option 'colour=red'" timeout 20 mount -t cowfs -o colour=red "$B" "$M"
refuse "an unknown option, -s" "unknown option 'colour=red'" timeout 20 mount -s -t cowfs -o colour=red "$B" "$M"
refuse "a missing branch" 'nowhere.*does not exist' timeout 20 mount -t cowfs "$T/nowhere=RO:$T/up=RW" "$M"
refuse "a missing branch, fuse.cowfs" 'nowhere.*does not exist' timeout 20 mount -t fuse.cowfs "$T/nowhere=RO:$T/up=RW" "$M"
refuse "a missing mountpoint" 'does not exist' timeout 20 mount -t cowfs "$B" "$T/no/where"
refuse "a mount twice on one upper" 'up.* in use' timeout 20 sh -c 'mount -t cowfs "$1" "$2" && mount -t cowfs "$1" "$3"' sh "$B" "$M" "$T/a mnt"
check "umount" timeout 20 umount "$M"
check "the daemon goes" all_gone

# -N: the union appears in the other namespace, made of what lies there, and nowhere else.
unshare -m sleep 60 &
N=$!
for i in {1..600}; do [ "$(readlink "/proc/$N/ns/mnt")" != "$(readlink /proc/self/ns/mnt)" ] && break; sleep 0.05; done
nsenter -t $N -m mount -t tmpfs none "$T/low"
nsenter -t $N -m sh -c "echo other >$T/low/f"
check "mount -N" timeout 20 mount -N $N -t cowfs -o allow_other "$B" "$M"
equal "mount -N: it is there, and made of what is there" "$(nsenter -t $N -m cat "$M/f")" other
equal "mount -N: it is not here" "$(mounts_on "$M")" 0
check "mount -N: remount" timeout 20 mount -N $N -t cowfs -o remount,ro "$B" "$M"
refuse "mount -N: read-only" 'read-only file system' nsenter -t $N -m touch "$M/x"
check "mount -N: umount" timeout 20 umount -N $N "$M"
check "mount -N: the daemon goes" all_gone
refuse "-N and nothing there" '/proc/nobody.*(-N)' timeout 20 /usr/sbin/mount.cowfs "$B" "$M" -N /proc/nobody/ns/mnt -o rw
refuse "-N and something else" 'null.*(-N)' timeout 20 /usr/sbin/mount.cowfs "$B" "$M" -N /dev/null -o rw
kill -KILL $N

# ---- drop_privileges: mount.fuse3 mounts, and cowfs gets an open /dev/fuse and no privilege -----------------------------

make_user || fail "no user could be made"
chown $TEST_UID up
echo secret >low/secret && chmod 600 low/secret
for how in drop_privileges,allow_other drop_privileges,allow_other,default_permissions; do
	check "$how" timeout 20 mount -t fuse.cowfs -o "$how" "$T/low=RO" "$M"
	equal "$how: one mount, of its type" "$(findmnt -n -r -o FSTYPE "$M") $(mounts_on "$M")" "fuse.cowfs 1"
	equal "$how: the daemon may do nothing" "$(awk '/^Cap(Prm|Eff|Bnd)/ { print $2 }' "/proc/$(running | tr -d ' ')/status" | sort -u)" 0000000000000000
	equal "$how: reads" "$(as_user cat "$M/f")" lower
	refuse "$how: permissions are checked" 'permission denied' as_user cat "$M/secret"
	check "$how: umount" timeout 20 umount "$M"
	check "$how: the daemon goes" all_gone
done
refuse "nobody would check permissions" "'noacl' on a mounted /dev/fuse" timeout 20 mount -t fuse.cowfs -o drop_privileges,allow_other,noacl "$T/low=RO" "$M"
umount -l "$M" 2>/dev/null
check "and the daemon does not stay" all_gone
check "setuid=: the daemon is that user's" timeout 20 mount -t fuse.cowfs -o "setuid=$TEST_USER,drop_privileges,allow_other" "$B" "$M"
equal "setuid=: it is" "$(stat -c %u "/proc/$(running | tr -d ' ')")" $TEST_UID
equal "setuid=: reads and writes" "$(as_user sh -c "cat $M/f && echo mine >$M/mine && cat up/mine")" $'lower\nmine'
check "setuid=: umount" timeout 20 umount "$M"
check "setuid=: the daemon goes" all_gone

# ---- the examples ------------------------------------------------------------------------------------------------------

mkdir root && mount -t tmpfs -o mode=755 none root
for entry in /*; do
	[ -L "$entry" ] && cp -a "$entry" root/ || { [ -d "$entry" ] && mkdir "root$entry" && mount --rbind "$entry" "root$entry"; }
done
mkdir -p root/precise root/ufs "root/my tree" "root/my changes" "root/my view" root/cow/u1 root/cow/w1
echo lower | tee root/precise/f >"root/my tree/f"
number=0
while IFS= read -r line; do
	case $line in '#'* | '') continue ;; esac
	number=$((number + 1))
	echo "$line" >.test/fstab
	where=$(findmnt -s -n -r -o TARGET | sed 's/\\x20/ /g')
	check "example $number: $line" timeout 20 chroot root mount "$where"
	equal "example $number: it is a union" "$(cat "root$where/f" && findmnt -n -o FSTYPE "$T/root$where")" $'lower\nfuse.cowfs'
	check "example $number: umount" timeout 20 chroot root umount "$where"
	check "example $number: the daemon goes" all_gone
done <"$EXAMPLES/fstab"
check "there are examples" [ $number -ge 6 ]
equal "the lower is as it was" "$(cat low/f low/secret)" $'lower\nsecret'
check "no daemon is left" no_daemon_left
finish
