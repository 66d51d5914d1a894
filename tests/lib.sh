# What every shell test stands on: sourced first, it moves the test into namespaces of its own and counts its checks.
#
#   #!/bin/bash
#   # One sentence: what this test holds cowfs to.
#   # timeout: 120
#   . "$(dirname "$0")/../lib.sh"
#   ...checks...
#   finish
#
# Sourced outside, it starts the same script once more in a private mount and pid namespace, as its pid 1, and waits.
# So whatever a test mounts or starts is gone when it ends, however it ends, and nothing of it is seen outside. A test that
# hangs is freed after `# timeout:` seconds (default 300) by aborting the FUSE connections that stand in its own mountinfo
# and were not there when it began, and no others.
#
# A test has: $T a scratch directory, $COWFS the program under test (a copy that any user can run), fd 9 where results go.

set -u
export LC_ALL=C.UTF-8 LANGUAGE= PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
TEST_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TEST_SCRIPT=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
TEST_NAME=$(basename "$0" .sh)

# ---- outside: start the script in its namespaces, watch it, free it if it hangs ----------------------------------------

# The program under test: $COWFS, else the newer of the two builds.
find_cowfs() {
	if [ -n "${COWFS-}" ]; then
		readlink -e "$COWFS" || { echo "COWFS=$COWFS is not there" >&2; return 1; }
		return
	fi
	local target=${CARGO_TARGET_DIR:-$TEST_DIR/../target} found
	found=$(ls -t "$target"/*-linux-*/release/cowfs "$target"/*-linux-*/debug/cowfs \
		"$target"/release/cowfs "$target"/debug/cowfs 2>/dev/null | head -n 1)
	[ -n "$found" ] || { echo "no cowfs is built: run cargo build, or set COWFS" >&2; return 1; }
	readlink -e "$found"
}

# All living descendants of process $1, itself included.
descendants() {
	ps -eo pid=,ppid= | awk -v top="$1" '
		{ parent[$1] = $2 }
		END { for (p in parent) { for (q = p; q in parent && q != top; q = parent[q]); if (q == top) print p } }'
}

# Aborts the FUSE connections of mounts in the namespaces of the processes below $1 that were not there at the start.
abort_own_connections() {
	local pid ids
	ids=$(for pid in $(descendants "$1"); do
		awk '$0 ~ / - fuse/ { print $3 }' "/proc/$pid/mountinfo" 2>/dev/null
	done | sort -u | grep -vxF -f "$SCRATCH/inherited")
	for pid in $ids; do
		echo "# aborting the FUSE connection $pid of this test's own mount"
		unshare -m sh -c 'mount -t fusectl none /sys/fs/fuse/connections 2>/dev/null
			echo 1 >"/sys/fs/fuse/connections/$1/abort"' sh "${pid#*:}"
	done
}

# Says where every process of the test stands, then ends them all.
end_hung_test() {
	local pid
	echo "FAIL - timed out after $1 s; what its processes wait for:"
	for pid in $(descendants "$INSIDE"); do
		printf '#  %s %s [%s]\n' "$pid" "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c1-100)" \
			"$(grep -h State "/proc/$pid/status" 2>/dev/null)"
		cat "/proc/$pid"/task/*/stack 2>/dev/null | sed -n '1,4s/^/#      /p'
	done
	abort_own_connections "$INSIDE"
	sleep 0.2
	kill -KILL "$INSIDE" 2>/dev/null
	sleep 1
	abort_own_connections "$INSIDE"
}

leave() {
	trap - EXIT INT TERM HUP
	[ -z "${INSIDE-}" ] || kill -KILL "$INSIDE" 2>/dev/null
	# The watchdog before its sleep: else it would wake up and act.
	[ -z "${WATCHDOG-}" ] || kill -KILL "$WATCHDOG" $(pgrep -P "$WATCHDOG") 2>/dev/null
	chattr -R -f -i -a "$SCRATCH" 2>/dev/null
	rm -rf --one-file-system "$SCRATCH"
}

run_inside() {
	if [ "$(id -u)" != 0 ]; then
		echo "SKIP: $TEST_NAME needs root for mounts and namespaces"
		exit 0
	fi
	local program limit status
	program=$(find_cowfs) || exit 1
	limit=$(sed -n '1,20s/^# timeout: *//p' "$TEST_SCRIPT")
	limit=${limit:-300}
	SCRATCH=$(mktemp -d "/tmp/cowfs-$TEST_NAME.XXXXXX") || exit 1
	trap 'leave; exit 130' INT TERM HUP
	trap leave EXIT
	chmod 755 "$SCRATCH"
	mkdir "$SCRATCH/.test" && chmod 777 "$SCRATCH/.test"
	install -m 755 "$program" "$SCRATCH/.test/cowfs"
	install -m 644 "$TEST_DIR/lib.py" "$SCRATCH/.test/lib.py"
	awk '{ print $3 }' /proc/self/mountinfo | sort -u >"$SCRATCH/inherited"
	SCRATCH=$SCRATCH COWFS_TEST_INSIDE=$SCRATCH \
		unshare -mpf --mount-proc --propagation private --kill-child=KILL -- bash "$TEST_SCRIPT" "$@" </dev/null &
	INSIDE=$!
	(
		sleep "$limit"
		end_hung_test "$limit"
	) &
	WATCHDOG=$!
	disown "$WATCHDOG"
	wait "$INSIDE"
	status=$?
	INSIDE=
	exit "$status"
}

if [ -z "${COWFS_TEST_INSIDE-}" ]; then
	run_inside "$@"
fi

# ---- inside ------------------------------------------------------------------------------------------------------------

T=$COWFS_TEST_INSIDE
unset COWFS_TEST_INSIDE
export T COWFS=$T/.test/cowfs PYTHONPATH=$T/.test PYTHONDONTWRITEBYTECODE=1
# Scratch must be able to hold holes, inode flags and every kind of xattr; a tmpfs /tmp cannot.
case $(stat -f -c %T "$T") in
ext2/ext3 | xfs | btrfs) ;;
*)
	truncate -s 8G "$T/.test/scratch.img"
	mkfs.ext4 -q -m 0 "$T/.test/scratch.img"
	mkdir -p "$T/.test/keep" && mount --bind "$T/.test" "$T/.test/keep"
	mount -o loop "$T/.test/scratch.img" "$T" && mkdir "$T/.test" && mount --move "$T/.test/keep" "$T/.test" ||
		{ echo "FAIL - no ext4 for scratch"; exit 1; }
	;;
esac
exec 9>>"$T/.test/results"
chmod 777 "$T/.test"
cd "$T" || exit 1
TEST_USER=cowfstest TEST_UID=47113
umask 022

# A test that ends without `finish` has not run to its end: that is a failure, whatever it printed.
FINISHED=
ended() {
	[ -n "$FINISHED" ] || echo "FAIL - $TEST_NAME ended before its end"
	[ -n "$FINISHED" ] || exit 1
}
trap ended EXIT

# Counts the checks and ends the test: 0 if there was at least one and none failed.
finish() {
	FINISHED=yes
	local good bad
	good=$(grep -c '^ok' "$T/.test/results")
	bad=$(grep -c '^FAIL' "$T/.test/results")
	[ "$bad" = 0 ] || sed -n 's/^FAIL/failed:/p' "$T/.test/results"
	echo "$TEST_NAME: $good checks passed, $bad failed"
	[ "$bad" = 0 ] && [ "$good" -gt 0 ]
	exit $?
}

# long WHAT: whether what takes long is to be tested; scripts/test says SHORT=1 and leaves it to scripts/clients.
long() {
	[ -n "${SHORT-}" ] || return 0
	echo "# left to scripts/clients: $*"
	return 1
}

pass() { echo "ok - $*"; echo "ok - $*" >&9; }
fail() { echo "FAIL - $*"; echo "FAIL - $(echo "$*" | head -n 1)" >&9; }

# check NAME COMMAND...: the command succeeds. (Its output goes to a file: a daemon that kept a pipe open would hang us.)
check() {
	local name=$1 output status file=$T/.test/output.$BASHPID.$RANDOM
	shift
	"$@" >"$file" 2>&1
	status=$?
	output=$(cat "$file")
	if [ $status = 0 ]; then pass "$name"; else fail "$name: \`$*' gave status $status: $output"; fi
	return $status
}

# refuse NAME TEXT COMMAND...: the command fails, and says TEXT (a grep -E pattern, any case).
refuse() {
	local name=$1 text=$2 output status file=$T/.test/output.$BASHPID.$RANDOM
	shift 2
	"$@" >"$file" 2>&1
	status=$?
	output=$(cat "$file")
	if [ $status = 0 ]; then
		fail "$name: \`$*' should have failed with \`$text'; it printed: $output"
	elif [ $status = 124 ]; then
		fail "$name: \`$*' hung"
	elif ! grep -qiE -- "$text" <<<"$output"; then
		fail "$name: \`$*' should have said \`$text', but said (status $status): $output"
	else
		pass "$name"
	fi
}

# equal NAME GOT WANTED
equal() {
	if [ "$2" = "$3" ]; then pass "$1"; else
		fail "$1: got \`${2:0:500}', expected \`${3:0:500}'"
	fi
}

# same NAME FILE FILE: equal text; shows the difference.
same() {
	local difference
	if difference=$(diff -a "$2" "$3" 2>&1); then pass "$1"; else
		fail "$1: $2 and $3 differ:"
		head -n 20 <<<"$difference"
	fi
}

# python [ARGS] <<'EOF': a program with all of lib.py at hand, its checks counted as ours; 120 s.
python() {
	local status
	timeout -k 5 "${PYTHON_LIMIT:-120}" /usr/bin/python3 <(echo 'from lib import *'; cat) "$@"
	status=$?
	[ $status = 0 ] || fail "a python part of $TEST_NAME ended with status $status"
}

# tree DIR [exact] [without NAME...]: one line for each object below DIR: contents and metadata; `exact` adds ctime, atime and
# inode number; objects of these names are left out.
tree() { /usr/bin/python3 "$T/.test/lib.py" tree "$@"; }

# ---- waiting -----------------------------------------------------------------------------------------------------------
# A machine may be slow and loaded: who waits, waits for the condition, and gives up only after a time that no machine needs.

# until_true SECONDS COMMAND...: asks again and again until it succeeds.
until_true() {
	local end=$(($(date +%s%N) + $1 * 1000000000))
	shift
	while ! "$@" >/dev/null 2>&1; do
		[ "$(date +%s%N)" -lt $end ] || return 1
		sleep 0.05
	done
}

# not COMMAND...
not() { ! "$@"; }

# settled COMMAND...: what it prints, once it prints the same twice.
settled() {
	local before now
	now=$("$@")
	until [ "$now" = "${before-}" ]; do
		before=$now
		sleep 0.3
		now=$("$@")
	done
	echo "$now"
}

# gone PID...: waits until none of them is there. (A zombie is not there.)
gone() {
	local pid
	for pid; do
		until_true 30 not alive "$pid" || { echo "still there: $pid $(tr '\0' ' ' <"/proc/$pid/cmdline")"; return 1; }
	done
}
# One thread is enough: what the process has open is open until the last has ended.
alive() { cat "/proc/$1/task/"*/status 2>/dev/null | grep -q '^State:.[^ZX]'; }

# stop PID...: SIGSTOP, and waits until every thread of them has stopped: kill(2) does not.
stop() {
	kill -STOP "$@" && until_true 30 stopped "$@" || fail "stop $*: $(for pid; do grep -H ^State "/proc/$pid/task/"*/status; done)"
}
stopped() {
	local pid
	for pid; do
		! grep -h ^State: "/proc/$pid/task/"*/status | grep -qv 'T (stopped)' || return 1
	done
}

# ---- mounts ------------------------------------------------------------------------------------------------------------

# is_mounted DIR
is_mounted() { awk -v dir="$(realpath -ms "$1")" '$5 == dir { found = 1 } END { exit !found }' /proc/self/mountinfo; }

# daemons: pids of living cowfs processes of this test.
daemons() {
	local p
	for p in /proc/[0-9]*; do
		[ "$(readlink "$p/exe" 2>/dev/null)" = "$COWFS" ] && echo "${p#/proc/}"
	done
}

# no_daemon_left: waits for the last of them.
no_daemon_left() { until_true 30 no_daemon || { echo "still there: $(daemons)"; return 1; }; }
no_daemon() { [ -z "$(daemons)" ]; }

# union ARG...: cowfs with a limit of 60 s; the mountpoint is the last argument and must answer.
union() {
	local mountpoint=${*: -1} status
	timeout -k 2 60 "$COWFS" "$@"
	status=$?
	[ $status = 0 ] || { echo "cowfs $* gave status $status"; return $status; }
	is_mounted "$(readlink -f "$mountpoint")" || { echo "cowfs $* gave status 0, but nothing is mounted"; return 1; }
	timeout 30 stat -f "$mountpoint" >/dev/null
}

# unmount DIR: an ordinary umount, tried for a while if busy.
unmount() {
	local i said
	for i in {1..100}; do
		said=$(timeout 30 umount "$1" 2>&1) && break
		sleep 0.1
	done
	is_mounted "$1" && { echo "$said"; return 1; }
	return 0
}

# loop_fs TYPE SIZE DIR: a filesystem of its own (ext4, xfs, btrfs) on a loop image, mounted on DIR. It goes with the test.
loop_fs() {
	local image
	image=$T/.test/$(basename "$3").img
	rm -f "$image"
	truncate -s "$2" "$image"
	case $1 in
	ext4) mkfs.ext4 -q -m 0 "$image" ;;
	xfs) mkfs.xfs -q "$image" ;;
	btrfs) mkfs.btrfs -q "$image" ;;
	esac >/dev/null || return 1
	mkdir -p "$3" && mount -o loop "$image" "$3"
}

# ---- users -------------------------------------------------------------------------------------------------------------

# make_user: $TEST_USER exists, /dev/fuse is open to all, both in this test's namespace only.
make_user() {
	local file
	for file in passwd group; do
		cp -p "/etc/$file" "$T/.test/$file"
	done
	echo "$TEST_USER:x:$TEST_UID:$TEST_UID::/nonexistent:/bin/sh" >>"$T/.test/passwd"
	echo "$TEST_USER:x:$TEST_UID:" >>"$T/.test/group"
	echo user_allow_other >"$T/.test/fuse.conf"
	for file in passwd group fuse.conf; do
		[ -e "/etc/$file" ] || continue
		mount --bind "$T/.test/$file" "/etc/$file" || return 1
	done
	printf '#!/bin/bash\nTEST_UID=%s\n%s\nas_user "$@"\n' "$TEST_UID" "$(declare -f as_user)" >"$T/.test/as_user"
	chmod 755 "$T/.test/as_user"
	mkdir "$T/.test/dev"
	mount -t tmpfs -o mode=755 none "$T/.test/dev"
	mknod -m 666 "$T/.test/dev/fuse" c 10 229
	mount --bind "$T/.test/dev/fuse" /dev/fuse
}

# as_user COMMAND...: as $TEST_USER, with an almost empty environment. $T/.test/as_user is the same as a program.
as_user() {
	setpriv --reuid="$TEST_UID" --regid="$TEST_UID" --clear-groups -- \
		env -i PATH="$PATH" LC_ALL="$LC_ALL" T="$T" COWFS="$COWFS" PYTHONPATH="$PYTHONPATH" PYTHONDONTWRITEBYTECODE=1 "$@"
}
