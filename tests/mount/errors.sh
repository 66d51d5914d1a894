#!/bin/bash
# Bad input: one line on stderr that quotes the offender, status 1 (2 for a wrong command line), and nothing changed anywhere.
# timeout: 240
. "$(dirname "$0")/../lib.sh"

mkdir -p area/{low,low2/inner,up/inner,up2,mnt,ns/low,ro,other} && cd area
echo x >low/x
echo x >file
ln -s low alias
mkdir -p marked/.unionfs
: >marked/.unionfs/x_HIDDEN~
touch marked/y
mount --bind ro ro
mount -o remount,bind,ro ro
mount -t tmpfs none other
mkdir other/work other/up

# All but the access times: a branch may be looked at before it is refused.
state() { tree "$T/area" exact 2>&1 | sed -E 's/ a-?[0-9]+( |$)/\1/'; }

# bad NAME STATUS TEXT ARG...: refused with one line that holds TEXT (a grep -E pattern), and without a trace.
bad() {
	local name=$1 wanted=$2 text=$3 status lines trouble=
	shift 3
	state >"$T/before"
	cat /proc/self/mountinfo >"$T/mounts.before"
	timeout -k 2 20 "${RUN_AS[@]}" "$COWFS" "$@" >"$T/stdout" 2>"$T/stderr"
	status=$?
	lines=$(wc -l <"$T/stderr")
	[ "$status" = "$wanted" ] || trouble+=" status $status instead of $wanted;"
	[ "$lines" = 1 ] || trouble+=" $lines lines on stderr;"
	[ -s "$T/stdout" ] && trouble+=" something on stdout;"
	grep -qE -- "$text" "$T/stderr" || trouble+=" no \`$text' in the message;"
	[ "$(cat /proc/self/mountinfo)" = "$(cat "$T/mounts.before")" ] || trouble+=" the mount table changed;"
	state >"$T/after"
	diff -a "$T/before" "$T/after" >"$T/difference" || trouble+=" files changed: $(cat "$T/difference");"
	no_daemon_left || trouble+=" a process is left;"
	if [ -z "$trouble" ]; then
		pass "$name: $(cat "$T/stderr")"
	else
		fail "$name:$trouble it said: $(head -n 5 "$T/stderr")"
	fi
	while is_mounted "$T/area/mnt"; do umount -l "$T/area/mnt"; done
}
RUN_AS=(env)

# The command line: 2.
bad "no arguments" 2 'cowfs|-h|[Uu]sage'
bad "branches only" 2 'low=RO|mountpoint' low=RO
bad "one word too many" 2 'surplus' low=RO:up=RW mnt surplus
bad "an unknown option" 2 'alow_other.*allow_other' -o alow_other low=RO:up=RW mnt
bad "an unknown option far from all" 2 'xyzzyplugh' -o xyzzyplugh low=RO:up=RW mnt
bad "an unknown flag" 2 -- '--frobnicate' --frobnicate low=RO:up=RW mnt
bad "a number that is none" 2 'twelve' -o max_files=twelve low=RO:up=RW mnt
bad "a time that is none" 2 'soon' -o entry_timeout=soon low=RO:up=RW mnt
bad "a negative time" 2 '-3' -o attr_timeout=-3 low=RO:up=RW mnt
bad "an unknown whiteout format" 2 'bogus.*(overlay|unionfs)' -o whiteout=bogus low=RO:up=RW mnt
bad "two writable branches" 2 'up2?.*' up=RW:up2=RW:low=RO mnt
bad "a branch without a path" 2 '=RW|path|branch' low=RO:=RW mnt
bad "no branch at all" 2 'branch|lower' "" mnt
bad "-o without a value" 2 '-o' low=RO:up=RW mnt -o
bad "both ways to name branches" 2 'lowerdir|dirs' -o lowerdir=low,dirs=low2 mnt

bad "branches apart" 2 "'up=RW' stands alone: branches are separated by ':'" low=RO up=RW mnt
bad "a blank in the options" 2 "'allow_other' stands alone: options follow -o, separated by ','" -o cow, allow_other low=RO:up=RW mnt
bad "options without -o" 2 "'cow,allow_other' stands alone: options follow -o" low=RO:up=RW mnt cow,allow_other
bad "a misspelt mode" 2 "up=WR.*RO, RW or RO.wh, not 'WR'" low=RO:up=WR mnt
bad "a mode after a blank path" 2 "branch '=RO' has no path" =RO:up=RW mnt
bad "whiteouts in the upper" 2 "up=RW.wh.*whiteout=oci" low=RO:up=RW+wh mnt
bad "a comma between branches" 2 "unknown option '/up=RW'; branches are separated by ':'" -o dirs=/low=RO,/up=RW mnt
bad "a value too many" 2 "allow_other=yes.*takes no value" -o allow_other=yes low=RO:up=RW mnt
bad "a value too few" 2 "'chroot' needs a value: chroot=DIR" -o chroot low=RO:up=RW mnt
bad "an empty value" 2 "'fsname=' needs a value: fsname=NAME" -o fsname= low=RO:up=RW mnt
bad "a number out of range" 2 "threads=1000'.*NUMBER, 1 to 256" -o threads=1000 low=RO:up=RW mnt
bad "no number" 2 "threads=many'.*NUMBER, 1 to 256" -o threads=many low=RO:up=RW mnt
bad "no time to wait" 2 "lock_wait=0'.*SECONDS, more than 0" -o lock_wait=0 low=RO:up=RW mnt
bad "a wrong word" 2 "redirect=yes'.*on\|off" -o redirect=yes low=RO:up=RW mnt
bad "a wrong bit" 2 "fsync=2'.*0\|1" -o fsync=2 low=RO:up=RW mnt
bad "a map of two numbers" 2 "uidmapping=0:1000'.*STORED:SHOWN:LENGTH" -o uidmapping=0:1000 low=RO:up=RW mnt
bad "a user's name" 2 "squash_to_uid=joe'.*UID, a number" -o squash_to_uid=joe low=RO:up=RW mnt
bad "what is not there" 2 "xattr_permissions=3'.*0.1.2" -o lowerdir=low,upperdir=up,workdir=up2,xattr_permissions=3 mnt
bad "what would be a lie" 2 "umask=022'.*always those of the branches" -o umask=022 low=RO:up=RW mnt
bad "what contradicts" 2 "'allow_other' and 'allow_root'" -o allow_other,allow_root low=RO:up=RW mnt
bad "upperdir without lowerdir" 2 "upperdir='up' without lowerdir=" -o upperdir=up mnt
bad "upperdir without workdir" 2 "upperdir='up' needs workdir=DIR" -o lowerdir=low,upperdir=up mnt
bad "two lists of layers" 2 "lowerdir=low2': given twice" -o lowerdir=low,lowerdir=low2 mnt
bad "an empty layer" 2 "lowerdir='low::low2': an empty path" -o lowerdir=low::low2 mnt
bad "an empty mountpoint" 2 "mountpoint is an empty word" low=RO:up=RW ""
bad "a flag of mount(8)'s" 2 "unknown flag '-t'" -t cowfs low=RO:up=RW mnt
bad "letters together" 2 "unknown flag '-fz'" -fz low=RO:up=RW mnt
bad "what is not to be seen in a message" 2 "unknown option 'a.u\{1b\}\[2J'" -o "$(printf 'a\033[2J')" low=RO:up=RW mnt
bad "no shell" 2 'bash, zsh or fish' --completions csh
bad "remount without a mountpoint" 2 'no mountpoint given' -o remount,ro
bad "another /dev/fuse than there is" 2 "fd=3'.*/dev/fd/N" -o fd=3 low=RO:up=RW mnt

# The machine: 1.
bad "remount of nothing" 1 'mnt.*nothing is mounted there' -o remount,ro mnt
bad "a mountpoint that is no /dev/fuse" 1 '/dev/fd/9.*not an open /dev/fuse' low=RO:up=RW /dev/fd/9
bad "hardly any open files" 1 'Too many open files.*max_files=' -o max_files=5 low=RO:up=RW mnt
bad "a workdir that is the upper" 1 'workdir "up" is branch "up" itself' -o lowerdir=low,upperdir=up,workdir=up mnt
bad "an upper inside its workdir" 1 'up/inner.*inside workdir "up"' -o lowerdir=low,upperdir=up/inner,workdir=up mnt
bad "an upper that is no place for files" 1 '/proc' low=RO:/proc=RW mnt
bad "a missing branch" 1 'nowhere' nowhere=RO:up=RW mnt
bad "a missing upper" 1 'nowhere' low=RO:nowhere=RW mnt
bad "a missing branch of an overlay line" 1 'nowhere' -o "lowerdir=low:nowhere,upperdir=up,workdir=up2" mnt
bad "a branch that is a file" 1 'file.*director' file=RO:up=RW mnt
bad "the same directory twice" 1 'low.*(twice|same|already)' low=RO:low=RO:up=RW mnt
bad "the same directory twice, by a link" 1 'alias|low' low=RO:alias=RO:up=RW mnt
bad "the upper as a lower too" 1 'up' up=RO:up=RW mnt
bad "a lower inside the upper" 1 'up/inner.*up|up.*up/inner' up/inner=RO:up=RW mnt
bad "an upper that cannot be written" 1 'ro.*read-only|[Rr]ead-only.*ro' low=RO:ro=RW mnt
bad "a missing mountpoint" 1 'nowhere' low=RO:up=RW nowhere
bad "a mountpoint that is a file" 1 'file' low=RO:up=RW file
bad "a missing chroot" 1 'nowhere' -o chroot=nowhere /low=RO:/up=RW mnt
bad "a branch missing below chroot" 1 '/up' -o "chroot=$T/area/ns" /low=RO:/up=RW mnt
bad "a branch that tries to leave chroot" 1 'up' -o "chroot=$T/area/ns" /low=RO:/../up=RW mnt
bad "a missing workdir" 1 'nowhere' -o lowerdir=low,upperdir=up,workdir=nowhere mnt
bad "a workdir on another filesystem" 1 'other/work' -o lowerdir=low,upperdir=up,workdir=other/work mnt
bad "an upper with marks of another format" 1 'marked.*unionfs|unionfs.*marked' -o whiteout=overlay low=RO:marked=RW mnt
bad "a debug file that cannot be made" 1 'nowhere/log' -o debug_file=nowhere/log low=RO:up=RW mnt

bad "relaxed_permissions as root" 1 "'relaxed_permissions' as root: .*leave the option out" -o relaxed_permissions,allow_other low=RO:up=RW mnt
bad "relaxed_permissions as root of a container engine" 1 "'relaxed_permissions' as root" -o relaxed_permissions,lowerdir=low mnt

# An upper in use: by whatever name, and only as long as it is in use.
mkdir "$T/m1" "$T/m2"
check "a first mount" union low=RO:up=RW "$T/m1"
first=$(daemons)
timeout 20 "$COWFS" low=RO:up=RW "$T/m2" >"$T/stdout" 2>"$T/stderr"
equal "a second one on the same upper is refused" "$? $(wc -l <"$T/stderr") $(grep -cE 'up.*(in use|mounted|busy|lock)' "$T/stderr")" "1 1 1"
timeout 20 "$COWFS" -o lowerdir=low,upperdir="$T/area/up/",workdir="$T/area/up2" "$T/m2" 2>"$T/stderr"
equal "also under another name" "$? $(wc -l <"$T/stderr")" "1 1"
equal "the first goes on" "$(daemons) $(cat "$T/m1/x")" "$first x"
kill -KILL $first
umount -l "$T/m1"
no_daemon_left
check "after kill -9 the upper is free" union low=RO:up=RW "$T/m1"
check "unmounts" unmount "$T/m1"
check "and at once after umount" union low=RO:up=RW "$T/m1"
check "unmounts" unmount "$T/m1"
no_daemon_left

# The device and the programs it takes.
mkdir "$T/dev"
mount -t tmpfs -o mode=755 none "$T/dev"
for d in null zero urandom; do
	touch "$T/dev/$d"
	mount --bind "/dev/$d" "$T/dev/$d"
done
(
	mount --rbind "$T/dev" /dev
	bad "no /dev/fuse" 1 '/dev/fuse.*(modprobe|module|load|device)' low=RO:up=RW mnt
	umount -l /dev
)
make_user || fail "no user could be made"
chown -R $TEST_UID:$TEST_UID up mnt
RUN_AS=("$T/.test/as_user")
chmod 600 /dev/fuse
bad "a user who may not open /dev/fuse" 1 '/dev/fuse' low=RO:up=RW mnt
chmod 666 /dev/fuse
: >"$T/.test/nothing"
for program in /usr/bin/fusermount3 /usr/bin/fusermount; do
	[ -e "$program" ] && mount --bind "$T/.test/nothing" "$program"
done
bad "no fusermount3" 1 'fusermount3.*(install|fuse3)' low=RO:up=RW mnt
for program in /usr/bin/fusermount3 /usr/bin/fusermount; do
	umount "$program" 2>/dev/null
done
: >"$T/.test/fuse.conf"
bad "allow_other that fuse.conf does not allow" 1 'user_allow_other' -o allow_other low=RO:up=RW mnt
bad "a mountpoint of another user" 1 'ns' low=RO:up=RW ns
bad "an upper of another user" 1 'up2' low=RO:up2=RW mnt
bad "chroot= by a user" 1 'chroot' -o "chroot=$T/area/ns" /low=RO mnt
check "and what is allowed works" as_user "$COWFS" "$T/area/low=RO:$T/area/up=RW" "$T/area/mnt"
check "unmounts" unmount "$T/area/mnt"
check "relaxed_permissions as a user" as_user "$COWFS" -o relaxed_permissions "$T/area/low=RO:$T/area/up=RW" "$T/area/mnt"
equal "relaxed_permissions as a user: serves" "$(as_user cat "$T/area/mnt/x")" x
check "unmounts" unmount "$T/area/mnt"

equal "-V" "$("$COWFS" -V | grep -cE '^cowfs [0-9]+\.[0-9]+')" 1
check "-h" sh -c '"$COWFS" -h | grep -q chroot='
finish
