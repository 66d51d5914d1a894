#!/bin/bash
# Once it serves, the daemon uses no absolute path and no AT_FDCWD: a whole session of every operation, under strace.
# timeout: 400
. "$(dirname "$0")/../lib.sh"

mkdir -p ns/lower ns/upper upper2 ufs
CASES=$(/usr/bin/python3 "$TEST_DIR/semantics.py" list | grep -vxE 'many|long_paths')
/usr/bin/python3 "$TEST_DIR/semantics.py" prepare ns/lower $CASES || fail "the lower branch cannot be built"

# Lines after the daemon's root was changed for the last time, in which a path argument is absolute or relative to the cwd.
# Not arguments but answers or data: what readlinkat gives back, what a new symbolic link says, what is read and written.
offences() {
	awk '
		/ chroot\(/ || (n < 3 && / chdir\("\/"\)/) { n = 0; served = 1; next }
		served { line[n++] = $0 }
		END { for (i = 0; i < n; i++) print line[i] }' "$1" |
		grep -vE '^[0-9]+ +(writev|write|read|pread64|pwrite64|readv|preadv|pwritev|sendto|recvfrom|exit|\+\+\+|---|<\.\.\.)' |
		sed -E 's/( readlinkat\([0-9]+, "[^"]*"), .*/\1)/; s/ symlinkat\("([^"\\]|\\.)*"(\.\.\.)?,/ symlinkat(TARGET,/' |
		grep -E 'AT_FDCWD|[(, ]"/'
}

# session NAME MOUNT-ARGUMENT...: the foreground daemon under strace from its first call to its last.
session() {
	local name=$1
	shift
	strace -f -qq -s 300 -o "trace.$name" -e trace='!futex,clock_gettime,sched_yield' "$COWFS" -f "$@" >"daemon.$name" 2>&1 &
	local tracer=$!
	for i in {1..300}; do
		is_mounted "$T/ufs" && break
		sleep 0.1
	done
	check "$name: mounts in the foreground" is_mounted "$T/ufs"
	timeout -k 5 170 /usr/bin/python3 "$TEST_DIR/semantics.py" run ufs $CASES >cases.out 2>&1 || fail "$name: the cases did not run to their end"
	equal "$name: the cases hold under strace too" "$(grep ^FAIL cases.out | head -n 3)" ""
	find ufs -xdev >/dev/null
	rm -r ufs/metadata ufs/renames
	echo 2 >/proc/sys/vm/drop_caches
	find ufs -xdev >/dev/null
	check "$name: unmounts" unmount "$T/ufs"
	wait $tracer
	equal "$name: the foreground daemon ends with status 0" $? 0
	check "$name: there is something to look at" test "$(grep -c . "trace.$name")" -gt 5000
	check "$name: it changed its root" grep -q ' chroot(' "trace.$name"
	offences "trace.$name" >offences
	equal "$name: no absolute path, no AT_FDCWD ($(grep -c . "trace.$name") calls)" "$(head -n 5 offences)" ""
	check "$name: and none that the directory it stands in would answer" \
		sh -c "! sed '1,/ chroot(/d' 'trace.$name' | grep -E ' (open|stat|lstat|access|mkdir|unlink|rename|chmod|chown|readlink|creat|link|symlink|rmdir|truncate)\\('"
}

session with-chroot -o "cow,chroot=$T/ns,default_permissions,allow_other,dev,suid" /lower=RO:/upper=RW "$T/ufs"
session without-chroot -o cow,allow_other,dev,suid "$T/ns/lower=RO:$T/upper2=RW" "$T/ufs"
finish
